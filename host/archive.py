"""Package archives: a tar of `manifest.json` and the files that it names, in this order.

The manifest comes first, so that a reader knows every path and size before it writes anything. An archive is taken
apart here and not by `TarFile.extract`: what is not exactly what the manifest says is refused, whatever tar may hold.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final, Protocol

from host.manifest import (
    MANIFEST_FILE,
    MANIFEST_MAX_BYTES,
    Manifest,
    ManifestFile,
    encode_manifest,
    open_regular,
    parse_manifest,
)
from host.protocol.errors import ConfigError

_GZIP: Final = b"\x1f\x8b"
_CHUNK_BYTES: Final = 256 << 10
_HEADER_MAX_BYTES: Final = 64 << 10
"""What may stand between two files: their padding and one header, with a long path and the like."""

_FILE_MODE: Final = 0o444
"""A version never changes; and workers, which are other users, must read it."""

_PROGRAM_MODE: Final = 0o555
_DIRECTORY_MODE: Final = 0o755


# -- writing ----------------------------------------------------------------------------------------------
def write_archive(target: BinaryIO, directory: Path, manifest: Manifest) -> None:
    """Write a package's archive: the same bytes for the same content. Raises `ConfigError` if a file has changed."""
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        content = encode_manifest(manifest)
        tar.addfile(_header(MANIFEST_FILE, len(content), executable=False), io.BytesIO(content))
        for entry in manifest.files:
            path = directory / entry.path
            with _opened(path) as file:
                executable = bool(os.fstat(file.fileno()).st_mode & 0o100)
                reader = _Digesting(path, file)
                tar.addfile(_header(entry.path, entry.size_bytes, executable=executable), reader)
                if reader.sha256 != entry.sha256 or file.read(1):
                    raise _changed(path)


