"""Counters in files: they go on after any end, and no file makes a reader stumble."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from host.protocol import counters
from host.protocol.counters import (
    BATCH_ROWS,
    FEATURES,
    FRONT,
    LAYOUTS,
    WORKER,
    Layout,
    file_name,
    map_counters,
    open_counters,
    private_counters,
    read_counters,
    retire_counters,
)
from host.protocol.given import COUNTERS_VARIABLE, create_counters, given_counters
from host.protocol.latency import LatencyHistogram


def test_what_was_counted_is_read_while_the_writer_goes_on(tmp_path: Path) -> None:
    words = open_counters(tmp_path, FRONT, "front:0", "churn.v3")
    histogram = LatencyHistogram(words, FRONT.at("queue_ns"))
    for number in range(1, 4):
        words[FRONT.at("answered_200")] += 1
        histogram.add(1000 * number)
        [found] = read_counters(tmp_path, pytest.fail)
        assert (found.kind, found.writer, found.group) == ("front", "front:0", "churn.v3")
        assert {name: value for name, value in found.values.items() if value} == {"answered_200": number}
        assert found.histograms["queue_ns"] == histogram.read()
        assert found.histograms["queue_ns"].count == number
        assert found.histograms["total_ns"].counts == {}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_no_two_names_of_a_layout_share_a_word(layout: Layout, tmp_path: Path) -> None:
    words = open_counters(tmp_path, layout, "front:0")
    names = (*layout.values, *layout.gauges)
    for number, name in enumerate(names, 1):
        words[layout.at(name)] += number
    histograms = [LatencyHistogram(words, layout.at(name)) for name in layout.histograms]
    for place, histogram in enumerate(histograms, 1):
        for _ in range(place):
            histogram.add(0)
            histogram.add((1 << 63) - 1 if place == 1 else 8)
    [found] = read_counters(tmp_path, pytest.fail)
    assert dict(found.values) == {name: number for number, name in enumerate(names, 1)}
    for place, name in enumerate(layout.histograms, 1):
        assert found.histograms[name].count == 2 * place
        assert found.histograms[name] == histograms[place - 1].read()


def test_a_successor_goes_on_where_the_last_one_stopped_but_for_gauges(tmp_path: Path) -> None:
    words = open_counters(tmp_path, FEATURES, "features:0")
    words[FEATURES.at("completed")] += 5
    words[FEATURES.at("entries")] = 7
    del words
    words = open_counters(tmp_path, FEATURES, "features:0")
    words[FEATURES.at("completed")] += 1
    [found] = read_counters(tmp_path, pytest.fail)
    assert (found.values["completed"], found.values["entries"]) == (6, 0)


def test_a_file_of_another_layout_is_begun_anew_and_until_then_named(tmp_path: Path) -> None:
    before = Layout(kind="front", values=("answered",))
    open_counters(tmp_path, before, "front:0")[before.at("answered")] += 3
    complaints: list[str] = []
    assert read_counters(tmp_path, complaints.append) == []
    [complaint] = complaints
    assert "front~front:0~" in complaint
    assert f"expected a file of {FRONT.size_bytes} bytes, received one of {before.size_bytes}" in complaint
    open_counters(tmp_path, FRONT, "front:0")
    [found] = read_counters(tmp_path, pytest.fail)
    assert not any(found.values.values())


def test_names_in_another_order_are_another_layout(tmp_path: Path) -> None:
    other = Layout(kind="front", values=FRONT.values[::-1], histograms=FRONT.histograms)
    assert other.size_bytes == FRONT.size_bytes
    open_counters(tmp_path, other, "front:0")[other.at("retries")] += 3
    complaints: list[str] = []
    assert read_counters(tmp_path, complaints.append) == []
    assert "expected the layout" in complaints[0]
    assert open_counters(tmp_path, FRONT, "front:0")[FRONT.at("retries")] == 0


@pytest.mark.parametrize("value", [(1 << 63), (1 << 64) - 1])
def test_a_file_with_numbers_that_nobody_can_have_counted_is_begun_anew(tmp_path: Path, value: int) -> None:
    words = open_counters(tmp_path, WORKER, "m.v1:0", "m.v1")
    words[WORKER.at("rows")] = (1 << 63) - 1
    assert open_counters(tmp_path, WORKER, "m.v1:0", "m.v1")[WORKER.at("rows")] == (1 << 63) - 1
    words[WORKER.at("rows")] = value
    [found] = read_counters(tmp_path, pytest.fail)
    assert found.values["rows"] == value
    assert open_counters(tmp_path, WORKER, "m.v1:0", "m.v1")[WORKER.at("rows")] == 0


@pytest.mark.parametrize("size", [1, WORKER.size_bytes - 1, WORKER.size_bytes + 1, WORKER.size_bytes])
def test_files_of_any_size_are_left_out_and_named(tmp_path: Path, size: int) -> None:
    (tmp_path / file_name("worker", "m.v1:0", "m.v1")).write_bytes(b"\xff" * size)
    open_counters(tmp_path, FRONT, "front:0")
    complaints: list[str] = []
    assert [one.kind for one in read_counters(tmp_path, complaints.append)] == ["front"]
    assert len(complaints) == 1


@pytest.mark.parametrize("size", [0, FRONT.size_bytes])
def test_a_file_that_its_writer_has_not_begun_is_left_out_in_silence(tmp_path: Path, size: int) -> None:
    (tmp_path / file_name("front", "front:0")).write_bytes(bytes(size))
    assert read_counters(tmp_path, pytest.fail) == []
    open_counters(tmp_path, FRONT, "front:0")
    assert len(read_counters(tmp_path, pytest.fail)) == 1


def test_what_is_no_file_of_counters_is_left_out_and_named(tmp_path: Path) -> None:
    (tmp_path / "other~x~y").touch()
    (tmp_path / "front~x").touch()
    (tmp_path / "readme").touch()
    (tmp_path / ".hidden").touch()
    (tmp_path / "front~front:0~a.v1").mkdir()
    (tmp_path / "front~front:0~b.v1").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "front~front:0~c.v1")
    complaints: list[str] = []
    assert read_counters(tmp_path, complaints.append) == []
    assert len(complaints) == 6
    assert all(str(tmp_path) in one for one in complaints)


def test_a_directory_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert read_counters(tmp_path / "none", pytest.fail) == []
    assert retire_counters(tmp_path / "none", ()) == []


def test_no_more_files_than_the_limit_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "FILES_MAX", 2)
    for number in range(3):
        complaints: list[str] = []
        open_counters(tmp_path, FEATURES, f"features:{number}")
        found = read_counters(tmp_path, complaints.append)
        assert len(found) == min(2, number + 1)
        assert len(complaints) == (number == 2)


def test_a_link_is_not_followed_and_the_file_is_its_owners(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic"):
        create_counters(tmp_path / "link")
    os.close(create_counters(tmp_path / "own"))
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o600


def test_a_descriptor_is_enough_and_may_be_closed(tmp_path: Path) -> None:
    path = tmp_path / file_name("worker", "m.v1:0", "m.v1")
    descriptor = create_counters(path)
    words = map_counters(descriptor, WORKER)
    os.close(descriptor)
    words[WORKER.at("batches")] += 1
    [found] = read_counters(tmp_path, pytest.fail)
    assert found.values["batches"] == 1


def test_a_worker_finds_its_descriptor_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(COUNTERS_VARIABLE, raising=False)
    assert given_counters() is None
    descriptor = create_counters(tmp_path / "own")
    os.set_inheritable(descriptor, True)
    monkeypatch.setenv(COUNTERS_VARIABLE, str(descriptor))
    assert given_counters() == descriptor
    assert not os.get_inheritable(descriptor)
    assert COUNTERS_VARIABLE not in os.environ
    os.close(descriptor)


def test_a_mapping_takes_no_descriptor_and_goes_with_the_last_of_its_words(tmp_path: Path) -> None:
    def mapped() -> bool:
        return str(tmp_path) in Path("/proc/self/maps").read_text()

    words = open_counters(tmp_path, WORKER, "m.v1:0", "m.v1")
    opened = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not any(str(tmp_path) in one for one in opened)
    part = words[WORKER.at("rows") :]
    del words
    assert mapped()
    part[0] += 1
    [found] = read_counters(tmp_path, pytest.fail)
    assert found.values["rows"] == 1
    del part
    gc.collect()
    assert not mapped()


def test_a_descriptor_that_cannot_be_mapped_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "read").write_bytes(bytes(WORKER.size_bytes))
    descriptor = os.open(tmp_path / "read", os.O_RDONLY)
    with pytest.raises(PermissionError):
        map_counters(descriptor, WORKER)
    os.close(descriptor)


def test_private_counters_count_and_are_nowhere() -> None:
    words = private_counters(WORKER)
    words[WORKER.at("batches")] += 1
    assert sum(words) == 1


def test_batches_have_a_class_for_every_number_of_rows() -> None:
    assert BATCH_ROWS[:4] == (1, 2, 4, 8)
    for rows in (1, 2, 3, 4, 5, 65_536):
        index = (rows - 1).bit_length()
        assert rows <= BATCH_ROWS[index]
        assert index == 0 or rows > BATCH_ROWS[index - 1]


@pytest.mark.parametrize("retired", [0, 1, 3, 4])
def test_the_newest_of_what_is_gone_stay(tmp_path: Path, retired: int) -> None:
    for number in range(retired):
        open_counters(tmp_path, FRONT, "front:0", f"old.v{number}")
        os.utime(tmp_path / file_name("front", "front:0", f"old.v{number}"), (number, number))
    open_counters(tmp_path, FRONT, "front:0", "churn.v3")
    open_counters(tmp_path, WORKER, "churn.v3:0", "churn.v3")
    open_counters(tmp_path, FRONT, "front:0")
    open_counters(tmp_path, FEATURES, "features:0")
    removed = retire_counters(tmp_path, {"churn.v3"}, 3)
    assert removed == ([file_name("front", "front:0", "old.v0")] if retired == 4 else [])
    assert len(list(tmp_path.iterdir())) == 4 + min(3, retired)
