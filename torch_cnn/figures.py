"""Figures of a CNN: filters, activation maps, features in two dimensions, saliency, confusable classes."""

if __name__ == "__main__":
    raise SystemExit("torch_cnn/figures.py is a module, not a script: cnn_feature_extraction.py uses it")

import itertools

import numpy as np
import torch
from torch.nn import functional as F

from plots import GREY, RIGHT, WRONG, figure, image_grid, mark
from support.figure_labels import sampled_classes, short
from torch_cnn.backbone import ACTIVATIONS, to_channels_last


def hires_cam(model, X, labels, min_size=7):
    """Where in the images X (N, 1, 28, 28) the network sees the classes `labels` (N,): (N, 28, 28), 0 or more.

    HiResCAM (Draelos and Carin 2020, arXiv:2011.08891): maps times gradients of the class's logit, summed over the
    channels of the last convolution whose maps are at least `min_size` pixels wide. Grad-CAM (Selvaraju et al. 2017)
    averages the gradients over each map, which suits networks with global average pooling; this one flattens its maps.
    """
    model.eval()
    x, maps, shown = to_channels_last((X - model.mean) / model.std), None, tuple(ACTIVATIONS.values())
    for module in model.backbone:
        x = module(x)
        if isinstance(module, shown) and x.ndim == 4 and (maps is None or min(x.shape[2:]) >= min_size):
            maps = x  # (N, channels, side, side)
    (gradient,) = torch.autograd.grad(model.classifier(x).gather(1, labels[:, None]).sum(), maps)
    heat = F.relu((gradient * maps).sum(dim=1, keepdim=True))
    return F.interpolate(heat, size=X.shape[2:], mode="bilinear")[:, 0].detach()


@torch.no_grad()
def activation_maps(model, X):
    """{"convolution 1": (N, channels, side, side), ...}: the output of each stage for the images X (N, 1, 28, 28)."""
    model.eval()
    x, maps, shown = to_channels_last((X - model.mean) / model.std), {}, tuple(ACTIVATIONS.values())
    for module in model.backbone:
        x = module(x)
        if isinstance(module, shown) and x.ndim == 4:
            maps[f"convolution {len(maps) + 1}"] = x.cpu().numpy()
    return maps


