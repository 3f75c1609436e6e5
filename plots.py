"""Figures of any run: plain arrays and dicts in, a matplotlib Figure out, in one style, without a screen.

    figure = plots.confusion_matrix(y, predicted, classes, "NumPy MLP on Fashion-MNIST, seed 0")
    figure.savefig("confusion_matrix.png")

    python plots.py runs/hybrid_train/DATE    # redraws a run's figures from its files, without training

matplotlib and scikit-learn are imported when the first figure is made, not with this module: they take longer to load
than the NumPy network takes for its first epoch.
"""

from support import entry

if __name__ == "__main__":  # before the slow imports: Ctrl-C
    entry.prepare()

import argparse
import textwrap
import warnings
from pathlib import Path

import numpy as np

from numpy_nn.calibration import recalibrated
from support import files
from support.figure_labels import fit, mark, percent, sampled_classes, short, worst_classes
from support.saved import read_history

RIGHT, WRONG, TRAIN, VAL, GREY = "#0072B2", "#D55E00", "#1f77b4", "#d1603d", "#666666"  # right, wrong: Okabe and Ito
DPI = 160
SERIES = ("#0072B2", "#E69F00", "#117733", "#AA4499", "#D55E00", "#56B4E9", "#332288", "#999933")  # of several lines
MODEL_COLORS = {"NumPy MLP": "#E69F00", "CNN": "#117733", "CNN features + NumPy MLP": "#AA4499",
                "CNN + NumPy MLP, trained jointly": "#332288", "other": "#666666"}  # fmt: skip


def figure(title, width, height, **grid):
    """A Figure of width x height inches and its array of axes, with the style that all of them share."""
    from matplotlib.figure import Figure  # not pyplot: no screen, no global state

    warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # class names in letters without a font: boxes
    fig = Figure((width, height), dpi=DPI, layout="constrained")
    lines = [textwrap.fill(line, int(9 * width)) for line in title.splitlines()]
    fig.suptitle("\n".join(lines), fontsize=11, fontweight="bold")
    axes = fig.subplots(squeeze=False, **grid)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=9)
    return fig, axes


def run_title(model, dataset, seed):
    """The second line of a figure's title; the first says what is shown."""
    return f"{model} on {short(dataset, 60)}, seed {seed}"


