"""Figures show the numbers they are given, without a screen, and no text overlaps another."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, command, crowded_texts, environment, one_line

import numpy_nn.figures
import plots
from numpy_nn.calibration import calibration

CLASSES = tuple("abc")
Y = np.array([0, 0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 0, 1, 1, 1, 0])
PROBABILITIES = np.full((7, 3), 0.1)
PROBABILITIES[np.arange(7), PREDICTED] = 0.8
IMAGES = np.zeros((7, 28, 28))
NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
TITLE = plots.run_title("CNN 24-48-96-96-192 + NumPy MLP 1728-256-128-10", "Fashion-MNIST", 0)


def texts(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def history(epochs, start=1.0, train_eval=True):
    values = start / np.arange(1, epochs + 1)
    columns = ("train", "val", "train_eval")[: 3 if train_eval else 2]
    return {"epoch": np.arange(1, epochs + 1)} | {f"{name}_{what}": values if what == "loss" else 1 - values / 2
                                                   for name in columns for what in ("loss", "accuracy")}  # fmt: skip


def real_probabilities(n=400):
    """(y, probabilities) of n images and 10 classes; a fifth of the predictions is wrong."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % 10
    logits = rng.standard_normal((n, 10)) + 9 * np.eye(10)[np.where(rng.random(n) < 0.8, y, rng.integers(10, size=n))]
    return y, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_confusion_matrix_shows_counts_and_recalls():
    figure = plots.confusion_matrix(Y, PREDICTED, CLASSES, "model")
    assert sorted(texts(figure)) == sorted(["3", "1", "2", "1", "75.0%", "100.0%", "0.0%", "recall"])
    assert figure.get_suptitle() == "Confusion matrix: 71.43% of 7 test images are right\nmodel"


def test_classification_report_shows_the_scores():
    figure = plots.classification_report(Y, PREDICTED, CLASSES, "title")
    # by hand: precision 3/4, 2/3, 0; recall 3/4, 1, 0; F1 3/4, 4/5, 0; then the means
    assert texts(figure) == ["precision", "0.750", "0.667", "0.000", "0.472", "recall", "0.750", "1.000", "0.000", "0.583",
                             "F1", "0.750", "0.800", "0.000", "0.517"]  # fmt: skip
    dots = {line.get_label(): np.round(line.get_xdata(), 3).tolist() for line in figure.axes[0].lines}
    assert dots["precision"] == [0.75, 0.667, 0, 0.472]
    assert "0.6667" in plots.report_text(Y, PREDICTED, CLASSES)


def test_samples_mark_right_and_wrong_by_color_and_sign():
    figure = plots.samples(IMAGES, Y, PROBABILITIES, CLASSES, "title", rows=2)
    below = [(ax.get_xlabel(), ax.xaxis.label.get_color()) for ax in figure.axes]
    assert below[:3] == [("a\n✓ 80 %", "#0072B2"), ("b\n✓ 80 %", "#0072B2"), ("a\n✗ 80 %", "#D55E00")]
    assert [ax.get_title() for ax in figure.axes[:3]] == ["a", "b", "c"]


def test_a_probability_is_never_certain():
    assert [plots.percent(p) for p in (1, 0.9951, 0.994, 0.5)] == [">99 %", ">99 %", "99 %", "50 %"]


def test_curves_draw_each_seed_and_the_mean():
    figure = plots.curves({"a": history(2), "b": history(2, start=0.5)}, "title")
    loss, accuracy = figure.axes[:2]
    assert [line.get_ydata().tolist() for line in loss.lines[:3]] == [[1, 0.5], [0.5, 0.25], [0.75, 0.375]]
    assert [line.get_ydata().tolist() for line in accuracy.lines[:3]] == [[50, 75], [75, 87.5], [62.5, 81.25]]
    assert "2 seeds" in figure.get_suptitle()


