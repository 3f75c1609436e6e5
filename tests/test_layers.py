"""Layers, losses and whole networks in float64, against central differences and PyTorch's autograd."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import mlp_from_scratch as mlp

RNG = np.random.default_rng(7)
STATE = RNG.bit_generator.state

# {name: (the layer for x (N, 4); the same in PyTorch, in training mode, of the layer, its parameters, x)}
LAYERS = {
    "Linear": (lambda: mlp.Linear(4, 3), lambda layer, p, x: x @ p["W"] + p["b"]),
    "Linear without b": (lambda: mlp.Linear(4, 3, bias=False), lambda layer, p, x: x @ p["W"]),
    "Dropout": (lambda: mlp.Dropout(0.4, RNG), lambda layer, p, x: x * torch.tensor(layer.mask)),
    "BatchNorm": (lambda: mlp.BatchNorm(4), lambda _, p, x: F.batch_norm(x, None, None, *p.values(), True)),
    "LayerNorm": (lambda: mlp.LayerNorm(4), lambda _, p, x: F.layer_norm(x, x.shape[1:], *p.values())),
}
for f in (F.relu, F.leaky_relu, F.tanh, F.gelu, F.sigmoid):
    LAYERS[f.__name__] = lambda f=f: mlp.Activation(f.__name__), lambda layer, p, x, f=f: f(x)
LAYERS["identity"] = lambda: mlp.Activation("identity"), lambda layer, p, x: x * 1


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Whatever the order of the tests."""
    RNG.bit_generator.state = STATE


def central_differences(function, x, step=1e-5):
    """The gradient of function() with respect to the float64 array x, of which it depends."""
    gradient = np.empty_like(x)
    for i, value in np.ndenumerate(x.copy()):
        x[i] = value + step
        above = function()
        x[i] = value - step
        gradient[i] = (above - function()) / (2 * step)
        x[i] = value
    return gradient


def relative(a, b):
    """The largest difference relative to the largest magnitude; infinite where a number is missing."""
    assert np.shape(a) == np.shape(b)
    error = np.abs(a - b).max() / max(np.abs(a).max(), np.abs(b).max(), 1e-300)
    return error if np.isfinite(error) else np.inf


def standalone(name):
    """A layer with float64 parameters of its own; what backward does not fill stays NaN."""
    layer = LAYERS[name][0]()
    layer.params = {part: RNG.standard_normal(array.shape) for part, array in layer.params.items()}
    layer.grads = {part: np.full_like(array, np.nan) for part, array in layer.params.items()}
    return layer


def test_every_layer_of_the_tables_is_here():
    norms = {norm.__name__ for norm in mlp.NORMS.values()}
    assert set(LAYERS) == {"Linear", "Linear without b", "Dropout"} | norms | set(mlp.ACTIVATIONS)
    others = {layer.__name__ for layer in mlp.Layer.__subclasses__()} - norms
    assert others == {"Linear", "Activation", "Dropout"}


@pytest.mark.parametrize("n", [3, 8])
@pytest.mark.parametrize("name", LAYERS)
def test_output_and_gradients(name, n):
    layer, x = standalone(name), RNG.standard_normal((n, 4))
    y, arrays = layer.forward(x, training=True), {"x": x} | layer.params
    leaves = {part: torch.tensor(array, requires_grad=True) for part, array in arrays.items()}
    expected = LAYERS[name][1](layer, {part: leaves[part] for part in layer.params}, leaves["x"])
    assert relative(y, expected.detach().numpy()) < 1e-12
    dout, x_before = RNG.standard_normal(y.shape), x.copy()
    expected.backward(torch.tensor(dout))
    dout_before = dout.copy()
    gradients = {"x": layer.backward(dout)} | {part: grad.copy() for part, grad in layer.grads.items()}
    assert np.array_equal(dout, dout_before)
    assert np.array_equal(x, x_before)

    def value():
        if name == "Dropout":  # with the mask of the forward pass above
            return np.vdot(dout, x * layer.mask)
        return np.vdot(dout, layer.forward(x, training=True))

    for part, gradient in gradients.items():
        assert relative(gradient, leaves[part].grad.numpy()) < 1e-11, part
        assert relative(gradient, central_differences(value, arrays[part])) < 1e-7, part


