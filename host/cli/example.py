"""The one request that the user is shown: a recorded one if the package has it, else zeros."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, Final

from host.cli.running import local_address
from host.config.deployment import DeployedModel
from host.config.settings import HostSettings
from host.protocol.errors import ConfigError
from host.protocol.package import golden_cases

INLINE_MAX_CHARS: Final = 1500
"""A longer request goes into a file: nobody pastes that."""


def example_request(model: DeployedModel) -> dict[str, Any]:
    """A request that the model answers."""
    try:
        cases = golden_cases(Path(model.package))
    except ConfigError:
        cases = []
    if cases:
        return cases[0].request
    inputs = []
    for spec in model.signature.inputs:
        shape = [1 if dim == -1 else dim for dim in spec.shape]
        count = 1
        for dim in shape:
            count *= dim
        zero: Any = {"BYTES": "", "BOOL": False, "FP16": 0.0, "FP32": 0.0, "FP64": 0.0}.get(spec.datatype, 0)
        inputs.append({"name": spec.name, "shape": shape, "datatype": spec.datatype, "data": [zero] * count})
    return {"inputs": inputs}


def curl_command(settings: HostSettings, model: DeployedModel, file: Path) -> str:
    """A command to paste. A long request is written to `file`."""
    body = json.dumps(example_request(model))
    data = body
    if len(body) > INLINE_MAX_CHARS:
        file.write_text(body + "\n", "utf-8")
        data = f"@{file}"
    url = f"{base_url(settings)}/v2/models/{model.name}/infer"
    return f"curl -s {url} -H 'Content-Type: application/json' -d {shlex.quote(data)}"


def base_url(settings: HostSettings) -> str:
    """Where a client on this machine finds the host."""
    address = local_address(settings.address)
    return f"http://{f'[{address}]' if ':' in address else address}:{settings.port}"
