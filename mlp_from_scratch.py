"""A multilayer perceptron in NumPy: forward pass, backward pass, optimisers and training loop written by hand.

    python mlp_from_scratch.py

ends, after 56 s on 2 cores of an Intel(R) Xeon(R) Processor @ 2.50GHz (Python 3.11.7, NumPy 2.4.6), with

    Fashion-MNIST               validation      test
    NumPy MLP 784-256-128-10      91.42%      90.24%
"""

import itertools
import math
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

import data
import plots
import runs
import settings
from optimizers import OPTIMIZERS, Average, ReduceOnPlateau, learning_rates

# ---- settings: edit here, or override any of them on the command line (--epochs 5) ----
EPOCHS = 30  # passes over the training set, in [1, 10000]
BATCH_SIZE = 128  # images in each step, in [1, inf)
HIDDEN = (256, 128)  # neurons in each hidden layer; none at all is softmax regression; in [1, inf)
ACTIVATION = "relu"  # of the hidden neurons: {relu, leaky_relu, tanh, gelu, sigmoid}
NORM = "batch"  # normalisation of what enters the activation: {none, batch, layer}
DROPOUT = 0.05  # share of the hidden neurons that each training step leaves out, in [0, 1)
INPUT_DROPOUT = 0.0  # share of the pixels that each training step leaves out, in [0, 1)
INPUT = "standard"  # pixels as they are, in [0, 1], or with mean 0 and deviation 1, of all or each: {none, standard, pixel}
FLIP = True  # show half of the training images mirrored, drawn anew for each batch
SHIFT = 0  # move each training image by up to so many pixels, drawn anew for each batch, in [0, 27]
ERASE = 0  # side of a square of noise in half of the training images, in pixels, drawn anew for each batch, in [0, 28]
LOSS = "softmax"  # cross-entropy of one softmax, or binary cross-entropy of a sigmoid for each class: {softmax, sigmoid}
LABEL_SMOOTHING = 0.1  # share of each label that is spread over all classes, in [0, 1)
INIT = "he"  # how the weights are drawn: {he, xavier, lecun, random}
INIT_SCALE = 0.01  # standard deviation of the weights that random draws, in (0, 100]
OPTIMIZER = "adam"  # what turns gradients into steps: {sgd, momentum, nesterov, rmsprop, adam}
LEARNING_RATE = 0.003  # the highest one; about 0.1 suits sgd, 0.02 momentum and nesterov; in (0, inf)
MOMENTUM = 0.9  # of momentum and nesterov, in [0, 1)
SCHEDULE = "one_cycle"  # how the learning rate goes on: {constant, step, exponential, cosine, one_cycle, plateau}
WARMUP = 0.2  # share of the training in which it first rises, in a straight line; 0.2 suits one_cycle; in [0, 1)
L1 = 0.0  # penalty on the weights: this times the sum of their magnitudes, in [0, inf)
L2 = 0.0  # penalty on the weights: half of this times the sum of their squares, in [0, inf)
WEIGHT_DECAY = 0.1  # share of the weights, times the learning rate, that each step takes off, as in AdamW; with the
                    # higher learning rates of sgd and momentum less of it is enough; in [0, inf)
CLIP_NORM = 0.0  # gradients that are longer than this, all of them as one vector, are shortened; 0: none; in [0, inf)
AVERAGE = 0.999  # decay of the running average of the weights, then what is evaluated and saved; 0: none; in [0, 1)
PATIENCE = 0  # epochs without a better validation accuracy after which it stops, and takes the best; 0: never; in [0, inf)
RESUME = ""  # the folder of a run that was stopped, to take it up again with its own settings, bit for bit
SEED = 0  # of the initial weights, the order of the batches, dropout and the augmentation, in [0, inf)
QUICK = False  # a tour of a few seconds: 5 epochs at most, on a subset; its figures are only a tour's
# ----

