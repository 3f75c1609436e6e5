"""Published figures and claims, compared with the same networks trained here as they were made.

The tables and figures of results/as_made/README.md, from the studies as_made, tuned and why.
"""

import math
import statistics
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from scipy import stats

import plots
import run
from studies.output import difference, difference_at, markdown, name_rows, percent
from studies.statistics import paired_test, t_test, with_verdicts

PUBLISHED = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
SPLITS = {"train_eval": "training", "val": "validation", "test": "test"}
FEW = 3  # degrees of freedom below which a project's own runs say too little about their spread
TUNED = {"R3 MLP, L2": "R3 MLP"}  # the network that stands for another one when tuned
BESIDE = {"R3 MLP": "R3 CNN"}  # the network that a chain's figure shows at the end


def results_of(name):
    """{network: its entry in summary.json} of the committed study `name`."""
    return run.read_json(run.ROOT / f"results/studies/{name}/summary.json")["variants"]


def title(network):
    return "R2 CNN" if network == "backbone" else network


def points(result, split):
    return [100 * value for value in result["by_seed"][f"{split}_accuracy"]]


def is_like(results, network, other):
    """Whether two networks are of the same project and kind, MLP or CNN."""
    same_kind = (results[network]["script"] == "mlp") == (results[other]["script"] == "mlp")
    return same_kind and title(network)[:2] == title(other)[:2]


def spread(results, network, split):
    """(standard deviation, degrees of freedom), pooled over the networks of the same project and kind.

    With fewer than FEW degrees of freedom, over those of all projects of the kind.
    """
    is_mlp = results[network]["script"] == "mlp"
    kind = [name for name, result in results.items() if (result["script"] == "mlp") == is_mlp]
    values = [points(results[name], split) for name in kind if is_like(results, network, name)]
    if sum(len(v) - 1 for v in values) < FEW:
        values = [points(results[name], split) for name in kind]
    values = [v for v in values if len(v) > 1]
    df = sum(len(v) - 1 for v in values)
    return math.sqrt(sum((len(v) - 1) * statistics.variance(v) for v in values) / df), df


def predicted(results, network, split):
    """(mean, half the width of the 95 % prediction interval of one run), in points."""
    values, (std, df) = points(results[network], split), spread(results, network, split)
    return statistics.fmean(values), stats.t.ppf(0.975, df) * std * math.sqrt(1 + 1 / len(values))


def judged(published, mean, half):
    """What published figures are, by a prediction interval."""
    words = []
    for value in published:
        words.append("higher" if value > mean + half else "lower" if value < mean - half else "reproduced")
    return ", ".join(dict.fromkeys(words))


def compared(results, network, split, published):
    """[seeds, mean ± standard deviation, prediction interval, what the published figures are] as texts."""
    result, (mean, half) = results[network], predicted(results, network, split)
    interval = f"{mean - half:.2f} to {mean + half:.2f}"
    accuracy = percent(result, f"{split}_accuracy")
    return [len(result["seeds"]), accuracy, interval, judged(published, mean, half)]


def figures_table():
    """Table 1: each published figure, and ours as made."""
    results, rows = results_of("as_made"), []
    for network, figures in PUBLISHED["figures"].items():
        for split, published in figures.items():
            row = [title(network), ", ".join(f"{value:.2f}" for value in published), SPLITS[split]]
            rows.append(row + compared(results, network, split, published))
    header = ["network", "published", "of", "seeds", "ours", "95 % prediction interval", "published is"]
    return markdown(header, rows)


def claim(results, pair, split):
    """The test of a pair of networks, without a verdict; None where one of them has not been trained.

    Of a project's networks of one kind it is the paired t test of the seeds that both have, three or more:
    their split and their order of images are the same. Of others it is Student's t with the `spread` of each
    (Welch). "reach" is half the width of the 95 % prediction interval of the difference of two single runs.
    """
    if not {*pair} <= results.keys():
        return None
    first, second = (dict(zip(results[n]["seeds"], points(results[n], split), strict=True)) for n in pair)
    (std, df), (other_std, other_df) = (spread(results, name, split) for name in pair)
    common = first.keys() & second.keys()
    if is_like(results, *pair) and len(common) > 2:
        test = paired_test([first[seed] - second[seed] for seed in common])
    else:
        variances = std**2 / len(first), other_std**2 / len(second)
        if (std, df) != (other_std, other_df):  # of two kinds: Welch and Satterthwaite
            df = sum(variances) ** 2 / (variances[0] ** 2 / df + variances[1] ** 2 / other_df)
        difference = statistics.fmean(first.values()) - statistics.fmean(second.values())
        test = t_test(difference, math.sqrt(sum(variances)), df)
    reach = math.hypot(stats.t.ppf(0.975, df) * math.hypot(std, other_std), test["high"] - test["points"])
    return test | {"reach": reach}


