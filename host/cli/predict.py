"""`modelhost predict`: one inference request to the running host."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click

from host.cli.options import load, settings_options
from host.protocol.errors import ConfigError, HostError

CALL_TIMEOUT_S: Final = 60.0
_ROWS_SHOWN: Final = 50


@click.command("predict")
@click.argument("model")
@click.option("--version", "model_version", default="", metavar="V", help="version (default: the model's default)")
@click.option(
    "-i", "--input", "input_file", metavar="FILE", help='request: {"inputs": [...]} in JSON; - for standard input'
)
@click.option("--msgpack", "as_msgpack", is_flag=True, help="send and receive msgpack instead of JSON")
@click.option("--json", "as_json", is_flag=True, help="write the answer's document")
@settings_options("address", "port")
def command(
    model: str,
    model_version: str,
    input_file: str | None,
    as_msgpack: bool,
    as_json: bool,
    config_file: str | None,
    **flags: str | None,
) -> None:
    """Send one Open Inference Protocol request for MODEL to the host and show the answer."""
    from host.cli.printing import print_json
    from host.cli.running import local_address
    from host.protocol.documents import CONTENT_TYPES, decode_document, encode_document
    from host.protocol.errors import Malformed
    from host.protocol.messages import Encoding

    settings = load(config_file, flags).settings
    request = read_request_file(input_file or "-")
    encoding = Encoding.MSGPACK if as_msgpack else Encoding.JSON
    version = f"/versions/{quote(model_version, safe='')}" if model_version else ""
    path = f"/v2/models/{quote(model, safe='')}{version}/infer"
    address = local_address(settings.address)
    body = encode_document(request, encoding)
    status, answer = post(address, settings.port, path, body, CONTENT_TYPES[encoding])
    try:
        document = decode_document(answer, encoding)
    except Malformed as error:
        raise HostError(f"{address} port {settings.port} answered {status}, and {error}: is it a modelhost?") from error
    if status != 200:
        code = document.get("code", status) if isinstance(document, dict) else status
        raise HostError(f"{code}: {document.get('error') if isinstance(document, dict) else document}")
    if as_json:
        print_json(document)
    else:
        print_outputs(document)


def read_request_file(name: str) -> Any:
    """Read a request's document. Raises `ConfigError`."""
    if name == "-" and sys.stdin.isatty():
        raise ConfigError('--input: expected a file with {"inputs": [...]}, or the request on standard input')
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text("utf-8")
        document = json.loads(text)
    except OSError as error:
        raise ConfigError(f"--input: {name}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, not JSON
        raise ConfigError(f"--input: {name}: not JSON: {error}") from error
    if not isinstance(document, dict) or "inputs" not in document:
        raise ConfigError(f'--input: {name}: expected an object with "inputs": name, datatype, shape and data of each')
    return document


def post(address: str, port: int, path: str, body: bytes, content_type: str) -> tuple[int, bytes]:
    """Post and return status and body. Raises `HostError` if nobody answers."""
    connection = http.client.HTTPConnection(address, port, timeout=CALL_TIMEOUT_S)
    headers = {"Content-Type": content_type, "Accept": content_type}
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or repr(error)
        raise HostError(
            f"no host answers on {address} port {port}: {reason.lower()}; start one with: modelhost up"
        ) from error
    finally:
        connection.close()


def print_outputs(document: Mapping[str, Any]) -> None:
    """Show an answer: one line a row, one column an output."""
    from host.cli.printing import make_table, print_table

    outputs = document["outputs"]
    columns = [(f"{one['name']} {one['datatype']} {one['shape']}", rows(one)) for one in outputs]
    table = make_table("row", *(title for title, _ in columns))
    count = max((len(values) for _, values in columns), default=0)
    for row in range(min(count, _ROWS_SHOWN)):
        cells = [values[row] if row < len(values) else "" for _, values in columns]
        table.add_row(str(row), *cells)
    click.echo(f"{document['model_name']} version {document['model_version']}")
    print_table(table)
    if count > _ROWS_SHOWN:
        click.echo(f"... {count - _ROWS_SHOWN} more rows; --json shows all")


def rows(output: Mapping[str, Any]) -> list[str]:
    """An output's flat data as one text a row."""
    shape: Sequence[int] = output["shape"]
    data: Sequence[Any] = output["data"]
    count = shape[0] if shape else 1
    width = len(data) // count if count else 0
    parts = [data[row * width : (row + 1) * width] for row in range(count)]
    return [str(part[0]) if width == 1 else "[" + ", ".join(map(str, part)) + "]" for part in parts]