# Adam along a cosine and nothing more: what the hybrid's head and the scikit-learn classifier start from
PLAIN = {"activation": "relu", "norm": "none", "dropout": 0.0, "input_dropout": 0.0, "loss": "softmax",
         "label_smoothing": 0.0, "init": "he", "optimizer": "adam", "schedule": "cosine", "warmup": 0.0, "l1": 0.0,
         "l2": 0.0, "weight_decay": 0.0, "clip_norm": 0.0, "average": 0.0, "patience": 0}  # fmt: skip


class Layer:
    """What the network asks of a layer.

    `forward(x, training)` keeps what `backward(dout)` needs; `backward` fills `grads` and returns the gradient with respect
    to x. Neither changes its argument or a parameter. `shapes` are those of the parameters, `state_shapes` those of what is
    learnt without gradients; the network sets `params`, `grads` and `state`, {name: view into one of its flat vectors}.
    """

    def __init__(self, state_shapes=(), **shapes):
        self.shapes, self.state_shapes = shapes, dict(state_shapes)
        self.params, self.grads, self.state = {}, {}, {}

    def init(self, rng):
        """Set the first values of `params` and `state`, where they are not 0."""


class Linear(Layer):
    """y = x W + b.  x (N, n_in), W (n_in, n_out), b (n_out,), y (N, n_out).

    W is drawn from N(0, variance) and b is 0. The variance is 2 / n_in for "he", which keeps that of the signal through
    ReLUs (He et al. 2015, eq. 10), 2 / (n_in + n_out) for "xavier" (Glorot and Bengio 2010, eq. 12), 1 / n_in for "lecun"
    (LeCun et al. 1998, sec. 4.6), and scale^2 for "random".
    """

    def __init__(self, n_in, n_out, init="he", scale=0.01):
        super().__init__(W=(n_in, n_out), b=(n_out,))
        self.variance = {"he": 2 / n_in, "xavier": 2 / (n_in + n_out), "lecun": 1 / n_in, "random": scale**2}[init]

    def init(self, rng):
        W = self.params["W"]
        W[...] = rng.standard_normal(W.shape) * np.sqrt(self.variance)

    def forward(self, x, training=False):
        self.x = x
        y = x @ self.params["W"]  # (N, n_in) -> (N, n_out)
        y += self.params["b"]
        return y

    def backward(self, dout, input_gradient=True):
        np.matmul(self.x.T, dout, out=self.grads["W"])  # (n_in, N) @ (N, n_out)
        np.sum(dout, axis=0, out=self.grads["b"])
        return dout @ self.params["W"].T if input_gradient else None  # (N, n_out) -> (N, n_in)


class ReLU(Layer):
    """y = max(x, 0); the gradient at 0 is taken as 0 (Nair and Hinton 2010)."""

    def forward(self, x, training=False):
        self.y = np.maximum(x, 0)
        return self.y

    def backward(self, dout, input_gradient=True):
        return dout * (self.y > 0)


class LeakyReLU(Layer):
    """y = x where x > 0, elsewhere x / 100 (Maas et al. 2013)."""

    def forward(self, x, training=False):
        self.slope = np.where(x > 0, x.dtype.type(1), x.dtype.type(0.01))
        return x * self.slope

    def backward(self, dout, input_gradient=True):
        return dout * self.slope


class Tanh(Layer):
    """y = tanh x;  dy/dx = 1 - y^2."""

    def forward(self, x, training=False):
        self.y = np.tanh(x)
        return self.y

    def backward(self, dout, input_gradient=True):
        return dout * (1 - self.y**2)


class Sigmoid(Layer):
    """y = 1 / (1 + exp(-x));  dy/dx = y (1 - y)."""

    def forward(self, x, training=False):
        self.y = sigmoid(x)
        return self.y

    def backward(self, dout, input_gradient=True):
        return dout * (self.y * (1 - self.y))


