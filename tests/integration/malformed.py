"""Requests that must be refused: a table of kinds and variants, each with the answer that it gets."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack

CANCER = "/v2/models/breast_cancer/infer"
DIGITS = "/v2/models/digits/infer"
DIABETES = "/v2/models/diabetes/infer"
TEXTS = "/v2/models/texts/infer"
TYPED = "/v2/models/typed/infer"
VARIABLE = "/v2/models/variable/infer"
V1_CANCER = "/v1/models/breast_cancer:predict"
V1_DIABETES = "/v1/models/diabetes:predict"
V1_TEXTS = "/v1/models/texts:predict"
HEADER = "Inference-Header-Content-Length"
COLUMNS = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")

MALFORMED = (400, "MALFORMED")
INVALID = (422, "INVALID_INPUT")


@dataclass(frozen=True)
class Bad:
    """A request, the error that it gets, and what the message must say."""

    kind: str
    variant: str
    body: bytes
    error: tuple[int, str] | None
    """Status and code; None: a 400 or a 422, whichever check comes first."""
    says: tuple[str, ...] = ()
    path: str = CANCER
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})

    def __str__(self) -> str:
        return f"{self.kind}: {self.variant}"

    @property
    def errors(self) -> tuple[tuple[int, str], ...]:
        """What it may get."""
        return (MALFORMED, INVALID) if self.error is None else (self.error,)


def tensor(name: str = "features", shape: Any = (1, 30), datatype: Any = "FP64", **rest: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, **(rest or {"data": [1.0] * 30})}


def request(*inputs: Any, **rest: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **rest}).encode()


GOOD = request(tensor())
ROW = b",".join([b"1.0"] * 29)


def with_data(data: bytes) -> bytes:
    """A request whose `data` is written as it stands here."""
    return b'{"inputs":[{"name":"features","shape":[1,30],"datatype":"FP64","data":%s}]}' % data


def truncated() -> Iterator[Bad]:
    for size in (1, 2, 10, 20, 40, 60, len(GOOD) - 1):
        yield Bad("truncated JSON", f"{size} bytes", GOOD[:size], MALFORMED, ("the body is not JSON",))
    yield Bad("truncated JSON", "something behind it", GOOD + b"]", MALFORMED, ("the body is not JSON",))
    yield Bad("truncated JSON", "two documents", GOOD + GOOD, MALFORMED, ("the body is not JSON",))


def no_document() -> Iterator[Bad]:
    yield Bad("empty", "no body", b"", MALFORMED, ("the body is empty",))
    yield Bad("empty", "no body, msgpack", b"", MALFORMED, ("the body is empty",), headers=MSGPACK)
    yield Bad("empty", "v1", b"", MALFORMED, ("the body is empty",), path=V1_CANCER)
    yield Bad("empty", "spaces", b"  \n ", MALFORMED, ("the body is not JSON",))
    for text in ("null", "[]", "{}", "7", '"inputs"', "true", '{"inputs": null}', '{"inputs": {}}', '{"inputs": 3}'):
        yield Bad("not a request", text, text.encode(), MALFORMED, ("not an inference request",))
    for text in ("[1]", "[null]", '[["features"]]', "[{}]", '[{"name": "features"}]', '[{"shape": [1, 30]}]'):
        body = b'{"inputs": %s}' % text.encode()
        yield Bad("not a request", f"inputs {text}", body, MALFORMED, ("not an inference request", "$.inputs[0]"))
    for key, value in (("name", 3), ("name", None), ("shape", "1, 30"), ("shape", None), ("datatype", 64)):
        body = request(tensor(data=[1.0] * 30) | {key: value})
        yield Bad("not a request", f"{key} is {value!r}", body, MALFORMED, (f"$.inputs[0].{key}",))
    yield Bad("not a request", "no inputs", request(), INVALID, ("input 'features' is missing", "received none"))
    for key, value in (("id", 7), ("parameters", []), ("outputs", {}), ("outputs", ["probability"])):
        yield Bad("not a request", f"{key} is {value!r}", request(tensor(), **{key: value}), MALFORMED, (f"$.{key}",))
    yield Bad("not UTF-8", "everywhere", b"\xff\xfe\x00\x01", MALFORMED, ("not UTF-8", "0xff"))
    yield Bad("not UTF-8", "in a name", GOOD.replace(b"features", b"feat\xc3\x28"), MALFORMED, ("not UTF-8",))
    yield Bad("not UTF-8", "UTF-16", GOOD.decode().encode("utf-16"), MALFORMED, ("not UTF-8",))
    yield Bad("not UTF-8", "cut in a character", GOOD[:-1] + b"\xe2\x82", MALFORMED, ("not UTF-8",))
    yield Bad("not UTF-8", "BOM", b"\xef\xbb\xbf" + GOOD, MALFORMED, ("not JSON",))
    yield Bad("not UTF-8", "v1", b'{"instances": "\xff"}', MALFORMED, ("not UTF-8",), path=V1_CANCER)
    lone = rb'{"inputs":[{"name":"\ud800","shape":[1,30],"datatype":"FP64","data":[%s]}]}'
    yield Bad("not UTF-8", "lone surrogate as a name", lone % (ROW + b",1.0"), MALFORMED)
    yield Bad("not UTF-8", "lone surrogate beside NaN", lone % (ROW + b",NaN"), INVALID, ("expected finite numbers",))
    v1 = rb'{"instances":[{"\ud800": NaN}]}'
    yield Bad("not UTF-8", "lone surrogate, v1", v1, INVALID, ("expected finite numbers",), path=V1_DIABETES)
    yield Bad("not UTF-8", "lone surrogate, v1 key", rb'{"\ud800": 1}', MALFORMED, path=V1_DIABETES)


def shapes() -> Iterator[Bad]:
    for datatype in ("FP32", "fp64", "INT64", "BYTES", "", "FP128", "double"):
        body = request(tensor(datatype=datatype))
        says = ("input 'features'", "expected datatype FP64", f"received '{datatype}'")
        yield Bad("wrong datatype", datatype or "empty", body, INVALID, says)
    for shape in ([30], [], [1], [1, 29], [1, 31], [30, 1], [1, 1, 30], [1, 30, 1], [2, 15], [1, 0]):
        says = ("input 'features'", "expected shape [-1, 30]", f"received {shape}")
        yield Bad("wrong shape", str(shape), request(tensor(shape=shape)), INVALID, says)
    for shape in ([-1, 30], [1, -30], [-1, -30], [-(2**40), 30]):
        says = ("input 'features'", "dimensions >= 0", f"received {shape}")
        yield Bad("negative dimension", str(shape), request(tensor(shape=shape)), MALFORMED, says)
    for shape in (["1", 30], [1, 30.5], [None, 30], [[1], 30], [True, 30]):
        yield Bad("shape not of numbers", str(shape), request(tensor(shape=shape)), MALFORMED, ("$.inputs[0].shape",))
    for rows in (2, 10**9, 2**31, 2**62, 2**64, 10**40):
        says = ("features", str(rows)) if rows < 2**64 else ("features",)
        yield Bad("huge shape", f"{rows} rows", request(tensor(shape=[rows, 30])), MALFORMED, says)
    yield Bad(
        "rows", "none", request(tensor(shape=[0, 30], data=[])), INVALID, ("'features'", "1 to 256", "received 0")
    )
    yield Bad(
        "rows", "257", request(tensor(shape=[257, 30], data=[1.0] * 7710)), INVALID, ("'features'", "1 to 256", "257")
    )
    for count in (0, 1, 29, 31, 60):
        says = ("input 'features'", "holds 30 elements", f"received {count}")
        yield Bad("wrong count", str(count), request(tensor(data=[1.0] * count)), MALFORMED, says)
    for shape in ([0, 2**40], [0, 2**63], [0, 2**70], [2**31, 0], [2**63, 0], [2**62, 4]):
        body = request(tensor("x", shape, "FP32", data=[]))
        yield Bad("variable shape", f"{shape}", body, None, ("'x'",), path=VARIABLE)


def inputs() -> Iterator[Bad]:
    known = ("expected 'features'",)
    yield Bad("unknown input", "alone", request(tensor("karma")), INVALID, ("unknown input 'karma'", *known))
    yield Bad("unknown input", "case", request(tensor("Features")), INVALID, ("unknown input 'Features'", *known))
    yield Bad("unknown input", "empty name", request(tensor("")), INVALID, ("unknown input ''", *known))
    yield Bad("unknown input", "beside", request(tensor(), tensor("more")), INVALID, ("unknown input 'more'", *known))
    yield Bad(
        "unknown input", "v2", request(tensor("x")), INVALID, ("unknown input 'x'", "'age', 'sex'"), path=DIABETES
    )
    yield Bad("input twice", "same", request(tensor(), tensor()), MALFORMED, ("input 'features' is given twice",))
    given = [tensor(name, [1, 1], data=[1.0]) for name in COLUMNS]
    for missing in (0, 4, 9):
        rest = given[:missing] + given[missing + 1 :]
        says = (f"input '{COLUMNS[missing]}' is missing", f"'{COLUMNS[missing - 1]}'")
        yield Bad("missing input", COLUMNS[missing], request(*rest), INVALID, says, path=DIABETES)
    uneven = [*given[:9], tensor("s6", [2, 1], data=[1.0, 2.0])]
    says = ("input 's6'", "expected 1 rows as in 'age'", "received 2")
    yield Bad("missing input", "a row of one", request(*uneven), INVALID, says, path=DIABETES)
    for output in ("nothing", "", "Probability"):
        body = request(tensor(), outputs=[{"name": output}])
        yield Bad("unknown output", repr(output), body, INVALID, (f"unknown output '{output}'", "'probability'"))
    body = request(tensor(), outputs=[{"name": "probability", "parameters": {"binary_data": "yes"}}])
    yield Bad("parameters", "binary_data", body, MALFORMED, ("binary_data", "true or false", "'yes'"))
    for timeout in (-1, 1.5, "5", True):
        body = request(tensor(), parameters={"timeout": timeout})
        yield Bad("parameters", f"timeout {timeout!r}", body, MALFORMED, ("timeout", f"received {timeout!r}"))
    body = request(tensor(), parameters={"binary_data_output": 1})
    yield Bad("parameters", "binary_data_output", body, MALFORMED, ("binary_data_output", "received 1"))


def elements() -> Iterator[Bad]:
    for text in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999"):
        body = with_data(b"[%s,%s]" % (ROW, text.encode()))
        yield Bad("not finite", text, body, INVALID, ("input 'features'", "expected finite numbers", "(element 29)"))
        body = with_data(b"[[%s,%s]]" % (ROW, text.encode()))
        yield Bad("not finite", f"{text} nested", body, INVALID, ("input 'features'", "expected finite numbers"))
    for value in ('"1.0"', "null", "true", "{}", "[1.0]"):
        body = with_data(b"[%s,%s]" % (ROW, value.encode()))
        yield Bad("wrong element", value, body, INVALID, ("input 'features'",))
    for data in ("7", "null", '"1.0"', "{}", "true", "[]", "[[]]"):
        error = MALFORMED if data.startswith("[") else INVALID
        yield Bad("data no list", data, with_data(data.encode()), error, ("input 'features'",))
    half = b",".join([b"1.0"] * 15)
    for variant, data in (
        ("two lists of 15", b"[[%s],[%s]]" % (half, half)),
        ("lists of 29 and 1", b"[[%s],[1.0]]" % ROW),
        ("a number beside a list", b"[[%s],1.0]" % ROW),
        ("a list beside numbers", b"[1.0,[%s]]" % ROW),
        ("too deep", b"[[[%s,1.0]]]" % ROW),
        ("forty deep", b"[" * 40 + b"1.0" + b"]" * 40),
    ):
        error = MALFORMED if variant == "two lists of 15" else INVALID
        yield Bad("ragged", variant, with_data(data), error, ("input 'features'",))
    for depth in (500, 100_000, 1_000_000):
        yield Bad("nested", f"{depth} lists", with_data(b"[" * depth + b"]" * depth), None)
        yield Bad("nested", f"{depth} open lists", b"[" * depth, MALFORMED, ("the body is not JSON",))
        yield Bad("nested", f"{depth} open objects", b'{"a":' * depth, MALFORMED, ("the body is",))
        yield Bad("nested", f"{depth}, v1", b'{"instances":' + b"[" * depth + b"]" * depth + b"}", None, path=V1_CANCER)
    image = tensor("image", [1, 64], "FP32", data=[0.0] * 63 + [1e39])
    yield Bad("out of range", "FP32", request(image), INVALID, ("input 'image'", "FP32", "1e+39"), path=DIGITS)
    yield Bad(
        "not text",
        "a number",
        request(tensor("text", [1, 1], "BYTES", data=[5])),
        INVALID,
        ("'text'", "strings", "5"),
        path=TEXTS,
    )
    yield Bad(
        "not text",
        "null",
        request(tensor("text", [1, 1], "BYTES", data=[None])),
        INVALID,
        ("'text'", "null"),
        path=TEXTS,
    )
    body = rb'{"inputs":[{"name":"text","shape":[1,1],"datatype":"BYTES","data":["\ud800"]}]}'
    yield Bad("not text", "lone surrogate", body, INVALID, ("'text'", "surrogate"), path=TEXTS)
    yield from typed()


def typed() -> Iterator[Bad]:
    for name, datatype, value, error in (
        ("flag", "BOOL", 1, INVALID),
        ("flag", "BOOL", "true", INVALID),
        ("small", "INT8", 128, INVALID),
        ("small", "INT8", -129, INVALID),
        ("small", "INT8", 1.5, INVALID),
        ("small", "INT8", True, INVALID),
        ("large", "UINT64", -1, INVALID),
        ("large", "UINT64", 2**64, INVALID),
        ("large", "UINT64", 10**30, INVALID),
        ("half", "FP16", 1.0, INVALID),
    ):
        body = request(tensor(name, [1, 2], datatype, data=[value, value]))
        says = (f"input '{name}'", datatype)
        yield Bad("wrong element", f"{value!r} for {datatype}", body, error, says, path=TYPED)


MSGPACK = {"Content-Type": "application/msgpack"}


def binary() -> Iterator[Bad]:
    raw = struct.pack("<30d", *range(30))

    def with_binary(size: Any, tail: bytes, header: str | None = None, **rest: Any) -> tuple[bytes, dict[str, str]]:
        part = request(tensor(parameters={"binary_data_size": size}, **rest))
        return part + tail, {HEADER: str(len(part)) if header is None else header}

    def bad(
        variant: str, made: tuple[bytes, dict[str, str]], *says: str, error: tuple[int, str] | None = MALFORMED
    ) -> Bad:
        return Bad("binary", variant, made[0], error, says, headers=made[1])

    yield bad("tail missing", with_binary(240, b""), "'features'", "240 bytes", "received 0")
    yield bad("tail too short", with_binary(240, raw[:-1]), "'features'", "240 bytes", "received 239")
    yield bad("tail too long", with_binary(240, raw + b"\0"), "declare 240 bytes", "received 241")
    yield bad("size below shape", with_binary(232, raw[:232]), "'features'", "takes 240 bytes", "received 232")
    yield bad("size above shape", with_binary(248, raw + raw[:8]), "'features'", "takes 240 bytes", "received 248")
    yield bad("size is zero", with_binary(0, b""), "'features'", "takes 240 bytes", "received 0")
    for size in (-1, "240", 240.0, None, True, [240]):
        says = (
            ("'features'", "expected data or binary_data_size") if size is None else ("'features'", "binary_data_size")
        )
        yield bad(f"size is {size!r}", with_binary(size, raw), *says)
    for size in (2**31, 2**63, 2**64, 10**30):
        yield bad(f"size is {size}", with_binary(size, raw), "'features'", "binary_data_size")
    yield bad("data as well", with_binary(240, raw, data=[1.0] * 30), "'features'", "both data and binary_data_size")
    yield bad("no size", (request(tensor(parameters={})), {}), "'features'", "neither")
    overflow = request(tensor(shape=[2**61, 30], parameters={"binary_data_size": 0}))
    yield bad("shape overflows", (overflow, {HEADER: str(len(overflow))}), "'features'", "received 0")
    length = len(request(tensor(parameters={"binary_data_size": 240})))
    for value in ("-1", "+5", "abc", "1.5", "0x10", "", " ", "9" * 30, "१२"):
        yield bad(f"header {value!r}", with_binary(240, raw, header=value.encode().decode("latin-1")), HEADER)
    for value in (length + 241, 10**9, 10**12 - 1):
        yield bad(f"header {value}", with_binary(240, raw, header=str(value)), HEADER, f"{length + 240}", str(value))
    yield bad("header too small", with_binary(240, raw, header=str(length - 1)), "not JSON")
    yield bad("header includes the tail", with_binary(240, raw, header=str(length + 240)), "the body is not")
    yield bad("header of one", with_binary(240, raw, header="1"), "not JSON")
    yield bad("no header", (with_binary(240, raw)[0], {}), "the body is not")
    zero = {HEADER: "0"}
    yield Bad("raw", "one byte less", raw[:-1], MALFORMED, ("'features'", "240", "received 239"), headers=zero)
    yield Bad("raw", "empty", b"", INVALID, ("'features'", "received 0"), headers=zero)
    yield Bad("raw", "many inputs", raw, INVALID, ("one input", "'age'"), DIABETES, zero)
    for variant, elements, count in (
        ("length cut", b"\3\0\0\0abc\1\0", 2),
        ("element cut", b"\3\0\0\0ab", 1),
        ("huge element", b"\xff\xff\xff\xffab", 1),
        ("one element less", b"\3\0\0\0abc", 2),
        ("one element more", b"\3\0\0\0abc" * 2, 1),
    ):
        part = request(tensor("text", [count, 1], "BYTES", parameters={"binary_data_size": len(elements)}))
        made = (part + elements, {HEADER: str(len(part))})
        yield Bad("BYTES", variant, made[0], MALFORMED, ("'text'",), TEXTS, made[1])


def packed() -> Iterator[Bad]:
    def bad(variant: str, body: bytes, error: tuple[int, str] | None, *says: str) -> Bad:
        return Bad("msgpack", variant, body, error, says, headers=MSGPACK)

    good = msgpack.packb(json.loads(GOOD))
    for size in (1, 5, 40, len(good) - 1):
        yield bad(f"cut to {size} bytes", good[:size], MALFORMED, "MSGPACK")
    yield bad("something behind it", good + b"\0", MALFORMED)
    yield bad("JSON", GOOD, MALFORMED)
    yield bad("never used byte", b"\xc1", MALFORMED)
    yield bad("nil", b"\xc0", MALFORMED, "not an inference request")
    yield bad("huge list", b"\xdd\xff\xff\xff\xff", MALFORMED)
    yield bad("huge map", b"\xdf\xff\xff\xff\xff", MALFORMED)
    yield bad("huge string", b"\xdb\xff\xff\xff\xff", MALFORMED)
    yield bad("list as a key", b"\x81\x91\x01\x02", MALFORMED)
    yield bad("deep", b"\x91" * 100_000 + b"\xc0", MALFORMED)
    yield bad("deep data", good.replace(b"\xdc\x00\x1e", b"\x91" * 100_000 + b"\xdc\x00\x1e"), None)
    yield bad("not UTF-8", msgpack.packb({"inputs": []}).replace(b"inputs", b"inp\xff\xfes"), MALFORMED)
    yield bad("timestamp", msgpack.packb({"inputs": msgpack.Timestamp(1, 2)}), MALFORMED)
    bin_data = tensor(data=b"\0" * 239)
    yield bad("bin too short", msgpack.packb({"inputs": [bin_data]}), MALFORMED, "'features'", "240", "received 239")
    text = tensor(data="\0" * 240)
    yield bad("str for bin", msgpack.packb({"inputs": [text]}), INVALID, "'features'")
    sized = tensor(parameters={"binary_data_size": 240})
    yield bad("binary_data_size", msgpack.packb({"inputs": [sized]}), MALFORMED, "'features'", "binary_data_size")
    nested = tensor(data=[[1.0] * 29 + ["x"]])
    yield bad("a text among numbers", msgpack.packb({"inputs": [nested]}), INVALID, "'features'", "'x'")
    unknown = msgpack.packb({"inputs": [tensor("karma")]})
    yield bad("unknown input", unknown, INVALID, "unknown input 'karma'", "expected 'features'")
    v1 = msgpack.packb({"instances": [[1.0] * 29]})
    yield Bad("msgpack", "v1", v1, INVALID, ("'features'", "[1, 29]"), V1_CANCER, MSGPACK)


def v1() -> Iterator[Bad]:
    row = dict.fromkeys(COLUMNS, 1.0)

    def bad(variant: str, value: Any, error: tuple[int, str] | None, *says: str, path: str = V1_CANCER) -> Bad:
        return Bad("v1", variant, json.dumps(value).encode(), error, says, path)

    for value in (None, [], 3, "instances"):
        yield bad(f"{value!r}", value, MALFORMED, "expected an object with 'instances' or 'inputs'")
    yield bad("{}", {}, MALFORMED, "exactly one of 'instances' and 'inputs'", "an empty object")
    yield bad("both", {"instances": [], "inputs": []}, MALFORMED, "exactly one")
    yield bad("v2", json.loads(GOOD) | {"instances": [1]}, MALFORMED, "exactly one")
    yield bad("cut", {"instances": [[1.0] * 29]}, INVALID, "'features'", "expected shape [-1, 30]", "received [1, 29]")
    yield bad("no rows", {"instances": []}, INVALID, "at least one row")
    yield bad("no list", {"instances": {}}, MALFORMED, "'instances'", "expected a list")
    yield bad("null", {"instances": None}, MALFORMED, "'instances'")
    yield bad("flat", {"instances": [1.0] * 30}, INVALID, "'features'", "received [30]")
    yield bad("ragged", {"instances": [[1.0] * 30, [1.0] * 29]}, INVALID, "'features'", "ragged")
    yield bad("text", {"instances": [["a"] * 30]}, INVALID, "'features'", "numbers", "'a'")
    yield bad("booleans", {"instances": [[True] * 30]}, INVALID, "'features'", "received true")
    yield bad("inputs 7", {"inputs": 7}, INVALID, "'features'")
    yield bad("objects", {"instances": [{"karma": 1}]}, INVALID, "'features'", "missing")
    yield bad("257 rows", {"instances": [[1.0] * 30] * 257}, INVALID, "'features'", "257")
    yield bad("a list", {"instances": [[1.0] * 10]}, INVALID, "element 0", "'age'", path=V1_DIABETES)
    yield bad("second row", {"instances": [row, 5]}, INVALID, "element 1", "'age'", path=V1_DIABETES)
    less = {name: value for name, value in row.items() if name != "bp"}
    yield bad("a column less", {"instances": [row, less]}, INVALID, "element 1", "'bp' is missing", path=V1_DIABETES)
    yield bad("a column more", {"instances": [row | {"x": 1}]}, INVALID, "unknown input 'x'", path=V1_DIABETES)
    columns = {name: [1.0] for name in COLUMNS}
    yield bad("columns uneven", {"inputs": columns | {"s6": [1.0, 2.0]}}, INVALID, "'s6'", path=V1_DIABETES)
    yield bad("column missing", {"inputs": {"age": [1.0]}}, INVALID, "'sex' is missing", path=V1_DIABETES)
    yield bad("column no list", {"inputs": columns | {"s6": {}}}, INVALID, "'s6'", path=V1_DIABETES)
    yield bad("broken base64", {"instances": [{"b64": "%%%"}]}, MALFORMED, "'text'", "base64", path=V1_TEXTS)
    yield bad("base64 of null", {"instances": [{"b64": None}]}, MALFORMED, "'text'", "base64", path=V1_TEXTS)
    yield bad("number for text", {"instances": [5]}, INVALID, "'text'", "strings", path=V1_TEXTS)
    nan = b'{"instances": [[%s, NaN]]}' % ROW
    yield Bad("v1", "NaN", nan, INVALID, ("'features'", "expected finite numbers"), V1_CANCER)
    named = json.dumps({"inputs": columns}).encode().replace(b'"bp": [1.0]', b'"bp": [Infinity]')
    yield Bad("v1", "Infinity", named, INVALID, ("'bp'", "expected finite numbers"), V1_DIABETES)
    yield Bad("v1", "truncated", b'{"instances": [[1.0', MALFORMED, ("not JSON",), V1_CANCER)


def compressed() -> Iterator[Bad]:
    gzipped, deflated = gzip.compress(GOOD, mtime=0), zlib.compress(GOOD)
    for coding, variant, body in (
        ("gzip", "not gzip", GOOD),
        ("gzip", "cut in the head", gzipped[:5]),
        ("gzip", "cut", gzipped[:-20]),
        ("gzip", "checksum cut", gzipped[:-1]),
        ("gzip", "wrong checksum", gzipped[:-8] + b"\0\0\0\0" + gzipped[-4:]),
        ("gzip", "something behind it", gzipped + b"\0"),
        ("gzip", "deflate", deflated),
        ("deflate", "not deflate", GOOD),
        ("deflate", "cut", deflated[:-20]),
        ("deflate", "gzip", gzipped),
    ):
        headers = {"Content-Encoding": coding}
        yield Bad(
            "compressed", f"{coding}, {variant}", body, MALFORMED, (f"the body is not {coding}",), headers=headers
        )
    yield Bad(
        "compressed", "gzip of nothing", gzip.compress(b""), MALFORMED, ("empty",), headers={"Content-Encoding": "gzip"}
    )
    yield Bad(
        "compressed",
        "gzip of half",
        gzip.compress(GOOD[:50]),
        MALFORMED,
        ("not JSON",),
        headers={"Content-Encoding": "gzip"},
    )
    unsupported = (415, "UNSUPPORTED_MEDIA_TYPE")
    for coding in ("br", "zstd", "compress", "gzip, gzip", "nonsense"):
        says = ("Content-Encoding", "gzip, deflate or identity", repr(coding))
        yield Bad("compressed", coding, GOOD, unsupported, says, headers={"Content-Encoding": coding})


def typed_bodies() -> Iterator[Bad]:
    unsupported = (415, "UNSUPPORTED_MEDIA_TYPE")
    for media_type in ("text/html", "application/xml", "application/jsonx", "image/png", "json", "*/*", "\xff"):
        says = ("Content-Type", "application/json")
        yield Bad("content type", media_type, GOOD, unsupported, says, headers={"Content-Type": media_type})
    yield Bad(
        "content type",
        "octet-stream, no JSON",
        b"\0" * 240,
        MALFORMED,
        headers={"Content-Type": "application/octet-stream"},
    )


def paths() -> Iterator[Bad]:
    for path, code in (
        ("/v2/models/nobody/infer", "UNKNOWN_MODEL"),
        ("/v2/models/Breast_cancer/infer", "UNKNOWN_MODEL"),
        ("/v2/models/breast_cancer/versions/2/infer", "UNKNOWN_VERSION"),
        ("/v2/models/breast_cancer/versions//infer", "NOT_FOUND"),
        ("/v2/models//infer", "NOT_FOUND"),
        ("/v2/models/.hidden/infer", "NOT_FOUND"),
        ("/v2/models/a b/infer".replace(" ", "%20"), "NOT_FOUND"),
        ("/v2/models/a%2Fb/infer", "NOT_FOUND"),
        ("/v2/models/..%2f..%2fetc%2fpasswd/infer", "NOT_FOUND"),
        ("/v2/models/%ff%fe/infer", "NOT_FOUND"),
        ("/v2/models/%00/infer", "NOT_FOUND"),
        ("/v2/models/%ZZ/infer", "NOT_FOUND"),
        ("/v1/models/nobody:predict", "UNKNOWN_MODEL"),
        ("/v1/models/breast_cancer:classify", "NOT_FOUND"),
        ("/v2/models/breast_cancer/infer/", "NOT_FOUND"),
        ("/", "NOT_FOUND"),
    ):
        yield Bad("path", path, GOOD, (404, code), path=path)


def other_headers() -> Iterator[Bad]:
    for value in ("0", "-1", "abc", "1.5", "1e3", "", "9" * 13):
        headers = {"Request-Timeout-Ms": value}
        yield Bad("timeout header", repr(value), GOOD, MALFORMED, ("Request-Timeout-Ms",), headers=headers)
    for body in (b"[]", b"7", b'{"ready": 1}', b'{"ready": null}'):
        yield Bad("repository index", body.decode(), body, INVALID, path="/v2/repository/index")
    yield Bad("repository index", "cut", b'{"ready', MALFORMED, path="/v2/repository/index")


TABLE = [
    bad
    for kind in (
        truncated, no_document, shapes, inputs, elements, binary, packed, v1, compressed, typed_bodies, paths,
        other_headers,
    )
    for bad in kind()
]  # fmt: skip


# -- what is not HTTP ---------------------------------------------------------------------------------------
def post(*lines: bytes, path: bytes = CANCER.encode(), body: bytes = b"") -> bytes:
    return b"\r\n".join([b"POST %s HTTP/1.1" % path, b"Host: x", *lines, b"", body])


def length(body: bytes) -> bytes:
    return b"Content-Length: %d" % len(body)


CHUNKED = b"Transfer-Encoding: chunked"

RAW: dict[str, tuple[bytes, int]] = {
    "garbage": (b"\x00\x01\x02\x03\r\n\r\n", 400),
    "a word": (b"GARBAGE\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64, 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/9.9": (b"GET /v2 HTTP/9.9\r\nHost: x\r\n\r\n", 400),
    "no colon": (b"GET /v2 HTTP/1.1\r\nHost x\r\n\r\n", 400),
    "space before the colon": (b"GET /v2 HTTP/1.1\r\nHost : x\r\n\r\n", 400),
    "empty header name": (b"GET /v2 HTTP/1.1\r\n: x\r\n\r\n", 400),
    "NUL in a header": (b"GET /v2 HTTP/1.1\r\nHost: x\x00y\r\n\r\n", 400),
    "folded header": (b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-A: b\r\n c\r\n\r\n", 400),
    "header of 100 KB": (b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 100_000 + b"\r\n\r\n", 400),
    "path of 100 KB": (b"GET /v2/" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "10,000 headers": (b"GET /v2 HTTP/1.1\r\n" + b"X-A: b\r\n" * 10_000 + b"\r\n", 400),
    "path not UTF-8": (b"GET /v2/\xff\xfe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
    "length is negative": (post(b"Content-Length: -1"), 400),
    "length is a word": (post(b"Content-Length: abc"), 400),
    "length is empty": (post(b"Content-Length: "), 400),
    "length is 10^30": (post(b"Content-Length: " + b"9" * 30), 400),
    "length is 10^18": (post(b"Content-Length: " + b"9" * 18), 413),
    "two lengths": (post(b"Content-Length: 1", b"Content-Length: 2", body=b"ab"), 400),
    "length and chunked": (post(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n"), 400),
    "unknown transfer encoding": (post(b"Transfer-Encoding: nonsense", body=b"ab"), 400),
    "chunk size is a word": (post(CHUNKED, body=b"zz\r\nab\r\n0\r\n\r\n"), 400),
    "chunk size is negative": (post(CHUNKED, body=b"-2\r\nab\r\n0\r\n\r\n"), 400),
    "chunk without its end": (post(CHUNKED, body=b"2\r\nabcd\r\n0\r\n\r\n"), 400),
    "chunk size of 17 digits": (post(CHUNKED, body=b"f" * 17 + b"\r\nab\r\n"), 400),
    "absolute form": (b"GET http://x/v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
    "CONNECT": (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
    "strange method": (b"BREW /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "method of WebDAV": (b"PROPFIND /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
    "media type not UTF-8": (post(length(GOOD), b"Content-Type: \xff", b"Connection: close", body=GOOD), 415),
    "coding not UTF-8": (post(length(GOOD), b"Content-Encoding: \xff", b"Connection: close", body=GOOD), 415),
    "timeout not UTF-8": (post(length(GOOD), b"Request-Timeout-Ms: \xff", b"Connection: close", body=GOOD), 400),
    "unknown expectation": (post(b"Content-Length: 5", b"Expect: miracles", b"Connection: close"), 400),
}
"""Bytes on a socket that is shut for writing after them, and the status of the only answer."""

HARMLESS: dict[str, bytes] = {
    "traceparent not UTF-8": b"traceparent: \xff",
    "request id not UTF-8": b"X-Request-Id: \xff\xfe",
    "accept not UTF-8": b"Accept: \xff",
    "quality no number": b"Accept: application/json;q=nan, application/msgpack;q=",
    "accept-encoding not UTF-8": b"Accept-Encoding: \xff, gzip;q=inf",
    "h2c upgrade": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk",
    "websocket upgrade": b"Connection: Upgrade\r\nUpgrade: websocket",
    "an unknown header": b"X-Whatever: \x80\x81",
}
"""Headers that do not keep a good request from its answer."""

CLOSING = ("websocket upgrade",)
"""Those of them after whose answer nothing more is read."""
