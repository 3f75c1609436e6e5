"""Figures of the studies and of README.md, made from the committed files of results/.

    python -m studies.figures --run runs/hybrid_train/DATE

writes results/figures/*.png. --run is a run of hybrid_train.py with its features.npz, of which the map of top.png is made.
"""

if __name__ == "__main__" and not __package__:
    raise SystemExit("studies/figures.py: run it as python -m studies.figures, in the repository's folder")

from support import entry

if __name__ == "__main__":  # before the slow imports: Ctrl-C
    entry.prepare()

import argparse
from pathlib import Path

import numpy as np

import check_gradients
import data
import plots
from plots import GREY, MODEL_COLORS, RIGHT, WRONG, figure
from studies import tables
from support import files

NUM_THUMBNAILS = 1_500  # test images on the map of top.png
GRID = 42  # the map has GRID x GRID places


def models(results):
    """{name: (color, metrics)} of the models in README.md's table and of the similar projects' MLPs."""
    kinds = {tables.MLP: "NumPy MLP", tables.MLP_BEST: "NumPy MLP", tables.CNN: "CNN",
             tables.FROZEN: "CNN features + NumPy MLP", tables.JOINT: "CNN + NumPy MLP, trained jointly"}  # fmt: skip
    rows = {}
    for folder, kind in kinds.items():
        metrics = tables.metrics_of(results, folder)
        larger = ", larger CNN" * (folder == tables.JOINT)
        rows[metrics["model"] if kind == "NumPy MLP" else f"{kind}{larger}"] = MODEL_COLORS[kind], metrics
    for folder, what, _ in tables.REFERENCE_MLPS:
        metrics = tables.metrics_of(results, f"references/{folder}")
        rows[", ".join([metrics["model"], *what.split(", ")[1:]])] = MODEL_COLORS["other"], metrics
    return rows


def by_seed(metrics, name):
    """The values of each seed, as an array."""
    return np.asarray(metrics.get("by_seed", {}).get(name, [metrics[name]]), dtype=float)


