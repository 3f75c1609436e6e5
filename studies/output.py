"""What a study leaves behind: runs.csv, summary.json and a figure, which is made from summary.json alone."""

if __name__ == "__main__":
    raise SystemExit("studies/output.py is a module, not a script: experiments.py uses it")

import csv
import io
import json
import textwrap
from pathlib import Path

import numpy as np

from plots import GREY, MODEL_COLORS, SERIES, WRONG, figure
from studies.comparison import baselines_in, interval, not_learned
from studies.study import label
from support import files

SCRIPT_COLORS = {"mlp": MODEL_COLORS["NumPy MLP"], "cnn": MODEL_COLORS["CNN"],
                 "hybrid": MODEL_COLORS["CNN features + NumPy MLP"]}  # fmt: skip
RANGE = 12  # points of accuracy that a figure shows below the best variant; a variant below them has a mark at the edge


def write(folder, comparison, rows):
    """Write the files of a finished study into `folder`; return its summary. Raises OSError."""
    summary, table = comparison.summary(rows), comparison.table(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, table[-1], restval="", lineterminator="\n")  # a final run has all columns
    writer.writeheader()
    writer.writerows(table)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "runs.csv", text.getvalue())
    save(folder, summary)
    return summary


def save(folder, summary):
    """Write summary.json and the figure."""
    files.write_text(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    with files.atomic_write(Path(folder, f"{summary['name']}.png")) as temporary:
        draw(summary).savefig(temporary, format="png")


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
    return ", ".join(filter(None, [summary["dataset"], seeds, f"{epochs} epoch{'s' * (epochs != '1')}"]))


def lost(result):
    """Why a variant has no results, in a word."""
    return "diverged" if result.get("diverged") else "failed"


def accuracies(result):
    """Test accuracy of each seed in percent."""
    return 100 * np.array(result["by_seed"]["test_accuracy"])


def dots(summary, results, title):
    """Test accuracy of each variant: a dot for each seed, the mean and its 95 % interval; below it curves by epoch."""
    variants = summary["variants"]
    baselines = baselines_in(summary)
    names = [textwrap.fill(f"{name} (baseline)" if {name} == baselines else name, 36) for name in variants]
    height = 0.16 * sum(2 + name.count("\n") for name in names)
    panels = [height, 3.2] if summary["curves"] else [height]
    fig, axes = figure(title, 9, 1.5 + 1.15 * sum(panels), nrows=len(panels), height_ratios=panels)
    ax = axes[0, 0]
    points = list(map(accuracies, results.values()))
    lowest = max(values.mean() for values in points) - RANGE  # far below, neither seeds nor intervals set the range
    ends = [(values.mean() - interval(values), *values, values.mean() + interval(values))
            for values in points if values.mean() > lowest]  # fmt: skip
    high = max(map(max, ends))
    low = max(high - RANGE, min(map(min, ends)))
    margin = 0.04 * max(high - low, 0.1)
    for row, result in enumerate(variants.values()):
        beside = {"fontsize": 9, "va": "center", "transform": ax.get_yaxis_transform()}
        if "by_seed" not in result:
            ax.text(1.02, row, lost(result), color=GREY, **beside)
            continue
        values, color = accuracies(result), SCRIPT_COLORS.get(result["script"], GREY)
        ax.plot(values, np.full(len(values), row), "o", color=color, alpha=0.5, markersize=5, markeredgewidth=0)
        if values.mean() < low:
            ax.plot(low - margin / 2, row, "<", color=color, markersize=6)
        else:
            ax.errorbar(values.mean(), row, xerr=interval(values) or None, color=color, marker="|", markersize=12,
                        markeredgewidth=2, elinewidth=1.2)  # fmt: skip
        several = f", {result['failed']} {lost(result)}" if result.get("failed") else ""
        several += f", {number} learned nothing" if (number := not_learned(result)) else ""
        ax.text(1.02, row, f"{values.mean():.2f}{several}", **beside)
    for name in baselines if len(baselines) == 1 else ():
        if "by_seed" in variants[name]:
            ax.axvline(accuracies(variants[name]).mean(), color=GREY, linewidth=0.8, linestyle=":", zorder=0)
    ax.set_yticks(range(len(names)), names, fontsize=9)
    ax.set(xlim=(low - margin, high + margin), ylim=(len(names) - 0.5, -0.5))
    words = [": seeds, mean" * (summary["seeds"] > 1) + ", 95 % interval" * (summary["seeds"] > 2)]
    words += ["; triangle: mean below this axis"] if any(values.mean() < low for values in points) else []
    words += ["; dotted: baseline"] if len(baselines) == 1 else []
    ax.set_xlabel("".join(["test accuracy (%)", *words]), fontsize=9)
    ax.grid(axis="x", alpha=0.25)
    if summary["curves"]:
        curves(axes[1, 0], results)
    return fig


def curves(ax, results):
    """Validation accuracy by epoch, the mean over the seeds."""
    best = 100 * max(max(result["val_accuracy_by_epoch"]) for result in results.values())
    worst = 100 * min(result["val_accuracy_by_epoch"][-1] for result in results.values())
    low = max(worst - 3, best - 2 * RANGE)
    for number, (name, result) in enumerate(results.items()):
        values = 100 * np.array(result["val_accuracy_by_epoch"])
        name += " (lower)" if values.max() < low else ""
        ax.plot(np.arange(1, len(values) + 1), values, label=textwrap.fill(name, 30), linewidth=1.6,
                color=SERIES[number % len(SERIES)], linestyle=("-", "--", ":", "-.")[number // len(SERIES) % 4],
                marker="o" if len(values) == 1 else None)  # fmt: skip
    ax.set_ylim(low, best + 0.05 * (best - low))
    seen = [100 * np.array(result["val_accuracy_by_epoch"]) >= low for result in results.values()]
    first, last = min(values.argmax() + 1 for values in seen if values.any()), max(map(len, seen))
    ax.set_xlim(first - 0.02 * last, last + 0.02 * last)  # without epochs in which no curve is in range
    ax.set_xlabel("epoch", fontsize=9)
    ax.set_ylabel("validation accuracy (%)", fontsize=9)
    ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    ax.grid(alpha=0.25)
    rows = 9 if len(results) <= 18 else 13
    ax.legend(frameon=False, fontsize=8 if rows == 9 else 7, loc="center left", bbox_to_anchor=(1.01, 0.5),
              ncols=-(-len(results) // rows))  # fmt: skip


def heat_map(summary, results, title):
    """Mean test accuracy for each pair of values; the pair with the best validation accuracy has a frame."""
    rows, columns = summary["factors"]
    first, second = ([*dict.fromkeys(shown(result, name) for result in summary["variants"].values())]
                     for name in (rows, columns))  # fmt: skip
    places = {name: (first.index(shown(result, rows)), second.index(shown(result, columns)))
              for name, result in summary["variants"].items()}  # fmt: skip
    grid, texts = np.full((len(first), len(second)), np.nan), {}
    for name, result in summary["variants"].items():
        texts[places[name]] = lost(result)
        if name in results:
            grid[places[name]] = 100 * result["test_accuracy"]
            texts[places[name]] = f"{100 * result['test_accuracy']:.2f}"
    width = max(0.95, 0.1 * max(map(len, second)))
    fig, axes = figure(f"{title}\nframe: best on validation", min(9, max(5, 2.6 + width * len(second))),
                       2.4 + 0.5 * len(first))  # fmt: skip
    ax = axes[0, 0]
    low = max(np.nanmin(grid), np.nanmax(grid) - RANGE)  # a few very poor pairs would hide the differences of the others
    image = ax.imshow(grid, cmap="viridis", aspect="auto", vmin=low, vmax=np.nanmax(grid))
    for (i, j), text in texts.items():
        dark = grid[i, j] < (low + np.nanmax(grid)) / 2  # not where it diverged
        size = 9 if len(second) <= 6 else 7
        ax.text(j, i, text, ha="center", va="center", fontsize=size, color="white" if dark else "black")
    ax.add_patch(frame(places[max(results, key=lambda name: results[name]["val_accuracy"])]))
    ax.set(xticks=range(len(second)), xticklabels=second, yticks=range(len(first)), yticklabels=first,
           xlabel=columns.replace("_", " "), ylabel=rows.replace("_", " "))  # fmt: skip
    if 0.1 * sum(map(len, second)) > 5:
        ax.set_xticklabels(second, rotation=40, ha="right", rotation_mode="anchor")
    ax.spines[:].set_visible(False)
    fig.colorbar(image, label="test accuracy (%)" + ", mean over seeds" * (summary["seeds"] > 1))
    return fig


def shown(result, name):
    """The value of a setting of a variant as it was in the study: lists of a summary.json are tuples."""
    value = result["settings"][name]
    return label(tuple(value) if isinstance(value, list) else value)


def frame(place):
    from matplotlib.patches import Rectangle

    return Rectangle((place[1] - 0.5, place[0] - 0.5), 1, 1, fill=False, edgecolor=WRONG, linewidth=2.5)


def lines(summary, results, title):
    """Test accuracy against a number, a line for each group: seeds as dots, the mean and its 95 % interval."""
    missing = [name for name in summary["variants"] if name not in results]
    fig, axes = figure(title + (f"\ndiverged or failed: {', '.join(missing)}" if missing else ""), 9, 4.8)
    ax, groups = axes[0, 0], {}
    for result in results.values():
        groups.setdefault(result["group"], []).append(result)
    places = [result["x"] for result in results.values()]
    is_logarithmic = min(places) > 0 and max(places) > 8 * min(places)
    for number, (group, members) in enumerate(groups.items()):
        members = sorted(members, key=lambda result: result["x"])
        x, color = np.array([result["x"] for result in members]), MODEL_COLORS.get(group, SERIES[number % len(SERIES)])
        if summary["x"] != "seconds":  # beside each other, not on top of each other
            shift = number - (len(groups) - 1) / 2
            x = x * 1.04**shift if is_logarithmic else x + 0.006 * shift * (max(places) - min(places))
        values = list(map(accuracies, members))
        for place, points in zip(x, values, strict=True):
            ax.plot(np.full(len(points), place), points, "o", color=color, alpha=0.4, markersize=4, markeredgewidth=0)
        ax.errorbar(x, [points.mean() for points in values], yerr=[interval(points) for points in values], color=color,
                    linewidth=1.6, elinewidth=1, capsize=2, label=group or None)  # fmt: skip
    if is_logarithmic:
        logarithmic(ax, min(places), max(places), sorted(set(places)) if summary["x"] != "seconds" else [])
    names = {"train_size": "training images", "seconds": "training time (s), one thread",
             "label_noise": "fraction of wrong training labels"}  # fmt: skip
    ax.set(xlabel=names.get(summary["x"], summary["x"].replace("_", " ")), ylabel="test accuracy (%)")
    ax.grid(alpha=0.25)
    if any(groups):
        ax.legend(frameon=False, fontsize=9)
    return fig


def logarithmic(ax, low, high, places):
    """A logarithmic x axis from low to high, with ticks at `places`, or at 1, 2, 5, 10, ... where these are too many."""
    if not 1 < len(places) <= 8:
        decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
        places = [place for place in np.outer(decades, (1, 2, 5)).ravel() if low / 1.2 <= place <= high * 1.2]
    ax.set_xscale("log")
    ax.set_xticks(places, [f"{place:,.0f}" if place >= 10 else f"{place:g}" for place in places])
    ax.minorticks_off()
    ax.set_xlim(low / 1.25, high * 1.25)
