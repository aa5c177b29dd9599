"""The loop that looks and acts goes on whatever it meets."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from host.config.deployment import Deployment, write_deployment
from host.config.run_dir import RunDirectory
from host.control.reconcile import Pace
from host.control.reconciler import Reconciler


async def test_a_deployment_that_cannot_be_read_does_not_end_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = RunDirectory(tmp_path)
    write_deployment(run_dir.routing, Deployment())
    run_dir.deployment.write_text("{")
    nobody = cast(Any, None)
    reconciler = Reconciler(run_dir, nobody, nobody, {}, nobody, Pace(starting_max=1, drain_s=1), nobody)
    running = asyncio.create_task(reconciler.run(asyncio.sleep(0)))
    try:
        for count in (1, 2):
            async with asyncio.timeout(30):
                while caplog.text.count("not a deployment") < count and not running.done():  # noqa: ASYNC110 - a log tells nobody
                    await asyncio.sleep(0.005)
            assert not running.done()
            reconciler.notice()  # it looks again
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
