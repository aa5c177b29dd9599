"""What becomes of uv when it is no longer waited for."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from host.environments import _uv

STUBBORN = """\
#!/bin/sh
trap '' INT TERM
sh -c 'trap "" INT TERM; echo $$; exec sleep 1000' &
wait
"""
"""Who heeds no polite signal, and has a child that works for it."""


def test_uv_and_who_works_for_it_are_gone_before_anything_is_cleaned_up(tmp_path: Path) -> None:
    uv = tmp_path / "uv"
    uv.write_text(STUBBORN)
    uv.chmod(0o700)
    children: list[int] = []

    def interrupted(line: str) -> None:
        children.append(os.pidfd_open(int(line)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _uv(uv, ["pip"], interrupted)
    [child] = children
    try:
        assert select.select([child], [], [], 30)[0], "it works on"
    finally:
        os.close(child)
