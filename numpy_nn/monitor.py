"""Watches a training of the NumPy MLP and says what is wrong: dead neurons, vanishing gradients, steps that are too long.

mlp_from_scratch.py asks it after each epoch, prints its advice, and draws what it has seen as monitor.png.
"""

import copy

import numpy as np

from numpy_nn.layers import ACTIVATIONS, Linear

DEAD, LONG, VANISHING = 0.25, 0.1, 1e-3  # from here on it speaks; a usual step is 0.001 long (Stanford's CS231n, notes)


class TrainingMonitor:
    """Looks at `model`, which is trained with the settings `s`, by the images X (N, features) after each epoch.

    `history` is {"epoch": [...], "dead": [...], "gradient_norm": [...], "update_ratio": [...], "nonfinite": [...]}; but for
    the epochs, a list by layer ("hidden 1", ..., "output") of each: the share of neurons that put out the same for every
    image, so that nothing can be learnt through them (hidden layers only); the length of the weights' gradient in the
    epoch's last step; that step's length relative to the weights'; how many weights and gradients are not finite.
    """

    def __init__(self, model, X, s):
        self.model, self.X, self.s = model, X, s
        self.linear = [layer for layer in model.layers if isinstance(layer, Linear)]
        self.names = [*(f"hidden {i + 1}" for i in range(len(self.linear) - 1)), "output"]
        self.history = {"epoch": [], "dead": [], "gradient_norm": [], "update_ratio": [], "nonfinite": []}
        self.reported = []  # each complaint is made once
        self.before = None

    def state_dict(self):
        return {"history": self.history, "reported": self.reported}

    def load_state_dict(self, state):
        self.history, self.reported = state["history"], state["reported"]

    def before_step(self):
        """To be called before the epoch's last step."""
        self.before = [layer.params["W"].copy() for layer in self.linear]

    def on_epoch_end(self, epoch, rate):
        """Look at the epoch whose last step, at the learning rate `rate`, is just done: a list of lines of advice."""
        weights, grads = ([vars(layer)[of]["W"] for layer in self.linear] for of in ("params", "grads"))
        norms = [length(dW) for dW in grads]
        steps = [length(W - before) / max(length(before), 1e-30) for W, before in zip(weights, self.before, strict=True)]
        dead = [float(np.mean(np.ptp(x, axis=0) <= 1e-6 * np.abs(x).max())) for x in activations(self.model, self.X)]
        lost = [int(np.count_nonzero(~np.isfinite(W)) + np.count_nonzero(~np.isfinite(dW)))
                for W, dW in zip(weights, grads, strict=True)]  # fmt: skip
        for column, values in zip(self.history, (epoch, dead, norms, steps, lost), strict=True):
            self.history[column].append(values)

        advice = {}
        for name, share in zip(self.names, dead, strict=False):
            if share >= DEAD:
                advice[f"{name} dead"] = (f"{share:.0%} of the neurons of {name} are dead, the same for every image: "
                                          f"{self.remedies(norm='batch', activation='leaky_relu')}")  # fmt: skip
        for name, step in zip(self.names, steps, strict=True):
            if step >= LONG:
                advice[f"{name} long"] = (f"a step changes the weights of {name} by {step:.0%} (0.1 % is usual), at "
                                          f"learning rate {rate:g}: {large_step_advice(self.s)}")  # fmt: skip
        if norms[0] < VANISHING * norms[-1]:
            advice["vanishing"] = (f"the gradient vanishes on its way back, {norms[-1]:.1e} long at the output, "
                                   f"{norms[0]:.1e} at {self.names[0]}: "
                                   f"{self.remedies(activation='relu', norm='batch', init='he')}")  # fmt: skip
        if np.ptp(self.model.predict_logits(self.X).argmax(axis=1)) == 0:
            advice["one class"] = ("every image is put into the same class: nothing is learnt yet; if it stays so, try "
                                   f"another --learning-rate than {self.s.learning_rate:g}, or --init")  # fmt: skip
        new = [problem for problem in advice if problem not in self.reported]
        self.reported += new
        return [f"monitor, epoch {epoch}: {advice[problem]}" for problem in new]

    def remedies(self, **values):
        """Those of the settings, as flags, that are not so already."""
        flags = [f"--{name} {value}" for name, value in values.items() if getattr(self.s, name) != value]
        return "try " + ", ".join([*flags, "a lower --learning-rate"])


def large_step_advice(s):
    """What makes steps shorter: clipping does not for optimisers that divide by the gradient's size."""
    clip = s.optimizer in ("sgd", "momentum", "nesterov") and not s.max_grad_norm
    return "lower --learning-rate" + (", or set --max-grad-norm 1" if clip else "")


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
    """(activations, gradients of the weights) for X (N, features), y (N,), flat samples: {"hidden 1": array, ...} each."""
    outputs = [sample(x) for x in activations(model, X)]
    model = copy.deepcopy(model)  # a pass as in training moves its running means
    model.backward(loss(model.forward(X, training=True), y)[1])
    gradients = [sample(dW) for _, dW in model.weights]
    names = [*(f"hidden {i + 1}" for i in range(len(outputs))), "output"]
    return dict(zip(names, outputs, strict=False)), dict(zip(names, gradients, strict=True))


def sample(x, most=20_000):
    """About `most` of the numbers in x, evenly spaced."""
    return x.reshape(-1)[:: max(1, x.size // most)].astype(np.float64)


def locate_nonfinite(model, x):
    """Where in the network numbers stop being finite for the batch x (N, features), in words."""
    if not np.isfinite(x).all():
        return "the images themselves hold values that are not finite"
    linear = [layer for layer in model.layers if isinstance(layer, Linear)]
    name, largest = "", 0.0
    for layer in model.layers:
        if layer in linear:
            number = linear.index(layer) + 1
            name = "output" if number == len(linear) else f"hidden {number}"
        for value in layer.params.values():
            if not np.isfinite(value).all():
                return f"the weights of {name} are no longer finite"
            largest = max(largest, float(np.abs(value).max()))
        x = layer.forward(x)
        if not np.isfinite(x).all():
            return f"what {type(layer).__name__} of {name} puts out is no longer finite; the largest weight is {largest:.1e}"
    return f"the logits are finite, their loss is not; the largest weight is {largest:.1e}"
