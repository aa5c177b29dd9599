"""The curl commands of the README, the docs and the bundled models' READMEs are run, and answer what they show."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hosts import CHECKOUT, RunningHost

pytestmark = pytest.mark.integration

PAGES = [
    CHECKOUT / "README.md",
    CHECKOUT / "docs" / "protocol.md",
    *sorted(CHECKOUT.glob("models/bundled/*/README.md")),
]
BLOCK = re.compile(r"```sh\n(curl .*?)```\s*```json\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A command with the answer that the page shows."""

    page: Path
    command: str
    answer: str


def examples() -> list[Example]:
    return [Example(page, command, answer) for page in PAGES for command, answer in BLOCK.findall(page.read_text())]


def close(shown: Any, received: Any) -> bool:
    """Equal but for the last digits of numbers: the models were trained on this machine's processor, whose rounding
    adds up over a training."""
    if isinstance(shown, float) and isinstance(received, float | int):
        return shown == pytest.approx(received, rel=1e-4, abs=1e-7)
    if isinstance(shown, dict) and isinstance(received, dict):
        return shown.keys() == received.keys() and all(close(shown[key], received[key]) for key in shown)
    if isinstance(shown, list) and isinstance(received, list):
        return len(shown) == len(received) and all(map(close, shown, received))
    return bool(shown == received)


def test_every_page_with_requests_shows_some() -> None:
    assert {example.page for example in examples()} == set(PAGES)


@pytest.mark.parametrize(
    "example", examples(), ids=lambda example: f"{example.page.relative_to(CHECKOUT)}:{len(example.command)}"
)
def test_curl_answers_what_the_page_shows(host: RunningHost, example: Example) -> None:
    command = example.command.replace("localhost:8080", host.address)
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=20, check=True)
    received = json.loads(result.stdout)
    assert close(json.loads(example.answer), received), received


def test_every_error_code_is_documented() -> None:
    from host.protocol.errors import HTTP_STATUS

    page = (CHECKOUT / "docs" / "protocol.md").read_text()
    rows = {(int(status), code) for status, code in re.findall(r"^\| (\d{3}) \| `([A-Z_]+)`", page, re.MULTILINE)}
    assert rows == {(status, error.code) for error, status in HTTP_STATUS.items()}


def test_every_endpoint_is_documented() -> None:
    from host.front.routes import Endpoint, match_route

    page = (CHECKOUT / "docs" / "protocol.md").read_text()
    found = set()
    for method, path in re.findall(r"^\| (GET|POST) \| `([^`]+)`", page, re.MULTILINE):
        whole = path.replace("[/{m}[/versions/{v}]]/stats", "/{m}/stats").replace("[/versions/{v}]", "")
        for part, name in (("{m}", "churn"), ("{view}", "users"), ("{key}", "1")):
            whole = whole.replace(part, name)
        found.add(match_route(method, whole).endpoint)
    assert found == set(Endpoint) - {Endpoint.ALL_STATISTICS}
    assert "/v2/models[/{m}" in page


def test_model_toml_of_the_documentation_is_valid() -> None:
    import tomllib

    from host.protocol.package import parse_package

    page = (CHECKOUT / "docs" / "model-package.md").read_text()
    text, *parts = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    package = parse_package("churn", "3", tomllib.loads(text))
    assert package.signature.batchable
    for part in parts:
        assert set(tomllib.loads(part)) < set(tomllib.loads(text)), part
