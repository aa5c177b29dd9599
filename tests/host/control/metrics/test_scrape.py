from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from host.control.metrics.facts import Known
from host.control.metrics.scrape import Metrics
from host.control.status import HostStatus
from host.protocol.errors import HostError

STATUS = HostStatus(ready=True, wanted=0, ready_processes=0, models=(), host=(), unwanted=())


class Control:
    """Knows when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.tell = asyncio.Event()

    async def known(self) -> Known:
        self.asked += 1
        await self.tell.wait()
        return Known(status=STATUS)


async def test_two_scrapes_at_once_share_one_gathering(tmp_path: Path) -> None:
    control = Control()
    metrics = Metrics(control.known, tmp_path, None)
    both = [asyncio.create_task(metrics.scrape(accept)) for accept in ("", "application/openmetrics-text")]
    await asyncio.sleep(0)
    gone = asyncio.create_task(metrics.scrape(""))
    await asyncio.sleep(0)
    gone.cancel()
    control.tell.set()
    (text, _), (openmetrics, _) = await asyncio.gather(*both)
    assert control.asked == 1
    assert b"\nmodelhost_ready 1\n" in text
    assert openmetrics.endswith(b"# EOF\n")
    await metrics.scrape("")
    assert control.asked == 2, "a later one is of its own time"


async def test_a_scrape_has_a_deadline(tmp_path: Path) -> None:
    control = Control()
    metrics = Metrics(control.known, tmp_path, None, limit_s=0.01)
    with pytest.raises(HostError, match="not gathered within"):
        await metrics.scrape("")
    patient = Metrics(control.known, tmp_path, None)
    control.tell.set()
    assert (await patient.scrape(""))[0]


async def test_files_that_are_none_are_counted_and_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "front~front:0~").write_text("nonsense")
    control = Control()
    control.tell.set()
    metrics = Metrics(control.known, tmp_path, None)
    for _ in range(2):
        assert b"\nmodelhost_unreadable_counter_files 1\n" in (await metrics.scrape(""))[0]
    assert len(caplog.records) == 1
