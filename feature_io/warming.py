"""Reading entities before anybody asks for them: a view's `warm_up` list."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from feature_io.entities import Entities
from feature_io.plan import parse_key
from feature_io.stores import Key
from host.config.features import FeatureView
from host.protocol.errors import InvalidInput

logger = logging.getLogger("modelhost.features")

AT_ONCE: Final = 64
"""Reads in flight: a fraction of what a store is given for requests."""


def read_keys(view: FeatureView) -> Iterator[Key]:
    """The keys of the view's `warm_up` file; a line that holds none is named in the log, and left out."""
    path = Path(view.warm_up or "")
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    yield parse_key(view, json.loads(line))
                except (ValueError, InvalidInput) as error:
                    logger.warning("view %s: %s line %d: %s", view.name, path, number, error)
    except (OSError, UnicodeDecodeError) as error:
        logger.warning("view %s: warm_up: %s cannot be read: %s", view.name, path, error)


async def warm(entities: Entities, keys: Iterable[Key]) -> None:
    """Read them all, some at a time."""
    count = 0
    remaining = iter(keys)
    while some := list(itertools.islice(remaining, AT_ONCE)):
        reads = [read for key in some if isinstance(read := entities.read(key), asyncio.Task)]
        if reads:
            await asyncio.wait(reads)
        await asyncio.sleep(0)  # a store that is left alone refuses every read at once
        count += len(some)
    logger.info("view %s: %d entities read in advance", entities.view.name, count)
