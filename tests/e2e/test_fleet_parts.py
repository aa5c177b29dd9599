"""What a fleet is made of, as far as it can be tried without hosts."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import fleet
import pytest
from cache import KEPT_S, digest_of, made_once
from load import Request, told
from pens import own_cgroups
from traffic import Report
from wheelhouse import next_version

ANSWERED = Request(
    target="a", planned_s=10.0, sent_s=10.0, done_s=10.002, status=200, error=None, version="1", host=None
)


def test_a_report_counts_what_was_not_answered_well() -> None:
    refused = replace(ANSWERED, status=503, error="503: queue full", sent_s=11.0, done_s=11.001)
    lost = replace(ANSWERED, status=None, error="ServerDisconnectedError: x", target="b", sent_s=12.0, done_s=12.5)
    late = replace(ANSWERED, planned_s=12.9, sent_s=13.0, done_s=13.1, version="2")
    report = Report((ANSWERED, refused, lost, late))
    assert report.failures == (refused, lost)
    assert report.of("a").failures == (refused,)
    assert report.between(11.0, 12.0).requests == (refused,)
    assert report.between(12.0).requests == (lost, late)
    assert report.count(lambda each: each.version) == {"1": 3, "2": 1}
    assert report.lag_s == pytest.approx(2.0)
    assert report.latency_s(0.5) == pytest.approx(0.2)
    assert "4 requests, 2 failed" in str(report)
    assert "1 x 503: queue full" in str(report)
    assert "b at 2.000 s, after 0.500 s, host None: ServerDisconnectedError: x" in str(report)


def test_a_report_of_nothing_has_no_failures() -> None:
    assert Report(()).failures == ()
    assert Report(()).lag_s == 0
    assert "0 requests, 0 failed" in str(Report(()))


@pytest.mark.parametrize(
    ("content", "version", "error"),
    [
        (b'{"model_version": "3"}', "3", None),
        (b'{"error": "no", "code": "X"}', None, "no"),
        (b"[1]", None, None),
        (b"<html>", None, None),
        (b"", None, None),
        (b"\xff", None, None),
    ],
)
def test_answers_are_read_whatever_they_are(content: bytes, version: str | None, error: str | None) -> None:
    assert told(content) == (version, error)


def test_the_next_version_counts_the_last_number() -> None:
    assert next_version("0.1.0") == "0.1.1"
    assert next_version("1.9.9") == "1.9.10"


def test_own_cgroups_are_those_of_the_hierarchies_that_are_mounted(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(
        "30 25 0:26 / /proc rw - proc proc rw\n"
        "31 25 0:27 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"
        "32 25 0:28 /outer /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "33 25 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
        "34 25 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    )
    (tmp_path / "cgroup").write_text(
        "5:pids:/not/mounted\n4:memory:/a/b\n3:cpu,cpuacct:/outer/c\n2:name=systemd:/\n0::/d\n"
    )
    assert own_cgroups(tmp_path) == [
        Path("/sys/fs/cgroup/memory/a/b"),
        Path("/sys/fs/cgroup/cpu,cpuacct/c"),
        Path("/sys/fs/cgroup/systemd"),
        Path("/sys/fs/cgroup/unified/d"),
    ]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a cache of its own."""
    monkeypatch.setenv("MODELHOST_E2E_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_thing_is_made_once(kept: Path) -> None:
    made = []

    def make(directory: Path) -> None:
        made.append(directory)
        (directory / "file").write_text("x")

    first = made_once("thing", digest_of("a"), make)
    assert made_once("thing", digest_of("a"), make) == first == kept / f"thing-{digest_of('a')}"
    assert (first / "file").read_text() == "x"
    assert made_once("thing", digest_of("b"), make) != first
    assert len(made) == 2


def test_a_thing_that_cannot_be_made_is_not_there(kept: Path) -> None:
    def make(directory: Path) -> None:
        (directory / "half").touch()
        raise RuntimeError("no network")

    with pytest.raises(RuntimeError, match="no network"):
        made_once("thing", "0", make)
    assert [path.name for path in kept.iterdir()] == ["thing.lock"]


def test_what_nobody_has_asked_for_in_a_long_time_is_forgotten(kept: Path) -> None:
    old, used, half = (made_once("thing", name, lambda directory: None) for name in "abc")
    half.rename(kept / ".thing-half")
    for path in (old, used):
        os.utime(path, (0, time.time() - KEPT_S - 60))
    made_once("thing", "b", lambda directory: None)
    made_once("thing", "d", lambda directory: None)
    assert sorted(path.name for path in kept.iterdir()) == ["thing-b", "thing-d", "thing.lock"]


def test_digests_keep_parts_apart() -> None:
    assert len({digest_of("ab", "c"), digest_of("a", "bc"), digest_of("abc"), digest_of(b"abc", "")}) == 4


def test_what_a_machine_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = fleet.missing()
    assert reason is not None
    if os.geteuid() != 0:
        assert "needs root" in reason
    else:
        assert "apt-get install systemd-container iproute2 openssh-client util-linux mmdebstrap" in reason
