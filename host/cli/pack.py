"""`modelhost pack`: one archive of a package, with the checksums of all its files."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import click

from host.protocol.errors import ConfigError

if TYPE_CHECKING:
    from host.manifest import Manifest

_SUFFIX: Final = ".tar"
_MODE: Final = 0o644


@click.command("pack")
@click.argument("package_directory", metavar="PACKAGE")
@click.option(
    "-o", "--output", metavar="FILE", help="archive to write, or a directory for it (default: ./NAME-VERSION.tar)"
)
@click.option("--force", is_flag=True, help="overwrite an archive that has other content")
@click.option("--json", "as_json", is_flag=True, help="write a JSON document")
def command(package_directory: str, output: str | None, force: bool, as_json: bool) -> None:
    """Check PACKAGE (a directory NAME/VERSION) and write it into one archive, for `modelhost add` on other hosts.

    The archive begins with manifest.json, which has the size and SHA-256 of every file, and is the same to the byte
    whenever the content is. Left out, and said so: hidden files, __pycache__, and what is in the directories of
    sandbox.writable. Links and anything else that is no file are refused.
    """
    from host.archive import write_archive
    from host.cli.check import check_package
    from host.cli.printing import print_json, size_text
    from host.manifest import list_files, make_manifest, writable_in
    from host.protocol.package import read_package

    directory = Path(package_directory).absolute()
    package = read_package(directory)
    problems = check_package(directory)
    if problems:
        raise ConfigError(*problems)
    listing = list_files(directory, writable_in(package))
    manifest = make_manifest(directory, package, listing)
    target = _target(output, manifest)
    with _replacing(target, force=force) as file:
        write_archive(file, directory, manifest)
    size_bytes, sha256 = target.stat().st_size, _sha256(target)
    if as_json:
        print_json(
            {
                "archive": str(target),
                "model": manifest.name,
                "version": manifest.version,
                "files": len(manifest.files),
                "size_bytes": size_bytes,
                "sha256": sha256,
                "left_out": listing.left_out,
            }
        )
        return
    for path in listing.left_out:
        click.echo(f"left out: {path}", err=True)
    files = f"{len(manifest.files)} file{'' if len(manifest.files) == 1 else 's'}"
    click.echo(f"{target}: {manifest.name} version {manifest.version}, {files}, {size_text(size_bytes)}")
    click.echo(f"sha256: {sha256}")


def _target(output: str | None, manifest: Manifest) -> Path:
    name = f"{manifest.name}-{manifest.version}{_SUFFIX}"
    target = Path(output or name).absolute()
    return target / name if target.is_dir() else target


@contextmanager
def _replacing(target: Path, *, force: bool) -> Iterator[BinaryIO]:
    """Write a file that gets its name when it is whole. Raises `ConfigError` if one with other content has it."""
    try:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        written = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fchmod(descriptor, _MODE)
                os.fsync(descriptor)
            _name(written, target, force=force)
        finally:
            written.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written: {error.strerror or error}") from error


def _name(written: Path, target: Path, *, force: bool) -> None:
    """Give a written file its name, which nothing else may have."""
    if force:
        written.replace(target)
        return
    try:
        target.hardlink_to(written)
    except FileExistsError:
        if not target.is_file() or _sha256(target) != _sha256(written):
            raise ConfigError(f"{target}: expected nothing there, or the same content; --force overwrites it") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
