"""Figures of what a CNN has learnt and where it errs: filters, maps, features in a plane, saliency, doubtful labels."""

import numpy as np
import torch
from torch.nn import functional as F

import plots
from torch_cnn.backbone import ACTIVATIONS, to_channels_last


def hires_cam(model, X, labels, min_size=7):
    """Where in the images X (N, 1, 28, 28) the network sees the classes `labels` (N,): (N, 28, 28), 0 or more.

    HiResCAM (Draelos and Carin 2020, arXiv:2011.08891), at the last convolution whose maps are at least `min_size` pixels wide:
    every pixel of its maps counts by its own gradient of the class's logit. Grad-CAM's mean of these over a map (Selvaraju
    et al. 2017) suits networks that average their maps at the end; this one flattens them, and what speaks for a class in
    one place may speak against it in another.
    """
    model.eval()
    x, maps, shown = to_channels_last((X - model.mean) / model.std), None, tuple(ACTIVATIONS.values())
    for module in model.backbone:
        x = module(x)
        if isinstance(module, shown) and x.ndim == 4 and (maps is None or x.shape[2] >= min_size):
            maps = x  # (N, channels, side, side)
    (gradient,) = torch.autograd.grad(model.classifier(x).gather(1, labels[:, None]).sum(), maps)
    heat = F.relu((gradient * maps).sum(dim=1, keepdim=True))
    return F.interpolate(heat, size=X.shape[2:], mode="bilinear")[:, 0].detach()


@torch.no_grad()
def activation_maps(model, X):
    """{"convolution 1": (N, channels, side, side), ...}: what each stage puts out for the images X (N, 1, 28, 28)."""
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

    if np.count_nonzero(np.ptp(features, axis=0)) < 2:  # a network of dead neurons, say
        return {}
    pca = PCA(min(50, *features.shape), random_state=seed)
    reduced = pca.fit_transform(features)
    name = f"PCA, {pca.explained_variance_ratio_[:2].sum():.0%} of the variance"
    neighbours = TSNE(perplexity=min(30, len(features) // 4), random_state=seed).fit_transform(reduced)
    return {name: reduced[:, :2], "t-SNE (distances between groups mean nothing)": neighbours}


def cnn_figures(model, images, features, test_logits, title):
    """{file name: Figure}. features: of cnn_feature_extraction.cached_features; test_logits (N, classes), a tensor."""
    test, train, classes, device = images.test, images.train, images.classes, model.mean.device
    p_test, p_train = (logits.float().softmax(1).cpu().numpy() for logits in (
        torch.from_numpy(test_logits), model.classifier(torch.from_numpy(features["X_train"]).to(device)).detach()))  # fmt: skip
    first = [int(np.flatnonzero(test.y == label)[0]) for label in range(len(classes))]  # an image of each class
    second = [int(np.flatnonzero(test.y == label)[1]) for label in range(len(classes))]
    few, ten = first[:: max(1, len(classes) // 3)][:3], first + second
    predicted = p_test.argmax(axis=1)
    heat = hires_cam(model, torch.from_numpy(test.X[ten])[:, None].to(device), torch.from_numpy(predicted[ten]).to(device))
    some = np.arange(min(2_000, len(test.y)))
    flat = embed_2d(features["X_test"][some])
    shown = f"{title}: the features of {len(some):,} test images"
    return {
        "filters.png": plots.filters(model.backbone[0].weight[:, 0].detach().cpu().numpy(), f"{title}: the first filters"),
        "feature_maps.png": plots.feature_maps(
            test.X[few], activation_maps(model, torch.from_numpy(test.X[few])[:, None].to(device)),
            [classes[label] for label in test.y[few]], title),
        **({"features.png": plots.embeddings(flat, test.y[some], classes, shown)} if flat else {}),
        "saliency.png": plots.saliency(test.X[ten], heat.cpu().numpy(), test.y[ten], predicted[ten], classes, title),
        "confusable.png": plots.confusable(test.X, test.y, p_test, classes, f"{title}: classes taken for each other"),
        "label_errors.png": plots.mistakes(train.X, train.y, p_train, classes,
                                           f"{title}: training images whose label is most probably wrong"),
    }  # fmt: skip
