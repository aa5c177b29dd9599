"""The manifest of a package, `manifest.json`: every file with its size and SHA-256, and their verification before use.

`modelhost pack` writes it and `modelhost add` leaves it in the package. A package that was made by hand has none.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from host.protocol.errors import ConfigError
from host.protocol.package import MODEL_FILE, Package, name_problem

if TYPE_CHECKING:
    from host.config.deployment import Deployment

MANIFEST_FILE: Final = "manifest.json"
FORMAT: Final = 1

FILES_MAX: Final = 10_000
PATH_MAX_BYTES: Final = 1024
PART_MAX_BYTES: Final = 255
"""The longest name that Linux file systems hold (NAME_MAX)."""

MANIFEST_MAX_BYTES: Final = 16 << 20
"""Room for as many files as are allowed, with paths as long as are allowed."""


class ManifestFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file; `path` is relative to the package, with slashes."""

    path: str
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one version of a model is made of, by path."""

    format: int
    name: str
    version: str
    files: tuple[ManifestFile, ...]
    writable: tuple[str, ...] = ()
    """Directories of `sandbox.writable` in the package: they exist, and what is in them is not part of it."""

    @property
    def total_bytes(self) -> int:
        """What all files take."""
        return sum(file.size_bytes for file in self.files)


class _Format(msgspec.Struct, frozen=True):
    format: int


@dataclass(slots=True)
class Listing:
    """What is in a package's directory."""

    files: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Hidden files, `__pycache__` and the content of writable directories: not part of the package."""
    problems: list[str] = field(default_factory=list)


# -- writing ----------------------------------------------------------------------------------------------
def make_manifest(directory: Path, package: Package, listing: Listing) -> Manifest:
    """Read every file of a package. Raises `ConfigError` with everything that cannot be part of one."""
    problems = [*listing.problems, *_left_out_problems(directory, package, listing)]
    files: list[ManifestFile] = []
    for path in listing.files if not problems else ():
        try:
            with open_regular(directory / path) as file:
                files.append(ManifestFile(path, os.fstat(file.fileno()).st_size, _sha256(file)))
        except OSError as error:
            problems.append(f"{directory / path}: cannot be read: {error.strerror}")
    if problems:
        raise ConfigError(*problems)
    manifest = Manifest(FORMAT, package.name, package.version, tuple(files), writable_in(package))
    # What pack writes, add must be able to take.
    return parse_manifest(encode_manifest(manifest), str(directory / MANIFEST_FILE))


def encode_manifest(manifest: Manifest) -> bytes:
    """The text of `manifest.json`; the same for equal manifests."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def writable_in(package: Package) -> tuple[str, ...]:
    """`sandbox.writable`, as far as it lies in the package."""
    paths = {PurePosixPath(path) for path in package.sandbox.writable}
    return tuple(sorted(str(path) for path in paths if not path.is_absolute()))


def list_files(directory: Path, writable: Iterable[str]) -> Listing:
    """Walk through a package's directory, without following a link. The files come sorted by path."""
    listing = Listing()
    _walk(directory, "", frozenset(PurePosixPath(path) for path in writable), listing)
    listing.files.sort()
    listing.left_out.sort()
    return listing


def _walk(directory: Path, prefix: str, writable: frozenset[PurePosixPath], listing: Listing) -> None:
    try:
        entries = sorted(os.scandir(directory / prefix), key=lambda entry: entry.name)
    except OSError as error:
        listing.problems.append(f"{directory / prefix}: cannot be read: {error.strerror}")
        return
    for entry in entries:
        path = prefix + entry.name
        if path == MANIFEST_FILE:
            continue
        if PurePosixPath(path) in writable and entry.is_dir(follow_symlinks=False):
            listing.left_out += [_printable(f"{path}/{inside.name}") for inside in os.scandir(entry.path)]
        elif _is_left_out(entry.name):
            listing.left_out.append(_printable(path))
        elif problem := path_problem(path):
            listing.problems.append(f"{directory}: {_printable(path)!r}: expected {problem}")
        elif entry.is_dir(follow_symlinks=False):
            _walk(directory, f"{path}/", writable, listing)
        elif not entry.is_file(follow_symlinks=False):
            kind = _kind(entry.stat(follow_symlinks=False).st_mode)
            listing.problems.append(f"{directory / path}: expected a file or a directory, received {kind}")
        elif len(listing.files) == FILES_MAX:
            listing.problems.append(f"{directory}: expected at most {FILES_MAX} files, received more")
            return
        else:
            listing.files.append(path)


def _printable(path: str) -> str:
    """A path whatever its bytes: a name need not be UTF-8."""
    return path.encode("utf-8", "backslashreplace").decode()


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


def _left_out_problems(directory: Path, package: Package, listing: Listing) -> Iterator[str]:
    """Files that `model.toml` names and that would not be there."""
    named = {"artifact": package.artifact, "environment.requirements": package.environment.requirements}
    for key, path in named.items():
        if path is not None and str(PurePosixPath(path)) not in listing.files and not listing.problems:
            yield (
                f"{directory / MODEL_FILE}: {key}: expected a file that is part of the package, received {path}: "
                "hidden files and those in sandbox.writable are left out"
            )


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFSOCK: "a socket",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFBLK: "a device",
        stat.S_IFCHR: "a device",
        stat.S_IFDIR: "a directory",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


