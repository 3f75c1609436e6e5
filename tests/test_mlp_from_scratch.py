"""The NumPy MLP as a network: its flat parameters, initialization, penalties, predictions and weights file."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, relative

import mlp_from_scratch as mlp
from support import files, settings

RNG = np.random.default_rng(7)


def test_layers_are_views_of_one_vector():
    model = mlp.MLP((784, 256, 128, 10), np.random.default_rng(0))
    assert len(model.params) == 784 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10
    assert all(np.shares_memory(view, model.params) for view in model.views.values())
    model.params[:] = 0
    assert not model.forward(np.ones((2, 784), np.float32)).any()
    assert model.forward(np.ones((2, 784), np.float32)).dtype == np.float32


@pytest.mark.parametrize(("init", "std"), [
    ("he", (2 / 1000) ** 0.5), ("xavier", (2 / 1500) ** 0.5), ("lecun", (1 / 1000) ** 0.5), ("random", 0.05),
])  # fmt: skip
def test_initialization(init, std):
    model = mlp.MLP((1000, 500), np.random.default_rng(0), init=init, init_scale=0.05)
    assert model.views["0.W"].std() == pytest.approx(std, rel=0.01)
    assert abs(model.views["0.W"].mean()) < 1e-3
    assert not model.views["0.b"].any()


def test_gradient_clipping_matches_torch():
    model = mlp.MLP((6, 5, 3), np.random.default_rng(0), dtype=np.float64)
    model.grads[:] = RNG.standard_normal(len(model.grads))
    tensor = torch.tensor(model.grads, requires_grad=True)
    tensor.grad = torch.tensor(model.grads)
    norm = torch.nn.utils.clip_grad_norm_([tensor], 2.0)
    assert model.clip_grad_norm(2.0) == pytest.approx(norm.item())
    assert relative(model.grads, tensor.grad.numpy()) < 1e-6
    assert model.clip_grad_norm(5.0) == pytest.approx(2.0)  # short enough: unchanged
    assert relative(model.grads, tensor.grad.numpy()) < 1e-6


def test_penalties_and_their_gradients():
    model = mlp.MLP((6, 5, 3), np.random.default_rng(0), dtype=np.float64)
    weights = [model.views["0.W"], model.views["1.W"]]
    penalty = 0.1 * sum(np.abs(W).sum() for W in weights) + 0.05 * sum((W**2).sum() for W in weights)
    model.grads[:] = 0
    assert model.add_penalties(0.1, 0.1) == pytest.approx(penalty)
    for (W, dW), view in zip(model.weights, weights, strict=True):
        assert W is view or np.shares_memory(W, view)
        assert dW == pytest.approx(0.1 * np.sign(W) + 0.1 * W)
    assert not model.layers[-1].grads["b"].any()  # of the weights alone


def test_logits_in_batches_are_the_logits():
    model = mlp.MLP((20, 8, 10), np.random.default_rng(0), dtype=np.float64)
    X = RNG.random((33, 20))
    assert np.allclose(model.predict_logits(X, batch_size=7), model.forward(X), rtol=1e-12)


def test_rngs_are_independent_and_reproducible():
    drawn = {name: rng.random(4).tolist() for name, rng in mlp.make_rngs(3).items()}
    assert set(drawn) == {"init", "shuffle", "dropout", "augment"}
    assert len(set(map(tuple, drawn.values()))) == 4
    assert {name: rng.random(4).tolist() for name, rng in mlp.make_rngs(3).items()} == drawn
    assert mlp.make_rngs(4)["init"].random(4).tolist() != drawn["init"]


def test_build_follows_the_settings():
    s = settings.load(mlp, hidden=(7, 5), activation="tanh", norm="layer", dropout=0.2, input_dropout=0.1)
    model, rngs = mlp.build(20, 3, s)
    assert [type(layer).__name__ for layer in model.layers] == [
        "Dropout", "Linear", "LayerNorm", "Tanh", "Dropout", "Linear", "LayerNorm", "Tanh", "Dropout", "Linear"]  # fmt: skip
    assert model.name == "20-7-5-3"
    assert all(layer.rng is rngs["dropout"] for layer in model.layers if hasattr(layer, "rng"))
    again, _ = mlp.build(20, 3, s)
    assert np.array_equal(model.params, again.params)


@pytest.mark.parametrize(("options", "message"), [
    ({"norm": "batch", "batch_size": 1}, "--batch-size 1: batch normalization needs 2 images or more"),
    ({"learning_rate": 10.0, "weight_decay": 0.1}, "--weight-decay 0.1: with --learning-rate 10"),
])  # fmt: skip
def test_settings_that_cannot_be_combined(options, message):
    s = settings.load(mlp, **options)
    with pytest.raises(settings.SettingError, match=message):
        mlp.check_settings(s)
    with pytest.raises(settings.SettingError, match=message):
        mlp.build(4, 3, s)


def test_saved_and_restored_predictions_are_identical(tmp_path):
    path = tmp_path / "w.safetensors"
    model = mlp.MLP((784, 32, 10), np.random.default_rng(0), norm="batch", activation="tanh", input_dropout=0.1,
                    dropout_rng=np.random.default_rng(0))  # fmt: skip
    model.forward(RNG.random((50, 784), dtype=np.float32), training=True)  # changes the running mean and variance
    mlp.save(path, model, {"mean": 0.5})
    restored, metadata = mlp.restore(path)
    X = RNG.random((9, 784), dtype=np.float32)
    assert np.array_equal(model.predict_logits(X), restored.predict_logits(X))
    assert metadata["mean"] == 0.5


def test_other_weights_files_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    files.save_weights(path, {"W": np.ones(1)}, {"model": "cnn"})
    with pytest.raises(files.FileError, match=r"contains a CNN \(backbone.safetensors\), expected a NumPy MLP"):
        mlp.restore(path)
    mlp.save(path, mlp.MLP((4, 3), np.random.default_rng(0)), {})
    tensors, metadata = files.load_weights(path)
    for changed in (dict.fromkeys(tensors, np.ones(1, np.float32)), {"0.W": tensors["0.W"]}):
        files.save_weights(path, changed, metadata)
        with pytest.raises(files.FileError, match="not in this project's format"):
            mlp.restore(path)


def test_importing_it_imports_no_torch():
    code = "import sys, mlp_from_scratch; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
