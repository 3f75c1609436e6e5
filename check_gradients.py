"""Check the backward passes of the NumPy network against central differences and, if torch is installed, its autograd.

    python check_gradients.py

checks every layer by itself, with random upstream gradients, the temperature of temperature scaling, and 360 whole
networks: all combinations of norm, activation, dropout, loss, label smoothing and penalty. All in float64. It ends with the
worst relative error of each layer's gradients; the exit code is 1 if one is above TOLERANCE. --all prints a row for each
network, too.
"""

from support import entry

if __name__ == "__main__":  # before the slow imports: Ctrl-C, --help and wrong flags
    entry.prepare(__file__)

import importlib.util
import itertools
import sys

import numpy as np

import mlp_from_scratch as mlp
from numpy_nn import layers
from numpy_nn.calibration import temperature_loss
from support import settings

# ---- settings: edit here, or override any of them on the command line (--seed 5) ----
# -- run
SEED = 0  # seed of weights, inputs and labels, in [0, 2147483647]
TOLERANCE = 1e-7  # largest relative error that passes, in (0, 1)
ALL = False  # print the errors of all 360 networks
# ----

SIZES, N, STEP = (5, 6, 4, 3), 7, 1e-5  # a network small enough to move each of its numbers by STEP, up and down
REGULARIZERS = {"-": {}, "L1": {"l1": 0.01}, "L2": {"l2": 0.01}}
LAYERS = {
    "Linear": lambda rng: layers.Linear(6, 4),
    **{kind.__name__: lambda rng, kind=kind: kind() for kind in layers.ACTIVATIONS.values()},
    "Dropout": lambda rng: layers.Dropout(0.4, rng),
    "BatchNorm": lambda rng: layers.BatchNorm(6),
    "LayerNorm": lambda rng: layers.LayerNorm(6),
}
REPEATS = 8  # checks of each layer, with other random numbers


def relative_error(a, b):
    """Largest difference relative to the largest magnitude; infinite where a number is missing."""
    error = np.abs(a - b).max() / max(np.abs(a).max(), np.abs(b).max())
    return error if np.isfinite(error) else np.inf


def central_differences(function, x):
    """The gradient of function() with respect to the array x, of which it depends, by moving each element."""
    gradient, values, moved = np.empty(x.size), x.copy().ravel(), x.reshape(-1)  # moved is a view of x
    for i, value in enumerate(values):
        moved[i] = value + STEP
        loss_up = function()
        moved[i] = value - STEP
        gradient[i] = (loss_up - function()) / (2 * STEP)
        moved[i] = value
    return gradient.reshape(x.shape)


def torch_forward(layer, params, x):
    """The layer in PyTorch, with the dict of tensors `params`; for Dropout, the mask of the layer's last forward pass."""
    import torch
    from torch.nn import functional as F

    activations = {layers.ReLU: torch.relu, layers.LeakyReLU: F.leaky_relu, layers.Tanh: torch.tanh,
                   layers.Sigmoid: torch.sigmoid, layers.GELU: F.gelu}  # fmt: skip
    if isinstance(layer, layers.Linear):
        return x @ params["W"] + params.get("b", 0)
    if isinstance(layer, layers.BatchNorm):
        return F.batch_norm(x, None, None, params["gamma"], params["beta"], training=True, eps=layer.eps)
    if isinstance(layer, layers.LayerNorm):
        return F.layer_norm(x, x.shape[1:], params["gamma"], params["beta"], layer.eps)
    if isinstance(layer, layers.Dropout):
        return x * torch.tensor(layer.mask)
    return activations[type(layer)](x)


def torch_loss(name, logits, y, smoothing):
    import torch
    from torch.nn import functional as F

    num_classes = logits.shape[1]
    targets = F.one_hot(torch.tensor(y), num_classes).double() * (1 - smoothing) + smoothing / num_classes
    if name == "softmax":
        return F.cross_entropy(logits, targets)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(y)


