"""Monitors a training of the NumPy MLP for dead neurons, vanishing gradients and too large steps.

After each epoch mlp_from_scratch.py prints its advice; at the end it plots its history as monitor.png.
"""

if __name__ == "__main__":
    raise SystemExit("numpy_nn/monitor.py is a module, not a script: mlp_from_scratch.py uses it")

import copy

import numpy as np

from numpy_nn.layers import ACTIVATIONS, Linear

# Thresholds of the advice: fraction of dead neurons, size of a step relative to the weights (0.001 is usual, see the notes
# of Stanford's CS231n), norm of the first layer's gradient relative to that of the output layer.
DEAD, LARGE_STEP, VANISHING = 0.25, 0.1, 1e-3


class TrainingMonitor:
    """Measures `model`, which is trained with the settings `s`, on the images X (N, features) after each epoch.

    `history` is {"epoch": [...], "dead": [...], ...}. Except for the epoch, the entry of each epoch is a list by layer, from
    "hidden 1" to "output":

        dead            fraction of neurons whose activation is the same for all images, so that no gradient changes them
                        (hidden layers only)
        gradient_norm   norm of the gradient of the weights in the last step of the epoch
        update_ratio    norm of that step's change of the weights, relative to the norm of the weights
        nonfinite       number of weights and gradients that are not finite
    """

    def __init__(self, model, X, s):
        self.model, self.X, self.s = model, X, s
        self.linear = [layer for layer in model.layers if isinstance(layer, Linear)]
        self.names = [*(f"hidden {i + 1}" for i in range(len(self.linear) - 1)), "output"]
        self.history = {"epoch": [], "dead": [], "gradient_norm": [], "update_ratio": [], "nonfinite": []}
        self.reported = []  # problems whose advice was given: it is given once
        self.before = None

    def state_dict(self):
        return {"history": self.history, "reported": self.reported}

    def load_state_dict(self, state):
        """Continue from what `state_dict` has returned. Raises KeyError, TypeError or ValueError for anything else."""
        history, reported, layers = state["history"], state["reported"], len(self.linear)
        epochs = len(history["epoch"])
        for column in self.history:
            shape = (epochs,) if column == "epoch" or not epochs else (epochs, layers - (column == "dead"))
            array = np.asarray(history[column])
            if array.shape != shape or array.dtype.kind not in "iuf":
                raise ValueError(f"the monitor's {column} is not a number for each layer and epoch")
        if type(reported) is not list or not all(isinstance(problem, str) for problem in reported):
            raise ValueError("the monitor's advice is not a list of texts")
        self.history, self.reported = {column: history[column] for column in self.history}, reported

    def before_step(self):
        """To be called before the last step of the epoch."""
        self.before = [layer.params["W"].copy() for layer in self.linear]

    def on_epoch_end(self, epoch, lr):
        """Measure after the last step of the epoch, which had the learning rate `lr`; return advice, a list of lines."""
        weights, grads = ([getattr(layer, name)["W"] for layer in self.linear] for name in ("params", "grads"))
        norms = [float(np.linalg.norm(dW)) for dW in grads]
        steps = [float(np.linalg.norm(W - before)) / max(float(np.linalg.norm(before)), 1e-30)
                 for W, before in zip(weights, self.before, strict=True)]  # fmt: skip
        dead = [float(np.mean(np.ptp(x, axis=0) <= 1e-6 * np.abs(x).max())) for x in activations(self.model, self.X)]
        nonfinite = [int(np.count_nonzero(~np.isfinite(W)) + np.count_nonzero(~np.isfinite(dW)))
                     for W, dW in zip(weights, grads, strict=True)]  # fmt: skip
        for column, values in zip(self.history, (epoch, dead, norms, steps, nonfinite), strict=True):
            self.history[column].append(values)

        advice = {}
        for name, fraction in zip(self.names, dead, strict=False):
            if fraction >= DEAD:
                advice[f"{name} dead"] = (f"{fraction:.0%} of the neurons of {name} are dead, that is, the same for all "
                                          f"images: {self.remedies(norm='batch', activation='leaky_relu')}")  # fmt: skip
        for name, step in zip(self.names, steps, strict=True):
            if step >= LARGE_STEP:
                advice[f"{name} step"] = (f"one step changed the weights of {name} by {step:.0%} (0.1 % is usual) at "
                                          f"learning rate {lr:g}: {large_step_advice(self.s)}")  # fmt: skip
        if norms[0] < VANISHING * norms[-1]:
            advice["vanishing"] = (f"vanishing gradient: its norm is {norms[-1]:.1e} at the output and {norms[0]:.1e} at "
                                   f"{self.names[0]}: "
                                   f"{self.remedies(activation='relu', norm='batch', init='he')}")  # fmt: skip
        if np.ptp(self.model.predict_logits(self.X).argmax(axis=1)) == 0:
            advice["one class"] = ("the same class is predicted for all images: nothing is learned yet; if this persists, "
                                   f"try another --learning-rate than {self.s.learning_rate:g}, or another --init")
        new = [problem for problem in advice if problem not in self.reported]
        self.reported += new
        return [f"monitor, epoch {epoch}: {advice[problem]}" for problem in new]

    def remedies(self, **values):
        """The flags that set these values, except for settings that already have them."""
        flags = [f"--{name} {value}" for name, value in values.items() if getattr(self.s, name) != value]
        return "try " + ", ".join([*flags, "a lower --learning-rate"])


def large_step_advice(s):
    """How to get smaller steps. Clipping does not help optimizers that divide by the size of the gradient."""
    clip = s.optimizer in ("sgd", "momentum", "nesterov") and not s.max_grad_norm
    return "lower --learning-rate" + (", or set --max-grad-norm 1" if clip else "")


def activations(model, X):
    """Yield the output (N, neurons) of each hidden layer's activation function for the images X (N, features)."""
    x = X
    for layer in model.layers:
        x = layer.forward(x)
        if isinstance(layer, tuple(ACTIVATIONS.values())):
            yield x


def distributions(model, X, y, loss):
    """(activations, gradients of the weights) for X (N, features), y (N,), each {"hidden 1": flat sample, ...}."""
    outputs = [sample(x) for x in activations(model, X)]
    model = copy.deepcopy(model)  # since a forward pass in training mode updates running statistics
    model.backward(loss(model.forward(X, training=True), y)[1])
    gradients = [sample(dW) for _, dW in model.weights]
    names = [*(f"hidden {i + 1}" for i in range(len(outputs))), "output"]
    return dict(zip(names, outputs, strict=False)), dict(zip(names, gradients, strict=True))


def sample(x, size=20_000):
    """About `size` elements of x, evenly spaced, or all of a smaller x."""
    return x.reshape(-1)[:: max(1, x.size // size)].astype(np.float64)


def locate_nonfinite(model, x):
    """Describe where in the network values are no longer finite, for the batch x (N, features)."""
    if not np.isfinite(x).all():
        return "the images contain values that are not finite"
    linear = [layer for layer in model.layers if isinstance(layer, Linear)]
    name, largest = "", 0.0
    for layer in model.layers:
        if layer in linear:
            number = linear.index(layer) + 1
            name = "output" if number == len(linear) else f"hidden {number}"
        for value in layer.params.values():
            if not np.isfinite(value).all():
                return f"the weights of {name} are not finite"
            largest = max(largest, float(np.abs(value).max()))
        x = layer.forward(x)
        if not np.isfinite(x).all():
            return f"the output of {type(layer).__name__} of {name} is not finite; the largest weight is {largest:.1e}"
    return f"the logits are finite, but the loss is not; the largest weight is {largest:.1e}"
