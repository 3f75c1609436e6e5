"""Watches a training of the NumPy MLP and says what is wrong: dead neurons, vanishing gradients, steps that are too long.

mlp_from_scratch.py asks it after each epoch, prints its advice, and draws what it has seen as doctor.png.
"""

import copy

import numpy as np

from layers import ACTIVATIONS, Linear

DEAD, LONG, VANISHING = 0.25, 0.1, 1e-4  # from here on it speaks; a usual step is 0.001 long (Stanford's CS231n, notes)


class Doctor:
    """Looks at `model` with the images X (N, features) after each epoch.

    `history` is {"epoch": [...], "dead": [...], "gradient_norm": [...], "update_ratio": [...]}; but for the epochs, a list
    by layer ("hidden 1", ..., "output") of each: the share of neurons that put out the same for every image, so that
    nothing can be learnt through them (of hidden layers only); the length of the weights' gradient in the epoch's last
    step; and the length of that step relative to the weights'.
    """

    def __init__(self, model, X):
        self.model, self.X = model, X
        self.linear = [layer for layer in model.layers if isinstance(layer, Linear)]
        self.names = [*(f"hidden {i + 1}" for i in range(len(self.linear) - 1)), "output"]
        self.history = {"epoch": [], "dead": [], "gradient_norm": [], "update_ratio": []}
        self.advised = set()  # each complaint is made once
        self.before = None

    def before_step(self):
        """To be called before the epoch's last step."""
        self.before = [layer.params["W"].copy() for layer in self.linear]

    def examine(self, epoch, rate):
        """Look at the epoch whose last step, at the learning rate `rate`, is just done: a list of lines of advice."""
        weights = [layer.params["W"] for layer in self.linear]
        norms = [length(layer.grads["W"]) for layer in self.linear]
        steps = [length(W - before) / max(length(before), 1e-30) for W, before in zip(weights, self.before, strict=True)]
        dead = [float(np.mean(np.ptp(x, axis=0) <= 1e-6 * np.abs(x).max())) for x in activations(self.model, self.X)]
        for column, values in zip(self.history, (epoch, dead, norms, steps), strict=True):
            self.history[column].append(values)

        advice = {}
        for name, share in zip(self.names, dead, strict=False):
            if share >= DEAD:
                advice[name, "dead"] = (f"{share:.0%} of the neurons of {name} are dead, the same for every image: a lower "
                                        "--learning-rate, --norm batch or --activation leaky_relu prevents it")  # fmt: skip
        for name, step in zip(self.names, steps, strict=True):
            if step >= LONG:
                advice[name, "long"] = (f"a step changes the weights of {name} by {step:.0%} (0.1 % is usual): lower "
                                        f"--learning-rate, now {rate:g}, or set --clip-norm 1")  # fmt: skip
        if norms[0] < VANISHING * norms[-1]:
            advice["vanishing"] = (f"the gradient vanishes: {norms[0]:.1e} long at {self.names[0]}, {norms[-1]:.1e} at the "
                                   "output; --activation relu, --norm batch or --init he keeps it up")  # fmt: skip
        new = [line for about, line in advice.items() if about not in self.advised]
        self.advised |= advice.keys()
        return [f"doctor, epoch {epoch}: {line}" for line in new]


def length(x):
    """Euclidean length of all the numbers in x, as a float."""
    x = x.ravel()
    return float(np.sqrt(np.vdot(x, x)))


def activations(model, X):
    """What each hidden layer's activation puts out for the images X, one array (N, neurons) at a time."""
    x = X
    for layer in model.layers:
        x = layer.forward(x)
        if isinstance(layer, tuple(ACTIVATIONS.values())):
            yield x


def distributions(model, X, y, loss):
    """({"hidden 1": activations, ...}, {"hidden 1": gradients of the weights, ...}): flat samples, of X (N, features)."""
    model = copy.deepcopy(model)  # a pass as in training moves its running means
    names = Doctor(model, X).names
    outputs = [sample(x) for x in activations(model, X)]
    model.backward(loss(model.forward(X, training=True), y)[1])
    gradients = [sample(dW) for _, dW in model.weights]
    return dict(zip(names, outputs, strict=False)), dict(zip(names, gradients, strict=True))


def sample(x, most=20_000):
    """About `most` of the numbers in x, evenly spaced."""
    return x.reshape(-1)[:: max(1, x.size // most)].astype(np.float64)


def cause(model, x):
    """Where in the network numbers stop being finite for the batch x (N, features), in words."""
    if not np.isfinite(x).all():
        return "the images themselves hold values that are not finite"
    for name, view in model.views.items():
        if not np.isfinite(view).all():
            return f"{name} of the weights is no longer finite"
    for number, layer in enumerate(model.layers):
        x = layer.forward(x)
        if not np.isfinite(x).all():
            return f"the output of layer {number} ({type(layer).__name__}) overflows"
    return "the weights are finite, the loss is not"
