"""The layout says who may import whom; here it is checked."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PURE = (
    "feature_io/access.py",
    "feature_io/breaker.py",
    "feature_io/cache.py",
    "feature_io/completion.py",
    "feature_io/loading/pace.py",
    "feature_io/plan.py",
    "feature_io/stores/cql.py",
    "feature_io/stores/sql.py",
    "feature_io/values.py",
    "host/config/entry_checks.py",
    "host/control/autoscale.py",
    "host/control/capacity.py",
    "host/control/compare.py",
    "host/control/history_ring.py",
    "host/control/judge.py",
    "host/control/events.py",
    "host/control/metrics/exposition.py",
    "host/control/metrics/families.py",
    "host/control/metrics/family.py",
    "host/control/news.py",
    "host/control/observe.py",
    "host/control/page_view.py",
    "host/control/status.py",
    "host/dispatch.py",
    "host/doctor/checks.py",
    "host/doctor/facts.py",
    "host/doctor/findings.py",
    "host/doctor/live_checks.py",
    "host/fleet/changes.py",
    "host/fleet/entries.py",
    "host/fleet/evaluation.py",
    "host/fleet/hosts.py",
    "host/fleet/layers.py",
    "host/fleet/merging.py",
    "host/fleet/plain.py",
    "host/front/catalog.py",
    "host/front/comparison.py",
    "host/front/documents.py",
    "host/front/headers.py",
    "host/front/routes.py",
    "host/front/sampling.py",
    "host/front/spans.py",
    "host/front/state.py",
    "host/front/traffic.py",
    "host/golden.py",
    "host/isolation/planning.py",
    "host/cli/edits.py",
    "host/control/compare.py",
    "host/control/judge.py",
    "host/control/reconcile.py",
    "host/placement.py",
    "host/planner/check.py",
    "host/planner/demand.py",
    "host/planner/explain.py",
    "host/planner/model.py",
    "host/planner/occupancy.py",
    "host/planner/pack.py",
    "host/planner/plan.py",
    "host/protocol/latency.py",
    "host/protocol/trace_context.py",
    "host/retention.py",
    "models/batching.py",
    "supervisor_conf/render.py",
)
PURE_FORBIDDEN = {"asyncio", "socket", "time", "os", "threading", "subprocess", "random"}


def modules(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py") if "bundled" not in path.parts)


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def ours(path: Path) -> set[str]:
    """modelhost's own modules that a file imports, as `host.protocol`, `models`, ..."""
    found = set()
    for name in imported(path):
        top, *rest = name.split(".")
        if top in ("host", "models", "supervisor_conf", "feature_io"):
            found.add(f"{top}.{rest[0]}" if top == "host" and rest else top)
    return found


@pytest.mark.parametrize("path", modules("host/protocol"), ids=str)
def test_protocol_is_a_leaf(path: Path) -> None:
    assert ours(path) <= {"host.protocol"}


@pytest.mark.parametrize("path", modules("host/config"), ids=str)
def test_config_imports_only_the_protocol(path: Path) -> None:
    assert ours(path) <= {"host.protocol", "host.config"}


@pytest.mark.parametrize("path", modules("supervisor_conf"), ids=str)
def test_rendering_imports_only_what_it_renders(path: Path) -> None:
    assert ours(path) <= {"host.protocol", "host.config", "supervisor_conf"}


@pytest.mark.parametrize("path", modules("feature_io"), ids=str)
def test_feature_service_imports_only_itself_the_protocol_and_the_configuration(path: Path) -> None:
    assert ours(path) <= {"host.protocol", "host.config", "feature_io"}


@pytest.mark.parametrize("path", modules("feature_io"), ids=str)
def test_only_its_adapter_imports_a_driver(path: Path) -> None:
    drivers = {"aiocassandra", "cassandra", "acsylla"} & {module.split(".")[0] for module in imported(path)}
    assert not drivers or path.parent.name == "drivers"


@pytest.mark.parametrize("path", modules("models"), ids=str)
def test_worker_imports_only_itself_and_the_protocol(path: Path) -> None:
    assert ours(path) <= {"host.protocol", "models"}


@pytest.mark.parametrize("path", modules("host"), ids=str)
def test_host_never_imports_models(path: Path) -> None:
    assert not ours(path) & {"models", "feature_io"}


@pytest.mark.parametrize("path", modules("host"), ids=str)
def test_a_host_knows_nothing_of_fleets(path: Path) -> None:
    assert path.parent.name == "fleet" or "host.fleet" not in ours(path)


@pytest.mark.parametrize("path", modules("host/fleet"), ids=str)
def test_fleets_are_packages_configuration_and_a_plan(path: Path) -> None:
    files = {"host.archive", "host.fetch", "host.manifest"}
    assert ours(path) <= {"host.protocol", "host.config", "host.planner", "host.isolation", "host.fleet", *files}


@pytest.mark.parametrize("path", modules("host"), ids=str)
def test_only_action_plugins_import_ansible(path: Path) -> None:
    assert not any(module.split(".")[0] == "ansible" for module in imported(path))


@pytest.mark.parametrize("path", [path for path in modules("host/front") if path.name != "__main__.py"], ids=str)
def test_front_never_loads_numpy(path: Path) -> None:
    heavy = {"numpy", "host.protocol.tensors", "host.protocol.v1", "host.protocol.v2"}
    assert not heavy & set(imported(path))


@pytest.mark.parametrize("path", modules("host"), ids=str)
def test_only_one_module_imports_opentelemetry(path: Path) -> None:
    assert path.name == "otlp.py" or not any(module.startswith("opentelemetry") for module in imported(path))


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_touch_no_clock_and_no_socket(name: str) -> None:
    tops = {module.split(".")[0] for module in imported(ROOT / name)}
    assert not tops & PURE_FORBIDDEN


@pytest.mark.parametrize("path", modules("models"), ids=str)
def test_worker_needs_no_more_than_a_models_environment_has(path: Path) -> None:
    allowed = {"numpy", "msgpack", "msgspec"}
    if path.parent.name == "runtimes":
        allowed |= {"lightgbm", "onnxruntime"}
    third_party = {module.split(".")[0] for module in imported(path)} & {
        "aiohttp", "uvloop", "click", "rich", "supervisor", "asyncinotify", "multidict", "lightgbm", "onnxruntime",
    }  # fmt: skip
    assert third_party <= allowed
