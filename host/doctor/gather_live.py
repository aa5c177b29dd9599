"""Asks a host that runs. Every question has a deadline of its own, so that whoever is frozen is found to be."""

from __future__ import annotations

import asyncio
import json
import stat
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote
from uuid import uuid4

import aiohttp
import msgspec

from host.cli.example import base_url, example_of
from host.config.deployment import DeployedModel
from host.config.features import FeatureView, KeyColumn
from host.config.run_dir import FEATURES_GROUP
from host.control.probe import WorkerProbe
from host.control.status import HostStatus
from host.doctor.facts import (
    Asked,
    ControlFacts,
    FrontFacts,
    HealthFacts,
    ModelFacts,
    Seen,
    StoreFacts,
    SupervisorFacts,
    ViewFacts,
    WorkerFacts,
)
from host.doctor.gather import known_groups
from host.doctor.kernel import process_state
from host.doctor.target import Target
from host.front.state import FrontState
from host.golden import golden_difference
from host.protocol.errors import ConfigError, HostError
from host.protocol.package import GoldenCase, golden_cases
from host.protocol.sockets import SOCKET_READY
from host.supervisor import SupervisorClient
from host.unix_http import get

SUPERVISOR_S: Final = 3.0
CONTROL_S: Final = 8.0
"""Control itself asks supervisord, for 5 s at most, and then says that it does not answer."""

FRONT_S: Final = 3.0
WORKER_S: Final = 2.0
STORE_S: Final = 5.0
STORES_S: Final = 20.0
"""A store is opened, its views are compared with their tables, and read: each may take `STORE_S`."""

MODEL_SPARE_S: Final = 2.0
"""Beyond the model's own `timeout_ms`, after which the front answers by itself."""

MODEL_MAX_S: Final = 30.0
MODELS_S: Final = 90.0
"""All versions together; those that were not asked by then are named."""

MODELS_AT_ONCE: Final = 2
"""Few: the doctor looks at a host that has other work."""

ANSWER_MAX_BYTES: Final = 64 << 20
_MESSAGE_CHARS: Final = 300
_READ_BYTES: Final = 1 << 16
_NOT_ASKED: Final = f"was not asked: the others took {MODELS_S:.0f} s"


class _Answer(NamedTuple):
    status: int
    """0: none."""
    body: bytes
    problem: str
    took_s: float

    @property
    def message(self) -> str:
        """Why there is no answer, or the words of an error; of what is no modelhost's, its beginning."""
        if not self.status:
            return self.problem
        try:
            document = json.loads(self.body)
            return f"{document['code']}: {document['error']}"[:_MESSAGE_CHARS]
        except (ValueError, KeyError, TypeError):
            return repr(self.body[:_MESSAGE_CHARS])


async def _ask(
    session: aiohttp.ClientSession, url: str, timeout_s: float, document: dict[str, Any] | None = None
) -> _Answer:
    """GET, or POST a document; whatever happens, an answer within the time."""
    begun_s = time.monotonic()
    status, problem, body = 0, "", bytearray()
    try:
        method = "GET" if document is None else "POST"
        limit = aiohttp.ClientTimeout(total=timeout_s)
        async with session.request(method, url, json=document, timeout=limit) as response:
            async for part in response.content.iter_chunked(_READ_BYTES):
                body += part
                if len(body) > ANSWER_MAX_BYTES:
                    raise aiohttp.ClientPayloadError(f"more than {ANSWER_MAX_BYTES} bytes")
            status = response.status
    except TimeoutError:
        problem = f"no answer within {timeout_s:g} s"
    except (aiohttp.ClientError, OSError) as error:
        problem = str(error) or repr(error)
    return _Answer(status, bytes(body), problem, time.monotonic() - begun_s)


# -- supervisord and control --------------------------------------------------------------------------------------
def gather_supervisord(target: Target) -> SupervisorFacts:
    """Ask supervisord for its version and its processes, and the kernel for theirs."""
    client = SupervisorClient(target.run_dir.supervisor_socket, SUPERVISOR_S)
    begun_s = time.monotonic()
    version, problem, processes = "", "", []
    took_s = 0.0
    try:
        version = str(client.call("getSupervisorVersion"))
        took_s = time.monotonic() - begun_s
        processes = client.processes()
    except HostError as error:
        problem = str(error)
    scaled = {model.group for model in target.desired.models if model.autoscaled}
    return SupervisorFacts(
        up_pid=target.up_pid,
        up_state=process_state(target.up_pid) if target.up_pid else "",
        pid=target.supervisor_pid,
        state=process_state(target.supervisor_pid) if target.supervisor_pid else "",
        problem=problem,
        version=version,
        took_s=took_s,
        processes=tuple(
            Seen(process=process, kernel_state=process_state(process.pid) if process.pid else "")
            for process in processes
        ),
        wanted=target.programs_wanted,
        known=known_groups(target),
        is_scaled=frozenset(scaled | set(target.desired.restarts)),
    )


