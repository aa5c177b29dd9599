"""The repository: versions come whole or not at all, never change, and go whole; a killed command leaves no trace."""

from __future__ import annotations

import io
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest
from archives import entry, forged, manifest, packed, supply, write_doubling

from host.config.deployment import model_directories, version_directories
from host.manifest import MANIFEST_FILE, verify_package
from host.protocol.errors import ConfigError, HostError
from host.protocol.package import read_package
from host.repository import Added, ModelRepository, freed_bytes
from host.retention import StoredVersion

LIMIT = 1 << 30


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    """Give a repository that is not there yet."""
    return ModelRepository(tmp_path / "repository")


def archive(tmp_path: Path, name: str = "doubles", version: str = "1", **files: bytes) -> bytes:
    """Pack a package."""
    here = tmp_path / f"packages{len(list(tmp_path.glob('packages*')))}"
    return packed(write_doubling(here, name, version, files))


def names(path: Path) -> list[str]:
    return sorted(one.name for one in path.iterdir() if one.name != ".lock")


def add(repository: ModelRepository, content: bytes, **options: str) -> Added:
    return repository.add(supply(content), LIMIT, **options)


def refused(repository: ModelRepository, content: bytes, limit_bytes: int = LIMIT) -> tuple[str, ...]:
    before = names(repository.root) if repository.root.exists() else []
    with pytest.raises(ConfigError) as caught:
        repository.add(supply(content), limit_bytes)
    assert names(repository.root) == before
    return caught.value.problems


