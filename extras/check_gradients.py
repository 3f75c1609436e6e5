"""Check every backward pass of the NumPy MLP against central differences and PyTorch's autograd.

    python -m extras.check_gradients
    python -m extras.check_gradients --layer BatchNorm

checks each layer, activation and loss by itself with random upstream gradients, then whole networks: all
combinations of norm, activation, dropout, loss, label smoothing and penalty, in float64. It checks what is in
the tables ACTIVATIONS, NORMS and LOSSES of mlp_from_scratch.py: a new entry needs no change here. "-" means
that TORCH below has no counterpart. The exit code is 1 if an error is above TOLERANCE.
"""

import itertools
import sys

import numpy as np
import torch
from torch.nn import functional as F

import mlp_from_scratch as mlp
import run

LAYER: str = ""  # check only this one, as BatchNorm, gelu or softmax_loss; empty: all, and whole networks
ALL: bool = False  # print a row for each whole network
SEED: int = 0  # seed of weights, inputs and labels
TOLERANCE: float = 1e-7  # largest relative error that passes

LIMITS = {"SEED": (0, 2**31 - 1), "TOLERANCE": (1e-15, 1)}

SIZES, N, STEP = (5, 6, 4, 3), 7, 1e-5  # a network small enough to move each of its numbers up and down
REPEATS = 8  # checks of each layer, with other random numbers
PENALTIES = {"-": (0.0, 0.0), "L1": (0.01, 0.0), "L2": (0.0, 0.01)}  # (l1, l2)

# {name: the layer with parameters p, or the loss of logits and targets t, in PyTorch}
TORCH = {
    "Linear": lambda layer, p, x: x @ p["W"] + p.get("b", 0),
    "Dropout": lambda layer, p, x: x * torch.tensor(layer.mask),
    "BatchNorm": lambda layer, p, x: F.batch_norm(x, None, None, p["gamma"], p["beta"], True, eps=layer.eps),
    "LayerNorm": lambda layer, p, x: F.layer_norm(x, x.shape[1:], p["gamma"], p["beta"], layer.eps),
    "identity": lambda layer, p, x: x,
    "softmax_loss": lambda logits, t: F.cross_entropy(logits, t),
    "sigmoid_loss": lambda logits, t: F.binary_cross_entropy_with_logits(logits, t, reduction="sum") / len(t),
    "squared_error_loss": lambda logits, t: F.mse_loss(logits.softmax(1), t, reduction="sum") / len(t),
}
SAME_NAMES = ("relu", "leaky_relu", "tanh", "gelu", "sigmoid", "silu", "elu", "selu", "mish", "softplus")
TORCH |= {name: lambda layer, p, x, name=name: getattr(F, name)(x) for name in SAME_NAMES}


def errors(arrays, value, analytic, torch_value, parts):
    """{name: (relative error of the gradient against central differences, against autograd or NaN)}

    value(): a function of `arrays` {name: array}; analytic(): its gradients {name: array} by the backward
    pass; torch_value(leaves): the same function of {name: tensor}, by the entries `parts` of TORCH.
    """
    gradients, autograd, result = analytic(), {}, {}
    if parts <= TORCH.keys():
        leaves = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
        torch_value(leaves).backward()
        autograd = {name: leaf.grad for name, leaf in leaves.items()}
    for name, gradient in gradients.items():
        error = relative_error(gradient, autograd[name].numpy()) if autograd else np.nan
        result[name] = relative_error(gradient, central_differences(value, arrays[name])), error
    return result


def relative_error(a, b):
    """Largest difference relative to the largest magnitude; infinite where a number is missing."""
    difference, scale = np.abs(a - b).max(), max(np.abs(a).max(), np.abs(b).max())
    error = difference / scale if scale else 0.0
    return error if np.isfinite(error) else np.inf


def central_differences(function, x):
    """The gradient of function() with respect to the array x, on which it depends, by moving each element."""
    gradient = np.empty_like(x)
    for i, value in np.ndenumerate(x.copy()):
        x[i] = value + STEP
        up = function()
        x[i] = value - STEP
        gradient[i] = (up - function()) / (2 * STEP)
        x[i] = value
    return gradient


def part(layer):
    """The name of a layer in TORCH."""
    return layer.name if isinstance(layer, mlp.Activation) else type(layer).__name__


def torch_loss(name, logits, y, smoothing):
    classes = logits.shape[1]
    targets = F.one_hot(torch.tensor(y), classes).double() * (1 - smoothing) + smoothing / classes
    return TORCH[f"{name}_loss"](logits, targets)


def check_layer(make_layer, rng):
    """The errors of sum(dout * layer(x)), for random parameters, x (N, 6) and upstream gradient dout."""
    mask_rng = np.random.default_rng(0)
    layer, state = make_layer(mask_rng), mask_rng.bit_generator.state
    layer.params = {name: rng.standard_normal(array.shape) for name, array in layer.params.items()}
    arrays = {"x": rng.standard_normal((N, 6))} | layer.params

    def forward():
        mask_rng.bit_generator.state = state  # so that each forward pass has the same dropout mask
        return layer.forward(arrays["x"], training=True)

    dout = rng.standard_normal(forward().shape)

    def analytic():
        # NaN, so that a gradient that backward does not fill is seen
        layer.grads = {name: np.full_like(array, np.nan) for name, array in layer.params.items()}
        forward()
        return {"x": layer.backward(dout)} | layer.grads

    def torch_value(leaves):
        return (torch.tensor(dout) * TORCH[part(layer)](layer, leaves, leaves["x"])).sum()

    return errors(arrays, lambda: np.vdot(dout, forward()), analytic, torch_value, {part(layer)})