class GELU(Layer):
    """y = x P(x), P the normal distribution function, exact (Hendrycks and Gimpel 2016);  dy/dx = P(x) + x P'(x)."""

    def forward(self, x, training=False):
        from scipy.special import ndtr  # P, which NumPy lacks; SciPy comes with scikit-learn, and loads only for this

        self.x, self.P = x, ndtr(x)
        return x * self.P

    def backward(self, dout, input_gradient=True):
        density = np.exp(-(self.x**2) / 2) * self.x.dtype.type(1 / math.sqrt(2 * math.pi))
        return dout * (self.P + self.x * density)


class Dropout(Layer):
    """Inverted dropout: in training a value is 0 with probability `rate`, else it grows by 1 / (1 - rate).

    In use it changes nothing: the expected value is already that of training (Srivastava et al. 2014, sec. 10).
    """

    def __init__(self, rate, rng):
        super().__init__()
        self.rate, self.rng = rate, rng

    def forward(self, x, training=False):
        if not training:
            return x
        kept = self.rng.random(x.shape, dtype=np.float32) >= self.rate
        self.mask = kept * x.dtype.type(1 / (1 - self.rate))
        return x * self.mask

    def backward(self, dout, input_gradient=True):
        return dout * self.mask


class BatchNorm(Layer):
    """y = gamma (x - mean) / sqrt(var + eps) + beta, mean and variance of each column in the batch (Ioffe and Szegedy 2015).

    In use, running means of the training's means and unbiased variances stand in for those of the batch, as in
    torch.nn.BatchNorm1d; a batch of a single row, which has no variance, leaves them alone. `backward` is that of a forward
    pass in training.
    """

    def __init__(self, n, momentum=0.1, eps=1e-5):
        super().__init__({"mean": (n,), "var": (n,)}, gamma=(n,), beta=(n,))
        self.momentum, self.eps = momentum, eps

    def init(self, rng):
        self.params["gamma"][...] = self.state["var"][...] = 1

    def forward(self, x, training=False):
        mean, var = self.state["mean"], self.state["var"]
        if training:
            n, mean, var = len(x), x.mean(axis=0), x.var(axis=0)
            if n > 1:
                self.state["mean"] += self.momentum * (mean - self.state["mean"])
                self.state["var"] += self.momentum * (var * (n / (n - 1)) - self.state["var"])
        self.inverse = 1 / np.sqrt(var + x.dtype.type(self.eps))
        self.normed = (x - mean) * self.inverse
        return self.normed * self.params["gamma"] + self.params["beta"]

    def backward(self, dout, input_gradient=True):
        np.sum(dout * self.normed, axis=0, out=self.grads["gamma"])
        np.sum(dout, axis=0, out=self.grads["beta"])
        # mean and variance depend on x, too: of each column of dout, what lies along 1 and along `normed` is lost
        through = dout - (self.grads["beta"] + self.normed * self.grads["gamma"]) / len(dout)
        return through * (self.params["gamma"] * self.inverse)


class LayerNorm(Layer):
    """y = gamma (x - mean) / sqrt(var + eps) + beta, mean and variance of each row (Ba, Kiros and Hinton 2016)."""

    def __init__(self, n, eps=1e-5):
        super().__init__(gamma=(n,), beta=(n,))
        self.eps = eps

    def init(self, rng):
        self.params["gamma"][...] = 1

    def forward(self, x, training=False):
        centred = x - x.mean(axis=1, keepdims=True)
        self.inverse = 1 / np.sqrt((centred**2).mean(axis=1, keepdims=True) + x.dtype.type(self.eps))  # (N, 1)
        self.normed = centred * self.inverse
        return self.normed * self.params["gamma"] + self.params["beta"]

    def backward(self, dout, input_gradient=True):
        np.sum(dout * self.normed, axis=0, out=self.grads["gamma"])
        np.sum(dout, axis=0, out=self.grads["beta"])
        dnormed = dout * self.params["gamma"]
        along = (dnormed * self.normed).mean(axis=1, keepdims=True)  # (N, 1): as in BatchNorm, but by rows
        return (dnormed - dnormed.mean(axis=1, keepdims=True) - self.normed * along) * self.inverse


