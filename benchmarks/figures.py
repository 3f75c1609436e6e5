"""Figures of the benchmark's results: the content of mlp.json, cnn.json or race.json in, a matplotlib Figure out."""

if __name__ == "__main__":
    raise SystemExit("benchmarks/figures.py is a module, not a script: benchmark.py uses it")

import textwrap

import numpy as np

from plots import GREY, MODEL_COLORS, figure

MLP, CNN = MODEL_COLORS["NumPy MLP"], MODEL_COLORS["CNN"]
LOWER_BOUND = "matmul_only"


def ratio_rows(ax, names, ratios, spread, color):
    """A row for each of `names` {key: in words}: the median ratio as a dot, the range over the rounds as a line."""
    for row, key in enumerate(names):
        low, high = spread.get(key, (ratios[key], ratios[key]))
        ax.plot([low, high], [row, row], color=color, linewidth=2, alpha=0.45, solid_capstyle="butt")
        ax.plot(ratios[key], row, "o", color=color, markersize=7)
        ax.annotate(f"{ratios[key]:.2f}", (ratios[key], row), (0, 7), textcoords="offset points", ha="center", fontsize=9,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1}, zorder=3)  # above the target's line
    ax.set_yticks(range(len(names)), [textwrap.fill(name, 24) for name in names.values()])
    ax.axvline(1, color=GREY, linewidth=0.8)
    ax.set_ylim(len(names) - 0.4, -0.7)
    ax.grid(axis="x", alpha=0.25)


def mlp_speed(results, names):
    """Time per epoch as ratios: by implementation, batch size and hidden layers. names: {implementation: in words}."""
    title = f"Time per epoch, ours / theirs; dots: medians, lines: range over the rounds\nNumPy MLP {results['network']}"
    fig, axes = figure(title, 9, 6.4, nrows=2, ncols=2, height_ratios=(3, 3))
    ratios, spread, targets = results["ratios"], results.get("spread", {}), results["targets"]

    ax, rivals = axes[0, 0], {key: names[key] for key in ratios if key != LOWER_BOUND}
    ratio_rows(ax, rivals, ratios, spread, MLP)
    places = np.arange(len(rivals))
    ax.vlines([targets[key] for key in rivals], places - 0.3, places + 0.3, color="black", linestyle="--", label="target")
    ax.set(xlabel=f"batch size {results['batch_size']}; below 1, ours is faster", xlim=(0, None))
    ax.legend(frameon=False, fontsize=9, loc="upper left")

    ax = axes[0, 1]
    ratio_rows(ax, {LOWER_BOUND: names[LOWER_BOUND]}, ratios, spread, GREY)
    ax.set(xlabel="the lower bound of any implementation: 1", xlim=(0.9, None))

    for ax, name in zip(axes[1], ("batch_size", "hidden"), strict=True):
        rows = list(results["tables"][name].values())
        for key, color in (("torch_fused", MLP), (LOWER_BOUND, GREY)):
            values = np.array([row[f"against_{key}"] for row in rows])
            ranges = [row.get("spread", {}).get(key, (value, value)) for row, value in zip(rows, values, strict=True)]
            ax.vlines(range(len(rows)), *np.array(ranges).reshape(-1, 2).T, color=color, linewidth=2, alpha=0.45)
            ax.plot(range(len(rows)), values, "o-", color=color, label=f"theirs: {names[key]}", markersize=5)
        labels = [label.removeprefix("batch ").removeprefix("784-").removesuffix("-10") for label in results["tables"][name]]
        rotation = 0 if max(map(len, labels), default=0) < 6 else 20
        ax.set_xticks(range(len(rows)), labels, rotation=rotation)
        ax.axhline(1, color=GREY, linewidth=0.8)
        ax.set(xlabel={"batch_size": "batch size", "hidden": "hidden layers"}[name], ylim=(0, None), ylabel="ours / theirs")
        ax.margins(x=0.1)
        ax.grid(alpha=0.25)
    fig.legend(*axes[1, 0].get_legend_handles_labels(), frameon=False, fontsize=9, ncols=2, loc="outside lower center")
    return fig


def cnn_speed(results, names):
    """Training images/s of our loop and of a tutorial's, a dot for each round, and where the time goes."""
    title = f"Speed of training with {results['threads']} threads\nCNN {results['network']}"
    fig, axes = figure(title, 9, 4.2, ncols=2)
    ax, precision = axes[0, 0], {"ours": results["precision"], "tutorial": "float32"}
    for row, (name, color) in enumerate({"ours": CNN, "tutorial": GREY}.items()):
        rates = results["images"] / np.array(results["seconds"][name])
        ax.plot(rates, np.full(len(rates), row), "o", color=color, alpha=0.35, markersize=5, markeredgewidth=0)
        ax.plot(np.median(rates), row, "|", color=color, markersize=18, markeredgewidth=2)
        ax.annotate(f"{np.median(rates):,.0f}", (np.median(rates), row), (0, 12), textcoords="offset points", ha="center",
                    fontsize=9)  # fmt: skip
    ax.set_yticks(range(2), [textwrap.fill(f"{names[name]}, {precision[name]}", 18) for name in precision])
    ax.set(xlabel="training images/s; dots: rounds", xlim=(0, None), ylim=(1.5, -0.6))
    ax.set_title(f"{results['speedup']['tutorial']:.2f} times as fast", fontsize=10)
    ax.grid(axis="x", alpha=0.25)

    ax, shares = axes[0, 1], results["shares"]
    rows = {"convolutions": shares["convolutions"],
            "normalization, pooling, activation": shares["layers"] - shares["convolutions"],
            "augmentation, loss, optimizer, moving average": shares["outside"]}  # fmt: skip
    ax.barh(range(len(rows)), [100 * share for share in rows.values()], color=CNN, height=0.5)
    for row, share in enumerate(rows.values()):
        ax.annotate(f"{share:.1%}".replace("%", " %"), (100 * share, row), (4, 0), textcoords="offset points", va="center",
                    fontsize=9)  # fmt: skip
    ax.set_yticks(range(len(rows)), [textwrap.fill(name, 18) for name in rows])
    ax.set(xlabel="training time (%)", xlim=(0, 100))
    ax.set_title(f"our default {results['default_network']}, {results.get('default_precision', results['precision'])}",
                 fontsize=10)  # fmt: skip
    ax.invert_yaxis()
    return fig


def time_to_accuracy(results, names):
    """Validation accuracy by time, of our defaults and of a tutorial's training loop."""
    fig, axes = figure("Validation accuracy by time\nour default CNN and a tutorial's", 9, 4.2)
    ax = axes[0, 0]
    for (name, rows), color in zip(results["rows"].items(), (CNN, GREY), strict=True):
        seconds, accuracies = np.array(rows).T
        ax.plot(seconds / 60, 100 * accuracies, "o-", color=color, markersize=4, label=names[name])
    ax.axhline(100 * results["accuracy"], color="black", linestyle="--", linewidth=0.8, label="the tutorial's best")
    ax.set(xlabel="minutes (logarithmic)", ylabel="validation accuracy (%)", xscale="log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.legend(frameon=False, fontsize=9, loc="lower right")
    ax.grid(alpha=0.25)
    return fig
