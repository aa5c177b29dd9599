"""The lightgbm package without what it would import and prediction from arrays never uses.

scikit-learn alone costs each process 60 MB and half a second.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_NOT_NEEDED: Final = ("sklearn", "pandas", "pyarrow", "matplotlib", "graphviz", "dask", "datatable")


@contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """Have imports of these fail; those that are imported already stay."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None stops an import
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


with _hidden(*_NOT_NEEDED):
    import lightgbm

__all__ = ["lightgbm"]
