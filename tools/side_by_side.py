"""Run targets of the Makefile side by side: some that wait much behind some that compute.

    python3 tools/side_by_side.py "lint types integration" "unit e2e"

The first group's output is seen as it comes, that of another when it has ended. Ends with 1 if any target fails; if the
first group fails, the others are interrupted, and clean up after themselves; so are all at Ctrl-C, SIGTERM and SIGHUP.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from typing import IO

LOOK_S = 0.2
END_LIMIT_S = 300.0
"""What an interrupted group may take to clean up."""


def make(targets: str) -> list[str]:
    """The command for them."""
    return [os.environ.get("MAKE", "make"), "--no-print-directory", *targets.split()]


class Group:
    """Targets, in a session of their own: so all that they start can be interrupted, and nobody else is.

    `output`: where what they say goes until they have ended; None: it is seen as it comes.
    """

    def __init__(self, targets: str, output: IO[bytes] | None) -> None:
        self._targets = targets
        self._output = output
        self._shown = output is None
        errors = None if output is None else subprocess.STDOUT
        self._process = subprocess.Popen(make(targets), stdout=output, stderr=errors, start_new_session=True)

    def interrupt(self) -> None:
        """As Ctrl-C would."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)

    def look(self) -> int | None:
        """Give its exit code if it has ended; then show what it said, once."""
        code = self._process.poll()
        if code is not None and not self._shown and self._output is not None:
            self._shown = True
            self._output.seek(0)
            print(f"\n-- {self._targets}", flush=True)
            sys.stdout.buffer.write(self._output.read())
            print(f"-- {self._targets}: {'failed' if code else 'passed'}", flush=True)
        return code

    def kill(self) -> None:
        """For one that an interrupt did not end."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)


def main() -> int:
    """Run the groups that the command line names."""
    # Only noted: an exception could come while a group is being started, which nobody would know then. SIGINT also
    # where it is ignored, as behind a shell's `&`: what is started here would ignore it too.
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # nohup means it
            signal.signal(number, lambda received, frame: asked.append(received))
    first, *others = sys.argv[1:]
    with ExitStack() as stack:
        groups = [Group(first, None)]
        groups += [Group(targets, stack.enter_context(tempfile.TemporaryFile())) for targets in others]
        reasons, end_s = 0, math.inf
        while None in (codes := [group.look() for group in groups]):
            if len(asked) + bool(codes[0]) > reasons:
                reasons = len(asked) + bool(codes[0])
                end_s = min(end_s, time.monotonic() + END_LIMIT_S)
                for group in groups:
                    group.interrupt()
            if time.monotonic() > end_s:
                for group in groups:
                    group.kill()
            time.sleep(LOOK_S)
    return 130 if asked else int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
