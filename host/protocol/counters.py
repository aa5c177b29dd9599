"""What the processes of a host have counted, in files that outlive them: their layout, their writer, their reader.

Each process counts into files of `counters/` in the run directory, one for its slot and whatever it counts apart
(model versions, views, stores), which it maps into its memory. A process that is killed loses nothing; its successor
goes on counting where it stopped, so no counter ever runs backwards; whoever wants to know reads the files and asks
nobody. A file holds 64-bit words in the machine's order: two of header, one for each name of its layout, and `WORDS`
for each of its histograms. To count is `words[index] += 1`, with an index that was looked up once.

A worker may write what it likes into its file, and into no other's: readers take nothing but bounded numbers from it.
Whose a file is and which layout it has, its name says: `front~front:0~churn.v3`, `worker~churn.v3:0~churn.v3`.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import stat
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from host.protocol.errors import HTTP_STATUS
from host.protocol.given import create_counters
from host.protocol.latency import WORDS, Latencies

Words: TypeAlias = "memoryview[int]"
"""A file's words, or as many in memory: `words[index] += 1` counts one."""

FILES_MAX: Final = 20_000
"""Readers look at no more: 200 slots, and as many versions in each of a host's fronts, are a tenth of it."""

RETIRED_MAX: Final = 200
"""Files of what is there no more that are kept, so that sums over the host's life stay exact."""

BATCH_ROWS: Final = tuple(1 << power for power in range(17))
"""Batches are counted by their rows: those of at most so many and more than the one before. The last one takes all."""

_MAGIC: Final = int.from_bytes(b"mhcount1", "little")
_HEADER: Final = 2
"""Words: the magic number, the layout's digest."""
_WORD: Final = 8
_ABSURD: Final = 1 << 63
"""No counter comes to this: 2^63 ns are 292 years."""
_EMPTY: Final = bytes(WORDS * _WORD)
"""A histogram without a time."""
_SEPARATOR: Final = "~"
"""No name of a model, version, view or store has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which word of a file is what."""

    kind: str
    values: tuple[str, ...]
    """Counters, which only ever grow."""
    gauges: tuple[str, ...] = ()
    """Numbers that say how it is now; a process that starts begins with 0."""
    histograms: tuple[str, ...] = ()
    digest: int = field(init=False)
    size_bytes: int = field(init=False)
    _places: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = [*self.values, *self.gauges]
        text = "\n".join([self.kind, *self.values, "", *self.gauges, "", *self.histograms, str(WORDS)])
        digest = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=_WORD).digest(), "little")
        places = {name: _HEADER + place for place, name in enumerate(names)}
        end = _HEADER + len(names)
        for place, name in enumerate(self.histograms):
            places[name] = end + place * WORDS
        object.__setattr__(self, "digest", digest)
        object.__setattr__(self, "size_bytes", (end + len(self.histograms) * WORDS) * _WORD)
        object.__setattr__(self, "_places", places)

    def at(self, name: str) -> int:
        """The index of a value's word, or of a histogram's first one. Raises `KeyError`."""
        return self._places[name]


_CODES: Final = tuple(dict.fromkeys(error.code for error in HTTP_STATUS))

STATUSES: Final = tuple(sorted({200, *HTTP_STATUS.values()}))

FRONT: Final = Layout(
    kind="front",
    values=(
        # What the dispatch counts (`host.dispatch.Event`), in its order.
        "late_answers",
        "unknown_answers",
        "worker_deaths",
        "retries",
        "returned",
        "cancelled",
        # Every request ends as one of these, or cancelled: with the status that was answered by a worker, the feature
        # service or the front itself, or with the front's own error, by its code.
        *(f"answered_{status}" for status in STATUSES),
        "answered_other",
        *(f"refused_{code}" for code in _CODES),
        "unread",  # of the refused with a status of 500 or more: the body had not come, or there was no room for it
        "fell_back",  # a canary's requests that another version was asked for instead: they end as that one's
        # Copies of requests, for the version as a shadow. Those that ended are among the answered and refused, too.
        "copies_sent",
        "copies_shed",
        "copies_failed",
        "copies_skipped",
        "copies_equal",
        "copies_different",
        "copies_ended",
    ),
    histograms=(
        "total_ns",  # from a request's receipt to its answer, of those with a status below 500
        "queue_ns",  # from its receipt to the start of its batch, as the worker says
        "features_ns",  # how long the feature service took to complete it
        "batch_wait_ns",  # from when it was given to its worker to the start of its batch, as the worker says
    ),
)
"""One front, one model version; or, with no group, everything that is for no model version: health, metadata, features,
and whatever names no known model."""

