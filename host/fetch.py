"""Where archives come from: a file, or http, https and s3 through fsspec. Read once, bounded, without waiting for ever.

Nothing that is said of a source holds its user, password or query: they may be credentials.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from host.config.setting_values import is_plain_text
from host.manifest import open_regular
from host.protocol.errors import ConfigError, HostError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

REMOTE_SCHEMES: Final = ("http", "https", "s3")
_CHUNK_BYTES: Final = 1 << 20
_S3_BLOCK_BYTES: Final = 8 << 20
"""Asked for at once, and held in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a source may take before it is given up: to let us in, and between two pieces."""

    connect_s: float = 10.0
    no_progress_s: float = 30.0


_PATIENCE: Final = Patience()

Progress = Callable[[int, int | None], None]
"""Bytes received, and how many there will be, if that is known."""


class Readable(Protocol):
    """What an archive is read from."""

    def read(self, size: int, /) -> bytes:
        """Read at most so many bytes; nothing at the end."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """A path or URI, and how it may be shown."""

    text: str
    scheme: str
    """Empty for a path."""
    shown: str


def parse_source(text: str) -> Source:
    """Take a path or URI apart. Raises `ConfigError`, which does not repeat credentials."""
    expected = "expected a path, or a URI that begins with http://, https://, s3:// or file://"
    if "://" not in text:
        return Source(text, "", text)
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        raise ConfigError(f"{expected}, received a URI that cannot be read as one") from None
    scheme = parts.scheme
    if not is_plain_text(text):
        raise ConfigError(f"{expected}, without control characters")
    if scheme == "file" and host in ("", "localhost"):
        return Source(unquote(parts.path), "", unquote(parts.path))
    if scheme not in REMOTE_SCHEMES:
        raise ConfigError(f"{expected}, received one that begins with {scheme}://")
    shown = f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" + ("?..." if parts.query else "")
    if not host or parts.path in ("", "/"):
        what = "s3://BUCKET/KEY" if scheme == "s3" else f"{scheme}://HOST/PATH"
        raise ConfigError(f"{shown}: expected {what}")
    return Source(text, scheme, shown)


def fetch(
    source: Source, target: BinaryIO, limit_bytes: int, progress: Progress, patience: Patience = _PATIENCE
) -> str:
    """Copy a source into a file; return its SHA-256. Raises `ConfigError`, `HostError`, and the target's `OSError`."""
    if not source.scheme:
        return _copy_file(Path(source.text), target, limit_bytes, progress)
    filesystem = open_filesystem(source, patience)
    with _named(source):
        size_bytes = filesystem.info(source.text)["size"]
    _require_size(source.shown, size_bytes, limit_bytes)
    with _named(source):
        reader = filesystem.open(source.text, "rb", **_open_options(source.scheme, size_bytes))
    try:
        received_bytes, sha256 = copy(_Named(source, reader), source.shown, target, size_bytes, limit_bytes, progress)
    finally:
        reader.close()
    # Over http the length that counts is that of the answer itself, and aiohttp sees to it.
    if source.scheme == "s3":
        _require_all(source.shown, received_bytes, size_bytes)
    return sha256


def _copy_file(path: Path, target: BinaryIO, limit_bytes: int, progress: Progress) -> str:
    try:
        file = open_regular(path.resolve(strict=True))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    with file:
        size_bytes = os.fstat(file.fileno()).st_size
        _require_size(str(path), size_bytes, limit_bytes)
        received_bytes, sha256 = copy(file, str(path), target, size_bytes, limit_bytes, progress)
    _require_all(str(path), received_bytes, size_bytes)
    return sha256


def copy(
    reader: Readable, shown: str, target: BinaryIO, size_bytes: int | None, limit_bytes: int, progress: Progress
) -> tuple[int, str]:
    """Copy to the end, at most `limit_bytes`; return bytes and SHA-256. Raises `ConfigError` beyond the limit.

    `size_bytes` is what the source said of itself, for `progress`.
    """
    digest = hashlib.sha256()
    received_bytes = 0
    progress(0, size_bytes)
    while part := reader.read(min(_CHUNK_BYTES, limit_bytes - received_bytes + 1)):
        received_bytes += len(part)
        if received_bytes > limit_bytes:
            raise ConfigError(f"{shown}: expected at most {limit_bytes} bytes (max_package_bytes), received more")
        digest.update(part)
        target.write(part)
        progress(received_bytes, size_bytes)
    return received_bytes, digest.hexdigest()


