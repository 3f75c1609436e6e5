"""Figures stay readable for any number of classes, any names, and images that are not square."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import crowded_texts

import numpy_nn.figures
import plots
from support import figure_labels
from torch_cnn import backbone, figures

ODD_NAMES = ("Cassava bacterial blight disease", "$5 bill", "_hidden", "$10 bill $")
TITLE = plots.run_title("CNN 24-48-96-96-192 + NumPy MLP 3840-256-128-3", "costs $5 or $10", 0)


def predictions(num_classes, per_class=8):
    """(X (N, 40, 32), y, probabilities, class names); a fifth of the predictions is wrong."""
    rng, n = np.random.default_rng(0), per_class * num_classes
    y = np.arange(n) % num_classes
    predicted = np.where(rng.random(n) < 0.8, y, rng.integers(num_classes, size=n))
    probabilities = 0.1 / num_classes + 0.9 * np.eye(num_classes)[predicted]
    names = tuple(ODD_NAMES[i] if i < len(ODD_NAMES) else f"class {i}" for i in range(num_classes))
    return rng.random((n, 40, 32)), y, probabilities, names


@pytest.mark.parametrize("num_classes", [2, 3, 26, 100])
def test_no_text_is_cut_off_or_overlaps(num_classes):
    X, y, probabilities, names = predictions(num_classes)
    predicted, few = probabilities.argmax(axis=1), slice(0, min(20, 2 * num_classes))
    points = {"PCA": np.random.default_rng(0).random((len(y), 2))}
    drawn = {
        "confusion": plots.confusion_matrix(y, predicted, names, TITLE),
        "report": plots.classification_report(y, predicted, names, TITLE),
        "samples": plots.samples(X, y, probabilities, names, TITLE),
        "mistakes": plots.mistakes(X, y, probabilities, names, TITLE),
        "recall": plots.recall_comparison(y, {"CNN": predicted, "CNN features + NumPy MLP": y}, names, TITLE),
        "embeddings": figures.embeddings(points, y, names, TITLE),
        "confusable": figures.confusable(X, y, probabilities, names, TITLE),
        "saliency": figures.saliency(X[few], X[few], y[few], predicted[few], names, TITLE),
    }
    assert {name: crowded_texts(figure) for name, figure in drawn.items()} == {name: [] for name in drawn}


def test_of_many_classes_the_worst_are_in_the_tables_and_some_in_the_samples():
    X, y, probabilities, names = predictions(100, per_class=2)
    probabilities[y == 57] = np.eye(100)[3]
    report = plots.classification_report(y, probabilities.argmax(axis=1), names, TITLE)
    rows = [label.get_text() for label in report.axes[0].get_yticklabels()]
    assert len(rows) == figure_labels.MOST_ROWS + 1
    assert "class 57  (2)" in rows
    assert rows[-1] == "mean of 100 classes  (200)"
    assert report.get_suptitle().startswith("Precision, recall and F1 of the 40 of 100 classes with the lowest F1\n")
    samples = plots.samples(X, y, probabilities, names, TITLE)
    assert samples.get_suptitle().startswith("The first test image of 60 of 100 classes\n")


def test_a_class_without_test_images_has_no_recall():
    y = np.array([0, 0, 2, 2])
    figure = plots.recall_comparison(y, {"CNN": y}, ("a", "b", "c"), "title")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "c"]


def test_images_keep_their_proportions():
    X, y, probabilities, names = predictions(3)
    for image in plots.mistakes(X, y, probabilities, names, "title").axes[0].images:
        left, right, bottom, top = image.get_extent()
        assert (right - left) / (bottom - top) == pytest.approx(32 / 40)
    assert figure_labels.fit((10, 20), 1, 2, 4) == (1, 5, 5, 3)


def test_large_first_layer_weights_are_shown_as_far_as_they_fit():
    figure = numpy_nn.figures.first_layer(np.zeros((200 * 300, 64), np.float32), (200, 300), "title")
    assert figure.get_suptitle() == "Weights of the first layer, 28 of 64 neurons\ntitle"
    assert figure.axes[0].get_position().x1 <= 1
    assert figure.get_size_inches()[1] * figure.dpi < 2000


def test_names_in_figures():
    assert figure_labels.short("a" * 30) == "a" * 12 + "…" + "a" * 11
    assert figure_labels.short("Cassava bacterial blight disease") == "Cassava bact…ght disease"
    assert figure_labels.short("$5 to $10") == r"\$5 to \$10"
    assert figure_labels.short("_x") == " _x"
    assert figure_labels.short("") == ""


@pytest.mark.parametrize("num_classes", [2, 30])
def test_all_figures_of_a_cnn(num_classes, tmp_path):
    """Also with classes that have one test image."""
    X, y, _, names = predictions(num_classes, per_class=4 if num_classes == 2 else 1)
    torch.manual_seed(0)
    model = backbone.CNN((4, 6), (1, 2), classes=num_classes, image_shape=(40, 32)).eval()
    test = SimpleNamespace(X=X.astype(np.float32), y=y)
    images = SimpleNamespace(test=test, classes=names, as_shown=lambda X: X)
    features = {"X_test": np.random.default_rng(0).standard_normal((len(y), 7))}
    drawn = figures.cnn_figures(model, images, features, np.zeros((len(y), num_classes), np.float32), TITLE)
    assert set(drawn) == {"filters.png", "feature_maps.png", "saliency.png", "confusable.png", "features.png"}
    drawn["feature_maps.png"].savefig(tmp_path / "maps.png")


def test_maps_and_summary_of_images_that_are_not_square():
    model = backbone.CNN((4, 6), (1, 2), classes=3, image_shape=(40, 33))
    assert backbone.feature_map_sizes((4, 6), (1, 2), image_shape=(40, 33)) == [(20, 16), (10, 8)]
    assert [row[1] for row in backbone.layer_summary(model)] == [(4, 20, 16), (480,), (3,)]
    with pytest.raises(ValueError, match="maps of convolution 2 would be 2 x 0 pixels"):
        backbone.feature_map_sizes((4, 6), (1, 2), image_shape=(8, 3))
