"""Check every backward pass of the NumPy MLP against central differences and PyTorch's autograd.

    python -m extras.check_gradients
    python -m extras.check_gradients --layer BatchNorm
    python -m extras.check_gradients --file DIR/mlp_from_scratch.py         the blanks of extras.exercise

checks each layer, activation and loss by itself with random upstream gradients, then whole networks: all
combinations of norm, activation, dropout, loss, label smoothing and penalty, in float64. It checks what is in
the tables ACTIVATIONS, NORMS and LOSSES of mlp_from_scratch.py: a new entry needs no change here. "-" means
that TORCH below has no counterpart. The exit code is 1 if an error is above TOLERANCE.
"""

import ast
import functools
import importlib.util
import itertools
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F

import hybrid_train
import mlp_from_scratch as mlp
import run
from extras import exercise

LAYER: str = ""  # check only this one, as BatchNorm, gelu or softmax_loss; empty: all, and whole networks
FILE: str = ""  # check the blanks of this file, written by extras.exercise, instead
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
    return getattr(layer, "name", type(layer).__name__)


def torch_loss(name, logits, y, smoothing):
    classes = logits.shape[1]
    targets = F.one_hot(torch.tensor(y), classes).double() * (1 - smoothing) + smoothing / classes
    return TORCH[f"{name}_loss"](logits, targets)


def check_layer(make_layer, rng, autograd=True):
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

    parts = {part(layer)} if autograd else {"none"}
    return errors(arrays, lambda: np.vdot(dout, forward()), analytic, torch_value, parts)


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


def make_layer(name, rng, module=mlp):
    """A layer of 6 numbers, or an Activation by the name of its function."""
    if name in module.ACTIVATIONS:
        return module.Activation(name)
    arguments = {"Linear": (6, 6), "Dropout": (0.4, rng), "Activation": ("tanh",)}
    return getattr(module, name)(*arguments.get(name, (6,)))


def checks():
    """{name: function of a random generator that checks this layer, activation or loss once}"""
    names = ("Linear", "Dropout", *(kind.__name__ for kind in mlp.NORMS.values()), *mlp.ACTIVATIONS)
    layers = {name: functools.partial(make_layer, name) for name in names}
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


# ---- the blanks of a file that extras.exercise has written

# (blank and array, as a regular expression; the mistake; what it makes of the right array a, with the values
# v: the reference layer's attributes and parameters, the upstream gradient dout, ...)
MISTAKES = [
    ("", "an array that is not filled, or an overflow", lambda a, v: np.full_like(a, np.nan)),
    ("", "the wrong sign", lambda a, v: -a),
    ("", "no division by N", lambda a, v: N * a),
    ("", "a division by N too many", lambda a, v: a / N),
    ("", "a transposed product", lambda a, v: np.transpose(a)),
    ("Linear.forward", "no bias", lambda a, v: a - v.b),
    ("Linear.backward dx", "a transposed product, W for W.T", lambda a, v: v.dout @ v.W),
    ("(Dropout|Activation).backward", "no mask, dout unchanged", lambda a, v: v.dout),
    ("backward d(b|beta)", "a missing sum over the batch", lambda a, v: v.dout),
    ("backward dgamma", "a missing sum over the batch", lambda a, v: v.dout * v.x_hat),
    ("Norm.backward dx", "missing sums, mean and var as constants", lambda a, v: v.dout * v.gamma * v.rstd),
    ("running var", "a division by N, not N - 1", lambda a, v: 0.9 + (a - 0.9) * (N - 1) / N),
    ("Dropout.forward y", "no division by 1 - p", lambda a, v: a * (1 - v.p)),
    ("Dropout.forward y", "a mask that keeps what is below p", lambda a, v: v.x * (v.u < v.p) / (1 - v.p)),
    ("Dropout.forward y in", "a mask in eval mode", lambda a, v: v.x * v.mask),
    ("dlogits", "no subtraction of the targets", lambda a, v: a + v.targets / N),
    ("'", "x and y exchanged", lambda a, v: v.derivative(v.y, v.x)),
    ("'", "no mask, a slope of 1", lambda a, v: np.ones_like(a)),
    ("params", "no update in place", lambda a, v: v.start),
    ("params", "the wrong sign, uphill", lambda a, v: 2 * v.start - a),
    ("momentum", "a factor 1 - momentum", lambda a, v: v.start + 0.1 * (a - v.start)),
    ("momentum|nesterov", "sgd, no velocity", lambda a, v: v.sgd),
    ("nesterov", "momentum", lambda a, v: v.momentum),
    ("adam", "no bias correction", lambda a, v: v.start + np.cumsum(v.steps(a) * v.correction, axis=0)),
]


