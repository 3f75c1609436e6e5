"""What a study leaves behind: runs.csv, summary.json, a figure, and the README of all studies, made from the summaries."""

if __name__ == "__main__":
    raise SystemExit("studies/output.py is a module, not a script: experiments.py uses it")

import csv
import io
import json

import numpy as np

from plots import GREY, MODEL_COLORS, RIGHT, SERIES, TRAIN, figure
from studies.comparison import interval
from studies.study import label
from support import files


def write(folder, comparison, rows):
    """Write the files of a finished study into `folder`; return its summary. Raises files.FileError."""
    summary, table = comparison.summary(rows), comparison.table(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, table[-1], restval="", lineterminator="\n")  # a final run has all columns
    writer.writeheader()
    writer.writerows(table)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / "runs.csv", text.getvalue())
        files.write_text(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
        with files.atomic_write(folder / f"{summary['name']}.png") as temporary:
            draw(summary).savefig(temporary, format="png")
    except OSError as error:
        raise files.FileError(f"{folder}: cannot be written ({error.strerror}); the runs are kept, and the same command "
                              "writes it again") from None  # fmt: skip
    return summary


def draw(summary):
    """The Figure of a study: a heat map, lines over a number, or a dot for each seed."""
    results = {name: result for name, result in summary["variants"].items() if "val_accuracy" in result}
    title = f"{summary['question']}\n{title_of(summary)}"
    if not results:
        fig, axes = figure(title, 9, 2)
        axes[0, 0].axis("off")
        axes[0, 0].text(0.5, 0.5, "every variant diverged or failed", ha="center", va="center")
        return fig
    if len(summary["factors"]) == 2:
        return heat_map(summary, results, title)
    if summary["x"]:
        return lines(summary, results, title)
    return dots(summary, results, title)


def title_of(summary):
    epochs = "-".join(dict.fromkeys(map(str, (summary["epochs"][0], summary["epochs"][-1]))))
    seeds = f"{summary['seeds']} seed{'s' * (summary['seeds'] > 1)}"
    return f"{summary['dataset']}, {seeds}, {epochs} epoch{'s' * (epochs != '1')}"


def dots(summary, results, title):
    """Test accuracy of each variant: a dot for each seed, the mean and its 95 % interval; beside it curves by epoch."""
    columns = 2 if summary["curves"] else 1
    longest = max(map(len, results))
    fig, axes = figure(title, 9 if columns == 1 else 11, 1.9 + 0.34 * len(results), ncols=columns)
    ax = axes[0, 0]
    for row, (name, result) in enumerate(results.items()):
        values = 100 * np.array(result["by_seed"]["test_accuracy"])
        color = RIGHT if name == summary["baseline"] else MODEL_COLORS["CNN"]
        ax.plot(values, np.full(len(values), row), "o", color=color, alpha=0.45, markersize=5, markeredgewidth=0)
        ax.errorbar(values.mean(), row, xerr=interval(values), color=color, marker="|", markersize=12, markeredgewidth=2,
                    elinewidth=1.2)  # fmt: skip
        ax.text(1.02, row, f"{values.mean():.2f}", fontsize=9, va="center", transform=ax.get_yaxis_transform())
    names = [f"{name} (baseline)" if name == summary["baseline"] else name for name in results]
    ax.set_yticks(range(len(results)), names, fontsize=9 if longest < 45 else 7.5)
    ax.set_ylim(len(results) - 0.5, -0.5)
    ax.set_xlabel("test accuracy (%): seeds, mean, 95 % interval", fontsize=9)
    ax.grid(axis="x", alpha=0.25)
    if columns == 2:
        curves(axes[0, 1], results)
    return fig


def curves(ax, results):
    """Validation accuracy by epoch, the mean over the seeds."""
    for number, (name, result) in enumerate(results.items()):
        values = 100 * np.array(result["val_accuracy_by_epoch"])
        ax.plot(np.arange(1, len(values) + 1), values, label=name, linewidth=1.6, color=SERIES[number % len(SERIES)],
                linestyle=("-", "--", ":")[number // len(SERIES) % 3])  # fmt: skip
    ends = [100 * min(result["val_accuracy_by_epoch"][-1:]) for result in results.values()]
    best = 100 * max(max(result["val_accuracy_by_epoch"]) for result in results.values())
    ax.set_ylim(max(min(ends) - 3, best - 25), best + 0.6)
    ax.set_xlabel("epoch", fontsize=9)
    ax.set_ylabel("validation accuracy (%)", fontsize=9)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize=8)


def heat_map(summary, results, title):
    """Mean test accuracy for each pair of values; the pair with the best validation accuracy has a frame."""
    rows, columns = summary["factors"]
    first, second = ([*dict.fromkeys(label(read(result["settings"][name])) for result in summary["variants"].values())]
                     for name in (rows, columns))  # fmt: skip
    grid = np.full((len(first), len(second)), np.nan)
    places = {}
    for name, result in results.items():
        place = first.index(label(read(result["settings"][rows]))), second.index(label(read(result["settings"][columns])))
        grid[place], places[name] = 100 * result["test_accuracy"], place
    fig, axes = figure(title, 2.6 + 1.15 * len(second), 2.2 + 0.6 * len(first))
    ax = axes[0, 0]
    low = max(np.nanmin(grid), np.nanmax(grid) - 8)  # a few very poor pairs would hide the differences of the others
    shown = ax.imshow(grid, cmap="viridis", aspect="auto", vmin=low, vmax=np.nanmax(grid))
    for (i, j), value in np.ndenumerate(grid):
        text = f"{value:.2f}" if np.isfinite(value) else "diverged"
        dark = np.isfinite(value) and value < (low + np.nanmax(grid)) / 2
        ax.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    best = places[max(results, key=lambda name: results[name]["val_accuracy"])]
    ax.add_patch(frame(best))
    ax.set(xticks=range(len(second)), xticklabels=second, yticks=range(len(first)), yticklabels=first,
           xlabel=columns.replace("_", " "), ylabel=rows.replace("_", " "))  # fmt: skip
    ax.spines[:].set_visible(False)
    fig.colorbar(shown, label="test accuracy (%), mean over seeds")
    fig.text(0.01, 0.01, "frame: best on validation", fontsize=8, color=GREY)
    return fig


def frame(place):
    from matplotlib.patches import Rectangle

    return Rectangle((place[1] - 0.5, place[0] - 0.5), 1, 1, fill=False, edgecolor="#D55E00", linewidth=2.5)


def lines(summary, results, title):
    """Test accuracy against a number, a line for each group: seeds as dots, the mean and its 95 % interval."""
    fig, axes = figure(title, 9, 4.8)
    ax, groups = axes[0, 0], {}
    for result in results.values():
        groups.setdefault(result["group"], []).append(result)
    for number, (group, members) in enumerate(groups.items()):
        members = sorted(members, key=lambda result: result["x"])
        x, color = [result["x"] for result in members], SERIES[number % len(SERIES)] if group else TRAIN
        values = [100 * np.array(result["by_seed"]["test_accuracy"]) for result in members]
        for place, points in zip(x, values, strict=True):
            ax.plot(np.full(len(points), place), points, "o", color=color, alpha=0.4, markersize=4, markeredgewidth=0)
        ax.errorbar(x, [points.mean() for points in values], yerr=[interval(points) for points in values], color=color,
                    linewidth=1.6, elinewidth=1, capsize=2, label=group or None)  # fmt: skip
    every = [result["x"] for result in results.values()]
    if min(every) > 0 and max(every) > 8 * min(every):
        ax.set_xscale("log")
        ax.set_xticks(sorted(set(every)) if summary["x"] != "seconds" else [5, 10, 20, 50, 100, 200, 500])
        ax.set_xlim(0.8 * min(every), 1.25 * max(every))
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
        ax.minorticks_off()
    names = {"train_size": "training images", "seconds": "training time (s), one thread",
             "label_noise": "fraction of wrong training labels"}  # fmt: skip
    ax.set(xlabel=names.get(summary["x"], summary["x"].replace("_", " ")), ylabel="test accuracy (%)")
    ax.grid(alpha=0.25)
    if any(groups):
        ax.legend(frameon=False, fontsize=9)
    return fig


def read(value):
    """A value of a summary.json as the study has it: lists are tuples."""
    return tuple(value) if isinstance(value, list) else value
