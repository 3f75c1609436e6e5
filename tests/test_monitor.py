"""The training monitor: its measurements, its advice for trainings that go wrong, and its silence otherwise."""

import json

import numpy as np
import pytest
from conftest import one_line

import data
import mlp_from_scratch as mlp
from numpy_nn import layers, monitor
from support import settings


def advice(digits, change=lambda model: None, epochs=3, **options):
    """(all lines of advice in a training, the monitor). `change` is applied to the model before the training."""
    X, y = data.standardize(digits.train.X, 0.3, 0.4), digits.train.y
    s = settings.load(mlp, **({"hidden": (32, 16), "epochs": epochs, "batch_size": 32, "norm": "none"} | options))
    trainer = mlp.Trainer(*mlp.build(784, 10, s), s, len(X))
    change(trainer.model)
    trainer.monitor = monitor.TrainingMonitor(trainer.model, X[:200], s)
    lines = []
    original = trainer.monitor.on_epoch_end
    trainer.monitor.on_epoch_end = lambda *arguments: lines.append(original(*arguments)) or lines[-1]
    trainer.fit(X, y, X[:100], y[:100])
    return "\n".join(line for epoch in lines for line in epoch), trainer.monitor


def test_a_healthy_training_needs_no_advice(digits):
    for options in ({"norm": "batch"}, {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.0}):
        assert advice(digits, **options)[0] == ""


def test_dead_neurons(digits):
    def kill(model):
        model.views["0.b"][:24] = -1e3

    said, trained = advice(digits, kill)
    assert "of the neurons of hidden 1 are dead" in said
    assert said.count("hidden 1 are dead") == 1  # not again in the next epoch
    assert trained.history["dead"][-1][0] >= 0.75
    assert trained.history["dead"][-1][0] > 2 * trained.history["dead"][-1][1]


def test_too_large_steps(digits):
    said, _ = advice(digits, learning_rate=1.0, weight_decay=0.0, batch_size=600, epochs=1)
    assert "one step changed the weights of" in said
    assert "lower --learning-rate" in said
    assert "--max-grad-norm" not in said  # since Adam divides by the size of the gradient


def test_a_vanishing_gradient(digits):
    said, _ = advice(digits, hidden=(8,) * 7, activation="sigmoid", init="random", learning_rate=1e-5)
    assert "vanishing gradient: its norm is" in said


def test_the_same_class_for_all_images(digits):
    def prefer_class_3(model):
        model.views["2.b"][3] = 1e3

    said, _ = advice(digits, prefer_class_3, epochs=1, learning_rate=1e-6)
    assert "the same class is predicted for all images" in said
    assert "another --learning-rate than 1e-06" in said


def test_it_does_not_advise_the_present_settings():
    model = mlp.MLP((3, 4, 2), np.random.default_rng(0))
    remedies = monitor.TrainingMonitor(model, None, settings.load(mlp, norm="batch", activation="tanh")).remedies
    assert remedies(norm="batch", activation="relu") == "try --activation relu, a lower --learning-rate"
    for optimizer, clip in (("adam", False), ("sgd", True)):
        assert ("--max-grad-norm" in monitor.large_step_advice(settings.load(mlp, optimizer=optimizer))) == clip


def test_its_measurements_by_hand(digits):
    X, y = data.standardize(digits.train.X[:50], 0.3, 0.4), digits.train.y[:50]
    model = mlp.MLP((784, 5, 10), np.random.default_rng(0))
    model.views["0.W"][:, 0], model.views["0.b"][0] = 0, -1  # a dead neuron
    measured = monitor.TrainingMonitor(model, X, settings.load(mlp))
    measured.before_step()
    model.backward(layers.softmax_cross_entropy(model.forward(X, training=True), y)[1])
    before = model.params.copy()
    model.params -= 1e-3 * model.grads
    measured.on_epoch_end(1, 1e-3)
    W, dW = before[: 784 * 5], model.grads[: 784 * 5]
    assert measured.history["epoch"] == [1]
    assert measured.history["dead"] == [[0.2]]
    assert measured.history["nonfinite"] == [[0, 0]]
    assert measured.history["gradient_norm"][0][0] == pytest.approx(np.linalg.norm(dW), rel=1e-5)
    assert measured.history["update_ratio"][0][0] == pytest.approx(1e-3 * np.linalg.norm(dW) / np.linalg.norm(W), rel=1e-3)


def test_a_resumed_monitor_does_not_repeat_its_advice(digits):
    X, y = data.standardize(digits.train.X[:50], 0.3, 0.4), digits.train.y[:50]
    model = mlp.MLP((784, 5, 10), np.random.default_rng(0))
    model.views["0.W"][:], model.views["0.b"][:] = 0, -1
    lines = {}
    first, second, fresh = (monitor.TrainingMonitor(model, X, settings.load(mlp)) for _ in range(3))
    for name, watcher in (("first", first), ("second", second), ("fresh", fresh)):
        if watcher is second:
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        watcher.before_step()
        model.backward(layers.softmax_cross_entropy(model.forward(X, training=True), y)[1])
        lines[name] = watcher.on_epoch_end(len(watcher.history["epoch"]) + 1, 1e-3)
    assert any("are dead" in line for line in lines["first"])
    assert lines["second"] == []
    assert lines["fresh"] == lines["first"]
    assert second.history["epoch"] == [1, 2]


def test_measuring_a_network_does_not_change_it(digits):
    model = mlp.MLP((784, 8, 10), np.random.default_rng(0), norm="batch", dropout=0.2, dropout_rng=np.random.default_rng(1))
    X, y = digits.train.X[:50].reshape(50, -1), digits.train.y[:50]
    vectors = [vector.copy() for vector in (model.params, model.grads, model.buffers)]
    rng_state = str(model.layers[-2].rng.bit_generator.state)
    outputs, gradients = monitor.distributions(model, X, y, layers.softmax_cross_entropy)
    assert set(outputs) == {"hidden 1"}
    assert set(gradients) == {"hidden 1", "output"}
    for now, before in zip((model.params, model.grads, model.buffers), vectors, strict=True):
        assert np.array_equal(now, before)
    assert str(model.layers[-2].rng.bit_generator.state) == rng_state


def test_the_place_of_a_value_that_is_not_finite():
    X = np.ones((2, 3), np.float32)
    model = mlp.MLP((3, 4, 2), np.random.default_rng(0))
    assert "images contain values that are not finite" in monitor.locate_nonfinite(model, X * np.nan)
    assert "the logits are finite, but the loss is not" in monitor.locate_nonfinite(model, X)
    model.views["1.b"][0] = np.inf
    assert "the weights of output are not finite" in monitor.locate_nonfinite(model, X)
    model.params[:] = 1e38
    with np.errstate(over="ignore"):
        assert "the output of Linear of hidden 1 is not finite" in monitor.locate_nonfinite(model, X)


def test_divergence_stops_with_the_cause_and_leaves_the_last_good_checkpoint(run_script, tmp_path):
    flags = ("--dataset", "digits", "--hidden", "--optimizer", "sgd", "--l2", 1, "--weight-decay", 0)
    rise = ("--epochs", 60, "--warmup", 0.9, "--learning-rate", 400)  # the penalty diverges above a learning rate of 2
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
