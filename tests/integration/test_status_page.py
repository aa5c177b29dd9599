"""The status page in a real browser, of a real host: what happens is seen within two seconds, without a reload."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browsers import Watched, chromium, require_browser
from features import ask_for, write_echo, write_features
from hosts import PATIENCE, RunningHost, tensors, until
from packages import write_package
from playwright.sync_api import BrowserContext, expect
from versions import write_versions

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

SEEN_S = 2 * PATIENCE
"""Within so long everything must be on the page."""
TURNS = 5
"""So often it may be tried: what comes late once may have waited for one of five processes that stood still."""
LOAD_MS = 30_000 * PATIENCE
"""For what is not measured."""
expect.set_options(timeout=LOAD_MS)

DOUBLE = """
class Model:
    def load(self, package):
        pass

    def predict(self, inputs):
        return {"y": 2 * inputs["x"]}
"""


STUCK = """
import time

class Model:
    def load(self, package):
        pass

    def predict(self, inputs):
        if inputs["x"].any():
            time.sleep(60)
        return {"y": inputs["x"]}
"""


def write_double(repository: Path, name: str, processes: int = 1) -> None:
    """A model with a golden case."""
    directory = write_package(
        repository,
        name,
        DOUBLE,
        inputs=[("x", "FP64", [-1, 2])],
        outputs=[("y", "FP64", [-1, 2])],
        processes=processes,
        limits={"timeout_ms": 10_000},
        resources={"memory": "256MiB"},
    )
    case = {
        "name": "doubled",
        "request": tensors(x=("FP64", [1, 2], [1.5, -2.0])),
        "response": {"outputs": [{"name": "y", "datatype": "FP64", "shape": [1, 2], "data": [3.0, -4.0]}]},
    }
    (directory / "golden.json").write_text(json.dumps({"cases": [case]}))


@pytest.fixture(scope="module")
def repository() -> Iterator[Path]:
    """Give packages for all tests here."""
    path = Path(tempfile.mkdtemp(prefix="mh-", dir="/tmp"))
    write_double(path, "double", processes=2)
    write_versions(path, ["1", "2"])
    write_versions(path, ["1", "2"], name="faulty", fault="raise")
    write_echo(path)
    limits = {"hang_s": 1, "timeout_ms": 10_000, "retry": False}
    write_package(
        path, "stuck", STUCK, inputs=[("x", "FP64", [-1, 1])], outputs=[("y", "FP64", [-1, 1])], limits=limits
    )
    write_features(path, view="timeout_ms = 200\nstale_s = 0.1\nttl_s = 0.5")
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def host(repository: Path) -> Iterator[RunningHost]:
    """Give one host for all tests here: each has a model of its own to mistreat."""
    require_browser()
    with RunningHost(repository) as running:
        deploy(running)
        running.start()
        yield running


@pytest.fixture(scope="module")
def browser(host: RunningHost) -> Iterator[BrowserContext]:
    """Give one browser."""
    with chromium() as context:
        yield context


@pytest.fixture
def open_page(browser: BrowserContext, host: RunningHost) -> Iterator[Callable[..., Watched]]:
    """Give a way to open the page; it must not have complained, reloaded, or asked anybody else."""
    opened: list[Watched] = []

    def at(path: str = "/", width: int = 1280, height: int = 900) -> Watched:
        watched = Watched(browser, f"http://localhost:{host.admin_port}")
        opened.append(watched)
        watched.page.set_viewport_size({"width": width, "height": height})
        watched.page.goto(watched.origin + path)
        expect(watched.page.locator("#link")).to_have_text("live")
        expect(watched.page.locator("main table").first.locator("tbody tr")).not_to_have_count(0)
        return watched

    yield at
    for watched in opened:
        complaints, foreign, loads = watched.complaints, watched.foreign, watched.loads
        watched.page.close()
        assert (complaints, foreign, loads) == ([], [], 1)


def deploy(host: RunningHost, **versions: str) -> None:
    """Write the deployment file, with the first version of what is not named."""
    chosen = {"double": "1", "versioned": "1", "faulty": "1", "echo": "1", "stuck": "1"} | versions
    host.deployment_file.write_text(
        "".join(f'[[models]]\nname = "{name}"\nversion = "{version}"\n' for name, version in chosen.items())
    )


@contextmanager
def asking(host: RunningHost) -> Iterator[None]:
    """Ask for users that nobody asked for before, all the time."""
    stop = threading.Event()

    def ask() -> None:
        user = 0
        while not stop.wait(0.01):
            user += 1
            host.infer("echo", ask_for(user))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def row(watched: Watched, name: str) -> Any:
    """A model's row, or a process's."""
    return watched.page.locator("main table tbody tr").filter(has=watched.page.get_by_role("rowheader", name=name))


ROWS = "main table tbody tr"
EVENTS = ".events li"
LOOK_OUT = """([selector, words, limit_ms]) => {
    const has = (one) => words.every((word) => one.textContent.toLowerCase().includes(word.toLowerCase()));
    const count = () => [...document.querySelectorAll(selector)].filter(has).length;
    const before = count();
    const sight = new Promise((seen) => {
        const observer = new MutationObserver(() => { if (count() > before) seen(Date.now() / 1000); });
        observer.observe(document, {subtree: true, childList: true, characterData: true, attributes: true});
        setTimeout(() => seen(null), limit_ms);
    });
    return {at: () => sight};
}"""


class Sight:
    """Looks out for one element more with some words. The browser itself notes when: nobody has to look in time."""

    def __init__(self, watched: Watched, selector: str, *words: str) -> None:
        self._words = words
        self._handle = watched.page.evaluate_handle(LOOK_OUT, [selector, words, LOAD_MS])

    def after(self, begun: float) -> float:
        """Wait until it was seen; how long after a time."""
        at = self._handle.evaluate("(sight) => sight.at()")
        assert at is not None, f"not seen: {self._words}"
        return float(at) - begun


def assert_seen_in_time(what: str, turn: Callable[[int], float]) -> None:
    """Let it happen, and again if it was seen late. `turn`: how long it took to be on the page."""
    took_s: list[float] = []
    while not took_s or took_s[-1] > SEEN_S:
        assert len(took_s) < TURNS, f"{what} was on the page after {took_s} s"
        took_s.append(turn(len(took_s)))
    print(f"{what} was on the page after {took_s[-1]:.2f} s")  # noqa: T201 - a figure to quote


# -- what happens is seen -------------------------------------------------------------------------------------
def test_a_killed_worker_is_seen_with_its_cause_and_its_return(
    host: RunningHost, open_page: Callable[..., Watched]
) -> None:
    watched = open_page()
    model = row(watched, "double")
    event = watched.page.locator(EVENTS, has_text="double.v1:0")

    def killed(turn: int) -> float:
        # Another signal each time, for the last death stays in the row.
        number = [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT][turn]
        expect(model).to_contain_text("2 / 2")
        cause = f"killed by {number.name}"
        sights = [Sight(watched, ROWS, "double", cause), Sight(watched, EVENTS, "double.v1:0", "death", cause)]
        begun = time.time()
        os.kill(host.worker_pids("double")[0], number)
        took_s = max(sight.after(begun) for sight in sights)
        expect(event.filter(has_text="ready again")).to_have_count(turn + 1)
        expect(model).to_contain_text("2 / 2")
        return took_s

    assert_seen_in_time("a death", killed)


def test_a_version_that_is_deployed_is_seen_from_its_beginning_to_its_end(
    host: RunningHost, open_page: Callable[..., Watched]
) -> None:
    watched = open_page()
    events = watched.page.locator(EVENTS)

    def deployed(turn: int) -> float:
        before, version = ("1", "2") if turn % 2 == 0 else ("2", "1")
        sight = Sight(watched, EVENTS, "rollout begun")
        served = Sight(watched, EVENTS, f"versioned.v{version}", "served")
        deploy(host, versioned=version)
        applying = host.begin("apply", "--wait")
        took_s = sight.after(0)
        said, errors = applying.communicate(timeout=60)
        assert applying.returncode == 0, said + errors
        served.after(0)
        expect(row(watched, "versioned").get_by_role("cell").first).to_have_text(version)
        expect(events.filter(has_text="apply").first).to_contain_text(f"version {before} -> {version}")
        # From when it was written down what should run.
        return took_s - host.run_dir.deployment.stat().st_mtime

    assert_seen_in_time("a rollout", deployed)


def test_a_version_that_is_given_up_says_why(host: RunningHost, open_page: Callable[..., Watched]) -> None:
    watched = open_page()
    deploy(host, versioned="2", faulty="2")
    applying = host.begin("apply", "--wait")
    applying.communicate(timeout=60)
    assert applying.returncode == 1
    expect(row(watched, "faulty").filter(has_text="given up")).to_have_count(1)
    expect(watched.page.locator(EVENTS, has_text="given up")).to_have_count(1)
    deploy(host, versioned="2")
    assert host.command("apply", "--wait").returncode == 0
    expect(row(watched, "faulty").filter(has_text="given up")).to_have_count(0)


def test_what_an_operator_stops_and_a_front_that_dies_are_seen(
    host: RunningHost, open_page: Callable[..., Watched]
) -> None:
    watched = open_page()
    events = watched.page.locator(EVENTS)
    host.supervisorctl("stop", "double.v1:1")
    expect(events.filter(has_text="stopped by an operator")).to_have_count(1)
    expect(row(watched, "double")).to_contain_text("1 / 2")
    expect(watched.page.locator("#ready")).to_have_text("not ready")
    host.supervisorctl("start", "double.v1:1")
    expect(watched.page.locator("#ready")).to_have_text("ready")
    os.kill(host.front_pids()[0], signal.SIGKILL)
    expect(events.filter(has_text="front:0").filter(has_text="SIGKILL")).to_have_count(1)
    until(host.is_ready, "the front is back")


def test_a_broken_store_is_seen_and_that_it_is_back(
    host: RunningHost, repository: Path, open_page: Callable[..., Watched]
) -> None:
    watched = open_page()
    store = row(watched, "main")
    expect(store).to_contain_text("answers")
    path = repository / "features.sqlite"
    whole = path.with_name("whole.sqlite")

    def broken(turn: int) -> float:
        sights = [Sight(watched, ROWS, "main", "does not answer"), Sight(watched, EVENTS, "left alone")]
        back = Sight(watched, EVENTS, "answers again")
        begun = time.time()
        path.rename(whole)
        try:
            took_s = max(sight.after(begun) for sight in sights)
        finally:
            whole.rename(path)
        expect(store.get_by_text("answers", exact=True)).to_have_count(1)
        back.after(begun)
        return took_s

    with asking(host):
        assert_seen_in_time("a broken store", broken)


def test_numbers_and_charts_follow_the_requests(host: RunningHost, open_page: Callable[..., Watched]) -> None:
    watched = open_page()
    with asking(host):
        rate = row(watched, "echo").locator("[data-label='Requests/s']")
        expect(rate).to_have_text(re.compile(r"^[1-9]"))
        chart = watched.page.get_by_role("img", name=re.compile(r"^Requests per second.*echo 1: now [1-9]"))
        expect(chart).to_be_visible()
        expect(watched.page.get_by_role("img", name=re.compile(r"^Feature cache hits"))).to_be_visible()


def test_a_control_that_dies_is_missed_and_comes_back_by_itself(
    host: RunningHost, open_page: Callable[..., Watched]
) -> None:
    watched = open_page()

    def killed(turn: int) -> float:
        pid = host.slot("control").pid
        # It is there for a second only.
        sight = Sight(watched, "#link", "connection lost")
        begun = time.time()
        os.kill(pid, signal.SIGKILL)
        took_s = sight.after(begun)
        expect(watched.page.locator("#link")).to_have_text("live", timeout=2 * LOAD_MS)
        expect(row(watched, "control")).not_to_contain_text(str(pid))
        return took_s

    assert_seen_in_time("a lost connection", killed)
    # The browser itself says that the connection was refused, while it was.
    watched.complaints[:] = [one for one in watched.complaints if "net::ERR" not in one]


# -- a model's own page ---------------------------------------------------------------------------------------
def test_a_prediction_is_tried_from_a_golden_case(open_page: Callable[..., Watched]) -> None:
    watched = open_page("/models/double")
    page = watched.page
    expect(page.get_by_label("Fill in from")).to_have_value("0")
    page.get_by_role("button", name="Predict").click()
    outcome = page.locator(".outcome")
    expect(outcome).to_contain_text("200 OK")
    expect(outcome).to_contain_text("as recorded")
    expect(outcome).to_contain_text(re.compile(r"[\d.]+ ms at the front"))
    expect(page.get_by_label("Answer")).to_contain_text("[3.0, -4.0]")
    page.locator("#trial-version").select_option("1")
    page.locator("#trial-source").select_option("example")
    page.get_by_role("button", name="Predict").click()
    expect(page.get_by_label("Answer")).to_contain_text("[0.0, 0.0]")
    page.get_by_label("Request (JSON)").fill("{")
    page.get_by_role("button", name="Predict").click()
    expect(outcome).to_contain_text("400")
    # The browser itself notes every answer that is an error.
    watched.complaints[:] = [one for one in watched.complaints if "400 (Bad Request)" not in one]


def test_a_models_page_shows_signature_golden_cases_and_causes_of_death(
    host: RunningHost, open_page: Callable[..., Watched]
) -> None:
    os.kill(host.worker_pids("double")[1], signal.SIGSEGV)
    page = open_page("/models/double").page
    deaths = page.locator(".deaths li", has_text="double.v1:1")
    expect(deaths.first).to_contain_text("killed by SIGSEGV")
    deaths.first.get_by_text("Log now").click()
    expect(deaths.first.get_by_label("Log now")).to_contain_text("golden case 'doubled'")
    inputs = page.get_by_role("table", name="Inputs")
    expect(inputs.get_by_role("row", name="x")).to_contain_text("[-1, 2]")
    page.get_by_text("doubled", exact=True).click()
    expect(page.get_by_label("doubled", exact=True)).to_contain_text("[1.5, -2.0]")
    expect(page.get_by_role("img", name=re.compile("^p50 and p99"))).to_be_visible()


def test_a_model_that_hangs_shows_where(host: RunningHost, open_page: Callable[..., Watched]) -> None:
    page = open_page("/models/stuck").page
    assert host.infer("stuck", tensors(x=("FP64", [1, 1], [1.0]))).error == (502, "WORKER_DIED")
    death = page.locator(".deaths li").first
    expect(death).to_contain_text("hung: predict did not return within hang_s = 1 s")
    death.get_by_text("Stacks").click()
    expect(death.get_by_label("Stacks")).to_contain_text(re.compile(r"model\.py.*, line \d+ in predict"))


def test_a_model_that_is_not_there_is_said_to_be_none(browser: BrowserContext, host: RunningHost) -> None:
    watched = Watched(browser, f"http://localhost:{host.admin_port}")
    watched.page.goto(f"{watched.origin}/models/nobody")
    expect(watched.page.get_by_text("No version of this model is deployed.")).to_be_visible()
    watched.page.close()


# -- for everybody --------------------------------------------------------------------------------------------
NAMED = {"button", "link", "textbox", "combobox", "checkbox", "img", "image", "table", "region", "heading", "figure"}


@pytest.mark.parametrize("path", ["/", "/models/double"])
def test_everything_has_a_name_for_those_who_do_not_see_it(open_page: Callable[..., Watched], path: str) -> None:
    watched = open_page(path)
    if path != "/":
        expect(watched.page.get_by_label("Fill in from")).to_have_value("0")
    session = watched.page.context.new_cdp_session(watched.page)
    nodes = [node for node in session.send("Accessibility.getFullAXTree")["nodes"] if not node.get("ignored")]
    session.detach()
    unnamed = [
        (node["role"]["value"], node.get("properties"))
        for node in nodes
        if node["role"]["value"] in NAMED - {"figure"} and not node.get("name", {}).get("value", "").strip()
    ]
    assert unnamed == []
    roles = {node["role"]["value"] for node in nodes}
    assert {"main", "banner", "table", "columnheader", "rowheader", "status", "region"} <= roles
    levels = watched.page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((one) => Number(one.tagName[1]))")
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip([0, *levels], levels, strict=False)), levels
    assert watched.page.evaluate("document.documentElement.lang") == "en"
    identities = watched.page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(identities) == len(set(identities))


def test_everything_is_reached_by_the_keyboard_and_seen_to_be(open_page: Callable[..., Watched]) -> None:
    watched = open_page("/models/double")
    page = watched.page
    expect(page.get_by_label("Fill in from")).to_have_value("0")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        found = page.evaluate(
            "(() => { const one = document.activeElement, style = getComputedStyle(one);"
            " return [one.id || one.textContent.slice(0, 20), style.outlineStyle, parseFloat(style.outlineWidth)]; })()"
        )
        if found[0] and page.evaluate("document.activeElement !== document.body"):
            assert found[1] != "none", found
            assert found[2] >= 1, found
        reached.add(found[0])
    assert {"trial-version", "trial-source", "trial-body", "Predict", "only-problems"} <= reached


@pytest.mark.parametrize("path", ["/", "/models/double"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(open_page: Callable[..., Watched], path: str, width: int, scheme: Any) -> None:
    watched = open_page(path, width)
    watched.page.emulate_media(color_scheme=scheme)
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    dark = watched.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (dark == "rgb(255, 255, 255)") == (scheme == "light")
