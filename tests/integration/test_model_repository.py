"""Packages on their way from one machine to another: real commands, a real web server, S3's protocol, a real host."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from archives import packed, write_doubling
from hosts import CHECKOUT, RunningHost, tensors, until
from sources import Web

from host.manifest import verify_package

pytestmark = pytest.mark.integration

PATIENCE_S = 60
LARGE = bytes(range(256)) * (40 << 10)
"""10 MiB: more than fits into the sockets between a server and a client."""


def modelhost(*arguments: str | Path, **environ: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "host.cli", *map(str, arguments)],
        cwd="/",
        env={**clean, "PYTHONPATH": str(CHECKOUT), **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, said = process.communicate(timeout=PATIENCE_S)
    assert "Traceback" not in said
    return process.returncode, out, said


def run(*arguments: str | Path, **environ: str) -> str:
    """Run a command that has to succeed; what it wrote."""
    code, out, said = ended(modelhost(*arguments, **environ))
    assert (code, said) == (0, "")
    return out


def hidden(repository: Path) -> list[Path]:
    return list(repository.glob(".modelhost-*"))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Give a packed model of 10 MiB."""
    package = write_doubling(tmp_path / "packages", files={"weights.bin": LARGE})
    run("pack", package, "-o", tmp_path)
    return tmp_path / "doubles-1.tar"


# -- from a package to answers ----------------------------------------------------------------------------
def test_a_package_is_packed_added_over_http_and_served_until_a_file_of_it_changes(
    repository: Path, archive: Path, make_host: Callable[..., RunningHost]
) -> None:
    # Made by root with an umask for nobody else, where the tests run as root: workers have users of their own.
    with Web(archive.read_bytes()) as web:
        before = os.umask(0o077)
        try:
            out = run("add", web.url("doubles-1.tar"), "--repository", repository)
        finally:
            os.umask(before)
    there = repository / "doubles" / "1"
    assert out == f"doubles version 1: added, 10.0 MiB: {there}\n"
    host = make_host(repository)
    host.start()
    answer = host.infer("doubles", tensors(x=("FP64", [2, 1], [1.5, 4.0])))
    assert answer.document["outputs"][0]["data"] == [3.0, 8.0]

    # A version that runs is not garbage, however old.
    for version in ("2", "3", "4"):
        run("add", packed_as(archive.parent, version), "--repository", repository)
    deployment = archive.parent / "deployment.toml"
    deployment.write_text('[[models]]\nname = "doubles"\nversion = "4"\n')
    where = ("--repository", repository, "--run-dir", host.run_dir.root, "--deployment", deployment)
    garbage = json.loads(run("gc", *where, "--keep", "1", "--json"))
    assert [one["version"] for one in garbage["versions"]] == ["2", "3"]
    assert garbage["freed_bytes"] > 0
    assert sorted(path.name for path in there.parent.iterdir()) == ["1", "4"]
    assert host.infer("doubles", tensors(x=("FP64", [1, 1], [1.0]))).status == 200

    weights = there / "weights.bin"
    weights.chmod(0o644)
    weights.write_bytes(LARGE[:-1] + b"\0")
    deployment.write_text('[[models]]\nname = "doubles"\nversion = "1"\n')
    run_dir = archive.parent / "run"
    code, out, said = ended(
        modelhost("up", "--repository", repository, "--run-dir", run_dir, "--deployment", deployment)
    )
    assert (code, out) == (2, "")
    assert said.startswith(f"{weights}: sha256: expected ")
    assert not run_dir.exists()


def packed_as(directory: Path, version: str) -> Path:
    package = write_doubling(directory / f"packages-{version}", version=version)
    path = directory / f"doubles-{version}.tar"
    path.write_bytes(packed(package))
    return path


# -- commands that are ended ------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_add_that_is_ended_is_no_version_and_the_next_one_is(
    repository: Path, archive: Path, number: signal.Signals
) -> None:
    with Web(archive.read_bytes()) as web:
        process = modelhost("add", web.url("half"), "--repository", repository)
        until(lambda: hidden(repository) or process.poll() is not None, "the add has begun", PATIENCE_S)
        assert web.half_sent.wait(PATIENCE_S)
        # Somebody else's add, meanwhile, does not take what this one has for a leftover.
        run("add", packed_as(archive.parent, "2"), "--repository", repository)
        assert len(hidden(repository)) == 1
        process.send_signal(number)
        code, out, said = ended(process)
        assert (code, out, said.strip()) == (130 if number is signal.SIGINT else -number, "", "")
    assert sorted(path.name for path in (repository / "doubles").iterdir()) == ["2"]
    assert bool(hidden(repository)) is (number is not signal.SIGINT)
    run("check", repository)
    run("add", archive, "--repository", repository)
    assert hidden(repository) == []
    assert verify_package(repository / "doubles" / "1") == []


def test_what_a_killed_add_left_is_garbage(repository: Path, archive: Path) -> None:
    with Web(archive.read_bytes()) as web:
        process = modelhost("add", web.url("half"), "--repository", repository)
        assert web.half_sent.wait(PATIENCE_S)
        until(lambda: any(path.stat().st_size for path in repository.glob(".modelhost-*/archive")), "half of it came")
        where = ("--repository", repository, "--environments", archive.parent / "environments")
        where = (*where, "--run-dir", archive.parent / "run")
        assert run("gc", *where) == "freed: 0 bytes\n"
        process.kill()
        assert ended(process)[0] == -signal.SIGKILL
    [left] = hidden(repository)
    document = json.loads(run("gc", *where, "--json"))
    assert [one["path"] for one in document["leftovers"]] == [str(left)]
    assert document["freed_bytes"] > 1 << 20
    assert hidden(repository) == []