class LayerCase:
    """One layer with random parameters, input x (N, features) and upstream gradient dout; its gradients in three ways.

    `analytic`, `differences` and `autograd` return {"W": array, ..., "x": array}: gradients of sum(dout * layer(x)).
    """

    def __init__(self, name, rng):
        self.rng = np.random.default_rng(rng.integers(2**31))  # of the dropout mask
        self.layer, self.x = LAYERS[name](self.rng), rng.standard_normal((N, 6))
        for array, shape in self.layer.shapes.items():
            self.layer.params[array], self.layer.grads[array] = rng.standard_normal(shape), np.full(shape, np.nan)
        self.layer.buffers = {array: np.zeros(shape) for array, shape in self.layer.buffer_shapes.items()}
        self.arrays = {"x": self.x} | self.layer.params
        self.rng_state = self.rng.bit_generator.state  # so that each forward pass has the same dropout mask
        self.dout = rng.standard_normal(self.forward().shape)

    def forward(self):
        self.rng.bit_generator.state = self.rng_state
        return self.layer.forward(self.x, training=True)

    def analytic(self):
        self.forward()
        dx = self.layer.backward(self.dout)
        return {"x": dx.copy()} | {name: gradient.copy() for name, gradient in self.layer.grads.items()}

    def differences(self):
        return {name: central_differences(lambda: np.vdot(self.dout, self.forward()), array)
                for name, array in self.arrays.items()}  # fmt: skip

    def autograd(self):
        import torch

        self.forward()
        leaves = {name: torch.tensor(array, requires_grad=True) for name, array in self.arrays.items()}
        y = torch_forward(self.layer, leaves, leaves["x"])
        gradients = torch.autograd.grad((torch.tensor(self.dout) * y).sum(), list(leaves.values()))
        return {name: gradient.numpy() for name, gradient in zip(leaves, gradients, strict=True)}


class LossCase:
    """One loss of random logits x (N, classes); its gradient in three ways, as LayerCase has them."""

    def __init__(self, name, smoothing, rng):
        self.name, self.smoothing = name, smoothing
        self.x, self.y = 3 * rng.standard_normal((N, 4)), rng.integers(0, 4, N)

    def forward(self):
        """(loss, dlogits)"""
        return layers.LOSSES[self.name][0](self.x, self.y, self.smoothing)

    def analytic(self):
        return {"x": self.forward()[1]}

    def differences(self):
        return {"x": central_differences(lambda: self.forward()[0], self.x)}

    def autograd(self):
        import torch

        x = torch.tensor(self.x, requires_grad=True)
        return {"x": torch.autograd.grad(torch_loss(self.name, x, self.y, self.smoothing), x)[0].numpy()}


class TemperatureCase:
    """The loss of random logits at a random temperature T (1,); its derivative in three ways, as LayerCase has them."""

    def __init__(self, name, rng):
        self.name, self.logits, self.y = name, 3 * rng.standard_normal((N, 4)), rng.integers(0, 4, N)
        self.T = rng.uniform(0.5, 3, 1)

    def analytic(self):
        return {"T": np.array([temperature_loss(self.T[0], self.logits, self.y, self.name)[1]])}

    def differences(self):
        return {"T": central_differences(lambda: temperature_loss(self.T[0], self.logits, self.y, self.name)[0], self.T)}

    def autograd(self):
        import torch

        T = torch.tensor(self.T, requires_grad=True)
        return {"T": torch.autograd.grad(torch_loss(self.name, torch.tensor(self.logits) / T, self.y, 0.0), T)[0].numpy()}


class GradientCase:
    """A whole network with a loss; the gradient of the loss in three ways, as one vector (parameters, then input)."""

    def __init__(self, norm, activation, dropout, loss, smoothing, penalty, seed):
        rng = np.random.default_rng(seed)
        self.masks = np.random.default_rng(seed + 1)
        self.model = mlp.MLP(SIZES, rng, norm=norm, activation=activation, dropout=dropout, input_dropout=dropout / 2,
                             dropout_rng=self.masks, dtype=np.float64)  # fmt: skip
        self.model.params += 0.3 * rng.standard_normal(len(self.model.params))  # so that biases and betas are not 0
        self.X, self.y = rng.standard_normal((N, SIZES[0])), rng.integers(0, SIZES[-1], N)
        self.loss, self.smoothing, self.penalty = loss, smoothing, {"l1": 0.0, "l2": 0.0} | penalty
        self.rng_state = self.masks.bit_generator.state  # so that each forward pass has the same dropout masks

    def forward(self):
        """(loss with penalty, dlogits)"""
        self.masks.bit_generator.state = self.rng_state
        logits = self.model.forward(self.X, training=True)
        loss, dlogits = layers.LOSSES[self.loss][0](logits, self.y, self.smoothing)
        return loss + self.model.add_penalties(**self.penalty), dlogits

    def analytic(self):
        _, dlogits = self.forward()
        self.model.grads[:] = np.nan  # so that a gradient that backward does not fill is seen
        dX = self.model.backward(dlogits, input_gradient=True)
        self.model.add_penalties(**self.penalty)
        return np.concatenate([self.model.grads, dX.ravel()])

    def differences(self):
        gradients = [central_differences(lambda: self.forward()[0], x) for x in (self.model.params, self.X)]
        return np.concatenate([gradient.ravel() for gradient in gradients])

    def autograd(self):
        import torch

        self.forward()  # draws the masks
        X = torch.tensor(self.X, requires_grad=True)
        x, leaves, penalties = X, [], 0.0
        for layer in self.model.layers:
            params = {name: torch.tensor(value, requires_grad=True) for name, value in layer.params.items()}
            leaves += params.values()
            x = torch_forward(layer, params, x)
            if "W" in params:
                penalties += self.penalty["l1"] * params["W"].abs().sum() + self.penalty["l2"] / 2 * (params["W"] ** 2).sum()
        loss = torch_loss(self.loss, x, self.y, self.smoothing) + penalties
        gradients = torch.autograd.grad(loss, [*leaves, X])
        return np.concatenate([gradient.numpy().ravel() for gradient in gradients])


