"""Archives on the controller, and what a SHA256SUMS says of those that are elsewhere."""

from __future__ import annotations

import gzip
import hashlib
import tracemalloc
from pathlib import Path

import pytest
from archives import packed, write_doubling

from host.archive import open_archive
from host.fleet import packages
from host.fleet.packages import PackageDirectory, PackagePrefix, open_packages, read_checksums
from host.protocol.errors import ConfigError


def put(directory: Path, name: str, version: str, *, squeezed: bool = False, called: str = "") -> Path:
    """Pack a package into a directory of archives."""
    source = write_doubling(
        directory / ".source" / (called or f"{name}-{version}-{squeezed}"), name, version, {"big": bytes(300_000)}
    )
    content = packed(source)
    path = directory / (called or f"{name}-{version}.tar{'.gz' if squeezed else ''}")
    path.write_bytes(gzip.compress(content) if squeezed else content)
    return path


@pytest.mark.parametrize("squeezed", [False, True])
def test_an_archive_is_read_where_it_is(tmp_path: Path, squeezed: bool) -> None:
    path = put(tmp_path, "two-words", "2024-05", squeezed=squeezed)
    found = PackageDirectory(tmp_path).find("two-words", "2024-05")
    assert found is not None
    assert found.file == str(path)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.content is not None
    assert found.content.resources.memory_bytes == 512 << 20
    assert found.content.limits.retry


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    put(tmp_path, "churn", "3")
    directory = PackageDirectory(tmp_path)
    assert directory.find("churn", "4") is None
    assert directory.find("digits", "3") is None
    assert directory.versions() == {"churn": ("3",)}


def test_two_archives_of_one_version_are_a_problem(tmp_path: Path) -> None:
    put(tmp_path, "churn", "3")
    put(tmp_path, "churn", "3", squeezed=True)
    with pytest.raises(ConfigError, match=r"expected one archive of churn version 3, found churn-3.tar.gz too"):
        PackageDirectory(tmp_path).find("churn", "3")


def test_an_archive_of_something_else_is_a_problem(tmp_path: Path) -> None:
    put(tmp_path, "churn", "3", called="churn-4.tar")
    with pytest.raises(ConfigError) as caught:
        PackageDirectory(tmp_path).find("churn", "4")
    assert "expected a package of churn version 4, as its name says, received one of churn version 3" in str(
        caught.value
    )


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8bno gzip", bytes(1024)])
def test_what_is_no_archive_is_a_problem_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "churn-3.tar").write_bytes(content)
    with pytest.raises(ConfigError, match=r"churn-3\.tar: "):
        PackageDirectory(tmp_path).find("churn", "3")


def test_a_directory_or_a_pipe_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "churn-3.tar").mkdir()
    with pytest.raises(ConfigError, match="expected a file, received a directory"):
        PackageDirectory(tmp_path).find("churn", "3")


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="modelhost_packages: expected a directory of archives"):
        PackageDirectory(tmp_path / "missing")


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_so_many_files_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(packages, "FILES_MAX", 2)
    for number in range(count):
        (tmp_path / f"m-{number}.tar").touch()
    if count <= 2:
        PackageDirectory(tmp_path)
    else:
        with pytest.raises(ConfigError, match="expected at most 2 files, found more"):
            PackageDirectory(tmp_path)


def test_a_changed_model_file_is_found(tmp_path: Path) -> None:
    path = put(tmp_path, "churn", "3")
    content = path.read_bytes()
    path.write_bytes(content.replace(b'runtime = "python"', b'runtime = "pythom"'))
    with pytest.raises(ConfigError, match=r"model\.toml: sha256: expected"):
        PackageDirectory(tmp_path).find("churn", "3")


@pytest.mark.parametrize("squeezed", [False, True])
def test_a_text_out_of_a_large_archive_takes_little_memory(tmp_path: Path, squeezed: bool) -> None:
    source = write_doubling(tmp_path / "source", files={"a-large-one": bytes(30 << 20)})
    path = tmp_path / "doubles-1.tar"
    path.write_bytes(gzip.compress(packed(source), 1) if squeezed else packed(source))
    tracemalloc.start()
    try:
        with path.open("rb") as file, open_archive(file, 1 << 30) as archive:
            assert "python" in archive.read_text("model.toml", 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("path", "limit", "expected"), [("none", 99, "names none"), ("model.toml", 9, "at most 9 bytes")]
)
def test_a_text_that_is_not_there_or_too_large(tmp_path: Path, path: str, limit: int, expected: str) -> None:
    path_of_archive = put(tmp_path, "churn", "3")
    with (
        pytest.raises(ConfigError, match=expected),
        path_of_archive.open("rb") as file,
        open_archive(file, 1 << 30) as archive,
    ):
        archive.read_text(path, limit)


# -- elsewhere --------------------------------------------------------------------------------------------
SUM = "ab" * 32


def test_a_prefix_with_checksums(tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text(f"{SUM}  churn-3.tar\n{SUM.upper()} *./digits-1.tar.gz\n\n")
    prefix = open_packages("s3://bucket/models/", "SHA256SUMS", tmp_path)
    found = prefix.find("digits", "1")
    assert found is not None
    assert (found.uri, found.sha256, found.content) == ("s3://bucket/models/digits-1.tar.gz", SUM, None)
    assert prefix.find("digits", "2") is None
    assert prefix.versions() == {"churn": ("3",), "digits": ("1",)}


def test_a_prefix_wants_checksums(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"modelhost_packages_checksums: expected a SHA256SUMS file .* found none"):
        open_packages("https://host/models", None, tmp_path)
    with pytest.raises(ConfigError, match=r"SHA256SUMS: cannot be read"):
        open_packages("https://host/models", "SHA256SUMS", tmp_path)


def test_a_prefix_shows_no_password(tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text(f"{SUM}  churn-3.tar\n")
    assert PackagePrefix("https://user:secret@host/models", tmp_path / "SHA256SUMS").where == "https://host/models"


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://user:secret@host/models", r"~/\.netrc of .*: https://host/models"),
        ("https://secret@host/models", r"~/\.netrc of .*: https://host/models"),
        ("s3://key:secret@bucket/models", r"as the AWS tools .*: s3://bucket/models"),
    ],
)
def test_a_prefix_with_a_password_is_refused(tmp_path: Path, location: str, expected: str) -> None:
    with pytest.raises(
        ConfigError, match=f"modelhost_packages: expected a URI without user and password.*{expected}"
    ) as told:
        open_packages(location, "SHA256SUMS", tmp_path)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("churn-3.tar\n", ":1: expected a line"),
        (f"\n{SUM} churn\n", ":2: expected"),
        (f"{SUM}  a\n{'0' * 64}  a", "received two"),
    ],
)
def test_what_is_no_list_of_checksums(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "SHA256SUMS").write_text(text)
    with pytest.raises(ConfigError, match=expected):
        read_checksums(tmp_path / "SHA256SUMS")


@pytest.mark.parametrize("excess", [0, 1])
def test_so_many_bytes_of_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, excess: int) -> None:
    line = f"{SUM}  churn-3.tar\n"
    (tmp_path / "SHA256SUMS").write_text(line)
    monkeypatch.setattr(packages, "CHECKSUMS_MAX_BYTES", len(line) - excess)
    if excess:
        with pytest.raises(ConfigError, match="bytes, received more"):
            read_checksums(tmp_path / "SHA256SUMS")
    else:
        assert read_checksums(tmp_path / "SHA256SUMS") == {"churn-3.tar": SUM}
