"""Every figure: plain arrays and dicts in, a matplotlib Figure out, in one style, without a screen.

    figure = plots.confusion_matrix(y, predicted, classes, "MLP on Fashion-MNIST")
    figure.savefig("confusion_matrix.png")

matplotlib and scikit-learn are imported when the first figure is made, not with this module: they take longer to load
than the NumPy network takes for its first epoch.
"""

import textwrap

import numpy as np

TRAIN, VAL, RIGHT, WRONG, GREY = "#1f77b4", "#d1603d", "#2e7d4f", "#c03028", "#666666"
DPI = 110


def figure(title, width, height, **grid):
    """A Figure of width x height inches and its array of axes, with the style that all of them share."""
    from matplotlib.figure import Figure  # not pyplot: no screen, no global state

    fig = Figure((width, height), dpi=DPI, layout="constrained")
    lines = [textwrap.fill(line, int(8.5 * width)) for line in title.splitlines()]
    fig.suptitle("\n".join(lines), fontsize=12, fontweight="bold")
    axes = fig.subplots(squeeze=False, **grid)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=9)
    return fig, axes


def curves(history, title, augmented=False, smoothing=0.0):
    """Loss and accuracy by epoch. history: {"epoch": [...], "train_loss": [...], ...}, accuracies as fractions.

    The legend says what makes the training figures differ in kind: augmented images, smoothed labels.
    """
    differs = [word for word, on in (("augmented images", augmented), ("smoothed labels", smoothing)) if on]
    training = ", ".join(differs) or "mean over the epoch"
    fig, axes = figure(title, 10, 4, ncols=2)
    epochs = history["epoch"]
    for ax, what, factor, unit in zip(axes[0], ("loss", "accuracy"), (1, 100), ("cross-entropy", "%"), strict=True):
        for part, name, colour in (("train", f"training ({training})", TRAIN), ("val", "validation", VAL)):
            values = factor * np.asarray(history[f"{part}_{what}"])
            ax.plot(epochs, values, color=colour, label=name, marker="o", markersize=3, linewidth=1.6)
        ax.set(xlabel="epoch", ylabel=f"{what} ({unit})")
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        ax.grid(alpha=0.25)
        ax.legend(frameon=False, fontsize=9)
    return fig


def confusion_matrix(y, predicted, classes, title):
    """Counts, true classes down and predicted ones across, with each class's recall in a column of its own."""
    from sklearn.metrics import confusion_matrix as count

    counts = count(y, predicted, labels=range(len(classes)))
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    fig, axes = figure(title, 9, 7.6)
    ax, n = axes[0, 0], len(classes)
    ax.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)  # the root shows the small errors, too
    for i in range(n):
        for j in range(n):
            if counts[i, j]:
                ax.text(j, i, f"{counts[i, j]:,}", ha="center", va="center", fontsize=9,
                        color="white" if share[i, j] > 0.4 else "black")  # fmt: skip
        ax.text(n - 0.3, i, f"{share[i, i]:.1%}", va="center", fontsize=9, fontweight="bold")
    ax.text(n - 0.3, -0.75, "recall", fontsize=9, fontweight="bold")
    ax.set(xlabel="predicted class", ylabel="true class", xticks=range(n), yticks=range(n), yticklabels=classes)
    ax.set_xticklabels(classes, rotation=40, ha="right", rotation_mode="anchor")
    ax.spines[:].set_visible(False)
    return fig


