"""The bundled model with fetched features: from either store what it answers with the features in the request."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cassandra_nodes import CassandraNodes
from hosts import RunningHost, tensors

from feature_io.stores import Key, Row, make_store
from host.config.features import Features, read_features

pytestmark = pytest.mark.integration

MODEL = "breast_cancer_by_id"
PATIENTS = 569
BATCH = 190
LIMIT_S = 30.0


async def rows_of(features: Features) -> dict[str, dict[Key, Row]]:
    """Every row of every view."""
    store = make_store(features.stores[0])
    await store.open(LIMIT_S)
    try:
        found: dict[str, dict[Key, Row]] = {}
        for view in features.views:
            reader = await store.reader(view, LIMIT_S)
            rows = await asyncio.gather(*(reader.read((number,), LIMIT_S) for number in range(PATIENTS)))
            found[view.name] = {(number,): row for number, row in enumerate(rows) if row is not None}
            assert len(found[view.name]) == PATIENTS
        return found
    finally:
        await store.close()


async def write(features: Features, rows: dict[str, dict[Key, Row]]) -> None:
    """Make the views' tables and fill them."""
    store = make_store(features.stores[0])
    await store.open(LIMIT_S)
    try:
        for view in features.views:
            await store.create(view, LIMIT_S)
            await store.write(view, list(rows[view.name].items()), LIMIT_S)
    finally:
        await store.close()


def given(rows: dict[str, dict[Key, Row]], features: Features, patients: range) -> list[float]:
    """The features of some patients, side by side in the model's order."""
    return [value for n in patients for view in features.views for value in rows[view.name][(n,)]]


def probabilities(host: RunningHost, request: dict[str, Any]) -> list[float]:
    answer = host.infer(MODEL, request)
    assert answer.status == 200, answer.body
    data: list[float] = answer.document["outputs"][0]["data"]
    return data


def assert_fetched_is_given(host: RunningHost, rows: dict[str, dict[Key, Row]], features: Features) -> None:
    for start in range(0, PATIENTS, BATCH):
        patients = range(start, min(start + BATCH, PATIENTS))
        count = len(patients)
        fetched = probabilities(host, tensors(patient_id=("INT64", [count], list(patients))))
        values = given(rows, features, patients)
        assert fetched == probabilities(host, tensors(features=("FP64", [count, 30], values)))
        v1 = {"instances": [{"patient_id": n} for n in patients]}
        answer = host.call(
            "POST", f"/v1/models/{MODEL}:predict", json.dumps(v1).encode(), {"Content-Type": "application/json"}
        )
        assert np.ravel(answer.document["predictions"]).tolist() == fetched


def test_from_sqlite_as_make_run_has_it(everything: Path, make_host: Callable[..., RunningHost]) -> None:
    features = read_features(everything / "features.toml")
    rows = asyncio.run(rows_of(features))
    host = make_host(everything, models=[MODEL])
    host.start()
    assert_fetched_is_given(host, rows, features)


@pytest.mark.parametrize("driver", ["aiocassandra", "acsylla"])
def test_from_cassandra(
    everything: Path, make_host: Callable[..., RunningHost], cassandra: CassandraNodes, tmp_path: Path, driver: str
) -> None:
    rows = asyncio.run(rows_of(read_features(everything / "features.toml")))
    points = json.dumps(list(cassandra.contact_points))
    store = f'kind = "cassandra"\ndriver = "{driver}"\ncontact_points = {points}\nport = {cassandra.port}\n'
    text = re.sub(r'kind = "sqlite"\npath = .*\n', store, (everything / "features.toml").read_text())
    path = tmp_path / "features.toml"
    path.write_text(text.replace("[[views]]\n", f'[[views]]\nkeyspace = "bundled_{driver}"\n'))
    features = read_features(path)
    asyncio.run(write(features, rows))
    host = make_host(everything, models=[MODEL], settings={"features": path})
    host.start()
    assert_fetched_is_given(host, rows, features)
