"""How fast a file is loaded into a store of features, and how much memory that takes.

    .venv/dev/bin/python benchmarks/loading.py --only sqlite cassandra

As a user would: `modelhost features create --apply`, then `modelhost features load`, of a CSV file with a key and five
columns (numbers, a text, one cell in ten empty). The command's resident memory is read while it runs, so that memory
which grows with the file is seen to. Cassandra is one node on this machine, which takes most of its CPU.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "integration")]

from cassandra_nodes import CassandraNodes  # noqa: E402

MODELHOST: Final = Path(sys.executable).with_name("modelhost")
ROWS: Final = {"sqlite": 2_000_000, "cassandra": 300_000}
LOOK_S: Final = 0.1
PARTS: Final = 10
"""Of a load's time, each with its highest memory."""

COLUMNS: Final = {"age": "INT64", "income": "FP64", "score": "FP32", "visits": "INT64", "country": "BYTES"}
COUNTRIES: Final = ("at", "de", "fr", "it")


def write_rows(path: Path, rows: int) -> None:
    """The file."""
    chance = random.Random(1)  # noqa: S311 - the same file each time
    with path.open("w") as file:
        file.write(f"id,{','.join(COLUMNS)}\n")
        for number in range(rows):
            income = f"{chance.uniform(0, 1e5):.2f}" if number % 10 else ""
            country = COUNTRIES[number % len(COUNTRIES)]
            file.write(f"{number},{number % 90},{income},{chance.random():.4f},{number % 1000},{country}\n")


def features(store: str, where: str) -> str:
    """A file with that store and one view in it."""
    columns = [f'[[views.columns]]\nname = "{name}"\ndatatype = "{kind}"\n' for name, kind in COLUMNS.items()]
    key = '[[views.keys]]\ncolumn = "id"\ndatatype = "INT64"\n'
    return "\n".join([f"[stores.main]\n{store}", f'[[views]]\nname = "users"\n{where}', key, *columns])


def sqlite(rows: int, directory: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Into a new database."""
    return load(rows, directory, features('kind = "sqlite"\npath = "features.sqlite"\n', 'table = "users"\n'), say)


def cassandra(rows: int, directory: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Into a node with nothing in it."""
    with CassandraNodes() as nodes:
        nodes.start()
        points = ", ".join(f'"{point}"' for point in nodes.contact_points)
        store = f'kind = "cassandra"\ncontact_points = [{points}]\nport = {nodes.port}\n'
        return load(rows, directory, features(store, 'keyspace = "bench"\ntable = "users"\n'), say)


def load(rows: int, directory: Path, text: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Create the table, load the file, and look at the command's memory meanwhile."""
    (directory / "features.toml").write_text(text)
    write_rows(directory / "users.csv", rows)
    options = ["--features", str(directory / "features.toml")]
    subprocess.run([MODELHOST, "features", "create", "users", "--apply", *options], check=True, stdout=sys.stderr)
    begun_s = time.monotonic()
    process = subprocess.Popen(
        [MODELHOST, "features", "load", "users", str(directory / "users.csv"), "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    seen: list[int] = []
    while process.poll() is None:
        seen.append(resident_bytes(process.pid))
        time.sleep(LOOK_S)
    took_s = time.monotonic() - begun_s
    assert process.stdout is not None
    summary = json.loads(process.stdout.read())
    if process.returncode:
        raise SystemExit(f"features load: {summary}")
    say(f"{rows:,} rows in {took_s:.1f} s")
    part = -(-len(seen) // PARTS)
    return {
        "rows": rows,
        "seconds": round(took_s, 1),
        "rows_per_s": round(rows / took_s),
        "summary": summary,
        "resident_mib": [round(max(seen[start : start + part]) / (1 << 20), 1) for start in range(0, len(seen), part)],
    }


def resident_bytes(pid: int) -> int:
    """Of a process; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) << 10 if found else 0


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = {"sqlite": sqlite, "cassandra": cassandra}
    parser.add_argument("--only", nargs="+", choices=ways, default=list(ways), help="default all")
    parser.add_argument("--rows", type=int, help=f"of the file (default {ROWS})")
    options = parser.parse_args()
    for name in options.only:
        with tempfile.TemporaryDirectory(prefix="mh-") as directory:
            found = ways[name](
                options.rows or ROWS[name],
                Path(directory),
                lambda text: print(text, file=sys.stderr, flush=True),
            )
        print(json.dumps({name: found}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
