"""Fleets for tests: bare hosts to a module of tests; who changes them for good brings a fleet of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from fleet import REQUIRED, Fleet, missing
from images import base_image

TIMEOUT_S: Final = 600
"""For a test with what is made for it: on a new machine that is the image too."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests that boot hosts the time that they may need."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("e2e"):
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.fixture(scope="session")
def image() -> None:
    """See to the image; skip, or fail where the environment says that it must be there, if no fleet can run here."""
    reason = missing()
    if reason is not None and os.environ.get(REQUIRED):
        pytest.fail(f"{reason} ({REQUIRED} is set)")
    if reason is not None:
        pytest.skip(reason)
    base_image()


@pytest.fixture(scope="module")
def fleet(image: None) -> Iterator[Fleet]:
    """Give three bare hosts and a balancer to the tests of one module."""
    with Fleet() as running:
        yield running
