"""Finished runs, read from their folders and checked, and compared by paired tests."""

if __name__ == "__main__":
    raise SystemExit("studies/finished.py is a module, not a script: report.py and experiments.py use it")

import itertools
import math
import re
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import data
import plots
from studies.statistics import LEVEL, holm, mcnemar, paired_t
from support import files, saved

RESULTS = ("val_accuracy", "test_accuracy", "val_accuracy_flip_tta", "test_accuracy_flip_tta", "test_loss", "test_ece",
           "parameters", "seconds", "peak_memory_mib")  # of metrics.json, all numbers  # fmt: skip


@dataclass(frozen=True)
class FinishedRun:
    """A run's files, read and checked. Of several seeds, `metrics` has the means and `probabilities` an entry for each."""

    path: Path
    label: str  # unique among the runs of a report
    metrics: dict
    folders: dict  # {seed: folder}
    images: data.Dataset
    histories: dict  # {seed: {column: [value of each epoch]}}
    probabilities: dict  # {seed: (N, classes)}, of the test images

    @property
    def first(self):
        """The seed whose figures and mistakes are shown."""
        return next(iter(self.folders))

    @property
    def predicted(self):
        """{seed: predicted classes (N,)}"""
        return {seed: values.argmax(axis=1) for seed, values in self.probabilities.items()}


def read_metrics(folder):
    """The content of a folder's metrics.json, its types checked. Raises files.FileError."""
    path = folder / "metrics.json"
    if not path.exists():
        unfinished = (folder / "settings.json").exists() and not (folder / "predictions.csv").exists()
        reason = f"not a finished run; finish it with --resume {folder}" if unfinished else "not the folder of a run"
        inside = sorted(str(path.parent) for path in folder.glob("*/metrics.json"))
        reason += f"; name those in it: {' '.join(inside[:3])}{' ...' * (len(inside) > 3)}" if inside else ""
        raise files.FileError(f"{folder}: {reason if folder.is_dir() else 'no such folder'}")
    try:
        metrics = files.read_json(path)
        kinds = {"model": str, "dataset": str, "command": str, "settings": dict, "versions": dict, "machine": dict}
        lists, seeds = metrics.get("by_seed", {}), metrics.get("seeds", [0])
        numbers = [metrics["val_accuracy"], metrics["test_accuracy"], *itertools.chain(*lists.values())]
        numbers += [metrics[name] for key in RESULTS for name in (key, f"{key}_std") if name in metrics]
        if wrong := [name for name, kind in kinds.items() if not isinstance(metrics[name], kind)]:
            raise ValueError(f"{wrong[0]} is not what it should be")
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers):
            raise ValueError("a result is not a number")
        if not metrics["model"].strip() or not seeds or not all(isinstance(seed, int) for seed in seeds):
            raise ValueError("its model or its seeds are missing")
        if "seeds" in metrics and any(len(lists[name]) != len(seeds) for name in {"test_accuracy", *lists}):
            raise ValueError("its seeds and results do not fit")
    except files.DAMAGED as error:
        raise files.FileError(f"{path}: damaged ({type(error).__name__}: {error})") from None
    return metrics


def read_runs(paths, data_dir=None):
    """The FinishedRuns in the folders `paths`. data_dir: of the dataset. Raises files.FileError and data.DataError."""
    loaded = {}
    return with_labels([read_run(path, loaded, data_dir) for path in dict.fromkeys(paths)])


def read_run(path, loaded, data_dir=None):
    """The FinishedRun in the folder `path`. loaded: {settings: Dataset}, which is extended."""
    metrics = read_metrics(path)
    histories, probabilities = {}, {}
    try:
        folders = {seed: path / f"seed_{seed}" for seed in metrics.get("seeds", ())} or {metrics["settings"]["seed"]: path}
        images = saved.images_of_run(metrics, loaded, data_dir)
        for seed, folder in folders.items():
            histories[seed] = plots.read_history(folder / "history.csv")
            for history in (histories[seed], *map(plots.read_history, folder.glob("cnn_history.csv"))):
                if not history.get("val_accuracy"):
                    raise ValueError("its history has no epochs")
            probabilities[seed] = saved.test_probabilities(folder, read_metrics(folder), images)
    except FileNotFoundError as error:
        raise files.FileError(f"{error.filename}: no such file, and the report is made from it") from None
    except data.DataError as error:
        raise data.DataError(f"{path}: {error}") from None
    except (OSError, EOFError, *files.DAMAGED) as error:
        raise files.FileError(f"{path}: not a finished run, or damaged ({error})") from None
    return FinishedRun(path, path.name, metrics, folders, images, histories, probabilities)


