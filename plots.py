"""Every figure: plain arrays and dicts in, a matplotlib Figure out, in one style, without a screen.

    figure = plots.confusion_matrix(y, predicted, classes, "MLP on Fashion-MNIST")
    figure.savefig("confusion_matrix.png")

matplotlib and scikit-learn are imported when the first figure is made, not with this module: they take longer to load
than the NumPy network takes for its first epoch.
"""

import itertools
import textwrap

import numpy as np

TRAIN, VAL, RIGHT, WRONG, GREY = "#1f77b4", "#d1603d", "#2e7d4f", "#c03028", "#666666"
DPI = 160
MODEL_COLORS = {"NumPy MLP": "#E69F00", "CNN": "#117733", "CNN features + NumPy MLP": "#AA4499",
                "CNN + NumPy MLP, trained jointly": "#332288", "other": "#666666"}


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


def curves(histories, title, augmented=False, smoothing=0.0):
    """Loss and accuracy by epoch. histories: {run: {"epoch": [...], "train_loss": [...], ...}}, accuracies as fractions."""
    fig, axes = figure(title, 10, 4, ncols=2)
    for history in histories.values():
        for ax, what, factor, unit in zip(axes[0], ("loss", "accuracy"), (1, 100), ("cross-entropy", "%"), strict=True):
            for part, name, colour in (("train", "training", TRAIN), ("val", "validation", VAL)):
                values = factor * np.asarray(history[f"{part}_{what}"])
                ax.plot(history["epoch"], values, color=colour, label=name, marker="o", markersize=3, linewidth=1.6)
            ax.set(xlabel="epoch", ylabel=f"{what} ({unit})")
            ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
            ax.grid(alpha=0.25)
    fig.legend(*ax.get_legend_handles_labels(), frameon=False, fontsize=9, ncols=2, loc="outside lower center")
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
        "mistakes.png": mistakes(X, y, probabilities, classes, accuracy),
        "reliability.png": reliability(y, probabilities, accuracy),
    }


def recall_comparison(y, predictions, classes, title):
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


def learning_rate(rates, steps, title):
    """The learning rate of every step. rates: a list; steps: how many there are in an epoch."""
    fig, axes = figure(title, 8, 3.4)
    ax = axes[0, 0]
    few = "o" if len(rates) < 50 else None  # a single step would be no line
    ax.plot(np.arange(1, len(rates) + 1) / steps, rates, color=TRAIN, linewidth=1.6, marker=few, markersize=3)
    ax.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    ax.grid(alpha=0.25)
    return fig


