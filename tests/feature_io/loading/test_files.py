"""Files into rows: every format, everything that can be wrong with one, and where a batch ends."""

from __future__ import annotations

import csv
import io
import json
import math
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_io.loading.files import BATCH_MAX_BYTES, LINE_MAX_BYTES, Source, open_source
from feature_io.loading.progress import Position
from feature_io.stores import Key, Row
from host.config.features import FeatureColumn, FeatureView, KeyColumn
from host.protocol.errors import ConfigError

NOW_S = 1_700_000_000.0


def scalar(name: str, datatype: str) -> FeatureColumn:
    return FeatureColumn(name=name, datatype=datatype)


def many(name: str, datatype: str, *shape: int, storage: str = "list") -> FeatureColumn:
    return FeatureColumn(name=name, datatype=datatype, shape=shape, storage=storage)


def make_view(
    *columns: FeatureColumn, keys: tuple[tuple[str, str], ...] = (("id", "INT64"),), freshness_column: str | None = None
) -> FeatureView:
    return FeatureView(
        name="v",
        store="s",
        keyspace=None,
        table="t",
        keys=tuple(KeyColumn(column=name, datatype=datatype, input=name) for name, datatype in keys),
        columns=columns or (scalar("x", "FP64"),),
        freshness_column=freshness_column,
    )


Rows = list[tuple[Key, Row]]
Bad = list[tuple[int, str]]


def read(source: Source, start: Position | None = None, rows: int = 10_000) -> tuple[Rows, Bad, list[Position]]:
    """All rows, all bad lines, and where each batch ended."""
    good: Rows = []
    wrong: Bad = []
    ends = []
    for batch in source.batches(start or Position(), rows):
        bad: dict[int, str] = {}
        if batch.lines:
            good += source.reader.read(batch.columns, bad, NOW_S)
        wrong += [*batch.bad, *((batch.lines[place], reason) for place, reason in bad.items())]
        ends.append(batch.end)
    return good, sorted((line, reason) for line, reason in wrong), ends


def read_text(view: FeatureView, directory: Path, text: str | bytes, end: str = ".csv") -> tuple[Rows, Bad]:
    path = directory / f"file{end}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(open_source(view, path, None))[:2]


# -- CSV ----------------------------------------------------------------------------------------------------------
def test_columns_are_found_by_name_and_others_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("other,x,id,more\nfoo,0.5,1,\nbar,1.5,2,\n")
    source = open_source(make_view(), path, None)
    assert source.ignored == ["other", "more"]
    assert read(source)[0] == [((1,), (0.5,)), ((2,), (1.5,))]


@pytest.mark.parametrize(
    "text",
    [
        "id,x\n1,0.5\n2,1.5\n",
        "id,x\n1,0.5\n2,1.5",
        "id,x\r\n1,0.5\r\n2,1.5\r\n",
        "\ufeffid,x\n1,0.5\n2,1.5\n",
        "id,x\n\n1,0.5\n\n\n2,1.5\n\n",
        '"id","x"\n"1","0.5"\n"2","1.5"\n',
        "id,x\n 1 , 0.5 \n+2,15e-1\n",
    ],
    ids=["plain", "no end", "CRLF", "BOM", "blank lines", "quotes", "spaces"],
)
def test_spellings_of_one_table(tmp_path: Path, text: str) -> None:
    assert read_text(make_view(), tmp_path, text) == ([((1,), (0.5,)), ((2,), (1.5,))], [])


def test_text_of_every_script_and_lines_in_cells(tmp_path: Path) -> None:
    view = make_view(scalar("t", "BYTES"), keys=(("name", "BYTES"),))
    text = 'name,t\näöü,"two\nlines, and ""quotes"""\n日本語,👩‍👩‍👧\n x , y \n'
    rows, bad = read_text(view, tmp_path, text)
    assert rows == [(("äöü",), ('two\nlines, and "quotes"',)), (("日本語",), ("👩‍👩‍👧",)), ((" x ",), (" y ",))]
    assert bad == []