def gather_control(target: Target, processes: Sequence[Seen]) -> ControlFacts:
    """Ask control for its status."""
    frozen = next((one.process.pid for one in processes if one.process.group == "control" and one.is_frozen), 0)
    status, problem = None, ""
    if not frozen:
        answer = asyncio.run(_status(target))
        try:
            status = msgspec.json.decode(answer.body, type=HostStatus) if answer.status == 200 else None
        except msgspec.DecodeError as error:
            problem = f"answers something else than its status: {error}"
        if answer.status != 200:
            problem = f"does not say its status: {answer.message}"
    return ControlFacts(problem=problem, status=status, draining=target.desired.draining, frozen_pid=frozen)


async def _status(target: Target) -> _Answer:
    connector = aiohttp.UnixConnector(str(target.run_dir.control_socket))
    async with aiohttp.ClientSession(connector=connector) as session:
        return await _ask(session, "http://localhost/status", CONTROL_S)


# -- fronts -------------------------------------------------------------------------------------------------------
def gather_fronts(target: Target, processes: Sequence[Seen]) -> HealthFacts:
    """Ask each front on its own socket, and all of them through their port."""
    return asyncio.run(_health(target, {one.process.program: one for one in processes}))


async def _health(target: Target, seen: Mapping[str, Seen]) -> HealthFacts:
    url = base_url(target.settings)
    async with aiohttp.ClientSession() as session:
        states, live, ready = await asyncio.gather(
            asyncio.gather(
                *(_front(target, index, seen.get(f"front:{index}")) for index in range(target.settings.fronts))
            ),
            _ask(session, f"{url}/v2/health/live", FRONT_S),
            _ask(session, f"{url}/v2/health/ready", FRONT_S),
        )
    return HealthFacts(
        fronts=tuple(states),
        generation=target.routed.generation,
        url=url,
        live=_unwell(live),
        ready=_unwell(ready),
        took_s=max(live.took_s, ready.took_s),
        draining=target.routed.draining,
    )


def _unwell(answer: _Answer) -> str:
    if answer.status == 200:
        return ""
    return f"answered {answer.status} {answer.message}" if answer.status else answer.problem


async def _front(target: Target, index: int, seen: Seen | None) -> FrontFacts:
    is_frozen, generation, problem = seen is not None and seen.is_frozen, 0, ""
    if not is_frozen:
        try:
            document = await get(target.run_dir.front_socket(index), "/state", FRONT_S)
            generation = msgspec.json.decode(document, type=FrontState).generation
        except (HostError, msgspec.DecodeError) as error:
            problem = f"does not answer: {error}"
    return FrontFacts(
        program=f"front:{index}",
        pid=seen.process.pid if seen is not None else 0,
        is_frozen=is_frozen,
        problem=problem,
        generation=generation,
    )


# -- stores -------------------------------------------------------------------------------------------------------
def gather_stores(target: Target, processes: Sequence[Seen]) -> StoreFacts:
    """Read each view past the host, and through it if it runs."""
    views = target.desired.features.views
    if not views:
        return StoreFacts(views=())
    direct = _direct(target)
    live = asyncio.run(_views(target, views)) if target.running else {}
    return StoreFacts(
        views=tuple(
            ViewFacts(
                view=view.name,
                store=view.store,
                direct=direct.get(view.name, direct[""])[0],
                direct_s=direct.get(view.name, direct[""])[1],
                live=live.get(view.name),
            )
            for view in views
        ),
        frozen=tuple(one for one in processes if one.process.group == FEATURES_GROUP and one.is_frozen),
    )


def _direct(target: Target) -> dict[str, tuple[str, float]]:
    """Problem and seconds by view; under the empty name those of a view that nothing was said of.

    What reads stores is another program: `host` imports nothing of it.
    """
    command = [sys.executable, "-P", "-m", "feature_io.cli", "check", "--json", "--timeout-s", str(STORE_S)]
    if target.settings.features is not None:
        command += ["--features", str(target.settings.features)]
    try:
        said = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=STORES_S,
            check=False,
            cwd=target.programs.code_root,
        )
    except subprocess.TimeoutExpired:
        return {"": (f"no answer within {STORES_S:.0f} s", STORES_S)}
    try:
        checked = json.loads(said.stdout)["views"]
    except (ValueError, KeyError, TypeError):
        return {"": ((said.stderr.strip().splitlines() or ["modelhost features check says nothing"])[-1], 0.0)}
    found = {str(one["view"]): (str(one["problem"]), float(one["seconds"])) for one in checked}
    return {"": ("is no view of features.toml any more", 0.0)} | found


async def _views(target: Target, views: Sequence[FeatureView]) -> dict[str, str]:
    async with aiohttp.ClientSession() as session:
        found = await asyncio.gather(*(_view(session, base_url(target.settings), view) for view in views))
    return dict(zip((view.name for view in views), found, strict=True))


