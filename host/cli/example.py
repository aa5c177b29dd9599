"""The one request that the user is shown: a recorded one if the package has it, else zeros."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any, Final

from host.cli.running import local_address
from host.config.deployment import DeployedModel
from host.config.settings import HostSettings
from host.protocol.errors import ConfigError
from host.protocol.package import golden_cases
from host.protocol.types import Signature, TensorSpec

INLINE_MAX_CHARS: Final = 1500
"""A longer request goes into a file: nobody pastes that."""


def example_of(signature: Signature, directory: Path) -> dict[str, Any]:
    """A request for a package: its first golden case, else zeros of the declared shapes."""
    try:
        cases = golden_cases(directory)
    except ConfigError:
        cases = []
    return cases[0].request if cases else {"inputs": [_zeros(spec) for spec in signature.inputs]}


def _zeros(spec: TensorSpec) -> dict[str, Any]:
    shape = [1 if dim == -1 else dim for dim in spec.shape]
    zero: Any = {"BYTES": "", "BOOL": False, "FP16": 0.0, "FP32": 0.0, "FP64": 0.0}.get(spec.datatype, 0)
    return {"name": spec.name, "shape": shape, "datatype": spec.datatype, "data": [zero] * math.prod(shape)}


def curl_command(settings: HostSettings, model: DeployedModel, file: Path) -> str:
    """A command to paste. A long request is written to `file`."""
    body = json.dumps(example_of(model.signature, Path(model.package)))
    data = body
    if len(body) > INLINE_MAX_CHARS:
        file.write_text(body + "\n", "utf-8")
        data = f"@{file}"
    url = f"{base_url(settings)}/v2/models/{model.name}/infer"
    return f"curl -s {url} -H 'Content-Type: application/json' -d {shlex.quote(data)}"


def base_url(settings: HostSettings) -> str:
    """Where a client on this machine finds the host."""
    return _url(settings.address, settings.port)


def admin_url(settings: HostSettings) -> str:
    """Where a browser on this machine finds the admin port, if there is one."""
    return _url(settings.admin_address, settings.admin_port)


def _url(address: str, port: int) -> str:
    address = local_address(address)
    return f"http://{f'[{address}]' if ':' in address else address}:{port}"