# -- in ---------------------------------------------------------------------------------------------------
def test_an_added_package_is_whole_and_for_every_user_to_read(repository: ModelRepository, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        added = add(repository, archive(tmp_path, weights=b"1234"))
    finally:
        os.umask(before)
    directory = repository.root / "doubles" / "1"
    assert (added.name, added.version, added.directory, added.was_there) == ("doubles", "1", directory, False)
    assert read_package(directory).name == "doubles"
    assert verify_package(directory) == []
    assert names(repository.root) == ["doubles"]
    for path in (directory.parent, directory):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
    for path in directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert repository.versions() == [StoredVersion("doubles", "1", True)]


def test_another_version_stands_beside_the_first(repository: ModelRepository, tmp_path: Path) -> None:
    add(repository, archive(tmp_path, version="9"))
    add(repository, archive(tmp_path, version="10"))
    [model] = model_directories(repository.root)
    assert [path.name for path in version_directories(model)] == ["9", "10"]


def test_the_same_version_again_changes_nothing(repository: ModelRepository, tmp_path: Path) -> None:
    content = archive(tmp_path)
    add(repository, content)
    before = (repository.root / "doubles" / "1" / "model.py").stat()
    assert add(repository, content).was_there
    after = (repository.root / "doubles" / "1" / "model.py").stat()  # but for its last access: it was compared
    assert (after.st_ino, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )
    assert names(repository.root) == ["doubles"]


def test_the_same_version_with_other_content_is_refused_by_its_first_difference(
    repository: ModelRepository, tmp_path: Path
) -> None:
    add(repository, archive(tmp_path, a=b"1", b=b"1"))
    [problem] = refused(repository, archive(tmp_path, a=b"1", b=b"2", c=b"3"))
    assert problem.startswith(
        f"{repository.root}/doubles/1: is there with other content, and a version never changes: b "
    )


def test_a_version_made_by_hand_is_compared_too(repository: ModelRepository, tmp_path: Path) -> None:
    directory = write_doubling(repository.root, files={"a": b"1"})
    assert add(repository, archive(tmp_path, a=b"1")).was_there
    assert not (directory / MANIFEST_FILE).exists()
    assert "a has sha256" in refused(repository, archive(tmp_path, a=b"2"))[0]


def test_a_version_that_is_there_and_damaged_is_not_taken_for_whole(
    repository: ModelRepository, tmp_path: Path
) -> None:
    content = archive(tmp_path, a=b"1")
    add(repository, content)
    (repository.root / "doubles" / "1" / "a").unlink()
    assert refused(repository, content) == (f"{repository.root}/doubles/1/a: expected a file of 1 bytes, found none",)


def test_the_sha256_of_the_whole_archive_is_checked_first(repository: ModelRepository, tmp_path: Path) -> None:
    content = archive(tmp_path)
    sha256 = supply(content)(io.BytesIO())
    with pytest.raises(ConfigError, match=f"sha256: expected {'0' * 64}, received {sha256}"):
        add(repository, content, sha256="0" * 64)
    assert names(repository.root) == []
    assert not add(repository, content, sha256=sha256).was_there


@pytest.mark.parametrize("difference", [-1, 0, 1])
def test_the_size_of_a_package_is_bounded(repository: ModelRepository, tmp_path: Path, difference: int) -> None:
    content = archive(tmp_path, weights=bytes(1000))
    total = sum(path.stat().st_size for path in (tmp_path / "packages0" / "doubles" / "1").iterdir())
    if difference < 0:
        assert "max_package_bytes" in refused(repository, content, total + difference)[0]
    else:
        assert repository.add(supply(content), total + difference).size_bytes == total


def test_an_unpacked_package_is_checked_as_a_host_would(repository: ModelRepository, tmp_path: Path) -> None:
    text = b'runtime = "lightgbm"\nartifact = "model.txt"\n'
    content = forged(manifest({"model.toml": text}, "churn", "3"), [entry("model.toml", text)]).getvalue()
    problems = refused(repository, content)
    assert problems
    assert all(problem.startswith("churn/3/model.toml: ") for problem in problems)


def test_writable_directories_are_those_of_the_package(repository: ModelRepository, tmp_path: Path) -> None:
    directory = write_doubling(tmp_path / "here")
    text = (directory / "model.toml").read_bytes() + b'[sandbox]\nwritable = ["cache"]\n'
    files = {"model.toml": text, "model.py": (directory / "model.py").read_bytes()}
    entries = [entry(path, content) for path, content in files.items()]
    for writable in ((), ("other",), ("cache", "other")):
        content = forged(manifest(files, "doubles", writable=writable), entries).getvalue()
        assert refused(repository, content)[0].startswith(
            "manifest.json: writable: expected ['cache'], as model.toml says"
        )
    add(repository, forged(manifest(files, "doubles", writable=("cache",)), entries).getvalue())
    assert (repository.root / "doubles" / "1" / "cache").is_dir()


def test_a_transfer_that_fails_leaves_nothing(repository: ModelRepository) -> None:
    def failing(target: BinaryIO) -> str:
        target.write(b"half")
        raise HostError("no more")

    def interrupted(target: BinaryIO) -> str:
        raise KeyboardInterrupt

    for fetch, kind in ((failing, HostError), (interrupted, KeyboardInterrupt)):
        with pytest.raises(kind):
            repository.add(fetch, LIMIT)
        assert names(repository.root) == []


def test_a_repository_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="file/r: cannot be written: Not a directory"):
        add(ModelRepository(tmp_path / "file" / "r"), b"")


@pytest.mark.parametrize("same", [True, False])
def test_of_several_at_once_one_wins_and_the_others_see_it(
    repository: ModelRepository, tmp_path: Path, same: bool
) -> None:
    contents = [archive(tmp_path, a=b"1" if same else b"%d" % number) for number in range(4)]
    barrier = threading.Barrier(len(contents), timeout=30)

    def racing(content: bytes) -> Added | ConfigError:
        def fetch(target: BinaryIO) -> str:
            barrier.wait()
            return supply(content)(target)

        try:
            return repository.add(fetch, LIMIT)
        except ConfigError as error:
            return error

    with ThreadPoolExecutor(len(contents)) as pool:
        outcomes = list(pool.map(racing, contents))
    winners = [one for one in outcomes if isinstance(one, Added) and not one.was_there]
    assert len(winners) == 1
    for other in outcomes:
        if other not in winners:
            assert isinstance(other, Added) is same
            assert "never changes: a has" in str(other) or same
    assert verify_package(repository.root / "doubles" / "1") == []
    assert names(repository.root) == ["doubles"]