def first_layer(W, shape, title, most=64):
    """The weights of the first `most` neurons of the first layer as images. W (pixels, neurons), shape (28, 28)."""
    count = min(most, W.shape[1])
    columns = min(16, count)
    rows = -(-count // columns)
    some = f"{count} of the " if count < W.shape[1] else "the "
    fig, axes = figure(f"{title}\nweights of {some}first layer's {W.shape[1]:,} neurons", 0.75 * max(columns, 9),
                       0.75 * rows + 1.15)  # fmt: skip
    limit = np.quantile(np.abs(W[:, :count]), 0.995)  # of all: a single large weight would make the rest grey
    shown = image_grid(axes[0, 0], W.T[:count].reshape(count, *shape), columns, cmap="RdBu_r", vmin=-limit, vmax=limit)
    bar = fig.colorbar(shown, ax=axes, location="bottom", shrink=0.5, aspect=50, pad=0.02)
    bar.ax.tick_params(labelsize=9)
    bar.set_label("weight", fontsize=9)
    return fig


def distributions(activations, gradients, title):
    """Histograms by layer: what the hidden neurons put out, and the gradients of the weights. {layer: flat array} each."""
    columns = 2 if activations else 1
    fig, axes = figure(title, 5 * columns, 1.9 * len(gradients) + 1.1, nrows=len(gradients), ncols=columns)
    for row, name in zip(axes, gradients, strict=True):
        for ax, values, colour, what in ((row[0], activations.get(name), TRAIN, "activation"),
                                         (row[-1], gradients[name], VAL, "gradient of the weights"))[-columns:]:  # fmt: skip
            if values is None:  # the output layer, whose logits no activation follows
                ax.axis("off")
                continue
            low, high = np.quantile(values, [0.001, 0.999])
            wide = 1.05 * max(abs(low), abs(high)) or 1
            ax.hist(values, bins=80, range=(min(0, low) if what == "activation" else -wide, wide), color=colour, log=True)
            zero = np.mean(values == 0)
            note = f"{name}: deviation {values.std():.2g}" + (f", {zero:.0%} exactly 0" if zero > 0.005 else "")
            ax.set_title(note, fontsize=9, loc="left")
            ax.set_xlabel(what, fontsize=9)
            ax.set_ylabel("count", fontsize=9)
            ax.ticklabel_format(axis="x", style="sci", scilimits=(-3, 3))
    return fig


def monitor(history, names, title):
    """What monitor.TrainingMonitor has seen, by epoch and layer. history and names: the TrainingMonitor's."""
    from matplotlib import colormaps

    panels = [("dead", "dead neurons (%)", 100), ("gradient_norm", "length of the weights' gradient", 1),
              ("update_ratio", "length of a step / of the weights", 1)][len(names) == 1 :]  # fmt: skip
    fig, axes = figure(title, 4.4 * len(panels), 3.8, ncols=len(panels))
    for ax, (column, label, factor) in zip(axes[0], panels, strict=True):
        values = factor * np.asarray(history[column], dtype=float).reshape(len(history["epoch"]), -1)
        if column != "dead":
            values = np.maximum(values, 1e-12)  # a gradient of 0 still has its place on the logarithmic axis
        for i in range(values.shape[1]):
            ax.plot(history["epoch"], values[:, i], marker="o", markersize=3, linewidth=1.6, label=names[i],
                    color=colormaps["viridis"](i / max(1, len(names) - 0.6)))  # fmt: skip
        ax.set(xlabel="epoch", ylabel=label)
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        ax.grid(alpha=0.25)
        if column == "dead":
            ax.set_ylim(-2, 102)
        else:
            ax.set_yscale("log")
    axes[0, -1].axhline(1e-3, color=GREY, linewidth=1, linestyle="--", label="0.001, usual")
    axes[0, -1].legend(frameon=False, fontsize=9)
    return fig


def mistakes(X, y, probabilities, classes, title, rows=4, columns=10):
    """The images that are surest to be of another class than their label, in the model's view. Shapes as for `samples`."""
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != y)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    chosen = wrong[: rows * columns]
    rows = max(1, -(-len(chosen) // columns))
    fig, axes = figure(f"{title}\nthe surest of {len(wrong):,} that it takes for another class", 13, 1.75 * rows + 1)
    fig.supxlabel("above each image: its label;  below: predicted class and its probability", fontsize=9, color=GREY)
    ax = axes[0, 0]
    ax.axis("off")
    ax.set(xlim=(0, columns), ylim=(1.36 * rows, 0))
    for place, i in enumerate(chosen):
        left, top = place % columns, 1.36 * (place // columns)
        box = (left + 0.05, left + 0.95, top + 1.1, top + 0.2)
        ax.imshow(X[i], cmap="gray_r", vmin=0, vmax=1, extent=box, aspect="auto")
        ax.text(left + 0.5, top + 0.17, classes[y[i]], ha="center", va="bottom", fontsize=9, color=RIGHT)
        ax.text(left + 0.5, top + 1.13, f"{classes[predicted[i]]} {confidence[i]:.0%}", ha="center", va="top", fontsize=9,
                color=WRONG)  # fmt: skip
    return fig


def calibration(y, probabilities, bins=15):
    """(edges (bins + 1,), counts, mean confidence, accuracy of each bin of confidence, expected calibration error).

    The error is the mean over all images of |accuracy - confidence| of their bin (Guo et al. 2017, eq. 3). probabilities
    (N, classes), y (N,).
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # bins are open below and closed above
    counts = np.bincount(place, minlength=bins)
    sure, accuracy = (np.bincount(place, values, bins) / np.maximum(counts, 1) for values in (confidence, right))
    return edges, counts, sure, accuracy, float(np.sum(counts * np.abs(accuracy - sure)) / len(y))


def reliability(y, probabilities, title):
    """Accuracy against confidence: the reliability diagram, and how many images there are in each bin of confidence."""
    edges, counts, sure, accuracy, error = calibration(y, probabilities)
    fig, axes = figure(f"{title}\nexpected calibration error {100 * error:.2f} %", 6.4, 6.4, nrows=2, sharex=True,
                       height_ratios=(3, 1))  # fmt: skip
    (upper,), (lower,) = axes
    some, width = counts > 0, edges[1]
    upper.bar(edges[:-1][some], accuracy[some], width, align="edge", color=TRAIN, edgecolor="white", label="accuracy")
    upper.plot(sure[some], accuracy[some], "o", color="black", markersize=3, label="at the bin's mean confidence")
    upper.plot([0, 1], [0, 1], "--", color=VAL, label="accuracy = confidence")
    upper.set(ylabel="share that is right", ylim=(0, 1.02), xlim=(0, 1))
    upper.legend(frameon=False, fontsize=9, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    lower.bar(edges[:-1], counts, width, align="edge", color=GREY, edgecolor="white")
    lower.set(xlabel="confidence: the probability of the predicted class", ylabel="images")
    lower.set_yscale("symlog", linthresh=10)
    return fig


def image_grid(ax, pictures, columns, **options):
    """Pictures (N, height, width) side by side on one axes, `columns` in a row; returns what imshow does.

    One picture of all, since many axes take seconds to draw.
    """
    n, height, width = pictures.shape
    mosaic = np.full((-(-n // columns) * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for i, picture in enumerate(pictures):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        mosaic[top : top + height, left : left + width] = picture
    ax.axis("off")
    return ax.imshow(mosaic, **options)


def filters(W, title):
    """The first convolution's filters, W (filters, height, width)."""
    rows = -(-len(W) // 16)
    columns = -(-len(W) // rows)
    fig, axes = figure(title, 0.6 * max(columns, 12), 0.6 * rows + 0.9)
    limit = np.abs(W).max()
    shown = image_grid(axes[0, 0], W, columns, cmap="RdBu_r", vmin=-limit, vmax=limit)
    fig.colorbar(shown, ax=axes, location="bottom", shrink=0.4, aspect=40, pad=0.03).ax.tick_params(labelsize=9)
    return fig


def feature_maps(X, maps, names, title, most=16):
    """Images X (N, 28, 28) and, in a column for each stage, their first maps: {stage: (N, channels, side, side)}."""
    fig, axes = figure(title, 3 + 2.4 * len(maps), 2.5 * len(X) + 0.7, nrows=len(X), ncols=1 + len(maps))
    for i, (row, image) in enumerate(zip(axes, X, strict=True)):
        image_grid(row[0], image[None], 1, cmap="gray_r", vmin=0, vmax=1)
        row[0].set_title(names[i], fontsize=10)
        for ax, (stage, values) in zip(row[1:], maps.items(), strict=True):
            chosen = values[i, :most]
            image_grid(ax, chosen / max(chosen.max(), 1e-12), 4, cmap="viridis", vmin=0, vmax=1)
            name = f"{stage}, {values.shape[2]} x {values.shape[3]}\n{len(chosen)} of {values.shape[1]} maps"
            ax.set_title(name, fontsize=9)
    return fig


def embeddings(embed_2d, y, classes, title):
    """Points by class in one panel for each of embed_2d {name: (N, 2)}; y (N,)."""
    from matplotlib import colormaps

    fig, axes = figure(title, 6 * len(embed_2d) + 1, 5.6, ncols=len(embed_2d))
    for ax, (name, points) in zip(axes[0], embed_2d.items(), strict=True):
        for label, class_name in enumerate(classes):
            chosen = points[y == label]
            ax.plot(*chosen.T, "o", markersize=2.5, alpha=0.6, color=colormaps["tab10"](label), label=class_name)
        ax.set_title(name, fontsize=10)
        ax.set(xticks=[], yticks=[])
    axes[0, -1].legend(frameon=False, fontsize=9, markerscale=3, loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


def saliency(X, heat, y, predicted, classes, title):
    """Images X (N, 28, 28) in rows of 10, and under each what speaks for the predicted class, heat (N, 28, 28) >= 0."""
    rows = -(-len(X) // 10)
    fig, axes = figure(title, 13, 3.3 * rows + 0.9, nrows=2 * rows, ncols=10)
    fig.supxlabel("above: the image and its class;  below: where the predicted class is seen, red most (HiResCAM)",
                  fontsize=9, color=GREY)  # fmt: skip
    for ax in axes.flat:
        ax.axis("off")
    for i in range(len(X)):
        upper, lower = axes[2 * (i // 10), i % 10], axes[2 * (i // 10) + 1, i % 10]
        upper.imshow(X[i], cmap="gray_r", vmin=0, vmax=1)
        upper.set_title(classes[y[i]], fontsize=9)
        lower.imshow(X[i], cmap="gray_r", vmin=0, vmax=1)
        lower.imshow(heat[i] / max(heat[i].max(), 1e-12), cmap="jet", alpha=0.45, vmin=0, vmax=1)
        lower.set_title(classes[predicted[i]], fontsize=9, color=RIGHT if predicted[i] == y[i] else WRONG)
    return fig


def confusable(X, y, probabilities, classes, title, most=6):
    """The pairs of classes most often taken for each other, with the surest such images. Shapes as for `samples`."""
    predicted = probabilities.argmax(axis=1)
    pairs = {(a, b): np.flatnonzero(((y == a) & (predicted == b)) | ((y == b) & (predicted == a)))
             for a, b in itertools.combinations(range(len(classes)), 2)}  # fmt: skip
    pairs = dict(sorted(pairs.items(), key=lambda item: -len(item[1]))[:most])
    fig, axes = figure(title, 13, 1.5 * len(pairs) + 1, nrows=len(pairs), ncols=9, width_ratios=[3] + 8 * [1])
    wrong = max(1, np.sum(predicted != y))
    for row, ((a, b), found) in zip(axes, pairs.items(), strict=True):
        for ax in row:
            ax.axis("off")
        there = np.sum(y[found] == a)
        lines = (f"{classes[a]} / {classes[b]}", f"{len(found)} images, {len(found) / wrong:.0%} of all mistakes",
                 f"{classes[a]} taken for {classes[b]}: {there}",
                 f"{classes[b]} taken for {classes[a]}: {len(found) - there}")  # fmt: skip
        row[0].text(0, 0.5, "\n".join(lines), va="center", fontsize=9, transform=row[0].transAxes)
        surest = found[np.argsort(-probabilities[found].max(axis=1), kind="stable")]
        for ax, i in zip(row[1:], surest, strict=False):
            ax.imshow(X[i], cmap="gray_r", vmin=0, vmax=1)
            ax.set_title(f"is {classes[y[i]]}", fontsize=8)
    return fig


def classifier_comparison(found, title):
    """Accuracy of each classifier, on test images and on those it learnt from: a point a seed, mean, standard deviation.

    found: {name: {"test_accuracy": mean, "test_accuracy_std": ..., "by_seed": {"test_accuracy": [...], ...}, ...}}.
    """
    fig, axes = figure(title, 12, 1.4 + 0.42 * len(found), ncols=2, sharey=True)
    where = {"test": "test images", "train": "the training images, as they are, that it learnt from"}
    for ax, (part, what), colour in zip(axes[0], where.items(), (VAL, TRAIN), strict=True):
        for row, head in enumerate(found.values()):
            if f"{part}_accuracy" not in head:
                continue
            values = 100 * np.array(head["by_seed"][f"{part}_accuracy"])
            mean, std = (100 * head[f"{part}_accuracy{kind}"] for kind in ("", "_std"))
            ax.plot(values, np.full(len(values), row), "o", color=colour, alpha=0.35, markersize=5, markeredgewidth=0)
            ax.errorbar(mean, row, xerr=std, fmt="|", color=colour, markersize=13, capsize=4)
            ax.annotate(f"{mean:.2f}", (mean, row), (0, 7), textcoords="offset points", ha="center", fontsize=8)
        ax.set(xlabel=f"accuracy on {what} (%)")
        ax.grid(axis="x", alpha=0.25)
    axes[0, 0].set_yticks(range(len(found)), [textwrap.fill(name, 34) for name in found])
    axes[0, 0].invert_yaxis()
    axes[0, 0].margins(y=0.1)
    return fig
