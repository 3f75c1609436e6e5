"""Figures of any run: plain arrays and dicts in, a matplotlib Figure out, in one style, without a screen.

    figure = plots.confusion_matrix(y, predicted, classes, "NumPy MLP on Fashion-MNIST, seed 0")
    figure.savefig("confusion_matrix.png")

matplotlib and scikit-learn take seconds to load, so the functions that need them import them.
"""

import itertools
import textwrap
import warnings

import numpy as np

RIGHT, WRONG = "#0072B2", "#D55E00"  # right and wrong predictions: colors of Okabe and Ito
TRAIN, VAL, GREY = "#1f77b4", "#d1603d", "#666666"
SERIES = ("#0072B2", "#E69F00", "#117733", "#AA4499", "#D55E00", "#56B4E9", "#332288", "#999933")
MODEL_COLORS = {"NumPy MLP": "#E69F00", "CNN": "#117733", "CNN features + NumPy MLP": "#AA4499"}
MODEL_COLORS |= {"CNN + NumPy MLP, trained jointly": "#332288", "other": GREY}
MARK = {True: "\N{CHECK MARK}", False: "\N{BALLOT X}"}  # of right and wrong predictions
LEGEND = {"frameon": False, "fontsize": 9, "loc": "outside lower center"}


def figure(title, width, height, **grid):
    """A Figure of width x height inches and its array of axes, with the style that all of them share."""
    from matplotlib.figure import Figure  # not pyplot: no screen, no global state

    warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # such letters are boxes
    fig = Figure((width, height), dpi=160, layout="constrained")
    lines = [textwrap.fill(line, int(9 * width)) for line in title.splitlines()]
    fig.suptitle("\n".join(lines).replace(r"\$", "$"), fontsize=11, fontweight="bold", parse_math=False)
    axes = fig.subplots(squeeze=False, **grid)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=9)
    return fig, axes


def numbers_beside(ax, table, template, colors, names=()):
    """Write the columns of table (rows, columns) to the right of the axes, row i at height i, under names."""
    step, options = 58 if names else 32, {"textcoords": "offset points", "fontsize": 9}
    for (row, column), value in np.ndenumerate(table):
        text = template.format(value) if np.isfinite(value) else "-"
        place = {"xycoords": ax.get_yaxis_transform(), "color": colors[column], "va": "center"}
        ax.annotate(text, (1, row), (step * column + 12, 0), **place, **options)
    for column, name in enumerate(names):
        place = {"xycoords": "axes fraction", "color": colors[column], "fontweight": "bold"}
        ax.annotate(name, (1, 1), (step * column + 12, 6), **place, **options)


def run_title(model, dataset, seed):
    """The second line of a figure's title; the first says what is shown."""
    return f"{model} on {short(dataset, 60)}, seed {seed}"


def short(name, most=24):
    """A name on one line, its middle left out if it is long, and never read as mathematics or as hidden."""
    name = " ".join(name.encode(errors="replace").decode().split())
    half = (most - 1) // 2
    if len(name) > most:
        name = name[: most - 1 - half] + "\N{HORIZONTAL ELLIPSIS}" + name[-half:]
    return (f" {name}" if name.startswith("_") else name).replace("$", r"\$")


def percent(probability):
    """A probability in words; one that rounds to 100 % is not certain."""
    return ">99 %" if probability > 0.995 else f"{100 * probability:.0f} %"


def color_of(name):
    """The color of a model by its name: a CNN, a NumPy MLP, or both."""
    if "CNN" in name and "NumPy MLP" in name:
        joint = "jointly" in name
        return MODEL_COLORS["CNN + NumPy MLP, trained jointly" if joint else "CNN features + NumPy MLP"]
    return next((color for kind, color in MODEL_COLORS.items() if name.startswith(kind)), GREY)


def spread(n, most):
    """`most` of the numbers 0 to n - 1, evenly spaced, or all of fewer."""
    return np.linspace(0, n - 1, min(n, most)).round().astype(int)


def examples(y, count):
    """Indices of `count` images with labels y (N,), evenly spaced classes in turn: a b c, a b c, ..."""
    present = np.unique(y)
    by_class = [np.flatnonzero(y == label) for label in present[spread(len(present), count)]]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_class))
    return np.array([i for i in in_turn if i is not None][:count])


