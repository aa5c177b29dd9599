"""The file of counters that the launcher opens for a worker, which as another user in a view of its own could not.

Standard library only: the launcher imports it before any environment is there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

COUNTERS_VARIABLE: Final = "MODELHOST_COUNTERS_FD"
"""The descriptor of the worker's file of counters, in its environment."""


def create_counters(path: Path) -> int:
    """Open a file of counters for its writer, or make an empty one, its owner's alone. Raises `OSError`."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def given_counters() -> int | None:
    """The descriptor that the launcher left; what the process runs later sees nothing of it."""
    text = os.environ.pop(COUNTERS_VARIABLE, None)
    if text is None:
        return None
    descriptor = int(text)
    os.set_inheritable(descriptor, False)
    return descriptor
