"""The figures of the READMEs that are of several runs, made from the files of results/ and models/.

python -m studies.figures
"""

import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

import cnn_feature_extraction as cnn
import data
import hybrid_train
import plots
import run
from studies import as_made, finished, output, published, tables

NUM_THUMBNAILS, SIDE = 1_500, 42  # test images on the map of top.png, which has SIDE x SIDE places


def accuracy_vs_parameters(runs, networks):
    """Mean test accuracy against the number of parameters: our runs, and the projects' networks as made."""
    title = "Test accuracy and number of parameters, Fashion-MNIST, means over seeds"
    fig, axes = plots.figure(title, 9, 5.6)
    ax, markers = axes[0, 0], iter("osD^v")
    for result in runs:
        x, y = result.metrics["parameters"], 100 * result.metrics["test_accuracy"]
        color = plots.color_of(result.metrics["model"])
        ax.plot(x, y, next(markers), color=color, markersize=8, label=result.metrics["model"])
    kinds = {"mlp": ("x", "projects' MLPs as made"), "cnn": ("+", "projects' CNNs and hybrids as made")}
    for kind, (marker, label) in kinds.items():
        found = [n for n in networks.values() if (n["script"] == "mlp") == (kind == "mlp")]
        x, y = [n["parameters"] for n in found], [100 * n["test_accuracy"] for n in found]
        ax.plot(x, y, marker, color=plots.GREY, label=label)
    ax.set(xlabel="number of parameters", ylabel="test accuracy (%)", xscale="log")
    ax.grid(alpha=0.25)
    fig.legend(*ax.get_legend_handles_labels(), ncols=2, **plots.LEGEND)
    return fig


def thumbnails(ax, X, points, y, predicted, classes):
    """The images X (N, 28, 28) on a grid near their points (N, 2), with class names and framed mistakes."""
    unit = (points - points.min(axis=0)) / np.ptp(points, axis=0) * (SIDE - 1)
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2)  # (column, row)
    cost = ((unit[:, None] - grid[None]) ** 2).sum(axis=2)
    columns, rows = grid[linear_sum_assignment(cost)[1]].T  # the least total squared distance
    rows, canvas = SIDE - 1 - rows, np.ones((SIDE * 28, SIDE * 28))
    for image, row, column in zip(X, rows, columns, strict=True):
        canvas[28 * row : 28 * row + 28, 28 * column : 28 * column + 28] = 1 - image
    ax.imshow(canvas, cmap="gray", extent=(0, SIDE, SIDE, 0))
    for row, column in zip(rows[predicted != y], columns[predicted != y], strict=True):
        ax.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=plots.WRONG, linewidth=1.1))
    style = {"fontweight": "bold", "ha": "center"}
    style["path_effects"] = [withStroke(linewidth=3, foreground="white")]
    for label, name in enumerate(classes):
        member = np.stack([columns, rows], axis=1)[y == label] + 0.5
        near = ((member[:, None] - member[None]) ** 2).sum(axis=2) < 16
        ax.text(*member[near.sum(axis=1).argmax()], name, **style)  # where the class is densest
    ax.axis("off")


def top(images, features, predicted, runs):
    """Test images on a t-SNE map of the CNN's features, and each model's accuracy, a dot for each seed."""
    n = NUM_THUMBNAILS
    reduced = PCA(50, random_state=0).fit_transform(features[:n])
    points = TSNE(perplexity=30, random_state=0).fit_transform(reduced)
    title = f"{n:,} test images by the CNN's features (t-SNE), mistakes framed; accuracy of each model"
    fig, axes = plots.figure(title, 11, 5.9, ncols=2, width_ratios=(2.3, 1))
    thumbnails(axes[0, 0], images.test.X[:n], points, images.test.y[:n], predicted[:n], images.classes)
    names = zip(tables.MODELS.values(), runs, strict=True)
    labels = [f"{name}\n{tables.networks(result.metrics)}" for name, result in names]
    values = [100 * np.array([*result.accuracies.values()]) for result in runs]
    colors = [plots.color_of(result.metrics["model"]) for result in runs]
    output.dots(axes[0, 1], dict(zip(labels, values, strict=True)), colors, "{:.2f}")
    axes[0, 1].set_xlabel("test accuracy (%), a dot for each seed")
    return fig


def main():
    images, results = data.load(dataset="fashion-mnist"), run.ROOT / "results"
    runs = finished.read_runs(results / folder for folder in tables.MODELS)
    hybrid, _ = hybrid_train.restore(run.ROOT / "models/hybrid.safetensors")
    features = cnn.features_of(hybrid, cnn.as_tensor(hybrid, images.test.X))
    predicted = hybrid.classifier(features).argmax(dim=1).numpy()
    output.save_figure(results / "figures/top.png", top(images, features.numpy(), predicted, runs))
    figure = accuracy_vs_parameters(runs, published.results_of("as_made"))
    output.save_figure(results / "figures/accuracy_vs_parameters.png", figure)
    output.save_figure(results / "as_made/claims.png", published.draw_claims())
    for number, network in enumerate(as_made.CHAINS, 1):
        output.save_figure(results / f"as_made/why_{number}.png", published.draw_why(network))


if __name__ == "__main__":
    run.cli(main)
