"""From deployment, grants and what the host allows to what each launcher is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.config.deployment import DeployedModel, Deployment
from host.config.settings import UIDS, HostSettings, resolve_settings
from host.isolation.cgroups import CgroupTree
from host.isolation.plan import SlotPlan
from host.isolation.planning import PIDS_MAX, Abilities, Layout, demands, slot_plans, user_ids
from host.placement import Cpu, Topology, place
from host.protocol.messages import Limits
from host.protocol.package import Resources, Sandbox
from host.protocol.types import Signature

TREE = CgroupTree(2, {"memory": Path("/cg/t"), "cpu": Path("/cg/t")})
ALL = Abilities(tree=TREE, namespaces=True, user=True, protected=True)
NONE = Abilities(tree=None, namespaces=False, user=False, protected=False)
LAYOUT = Layout(
    code_root=Path("/code"),
    model_python=Path("/env/bin/python"),
    prefixes={"/env/bin/python": ("/env", "/py"), "/own/bin/python": ("/own",)},
)
TOPOLOGY = Topology(cpus=tuple(Cpu(number=n, core=n, node=0) for n in range(8)), memory_bytes=1 << 40)


def settings(**flags: str) -> HostSettings:
    resolved, _ = resolve_settings({}, None, {}, flags, Path("/"))
    return dataclasses.replace(resolved, run_dir=Path("/run"))


def model(name: str = "churn", *, python: str | None = None, processes: int = 2, **parts: object) -> DeployedModel:
    return DeployedModel(
        name=name,
        version="3",
        processes=processes,
        package=f"/models/{name}/3",
        platform="python",
        signature=Signature((), ()),
        limits=Limits(),
        python=python,
        **parts,  # type: ignore[arg-type]
    )


def plans(abilities: Abilities, *models: DeployedModel, **flags: str) -> dict[str, SlotPlan]:
    host, deployment = settings(**flags), Deployment(models)
    return slot_plans(host, deployment, place(TOPOLOGY, demands(host, deployment)), abilities, LAYOUT)


def test_every_process_has_a_plan() -> None:
    assert set(plans(ALL, model(), fronts="2")) == {"front:0", "front:1", "control", "churn.v3:0", "churn.v3:1"}


def test_a_worker_is_kept_from_everything() -> None:
    plan = plans(ALL, model(resources=Resources(memory_bytes=1 << 28, cpus=2, threads=4)))["churn.v3:1"]
    assert plan.cgroup is not None and plan.view is not None
    assert plan.cgroup.directories == {"memory": "/cg/t/churn.v3/1", "cpu": "/cg/t/churn.v3/1"}
    assert (plan.cgroup.memory_bytes, plan.cgroup.pids_max, plan.cgroup.cpu_weight) == (1 << 28, PIDS_MAX, 200)
    assert (len(plan.cpus), plan.threads, plan.threads_max) == (2, 2, 4)
    assert (plan.network, plan.confined, plan.oom_score_adj) == (False, True, 500)
    assert plan.user is not None and plan.user >= 1_900_000_000
    assert plan.processes_max == 2 * PIDS_MAX
    assert plan.view.read_only == ("/env", "/py", *(f"/code/{part}" for part in CODE), "/models/churn/3")
    assert plan.view.writable == ("/run/sockets/churn.v3/1.sock",)
    assert plan.socket == "/run/sockets/churn.v3/1.sock"
    assert plan.counters == "/run/counters/worker~churn.v3:1~churn.v3"


CODE = ("models", "host/__init__.py", "host/protocol")


def test_what_a_package_may_do_and_needs_is_its_own() -> None:
    own = model(python="/own/bin/python", sandbox=Sandbox(network=True, writable=("work", "/var/lib/x")))
    plan = plans(ALL, own, model("other"))["churn.v3:0"]
    assert plan.view is not None
    assert plan.network
    assert plan.view.read_only[0] == "/own"
    assert plan.view.writable[1:] == ("/models/churn/3/work", "/var/lib/x")


def test_the_front_and_control_keep_the_hosts_view_and_user() -> None:
    for name in ("front:0", "control"):
        plan = plans(ALL, model())[name]
        assert plan.cgroup is not None
        assert (plan.cgroup.memory_bytes, plan.cgroup.pids_max) == (0, 0)
        assert (plan.view, plan.user, plan.network, plan.confined, plan.socket) == (None, None, True, False, "")
        assert plan.counters == ""
        assert plan.oom_score_adj == -500


def test_what_every_request_passes_through_goes_before_the_models() -> None:
    found = plans(ALL, model())
    weights = {name: plan.cgroup.cpu_weight for name, plan in found.items() if plan.cgroup is not None}
    assert weights == {"front:0": 1000, "control": 10, "churn.v3:0": 100, "churn.v3:1": 100}


def test_what_the_host_does_not_allow_is_not_tried() -> None:
    found = plans(NONE, model())
    for plan in found.values():
        assert (plan.cgroup, plan.view, plan.user, plan.network, plan.required) == (None, None, None, True, False)
    assert found["front:0"].oom_score_adj is None
    assert found["churn.v3:0"].oom_score_adj == 500
    assert found["churn.v3:0"].confined


@pytest.mark.parametrize(("isolation", "required"), [("required", True), ("best-effort", False)])
def test_required_is_passed_on(isolation: str, required: bool) -> None:
    assert {plan.required for plan in plans(ALL, model(), isolation=isolation).values()} == {required}


@given(st.sets(st.text(min_size=1, max_size=12), max_size=40), st.integers(1000, 1_900_000_000))
def test_every_model_version_is_a_user_of_its_own(groups: set[str], first: int) -> None:
    users = user_ids(groups, first)
    assert users.keys() == groups
    assert len(set(users.values())) == len(groups)
    assert all(first <= user < first + UIDS for user in users.values())
    assert users == user_ids(sorted(groups, reverse=True), first)
    for group in groups:
        assert user_ids([group], first)[group] <= first + UIDS
