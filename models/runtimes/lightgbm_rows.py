"""A few rows through LightGBM's C API, one by one: `Booster.predict` takes some 15 us before it looks at a row.

`LGBM_BoosterPredictForMatSingleRowFast` is public C API (since 3.0); how the Python package holds its library and the
model's handle is not. So this is used only where it is found, and gives what `Booster.predict` gives (docs/adr/0010).
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

import numpy as np

from host.protocol.tensors import Array
from models.runtimes.lightgbm_library import lightgbm

ROWS_MAX: Final = 32
"""With more rows in a batch `Booster.predict` is as fast on one thread (docs/adr/0015)."""

ROWS_MAX_THREADED: Final = 12
"""The same where it may use several threads."""

_FLOAT64: Final = 1
_NORMAL: Final = 0
"""`C_API_DTYPE_FLOAT64` and `C_API_PREDICT_NORMAL`."""
_ITEM_BYTES: Final = 8


class RowPredictor:
    """Predicts a small matrix row by row, without threads."""

    def __init__(self, library: Any, handle: Any, columns: int, outputs: int, iterations: int) -> None:
        config = ctypes.c_void_p()
        failed = library.LGBM_BoosterPredictForMatSingleRowFastInit(
            handle, _NORMAL, 0, iterations, _FLOAT64, columns, b"num_threads=1", ctypes.byref(config)
        )
        if failed:
            raise OSError("LightGBM does not take rows one by one")
        # A prototype of our own: the package sets no argument types, and others may use the library too.
        prototype = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 4)
        self._predict_row = prototype(("LGBM_BoosterPredictForMatSingleRowFast", library))
        self._config = config
        self._length = ctypes.c_int64()
        length = ctypes.addressof(self._length)
        # Fixed places for rows and scores: asking numpy for an array's address takes most of a microsecond.
        self._rows = np.empty((ROWS_MAX, columns))
        self._scores = np.empty((ROWS_MAX, outputs))
        row, score = self._rows.ctypes.data, self._scores.ctypes.data
        self._arguments = [
            (config, row + index * columns * _ITEM_BYTES, length, score + index * outputs * _ITEM_BYTES)
            for index in range(ROWS_MAX)
        ]
        self._by_row = outputs > 1

    def predict(self, matrix: Array) -> Array:
        """Predict at most `ROWS_MAX` rows x columns: (rows,) or (rows, outputs) scores."""
        rows = len(matrix)
        self._rows[:rows] = matrix
        for arguments in self._arguments[:rows]:
            if self._predict_row(*arguments):
                raise OSError("LightGBM could not predict a row")
        scores = self._scores[:rows] if self._by_row else self._scores[:rows, 0]
        return scores.copy()


def row_predictor(booster: lightgbm.Booster) -> RowPredictor | None:
    """Make a predictor for a booster; None if this LightGBM has no such way, or it gives something else."""
    try:
        package: Any = lightgbm.basic
        owner: Any = booster
        library = package._LIB
        handle = owner._handle if hasattr(owner, "_handle") else owner.handle
        outputs = booster.num_model_per_iteration()
        iterations = booster.best_iteration if booster.best_iteration > 0 else -1
        made = RowPredictor(library, handle, booster.num_feature(), outputs, iterations)
        rows = np.random.default_rng(0).normal(size=(3, booster.num_feature()))
        if np.array_equal(made.predict(rows), booster.predict(rows, num_threads=1, validate_features=False)):
            return made
    except (AttributeError, OSError, ctypes.ArgumentError, lightgbm.basic.LightGBMError):
        pass
    return None
