"""Hold every backward pass of the NumPy network against central differences and, where torch is there, against autograd.

    python check_gradients.py

prints a row for each combination of norm, activation, dropout, loss and regulariser: the relative error of the gradient of
all parameters and of the input, in float64. The exit code is 1 where a row is worse than TOLERANCE.
"""

import importlib.util
import itertools
import sys

import numpy as np

from numpy_nn import layers
import mlp_from_scratch as mlp
from support import runs
from support import settings

# ---- settings: edit here, or override any of them on the command line (--seed 5) ----
SEED = 0  # of the weights, the inputs and the labels, in [0, inf)
TOLERANCE = 1e-7  # largest relative error that passes, in (0, 1)
# ----

SIZES, N, STEP = (5, 6, 4, 3), 7, 1e-5  # a network small enough to move each of its numbers by STEP, up and down
REGULARISERS = {"-": {}, "L1": {"l1": 0.01}, "L2": {"l2": 0.01}}


class GradientCase:
    """One network with one loss, and the gradient of its loss by three ways, as one vector (parameters, then input)."""

    def __init__(self, norm, activation, dropout, loss, smoothing, penalty, seed):
        rng = np.random.default_rng(seed)
        self.masks = np.random.default_rng(seed + 1)
        self.model = mlp.MLP(SIZES, rng, norm=norm, activation=activation, dropout=dropout, input_dropout=dropout / 2,
                             dropout_rng=self.masks, dtype=np.float64)  # fmt: skip
        self.model.params += 0.3 * rng.standard_normal(len(self.model.params))  # biases, gammas and betas, too
        self.X, self.y = rng.standard_normal((N, SIZES[0])), rng.integers(0, SIZES[-1], N)
        self.loss, self.smoothing, self.penalty = loss, smoothing, {"l1": 0.0, "l2": 0.0} | penalty
        self.rng_state = self.masks.bit_generator.state  # so that each forward pass drops the same neurons

    def forward(self):
        """(loss with penalty, dlogits)"""
        self.masks.bit_generator.state = self.rng_state
        logits = self.model.forward(self.X, training=True)
        loss, dlogits = layers.LOSSES[self.loss][0](logits, self.y, self.smoothing)
        return loss + self.model.add_penalties(**self.penalty), dlogits

    def analytic(self):
        _, dlogits = self.forward()
        self.model.grads[:] = np.nan  # what backward forgets to fill stays visible
        dX = self.model.backward(dlogits, input_gradient=True)
        self.model.add_penalties(**self.penalty)
        return np.concatenate([self.model.grads, dX.ravel()])

    def central_differences(self):
        gradient = []
        for vector in (self.model.params, self.X.reshape(-1)):  # views: to move a number here is to move it there
            for i, kept in enumerate(vector.copy()):
                vector[i] = kept + STEP
                above, _ = self.forward()
                vector[i] = kept - STEP
                gradient.append((above - self.forward()[0]) / (2 * STEP))
                vector[i] = kept
        return np.array(gradient)

    def autograd(self):
        import torch
        from torch.nn import functional as F

        activations = {layers.ReLU: torch.relu, layers.LeakyReLU: F.leaky_relu, layers.Tanh: torch.tanh,
                       layers.Sigmoid: torch.sigmoid, layers.GELU: F.gelu}  # fmt: skip
        self.forward()  # draws the masks
        X, y = torch.tensor(self.X, requires_grad=True), torch.tensor(self.y)
        x, leaves, weights = X, [], []
        for layer in self.model.layers:
            own = {name: torch.tensor(value, requires_grad=True) for name, value in layer.params.items()}
            leaves += own.values()
            if isinstance(layer, layers.Linear):
                x = x @ own["W"] + own.get("b", 0)
                weights.append(own["W"])
            elif isinstance(layer, layers.BatchNorm):
                x = F.batch_norm(x, None, None, own["gamma"], own["beta"], training=True, eps=layer.eps)
            elif isinstance(layer, layers.LayerNorm):
                x = F.layer_norm(x, x.shape[1:], own["gamma"], own["beta"], layer.eps)
            elif isinstance(layer, layers.Dropout):
                x = x * torch.tensor(layer.mask)
            else:
                x = activations[type(layer)](x)
        targets = F.one_hot(y, SIZES[-1]).double() * (1 - self.smoothing) + self.smoothing / SIZES[-1]
        if self.loss == "softmax":
            loss = F.cross_entropy(x, targets)
        else:
            loss = F.binary_cross_entropy_with_logits(x, targets, reduction="sum") / N
        for W in weights:
            loss = loss + self.penalty["l1"] * W.abs().sum() + self.penalty["l2"] / 2 * (W**2).sum()
        gradients = torch.autograd.grad(loss, [*leaves, X])
        return np.concatenate([gradient.numpy().ravel() for gradient in gradients])


def relative_error(a, b):
    """Largest difference relative to the largest magnitude; infinite where a number is missing."""
    error = np.abs(a - b).max() / max(np.abs(a).max(), np.abs(b).max())
    return error if np.isfinite(error) else np.inf


def table(seed):
    """Yield (name of the combination, error against differences, error against autograd or None without torch)."""
    torch = importlib.util.find_spec("torch")
    choices = itertools.product(("none", *layers.NORMS), layers.ACTIVATIONS, (0.0, 0.4), layers.LOSSES, (0.0, 0.1),
                                REGULARISERS)  # fmt: skip
    for norm, activation, dropout, loss, smoothing, regulariser in choices:
        one = GradientCase(norm, activation, dropout, loss, smoothing, REGULARISERS[regulariser], seed)
        name = f"{norm:<8}{activation:<12}{dropout:<9}{loss:<9}{smoothing:<11}{regulariser:<6}"
        ours = one.analytic()
        yield name, relative_error(ours, one.central_differences()), relative_error(ours, one.autograd()) if torch else None


def run(s):
    """Print the table; returns the worst relative error."""
    print("norm    activation  dropout  loss     smoothing  penalty  differences   autograd")
    errors = []
    for name, differences, autograd in table(s.seed):
        errors.append(max(differences, autograd or 0))
        autograd = "-" if autograd is None else f"{autograd:.1e}"
        print(f"{name}{differences:14.1e}{autograd:>11}{'  WRONG' if errors[-1] > s.tolerance else ''}")
    wrong = sum(error > s.tolerance for error in errors)
    print(f"\n{len(errors)} combinations, worst relative error {max(errors):.1e}: "
          + (f"{wrong} are above {s.tolerance:g}" if wrong else f"all below {s.tolerance:g}"))  # fmt: skip
    return max(errors)


def main(argv=None):
    s = settings.parse(sys.modules[__name__], argv=argv)
    sys.exit(int(run(s) > s.tolerance))


if __name__ == "__main__":
    runs.cli(main)
