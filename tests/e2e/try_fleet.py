"""A fleet to work with by hand: it boots, says how to reach it, and stays until Ctrl-C.

.venv/dev/bin/python tests/e2e/try_fleet.py              # three hosts and a balancer
.venv/dev/bin/python tests/e2e/try_fleet.py --hosts 1    # one host and a balancer
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence

from fleet import Fleet, missing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="try_fleet.py", description="Boot a fleet of bare hosts; Ctrl-C ends it.")
    parser.add_argument("--hosts", type=int, choices=range(1, 10), default=3, help="how many (default: %(default)s)")
    parser.add_argument("--no-balancer", action="store_true", help="hosts only")
    chosen = parser.parse_args(arguments)
    if (reason := missing()) is not None:
        sys.stderr.write(f"try_fleet.py: {reason}\n")
        return 2
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    start = time.monotonic()
    hosts = [f"h{number}" for number in range(1, chosen.hosts + 1)]
    try:
        with Fleet(hosts, balancer=not chosen.no_balancer) as fleet:
            login = f"{fleet.door} ssh -t -F {fleet.directory}/ssh_config root@{fleet.addresses[hosts[0]]}"
            lines = [
                f"{', '.join(fleet.addresses)} are up after {time.monotonic() - start:.1f} s",
                f"inventory:  {fleet.inventory}",
                f"a playbook: {fleet.door} ansible-playbook -i {fleet.inventory} ansible/site.yml",
                f"a shell:    {login}",
                "Ctrl-C takes it all away",
            ]
            # From here on they are waited for: one that comes before the wait is not lost.
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
            sys.stdout.write("\n".join([*lines, ""]))
            sys.stdout.flush()
            signal.sigwait([signal.SIGINT, signal.SIGTERM])
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