def test_empty_cells_are_null_with_quotes_or_without(tmp_path: Path) -> None:
    view = make_view(*(scalar(name.lower(), name) for name in ("FP64", "INT8", "BOOL", "BYTES")), many("v", "FP32", 2))
    rows, bad = read_text(view, tmp_path, 'id,fp64,int8,bool,bytes,v\n1,,,,,\n2,"","","","",""\n3,1,1,1,1,"[1,2]"\n')
    nothing = (None,) * 5
    assert rows == [((1,), nothing), ((2,), nothing), ((3,), (1.0, 1, True, "1", [1, 2]))]
    assert bad == []


def test_every_datatype_as_text(tmp_path: Path) -> None:
    view = make_view(
        scalar("b", "BOOL"), scalar("u", "UINT64"), scalar("h", "FP16"), scalar("f", "FP32"),
        many("m", "INT16", 2, 2), many("s", "BYTES", 2), many("e", "FP32", 2, storage="blob"),
    )  # fmt: skip
    text = (
        "id,b,u,h,f,m,s,e\n"
        '1,TRUE,18446744073709551615,65504,-inf,"[[1,2],[3,4]]","[""a"",""ä""]","[0.5,1]"\n'
        '2,0,0,0.1,nan,"[1,2,3,4]","["""",""""]","[0,0]"\n'
    )
    rows, bad = read_text(view, tmp_path, text)
    assert bad == []
    assert rows[0] == (
        (1,),
        (True, 2**64 - 1, 65504.0, -math.inf, [1, 2, 3, 4], ["a", "ä"], np.array([0.5, 1], "<f4").tobytes()),
    )
    assert rows[1][1][0] is False
    assert math.isnan(rows[1][1][3])


@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [
        (scalar("x", "FP64"), "abc", 'column x: expected FP64, received "abc"'),
        (scalar("x", "FP64"), "1_0", 'column x: expected FP64, received "1_0"'),
        (scalar("x", "FP64"), "\u0661", 'column x: expected FP64, received "\u0661"'),
        (scalar("x", "FP32"), "1e300", "column x: expected FP32, received 1e+300"),
        (scalar("x", "INT64"), "1.0", 'column x: expected INT64, received "1.0"'),
        (scalar("x", "INT64"), "9223372036854775808", "column x: expected INT64, received 9223372036854775808"),
        (scalar("x", "INT64"), "9" * 5000, 'column x: expected INT64, received "999'),
        (scalar("x", "UINT8"), "256", "column x: expected UINT8, received 256"),
        (scalar("x", "UINT8"), "-1", "column x: expected UINT8, received -1"),
        (scalar("x", "BOOL"), "yes", 'column x: expected true, false, 1 or 0, received "yes"'),
        (many("x", "FP32", 2), "[1]", "column x: expected 2 FP32 values, received 1"),
        (many("x", "FP32", 2), "[1,null]", "column x: expected FP32 values, received null at position 1"),
        (many("x", "FP32", 2), "1;2", "column x: expected a JSON list of 2 FP32 values, received"),
        (many("x", "FP32", 2, 2), "[[1,2],[3]]", "column x: expected a list of 4 values, flat or nested as [2, 2]"),
        (many("x", "FP32", 2, storage="blob"), "[1]", "column x: expected 2 FP32 values, received 1"),
    ],
)  # fmt: skip
def test_bad_cells_are_named_by_line_and_reason(tmp_path: Path, column: FeatureColumn, cell: str, words: str) -> None:
    good = "[1,2,3,4]" if column.shape == (2, 2) else "[1,2]" if column.shape else "1"
    rows, bad = read_text(make_view(column), tmp_path, f'id,x\n1,"{good}"\n2,"{cell}"\n\n3,"{good}"\n')
    assert [key for key, _ in rows] == [(1,), (3,)]
    assert [line for line, _ in bad] == [3]
    assert bad[0][1].startswith(words)


