"""Archives: the same bytes for the same content, and nothing but what their manifest says comes out of them."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
import tempfile
import tracemalloc
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import pytest
from archives import entry, forged, manifest, manifest_of, packed, write_doubling
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from host.archive import open_archive, write_archive
from host.manifest import FILES_MAX, MANIFEST_FILE, Manifest, encode_manifest, parse_manifest, verify_package
from host.protocol.errors import ConfigError

LIMIT = 1 << 30
PARTS = st.text(
    st.characters(codec="utf-8", categories=("L", "N", "Zs", "Sm"), include_characters="-_."), min_size=1, max_size=12
).filter(lambda part: not part.startswith(".") and part != "__pycache__" and len(part.encode()) < 100)
FILES = st.dictionaries(st.lists(PARTS, min_size=1, max_size=3).map("/".join), st.binary(max_size=2000), max_size=6)


def unpack(file: BinaryIO, target: Path, limit_bytes: int = LIMIT) -> Manifest:
    with open_archive(file, limit_bytes) as archive:
        archive.unpack(target)
        return archive.manifest


def refused(file: BinaryIO, limit_bytes: int = LIMIT) -> str:
    """Why an archive is refused."""
    with tempfile.TemporaryDirectory() as work:
        target = Path(work) / "m" / "1"
        target.parent.mkdir()
        with pytest.raises(ConfigError) as caught:
            unpack(file, target, limit_bytes)
    return str(caught.value)


def content_of(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != MANIFEST_FILE
    }


# -- there and back ---------------------------------------------------------------------------------------
@given(files=FILES, squeezed=st.booleans())
@settings(max_examples=60)
def test_what_was_packed_comes_out_as_it_was(files: dict[str, bytes], squeezed: bool) -> None:
    parents = {str(parent) for path in files for parent in Path(path).parents}
    assume(not parents & files.keys() and not {"model.toml", "model.py", MANIFEST_FILE} & (files.keys() | parents))
    with tempfile.TemporaryDirectory() as work:
        directory = write_doubling(Path(work) / "here", files=files)
        content = packed(directory)
        (directory / ".hidden").write_text("not part of it")
        os.utime(directory / "model.py", (1, 1))
        assert packed(directory) == content
        there = Path(work) / "there" / "doubles" / "1"
        there.parent.mkdir(parents=True)
        received = unpack(io.BytesIO(gzip.compress(content) if squeezed else content), there)
        assert received == manifest_of(directory)
        (directory / ".hidden").unlink()
        assert content_of(there) == content_of(directory)
        assert verify_package(there) == []
        assert packed(there) == content


def test_modes_are_those_that_every_user_may_read_whatever_the_umask(tmp_path: Path) -> None:
    directory = write_doubling(tmp_path / "here", files={"bin/tool": b"#!/bin/sh\n", "data/x": b"x"})
    (directory / "bin" / "tool").chmod(0o4700)
    (directory / "data" / "x").chmod(0o600)
    with (directory / "model.toml").open("a") as file:
        file.write('[sandbox]\nwritable = ["cache/of/it"]\n')
    content = packed(directory)
    before = os.umask(0o077)
    try:
        (tmp_path / "doubles").mkdir()
        unpack(io.BytesIO(content), tmp_path / "doubles" / "1")
    finally:
        os.umask(before)
    there = tmp_path / "doubles" / "1"
    modes = {str(path.relative_to(there)): stat.S_IMODE(path.stat().st_mode) for path in there.rglob("*")}
    assert modes.pop("bin/tool") == 0o555
    for path, mode in modes.items():
        assert mode == (0o755 if (there / path).is_dir() else 0o444), path
    assert stat.S_IMODE(there.stat().st_mode) == 0o755
    assert (there / "cache" / "of" / "it").is_dir()


def test_an_archive_names_no_owner_and_no_time(tmp_path: Path) -> None:
    content = packed(write_doubling(tmp_path))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == [MANIFEST_FILE, "model.py", "model.toml"]
    assert {(member.uid, member.gid, member.uname, member.gname, member.mtime) for member in members} == {
        (0, 0, "", "", 0)
    }


@pytest.mark.parametrize("change", ["content", "shorter", "longer", "gone"])
def test_a_file_that_changes_while_it_is_packed_is_noticed(tmp_path: Path, change: str) -> None:
    directory = write_doubling(tmp_path, files={"data": b"12345"})
    known = manifest_of(directory)
    if change == "gone":
        (directory / "data").unlink()
    else:
        (directory / "data").write_bytes({"content": b"12346", "shorter": b"1234", "longer": b"123456"}[change])
    with pytest.raises(ConfigError, match=r"data: (has changed while it was packed|cannot be read)"):
        write_archive(io.BytesIO(), directory, known)


# -- what is refused --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"\x1f\x8b",
        b"no archive" * 1000,
        gzip.compress(b"", mtime=0),  # the time would be in the name of the test
        gzip.compress(b"no archive" * 1000, mtime=0),
        bytes(10240),
    ],
)
def test_what_is_no_archive_is_refused(content: bytes) -> None:
    assert refused(io.BytesIO(content)).startswith(("not a whole archive", "expected manifest.json as the first entry"))


def test_the_manifest_comes_first() -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        tar.addfile(*map_entry(entry("model.toml", b"x")))
    target.seek(0)
    assert refused(target).endswith("as modelhost pack writes it, received 'model.toml'")


def map_entry(pair: tuple[tarfile.TarInfo, bytes]) -> tuple[tarfile.TarInfo, BinaryIO]:
    return pair[0], io.BytesIO(pair[1])


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE])
def test_a_manifest_that_is_no_file_is_refused(kind: bytes) -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        tar.addfile(entry(MANIFEST_FILE, kind=kind, linkname="/etc/passwd")[0])
    target.seek(0)
    assert "expected manifest.json as the first entry" in refused(target)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.DIRTYPE, "directory"),
        (tarfile.FIFOTYPE, "named pipe"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.CONTTYPE, "entry of type"),
        (tarfile.GNUTYPE_SPARSE, "sparse file"),
    ],
)
def test_only_files_come_out(kind: bytes, name: str) -> None:
    why = refused(forged(manifest({"a": b""}), [entry("a", kind=kind, linkname="/etc/passwd")]))
    assert why.startswith(f"'a': expected a file, received a {name}")


@pytest.mark.parametrize("path", ["/a", "../a", "a/../../b", "./a", "b", "manifest.json", "a/", "A"])
def test_only_what_the_manifest_names_comes_out(path: str) -> None:
    why = refused(forged(manifest({"a": b""}), [entry(path)]))
    assert why == f"{path.rstrip('/')!r}: expected only what manifest.json names" or path == "a/"


@pytest.mark.parametrize("path", ["/a", "../a", "a/../../b", "./a"])
def test_a_manifest_with_a_path_that_leads_elsewhere_is_refused(path: str) -> None:
    assert "relative path" in refused(forged(manifest({path: b""}), [entry(path)]))


def test_a_file_that_comes_twice_is_refused() -> None:
    assert refused(forged(manifest({"a": b"1"}), [entry("a", b"1"), entry("a", b"1")])).endswith("received twice")


def test_files_that_do_not_come_are_named() -> None:
    files = {"a": b"1", "b": b"2", "c": b"3"}
    assert refused(forged(manifest(files), [entry("c", b"3")])).startswith("a: expected a file")
    assert refused(forged(manifest(files), [])).endswith("found none, and 2 more")


@pytest.mark.parametrize(
    ("content", "problem"), [(b"12", "size"), (b"", "size"), (b"1234", "size"), (b"321", "sha256")]
)
def test_a_file_of_another_size_or_content_is_refused(content: bytes, problem: str) -> None:
    assert refused(forged(manifest({"a": b"123"}), [entry("a", content)])).startswith(f"a: {problem}: expected ")


def test_a_name_that_tar_cannot_tell_from_another_is_refused(tmp_path: Path) -> None:
    """PAX says one name and the old header another: the manifest's is looked for under the one that tar reads."""
    header, data = entry("a", b"1")
    header.pax_headers = {"path": "../a"}
    assert refused(forged(manifest({"a": b"1"}), [(header, data)])) == "'../a': expected only what manifest.json names"