@pytest.mark.parametrize("name", LAYERS)
def test_a_pass_in_eval_mode_does_not_disturb_the_backward_pass(name):
    layer, x = standalone(name), RNG.standard_normal((5, 4))
    y = layer.forward(x, training=True)
    dout = RNG.standard_normal(y.shape)
    expected = layer.backward(dout).copy()
    buffers = {part: buffer.copy() for part, buffer in layer.buffers.items()}
    layer.forward(RNG.standard_normal((3, 4)))
    assert np.array_equal(layer.backward(dout), expected)
    assert all(np.array_equal(layer.buffers[part], buffer) for part, buffer in buffers.items())
    assert name in ("BatchNorm", "Dropout") or np.array_equal(layer.forward(x), y)


def test_batch_norm_has_the_running_statistics_of_torch():
    layer, reference = standalone("BatchNorm"), torch.nn.BatchNorm1d(4, dtype=torch.float64)
    layer.params["gamma"][:], layer.params["beta"][:] = 1, 0
    for n in (7, 2, 30):
        x = 2 + 3 * RNG.standard_normal((n, 4))
        assert relative(layer.forward(x, training=True), reference(torch.tensor(x)).detach().numpy()) < 1e-12
        assert relative(layer.buffers["mean"], reference.running_mean.numpy()) < 1e-12
        assert relative(layer.buffers["var"], reference.running_var.numpy()) < 1e-12
    for x in (RNG.standard_normal((7, 4)), RNG.standard_normal((1, 4))):
        assert relative(layer.forward(x), reference.eval()(torch.tensor(x)).detach().numpy()) < 1e-12


def test_batch_norm_of_a_single_row():
    """It is its own mean: the output is beta, no gradient passes, and the running statistics stay."""
    layer = standalone("BatchNorm")
    layer.buffers["mean"][:], layer.buffers["var"][:] = 3, 4
    assert np.array_equal(layer.forward(RNG.standard_normal((1, 4)), training=True)[0], layer.params["beta"])
    assert not layer.backward(np.ones((1, 4))).any()
    assert (set(layer.buffers["mean"]), set(layer.buffers["var"])) == ({3}, {4})


@pytest.mark.parametrize("p", [0.3, 0.8])
def test_dropout_keeps_the_mean(p):
    layer, x = mlp.Dropout(p, np.random.default_rng(0)), np.ones((400, 500), np.float32)
    y = layer.forward(x, training=True)
    assert set(np.unique(y)) == {0, np.float32(1 / (1 - p))}
    assert np.mean(y == 0) == pytest.approx(p, abs=0.01)
    assert y.mean() == pytest.approx(1, abs=0.02)
    assert not np.array_equal(layer.forward(x, training=True), y)  # another mask for each batch
    assert layer.forward(x) is x


VARIANCES = {"he": 2 / 500, "xavier": 2 / 1200, "lecun": 1 / 500, "fan_out": 1 / 700, "random": 0.05**2}
VARIANCES["zeros"] = 0


@pytest.mark.parametrize("init", mlp.INITS)
def test_initial_variances(init):
    model = mlp.MLP((500, 700, 3), RNG, init=init, init_scale=0.05, norm="layer")
    (W, _), (W_last, _) = model.weights
    assert W.var() == pytest.approx(VARIANCES[init], rel=0.01)
    assert abs(W.mean()) <= 3 * (VARIANCES[init] / W.size) ** 0.5
    assert W_last.var() == pytest.approx(mlp.INITS[init](700, 3, 0.05), rel=0.1)
    assert not model.views["0.b"].any()
    assert (set(model.views["1.gamma"]), set(model.views["1.beta"])) == ({1}, {0})


def torch_loss(name, logits, y, smoothing):
    classes = logits.shape[1]
    targets = F.one_hot(torch.tensor(y), classes).double() * (1 - smoothing) + smoothing / classes
    if name == "softmax":
        return F.cross_entropy(logits, targets)
    if name == "squared_error":
        return ((logits.softmax(1) - targets) ** 2).sum() / len(y)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(y)


EXTREME = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [9e4, -9e4, 1]])  # whose exponentials overflow