def _require_all(shown: str, received_bytes: int, size_bytes: int | None) -> None:
    if size_bytes is not None and received_bytes != size_bytes:
        raise HostError(f"{shown}: expected {size_bytes} bytes, received {received_bytes}")


def _require_size(shown: str, size_bytes: int | None, limit_bytes: int) -> None:
    if size_bytes is not None and size_bytes > limit_bytes:
        raise ConfigError(f"{shown}: expected at most {limit_bytes} bytes (max_package_bytes), received {size_bytes}")


# -- through fsspec ---------------------------------------------------------------------------------------
def open_filesystem(source: Source, patience: Patience) -> AbstractFileSystem:
    """fsspec's file system for a source. Raises `ConfigError` that names what is missing."""
    import fsspec

    try:
        kind = fsspec.get_filesystem_class(source.scheme)
    except ImportError as error:
        raise ConfigError(
            f"{source.shown}: {source.scheme}:// needs the package s3fs, which is not installed here: "
            "pip install 'modelhost[s3]'"
        ) from error
    with _named(source):
        return kind(skip_instance_cache=True, **_filesystem_options(source.scheme, patience))


def _filesystem_options(scheme: str, patience: Patience) -> dict[str, Any]:
    if scheme == "s3":
        return {"config_kwargs": {"connect_timeout": patience.connect_s, "read_timeout": patience.no_progress_s}}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=patience.connect_s, sock_read=patience.no_progress_s)
    # With trust_env: the proxies and the ~/.netrc that curl and pip would use. An archive is taken as it was sent: what
    # is unpacked is bounded where archives are read.
    session = {"timeout": timeout, "trust_env": True, "auto_decompress": False}
    return {"client_kwargs": session, "headers": {"Accept-Encoding": "identity"}}


def _open_options(scheme: str, size_bytes: int | None) -> dict[str, Any]:
    if scheme == "s3":
        # Bounded pieces in order, each of the object that the first one was of (its ETag).
        return {"block_size": _S3_BLOCK_BYTES, "cache_type": "readahead"}
    # One GET that is read as it comes. A size given here saves a second look at the server.
    return {"block_size": 0, "size": size_bytes or -1}


class _Named:
    """Reads with errors that name the source."""

    def __init__(self, source: Source, reader: Readable) -> None:
        self._source = source
        self._reader = reader

    def read(self, size: int) -> bytes:
        """Read."""
        with _named(self._source):
            return self._reader.read(size)


@contextmanager
def _named(source: Source) -> Iterator[None]:
    """Turn whatever a driver raises into an error that names the source and holds none of its secrets."""
    try:
        yield
    except Exception as error:  # each driver has its own errors, and some have no common base
        raise HostError(f"{source.shown}: {reason(error, source)}") from error


def reason(error: BaseException, source: Source) -> str:
    """What went wrong, in words. fsspec hides what happened over http behind a `FileNotFoundError`."""
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ is not None else error
    status = getattr(cause, "status", None)
    if isinstance(status, int) and status:
        return f"the server answered {status} {without_secrets(str(getattr(cause, 'message', '')), source)}".rstrip()
    if isinstance(cause, TimeoutError) or "Timeout" in type(cause).__name__:
        return "does not answer, or sends nothing more"
    if isinstance(cause, FileNotFoundError):
        return "found nothing there"
    if isinstance(cause, PermissionError):
        return f"access denied: {without_secrets(str(cause), source)}"
    return without_secrets(str(cause), source) or type(cause).__name__


def without_secrets(text: str, source: Source) -> str:
    """A text of somebody else's without what the source's URI may hold of credentials."""
    for secret in sorted(_secrets(urlsplit(source.text)), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _secrets(parts: SplitResult) -> set[str]:
    user, at, _ = parts.netloc.rpartition("@")
    # A user without a password may be a token.
    found = {user + at, parts.password or parts.username, parts.query, parts.fragment}
    found |= {value for _, value in parse_qsl(parts.query)}
    whole = {text for text in found if text}
    return whole | {unquote(text) for text in whole}
