"""The repository of model packages on this host, `<name>/<version>/`: versions come whole, never change, and go whole.

What is not whole has a hidden name, which nobody takes for a model, and lies in a directory with a lock that the kernel
lets go of when its process dies, however that is. Whoever comes next removes what nobody holds.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from host.archive import open_archive
from host.config.deployment import package_directories
from host.manifest import (
    MANIFEST_FILE,
    Manifest,
    first_difference,
    list_files,
    make_manifest,
    read_manifest,
    verify_package,
    writable_in,
)
from host.protocol.errors import ConfigError, HostError
from host.protocol.package import MODEL_FILE, read_package
from host.retention import StoredVersion

_HIDDEN: Final = ".modelhost-"
_LOCK_FILE: Final = "lock"
_HIDDEN_TRIES: Final = 100
"""A directory is taken for a leftover if somebody looks between its making and its locking."""

_REPOSITORY_LOCK: Final = ".lock"
"""Held while something gets its name or loses it, which is a moment."""

_SECTOR_BYTES: Final = 512
"""The unit of `st_blocks` (stat(2))."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What an archive brought."""

    name: str
    version: str
    directory: Path
    size_bytes: int
    was_there: bool
    """The same version with the same content; nothing was changed."""


class ModelRepository:
    """The packages of one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str, version: str) -> Path:
        """The directory of a version, there or not."""
        return self.root / name / version

    def versions(self) -> list[StoredVersion]:
        """Every version that is there. Raises `ConfigError` if the repository cannot be read."""
        return [
            StoredVersion(path.parent.name, path.name, not path.is_symlink() and (path / MANIFEST_FILE).is_file())
            for path in package_directories(self.root)
        ]

    # -- in -----------------------------------------------------------------------------------------------
    def add(self, fetch: Callable[[BinaryIO], str], limit_bytes: int, sha256: str | None = None) -> Added:
        """Fetch an archive, verify everything in it, and give it its place in one step.

        `fetch` writes the archive into a file and returns its SHA-256. Raises `ConfigError` if the archive is not to be
        had, and `HostError` if this host cannot take it; then nothing has changed.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.clear_leftovers()
            with self._hidden() as work, (work / "archive").open("w+b") as file:
                received = fetch(file)
                if sha256 is not None and received != sha256:
                    raise ConfigError(f"sha256: expected {sha256}, received {received}")
                file.seek(0)
                with open_archive(file, limit_bytes) as archive:
                    manifest = archive.manifest
                    was_there = self._is_there(manifest)
                    if not was_there:
                        staged = work / "package" / manifest.name / manifest.version
                        staged.parent.mkdir(parents=True)
                        archive.unpack(staged)
                if not was_there:
                    _require_package(staged, manifest)
                    was_there = not self._place(staged, manifest)
        except OSError as error:
            raise HostError(f"{self.root}: cannot be written: {error.strerror or error}") from error
        return Added(
            name=manifest.name,
            version=manifest.version,
            directory=self.path(manifest.name, manifest.version),
            size_bytes=manifest.total_bytes,
            was_there=was_there,
        )

    def _place(self, staged: Path, manifest: Manifest) -> bool:
        """Give a version its name; False if somebody else just did. Raises `ConfigError` if with other content."""
        final = self.path(manifest.name, manifest.version)
        with self._locked():
            if self._is_there(manifest):
                return False
            if final.parent.exists():
                staged.rename(final)
            else:
                # The model and its version at once: a model without a version is a mistake that a host refuses.
                staged.parent.chmod(0o755)
                staged.parent.rename(final.parent)
            _sync(final.parent)
            _sync(self.root)
        return True

    def _is_there(self, manifest: Manifest) -> bool:
        """Whether the same version is there. Raises `ConfigError` if it is there with other content, or damaged."""
        directory = self.path(manifest.name, manifest.version)
        if not os.path.lexists(directory):
            return False
        there = read_manifest(directory)
        if there is None:
            package = read_package(directory)
            there = make_manifest(directory, package, list_files(directory, writable_in(package)))
            problems: list[str] = []
        else:
            problems = verify_package(directory)
        difference = first_difference(there, manifest)
        if difference is not None:
            raise ConfigError(f"{directory}: is there with other content, and a version never changes: {difference}")
        if problems:
            raise ConfigError(*problems)
        return True

    # -- out ----------------------------------------------------------------------------------------------
    def remove(self, name: str, version: str) -> None:
        """Take a version's name away in one step, then delete it. Raises `HostError`."""
        directory = self.path(name, version)
        try:
            with self._hidden() as work:
                with self._locked():
                    alone = [path.name for path in directory.parent.iterdir()] == [version]
                    (directory.parent if alone else directory).rename(work / "removed")
                    _sync(self.root if alone else directory.parent)
                removed = work / "removed"
                removed.unlink() if removed.is_symlink() else shutil.rmtree(removed)
        except OSError as error:
            raise HostError(f"{directory}: cannot be removed: {error.strerror or error}") from error

    def leftovers(self) -> list[tuple[Path, int]]:
        """What killed commands left, with the bytes that it takes."""
        found: list[tuple[Path, int]] = []
        for path in sorted(self.root.glob(f"{_HIDDEN}*")):
            with _held(path) as ours:
                if ours:
                    found.append((path, freed_bytes(path)))
        return found

    def clear_leftovers(self) -> None:
        """Remove what killed commands left."""
        for path in self.root.glob(f"{_HIDDEN}*"):
            with _held(path) as ours:
                if ours:
                    shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _hidden(self) -> Iterator[Path]:
        """A directory of this process, gone at the end."""
        for _ in range(_HIDDEN_TRIES):
            path = Path(tempfile.mkdtemp(prefix=_HIDDEN, dir=self.root))
            with _held(path) as ours:
                if not ours:
                    continue
                try:
                    yield path
                finally:
                    shutil.rmtree(path, ignore_errors=True)
                return
        raise HostError(f"{self.root}: other commands remove what this one makes; try again")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        file = os.open(self.root / _REPOSITORY_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)


@contextmanager
def _held(directory: Path) -> Iterator[bool]:
    """Take a hidden directory's lock; False if another process has it, or the directory is gone or not ours."""
    path = directory / _LOCK_FILE
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        yield False
        return
    try:
        yield _lock(file, path)
    finally:
        os.close(file)


def _lock(file: int, path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it before may have removed it.
        return os.path.samestat(os.fstat(file), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _require_package(staged: Path, manifest: Manifest) -> None:
    """Check an unpacked package as a host would. Raises `ConfigError`, without the path that it has for now."""
    try:
        package = read_package(staged)
    except ConfigError as error:
        here = f"{staged.parent.parent}/"
        raise ConfigError(*(problem.replace(here, "") for problem in error.problems)) from error
    if writable_in(package) != manifest.writable:
        raise ConfigError(
            f"{MANIFEST_FILE}: writable: expected {list(writable_in(package))}, as {MODEL_FILE} says, "
            f"received {list(manifest.writable)}"
        )


def _sync(directory: Path) -> None:
    """See to it that a change of names survives the machine."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def freed_bytes(directory: Path) -> int:
    """What removing a directory gives back to the file system. Files with other names, as in uv's cache, do not."""
    blocks = 0
    for parent, _, names in os.walk(directory):
        for path in (parent, *(os.path.join(parent, name) for name in names)):  # noqa: PTH118 - thousands of files
            try:
                state = os.lstat(path)
            except OSError:
                continue  # somebody else was quicker
            if path == parent or state.st_nlink == 1:
                blocks += state.st_blocks
    return blocks * _SECTOR_BYTES
