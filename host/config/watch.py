"""Noticing that a file was replaced."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from asyncinotify import Inotify, Mask

_CHANGES: Final = Mask.MOVED_TO | Mask.CLOSE_WRITE


async def replacements(path: Path) -> AsyncIterator[None]:
    """Yield once when nothing can be missed any more, then each time that the file was written or replaced.

    Its directory must exist, and stay.
    """
    with Inotify() as inotify:
        inotify.add_watch(path.parent, _CHANGES | Mask.ONLYDIR)
        yield
        async for event in inotify:
            if Mask.Q_OVERFLOW in event.mask or str(event.name) == path.name:
                yield