def sheet(title, rows, row_height, note):
    """(Figure, axes of 10 x rows * row_height units, y downward) to place pictures of 1 x 1 unit on."""
    fig, axes = figure(title, 9, 0.88 * rows * row_height + 1)
    ax = axes[0, 0]
    ax.axis("off")
    ax.set(xlim=(0, 10), ylim=(rows * row_height, 0), aspect="equal")
    fig.supxlabel(note, fontsize=9, color=GREY)
    return fig, ax


def picture(ax, image, left, top, above="", below="", colors=("black", "black"), **options):
    """Draw an image (height, width) at (left, top) of a sheet, with texts above and below."""
    height, width = (0.9 * side / max(image.shape) for side in image.shape)
    x, y = left + 0.5, top + 0.65  # the center
    extent = (x - width / 2, x + width / 2, y + height / 2, y - height / 2)
    ax.imshow(image, **{"cmap": "gray_r", "vmin": 0, "vmax": 1} | options, extent=extent)
    ax.text(x, top + 0.17, above, ha="center", va="bottom", fontsize=7.5, color=colors[0])
    ax.text(x, top + 1.13, below, ha="center", va="top", fontsize=7.5, color=colors[1])


def gallery(X, y, probabilities, classes, chosen, title):
    """The images X[chosen], above them their labels, below them the predicted classes and probabilities."""
    rows = max(1, -(-len(chosen) // 10))
    note = f"above each image: its label;  below: predicted class and its probability, {MARK[True]} if right"
    fig, ax = sheet(title, rows, 1.6, note if len(chosen) else "no prediction is wrong")
    for place, i in enumerate(chosen):
        predicted = probabilities[i].argmax()
        right = predicted == y[i]
        below = f"{short(classes[predicted], 12)}\n{MARK[right]} {percent(probabilities[i].max())}"
        left, top = place % 10, 1.6 * (place // 10)
        picture(ax, X[i], left, top, short(classes[y[i]], 12), below, ("black", RIGHT if right else WRONG))
    return fig


def image_grid(ax, pictures, columns, **options):
    """Pictures (N, height, width) side by side as one image, `columns` in a row; returns what imshow does."""
    (n, height, width), gap = pictures.shape, max(1, round(max(pictures.shape[1:]) / 28))
    rows = -(-n // columns)
    tiles = np.full((rows * columns, height + gap, width + gap), np.nan)
    tiles[:n, :height, :width] = pictures
    mosaic = tiles.reshape(rows, columns, height + gap, width + gap).swapaxes(1, 2)
    mosaic = mosaic.reshape(rows * (height + gap), columns * (width + gap))[:-gap, :-gap]
    ax.axis("off")
    return ax.imshow(mosaic, interpolation="nearest", **options)


# ---- training


def curves(histories, title, augmented=False, smoothing=0.0, trained_on_val=False, loss="softmax"):
    """Loss and accuracy by epoch. histories: {seed: {"epoch": [...], "train_loss": [...], ...}}.

    Several seeds are thin lines, their mean is a thick one. The y axis shows the range after the first tenth
    of the epochs. trained_on_val: the validation images were trained on, too, and are not called so. loss: of
    mlp_from_scratch.LOSSES.
    """
    name_of_loss = "squared error" if loss == "squared_error" else "cross-entropy"
    seeds = f", {len(histories)} seeds and their mean" if len(histories) > 1 else ""
    fig, axes = figure(f"Loss and accuracy by epoch{seeds}\n{title}", 9, 4.2, ncols=2)
    changes = [name for name, used in (("augmented", augmented), ("smoothed labels", smoothing)) if used]
    batches = f"training batches ({', '.join(changes)})" if changes else "training batches"
    held_out = ("training images that are usually held out", GREY) if trained_on_val else ("validation", VAL)
    styles = {"train": (batches, TRAIN, ":"), "train_eval": ("training images in eval mode", TRAIN, "-")}
    styles["val"] = (*held_out, "-")
    for ax, what, unit in zip(axes[0], ("loss", "accuracy"), (name_of_loss, "%"), strict=True):
        factor, later = 100 if unit == "%" else 1, []
        for prefix, (label, color, style) in styles.items():
            name = f"{prefix}_{what}"
            lines = [factor * np.asarray(run[name]) for run in histories.values() if name in run]
            for values in lines:
                later.extend(values[len(values) // 10 :])
                if len(lines) > 1:
                    ax.plot(np.arange(1, len(values) + 1), values, style, color=color, linewidth=0.6)
            if lines:
                mean = np.mean([values[: min(map(len, lines))] for values in lines], axis=0)
                marker = "o" if len(mean) == 1 else None  # a single epoch would be no line
                ax.plot(np.arange(1, len(mean) + 1), mean, style, color=color, marker=marker, label=label)
        margin = 0.06 * np.ptp(later) or 0.05 * abs(later[0]) or 1
        ax.set(xlabel="epoch", ylabel=f"{what} ({unit})", ylim=(min(later) - margin, max(later) + margin))
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        ax.grid(alpha=0.25)
    fig.legend(*ax.get_legend_handles_labels(), ncols=2 if trained_on_val else 3, **LEGEND)
    return fig


def learning_rate(rates, steps, title):
    """The learning rate of every step. rates: a list; steps: the number of steps per epoch."""
    fig, axes = figure(f"Learning rate of every step\n{title}", 8, 3.4)
    axes[0, 0].plot(np.arange(1, len(rates) + 1) / steps, rates, color=TRAIN)
    axes[0, 0].set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    axes[0, 0].grid(alpha=0.25)
    return fig


def loss_by_step(losses, steps, title):
    """The training loss of every step and its running mean over a twentieth of an epoch. steps: per epoch."""
    fig, axes = figure(f"Loss of every training step\n{title}", 8, 3.8)
    ax, window = axes[0, 0], max(5, steps // 20)
    epochs = np.arange(1, len(losses) + 1) / steps
    ax.plot(epochs, losses, color=TRAIN, linewidth=0.5, alpha=0.5, label="each step")
    if len(losses) > window:
        mean = np.convolve(losses, np.full(window, 1 / window), mode="valid")
        ax.plot(epochs[window - 1 :], mean, color=TRAIN, label=f"mean of {window} steps")
    ax.set(xlabel="epoch", ylabel="training loss")
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize=9)
    return fig


def filters(W, title, content="Filters of the first convolution"):
    """Weights W (N, height, width) as images, at most 16 in a row, white where a weight is 0."""
    rows = -(-len(W) // 16)
    columns = -(-len(W) // rows)
    fig, axes = figure(f"{content}\n{title}", 9, 0.56 * rows * W.shape[1] / W.shape[2] + 1.3)
    limit = np.quantile(np.abs(W), 0.995) or 1  # a single large weight would make the rest grey
    shown = image_grid(axes[0, 0], W, columns, cmap="RdBu_r", vmin=-limit, vmax=limit)
    fig.colorbar(shown, ax=axes, label="weight", location="bottom", shrink=0.4, aspect=40, pad=0.03)
    return fig


def first_layer(W, shape, title):
    """The weights of the first 64 neurons of the first layer. W (pixels, neurons), shape (28, 28)."""
    content = f"Weights of the first layer, {min(64, W.shape[1])} of {W.shape[1]:,} neurons"
    return filters(W.T[:64].reshape(-1, *shape), title, content)


def distributions(activations, gradients, title):
    """Histograms by layer of the hidden layers' activations and weight gradients, {layer: flat array}."""
    rows, columns = len(gradients), 2 if activations else 1
    content = "Activations and weight gradients by layer" if activations else "Weight gradients by layer"
    fig, axes = figure(f"{content}\n{title}", 4.5 * columns, 1.9 * rows + 1.1, nrows=rows, ncols=columns)
    panels = [(activations, "activation", TRAIN), (gradients, "gradient of the weights", VAL)][-columns:]
    for column, (arrays, what, color) in zip(axes.T, panels, strict=True):
        for ax, name in zip(column, gradients, strict=True):
            if name not in arrays:  # the output layer, whose logits no activation follows
                ax.axis("off")
                continue
            values = arrays[name]
            limit, zeros = 1.05 * np.quantile(np.abs(values), 0.999) or 1, np.mean(values == 0)
            lowest = min(0, np.sign(values.min())) * limit
            ax.hist(values, bins=80, range=(lowest, limit), color=color, log=True)
            note = f", {zeros:.0%} exactly 0" if zeros > 0.005 else ""
            ax.set_title(f"{name}: std {values.std():.2g}{note}", fontsize=9, loc="left")
            ax.set(xlabel=what, ylabel="count")
            ax.ticklabel_format(axis="x", style="sci", scilimits=(-3, 3))
            ax.locator_params(axis="x", nbins=6)
    return fig


def monitor(history, names, title):
    """Dead neurons, gradient norms and update ratios by epoch and layer. history, names: of a Monitor."""
    panels = {"dead": "dead neurons (%)"} if len(names) > 1 else {}  # the output layer has none
    panels |= {"gradient_norm": "norm of the gradient", "update_ratio": "norm of a step / of the weights"}
    n = len(panels)
    fig, axes = figure(f"Dead neurons, gradients and steps by layer\n{title}", 3 * n, 3.8, ncols=n)
    for ax, (column, label) in zip(axes[0], panels.items(), strict=True):
        values = np.asarray(history[column], dtype=float)  # (epochs, layers)
        values = 100 * values if column == "dead" else np.maximum(values, 1e-12)  # whose logarithm is drawn
        for i, (layer, name) in enumerate(zip(values.T, names, strict=False)):
            ax.plot(history["epoch"], layer, "o-", markersize=3, label=name, color=SERIES[i % len(SERIES)])
        scale = {"ylim": (-2, 102)} if column == "dead" else {"yscale": "log"}
        ax.set(xlabel="epoch", ylabel=label, **scale)
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        ax.grid(alpha=0.25)
    ax.axhline(1e-3, color=GREY, linewidth=1, linestyle="--", label="0.001, usual")
    fig.legend(*ax.get_legend_handles_labels(), ncols=2 * n, **LEGEND)
    return fig


# ---- evaluation of any classifier: y (N,), predicted (N,), probabilities (N, C), classes: C names


def evaluation(X, y, probabilities, classes, title, bins, calibrated):
    """{file name: Figure or text}: the evaluation of any classifier on its test images X (N, height, width).

    bins: as for `reliability`. calibrated (N, C): probabilities after temperature scaling, for `rejection`.
    """
    from sklearn.metrics import classification_report as report

    predicted, options = probabilities.argmax(axis=1), {"digits": 4, "zero_division": 0}
    text = report(y, predicted, labels=range(len(classes)), target_names=classes, **options)
    return {
        "confusion_matrix.png": confusion_matrix(y, predicted, classes, title),
        "classification_report.png": classification_report(y, predicted, classes, title),
        "classification_report.txt": text,
        "samples.png": samples(X, y, probabilities, classes, title),
        "mistakes.png": mistakes(X, y, probabilities, classes, title),
        "reliability.png": reliability(bins, title),
        "rejection.png": rejection(y, calibrated, title),
    }


def confusion_matrix(y, predicted, classes, title):
    """Counts, true classes down and predicted ones across, and the recall of each class."""
    from sklearn.metrics import confusion_matrix as count

    counts = count(y, predicted, labels=range(len(classes)))  # (C, C)
    total = counts.sum(axis=1)
    share = counts / np.maximum(total, 1)[:, None]
    recall = np.where(total > 0, share.diagonal(), np.nan)
    n, accuracy = len(classes), f"{np.mean(predicted == y):.2%} of {len(y):,} test images are right"
    side = max(6.3, 0.3 * n)  # inches
    fig, axes = figure(f"Confusion matrix: {accuracy}\n{title}", side + 2.7, side + 1.3)
    ax = axes[0, 0]
    ax.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)  # the root shows the small errors, too
    for i, j in np.argwhere(counts):
        text = {"ha": "center", "va": "center", "fontsize": min(9, 0.3 * 72 * side / n)}
        ax.text(j, i, f"{counts[i, j]:,}", color="white" if share[i, j] > 0.4 else "black", **text)
    numbers_beside(ax, recall[:, None], "{:.1%}", ["black"], ["recall"])
    names = [short(name) for name in classes]
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.set_yticks(range(n), names, fontsize=9)
    turned = {"rotation": 40, "rotation_mode": "anchor", "ha": "right"} if n <= 15 else {"rotation": 90}
    ax.set_xticks(range(n), names, fontsize=9, **turned)
    ax.spines[:].set_visible(False)
    return fig


def classification_report(y, predicted, classes, title):
    """Precision, recall and F1 of each class and their means: a dot each, and the numbers beside them."""
    from sklearn.metrics import precision_recall_fscore_support as score

    *scores, counts = score(y, predicted, labels=range(len(classes)), zero_division=0)
    table = np.stack(scores, axis=1)
    table = np.vstack([table, table.mean(axis=0)])  # (C + 1, 3)
    rows, height = np.arange(len(table)), max(5.2, 1.6 + 0.3 * len(table))
    fig, axes = figure(f"Precision, recall and F1 of each class\n{title}", 9, height)
    ax, colors = axes[0, 0], ("#0072B2", "#AA4499", "black")
    ax.hlines(rows, table.min(axis=1), table.max(axis=1), color=GREY, linewidth=1)
    names = ("precision", "recall", "F1")
    for values, name, marker, color in zip(table.T, names, "<>o", colors, strict=True):
        ax.plot(values, rows, marker, color=color, label=name, markersize=4 if marker == "o" else 7)
    numbers_beside(ax, table, "{:.3f}", colors, names)
    names = [f"{short(name)}  ({count:,})" for name, count in zip(classes, counts, strict=True)]
    ax.set_yticks(rows, [*names, f"mean of {len(classes)} classes  ({counts.sum():,})"])
    ax.axhline(len(classes) - 0.5, color=GREY, linewidth=0.8)
    ax.set(xlabel="score", ylim=(len(table) - 0.4, -0.6))
    ax.grid(axis="x", alpha=0.25)
    fig.legend(*ax.get_legend_handles_labels(), ncols=3, **LEGEND)
    return fig


def samples(X, y, probabilities, classes, title):
    """The first test images of each class, 50 in all, the classes in turn."""
    title = f"The first test images, the classes in turn\n{title}"
    return gallery(X, y, probabilities, classes, examples(y, 50), title)


def mistakes(X, y, probabilities, classes, title):
    """The 40 images X (N, height, width) whose label has lost to another class most confidently."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != y)
    chosen = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:40]
    title = f"Wrong predictions with the highest probability: {len(chosen)} of {len(wrong):,}\n{title}"
    return gallery(X, y, probabilities, classes, chosen, title)


def reliability(bins, title):
    """Accuracy by confidence, and images by bin. bins: {"before": run.calibration(...), "after": ...}."""
    grid = {"nrows": 2, "ncols": len(bins), "sharex": True, "sharey": "row", "height_ratios": (3, 1)}
    fig, axes = figure(f"Accuracy by confidence\n{title}", 4.5 * len(bins), 5.6, **grid)
    for (upper, lower), (when, columns) in zip(axes.T, bins.items(), strict=True):
        edges, counts, mean, accuracy, error = columns
        some, bars = counts > 0, {"width": edges[1], "align": "edge", "edgecolor": "white"}
        upper.bar(edges[:-1][some], accuracy[some], color=TRAIN, label="accuracy", **bars)
        upper.plot(mean[some], accuracy[some], "ko", markersize=3, label="at the bin's mean confidence")
        upper.plot([0, 1], [0, 1], "--", color=VAL, label="accuracy = confidence")
        upper.set(ylim=(0, 1.02), xlim=(0, 1))
        upper.set_title(f"{when} temperature scaling: expected calibration error {error:.2%}", fontsize=9)
        lower.bar(edges[:-1], counts, color=GREY, **bars)
        lower.set(xlabel="confidence: the probability of the predicted class")
        lower.set_yscale("symlog", linthresh=10)
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("images")
    fig.legend(*upper.get_legend_handles_labels(), ncols=3, **LEGEND)
    return fig


def rejection(y, probabilities, title):
    """Accuracy against the share of images that are left unanswered: the risk-coverage curve."""
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    accepted = np.arange(1, len(y) + 1)
    accuracy = 100 * np.cumsum((probabilities.argmax(axis=1) == y)[order]) / accepted
    rejected = 100 * (1 - accepted / len(y))
    fig, axes = figure(f"Accuracy if the least confident predictions are rejected\n{title}", 6.4, 4.4)
    ax, shown, shares = axes[0, 0], rejected <= 50, np.arange(0, 51, 10)
    ax.plot(rejected[shown], accuracy[shown], color=TRAIN)
    places = np.maximum(np.round(len(y) * (1 - shares / 100)).astype(int) - 1, 0)
    names = [f"{share} %\n{value:.1f} %" for share, value in zip(shares, accuracy[places], strict=True)]
    ax.set_xticks(shares, names)
    ax.set(xlabel="share of the images rejected, and accuracy of the others", ylabel="accuracy (%)")
    ax.grid(alpha=0.25)
    return fig


def recall_comparison(y, predictions, classes, title):
    """Recall of each class by several models. predictions: {model: predicted classes (N,), or (seeds, N)}."""
    present = np.unique(y)  # in a small subset a class may have no image
    right = {name: np.atleast_2d(predicted) == y for name, predicted in predictions.items()}  # (seeds, N)
    recalls = [100 * np.stack([r[:, y == label].mean(axis=1) for label in present]) for r in right.values()]
    means = np.stack([recall.mean(axis=1) for recall in recalls], axis=1)  # (classes, models)
    height = max(5.4, 1.6 + (0.3 if len(right) < 3 else 0.12 * len(right)) * len(present))
    fig, axes = figure(f"Recall of each class on the test images\n{title}", 9, height)
    ax, places, colors = axes[0, 0], np.arange(len(present)), [color_of(name) for name in right]
    offsets = np.linspace(-0.3, 0.3, len(right)) if len(right) > 2 else (0, 0)
    for i, (name, color) in enumerate(zip(right, colors, strict=True)):
        marker = "os^v"[colors[:i].count(color) % 4]  # a second NumPy MLP has another marker
        style = {"color": color, "label": f"{short(name, 60)}: accuracy {right[name].mean():.2%}"}
        ring = {"markerfacecolor": "none", "markersize": 8, "markeredgewidth": 1.5}
        ax.plot(means[:, i], places + offsets[i], marker, **ring, **style)
        for values in recalls[i].T:  # a dot for each seed
            ax.plot(values, places + offsets[i], ".", markersize=4, color=color)
    numbers_beside(ax, means, "{:.1f}", colors)
    ax.set(xlabel="recall (%)", ylim=(len(present) - 0.4, -0.6))
    ax.set_yticks(places, [short(classes[label]) for label in present])
    ax.grid(axis="x", alpha=0.25)
    fig.legend(*ax.get_legend_handles_labels(), ncols=2, **LEGEND)
    return fig


def confusable(X, y, probabilities, classes, title):
    """The six pairs of classes that are confused most often, and the most confident of these mistakes."""
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong, pairs = np.flatnonzero(predicted != y), {}
    for i in wrong[np.argsort(-confidence[wrong], kind="stable")]:
        pairs.setdefault(tuple(sorted((int(y[i]), int(predicted[i])))), []).append(i)
    order = sorted(pairs, key=lambda pair: (-len(pairs[pair]), pair))[:6]
    note = "above each image: its label" if pairs else "no prediction is wrong"
    fig, ax = sheet(f"Classes confused most often\n{title}", max(1, len(order)), 1.3, note)
    for row, pair in enumerate(order):
        images, (a, b) = pairs[pair], (short(classes[label], 16) for label in pair)
        first, total = int(np.sum(y[images] == pair[0])), len(images)
        text = f"{a} / {b}\n{total:,} images, {total / len(wrong):.0%} of all mistakes"
        text += f"\n{a} as {b}: {first}\n{b} as {a}: {total - first}"
        ax.text(0, 1.3 * row + 0.65, text, va="center", fontsize=8)
        for column, i in enumerate(images[:7]):
            picture(ax, X[i], 3 + column, 1.3 * row, short(classes[y[i]], 12))
    return fig


def feature_maps(X, maps, names, title):
    """Images X (N, height, width), and in a column for each stage the 9 maps with the highest mean.

    maps: {stage: (N, channels, height, width)}; of more than 7 stages, 7. names: the images' classes.
    """
    stages = [list(maps)[i] for i in spread(len(maps), 7)]
    grid, height = {"nrows": len(X), "ncols": 1 + len(stages)}, 9 / (1 + len(stages)) * len(X) + 1.6
    fig, axes = figure(f"Strongest activation maps of each convolution\n{title}", 9, height, **grid)
    for i, row in enumerate(axes):
        image_grid(row[0], X[i][None], 1, cmap="gray_r", vmin=0, vmax=1)
        row[0].set_title(short(names[i], 16), fontsize=8)
        for ax, stage in zip(row[1:], stages, strict=True):
            strongest = np.argsort(-maps[stage][i].mean(axis=(1, 2)), kind="stable")[:9]
            chosen, (_, channels, *size) = maps[stage][i, strongest], maps[stage].shape
            highest = max(chosen.max(), 1e-12)
            image_grid(ax, chosen, 3, cmap="viridis", vmin=0, vmax=highest)
            heading = f"{stage}\n{len(chosen)} of {channels}, {size[0]} x {size[1]}\n" if i == 0 else ""
            ax.set_title(f"{heading}0 to {highest:.2g}", fontsize=7.5)
    fig.supxlabel("color: activation, from 0 (dark) to the value above the maps", fontsize=9, color=GREY)
    return fig


def embeddings(features, y, classes, title):
    """Features (N, F) in two dimensions, by PCA and t-SNE; colors: their classes y (N,)."""
    from matplotlib import colormaps
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    content = f"Features of {len(y):,} test images in two dimensions"
    if len(y) < 8 or np.count_nonzero(np.ptp(features, axis=0)) < 2:  # a network of dead neurons, say
        return sheet(f"{content}\n{title}", 1, 0.3, "too few images, or equal features")[0]
    pca = PCA(min(50, *features.shape), random_state=0)
    reduced = pca.fit_transform(features)
    tsne = TSNE(perplexity=min(30, len(features) // 4), random_state=0)
    variance = f"PCA, {pca.explained_variance_ratio_[:2].sum():.0%} of the variance"
    distances = "t-SNE (distances between groups mean nothing)"
    fig, axes = figure(f"{content}, colored by class\n{title}", 9, 5.4, ncols=2)
    few, n = len(classes) <= 10, len(classes)
    colors = colormaps["tab10"](range(n)) if few else colormaps["nipy_spectral"](np.linspace(0.05, 0.95, n))
    panels = {variance: reduced[:, :2], distances: tsne.fit_transform(reduced)}
    for ax, (name, points) in zip(axes[0], panels.items(), strict=True):
        for label, (class_name, color) in enumerate(zip(classes, colors, strict=True)):
            style = {"markersize": 2.5, "alpha": 0.6, "label": short(class_name, 16)}
            ax.plot(*points[y == label].T, "o", color=color, **style)
        ax.set_title(name, fontsize=9)
        ax.set(xticks=[], yticks=[])
    if len(classes) <= 20:
        fig.legend(*ax.get_legend_handles_labels(), ncols=5, markerscale=3, **LEGEND)
    return fig


def saliency(X, heat, y, predicted, classes, title):
    """Images X (N, height, width), and the evidence for the predicted class: heat, of X's shape, >= 0."""
    note = "above: the image and its class;  below: the predicted class and its evidence, strongest in yellow"
    fig, ax = sheet(f"Evidence for the predicted class (HiResCAM)\n{title}", -(-len(X) // 10), 2.5, note)
    for i in range(len(X)):
        left, top, right = i % 10, 2.5 * (i // 10), predicted[i] == y[i]
        picture(ax, X[i], left, top, short(classes[y[i]], 12))
        text, color = f"{MARK[right]} {short(classes[predicted[i]], 12)}", RIGHT if right else WRONG
        picture(ax, X[i], left, top + 1.15, text, colors=(color, color))
        relative = heat[i] / max(heat[i].max(), 1e-12)
        picture(ax, relative, left, top + 1.15, cmap="plasma", alpha=relative)  # opaque where it is strong
    return fig