def test_the_first_epochs_do_not_set_the_range_of_the_curves():
    values = history(20)
    values["train_loss"] = values["val_loss"] = values["train_eval_loss"] = np.r_[100.0, np.linspace(2, 1, 19)]
    low, high = plots.curves({"run": values}, "title").axes[0].get_ylim()
    assert low < 1 < 2 < high < 3


@pytest.mark.parametrize("train_eval", [True, False])
def test_curves_have_the_losses_in_eval_mode_where_they_were_recorded(train_eval):
    figure = plots.curves({"run": history(3, train_eval=train_eval)}, "title", augmented=True, smoothing=0.1)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    in_eval_mode = ["training images in eval mode"] * train_eval
    assert labels == ["training batches (augmented, smoothed labels)", *in_eval_mode, "validation"]


def test_recalls_of_two_models():
    figure = plots.recall_comparison(Y, {"CNN": PREDICTED, "CNN features + NumPy MLP": Y}, CLASSES, "title")
    assert texts(figure) == ["75.0", "100.0", "100.0", "0.0", "100.0"]  # equal ones once
    colors = {plots.MODEL_COLORS[name] for name in ("CNN", "CNN features + NumPy MLP")}
    assert {line.get_color() for line in figure.axes[0].lines} == colors


def test_recalls_of_several_seeds():
    figure = plots.recall_comparison(Y, {"CNN": np.stack([PREDICTED, Y])}, CLASSES, "title")
    drawn = [line.get_xdata().tolist() for line in figure.axes[0].lines[:3]]
    assert drawn == [[75, 100, 0], [100, 100, 100], [87.5, 100, 50]]  # each seed, then the mean


def test_evaluation_makes_each_file(tmp_path):
    evaluation = plots.evaluation(IMAGES, Y, PROBABILITIES, CLASSES, "title")
    assert set(evaluation) == {"confusion_matrix.png", "classification_report.png", "classification_report.txt",
                               "samples.png", "mistakes.png", "reliability.png", "rejection.png"}  # fmt: skip
    evaluation["samples.png"].savefig(tmp_path / "samples.png")
    assert (tmp_path / "samples.png").read_bytes()[:4] == b"\x89PNG"


def test_mistakes_begin_with_the_most_confident():
    probabilities = PROBABILITIES.copy()
    probabilities[6] = 0.999, 0.0005, 0.0005
    figure = plots.mistakes(IMAGES, Y, probabilities, CLASSES, "title")
    assert texts(figure) == ["c", "a\n✗ >99 %", "a", "b\n✗ 80 %"]
    assert figure.get_suptitle() == "Wrong predictions with the highest probability: 2 of 2\ntitle"
    assert texts(plots.mistakes(IMAGES, PREDICTED, PROBABILITIES, CLASSES, "title")) == []


def test_calibration_by_hand():
    y = np.array([0, 0, 1, 1, 1])
    confidence_of_0 = np.array([0.9, 0.95, 0.9, 0.6, 0.55])  # in the first three; of class 1 in the others
    first = np.where(np.arange(5) < 3, confidence_of_0, 1 - confidence_of_0)
    probabilities = np.stack([first, 1 - first], axis=1)
    edges, counts, confidence, accuracy, error = calibration(y, probabilities, bins=2)
    assert edges.tolist() == [0, 0.5, 1]
    assert counts.tolist() == [0, 5]
    assert accuracy[1] == pytest.approx(0.8)
    assert confidence[1] == pytest.approx(0.78)
    assert error == pytest.approx(0.02)
    *_, error = calibration(y, probabilities, bins=10)  # (0.5, 0.6]: 2 of 2 at 0.575; (0.8, 0.9]: 1 of 2; (0.9, 1]: 1
    assert error == pytest.approx((2 * (1 - 0.575) + 2 * (0.9 - 0.5) + (1 - 0.95)) / 5)


