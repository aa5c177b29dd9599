"""Files, taken apart into batches of cells: CSV with a header, JSON lines, Parquet.

However the file is made, a batch is bounded in rows and in bytes, and a line in bytes: what is longer is a bad row.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Protocol

import msgspec

from feature_io.loading.cells import RowReader, Values, text_rows, value_rows
from feature_io.loading.progress import Position
from host.config.features import FeatureView
from host.protocol.errors import ConfigError

FORMATS: Final = {"csv": (".csv",), "jsonl": (".jsonl", ".ndjson"), "parquet": (".parquet", ".pq")}
"""Format to the ends of the names of its files."""

LINE_MAX_BYTES: Final = 1 << 20
BATCH_MAX_BYTES: Final = 8 << 20
"""Of a file's text; Python's objects of it take several times as much."""

_READ_BYTES: Final = 1 << 20
"""Of each column of a Parquet file at a time: its groups of rows may be large."""

_BOM: Final = b"\xef\xbb\xbf"
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")


class BadLine(NamedTuple):
    """A line that could not be taken apart."""

    line: int
    reason: str


@dataclass(slots=True)
class Batch:
    """Some rows, as columns of cells in the order of `RowReader.names`."""

    columns: list[Values]
    lines: Sequence[int]
    """The number of each row's first line, from 1; of a Parquet file the number of the row."""
    bad: list[BadLine]
    end: Position
    """Where the next batch begins."""


class Source(Protocol):
    """One file."""

    reader: RowReader
    size: int
    """In the unit of `Position.offset`."""
    ignored: list[str]
    """Columns of the file that the view does not have."""

    def batches(self, start: Position, rows: int) -> Iterator[Batch]:
        """From a position to the end. Raises `ConfigError` if the file cannot be read on."""
        ...


def open_source(view: FeatureView, file: Path, kind: str | None) -> Source:
    """A file of some kind, or of the one that its name says. Raises `ConfigError`."""
    if kind is None:
        kind = next((name for name, ends in FORMATS.items() if file.name.lower().endswith(ends)), None)
    if kind is None:
        known = ", ".join(end for ends in FORMATS.values() for end in ends)
        raise ConfigError(f"{file}: expected a name that ends in {known}, or --format")
    if not file.exists():
        raise ConfigError(f"{file}: expected a file, received none")
    if not file.is_file():
        raise ConfigError(f"{file}: expected a file, received something else")
    try:
        if kind == "parquet":
            return ParquetSource(view, file)
        return CsvSource(view, file) if kind == "csv" else JsonLinesSource(view, file)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from error


# -- lines ------------------------------------------------------------------------------------------------------------
class _Lines:
    """Lines of a file, of bounded length, and where they end."""

    def __init__(self, file: IO[bytes], position: Position) -> None:
        self._file = file
        self.offset = position.offset
        self.number = position.line
        """Lines that have been given."""
        self.too_long = False
        """The last line was; an empty one was given in its place. Whoever reads puts it back."""
        file.seek(position.offset)

    def raw(self) -> Iterator[bytes]:
        """Line by line, with their ends."""
        readline = self._file.readline
        while line := readline(LINE_MAX_BYTES + 1):
            if not self.offset:
                line = line.removeprefix(_BOM)
                self.offset = self._file.tell()
            else:
                self.offset += len(line)
            self.number += 1
            if len(line) > LINE_MAX_BYTES:
                self.too_long = True
                while not line.endswith(b"\n") and (line := readline(LINE_MAX_BYTES)):
                    self.offset += len(line)
                line = b"\n"
            yield line

    def texts(self) -> Iterator[str]:
        """Line by line, decoded; bytes that are not UTF-8 become half surrogates, which no column takes."""
        for line in self.raw():
            try:
                yield line.decode()
            except UnicodeDecodeError:
                yield line.decode("utf-8", "surrogateescape")

    @property
    def position(self) -> Position:
        return Position(offset=self.offset, line=self.number)


_TOO_LONG: Final = f"expected a line of at most {LINE_MAX_BYTES:,} bytes, received a longer one"


def _refuse_utf16(file: Path) -> None:
    with file.open("rb") as opened:
        if opened.read(2) in _UTF16:
            raise ConfigError(f"{file}: expected UTF-8, received UTF-16")


