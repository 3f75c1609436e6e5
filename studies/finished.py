"""Finished runs, read from their folders, and compared by paired tests."""

import functools
import itertools
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import data
import run
from studies.statistics import correct, mcnemar, paired_test


@dataclass(frozen=True)
class FinishedRun:
    """A run's files. Of several seeds, `metrics` has the means, the dicts {seed: ...} an entry for each."""

    path: Path
    label: str  # unique among the runs that are read together
    metrics: dict
    folders: dict  # {seed: folder}
    histories: dict  # {seed: {column: [value of each epoch]}}

    @property
    def first(self):
        """The seed whose figures and mistakes are shown."""
        return next(iter(self.folders))

    @property
    def accuracies(self):
        """{seed: test accuracy}"""
        values = self.metrics.get("by_seed", {}).get("test_accuracy", [self.metrics["test_accuracy"]])
        return dict(zip(self.folders, values, strict=True))

    @functools.cached_property
    def images(self):
        """The run's Dataset. Raises run.Error where another one is found."""
        names, s = map(str.lower, run.constants(data)), self.metrics["settings"]
        s = {name: tuple(s[name]) if isinstance(s[name], list) else s[name] for name in names if name in s}
        if not Path(s["data_dir"]).is_dir():  # it may have moved since
            del s["data_dir"]
        if s.get("image_size") == ():  # in files of earlier versions
            del s["image_size"]
        images = load(tuple(s.items()))
        if images.name != self.metrics["dataset"]:
            raise run.Error(f"{self.path}: was trained on {self.metrics['dataset']}, found {images.name}")
        return images

    @functools.cached_property
    def probabilities(self):
        """{seed: probabilities (N, classes) of the test images}. Raises run.Error."""
        found, shape = {}, (len(self.images.test.y), len(self.images.classes))
        for seed, folder in self.folders.items():
            path = folder / "test_probabilities.npy"
            try:
                found[seed] = np.load(path, allow_pickle=False).astype(np.float64)
                if found[seed].shape != shape:
                    raise ValueError(f"its shape is {found[seed].shape}, expected {shape}")
            except (OSError, ValueError) as error:
                raise run.Error(f"{path}: cannot be read ({error})") from None
        return found

    @property
    def predicted(self):
        """{seed: predicted classes (N,)}"""
        return {seed: values.argmax(axis=1) for seed, values in self.probabilities.items()}


@functools.lru_cache(maxsize=2)
def load(chosen):
    return data.load(**dict(chosen))


def read_runs(paths):
    """The FinishedRuns in the folders `paths`, of one run or several seeds each. Raises run.Error."""
    runs = [read_run(Path(path)) for path in dict.fromkeys(paths)]
    for number in range(4):  # the shortest labels that tell them apart
        labels = [label_of(finished, number) for finished in runs]
        if len(set(labels)) == len(labels):
            break
    return [replace(finished, label=label) for finished, label in zip(runs, labels, strict=True)]


def read_run(path):
    if not (path / "metrics.json").exists():
        inside = sorted(str(found.parent) for found in path.glob("*/metrics.json"))
        others = f"; name those in it: {' '.join(inside[:3])}" if inside else ""
        raise run.Error(f"{path}: not the folder of a finished run{others}")
    metrics = run.read_json(path / "metrics.json")
    try:
        folders = {seed: path / f"seed_{seed}" for seed in metrics.get("seeds", ())}
        folders = folders or {metrics["settings"]["seed"]: path}
        histories = {seed: run.read_history(folder / "history.csv") for seed, folder in folders.items()}
        finished = FinishedRun(path, metrics["model"], metrics, folders, histories)
        dict(finished.accuracies, dataset=metrics["dataset"])
    except (KeyError, TypeError, ValueError) as error:
        raise run.Error(f"{path}: not the folder of a training run, or damaged ({error!r})") from None
    return finished


def network(metrics):
    """784-256-128-10; of a hybrid, that of its CNN + that of its MLP; "-" of a model without such sizes."""
    return " + ".join(re.findall(r"\d+(?:-\d+)+", metrics["model"])) or "-"


def label_of(finished, number):
    """The model, named as in plots.MODEL_COLORS; the larger the number, the more to tell it from others."""
    name, metrics = finished.metrics["model"], finished.metrics
    if " + NumPy MLP" in name:
        joint = metrics["settings"].get("training") == "joint"
        name = "CNN + NumPy MLP, trained jointly" if joint else "CNN features + NumPy MLP"
    name = re.sub(r"(^| )\d+(-\d+)+", "", name).strip() or name
    return name + ("", f" {network(metrics)}", f" ({finished.path.name})", f" ({finished.path})")[number]


def p_value(p):
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def same_test_images(first, second):
    a, b = first.images.test, second.images.test
    return np.array_equal(a.X, b.X) and np.array_equal(a.y, b.y)


def compare(runs, pairs=None):
    """A dict for each pair of runs with the same test images, or of `pairs`. Raises run.Error.

    "first", "second": labels. "points", "std", "low", "high", "p_t": the paired t test over the "seeds" that
    both have; where these are fewer than two, only "points". "only_first", "only_second", "p_mcnemar":
    McNemar's test, image by image, of the first common seed, or else of both first ones: "mcnemar_seeds". The
    p values are corrected (Holm).
    """
    comparisons = []
    for first, second in pairs or itertools.combinations(runs, 2):
        if not same_test_images(first, second):
            continue
        common = [seed for seed in first.folders if seed in second.folders]
        a, b = seeds = (common[0], common[0]) if common else (first.first, second.first)
        y = first.images.test.y
        only_first, only_second, p = mcnemar(first.predicted[a] == y, second.predicted[b] == y)
        comparison = {"first": first.label, "second": second.label, "seeds": len(common)}
        comparison |= {"only_first": only_first, "only_second": only_second, "p_mcnemar": p}
        comparison |= {"mcnemar_seeds": seeds, "points": 100 * (first.accuracies[a] - second.accuracies[b])}
        if len(common) > 1:
            test = paired_test([100 * (first.accuracies[seed] - second.accuracies[seed]) for seed in common])
            comparison |= {"std": test.pop("points_std"), "p_t": test.pop("p"), **test}
        comparisons.append(comparison)
    for name in ("p_t", "p_mcnemar"):
        correct(comparisons, name, name)
    return comparisons
