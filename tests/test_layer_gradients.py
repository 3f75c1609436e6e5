"""The hand-written layers and losses against central differences, PyTorch and mathematics."""

import numpy as np
import pytest
import torch
from conftest import relative

import mlp_from_scratch as mlp
from numpy_nn import layers

RNG = np.random.default_rng(7)


def central_differences(f, x, h=1e-5):
    """Gradient of the scalar f() with respect to the float64 array x, which f reads."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        value = x[i]
        x[i] = value + h
        above = f()
        x[i] = value - h
        gradient[i] = (above - f()) / (2 * h)
        x[i] = value
    return gradient


def standalone(layer):
    """A layer with float64 parameters and gradients of its own, outside any MLP."""
    layer.params = {name: RNG.standard_normal(shape) for name, shape in layer.shapes.items()}
    layer.grads = {name: np.full(shape, np.nan) for name, shape in layer.shapes.items()}
    return layer


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("make", [lambda: layers.Linear(4, 3), layers.ReLU])
def test_layer_gradients_match_central_differences(make, n):
    layer, x = standalone(make()), RNG.standard_normal((n, 4))
    dout = RNG.standard_normal(layer.forward(x, training=True).shape)
    dx = layer.backward(dout)

    def f():
        return float((layer.forward(x) * dout).sum())

    assert relative(dx, central_differences(f, x)) < 1e-6
    for name, value in layer.params.items():
        assert relative(layer.grads[name], central_differences(f, value)) < 1e-6


@pytest.mark.parametrize("make", [lambda: layers.Linear(4, 3), layers.ReLU])
def test_layer_gradients_match_autograd(make):
    layer, x = standalone(make()), RNG.standard_normal((6, 4))
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in layer.params.items()}
    tx = torch.tensor(x, requires_grad=True)
    out = tx @ tensors["W"] + tensors["b"] if tensors else torch.relu(tx)
    y = layer.forward(x, training=True)
    assert relative(y, out.detach().numpy()) < 1e-12
    dout = RNG.standard_normal(y.shape)
    out.backward(torch.tensor(dout))
    assert relative(layer.backward(dout), tx.grad.numpy()) < 1e-12
    for name, tensor in tensors.items():
        assert relative(layer.grads[name], tensor.grad.numpy()) < 1e-12


@pytest.mark.parametrize("hidden", [(), (6,), (7, 5, 4)])
def test_network_gradients_match_central_differences(hidden):
    model = mlp.MLP((8, *hidden, 3), np.random.default_rng(1), dtype=np.float64)
    model.params += 0.1 * RNG.standard_normal(model.params.shape)  # biases that are not 0
    X, y = RNG.standard_normal((5, 8)), RNG.integers(0, 3, 5)

    def f():
        return layers.softmax_cross_entropy(model.forward(X), y)[0]

    _, dlogits = layers.softmax_cross_entropy(model.forward(X, training=True), y)
    model.grads[:] = np.nan  # whatever backward does not fill stays visible
    dX = model.backward(dlogits, input_gradient=True)
    assert relative(model.grads, central_differences(f, model.params)) < 1e-6
    assert relative(dX, central_differences(f, X)) < 1e-6
    filled = model.grads.copy()
    f()
    assert model.backward(dlogits) is None  # without the input's gradient, the others are the same
    assert relative(model.grads, filled) < 1e-12


def test_softmax_cross_entropy_matches_torch():
    logits, y = 3 * RNG.standard_normal((7, 5)), RNG.integers(0, 5, 7)
    loss, dlogits = layers.softmax_cross_entropy(logits, y)
    tensor = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(tensor, torch.tensor(y))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert relative(dlogits, tensor.grad.numpy()) < 1e-12
    assert relative(dlogits, central_differences(lambda: layers.softmax_cross_entropy(logits, y)[0], logits)) < 1e-6


def test_extreme_logits_do_not_overflow():
    logits = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        loss, dlogits = layers.softmax_cross_entropy(logits, np.array([1, 0]))
    assert loss == pytest.approx((2e4 + np.log(3)) / 2)
    assert np.isfinite(dlogits).all()
    assert np.allclose(layers.softmax(logits).sum(axis=1), 1)


def test_sigmoid_cross_entropy_matches_torch_at_the_extremes():
    logits, y = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 3]]), np.array([1, 1])
    with np.errstate(all="raise", under="ignore"):
        loss, dlogits = layers.sigmoid_cross_entropy(logits, y, 0.1)
    tensor = torch.tensor(logits, requires_grad=True)
    targets = torch.nn.functional.one_hot(torch.tensor(y), 3).double() * 0.9 + 0.1 / 3
    expected = torch.nn.functional.binary_cross_entropy_with_logits(tensor, targets, reduction="sum") / 2
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert relative(dlogits, tensor.grad.numpy()) < 1e-12


def test_dropout_preserves_the_expected_value_and_is_the_identity_in_eval_mode():
    layer = layers.Dropout(0.3, np.random.default_rng(0))
    x = np.ones((400, 500), np.float32)
    y = layer.forward(x, training=True)
    assert set(np.unique(y)) == {0, np.float32(1 / 0.7)}
    assert np.mean(y == 0) == pytest.approx(0.3, abs=0.01)
    assert y.dtype == np.float32
    assert layer.forward(x) is x


def test_batch_norm_matches_torch_in_training_and_eval_mode():
    model = mlp.MLP((6, 5, 3), np.random.default_rng(0), norm="batch", dtype=np.float64)
    layer, torch_layer = model.layers[1], torch.nn.BatchNorm1d(5, dtype=torch.float64)
    for _ in range(4):
        x = 2 + 3 * RNG.standard_normal((7, 5))
        assert relative(layer.forward(x, training=True), torch_layer(torch.tensor(x)).detach().numpy()) < 1e-12
    torch_layer.eval()
    assert relative(layer.forward(x), torch_layer(torch.tensor(x)).detach().numpy()) < 1e-12
    assert relative(layer.buffers["var"], torch_layer.running_var.numpy()) < 1e-12


@pytest.mark.parametrize("options", [
    {"norm": "batch"}, {"norm": "layer"}, {"activation": "gelu"}, {"activation": "tanh"}, {"activation": "leaky_relu"},
    {"activation": "sigmoid"}, {"dropout": 0.5, "input_dropout": 0.2, "dropout_rng": np.random.default_rng(0)},
])  # fmt: skip
def test_all_layers_stay_in_float32(options):
    model = mlp.MLP((6, 5, 4, 3), np.random.default_rng(0), **options)
    logits = model.forward(RNG.standard_normal((8, 6)).astype(np.float32), training=True)
    for loss, _ in layers.LOSSES.values():
        _, dlogits = loss(logits, np.zeros(8, int), 0.1)
        assert logits.dtype == dlogits.dtype == model.backward(dlogits, input_gradient=True).dtype == np.float32
