"""A real browser for tests: Debian's Chromium, driven by playwright, without a network of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, sync_playwright

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
REQUIRED = "CI_REQUIRE_BROWSER"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
)  # fmt: skip


def require_browser() -> None:
    """Skip, or fail where the environment says that it must be there, if there is no browser."""
    if CHROMIUM.exists():
        return
    if os.environ.get(REQUIRED):
        pytest.fail(f"no {CHROMIUM} ({REQUIRED} is set)")
    pytest.skip(f"no {CHROMIUM}")


@contextmanager
def chromium() -> Iterator[BrowserContext]:
    """A fresh browser."""
    profile = tempfile.mkdtemp(prefix="mh-browser-", dir="/tmp")
    try:
        with sync_playwright() as playwright:
            context = playwright.chromium.launch_persistent_context(
                profile, executable_path=CHROMIUM, args=list(FLAGS), viewport={"width": 1280, "height": 900}
            )
            try:
                yield context
            finally:
                context.close()
    finally:
        shutil.rmtree(profile, ignore_errors=True)


class Watched:
    """A page, and everything that it complained of or asked for."""

    def __init__(self, context: BrowserContext, origin: str) -> None:
        self.origin = origin
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self.loads = 0
        self.page: Page = context.new_page()
        self.page.on("console", lambda message: self._said(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.on("load", lambda _: self._loaded())

    def _said(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(f"{kind}: {text}")

    def _asked(self, url: str) -> None:
        if not url.startswith(f"{self.origin}/"):
            self.foreign.append(url)

    def _loaded(self) -> None:
        self.loads += 1
