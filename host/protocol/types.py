"""Names and shapes of tensors, as the Open Inference Protocol has them. No numpy here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Model names and versions (Open Inference Protocol). Anchored by `fullmatch` at the users."""

NAME_MAX_CHARS: Final = 64
"""Longest model name or version: it must fit, twice, into a Unix socket's path of 107 bytes."""

ITEM_BYTES: Final = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
    "BYTES": None,
}
"""Datatype to bytes per element; `None`: each element carries its own length."""

DATATYPES: Final = tuple(ITEM_BYTES)


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output of a model.

    `shape` holds -1 for a variable dimension; a leading -1 is the batch dimension (rows).
    `features` names what the input is fetched from when a request leaves it out: each a `view.column`; several are
    joined side by side, along the last dimension.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    features: tuple[str, ...] = ()


class Signature(msgspec.Struct, frozen=True):
    """What a model takes and gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def batchable(self) -> bool:
        """Whether requests may be joined: every tensor leads with the variable batch dimension."""
        return all(spec.shape[:1] == (-1,) for spec in (*self.inputs, *self.outputs))


def shape_text(shape: Sequence[int]) -> str:
    """`[-1, 30]`, the way messages show a shape."""
    return "[" + ", ".join(str(dim) for dim in shape) + "]"


def shape_matches(shape: Sequence[int], spec: Sequence[int]) -> bool:
    """Whether a concrete shape fits a declared one (-1 takes any size)."""
    if len(shape) != len(spec):
        return False
    for got, want in zip(shape, spec, strict=True):  # noqa: SIM110 - a generator costs three times as much here
        if want not in (-1, got):
            return False
    return True
