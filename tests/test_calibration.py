"""Temperature scaling: the temperature is that of the lowest loss; accuracy if the least confident are rejected."""

import numpy as np
import pytest

from numpy_nn import calibration, calibration_figures
from numpy_nn.layers import LOSSES, softmax


def overconfident(n=3000, factor=3.0, classes=5, seed=0):
    """(logits that are `factor` times as large as those that the labels were drawn from, y)."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((n, classes))
    chances = softmax(logits).cumsum(axis=1)
    return factor * logits, (rng.random((n, 1)) > chances).sum(axis=1).clip(max=classes - 1)


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_temperature_is_the_factor_by_which_logits_are_too_large(factor):
    assert calibration.fit_temperature(*overconfident(factor=factor)) == pytest.approx(factor, rel=0.05)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_other_temperature_has_a_lower_loss(loss):
    logits, y = overconfident(factor=2.0)
    fitted = calibration.fit_temperature(logits, y, loss)
    lowest, derivative = calibration.temperature_loss(fitted, logits, y, loss)
    assert abs(derivative) < 1e-6
    others = [calibration.temperature_loss(T, logits, y, loss)[0] for T in np.geomspace(0.1, 20, 500)]
    assert lowest <= min(others) < calibration.temperature_loss(1.0, logits, y, loss)[0]
    assert fitted == pytest.approx(np.geomspace(0.1, 20, 500)[np.argmin(others)], rel=0.02)


def test_scipy_finds_the_same_temperature():
    from scipy.optimize import minimize_scalar

    logits, y = overconfident(factor=1.7, seed=3)
    found = minimize_scalar(lambda T: LOSSES["softmax"][0](logits / T, y)[0], bounds=(0.1, 10), options={"xatol": 1e-9})
    assert calibration.fit_temperature(logits, y) == pytest.approx(found.x, rel=1e-5)


@pytest.mark.parametrize("scale", [4, 400, 0, -4])
def test_where_no_temperature_is_best_it_is_1(scale):
    y = np.arange(50) % 5  # all right, all equal, or all wrong
    assert calibration.fit_temperature(scale * np.eye(5, dtype=np.float32)[y], y) == 1


@pytest.mark.parametrize("loss", LOSSES)
def test_calibration_lowers_the_error_and_changes_no_prediction(loss):
    logits, y = overconfident(classes=10)
    before = LOSSES[loss][1](logits)
    temperature = calibration.fit_temperature(logits, y, loss)
    after = calibration.calibrated(logits, temperature, loss)
    assert calibration.calibrated(logits.astype(np.float32), temperature, loss).dtype == np.float64
    assert np.array_equal(after.argmax(axis=1), before.argmax(axis=1))
    if loss == "softmax":
        assert calibration.calibration(y, after)[-1] < 0.03 < 0.1 < calibration.calibration(y, before)[-1]
    assert calibration.recalibrated(before, temperature, loss) == pytest.approx(after, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_probabilities_of_0_and_1_stay(loss):
    assert calibration.recalibrated(np.array([[0.0, 1.0]]), 2.5, loss).tolist() == [[0, 1]]


def test_risk_coverage_by_hand():
    y = np.array([0, 0, 1, 1])
    p = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])  # right, wrong, right, right
    rejected, accuracy = calibration.risk_coverage(y, p)
    assert rejected.tolist() == [0.75, 0.5, 0.25, 0]
    assert accuracy.tolist() == [1, 1, 1, 0.75]


def test_the_figures_show_before_and_after():
    logits, y = overconfident()
    before, after = (calibration.calibrated(logits, T) for T in (1, 3))
    figure = calibration_figures.reliability(y, before, "title", after)
    errors = [100 * calibration.calibration(y, p)[-1] for p in (before, after)]
    assert figure.get_suptitle() == (f"Expected calibration error {errors[0]:.2f} %, after temperature scaling "
                                     f"{errors[1]:.2f} %\ntitle")  # fmt: skip
    assert [ax.get_title() for ax in figure.axes[:2]] == ["before temperature scaling", "after temperature scaling"]
    assert [sum(bar.get_height() for bar in ax.patches) for ax in figure.axes[2:]] == [len(y), len(y)]
    assert len(calibration_figures.reliability(y, before, "title").axes) == 2

    (line, *dots) = calibration_figures.rejection(y, after, "title").axes[0].lines
    assert line.get_xdata().max() <= 50
    right = after.argmax(axis=1) == y
    assert dots[0].get_ydata()[0] == line.get_ydata()[-1] == pytest.approx(100 * right.mean())
    half = np.argsort(-after.max(axis=1), kind="stable")[: len(y) // 2]
    assert line.get_ydata()[0] == pytest.approx(100 * right[half].mean())