def classification_report(y, predicted, classes, title):
    """Precision, recall and F1 of each class, and their means, as a coloured table."""
    from sklearn.metrics import precision_recall_fscore_support as score

    *scores, counts = score(y, predicted, labels=range(len(classes)), zero_division=0)
    table = np.stack([*np.stack(scores, axis=1), np.mean(scores, axis=1)])
    fig, axes = figure(title, 8, 5.8)
    ax = axes[0, 0]
    ax.imshow(table, cmap="YlGnBu", vmin=min(0.5, table.min()), vmax=1, aspect="auto")
    for i, row in enumerate(table):
        for j, value in enumerate(row):
            ax.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=10, color="white" if value > 0.8 else "black")
    ax.set_xticks(range(3), ["precision", "recall", "F1"], fontsize=10)
    ax.xaxis.tick_top()
    names = [f"{name}  ({count:,})" for name, count in zip(classes, counts, strict=True)]
    ax.set_yticks(range(len(table)), [*names, f"mean of {len(classes)} classes  ({counts.sum():,})"])
    ax.axhline(len(classes) - 0.5, color="white", linewidth=3)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return fig


def report_text(y, predicted, classes):
    """scikit-learn's classification report, as text."""
    from sklearn.metrics import classification_report as report

    return report(y, predicted, labels=range(len(classes)), target_names=classes, digits=4, zero_division=0)


def samples(X, y, probabilities, classes, title, rows=5):
    """The first `rows` images of each class, a column for each true class; below each, what was predicted and how surely.

    X (N, 28, 28), y (N,), probabilities (N, classes).
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    fig, axes = figure(title, 13, 1.45 * rows + 0.8, nrows=rows, ncols=len(classes))
    fig.supxlabel("column head: true class;  below each image: predicted class and its probability, wrong ones in red",
                  fontsize=9, color=GREY)  # fmt: skip
    for label, name in enumerate(classes):
        chosen = np.flatnonzero(y == label)[:rows]
        axes[0, label].set_title(name, fontsize=10, fontweight="bold")
        for ax in axes[:, label]:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        for ax, i in zip(axes[:, label], chosen, strict=False):
            ax.imshow(X[i], cmap="gray_r", vmin=0, vmax=1)
            ax.set_xlabel(f"{classes[predicted[i]]} {confidence[i]:.0%}", fontsize=9, labelpad=2,
                          color=RIGHT if predicted[i] == label else WRONG)  # fmt: skip
    return fig


def evaluation(X, y, probabilities, classes, title):
    """{file name: Figure or text}: what every classifier's test images get. Shapes as for `samples`."""
    predicted = probabilities.argmax(axis=1)
    accuracy = f"{title}\ntest accuracy {np.mean(predicted == y):.2%}"
    return {
        "confusion_matrix.png": confusion_matrix(y, predicted, classes, accuracy),
        "classification_report.png": classification_report(y, predicted, classes, accuracy),
        "classification_report.txt": report_text(y, predicted, classes),
        "samples.png": samples(X, y, probabilities, classes, accuracy),
    }


def side_by_side(y, predictions, classes, title):
    """Recall of each class under two models. predictions: {model's name: (N,) predicted classes}."""
    fig, axes = figure(title, 9, 5)
    ax, places = axes[0, 0], np.arange(len(classes))
    recalls = np.array([[np.mean(predicted[y == label] == label) for label in places] for predicted in predictions.values()])
    recalls *= 100
    ax.hlines(places, recalls.min(axis=0), recalls.max(axis=0), color=GREY, linewidth=1)
    for name, recall, other, colour in zip(predictions, recalls, recalls[::-1], (TRAIN, VAL), strict=True):
        ax.plot(recall, places, "o", color=colour, label=f"{name}: {np.mean(predictions[name] == y):.2%} of all")
        for place, value, rival in zip(places, recall, other, strict=True):
            if value != rival or colour == TRAIN:  # equal ones are written once
                right = value > rival
                beside, side = (8, "left") if right else (-8, "right")
                ax.annotate(f"{value:.1f}", (value, place), (beside, 0), textcoords="offset points", fontsize=9,
                            color=colour if value != rival else GREY, va="center", ha=side)  # fmt: skip
    ax.set(xlabel="recall on the test images (%)", yticks=places, yticklabels=classes)
    ax.margins(x=0.1)
    ax.invert_yaxis()
    ax.grid(axis="x", alpha=0.25)
    ax.legend(frameon=False, fontsize=9, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return fig