async def _view(session: aiohttp.ClientSession, url: str, view: FeatureView) -> str:
    """Why the host cannot read an entity of a view, which is most likely not there; empty if it can."""
    key = "/".join(quote(_any_key(column), safe="") for column in view.keys)
    answer = await _ask(session, f"{url}/v1/features/{quote(view.name, safe='')}/{key}", FRONT_S)
    if answer.status == 200 or (answer.status == 404 and answer.message.startswith("UNKNOWN_ENTITY")):
        return ""
    return f"answered {answer.status} {answer.message}" if answer.status else answer.problem


def _any_key(column: KeyColumn) -> str:
    """Another one each time: what was read before is cached."""
    chosen = uuid4()
    match column.datatype:
        case "UUID":
            return str(chosen)
        case "BYTES":
            return f"modelhost-doctor-{chosen}"
        case _:
            bits = int(column.datatype.removeprefix("INT")) - 1
            return str(chosen.int % (1 << bits))


# -- models -------------------------------------------------------------------------------------------------------
def gather_models(target: Target, processes: Sequence[Seen], names: Sequence[str] = ()) -> ModelFacts:
    """Send every version that is served its first golden case, and ask every worker whether it is there.

    `names`: only these, models (`churn`) or versions (`churn.v3`).
    """
    models = [one for one in target.routed.models if not names or one.name in names or one.group in names]
    missing = set(names) - {name for one in models for name in (one.name, one.group)}
    return asyncio.run(_models(target, processes, models, tuple(sorted(missing))))


async def _models(
    target: Target, processes: Sequence[Seen], models: Sequence[DeployedModel], missing: tuple[str, ...]
) -> ModelFacts:
    workers = await _workers(target, processes, {model.group for model in models})
    free = asyncio.Semaphore(MODELS_AT_ONCE)
    end_s = time.monotonic() + MODELS_S

    async def asked(session: aiohttp.ClientSession, model: DeployedModel) -> Asked:
        if not model.processes:
            return _asleep(model)
        async with free:
            return await _asked(session, target, model, end_s - time.monotonic())

    async with aiohttp.ClientSession() as session:
        found = await asyncio.gather(*(asked(session, model) for model in models))
    return ModelFacts(asked=tuple(found), workers=tuple(workers), patience_s=WORKER_S, missing=missing)


async def _asked(session: aiohttp.ClientSession, target: Target, model: DeployedModel, left_s: float) -> Asked:
    case = _first_case(model)
    document = case.request if case is not None else example_of(model.signature, Path(model.package))
    timeout_s = min(left_s, MODEL_MAX_S, model.limits.timeout_ms / 1000 + MODEL_SPARE_S)
    answer = _Answer(0, b"", _NOT_ASKED, 0.0)
    if timeout_s > 0:
        name, version = quote(model.name, safe=""), quote(model.version, safe="")
        url = f"{base_url(target.settings)}/v2/models/{name}/versions/{version}/infer"
        answer = await _ask(session, url, timeout_s, document)
    difference = ""
    if answer.status == 200 and case is not None:
        try:
            difference = golden_difference(case, json.loads(answer.body)) or ""
        except ValueError as error:
            difference = f"the answer is not JSON: {error}"
    return Asked(
        name=model.name,
        version=model.version,
        case=case.name if case is not None else "",
        status=answer.status,
        message="" if answer.status == 200 else answer.message,
        difference=difference,
        took_s=answer.took_s,
        log=str(target.run_dir.log(f"{model.group}:0")),
    )


def _first_case(model: DeployedModel) -> GoldenCase | None:
    """A package that cannot be read is the configuration's finding, not this one's."""
    with suppress(ConfigError):
        return next(iter(golden_cases(Path(model.package))), None)
    return None


def _asleep(model: DeployedModel) -> Asked:
    return Asked(
        name=model.name,
        version=model.version,
        case="",
        status=0,
        message="",
        difference="",
        took_s=0.0,
        asleep=True,
    )


async def _workers(target: Target, processes: Sequence[Seen], groups: Collection[str]) -> list[WorkerFacts]:
    alive = [one for one in processes if one.process.group in groups and _says_ready(target, one)]
    thawed = [one.process.program for one in alive if not one.is_frozen]
    probe = WorkerProbe(target.run_dir.sockets)
    watching = asyncio.create_task(probe.run())
    try:
        await probe.first_joined(WORKER_S)
        readings = await probe.read(thawed, WORKER_S)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    answering = {program for program, reading in readings.items() if reading.counters is not None}
    return [
        WorkerFacts(
            program=one.process.program,
            pid=one.process.pid,
            is_frozen=one.is_frozen,
            answers=one.process.program in answering,
        )
        for one in alive
    ]


def _says_ready(target: Target, one: Seen) -> bool:
    """Whether it is there, and its socket says that it can serve; one that does not is control's finding."""
    path = target.run_dir.worker_socket(one.process.group, int(one.process.name))
    try:
        return one.process.pid != 0 and stat.S_IMODE(path.lstat().st_mode) == SOCKET_READY
    except OSError:
        return False
