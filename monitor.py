"""Advice while the NumPy MLP trains: dead neurons, vanishing gradients, steps that are too large."""

import copy

import numpy as np

# There is advice from these on: fraction of dead neurons; size of a step relative to the weights (0.001 is
# usual, see the notes of Stanford's CS231n); norm of the first layer's gradient relative to the output's
DEAD, LARGE_STEP, VANISHING = 0.25, 0.1, 1e-3


class Monitor:
    """Measures the MLP `model`, trained with the settings s, on images X (N, ...) after each epoch.

    `history` is {"epoch": [...], "dead": [...], ...}. Except for the epoch, the entry of each epoch is a list
    by layer, from "hidden 1" to "output":

        dead            fraction of the neurons of a hidden layer whose activation is the same for all of X,
                        so that no gradient changes them
        gradient_norm   norm of the gradient of the weights in the last step of the epoch
        update_ratio    norm of that step's change of the weights, relative to the norm of the weights
    """

    def __init__(self, model, X, s):
        self.model, self.s = model, s
        self.X = (X.reshape(len(X), -1) - np.ravel(model.mean)) / np.ravel(model.std)
        self.names = [*(f"hidden {i}" for i in range(1, len(model.weights))), "output"]
        self.history = {"epoch": [], "dead": [], "gradient_norm": [], "update_ratio": []}
        self.reported = []  # problems whose advice was given: it is given once

    def before_step(self):
        """To be called before the last step of the epoch."""
        self.before = [W.copy() for W, _ in self.model.weights]

    def end_epoch(self, epoch, lr):
        """Measure after the last step of the epoch, at learning rate lr; return advice, a list of lines."""
        norms = [norm(dW) for _, dW in self.model.weights]
        pairs = zip(self.model.weights, self.before, strict=True)
        steps = [norm(W - before) / max(norm(before), 1e-30) for (W, _), before in pairs]
        outputs = self.model.hidden_outputs(self.X)
        dead = [float(np.mean(np.ptp(x, axis=0) <= 1e-6 * np.abs(x).max())) for x in outputs]
        for column, values in zip(self.history, (epoch, dead, norms, steps), strict=True):
            self.history[column].append(values)

        advice = {}
        for name, fraction in zip(self.names, dead, strict=False):
            if fraction >= DEAD:
                text = f"{fraction:.0%} of the neurons of {name} are dead, that is, the same for all images"
                advice[f"{name} dead"] = f"{text}: {self.remedies(norm='batch', activation='leaky_relu')}"
        for name, step in zip(self.names, steps, strict=True):
            if step >= LARGE_STEP:
                text = f"a step changed the weights of {name} by {step:.0%}, 0.1 % is usual"
                advice[f"{name} step"] = f"{text}, at learning rate {lr:g}: {large_step_advice(self.s)}"
        if norms[0] < VANISHING * norms[-1]:
            text = f"vanishing gradient: norm {norms[-1]:.1e} at the output, {norms[0]:.1e} at layer 1"
            advice["vanishing"] = f"{text}: {self.remedies(activation='relu', norm='batch', init='he')}"
        if np.ptp(self.model.forward(self.X).argmax(axis=1)) == 0:
            text = "one class is predicted for all images"
            advice["one class"] = f"{text}: try another --learning-rate or --init"
        new = [problem for problem in advice if problem not in self.reported]
        self.reported += new
        return [f"monitor, epoch {epoch}: {advice[problem]}" for problem in new]

    def remedies(self, **values):
        """The flags that set these values, except for settings that already have them."""
        flags = [f"--{name} {value}" for name, value in values.items() if getattr(self.s, name) != value]
        return "try " + ", ".join([*flags, "a lower --learning-rate"])

    def distributions(self, y, loss):
        """(activations, weights' gradients) for X and its labels y (N,), each {"hidden 1": sample, ...}."""
        outputs = [sample(x) for x in self.model.hidden_outputs(self.X)]
        model = copy.deepcopy(self.model)  # a forward pass in training mode updates running statistics
        model.backward(loss(model.forward(self.X, training=True), y)[1])
        gradients = [sample(dW) for _, dW in model.weights]
        return dict(zip(self.names, outputs, strict=False)), dict(zip(self.names, gradients, strict=True))


def norm(x):
    return float(np.linalg.norm(x))


def large_step_advice(s):
    """How to get smaller steps. Clipping does not help optimizers that divide by the size of the gradient."""
    clip = s.optimizer in ("sgd", "momentum", "nesterov") and not s.max_grad_norm
    return "lower --learning-rate" + (", or set --max-grad-norm 1" if clip else "")


def sample(x):
    """About 20,000 elements of x, evenly spaced, or all of a smaller x."""
    return x.reshape(-1)[:: max(1, x.size // 20_000)].astype(np.float64)
