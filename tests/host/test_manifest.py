"""Manifests: what a package is made of, and whether its files still are that."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
from archives import manifest_of, write_doubling
from hypothesis import given
from hypothesis import strategies as st

from host.config.deployment import load_deployment
from host.manifest import (
    FILES_MAX,
    MANIFEST_FILE,
    MANIFEST_MAX_BYTES,
    PART_MAX_BYTES,
    PATH_MAX_BYTES,
    Manifest,
    ManifestFile,
    checksum_problems,
    encode_manifest,
    first_difference,
    list_files,
    parse_manifest,
    path_problem,
    read_manifest,
    verify_package,
)
from host.protocol.errors import ConfigError

HASH = "0" * 64


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Give a package with its manifest."""
    directory = write_doubling(tmp_path / "r", files={"data/table.bin": b"\0\1\2", "empty": b""})
    (directory / MANIFEST_FILE).write_bytes(encode_manifest(manifest_of(directory)))
    return directory


def document(**changes: Any) -> bytes:
    file = {"path": "a", "size_bytes": 1, "sha256": HASH}
    return json.dumps({"format": 1, "name": "m", "version": "1", "files": [file], **changes}).encode()


# -- verification -----------------------------------------------------------------------------------------
def test_a_package_that_is_as_its_manifest_says_has_no_problem(package: Path) -> None:
    assert verify_package(package) == []
    assert read_manifest(package) == manifest_of(package)


def test_a_package_without_a_manifest_has_nothing_to_differ_from(tmp_path: Path) -> None:
    assert verify_package(write_doubling(tmp_path)) == []


def test_each_difference_is_named_with_what_was_expected_and_received(package: Path) -> None:
    (package / "data" / "table.bin").write_bytes(b"\0\1\3")
    (package / "model.py").write_text("shorter")
    (package / "empty").unlink()
    (package / "more").write_text("more")
    problems = verify_package(package)
    assert [problem.partition(": ")[0].removeprefix(f"{package}/") for problem in problems] == [
        "data/table.bin", "empty", "model.py", "more",
    ]  # fmt: skip
    assert "sha256: expected ae4b3280e56e2faf83f414a6e3dabe9d5fbe18976544c05fed121accb85b53fc, received " in problems[0]
    assert problems[1].endswith("expected a file of 0 bytes, found none")
    assert problems[2].endswith(f"size: expected {manifest_size(package, 'model.py')} bytes, received 7")
    assert problems[3].endswith("expected no such file, because manifest.json does not name it")


def manifest_size(package: Path, path: str) -> int:
    manifest = read_manifest(package)
    assert manifest is not None
    return next(file.size_bytes for file in manifest.files if file.path == path)


def test_what_pack_leaves_out_is_not_looked_at(package: Path) -> None:
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "model.pyc").write_bytes(b"code")
    (package / ".nfs000").write_bytes(b"")
    assert verify_package(package) == []


def test_a_file_that_became_a_link_is_refused_even_to_the_same_content(package: Path, tmp_path: Path) -> None:
    (package / "data" / "table.bin").rename(tmp_path / "elsewhere")
    (package / "data" / "table.bin").symlink_to(tmp_path / "elsewhere")
    assert any(
        "table.bin: expected a file or a directory, received a symbolic link" in p for p in verify_package(package)
    )


def test_a_copy_under_another_version_is_another_package(package: Path) -> None:
    package.rename(package.with_name("2"))
    [problem] = verify_package(package.with_name("2"))
    assert problem.endswith("manifest.json: version: expected 2, which is the directory, received 1")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1}', b"\xff", b'{"format": "1"}'])
def test_a_manifest_that_is_none_is_a_problem(package: Path, content: bytes) -> None:
    (package / MANIFEST_FILE).write_bytes(content)
    [problem] = verify_package(package)
    assert problem.startswith(f"{package / MANIFEST_FILE}: not a manifest as modelhost pack writes it")


def test_a_manifest_that_is_no_file_is_a_problem_and_waits_for_nobody(package: Path) -> None:
    (package / MANIFEST_FILE).unlink()
    os.mkfifo(package / MANIFEST_FILE)
    [problem] = verify_package(package)
    assert problem.endswith("manifest.json: cannot be read: expected a file, received a named pipe")


