"""Files that are there as a whole or not at all, and that belong to whom their directory belongs to."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, data: bytes, mode: int = 0o600, owner: tuple[int, int] | None = None) -> None:
    """Replace a file: whoever reads it sees what it was or what it is, also after a crash.

    `owner`: user and group, if they are to be others than the directory's (for root) or ours. Raises `OSError`.
    """
    part = path.with_name(f".{path.name}.new")
    try:
        part.unlink(missing_ok=True)
        # Anew: a link that the directory's owner has put there is not followed.
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            _give(stream.fileno(), owner or _owner_in(path.parent))
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def open_lock(path: Path) -> int:
    """Open a file that is there to be locked, or make it. Gives the descriptor; raises `OSError`."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags)
    try:
        _give(descriptor, _owner_in(path.parent))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _owner_in(directory: Path) -> tuple[int, int]:
    """Whose a file is that we make in a directory: who runs a host can read what root has changed there."""
    state = directory.stat()
    ours = os.geteuid(), os.getegid()
    return (state.st_uid, state.st_gid) if ours[0] == 0 and state.st_uid != 0 else ours


def _give(descriptor: int, owner: tuple[int, int]) -> None:
    if owner != (os.geteuid(), os.getegid()):
        os.fchown(descriptor, *owner)