@pytest.mark.parametrize(
    ("datatype", "cell", "words"),
    [
        ("INT64", "", "column id: expected a key, received null"),
        ("INT64", "x", 'column id: expected INT64, received "x"'),
        ("INT8", "128", "column id: expected INT8, received 128"),
        ("BYTES", "", "column id: expected a key, received null"),
        ("UUID", "", "column id: expected a key, received null"),
        ("UUID", "123", 'column id: expected a UUID, received "123"'),
    ],
)
def test_bad_keys_are_named(tmp_path: Path, datatype: str, cell: str, words: str) -> None:
    view = make_view(keys=(("id", datatype),))
    assert read_text(view, tmp_path, f"id,x\n{cell},0.5\n") == ([], [(2, words)])


def test_uuids_are_their_text_in_lower_case(tmp_path: Path) -> None:
    view = make_view(keys=(("id", "UUID"),))
    one = uuid.uuid4()
    assert read_text(view, tmp_path, f"id,x\n{str(one).upper()},0.5\n")[0] == [((str(one),), (0.5,))]


def test_rows_of_other_lengths_and_broken_quotes_are_bad_and_what_follows_is_read(tmp_path: Path) -> None:
    text = 'id,x\n1,0.5\n2\n3,1,2\n4,"0.5"x\n5,0.5\n'
    rows, bad = read_text(make_view(), tmp_path, text)
    assert [key for key, _ in rows] == [(1,), (5,)]
    assert [line for line, _ in bad] == [3, 4, 5]
    assert bad[0][1] == "expected 2 cells, received 1"
    assert bad[1][1] == "expected 2 cells, received 3"
    assert bad[2][1].startswith("expected comma-separated values: ")


def test_a_quote_that_never_ends_is_one_bad_row(tmp_path: Path) -> None:
    rows, bad = read_text(make_view(), tmp_path, 'id,x\n1,0.5\n2,"0.5\n3,0.5\n')
    assert rows == [((1,), (0.5,))]
    assert bad == [(3, "expected comma-separated values: unexpected end of data (up to line 4, which is left out too)")]


def test_a_quote_that_never_ends_is_bounded(tmp_path: Path) -> None:
    many_rows = "".join(f"{n},0.5\n" for n in range(200_000))
    rows, bad = read_text(make_view(), tmp_path, 'id,x\n1,0.5\n2,"0.5\n' + many_rows)
    assert [line for line, _ in bad] == [3]
    assert "field larger than field limit" in bad[0][1]
    assert 0 < len(rows) < 200_000


def test_lines_that_are_not_utf8_are_bad_where_it_matters(tmp_path: Path) -> None:
    view = make_view(scalar("t", "BYTES"))
    rows, bad = read_text(view, tmp_path, b"id,t,o\n1,\xff,a\n2,b,\xff\n3,c,c\n")
    assert rows == [((2,), ("b",)), ((3,), ("c",))]
    assert bad == [(2, "column t: expected text in UTF-8, received b'\\xff'")]


@pytest.mark.parametrize("length", [LINE_MAX_BYTES, LINE_MAX_BYTES + 1])
@pytest.mark.parametrize("place", ["middle", "end"])
def test_a_line_that_is_too_long_is_bad_and_what_follows_is_read(tmp_path: Path, length: int, place: str) -> None:
    view = make_view(scalar("t", "BYTES"))
    end = "\n3,c\n" if place == "middle" else "\n"
    long = "2," + "x" * (length - 3)
    rows, bad = read_text(view, tmp_path, f"id,t\n1,a\n{long}{end}")
    numbers = [key[0] for key, _ in rows]
    if length > LINE_MAX_BYTES:
        assert 2 not in numbers
        assert bad == [(3, f"expected a line of at most {LINE_MAX_BYTES:,} bytes, received a longer one")]
    else:
        assert 2 in numbers
        assert bad == []
    assert (3 in numbers) == (place == "middle")