def claims():
    """Namespaces of text, pair, split, published, ours, tuned: tests as `claim` makes them, with verdicts."""
    as_made, tuned, rows = results_of("as_made"), results_of("tuned"), []
    for text, c in PUBLISHED["claims"].items():
        ours, pair = claim(as_made, c["pair"], c["split"]), [TUNED.get(name, name) for name in c["pair"]]
        best = claim(tuned, pair, c["split"]) if pair[0] != pair[1] else None
        text += ", on validation" if c["split"] == "val" else ""
        rows.append(SimpleNamespace(text=text, ours=ours, tuned=best, **c))
    with_verdicts([row.ours for row in rows])
    with_verdicts([row.tuned for row in rows if row.tuned])
    return rows


def claims_table():
    """Table 2: each claim as a pair, published, ours as made and ours tuned."""
    rows = []
    for row in claims():
        found = judged([row.published], row.ours["points"], row.ours["reach"])
        cells = [f"{row.published:+.2f}", *difference(row.ours), found, *difference(row.tuned)]
        rows.append([row.text, *cells])
    header = ["claim", "published", "ours, as made", "verdict", "published is", "ours, tuned", "verdict"]
    return markdown(header, rows)


def draw_claims():
    """The Figure of Table 2: differences with 95 % intervals, and the published ones."""
    rows = sorted(claims(), key=lambda row: -row.published)
    large = [row for row in rows if max(abs(row.published), abs(row.ours["points"])) > 2]
    small = [row for row in rows if row not in large]
    heading = "What the projects claim, and what their networks give here"
    fig, axes = plots.figure(heading, 9, 9, nrows=2, height_ratios=(len(large), len(small)))
    for ax, rows in zip(axes[:, 0], (large, small), strict=True):
        for place, row in enumerate(rows):
            low, high = (row.ours["points"] + sign * row.ours["reach"] for sign in (-1, 1))
            ax.plot([low, high], [place - 0.15] * 2, color=plots.GREY, linewidth=1, zorder=0)
            difference_at(ax, place - 0.15, row.ours, plots.SERIES[0])
            if row.tuned:
                difference_at(ax, place + 0.15, row.tuned, plots.SERIES[1])
            ax.plot(row.published, place - 0.15, "D", markerfacecolor="none", color="black", markersize=7)
        ax.axvline(0, color="black", linewidth=0.8)
        name_rows(ax, [row.text for row in rows])
    axes[1, 0].set_xlabel("difference in accuracy (points); filled: differs")
    names = {"published, single runs": ("D", "black"), "of single runs here, 95 %": ("-", plots.GREY)}
    names["ours as made, mean, 95 % interval"] = "o", plots.SERIES[0]
    names["ours, tuned"] = "o", plots.SERIES[1]
    for name, (marker, color) in names.items():
        fill = "none" if marker == "D" else color
        axes[0, 0].plot([], [], marker, color=color, markerfacecolor=fill, label=name)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), ncols=2, **plots.LEGEND)
    return fig


def draw_why(network):
    """The Figure of one chain of the study why: test accuracy after each change, and the published one."""
    start, results = f"{network}: ", results_of("why")
    results = {name.removeprefix(start): r for name, r in results.items() if name.startswith(start)}
    if other := BESIDE.get(network):
        results[f"{other}, as made"] = results_of("as_made")[other]
    fig, axes = plots.figure(f"{network}: one change after the other", 9, 0.9 + 0.4 * len(results))
    ax, published = axes[0, 0], PUBLISHED["figures"][network]["test"][0]
    for place, result in enumerate(results.values()):
        values = points(result, "test")
        ax.plot(values, np.full(len(values), place), "o", color=plots.SERIES[0], alpha=0.5)
        mean = f"{statistics.fmean(values):.2f}"
        ax.annotate(mean, (max(values), place), (6, -4), textcoords="offset points")
    ax.axvline(published, color="black", linewidth=0.8, linestyle=":", label=f"published: {published:.2f}")
    name_rows(ax, results)
    ax.set_xlabel("test accuracy (%), a dot for each seed")
    ax.margins(x=0.12)
    fig.legend(**plots.LEGEND)
    return fig