def layer_values(module, blank):
    """({array: value} of a pass of a module's layer, the values of MISTAKES)."""
    kind, method = blank.split(".")
    rng = np.random.default_rng(0)
    u, x, dout = rng.random((N, 6)), *rng.standard_normal((2, N, 6))
    layer = make_layer(kind, SimpleNamespace(random=lambda size, dtype=None: u), module)
    layer.params = {name: rng.standard_normal(array.shape) for name, array in layer.params.items()}
    layer.grads = {name: np.full_like(array, np.nan) for name, array in layer.params.items()}
    v = SimpleNamespace(u=u, dout=dout, **layer.params)
    if method == "forward":
        values = {"y": layer.forward(x, training=True), "y in eval mode": layer.forward(x)}
        values |= {f"running {name}": array for name, array in layer.buffers.items()}
    else:
        try:
            y = layer.forward(x, training=True)
        except NotImplementedError:
            y = getattr(mlp, kind).forward(layer, x, training=True)
        values = {"dx": layer.backward(dout)} | {f"d{name}": array for name, array in layer.grads.items()}
        v.x_hat = (y - v.beta) / v.gamma if "gamma" in layer.params else None
    return values, SimpleNamespace(**{"x": x} | vars(layer) | vars(v))


def loss_values(module, blank):
    """({array: value} of a module's loss, the values of MISTAKES)."""
    rng, values = np.random.default_rng(0), {}
    logits, y = rng.standard_normal((N, 4)), rng.integers(0, 4, N)
    cases = {"": (logits, y), " with smoothing": (logits, y, 0.1), " of large logits": (2000 * logits, y)}
    for case, arguments in cases.items():
        with np.errstate(all="ignore"):
            values |= zip((f"loss{case}", f"dlogits{case}"), getattr(module, blank)(*arguments), strict=True)
    return values, SimpleNamespace(targets=np.eye(4)[y])


def derivative_values(module, blank):
    """({array: value} of a derivative in a module's ACTIVATIONS, the values of MISTAKES)."""
    name, x = blank.removesuffix("'"), np.random.default_rng(0).standard_normal((N, 6))
    f, derivative = mlp.ACTIVATIONS[name]
    _, own = getattr(module, "OWN_ACTIVATIONS", mlp.ACTIVATIONS)[name]
    if own is ...:
        raise NotImplementedError
    return {"f'(x)": 1.0 * own(x, f(x))}, SimpleNamespace(x=x, y=f(x), derivative=derivative)


def optimizer_values(module, blank):
    """({"params": (3, P) after each of three steps} of a module's optimizer, the values of MISTAKES)."""
    start, *gradients = np.random.default_rng(0).standard_normal((4, 6))

    def three_steps(module, name):
        optimizer, rows = module.Optimizer(name, start.copy(), np.empty(6)), []
        for gradient in gradients:
            optimizer.grads[:] = gradient
            optimizer.step(0.1)
            rows.append(optimizer.params.copy())
        return np.stack(rows)

    name = next(name for name, (_, rule) in mlp.OPTIMIZERS.items() if rule.__name__ == blank)
    t, others = np.arange(1, 4)[:, None], {other: three_steps(mlp, other) for other in ("sgd", "momentum")}
    v = SimpleNamespace(start=np.tile(start, (3, 1)), **others)
    v.steps = lambda params: np.diff(params, axis=0, prepend=start[None])
    v.correction = (1 - 0.9**t) / np.sqrt(1 - 0.999**t)
    return {"params": three_steps(module, name)}, v


def bridge_values(module, blank):
    """({array: value} of a pass through a module's NumpyMLPFunction, no values of MISTAKES)."""
    rng = np.random.default_rng(0)
    network = mlp.MLP((6, 5, 4), rng, dtype=np.float64)
    features = torch.tensor(rng.standard_normal((N, 6)), requires_grad=True)
    logits = module.NumpyMLPFunction.apply(features, network)
    if blank.endswith("forward"):
        return {"logits": logits.detach().numpy()}, None
    logits.backward(torch.tensor(rng.standard_normal((N, 4))))
    return {"dfeatures": features.grad.numpy(), "grads of the MLP": network.grads}, None


