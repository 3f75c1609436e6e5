"""Compare finished runs: table, curves with a band over seeds, paired tests.

    python experiments.py compare runs/mlp_from_scratch/A runs/hybrid_train/B

writes table.md, table.csv, table.tex and curves.png, and prints the table. Runs
are compared over the seeds that they share (paired t test); where that is one
seed or none, image by image by their first seeds (McNemar's test). The first run
is the one that the others are compared with.
"""

if __name__ == "__main__":
    raise SystemExit("studies/compare.py is a module, not a script: experiments.py uses it")

import argparse
from pathlib import Path

import numpy as np

import plots
from studies.comparison import LINKS
from studies.finished import read_metrics
from studies.statistics import holm, mcnemar, paired_t, word_of
from support import files, saved, settings
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
    return {"name": folder.name, "folder": folder, "folders": dict(zip(seeds, paths, strict=True)), "metrics": metrics,
            "model": metrics["model"], "seeds": seeds, "dataset": metrics["dataset"], "histories": histories,
            "accuracies": {split: np.array(values, float) for split, values in accuracies.items()}}  # fmt: skip


def names_of(runs):
    """Short and different names: as much of each folder's path as is needed."""
    for parts in range(1, max(len(run["folder"].parts) for run in runs) + 1):
        names = ["/".join(run["folder"].parts[-parts:]) for run in runs]
        if len(set(names)) == len(names):
            return names
    raise files.FileError("a run is named twice")


def correct(run, seed):
    """Whether each test image is classified correctly (N,), by one seed of a run; None without saved probabilities."""
    folder = run["folders"][seed]
    if not (folder / "test_probabilities.npy").exists():
        return None
    metrics = read_metrics(folder)
    try:
        images = saved.images_of_run(run["metrics"])
        return saved.test_probabilities(folder, metrics, images).argmax(axis=1) == images.test.y
    except (OSError, *files.DAMAGED) as error:
        raise files.FileError(f"{folder}: its probabilities cannot be read ({error})") from None


def compare(run, other):
    """{"points": mean difference in test accuracy, "p": ..., "test": its name} of `run` and `other`; "p" may be lacking."""
    seeds = [seed for seed in run["seeds"] if seed in other["seeds"]]
    values, others = (dict(zip(side["seeds"], side["accuracies"]["test"], strict=True)) for side in (run, other))
    if len(seeds) > 1:
        points = [100 * (values[seed] - others[seed]) for seed in seeds]
        return {"points": float(np.mean(points)), "p": paired_t(points), "test": f"paired t test over {len(seeds)} seeds"}
    seed, other_seed = (seeds[0], seeds[0]) if seeds else (run["seeds"][0], other["seeds"][0])
    points = 100 * float(values[seed] - others[other_seed])
    both = correct(run, seed), correct(other, other_seed)
    named = f"seed {seed}" + f" and {other_seed}" * (seed != other_seed)
    if any(side is None for side in both):
        return {"points": points, "test": f"{named}, without saved probabilities"}
    return {"points": points, "p": mcnemar(*both)[2], "test": f"McNemar's test of {named}"}


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
        word, link, p = "not tested", "not tested against", "-"
        if "p" in test:
            test["p_holm"] = next(corrected)
            word, p = word_of(test), f"{test['p_holm']:.2g}"
            link = LINKS[word]
        rows.append([*cells, f"{test['points']:+.2f}", p, word])
        sentences.append(f"{run['name']} is {link} {runs[0]['name']} ({test['points']:+.2f} points, p = {p}; "
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
    parser.add_argument("runs", nargs="*", metavar="RUN", type=Path, help="folder of a finished run, or of several seeds")
    parser.add_argument("--output-dir", default="runs/compare", type=Path, metavar="DIR", help="default: runs/compare")
    parser.error = lambda mistake: parser.exit(2, f"experiments.py compare: {mistake.removeprefix('argument ')}\n")
    options, unknown = parser.parse_known_args(argv)
    settings.refuse_unknown(parser, unknown)
    if len(options.runs) < 2:
        parser.error("name the folders of two runs or more")
    if options.output_dir.exists() and not options.output_dir.is_dir():
        parser.error(f"--output-dir {options.output_dir}: is a file; name a folder")
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