def test_of_two_commands_at_once_one_adds_and_the_other_says_so(repository: Path, archive: Path) -> None:
    with Web(archive.read_bytes()) as web:
        processes = [modelhost("add", web.url("half"), "--repository", repository, "--json") for _ in range(2)]
        until(lambda: web.requests.count("GET /half") == 2, "both are half done", PATIENCE_S)
        web.other_half.set()
        outcomes = [ended(process) for process in processes]
    assert [code for code, _, _ in outcomes] == [0, 0]
    assert sorted(json.loads(out)["sources"][0]["was_there"] for _, out, _ in outcomes) == [False, True]
    assert hidden(repository) == []


def test_a_pack_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    package = write_doubling(tmp_path / "packages")
    # Sparse, so that it takes seconds to read and no room.
    with (package / "weights.bin").open("wb") as file:
        file.truncate(8 << 30)
    (tmp_path / "out").mkdir()
    process = modelhost("pack", package, "-o", tmp_path / "out")
    try:
        until(lambda: opened(process.pid, package / "weights.bin"), "it reads", PATIENCE_S)
        process.send_signal(signal.SIGINT)
        assert ended(process)[0] == 130
    finally:
        process.kill()
        process.communicate()
    assert list((tmp_path / "out").iterdir()) == []


def opened(pid: int, path: Path) -> bool:
    """Whether a process has a file open."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if link.readlink() == path:
                return True
        except FileNotFoundError:
            pass  # closed meanwhile
    return False


def test_without_room_for_a_file_nothing_is_left(repository: Path, archive: Path) -> None:
    limited = ["sh", "-c", 'ulimit -f 100; exec "$@"', "sh", sys.executable, "-P", "-m", "host.cli"]
    package, out = archive.parent / "packages" / "doubles" / "1", archive.parent / "out"
    out.mkdir()
    for command, code in ((["pack", package, "-o", out], 2), (["add", archive, "--repository", repository], 1)):
        done = subprocess.run(
            [*limited, *command], cwd="/", env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr.endswith("cannot be written: File too large\n")
    assert list(out.iterdir()) == []
    assert [path.name for path in repository.iterdir()] == []


# -- on a terminal ----------------------------------------------------------------------------------------
def test_a_terminal_is_shown_how_far_it_is(repository: Path, archive: Path) -> None:
    ours, theirs = pty.openpty()
    with Web(archive.read_bytes()) as web:
        process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "host.cli",
                "add",
                f"http://me:sesame@{web.address}/half",
                "--repository",
                repository,
            ],
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "TERM": "xterm", "COLUMNS": "120", "no_proxy": "127.0.0.1"},
            stdout=subprocess.PIPE,
            stderr=theirs,
        )
        os.close(theirs)
        said = b""
        while b"MiB" not in said:
            said += os.read(ours, 65536)
        web.other_half.set()
        out, _ = process.communicate(timeout=PATIENCE_S)
    os.close(ours)
    assert (process.returncode, b"added" in out) == (0, True)
    assert f"http://{web.address}/half".encode() in said
    assert b"sesame" not in said


# -- S3 ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """Start a server that speaks S3's protocol; give the variables that lead the AWS libraries to it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "sesame",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    server.stop()


def test_a_package_comes_from_s3(repository: Path, archive: Path, s3: dict[str, str]) -> None:
    upload = (
        "import sys, boto3; s3 = boto3.client('s3'); "
        "s3.create_bucket(Bucket='models', CreateBucketConfiguration={'LocationConstraint': 'eu-central-1'}); "
        "s3.upload_file(sys.argv[1], 'models', 'team/doubles-1.tar')"
    )
    subprocess.run([sys.executable, "-c", upload, archive], env={**os.environ, **s3}, check=True, timeout=PATIENCE_S)
    source = "s3://models/team/doubles-1.tar"
    code, _, said = ended(modelhost("add", source, "--repository", repository, "--max-package-bytes", "1MiB", **s3))
    assert (code, f"{source}: expected at most 1048576 bytes (max_package_bytes), received " in said) == (2, True)
    assert run("add", source, "--repository", repository, **s3).startswith("doubles version 1: added, 10.0 MiB: ")
    assert verify_package(repository / "doubles" / "1") == []
    for missing, why in (
        ("models/team/none.tar", "found nothing there"),
        ("nowhere/a", "specified bucket does not exist"),
    ):
        code, _, said = ended(modelhost("add", f"s3://{missing}", "--repository", repository, **s3))
        assert (code, said.startswith(f"modelhost: s3://{missing}: "), said.endswith(f"{why}\n")) == (1, True, True)


def test_s3_without_credentials_says_so(repository: Path, s3: dict[str, str], tmp_path: Path) -> None:
    without = {name: "" for name in s3 if "KEY" in name}
    code, _, said = ended(
        modelhost("add", "s3://models/a", "--repository", repository, **{**s3, **without}, HOME=str(tmp_path))
    )
    assert (code, said) == (1, "modelhost: s3://models/a: Unable to locate credentials\n")


# -- as it is installed -----------------------------------------------------------------------------------
def test_the_repository_of_the_bundled_models_is_packed_and_added_whole(
    bundled: Path, repository: Path, tmp_path: Path
) -> None:
    packages = [path.parent for path in sorted(bundled.glob("*/*/model.toml"))]
    for package in packages:
        run("pack", package, "-o", tmp_path)
    run("add", *sorted(tmp_path.glob("*.tar")), "--repository", repository)
    for name in ("features.toml", "features.sqlite"):
        shutil.copyfile(bundled / name, repository / name)
    run("check", "--repository", repository, "--run-dir", repository / "run")
    assert len(list(repository.glob("*/*/manifest.json"))) == len(packages) > 3
