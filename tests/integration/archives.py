"""Archives for tests: packages packed in memory, and tar files that nobody packed."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from packages import write_package

from host.archive import write_archive
from host.manifest import FORMAT, Manifest, ManifestFile, encode_manifest, list_files, make_manifest, writable_in
from host.protocol.package import read_package

DOUBLES = """
class Model:
    def load(self, package):
        pass

    def predict(self, inputs):
        return {"y": inputs["x"] * 2}
"""


def write_doubling(
    repository: Path, name: str = "doubles", version: str = "1", files: Mapping[str, bytes] | None = None
) -> Path:
    """Write a package that doubles, with other files in it."""
    directory = write_package(
        repository, name, DOUBLES, inputs=[("x", "FP64", [-1, 1])], outputs=[("y", "FP64", [-1, 1])]
    )
    directory = directory.rename(directory.with_name(version)) if version != "1" else directory
    for path, content in (files or {}).items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content)
    return directory


def manifest_of(directory: Path) -> Manifest:
    """What `modelhost pack` would write of a package."""
    package = read_package(directory)
    return make_manifest(directory, package, list_files(directory, writable_in(package)))


def packed(directory: Path) -> bytes:
    """A package's archive."""
    target = io.BytesIO()
    write_archive(target, directory, manifest_of(directory))
    return target.getvalue()


def supply(content: bytes) -> Callable[[BinaryIO], str]:
    """What `ModelRepository.add` fetches with."""

    def fetch(target: BinaryIO) -> str:
        target.write(content)
        return hashlib.sha256(content).hexdigest()

    return fetch


def manifest(files: Mapping[str, bytes], name: str = "m", version: str = "1", **others: object) -> Manifest:
    """A manifest of contents."""
    entries = tuple(
        ManifestFile(path, len(content), hashlib.sha256(content).hexdigest()) for path, content in files.items()
    )
    return Manifest(FORMAT, name, version, entries, **others)  # type: ignore[arg-type]


def entry(
    path: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object
) -> tuple[tarfile.TarInfo, bytes]:
    """One entry of a tar file; `fields` are those of its header."""
    header = tarfile.TarInfo(path)
    header.type = kind
    header.size = len(content)
    for field, value in fields.items():
        setattr(header, field, value)
    return header, content


def forged(first: Manifest | bytes, entries: Iterable[tuple[tarfile.TarInfo, bytes]]) -> io.BytesIO:
    """A tar file with a manifest and whatever else."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        content = first if isinstance(first, bytes) else encode_manifest(first)
        for header, data in [entry("manifest.json", content), *entries]:
            tar.addfile(header, io.BytesIO(data))
    target.seek(0)
    return target