def test_a_line_that_is_too_long_within_quotes_takes_its_row_with_it(tmp_path: Path) -> None:
    view = make_view(scalar("t", "BYTES"))
    rows, bad = read_text(view, tmp_path, f'id,t\n1,"a\n{"x" * (LINE_MAX_BYTES + 5)}\nb"\n2,c\n')
    assert rows == [((2,), ("c",))]
    assert [line for line, _ in bad] == [2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a header with the names of the columns, received an empty file"),
        ("id,y\n1,2\n", "expected columns x too, received id, y"),
        ("a,b\n", "expected columns id, x too, received a, b"),
        ("id,x,x\n1,2,3\n", "expected column x once, received it twice"),
        ("id,x,id\n1,2,3\n", "expected column id once, received it twice"),
        ("\xff\xfei\x00", "expected UTF-8, received UTF-16"),
        ('"id,x\n1,2\n', "line 1: "),
        ("i" * (LINE_MAX_BYTES + 1) + "\n1\n", "line 1: expected a line of at most"),
    ],
    ids=["empty", "missing", "two missing", "twice", "key twice", "UTF-16", "open quote", "too long"],
)
def test_headers_that_cannot_be(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_text(make_view(), tmp_path, text.encode("latin-1"))
    assert words in str(raised.value)


def test_a_header_alone_is_a_file_without_rows(tmp_path: Path) -> None:
    assert read_text(make_view(), tmp_path, "id,x\n") == ([], [])


def test_freshness_is_taken_from_the_file_or_is_now(tmp_path: Path) -> None:
    view = make_view(freshness_column="changed")
    assert read_text(view, tmp_path, "id,x\n1,0.5\n")[0] == [((1,), (0.5, NOW_S))]
    times = ["12.5", "2026-01-31T12:00:00Z", "2026-01-31 12:00:00", "", "soon", "inf"]
    text = "id,x,changed\n" + "".join(f"{n},0.5,{time}\n" for n, time in enumerate(times))
    rows, bad = read_text(view, tmp_path, text)
    assert [row[1] for _, row in rows] == [12.5, 1_769_860_800.0, 1_769_860_800.0, None]
    assert [line for line, _ in bad] == [6, 7]
    assert bad[0][1].startswith("column changed: expected seconds since the epoch or a time such as")


# -- batches ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("rows", [1, 3, 7, 10, 100])
def test_a_read_that_goes_on_anywhere_is_the_same_as_one_that_never_stopped(
    tmp_path: Path, kind: str, rows: int
) -> None:
    view = make_view(scalar("t", "BYTES"))
    path = tmp_path / f"file.{kind}"
    texts = [f"ä\n{n}" if n % 3 else f"t{n}" for n in range(10)]
    if kind == "csv":
        path.write_text("\ufeffid,t\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(texts)))
    elif kind == "jsonl":
        path.write_text("\ufeff" + "".join(json.dumps({"id": n, "t": text}) + "\n" for n, text in enumerate(texts)))
    else:
        pq.write_table(pa.table({"id": list(range(10)), "t": texts}), path, row_group_size=4)
    source = open_source(view, path, None)
    whole, bad, ends = read(source, rows=rows)
    assert bad == []
    assert whole == [((n,), (text,)) for n, text in enumerate(texts)]
    for done, end in enumerate(ends, 1):
        rest = read(source, end, rows)[0]
        assert rest == whole[len(whole) - len(rest) :]
        if kind != "parquet":
            assert len(rest) == max(0, 10 - done * rows)
    assert ends[-1].offset == source.size


def test_line_numbers_go_on_too(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,x\n1,0.5\n2,0.5\n3,bad\n")
    source = open_source(make_view(), path, None)
    first = next(iter(source.batches(Position(), 2)))
    assert read(source, first.end)[1] == [(4, 'column x: expected FP64, received "bad"')]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_batches_are_bounded_in_bytes(tmp_path: Path, kind: str) -> None:
    view = make_view(scalar("t", "BYTES"))
    text = "x" * 900_000
    path = tmp_path / f"a.{kind}"
    row = "{n},{t}\n" if kind == "csv" else '{{"id":{n},"t":"{t}"}}\n'
    path.write_text(("id,t\n" if kind == "csv" else "") + "".join(row.format(n=n, t=text) for n in range(30)))
    source = open_source(view, path, None)
    sizes = [len(batch.lines) for batch in source.batches(Position(), 10_000)]
    assert sum(sizes) == 30
    assert max(sizes) <= BATCH_MAX_BYTES // 900_000 + 1


@given(
    st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.text(min_size=1), st.floats(allow_nan=False)), max_size=20),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(1, 5),
)
def test_whatever_csv_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str, float]], end: str, batch: int
) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL)  # else a lone CR has none
    writer.writerow(["id", "t", "x"])
    writer.writerows(rows)
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(out.getvalue().encode())
    view = make_view(scalar("t", "BYTES"), scalar("x", "FP64"))
    good, bad, _ = read(open_source(view, path, None), rows=batch)
    assert bad == []
    assert good == [((n,), (text, x)) for n, text, x in rows]