def values_of(module, blank):
    """({array: value} that a blank of a module makes of the same random numbers, the values of MISTAKES)."""
    if blank.startswith("NumpyMLPFunction"):
        return bridge_values(hybrid_train if module is mlp else module, blank)
    if blank.endswith("'"):
        return derivative_values(module, blank)
    if "." in blank:
        return layer_values(module, blank)
    is_loss = blank in {loss.__name__ for loss, _ in mlp.LOSSES.values()}
    return loss_values(module, blank) if is_loss else optimizer_values(module, blank)


def faults(module, blank, tolerance):
    """Yield what is wrong with each array that a blank of a module makes. Raises what the blank raises."""
    (right, v), (values, _) = values_of(mlp, blank), values_of(module, blank)
    for name, expected in right.items():
        value = np.asarray(values[name], dtype=float)
        value = np.where(np.isfinite(value), value, np.nan)
        same_shape = value.shape == np.shape(expected)
        error = relative_error(value, expected) if same_shape else np.inf
        if error > tolerance:
            text = f"relative error {error:.1e}" if same_shape else f"shape {value.shape}"
            for where, mistake, make in MISTAKES:
                if re.search(where, f"{blank} {name}") and equal(value, make(expected, v)):
                    text += f", looks like {mistake}"
                    break
            yield f"{name}: {text}"


def equal(a, b):
    return np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)


def fits_forward(module, blank, tolerance):
    """Whether a layer's backward pass is that of the module's own forward pass, by central differences."""
    layer = blank.removesuffix(".backward")
    make = functools.partial(make_layer, layer, module=module)
    try:
        errors = check_layer(make, np.random.default_rng(0), autograd=False).values()
    except (NotImplementedError, AttributeError):  # there is no such pass, or this is no layer
        return False
    return all(differences <= tolerance for differences, _ in errors)


def verdict(module, blank, tolerance):
    """What a blank of a module is: "right", "not done", or "wrong" and why."""
    try:
        found = list(faults(module, blank, tolerance))
        if found and blank.endswith(".backward") and fits_forward(module, blank, tolerance):
            return "right, for the forward pass in this file"
    except NotImplementedError:
        return "not done"
    except Exception as error:  # of any kind: others have written the code
        return f"wrong: {type(error).__name__}: {error}".split("\n")[0]
    return f"wrong: {'; '.join(found)}" if found else "right"


def check_file(path, tolerance):
    """Print the verdict on each blank of a file of extras.exercise; return whether all are right."""
    blanks = list(exercise.blanks(ast.parse(Path(path).read_text(encoding="utf-8"))))
    spec = importlib.util.spec_from_file_location("exercise", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if hasattr(module, "ACTIVATIONS"):  # so that Activation is checked by itself
        module.OWN_ACTIVATIONS, module.ACTIVATIONS = module.ACTIVATIONS, mlp.ACTIVATIONS
    verdicts = [verdict(module, blank, tolerance) for blank in blanks]
    for blank, text in zip(blanks, verdicts, strict=True):
        print(f"{blank:<28}{text}")
    num_right = sum(text.startswith("right") for text in verdicts)
    print(f"{num_right} of {len(blanks)} blanks are right")
    return num_right == len(blanks)


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
    if s.file:
        sys.exit(not check_file(s.file, s.tolerance))
    verdicts = []
    print(f"{'largest relative error of the gradient of':<44}{'differences':>13}{'autograd':>13}")
    names = [s.layer] if s.layer else checks()
    for name in names:
        for array, pair in layer_errors(name, s.seed).items():
            verdicts.append(show(f"{name:<18} {array}", pair, s.tolerance))
    if not s.layer:
        networks = dict(network_errors(s.seed))
        if s.all:
            for name, pair in networks.items():
                show(name, pair, s.tolerance)
        verdicts.append(show(f"{len(networks)} whole networks", worst(networks.values()), s.tolerance))
    if any(verdicts):
        sys.exit(1)


if __name__ == "__main__":
    run.cli(main)
