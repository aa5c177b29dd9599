"""Train `breast_cancer_by_id`: the model of `breast_cancer`, and the features that it is given by a patient's number.

The driver `../train.py` calls `train(out)`, and `write_features(out)` for the files that it loads into the store.
"""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from sklearn.datasets import load_breast_cancer

SAME = Path(__file__).resolve().parent.parent / "breast_cancer" / "train.py"
VIEWS = ("tumour_mean", "tumour_error", "tumour_worst")
"""The data set's 30 columns are ten measurements, three times."""
MEASUREMENTS = 10


def _load_same() -> ModuleType:
    """Import the training of `breast_cancer` by its path."""
    spec = importlib.util.spec_from_file_location("train_same", SAME)
    assert spec is not None and spec.loader is not None  # noqa: S101  (the name ends in .py)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


same = _load_same()
FLOOR: dict[str, float] = same.FLOOR


def train(out: Path) -> dict[str, float]:
    """Write `model.txt` and `golden.json` into `out`; return the metrics on the held-out rows."""
    metrics: dict[str, float] = same.train(out)
    check(metrics)
    return metrics


def check(metrics: dict[str, float]) -> None:
    """Raise RuntimeError for a model that came out worse than the floor."""
    try:
        same.check(metrics)
    except RuntimeError as error:
        raise RuntimeError(str(error).replace("breast_cancer:", "breast_cancer_by_id:")) from None


def write_features(out: Path) -> None:
    """Write a CSV file for each view: the patient's number, which is the row in the data set, and ten measurements."""
    dataset = load_breast_cancer()
    names = [name.removeprefix("mean ").replace(" ", "_") for name in dataset.feature_names[:MEASUREMENTS]]
    for place, view in enumerate(VIEWS):
        start = place * MEASUREMENTS
        with (out / f"{view}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["patient_id", *names])
            for patient, row in enumerate(dataset.data[:, start : start + MEASUREMENTS].tolist()):
                writer.writerow([patient, *row])