WORKER: Final = Layout(
    kind="worker",
    values=(
        "batches",
        "rows",
        *(f"batches_of_{rows}_rows" for rows in BATCH_ROWS),
        "succeeded",  # requests with a result
        "succeeded_ns",  # from the front's receipt to the end of the batch, of all of them
        "failed",  # requests with an error
        "failed_ns",
        "queue_ns",  # of those with a result, from the front's receipt to the start of the batch
        "decoded",  # requests that were read
        "decode_ns",
        "encoded",  # answers that were written
        "encode_ns",
        "busy_ns",  # whole turns in which a batch ran; the rest of the time it waited
    ),
    gauges=("last_batch_ms",),  # since the epoch
    histograms=("inference_ns",),  # of each batch
)
"""One slot of a model version."""

FEATURES: Final = Layout(
    kind="features",
    values=("completed", "evictions"),
    gauges=("entries", "size_bytes", "capacity_bytes"),
)
"""One feature process: the requests that it completed, and its cache."""

VIEW: Final = Layout(
    kind="view",
    values=(
        "fresh",  # found in the cache
        "stale",  # served from the cache past its time
        "negative",  # known, from the cache, not to be there
        "present",  # read from the store
        "absent",  # not in the store
        "unavailable",  # the store failed, and the cache had nothing
        "queries",  # reads sent to the store
        "joined",  # asked for while their read was on its way
        "failures",
        "bad_rows",
        "refused",  # reads that the circuit breaker kept from the store
    ),
    histograms=("query_ns",),
)
"""One view in one feature process, by keys asked for."""

STORE: Final = Layout(
    kind="store",
    values=("openings",),
    gauges=(
        "open",  # 1 while the circuit breaker leaves the store alone
        "connected",  # 1 from when all of its views can be read
    ),
)
"""One store in one feature process."""

LAYOUTS: Final[Mapping[str, Layout]] = {one.kind: one for one in (FRONT, WORKER, FEATURES, VIEW, STORE)}


class Histograms(Mapping[str, Latencies]):
    """What a file's histograms held, by name; taken apart when it is asked for."""

    __slots__ = ("_data", "_layout", "_words")

    def __init__(self, layout: Layout, data: bytes) -> None:
        """`data`: the whole file."""
        self._layout = layout
        self._data = data
        self._words = memoryview(data).cast("Q")

    def __getitem__(self, name: str) -> Latencies:
        sum_ns, counts = self.dense(name)
        return Latencies(sum_ns, {bucket: count for bucket, count in enumerate(counts) if count})

    def __iter__(self) -> Iterator[str]:
        return iter(self._layout.histograms)

    def __len__(self) -> int:
        return len(self._layout.histograms)

    def is_empty(self, name: str) -> bool:
        """Whether nothing was ever counted in it."""
        at = self._layout.at(name)
        return self._data[at * _WORD : (at + WORDS) * _WORD] == _EMPTY

    def dense(self, name: str) -> tuple[int, list[int]]:
        """The sum in nanoseconds, and what each bucket holds: cheaper than `Latencies` where many are read."""
        if name not in self._layout.histograms:
            raise KeyError(name)
        at = self._layout.at(name)
        return self._words[at], self._words[at + 1 : at + WORDS].tolist()


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterSet:
    """What one file held when it was read."""

    kind: str
    """The layout's."""
    writer: str
    """The process, as supervisord shows it: `front:0`, `churn.v3:0`, `features:0`."""
    group: str
    """The model version, as `churn.v3`; of a view or a store, its name; empty for what is none's."""
    values: Mapping[str, int]
    """Counters and gauges, by name."""
    histograms: Histograms


# -- writing --------------------------------------------------------------------------------------------------
def file_name(kind: str, writer: str, group: str = "") -> str:
    """The name of a file of counters."""
    return _SEPARATOR.join((kind, writer, group))


def private_counters(layout: Layout) -> Words:
    """Words that nobody else sees, all 0."""
    return memoryview(bytearray(layout.size_bytes)).cast("Q")


def open_counters(directory: Path, layout: Layout, writer: str, group: str = "") -> Words:
    """Go on counting in a file, or begin one. There may be one writer of a file at a time. Raises `OSError`."""
    descriptor = create_counters(directory / file_name(layout.kind, writer, group))
    try:
        return map_counters(descriptor, layout)
    finally:
        os.close(descriptor)


def counters_or_private(
    directory: Path, layout: Layout, writer: str, group: str, complain: Callable[[str], None]
) -> Words:
    """Go on counting in a file, or begin one. A process that cannot have it serves on, and `complain` is told."""
    try:
        return open_counters(directory, layout, writer, group)
    except OSError as error:
        complain(f"{directory / file_name(layout.kind, writer, group)}: nothing is counted there: {error.strerror}")
        return private_counters(layout)


