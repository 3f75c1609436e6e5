"""A multilayer perceptron in NumPy: forward pass, backward pass, optimisers and training loop written by hand.

    python mlp_from_scratch.py

ends, after 25 s on 2 cores of an Intel(R) Xeon(R) Processor @ 2.50GHz (Python 3.11.7, NumPy 2.4.6), with

    Fashion-MNIST               validation      test
    NumPy MLP 784-256-128-10      90.58%      89.77%
"""

import itertools
import sys
import time

import numpy as np
from tqdm import tqdm

import data
import plots
import runs
import settings

# ---- settings: edit here, or override any of them on the command line (--epochs 5) ----
EPOCHS = 20  # passes over the training set, in [1, inf)
BATCH_SIZE = 128  # images in each step, in [1, inf)
HIDDEN = (256, 128)  # neurons in each hidden layer; none at all is softmax regression; in [1, inf)
OPTIMIZER = "adam"  # what turns gradients into steps: {adam, sgd}
LEARNING_RATE = 0.001  # the first step's; about 0.1 suits sgd; in (0, inf)
SCHEDULE = "cosine"  # how the learning rate goes on from there; cosine falls to 0: {constant, cosine}
MOMENTUM = 0.9  # of sgd, in [0, 1)
SEED = 0  # of the initial weights and of the order of the batches, in [0, inf)
QUICK = False  # a tour of a few seconds: 5 epochs at most, on a subset; its figures are only a tour's
# ----


class Linear:
    """y = x W + b.  x (N, n_in), W (n_in, n_out), b (n_out,), y (N, n_out)."""

    def __init__(self, n_in, n_out):
        self.shapes = {"W": (n_in, n_out), "b": (n_out,)}

    def init(self, rng):
        """He initialisation, W ~ N(0, 2 / n_in), which keeps the variance through ReLUs (He et al. 2015, eq. 10); b = 0."""
        W = self.params["W"]
        W[...] = rng.standard_normal(W.shape) * np.sqrt(2 / len(W))
        self.params["b"][...] = 0

    def forward(self, x, training=False):
        self.x = x
        return x @ self.params["W"] + self.params["b"]  # (N, n_in) -> (N, n_out)

    def backward(self, dout, input_gradient=True):
        np.matmul(self.x.T, dout, out=self.grads["W"])  # (n_in, N) @ (N, n_out)
        np.sum(dout, axis=0, out=self.grads["b"])
        return dout @ self.params["W"].T if input_gradient else None  # (N, n_out) -> (N, n_in)


class ReLU:
    """y = max(x, 0), element by element; the gradient at 0 is taken as 0."""

    def __init__(self):
        self.shapes = {}

    def forward(self, x, training=False):
        self.y = np.maximum(x, 0)
        return self.y

    def backward(self, dout, input_gradient=True):
        return dout * (self.y > 0)


def softmax(logits):
    """Probabilities (N, C) of logits (N, C); each row's largest logit is taken off first, so that exp cannot overflow."""
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def softmax_cross_entropy(logits, y):
    """Mean over the batch of -log softmax(logits)[y], and its gradient: (loss, dlogits (N, C)).

    logits (N, C), y (N,) integers. dlogits = (softmax(logits) - onehot(y)) / N: the only place that divides by N.
    """
    rows = np.arange(len(y))
    shifted = logits - logits.max(axis=1, keepdims=True)
    dlogits = np.exp(shifted)
    total = dlogits.sum(axis=1, keepdims=True)
    loss = (np.log(total[:, 0]) - shifted[rows, y]).mean()
    dlogits /= total
    dlogits[rows, y] -= 1
    dlogits /= len(y)
    return float(loss), dlogits


