"""Compare finished runs with the first one: a table, curves with a band over seeds, paired tests.

    python experiments.py compare runs/mlp_from_scratch/A runs/hybrid_train/B

Runs are compared over the seeds that both have (paired t test); where that is one seed or none, image by
image by their first seeds (McNemar's test).
"""

import argparse
from pathlib import Path

import numpy as np

import plots
import run
from studies.finished import compare, p_value, read_runs
from studies.output import aligned, markdown, percent, save_figure

HEADER = ["run", "seeds", "validation", "test", "difference in points (95 % interval)", "p", "test of it"]


def rows_of(runs):
    """The rows of HEADER."""
    rows = []
    for result in runs:
        accuracies = [percent(result.metrics, f"{split}_accuracy") for split in ("val", "test")]
        rows.append([result.label, str(len(result.folders)), *accuracies])
    rows[0] += ["-", "-", "-"]
    tests = compare(runs, [(other, runs[0]) for other in runs[1:]])
    for row, test in zip(rows[1:], tests, strict=True):
        row.append(f"{test['points']:+.2f}")
        if "p_t" in test:
            row[-1] += f" ({test['low']:+.2f} to {test['high']:+.2f})"
            row += [p_value(test["p_t"]), f"paired t test, {test['seeds']} seeds"]
        else:
            seeds = " and ".join(map(str, dict.fromkeys(test["mcnemar_seeds"])))
            row += [p_value(test["p_mcnemar"]), f"McNemar, seed {seeds}"]
    return rows


def curves(runs, title):
    """Validation loss and accuracy by epoch: the mean over the seeds, a band from the lowest to the highest.

    runs: dicts with "name", "histories" and perhaps "color".
    """
    fig, axes = plots.figure(f"Validation loss and accuracy by epoch\n{title}", 9, 4.2, ncols=2)
    panels = ("val_loss", 1, "validation loss"), ("val_accuracy", 100, "validation accuracy (%)")
    for ax, (column, factor, ylabel) in zip(axes[0], panels, strict=True):
        late = []  # after the first tenth; sets the range
        for number, entry in enumerate(runs):
            histories = [history[column] for history in entry["histories"]]
            epochs = min(map(len, histories))
            values = factor * np.array([history[:epochs] for history in histories])  # (seeds, epochs)
            x, color = np.arange(1, epochs + 1), entry.get("color", plots.SERIES[number % len(plots.SERIES)])
            ax.plot(x, values.mean(axis=0), "o-" if epochs == 1 else "-", color=color, label=entry["name"])
            ax.fill_between(x, values.min(axis=0), values.max(axis=0), color=color, alpha=0.2, linewidth=0)
            late += [values[:, epochs // 10 :].min(), values[:, epochs // 10 :].max()]
        margin = 0.06 * (max(late) - min(late)) + 1e-6
        ax.set(xlabel="epoch", ylabel=ylabel, ylim=(min(late) - margin, max(late) + margin))
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        ax.grid(alpha=0.25)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), ncols=2, **plots.LEGEND)
    return fig


def main(argv):
    parser = argparse.ArgumentParser("experiments.py compare", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or of several seeds")
    parser.add_argument("--output-dir", default="runs/compare", metavar="DIR", help="default: runs/compare")
    given = parser.parse_args(argv)
    runs, folder = read_runs(given.runs), Path(given.output_dir)
    datasets = {result.metrics["dataset"]: 0 for result in runs}
    if len(runs) < 2 or len(datasets) > 1:
        raise run.Error(f"compare: name two runs or more of one dataset; these are of {', '.join(datasets)}")
    rows = rows_of(runs)
    folder.mkdir(parents=True, exist_ok=True)
    run.write(folder / "table.md", markdown(HEADER, rows))
    run.write(folder / "table.csv", run.csv_text(HEADER, rows))
    entries = [{"name": result.label, "histories": list(result.histories.values())} for result in runs]
    save_figure(folder / "curves.png", curves(entries, *datasets))
    print(f"{aligned(HEADER, rows)}\ntable.md, table.csv and curves.png are in {folder}")
