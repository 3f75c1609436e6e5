"""Compare finished runs: table, curves with a band over seeds, paired tests.

    python experiments.py compare runs/mlp_from_scratch/A runs/hybrid_train/B

writes table.md, table.csv, table.tex and curves.png, and prints the table. Runs
of several seeds are compared over the seeds that they share (paired t test),
single runs image by image (McNemar's test). The first run is the one that the
others are compared with.
"""

if __name__ == "__main__":
    raise SystemExit("studies/compare.py is a module, not a script: experiments.py uses it")

import argparse
from pathlib import Path

import numpy as np

import plots
from studies.finished import read_metrics
from studies.statistics import LEVEL, holm, mcnemar, paired_t
from support import files, saved
from support.report_page import Table

COLUMNS = ("run", "model", "seeds", "validation (%)", "test (%)", "difference in points", "p", "verdict")


def read(folder):
    """A run, or a run of several seeds, as a dict. Raises files.FileError for a folder that holds neither."""
    metrics = read_metrics(folder)
    seeds = metrics.get("seeds", [metrics["settings"].get("seed", 0)])
    paths = [folder / f"seed_{seed}" for seed in seeds] if "seeds" in metrics else [folder]
    accuracies = {split: metrics.get("by_seed", {}).get(f"{split}_accuracy", [metrics[f"{split}_accuracy"]])
                  for split in ("val", "test")}  # fmt: skip
    try:
        histories = [plots.read_history(path / "history.csv") for path in paths if (path / "history.csv").exists()]
    except (OSError, *files.DAMAGED) as error:
        raise files.FileError(f"{folder}: its history.csv is damaged ({error})") from None
    return {"name": folder.name, "folder": folder, "metrics": metrics, "model": metrics["model"], "seeds": seeds,
            "dataset": metrics["dataset"], "histories": histories,
            "accuracies": {split: np.array(values, float) for split, values in accuracies.items()}}  # fmt: skip


def names_of(runs):
    """Short and different names: as much of each folder's path as is needed."""
    for parts in range(1, max(len(run["folder"].parts) for run in runs) + 1):
        names = ["/".join(run["folder"].parts[-parts:]) for run in runs]
        if len(set(names)) == len(names):
            return names
    raise files.FileError("a run is named twice")


def correct(run):
    """Whether each test image is classified correctly (N,), by a single run; None without saved probabilities."""
    if not (run["folder"] / "test_probabilities.npy").exists():
        return None
    images = saved.images_of_run(run["metrics"])
    return saved.test_probabilities(run["folder"], run["metrics"], images).argmax(axis=1) == images.test.y


def compare(run, other):
    """{"points": mean difference in test accuracy, "p": ..., "test": its name} of `run` and `other`; "p" may be lacking."""
    seeds = [seed for seed in run["seeds"] if seed in other["seeds"]]
    values, others = (dict(zip(side["seeds"], side["accuracies"]["test"], strict=True)) for side in (run, other))
    if len(seeds) > 1:
        points = [100 * (values[seed] - others[seed]) for seed in seeds]
        return {"points": float(np.mean(points)), "p": paired_t(points), "test": f"paired t test over {len(seeds)} seeds"}
    points = 100 * float(run["accuracies"]["test"].mean() - other["accuracies"]["test"].mean())
    if len(run["seeds"]) == len(other["seeds"]) == 1:
        pair = correct(run), correct(other)
        if pair[0] is not None and pair[1] is not None:
            return {"points": points, "p": mcnemar(*pair)[2], "test": "McNemar's test of one seed"}
    return {"points": points, "test": "no common seeds and no saved probabilities"}