@pytest.mark.parametrize("logits", [3 * RNG.standard_normal((7, 5)), EXTREME])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", mlp.LOSSES)
def test_loss_and_gradient(name, smoothing, logits):
    (function, probabilities), y, before = mlp.LOSSES[name], np.arange(1, len(logits) + 1) % 3, logits.copy()
    with np.errstate(all="raise", under="ignore"):
        loss, dlogits = function(logits, y, smoothing)
        values = probabilities(logits)
    assert np.array_equal(logits, before)
    leaf = torch.tensor(logits, requires_grad=True)
    expected = torch_loss(name, leaf, y, smoothing)
    assert (type(loss), loss) == (float, pytest.approx(expected.item(), rel=1e-12))
    assert relative(dlogits, torch.autograd.grad(expected, leaf)[0].numpy()) < 1e-12
    torch_probabilities = leaf.sigmoid() if name == "sigmoid" else leaf.softmax(1)
    assert relative(values, torch_probabilities.detach().numpy()) < 1e-12
    if logits is not EXTREME:
        differences = central_differences(lambda: function(logits, y, smoothing)[0], logits)
        assert relative(dlogits, differences) < 1e-7


def test_squared_error_learns_little_where_a_network_is_confidently_wrong():
    wrong = np.array([[20.0, 0.0, 0.0]]), np.array([1])
    assert mlp.softmax_cross_entropy(*wrong)[1][0] == pytest.approx([1, -1, 0], abs=1e-8)
    assert 0 < np.abs(mlp.softmax_squared_error(*wrong)[1]).max() < 1e-7


def torch_network(model, params, x):
    """The logits of the network in PyTorch, in training mode; params: its parameters as one tensor."""
    start = 0
    for layer in model.layers:
        parts = {}
        for name, array in layer.params.items():
            end = start + array.size
            parts[name], start = params[start:end].reshape(array.shape), end
        name = layer.name if isinstance(layer, mlp.Activation) else type(layer).__name__
        x = LAYERS["Linear without b" if parts.keys() == {"W"} else name][1](layer, parts, x)
    return x


NETWORKS = [((6, 5, 4), *pair, 0.0) for pair in itertools.product(("none", *mlp.NORMS), mlp.ACTIVATIONS)]
NETWORKS += [((), "none", "relu", 0.0), ((), "none", "relu", 0.4), ((6,), "batch", "tanh", 0.4)]
NETWORKS += [((6, 5), "layer", "gelu", 0.4), ((7, 6, 5, 4), "none", "sigmoid", 0.2)]


@pytest.mark.parametrize("loss", mlp.LOSSES)
@pytest.mark.parametrize(("hidden", "norm", "activation", "dropout"), NETWORKS)
def test_whole_network(hidden, norm, activation, dropout, loss):
    options = {"norm": norm, "activation": activation, "dropout": dropout, "input_dropout": dropout / 2}
    masks, rng = np.random.default_rng(2), np.random.default_rng(3)
    model = mlp.MLP((5, *hidden, 3), rng, masks, np.float64, **options)
    model.params += 0.3 * rng.standard_normal(len(model.params))  # so that biases and betas are not 0
    x, y, state = rng.standard_normal((7, 5)), rng.integers(0, 3, 7), masks.bit_generator.state

    def forward(penalties=()):
        masks.bit_generator.state = state
        value, dlogits = mlp.LOSSES[loss][0](model.forward(x, training=True), y, 0.1)
        return value + (model.add_penalties(*penalties) if penalties else 0), dlogits

    model.grads[:] = np.nan
    assert model.backward(forward()[1]) is None
    grads = model.grads.copy()
    dx = model.backward(forward()[1], input_gradient=True)
    assert np.array_equal(model.grads, grads)
    params, leaf = (torch.tensor(array, requires_grad=True) for array in (model.params, x))
    expected = torch_loss(loss, torch_network(model, params, leaf), y, 0.1)
    assert forward()[0] == pytest.approx(expected.item(), rel=1e-12)
    for gradient, tensor in zip((grads, dx), torch.autograd.grad(expected, (params, leaf)), strict=True):
        assert relative(gradient, tensor.numpy()) < 1e-11
    assert relative(dx, central_differences(lambda: forward()[0], x)) < 1e-6
    model.add_penalties(0.01, 0.02)
    grads = model.grads.copy()
    assert relative(grads, central_differences(lambda: forward((0.01, 0.02))[0], model.params)) < 1e-6
