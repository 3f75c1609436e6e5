"""The benchmark: that every side does the work it is named for, and the arithmetic of its ratios. No speed is tested."""

import numpy as np
import pytest
from conftest import one_line

import benchmark

RNG = np.random.default_rng(5)
y = np.arange(600) % 10
X = (0.05 * RNG.random((600, 784)) + np.eye(10).repeat(79, axis=1)[y][:, :784]).astype(np.float32)  # easy to tell apart


@pytest.mark.parametrize("name", [name for name in benchmark.SIDES if name != "products"])
def test_each_side_trains_and_predicts(name):
    epoch, predict = benchmark.SIDES[name](X, y, (32,), 50)
    before = np.mean(np.asarray(predict()) == y) if name != "scikit_learn" else 0  # which cannot predict yet
    for _ in range(6):
        epoch()
    assert np.mean(np.asarray(predict()) == y) > max(0.9, before)


def test_the_products_alone():
    epoch, predict = benchmark.products(X, y, (32, 16), 50)
    with np.errstate(all="raise"):
        for _ in range(20):
            epoch()
    assert predict is None


def test_ratios():
    seconds = {"ours": [1.0, 2.0, 9.0], "torch_fused": [2.0, 4.0, 3.0]}
    assert benchmark.ratios(seconds) == {"torch_fused": 0.5}
    calls = {"a": lambda: None, "b": lambda: None}
    assert {name: len(times) for name, times in benchmark.taking_turns(calls, 3).items()} == {"a": 3, "b": 3}


def test_goals_and_names_are_of_sides():
    assert set(benchmark.GOALS) == set(benchmark.SIDES) - {"ours"}
    assert set(benchmark.NAMES) == set(benchmark.SIDES)


def test_a_wrong_part_is_one_line(run_script):
    assert "name what to measure" in one_line(run_script("benchmark", "nlp"), 2)
    assert "name what to measure" in one_line(run_script("benchmark"), 2)
