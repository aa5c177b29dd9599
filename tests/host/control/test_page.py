"""The page's HTTP: files, streams, trial predictions, and who may ask for them."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from statuses import death, host, model

from host.config.deployment import DeployedModel
from host.config.features import Features
from host.config.run_dir import RunDirectory
from host.control.deaths import SlotDeaths
from host.control.page import (
    PATIENCE,
    STATIC,
    TRIAL_BODY_MAX_BYTES,
    TRIALS_MAX,
    TYPES,
    Patience,
    add_page,
    foreign_problem,
    front_url,
)
from host.control.probe import WorkerProbe
from host.control.status import HostStatus
from host.control.watching import CLIENTS_MAX, Watcher
from host.protocol.messages import Limits
from host.protocol.types import Signature, TensorSpec

LIMIT_S = 30.0
TENSOR = TensorSpec(name="x", datatype="FP64", shape=(-1, 1))
CHURN = DeployedModel(
    name="churn",
    version="3",
    processes=1,
    package="/nowhere",
    platform="python",
    signature=Signature((TENSOR,), (TENSOR,)),
    limits=Limits(),
)

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
Client = TestClient[web.Request, web.Application]


class Source:
    """A host of one model, and a front of the test's."""

    features = Features()

    def __init__(self, directory: Path, front_port: int) -> None:
        self.run_dir = RunDirectory(directory)
        self.run_dir.sockets.mkdir()
        self.settings: Any = SimpleNamespace(address="0.0.0.0", port=front_port)  # noqa: S104 - where fronts may listen
        self.deaths: Mapping[str, SlotDeaths] = {"churn.v3:0": SlotDeaths(counts={"signal": 1}, last=death())}
        self.watcher = Watcher(self.run_dir, self._status, WorkerProbe(self.run_dir.sockets), tuple)

    async def _status(self) -> HostStatus:
        return host(model())

    def versions(self) -> list[DeployedModel]:
        return [CHURN]