@pytest.mark.parametrize(("limit", "is_refused"), [(0, True), (1, True), (4, True), (5, False), (6, False)])
def test_the_unpacked_size_is_bounded_before_anything_is_written(tmp_path: Path, limit: int, is_refused: bool) -> None:
    file = forged(manifest({"a": b"12", "b": b"345"}), [entry("a", b"12"), entry("b", b"345")])
    if is_refused:
        with pytest.raises(ConfigError, match=rf"at most {limit} bytes in all \(max_package_bytes\), received 5"):
            unpack(file, tmp_path / "1", limit)
        assert not (tmp_path / "1").exists()
    else:
        unpack(file, tmp_path / "1", limit)


def test_an_empty_package_of_files_without_content_needs_no_room(tmp_path: Path) -> None:
    unpack(forged(manifest({"a": b""}), [entry("a")]), tmp_path / "1", 0)
    assert (tmp_path / "1" / "a").read_bytes() == b""


def test_too_many_files_are_refused_before_the_first() -> None:
    files = {f"{number}": b"" for number in range(FILES_MAX + 1)}
    assert f"files: expected at most {FILES_MAX}" in refused(forged(manifest(files), [entry("0")]))


# -- bombs: what would take memory or time --------------------------------------------------------------
def raw_header(size: int, kind: bytes, name: bytes = b"x") -> bytes:
    """A header as no library would write it."""
    header = bytearray(512)
    header[: len(name)] = name
    header[100:108] = b"0000644\0"
    header[124:136] = b"%011o\0" % size if 0 <= size < 8 << 30 else b"\x80\0\0\0" + struct.pack(">q", size)
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def after_manifest(content: bytes, files: Mapping[str, bytes] | None = None) -> bytes:
    """An archive that goes on in its own way behind the manifest."""
    text = encode_manifest(manifest(files or {"a": b"1"}))
    return raw_header(len(text), b"0", b"manifest.json") + text + bytes(-len(text) % 512) + content


