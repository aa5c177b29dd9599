"""Both lanes of the front say the same: a part of what `make fuzz-lanes` sends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from hosts import HandHost
from lanes import LAST, Case, TwoFronts, cases, every_split, run, write_model

pytestmark = pytest.mark.integration

GROWTH_MAX_BYTES = 16 << 20
"""What a leak of a kilobyte a request would exceed; the allocator's own growth stays below 3 MiB."""


@pytest.fixture
def fronts(repository: Path, make_hand_host: Callable[..., HandHost]) -> Iterator[TwoFronts]:
    """Give two fronts over the same workers."""
    write_model(repository)
    two = TwoFronts(make_hand_host(repository))
    yield two
    two.close()


async def test_same_answers_and_nothing_is_kept(fronts: TwoFronts) -> None:
    warm = await run(fronts.ports, cases(1), 5_000)
    rss_bytes = fronts.held()[0]
    outcome = await run(fronts.ports, cases(2), 15_000)
    assert warm.different + outcome.different == []
    assert {200, 400, 404, 405, 415, 422} <= outcome.statuses.keys()
    assert [front.poll() for front in fronts.fronts] == [None, None]
    fronts.settle()
    assert fronts.held()[0] < rss_bytes + GROWTH_MAX_BYTES


async def test_cut_at_every_offset(fronts: TwoFronts) -> None:
    outcome = await run(fronts.ports, every_split(3), 10**6)
    assert outcome.cases > 1000
    assert outcome.different == []


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
async def test_long_pipelines(fronts: TwoFronts, count: int) -> None:
    plain = (case for case in cases(4) if not case.waits)
    data = b"".join(b"".join(case.packets).removesuffix(LAST) for case in islice(plain, count))
    outcome = await run(fronts.ports, iter([Case((data + LAST,), count)]), 1)
    assert outcome.different == []


@pytest.mark.parametrize("protocol", [b"websocket", b"\xe8websocket", b"TLS/1.0"])
async def test_nothing_is_read_behind_an_upgrade(fronts: TwoFronts, protocol: bytes) -> None:
    upgrade = b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: " + protocol + b"\r\n\r\n"
    whole = upgrade + b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n" + LAST
    cuts = [Case((whole[:cut], whole[cut:]), 3) for cut in range(len(upgrade), len(whole), 7)]
    outcome = await run(fronts.ports, iter([Case((whole,), 3), *cuts]), 10**6)
    assert outcome.different == []
    assert outcome.statuses.keys() == {200}
