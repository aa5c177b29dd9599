"""What fetched features cost a request, all of them cached: beside the same model with the features in the request."""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.load import measure
from benchmarks.openloop import post
from benchmarks.paced import median_ms
from benchmarks.servers import REPOSITORY, WORKER_CPU, Running, modelhost, running
from feature_io.stores import make_store
from host.config.features import read_features

VIEWS = ("mean", "error", "worst")
WIDTH = 10
GIVEN, FETCHED = "breast_cancer", "by_id"
PAIRS = 5
CONNECTIONS = 32
RATES = (4000.0, 8000.0)
"""Requests a second over the same connections, on schedule: below capacity, so latency is the request's own."""
LIMIT_S = 30.0


def path_of(model: str) -> str:
    """Where a model answers."""
    return f"/v2/models/{model}/infer"


def rows() -> list[list[float]]:
    """The data set."""
    from sklearn.datasets import load_breast_cancer

    data: list[list[float]] = load_breast_cancer().data.tolist()
    return data


def given_body(row: list[float]) -> str:
    """A request with its features."""
    return json.dumps({"inputs": [{"name": "features", "datatype": "FP64", "shape": [1, 30], "data": row}]})


def fetched_body(number: int) -> str:
    """A request with its key."""
    return json.dumps({"inputs": [{"name": "patient_id", "datatype": "INT64", "shape": [1], "data": [number]}]})


def write_repository(repository: Path, store: str, more: str = "") -> Path:
    """The bundled LightGBM model twice, once with three views of ten features each; gives `features.toml`."""
    shutil.copytree(REPOSITORY / GIVEN, repository / GIVEN)
    shutil.copytree(REPOSITORY / GIVEN, repository / FETCHED)
    toml = repository / FETCHED / "1" / "model.toml"
    names = [f"{view}.f{column}" for view in VIEWS for column in range(WIDTH)]
    text = toml.read_text()
    shape = "shape = [-1, 30]\n"
    assert shape in text
    toml.write_text(text.replace(shape, f"{shape}feature = {json.dumps(names)}\n", 1))
    features = repository / "features.toml"
    parts = [store]
    for view in VIEWS:
        parts.append(f'[[views]]\nname = "{view}"\nttl_s = 100000\n{more}\n')
        parts.append('[[views.keys]]\ncolumn = "patient_id"\ndatatype = "INT64"\n')
        parts += [f'[[views.columns]]\nname = "f{column}"\ndatatype = "FP64"\n' for column in range(WIDTH)]
    features.write_text("\n".join(parts))
    asyncio.run(_fill(features))
    return features


async def _fill(path: Path) -> None:
    features = read_features(path)
    store = make_store(features.stores[0])
    await store.open(LIMIT_S)
    try:
        for place, view in enumerate(features.views):
            await store.create(view, LIMIT_S)
            part = slice(place * WIDTH, (place + 1) * WIDTH)
            await store.write(view, [((n,), tuple(row[part])) for n, row in enumerate(rows())], LIMIT_S)
    finally:
        await store.close()


@contextmanager
def host() -> Iterator[Running]:
    """A host with both models, on SQLite."""
    with tempfile.TemporaryDirectory(prefix="mh-") as directory:
        repository = Path(directory)
        write_repository(repository, '[stores.local]\nkind = "sqlite"\npath = "features.sqlite"\n')
        server = modelhost(f"{GIVEN} {FETCHED}", path_of(FETCHED), repository=repository)
        with running(server, fetched_body(0).encode()) as started:
            yield started


def cached(seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """A closed loop of 32 connections for the rate and the CPU, fixed rates over as many for the latency; in turns."""
    bodies = {GIVEN: [given_body(row) for row in rows()], FETCHED: [fetched_body(n) for n in range(len(rows()))]}
    pairs = []
    with host() as started, tempfile.TemporaryDirectory(prefix="mh-") as directory:
        files = {}
        for model, lines in bodies.items():
            files[model] = Path(directory) / f"{model}.jsonl"
            files[model].write_text("\n".join(lines))
        servers = {
            model: Running(replace(started.server, path=path_of(model)), started.port, started.process)
            for model in bodies
        }
        requests = {model: [post(path_of(model), line.encode()) for line in lines] for model, lines in bodies.items()}

        def closed(model: str, for_s: float) -> Any:
            return measure(
                servers[model],
                files[model],
                CONNECTIONS,
                seconds=for_s,
                content_type="application/json",
                load_cpu=WORKER_CPU,
            )

        for model in bodies:
            closed(model, 2)
        for pair in range(PAIRS):
            given, fetched = closed(GIVEN, seconds / 2), closed(FETCHED, seconds / 2)
            latency = [
                {
                    model: round(median_ms(started.port, requests[model], rate, seconds / 2, CONNECTIONS), 3)
                    for model in bodies
                }
                for rate in RATES
            ]
            pairs.append(
                {
                    "given_per_s": round(given.requests_per_s),
                    "fetched_per_s": round(fetched.requests_per_s),
                    "ratio": round(fetched.requests_per_s / given.requests_per_s, 3),
                    "more_cpu_us": round(fetched.cpu_us - given.cpu_us, 1),
                    "given_p50_ms": [one[GIVEN] for one in latency],
                    "fetched_p50_ms": [one[FETCHED] for one in latency],
                    "errors": given.errors + fetched.errors,
                }
            )
            say(f"features: pair {pair + 1} of {PAIRS}: {pairs[-1]}")
    return {
        "pairs": pairs,
        "median_ratio": statistics.median(pair["ratio"] for pair in pairs),
        "median_more_cpu_us": statistics.median(pair["more_cpu_us"] for pair in pairs),
        "rates_per_s": list(RATES),
        "median_more_p50_ms": [
            round(statistics.median(pair["fetched_p50_ms"][n] - pair["given_p50_ms"][n] for pair in pairs), 3)
            for n in range(len(RATES))
        ],
    }