def test_first_layer_has_whole_pixels_in_place():
    W = np.arange(4 * 3, dtype=float).reshape(4, 3)  # 2 x 2 pixels, 3 neurons
    shown = numpy_nn.figures.first_layer(W, (2, 2), "title").axes[0].images[0].get_array()
    assert shown[:2, 3:5].tolist() == [[1, 4], [7, 10]]
    figure = numpy_nn.figures.first_layer(np.random.default_rng(0).standard_normal((784, 64)), (28, 28), "title")
    shown, box = figure.axes[0].images[0].get_array(), figure.axes[0].get_window_extent()
    scales = box.width / shown.shape[1], box.height / shown.shape[0]
    assert scales == pytest.approx((round(scales[0]),) * 2, abs=1e-6)


def test_monitor_draws_a_line_for_each_layer():
    values = {"epoch": [1, 2], "dead": [[0.5], [0.25]], "gradient_norm": [[1, 2], [3, 4]], "update_ratio": [[1, 2], [3, 4]]}
    figure = numpy_nn.figures.monitor(values, ["hidden 1", "output"], "title")
    lines = [[list(line.get_ydata()) for line in ax.lines] for ax in figure.axes]
    assert lines[0] == [[50, 25]]
    assert lines[1] == [[1, 3], [2, 4]]
    softmax = {"epoch": [1], "dead": [[]], "gradient_norm": [[1]], "update_ratio": [[1]]}
    assert len(numpy_nn.figures.monitor(softmax, ["output"], "title").axes) == 2  # no hidden layer, no panel of dead neurons
    assert len(numpy_nn.figures.distributions({}, {"output": np.ones(3)}, "title").axes) == 1


def test_distributions_and_learning_rate():
    activations, gradients = {"hidden 1": np.zeros(5)}, {"hidden 1": np.arange(5.0), "output": np.ones(3)}
    figure = numpy_nn.figures.distributions(activations, gradients, "title")
    assert figure.axes[0].get_title(loc="left") == "hidden 1: std 0, 100% exactly 0"
    figure = plots.learning_rate([1, 2, 3, 4], 2, "title")
    assert figure.axes[0].lines[0].get_xdata().tolist() == [0.5, 1, 1.5, 2]


def test_image_grid():
    ax = plots.figure("title", 3, 3)[1][0, 0]
    shown = plots.image_grid(ax, np.arange(3 * 4, dtype=float).reshape(3, 2, 2), 2).get_array().filled(-1)
    assert shown.tolist() == [[0, 1, -1, 4, 5], [2, 3, -1, 6, 7], [-1] * 5, [8, 9, -1, -1, -1], [10, 11, -1, -1, -1]]


def figures_of_a_run():
    y, probabilities = real_probabilities()
    X = np.random.default_rng(1).random((len(y), 28, 28))
    evaluation = plots.evaluation(X, y, probabilities, NAMES, TITLE, probabilities**2)
    del evaluation["classification_report.txt"]
    layers = ["hidden 1", "hidden 2", "output"]
    values = {"epoch": [1, 2], "dead": [[0.5, 0.1]] * 2, "gradient_norm": [[1, 2, 3]] * 2, "update_ratio": [[1, 2, 3]] * 2}
    normal = {name: np.random.default_rng(2).standard_normal(1000) for name in layers}
    predictions = {name: np.stack([probabilities.argmax(axis=1)] * 5) for name in plots.MODEL_COLORS}
    return evaluation | {
        "curves": plots.curves({f"seed_{i}": history(13) for i in range(5)}, TITLE, augmented=True, smoothing=0.1),
        "recall": plots.recall_comparison(y, predictions, NAMES, TITLE),
        "recall of two": plots.recall_comparison(y, dict(list(predictions.items())[:2]), NAMES, TITLE),
        "learning_rate": plots.learning_rate(np.linspace(1, 0, 100), 10, TITLE),
        "first_layer": numpy_nn.figures.first_layer(np.random.default_rng(0).standard_normal((784, 256)), (28, 28), TITLE),
        "monitor": numpy_nn.figures.monitor(values, layers, TITLE),
        "distributions": numpy_nn.figures.distributions({name: normal[name] for name in layers[:2]}, normal, TITLE),
    }