def place_labels(ax, points, labels, colors, fontsize=8):
    """Write each label beside its point (x, y), where it hides neither a point nor another label.

    points, labels, colors: lists of the same length; a point with the label "" is only kept free. The first free place near
    the point is taken, otherwise the one that hides least.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    fig = ax.figure
    canvas, directions = FigureCanvasAgg(fig), ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
    canvas.draw()
    fig.set_layout_engine("none")  # the axes stay where they are
    renderer, used, lines = canvas.get_renderer(), [], []
    pixels = ax.transData.transform(points)
    inside = ax.get_window_extent(renderer)
    scale = fig.dpi / 72
    for (x, y), label, color in zip(pixels, labels, colors, strict=True):
        if not label:
            continue
        best = None
        for distance in (7, 14, 22, 32, 44, 58, 74):
            line = {"arrowstyle": "-", "color": color, "linewidth": 0.6} if distance > 7 else None
            for dx, dy in directions:
                text = ax.annotate(label, ax.transData.inverted().transform((x, y)), (dx * distance, dy * distance),
                                   textcoords="offset points", fontsize=fontsize, color=color, va="center",
                                   ha=("center", "left", "right")[dx], arrowprops=line)  # fmt: skip
                text.update_positions(renderer)
                box = Text.get_window_extent(text, renderer).padded(2 * scale)  # without the line to the point
                hidden = sum(box.overlaps(other) for other in used)
                hidden += sum(inside_box(box, np.vstack([pixels, *lines])))
                if line:
                    drawn = (x, y) + np.linspace(0, distance * scale, 20)[:, None] * (dx, dy)  # (20, 2) on the line
                    hidden += sum(inside_box(other, drawn).any() for other in used)
                    others = pixels[np.hypot(*(pixels - (x, y)).T) > 8 * scale]  # not those that touch this one
                    hidden += (np.hypot(*(others[:, None] - drawn).T).min(axis=0) < 5 * scale).sum()
                hidden += 9 * (box.x0 < inside.x0 or box.x1 > inside.x1 or box.y0 < inside.y0 or box.y1 > inside.y1)
                if best is None or hidden < best[0]:
                    if best:
                        best[1].remove()
                    best = hidden, text, box, drawn if line else np.empty((0, 2))
                else:
                    text.remove()
                if not best[0]:
                    break
            if not best[0]:
                break
        used.append(best[2])
        lines.append(best[3])


def inside_box(box, points):
    """Whether each of the points (N, 2) is inside a matplotlib box."""
    return (points > box.min).all(axis=1) & (points < box.max).all(axis=1)


def accuracy_against(results, name, xlabel, title):
    """Test accuracy against `name` ("parameters" or "seconds") on a logarithmic axis, a dot for each model and seed."""
    fig, axes = figure(title, 9, 5.6)
    ax, points, labels, label_colors = axes[0, 0], [], [], []
    for model, (color, metrics) in models(results).items():
        y = 100 * by_seed(metrics, "test_accuracy")
        x = np.broadcast_to(by_seed(metrics, name), y.shape)
        ax.plot(x, y, "o", color=color, markersize=6, alpha=0.6, markeredgewidth=0)
        points += zip(x, y, strict=True)
        labels += [model.removeprefix("NumPy MLP ").replace(", ", ",\n", 1)] + [""] * (len(y) - 1)
        label_colors += [color] * len(y)
    for kind, color in MODEL_COLORS.items():
        ax.plot([], [], "o", color=color, label=kind if kind != "other" else "NumPy MLP of a similar project")
    ax.set(xlabel=xlabel, ylabel="test accuracy (%)", xscale="log")
    ax.margins(x=0.12, y=0.1)
    ax.grid(alpha=0.25)
    fig.legend(*ax.get_legend_handles_labels(), frameon=False, fontsize=9, ncols=3, loc="outside lower center")
    place_labels(ax, points, labels, label_colors)
    return fig


HEAD_COLORS = {"jointly": MODEL_COLORS["CNN + NumPy MLP, trained jointly"], "CNN, linear": MODEL_COLORS["CNN"],
               "NumPy MLP": MODEL_COLORS["CNN features + NumPy MLP"], "": MODEL_COLORS["other"]}  # fmt: skip


def classifier_comparison(heads, comparisons, title):
    """Test accuracy of each classifier, and paired differences of two: a dot for each seed, the mean as a line.

    heads: {name: {"test_accuracy": mean, "by_seed": {"test_accuracy": [...]}}}; comparisons: pairs (name, against).
    """
    fig, axes = figure(title, 9, 1.6 + 0.42 * (len(heads) + len(comparisons)), nrows=2,
                       height_ratios=(len(heads), len(comparisons)))  # fmt: skip
    upper, lower = axes[:, 0]
    seeds = {name: 100 * np.array(head["by_seed"]["test_accuracy"]) for name, head in heads.items()}
    differences = {f"{name} vs\n{against}": seeds[name] - seeds[against] for name, against in comparisons
                   if name in seeds and against in seeds}  # fmt: skip
    for ax, rows, form in ((upper, seeds, "{:.2f}"), (lower, differences, "{:+.2f}")):
        for row, (name, values) in enumerate(rows.items()):
            color = next(color for word, color in HEAD_COLORS.items() if word in name) if ax is upper else RIGHT
            ax.plot(values, np.full(len(values), row), "o", color=color, alpha=0.45, markersize=5, markeredgewidth=0)
            ax.plot(values.mean(), row, "|", color=color, markersize=13, markeredgewidth=2)
            ax.text(1.01, row, form.format(values.mean()), fontsize=9, va="center", transform=ax.get_yaxis_transform())
        ax.set_yticks(range(len(rows)), rows)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.grid(axis="x", alpha=0.25)
    upper.set(xlabel="test accuracy (%), mean and seeds; half: of the training images for the CNN")
    lower.axvline(0, color="black", linewidth=0.8)
    lower.set(xlabel="difference in percentage points, seed by seed")
    lower.tick_params(axis="y", labelsize=8)
    return fig


def recall(results, images):
    """Recall of each class by every model whose test probabilities are in results/, a dot for each seed."""
    predictions, accuracies = {}, {}
    for (folder, _), (name, (_, metrics)) in zip(tables.MODELS, models(results).items(), strict=False):
        paths = sorted((results / folder).glob("seed_*/test_probabilities.npy"))
        probabilities = [np.load(path, allow_pickle=False) for path in paths]
        if probabilities:
            predictions[name] = np.stack([values.argmax(axis=1) for values in probabilities])
            accuracies[name] = metrics["test_accuracy"]  # as in the tables; saved probabilities have 16 bits
    title = f"{images.name}, a dot for each seed"
    return plots.recall_comparison(images.test.y, predictions, images.classes, title, accuracies)


def augmentation(images, columns=8):
    """One training image, and what each augmentation makes of it."""
    X = np.repeat(images.train.X[images.train.y == 9][:1], columns, axis=0)
    rows = {"flip": {"flip": True}, "shift 2": {"shift": 2}, "erase 8": {"erase": 8},
            "all three": {"flip": True, "shift": 2, "erase": 8}}  # fmt: skip
    fig, axes = figure(f"Augmentation: one training image, drawn {columns} times\n{images.name}", 9, 5.4, nrows=len(rows),
                       ncols=columns + 1)  # fmt: skip
    rng = np.random.default_rng(0)
    for (name, flags), row in zip(rows.items(), axes, strict=True):
        for ax, image in zip(row, [X[0], *data.augment(X, rng, **flags)], strict=True):
            ax.imshow(image, cmap="gray_r", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(visible=True, color="0.85")
        row[0].set_ylabel(name, fontsize=9, rotation=0, ha="right", va="center")
    axes[0, 0].set_title("as it is", fontsize=9)
    return fig


def gradient_check(seed=0):
    """Worst relative error of each layer's gradients, against central differences and autograd, on a logarithmic axis."""
    layers = check_gradients.worst_by_layer(seed)
    fig, axes = figure("Gradient check: worst relative error of each hand-written gradient\nNumPy layers in float64, random "
                       f"upstream gradients, {check_gradients.REPEATS} cases per layer", 9, 5.2)  # fmt: skip
    ax, marks = axes[0, 0], {"W": "s", "b": "^", "gamma": "D", "beta": "v", "x": "o", "T": "P"}
    shifts = {"W": -0.25, "b": 0.25, "gamma": -0.25, "beta": 0.25, "x": 0, "T": 0}
    for row, errors in enumerate(layers.values()):
        for array, pair in errors.items():
            for error, color in zip(pair, (WRONG, RIGHT), strict=True):
                if error is not None:
                    place = max(error, 1e-17), row + shifts[array]
                    ax.plot(*place, marks[array], color=color, markersize=5, markeredgewidth=0)
    for name, color in (("central differences", WRONG), ("PyTorch's autograd", RIGHT)):
        ax.plot([], [], "o", color=color, label=f"against {name}")
    for array, marker in marks.items():
        ax.plot([], [], marker, color=GREY, label=f"gradient of {array}")
    ax.axvline(check_gradients.TOLERANCE, color="black", linestyle="--", linewidth=1, label="tolerance")
    ax.set(xscale="log", xlabel="relative error (exact agreement is drawn at 1e-17)", xlim=(5e-18, 1e-6))
    ax.set_yticks(range(len(layers)), layers)
    ax.set_ylim(len(layers) - 0.5, -0.5)
    ax.grid(axis="x", alpha=0.25)
    fig.legend(*ax.get_legend_handles_labels(), frameon=False, fontsize=9, ncols=4, loc="outside lower center")
    return fig


