"""What a study leaves behind: runs.csv and summary.json, and from the latter a figure and README.md."""

import io
import json
from pathlib import Path

import numpy as np

import plots
import run
from studies import STUDIES
from studies.runner import COLUMNS
from studies.statistics import interval, not_learned, summarize

INTRODUCTION = Path(__file__).with_name("introduction.md")  # of README.md
HEADER = ["variant", "learning rate", "validation", "test", "difference in points", "verdict"]
HEADER += ["on training images", "seconds"]
AXES = {"train_size": "training images", "label_noise": "fraction of wrong training labels"}
AXES |= {"seconds": "training time (s), one thread"}
COLORS = dict(zip(("mlp", "cnn", "hybrid"), plots.MODEL_COLORS.values(), strict=False))
RANGE = 12  # points below the best variant; poorer ones are at the edge of a figure


def write(folder, comparison, rows):
    """Write the files of a finished study into `folder`, and README.md beside it; return the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = json.loads(json.dumps(summarize(comparison, rows)))  # as it will be read
    table = [[str(row.get(column, "")) for column in COLUMNS] for row in rows]  # all digits of floats
    run.write(folder / "runs.csv", run.csv_text(COLUMNS, table))
    run.write(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    save_figure(folder / f"{folder.name}.png", draw(summary))
    run.write(folder.parent / "README.md", readme(folder.parent))
    return summary


def save_figure(path, figure):
    content = io.BytesIO()
    figure.savefig(content, format="png")
    run.write(path, content.getvalue())


# ---- tables


def percent(metrics, name):
    """93.90 ± 0.16 %: an accuracy, its standard deviation over several seeds; "-" if it was not recorded."""
    if name not in metrics:
        return "-"
    several = len(metrics.get("by_seed", {}).get(name, ())) > 1
    return f"{100 * metrics[name]:.2f}" + (f" ± {100 * metrics[f'{name}_std']:.2f} %" if several else " %")


def difference(test):
    """["-0.34 (-0.44 to -0.23)", verdict] of a test of studies/statistics.py, or ["-", "-"]."""
    if not test:
        return ["-", "-"]
    return [f"{test['points']:+.2f} ({test['low']:+.2f} to {test['high']:+.2f})", test["verdict"]]


def table(summary):
    """The rows of HEADER of a study."""
    baseline_of, rows = summary["baseline_of"], []
    tests = {test["variant"]: test for test in summary["tests"]}
    for name, result in summary["variants"].items():
        points, verdict = difference(tests.get(name))
        notes = [points]
        if points != "-" and len(set(baseline_of.values())) > 1:
            notes.append(f"to {baseline_of[name]}")
        if number := not_learned(result):
            notes.append(f"{number} of {len(result['seeds'])} seeds learned nothing")
        if result.get("failed"):
            notes.append(f"{result['failed']} of {num_seeds(result)} seeds: {result['message']}")
        rate = f"{result['learning_rate']:g}" + (" (edge)" if result.get("at_edge") else "")
        val, test, train = (percent(result, f"{split}_accuracy") for split in ("val", "test", "train_eval"))
        name = f"**{name}** (baseline)" if name in baseline_of.values() else name
        seconds = f"{result['seconds']:.0f}" if "seconds" in result else "-"
        rows.append([name, rate, val, test, "; ".join(notes), verdict, train, seconds])
    return rows


def spread_text(spread):
    """On which standard deviation a study's tests rest, as a sentence."""
    if not spread:
        return ""
    blocks = ", seeds as blocks" if spread["blocks"] else ""
    details = f"{spread['df']} degrees of freedom{blocks}; Bartlett's p = {spread['bartlett_p']:.2f}"
    return f" Pooled standard deviation {spread['std']:.2f} points ({details})."


def markdown(header, rows):
    table = [header, ["---"] * len(header), *rows]
    lines = [" | ".join(str(cell).replace("|", "/") for cell in row) for row in table]
    return "".join(f"| {line} |\n" for line in lines)