def test_versions_of_a_new_model_that_come_at_once_all_stay(repository: ModelRepository, tmp_path: Path) -> None:
    contents = [archive(tmp_path, version=str(number)) for number in range(1, 5)]
    barrier = threading.Barrier(len(contents), timeout=30)

    def fetching(content: bytes) -> Added:
        def fetch(target: BinaryIO) -> str:
            barrier.wait()
            return supply(content)(target)

        return repository.add(fetch, LIMIT)

    with ThreadPoolExecutor(len(contents)) as pool:
        assert not any(added.was_there for added in pool.map(fetching, contents))
    assert names(repository.root / "doubles") == ["1", "2", "3", "4"]


# -- leftovers --------------------------------------------------------------------------------------------
def test_what_nobody_holds_is_removed_by_the_next_and_what_somebody_holds_stays(
    repository: ModelRepository, tmp_path: Path
) -> None:
    left = repository.root / ".modelhost-killed"
    left.mkdir(parents=True)
    (left / "lock").touch()
    (left / "archive").write_bytes(bytes(10_000))
    young = repository.root / ".modelhost-without-a-lock"
    young.mkdir()
    seen: list[list[str]] = []

    def fetch(target: BinaryIO) -> str:
        [mine] = names(repository.root)
        other = ModelRepository(repository.root)
        assert other.leftovers() == []
        other.clear_leftovers()
        seen.append(names(repository.root))
        assert seen == [[mine]]
        return supply(content)(target)

    content = archive(tmp_path)
    found = dict(repository.leftovers())
    assert set(found) == {left, young}
    assert found[left] >= 10_000
    assert not repository.add(fetch, LIMIT).was_there
    assert seen
    assert names(repository.root) == ["doubles"]


def test_a_hidden_directory_is_no_model(repository: ModelRepository, tmp_path: Path) -> None:
    add(repository, archive(tmp_path))
    (repository.root / ".modelhost-killed" / "package" / "m" / "1").mkdir(parents=True)
    assert [path.name for path in model_directories(repository.root)] == ["doubles"]
    assert [one.name for one in repository.versions()] == ["doubles"]


# -- out --------------------------------------------------------------------------------------------------
def test_a_removed_version_is_gone_and_the_others_are_not(repository: ModelRepository, tmp_path: Path) -> None:
    for version in ("1", "2"):
        add(repository, archive(tmp_path, version=version))
    repository.remove("doubles", "1")
    assert names(repository.root / "doubles") == ["2"]
    # With the last one goes the model: a directory without a version is a mistake.
    repository.remove("doubles", "2")
    assert names(repository.root) == []
    assert repository.versions() == []


def test_what_lies_beside_the_last_version_stays(repository: ModelRepository, tmp_path: Path) -> None:
    add(repository, archive(tmp_path))
    (repository.root / "doubles" / "NOTES").write_text("mine")
    repository.remove("doubles", "1")
    assert names(repository.root / "doubles") == ["NOTES"]


def test_a_link_to_a_version_was_made_by_hand_and_its_target_stays(repository: ModelRepository, tmp_path: Path) -> None:
    add(repository, archive(tmp_path))
    (repository.root / "doubles" / "2").symlink_to("1")
    assert repository.versions()[1] == StoredVersion("doubles", "2", False)
    repository.remove("doubles", "2")
    assert verify_package(repository.root / "doubles" / "1") == []
    assert names(repository.root / "doubles") == ["1"]


def test_a_version_that_is_not_there_cannot_be_removed(repository: ModelRepository, tmp_path: Path) -> None:
    add(repository, archive(tmp_path))
    with pytest.raises(HostError, match="doubles/9: cannot be removed: No such file"):
        repository.remove("doubles", "9")
    assert names(repository.root) == ["doubles"]


def test_a_repository_that_is_not_there_or_empty_has_no_versions(repository: ModelRepository) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        repository.versions()
    repository.root.mkdir()
    assert repository.versions() == []
    (repository.root / "empty").mkdir()
    assert repository.versions() == []


def test_what_has_another_name_gives_nothing_back(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    empty = freed_bytes(tmp_path / "a")
    (tmp_path / "a" / "file").write_bytes(bytes(100_000))
    assert freed_bytes(tmp_path / "a") >= empty + 100_000
    (tmp_path / "other").hardlink_to(tmp_path / "a" / "file")
    assert freed_bytes(tmp_path / "a") < empty + 100_000