def _opened(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _changed(path: Path) -> ConfigError:
    return ConfigError(f"{path}: has changed while it was packed")


def _header(path: str, size_bytes: int, *, executable: bool) -> tarfile.TarInfo:
    """No owner, no time: nothing but the content."""
    header = tarfile.TarInfo(path)
    header.size = size_bytes
    header.mode = 0o755 if executable else 0o644
    return header


class _Digesting:
    """Reads a file to its end as it is known, and knows the SHA-256 of what was read."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._digest = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        """Read so much. Raises `ConfigError` if less is left, or it cannot be read."""
        try:
            part = self._file.read(size)
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be read: {error.strerror}") from error
        if len(part) < size:
            raise _changed(self._path)
        self._digest.update(part)
        return part

    @property
    def sha256(self) -> str:
        """Of everything so far."""
        return self._digest.hexdigest()


# -- reading ----------------------------------------------------------------------------------------------
class _Seekable(Protocol):
    def read(self, size: int, /) -> bytes: ...
    def seek(self, offset: int, /) -> int: ...
    def tell(self) -> int: ...


class _Bounded:
    """What tarfile reads from: nothing is read, or unpacked by gzip, beyond a place that moves with the reading.

    tarfile allocates what a header asks for, and headers are the sender's.
    """

    def __init__(self, file: _Seekable) -> None:
        self._file = file
        self._end = _HEADER_MAX_BYTES

    def allow(self, size_bytes: int) -> None:
        """Let so much be read from here on."""
        self._end = self._file.tell() + size_bytes

    def read(self, size: int) -> bytes:
        """Read within the bound. Raises `ConfigError` if more was asked for."""
        self._require(self._file.tell(), size)
        return self._file.read(size)

    def seek(self, offset: int) -> int:
        """Go on, within the bound. Raises `ConfigError`."""
        self._require(0, offset)
        return self._file.seek(offset)

    def tell(self) -> int:
        """Where we are."""
        return self._file.tell()

    def _require(self, begin: int, size: int) -> None:
        if size < 0 or begin + size > self._end:
            raise ConfigError(f"expected at most {_HEADER_MAX_BYTES} bytes between two files, received more")


class PackageArchive:
    """An archive that is open for reading, with its manifest."""

    def __init__(self, tar: tarfile.TarFile, bounded: _Bounded, limit_bytes: int) -> None:
        self._tar = tar
        self._bounded = bounded
        first = self._next()
        if first is None or first.name != MANIFEST_FILE or not _is_plain_file(first):
            received = "nothing" if first is None else repr(first.name)
            raise ConfigError(
                f"expected {MANIFEST_FILE} as the first entry, as modelhost pack writes it, received {received}"
            )
        if first.size > MANIFEST_MAX_BYTES:
            raise ConfigError(f"{MANIFEST_FILE}: expected at most {MANIFEST_MAX_BYTES} bytes, received {first.size}")
        self.manifest = parse_manifest(b"".join(self._content(first)), MANIFEST_FILE)
        if self.manifest.total_bytes > limit_bytes:
            raise ConfigError(
                f"{MANIFEST_FILE}: expected files of at most {limit_bytes} bytes in all (max_package_bytes), "
                f"received {self.manifest.total_bytes}"
            )

    def unpack(self, target: Path) -> None:
        """Write every file into a new directory, and the manifest. Raises `ConfigError` at the first difference.

        Nobody else may write there: links that others make are not looked for.
        """
        _make_directory(target, "")
        expected = {entry.path: entry for entry in self.manifest.files}
        seen: set[str] = set()
        while (header := self._next()) is not None:
            entry = expected.get(header.name)
            if entry is None:
                raise ConfigError(f"{header.name!r}: expected only what {MANIFEST_FILE} names")
            if header.name in seen:
                raise ConfigError(f"{header.name!r}: expected once, received twice")
            if not _is_plain_file(header):
                raise ConfigError(f"{header.name!r}: expected a file, received a {_type_name(header)}")
            if header.size != entry.size_bytes:
                raise ConfigError(f"{header.name}: size: expected {entry.size_bytes} bytes, received {header.size}")
            seen.add(header.name)
            self._write(target, header, entry)
        missing = [path for path in expected if path not in seen]
        if missing:
            more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ConfigError(f"{missing[0]}: expected a file, because {MANIFEST_FILE} names it, found none{more}")
        for path in self.manifest.writable:
            _make_directory(target, path)
        with _new_file(target / MANIFEST_FILE, _FILE_MODE) as file:
            file.write(encode_manifest(self.manifest))

    def read_text(self, path: str, limit_bytes: int) -> str:
        """One small file, read without writing anything; the files before it are passed over, unchecked.

        Raises `ConfigError` if there is none, or it is not what the manifest says.
        """
        expected = next((entry for entry in self.manifest.files if entry.path == path), None)
        if expected is None:
            raise ConfigError(f"{path}: expected a file of that name, {MANIFEST_FILE} names none")
        if expected.size_bytes > limit_bytes:
            raise ConfigError(f"{path}: expected at most {limit_bytes} bytes, received {expected.size_bytes}")
        passed_bytes, skipped_bytes = 0, 0
        while (header := self._next(skipped_bytes)) is not None:
            if header.name == path and _is_plain_file(header) and header.size == expected.size_bytes:
                return self._checked_text(header, expected)
            # tarfile seeks to behind it, and what is packed with gzip has to be read for that.
            skipped_bytes = header.size
            passed_bytes += skipped_bytes
            if passed_bytes > self.manifest.total_bytes:
                raise ConfigError(f"expected files of {self.manifest.total_bytes} bytes in all, received more")
        raise ConfigError(f"{path}: expected a file of {expected.size_bytes} bytes, because {MANIFEST_FILE} names it")

    def _checked_text(self, header: tarfile.TarInfo, expected: ManifestFile) -> str:
        content = b"".join(self._content(header))
        received = hashlib.sha256(content).hexdigest()
        if received != expected.sha256:
            raise ConfigError(f"{expected.path}: sha256: expected {expected.sha256}, received {received}")
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{expected.path}: not UTF-8: {error.reason} at byte {error.start}") from error

    def _write(self, target: Path, header: tarfile.TarInfo, entry: ManifestFile) -> None:
        _make_directory(target, str(PurePosixPath(entry.path).parent))
        digest = hashlib.sha256()
        with _new_file(target / entry.path, _PROGRAM_MODE if header.mode & 0o100 else _FILE_MODE) as file:
            for part in self._content(header):
                digest.update(part)
                file.write(part)
        if digest.hexdigest() != entry.sha256:
            raise ConfigError(f"{entry.path}: sha256: expected {entry.sha256}, received {digest.hexdigest()}")

    def _next(self, skipped_bytes: int = 0) -> tarfile.TarInfo | None:
        """The next header, behind so much of a file that nobody has read."""
        self._bounded.allow(skipped_bytes + _HEADER_MAX_BYTES)
        return self._tar.next()

    def _content(self, header: tarfile.TarInfo) -> Iterator[bytes]:
        reader = self._tar.extractfile(header)
        assert reader is not None  # noqa: S101 - it is a file
        self._bounded.allow(header.size)
        left_bytes = header.size
        while left_bytes:
            part = reader.read(min(_CHUNK_BYTES, left_bytes))
            if not part:
                raise ConfigError(f"{header.name}: the archive ends {left_bytes} bytes before the file")
            left_bytes -= len(part)
            yield part


@contextmanager
def open_archive(file: BinaryIO, limit_bytes: int) -> Iterator[PackageArchive]:
    """Open an archive, as it is or packed with gzip, of files of so many bytes in all.

    Raises `ConfigError` for everything that is no whole archive, in the block too.
    """
    plain: _Seekable = file
    if file.read(len(_GZIP)) == _GZIP:
        plain = gzip.GzipFile(fileobj=file, mode="rb")
    file.seek(0)
    bounded = _Bounded(plain)
    try:
        # tarfile wants no more of a file than `_Bounded` has.
        with tarfile.open(fileobj=bounded, mode="r:") as tar:  # type: ignore[call-overload]
            yield PackageArchive(tar, bounded, limit_bytes)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ConfigError(f"not a whole archive: {error}") from error
    except (RecursionError, ValueError, OverflowError) as error:
        # tarfile reads a header by calling itself, and believes the numbers in it.
        raise ConfigError(f"not an archive as modelhost pack writes it: {type(error).__name__}") from error


def _is_plain_file(header: tarfile.TarInfo) -> bool:
    """No sparse file either, which tarfile takes for a regular one."""
    return header.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and header.sparse is None


def _type_name(header: tarfile.TarInfo) -> str:
    names = {
        tarfile.SYMTYPE: "symbolic link",
        tarfile.LNKTYPE: "hard link",
        tarfile.DIRTYPE: "directory",
        tarfile.FIFOTYPE: "named pipe",
        tarfile.CHRTYPE: "device",
        tarfile.BLKTYPE: "device",
    }
    return names.get(header.type, "sparse file" if header.sparse is not None else f"entry of type {header.type!r}")


def _make_directory(top: Path, path: str) -> None:
    """Make a directory and those above it, with their modes whatever the umask."""
    made = top
    for part in ("", *PurePosixPath(path).parts):
        made = made / part
        if not made.is_dir():
            made.mkdir()
            made.chmod(_DIRECTORY_MODE)


@contextmanager
def _new_file(path: Path, mode: int) -> Iterator[BinaryIO]:
    """Write a file that is not there yet, through to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        yield file
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
