"""Finished runs, read from their folders and compared; `python -m extras.report` makes a page of them.

    python experiments.py compare runs/mlp_from_scratch/A runs/hybrid_train/B

Runs are compared over the seeds that both have (paired t test), over seeds and test images together
(bootstrap), and image by image by one seed (McNemar's).
"""

import functools
import itertools
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import data
import run
from studies.output import aligned, difference, percent
from studies.statistics import bootstrap, correct, mcnemar, paired_test, with_verdicts

HEADER = ["first", "second", "seeds", "difference (points)", "verdict", "interval over seeds and images"]
HEADER += ["only first right", "only second right", "p, McNemar"]


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
        images = load_images(tuple(s.items()))
        if images.name != self.metrics["dataset"]:
            raise run.Error(f"{self.path}: was trained on {self.metrics['dataset']}, found {images.name}")
        return images

    @functools.cached_property
    def probabilities(self):
        """{seed: probabilities (N, classes) of the test images}. Raises run.Error."""
        paths = {seed: folder / "test_probabilities.npy" for seed, folder in self.folders.items()}
        found = {seed: np.load(path).astype(np.float64) for seed, path in paths.items()}
        if {len(values) for values in found.values()} != {len(self.images.test.y)}:
            raise run.Error(f"{self.path}: was tested on other images than are found now")
        return found

    @property
    def predicted(self):
        """{seed: predicted classes (N,)}"""
        return {seed: values.argmax(axis=1) for seed, values in self.probabilities.items()}


@functools.lru_cache(maxsize=2)
def load_images(chosen):
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


def label_of(finished, number):
    """The model, named as in plots.MODEL_COLORS; the larger the number, the more to tell it from others."""
    name = finished.metrics["model"]
    sizes = " + ".join(re.findall(r"\d+(?:-\d+)+", name))
    if " + NumPy MLP" in name:
        joint = finished.metrics["settings"].get("training") == "joint"
        name = "CNN + NumPy MLP, trained jointly" if joint else "CNN features + NumPy MLP"
    name = re.sub(r"(^| )\d+(-\d+)+", "", name)
    more = ("", sizes, f"({finished.path.name})", f"({finished.path})")[number]
    return f"{name} {more}".strip()


def p_value(p):
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def same_test_images(first, second):
    a, b = first.images.test, second.images.test
    return np.array_equal(a.X, b.X) and np.array_equal(a.y, b.y)


def compare(runs):
    """A dict for each pair of runs with the same test images. Raises run.Error.

    "first", "second": labels. "points", "low", "high", "p", "p_holm", "verdict": the paired t test over the
    "seeds" that both have; "low_images", "high_images": the bootstrap's interval over these seeds and the
    images; where they are fewer than two, only "points". "only_first", "only_second", "p_mcnemar": McNemar's
    test, image by image, of the first common seed, or else of both first ones. p_holm and p_mcnemar are
    corrected (Holm).
    """
    comparisons = []
    for first, second in itertools.combinations(runs, 2):
        if not same_test_images(first, second):
            continue
        common = [seed for seed in first.folders if seed in second.folders]
        a, b = (common[0], common[0]) if common else (first.first, second.first)
        y = first.images.test.y
        right = [{seed: classes == y for seed, classes in side.predicted.items()} for side in (first, second)]
        only_first, only_second, p = mcnemar(right[0][a], right[1][b])
        comparison = {"first": first.label, "second": second.label, "seeds": len(common)}
        comparison |= {"only_first": only_first, "only_second": only_second, "p_mcnemar": p}
        comparison["points"] = 100 * (first.accuracies[a] - second.accuracies[b])
        if len(common) > 1:
            differences = [100 * (first.accuracies[seed] - second.accuracies[seed]) for seed in common]
            low, high = bootstrap(*(np.stack([side[seed] for seed in common]) for side in right))
            comparison |= paired_test(differences) | {"low_images": low, "high_images": high}
        comparisons.append(comparison)
    correct(comparisons, "p_mcnemar", "p_mcnemar")
    return with_verdicts(comparisons)


def rows_of(comparisons):
    """The rows of HEADER, of the dicts that `compare` returns."""
    rows = []
    for c in comparisons:
        paired = [str(c["seeds"]), f"{c['points']:+.2f}", "-", "-"]
        if "verdict" in c:
            paired[1:3] = difference(c)
            paired[3] = f"{c['low_images']:+.2f} to {c['high_images']:+.2f}"
        counts = [f"{c['only_first']:,}", f"{c['only_second']:,}", p_value(c["p_mcnemar"])]
        rows.append([c["first"], c["second"], *paired, *counts])
    return rows


def main(paths):
    """Print the accuracies of the runs in the folders `paths`, and their differences."""
    runs, names = read_runs(paths), ("val_accuracy", "test_accuracy")
    rows = [[r.label, len(r.folders), *(percent(r.metrics, name) for name in names)] for r in runs]
    print(aligned(["run", "seeds", "validation", "test"], rows))
    print(aligned(HEADER, rows_of(compare(runs))))