# -- JSON lines -----------------------------------------------------------------------------------------------------
def test_json_lines(tmp_path: Path) -> None:
    view = make_view(scalar("x", "FP64"), scalar("b", "BOOL"), many("v", "FP32", 2, 2), scalar("t", "BYTES"))
    lines = [
        {"id": 1, "x": 0.5, "b": True, "v": [[1, 2], [3, 4]], "t": "ä", "other": {}},
        {"x": 1, "id": 2, "v": [1, 2, 3, 4], "t": ""},
        {"id": 3, "x": None},
    ]
    rows, bad = read_text(view, tmp_path, "\n".join(map(json.dumps, lines)) + "\n\n", ".jsonl")
    assert bad == []
    assert rows == [
        ((1,), (0.5, True, [1, 2, 3, 4], "ä")),
        ((2,), (1, None, [1, 2, 3, 4], "")),
        ((3,), (None, None, None, None)),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "expected a JSON object: "),
        (b"[1]", "expected a JSON object: "),
        (b'{"id": 1, "x": NaN}', "expected a JSON object: "),
        (b'{"id": "1", "x": 1}', 'column id: expected INT64, received "1"'),
        (b'{"id": true, "x": 1}', "column id: expected INT64, received true"),
        (b'{"id": 1, "x": "1"}', 'column x: expected FP64, received "1"'),
        (b'{"id": 1, "x": true}', "column x: expected FP64, received true"),
        (b'{"x": 1}', "column id: expected a key, received null"),
        (b'{"id": 1, "x": "\xff"}', "expected a JSON object: "),
        (b'{"id": 1, "x": ' + b"1" * (LINE_MAX_BYTES + 1) + b"}", "expected a line of at most"),
        (b"[" * 100_000, "expected a JSON object: "),
    ],
    ids=["cut", "list", "NaN", "text key", "true key", "text", "true", "no key", "not UTF-8", "too long", "deep"],
)
def test_bad_json_lines(tmp_path: Path, line: bytes, words: str) -> None:
    rows, bad = read_text(make_view(), tmp_path, b'{"id": 7, "x": 1}\n' + line + b'\n{"id": 8, "x": 1}\n', ".jsonl")
    assert [key for key, _ in rows] == [(7,), (8,)]
    assert [number for number, _ in bad] == [2]
    assert bad[0][1].startswith(words)


def test_an_empty_json_lines_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="received an empty file"):
        read_text(make_view(), tmp_path, "", ".jsonl")