class Front:
    """Answers as the test says; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []
        self.answer: Answer = self._echo

    async def _echo(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"outputs": []})

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append((request.path, await request.read()))
        return await self.answer(request)  # type: ignore[arg-type]


@pytest.fixture
async def front() -> Front:
    return Front()


@pytest.fixture
async def source(tmp_path: Path, front: Front) -> AsyncIterator[Source]:
    runner = web.ServerRunner(web.Server(front, handler_cancellation=True), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield Source(tmp_path, runner.addresses[0][1])
    await runner.cleanup()


@pytest.fixture
async def client(source: Source) -> AsyncIterator[Client]:
    async with TestClient(TestServer(page_of(source))) as client:
        yield client


@pytest.fixture
async def hasty(source: Source) -> AsyncIterator[Client]:
    """A client of a page without patience."""
    patience = Patience(heartbeat_s=0.01, write_s=0.1, trial_s=0.05)
    async with TestClient(TestServer(page_of(source, patience))) as client:
        yield client


def page_of(source: Source, patience: Patience = PATIENCE) -> web.Application:
    app = web.Application()
    add_page(app, source, patience)
    return app


# -- files ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", ["/", "/models/churn", "/static/page.js", "/static/vendor/uPlot.iife.min.js"])
async def test_files_are_served_with_a_strict_policy_and_an_etag(client: Client, path: str) -> None:
    answer = await client.get(path)
    assert answer.status == 200
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self';")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    again = await client.get(path, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status, await again.read()) == (304, b"")
    assert (await client.get(path, headers={"If-None-Match": '"other"'})).status == 200


@pytest.mark.parametrize(
    "path", ["/static/", "/static/nothing.js", "/static/..%2fpage.py", "/static/vendor/uPlot.LICENSE"]
)
async def test_other_files_are_not(client: Client, path: str) -> None:
    assert (await client.get(path)).status == 404


def test_the_page_asks_nobody_else_and_puts_no_markup_in() -> None:
    own = [path for path in STATIC.rglob("*") if path.suffix in TYPES and "vendor" not in path.parts]
    assert len(own) >= 8
    for path in own:
        text = path.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            path
        )
        links = re.findall(r"""(?:src|href|from|fetch\(|url\()\s*=?\s*["'`]?(https?:|//)""", text)
        assert links == [], path
        assert not re.search(r"""\sstyle=|\son[a-z]+=["']""", text) or path.suffix != ".html", path
    imported = {name for path in own for name in re.findall(r'from "\./([a-z]+\.js)"', path.read_text())}
    assert imported <= {path.name for path in own}


# -- what the page asks for -----------------------------------------------------------------------------------
async def test_details_tell_signature_and_deaths(client: Client) -> None:
    document = await (await client.get("/models/churn/details")).json()
    assert document["versions"][0]["inputs"][0]["name"] == "x"
    assert document["deaths"][0]["reason"] == "killed by SIGKILL"
    missing = await client.get("/models/other/details")
    assert (missing.status, (await missing.json())["code"]) == (404, "MODEL_NOT_FOUND")


async def test_history_is_of_versions_that_are_asked_for(client: Client, source: Source) -> None:
    assert await (await client.get("/history?version=churn.v3")).json() == {}
    assert await (await client.get("/history")).json() == {}
    query = "&".join(f"version=m.v{number}" for number in range(17))
    assert (await client.get(f"/history?{query}")).status == 400


# -- server-sent events ---------------------------------------------------------------------------------------
async def read_until(answer: aiohttp.ClientResponse, word: bytes) -> bytes:
    received = b""
    async with asyncio.timeout(LIMIT_S):
        while word not in received:
            received += await answer.content.readany()
    return received


async def test_events_are_streamed(client: Client, source: Source) -> None:
    task = asyncio.create_task(source.watcher.run())
    try:
        async with client.get("/events") as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            assert answer.headers["Cache-Control"] == "no-store"
            received = await read_until(answer, b"event: point")
            assert received.startswith(b"retry: 1000\n\n")
            assert source.watcher.watched
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_quiet_stream_says_that_it_lives(hasty: Client) -> None:
    async with hasty.get("/events") as answer:
        await read_until(answer, b": still here\n\n")


async def test_one_client_too_many_is_told_so_and_there_is_room_when_one_goes(client: Client, source: Source) -> None:
    streams = [source.watcher.subscribe() for _ in range(CLIENTS_MAX)]
    refused = await client.get("/events")
    assert (refused.status, (await refused.json())["code"], refused.headers["Retry-After"]) == (
        503,
        "TOO_MANY_CLIENTS",
        "10",
    )
    source.watcher.unsubscribe(streams[0])
    async with client.get("/events") as answer:
        await read_until(answer, b"event: events")


async def test_a_client_that_takes_nothing_is_dropped(hasty: Client, source: Source) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", hasty.port, limit=1024)
    writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    (subscription,) = source.watcher._subscriptions
    async with asyncio.timeout(LIMIT_S * 2):
        while source.watcher.watched:
            subscription.put(b":" + b"x" * (1 << 20) + b"\n\n")
            await asyncio.sleep(0)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        async with asyncio.timeout(LIMIT_S):
            await reader.readexactly(1 << 30)
    writer.close()


# -- trial predictions ----------------------------------------------------------------------------------------
async def test_a_trial_goes_through_a_front_and_its_time_is_told(client: Client, front: Front) -> None:
    answer = await client.post("/models/churn/infer", json={"inputs": [1]})
    assert (answer.status, await answer.json()) == (200, {"outputs": []})
    assert float(re.fullmatch(r"front;dur=([\d.]+)", answer.headers["Server-Timing"])[1]) > 0  # type: ignore[index]
    await client.post("/models/churn/versions/3/infer", json={})
    assert [path for path, _ in front.asked] == ["/v2/models/churn/infer", "/v2/models/churn/versions/3/infer"]
    assert json.loads(front.asked[0][1]) == {"inputs": [1]}


async def test_what_the_front_refuses_is_shown_as_it_is(client: Client, front: Front) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"error": "no", "code": "INVALID_INPUT"}, status=400)

    front.answer = refuse
    answer = await client.post("/models/churn/infer", json={})
    assert (answer.status, (await answer.json())["code"]) == (400, "INVALID_INPUT")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"},
    ],
    ids=str,
)
async def test_a_foreign_page_may_not_predict(client: Client, front: Front, headers: dict[str, str]) -> None:
    answer = await client.post("/models/churn/infer", json={}, headers=headers)
    assert (answer.status, (await answer.json())["code"]) == (403, "CROSS_ORIGIN")
    assert front.asked == []


async def test_a_form_of_a_foreign_page_cannot_even_say_that_it_is_json(client: Client) -> None:
    answer = await client.post("/models/churn/infer", data="{}", headers={"Content-Type": "text/plain"})
    assert answer.status == 415


