"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, data: bytes, mode: int = 0o600, owner: tuple[int, int] | None = None) -> None:
    """Replace a file: whoever reads it sees what it was or what it is, also after a crash.

    `owner`: user and group, if they are to be others than ours. Raises `OSError`.
    """
    part = path.with_name(f".{path.name}.new")
    try:
        part.unlink(missing_ok=True)
        part.touch(0o600)
        with part.open("wb") as stream:
            os.fchmod(stream.fileno(), mode)
            if owner is not None and owner != (os.geteuid(), os.getegid()):
                os.fchown(stream.fileno(), *owner)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
