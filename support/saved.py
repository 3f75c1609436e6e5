"""What a finished run can be evaluated by again: its dataset, and its predictions for the test images."""

if __name__ == "__main__":
    raise SystemExit("support/saved.py is a module, not a script: report.py and plots.py use it")

import csv
import json
import os

import numpy as np

from support import files


def read_history(path):
    """{column: list of floats} of a history.csv. Raises files.FileError for a damaged one."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        history = {column: [float(row[column]) for row in rows] for column in (rows[0] if rows else ())}
        if not {"train_loss", "train_accuracy"} <= history.keys() or not np.isfinite(list(history.values())).all():
            raise ValueError("not finite losses and accuracies in every row")
    except (csv.Error, *files.DAMAGED) as error:
        raise files.FileError(f"{path}: damaged ({error})") from None
    return history


def images_of_run(metrics, loaded=None, data_dir=None):
    """The Dataset of a run, by the content of its metrics.json. loaded: {settings: Dataset} of earlier calls, extended.

    Raises data.DataError, and ValueError where another dataset is found.
    """
    import data  # which is above this module: only here

    s, loaded = metrics["settings"], {} if loaded is None else loaded
    folder = os.path.expanduser(os.path.expandvars(s.get("data_dir", "")))
    data_dir = data_dir or (folder if os.path.isdir(folder) else None)  # it may have moved since
    options = {"dataset": s["dataset"], "data_dir": data_dir,
               "offline_fallback": "in place of" in metrics["dataset"], "split_seed": s["split_seed"], "quick": s["quick"],
               "val_fraction": s.get("val_fraction"), "image_size": s.get("image_size"),
               "train_on_val": s.get("train_on_val", False)}  # fmt: skip
    key = json.dumps(options)
    images = loaded[key] = loaded.get(key) or data.load(**options)
    if images.name != metrics["dataset"]:
        raise ValueError(f"its dataset is {metrics['dataset']}; found {images.name}")
    return images


def test_probabilities(folder, metrics, images):
    """(N, classes) float64: a run's predictions for the test images. Raises OSError, and ValueError if they do not fit."""
    probabilities = np.load(folder / "test_probabilities.npy", mmap_mode="r", allow_pickle=False)
    y, kind = images.test.y, probabilities.dtype.kind
    fits = kind == "f" and probabilities.shape == (len(y), len(images.classes)) and np.isfinite(probabilities).all()
    accuracy = np.mean(probabilities.argmax(axis=1) == y) if fits else -1
    if abs(accuracy - metrics["test_accuracy"]) > max(0.002, 4 / len(y)):  # float16 may round two classes to one value
        raise ValueError(f"test_probabilities.npy does not belong to the test split of {images.name}")
    return probabilities.astype(np.float64)