def sigmoid(x):
    """1 / (1 + exp(-x)), element by element, through tanh, which cannot overflow."""
    return (1 + np.tanh(x / 2)) / 2


def softmax(logits):
    """Probabilities (N, C) of logits (N, C); each row's largest logit is taken off first, so that exp cannot overflow."""
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def softmax_cross_entropy(logits, y, smoothing=0.0):
    """Mean over the batch of -sum_c t_c log softmax(logits)_c, and its gradient: (loss, dlogits (N, C)).

    logits (N, C), y (N,) integers. The target t is 1 - smoothing on the class y, and smoothing / C more on every class
    (Szegedy et al. 2016, sec. 7). dlogits = (softmax(logits) - t) / N: the only place that divides by N.
    """
    rows, (n, classes) = np.arange(len(y)), logits.shape
    shifted = logits - logits.max(axis=1, keepdims=True)
    dlogits = np.exp(shifted)
    total = dlogits.sum(axis=1, keepdims=True)
    log_total = np.log(total[:, 0])
    loss = (1 - smoothing) * (log_total - shifted[rows, y]).mean()
    dlogits /= total
    dlogits[rows, y] -= 1 - smoothing
    if smoothing:
        loss += smoothing * (log_total - shifted.mean(axis=1)).mean()
        dlogits -= smoothing / classes
    dlogits /= n
    return float(loss), dlogits


def sigmoid_cross_entropy(logits, y, smoothing=0.0):
    """Independent sigmoids: binary cross-entropy, summed over the classes, mean over the batch: (loss, dlogits (N, C)).

    Each output answers a question of its own, is it class c or not. With s = sigmoid(logit) and targets t as above,
    -t log s - (1 - t) log(1 - s) = max(logit, 0) - t logit + log(1 + exp(-|logit|)), which cannot overflow; its gradient
    is s - t.
    """
    targets = np.full_like(logits, smoothing / logits.shape[1])
    targets[np.arange(len(y)), y] += 1 - smoothing
    losses = np.maximum(logits, 0) - targets * logits + np.log1p(np.exp(-np.abs(logits)))
    return float(losses.sum(axis=1).mean()), (sigmoid(logits) - targets) / len(y)


ACTIVATIONS = {"relu": ReLU, "leaky_relu": LeakyReLU, "tanh": Tanh, "gelu": GELU, "sigmoid": Sigmoid}
NORMS = {"batch": BatchNorm, "layer": LayerNorm}
LOSSES = {"softmax": (softmax_cross_entropy, softmax), "sigmoid": (sigmoid_cross_entropy, sigmoid)}  # and probabilities


