"""Train `diabetes`: the progression of the disease after one year, by a linear model blended with LightGBM.

The driver `../train.py` calls `train(out)`. The held-out quarter of the patients serves for the metrics and
the golden cases only; the weight of the blend comes from cross-validation on the other three quarters.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import lightgbm
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.model_selection import KFold, train_test_split

FLOOR = {"r2": 0.28, "r2_linear": 0.28, "r2_trees": 0.18}
BANDS = ("low", "medium", "high")
TREES = 150
PARAMETERS = {
    "objective": "regression",
    "learning_rate": 0.03,
    "num_leaves": 7,
    "min_data_in_leaf": 20,
    "seed": 0,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend:
    """The two fitted models, the linear one's share (0..1), and the inner edges [2] of the three bands."""

    columns: list[str]
    linear: LinearRegression
    trees: lightgbm.Booster
    linear_weight: float
    band_edges: list[float]

    def progression(self, rows: Floats) -> Floats:
        """Predict for rows [n, 10] in clinical units: [n]."""
        linear, trees = self.linear.predict(rows), np.asarray(self.trees.predict(rows))
        return np.asarray(self.linear_weight * linear + (1 - self.linear_weight) * trees, dtype=np.float64)

    def risk_band(self, progression: Floats) -> list[str]:
        """Name the band of each predicted progression [n]."""
        return [BANDS[index] for index in np.digitize(progression, self.band_edges)]


def train(out: Path) -> dict[str, float]:
    """Write `blend.json`, `trees.txt` and `golden.json` into `out`; return the metrics on held-out rows."""
    dataset = load_diabetes(scaled=False)
    fit_rows, held_out, fit_target, held_target = train_test_split(
        dataset.data, dataset.target, test_size=0.25, random_state=0
    )
    blend = fit_blend(list(dataset.feature_names), fit_rows, fit_target)
    save(blend, out)
    metrics = measure(blend, held_out, held_target)
    check(metrics)
    write_golden(out / "golden.json", blend, held_out)
    return metrics


def fit_blend(columns: list[str], rows: Floats, target: Floats) -> Blend:
    """Fit both models on all rows, and the weight on predictions for rows that a model had not seen."""
    unseen_linear, unseen_trees = np.empty_like(target), np.empty_like(target)
    for seen, unseen in KFold(n_splits=5, shuffle=True, random_state=0).split(rows):
        linear, trees = fit(columns, rows[seen], target[seen])
        unseen_linear[unseen] = linear.predict(rows[unseen])
        unseen_trees[unseen] = trees.predict(rows[unseen])
    linear, trees = fit(columns, rows, target)
    return Blend(
        columns=columns,
        linear=linear,
        trees=trees,
        linear_weight=best_weight(unseen_linear, unseen_trees, target),
        band_edges=np.quantile(target, [1 / 3, 2 / 3]).tolist(),
    )


def fit(columns: list[str], rows: Floats, target: Floats) -> tuple[LinearRegression, lightgbm.Booster]:
    """Fit the two models to the same rows."""
    dataset = lightgbm.Dataset(rows, target, feature_name=columns)
    return LinearRegression().fit(rows, target), lightgbm.train(PARAMETERS, dataset, TREES)


def best_weight(linear: Floats, trees: Floats, target: Floats) -> float:
    """Give the w in 0..1 for which w linear + (1 - w) trees has the least squared error; a closed form."""
    difference = linear - trees
    return float(np.clip(difference @ (target - trees) / (difference @ difference), 0, 1))


def save(blend: Blend, out: Path) -> None:
    """Write the two artifacts that `model.py` loads: JSON and LightGBM's text, readable and no pickle."""
    blend.trees.save_model(out / "trees.txt")
    parts = {
        "columns": blend.columns,
        "coefficients": blend.linear.coef_.tolist(),
        "intercept": float(blend.linear.intercept_),
        "linear_weight": blend.linear_weight,
        "band_edges": blend.band_edges,
        "bands": BANDS,
    }
    (out / "blend.json").write_text(json.dumps(parts, indent=2) + "\n")


def measure(blend: Blend, rows: Floats, target: Floats) -> dict[str, float]:
    """Compare the blend, and each of its parts, with the measured progression."""
    progression = blend.progression(rows)
    measured_band = blend.risk_band(target)
    return {
        "r2": float(r2_score(target, progression)),
        "r2_linear": float(r2_score(target, blend.linear.predict(rows))),
        "r2_trees": float(r2_score(target, np.asarray(blend.trees.predict(rows)))),
        "mean_absolute_error": float(mean_absolute_error(target, progression)),
        "right_band": float(np.mean(np.array(blend.risk_band(progression)) == np.array(measured_band))),
    }


def check(metrics: dict[str, float]) -> None:
    """Raise RuntimeError for a model that came out worse than the floor."""
    for metric, floor in FLOOR.items():
        if not metrics[metric] >= floor:
            raise RuntimeError(f"diabetes: {metric} {metrics[metric]:.4f} is below its floor {floor}")


def write_golden(path: Path, blend: Blend, rows: Floats) -> None:
    """Record held-out patients [n, 10] with the answers of scikit-learn and LightGBM (not of `model.py`)."""
    order = np.argsort(blend.progression(rows))
    chosen = {
        "lowest": order[:1],
        "median": order[len(order) // 2 : len(order) // 2 + 1],
        "highest": order[-1:],
        "six_patients": np.arange(6),
    }
    cases = [golden_case(name, blend, rows[index]) for name, index in chosen.items()]
    path.write_text('{"cases": [\n' + ",\n".join(map(json.dumps, cases)) + "\n]}\n")


def golden_case(name: str, blend: Blend, rows: Floats) -> dict[str, object]:
    """Make one case: every column is an input of its own, [n, 1]."""
    progression = blend.progression(rows)
    inputs = [tensor(column, "FP64", rows[:, i].tolist()) for i, column in enumerate(blend.columns)]
    outputs = [
        tensor("progression", "FP64", progression.tolist()),
        tensor("risk_band", "BYTES", blend.risk_band(progression)),
    ]
    return {
        "name": name,
        "request": {"inputs": inputs},
        "response": {"outputs": outputs},
        "tolerance": {"absolute": 1e-9, "relative": 0},
    }


def tensor(name: str, datatype: str, values: list[float] | list[str]) -> dict[str, object]:
    """Write one column [n, 1] in the Open Inference Protocol's JSON."""
    return {"name": name, "shape": [len(values), 1], "datatype": datatype, "data": values}
