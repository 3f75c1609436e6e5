"""extras/minimal_mlp.py is the network of mlp_from_scratch.py: its gradients and its losses are the same."""

import numpy as np
import pytest
from conftest import ROOT

import mlp_from_scratch as mlp
from extras import minimal_mlp


@pytest.fixture
def twins():
    """(parameters of the minimal network, the same network as an MLP, ten batches of images and labels)."""
    rng = np.random.default_rng(0)
    params = minimal_mlp.init(rng)
    model = mlp.MLP(minimal_mlp.SIZES, dtype=np.float64)
    for layer, (W, b) in zip(model.with_params, params, strict=True):
        b += 0.1 * rng.standard_normal(b.shape)
        layer.params["W"][...], layer.params["b"][...] = W, b
    return params, model, rng.standard_normal((10, 32, 784)), rng.integers(0, 10, (10, 32))


def test_the_gradients_are_those_of_the_mlp(twins):
    params, model, X, y = twins
    outputs = minimal_mlp.forward(params, X[0])
    loss, dlogits = minimal_mlp.cross_entropy(outputs[-1], y[0])
    expected, expected_dlogits = mlp.softmax_cross_entropy(model.forward(X[0], training=True), y[0])
    model.backward(expected_dlogits)
    assert loss == pytest.approx(expected, rel=1e-12)
    for layer, grads in zip(model.with_params, minimal_mlp.backward(params, outputs, dlogits), strict=True):
        for name, gradient in zip(("W", "b"), grads, strict=True):
            assert np.abs(layer.grads[name]).max() > 1e-3
            assert np.allclose(gradient, layer.grads[name], rtol=1e-10, atol=1e-14)


def test_ten_losses_are_those_of_the_mlp(twins):
    params, model, X, y = twins
    optimizer, losses, expected = mlp.Optimizer("sgd", model.params, model.grads), [], []
    for x, labels in zip(X, y, strict=True):
        losses.append(minimal_mlp.train_step(params, x, labels, 0.1))
        loss, dlogits = mlp.softmax_cross_entropy(model.forward(x, training=True), labels)
        model.backward(dlogits)
        optimizer.step(0.1)
        expected.append(loss)
    assert len(set(losses)) == 10
    assert losses == pytest.approx(expected, rel=1e-9)


def test_it_starts_like_the_mlp_and_is_short(capsys):
    params = minimal_mlp.init(np.random.default_rng(0))
    stds = [W.std() for W, _ in params]
    assert stds == pytest.approx([(2 / n) ** 0.5 for n in minimal_mlp.SIZES[:-1]], rel=0.05)
    assert len((ROOT / "extras/minimal_mlp.py").read_text(encoding="utf-8").splitlines()) <= 110
    minimal_mlp.main(["--dataset", "digits"])
    *epochs, last = capsys.readouterr().out.splitlines()
    assert len(epochs) == minimal_mlp.EPOCHS
    assert float(last.split()[-1].rstrip("%")) > 90
