"""The figure of a search: which settings mattered, and validation accuracy against each of them."""

if __name__ == "__main__":
    raise SystemExit("studies/search_figure.py is a module, not a script: experiments.py uses it")

import textwrap

import numpy as np
from optuna.distributions import CategoricalDistribution, IntDistribution

from plots import GREY, MODEL_COLORS, RIGHT, WRONG, figure

COLUMNS = 4  # of panels, beside the importances
STYLES = {  # marker, color, size, alpha of each group of trials
    "trained to the end": ("o", RIGHT, 4.5, 0.55), "the script's defaults": ("D", MODEL_COLORS["CNN"], 6, 1),
    "the best": ("*", WRONG, 13, 1), "stopped early, diverged or failed, at the lower edge": ("|", GREY, 9, 0.7),
}  # fmt: skip


def draw(search, summary):
    """The Figure of a studies.search.Search; summary: the content of its best.json."""
    importances, trials, complete, best = summary["importances"], search.trials, search.complete, search.best
    default = [trial for trial in complete if trial.params == search.default_params and trial.number != best.number]
    marked = [trial.number for trial in (best, *default)]
    others = [trial for trial in complete if trial.number not in marked]
    groups = dict(zip(STYLES, (others, default, [best], [trial for trial in trials if trial not in complete]), strict=True))
    groups = {text: members for text, members in groups.items() if members}

    names = [*importances, *(name for name in search.space if name not in importances)]
    num_rows = max(2, -(-len(names) // COLUMNS))
    title = ("Validation accuracy of the trials trained to the end, against each setting, the most important first\n"
             f"{summary['script']}.py on {summary['dataset']}, {summary['epochs']} epochs, seed {search.s.seed}")
    if not importances:  # for too few trials
        title = title.replace(", the most important first", "")
    widths = [1.25] * bool(importances) + [1] * COLUMNS
    fig, axes = figure(title, 3 * len(widths), 1.4 + 2.5 * num_rows, nrows=num_rows, ncols=len(widths), width_ratios=widths)
    if importances:
        for ax in axes[:, 0]:
            ax.remove()
        bars(fig.add_subplot(axes[0, 0].get_gridspec()[:, 0]), importances, len(complete))
    limits, handles = accuracy_limits([100 * trial.value for trial in complete]), {}
    for number, ax in enumerate(axes[:, -COLUMNS:].ravel()):
        if number >= len(names):
            ax.axis("off")
            continue
        panel(ax, names[number], best.distributions[names[number]], groups, limits)
        handles |= {text: handle for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
        if number % COLUMNS == 0:
            ax.set_ylabel("validation accuracy (%)", fontsize=9)
    fig.legend(handles.values(), handles.keys(), frameon=False, fontsize=9, ncols=5, loc="outside lower center")
    return fig


def bars(ax, importances, num_complete):
    """A bar for each setting's importance."""
    ax.spines[["top", "right"]].set_visible(False)
    values = 100 * np.array([*importances.values()])
    ax.barh(range(len(values)), values, color=RIGHT, height=0.65)
    for row, value in enumerate(values):
        ax.text(value, row, f" {value:.0f}", va="center", fontsize=9)
    ax.set_yticks(range(len(values)), [name.replace("_", " ") for name in importances], fontsize=9)
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.set_xlim(0, 1.15 * values.max())
    ax.tick_params(labelsize=9)
    ax.set_xlabel(f"importance (fANOVA): share of the variance (%)\nof {num_complete} trials", fontsize=9)


def accuracy_limits(values):
    """(low, high) of the accuracies that are shown; outliers below are drawn at the lower edge."""
    first, third = np.percentile(values, (25, 75))
    low, high = max(min(values), first - 2 * (third - first)), max(values)
    margin = 0.08 * (high - low) or 0.5
    return low - margin, high + margin


def panel(ax, name, distribution, groups, limits):
    """Validation accuracy against one setting. Choices and a few whole numbers have a place each, with their median."""
    choices = None
    if isinstance(distribution, CategoricalDistribution):
        choices = list(distribution.choices)
    elif isinstance(distribution, IntDistribution) and distribution.high - distribution.low < 10:
        choices = list(range(distribution.low, distribution.high + 1))
    rng = np.random.default_rng(0)  # spreads the points of a choice
    low, high = limits
    inside = low + 0.02 * (high - low)  # where outliers are drawn
    medians = {}
    for text, trials in groups.items():
        x = np.array([trial.params[name] for trial in trials])
        y = np.full(len(trials), low)
        if "lower edge" not in text:
            y = np.maximum(inside, [100 * trial.value for trial in trials])
            for value, height in zip(x.tolist(), y, strict=True):
                medians.setdefault(value, []).append(height)
        if choices:
            spread = 0.2 * (text not in ("the best", "the script's defaults"))
            x = np.array([choices.index(value) for value in x.tolist()]) + rng.uniform(-spread, spread, len(x))
        marker, color, size, alpha = STYLES[text]
        ax.plot(x, y, marker, color=color, markersize=size, alpha=alpha, markeredgewidth=marker == "|", label=text,
                clip_on=marker != "|")  # fmt: skip
    if choices:
        positions = [choices.index(value) for value in medians]
        ax.hlines([np.median(heights) for heights in medians.values()], np.subtract(positions, 0.32),
                  np.add(positions, 0.32), color="black", linewidth=1.2, label="median")  # fmt: skip
        names = [textwrap.fill(str(choice), 11) for choice in choices]  # breaks 24-48-96-96-192 in two
        ax.set_xticks(range(len(choices)), names, fontsize=8 if max(map(len, names)) < 9 else 6.5)
        ax.set_xlim(-0.5, len(choices) - 0.5)
    elif distribution.log:
        ax.set_xscale("log")
        ticks = [float(f"{digit}e{power}") for power in range(-9, 9) for digit in (1, 3)]
        ticks = [tick for tick in ticks if distribution.low <= tick <= distribution.high]
        ax.set_xticks(ticks or [distribution.low, distribution.high])
        ax.minorticks_off()
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.set_xlim(0.9 * distribution.low, 1.1 * distribution.high)
    else:
        margin = 0.04 * (distribution.high - distribution.low)
        ax.set_xlim(distribution.low - margin, distribution.high + margin)
    ax.set_ylim(low, high)
    ax.set_xlabel(name.replace("_", " "), fontsize=9)
    ax.grid(alpha=0.25)
