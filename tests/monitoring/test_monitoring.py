"""What the monitoring role hands over: rules, scrape configuration, dashboard."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_server import program

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "ansible" / "roles" / "monitoring" / "files"
RULES = FILES / "modelhost.rules.yml"
DASHBOARD = FILES / "grafana" / "dashboards" / "modelhost.json"
SUFFIXES = ("_bucket", "_sum", "_count")


def documented() -> dict[str, str]:
    """Name to type of every metric."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    return dict(re.findall(r"^\| `(modelhost_\w+)` \| (\w+) \|", text, re.MULTILINE))


def unknown(text: str) -> set[str]:
    """Metrics that a text names and no host exposes. Numbers of a histogram have suffixes."""
    known = documented()
    exposed = {name for name, kind in known.items() if kind != "histogram"}
    exposed |= {f"{name}{suffix}" for name, kind in known.items() if kind == "histogram" for suffix in SUFFIXES}
    return set(re.findall(r"\bmodelhost_\w+", text)) - exposed


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return document


def expressions() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def alerts() -> list[tuple[str, str]]:
    """Name and text of each rule."""
    parts = re.split(r"^      - alert: ", RULES.read_text(), flags=re.MULTILINE)[1:]
    return [(part.partition("\n")[0], part) for part in parts]


# -- names ----------------------------------------------------------------------------------------------------
def test_every_metric_of_a_rule_is_exposed() -> None:
    assert unknown(RULES.read_text()) == set()


def test_every_metric_of_the_dashboard_is_exposed() -> None:
    assert unknown(DASHBOARD.read_text()) == set()
    assert sum("modelhost_" in expression for expression in expressions()) > 20


def test_labels_of_queries_are_documented() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    for expression in (*expressions(), *(rule for _, rule in alerts())):
        for label in re.findall(r"[{,]\s*(\w+)\s*=~?\"", expression):
            assert f"`{label}`" in text or label in ("instance", "job"), label


# -- rules ----------------------------------------------------------------------------------------------------
def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    names = [name for name, _ in alerts()]
    assert names == [heading for heading in headings if heading.startswith("Modelhost")], "in the same order"
    assert len(names) == len(set(names)) >= 10
    for name, text in alerts():
        assert re.search(r"^          severity: (critical|warning|info)$", text, re.MULTILINE), name
        assert re.search(r"^          summary: .*\$labels\.instance", text, re.MULTILINE), name
        assert re.search(r"^          description: .{20}", text, re.MULTILINE), name
        assert f"          runbook: docs/operations.md#{name.lower()}\n" in text, name


def test_every_alert_is_tested() -> None:
    text = (FILES / "tests" / "modelhost.rules.test.yml").read_text()
    assert [name for name, _ in alerts() if name not in text] == []


# -- the dashboard ----------------------------------------------------------------------------------------------
def test_the_dashboard_is_whole() -> None:
    document = dashboard()
    panels = document["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    source = {"type": "prometheus", "uid": "modelhost-prometheus"}
    assert "uid: modelhost-prometheus" in (FILES / "grafana/provisioning/datasources/modelhost.yml").read_text()
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["datasource"] == source
        assert panel["title"]
        assert all(target["datasource"] == source for target in panel["targets"])
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, "panels lie beside one another"
        taken |= cells
    variables = {variable["name"] for variable in document["templating"]["list"]}
    used = set(re.findall(r"\$(\w+)", " ".join(expressions()))) - {"__rate_interval"}
    assert used == variables


# -- Prometheus' own tool ---------------------------------------------------------------------------------------
@pytest.mark.integration
@pytest.mark.parametrize(
    "command",
    ["check rules modelhost.rules.yml", "check config prometheus.yml", "test rules tests/modelhost.rules.test.yml"],
)
def test_promtool(command: str) -> None:
    tool = program("promtool")
    done = subprocess.run([tool, *command.split()], cwd=FILES, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.integration
def test_prometheus_reads_every_query_of_the_dashboard(tmp_path: Path) -> None:
    tool = program("promtool")
    rules = "".join(
        f"      - record: query:number{number}\n        expr: {json.dumps(expression)}\n"
        for number, expression in enumerate(expressions())
    ).replace("$__rate_interval", "5m")
    (tmp_path / "queries.yml").write_text(f"groups:\n  - name: queries\n    rules:\n{rules}")
    done = subprocess.run(
        [tool, "check", "rules", str(tmp_path / "queries.yml")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
