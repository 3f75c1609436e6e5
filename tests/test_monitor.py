"""The training doctor: what it measures, what it says of a training that goes wrong, and that it is silent otherwise."""

import json

import numpy as np
import pytest
from conftest import one_line

from numpy_nn import monitor
from numpy_nn import layers
import mlp_from_scratch as mlp
from support import settings


def advice(digits, change=lambda model: None, epochs=3, **options):
    """(all the lines that the doctor writes in a training, the doctor)"""
    X, y = mlp.standardize(digits.train.X, 0.3, 0.4), digits.train.y
    s = settings.load(mlp, **({"hidden": (32, 16), "epochs": epochs, "batch_size": 32, "norm": "none"} | options))
    training = mlp.Trainer(*mlp.build(784, 10, s), s, len(X))
    change(training.model)
    training.monitor = monitor.TrainingMonitor(training.model, X[:200], s)
    lines = []
    original = training.monitor.on_epoch_end
    training.monitor.on_epoch_end = lambda *arguments: lines.append(original(*arguments)) or lines[-1]
    training.run(X, y, X[:100], y[:100], lambda row: None)
    return "\n".join(line for epoch in lines for line in epoch), training.monitor


def test_a_healthy_training_needs_no_advice(digits):
    for options in ({"norm": "batch"}, {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.0}):
        assert advice(digits, **options)[0] == ""


def test_dead_neurons(digits):
    def kill(model):
        model.views["0.b"][:24] = -1e3

    said, watched = advice(digits, kill)
    assert "of the neurons of hidden 1 are dead" in said
    assert said.count("hidden 1 are dead") == 1  # not again each epoch
    assert watched.history["dead"][-1][0] >= 0.75
    assert watched.history["dead"][-1][0] > 2 * watched.history["dead"][-1][1]


def test_steps_that_are_too_long(digits):
    said, _ = advice(digits, learning_rate=1.0, weight_decay=0.0, batch_size=600, epochs=1)
    assert "a step changes the weights of" in said
    assert "lower --learning-rate" in said
    assert "--max-grad-norm" not in said  # which Adam divides out again


def test_a_gradient_that_vanishes(digits):
    said, _ = advice(digits, hidden=(8,) * 7, activation="sigmoid", init="random", learning_rate=1e-5)
    assert "the gradient vanishes" in said


def test_a_network_that_says_the_same_of_every_image(digits):
    def shout(model):
        model.views["2.b"][3] = 1e3

    said, _ = advice(digits, shout, epochs=1, learning_rate=1e-6)
    assert "every image is put into the same class" in said
    assert "another --learning-rate than 1e-06" in said


def test_it_advises_what_is_not_so_already():
    model = mlp.MLP((3, 4, 2), np.random.default_rng(0))
    remedies = monitor.TrainingMonitor(model, None, settings.load(mlp, norm="batch", activation="tanh")).remedies
    assert remedies(norm="batch", activation="relu") == "try --activation relu, a lower --learning-rate"
    for optimizer, clip in (("adam", False), ("sgd", True)):
        assert ("--max-grad-norm" in monitor.large_step_advice(settings.load(mlp, optimizer=optimizer))) == clip


def test_its_figures_by_hand(digits):
    X, y = mlp.standardize(digits.train.X[:50], 0.3, 0.4), digits.train.y[:50]
    model = mlp.MLP((784, 5, 10), np.random.default_rng(0))
    model.views["0.W"][:, 0], model.views["0.b"][0] = 0, -1  # a neuron that is always silent
    one = monitor.TrainingMonitor(model, X, settings.load(mlp))
    one.before_step()
    model.backward(layers.softmax_cross_entropy(model.forward(X, training=True), y)[1])
    before = model.params.copy()
    model.params -= 1e-3 * model.grads
    one.on_epoch_end(1, 1e-3)
    W, dW = before[: 784 * 5], model.grads[: 784 * 5]
    assert one.history["epoch"] == [1]
    assert one.history["dead"] == [[0.2]]
    assert one.history["nonfinite"] == [[0, 0]]
    assert one.history["gradient_norm"][0][0] == pytest.approx(np.linalg.norm(dW), rel=1e-5)
    assert one.history["update_ratio"][0][0] == pytest.approx(1e-3 * np.linalg.norm(dW) / np.linalg.norm(W), rel=1e-3)


def test_to_look_at_a_network_changes_nothing_in_it(digits):
    model = mlp.MLP((784, 8, 10), np.random.default_rng(0), norm="batch", dropout=0.2, dropout_rng=np.random.default_rng(1))
    X, y = digits.train.X[:50].reshape(50, -1), digits.train.y[:50]
    vectors = [vector.copy() for vector in (model.params, model.grads, model.buffers)]
    stream = str(model.layers[-2].rng.bit_generator.state)
    outputs, gradients = monitor.distributions(model, X, y, layers.softmax_cross_entropy)
    assert set(outputs) == {"hidden 1"}
    assert set(gradients) == {"hidden 1", "output"}
    for now, before in zip((model.params, model.grads, model.buffers), vectors, strict=True):
        assert np.array_equal(now, before)
    assert str(model.layers[-2].rng.bit_generator.state) == stream


def test_the_cause_of_a_loss_that_is_no_number():
    X = np.ones((2, 3), np.float32)
    model = mlp.MLP((3, 4, 2), np.random.default_rng(0))
    assert "images" in monitor.locate_nonfinite(model, X * np.nan)
    model.views["1.b"][0] = np.inf
    assert "the weights of output are no longer finite" in monitor.locate_nonfinite(model, X)
    model.params[:] = 1e38
    with np.errstate(over="ignore"):
        assert "what Linear of hidden 1 puts out" in monitor.locate_nonfinite(model, X)


def test_divergence_stops_with_the_cause_and_keeps_the_last_good_checkpoint(run_script, tmp_path):
    flags = ("--dataset", "digits", "--hidden", "--dropout", 0, "--optimizer", "sgd", "--l2", 1, "--weight-decay", 0)
    rise = ("--epochs", 60, "--warmup", 0.9, "--learning-rate", 400)  # above a rate of 2, such a penalty makes weights grow
    line = one_line(run_script("mlp_from_scratch", *flags, *rise, "--output-dir", "run"), 1)
    assert "the loss became" in line
    assert "lower --learning-rate" in line
    folder = tmp_path / "run"
    assert str(folder.relative_to(tmp_path) / "checkpoint.safetensors") in line
    from safetensors import safe_open

    with safe_open(folder / "checkpoint.safetensors", framework="numpy") as file:
        metadata = json.loads(file.metadata()["metadata"])
        assert metadata["epoch"] >= 1
        assert np.isfinite(file.get_tensor("params")).all()
    assert not (folder / "metrics.json").exists()