def check_loss(name, rng):
    """The errors of a loss of random logits (N, 4), with or without label smoothing."""
    logits, y, smoothing = 3 * rng.standard_normal((N, 4)), rng.integers(0, 4, N), rng.choice([0.0, 0.1])

    def forward():
        return mlp.LOSSES[name][0](logits, y, smoothing)

    def torch_value(leaves):
        return torch_loss(name, leaves["x"], y, smoothing)

    parts = {f"{name}_loss"}
    return errors({"x": logits}, lambda: forward()[0], lambda: {"x": forward()[1]}, torch_value, parts)


def check_network(norm, activation, dropout, loss, smoothing, penalty, seed):
    """The errors of a network's loss with penalties, for all parameters, as one vector, and for the input."""
    rng, mask_rng = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    options = {"norm": norm, "activation": activation, "dropout": dropout, "input_dropout": dropout / 2}
    model = mlp.MLP(SIZES, rng, dropout_rng=mask_rng, dtype=np.float64, **options)
    model.params += 0.3 * rng.standard_normal(len(model.params))  # so that biases and betas are not 0
    arrays = {"params": model.params, "x": rng.standard_normal((N, SIZES[0]))}
    y, (l1, l2), state = rng.integers(0, SIZES[-1], N), PENALTIES[penalty], mask_rng.bit_generator.state

    def forward():
        mask_rng.bit_generator.state = state
        return mlp.LOSSES[loss][0](model.forward(arrays["x"], training=True), y, smoothing)

    def analytic():
        _, dlogits = forward()
        model.grads[:] = np.nan
        dx = model.backward(dlogits, input_gradient=True)
        model.add_penalties(l1, l2)
        return {"params": model.grads.copy(), "x": dx}

    def torch_value(leaves):
        x, penalty, start = leaves["x"], 0.0, 0
        for layer in model.layers:
            params = {}
            for name, array in layer.params.items():
                end = start + array.size
                params[name], start = leaves["params"][start:end].reshape(array.shape), end
            x = TORCH[part(layer)](layer, params, x)
            if "W" in params:
                penalty += l1 * params["W"].abs().sum() + l2 / 2 * (params["W"] ** 2).sum()
        return torch_loss(loss, x, y, smoothing) + penalty

    parts = {f"{loss}_loss", *map(part, model.layers)}
    return errors(arrays, lambda: forward()[0] + model.add_penalties(l1, l2), analytic, torch_value, parts)


def checks():
    """{name: function of a random generator that checks this layer, activation or loss once}"""
    layers = {"Linear": lambda rng: mlp.Linear(6, 4), "Dropout": lambda rng: mlp.Dropout(0.4, rng)}
    layers |= {kind.__name__: lambda rng, kind=kind: kind(6) for kind in mlp.NORMS.values()}
    layers |= {name: lambda rng, name=name: mlp.Activation(name) for name in mlp.ACTIVATIONS}
    found = {name: lambda rng, make=make: check_layer(make, rng) for name, make in layers.items()}
    return found | {f"{name}_loss": lambda rng, name=name: check_loss(name, rng) for name in mlp.LOSSES}


def layer_errors(name, seed=SEED):
    """{array: the worst errors of its gradient} over REPEATS random cases of a layer, activation or loss."""
    rng, check = np.random.default_rng(seed), checks()[name]
    cases = [check(rng) for _ in range(REPEATS)]
    return {array: worst(case[array] for case in cases) for array in cases[0]}


def network_errors(seed=SEED):
    """Yield (name, worst errors) of every whole network."""
    norms = ("none", *mlp.NORMS)
    for choice in itertools.product(norms, mlp.ACTIVATIONS, (0.0, 0.4), mlp.LOSSES, (0.0, 0.1), PENALTIES):
        yield " ".join(map(str, choice)), worst(check_network(*choice, seed).values())


def worst(pairs):
    """The largest of several pairs of errors, where NaN does not count."""
    return np.fmax.reduce(list(pairs))


def show(name, pair, tolerance):
    """Print a row; return whether one of its errors is above the tolerance."""
    wrong = any(error > tolerance for error in pair)
    cells = "".join(f"{'-':>13}" if np.isnan(error) else f"{error:13.1e}" for error in pair)
    print(f"{name:<44}{cells}{'  WRONG' if wrong else ''}")
    return wrong


def main(argv=None):
    s = run.parse(argv, sys.modules[__name__])
    if s.layer and s.layer not in checks():
        raise run.Error(f"--layer {s.layer}: choose from {', '.join(checks())}")
    verdicts = []
    print(f"{'largest relative error of the gradient of':<44}{'differences':>13}{'autograd':>13}")
    for name in [s.layer] if s.layer else checks():
        for array, pair in layer_errors(name, s.seed).items():
            verdicts.append(show(f"{name:<18} {array}", pair, s.tolerance))
    if not s.layer:
        networks = dict(network_errors(s.seed))
        for name in networks if s.all else ():
            show(name, networks[name], s.tolerance)
        verdicts.append(show(f"{len(networks)} whole networks", worst(networks.values()), s.tolerance))
    if any(verdicts):
        sys.exit(1)


if __name__ == "__main__":
    run.cli(main)
