"""Figures of calibration: accuracy against confidence, and if the least confident predictions are rejected."""

if __name__ == "__main__":
    raise SystemExit("numpy_nn/calibration_figures.py is a module, not a script: plots.py uses it")


from numpy_nn.calibration import calibration, risk_coverage
from plots import GREY, TRAIN, VAL, figure


def reliability(y, probabilities, title, calibrated=None):
    """Accuracy against confidence: the reliability diagram, and the number of images in each bin of confidence.

    calibrated: probabilities after temperature scaling, drawn beside those before.
    """
    panels = {"": probabilities} if calibrated is None else {"before": probabilities, "after": calibrated}
    errors = [f"{100 * calibration(y, p)[-1]:.2f} %" for p in panels.values()]
    content = f"Expected calibration error {', after temperature scaling '.join(errors)}"
    fig, axes = figure(f"{content}\n{title}", 6.4 if len(panels) == 1 else 9, 5.6, nrows=2, ncols=len(panels), sharex=True,
                       sharey="row", height_ratios=(3, 1))  # fmt: skip
    for (upper, lower), (when, p) in zip(axes.T, panels.items(), strict=True):
        edges, counts, mean, accuracy, _ = calibration(y, p)
        some, width = counts > 0, edges[1]
        upper.bar(edges[:-1][some], accuracy[some], width, align="edge", color=TRAIN, edgecolor="white", label="accuracy")
        upper.plot(mean[some], accuracy[some], "o", color="black", markersize=3, label="at the bin's mean confidence")
        upper.plot([0, 1], [0, 1], "--", color=VAL, label="accuracy = confidence")
        upper.set(ylim=(0, 1.02), xlim=(0, 1))
        upper.set_title(f"{when} temperature scaling" if when else "", fontsize=10)
        lower.bar(edges[:-1], counts, width, align="edge", color=GREY, edgecolor="white")
        lower.set(xlabel="confidence: the probability of the predicted class")
        lower.set_yscale("symlog", linthresh=10)
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("images")
    fig.legend(*upper.get_legend_handles_labels(), frameon=False, fontsize=9, ncols=3, loc="outside lower center")
    return fig


def rejection(y, probabilities, title):
    """Accuracy against the share of images that are left unanswered: the risk-coverage curve."""
    rejected, accuracy = (100 * values for values in risk_coverage(y, probabilities))
    fig, axes = figure(f"Accuracy if the least confident predictions are rejected\n{title}", 6.4, 4.4)
    ax = axes[0, 0]
    shown = rejected <= 50
    ax.plot(rejected[shown], accuracy[shown], color=TRAIN, linewidth=1.6)
    for share in (0, 10, 20, 30):
        place = max(0, round(len(y) * (1 - share / 100)) - 1)
        ax.plot(rejected[place], accuracy[place], "o", color=TRAIN, markersize=4)
        ax.annotate(f"{accuracy[place]:.1f} %", (rejected[place], accuracy[place]), (6, -12), textcoords="offset points",
                    fontsize=9)  # fmt: skip
    ax.set(xlabel="share of the images rejected (%)", ylabel="accuracy of the others (%)", xlim=(-1, 51))
    ax.margins(y=0.12)
    ax.grid(alpha=0.25)
    return fig