def test_writable_directories_are_there_and_their_content_is_not_part_of_the_package(package: Path) -> None:
    with (package / "model.toml").open("a") as file:
        file.write('[sandbox]\nwritable = ["cache/it", "/var/shared"]\n')
    (package / MANIFEST_FILE).unlink()
    (package / "cache" / "it").mkdir(parents=True)
    (package / "cache" / "it" / "state").write_text("1")
    manifest = manifest_of(package)
    assert manifest.writable == ("cache/it",)
    assert "cache/it/state" not in [file.path for file in manifest.files]
    (package / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
    (package / "cache" / "it" / "state").write_text("two")
    assert verify_package(package) == []
    (package / "cache" / "it" / "state").unlink()
    (package / "cache" / "it").rmdir()
    assert verify_package(package) == [f"{package}/cache/it: expected a directory, found none"]


def test_a_deployment_has_the_problems_of_its_packages(package: Path, tmp_path: Path) -> None:
    write_doubling(tmp_path / "r", "other")
    deployment = load_deployment(tmp_path / "r", None, tmp_path / "environments")
    assert checksum_problems(deployment) == []
    (package / "empty").write_bytes(b"x")
    assert checksum_problems(deployment) == [f"{package}/empty: size: expected 0 bytes, received 1"]


# -- what a package is made of ----------------------------------------------------------------------------
def test_links_sockets_and_pipes_are_refused_all_at_once(tmp_path: Path) -> None:
    directory = write_doubling(tmp_path / "r")
    (directory / "link").symlink_to("model.py")
    (directory / "up").symlink_to("..")
    os.mkfifo(directory / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        here = Path.cwd()
        os.chdir(directory)
        sock.bind("socket")
        os.chdir(here)
        with pytest.raises(ConfigError) as caught:
            manifest_of(directory)
    assert caught.value.problems == (
        f"{directory}/link: expected a file or a directory, received a symbolic link",
        f"{directory}/pipe: expected a file or a directory, received a named pipe",
        f"{directory}/socket: expected a file or a directory, received a socket",
        f"{directory}/up: expected a file or a directory, received a symbolic link",
    )


@pytest.mark.parametrize("where", [".hidden", ".d/model.bin", "__pycache__/model.bin", "cache/model.bin"])
def test_an_artifact_that_would_be_left_out_is_refused(tmp_path: Path, where: str) -> None:
    directory = write_doubling(tmp_path / "r", files={where: b"model"})
    text = (directory / "model.toml").read_text()
    (directory / "model.toml").write_text(f'artifact = "{where}"\n{text}[sandbox]\nwritable = ["cache"]\n')
    (directory / "cache").mkdir(exist_ok=True)
    with pytest.raises(ConfigError, match="artifact: expected a file that is part of the package, received"):
        manifest_of(directory)


@pytest.mark.parametrize("writable", [".", "../other", "a/../b"])
def test_a_writable_directory_that_is_not_within_the_package_is_refused(tmp_path: Path, writable: str) -> None:
    directory = write_doubling(tmp_path / "r")
    with (directory / "model.toml").open("a") as file:
        file.write(f'[sandbox]\nwritable = ["{writable}"]\n')
    with pytest.raises(ConfigError):
        manifest_of(directory)


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    directory = write_doubling(tmp_path / "r")
    (directory / "line\nbreak").write_text("")
    with pytest.raises(ConfigError, match="without control characters"):
        manifest_of(directory)
    (directory / "line\nbreak").unlink()
    Path(os.fsdecode(os.fsencode(directory) + b"/\xff")).write_text("")
    with pytest.raises(ConfigError, match="a path in UTF-8"):
        manifest_of(directory)
    Path(os.fsdecode(os.fsencode(directory) + b"/\xff")).rename(Path(os.fsdecode(os.fsencode(directory) + b"/.\xff")))
    assert list_files(directory, ()).left_out == [".\\udcff"]
    assert manifest_of(directory)


@pytest.mark.parametrize(("count", "refused"), [(FILES_MAX - 1, False), (FILES_MAX, False), (FILES_MAX + 1, True)])
def test_the_number_of_files_is_bounded(tmp_path: Path, count: int, refused: bool) -> None:
    for number in range(count):
        os.close(os.open(tmp_path / f"{number}", os.O_CREAT | os.O_WRONLY))
    listing = list_files(tmp_path, ())
    assert len(listing.files) == min(count, FILES_MAX)
    assert bool(listing.problems) is refused
    text = msgspec.json.encode(Manifest(1, "m", "1", tuple(ManifestFile(f"{n}", 0, HASH) for n in range(count))))
    if refused:
        with pytest.raises(ConfigError, match=f"files: expected at most {FILES_MAX}, received {count}"):
            parse_manifest(text, "here")
    else:
        assert len(parse_manifest(text, "here").files) == count


# -- the file ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format": 2}, "format: expected 1, received 2"),
        ({"format": 0}, "format: expected 1, received 0"),
        ({"name": "../up"}, "model name: expected letters"),
        ({"name": "stats"}, "reserved"),
        ({"version": ""}, "model version: expected letters"),
        ({"more": 1}, "unknown field"),
        ({"files": [{"path": "a", "size_bytes": -1, "sha256": HASH}]}, ">= 0"),
        ({"files": [{"path": "a", "size_bytes": 1 << 63, "sha256": HASH}]}, "not a manifest"),
        ({"files": [{"path": "a", "size_bytes": 0, "sha256": HASH[1:]}]}, "regex"),
        ({"files": [{"path": "a", "size_bytes": 0, "sha256": "A" * 64}]}, "regex"),
        ({"files": [{"path": "a", "size_bytes": 0, "sha256": HASH + "\n"}]}, "regex"),
        ({"writable": ["../x"]}, "without '.', '..'"),
        ({"writable": ["a"]}, "'a': expected a file or a directory, received both"),
        ({"writable": ["a/b"]}, "'a': expected a file or a directory, received both"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_manifest(document(**changes), "here")
    assert problem in str(caught.value)
    assert all(line.startswith("here: ") for line in caught.value.problems)


@pytest.mark.parametrize(
    ("paths", "problem"),
    [
        (["/etc/passwd"], "relative path"),
        (["../a"], "relative path"),
        (["a/../../b"], "relative path"),
        (["a//b"], "relative path"),
        (["./a"], "relative path"),
        (["a/"], "relative path"),
        ([""], "relative path"),
        (["a\nb"], "control characters"),
        (["a\\b"], "backslashes"),
        (["a\0b"], "control characters"),
        ([".hidden"], "hidden files"),
        (["a/.git/b"], "hidden files"),
        (["__pycache__/a.pyc"], "hidden files"),
        (["manifest.json"], "does not name itself"),
        (["a", "a"], "expected once, received twice"),
        (["a", "a/b"], "received both"),
    ],
)
def test_a_path_that_cannot_be_in_a_package_is_refused(paths: list[str], problem: str) -> None:
    files = [{"path": path, "size_bytes": 0, "sha256": HASH} for path in paths]
    with pytest.raises(ConfigError) as caught:
        parse_manifest(document(files=files), "here")
    assert problem in str(caught.value)


def test_a_manifest_may_be_elsewhere_than_at_the_top() -> None:
    files = [{"path": "data/manifest.json", "size_bytes": 0, "sha256": HASH}]
    assert parse_manifest(document(files=files), "here").files[0].path == "data/manifest.json"


def test_paths_are_bounded() -> None:
    part = "p" * PART_MAX_BYTES
    longest = "/".join([part, part, part, "p" * 200, "p" * (PATH_MAX_BYTES - 3 * (PART_MAX_BYTES + 1) - 201)])
    assert len(longest) == PATH_MAX_BYTES
    assert path_problem(longest) is None
    assert path_problem("p") is None
    for path in (f"{longest}p", f"{part}p", "é" * (PART_MAX_BYTES // 2 + 1)):
        assert "at most" in (path_problem(path) or "")


def test_the_size_of_a_manifest_is_bounded() -> None:
    text = document()
    assert parse_manifest(text + b" " * (MANIFEST_MAX_BYTES - len(text)), "here")
    with pytest.raises(ConfigError, match="at most"):
        parse_manifest(text + b" " * (MANIFEST_MAX_BYTES - len(text) + 1), "here")


@given(st.binary(max_size=200))
def test_no_bytes_make_anything_but_a_manifest_or_its_refusal(content: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_manifest(content, "here")


# -- differences ------------------------------------------------------------------------------------------
def test_the_first_difference_is_named() -> None:
    def manifest(*files: tuple[str, str], writable: tuple[str, ...] = ()) -> Manifest:
        return Manifest(1, "m", "1", tuple(ManifestFile(path, 1, digit * 64) for path, digit in files), writable)

    there = manifest(("a", "1"), ("b", "2"))
    assert first_difference(there, there) is None
    assert first_difference(there, manifest(("b", "2"), ("a", "1"))) is None
    one, two = "2" * 64, "3" * 64
    assert first_difference(there, manifest(("a", "1"), ("b", "3"))) == f"b has sha256 {one} there and {two} here"
    assert first_difference(there, manifest(("b", "3"))) == "a is missing"
    assert first_difference(there, manifest(("A", "1"), ("a", "1"), ("b", "2"))) == "A is new"
    assert "writable" in (first_difference(there, manifest(("a", "1"), ("b", "2"), writable=("c",))) or "")