# -- CSV --------------------------------------------------------------------------------------------------------------
class CsvSource:
    """Comma-separated values (RFC 4180): the first line names the columns, a cell in quotes may hold lines."""

    def __init__(self, view: FeatureView, file: Path) -> None:
        self.reader = text_rows(view)
        self.size = file.stat().st_size
        self._file = file
        _refuse_utf16(file)
        with file.open("rb") as opened:
            lines = _Lines(opened, Position())
            try:
                header = next(_csv(lines), [])
            except csv.Error as error:
                raise ConfigError(f"{file}: line 1: {error}") from error
            if lines.too_long:
                raise ConfigError(f"{file}: line 1: {_TOO_LONG}")
            self._first = lines.position
        self._width = len(header)
        self._places, self.ignored = _find(file, self.reader, header)

    def batches(self, start: Position, rows: int) -> Iterator[Batch]:
        with self._file.open("rb") as opened:
            lines = _Lines(opened, start if start.offset else self._first)
            records = _csv(lines)
            while (batch := self._batch(lines, records, rows)) is not None:
                yield batch

    def _batch(self, lines: _Lines, records: Iterator[list[str]], rows: int) -> Batch | None:
        found: list[list[str]] = []
        numbers: list[int] = []
        bad: list[BadLine] = []
        begun, width = lines.offset, self._width
        end_bytes = begun + BATCH_MAX_BYTES
        while len(found) < rows and lines.offset < end_bytes:
            line = lines.number + 1
            try:
                record = next(records, None)
            except csv.Error as error:
                bad.append(BadLine(line, _csv_problem(error, line, lines.number)))
                continue
            if record is None:
                break
            if lines.too_long:
                lines.too_long = False
                bad.append(BadLine(line, _TOO_LONG))
            elif len(record) == width:
                found.append(record)
                numbers.append(line)
            elif record:  # a blank line is none
                bad.append(BadLine(line, f"expected {width} cells, received {len(record)}"))
        if lines.offset == begun:
            return None
        whole: list[Values] = list(zip(*found, strict=True)) if found else [()] * width
        return Batch([whole[place] for place in self._places], numbers, bad, lines.position)


def _csv(lines: _Lines) -> Iterator[list[str]]:
    csv.field_size_limit(LINE_MAX_BYTES)
    return csv.reader(lines.texts(), strict=True)


def _csv_problem(error: csv.Error, first: int, last: int) -> str:
    where = "" if first == last else f" (up to line {last}, which is left out too)"
    words = str(error).split(" - ")[0]  # what follows is advice to programmers
    return f"expected comma-separated values: {words}{where}"


def _find(file: Path, reader: RowReader, header: Sequence[str]) -> tuple[list[int], list[str]]:
    """Where the view's columns are in the file, and the columns that it does not have. Raises `ConfigError`."""
    names = [name for name in reader.names if name != reader.optional or name in header]
    problems = []
    if not header:
        problems.append("expected a header with the names of the columns, received an empty file")
    elif missing := [name for name in names if name not in header]:
        problems.append(f"expected columns {', '.join(missing)} too, received {', '.join(header)}")
    problems += [f"expected column {name} once, received it twice" for name in names if header.count(name) > 1]
    if problems:
        raise ConfigError(*(f"{file}: {problem}" for problem in problems))
    return [header.index(name) for name in names], [name for name in header if name not in names]


# -- JSON lines -------------------------------------------------------------------------------------------------------
class JsonLinesSource:
    """One JSON object a line; what it does not name is null."""

    def __init__(self, view: FeatureView, file: Path) -> None:
        self.reader = value_rows(view)
        self.size = file.stat().st_size
        self.ignored: list[str] = []
        self._file = file
        _refuse_utf16(file)
        if not self.size:
            raise ConfigError(f"{file}: expected JSON objects, one a line, received an empty file")

    def batches(self, start: Position, rows: int) -> Iterator[Batch]:
        with self._file.open("rb") as opened:
            lines = _Lines(opened, start)
            raw = lines.raw()
            while (batch := self._batch(lines, raw, rows)) is not None:
                yield batch

    def _batch(self, lines: _Lines, raw: Iterator[bytes], rows: int) -> Batch | None:
        found: list[dict[str, Any]] = []
        numbers: list[int] = []
        bad: list[BadLine] = []
        begun = lines.offset
        end_bytes = begun + BATCH_MAX_BYTES
        while len(found) < rows and lines.offset < end_bytes and (line := next(raw, None)) is not None:
            if lines.too_long:
                lines.too_long = False
                bad.append(BadLine(lines.number, _TOO_LONG))
                continue
            if not line.strip():
                continue
            try:
                found.append(_decode_object(line))
                numbers.append(lines.number)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                bad.append(BadLine(lines.number, f"expected a JSON object: {error}"))
        if lines.offset == begun:
            return None
        columns: list[Values] = [[record.get(name) for record in found] for name in self._names(found)]
        return Batch(columns, numbers, bad, lines.position)

    def _names(self, found: list[dict[str, Any]]) -> list[str]:
        """Without the freshness column where no row of the batch has it: then it is the time of the load."""
        optional = self.reader.optional
        if optional is None or any(optional in record for record in found):
            return self.reader.names
        return [name for name in self.reader.names if name != optional]


