"""Things that take long to make and are the same for every test: made once, found by a digest of what they are made of.

They stand in `~/.cache/modelhost-e2e` (`XDG_CACHE_HOME`, `MODELHOST_E2E_CACHE`), outside of any checkout, so that all
checkouts of a machine share them. Of several processes one makes a thing and the others wait for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

KEPT_S: Final = 7 * 86400.0
"""How long a thing is kept that nobody asks for any more."""


def cache_directory() -> Path:
    """Where made things are kept."""
    chosen = os.environ.get("MODELHOST_E2E_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelhost-e2e"


def digest_of(*parts: bytes | str) -> str:
    """Give a short name to what a thing is made of."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]


def made_once(kind: str, digest: str, make: Callable[[Path], None]) -> Path:
    """Give the directory `KIND-DIGEST`, after `make` has filled it if it was not there.

    A directory appears whole or not at all: `make` fills one with another name. Raises what `make` raises.
    """
    cache = cache_directory()
    wanted = cache / f"{kind}-{digest}"
    if wanted.is_dir():
        os.utime(wanted)
        return wanted
    cache.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (cache / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if wanted.is_dir():
            return wanted
        _forget(cache, kind)
        part = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=cache))
        try:
            part.chmod(0o755)
            make(part)
            part.rename(wanted)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return wanted


def _forget(cache: Path, kind: str) -> None:
    """Remove what a killed process has left half made, and what nobody has asked for in a long time."""
    for half_made in cache.glob(f".{kind}-*"):
        shutil.rmtree(half_made)
    for path in cache.glob(f"{kind}-*"):
        if path.stat().st_mtime < time.time() - KEPT_S:
            shutil.rmtree(path)