class MLP:
    """Linear layers with ReLUs between them: sizes (784, 256, 128, 10) make 784-256-128-10.

    All weights and biases are views into one vector, `params`, and their gradients into another, `grads`.
    """

    def __init__(self, sizes, rng=None, dtype=np.float32):
        self.sizes = tuple(sizes)
        self.name = "-".join(map(str, sizes))  # as in 784-256-128-10
        self.layers = []
        for n_in, n_out in itertools.pairwise(sizes):
            self.layers += [Linear(n_in, n_out), ReLU()]
        self.layers.pop()  # the last Linear gives the logits

        total = sum(int(np.prod(shape)) for layer in self.layers for shape in layer.shapes.values())
        self.params, self.grads = np.zeros(total, dtype), np.zeros(total, dtype)
        self.views = {}  # {"0.W": a view into params, "0.b": ..., "2.W": ...}
        start = 0
        for number, layer in enumerate(self.layers):
            layer.params, layer.grads = {}, {}
            for name, shape in layer.shapes.items():
                part = slice(start, start + int(np.prod(shape)))
                layer.params[name] = self.views[f"{number}.{name}"] = self.params[part].reshape(shape)
                layer.grads[name] = self.grads[part].reshape(shape)
                start = part.stop
            if rng is not None and layer.shapes:
                layer.init(rng)

    def forward(self, x, training=False):
        """Logits (N, classes) of x (N, features)."""
        for layer in self.layers:
            x = layer.forward(x, training)
        return x

    def backward(self, dlogits, input_gradient=False):
        """Fill `grads` from dlogits (N, classes); the gradient with respect to x only where it is asked for."""
        dout = dlogits
        for layer in reversed(self.layers):
            dout = layer.backward(dout, input_gradient=input_gradient or layer is not self.layers[0])
        return dout

    def logits(self, X, batch_size=2000):
        """Logits (N, classes) of all of X, in pieces that fit the processor's caches."""
        return np.concatenate([self.forward(X[i : i + batch_size]) for i in range(0, len(X), batch_size)])


class SGD:
    """v = momentum v + grad;  params -= learning_rate v  (Polyak 1964, in the form of torch.optim.SGD)."""

    def __init__(self, params, grads, momentum=0.0):
        self.params, self.grads, self.momentum = params, grads, momentum
        self.velocity = np.zeros_like(params)
        self.scratch = np.empty_like(params)

    def step(self, learning_rate):
        self.velocity *= self.momentum
        self.velocity += self.grads
        self.params -= np.multiply(self.velocity, learning_rate, out=self.scratch)


class Adam:
    """Steps by the running mean of the gradient over the root of that of its square (Kingma and Ba 2015, algorithm 1)."""

    def __init__(self, params, grads, beta1=0.9, beta2=0.999, eps=1e-8):
        self.params, self.grads = params, grads
        self.beta1, self.beta2, self.eps, self.t = beta1, beta2, eps, 0
        self.m, self.v = np.zeros_like(params), np.zeros_like(params)
        self.scratch = np.empty_like(params)

    def step(self, learning_rate):
        self.t += 1
        g, m, v, scratch = self.grads, self.m, self.v, self.scratch
        m *= self.beta1
        m += np.multiply(g, 1 - self.beta1, out=scratch)
        v *= self.beta2
        np.multiply(g, g, out=scratch)
        v += np.multiply(scratch, 1 - self.beta2, out=scratch)
        # m and v start at 0: dividing by 1 - beta^t takes that bias out again
        np.sqrt(v, out=scratch)
        scratch /= np.sqrt(1 - self.beta2**self.t)
        scratch += self.eps
        np.divide(m, scratch, out=scratch)
        scratch *= learning_rate / (1 - self.beta1**self.t)
        self.params -= scratch


def learning_rates(schedule, first, steps):
    """The learning rate of each step, (steps,): constant, or half a cosine down to 0 (Loshchilov and Hutter 2017)."""
    if schedule == "constant":
        return np.full(steps, first)
    return first * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2