class MLP:
    """Hidden layers of Linear, norm, activation and dropout, and a Linear that gives the logits.

    sizes (784, 256, 128, 10) make 784-256-128-10. All parameters are views into one vector, `params`, and their gradients
    into another, `grads`, so that an optimiser works on two flat vectors, whatever the layers are; what is learnt without
    gradients is in a third, `state`. rng draws the initial weights, dropout_rng what dropout leaves out.
    """

    def __init__(self, sizes, rng=None, *, activation="relu", norm="none", dropout=0.0, input_dropout=0.0, init="he",
                 init_scale=0.01, dropout_rng=None, dtype=np.float32):  # fmt: skip
        self.name = "-".join(map(str, sizes))  # as in 784-256-128-10
        self.built = {"sizes": tuple(sizes), "activation": activation, "norm": norm}  # what a file of weights must tell
        self.layers = [Dropout(input_dropout, dropout_rng)] if input_dropout else []
        for n_in, n_out in itertools.pairwise(sizes[:-1]):
            self.layers.append(Linear(n_in, n_out, init, init_scale))
            if norm != "none":
                self.layers.append(NORMS[norm](n_out))
            self.layers.append(ACTIVATIONS[activation]())
            if dropout:
                self.layers.append(Dropout(dropout, dropout_rng))
        self.layers.append(Linear(*sizes[-2:], init, init_scale))

        self.params, self.views = self.flat("params", "shapes", dtype)
        self.grads, _ = self.flat("grads", "shapes", dtype)
        self.state, running = self.flat("state", "state_shapes", dtype)
        self.views |= running  # {"0.W": view, "0.b": view, ...}: all that a file of weights holds
        self.first = next(layer for layer in self.layers if layer.shapes)
        self.weights = [(layer.params["W"], layer.grads["W"]) for layer in self.layers if "W" in layer.params]
        if rng is not None:
            for layer in self.layers:
                layer.init(rng)

    def flat(self, attribute, shapes, dtype):
        """A new vector, and {"number.name": view into it} of what each layer's `attribute` now is, by its `shapes`."""
        learning = [layer for layer in self.layers if layer.shapes]  # numbered without dropout, which use has no need of
        sizes = [math.prod(shape) for layer in learning for shape in getattr(layer, shapes).values()]
        vector, views = np.zeros(sum(sizes), dtype), {}
        parts = iter(np.split(vector, np.cumsum(sizes)[:-1]))
        for number, layer in enumerate(learning):
            own = {name: next(parts).reshape(shape) for name, shape in getattr(layer, shapes).items()}
            setattr(layer, attribute, own)
            views |= {f"{number}.{name}": view for name, view in own.items()}
        return vector, views

    def forward(self, x, training=False):
        """Logits (N, classes) of x (N, features)."""
        for layer in self.layers:
            x = layer.forward(x, training)
        return x

    def backward(self, dlogits, input_gradient=False):
        """Fill `grads` from dlogits (N, classes); the gradient with respect to x only where it is asked for."""
        dout = dlogits
        for layer in reversed(self.layers):
            if layer is self.first and not input_gradient:
                return layer.backward(dout, input_gradient=False)
            dout = layer.backward(dout)
        return dout

    def logits(self, X, batch_size=2000):
        """Logits (N, classes) of all of X, in pieces that fit the processor's caches."""
        return np.concatenate([self.forward(X[i : i + batch_size]) for i in range(0, len(X), batch_size)])

    def regularise(self, l1, l2):
        """Add the gradients of l1 sum |W| + l2 / 2 sum W^2 over all weights (not biases) to `grads`; return that penalty."""
        penalty = 0.0
        for W, dW in self.weights:
            if l1:
                penalty += l1 * float(np.abs(W).sum())
                dW += l1 * np.sign(W)
            if l2:
                penalty += l2 / 2 * float(np.vdot(W, W))
                dW += l2 * W
        return penalty

    def clip(self, longest):
        """Shorten `grads`, as one vector, to the length `longest` where it is longer (Pascanu et al. 2013, alg. 1)."""
        norm = float(np.sqrt(np.vdot(self.grads, self.grads)))
        if norm > longest:
            self.grads *= longest / norm
        return norm


CHECKPOINT = "checkpoint.safetensors"


