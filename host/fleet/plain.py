"""Plain values out of those of a framework: Ansible's texts, numbers and mappings are subclasses that carry tags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

DEPTH_MAX: Final = 16


def plain(value: Any, depth: int = 0) -> Any:
    """The same value of builtin types only. Raises `ValueError` if it is nested too deeply."""
    if depth > DEPTH_MAX:
        raise ValueError(f"expected values nested at most {DEPTH_MAX} deep, received more")
    match value:
        case None | bool():
            return value
        case int():
            return int(value)
        case float():
            return float(value)
        case str():
            return str(value)
        case Mapping():
            return {plain(key, depth + 1): plain(part, depth + 1) for key, part in value.items()}
        case list() | tuple():
            return [plain(part, depth + 1) for part in value]
        case _:
            return str(value)