def architecture(metrics):
    """The hybrid: each stage a box, as high as its maps are and as wide as its channels, and where the gradient goes."""
    from matplotlib.patches import FancyArrowPatch, Rectangle

    s, border = metrics["settings"], 0
    fig, axes = figure(f"The hybrid: CNN features, NumPy MLP\n{metrics['model']}", 9, 4.4)
    ax, x, size, stages = axes[0, 0], 0.0, 28, [("image", 1, 28)]
    for number, channels in enumerate(s["channels"], 1):
        stages.append((f"conv {number}", channels, size))
        size //= 2 if number in s["pool_after"] else 1
    cnn, mlp = MODEL_COLORS["CNN"], MODEL_COLORS["NumPy MLP"]
    starts = []
    for name, channels, side in stages:
        width, height = 0.25 + channels / 200, side / 14
        ax.add_patch(Rectangle((x, 2 - height / 2), width, height, facecolor=cnn if channels > 1 else GREY, alpha=0.75))
        ax.text(x + width / 2, 2 + height / 2 + 0.1, name, ha="center", va="bottom", fontsize=9)
        ax.text(x + width / 2, 2 - height / 2 - 0.1, f"{channels} x\n{side} x {side}", ha="center", va="top", fontsize=9)
        starts.append(x)
        x += width + 0.75
    flat = s["channels"][-1] * size * size
    for name, units in (("flatten", flat), *(("hidden", units) for units in s["head_hidden"]), ("classes", 10)):
        height = 0.25 + np.log10(units) * 0.9
        color = cnn if name == "flatten" else mlp
        ax.add_patch(Rectangle((x, 2 - height / 2), 0.16, height, facecolor=color, alpha=0.85))
        ax.text(x + 0.08, 2 + height / 2 + 0.1, name, ha="center", va="bottom", fontsize=9)
        ax.text(x + 0.08, 2 - height / 2 - 0.1, f"{units:,}", ha="center", va="top", fontsize=9)
        x += 1.0
        border = x - 0.45 if name == "flatten" else border
    for training, y, end in (("frozen", -0.25, border), ("joint", -0.95, starts[1])):
        ax.add_patch(FancyArrowPatch((x - 0.75, y), (end, y), arrowstyle="-|>", mutation_scale=14, color=WRONG))
        ax.text(x - 0.65, y, "loss", fontsize=9, va="center", color=WRONG)
        ax.text(x - 0.9, y + 0.08, f"gradient with --training {training}", fontsize=9, ha="right", va="bottom", color=WRONG)
    ax.plot([border, border], [0.1, 4.1], ":", color=GREY, linewidth=1)
    ax.text(border - 0.1, 4.0, "PyTorch", ha="right", fontsize=9, color=cnn, fontweight="bold")
    ax.text(border + 0.1, 4.0, "NumPy, by hand", ha="left", fontsize=9, color=mlp, fontweight="bold")
    ax.set(xlim=(-0.2, x + 0.1), ylim=(-1.2, 4.3))
    ax.axis("off")
    return fig


