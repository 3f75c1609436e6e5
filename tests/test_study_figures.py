"""Figures of the studies and of README.md show the numbers of results/."""

import json

import numpy as np
import pytest
from conftest import ROOT, crowded_texts
from test_plots import texts

import plots
from studies import figures, tables
from studies.heads import COMPARISONS

RESULTS = ROOT / "results"


def readable(figure):
    assert figure.get_size_inches()[0] <= 9
    assert figure.dpi >= 160
    assert crowded_texts(figure) == []


def test_differences_of_classifiers_are_paired_by_seed():
    heads = {name: {"by_seed": {"test_accuracy": values}} for name, values in {"a": [0.9, 0.94], "b": [0.91, 0.93]}.items()}
    figure = figures.classifier_comparison(heads, (("a", "b"),), "title")
    upper, lower = figure.axes
    assert upper.lines[0].get_xdata() == pytest.approx([90, 94])
    assert lower.lines[0].get_xdata() == pytest.approx([-1, 1])
    assert texts(figure) == ["92.00", "92.00", "+0.00"]


def test_the_committed_study_is_readable():
    heads = json.loads((RESULTS / tables.HEADS / "metrics.json").read_text())["heads"]
    readable(figures.classifier_comparison(heads, COMPARISONS, "Classifiers on a CNN's features\nFashion-MNIST, 5 seeds"))


@pytest.mark.parametrize("name", ["parameters", "seconds"])
def test_accuracy_against_has_a_dot_for_each_model_and_seed(name):
    figure = figures.accuracy_against(RESULTS, name, name, "title")
    readable(figure)
    dots = [(x, y) for line in figure.axes[0].lines for x, y in zip(*line.get_data(), strict=True)]
    for folder in (tables.MLP, tables.CNN, tables.FROZEN):
        metrics = tables.metrics_of(RESULTS, folder)
        x = metrics["by_seed"].get(name, [metrics[name]] * 5)
        assert {(a, 100 * b) for a, b in zip(x, metrics["by_seed"]["test_accuracy"], strict=True)} <= set(dots)
    assert len(dots) == sum(len(row["by_seed"]["test_accuracy"]) if "by_seed" in row else 1
                            for _, row in figures.models(RESULTS).values())  # fmt: skip


def test_one_color_per_model():
    colors = {name: color for name, (color, _) in figures.models(RESULTS).items()}
    assert colors["CNN"] == plots.MODEL_COLORS["CNN"]
    assert colors["NumPy MLP 784-256-128-10"] == colors["NumPy MLP 784-2048-1024-10"] == plots.MODEL_COLORS["NumPy MLP"]
    assert len(set(plots.MODEL_COLORS.values())) == len(plots.MODEL_COLORS)


def test_architecture_has_the_shapes_of_the_network():
    metrics = tables.metrics_of(RESULTS, f"{tables.FROZEN}/seed_0")
    figure = figures.architecture(metrics)
    readable(figure)
    shown = texts(figure)
    maps = {"1 x\n28 x 28", "24 x\n28 x 28", "48 x\n14 x 14", "96 x\n7 x 7", "192 x\n3 x 3"}
    assert maps | {"1,728", "256", "128", "10"} <= set(shown)


def test_augmentation_draws_each_kind(digits):
    figure = figures.augmentation(digits)
    readable(figure)
    assert len(figure.axes) == 4 * 9


def test_gradient_check_has_a_row_for_each_layer():
    figure = figures.gradient_check()
    readable(figure)
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows[0] == "Linear"
    assert len(rows) == 11
    errors = [line.get_xdata()[0] for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    # x of ten rows, W and b of one, gamma and beta of two, temperature; against differences and autograd
    assert len(errors) == 2 * 17
    assert max(errors) < 1e-7


def test_grid_places_keep_the_order_and_overlap_nowhere():
    points = np.random.default_rng(0).random((60, 2))
    rows, columns = figures.grid_places(points, 9)
    assert len(set(zip(rows, columns, strict=True))) == 60
    assert np.corrcoef(columns, points[:, 0])[0, 1] > 0.95
    assert np.corrcoef(rows, points[:, 1])[0, 1] < -0.95  # row 0 is at the top
    with pytest.raises(ValueError, match="only 25 places"):
        figures.grid_places(points, 5)


def test_the_map_frames_the_mistakes():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 20)
    predicted = y.copy()
    predicted[[3, 30]] = 2, 0
    _, axes = plots.figure("title", 5, 5)
    figures.thumbnails_map(axes[0, 0], rng.random((60, 28, 28)), rng.random((60, 2)), y, predicted, tuple("abc"), 9)
    assert len(axes[0, 0].patches) == 2
    assert [text.get_text() for text in axes[0, 0].texts] == ["a", "b", "c"]


def test_the_committed_figures_are_there():
    names = ("top", "architecture", "accuracy_vs_parameters", "accuracy_vs_seconds", "recall", "augmentation",
             "gradient_check")  # fmt: skip
    assert [name for name in names if not (RESULTS / "figures" / f"{name}.png").is_file()] == []
