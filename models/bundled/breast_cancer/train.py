"""Train `breast_cancer`: LightGBM, malignant or benign from 30 measurements of a fine needle aspirate.

The driver `../train.py` calls `train(out)`. The held-out quarter of the rows serves for the metrics and the
golden cases only: nothing is tuned on it.
"""

from __future__ import annotations

import json
from pathlib import Path

import lightgbm
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import train_test_split

FLOOR = {"roc_auc": 0.97, "accuracy": 0.94}
TREES = 200
PARAMETERS = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 10,
    "seed": 0,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


def train(out: Path) -> dict[str, float]:
    """Write `model.txt` and `golden.json` into `out`; return the metrics on the held-out rows."""
    dataset = load_breast_cancer()
    malignant = (dataset.target == 0).astype(np.int64)  # scikit-learn codes malignant as 0, benign as 1
    fit_rows, held_out, fit_malignant, held_malignant = train_test_split(
        dataset.data, malignant, test_size=0.25, random_state=0, stratify=malignant
    )
    names = [name.replace(" ", "_") for name in dataset.feature_names]
    booster = lightgbm.train(PARAMETERS, lightgbm.Dataset(fit_rows, fit_malignant, feature_name=names), TREES)
    booster.save_model(out / "model.txt")

    saved = lightgbm.Booster(model_file=str(out / "model.txt"))  # what is measured is what will be served
    probability = np.asarray(saved.predict(held_out))
    metrics = {
        "roc_auc": float(roc_auc_score(held_malignant, probability)),
        "accuracy": float(accuracy_score(held_malignant, probability > 0.5)),
    }
    check(metrics)
    write_golden(out / "golden.json", held_out, held_malignant, probability)
    return metrics


def check(metrics: dict[str, float]) -> None:
    """Raise RuntimeError for a model that came out worse than the floor."""
    for metric, floor in FLOOR.items():
        if not metrics[metric] >= floor:
            raise RuntimeError(f"breast_cancer: {metric} {metrics[metric]:.4f} is below its floor {floor}")


def write_golden(
    path: Path, rows: NDArray[np.float64], malignant: NDArray[np.int64], probability: NDArray[np.float64]
) -> None:
    """Record held-out rows [n, 30] with the probabilities [n] that LightGBM itself computed for them."""
    chosen = {
        "malignant": np.flatnonzero(malignant == 1)[:1],
        "benign": np.flatnonzero(malignant == 0)[:1],
        "least_certain": np.argsort(np.abs(probability - 0.5))[:1],
        "eight_rows": np.arange(8),
    }
    cases = [
        {
            "name": name,
            "request": {"inputs": [tensor("features", rows[index])]},
            "response": {"outputs": [tensor("probability", probability[index].reshape(-1, 1))]},
            "tolerance": {"absolute": 1e-9, "relative": 0},
        }
        for name, index in chosen.items()
    ]
    path.write_text('{"cases": [\n' + ",\n".join(map(json.dumps, cases)) + "\n]}\n")


def tensor(name: str, values: NDArray[np.float64]) -> dict[str, object]:
    """Write one tensor in the Open Inference Protocol's JSON: the data is row-major and flat."""
    return {"name": name, "shape": list(values.shape), "datatype": "FP64", "data": values.ravel().tolist()}
