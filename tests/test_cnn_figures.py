"""Figures of the CNN show its numbers: filters, activation maps, saliency, embeddings, confusable classes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import crowded_texts
from test_plots import NAMES, TITLE, real_probabilities, texts

import cnn_feature_extraction as cnn
import data
import plots
from support import settings
from torch_cnn import backbone, figures

CLASSES = tuple("abc")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return backbone.build(settings.load(cnn, channels=(4, 6), pool_after=(1, 2))).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def test_hires_cam_is_the_gradient_times_the_maps(model, images):
    labels = torch.tensor([1, 2, 3])
    heat = figures.hires_cam(model, images, labels, min_size=7)
    module = [module for module in model.backbone if isinstance(module, tuple(backbone.ACTIVATIONS.values()))][1]
    seen = []
    hook = module.register_forward_hook(lambda *arguments: seen.append(arguments[2]) or arguments[2].retain_grad())
    model(images).gather(1, labels[:, None]).sum().backward()
    hook.remove()
    expected = (seen[0] * seen[0].grad).sum(dim=1, keepdim=True).clamp(min=0)  # (N, 1, 7, 7)
    expected = torch.nn.functional.interpolate(expected, size=(28, 28), mode="bilinear")[:, 0]
    assert heat.shape == (3, 28, 28)
    assert heat.max() > 0
    assert torch.allclose(heat, expected, atol=1e-6)


def test_activation_maps_are_those_of_each_convolution(model, images):
    maps = figures.activation_maps(model, images)
    assert {name: values.shape for name, values in maps.items()} == {"convolution 1": (3, 4, 14, 14),
                                                                     "convolution 2": (3, 6, 7, 7)}  # fmt: skip
    assert min(values.min() for values in maps.values()) == 0  # after ReLU


def test_feature_maps_shows_the_strongest_ones():
    maps = np.zeros((1, 12, 2, 2))
    maps[0, :, 0, 0] = np.arange(12)
    figure = figures.feature_maps(np.zeros((1, 28, 28)), {"convolution 1": maps}, ["Bag"], "title")
    assert figure.axes[1].get_title() == "convolution 1\n9 of 12, 2 x 2\n0 to 11"
    shown = figure.axes[1].images[0].get_array()
    assert shown[::3, ::3].filled(-1).ravel().tolist() == [11, 10, 9, 8, 7, 6, 5, 4, 3]


def test_a_class_without_test_images(digits):
    test = data.Split(**{name: array[digits.test.y != 1] for name, array in vars(digits.test).items()})
    images = replace(digits, classes=("Shirt", "Bag", *map(str, range(8))), test=test)
    model = backbone.build(settings.load(cnn, channels=(4, 6), pool_after=(1, 2))).eval()
    features = {"X_test": np.random.default_rng(0).random((len(images.test.y), 5), dtype=np.float32)}
    logits = np.random.default_rng(1).random((len(images.test.y), 10), dtype=np.float32)
    drawn = figures.cnn_figures(model, images, features, logits, "title")
    shown = [ax.get_ylabel() or ax.get_title() for ax in drawn["feature_maps.png"].axes]
    assert any("Shirt" in text for text in shown)
    assert not any("Bag" in text for text in shown)


def test_features_without_two_dimensions_have_no_embedding():
    assert figures.embed_2d(np.ones((20, 3))) == {}
    points = figures.embed_2d(np.random.default_rng(0).standard_normal((60, 5)))
    assert [values.shape for values in points.values()] == [(60, 2), (60, 2)]


def test_confusable_pairs_are_counted_both_ways():
    y, predicted = np.array([0, 0, 1, 1, 2, 2]), np.array([1, 1, 0, 1, 0, 2])
    shown = texts(figures.confusable(np.zeros((6, 28, 28)), y, np.eye(3)[predicted], CLASSES, "title", most=2))
    assert shown == ["a / b\n3 images, 75% of all mistakes\na as b: 2\nb as a: 1",
                     "a / c\n1 images, 25% of all mistakes\na as c: 0\nc as a: 1"]  # fmt: skip


def test_saliency_is_opaque_where_the_evidence_is_strong():
    heat = np.zeros((1, 28, 28))
    heat[0, 3, 4], heat[0, 5, 6] = 2, 1
    figure = figures.saliency(np.zeros((1, 28, 28)), heat, np.array([0]), np.array([1]), CLASSES, "title")
    lower = next(ax for ax in figure.axes if len(ax.images) == 2)
    alpha = lower.images[1].get_alpha()
    assert (alpha[3, 4], alpha[5, 6], alpha.sum()) == (1, 0.5, 1.5)
    assert lower.get_title() == "✗ b"
    assert lower.title.get_color() == plots.WRONG


@pytest.mark.parametrize("name", ["filters", "feature_maps", "embeddings", "saliency", "confusable"])
def test_a_figure_of_the_cnn_is_readable(name):
    y, probabilities = real_probabilities()
    rng = np.random.default_rng(0)
    X, predicted = rng.random((len(y), 28, 28)), probabilities.argmax(axis=1)
    maps = {f"convolution {i}": rng.random((3, 24, size, size)) for i, size in enumerate((28, 14, 7, 7, 3), 1)}
    points = {"PCA, 45% of the variance": rng.random((len(y), 2)), "t-SNE": rng.random((len(y), 2))}
    figure = {
        "filters": lambda: figures.filters(rng.standard_normal((24, 3, 3)), TITLE),
        "feature_maps": lambda: figures.feature_maps(X[:3], maps, ["Shirt", "Sneaker", "Bag"], TITLE),
        "embeddings": lambda: figures.embeddings(points, y, NAMES, TITLE),
        "saliency": lambda: figures.saliency(X[:20], X[:20], y[:20], predicted[:20], NAMES, TITLE),
        "confusable": lambda: figures.confusable(X, y, probabilities, NAMES, TITLE),
    }[name]()
    assert figure.get_size_inches()[0] <= 9
    assert figure.dpi >= 160
    assert crowded_texts(figure) == []