def test_the_pages_own_requests_are_no_foreign_ones() -> None:
    own = {"Origin": "http://localhost:9090", "Sec-Fetch-Site": "same-origin"}
    assert foreign_problem(own, "localhost:9090") == ""
    assert foreign_problem({}, "localhost:9090") == ""
    assert foreign_problem(own, "localhost:9091") != ""


@pytest.mark.parametrize(
    ("size", "status"),
    [(0, 200), (1, 200), (TRIAL_BODY_MAX_BYTES, 200), (TRIAL_BODY_MAX_BYTES + 1, 413)],
)
async def test_bodies_are_bounded(client: Client, front: Front, size: int, status: int) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await client.post("/models/churn/infer", data=io.BytesIO(b" " * size), headers=headers)
    assert answer.status == status
    assert [len(body) for _, body in front.asked] == ([size] if status == 200 else [])


@pytest.mark.parametrize("name", ["-x", "%2e%2e", "a%20b", "x" * 65, "%E2%80%A8"])
async def test_what_is_no_model_name_reaches_no_front(client: Client, front: Front, name: str) -> None:
    assert (await client.post(f"/models/{name}/infer", json={})).status in (404, 405)
    assert front.asked == []


async def test_so_many_trials_run_at_once(client: Client, front: Front) -> None:
    gate = asyncio.Event()
    running: asyncio.Queue[None] = asyncio.Queue()

    async def wait(_: web.Request) -> web.Response:
        running.put_nowait(None)
        await gate.wait()
        return web.json_response({})

    front.answer = wait
    trials = [asyncio.create_task(client.post("/models/churn/infer", json={})) for _ in range(TRIALS_MAX)]
    async with asyncio.timeout(LIMIT_S):
        for _ in trials:
            await running.get()
    refused = await client.post("/models/churn/infer", json={})
    assert (refused.status, (await refused.json())["code"]) == (503, "TOO_MANY_TRIALS")
    gate.set()
    assert {answer.status for answer in await asyncio.gather(*trials)} == {200}


async def test_a_trial_has_a_deadline(hasty: Client, front: Front) -> None:
    async def never(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    front.answer = never
    answer = await hasty.post("/models/churn/infer", json={})
    assert (answer.status, (await answer.json())["code"]) == (504, "DEADLINE_EXCEEDED")


async def test_without_a_front_it_says_so(client: Client, source: Source) -> None:
    source.settings = SimpleNamespace(address="127.0.0.1", port=1)
    answer = await client.post("/models/churn/infer", json={})
    assert (answer.status, (await answer.json())["code"]) == (502, "FRONT_UNREACHABLE")


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:80"),  # noqa: S104 - where fronts may listen
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("10.0.0.1", "http://10.0.0.1:80"),
        ("localhost", "http://localhost:80"),
    ],
)
def test_a_front_is_asked_where_it_listens(address: str, url: str) -> None:
    assert front_url(address, 80) == url


# -- colours --------------------------------------------------------------------------------------------------
def colours() -> list[dict[str, str]]:
    """The light scheme's, and the dark one's."""
    blocks = re.findall(r":root \{(.*?)\}", (STATIC / "page.css").read_text(), re.S)
    found = [dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]+)", block)) for block in blocks]
    assert len(found) == 2
    return found


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_text_can_be_read(scheme: int) -> None:
    scheme_colours = colours()[scheme]
    for ground in ("paper", "panel"):
        for name in ("ink", "quiet", "link", "good", "warning", "bad", "idle"):
            assert contrast(scheme_colours[name], scheme_colours[ground]) >= 4.5, (name, ground)
    for name in (one for one in scheme_colours if one.startswith("line-")):
        assert contrast(scheme_colours[name], scheme_colours["paper"]) >= 3.0, name


# -- what others made -----------------------------------------------------------------------------------------
def test_vendored_files_are_as_published() -> None:
    decision = (Path(__file__).parents[3] / "docs" / "adr" / "0029-status-page.md").read_text()
    recorded = dict(re.findall(r"\| `(uPlot[^`]*)` \| `([0-9a-f]{64})` \|", decision))
    vendor = STATIC / "vendor"
    assert recorded == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in vendor.iterdir()
        if path.name != "uPlot.LICENSE"
    }
    assert "MIT License" in (vendor / "uPlot.LICENSE").read_text()
