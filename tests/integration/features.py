"""Feature views of tests: a table of users with real rows, and a model whose inputs come from it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hosts import Host, tensors
from packages import UNHURRIED, write_package

from feature_io.client import ask_all
from feature_io.stores import Key, Row, Store, StoreUnavailable, make_store
from host.config.features import Features, read_features
from host.protocol.messages import Operation

ECHO = """
import numpy as np

class Model:
    \"\"\"Answers what it was given: x, karma, age, and the sum of the three.\"\"\"

    def load(self, package):
        pass

    def predict(self, inputs):
        x, stats = inputs["x"], inputs["stats"]
        return {"y": x + stats.sum(axis=1, keepdims=True), "stats_back": stats}
"""
PLAIN = """
class Model:
    def load(self, package):
        pass

    def predict(self, inputs):
        return {"y": 2 * inputs["x"]}
"""

USERS = 1000
PATIENT = "timeout_ms = 5000"
"""Of a view whose reads are to be answered however busy the machine is: the default is a tenth of a second."""
LIMIT_S = 20.0

VIEW = """
[[views]]
name = "users"
table = "users"
{view}

[[views.keys]]
column = "user_id"
datatype = "INT64"

[[views.columns]]
name = "karma"
datatype = "FP64"
default = 0.5

[[views.columns]]
name = "age"
datatype = "FP64"
{age}
"""
SQLITE = """
[stores.main]
kind = "sqlite"
path = "features.sqlite"
"""


def user_row(user_id: int) -> Row:
    """The row of a user of the tests."""
    return (user_id * 1.5, float(user_id % 90))


def write_features(
    directory: Path, store: str = SQLITE, view: str = "", age: str = "default = 30.0", rows: int = USERS
) -> Path:
    """Write `features.toml`, and the table with its rows."""
    path = directory / "features.toml"
    path.write_text(store + VIEW.format(view=view, age=age))
    if rows:
        asyncio.run(fill(read_features(path), {(number,): user_row(number) for number in range(rows)}))
    return path


async def opened(store: Store) -> None:
    """Open a store, again if a cluster that has just started does not answer in the time that it has."""
    give_up_s = time.monotonic() + 3 * LIMIT_S
    while True:
        try:
            return await store.open(LIMIT_S)
        except StoreUnavailable:
            if time.monotonic() > give_up_s:
                raise
            await asyncio.sleep(0.1)


async def fill(features: Features, rows: dict[Key, Row], view: str = "users") -> None:
    """Make the table of a view and write rows."""
    config = features.view(view)
    assert config is not None
    store = make_store(features.store(config.store))
    try:
        await opened(store)
        await store.create(config, LIMIT_S)
        await store.write(config, list(rows.items()), LIMIT_S)
    finally:
        await store.close()


def write_echo(repository: Path, name: str = "echo", processes: int = 1, **limits: Any) -> Path:
    """The model whose `stats` are karma and age of a user."""
    return write_package(
        repository,
        name,
        ECHO,
        inputs=[("x", "FP64", [-1, 1]), ("stats", "FP64", [-1, 2], ["users.karma", "users.age"])],
        outputs=[("y", "FP64", [-1, 1]), ("stats_back", "FP64", [-1, 2])],
        processes=processes,
        limits={"timeout_ms": 5000} | limits,
        resources={"memory": "256MiB"},
    )


def write_plain(repository: Path, name: str = "plain") -> Path:
    """A model that needs no features."""
    return write_package(
        repository,
        name,
        PLAIN,
        inputs=[("x", "FP64", [-1, 1])],
        outputs=[("y", "FP64", [-1, 1])],
        limits=UNHURRIED,
        resources={"memory": "256MiB"},
    )


def counters(host: Host) -> dict[str, int]:
    """What the feature processes of a host counted for the view `users`, added up."""
    total: Counter[str] = Counter()
    for answer in ask_all(host.run_dir.root, Operation.STATISTICS, b""):
        total.update(answer["views"]["users"])
    return total


def ask_for(*users: int, **more: Any) -> dict[str, Any]:
    """A request of the model `echo` for these users, a row each."""
    rows = len(users)
    return tensors(x=("FP64", [rows, 1], [1.0] * rows), user_id=("INT64", [rows], list(users))) | more
