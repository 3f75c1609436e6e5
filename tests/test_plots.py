"""Figures show the numbers they are given, and no text overlaps another or the figure's edge."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, crowded_texts

import plots
import run

CLASSES = tuple("abc")
Y = np.array([0, 0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 0, 1, 1, 1, 0])
PROBABILITIES = np.full((7, 3), 0.1)
PROBABILITIES[np.arange(7), PREDICTED] = 0.8
IMAGES = np.zeros((7, 28, 28))
ODD_NAMES = ("$x_1$", "_hidden", "sixty characters: " + 6 * "a word ", "αβγ Δx² €", "$5 bill")
TITLE = plots.run_title("CNN 24-48-96-96-192 + NumPy MLP 1728-256-128-10", "costs $5 or $10", 0)


def texts(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts if text.get_text()]


def labels_of(ticks):
    return [label.get_text() for label in ticks]


def history(epochs, start=1.0, prefixes=("train", "train_eval", "val")):
    values = start / np.arange(1, epochs + 1)
    rows = {"epoch": np.arange(1, epochs + 1)}
    for prefix in prefixes:
        rows |= {f"{prefix}_loss": values, f"{prefix}_accuracy": 1 - values / 2}
    return rows


def predictions(num_classes, per_class=6):
    """(images (N, 40, 32), y, probabilities, class names); about a fifth of the predictions is wrong."""
    rng = np.random.default_rng(0)
    y = np.arange(per_class * num_classes) % num_classes
    predicted = np.where(rng.random(len(y)) < 0.8, y, rng.integers(num_classes, size=len(y)))
    logits = rng.standard_normal((len(y), num_classes)) + 7 * np.eye(num_classes)[predicted]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    names = [ODD_NAMES[i] if i < len(ODD_NAMES) else f"class {i}" for i in range(num_classes)]
    return rng.random((len(y), 40, 32)), y, probabilities, names


@pytest.mark.parametrize("num_classes", [2, 26])
def test_no_text_is_cut_off_or_overlaps(num_classes):
    X, y, p, names = predictions(num_classes)
    predicted, shown = p.argmax(axis=1), plots.examples(y, 20)
    bins = {when: run.calibration(y, p) for when in ("before", "after")}
    drawn = plots.evaluation(X, y, p, names, TITLE, bins, p)
    report = drawn.pop("classification_report.txt").split()
    assert report[report.index("accuracy") + 1] == f"{np.mean(predicted == y):.4f}"
    assert len(drawn) == 6
    models = {"CNN": predicted, "CNN features + NumPy MLP": y}
    drawn["recall"] = plots.recall_comparison(y, models, names, TITLE)
    drawn["saliency"] = plots.saliency(X[shown], X[shown], y[shown], predicted[shown], names, TITLE)
    drawn["confusable"] = plots.confusable(X, y, p, names, TITLE)
    drawn["embeddings"] = plots.embeddings(X[:99, 0], y[:99], names, TITLE)
    assert {name: crowded_texts(figure) for name, figure in drawn.items()} == {name: [] for name in drawn}
    titles = [" ".join(figure.get_suptitle().split()) for figure in drawn.values()]
    assert all(title.endswith("on costs $5 or $10, seed 0") for title in titles)


def test_no_text_of_the_other_figures_is_cut_off_or_overlaps():
    rng = np.random.default_rng(0)
    normal = {name: rng.standard_normal(1000) for name in ("hidden 1", "hidden 2", "output")}
    hidden = {name: normal[name] for name in ("hidden 1", "hidden 2")}
    columns = {"gradient_norm": np.full((2, 3), 0.2), "update_ratio": np.full((2, 3), 1e-3)}
    monitor = plots.monitor({"epoch": [1, 2], "dead": [[0.5, 0.1]] * 2, **columns}, list(normal), TITLE)
    assert [list(line.get_ydata()) for line in monitor.axes[0].lines] == [[50, 50], [10, 10]]
    maps = {f"convolution {i}": rng.random((2, 24, 5, 4)) for i in range(1, 10)}
    feature_maps = plots.feature_maps(rng.random((2, 40, 32)), maps, ODD_NAMES[:2], TITLE)
    assert len(feature_maps.axes) == 2 * (1 + 7)
    seeds = {name: rng.integers(10, size=(5, 100)) for name in plots.MODEL_COLORS}
    drawn = [
        monitor,
        feature_maps,
        plots.curves({i: history(13) for i in range(5)}, TITLE, True, 0.1),
        plots.curves({0: history(13)}, TITLE, True, 0.1, trained_on_val=True),
        plots.curves({0: history(1)}, TITLE),
        plots.learning_rate(np.linspace(1, 0, 100), 10, TITLE),
        plots.loss_by_step(rng.random(300), 100, TITLE),
        plots.first_layer(rng.standard_normal((40 * 32, 70)), (40, 32), TITLE),
        plots.filters(rng.standard_normal((24, 3, 3)), TITLE),
        plots.distributions(hidden, normal, TITLE),
        plots.recall_comparison(np.arange(100) % 10, seeds, "abcdefghij", TITLE),
    ]
    assert [fault for figure in drawn for fault in crowded_texts(figure)] == []


def test_crowded_texts_are_seen():
    figure, axes = plots.figure("title", 4, 3)
    axes[0, 0].text(0.5, 0.5, "first")
    axes[0, 0].text(0.52, 0.5, "second")
    figure.text(0.9, 0.5, "beyond the edge of the figure")
    assert crowded_texts(figure) == ["beyond the edge of the figure: cut off", "first / second"]


def test_names_are_neither_mathematics_nor_hidden():
    assert plots.short("a" * 30) == "a" * 12 + "…" + "a" * 11
    assert plots.short("$5 to $10") == r"\$5 to \$10"
    assert plots.short("_x") == " _x"
    assert plots.short("two\nlines, \udcff") == "two lines, ?"
    assert [plots.percent(p) for p in (1, 0.9951, 0.994, 0.5)] == [">99 %", ">99 %", "99 %", "50 %"]


def test_colors_of_models():
    names = ["NumPy MLP 784-10", "CNN 24", "CNN 24 + NumPy MLP 576-10", "CNN + NumPy MLP, trained jointly"]
    assert [plots.color_of(name) for name in [*names, "ResNet18"]] == list(plots.MODEL_COLORS.values())


def test_examples_take_the_classes_in_turn():
    y = np.array([2, 0, 0, 2, 2, 5])
    assert plots.examples(y, 2).tolist() == [1, 5]
    assert plots.examples(y, 5).tolist() == [1, 0, 5, 2, 3]
    assert plots.examples(y, 99).tolist() == [1, 0, 5, 2, 3, 4]


def test_confusion_matrix_shows_counts_and_recalls():
    figure = plots.confusion_matrix(Y, PREDICTED, CLASSES, "model")
    assert texts(figure) == ["3", "1", "2", "1", "75.0%", "100.0%", "0.0%", "recall"]
    assert figure.get_suptitle() == "Confusion matrix: 71.43% of 7 test images are right\nmodel"
    assert texts(plots.confusion_matrix(Y, PREDICTED, "abcd", "model"))[-2] == "-"  # no image of class d


def test_classification_report_shows_the_scores():
    figure = plots.classification_report(Y, PREDICTED, CLASSES, "title")
    precision, recall, f1 = [3 / 4, 2 / 3, 0, 17 / 36], [3 / 4, 1, 0, 7 / 12], [3 / 4, 4 / 5, 0, 31 / 60]
    numbers = [f"{score:.3f}" for row in zip(precision, recall, f1, strict=True) for score in row]
    assert texts(figure) == [*numbers, "precision", "recall", "F1"]
    assert figure.axes[0].lines[0].get_xdata() == pytest.approx(precision)


def test_samples_mark_right_and_wrong_by_color_and_sign():
    figure = plots.samples(IMAGES, Y, PROBABILITIES, CLASSES, "title")
    assert texts(figure)[:6] == ["a", "a\n✓ 80 %", "b", "b\n✓ 80 %", "c", "a\n✗ 80 %"]
    colors = [text.get_color() for text in figure.axes[0].texts[1:6:2]]
    assert colors == [plots.RIGHT, plots.RIGHT, plots.WRONG]
    assert len(figure.axes[0].images) == 7


def test_fifty_samples_of_many_classes():
    X, y, probabilities, names = predictions(60)
    images = plots.samples(X, y, probabilities, names, "title").axes[0].images
    left, right, bottom, top = images[0].get_extent()
    assert (len(images), (right - left) / (bottom - top)) == (50, pytest.approx(32 / 40))


def test_mistakes_begin_with_the_most_confident():
    probabilities = PROBABILITIES.copy()
    probabilities[6] = 0.999, 0.0005, 0.0005
    figure = plots.mistakes(IMAGES, Y, probabilities, CLASSES, "title")
    assert texts(figure) == ["c", "a\n✗ >99 %", "a", "b\n✗ 80 %"]
    assert figure.get_suptitle() == "Wrong predictions with the highest probability: 2 of 2\ntitle"
    for draw in (plots.mistakes, plots.confusable):
        figure = draw(IMAGES, PREDICTED, PROBABILITIES, CLASSES, "title")
        assert (texts(figure), figure.get_supxlabel()) == ([], "no prediction is wrong")


def test_confusable_pairs_are_counted_both_ways():
    y, predicted = np.array([0, 0, 1, 1, 2, 2]), np.array([1, 1, 0, 1, 0, 2])
    shown = texts(plots.confusable(IMAGES, y, np.eye(3)[predicted], CLASSES, "title"))
    first = "a / b\n3 images, 75% of all mistakes\na as b: 2\nb as a: 1"
    second = "a / c\n1 images, 25% of all mistakes\na as c: 0\nc as a: 1"
    assert shown == [first, "a", "a", "b", second, "c"]


def test_reliability_has_the_heights_of_the_bins():
    _, y, p, _ = predictions(10, per_class=20)
    bins = {"before": run.calibration(y, p), "after": run.calibration(y, p**2)}
    axes = plots.reliability(bins, "title").axes
    assert axes[0].get_title().endswith(f"expected calibration error {bins['before'][-1]:.2%}")
    for upper, lower, (edges, counts, _, accuracy, _) in zip(axes[:2], axes[2:], bins.values(), strict=True):
        assert [bar.get_height() for bar in lower.patches] == counts.tolist()
        assert [bar.get_height() for bar in upper.patches] == accuracy[counts > 0].tolist()
        assert [bar.get_x() for bar in upper.patches] == edges[:-1][counts > 0].tolist()


def test_rejection_by_hand():
    y = np.array([0, 0, 1, 1])
    p = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])  # right, wrong, right, right
    ax = plots.rejection(y, p, "title").axes[0]
    assert ax.lines[0].get_xdata().tolist() == [50, 25, 0]
    assert ax.lines[0].get_ydata().tolist() == [100, 100, 75]
    assert labels_of(ax.get_xticklabels())[::5] == ["0 %\n75.0 %", "50 %\n100.0 %"]


def test_recalls_of_two_models_and_of_several_seeds():
    y = np.where(Y == 2, 3, Y)  # no image of class c
    models = {"CNN": PREDICTED, "CNN features + NumPy MLP": np.stack([PREDICTED, y])}
    figure = plots.recall_comparison(y, models, "abcd", "title")
    assert texts(figure) == ["75.0", "87.5", "100.0", "100.0", "0.0", "50.0"]
    assert labels_of(figure.axes[0].get_yticklabels()) == ["a", "b", "d"]
    drawn = [line.get_xdata().tolist() for line in figure.axes[0].lines]  # each mean, then its seeds
    assert drawn == [[75, 100, 0], [75, 100, 0], [87.5, 100, 50], [75, 100, 0], [100, 100, 100]]
    assert labels_of(figure.legends[0].get_texts())[0] == "CNN: accuracy 71.43%"


def test_curves_draw_each_seed_and_the_mean():
    figure = plots.curves({"a": history(2), "b": history(2, start=0.5)}, "title")
    loss, accuracy = ([line.get_ydata().tolist() for line in ax.lines[:3]] for ax in figure.axes)
    assert loss == [[1, 0.5], [0.5, 0.25], [0.75, 0.375]]
    assert accuracy == [[50, 75], [75, 87.5], [62.5, 81.25]]
    values = history(20) | {"train_loss": np.r_[100.0, np.linspace(2, 1, 19)]}
    assert plots.curves({"run": values}, "title").axes[0].get_ylim()[1] < 3  # not that of the first epochs


def test_curves_name_what_the_losses_are_of():
    def legend(*columns, **options):
        figure = plots.curves({"run": history(3, prefixes=columns)}, "title", True, 0.1, **options)
        return labels_of(figure.legends[0].get_texts())

    batches = "training batches (augmented, smoothed labels)"
    assert legend("train", "train_eval", "val") == [batches, "training images in eval mode", "validation"]
    assert legend("train") == [batches]
    held_out = "training images that are usually held out"
    assert legend("train", "val", trained_on_val=True) == [batches, held_out]


def test_weights_and_images_stand_side_by_side():
    ax = plots.figure("title", 3, 3)[1][0, 0]
    shown = plots.image_grid(ax, np.arange(12.0).reshape(3, 2, 2), 2).get_array().filled(-1)
    assert shown[:3].tolist() == [[0, 1, -1, 4, 5], [2, 3, -1, 6, 7], [-1] * 5]
    assert shown[3:].tolist() == [[8, 9, -1, -1, -1], [10, 11, -1, -1, -1]]
    figure = plots.first_layer(np.arange(4 * 100.0).reshape(4, 100), (2, 2), "title")
    assert figure.axes[0].images[0].get_array()[:2, 3:5].tolist() == [[1, 101], [201, 301]]
    assert figure.get_suptitle() == "Weights of the first layer, 64 of 100 neurons\ntitle"


def test_feature_maps_shows_the_strongest_ones():
    maps = np.zeros((1, 12, 2, 2))
    maps[0, :, 0, 0] = np.arange(12)
    ax = plots.feature_maps(IMAGES[:1], {"convolution 1": maps}, ["Bag"], "title").axes[1]
    assert ax.get_title() == "convolution 1\n9 of 12, 2 x 2\n0 to 11"
    assert ax.images[0].get_array()[::3, ::3].ravel().tolist() == [11, 10, 9, 8, 7, 6, 5, 4, 3]


def test_saliency_is_opaque_where_the_evidence_is_strong():
    heat = np.zeros((1, 28, 28))
    heat[0, 3, 4], heat[0, 5, 6] = 2, 1
    figure = plots.saliency(IMAGES[:1], heat, np.array([0]), np.array([1]), CLASSES, "title")
    alpha = figure.axes[0].images[2].get_alpha()
    assert (alpha[3, 4], alpha[5, 6], alpha.sum()) == (1, 0.5, 1.5)
    assert texts(figure) == ["a", "✗ b"]


def test_embeddings_place_every_image():
    features, y = np.random.default_rng(0).standard_normal((30, 5)), np.arange(30) % 3
    figure = plots.embeddings(features, y, CLASSES, "title")
    assert [sum(len(line.get_xdata()) for line in ax.lines) for ax in figure.axes] == [30, 30]
    dead = plots.embeddings(np.ones((30, 3)), y, CLASSES, "title")
    assert dead.get_supxlabel() == "too few images, or equal features"


def test_a_network_without_hidden_layers_and_one_with_dead_neurons():
    columns = {"gradient_norm": [[1.0], [3.0]], "update_ratio": [[1.0], [3.0]]}
    axes = plots.monitor({"epoch": [1, 2], "dead": [[], []], **columns}, ["output"], "title").axes
    drawn = [[list(line.get_ydata()) for line in ax.lines] for ax in axes]
    assert drawn == [[[1, 3]], [[1, 3], [1e-3, 1e-3]]]
    assert len(plots.distributions({}, {"output": np.ones(3)}, "title").axes) == 1
    gradients = {"hidden 1": np.arange(5.0), "output": np.ones(3)}
    ax = plots.distributions({"hidden 1": np.zeros(5)}, gradients, "title").axes[0]
    assert ax.get_title(loc="left") == "hidden 1: std 0, 100% exactly 0"
    assert sum(bar.get_height() for bar in ax.patches) == 5


def test_steps_are_drawn_by_epoch():
    (line,) = plots.learning_rate([1, 2, 3, 4], 2, "title").axes[0].lines
    assert line.get_xdata().tolist() == [0.5, 1, 1.5, 2]
    each, mean = plots.loss_by_step(np.arange(20.0), 10, "title").axes[0].lines
    assert each.get_ydata().tolist() == list(range(20))
    assert (mean.get_xdata()[0], mean.get_ydata()[0]) == (0.5, pytest.approx(2))  # of steps 1 to 5


def test_a_figure_needs_no_pyplot_and_no_scikit_learn():
    code = """import sys, plots
print("matplotlib" in sys.modules)
plots.learning_rate([1.0], 1, "title")
print([name for name in ("matplotlib.pyplot", "sklearn", "torch") if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "[]"]
