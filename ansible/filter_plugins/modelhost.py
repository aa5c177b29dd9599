"""Filters for the playbooks: what hosts run and balancers say, against what should be (`host.fleet.actual`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from host.fleet.actual import Document, report
from host.fleet.transition import between, meanwhile, stranded


def table_of_results(fleet: Document, results: Iterable[Mapping[str, Any]]) -> list[str]:
    """The table, of a loop of `modelhost_info` over hosts."""
    lines: list[str] = report(fleet, {one["item"]: one for one in results})["lines"]
    return lines


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Names in templates."""
        return {
            "modelhost_compared": report,
            "modelhost_between": between,
            "modelhost_meanwhile": meanwhile,
            "modelhost_stranded": stranded,
            "modelhost_table": table_of_results,
        }
