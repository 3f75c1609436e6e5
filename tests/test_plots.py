"""Figures show the numbers they are given, without a screen."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import plots

CLASSES = tuple("abc")
Y = np.array([0, 0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 0, 1, 1, 1, 0])
PROBABILITIES = np.full((7, 3), 0.1)
PROBABILITIES[np.arange(7), PREDICTED] = 0.8


def texts(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_confusion_matrix_shows_counts_and_recalls():
    found = texts(plots.confusion_matrix(Y, PREDICTED, CLASSES, "title"))
    assert sorted(found) == sorted(["3", "1", "2", "1", "75.0%", "100.0%", "0.0%", "recall"])


def test_classification_report_shows_the_scores():
    found = texts(plots.classification_report(Y, PREDICTED, CLASSES, "title"))
    # by hand: precision 3/4, 2/3, 0; recall 3/4, 1, 0; F1 3/4, 4/5, 0; then the means of the columns
    assert " ".join(found) == "0.750 0.750 0.750 0.667 1.000 0.800 0.000 0.000 0.000 0.472 0.583 0.517"
    assert "0.6667" in plots.report_text(Y, PREDICTED, CLASSES)


def test_samples_name_the_predicted_class_and_mark_the_wrong_ones():
    figure = plots.samples(np.zeros((7, 28, 28)), Y, PROBABILITIES, CLASSES, "title", rows=2)
    below = [(ax.get_xlabel(), ax.xaxis.label.get_color()) for ax in figure.axes]
    assert below[:3] == [("a 80%", plots.RIGHT), ("b 80%", plots.RIGHT), ("a 80%", plots.WRONG)]
    assert [ax.get_title() for ax in figure.axes[:3]] == ["a", "b", "c"]


def test_curves_draw_accuracy_in_per_cent():
    accuracies = {"train_accuracy": [0.5, 0.8], "val_accuracy": [0.4, 0.7]}
    figure = plots.curves({"epoch": [1, 2], "train_loss": [1, 0.5], "val_loss": [1, 0.7], **accuracies}, "title")
    lines = [line.get_ydata().tolist() for ax in figure.axes for line in ax.lines]
    assert lines == [[1, 0.5], [1, 0.7], [50, 80], [40, 70]]


def test_side_by_side_shows_the_recalls_of_both():
    found = texts(plots.recall_comparison(Y, {"one": PREDICTED, "two": Y}, CLASSES, "title"))
    assert found == ["75.0", "100.0", "0.0", "100.0", "100.0"]  # equal ones once


def test_evaluation_makes_each_file(tmp_path):
    files = plots.evaluation(np.zeros((7, 28, 28)), Y, PROBABILITIES, CLASSES, "title")
    assert set(files) == {"confusion_matrix.png", "classification_report.png", "classification_report.txt", "samples.png",
                          "mistakes.png", "reliability.png"}  # fmt: skip
    figure = files["samples.png"]
    figure.savefig(tmp_path / "samples.png")
    assert (tmp_path / "samples.png").read_bytes()[:4] == b"\x89PNG"
    assert figure.get_suptitle() == "title\ntest accuracy 71.43%"


def test_mistakes_begin_with_the_surest():
    probabilities = PROBABILITIES.copy()
    probabilities[6] = 0.95, 0.03, 0.02
    found = texts(plots.mistakes(np.zeros((7, 28, 28)), Y, probabilities, CLASSES, "title"))
    assert found == ["c", "a 95%", "a", "b 80%"]
    assert texts(plots.mistakes(np.zeros((7, 28, 28)), PREDICTED, PROBABILITIES, CLASSES, "title")) == []


def test_calibration_by_hand():
    y = np.array([0, 0, 1, 1, 1])
    sure = np.array([0.9, 0.95, 0.9, 0.6, 0.55])  # of class 0 in the first three
    first = np.where(np.arange(5) < 3, sure, 1 - sure)
    probabilities = np.stack([first, 1 - first], axis=1)
    edges, counts, confidence, accuracy, error = plots.calibration(y, probabilities, bins=2)
    assert edges.tolist() == [0, 0.5, 1]
    assert counts.tolist() == [0, 5]
    assert accuracy[1] == pytest.approx(0.8)
    assert confidence[1] == pytest.approx(0.78)
    assert error == pytest.approx(0.02)
    *_, error = plots.calibration(y, probabilities, bins=10)  # (0.5, 0.6]: 2 of 2 at 0.575; (0.8, 0.9]: 1 of 2; (0.9, 1]: 1
    assert error == pytest.approx((2 * (1 - 0.575) + 2 * (0.9 - 0.5) + (1 - 0.95)) / 5)
    plots.reliability(y, probabilities, "title")


def test_the_first_layers_weights_stand_where_they_belong():
    W = np.arange(4 * 3, dtype=float).reshape(4, 3)  # 2 x 2 pixels, 3 neurons
    picture = plots.first_layer(W, (2, 2), "title").axes[0].images[0].get_array()
    assert picture[:2, 3:5].tolist() == [[1, 4], [7, 10]]


def test_the_doctors_figure_draws_a_line_for_each_layer():
    history = {"epoch": [1, 2], "dead": [[0.5], [0.25]], "gradient_norm": [[1, 2], [3, 4]], "update_ratio": [[1, 2], [3, 4]]}
    figure = plots.monitor(history, ["hidden 1", "output"], "title")
    lines = [[list(line.get_ydata()) for line in ax.lines] for ax in figure.axes]
    assert lines[0] == [[50, 25]]
    assert lines[1] == [[1, 3], [2, 4]]
    softmax = {"epoch": [1], "dead": [[]], "gradient_norm": [[1]], "update_ratio": [[1]]}
    assert len(plots.monitor(softmax, ["output"], "title").axes) == 2  # no hidden layer, no panel of dead neurons
    assert len(plots.distributions({}, {"output": np.ones(3)}, "title").axes) == 1


def test_confusable_pairs_are_counted_both_ways():
    y, predicted = np.array([0, 0, 1, 1, 2, 2]), np.array([1, 1, 0, 1, 0, 2])
    probabilities = np.eye(3)[predicted]
    found = texts(plots.confusable(np.zeros((6, 28, 28)), y, probabilities, CLASSES, "title", most=2))
    assert found == ["a / b\n3 images, 75% of all mistakes\na taken for b: 2\nb taken for a: 1",
                     "a / c\n1 images, 25% of all mistakes\na taken for c: 0\nc taken for a: 1"]  # fmt: skip


def test_pictures_stand_side_by_side():
    ax = plots.figure("title", 3, 3)[1][0, 0]
    shown = image_grid((ax, np.arange(3 * 4, dtype=float).reshape(3, 2, 2), 2).get_array().filled(-1)
    assert shown.tolist() == [[0, 1, -1, 4, 5], [2, 3, -1, 6, 7], [-1] * 5, [8, 9, -1, -1, -1], [10, 11, -1, -1, -1]]


def test_distributions_and_learning_rate():
    figure = plots.distributions({"hidden 1": np.zeros(5)}, {"hidden 1": np.arange(5.0), "output": np.ones(3)}, "title")
    assert figure.axes[0].get_title(loc="left") == "hidden 1: deviation 0, 100% exactly 0"
    figure = plots.learning_rate([1, 2, 3, 4], 2, "title")
    assert figure.axes[0].lines[0].get_xdata().tolist() == [0.5, 1, 1.5, 2]


@pytest.mark.parametrize("module", ["matplotlib.pyplot", "sklearn", "torch"])
def test_not_even_a_figure_needs(module):
    code = (f"import sys, numpy, plots; early = [m for m in ('matplotlib', 'sklearn', 'torch') if m in sys.modules]; "
            "plots.curves({k: [1] for k in ('epoch', 'train_loss', 'val_loss', 'train_accuracy', 'val_accuracy')}, 't');"
            f"print(early, {module!r} in sys.modules)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"


def test_heads_draw_every_seed_and_name_the_means():
    head = {"by_seed": {"test_accuracy": [0.9, 0.94], "train_accuracy": [0.95, 0.97]}, "test_accuracy": 0.92,
            "test_accuracy_std": 0.02, "train_accuracy": 0.96, "train_accuracy_std": 0.01}  # fmt: skip
    without = {name: value for name, value in head.items() if "train" not in name}
    figure = plots.classifier_comparison({"one": head, "nearest": without}, "title")
    assert texts(figure) == ["92.00", "92.00", "96.00"]
    assert figure.axes[0].lines[0].get_xdata().tolist() == [90, 94]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["one", "nearest"]


def test_the_cnns_speed():
    found = {"threads": 2, "precision": "float32", "images": 100, "network": "32-64", "default_network": "8-9",
             "seconds": {"ours": [1.0, 3.0, 2.0], "tutorial": [4.0, 5.0, 6.0]}, "faster": {"tutorial": 2.5},
             "shares": {"convolutions": 0.6, "layers": 0.9, "outside": 0.1}}  # fmt: skip
    names = {"ours": "ours", "tutorial": "usual"}
    assert texts(plots.cnn_speed(found, names)) == ["50", "20", "60.0%", "30.0%", "10.0%"]


def test_the_race():
    race = {"rows": {"ours": [(60, 0.9), (120, 0.93)], "tutorial": [(100, 0.91), (200, 0.92)]}, "accuracy": 0.92}
    ours, theirs, best = plots.race(race, {"ours": "ours", "tutorial": "usual"}).axes[0].lines
    assert [line.get_xdata().tolist() for line in (ours, theirs)] == [[1, 2], [100 / 60, 200 / 60]]
    assert best.get_ydata()[0] == pytest.approx(92)
