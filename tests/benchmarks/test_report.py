"""Figures become a page: medians, the best setting of each server, and what cannot be read from one run is not said."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.load import Measured
from benchmarks.report import Result

TITLE = "one row"


def result(server: str, connections: int, *rates: float) -> Result:
    rounds = tuple(Measured(requests_per_s=rate, p50_ms=1.0, p99_ms=2.0, errors=0, cpu_us=30.0) for rate in rates)
    return Result(scenario=TITLE, server=server, setting="as shipped", connections=connections, rounds=rounds)


RESULTS = [
    result("modelhost", 1, 300.0, 100.0, 200.0),
    result("modelhost", 32, 4000.0),
    result("mosec (1, 0 ms)", 1, 100.0),
    result("mosec (1, 0 ms)", 32, 500.0),
    result("mosec (32, 1 ms)", 1, 10.0),
    result("mosec (32, 1 ms)", 32, 2000.0),
]


def test_each_load_shows_a_servers_best_setting_and_modelhost_as_a_multiple_of_it() -> None:
    lines = report.markdown(TITLE, RESULTS).splitlines()
    shown = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith(("| 1 ", "| 32 "))]
    assert [(row[0], row[1], row[2], row[-1]) for row in shown] == [
        ("1", "modelhost", "200", "1.00x"),
        ("1", "mosec (1, 0 ms)", "100", "2.00x"),
        ("32", "modelhost", "4,000", "1.00x"),
        ("32", "mosec (32, 1 ms)", "2,000", "2.00x"),
    ]


def test_every_setting_is_shown_at_every_load() -> None:
    table = report.settings_table(RESULTS)
    assert "| mosec (32, 1 ms) | 10 | 2,000 |" in table
    assert report.settings_table(RESULTS[:2]) == ""


def test_page_is_made_of_what_was_written(tmp_path: Path) -> None:
    document: dict[str, Any] = report.origin("bench.py") | {"versions": {"mosec": "0.9"}}
    document["results"] = [asdict(one) for one in RESULTS]
    assert report.results_of(json.loads(json.dumps(document))) == RESULTS
    (tmp_path / report.BENCH_FILE).write_text(json.dumps(document))
    kill = {"1 workers": {"kills": 3, "statuses": {"200": 9}, "errors": {}, "seconds_to_the_next_200": []}}
    scenarios = report.origin("scenarios.py") | {"scenarios": {"kill": kill}}
    report.write(tmp_path, report.SCENARIOS_FILE, scenarios)
    page = (tmp_path / "RESULTS.md").read_text()
    assert "`bench.py" in page
    assert "mosec 0.9" in page
    assert "never without" in page


def test_committed_results_are_the_page_of_the_committed_figures() -> None:
    committed = Path(report.__file__).parent
    assert (committed / "RESULTS.md").read_text() == report.page(committed)
