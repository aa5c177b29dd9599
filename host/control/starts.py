"""How often each process was started: counted in files, so that control's own death takes nothing back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from host.protocol.counters import Layout, Words, file_name, open_counters, private_counters

logger = logging.getLogger("modelhost.control")

SLOT: Final = Layout(kind="slot", values=("starts",))
_STARTS: Final = SLOT.at("starts")


class Starts:
    """Of every program that supervisord started while a control looked."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._words: dict[str, Words] = {}

    def count(self, program: str) -> None:
        """Count one."""
        self._of(program)[_STARTS] += 1

    def of(self, program: str) -> int:
        """How many there were; 0 if none was seen."""
        return self._of(program)[_STARTS]

    def forget(self, group: str) -> None:
        """A model version is gone."""
        for program in [one for one in self._words if _is_of(one, group)]:
            del self._words[program]
        for path in self._directory.glob(file_name(SLOT.kind, f"{group}:*", group)):
            path.unlink(missing_ok=True)

    def _of(self, program: str) -> Words:
        words = self._words.get(program)
        if words is None:
            try:
                words = open_counters(self._directory, SLOT, program, _group(program))
            except OSError as error:
                logger.error("%s: starts of %s are not counted: %s", self._directory, program, error.strerror)
                words = private_counters(SLOT)
            self._words[program] = words
        return words


def _group(program: str) -> str:
    return program.partition(":")[0]


def _is_of(program: str, group: str) -> bool:
    return _group(program) == group