def has_torch():
    return importlib.util.find_spec("torch") is not None


def worst_by_layer(seed=SEED):
    """The worst relative errors of each layer's gradients, over REPEATS random cases, of the losses' dlogits, and of T.

    {layer: {"W", "b", "gamma", "beta", "x" or "T": (error against central differences, against autograd or None)}}.
    """
    rng, results = np.random.default_rng(seed), {}
    losses = itertools.product(layers.LOSSES, (0.0, 0.1))
    cases = [(name, LayerCase(name, rng)) for name in LAYERS for _ in range(REPEATS)]
    cases += [("cross-entropy", LossCase(*choice, rng)) for choice in losses for _ in range(REPEATS)]
    cases += [("temperature", TemperatureCase(name, rng)) for name in layers.LOSSES for _ in range(REPEATS)]
    for name, case in cases:
        errors, gradients, differences = results.setdefault(name, {}), case.analytic(), case.differences()
        autograd = case.autograd() if has_torch() else {}
        for array, gradient in gradients.items():
            pair = (relative_error(gradient, differences[array]),
                    relative_error(gradient, autograd[array]) if autograd else None)  # fmt: skip
            worst = errors.get(array, pair)
            errors[array] = max(pair[0], worst[0]), max(pair[1], worst[1]) if autograd else None
    return results


def network_errors(seed=SEED):
    """Yield (name, error against central differences, error against autograd or None) of the 360 networks."""
    choices = itertools.product(("none", *layers.NORMS), layers.ACTIVATIONS, (0.0, 0.4), layers.LOSSES, (0.0, 0.1),
                                REGULARIZERS)  # fmt: skip
    for norm, activation, dropout, loss, smoothing, regularizer in choices:
        case = GradientCase(norm, activation, dropout, loss, smoothing, REGULARIZERS[regularizer], seed)
        name = f"{norm:<8}{activation:<12}{dropout:<9}{loss:<9}{smoothing:<11}{regularizer:<7}"
        gradient = case.analytic()
        autograd = relative_error(gradient, case.autograd()) if has_torch() else None
        yield name, relative_error(gradient, case.differences()), autograd


def run(s):
    """Print the errors of networks and layers; return the worst one."""
    errors, verdicts = [], {True: "WRONG", False: ""}
    if s.all:
        print("norm    activation  dropout  loss     smoothing  penalty  differences  autograd")
    for name, *pair in network_errors(s.seed):
        errors.append(max(error for error in pair if error is not None))
        if s.all:
            cells = "".join(f"{'-':>10}" if error is None else f"{error:10.1e}" for error in pair)
            print(f"{name}{cells}  {verdicts[errors[-1] > s.tolerance]}".rstrip())
    wrong = sum(error > s.tolerance for error in errors)
    print(f"{len(errors)} networks, worst relative error {max(errors):.1e}: "
          + (f"{wrong} above {s.tolerance:g}" if wrong else f"all below {s.tolerance:g}"))  # fmt: skip

    arrays = ("W", "b", "gamma", "beta", "x", "T")
    print("\nworst relative error by layer, against " + ("central differences and autograd" if has_torch() else
                                                         "central differences (torch is not installed)"))  # fmt: skip
    print(f"{'gradient of':<14}" + "".join(f"{array:>10}" for array in arrays))
    for layer, results in worst_by_layer(s.seed).items():
        worst = {array: max(error for error in pair if error is not None) for array, pair in results.items()}
        errors += worst.values()
        cells = "".join(f"{worst[array]:10.1e}" if array in worst else 10 * " " for array in arrays)
        print(f"{layer:<14}{cells}  {verdicts[max(worst.values()) > s.tolerance]}".rstrip())
    return max(errors)


def main(argv=None):
    s = settings.parse(sys.modules[__name__], argv=argv)
    sys.exit(int(run(s) > s.tolerance))


if __name__ == "__main__":
    entry.cli(main)