# -- Parquet ----------------------------------------------------------------------------------------------------------
def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_parquet_of_every_type(tmp_path: Path) -> None:
    one = uuid.uuid4()
    view = make_view(
        scalar("b", "BOOL"), scalar("u", "UINT64"), scalar("h", "FP16"), scalar("f", "FP64"), scalar("t", "BYTES"),
        scalar("d", "BYTES"), scalar("y", "BYTES"), many("v", "FP32", 2), many("m", "INT8", 2, 2),
        many("e", "FP32", 2, storage="blob"), many("n", "FP32", 2, storage="blob"),
        keys=(("id", "INT32"), ("who", "UUID")), freshness_column="at",
    )  # fmt: skip
    blob = np.array([0.5, 1], "<f4").tobytes()
    path = write_parquet(
        tmp_path / "a.parquet",
        {
            "id": pa.array([1, 2], pa.int8()),
            "who": [str(one), str(one).upper()],
            "b": [True, None],
            "u": pa.array([2**64 - 1, 0], pa.uint64()),
            "h": pa.array(np.array([0.5, 1.5], np.float16)),
            "f": pa.array([1, 2], pa.int32()),
            "t": pa.array(["ä", ""], pa.large_string()),
            "d": pa.array(["x", None]).dictionary_encode(),
            "y": pa.array([b"abc", b"\xff"]),
            "v": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
            "m": pa.array([[[1, 2], [3, 4]], None]),
            "e": pa.array([blob, blob]),
            "n": pa.array([[0.5, 1.0], None]),
            "at": pa.array([1_700_000_000_250, None], pa.timestamp("ms", tz="UTC")),
        },
    )
    rows, bad, _ = read(open_source(view, path, None))
    assert bad == []
    assert rows == [
        (
            (1, str(one)),
            (True, 2**64 - 1, 0.5, 1, "ä", "x", "abc", [1.0, 2.0], [1, 2, 3, 4], blob, blob, 1_700_000_000.25),
        ),
        ((2, str(one)), (None, 0, 1.5, 2, "", None, b"\xff", [3.0, 4.0], None, blob, None, None)),
    ]


def test_parquet_rows_are_named_by_their_number(tmp_path: Path) -> None:
    view = make_view(scalar("x", "INT8"))
    path = write_parquet(
        tmp_path / "a.parquet", {"id": list(range(10)), "x": [*range(6), 300, *range(3)]}, row_group_size=4
    )
    rows, bad, _ = read(open_source(view, path, None), rows=3)
    assert len(rows) == 9
    assert bad == [(7, "column x: expected INT8, received 300")]


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        (scalar("x", "FP64"), ["a"], "column x: expected FP64, received string"),
        (scalar("x", "INT64"), [0.5], "column x: expected INT64, received double"),
        (scalar("x", "BOOL"), [1], "column x: expected BOOL, received int64"),
        (scalar("x", "BYTES"), [1], "column x: expected BYTES, received int64"),
        (many("x", "FP32", 2), [0.5], "column x: expected a list of 2 FP32 values, received double"),
        (
            many("x", "FP32", 2, storage="blob"),
            ["a"],
            "column x: expected binary, or a list of 2 FP32 values, received",
        ),
    ],
)
def test_parquet_types_that_can_never_be_right(
    tmp_path: Path, column: FeatureColumn, values: list[Any], words: str
) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"id": [1], "x": values})
    with pytest.raises(ConfigError) as raised:
        open_source(make_view(column), path, None)
    assert words in str(raised.value)


def test_what_is_no_parquet_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("id,x\n")
    with pytest.raises(ConfigError, match="expected a Parquet file"):
        open_source(make_view(), path, None)
    write_parquet(path, {"id": [1]})
    with pytest.raises(ConfigError, match="expected columns x too, received id"):
        open_source(make_view(), path, None)


def test_a_parquet_file_without_rows(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"id": pa.array([], pa.int64()), "x": pa.array([], pa.float64())})
    assert read(open_source(make_view(), path, None)) == ([], [], [])


# -- which format -----------------------------------------------------------------------------------------------------
def test_the_format_is_the_names_or_the_one_that_is_given(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("id,x\n1,0.5\n")
    with pytest.raises(ConfigError, match=r"expected a name that ends in \.csv, .*or --format"):
        open_source(make_view(), path, None)
    assert read(open_source(make_view(), path, "csv"))[0] == [((1,), (0.5,))]
    with pytest.raises(ConfigError, match="expected a file, received none"):
        open_source(make_view(), tmp_path / "none.csv", None)
    (tmp_path / "dir.csv").mkdir()
    with pytest.raises(ConfigError, match="expected a file, received something else"):
        open_source(make_view(), tmp_path / "dir.csv", None)