class Training:
    """A training of `model` with the settings `s`, and all that changes while it goes on.

    rng: {"shuffle": Generator, ...}, a stream for each purpose; n: the number of training images. What `arrays` and
    `about` return after an epoch, `take_up` puts into a new Training: it then goes on bit for bit as if never stopped.
    """

    def __init__(self, model, rng, s, n):
        self.model, self.s, self.rng, self.n = model, s, rng, n
        more = {"momentum": s.momentum} if s.optimizer in ("momentum", "nesterov") else {}
        self.optimizer = OPTIMIZERS[s.optimizer](model.params, model.grads, **more)
        self.steps = -(-n // s.batch_size)  # in an epoch
        self.rates = learning_rates(s.schedule, s.learning_rate, s.epochs * self.steps, s.warmup)
        self.plateau = ReduceOnPlateau() if s.schedule == "plateau" else None
        self.average = Average(model, s.average) if s.average else None
        self.loss, _ = LOSSES[s.loss]
        self.epoch, self.best_epoch, self.best_accuracy = 0, 0, 0.0
        self.best = {"params": model.params.copy(), "state": model.state.copy()} if s.patience else {}
        self.history = {column: [] for column in runs.COLUMNS}

    def arrays(self):
        """{name: array}: the arrays themselves, not copies."""
        own = {"params": self.model.params, "state": self.model.state, "optimizer": self.optimizer.state}
        if self.average:
            own |= {"average.params": self.average.params, "average.state": self.average.state}
        return own | {f"best.{name}": array for name, array in self.best.items()}

    def about(self):
        """The rest, as a dict for JSON."""
        return {
            "model": "mlp training", "epoch": self.epoch, "best_epoch": self.best_epoch, "best_accuracy": self.best_accuracy,
            "optimizer_t": self.optimizer.t, "average_t": self.average.t if self.average else 0,
            "plateau": vars(self.plateau) if self.plateau else {}, "history": self.history,
            "rng": {name: stream.bit_generator.state for name, stream in self.rng.items()},
        }  # fmt: skip

    def take_up(self, tensors, about):
        """Go on from what `arrays` and `about` have returned. Raises KeyError or ValueError where that does not fit."""
        for name, array in self.arrays().items():
            if tensors[name].shape != array.shape:
                raise ValueError(f"{name} has the shape {tensors[name].shape}, expected {array.shape}")
        for name, array in self.arrays().items():
            array[...] = tensors[name]
        self.epoch, self.best_epoch, self.best_accuracy = (about[key] for key in ("epoch", "best_epoch", "best_accuracy"))
        self.optimizer.t, self.history = about["optimizer_t"], about["history"]
        if self.average:
            self.average.t = about["average_t"]
        if self.plateau:
            vars(self.plateau).update(about["plateau"])
        for name, stream in self.rng.items():
            stream.bit_generator.state = about["rng"][name]

    def step(self, x, y, rate):
        """One step on the batch x (N, features), y (N,): (loss, how many were right). Raises runs.Diverged."""
        s, model = self.s, self.model
        logits = model.forward(x, training=True)
        loss, dlogits = self.loss(logits, y, s.label_smoothing)
        if not np.isfinite(loss):
            raise runs.Diverged(f"the loss became {loss} in epoch {self.epoch + 1}, at learning rate {rate:g}: lower it")
        model.backward(dlogits)
        if s.l1 or s.l2:
            model.regularise(s.l1, s.l2)
        if s.clip_norm:
            model.clip(s.clip_norm)
        if s.weight_decay:  # decoupled from the gradient (Loshchilov and Hutter 2019), in the form of torch.optim.AdamW
            for W, _ in model.weights:
                W *= 1 - rate * s.weight_decay
        self.optimizer.step(rate)
        if self.average:
            self.average.update()
        return loss, np.count_nonzero(logits.argmax(axis=1) == y)

    def validate(self, X, y):
        """(loss, accuracy) of the weights, or of their average where there is one. Raises runs.Diverged."""
        if self.average:
            self.average.swap()
        logits = self.model.logits(X)
        loss, right = self.loss(logits, y)[0], accuracy(logits, y)
        if self.s.patience and right > self.best_accuracy:
            self.best_epoch, self.best_accuracy = self.epoch + 1, right
            self.best["params"][:], self.best["state"][:] = self.model.params, self.model.state
        if self.average:
            self.average.swap()
        if not np.isfinite(loss):  # as after a last step that was too long
            raise runs.Diverged(f"the validation loss became {loss} in epoch {self.epoch + 1}: lower the learning rate")
        return loss, right

    def run(self, X, y, X_val, y_val, log, keep=lambda: None, prepare=lambda x: x):
        """Train to the last epoch, or until validation accuracy has not risen for s.patience epochs.

        `prepare` makes (n, features) of a batch of X; y (N,). X_val (M, features) is as it is used, y_val (M,). After each
        epoch `keep` is called, and `log` gets a row (a dict of runs.COLUMNS). The training columns are means over the
        epoch's batches, taken while the weights moved, with label smoothing and without penalties. Leaves the averaged or,
        with patience, the best weights in the model. Raises runs.Diverged.
        """
        s, steps = self.s, self.steps
        quiet = np.errstate(over="ignore", invalid="ignore")  # runs.Diverged says it better
        with quiet, tqdm(total=s.epochs * steps, initial=self.epoch * steps, disable=None, leave=False, unit="batch") as bar:
            while self.epoch < s.epochs and not (s.patience and self.epoch - self.best_epoch >= s.patience):
                start, loss_sum, correct = time.perf_counter(), 0.0, 0
                rates = self.rates[self.epoch * steps :]
                for batch, rate in zip(data.batches(self.n, s.batch_size, self.rng["shuffle"]), rates, strict=False):
                    rate *= self.plateau.factor if self.plateau else 1
                    loss, right = self.step(prepare(X[batch]), y[batch], rate)
                    loss_sum += loss * len(batch)
                    correct += right
                    bar.update()
                val_loss, val_accuracy = self.validate(X_val, y_val)
                if self.plateau:
                    self.plateau.step(val_loss)
                self.epoch += 1
                values = self.epoch, loss_sum / self.n, correct / self.n, val_loss, val_accuracy, rate
                row = dict(zip(runs.COLUMNS, (*values, time.perf_counter() - start), strict=True))
                for column, value in row.items():
                    self.history[column].append(value)
                keep()
                log(row)
        if s.patience:
            self.model.params[:], self.model.state[:] = self.best["params"], self.best["state"]
        elif self.average:
            self.average.swap()


def accuracy(logits, y):
    """Share of rows whose largest logit is that of the true class."""
    return float(np.mean(logits.argmax(axis=1) == y))


def save(path, model, about):
    """Write the model and the dict `about` (JSON: what the input was, what the classes are) as one safetensors file."""
    runs.save_weights(path, model.views, {"model": "mlp", **model.built, **about})


def restore(path):
    """(model, about) of a file that `save` wrote. Raises runs.RunError."""
    tensors, about = runs.load_weights(path)
    if about.get("model") != "mlp":
        raise runs.RunError(f"{path}: holds a {about.get('model')}, not the NumPy MLP")
    with runs.as_written(path):
        model = MLP(about["sizes"], activation=about["activation"], norm=about["norm"])
        for name, view in model.views.items():
            view[...] = tensors[name]
    return model, about


def standardised(X, mean, std):
    """(N, ...) -> (N, features): a new array (X - mean) / std; these are numbers, or arrays for a single image."""
    X = X.reshape(len(X), -1) * np.ravel(1 / np.asarray(std)).astype(np.float32)
    X -= np.ravel(np.asarray(mean) / std).astype(np.float32)
    return X


def seeds(seed):
    """Independent generators, {"init": ..., "shuffle": ..., ...}: what one draws does not change the others."""
    names = ("init", "shuffle", "dropout", "augment")
    streams = np.random.SeedSequence(seed).spawn(len(names))
    return dict(zip(names, map(np.random.default_rng, streams), strict=True))


def build(features, classes, s, dtype=np.float32):
    """(an untrained MLP with the settings `s` of this script, its random streams). Raises settings.SettingError."""
    if s.norm == "batch" and s.batch_size == 1:
        raise settings.SettingError("--batch-size 1: batch normalisation needs 2 images or more")
    rng = seeds(s.seed)
    model = MLP((features, *s.hidden, classes), rng["init"], activation=s.activation, norm=s.norm, dropout=s.dropout,
                input_dropout=s.input_dropout, init=s.init, init_scale=s.init_scale, dropout_rng=rng["dropout"],
                dtype=dtype)  # fmt: skip
    return model, rng


def train(X, y, X_val, y_val, classes, s, log):
    """A new MLP with the settings `s` of this script, trained: (model, history). X (N, features), y (N,)."""
    training = Training(*build(X.shape[1], classes, s), s, len(y))
    training.run(X, y, X_val, y_val, log)
    return training.model, training.history


def take_up(training, folder, split):
    """Put the checkpoint of the run in `folder` into `training`. Raises runs.RunError for one that does not fit."""
    path = Path(folder, CHECKPOINT)
    if not path.exists():
        if Path(folder, "history.csv").exists():
            raise runs.RunError(f"{path}: no such file, but the run has been training: it cannot be taken up without it")
        print(f"{folder} was stopped before its first epoch was over: starting again")
        return
    tensors, about = runs.load_weights(path)
    with runs.as_written(path):
        if about["split"] != split:
            raise runs.RunError(f"{path}: is of a training on other data")
        training.take_up(tensors, about)
    print(f"taking up {folder} after epoch {training.epoch}")


def run(s):
    """The whole job with the settings `s`: load, train, test, save. Returns what metrics.json holds."""
    images = data.load(s.dataset, s.data_dir, s.offline_fallback, s.split_seed, s.quick)
    if s.quick:
        s.epochs = min(s.epochs, 5)
    mean, std = data.normalisation(images.train.X, s.input)
    X, X_val, X_test = (standardised(part.X, mean, std) for part in (images.train, images.val, images.test))
    model, rng = build(X.shape[1], len(images.classes), s)
    training = Training(model, rng, s, len(X))
    augmented = {}
    if s.flip or s.shift or s.erase:
        X = images.train.X
        augmented["prepare"] = lambda x: standardised(data.augment(x, rng["augment"], s.flip, s.shift, s.erase), mean, std)
    split = data.digest(images.train.index, images.train.y)
    if s.resume:
        take_up(training, s.resume, split)

    with runs.Run("mlp_from_scratch", s, training.history if s.resume else None) as run:
        training.run(X, images.train.y, X_val, images.val.y, run.log, lambda: runs.save_weights(
            run.path / CHECKPOINT, training.arrays(), training.about() | {"split": split}), **augmented)  # fmt: skip
        name = f"NumPy MLP {model.name}"
        val_accuracy = accuracy(model.logits(X_val), images.val.y)
        logits = model.logits(X_test)
        loss, probabilities = LOSSES[s.loss]
        test_loss, _ = loss(logits, images.test.y)

        about = {"dataset": images.name, "classes": images.classes}
        about |= {"mean": np.asarray(mean).tolist(), "std": np.asarray(std).tolist()}
        save(run.path / "weights.safetensors", model, about)
        title = f"{name} on {images.name}"
        run.save({"curves.png": plots.curves(training.history, title, "prepare" in augmented, s.label_smoothing)})
        test_probabilities = probabilities(logits.astype(np.float64))
        run.save(plots.evaluation(images.test.X, images.test.y, test_probabilities, images.classes, title))
        test_accuracy = accuracy(logits, images.test.y)
        early = {"best_epoch": training.best_epoch} if s.patience else {}
        return run.finish({name: (val_accuracy, test_accuracy)}, dataset=images.name, model=name, **images.sizes,
                          val_accuracy=val_accuracy, test_accuracy=test_accuracy, test_loss=test_loss,
                          parameters=len(model.params), **early)  # fmt: skip


def main(argv=None):
    run(settings.parse(sys.modules[__name__], data, runs, argv=argv))


if __name__ == "__main__":
    runs.command(main)