def network(metrics):
    """784-256-128-10; of a hybrid, that of its CNN + that of its MLP; "-" of a model without such sizes."""
    return " + ".join(re.findall(r"\d+(?:-\d+)+", metrics["model"])) or "-"


def short_name(metrics):
    """The model without its sizes, by which plots.MODEL_COLORS knows it."""
    if " + NumPy MLP" in metrics["model"]:
        joint = metrics["settings"].get("training") == "joint"
        return "CNN + NumPy MLP, trained jointly" if joint else "CNN features + NumPy MLP"
    return re.sub(r"(^| )\d+(-\d+)+", "", metrics["model"]).strip() or metrics["model"]


def with_labels(finished):
    """The runs with the shortest labels that tell them apart."""
    for add in (lambda run: "", lambda run: f" {network(run.metrics)}", lambda run: f" ({run.path.name})",
                lambda run: f" ({run.path})"):  # fmt: skip
        labels = [short_name(run.metrics) + add(run) for run in finished]
        if len(set(labels)) == len(labels):
            break
    return [replace(run, label=label) for run, label in zip(finished, labels, strict=True)]


def p_value(p):
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def same_test_images(run, other):
    return all(np.array_equal(getattr(run.images.test, name), getattr(other.images.test, name)) for name in "Xy")


def compare(finished):
    """A dict for each pair of runs with the same test images: difference in points, its tests, corrected by Holm."""
    comparisons = []
    for run, other in itertools.combinations(finished, 2):
        if not same_test_images(run, other):
            continue
        y, common = run.images.test.y, [seed for seed in run.folders if seed in other.folders]
        accuracies = [dict(zip(r.folders, r.metrics.get("by_seed", {}).get("test_accuracy", [r.metrics["test_accuracy"]]),
                               strict=True)) for r in (run, other)]  # fmt: skip
        differences = np.array([100 * (accuracies[0][seed] - accuracies[1][seed]) for seed in common])
        seeds = (common[0], common[0]) if common else (run.first, other.first)
        only_first, only_second, p = mcnemar(*(r.predicted[seed] == y for r, seed in zip((run, other), seeds, strict=True)))
        comparison = {"first": run.label, "second": other.label, "seeds": len(common), "mcnemar_seeds": seeds,
                      "only_first": only_first, "only_second": only_second, "p_mcnemar": p}  # fmt: skip
        if len(common) > 1:
            comparison |= {"points": float(differences.mean()), "std": statistics.stdev(differences.tolist()),
                           "p_t": paired_t(differences)}  # fmt: skip
        else:
            comparison["points"] = 100 * (only_first - only_second) / len(y)
        comparisons.append(comparison)
    for name in ("p_t", "p_mcnemar"):
        tested = [comparison for comparison in comparisons if name in comparison]
        for comparison, p in zip(tested, holm([c[name] for c in tested]), strict=True):
            comparison[name] = p
    return comparisons


def verdict(comparison):
    """One sentence on an entry of `compare`. Several seeds decide by the paired t test, a single one by McNemar's."""
    c = comparison
    p, test = (c["p_t"], f"paired t test over {c['seeds']} seeds") if "p_t" in c else (c["p_mcnemar"], "McNemar's test")
    word = "is not distinguishable from" if p >= LEVEL else "is better than" if c["points"] > 0 else "is worse than"
    spread = f" ± {c['std']:.2f}" if "std" in c else ""
    return (f"{c['first']} {word} {c['second']}: {c['points']:+.2f}{spread} points of test accuracy, p {'= ' * (p >= 0.001)}"
            f"{p_value(p)} ({test}).")  # fmt: skip
