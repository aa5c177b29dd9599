"""What the status page shows of one model beyond its state: packages, golden cases, what its processes died of."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from host.config.deployment import DeployedModel
from host.config.features import Features, feature_refs, input_datatype
from host.config.run_dir import RunDirectory
from host.control.deaths import SlotDeaths
from host.control.news import Event
from host.protocol.errors import ConfigError
from host.protocol.package import GOLDEN_FILE, golden_cases
from host.protocol.types import TensorSpec
from host.tail import last_lines

CASES_MAX: Final = 20
CASE_MAX_BYTES: Final = 1 << 16
"""Of a golden case's request and answer in JSON: a larger one is named and not shown."""
GOLDEN_FILE_MAX_BYTES: Final = 8 << 20
LOG_LINES: Final = 60
LINE_MAX_CHARS: Final = 400
DUMP_LINES_MAX: Final = 120
DEATHS_MAX: Final = 20

EXAMPLE_MAX_ELEMENTS: Final = 4096

_READ_LINES: Final = 400
_DUMP_BEGINS: Final = re.compile(r"(Current thread|Thread) 0x[0-9a-f]+|Fatal Python error")
_DUMP_GOES_ON: Final = re.compile(r"\s|(Current thread|Thread) 0x|Fatal Python error|Extension modules|$")


def model_document(
    name: str, models: Iterable[DeployedModel], features: Features, deaths: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Everything about the versions of a model. Reads packages: not for the event loop."""
    return {
        "name": name,
        "versions": [_version(model, features) for model in models],
        "deaths": list(deaths),
    }


def _version(model: DeployedModel, features: Features) -> dict[str, Any]:
    cases, problem = golden_documents(Path(model.package))
    return {
        "group": model.group,
        "version": model.version,
        "default": model.default,
        "platform": model.platform,
        "package": model.package,
        "processes": model.processes,
        "min_processes": model.min_processes,
        "max_processes": model.max_processes,
        "canary_percent": model.canary_percent,
        "shadow_percent": model.shadow_percent,
        "own_environment": model.python is not None,
        "limits": msgspec.structs.asdict(model.limits),
        "resources": msgspec.structs.asdict(model.resources),
        "sandbox": msgspec.structs.asdict(model.sandbox),
        "inputs": [_tensor(spec) for spec in model.signature.inputs],
        "outputs": [_tensor(spec) for spec in model.signature.outputs],
        "golden": cases,
        "golden_problem": problem,
        "example": example_request(model.signature.inputs, features),
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "datatype": spec.datatype,
        "shape": list(spec.shape),
        "features": list(spec.features),
    }


def golden_documents(package: Path) -> tuple[list[dict[str, Any]], str]:
    """The recorded requests and answers, and what keeps them from being shown."""
    path = package / GOLDEN_FILE
    try:
        if path.stat().st_size > GOLDEN_FILE_MAX_BYTES:
            return [], f"{GOLDEN_FILE} is larger than {GOLDEN_FILE_MAX_BYTES >> 20} MiB"
        cases = golden_cases(package)
    except FileNotFoundError:
        return [], ""
    except (OSError, ConfigError) as error:
        return [], str(error)
    problem = f"the first {CASES_MAX} of {len(cases)}" if len(cases) > CASES_MAX else ""
    return [_case(case.name, case.request, msgspec.to_builtins(case.response)) for case in cases[:CASES_MAX]], problem


def _case(name: str, request: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    asked, answered = _text(request), _text(response)
    size_bytes = len(asked) + len(answered)
    if size_bytes > CASE_MAX_BYTES:
        return {"name": name, "request": None, "response": None, "size_bytes": size_bytes}
    return {"name": name, "request": asked, "response": answered, "size_bytes": size_bytes}


def _text(document: dict[str, Any]) -> str:
    """JSON as a text in the document: a browser would read it with less digits than integers of 64 bits have."""
    return msgspec.json.encode(document).decode()


def example_request(inputs: Sequence[TensorSpec], features: Features) -> str | None:
    """A request in JSON: a row of zeros, and keys in place of what is fetched by them. None: nobody could read it."""
    tensors: dict[str, dict[str, Any]] = {}
    elements = 0
    for spec in inputs:
        if spec.features:
            for ref in feature_refs(spec):
                view = features.view(ref.view)
                for key in view.keys if view is not None else ():
                    tensors[key.input] = _zeros(key.input, input_datatype(key), (1,), 1)
            continue
        shape = tuple(abs(dim) for dim in spec.shape)
        count = 1
        for dim in shape:
            count *= dim
        elements += count
        if elements > EXAMPLE_MAX_ELEMENTS:
            return None
        tensors[spec.name] = _zeros(spec.name, spec.datatype, shape, count)
    return _text({"inputs": list(tensors.values())})


def _zeros(name: str, datatype: str, shape: Sequence[int], count: int) -> dict[str, Any]:
    value: Any = {"BYTES": "", "BOOL": False, "FP16": 0.0, "FP32": 0.0, "FP64": 0.0}.get(datatype, 0)
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": [value] * count}


# -- deaths ---------------------------------------------------------------------------------------------------
def death_documents(
    name: str, groups: Collection[str], events: Sequence[Event], slots: Mapping[str, SlotDeaths], run_dir: RunDirectory
) -> list[dict[str, Any]]:
    """The last deaths of a model's processes, the newest first; of each process's last one the end of its log, too.

    `groups`: the model's versions, as `churn.v3`. Reads logs: not for the event loop.
    """
    found: list[dict[str, Any]] = []
    for program, slot in slots.items():
        group = program.partition(":")[0]
        if slot.last is None or group not in groups:
            continue
        lines = [line[:LINE_MAX_CHARS] for line in last_lines(run_dir.log(program), _READ_LINES)]
        found.append(
            {
                "program": program,
                "at": slot.last.at,
                "pid": slot.last.pid,
                "kind": slot.last.kind.value,
                "reason": slot.last.reason,
                "counts": dict(slot.counts),
                "at_death": [line[:LINE_MAX_CHARS] for line in slot.last.log],
                "log": lines[-LOG_LINES:],
                "stacks": stack_dump(lines),
            }
        )
    shown = {(one["program"], one["at"]) for one in found}
    found += [
        {
            "program": event.subject,
            "at": event.at,
            "reason": event.text,
            "at_death": [line[:LINE_MAX_CHARS] for line in event.log],
        }
        for event in events
        if event.model == name and event.what == "death" and event.log and (event.subject, event.at) not in shown
    ]
    return sorted(found, key=lambda one: float(one["at"]), reverse=True)[:DEATHS_MAX]


def stack_dump(lines: Sequence[str]) -> list[str]:
    """The last stacks that faulthandler wrote into a log; empty without any."""
    dump: list[str] = []
    inside = False
    for line in lines:
        if inside and _DUMP_GOES_ON.match(line):
            dump.append(line)
        elif _DUMP_BEGINS.match(line):
            dump, inside = [line], True
        else:
            inside = False
    while dump and not dump[-1].strip():
        dump.pop()
    return dump[:DUMP_LINES_MAX]
