"""The learning-rate schedule: against its formulas, and against the two schedules that it replaced."""

import math

import numpy as np
import pytest

import cnn_feature_extraction as cnn
import mlp_from_scratch as mlp
from numpy_nn.optimizers import lr_at
from support import settings


def one_cycle(peak, steps, warmup):
    """The NumPy MLP's former schedule: a list of the learning rates of all steps."""
    rise = round(warmup * steps)
    falling = [1 - step / (steps - rise) for step in range(steps - rise)]
    return [peak * factor for factor in [(step + 1) / (rise + 1) for step in range(rise)] + falling]


def triangle(peak, progress, warmup):
    """The CNN's former schedule."""
    return peak * float(np.interp(progress, [0, warmup, 1], [0.05, 1, 0]))


@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.37, 0.9])
@pytest.mark.parametrize(("epochs", "num_images"), [(1, 64), (5, 1000), (7, 333)])
def test_linear_is_the_former_one_cycle(warmup, epochs, num_images):
    s = settings.load(mlp, schedule="linear", warmup=warmup, epochs=epochs, batch_size=32, learning_rate=0.003)
    trainer = mlp.Trainer(*mlp.build(4, 3, s), s, num_images)
    steps = epochs * math.ceil(num_images / 32)
    rates = [trainer.lr_of_step(step) for step in range(steps)]
    assert rates == pytest.approx(one_cycle(0.003, steps, warmup), rel=1e-12)
    assert {type(rate) for rate in rates} == {float}  # a NumPy float64 would turn float32 arrays into float64


@pytest.mark.parametrize("warmup", [0.1, 0.2, 0.5])
def test_linear_is_the_former_triangle(warmup):
    for progress in np.linspace(0, 1, 101).tolist():
        rate = lr_at(progress, 0.4, "linear", warmup, start=0.05)
        assert rate == pytest.approx(triangle(0.4, progress, warmup), rel=1e-12, abs=1e-15)
        assert type(rate) is float


@pytest.mark.parametrize(("schedule", "fall"), [  # at 1/4, 5/8 and the end of the fall
    ("linear", (0.75, 0.375, 0)), ("cosine", ((1 + math.cos(math.pi / 4)) / 2, (1 + math.cos(0.625 * math.pi)) / 2, 0)),
    ("exponential", (0.01**0.25, 0.01**0.625, 0.01)), ("step", (1, 0.1, 0.01)), ("constant", (1, 1, 1)),
    ("plateau", (1, 1, 1)),
])  # fmt: skip
def test_schedules_by_their_formulas(schedule, fall):
    rates = [lr_at(progress, 0.4, schedule, 0.2, 0.05) / 0.4 for progress in (0, 0.1, 0.2, 0.4, 0.7, 1)]
    assert rates == pytest.approx([0.05, 0.525, 1, *fall])


def test_every_schedule_of_both_scripts_is_one_of_them():
    """A typo in a settings comment would otherwise be a constant learning rate."""
    for script, others in ((mlp, {"plateau"}), (cnn, set())):
        comment = settings.constants(script)["SCHEDULE"].comment
        names = set(settings.CHOICES.search(comment).group(1).split(", "))
        assert names == {"constant", "step", "exponential", "cosine", "linear"} | others


def test_the_warm_up_rises_in_a_straight_line_to_the_peak():
    rates = np.array([lr_at(step / 100, 0.1, "linear", 0.2, 1 / 21) for step in range(100)])
    assert rates[:21] == pytest.approx(0.1 * np.arange(1, 22) / 21)
    assert rates.argmax() == 20
    assert rates[20] == pytest.approx(0.1)
    assert (np.diff(rates[20:]) < 0).all()
    assert rates[-1] > 0