def map_counters(descriptor: int, layout: Layout) -> Words:
    """Map an open file's words: as they are if it has this layout, else all 0. The descriptor may be closed then.

    Raises `OSError`: above all if the disk is full, which after this cannot matter any more.
    """
    size = os.fstat(descriptor).st_size
    if size != layout.size_bytes:
        os.ftruncate(descriptor, 0)
        os.posix_fallocate(descriptor, 0, layout.size_bytes)  # a hole without a block behind it would kill the writer
    words = _mapped(descriptor, layout.size_bytes)
    if (words[0], words[1]) != (_MAGIC, layout.digest) or max(words[_HEADER:], default=0) >= _ABSURD:
        words[0] = 0  # for a reader it is no file of counters until it is one
        for index in range(_HEADER, len(words)):
            words[index] = 0
        words[0], words[1] = _MAGIC, layout.digest
    for name in layout.gauges:
        words[layout.at(name)] = 0
    return words


def _mapped(descriptor: int, size_bytes: int) -> Words:
    """Map a file, until nobody has its words any more. Raises `OSError`.

    Not with Python's `mmap`, which keeps a descriptor for itself: one for each version in a front, and one in the hands
    of a model, which could make the file grow without end.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.argtypes = (*(ctypes.c_void_p, ctypes.c_size_t), *(ctypes.c_int,) * 3, ctypes.c_long)
    libc.mmap.restype = ctypes.c_void_p
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    address = libc.mmap(None, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    memory = (ctypes.c_char * size_bytes).from_address(address)
    weakref.finalize(memory, libc.munmap, address, size_bytes).atexit = False
    return memoryview(memory).cast("B").cast("Q")


# -- reading --------------------------------------------------------------------------------------------------
def _ignored(_: str) -> None:
    pass


def read_counters(directory: Path, complain: Callable[[str], None] = _ignored) -> list[CounterSet]:
    """Read every file, in the order of their names.

    `complain` is told, in words, of each that is no file of counters that this release knows; it is left out. A writer
    goes on meanwhile: each number is right, and of two that change together one may be a step ahead.
    """
    try:
        with os.scandir(directory) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except FileNotFoundError:
        return []
    if len(names) > FILES_MAX:
        complain(f"{directory}: expected at most {FILES_MAX} files, received {len(names)}: the last ones are left out")
    found: list[CounterSet] = []
    within = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in names[:FILES_MAX]:
            try:
                one = _read(within, name)
                if one is not None:
                    found.append(one)
            except FileNotFoundError:
                pass  # it went meanwhile
            except OSError as error:
                complain(f"{directory / name}: {error.strerror}")
            except ValueError as error:
                complain(f"{directory / name}: {error}")
    finally:
        os.close(within)
    return found


def _read(within: int, name: str) -> CounterSet | None:
    """Read one file of an open directory; None: its writer has not begun it. Raises `OSError`, `ValueError`."""
    kind, *rest = name.split(_SEPARATOR)
    layout = LAYOUTS.get(kind)
    if layout is None or len(rest) != 2:
        raise ValueError(f"expected a name such as front~front:0~churn.v3, of the kinds {', '.join(LAYOUTS)}")
    writer, group = rest
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=within)
    try:
        state = os.fstat(descriptor)
        if stat.S_ISREG(state.st_mode) and not state.st_size:
            return None
        if not stat.S_ISREG(state.st_mode) or state.st_size != layout.size_bytes:
            raise ValueError(f"expected a file of {layout.size_bytes} bytes, received one of {state.st_size}")
        data = os.pread(descriptor, layout.size_bytes, 0)
    finally:
        os.close(descriptor)
    if data.startswith(bytes(_WORD)):
        return None
    words = memoryview(data).cast("Q") if len(data) == layout.size_bytes else None
    if words is None or (words[0], words[1]) != (_MAGIC, layout.digest):
        raise ValueError(f"expected the layout {layout.digest:016x} of {kind}, received another")
    names = (*layout.values, *layout.gauges)
    return CounterSet(
        kind=kind,
        writer=writer,
        group=group,
        values=dict(zip(names, words[_HEADER : _HEADER + len(names)].tolist(), strict=True)),
        histograms=Histograms(layout, data),
    )


# -- clearing -------------------------------------------------------------------------------------------------
def retire_counters(directory: Path, groups: Collection[str], retired_max: int = RETIRED_MAX) -> list[str]:
    """Remove the files of model versions that are not among `groups`, but for the newest; return their names.

    Raises `OSError`.
    """
    retired: list[tuple[float, str]] = []
    if not directory.is_dir():  # of a host that an earlier release has started
        return []
    with os.scandir(directory) as entries:
        for entry in entries:
            kind, _, rest = entry.name.partition(_SEPARATOR)
            group = rest.rpartition(_SEPARATOR)[2]
            if kind in (FRONT.kind, WORKER.kind) and group and group not in groups:
                retired.append((entry.stat(follow_symlinks=False).st_mtime, entry.name))
    removed = [name for _, name in sorted(retired)[: max(0, len(retired) - retired_max)]]
    for name in removed:
        (directory / name).unlink(missing_ok=True)
    return removed
