"""The NumPy MLP: its training on the digits, its weights files, and the monitor."""

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
from conftest import ROOT

import data
import mlp_from_scratch as mlp
import monitor
import run

SMALL = {"hidden": (24, 16), "epochs": 4, "batch_size": 64, "ema_decay": 0.9}


def train(images, on_epoch=lambda history: False, **options):
    return mlp.train(images, mlp.settings(**SMALL | options), on_epoch=on_epoch)


def features(images, dtype=np.float32):
    """The images as a Dataset of features (N, 784), without validation split."""
    splits = {"train": images.train, "test": images.test}
    for name, split in splits.items():
        X = split.X.reshape(len(split.y), -1).astype(dtype)
        splits[name] = dataclasses.replace(split, X=X)
    return dataclasses.replace(images, val=None, **splits)


@pytest.fixture(scope="module")
def trained(digits):
    """(model, history) of 12 epochs."""
    return train(digits, epochs=12)


def test_it_learns_the_digits(trained, digits):
    """A row for each epoch; what is evaluated are the weights that are left, without label smoothing."""
    model, history = trained
    accuracy = run.accuracy(model.predict_logits(digits.test.X), digits.test.y)
    assert accuracy == pytest.approx(0.93, abs=0.03)
    assert history.keys() == {*run.COLUMNS, "train_eval_loss", "train_eval_accuracy"}
    assert {len(values) for values in history.values()} == {12}
    steps, s = -(-len(digits.train.y) // 64), mlp.settings(**SMALL)
    rates = [mlp.lr_at(steps * epoch - 1, 12 * steps, s) for epoch in range(1, 13)]
    assert history["learning_rate"] == rates
    mean, std = data.normalization_stats(digits.train.X, "global")
    rows = ((digits.test.X - mean) / std).reshape(len(digits.test.y), -1)
    assert model.predict_logits(digits.test.X, 100) == pytest.approx(model.forward(rows), abs=1e-4)
    for name, split in (("train_eval", digits.train), ("val", digits.val)):
        logits = model.predict_logits(split.X)
        assert history[f"{name}_loss"][-1] == mlp.softmax_cross_entropy(logits, split.y)[0]
        assert history[f"{name}_accuracy"][-1] == run.accuracy(logits, split.y)


def test_losses_are_means_over_the_images_of_an_epoch(digits, monkeypatch):
    """Also where the last batch is shorter: 100 images in batches of 64 and 36."""
    monkeypatch.setattr(mlp.Trainer, "train_step", lambda trainer, x, y, lr: (float(len(x)), len(x) // 2))
    few = dataclasses.replace(digits.train, X=digits.train.X[:100], y=digits.train.y[:100])
    _, history = train(dataclasses.replace(digits, train=few), epochs=1)
    assert (history["train_loss"], history["train_accuracy"]) == ([(64 * 64 + 36 * 36) / 100], [0.5])


def test_the_same_seed_gives_the_same_bits(digits):
    options = {"epochs": 2, "dropout": 0.2, "shift": 1, "erase": 3}
    models = [train(digits, seed=seed, **options)[0] for seed in (3, 3, 4)]
    assert np.array_equal(models[0].values, models[1].values)
    assert np.abs(models[0].values - models[2].values).max() > 0.01


def test_features_without_validation(digits):
    def stop(history):
        return len(history["epoch"]) == 3

    model, history = train(features(digits), stop, flip=False)
    assert history["epoch"] == [1, 2, 3]
    assert history.keys() == {"epoch", "train_loss", "train_accuracy", "learning_rate", "seconds"}
    of_images, _ = train(digits, stop, flip=False)
    assert np.array_equal(of_images.values, model.values)


def test_float64_stays_float64(digits):
    model, _ = train(features(digits, np.float64), epochs=1, flip=False, weight_decay=0.1, dropout=0.1)
    assert model.values.dtype == model.grads.dtype == np.float64
    assert model.predict_logits(digits.test.X.astype(np.float64)).dtype == np.float64


@pytest.mark.parametrize("ema_decay", [0.0, 0.8])
def test_early_stopping_restores_the_best(ema_decay, digits):
    options = {"schedule": "constant", "learning_rate": 0.01, "patience": 3, "ema_decay": ema_decay}
    model, history = train(digits, epochs=100, **options)
    best, logits = int(np.argmax(history["val_accuracy"])), model.predict_logits(digits.val.X)
    assert len(history["epoch"]) == best + 1 + 3 < 100
    assert mlp.softmax_cross_entropy(logits, digits.val.y)[0] == history["val_loss"][best]
    assert history["val_loss"][best] != history["val_loss"][-1]


def test_augment_once(digits, monkeypatch):
    """One augmentation, of all images; or one of each batch; or of all, by nothing."""
    sizes, augment, n = [], data.augment, len(digits.train.y)
    monkeypatch.setattr(data, "augment", lambda X, *options: sizes.append(len(X)) or augment(X, *options))
    options = {"epochs": 2, "batch_size": 600, "shift": 1, "erase": 3}
    train(digits, augment_once=True, **options)
    assert sizes == [n]
    train(digits, **options)
    train(digits, augment_once=True, epochs=1, flip=False)
    assert sizes[1:] == [600, 600, n - 1200] * 2 + [n]


def test_zeros_leave_all_neurons_of_a_layer_equal(digits):
    """With random weights they differ."""
    for init, equal in (("zeros", True), ("xavier", False)):
        model, history = train(digits, init=init, activation="sigmoid", norm="none", dropout=0.0)
        W1, W2 = model.weights[0][0], model.weights[1][0]  # (784, 24), (24, 16)
        spread = max(np.ptp(W1, axis=1).max() / np.abs(W1).max(), np.ptp(W2, axis=0).max() / np.abs(W2).max())
        assert (spread < 1e-4) == equal, spread
        assert history["train_loss"][-1] < history["train_loss"][0]


def test_divergence(digits):
    with pytest.raises(run.Diverged):
        train(digits, optimizer="sgd", learning_rate=1000.0, norm="none", weight_decay=0.0, l2=1.0)


def test_impossible_settings():
    refused = [{"norm": "batch", "batch_size": 1}, {"learning_rate": 10.0, "weight_decay": 0.1}]
    refused += [{"train_on_val": True, "patience": 3}, {"train_on_val": True, "schedule": "plateau"}]
    for options in refused:
        with pytest.raises(run.Error):
            mlp.check_settings(mlp.settings(**options))


def test_the_network_of_the_settings(digits):
    s = mlp.settings(hidden=(7,), activation="tanh", norm="layer", dropout=0.2, input_dropout=0.1)
    layers = mlp.Trainer(digits, s).model.layers
    names = "Dropout Linear LayerNorm Activation Dropout Linear"
    assert [type(layer).__name__ for layer in layers] == names.split()
    assert (layers[0].p, layers[4].p, layers[0].rng is layers[4].rng) == (0.1, 0.2, True)
    assert len({tuple(rng.random(4)) for rng in mlp.make_rngs(3).values()}) == 4
    default = mlp.Trainer(digits, mlp.settings()).model
    assert default.name == "NumPy MLP 784-256-128-10"
    assert (len(default.params), len(default.buffers)) == (235_530, 768)


@pytest.mark.parametrize("make", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_views_of_its_own(make, trained, digits):
    model = make(trained[0])
    assert np.array_equal(model.predict_logits(digits.test.X), trained[0].predict_logits(digits.test.X))
    assert sum(view.size for view in model.views.values()) == len(model.values)
    for view in model.views.values():
        assert np.shares_memory(view, model.values)
        assert not np.shares_memory(view, trained[0].values)
    for (W, dW), layer in zip(model.weights, [x for x in model.layers if "W" in x.params], strict=True):
        assert (W is layer.params["W"], dW is layer.grads["W"]) == (True, True)
        assert np.shares_memory(dW, model.grads)
    model.params[:] = model.buffers[:] = 0
    assert not model.forward(np.ones((2, 784), np.float32)).any()
    assert trained[0].params.any()


@pytest.mark.parametrize("normalize", ["global", "per_pixel"])
def test_saved_and_restored(normalize, digits, tmp_path):
    path, options = tmp_path / "w.safetensors", {"activation": "gelu", "input_dropout": 0.1, "dropout": 0.1}
    model, _ = train(digits, epochs=1, normalize=normalize, **options)
    mlp.save(path, model, classes=digits.classes, temperature=0.5)
    restored, metadata = mlp.restore(path)
    assert np.array_equal(restored.predict_logits(digits.test.X), model.predict_logits(digits.test.X))
    assert (metadata["temperature"], tuple(metadata["classes"])) == (0.5, digits.classes)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # damaged
    path.write_bytes(content)
    with pytest.raises(run.Error):
        mlp.restore(path)
    run.save_weights(path, {"W": np.ones(1)}, {"model": "cnn"})
    with pytest.raises(run.Error):
        mlp.restore(path)


def test_the_committed_network(real):
    """90.53 % of the test images, as models/README.md says."""
    model, metadata = mlp.restore(ROOT / "models/mlp.safetensors")
    logits = model.predict_logits(real.test.X)
    assert run.accuracy(logits, real.test.y) == pytest.approx(0.9053, abs=0.0003)
    assert mlp.softmax_cross_entropy(logits, real.test.y)[0] == pytest.approx(0.34444, abs=1e-4)
    assert metadata["temperature"] == pytest.approx(0.722, abs=0.001)
    assert tuple(metadata["classes"]) == real.classes


def watched(digits, change=None, **options):
    """(the advice in a training, its monitor); `change` is applied to the views of the new model."""
    s = mlp.settings(**{"hidden": (32, 16), "epochs": 3, "batch_size": 32, "norm": "none"} | options)
    trainer = mlp.Trainer(digits, s)
    if change:
        change(trainer.model.views)
    advice, X = [], data.standardize(digits.train.X, trainer.model.mean, trainer.model.std)
    for epoch in range(1, s.epochs + 1):
        for batch in (batches := data.batches(len(X), s.batch_size, trainer.rngs["shuffle"])):
            if batch is batches[-1]:
                trainer.monitor.before_step()
            trainer.train_step(X[batch], digits.train.y[batch], s.learning_rate)
        advice += trainer.monitor.end_epoch(epoch, s.learning_rate)
    return advice, trainer.monitor


@pytest.mark.parametrize("options", [{"norm": "batch"}, {"optimizer": "sgd", "learning_rate": 0.03}])
def test_a_healthy_training_needs_no_advice(options, digits):
    advice, watching = watched(digits, weight_decay=0.0, **options)
    assert advice == watching.reported == []
    assert watching.history["epoch"] == [1, 2, 3]


DEEP = {"hidden": (8,) * 7, "activation": "sigmoid", "init": "random", "learning_rate": 1e-5}
PROBLEMS = [("hidden 1 dead", lambda views: views["0.b"][:24].fill(-1e3), {}), ("vanishing", None, DEEP)]
PROBLEMS += [("output step", None, {"learning_rate": 1.0, "weight_decay": 0.0, "batch_size": 600})]
PROBLEMS += [("one class", lambda views: views["2.b"][3:4].fill(1e3), {"learning_rate": 1e-6})]


@pytest.mark.parametrize(("problem", "change", "options"), PROBLEMS)
def test_each_advice_is_given_once(problem, change, options, digits):
    advice, watching = watched(digits, change, **options)
    assert problem in watching.reported
    assert len(advice) == len(watching.reported) == len(set(watching.reported))
    assert problem != "one class" or watching.reported == ["one class"]
    resumed = monitor.Monitor(watching.model, digits.train.X, watching.s)
    resumed.history, resumed.reported = json.loads(json.dumps([watching.history, watching.reported]))
    resumed.before_step()
    assert resumed.end_epoch(4, 0.0) == []
    assert resumed.history["epoch"] == [1, 2, 3, 4]


def test_its_numbers_by_slow_loops(digits):
    y, X = digits.train.y[:50], digits.train.X[:50]
    model = mlp.MLP((784, 5, 4, 10), np.random.default_rng(0))
    model.mean, model.std = 0.3, 0.4
    model.views["0.W"][:, 0], model.views["0.b"][0] = 0, -1  # a dead neuron
    watching = monitor.Monitor(model, X, mlp.settings())
    x = (X.reshape(50, -1) - 0.3) / 0.4
    watching.before_step()
    model.backward(mlp.softmax_cross_entropy(model.forward(x, training=True), y)[1])
    before = [W.copy() for W, _ in model.weights]
    model.params -= 1e-2 * model.grads
    watching.end_epoch(1, 1e-2)
    norms = [sum(float(value) ** 2 for value in dW.ravel()) ** 0.5 for _, dW in model.weights]
    lengths = [sum(float(value) ** 2 for value in W.ravel()) ** 0.5 for W in before]
    assert watching.history["gradient_norm"] == [pytest.approx(norms, rel=1e-5)]
    ratios = [1e-2 * norm / length for norm, length in zip(norms, lengths, strict=True)]
    assert watching.history["update_ratio"] == [pytest.approx(ratios, rel=1e-3)]
    dead, hidden = [], x
    for number in (0, 1):
        hidden = np.maximum(hidden @ model.views[f"{number}.W"] + model.views[f"{number}.b"], 0)
        dead.append(np.mean([len(set(column.tolist())) == 1 for column in hidden.T]))
    assert watching.history["dead"] == [dead]
    assert dead[0] == 0.2