BOMBS: dict[str, Iterable[bytes]] = {
    "a header of 4 GiB": [raw_header(4 << 30, b"x")],
    "a long name of 4 GiB": [raw_header(4 << 30, b"L")],
    "a header of 8 EiB": [raw_header((1 << 63) - 1, b"x")],
    "a header of less than nothing": [raw_header(-1024, b"x")],
    "a file of less than nothing": [raw_header(-1024, b"0", b"a")],
    "a header in which many follow": [raw_header(0, b"x")] * 100_000,
    "a global header with a bad number": [raw_header(512, b"g"), b"99999999999999999 a=b\n".ljust(512, b"\0")],
    "a sparse file that says too much": [
        raw_header(512, b"x"),
        b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n29 GNU.sparse.realsize=99999\n".ljust(512, b"\0"),
        raw_header(1 << 30, b"0", b"a"),
        b"1000000000\n".ljust(512, b"1"),
        *([b"1\n" * 256] * 4000),
    ],
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("squeezed", [False, True])
def test_a_header_gets_no_more_than_a_header_needs(bomb: str, squeezed: bool) -> None:
    content = after_manifest(b"".join(BOMBS[bomb]) + bytes(1024))
    if squeezed:
        content = gzip.compress(content + bytes(64 << 20), 1)
    file = io.BytesIO(content)
    tracemalloc.start()
    try:
        assert refused(file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_a_gibibyte_of_nothing_is_not_unpacked() -> None:
    head = after_manifest(raw_header(1 << 30, b"0", b"a"), {"a": b"1"})
    pieces = io.BytesIO()
    with gzip.GzipFile(fileobj=pieces, mode="wb", compresslevel=1) as file:
        file.write(head)
        for _ in range(64):
            file.write(bytes(1 << 20))
    pieces.seek(0)
    assert refused(pieces) == f"a: size: expected 1 bytes, received {1 << 30}"


def test_a_manifest_of_a_gibibyte_is_not_read() -> None:
    assert refused(io.BytesIO(raw_header(1 << 30, b"0", b"manifest.json"))).startswith(
        "manifest.json: expected at most"
    )


# -- damage -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Give an archive with a file of two blocks, a path in a PAX header and a program."""
    directory = write_doubling(
        tmp_path_factory.mktemp("r"), files={"table.bin": bytes(range(256)) * 3, "d" * 120 + "/ü": b"x"}
    )
    return packed(directory)


@given(data=st.data())
@settings(max_examples=150)
def test_a_damaged_archive_is_refused_or_gives_what_its_manifest_says(whole: bytes, data: st.DataObject) -> None:
    squeezed = data.draw(st.booleans())
    content = bytearray(gzip.compress(whole, mtime=0) if squeezed else whole)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "doubles").mkdir()
        target = Path(work) / "doubles" / "1"
        try:
            received = unpack(io.BytesIO(bytes(content)), target)
        except ConfigError:
            return
        assert received == parse_manifest((target / MANIFEST_FILE).read_bytes(), "here")
        if (received.name, received.version) == ("doubles", "1"):
            assert verify_package(target) == []
        assert {path.name for path in Path(work).rglob("*")} >= {"doubles", "1"}


def test_an_archive_that_was_cut_is_refused_wherever_it_was(whole: bytes, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + 512 * -(-last.size // 512)
    for size in [*range(0, end, 97), end - 1]:
        assert refused(io.BytesIO(whole[:size]))
    # All that may be missing is the mark of the end.
    unpack(io.BytesIO(whole[:end]), tmp_path / "1")