_decode_object: Final[Callable[[bytes], dict[str, Any]]] = msgspec.json.Decoder(dict[str, Any]).decode


# -- Parquet ----------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class _Group:
    """Rows that lie together in a Parquet file."""

    number: int
    first: int
    rows: int = field(default=0)


class ParquetSource:
    """Parquet, read by batches of records; needs pyarrow."""

    def __init__(self, view: FeatureView, file: Path) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{file}: reading Parquet needs the package pyarrow: pip install 'modelhost[parquet]'"
            ) from error
        self.reader = value_rows(view)
        self._file = file
        self._arrow: Any = pyarrow
        self._parquet: Any = pyarrow.parquet
        try:
            with self._parquet.ParquetFile(file) as opened:
                schema = opened.schema_arrow
                groups = opened.metadata
                sizes = [groups.row_group(number).num_rows for number in range(groups.num_row_groups)]
        except pyarrow.ArrowException as error:
            raise ConfigError(f"{file}: expected a Parquet file: {error}") from error
        self.size = sum(sizes)
        self._groups = [_Group(number, sum(sizes[:number]), rows) for number, rows in enumerate(sizes)]
        places, self.ignored = _find(file, self.reader, list(schema.names))
        self._names = [schema.names[place] for place in places]
        problems = list(self._type_problems(schema))
        if problems:
            raise ConfigError(*(f"{file}: {problem}" for problem in problems))

    def batches(self, start: Position, rows: int) -> Iterator[Batch]:
        todo = [group for group in self._groups if group.first + group.rows > start.offset]
        place = todo[0].first if todo else self.size
        try:
            with self._parquet.ParquetFile(self._file, pre_buffer=False, buffer_size=_READ_BYTES) as opened:
                records = opened.iter_batches(
                    batch_size=rows,
                    row_groups=[group.number for group in todo],
                    columns=self._names,
                    use_threads=False,
                )
                for record in records:
                    end = place + record.num_rows
                    skip = max(0, min(record.num_rows, start.offset - place))
                    if skip < record.num_rows:
                        yield self._batch(record.slice(skip), place + skip, end)
                    place = end
        except (OSError, self._arrow.ArrowException) as error:
            raise ConfigError(f"{self._file}: cannot be read: {error}") from error

    def _batch(self, record: Any, first: int, end: int) -> Batch:
        columns = [self._values(record.column(record.schema.get_field_index(name))) for name in self._names]
        return Batch(columns, range(first + 1, end + 1), [], Position(offset=end, line=end))

    def _values(self, column: Any) -> Values:
        types = self._arrow.types
        if types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if types.is_float16(column.type):
            column = column.cast(self._arrow.float32())
        values: Values = column.to_pylist()
        return values

    def _type_problems(self, schema: Any) -> Iterator[str]:
        """Columns whose types can never be the view's; the values themselves are checked when they are read."""
        types = self._arrow.types
        for reader, name in zip(self.reader.readers, self.reader.names, strict=True):
            if name not in self._names:
                continue
            kind = schema.field(name).type
            if types.is_dictionary(kind):
                kind = kind.value_type
            column = reader.column
            if name == self.reader.optional:
                expected = "timestamp, a number or text"
                fits = (
                    types.is_timestamp(kind)
                    or types.is_floating(kind)
                    or types.is_integer(kind)
                    or _is_text(types, kind)
                )
            elif column.storage == "blob":
                expected = f"binary, or a list of {column.items} {column.datatype} values"
                fits = _is_bytes(types, kind) or _is_list(types, kind)
            elif column.shape:
                expected = f"a list of {column.items} {column.datatype} values"
                fits = _is_list(types, kind)
            else:
                expected = column.datatype
                fits = types.is_null(kind) or _is_scalar(types, kind, column.datatype)
            if not fits:
                yield f"column {name}: expected {expected}, received {kind}"


def _is_text(types: Any, kind: Any) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _is_bytes(types: Any, kind: Any) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def _is_list(types: Any, kind: Any) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_scalar(types: Any, kind: Any, datatype: str) -> bool:
    if datatype == "BOOL":
        return bool(types.is_boolean(kind))
    if datatype == "BYTES":
        return _is_text(types, kind) or _is_bytes(types, kind) or "uuid" in str(kind)
    if datatype.startswith("FP"):
        return bool(types.is_floating(kind) or types.is_integer(kind))
    return bool(types.is_integer(kind))
