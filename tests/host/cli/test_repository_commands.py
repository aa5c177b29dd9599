"""`pack`, `add` and `gc` as a user types them, and who else looks at checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from archives import write_doubling
from sources import Web

from host.cli.gc import collect
from host.config.deployment import load_deployment, write_deployment
from host.config.settings import load_settings

Run = Callable[..., Any]
"""The fixture `run`: gives code, out and err."""


@pytest.fixture
def package(run: Run, tmp_path: Path) -> Path:
    """Give a package, beside the empty directory that commands run in."""
    return write_doubling(tmp_path / "packages", files={"weights.bin": b"1234"})


@pytest.fixture
def pack(run: Run, tmp_path: Path) -> Callable[..., Path]:
    """Give a way to pack one version of a model."""

    def pack_version(version: str, name: str = "doubles", content: bytes = b"") -> Path:
        files = {"weights.bin": content or version.encode()}
        directory = write_doubling(tmp_path / f"packages-{name}-{version}-{content.hex()}", name, version, files)
        archive = tmp_path / "archives" / directory.parent.parent.name
        archive.mkdir(parents=True)
        assert run("pack", directory, "-o", archive).code == 0
        return archive / f"{name}-{version}.tar"

    return pack_version


def versions(tmp_path: Path, name: str = "doubles") -> list[str]:
    directory = tmp_path / "model_repository" / name
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


# -- pack -------------------------------------------------------------------------------------------------
def test_pack_writes_one_archive_and_says_its_sha256(run: Run, package: Path, tmp_path: Path) -> None:
    outcome = run("pack", package)
    archive = tmp_path / "doubles-1.tar"
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"{archive}: doubles version 1, 3 files, 10.0 KiB\nsha256: {sha256}\n"
    assert oct(archive.stat().st_mode & 0o777) == "0o644"
    document = json.loads(run("pack", package, "--json").out)
    assert document == {
        "archive": str(archive), "model": "doubles", "version": "1", "files": 3, "size_bytes": 10240, "sha256": sha256,
        "left_out": [],
    }  # fmt: skip


def test_pack_says_what_it_leaves_out(run: Run, package: Path, tmp_path: Path) -> None:
    (package / ".git").mkdir()
    (package / "code" / "__pycache__").mkdir(parents=True)
    outcome = run("pack", package, "-o", tmp_path / "a.tar")
    assert (outcome.code, outcome.err) == (0, "left out: .git\nleft out: code/__pycache__\n")


def test_pack_overwrites_only_the_same_content_unless_it_is_told_to(run: Run, package: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    archive.write_text("mine")
    outcome = run("pack", package, "-o", archive)
    assert (outcome.code, outcome.err) == (
        2,
        f"{archive}: expected nothing there, or the same content; --force overwrites it\n",
    )
    assert archive.read_text() == "mine"
    assert run("pack", package, "-o", archive, "--force").code == 0
    content = archive.read_bytes()
    assert run("pack", package, "-o", archive).code == 0
    assert archive.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "packages"]


@pytest.mark.parametrize("where", ["none/a.tar", "file/a.tar"])
def test_pack_says_where_it_cannot_write(run: Run, package: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    outcome = run("pack", package, "-o", where)
    assert (outcome.code, f"{tmp_path}/{where}: cannot be written: " in outcome.err) == (2, True)


def test_pack_refuses_what_check_refuses_and_what_is_no_file(run: Run, package: Path, tmp_path: Path) -> None:
    (package / "link").symlink_to("model.py")
    outcome = run("pack", package)
    assert (outcome.code, "link: expected a file or a directory, received a symbolic link" in outcome.err) == (2, True)
    (package / "link").unlink()
    (package / "golden.json").write_text("{")
    outcome = run("pack", package)
    assert (outcome.code, "golden.json: expected" in outcome.err) == (2, True)
    assert list(tmp_path.glob("*.tar")) == []


def test_an_added_package_is_packed_to_the_same_archive_until_it_is_changed(
    run: Run, package: Path, tmp_path: Path
) -> None:
    assert run("pack", package).code == 0
    assert run("add", "doubles-1.tar").code == 0
    there = tmp_path / "model_repository" / "doubles" / "1"
    assert run("pack", there).code == 0
    (there / "weights.bin").chmod(0o644)
    (there / "weights.bin").write_bytes(b"4321")
    outcome = run("pack", there, "-o", "other.tar")
    assert (outcome.code, "weights.bin: sha256: expected " in outcome.err) == (2, True)


# -- add --------------------------------------------------------------------------------------------------
def test_add_says_what_it_did(run: Run, pack: Callable[..., Path], tmp_path: Path) -> None:
    archive = pack("1")
    there = tmp_path / "model_repository" / "doubles" / "1"
    outcome = run("add", archive)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("doubles version 1: added, ")
    assert outcome.out.endswith(f" bytes: {there}\n")
    outcome = run("add", archive)
    assert (outcome.code, outcome.out) == (0, f"doubles version 1: was there already: {there}\n")
    assert run("check").code == 0
    assert json.loads(run("add", archive, "--json").out)["sources"][0]["was_there"]


def test_add_takes_what_it_can_and_says_what_it_cannot(run: Run, pack: Callable[..., Path], tmp_path: Path) -> None:
    first, second, other = pack("1"), pack("2"), pack("1", content=b"other")
    (tmp_path / "no.tar").write_bytes(b"no archive")
    outcome = run("add", first, "no.tar", other, "none.tar", second)
    assert outcome.code == 2
    assert [line.split(": ")[0] for line in outcome.err.splitlines()] == ["no.tar", str(other), "none.tar"]
    assert "weights.bin has sha256" in outcome.err
    assert versions(tmp_path) == ["1", "2"]
    outcome = run("add", "--json", second, "no.tar")
    document = json.loads(outcome.out)
    assert (outcome.code, outcome.err, document["ok"]) == (2, "", False)
    assert [bool(source["problems"]) for source in document["sources"]] == [False, True]


def test_add_checks_the_sha256_that_it_is_given(run: Run, pack: Callable[..., Path], tmp_path: Path) -> None:
    archive = pack("1")
    outcome = run("add", archive, "--sha256", "0" * 64)
    assert (outcome.code, f"{archive}: sha256: expected {'0' * 64}, received " in outcome.err) == (2, True)
    assert versions(tmp_path) == []
    for arguments in (
        [archive, archive, "--sha256", "0" * 64],
        [archive, "--sha256", "0" * 63],
        [archive, "--sha256", "g" * 64],
    ):
        outcome = run("add", *arguments)
        assert (outcome.code, "--sha256: expected 64 hexadecimal digits, and one SOURCE" in outcome.err) == (2, True)
    assert run("add", archive, "--sha256", hashlib.sha256(archive.read_bytes()).hexdigest().upper()).code == 0


def test_add_keeps_to_the_limit_of_the_settings(run: Run, pack: Callable[..., Path], tmp_path: Path) -> None:
    archive = pack("1")
    outcome = run("add", archive, "--max-package-bytes", "10239")
    assert (outcome.code, "expected at most 10239 bytes (max_package_bytes), received 10240" in outcome.err) == (
        2,
        True,
    )
    assert run("add", archive, "--max-package-bytes", "10240").code == 0


def test_add_over_http_shows_no_credentials(
    run: Run, pack: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Web(pack("1").read_bytes()) as web:
        for path in ("locked", "missing", "cut"):
            source = f"http://somebody:sesame@{web.address}/{path}?token=ticket"
            for flags in ([], ["--json"]):
                outcome = run("add", source, *flags)
                assert outcome.code == (0 if path == "locked" else 1)
                assert "sesame" not in outcome.out + outcome.err
                assert "ticket" not in outcome.out + outcome.err
    assert versions(tmp_path) == ["1"]


@pytest.mark.parametrize("source", ["ftp://me:sesame@h/a", "http://me:sesame@h:x/", "s3://me:sesame@h"])
def test_add_refuses_other_sources_without_repeating_credentials(run: Run, tmp_path: Path, source: str) -> None:
    outcome = run("add", source)
    assert (outcome.code, "sesame" in outcome.err) == (2, False)
    assert not (tmp_path / "model_repository").exists()


# -- who verifies -----------------------------------------------------------------------------------------
def test_everybody_who_is_about_to_use_a_package_verifies_it(
    run: Run, pack: Callable[..., Path], tmp_path: Path
) -> None:
    assert run("add", pack("1")).code == 0
    there = tmp_path / "model_repository" / "doubles" / "1"
    (tmp_path / "deployment.toml").write_text('[[models]]\nname = "doubles"\n')
    (tmp_path / "modelhost.toml").write_text("")
    (there / "weights.bin").chmod(0o644)
    (there / "weights.bin").write_bytes(b"2")
    one, two = (hashlib.sha256(content).hexdigest() for content in (b"1", b"2"))
    problem = f"{there}/weights.bin: sha256: expected {one}, received {two}\n"
    for command in (
        ["up"], ["render"], ["try", there], ["pack", there], ["check"], ["check", there], ["check", "deployment.toml"],
        ["check", there.parent.parent], ["check", there / "model.toml"],
    ):  # fmt: skip
        outcome = run(*command)
        assert (outcome.code, outcome.err) == (2, problem), command
    assert not (tmp_path / "run").exists()


# -- gc ---------------------------------------------------------------------------------------------------
def test_gc_removes_what_is_old_and_came_through_add(run: Run, pack: Callable[..., Path], tmp_path: Path) -> None:
    for version in ("1", "2", "9", "10"):
        assert run("add", pack(version)).code == 0
    by_hand = write_doubling(tmp_path / "by-hand", version="3")
    by_hand.rename(tmp_path / "model_repository" / "doubles" / "3")
    (tmp_path / "deployment.toml").write_text('[[models]]\nname = "doubles"\nversion = "2"\n')
    shown = run("gc", "--dry-run")
    assert shown.code == 0
    assert shown.out.startswith("would remove: doubles version 1: ")
    assert shown.out.splitlines()[-1].startswith("would free: ")
    assert versions(tmp_path) == ["1", "10", "2", "3", "9"]
    outcome = run("gc")
    assert outcome.out == shown.out.replace("would remove", "removed").replace("would free", "freed")
    assert versions(tmp_path) == ["10", "2", "3", "9"]
    assert run("gc").out == "freed: 0 bytes\n"
    assert run("gc", "--keep", "0").out.count("removed: ") == 2
    assert versions(tmp_path) == ["2", "3"]
    document = json.loads(run("gc", "--keep", "0", "--all", "--json").out)
    assert [(one["model"], one["version"]) for one in document["versions"]] == [("doubles", "3")]
    assert document["freed_bytes"] == document["versions"][0]["freed_bytes"] > 0
    assert not document["dry_run"]
    assert versions(tmp_path) == ["2"]
    assert run("check").code == 0


def test_gc_keeps_what_runs_whatever_is_to_run(run: Run, pack: Callable[..., Path], tmp_path: Path) -> None:
    for version in ("1", "2", "3"):
        assert run("add", pack(version)).code == 0
    (tmp_path / "deployment.toml").write_text('[[models]]\nname = "doubles"\nversion = "1"\n')
    deployed = load_deployment(tmp_path / "model_repository", tmp_path / "deployment.toml", tmp_path / "environments")
    (tmp_path / "run").mkdir()
    write_deployment(tmp_path / "run" / "deployment.json", deployed)
    (tmp_path / "deployment.toml").write_text('[[models]]\nname = "doubles"\nversion = "2"\n')
    assert run("gc", "--keep", "0").out.startswith("removed: doubles version 3: ")
    assert versions(tmp_path) == ["1", "2"]
    (tmp_path / "run" / "deployment.json").write_text("{")
    outcome = run("gc", "--keep", "0")
    assert (outcome.code, "deployment.json: not a deployment" in outcome.err) == (2, True)
    assert versions(tmp_path) == ["1", "2"]


def test_gc_keeps_what_others_keep(run: Run, pack: Callable[..., Path], tmp_path: Path) -> None:
    for version in ("1", "2", "3"):
        assert run("add", pack(version)).code == 0
    settings = load_settings(None, {}, {}, tmp_path).settings
    garbage = collect(settings, 1, by_hand=False, dry_run=False, kept=[("doubles", "1"), ("gone", "7")])
    assert [one.version for one, _ in garbage.versions] == ["2"]
    assert versions(tmp_path) == ["1", "3"]


def test_gc_removes_nothing_if_it_cannot_know(run: Run, pack: Callable[..., Path], tmp_path: Path) -> None:
    for version in ("1", "2", "3", "4"):
        assert run("add", pack(version)).code == 0
    (tmp_path / "deployment.toml").write_text('[[models]]\nname = "doubels"\n')
    assert run("gc").code == 2
    (tmp_path / "deployment.toml").unlink()
    (tmp_path / "model_repository" / "doubles" / "3" / "model.toml").unlink()
    outcome = run("gc")
    assert (outcome.code, "3/model.toml: expected a file, found none" in outcome.err) == (2, True)
    assert versions(tmp_path) == ["1", "2", "3", "4"]


def test_gc_removes_environments_that_only_old_versions_needed(run: Run, tmp_path: Path) -> None:
    keys = {}
    for version in ("1", "2", "3"):
        directory = write_doubling(
            tmp_path / f"p{version}", version=version, files={"requirements.txt": f"a=={version}".encode()}
        )
        with (directory / "model.toml").open("a") as file:
            file.write('[environment]\npython = "3.11"\nrequirements = "requirements.txt"\n')
        assert run("pack", directory).code == 0
        assert run("add", f"doubles-{version}.tar").code == 0
        deployed = load_deployment(tmp_path / f"p{version}", None, tmp_path / "environments")
        assert deployed.models[0].python is not None
        environment = Path(deployed.models[0].python).parent.parent
        keys[version] = environment.name
        environment.mkdir(parents=True)
        (environment / "library").write_bytes(bytes(5000))
    (tmp_path / "environments" / ".0123456789abcdef.new").mkdir()
    (tmp_path / "model_repository" / ".modelhost-killed").mkdir()
    shown = run("gc", "--dry-run")
    lines = shown.out.splitlines()
    assert lines[0].startswith("would remove: doubles version 1: ")
    assert lines[1].startswith(f"would remove: environment {keys['1']}: ")
    assert lines[2].startswith(
        f"would remove: {tmp_path}/model_repository/.modelhost-killed, of a command that was killed"
    )
    assert lines[3].startswith(
        f"would remove: {tmp_path}/environments/.0123456789abcdef.new, of a command that was killed"
    )
    assert (tmp_path / "environments" / keys["1"]).exists()
    assert run("gc").code == 0
    left = sorted(path.name for path in (tmp_path / "environments").iterdir() if path.is_dir())
    assert left == sorted([keys["2"], keys["3"]])
    assert [path.name for path in (tmp_path / "model_repository").iterdir() if path.is_dir()] == ["doubles"]


def test_gc_of_nothing(run: Run, tmp_path: Path) -> None:
    outcome = run("gc")
    assert (outcome.code, "model_repository: cannot be read: No such file" in outcome.err) == (2, True)
    (tmp_path / "model_repository").mkdir()
    assert run("gc").out == "freed: 0 bytes\n"
    assert run("gc", "--keep", "-1").code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model_repository"]