def curves(histories, title, augmented=False, smoothing=0.0):
    """Loss and accuracy by epoch. histories: {run: {"epoch": [...], "train_loss": [...], ...}}, accuracies as fractions.

    Several runs are thin lines, their mean is a thick one. The range is that of the later epochs.
    """
    seeds = f", {len(histories)} seeds and their mean" if len(histories) > 1 else ""
    fig, axes = figure(f"Loss and accuracy by epoch{seeds}\n{title}", 9, 4.2, ncols=2)
    changes = ", ".join(name for name, used in (("augmented", augmented), ("smoothed labels", smoothing)) if used)
    styles = {"train": ("training batches" + f" ({changes})" * bool(changes), TRAIN, ":"),
              "train_eval": ("training images in eval mode", TRAIN, "-"), "val": ("validation", VAL, "-")}  # fmt: skip
    for ax, what, factor, unit in zip(axes[0], ("loss", "accuracy"), (1, 100), ("cross-entropy", "%"), strict=True):
        in_range = []
        for prefix, (name, color, style) in styles.items():
            column = f"{prefix}_{what}"
            lines = [factor * np.asarray(history[column]) for history in histories.values() if column in history]
            for values in lines:
                thin = {"linewidth": 0.6, "alpha": 0.6} if len(lines) > 1 else {"linewidth": 1.6, "label": name}
                few = "o" if len(values) == 1 else None  # a single epoch would be no line
                ax.plot(np.arange(1, len(values) + 1), values, style, color=color, marker=few, **thin)
                in_range.append(values[len(values) // 10 :])
            if len(lines) > 1:
                mean = np.mean([values[: min(map(len, lines))] for values in lines], axis=0)
                ax.plot(np.arange(1, len(mean) + 1), mean, style, color=color, linewidth=1.8, label=name)
        low, high = (function(np.concatenate(in_range)) for function in (np.min, np.max))
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1
        ax.set(xlabel="epoch", ylabel=f"{what} ({unit})", ylim=(low - margin, high + margin))
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        ax.grid(alpha=0.25)
    fig.legend(*ax.get_legend_handles_labels(), frameon=False, fontsize=9, ncols=3, loc="outside lower center")
    return fig


def confusion_matrix(y, predicted, classes, title):
    """Counts, true classes down and predicted ones across, with each class's recall in a column of its own.

    Above 30 classes the counts are shown by color alone, and above 100 not every class is named.
    """
    from sklearn.metrics import confusion_matrix as count

    counts = count(y, predicted, labels=range(len(classes)))
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    accuracy = f"{np.mean(predicted == y):.2%} of {len(y):,} test images are right"
    n, scale = len(classes), max(1, min(2, len(classes) / 40))
    fig, axes = figure(f"Confusion matrix: {accuracy}\n{title}", 9 * scale, 7.6 * scale)
    ax, step, pitch = axes[0, 0], -(-n // 100), 450 * scale / n  # pitch: height of a row in points
    small, named = min(9, 0.6 * pitch * step), range(0, n, step)
    ax.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)  # the root shows the small errors, too
    for i, j in np.argwhere(counts) if n <= 30 else ():
        ax.text(j, i, f"{counts[i, j]:,}", ha="center", va="center", fontsize=min(9, 0.36 * pitch),
                color="white" if share[i, j] > 0.4 else "black")  # fmt: skip
    for i in named:
        ax.text(n - 0.3, i, f"{share[i, i]:.1%}", va="center", fontsize=small, fontweight="bold")
    ax.text(n - 0.3, -0.5 - 0.025 * n, "recall", fontsize=small, fontweight="bold")
    names = [short(classes[i]) for i in named]
    ax.set(xlabel="predicted class", ylabel="true class", xticks=named, yticks=named)
    ax.set_yticklabels(names, fontsize=small)
    turned = {"rotation": 40, "rotation_mode": "anchor", "ha": "right"} if n <= 15 else {"rotation": 90}
    ax.set_xticklabels(names, fontsize=small, **turned)
    ax.spines[:].set_visible(False)
    return fig


def classification_report(y, predicted, classes, title):
    """Precision, recall and F1 of each class and their means: a dot each, and the numbers beside them."""
    from sklearn.metrics import precision_recall_fscore_support as score

    *scores, counts = score(y, predicted, labels=range(len(classes)), zero_division=0)
    table = np.stack([*np.stack(scores, axis=1), np.mean(scores, axis=1)])  # (classes + 1, 3)
    order, content = worst_classes(scores[2], classes, "F1")
    table = table[[*order, -1]]
    fig, axes = figure(f"Precision, recall and F1 of {content}\n{title}", 9, max(5.2, 1.6 + 0.3 * len(table)))
    ax, rows = axes[0, 0], np.arange(len(table))
    ax.hlines(rows, table.min(axis=1), table.max(axis=1), color=GREY, linewidth=1)
    styles = {"precision": ("<", "#56B4E9"), "recall": (">", "#CC79A7"), "F1": ("o", "black")}
    for j, (name, (marker, color)) in enumerate(styles.items()):
        ax.plot(table[:, j], rows, marker, color=color, label=name, markersize=7 if name != "F1" else 4)
        beside = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points", "fontsize": 9, "ha": "center"}
        ax.annotate(name, (1, -0.6), (32 + 50 * j, 4), fontweight="bold", **beside)
        for row, value in enumerate(table[:, j]):
            ax.annotate(f"{value:.3f}", (1, row), (32 + 50 * j, 0), va="center", **beside)
    names = [f"{short(classes[label])}  ({counts[label]:,})" for label in order]
    ax.set_yticks(rows, [*names, f"mean of {len(classes)} classes  ({counts.sum():,})"])
    ax.axhline(len(order) - 0.5, color=GREY, linewidth=0.8)
    ax.set(xlabel="score", ylim=(len(table) - 0.4, -0.6))
    ax.grid(axis="x", alpha=0.25)
    fig.legend(*ax.get_legend_handles_labels(), frameon=False, fontsize=9, ncols=3, loc="outside lower center")
    return fig


def report_text(y, predicted, classes):
    """scikit-learn's classification report, as text."""
    from sklearn.metrics import classification_report as report

    return report(y, predicted, labels=range(len(classes)), target_names=classes, digits=4, zero_division=0)


def samples(X, y, probabilities, classes, title, rows=5):
    """The first `rows` images of each class, a column for each true class; below each, the prediction and its probability.

    Above 10 classes there are several blocks of columns with fewer rows. X (N, height, width), y (N,), probabilities
    (N, classes).
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    shown = sampled_classes(len(classes))
    blocks, columns = -(-len(shown) // 10), min(10, len(shown))
    rows = rows if blocks == 1 else 2 if blocks < 4 else 1
    images = f"The first {rows} test images" if rows > 1 else "The first test image"
    content = f"{images} of {'each class' if len(shown) == len(classes) else f'{len(shown)} of {len(classes):,} classes'}"
    fig, axes = figure(f"{content}\n{title}", 9, (1.35 if blocks == 1 else 1.5) * rows * blocks + 0.9, nrows=rows * blocks,
                       ncols=columns)  # fmt: skip
    fig.supxlabel(f"column: true class;  below each image: predicted class and its probability, {mark(True)} right, "
                  f"{mark(False)} wrong", fontsize=9, color=GREY)  # fmt: skip
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    classes = [short(name, 11) for name in classes]
    for place, label in enumerate(shown):
        column = axes[place // 10 * rows :, place % 10]
        column[0].set_title(classes[label], fontsize=8, fontweight="bold")
        for ax, i in zip(column, np.flatnonzero(y == label)[:rows], strict=False):
            ax.imshow(X[i], cmap="gray_r", vmin=0, vmax=1)
            ax.set_xlabel(f"{classes[predicted[i]]}\n{mark(predicted[i] == label)} {percent(confidence[i])}", fontsize=7.5,
                          labelpad=2, color=RIGHT if predicted[i] == label else WRONG)  # fmt: skip
    return fig


def evaluation(X, y, probabilities, classes, title, calibrated=None):
    """{file name: Figure or text}: the evaluation of any classifier on its test images. Shapes as for `samples`.

    calibrated: the probabilities after temperature scaling, for the figures of calibration alone.
    """
    from numpy_nn.calibration_figures import rejection, reliability  # which is above this module: only here

    predicted = probabilities.argmax(axis=1)
    return {
        "confusion_matrix.png": confusion_matrix(y, predicted, classes, title),
        "classification_report.png": classification_report(y, predicted, classes, title),
        "classification_report.txt": report_text(y, predicted, classes),
        "samples.png": samples(X, y, probabilities, classes, title),
        "mistakes.png": mistakes(X, y, probabilities, classes, title),
        "reliability.png": reliability(y, probabilities, title, calibrated),
        "rejection.png": rejection(y, probabilities if calibrated is None else calibrated, title),
    }


def color_of(name):
    """The color of a model, by how its name begins."""
    return next((color for model, color in reversed(MODEL_COLORS.items()) if name.startswith(model)), GREY)


def recall_comparison(y, predictions, classes, title, accuracies=None):
    """Recall of each class by several models. predictions: {model: predicted classes (N,), or (seeds, N)}.

    accuracies: {model: accuracy} for the legend; else it is computed from predictions.
    """
    labels = np.unique(y)  # in a small subset a class may have no image
    recalls = {name: 100 * np.stack([(np.atleast_2d(predicted)[:, y == label] == label).mean(axis=1) for label in labels])
               for name, predicted in predictions.items()}  # each (classes, seeds)  # fmt: skip
    order, content = worst_classes(np.mean([r.mean(axis=1) for r in recalls.values()], axis=0), labels, "recall")
    height = max(5.4 if len(predictions) < 4 else 7, 1.6 + 0.3 * len(order))
    fig, axes = figure(f"Recall of {content} on the test images\n{title}", 9, height)
    ax, places = axes[0, 0], np.arange(len(order))
    offsets = np.linspace(-0.3, 0.3, len(predictions)) if len(predictions) > 2 else np.zeros(len(predictions))
    means, used = {}, []
    for offset, (name, predicted) in zip(offsets, predictions.items(), strict=True):
        recall = recalls[name][order]
        means[name] = recall.mean(axis=1)
        color = color_of(name)
        marker = "os^v"[used.count(color) % 4]  # a second NumPy MLP has another marker
        used.append(color)
        ax.plot(recall, np.tile(places[:, None] + offset, recall.shape[1]), marker, color=color, markeredgewidth=0,
                markersize=7 if recall.shape[1] == 1 else 4, alpha=1 if recall.shape[1] == 1 else 0.45)  # fmt: skip
        if recall.shape[1] > 1:
            ax.plot(means[name], places + offset, "|", color=color, markersize=8, markeredgewidth=2)
        accuracy = (accuracies or {}).get(name, np.mean(predicted == y))
        ax.plot([], [], marker, color=color, label=f"{name}: accuracy {accuracy:.2%}")
    if len(predictions) == 2:
        (name, left), (other, right) = means.items()
        for place, pair in enumerate(zip(left, right, strict=True)):
            for value, rival, color in zip(pair, pair[::-1], (MODEL_COLORS.get(name), MODEL_COLORS.get(other)), strict=True):
                if value != rival or value is pair[0]:  # equal ones are written once
                    ax.annotate(f"{value:.1f}", (value, place), (8 if value > rival else -8, 0), textcoords="offset points",
                                fontsize=9, color=color if value != rival else GREY, va="center",
                                ha="left" if value > rival else "right")  # fmt: skip
    ax.set(xlabel="recall (%)", yticks=places, yticklabels=[short(classes[label]) for label in labels[order]])
    ax.margins(x=0.1)
    ax.invert_yaxis()
    ax.grid(axis="x", alpha=0.25)
    fig.legend(*ax.get_legend_handles_labels(), frameon=False, fontsize=9, ncols=2, loc="outside lower center")
    return fig


def learning_rate(rates, steps, title):
    """The learning rate of every step. rates: a list; steps: the number of steps per epoch."""
    fig, axes = figure(f"Learning rate of every step\n{title}", 8, 3.4)
    ax = axes[0, 0]
    few = "o" if len(rates) < 50 else None  # a single step would be no line
    ax.plot(np.arange(1, len(rates) + 1) / steps, rates, color=TRAIN, linewidth=1.6, marker=few, markersize=3)
    ax.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    ax.grid(alpha=0.25)
    return fig


def loss_by_step(losses, steps, title):
    """The training loss of every step and its running mean over a twentieth of an epoch. steps: their number per epoch."""
    fig, axes = figure(f"Loss of every training step\n{title}", 8, 3.8)
    ax, window = axes[0, 0], max(1, steps // 20)
    ax.plot(np.arange(1, len(losses) + 1), losses, color=TRAIN, linewidth=0.5, alpha=0.5, label="each step")
    if len(losses) > window:
        mean = np.convolve(losses, np.full(window, 1 / window), mode="valid")
        ax.plot(np.arange(window, len(losses) + 1), mean, color=TRAIN, linewidth=1.6, label=f"mean of {window} steps")
    for epoch in range(1, len(losses) // steps):
        ax.axvline(epoch * steps, color=GREY, linewidth=0.5, alpha=0.5)
    ax.set(xlabel="step; vertical lines separate the epochs", ylabel="training loss (cross-entropy)")
    ax.grid(axis="y", alpha=0.25)
    ax.legend(frameon=False, fontsize=9)
    return fig


def mistakes(X, y, probabilities, classes, title, content="Wrong predictions with the highest probability"):
    """The images whose label has lost to another class most confidently. Shapes as for `samples`."""
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != y)
    wrong = wrong[np.argsort(-confidence[wrong].astype(np.float64), kind="stable")]
    columns, chosen = 10, wrong[:40]
    rows, classes = max(1, -(-len(chosen) // columns)), [short(name, 12) for name in classes]
    fig, axes = figure(f"{content}: {len(chosen)} of {len(wrong):,}\n{title}", 9, 1.4 * rows + 1)
    fig.supxlabel("above each image: its label;  below: predicted class and its probability", fontsize=9, color=GREY)
    ax = axes[0, 0]
    ax.axis("off")
    ax.set(xlim=(0, columns), ylim=(1.6 * rows, 0))
    for place, i in enumerate(chosen):
        left, top = place % columns, 1.6 * (place // columns)
        extent = fit(X[i].shape, left + 0.05, top + 0.2, 0.9)
        ax.imshow(X[i], cmap="gray_r", vmin=0, vmax=1, extent=extent, aspect="auto")
        ax.text(left + 0.5, top + 0.17, classes[y[i]], ha="center", va="bottom", fontsize=7.5, color=RIGHT)
        below = f"{classes[predicted[i]]}\n{mark(False)} {percent(confidence[i])}"
        ax.text(left + 0.5, top + 1.13, below, ha="center", va="top", fontsize=7.5, color=WRONG)
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
    return ax.imshow(mosaic, interpolation="nearest", **options)


def curves_of_run(folder, metrics):
    """{"curves.png": Figure}, of a frozen hybrid "cnn_curves.png" as well, from the history files of a run or of its seeds.

    metrics: the content of the folder's metrics.json.
    """
    s, figures = metrics["settings"], {}
    seeds = sorted(folder.glob("seed_*"), key=lambda path: int(path.name[5:])) or [folder]
    for name, figure_name in (("history.csv", "curves.png"), ("cnn_history.csv", "cnn_curves.png")):
        histories = {path.name: read_history(path / name) for path in seeds if (path / name).exists()}
        if not histories:
            continue
        cnn, model = metrics["model"].split(" + ")[0], metrics["model"]
        head = name == "history.csv" and s.get("training") == "frozen"  # it is trained on plain features
        of_hybrid = head and (seeds[0] / "cnn_history.csv").exists()
        network = f"NumPy MLP on the features of {cnn}" if of_hybrid else cnn if name == "cnn_history.csv" else model
        title = run_title(network, metrics["dataset"], s["seed"])
        title = title if seeds == [folder] else title.rsplit(",", 1)[0]  # without the seed
        augmented = bool(s["flip"] or s["shift"] or s["erase"]) and not head
        figures[figure_name] = curves(histories, title, augmented, 0 if head else s["label_smoothing"])
    return figures


def file_name(name, settings):
    """curves.png, or curves.svg or .pdf where a run's `figure_format` says so."""
    return str(Path(name).with_suffix(f".{settings.get('figure_format', 'png')}"))


def redraw(folder, images=None):
    """{file name: Figure or text} of a run's files; images: its Dataset, if it is loaded.

    Raises OSError, FileError or one of files.DAMAGED for another folder.
    """
    from support import saved  # which is above this module: only here

    metrics = files.read_json(folder / "metrics.json")
    s, figures = metrics["settings"], curves_of_run(folder, metrics)
    if (folder / "test_probabilities.npy").exists():
        images = images or saved.images_of_run(metrics)
        probabilities = saved.test_probabilities(folder, metrics, images)
        title = run_title(metrics["model"], images.name, s["seed"])
        after = None
        if "temperature" in metrics:
            after = recalibrated(probabilities, metrics["temperature"], s.get("loss", "softmax"))
        figures |= evaluation(images.as_shown(images.test.X), images.test.y, probabilities, images.classes, title, after)
    return figures


def main(argv=None):
    from support.dataset_files import DataError

    parser = argparse.ArgumentParser(description="Redraw the figures of finished runs from their files, without training.")
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a run's folder, or that of several seeds")
    for run in parser.parse_args(argv).runs:
        for folder in (*sorted(run.glob("seed_*")), run):
            try:
                figures = redraw(folder)
            except OSError as error:
                raise SystemExit(f"plots.py: {folder}: not a finished run ({error.filename}: {error.strerror})") from None
            except DataError as error:
                raise SystemExit(f"plots.py: {folder}: {error}") from None
            except (files.FileError, *files.DAMAGED) as error:
                raise SystemExit(f"plots.py: {folder}: not a finished run ({error})") from None
            settings = files.read_json(folder / "metrics.json")["settings"]
            for name, content in figures.items():
                figure = not isinstance(content, str)
                with files.atomic_write(folder / (file_name(name, settings) if figure else name)) as temporary:
                    if figure:
                        content.savefig(temporary)
                    else:
                        temporary.write_text(content, encoding="utf-8")
            names = [name if isinstance(content, str) else file_name(name, settings) for name, content in figures.items()]
            print(f"{folder}: {', '.join(names) or 'nothing to draw from'}")


if __name__ == "__main__":
    entry.cli(main)
