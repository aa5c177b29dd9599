"""Every kind of broken request gets its 4xx; nothing dies of it, and the next good request is answered."""

from __future__ import annotations

import json

import msgpack
import pytest
from hosts import RunningHost
from malformed import CANCER, GOOD, MSGPACK, TABLE, Bad

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def unharmed(host: RunningHost):
    """Assert that every process is the same afterwards, and that the next request of each model is answered."""
    before = host.pids().keys()
    yield
    for path, body in NEXT.items():
        answer = host.call("POST", path, body)
        assert answer.status == 200, (path, answer.body)
    assert host.pids().keys() == before


NEXT = {CANCER: GOOD}


@pytest.mark.parametrize("bad", TABLE, ids=str)
def test_refused(host: RunningHost, bad: Bad) -> None:
    answer = host.call("POST", bad.path, bad.body, bad.headers)
    if bad.headers is MSGPACK:
        assert answer.headers["content-type"] == "application/msgpack"
        document = msgpack.unpackb(answer.body)
        received = answer.status, document["code"]
    else:
        received = answer.error
        document = answer.document
    print(document["error"][:300])
    if bad.error == (0, ""):
        assert received in ((400, "MALFORMED"), (422, "INVALID_INPUT"))
    else:
        assert received == bad.error, document["error"]
    for part in bad.says:
        assert part in document["error"], document["error"]
