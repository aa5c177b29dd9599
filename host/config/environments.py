"""What a model needs of its environment, and the name that follows from it."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from host.protocol.errors import ConfigError
from host.protocol.package import Package

WORKER_REQUIREMENTS: Final = ("msgpack>=1.0.3", "msgspec>=0.18", "numpy>=1.23")
"""What the worker's code itself needs, in ranges as wide as it works with: a model's own pins must find room."""

FORMAT: Final = 1
"""Part of every digest: raised when environments made before can no longer be used."""

_KEY_CHARS: Final = 16
_OPTION: Final = re.compile(r"(-[A-Za-z]|--[a-z-]+)\b")
_COMMENT: Final = re.compile(r"(^|\s)#.*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentNeed:
    """What a model needs: `python` as `3.11`, requirements as pip writes them, sorted."""

    python: str
    requirements: tuple[str, ...]

    @property
    def key(self) -> str:
        """The name of the environment: equal needs, equal names."""
        what = json.dumps([FORMAT, self.python, self.requirements, WORKER_REQUIREMENTS])
        return hashlib.sha256(what.encode()).hexdigest()[:_KEY_CHARS]


def environment_python(environments: Path, need: EnvironmentNeed) -> Path:
    """The interpreter of an environment in a directory of them, built or not."""
    return environments / need.key / "bin" / "python"


def need_of(package: Package, directory: Path) -> EnvironmentNeed | None:
    """What a package asks for in `[environment]`; None if nothing: then it runs in `model_python`.

    Raises `ConfigError` with every line of its requirements that cannot be part of an environment's name.
    """
    asked = package.environment
    if asked.python is None and asked.requirements is None:
        return None
    python = asked.python or f"{sys.version_info.major}.{sys.version_info.minor}"
    requirements = () if asked.requirements is None else read_requirements(directory / asked.requirements)
    return EnvironmentNeed(python=python, requirements=requirements)


def read_requirements(path: Path) -> tuple[str, ...]:
    """The requirements in a file, sorted, without comments. Raises `ConfigError`.

    What they mean must stand in the lines themselves: other files, directories and indexes may change without them.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    found: set[str] = set()
    problems: list[str] = []
    for line, content in _logical_lines(text):
        option = _OPTION.match(content)
        if option is not None:
            problems.append(
                f"{path}: line {line}: expected a requirement such as lightgbm==4.6.0, received the option "
                f"{option[1]}; where packages come from is the setting wheelhouse, or uv's own configuration"
            )
        elif content.startswith((".", "/")) or "file:" in content:
            problems.append(f"{path}: line {line}: expected a requirement, received a path: {content}")
        else:
            found.add(" ".join(content.split()))
    if problems:
        raise ConfigError(*problems)
    return tuple(sorted(found))


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines joined at a final backslash, without comments and empty ones, with their numbers."""
    joined, first = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        first = first or number
        part = _COMMENT.sub("", line).strip()
        joined += part.removesuffix("\\")
        if part.endswith("\\"):
            continue
        if joined.strip():
            yield first, joined.strip()
        joined, first = "", 0
    if joined.strip():
        yield first, joined.strip()