def table_of(runs):
    """(rows of COLUMNS as strings, the sentences of the verdict)."""
    tests = [compare(run, runs[0]) for run in runs[1:]]
    corrected = iter(holm([test["p"] for test in tests if "p" in test]))
    rows, sentences = [], []
    for run, test in zip(runs, [None, *tests], strict=True):
        accuracies = [spread(run["accuracies"][split]) for split in ("val", "test")]
        cells = [run["name"], run["model"], str(len(run["seeds"])), *accuracies]
        if test is None:
            rows.append([*cells, "-", "-", "-"])
            continue
        word, p = "not tested", "-"
        if "p" in test:
            value = next(corrected)
            word = "not distinguishable" if value >= LEVEL else "better" if test["points"] > 0 else "worse"
            p = f"{value:.2g}"
        rows.append([*cells, f"{test['points']:+.2f}", p, word])
        link = {"better": " than", "worse": " than", "not distinguishable": " from"}.get(word, " against")
        sentences.append(f"{run['name']} is {word}{link} {runs[0]['name']} ({test['points']:+.2f} points, p = {p}; "
                         f"{test['test']}).")  # fmt: skip
    return rows, sentences


def spread(values):
    """93.52 ± 0.15; without the standard deviation for a single value."""
    return f"{100 * values.mean():.2f}" + (f" ± {100 * values.std(ddof=1):.2f}" if len(values) > 1 else "")


def curves(runs, title):
    """Validation loss and accuracy by epoch: the mean over the seeds, and a band from the lowest to the highest one.

    runs: dicts with "name", "histories" and, optionally, "color".
    """
    fig, axes = plots.figure(f"Validation loss and accuracy by epoch\n{title}", 9, 4.2, ncols=2)
    panels = ("val_loss", 1, "loss"), ("val_accuracy", 100, "accuracy (%)")
    for ax, (column, factor, label) in zip(axes[0], panels, strict=True):
        late = []
        for number, run in enumerate(runs):
            if not run["histories"]:
                continue
            epochs = min(len(history[column]) for history in run["histories"])
            values = factor * np.array([history[column][:epochs] for history in run["histories"]])  # (seeds, epochs)
            x, color = np.arange(1, epochs + 1), run.get("color", plots.SERIES[number % len(plots.SERIES)])
            marker = "o" if epochs == 1 else None  # a single epoch would be no line
            ax.plot(x, values.mean(axis=0), color=color, linewidth=1.6, label=run["name"], marker=marker)
            if len(values) > 1:
                ax.fill_between(x, values.min(axis=0), values.max(axis=0), color=color, alpha=0.2, linewidth=0)
            late.append(values[:, min(epochs - 1, max(1, epochs // 10)) :].ravel())
        if late:
            low, high = (function(np.concatenate(late)) for function in (np.min, np.max))
            ax.set_ylim(low - 0.06 * (high - low) - 1e-6, high + 0.06 * (high - low) + 1e-6)
        ax.set(xlabel="epoch", ylabel=f"validation {label}")
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        ax.grid(alpha=0.25)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, fontsize=9, ncols=2, loc="outside lower center")
    return fig


def main(argv=None):
    parser = argparse.ArgumentParser("experiments.py compare", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="folder of a finished run, or of several seeds")
    parser.add_argument("--output-dir", default="runs/compare", type=Path, metavar="DIR", help="default: runs/compare")
    options = parser.parse_args(argv)
    if len(options.runs) < 2:
        raise files.FileError("compare: name two runs or more")
    runs = [read(folder) for folder in options.runs]
    if len({run["dataset"] for run in runs}) > 1:
        datasets = sorted({run["dataset"] for run in runs})
        raise files.FileError(f"compare: the runs are of different datasets: {', '.join(datasets)}")
    for run, name in zip(runs, names_of(runs), strict=True):
        run["name"] = name
    rows, sentences = table_of(runs)
    table = Table("", list(COLUMNS), rows)
    text = table.markdown() + "\n" + "\n".join(sentences) + "\n"
    options.output_dir.mkdir(parents=True, exist_ok=True)
    files.write_text(options.output_dir / "table.md", text)
    files.write_text(options.output_dir / "table.csv", table.csv())
    files.write_text(options.output_dir / "table.tex", table.latex())
    with files.atomic_write(options.output_dir / "curves.png") as temporary:
        curves(runs, runs[0]["dataset"]).savefig(temporary, format="png")
    print(text)
    print(f"table.md, table.csv, table.tex and curves.png are in {options.output_dir}")
