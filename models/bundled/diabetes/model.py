"""Serve `diabetes`: a linear model and LightGBM trees, blended, and the risk band of the result.

A Python model is a class `Model` with `load` and `predict`. It may use whatever its environment has; it needs
nothing of modelhost.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray


class Model:
    """Two artifacts of the package: `blend.json` (linear part, weight, bands) and `trees.txt` (LightGBM)."""

    def load(self, package: Path) -> None:
        """Read the artifacts from the package's directory; called once, before the first `predict`."""
        blend = json.loads((package / "blend.json").read_text())
        self.columns: list[str] = blend["columns"]
        self.coefficients = np.array(blend["coefficients"])
        self.intercept: float = blend["intercept"]
        self.linear_weight: float = blend["linear_weight"]
        self.band_edges = np.array(blend["band_edges"])
        self.bands = np.array([band.encode() for band in blend["bands"]], dtype=object)
        self.trees = lightgbm.Booster(model_file=str(package / "trees.txt"))

    def predict(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer for the columns `age` ... `s6`, each [n, 1] in clinical units; n is the batch's rows.

        Give `progression` [n, 1] and `risk_band` [n, 1]; strings are object arrays of bytes.
        """
        rows = np.hstack([inputs[column] for column in self.columns])
        # Not `rows @ coefficients`: BLAS may round a row differently alone and in a batch.
        linear = (rows * self.coefficients).sum(axis=1) + self.intercept
        trees = np.asarray(self.trees.predict(rows, num_threads=1))
        progression = self.linear_weight * linear + (1 - self.linear_weight) * trees
        band = self.bands[np.digitize(progression, self.band_edges)]
        return {"progression": progression.reshape(-1, 1), "risk_band": band.reshape(-1, 1)}