def grid_places(points, side):
    """Rows (N,) and columns (N,) of the points (N, 2) on a side x side grid, with the least total squared distance.

    Raises ValueError for more points than places.
    """
    if len(points) > side**2:
        raise ValueError(f"{len(points)} points, but only {side**2} places")
    from scipy.optimize import linear_sum_assignment  # scikit-learn needs SciPy, too

    unit = (points - points.min(axis=0)) / np.ptp(points, axis=0) * (side - 1)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)  # (column, row)
    cost = ((unit[:, None] - grid[None]) ** 2).sum(axis=2)
    places = grid[linear_sum_assignment(cost)[1]]
    return side - 1 - places[:, 1], places[:, 0]


def thumbnails_map(ax, X, points, y, predicted, classes, side):
    """The images X (N, 28, 28) at their places (N, 2), tinted by class, with the classes' names and framed mistakes."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    rows, columns = grid_places(points, side)
    canvas = np.ones((side * 28, side * 28, 3))
    tints = np.array([colormaps["tab10"](label)[:3] for label in range(10)])
    for image, label, row, column in zip(X, y, rows, columns, strict=True):
        ink = image[..., None]
        shown = 1 - ink * (1 - 0.8 * tints[label % 10])
        canvas[28 * row : 28 * row + 28, 28 * column : 28 * column + 28] = shown
    ax.imshow(canvas, extent=(0, side, side, 0), interpolation="antialiased")
    for row, column in zip(rows[predicted != y], columns[predicted != y], strict=True):
        ax.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=WRONG, linewidth=1.1))
    for label, name in enumerate(classes):
        member = np.stack([columns, rows], axis=1)[y == label] + 0.5
        near = ((member[:, None] - member[None]) ** 2).sum(axis=2) < 16
        center = member[near.sum(axis=1).argmax()]  # where the class is densest
        ax.text(*center, name, fontsize=10, fontweight="bold", ha="center", va="center", color=0.6 * tints[label % 10],
                path_effects=[withStroke(linewidth=3, foreground="white")])  # fmt: skip
    ax.axis("off")


def top(results, images, features, probabilities):
    """The garments on a t-SNE map of the CNN's features, and each model's test accuracy, a dot for each seed."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    n = NUM_THUMBNAILS
    reduced = PCA(50, random_state=0).fit_transform(features[:n])
    points = TSNE(perplexity=30, random_state=0).fit_transform(reduced)
    y, predicted = images.test.y[:n], probabilities[:n].argmax(axis=1)
    content = f"{n:,} test images by the CNN's features (t-SNE), and each model's accuracy"
    fig, axes = figure(content, 9, 5.9, ncols=2, width_ratios=(2.3, 1))
    thumbnails_map(axes[0, 0], images.test.X[:n], points, y, predicted, images.classes, GRID)
    axes[0, 0].set_title(f"framed: the {np.sum(predicted != y)} wrong predictions of the hybrid", fontsize=9, color=WRONG)
    ax, rows = axes[0, 1], models(results)
    rows = {name: row for name, row in rows.items() if row[0] != MODEL_COLORS["other"]}
    for row, (name, (color, metrics)) in enumerate(sorted(rows.items(), key=lambda item: -item[1][1]["test_accuracy"])):
        values = 100 * by_seed(metrics, "test_accuracy")
        ax.plot(values, np.full(len(values), row), "o", color=color, alpha=0.6, markersize=6, markeredgewidth=0)
        lines = name.replace(", ", ",\n").replace("MLP 7", "MLP\n7")
        text = f"{lines}\n{values.mean():.2f} %"
        ax.text(0, row - 0.13, text, fontsize=10, va="bottom", transform=ax.get_yaxis_transform())
    ax.set(xlabel="test accuracy (%), a dot per seed", yticks=[], ylim=(len(rows) - 0.7, -0.85))
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x", alpha=0.25)
    ax.margins(x=0.1)
    return fig


