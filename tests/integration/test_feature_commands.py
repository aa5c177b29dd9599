"""`modelhost features`, as it is typed: real processes, that are ended in the middle too."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cassandra_nodes import CassandraNodes
from hosts import CHECKOUT, until

pytestmark = pytest.mark.integration

LIMIT_S = 60.0
FEATURES = """\
[stores.local]
kind = "sqlite"
path = "data/features.sqlite"

[[views]]
name = "users"
[[views.keys]]
column = "id"
datatype = "INT64"
[[views.columns]]
name = "karma"
datatype = "FP64"
[[views.columns]]
name = "city"
datatype = "BYTES"

[[views]]
name = "days"
freshness_column = "changed"
[[views.keys]]
column = "user"
datatype = "BYTES"
[[views.keys]]
column = "day"
datatype = "INT8"
[[views.columns]]
name = "vector"
datatype = "FP32"
shape = [2, 2]
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Give a directory with a features.toml."""
    (tmp_path / "features.toml").write_text(FEATURES)
    (tmp_path / "data").mkdir()
    return tmp_path


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "host.cli", "features", *map(str, arguments)]


def environment() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MODELHOST_")}
    return {**clean, "PYTHONPATH": str(CHECKOUT), "PYTHONWARNINGS": "error", "COLUMNS": "100"}


def features(place: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        command(*arguments), cwd=place, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=LIMIT_S, check=False,
    )  # fmt: skip


def begun(place: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), cwd=place, env=environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def succeeds(place: Path, *arguments: str | Path) -> str:
    done = features(place, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_users(place: Path, count: int, name: str = "users.csv") -> Path:
    file = place / name
    file.write_text("id,karma,city\n" + "".join(f"{n},{n / 8},Köln {n}\n" for n in range(count)))
    return file


def count(place: Path) -> int:
    connection = sqlite3.connect(place / "data" / "features.sqlite")
    try:
        return int(connection.execute("SELECT count(*) FROM users").fetchone()[0])
    finally:
        connection.close()


@pytest.fixture
def made(place: Path) -> Path:
    """Give the directory with the tables made."""
    for view in ("users", "days"):
        succeeds(place, "create", view, "--apply")
    return place


# -- the way through ------------------------------------------------------------------------------------------------
def test_from_a_file_to_a_row(place: Path) -> None:
    file = write_users(place, 25_000)
    refused = features(place, "load", "users", file)
    assert refused.returncode == 2
    assert "make it with: modelhost features create users --apply" in refused.stderr
    assert not (place / "data" / "features.sqlite").exists()

    printed = succeeds(place, "create", "users", "--print")
    assert printed.startswith('CREATE TABLE IF NOT EXISTS "users" (')
    assert printed.endswith("STRICT, WITHOUT ROWID;\n")
    assert succeeds(place, "create", "users", "--apply") == "table users of view users is there, in store local\n"
    assert re.fullmatch(r"25,000 rows loaded in \d+\.\d s \([\d,]+ rows/s\)\n", succeeds(place, "load", "users", file))
    assert sorted(path.name for path in place.iterdir()) == ["data", "features.toml", "users.csv"]
    assert [path.name for path in (place / "data").iterdir()] == ["features.sqlite"]

    assert json.loads(succeeds(place, "get", "users", "24999", "--json")) == {
        "view": "users", "key": {"id": 24999}, "features": {"karma": 24999 / 8, "city": "Köln 24999"},
    }  # fmt: skip
    assert "Köln 7" in succeeds(place, "get", "users", "7")
    missing = features(place, "get", "users", "--", "-1")
    assert (missing.returncode, missing.stdout, missing.stderr) == (1, "", "view users has no entity id = -1\n")

    assert succeeds(place, "verify", "users", file, "--seed", "1") == "1,000 equal, 0 different, 0 missing (seed 1)\n"
    connection = sqlite3.connect(place / "data" / "features.sqlite")
    connection.execute("UPDATE users SET karma = 5 WHERE id = 3")
    connection.execute("DELETE FROM users WHERE id = 4")
    connection.commit()
    connection.close()
    verified = features(place, "verify", "users", file, "--sample", "30000", "--json")
    assert verified.returncode == 1
    document = json.loads(verified.stdout)
    assert (document["equal"], document["different"], document["missing"]) == (24_998, 1, 1)
    assert document["differences"] == [
        "line 5: id = 3: column karma: file 0.375, store 5.0",
        "line 6: id = 4: is not in the store",
    ]


def test_views_are_listed(place: Path) -> None:
    text = succeeds(place, "views")
    assert re.search(r"^users +local +users +id INT64 +karma FP64, city BYTES$", text, re.MULTILINE)
    assert re.search(r"^days +local +days +user BYTES, day INT8 +vector FP32\[2, 2\]$", text, re.MULTILINE)
    document = json.loads(succeeds(place, "views", "--json"))
    assert [view["name"] for view in document["views"]] == ["users", "days"]


def test_composite_keys_vectors_and_freshness(made: Path) -> None:
    file = made / "days.jsonl"
    file.write_text('{"user": "ä b", "day": 7, "vector": [[1, 2], [3, 4]], "changed": "2026-01-31T12:00:00Z"}\n')
    succeeds(made, "load", "days", file)
    document = json.loads(succeeds(made, "get", "days", "ä b", "7", "--json"))
    assert document == {
        "view": "days", "key": {"user": "ä b", "day": 7}, "features": {"vector": [[1.0, 2.0], [3.0, 4.0]]},
        "changed_s": 1769860800.0,
    }  # fmt: skip
    assert "1 equal" in succeeds(made, "verify", "days", file)
    wrong = features(made, "get", "days", "a")
    assert wrong.returncode == 2
    assert "expected USER DAY, received a" in wrong.stderr
    wrong = features(made, "get", "days", "a", "300")
    assert wrong.returncode == 2
    assert "day" in wrong.stderr


def test_parquet(made: Path) -> None:
    file = made / "users.parquet"
    pq.write_table(
        pa.table({"id": range(30_000), "karma": [n / 2 for n in range(30_000)], "city": ["x"] * 30_000}), file
    )
    document = json.loads(succeeds(made, "load", "users", file, "--json"))
    assert (document["rows"], document["bad"], document["complete"]) == (30_000, 0, True)
    assert count(made) == 30_000


def test_parquet_without_pyarrow_says_what_to_install(made: Path) -> None:
    (made / "users.parquet").write_bytes(b"PAR1")
    program = "import sys; sys.modules['pyarrow'] = None; from feature_io.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, "load", "users", "users.parquet"], cwd=made, env=environment(),
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "users.parquet: reading Parquet needs the package pyarrow: pip install 'modelhost[parquet]'\n"


# -- what is wrong ----------------------------------------------------------------------------------------------------
def test_bad_rows_are_shown_counted_and_written_down(made: Path) -> None:
    file = made / "users.csv"
    rows = [f"{n},{'x' if n % 2 else n},a\n" for n in range(100)]
    file.write_text("id,karma,city,more\n".replace(",more", "") + "".join(rows))
    stopped = features(made, "load", "users", file)
    assert (stopped.returncode, stopped.stdout.split(" in ")[0]) == (1, "0 rows loaded, 50 bad left out")
    shown = stopped.stderr.splitlines()
    assert shown[0] == 'line 3: column karma: expected FP64, received "x"'
    assert shown[19].startswith("line 41: ")
    assert shown[20] == "... more bad rows; --rejects FILE writes all of them"
    assert shown[21] == "more bad rows than --max-bad 0: everything up to line 0 is loaded, and nothing after it"
    assert len(shown) == 22
    assert count(made) == 0

    tried = features(made, "load", "users", file, "--dry-run", "--rejects", "bad.jsonl", "--json")
    assert tried.returncode == 1
    assert json.loads(tried.stdout)["bad"] == 50
    assert len((made / "bad.jsonl").read_text().splitlines()) == 50
    assert count(made) == 0

    done = features(made, "load", "users", file, "--max-bad", "50", "--rejects", "bad.jsonl")
    assert done.returncode == 0
    assert done.stdout.startswith("50 rows loaded, 50 bad left out in ")
    lines = [json.loads(line) for line in (made / "bad.jsonl").read_text().splitlines()]
    assert lines[0] == {"line": 3, "reason": 'column karma: expected FP64, received "x"'}
    assert len(lines) == 50
    assert count(made) == 50


def test_a_file_that_nobody_can_show_on_a_terminal_is_shown_plainly(made: Path) -> None:
    file = made / "users.csv"
    file.write_bytes(b"id,karma,city,\x1b[31mred\n1,\x1b[31m\xff,a,b\n")
    done = features(made, "load", "users", file)
    assert done.returncode == 1
    assert "\x1b" not in done.stderr
    assert 'line 2: column karma: expected FP64, received "\\x1b[31m\\udcff"' in done.stderr


def test_nan_is_refused_by_sqlite_with_what_to_do(made: Path) -> None:
    (made / "users.csv").write_text("id,karma,city\n1,nan,a\n2,1,a\n")
    done = features(made, "load", "users", "users.csv", "--max-bad", "1")
    assert done.returncode == 0
    assert "line 2: column karma: expected FP64 as SQLite has it, received NaN: write null" in done.stderr
    assert count(made) == 1


def test_columns_that_are_null_or_ignored_are_told(made: Path) -> None:
    (made / "users.csv").write_text("id,karma,city,more\n1,2,,x\n")
    done = features(made, "load", "users", "users.csv")
    assert done.returncode == 0
    assert done.stderr == "not in the view, ignored: more\nnull in every row: city\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("load", "nobody", "users.csv"), "nobody: expected a view of"),
        (("load", "users", "nothing.csv"), "nothing.csv: expected a file, received none"),
        (("load", "users", "users.csv", "--resume"), "users.csv.progress: is not there"),
        (("load", "users", "users.csv", "--rejects", "no/such/place"), "--rejects: no/such/place: cannot be written"),
        (("load", "users", "users.csv", "--max-bad", "-1"), "--max-bad"),
        (("load", "users", "users.csv", "--rate", "0"), "--rate"),
        (("create", "users"), "expected --print or --apply"),
        (("get", "users", "x"), 'column id: expected INT64, received "x"'),
        (("views", "--features", "nothing.toml"), "nothing.toml"),
        (("nonsense",), "No such command"),
    ],
)
def test_what_cannot_be_is_said_with_exit_code_2(made: Path, arguments: tuple[str, ...], words: str) -> None:
    write_users(made, 1)
    done = features(made, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_features_toml_is_found_by_setting_variable_and_flag(made: Path) -> None:
    elsewhere = made / "elsewhere"
    elsewhere.mkdir()
    done = features(elsewhere, "views")
    assert done.returncode == 2
    assert "expected features.toml beside the settings file or in the model repository" in done.stderr
    assert "users" in succeeds(elsewhere, "views", "--features", "../features.toml")
    (elsewhere / "modelhost.toml").write_text('features = "../features.toml"\n')
    assert "users" in succeeds(elsewhere, "views")
    assert "users" in succeeds(made / "data", "views", "--config", "../elsewhere/modelhost.toml")


def test_help_teaches(place: Path) -> None:
    text = succeeds(place, "--help")
    for name in ("views", "create", "load", "verify", "get", "invalidate", "stats"):
        assert f"modelhost features {name}" in text
        assert succeeds(place, name, "--help").startswith(f"Usage: modelhost features {name}")


# -- loads that are ended -------------------------------------------------------------------------------------------
@pytest.fixture
def running(made: Path) -> Iterator[subprocess.Popen[str]]:
    """Begin a load that takes a minute, and wait until the first rows are there."""
    write_users(made, 60_000)
    with begun(made, "load", "users", "users.csv", "--rate", "1000") as process:
        until(lambda: (made / "users.csv.progress").exists() or process.poll() is not None, "the first batch", LIMIT_S)
        assert process.poll() is None
        yield process
        process.kill()


def progress(made: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((made / "users.csv.progress").read_text())
    return document


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_after_the_batch_in_hand_and_says_how_to_go_on(
    made: Path, running: subprocess.Popen[str], number: signal.Signals
) -> None:
    running.send_signal(number)
    out, err = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 130
    rows = progress(made)["rows"]
    assert 0 < rows < 60_000
    assert count(made) == rows
    assert out.startswith(f"{rows:,} rows loaded in ")
    assert err == (
        f"interrupted: everything up to line {rows + 1:,} is loaded, and nothing after it\n"
        "go on with: modelhost features load users users.csv --resume\n"
    )
    document = json.loads(succeeds(made, "load", "users", "users.csv", "--resume", "--json"))
    assert (document["rows"], document["resumed_after"], document["complete"]) == (60_000, rows + 1, True)
    assert count(made) == 60_000
    assert not (made / "users.csv.progress").exists()
    assert "1,000 equal, 0 different, 0 missing" in succeeds(made, "verify", "users", "users.csv")


def test_a_load_that_is_killed_goes_on(made: Path, running: subprocess.Popen[str]) -> None:
    running.kill()
    running.communicate(timeout=LIMIT_S)
    rows = progress(made)["rows"]
    assert rows <= count(made) <= rows + 250, "a batch that the store has may not be remembered yet, never the reverse"
    assert count(made) % 250 == 0, "batches are whole"
    succeeds(made, "load", "users", "users.csv", "--resume")
    assert count(made) == 60_000
    assert "1,000 equal" in succeeds(made, "verify", "users", "users.csv")


def test_a_file_that_changed_is_not_gone_on_with(made: Path, running: subprocess.Popen[str]) -> None:
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=LIMIT_S)
    with (made / "users.csv").open("a") as file:
        file.write("1000000,1,a\n")
    done = features(made, "load", "users", "users.csv", "--resume")
    assert done.returncode == 2
    assert "has changed since the load that is to be resumed" in done.stderr
    anew = features(made, "load", "users", "users.csv")
    assert anew.returncode == 0
    assert "an earlier load was interrupted; this one begins anew" in anew.stderr
    assert count(made) == 60_001


def test_a_disk_that_is_full_ends_a_load_that_goes_on_later(made: Path) -> None:
    file = write_users(made, 60_000)
    limited = ["bash", "-c", 'ulimit -f 900 && exec "$@"', "-", *command("load", "users", file)]
    done = subprocess.run(
        limited, cwd=made, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 1
    rows = progress(made)["rows"]
    assert 0 < rows < 60_000
    assert "go on with: modelhost features load users" in done.stderr.splitlines()[-1]
    assert count(made) == rows
    succeeds(made, "load", "users", file, "--resume")
    assert count(made) == 60_000


def test_readers_are_not_stalled_by_a_load(made: Path, running: subprocess.Popen[str]) -> None:
    for _ in range(3):
        assert json.loads(succeeds(made, "get", "users", "0", "--json"))["features"]["karma"] == 0.0
    assert running.poll() is None


# -- terminals ----------------------------------------------------------------------------------------------------
def test_a_terminal_has_a_bar_and_nothing_else_has(made: Path) -> None:
    file = write_users(made, 30_000)
    assert features(made, "load", "users", file).stderr == ""
    ours, theirs = pty.openpty()
    shown = bytearray()

    def read() -> None:
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # the other end is closed
                return
            if not data:
                return
            shown.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    done = subprocess.run(
        command("load", "users", file), cwd=made, env={**environment(), "TERM": "xterm"}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=theirs, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    os.close(theirs)
    reader.join(LIMIT_S)
    os.close(ours)
    assert done.returncode == 0
    assert b"users.csv" in shown
    assert b"30,000 rows" in shown


# -- Cassandra --------------------------------------------------------------------------------------------------------
def test_the_same_commands_with_cassandra(place: Path, cassandra: CassandraNodes) -> None:
    points = json.dumps(list(cassandra.contact_points))
    (place / "features.toml").write_text(
        FEATURES.replace('kind = "sqlite"', f'kind = "cassandra"\ncontact_points = {points}\nport = {cassandra.port}')
        .replace('path = "data/features.sqlite"\n', "")
        .replace('name = "users"\n', f'name = "users"\nkeyspace = "k{uuid.uuid4().hex[:12]}"\ntimeout_ms = 5000\n')
        .replace('name = "days"\n', 'name = "days"\nkeyspace = "days"\n')
    )
    file = write_users(place, 20_000)
    missing = features(place, "load", "users", file)
    assert missing.returncode == 2
    assert "expected" in missing.stderr
    assert "PRIMARY KEY" in succeeds(place, "create", "users", "--print")
    succeeds(place, "create", "users", "--apply")
    process = begun(place, "load", "users", file, "--rate", "4000")
    with process:
        until(lambda: (place / "users.csv.progress").exists() or process.poll() is not None, "the first batch", LIMIT_S)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, err
    document = json.loads(succeeds(place, "load", "users", file, "--resume", "--json"))
    assert (document["rows"], document["complete"]) == (20_000, True)
    assert "1,000 equal, 0 different, 0 missing" in succeeds(place, "verify", "users", file)
    assert json.loads(succeeds(place, "get", "users", "19999", "--json"))["features"] == {
        "karma": 19999 / 8, "city": "Köln 19999",
    }  # fmt: skip
    assert features(place, "get", "users", "20000").returncode == 1


def test_a_cluster_that_is_not_there_is_said(place: Path) -> None:
    (place / "features.toml").write_text(
        FEATURES.replace('kind = "sqlite"', 'kind = "cassandra"\ncontact_points = ["127.0.0.1"]\nport = 1')
        .replace('path = "data/features.sqlite"\n', "")
        .replace("[[views]]", '[[views]]\nkeyspace = "k"')
    )
    done = features(place, "get", "users", "1")
    assert done.returncode == 1
    assert done.stderr.startswith("modelhost: store local: 127.0.0.1:1: ")
    assert "Traceback" not in done.stderr