def embed_2d(features, seed=0):
    """The features (N, F) in two dimensions: {"PCA, ...": (N, 2), "t-SNE ...": (N, 2)}, or {} where they have no two."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(features) < 8 or np.count_nonzero(np.ptp(features, axis=0)) < 2:  # a network of dead neurons, say
        return {}
    pca = PCA(min(50, *features.shape), random_state=seed)
    reduced = pca.fit_transform(features)
    name = f"PCA, {pca.explained_variance_ratio_[:2].sum():.0%} of the variance"
    tsne = TSNE(perplexity=min(30, len(features) // 4), random_state=seed).fit_transform(reduced)
    return {name: reduced[:, :2], "t-SNE (distances between groups mean nothing)": tsne}


def filters(W, title):
    """The first convolution's filters, W (filters, height, width)."""
    rows = -(-len(W) // 16)
    columns = -(-len(W) // rows)
    fig, axes = figure(f"Filters of the first convolution\n{title}", min(9, 0.6 * max(columns, 12)), 0.6 * rows + 1.1)
    limit = np.abs(W).max()
    shown = image_grid(axes[0, 0], W, columns, cmap="RdBu_r", vmin=-limit, vmax=limit)
    bar = fig.colorbar(shown, ax=axes, location="bottom", shrink=0.4, aspect=40, pad=0.03)
    bar.ax.tick_params(labelsize=9)
    bar.set_label("weight", fontsize=9)
    return fig


def feature_maps(X, maps, names, title, most=9):
    """Images X (N, 28, 28) and, in a column for each stage, their strongest maps: {stage: (N, channels, side, side)}.

    The strongest maps have the highest mean activation.
    """
    fig, axes = figure(f"Strongest activation maps of each convolution\n{title}", 9, 9 / (1 + len(maps)) * len(X) + 1.6,
                       nrows=len(X), ncols=1 + len(maps))  # fmt: skip
    for i, (row, image) in enumerate(zip(axes, X, strict=True)):
        image_grid(row[0], image[None], 1, cmap="gray_r", vmin=0, vmax=1)
        row[0].set_title(names[i], fontsize=8)
        for ax, (stage, values) in zip(row[1:], maps.items(), strict=True):
            strongest = np.argsort(-values[i].mean(axis=(1, 2)), kind="stable")[:most]
            chosen = values[i, strongest]
            highest = max(chosen.max(), 1e-12)
            image_grid(ax, chosen, 3, cmap="viridis", vmin=0, vmax=highest)
            size = f"{len(chosen)} of {values.shape[1]}, {values.shape[2]} x {values.shape[3]}"
            ax.set_title(f"{stage}\n{size}\n0 to {highest:.2g}" if not i else f"0 to {highest:.2g}", fontsize=7.5)
    fig.supxlabel("color: activation, from 0 (dark) to the highest value named above the maps", fontsize=9, color=GREY)
    return fig


def embeddings(points, y, classes, title):
    """Points by class, a panel for each of {name: (N, 2)}; y (N,). Of more than 40 classes, only the colors are shown."""
    from matplotlib import colormaps

    fig, axes = figure(f"Features of {len(y):,} test images in two dimensions\n{title}", 9, 5.4, ncols=len(points))
    for ax, (name, values) in zip(axes[0], points.items(), strict=True):
        for label, class_name in enumerate(classes):
            color = colormaps["tab10"](label) if len(classes) <= 10 else colormaps["turbo"](label / (len(classes) - 1))
            ax.plot(*values[y == label].T, "o", markersize=2.5, alpha=0.6, color=color, label=short(class_name))
        ax.set_title(name, fontsize=9)
        ax.set(xticks=[], yticks=[])
    columns = max(1, min(5 if len(classes) <= 10 else 10, 80 // max(len(short(name)) + 4 for name in classes)))
    options = {"frameon": False, "fontsize": 9, "markerscale": 3, "ncols": columns, "loc": "outside lower center"}
    if len(classes) <= 40:
        fig.legend(*ax.get_legend_handles_labels(), **options)
    return fig


def saliency(X, heat, y, predicted, classes, title):
    """Images X (N, 28, 28) in rows of 10, and over each the evidence for the predicted class, heat (N, 28, 28) >= 0."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    rows, classes = -(-len(X) // 10), [short(name, 12) for name in classes]
    size = (9, 2.4 * rows + 1.3)
    fig, axes = figure(f"Evidence for the predicted class (HiResCAM)\n{title}", *size, nrows=2 * rows, ncols=10)
    fig.supxlabel("above: the image and its class;  below: the predicted class and its evidence", fontsize=9, color=GREY)
    for ax in axes.flat:
        ax.axis("off")
    for i in range(len(X)):
        upper, lower = axes[i // 10 * 2, i % 10], axes[i // 10 * 2 + 1, i % 10]
        upper.imshow(X[i], cmap="gray_r", vmin=0, vmax=1)
        upper.set_title(classes[y[i]], fontsize=7.5)
        relative = heat[i] / max(heat[i].max(), 1e-12)
        lower.imshow(X[i], cmap="gray_r", vmin=0, vmax=1)
        lower.imshow(relative, cmap="plasma", alpha=relative, vmin=0, vmax=1)  # opaque where the evidence is strong
        lower.set_title(f"{mark(predicted[i] == y[i])} {classes[predicted[i]]}", fontsize=7.5,
                        color=RIGHT if predicted[i] == y[i] else WRONG)  # fmt: skip
    scale = ScalarMappable(Normalize(0, 1), "plasma")
    bar = fig.colorbar(scale, ax=axes, location="bottom", shrink=0.4, aspect=40, pad=0.02)
    bar.ax.tick_params(labelsize=9)
    bar.set_label("evidence as a fraction of the image's highest", fontsize=9)
    return fig


def confusable(X, y, probabilities, classes, title, most=6):
    """The pairs of classes confused most often, with the most confident such mistakes.

    X (N, 28, 28), y (N,), probabilities (N, classes).
    """
    predicted, names, classes = probabilities.argmax(axis=1), classes, [short(name, 16) for name in classes]
    pairs = {}
    for i in np.flatnonzero(predicted != y):
        pairs.setdefault((int(min(y[i], predicted[i])), int(max(y[i], predicted[i]))), []).append(i)
    without = ((pair, []) for pair in itertools.combinations(range(len(classes)), 2) if pair not in pairs)
    pairs |= itertools.islice(without, max(0, most - len(pairs)))
    order = sorted(pairs, key=lambda pair: (-len(pairs[pair]), pair))[:most]
    pairs = {pair: np.array(pairs[pair], int) for pair in order}
    fig, axes = figure(f"Classes confused most often\n{title}", 9, 1.15 * len(pairs) + 1, nrows=len(pairs), ncols=8,
                       width_ratios=[3] + 7 * [1])  # fmt: skip
    wrong = max(1, np.sum(predicted != y))
    for row, ((a, b), indices) in zip(axes, pairs.items(), strict=True):
        for ax in row:
            ax.axis("off")
        first = np.sum(y[indices] == a)
        lines = (f"{classes[a]} / {classes[b]}", f"{len(indices)} images, {len(indices) / wrong:.0%} of all mistakes",
                 f"{classes[a]} as {classes[b]}: {first}",
                 f"{classes[b]} as {classes[a]}: {len(indices) - first}")  # fmt: skip
        row[0].text(0, 0.5, "\n".join(lines), va="center", fontsize=8, transform=row[0].transAxes)
        most_confident = indices[np.argsort(-probabilities[indices].max(axis=1), kind="stable")]
        for ax, i in zip(row[1:], most_confident, strict=False):
            ax.imshow(X[i], cmap="gray_r", vmin=0, vmax=1)
            ax.set_title(f"is {short(names[y[i]], 11)}", fontsize=7.5)
    return fig


def cnn_figures(model, images, features, test_logits, title):
    """{file name: Figure}. features: of cached_features; test_logits (N, classes), an array."""
    test, classes, device, shown = images.test, images.classes, model.mean.device, images.as_shown(images.test.X)
    probabilities = torch.from_numpy(test_logits).float().softmax(1).cpu().numpy()
    labels = sampled_classes(len(classes), most=10 if len(classes) < 20 else 20)
    of_class = [np.flatnonzero(test.y == label)[: 20 // len(labels)] for label in labels]
    two_each = [int(indices[nth]) for nth in (0, 1) for indices in of_class if len(indices) > nth]
    wanted = [classes.index(name) for name in ("Shirt", "Sneaker", "Bag") if name in classes]
    few = [int(np.flatnonzero(test.y == label)[0]) for label in wanted if label in test.y] or two_each[:3]
    predicted = probabilities.argmax(axis=1)
    heat = hires_cam(model, torch.from_numpy(test.X[two_each])[:, None].to(device),
                     torch.from_numpy(predicted[two_each]).to(device))  # fmt: skip
    some = np.arange(min(2_000, len(test.y)))
    points = embed_2d(features["X_test"][some])
    maps = activation_maps(model, torch.from_numpy(test.X[few])[:, None].to(device))
    figures = {
        "filters.png": filters(model.backbone[0].weight[:, 0].detach().cpu().numpy(), title),
        "feature_maps.png": feature_maps(shown[few], maps, [short(classes[label], 16) for label in test.y[few]], title),
        "saliency.png": saliency(shown[two_each], heat.cpu().numpy(), test.y[two_each], predicted[two_each], classes,
                                 title),
        "confusable.png": confusable(shown, test.y, probabilities, classes, title),
    }  # fmt: skip
    return figures | ({"features.png": embeddings(points, test.y[some], classes, title)} if points else {})
