"""The packages that hosts are given: archives in a directory of the controller, or below a URI with checksums."""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from host.archive import open_archive
from host.fetch import parse_source
from host.manifest import open_regular
from host.protocol.errors import ConfigError
from host.protocol.package import MODEL_FILE, Package, parse_package

SUFFIXES: Final = (".tar", ".tar.gz")
FILES_MAX: Final = 100_000
CHECKSUMS_MAX_BYTES: Final = 16 << 20
MODEL_FILE_MAX_BYTES: Final = 1 << 20
PACKAGE_MAX_BYTES: Final = 1 << 40
"""Nothing of an archive is held or written here, so this only has to end."""
_CHECKSUM: Final = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPackage:
    """An archive of one version of a model."""

    name: str
    version: str
    sha256: str
    """Of the archive."""
    file: str | None = None
    """Its path on the controller, or"""
    uri: str | None = None
    """where hosts fetch it."""
    content: Package | None = None
    """What its `model.toml` says; None: nobody has looked."""


class PackageSource(Protocol):
    """Where a fleet's packages are."""

    where: str
    """As it may be shown."""

    def versions(self) -> Mapping[str, tuple[str, ...]]:
        """Every model of which there is a package, with its versions, as far as file names tell them apart."""
        ...

    def find(self, name: str, version: str) -> FoundPackage | None:
        """A package, or None if there is none. Raises `ConfigError` if it cannot be used."""
        ...


class PackageDirectory:
    """Archives `NAME-VERSION.tar` or `.tar.gz`, as `modelhost pack` writes them. Raises `ConfigError` if it is none."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.resolve()
        self.where = str(self._directory)
        self._files = frozenset(_file_names(self._directory))

    def versions(self) -> Mapping[str, tuple[str, ...]]:
        """By file name."""
        return _versions(self._files)

    def find(self, name: str, version: str) -> FoundPackage | None:
        """Read an archive."""
        found = [file for file in _candidates(name, version) if file in self._files]
        if not found:
            return None
        path = self._directory / found[0]
        if len(found) > 1:
            raise ConfigError(f"{path}: expected one archive of {name} version {version}, found {found[1]} too")
        return read_archive(path, name, version)


def read_archive(path: Path, name: str, version: str) -> FoundPackage:
    """Read what an archive says of itself, and its checksum. Raises `ConfigError`."""
    try:
        with open_regular(path.resolve()) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            with open_archive(file, PACKAGE_MAX_BYTES) as archive:
                manifest = archive.manifest
                text = archive.read_text(MODEL_FILE, MODEL_FILE_MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ConfigError as error:
        raise ConfigError(*(f"{path}: {problem}" for problem in error.problems)) from error
    if (manifest.name, manifest.version) != (name, version):
        raise ConfigError(
            f"{path}: expected a package of {name} version {version}, as its name says, "
            f"received one of {manifest.name} version {manifest.version}"
        )
    where = f"{path}: {MODEL_FILE}"
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{where}: not TOML: {error}") from error
    package = parse_package(name, version, table, where)
    return FoundPackage(name=name, version=version, sha256=sha256, file=str(path), content=package)


class PackagePrefix:
    """Archives below a URI. A SHA256SUMS file on the controller says which ones there are."""

    def __init__(self, prefix: str, checksums: Path) -> None:
        self._prefix = prefix.rstrip("/")
        self.where = parse_source(f"{self._prefix}/SHA256SUMS").shown.removesuffix("/SHA256SUMS")
        self._sums = read_checksums(checksums)

    def versions(self) -> Mapping[str, tuple[str, ...]]:
        """By file name."""
        return _versions(self._sums)

    def find(self, name: str, version: str) -> FoundPackage | None:
        """Look it up; nothing is fetched."""
        for file in _candidates(name, version):
            if file in self._sums:
                return FoundPackage(name=name, version=version, sha256=self._sums[file], uri=f"{self._prefix}/{file}")
        return None


def read_checksums(path: Path) -> dict[str, str]:
    """Read what `sha256sum` prints: file name to checksum. Raises `ConfigError` with every problem."""
    try:
        with open_regular(path.resolve()) as file:
            content = file.read(CHECKSUMS_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(content) > CHECKSUMS_MAX_BYTES:
        raise ConfigError(f"{path}: expected at most {CHECKSUMS_MAX_BYTES} bytes, received more")
    sums: dict[str, str] = {}
    problems = []
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        match = _CHECKSUM.fullmatch(line)
        if not line.strip():
            continue
        if match is None:
            problems.append(f'{path}:{number}: expected a line as sha256sum prints it, "SHA256  FILE"')
        elif sums.setdefault(match[2].removeprefix("./"), match[1].lower()) != match[1].lower():
            problems.append(f"{path}:{number}: {match[2]}: expected one checksum, received two")
    if problems:
        raise ConfigError(*problems[:10])
    return sums


def open_packages(location: str, checksums: str | None, base: Path) -> PackageSource:
    """What the variables `modelhost_packages*` mean; relative paths are below `base`. Raises `ConfigError`."""
    source = parse_source(location)
    if not source.scheme:
        return PackageDirectory(base / source.text)
    if urlsplit(location).username is not None:
        # Hosts are given it as an argument, which Ansible shows when `modelhost add` fails.
        what = "as the AWS tools have them" if source.scheme == "s3" else "in ~/.netrc of who runs modelhost add"
        raise ConfigError(
            f"modelhost_packages: expected a URI without user and password, which belong on the hosts, {what}; "
            f"received one with them: {source.shown}"
        )
    if checksums is None:
        raise ConfigError(
            f"modelhost_packages_checksums: expected a SHA256SUMS file of what is below {source.shown}, found none"
        )
    return PackagePrefix(location, base / checksums)


def _candidates(name: str, version: str) -> tuple[str, ...]:
    return tuple(f"{name}-{version}{suffix}" for suffix in SUFFIXES)


def _file_names(directory: Path) -> Iterator[str]:
    try:
        with os.scandir(directory) as entries:
            for number, entry in enumerate(entries):
                if number >= FILES_MAX:
                    raise ConfigError(f"{directory}: expected at most {FILES_MAX} files, found more")
                yield entry.name
    except OSError as error:
        raise ConfigError(
            f"modelhost_packages: expected a directory of archives as modelhost pack writes them, "
            f"received {directory}: {error.strerror}"
        ) from error


def _versions(files: frozenset[str] | Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for file in sorted(files):
        stem = file.removesuffix(".gz")
        if stem.endswith(".tar"):
            name, dash, version = stem.removesuffix(".tar").rpartition("-")
            if dash:
                found[name] = (*found.get(name, ()), version)
    return found
