"""What is written for a launcher is what it reads; what is not, is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from host.isolation.plan import CgroupPlan, SlotPlan, ViewPlan, read_plan, write_plan

PLAN = SlotPlan(
    program="churn.v3:0",
    required=True,
    cgroup=CgroupPlan(2, {"memory": "/sys/fs/cgroup/x/churn.v3/0"}, 1 << 29, 128, 100, "0-1"),
    cpus=(0, 1),
    threads=2,
    threads_max=2,
    oom_score_adj=500,
    open_files=4096,
    view=ViewPlan("/run/view", ("/a", "/b"), ("/c",), 1 << 20),
    network=False,
    user=1_900_000_001,
    processes_max=256,
    confined=True,
    socket="/run/sockets/churn.v3/0.sock",
    counters="/run/counters/worker~churn.v3:0~churn.v3",
)


@pytest.mark.parametrize("plan", [PLAN, PLAN._replace(cgroup=None, view=None, user=None, oom_score_adj=None, cpus=())])
def test_what_is_written_is_read(tmp_path: Path, plan: SlotPlan) -> None:
    path = tmp_path / "churn.v3:0.json"
    write_plan(path, plan)
    assert read_plan(path) == plan
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_plan_of_an_earlier_release_names_no_counters(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_plan(path, PLAN)
    document = json.loads(path.read_text())
    del document["counters"]
    path.write_text(json.dumps(document))
    assert read_plan(path) == PLAN._replace(counters="")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cgroup": null, "view": null}', '{"cgroup": {"x": 1}, "view": 2}'])
def test_another_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path}: not a slot's plan"):
        read_plan(path)