@pytest.fixture(scope="module")
def run_figures():
    return figures_of_a_run()


@pytest.mark.parametrize("name", ["confusion_matrix.png", "classification_report.png", "samples.png", "mistakes.png",
                                  "reliability.png", "rejection.png", "curves", "recall", "recall of two", "learning_rate",
                                  "first_layer", "monitor", "distributions"])  # fmt: skip
def test_a_figure_is_readable(name, run_figures):
    figure = run_figures[name]
    assert figure.get_size_inches()[0] <= 9
    assert figure.dpi >= 160
    assert crowded_texts(figure) == []
    assert figure.get_suptitle().endswith("seed 0")


def test_crowded_texts_are_seen():
    figure, axes = plots.figure("title", 4, 3)
    axes[0, 0].text(0.5, 0.5, "first")
    axes[0, 0].text(0.52, 0.5, "second")
    figure.text(0.9, 0.5, "beyond the edge of the figure")
    assert crowded_texts(figure) == ["beyond the edge of the figure: cut off", "first / second"]


@pytest.mark.parametrize("module", ["matplotlib.pyplot", "sklearn", "torch"])
def test_a_figure_does_not_need(module):
    code = (f"import sys, plots; early = [m for m in ('matplotlib', 'sklearn', 'torch') if m in sys.modules]; "
            "columns = 'epoch', 'train_loss', 'val_loss', 'train_accuracy', 'val_accuracy';"
            "plots.curves({'run': {name: [1] for name in columns}}, 'title');"
            f"print(early, {module!r} in sys.modules)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"


# ---- python plots.py RUN


@pytest.fixture(scope="module")
def digits_runs(tmp_path_factory):
    """The folder of two runs, of two seeds, of mlp_from_scratch.py on the digits."""
    folder = tmp_path_factory.mktemp("plots") / "runs"
    flags = ("--dataset", "digits", "--epochs", 2, "--hidden", 8, "--seeds", 2, "--output-dir", folder)
    subprocess.run(command("mlp_from_scratch", *flags), check=True, capture_output=True, env=environment())
    return folder


def test_finished_runs_are_redrawn_without_training(digits_runs, capsys):
    seed = digits_runs / "seed_0"
    drawn = ("curves.png", "samples.png", "mistakes.png", "confusion_matrix.png", "reliability.png",
             "rejection.png", "classification_report.txt")  # fmt: skip
    before = (seed / "classification_report.txt").read_text()
    for name in drawn:
        (seed / name).write_bytes(b"")
    plots.main([str(digits_runs)])
    assert (seed / "classification_report.txt").read_text() == before
    assert all((seed / name).stat().st_size > 100 for name in drawn)
    assert (digits_runs / "curves.png").read_bytes()[:4] == b"\x89PNG"  # of both seeds
    assert [path.name for path in seed.iterdir() if path.name.startswith(".")] == []
    assert str(seed) in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["missing", "metrics", "probabilities"])
def test_a_folder_that_is_no_run_is_named_in_one_line(damage, digits_runs, tmp_path):
    folder = tmp_path / "run"
    if damage != "missing":
        folder.mkdir()
        for name in ("metrics.json", "history.csv", "test_probabilities.npy"):
            (folder / name).write_bytes((digits_runs / "seed_0" / name).read_bytes())
    if damage == "metrics":
        (folder / "metrics.json").write_text(json.dumps({"settings": {}}))
    if damage == "probabilities":
        np.save(folder / "test_probabilities.npy", np.full((3, 10), 0.1))
    done = subprocess.run(command("plots", folder), capture_output=True, text=True, env=environment(), check=False)
    assert str(folder) in one_line(done, 1)
