"""What the tests of reconciling share: versions, and a death."""

from __future__ import annotations

from host.config.deployment import DeployedModel, Deployment
from host.control.reconcile import Pace
from host.control.status import DeathKind, ExitStatus
from host.protocol.messages import Limits
from host.protocol.types import Signature

NOW = 1000.0
STARTUP_S = 60
PACE = Pace(starting_max=2, drain_s=30.0)


def version(
    number: str, processes: int = 1, *, name: str = "churn", slots: int = 0, startup_s: int = STARTUP_S
) -> DeployedModel:
    return DeployedModel(
        name=name,
        version=number,
        processes=processes,
        slots=slots,
        package="/p",
        platform="python",
        signature=Signature((), ()),
        limits=Limits(startup_s=startup_s),
    )


V1, V2 = version("1"), version("2")
NOTHING = Deployment()


def died(at: float = NOW - 1) -> ExitStatus:
    return ExitStatus(at=at, pid=7, kind=DeathKind.EXIT, reason="exit code 1", log=("no such weights",))