def fit(model, optimizer, X, y, X_val, y_val, *, epochs, batch_size, rates, rng, log):
    """Train `model` on X (N, features), y (N,); `log` gets a row (a dict of runs.COLUMNS) after each epoch.

    rates: the learning rate of each step, (epochs * ceil(N / batch_size),). The training columns are means over the
    epoch's batches, taken while the weights moved. Returns the rows as columns. Raises runs.Diverged.
    """
    history = {column: [] for column in runs.COLUMNS}
    rates = iter(rates)
    quiet = np.errstate(over="ignore", invalid="ignore")  # runs.Diverged says it better
    with quiet, tqdm(total=epochs * -(-len(y) // batch_size), disable=None, leave=False, unit="batch") as bar:
        for epoch in range(1, epochs + 1):
            start, loss_sum, correct = time.perf_counter(), 0.0, 0
            for batch in data.batches(len(y), batch_size, rng):
                rate = next(rates)
                logits = model.forward(X[batch], training=True)
                loss, dlogits = softmax_cross_entropy(logits, y[batch])
                if not np.isfinite(loss):
                    raise runs.Diverged(f"the loss became {loss} in epoch {epoch}, at learning rate {rate:g}: lower it")
                model.backward(dlogits)
                optimizer.step(rate)
                loss_sum += loss * len(batch)
                correct += np.count_nonzero(logits.argmax(axis=1) == y[batch])
                bar.update()
            val_logits = model.logits(X_val)
            val_loss, _ = softmax_cross_entropy(val_logits, y_val)
            if not np.isfinite(val_loss):  # as after a last step that was too long
                raise runs.Diverged(f"the validation loss became {val_loss} in epoch {epoch}: lower the learning rate")
            values = epoch, loss_sum / len(y), correct / len(y), val_loss, accuracy(val_logits, y_val), float(rate)
            row = dict(zip(runs.COLUMNS, (*values, time.perf_counter() - start), strict=True))
            log(row)
            for column, value in row.items():
                history[column].append(value)
    return history


def accuracy(logits, y):
    """Share of rows whose largest logit is that of the true class."""
    return float(np.mean(logits.argmax(axis=1) == y))


def save(path, model, about):
    """Write the model and the dict `about` (JSON: what the input was, what the classes are) as one safetensors file."""
    runs.save_weights(path, model.views, {"model": "mlp", "sizes": model.sizes, **about})


def restore(path):
    """(model, about) of a file that `save` wrote. Raises runs.RunError."""
    tensors, about = runs.load_weights(path)
    if about.get("model") != "mlp":
        raise runs.RunError(f"{path}: holds a {about.get('model')}, not the NumPy MLP")
    with runs.as_written(path):
        model = MLP(about["sizes"])
        for name, view in model.views.items():
            view[...] = tensors[name]
    return model, about


def standardised(X, mean, std):
    """(N, ...) -> (N, features): a new array with mean 0 and standard deviation 1, as far as X has `mean` and `std`."""
    X = X.reshape(len(X), -1) * np.float32(1 / std)
    X -= np.float32(mean / std)
    return X


def seeds(seed):
    """Independent generators {"init": ..., "shuffle": ...}: what one draws does not change the other."""
    streams = np.random.SeedSequence(seed).spawn(2)
    return {name: np.random.default_rng(stream) for name, stream in zip(("init", "shuffle"), streams, strict=True)}


def train(X, y, X_val, y_val, classes, s, log):
    """A new MLP with the settings `s` of this script, trained: (model, history). X (N, features), y (N,)."""
    rng = seeds(s.seed)
    model = MLP((X.shape[1], *s.hidden, classes), rng["init"])
    make = {"adam": Adam, "sgd": lambda params, grads: SGD(params, grads, s.momentum)}[s.optimizer]
    optimizer = make(model.params, model.grads)
    rates = learning_rates(s.schedule, s.learning_rate, s.epochs * -(-len(y) // s.batch_size))
    history = fit(model, optimizer, X, y, X_val, y_val, epochs=s.epochs, batch_size=s.batch_size, rates=rates,
                  rng=rng["shuffle"], log=log)  # fmt: skip
    return model, history


def run(s):
    """The whole job with the settings `s`: load, train, test, save. Returns what metrics.json holds."""
    images = data.load(s.dataset, s.data_dir, s.offline_fallback, s.split_seed, s.quick)
    if s.quick:
        s.epochs = min(s.epochs, 5)
    mean, std = data.statistics(images.train.X)
    X, X_val, X_test = (standardised(part.X, mean, std) for part in (images.train, images.val, images.test))

    with runs.Run("mlp_from_scratch", s) as run:
        model, history = train(X, images.train.y, X_val, images.val.y, len(images.classes), s, run.log)
        name = f"NumPy MLP {model.name}"
        val_accuracy = accuracy(model.logits(X_val), images.val.y)
        logits = model.logits(X_test)
        test_loss, _ = softmax_cross_entropy(logits, images.test.y)

        about = {"dataset": images.name, "classes": images.classes, "mean": mean, "std": std, "settings": vars(s)}
        save(run.path / "weights.safetensors", model, about)
        title = f"{name} on {images.name}"
        run.save({"curves.png": plots.curves(history, title)})
        run.save(plots.evaluation(images.test.X, images.test.y, softmax(logits), images.classes, title))
        test_accuracy = accuracy(logits, images.test.y)
        return run.finish({name: (val_accuracy, test_accuracy)}, dataset=images.name, model=name, **images.sizes,
                          val_accuracy=val_accuracy, test_accuracy=test_accuracy, test_loss=test_loss,
                          parameters=len(model.params))  # fmt: skip


def main(argv=None):
    run(settings.parse(sys.modules[__name__], data, runs, argv=argv))


if __name__ == "__main__":
    runs.command(main)