def aligned(header, rows):
    """A table for the terminal."""
    rows = [[str(cell).replace("**", "") for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def num_seeds(result):
    return len(result["seeds"]) + result.get("failed", 0)


def caption(summary):
    """Fashion-MNIST, 5 seeds, 12 to 24 epochs"""
    counts = sorted(map(num_seeds, summary["variants"].values())), summary["epochs"]
    seeds, epochs = (" to ".join(dict.fromkeys(map(str, n[:1] + n[-1:]))) for n in counts)
    return f"{summary['dataset']}, {seeds} seeds, {epochs} epochs"


def section(summary):
    """One study in Markdown."""
    name, study = summary["name"], STUDIES.get(summary["name"])
    question, note = (study.question, study.note) if study else (summary["question"], summary["note"])
    cost = f"{summary['runs']} runs, {summary['run_seconds'] / 60:.0f} minutes of one core"
    processor, spread = summary["machine"]["processor"], spread_text(summary["spread"])
    command = f"`{summary['command']}`. {caption(summary)}. {cost} ({processor}).{spread}"
    parts = [f"## {name}\n", f"{question} {note}".strip() + "\n", command + "\n"]
    return "\n".join([*parts, markdown(HEADER, table(summary)), f"![{question}]({name}/{name}.png)\n"])


def readme(folder):
    """The text of README.md of the studies in a folder, in their order, then the sweeps. Raises run.Error."""
    names = {path.parent.name for path in folder.glob("*/summary.json")}
    names = [name for name in STUDIES if name in names] + sorted(names - STUDIES.keys())
    summaries = [run.read_json(folder / name / "summary.json") for name in names]
    index = [[f"[{s['name']}](#{s['name']})", s["question"]] for s in summaries]
    if (folder / "heads/README.md").exists():
        index.append(["[heads](heads/README.md)", "Which classifier is best on a CNN's features?"])
    verdicts = [test["verdict"] for s in summaries for test in s["tests"]]
    share = f"Of {len(verdicts)} comparisons, {verdicts.count('undecided')} are undecided.\n"
    start = [INTRODUCTION.read_text(encoding="utf-8"), share, markdown(["study", "question"], index)]
    return "\n".join([*start, *map(section, summaries)])


# ---- figures


def draw(summary):
    """The Figure of a study: lines over a number; or a row for each variant: accuracies, and differences."""
    results = {name: result for name, result in summary["variants"].items() if "val_accuracy" in result}
    title = f"{summary['question']}\n{caption(summary)}"
    if not results:
        return plots.figure(f"{title}\nEvery variant diverged.", 9, 1)[0]
    if summary["x"]:
        return lines(summary, results, title)
    tests = {test["variant"]: test for test in summary["tests"]}
    fig, axes = plots.figure(title, 11, 2 + 0.3 * len(results), ncols=1 + bool(tests), sharey=True)
    rows = {name: 100 * np.array(result["by_seed"]["test_accuracy"]) for name, result in results.items()}
    colors = [COLORS.get(result["script"], plots.GREY) for result in results.values()]
    means = [values.mean() for values in rows.values()]
    lowest = max(means) - RANGE
    dots(axes[0, 0], rows, colors, "{:.2f}", lowest)
    note = "; triangle: lower" if min(means) < lowest else ""
    axes[0, 0].set_xlabel(f"test accuracy (%): seeds, mean, 95 % interval{note}", fontsize=9)
    if tests:
        for number, (name, color) in enumerate(zip(rows, colors, strict=True)):
            if name in tests and rows[name].mean() >= lowest:
                difference_at(axes[0, 1], number, tests[name], color)
        axes[0, 1].axvline(0, color="black", linewidth=0.8)
        axes[0, 1].set_xlabel("difference (points), 95 % interval; filled: differs", fontsize=9)
        axes[0, 1].grid(axis="x", alpha=0.25)
    return fig


def difference_at(ax, y, test, color):
    """Draw the difference of a test with its 95 % interval, filled where the two differ."""
    fill = color if test["verdict"].startswith("differs") else "white"
    style = {"fmt": "o", "color": color, "markerfacecolor": fill, "markersize": 6, "capsize": 3}
    ax.errorbar(test["points"], y, xerr=test["high"] - test["points"], **style)


def dots(ax, rows, colors, template, lowest=-np.inf):
    """Rows {name: values of the seeds}: dots, their mean and its 95 % interval, at the right the mean.

    A row whose mean is below `lowest` is a triangle at the left edge; it has no mean if its seeds differ by
    more than RANGE.
    """
    for number, (values, color) in enumerate(zip(rows.values(), colors, strict=True)):
        if values.mean() < lowest:
            ax.plot(0.01, number, "<", color=color, transform=ax.get_yaxis_transform())
            continue
        ax.plot(values, np.full(len(values), number), "o", color=color, alpha=0.45, markeredgewidth=0)
        style = {"color": color, "marker": "|", "markersize": 12, "markeredgewidth": 2}
        ax.errorbar(values.mean(), number, xerr=interval(values), **style)
    means = np.array([[values.mean() if np.ptp(values) < RANGE else np.nan] for values in rows.values()])
    plots.numbers_beside(ax, means, template, ["black"])
    name_rows(ax, rows)


def name_rows(ax, names):
    """Make room for a row for each of the names, from the top down."""
    ax.set_yticks(range(len(names)), names, fontsize=9)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="x", alpha=0.25)


def lines(summary, results, title):
    """Test accuracy against a number, a line for each group: seeds, their mean and its 95 % interval."""
    fig, axes = plots.figure(title, 9, 4.8)
    ax, groups = axes[0, 0], {}
    for result in sorted(results.values(), key=lambda result: result["x"]):
        groups.setdefault(result["group"], []).append(result)
    for group, members in groups.items():
        x, color = [result["x"] for result in members], plots.color_of(group)
        values = [100 * np.array(result["by_seed"]["test_accuracy"]) for result in members]
        for place, points in zip(x, values, strict=True):
            ax.plot(np.full(len(points), place), points, "o", color=color, alpha=0.4, markersize=4)
        means, errors = [points.mean() for points in values], [interval(points) for points in values]
        ax.errorbar(x, means, yerr=errors, color=color, elinewidth=1, capsize=2, label=group)
    places = sorted({result["x"] for result in results.values()})
    ax.set_xscale("log" if places[0] > 0 and places[-1] > 8 * places[0] else "linear")
    if len(places) < 10:  # not seconds, of which each run has its own
        ax.set_xticks(places, [f"{place:,}" for place in places])
        ax.minorticks_off()
    ax.set(xlabel=AXES[summary["x"]], ylabel="test accuracy (%)")
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize=9)
    return fig