def all_figures(results, run, dataset=None, data_dir=None):
    """{file name: Figure}, for the files in results/figures."""
    images = data.load(dataset, data_dir, offline_fallback=False)
    path = run / "features.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            features = file["X_test"]
        probabilities = np.load(run / "test_probabilities.npy", allow_pickle=False)
    except (OSError, ValueError, KeyError) as error:
        reason = getattr(error, "strerror", None) or error
        raise files.FileError(f"--run {run}: cannot be read ({reason}); name a run of hybrid_train.py") from None
    dots, seconds = f"{images.name}, a dot for each seed", "time of a run (seconds), on 2 cores"
    return {
        "top.png": top(results, images, features, probabilities),
        "architecture.png": architecture(tables.metrics_of(results, f"{tables.FROZEN}/seed_0")),
        "accuracy_vs_parameters.png": accuracy_against(results, "parameters", "number of parameters",
                                                       f"Test accuracy and number of parameters\n{dots}"),
        "accuracy_vs_seconds.png": accuracy_against(results, "seconds", seconds, f"Test accuracy and time of a run\n{dots}"),
        "recall.png": recall(results, images),
        "augmentation.png": augmentation(images),
        "gradient_check.png": gradient_check(),
    }  # fmt: skip


def main(argv=None):
    parser = argparse.ArgumentParser("python -m studies.figures", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--run", type=Path, required=True, help="run of hybrid_train.py, with features.npz")
    parser.add_argument("--output-dir", type=Path, default=tables.ROOT / "results/figures", help="default: %(default)s")
    given = parser.parse_args(argv)
    given.output_dir.mkdir(parents=True, exist_ok=True)
    for name, drawn in all_figures(tables.ROOT / "results", given.run).items():
        with files.atomic_write(given.output_dir / name) as temporary:
            drawn.savefig(temporary, format="png")
        print(given.output_dir / name)


if __name__ == "__main__":
    entry.cli(main)