# -- reading ----------------------------------------------------------------------------------------------
def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a package, or None if it has none. Raises `ConfigError`."""
    path = directory / MANIFEST_FILE
    try:
        with open_regular(path) as file:
            content = file.read(MANIFEST_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    return parse_manifest(content, str(path))


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Read and check the text of a `manifest.json`. Raises `ConfigError` with every problem."""
    if len(content) > MANIFEST_MAX_BYTES:
        raise ConfigError(f"{where}: expected at most {MANIFEST_MAX_BYTES} bytes, received more")
    try:
        received = msgspec.json.decode(content, type=_Format).format
        if received != FORMAT:
            raise ConfigError(f"{where}: format: expected {FORMAT}, received {received}: of another modelhost")
        manifest = msgspec.json.decode(content, type=Manifest)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{where}: not a manifest as modelhost pack writes it: {error}") from error
    problems = [f"{where}: {problem}" for problem in _manifest_problems(manifest)]
    if problems:
        raise ConfigError(*problems)
    return manifest


def _manifest_problems(manifest: Manifest) -> Iterator[str]:
    for what, text in (("model name", manifest.name), ("model version", manifest.version)):
        problem = name_problem(what, text)
        if problem:
            yield problem
    if len(manifest.files) > FILES_MAX:
        yield f"files: expected at most {FILES_MAX}, received {len(manifest.files)}"
        return
    paths = [file.path for file in manifest.files]
    for path in [*paths, *manifest.writable]:
        problem = path_problem(path)
        if problem:
            yield f"{path!r}: expected {problem}"
    for path in paths:
        if any(_is_left_out(part) for part in path.split("/")):
            yield f"{path!r}: hidden files and __pycache__ are not part of a package"
        elif path == MANIFEST_FILE:
            yield f"{path!r}: the manifest does not name itself"
    yield from _clashes(paths, manifest.writable)


def path_problem(path: str) -> str | None:
    """What a path in a package must be and is not, or None."""
    parts = path.split("/")
    try:
        sizes = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        return "a path in UTF-8"
    if any(part in ("", ".", "..") for part in parts):
        return "a relative path without '.', '..' and empty parts"
    if any(ord(char) < 0x20 or ord(char) == 0x7F or char == "\\" for char in path):
        return "a path without control characters and backslashes"
    if max(sizes) > PART_MAX_BYTES or sum(sizes) + len(parts) - 1 > PATH_MAX_BYTES:
        return f"a path of at most {PATH_MAX_BYTES} bytes, and {PART_MAX_BYTES} in each part"
    return None


def _clashes(paths: Sequence[str], writable: Sequence[str]) -> Iterator[str]:
    """Paths that come twice, or would be a file and a directory at once."""
    files: set[str] = set()
    for path in paths:
        if path in files:
            yield f"{path!r}: expected once, received twice"
        files.add(path)
    directories = {*writable, *(str(parent) for path in [*paths, *writable] for parent in PurePosixPath(path).parents)}
    for path in sorted(files & directories):
        yield f"{path!r}: expected a file or a directory, received both"
    inside = set(writable)
    for path in paths:
        if inside.intersection(str(parent) for parent in PurePosixPath(path).parents):
            yield f"{path!r}: what is in a writable directory is not part of a package"


# -- verifying --------------------------------------------------------------------------------------------
def checksum_problems(deployment: Deployment) -> list[str]:
    """What is wrong with the files of the packages that should run, by their manifests."""
    return [problem for model in deployment.models for problem in verify_package(Path(model.package))]


def verify_package(directory: Path) -> list[str]:
    """Every file that is not what the package's manifest says. A package without one has nothing to differ from."""
    try:
        manifest = read_manifest(directory)
    except ConfigError as error:
        return list(error.problems)
    if manifest is None:
        return []
    directory = directory.absolute()
    problems = [
        f"{directory / MANIFEST_FILE}: {what}: expected {there}, which is the directory, received {said}"
        for what, there, said in (
            ("name", directory.parent.name, manifest.name),
            ("version", directory.name, manifest.version),
        )
        if there != said
    ]
    listing = list_files(directory, manifest.writable)
    problems += listing.problems
    there = set(listing.files)
    for file in manifest.files:
        if file.path in there:
            problem = _file_problem(directory / file.path, file)
        else:
            problem = f"{directory / file.path}: expected a file of {file.size_bytes} bytes, found none"
        if problem:
            problems.append(problem)
    for path in sorted(there.difference(file.path for file in manifest.files)):
        problems.append(f"{directory / path}: expected no such file, because {MANIFEST_FILE} does not name it")
    for path in manifest.writable:
        if not (directory / path).is_dir():
            problems.append(f"{directory / path}: expected a directory, found none")
    return problems


def _file_problem(path: Path, expected: ManifestFile) -> str | None:
    try:
        with open_regular(path) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes != expected.size_bytes:
                return f"{path}: size: expected {expected.size_bytes} bytes, received {size_bytes}"
            sha256 = _sha256(file)
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    if sha256 != expected.sha256:
        return f"{path}: sha256: expected {expected.sha256}, received {sha256}"
    return None


def first_difference(there: Manifest, other: Manifest) -> str | None:
    """The first file, by path, in which two manifests of one version differ, in words; None if they do not."""
    ours = {file.path: file for file in there.files}
    theirs = {file.path: file for file in other.files}
    for path in sorted(ours.keys() | theirs.keys()):
        one, two = ours.get(path), theirs.get(path)
        if one is None:
            return f"{path} is new"
        if two is None:
            return f"{path} is missing"
        if one != two:
            return f"{path} has sha256 {one.sha256} there and {two.sha256} here"
    if there.writable != other.writable:
        return f"writable directories are {list(there.writable)} there and {list(other.writable)} here"
    return None


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading. Raises `OSError` for anything else, a link too, and never waits for a pipe."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(0, f"expected a file, received {_kind(mode)}")
    return os.fdopen(descriptor, "rb")


def _sha256(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()
