"""A multilayer perceptron in NumPy: forward and backward pass, optimizers and training loop, all by hand.

    python mlp_from_scratch.py

prints at the end, after 46 s on 2 cores of AMD EPYC; python 3.11.7, numpy 2.4.6,

    Fashion-MNIST                               validation      test
    NumPy MLP 784-256-128-10                        91.52%    90.53%
      with flip test-time augmentation (TTA)        91.63%    90.54%

Shapes: N rows of a batch, n_in inputs, n_out or D outputs, C classes. `dout` is the gradient of the loss with
respect to a layer's output, `dx` with respect to its input. extras/check_gradients.py checks every backward.
"""

import itertools
import math
import sys
import time
from types import SimpleNamespace
from typing import Literal

import numpy as np
from scipy.special import ndtr
from tqdm import tqdm

import data
import monitor
import plots
import run

Loss = Literal["softmax", "sigmoid", "squared_error"]
Schedule = Literal["constant", "step", "exponential", "cosine", "linear", "plateau", "halve"]

# Edit here, or use flags: EPOCHS is --epochs. The first ten are the ones to change first.
EPOCHS: int = 40  # passes over the training set
HIDDEN: tuple[int, ...] = (256, 128)  # neurons of each hidden layer; empty: softmax regression
LEARNING_RATE: float = 0.003  # peak learning rate; try 0.1 with sgd, 0.02 with momentum
BATCH_SIZE: int = 128  # images per step
OPTIMIZER: Literal["sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw", "nadam"] = "adam"  # update rule
ACTIVATION: Literal["relu", "leaky_relu", "tanh", "gelu", "sigmoid", "identity"] = "relu"  # of hidden layers
NORM: Literal["none", "batch", "layer"] = "batch"  # normalization before each activation
DROPOUT: float = 0.05  # dropout probability in the hidden layers
WEIGHT_DECAY: float = 0.1  # decoupled weight decay, of weights only; use less with sgd
FLIP: bool = True  # mirror each training image with probability 0.5
SHIFT: int = 0  # random shift of training images, in pixels
ERASE: int = 0  # side of a square of noise in half of the training images, in pixels
ROTATE: float = 0.0  # random rotation of training images, up to this many degrees
TRANSLATE: float = 0.0  # random translation of training images, up to this fraction of their size
AUGMENT_ONCE: bool = False  # augment once before training, instead of anew for every batch
NORMALIZE: Literal["none", "symmetric", "global", "per_pixel"] = "global"  # standardization of the pixels
TTA: Literal["none", "flip", "shifts", "6_views", "10_views", "18_views"] = "flip"  # test-time augmentation
INIT: Literal["he", "xavier", "lecun", "fan_out", "random", "zeros"] = "he"  # initialization of the weights
INIT_SCALE: float = 0.01  # standard deviation of the weights with INIT = "random"
LOSS: Loss = "softmax"  # cross-entropy of the softmax or of a sigmoid per class; squared error of the softmax
LABEL_SMOOTHING: float = 0.1  # fraction of each label that is spread over all classes
MOMENTUM: float = 0.9  # decay of the velocity of momentum and nesterov
RMSPROP_DECAY: float = 0.99  # decay of the mean squared gradient of rmsprop
BETA1: float = 0.9  # decay of the mean gradient of adam, adamw and nadam
BETA2: float = 0.999  # decay of their mean squared gradient
EPS: float = 1e-8  # added to the root of the mean squared gradient, also of rmsprop
SCHEDULE: Schedule = "linear"  # learning rate after the warm-up
WARMUP: float = 0.2  # fraction of the training in which the learning rate rises to its peak
MAX_GRAD_NORM: float = 0.0  # clip the norm of the gradient to this; 0: never
EMA_DECAY: float = 0.999  # decay of the moving average of the weights, which is evaluated; 0: none
L1: float = 0.0  # this times the sum of the absolute weights is added to the loss
L2: float = 0.0  # half of this times the sum of the squared weights is added to the loss
INPUT_DROPOUT: float = 0.0  # dropout probability of the pixels
PATIENCE: int = 0  # stop after this many epochs without improvement in validation accuracy; 0: never
# The MLP on a CNN's features has constants of its own, HEAD_..., in hybrid_train.py, and ignores these.

LIMITS = {
    **dict.fromkeys(("EPOCHS", "HIDDEN", "BATCH_SIZE"), (1, 10**6)),
    **dict.fromkeys(("LEARNING_RATE", "INIT_SCALE"), (1e-12, 1000)),
    **dict.fromkeys(("WEIGHT_DECAY", "SHIFT", "ERASE", "MAX_GRAD_NORM", "L1", "L2", "PATIENCE"), (0, 10**6)),
    **dict.fromkeys(("DROPOUT", "INPUT_DROPOUT", "LABEL_SMOOTHING", "MOMENTUM", "WARMUP"), (0, 0.999)),
    **dict.fromkeys(("EMA_DECAY", "RMSPROP_DECAY", "BETA1", "BETA2"), (0, 0.999999)),
    "EPS": (1e-12, 1),
    "ROTATE": (0, 180),
    "TRANSLATE": (0, 0.999),
}


class Layer:
    """`forward(x, training)` -> y, which in training mode keeps what `backward(dout)` -> dx needs.

    `backward` fills `grads` and updates nothing. `params`, `grads` and `buffers` are {name: array}; an MLP
    makes them views into its flat vectors.
    """

    params, buffers = {}, {}


class Linear(Layer):
    """y = x W + b.  x (N, n_in), W (n_in, n_out), b (n_out,), y (N, n_out); without b if `bias` is False.

    Backward: dW = x^T dout, db = sum of dout over the batch, dx = dout W^T.
    """

    def __init__(self, n_in, n_out, rng=None, init="he", scale=0.01, bias=True):
        W = rng.standard_normal((n_in, n_out)) if rng else np.zeros((n_in, n_out))
        W *= math.sqrt(INITS[init](n_in, n_out, scale))
        self.params = {"W": W, "b": np.zeros(n_out)} if bias else {"W": W}

    def forward(self, x, training=False):
        if training:
            self.x = x
        y = x @ self.params["W"]  # (N, n_in) @ (n_in, n_out) -> (N, n_out)
        if "b" in self.params:
            y += self.params["b"]
        return y

    def backward(self, dout, input_gradient=True):
        np.matmul(self.x.T, dout, out=self.grads["W"])  # (n_in, N) @ (N, n_out) -> (n_in, n_out)
        if "b" in self.grads:
            dout.sum(axis=0, out=self.grads["b"])  # (N, n_out) -> (n_out,)
        return dout @ self.params["W"].T if input_gradient else None  # (N, n_out) -> (N, n_in)


# Variance of the normal distribution from which W is drawn; b starts at 0
INITS = {
    "he": lambda n_in, n_out, scale: 2 / n_in,  # He et al. 2015, eq. 10: keeps the signal's through ReLUs
    "xavier": lambda n_in, n_out, scale: 2 / (n_in + n_out),  # Glorot and Bengio 2010, eq. 12
    "lecun": lambda n_in, n_out, scale: 1 / n_in,  # LeCun et al. 1998, section 4.6
    "fan_out": lambda n_in, n_out, scale: 1 / n_out,  # keeps that of the gradients in linear layers
    "random": lambda n_in, n_out, scale: scale**2,
    "zeros": lambda n_in, n_out, scale: 0,  # all neurons of a layer stay equal: they have equal gradients
}


class Activation(Layer):
    """y = f(x) for each element;  dx = dout f'(x).  f and f' are a pair of ACTIVATIONS."""

    def __init__(self, name):
        self.name = name

    def forward(self, x, training=False):
        f, _ = ACTIVATIONS[self.name]
        y = f(x)
        if training:
            self.x, self.y = x, y
        return y

    def backward(self, dout):
        _, derivative = ACTIVATIONS[self.name]
        return dout * derivative(self.x, self.y)


def sigmoid(x):
    """1 / (1 + exp(-x)) of each element, computed by tanh, which cannot overflow."""
    return (1 + np.tanh(x / 2)) / 2


def normal_density(x):
    return np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


# {name: (f(x), f'(x) in terms of x and y = f(x))}; ndtr is the normal distribution function
ACTIVATIONS = {
    "relu": (lambda x: np.maximum(x, 0), lambda x, y: x > 0),  # Nair and Hinton 2010
    "leaky_relu": (lambda x: np.maximum(x, 0.01 * x), lambda x, y: np.where(x > 0, np.ones_like(x), 0.01)),
    "tanh": (np.tanh, lambda x, y: 1 - y**2),
    "gelu": (lambda x: x * ndtr(x), lambda x, y: ndtr(x) + x * normal_density(x)),  # Hendrycks, Gimpel 2016
    "sigmoid": (sigmoid, lambda x, y: y * (1 - y)),
    "identity": (lambda x: x, lambda x, y: np.ones_like(x)),
}


class Dropout(Layer):
    """Inverted dropout: in training mode, y = x mask, where mask is 0 with probability p, else 1 / (1 - p).

    In eval mode y = x, the expected value of y in training mode (Srivastava et al. 2014, section 10).
    """

    def __init__(self, p, rng):
        self.p, self.rng = p, rng

    def forward(self, x, training=False):
        if not training:
            return x
        self.mask = (self.rng.random(x.shape, dtype=np.float32) >= self.p) * x.dtype.type(1 / (1 - self.p))
        return x * self.mask

    def backward(self, dout):
        return dout * self.mask


class BatchNorm(Layer):
    """y = gamma x_hat + beta, x_hat = (x - mean) rstd, rstd = 1 / sqrt(var + eps)  (Ioffe and Szegedy 2015).

    mean and var (D,) are those of each column of x (N, D) in the batch. In eval mode they are running
    averages of the means and of the unbiased variances, as in torch.nn.BatchNorm1d; a single row does not
    update them.
    """

    def __init__(self, n, momentum=0.1, eps=1e-5):
        self.params = {"gamma": np.ones(n), "beta": np.zeros(n)}
        self.buffers = {"mean": np.zeros(n), "var": np.ones(n)}
        self.momentum, self.eps = momentum, eps

    def forward(self, x, training=False):
        gamma, beta, buffers = self.params["gamma"], self.params["beta"], self.buffers
        if not training:
            scale = gamma / np.sqrt(buffers["var"] + self.eps)
            return x * scale + (beta - buffers["mean"] * scale)
        n, mean = len(x), x.mean(axis=0)  # (N, D) -> (D,)
        self.x_centered = x - mean
        var = np.einsum("nd,nd->d", self.x_centered, self.x_centered) / n  # (N, D) -> (D,)
        if n > 1:
            buffers["mean"] += self.momentum * (mean - buffers["mean"])
            buffers["var"] += self.momentum * (var * (n / (n - 1)) - buffers["var"])
        self.rstd = 1 / np.sqrt(var + self.eps)
        # y = gamma * x_hat + beta; rstd * gamma is (D,), so that only two operations are on (N, D)
        y = self.x_centered * (self.rstd * gamma)
        y += beta
        return y

    def backward(self, dout):
        # dbeta = sum(dout), dgamma = sum(dout * x_hat), over the batch
        # dx = gamma * rstd * (dout - mean(dout) - x_hat * mean(dout * x_hat))
        #    = gamma * rstd * (dout - dbeta / N - x_centered * rstd * dgamma / N), computed from its right end
        n, dgamma, dbeta = len(dout), self.grads["gamma"], self.grads["beta"]
        dout.sum(axis=0, out=dbeta)  # (N, D) -> (D,)
        np.einsum("nd,nd->d", dout, self.x_centered, out=dgamma)  # (N, D) -> (D,)
        dgamma *= self.rstd  # x_hat = x_centered * rstd
        dx = self.x_centered * (-self.rstd * dgamma / n)
        dx -= dbeta / n
        dx += dout
        dx *= self.params["gamma"] * self.rstd
        return dx


class LayerNorm(Layer):
    """y = gamma x_hat + beta, x_hat = (x - mean) rstd, rstd = 1 / sqrt(var + eps)  (Ba et al. 2016).

    mean and var (N, 1) are those of each row of x (N, D).
    """

    def __init__(self, n, eps=1e-5):
        self.params, self.eps = {"gamma": np.ones(n), "beta": np.zeros(n)}, eps

    def forward(self, x, training=False):
        x_centered = x - x.mean(axis=1, keepdims=True)
        rstd = 1 / np.sqrt((x_centered**2).mean(axis=1, keepdims=True) + self.eps)  # (N, D) -> (N, 1)
        x_hat = x_centered * rstd
        if training:
            self.rstd, self.x_hat = rstd, x_hat
        return x_hat * self.params["gamma"] + self.params["beta"]

    def backward(self, dout):
        # dgamma = sum(dout * x_hat), dbeta = sum(dout), over the batch;  dx_hat = gamma * dout
        # dx = rstd * (dx_hat - mean(dx_hat) - x_hat * mean(dx_hat * x_hat)), with the means over each row
        (dout * self.x_hat).sum(axis=0, out=self.grads["gamma"])  # (N, D) -> (D,)
        dout.sum(axis=0, out=self.grads["beta"])
        dx_hat = dout * self.params["gamma"]
        projection = (dx_hat * self.x_hat).mean(axis=1, keepdims=True)  # (N, D) -> (N, 1)
        return (dx_hat - dx_hat.mean(axis=1, keepdims=True) - self.x_hat * projection) * self.rstd


NORMS = {"batch": BatchNorm, "layer": LayerNorm}


def softmax(logits):
    """Probabilities (N, C) of logits (N, C). Each row's largest logit is subtracted: exp cannot overflow."""
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def softmax_cross_entropy(logits, y, smoothing=0.0):
    """(loss, dlogits (N, C)) of logits (N, C) and labels y (N,).

    loss = mean over the batch of -sum_c t_c log softmax(logits)_c;  dlogits = (softmax(logits) - t) / N, the
    only division by N. The target t_c is smoothing / C for all classes, plus 1 - smoothing for the class y
    (Szegedy et al. 2016, section 7).
    """
    rows, (n, classes) = np.arange(len(y)), logits.shape
    shifted = np.array(logits.T, order="C")  # (N, C) -> (C, N): sums over axis 0 are several times faster
    shifted -= shifted.max(axis=0)
    dlogits = np.exp(shifted)
    total = dlogits.sum(axis=0)  # (C, N) -> (N,)
    log_total = np.log(total)
    loss = (1 - smoothing) * (log_total - shifted[y, rows]).sum()
    dlogits /= total
    dlogits[y, rows] -= 1 - smoothing
    if smoothing:
        loss += smoothing * (log_total - shifted.mean(axis=0)).sum()
        dlogits -= smoothing / classes
    dlogits /= n
    return float(loss) / n, dlogits.T  # (C, N) -> (N, C)


def sigmoid_cross_entropy(logits, y, smoothing=0.0):
    """(loss, dlogits (N, C)): binary cross-entropy of a sigmoid per class, its sum, mean over the batch.

    With s = sigmoid(logit) and targets t as in `softmax_cross_entropy`, the loss of a logit is
    -t log s - (1 - t) log(1 - s) = max(logit, 0) - t logit + log(1 + exp(-|logit|)), which cannot overflow;
    dlogits = (s - t) / N.
    """
    targets = np.full_like(logits, smoothing / logits.shape[1])
    targets[np.arange(len(y)), y] += 1 - smoothing
    losses = np.maximum(logits, 0) - targets * logits + np.log1p(np.exp(-np.abs(logits)))
    return float(losses.sum(axis=1).mean()), (sigmoid(logits) - targets) / len(y)


def softmax_squared_error(logits, y, smoothing=0.0):
    """(loss, dlogits (N, C)): squared error of the probabilities, mean over the batch (Brier 1950).

    loss = mean over the batch of sum_c (p_c - t_c)^2, with p = softmax(logits) and targets t as in
    `softmax_cross_entropy`;  dlogits = p (dp - sum_c dp_c p_c) / N, with dp = 2 (p - t). This is almost 0
    where a probability is almost 1, even that of a wrong class.
    """
    p = softmax(logits)
    errors = p - smoothing / logits.shape[1]
    errors[np.arange(len(y)), y] -= 1 - smoothing
    dp = 2 * errors
    dlogits = p * (dp - (dp * p).sum(axis=1, keepdims=True)) / len(y)  # (N, C) - (N, 1) -> (N, C)
    return float((errors**2).sum(axis=1).mean()), dlogits


LOSSES = {"softmax": (softmax_cross_entropy, softmax), "sigmoid": (sigmoid_cross_entropy, sigmoid)}
LOSSES |= {"squared_error": (softmax_squared_error, softmax)}


class MLP:
    """Hidden layers of Linear, norm, activation and dropout, then a Linear layer that gives the logits.

    sizes: such as (784, 256, 128, 10). rng draws the initial weights, dropout_rng the dropout masks. The
    layers' arrays are views into the vectors `params`, `grads` and `buffers`; `values` is params and buffers
    as one vector, `views` {"layer number.name": view} of both, `weights` [(W, dW), ...]. `mean` and `std`
    standardize the pixels.
    """

    def __init__(
        self,
        sizes,
        rng=None,
        dropout_rng=None,
        dtype=np.float32,
        activation="relu",
        norm="none",
        dropout=0.0,
        input_dropout=0.0,
        init="he",
        init_scale=0.01,
    ):
        self.name, self.mean, self.std = f"NumPy MLP {'-'.join(map(str, sizes))}", 0.0, 1.0
        self.config = {"sizes": tuple(sizes), "activation": activation, "norm": norm}
        self.layers = [Dropout(input_dropout, dropout_rng)] if input_dropout else []
        for n_in, n_out in itertools.pairwise(sizes[:-1]):
            bias = norm != "batch"  # which would cancel it
            self.layers.append(Linear(n_in, n_out, rng, init, init_scale, bias))
            if norm != "none":
                self.layers.append(NORMS[norm](n_out))
            self.layers.append(Activation(activation))
            if dropout:
                self.layers.append(Dropout(dropout, dropout_rng))
        self.layers.append(Linear(*sizes[-2:], rng, init, init_scale))
        params, buffers = [], [np.zeros(0)]
        for layer in self.layers:
            params += map(np.ravel, layer.params.values())
            buffers += layer.buffers.values()
        self.values = np.concatenate(params + buffers).astype(dtype)
        self.grads = np.zeros(sum(map(len, params)), dtype)
        self.make_views()

    def make_views(self):
        """Make the layers' arrays views into the vectors."""
        self.params, self.buffers = np.split(self.values, [len(self.grads)])
        self.with_params = [layer for layer in self.layers if layer.params]
        self.views, params, grads, buffers = {}, self.params, self.grads, self.buffers
        for number, layer in enumerate(self.with_params):
            layer.grads, grads = split(grads, layer.params)
            layer.params, params = split(params, layer.params)
            layer.buffers, buffers = split(buffers, layer.buffers)
            for name, view in (layer.params | layer.buffers).items():
                self.views[f"{number}.{name}"] = view
        linear = [layer for layer in self.layers if isinstance(layer, Linear)]
        self.weights = [(layer.params["W"], layer.grads["W"]) for layer in linear]

    def __setstate__(self, state):  # of a copy or a pickle, whose views are no views any more
        vars(self).update(state)
        self.make_views()

    def forward(self, x, training=False):
        """Logits (N, C) of standardized x (N, features)."""
        x = x.astype(self.params.dtype, copy=False)
        for layer in self.layers:
            x = layer.forward(x, training)
        return x

    def backward(self, dout, input_gradient=False):
        """Fill `grads` from dlogits (N, C), after a forward pass in training mode; return dx if asked."""
        for layer in reversed(self.layers):
            if layer is self.with_params[0] and not input_gradient:  # its dx would be that of the pixels
                return layer.backward(dout, input_gradient=False)
            dout = layer.backward(dout)
        return dout

    def predict_logits(self, X, batch_size=2000):
        """Logits (N, C) of images (N, H, W) in [0, 1], or of features (N, F), in eval mode."""
        batches = [X[start : start + batch_size] for start in range(0, len(X), batch_size)]
        return np.concatenate([self.forward(data.standardize(x, self.mean, self.std)) for x in batches])

    def hidden_outputs(self, X):
        """[(N, neurons) after each activation] for standardized X (N, features), in eval mode."""
        x, outputs = X, []
        for layer in self.layers:
            x = layer.forward(x)
            if isinstance(layer, Activation):
                outputs.append(x)
        return outputs

    def add_penalties(self, l1, l2):
        """The penalty l1 sum |W| + l2 / 2 sum W^2 over all weights; adds its gradient to `grads`."""
        penalty = 0.0
        for W, dW in self.weights:
            if l1:
                penalty += l1 * float(np.abs(W).sum())
                dW += l1 * np.sign(W)
            if l2:
                penalty += l2 / 2 * float(np.vdot(W, W))
                dW += l2 * W
        return penalty

    def clip_grad_norm(self, max_norm):
        """Scale `grads` to the norm `max_norm` if theirs is larger (Pascanu et al. 2013, algorithm 1)."""
        norm = float(np.sqrt(np.vdot(self.grads, self.grads)))
        if norm > max_norm:
            self.grads *= max_norm / norm


def split(vector, arrays):
    """({name: view into the start of the vector, shaped as the array of that name}, the rest of it)."""
    views = {}
    for name, array in arrays.items():
        views[name], vector = vector[: array.size].reshape(array.shape), vector[array.size :]
    return views, vector


CHUNK = 65_536  # elements updated at a time, so that they and their moments stay in the processor's cache


class Optimizer:
    """`step(lr)` updates `params` by `grads`, two flat vectors (P,), in place, by a rule of OPTIMIZERS.

    Its state is `moments` (number, P) and `t`, the number of steps. Moments of always-zero gradients, as of
    pixels that are always black, decay into float32 subnormals (below 1e-38), about 100 times slower to
    compute with; they are set to zero.
    """

    def __init__(
        self, name, params, grads, momentum=0.9, rmsprop_decay=0.99, beta1=0.9, beta2=0.999, eps=1e-8
    ):
        num_moments, self.rule = OPTIMIZERS[name]
        self.params, self.grads, self.momentum, self.t = params, grads, momentum, 0
        self.rmsprop_decay, self.beta1, self.beta2, self.eps = rmsprop_decay, beta1, beta2, eps
        self.moments = np.zeros((num_moments, len(params)), params.dtype)

    def step(self, lr):
        self.t += 1
        for start in range(0, len(self.params), CHUNK):
            chunk = slice(start, start + CHUNK)
            self.rule(self, lr, self.params[chunk], self.grads[chunk], *self.moments[:, chunk])
        if self.t % 100 == 0:  # 0.9^100 = 3e-5: what is above 1e-30 stays above 1e-38 for 100 steps
            self.moments[np.abs(self.moments) < 1e-30] = 0


def sgd(optimizer, lr, p, g):
    """params -= lr grad  (Robbins and Monro 1951)."""
    p -= lr * g


def momentum(optimizer, lr, p, g, v):
    """v = momentum v + grad;  params -= lr v  (Polyak 1964, in the form of torch.optim.SGD)."""
    v *= optimizer.momentum
    v += g
    p -= lr * v


def nesterov(optimizer, lr, p, g, v):
    """v as for momentum;  params -= lr (grad + momentum v)  (Sutskever et al. 2013, in the form of torch)."""
    v *= optimizer.momentum
    v += g
    p -= lr * (g + optimizer.momentum * v)


def rmsprop(optimizer, lr, p, g, v):
    """v = decay v + (1 - decay) grad^2;  params -= lr grad / (sqrt(v) + eps)  (Tieleman and Hinton 2012)."""
    v *= optimizer.rmsprop_decay
    v += (1 - optimizer.rmsprop_decay) * (g * g)
    p -= lr * (g / (np.sqrt(v) + optimizer.eps))


def adam(optimizer, lr, p, g, m, v):
    """Adam (Kingma and Ba 2015, algorithm 1):

        m = beta1 m + (1 - beta1) grad;  v = beta2 v + (1 - beta2) grad^2
        params -= lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    Here m and v are stored without their factors 1 - beta1 and 1 - beta2. These and the bias corrections are
    in the factor of the step and in that of eps: the same result with two passes over the arrays fewer.
    """
    beta1, beta2, eps = optimizer.beta1, optimizer.beta2, optimizer.eps
    m *= beta1
    m += g
    v *= beta2
    v += g * g
    root = math.sqrt((1 - beta2) / (1 - beta2**optimizer.t))  # sqrt(v) * root = sqrt(v_hat)
    factor = lr * (1 - beta1) / (1 - beta1**optimizer.t) / root
    p -= factor * (m / (np.sqrt(v) + eps / root))


def nadam(optimizer, lr, p, g, m, v):
    """Adam with Nesterov momentum (Dozat 2016, algorithm 2 with mu = beta1 in all steps): m and v of adam,

        m_bar = beta1 m / (1 - beta1^(t + 1)) + (1 - beta1) grad / (1 - beta1^t)
        params -= lr m_bar / (sqrt(v / (1 - beta2^t)) + eps)

    In torch.optim.NAdam, mu rises to beta1, at first half of it, the faster the larger its momentum_decay.
    """
    beta1, beta2, eps, t = optimizer.beta1, optimizer.beta2, optimizer.eps, optimizer.t
    m *= beta1
    m += (1 - beta1) * g
    v *= beta2
    v += (1 - beta2) * (g * g)
    m_bar = beta1 / (1 - beta1 ** (t + 1)) * m + (1 - beta1) / (1 - beta1**t) * g
    p -= lr * (m_bar / (np.sqrt(v / (1 - beta2**t)) + eps))


# {name: (number of moments, rule)}; adamw is adam, since weight decay is in Trainer.adjust for all of them
OPTIMIZERS = {"sgd": (0, sgd), "momentum": (1, momentum), "nesterov": (1, nesterov), "rmsprop": (1, rmsprop)}
OPTIMIZERS |= {"adam": (2, adam), "adamw": (2, adam), "nadam": (2, nadam)}


def lr_at(step, total, s):
    """The learning rate of a step, counted from 0, of `total` steps, with the settings s.

    During s.warmup of the training it rises linearly to its peak. Then "linear" falls linearly to 0 (Smith
    and Topin 2018, without their last phase), "cosine" falls to 0 along half a cosine (Loshchilov and Hutter
    2017, eq. 5), "exponential" falls to a hundredth, "step" falls to a tenth at one half of the rest and to a
    hundredth at three quarters (He et al. 2016, section 4.2); the others stay at the peak: run.lr_factor.
    """
    warmup = round(s.warmup * total)
    if step < warmup:
        return s.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / (total - warmup)
    factors = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "exponential": 0.01**done}
    factors["step"] = 1 if done < 0.5 else 0.1 if done < 0.75 else 0.01
    return s.learning_rate * factors.get(s.schedule, 1)


def make_rngs(seed):
    """Independent generators {"init": ..., "shuffle": ..., "dropout": ..., "augment": ...}."""
    names = ("init", "shuffle", "dropout", "augment")
    return dict(zip(names, np.random.default_rng(seed).spawn(len(names)), strict=True))


class Trainer:
    """What changes while an MLP is trained on images.train with the settings s, to be saved and resumed."""

    def __init__(self, images, s):
        X, self.s, self.rngs = images.train.X, s, make_rngs(s.seed)
        sizes = (math.prod(X.shape[1:]), *s.hidden, len(images.classes))
        options = s.activation, s.norm, s.dropout, s.input_dropout, s.init, s.init_scale
        self.model = MLP(sizes, self.rngs["init"], self.rngs["dropout"], X.dtype, *options)
        self.model.mean, self.model.std = data.normalization_stats(X, s.normalize)
        options = s.momentum, s.rmsprop_decay, s.beta1, s.beta2, s.eps
        self.optimizer = Optimizer(s.optimizer, self.model.params, self.model.grads, *options)
        self.ema, self.best = self.model.values.copy(), self.model.values.copy()
        self.monitor = monitor.Monitor(self.model, X[:1000], s)
        self.loss, _ = LOSSES[s.loss]
        self.history, self.step_losses = {"epoch": []}, []

    def train_step(self, x, y, lr):
        """One step on the batch x (n, features), y (n,): (loss, number of correct predictions)."""
        logits = self.model.forward(x, training=True)  # forward
        loss, dlogits = self.loss(logits, y, self.s.label_smoothing)  # loss
        self.model.backward(dlogits)  # backward
        self.adjust(lr)  # penalties, clipping, weight decay
        self.optimizer.step(lr)  # step
        if self.s.ema_decay:
            self.average()
        return loss, np.count_nonzero(logits.argmax(axis=1) == y)

    def adjust(self, lr):
        """Add the penalties' gradients, clip; decay the weights, decoupled (Loshchilov and Hutter 2019)."""
        if self.s.l1 or self.s.l2:
            self.model.add_penalties(self.s.l1, self.s.l2)
        if self.s.max_grad_norm:
            self.model.clip_grad_norm(self.s.max_grad_norm)
        if self.s.weight_decay:
            for W, _ in self.model.weights:
                W *= 1 - lr * self.s.weight_decay

    def average(self):
        """Update the exponential moving average of parameters and buffers (Polyak and Juditsky 1992).

        The decay at step t is min(decay, (1 + t) / (10 + t)), so that the first weights are soon forgotten.
        """
        t = self.optimizer.t
        weight = 1 - min(self.s.ema_decay, (1 + t) / (10 + t))
        self.ema += weight * (self.model.values - self.ema)

    def swap(self):
        """Exchange parameters and buffers with their average, if any; a second call restores them."""
        if self.s.ema_decay:
            self.ema[:], self.model.values[:] = self.model.values.copy(), self.ema.copy()

    def augment(self, X):
        """The network's inputs (n, features): X (n, H, W) in [0, 1], or features, augmented, standardized."""
        s = self.s
        X = data.augment(X, self.rngs["augment"], s.flip, s.shift, s.erase, s.rotate, s.translate)
        return data.standardize(X, self.model.mean, self.model.std)

    def evaluate(self, X, y):
        """(loss, accuracy) on X (N, H, W) or (N, F), y (N,) in eval mode, by the average of the weights."""
        self.swap()
        logits = self.model.predict_logits(X)
        self.swap()
        return self.loss(logits, y)[0], run.accuracy(logits, y)

    @property
    def best_epoch(self):
        """The first epoch with the highest validation accuracy."""
        return 1 + int(np.argmax(self.history["val_accuracy"])) if self.history["epoch"] else 0

    def state_dict(self):
        """(arrays, not copied, and numbers): all that a new Trainer needs to continue bit for bit."""
        arrays = {"values": self.model.values, "ema": self.ema, "best": self.best}
        arrays["moments"] = self.optimizer.moments
        states = {name: rng.bit_generator.state for name, rng in self.rngs.items()}
        numbers = {"t": self.optimizer.t, "history": self.history, "step_losses": self.step_losses}
        watched = self.monitor.history, self.monitor.reported
        return arrays, numbers | {"monitor": watched, "rngs": states}

    def load_state_dict(self, arrays, numbers):
        """Continue from what `state_dict` has returned."""
        for name, array in self.state_dict()[0].items():
            array[...] = arrays[name]
        self.optimizer.t = numbers["t"]
        self.history, self.step_losses = numbers["history"], numbers["step_losses"]
        self.monitor.history, self.monitor.reported = numbers["monitor"]
        for name, rng in self.rngs.items():
            rng.bit_generator.state = numbers["rngs"][name]


def train(images, s, folder=None, on_epoch=lambda history: False):
    """A new MLP with the settings s, trained on images.train: (model, history {column: [by epoch]}).

    images: a data.Dataset, of images or of features; without images.val nothing is evaluated. train_loss and
    train_accuracy are means over the epoch's batches as they were trained on, train_eval_* those of 5,000
    training images in eval mode. With a run.RunFolder, each epoch is logged, a checkpoint and at the end
    figures are written, and a training of s.resume continues. on_epoch(history) is called after each epoch;
    if it returns true, the training ends. Raises run.Diverged when the loss is no longer finite.
    """
    trainer = Trainer(images, s)
    model, X, y = trainer.model, images.train.X, images.train.y
    augmented = data.is_augmented(s) and not s.augment_once  # each batch anew
    if not augmented:
        X = trainer.augment(X)  # (N, 28, 28) -> (N, 784)
    if s.resume and (checkpoint := folder.load_checkpoint()):  # after the only draw of s.augment_once
        trainer.load_state_dict(*checkpoint)
    epoch, steps = len(trainer.history["epoch"]), math.ceil(len(y) / s.batch_size)
    bar = tqdm(total=s.epochs * steps, initial=epoch * steps, disable=None if folder else True, leave=False)
    with bar, np.errstate(over="ignore", invalid="ignore"):  # run.Diverged says it better
        while epoch < s.epochs and not (s.patience and epoch - trainer.best_epoch >= s.patience):
            start, epoch, loss_sum, num_correct = time.perf_counter(), epoch + 1, 0.0, 0
            batches = data.batches(len(y), s.batch_size, trainer.rngs["shuffle"])
            factor = run.lr_factor(trainer.history, s.schedule)
            for step, batch in enumerate(batches, (epoch - 1) * steps):
                if batch is batches[-1]:
                    trainer.monitor.before_step()
                lr = factor * lr_at(step, s.epochs * steps, s)
                x = trainer.augment(X[batch]) if augmented else X[batch]  # (n, 784)
                loss, correct = trainer.train_step(x, y[batch], lr)
                loss_sum += loss * len(batch)
                num_correct += correct
                bar.update()
                if s.log_steps:
                    trainer.step_losses.append(loss)
                if not math.isfinite(loss):
                    break
            row = {"epoch": epoch, "train_loss": loss_sum / len(y), "train_accuracy": num_correct / len(y)}
            if images.val and math.isfinite(loss):
                train_eval = trainer.evaluate(images.train.X[:5000], y[:5000])
                row["train_eval_loss"], row["train_eval_accuracy"] = train_eval
                row["val_loss"], row["val_accuracy"] = trainer.evaluate(images.val.X, images.val.y)
                loss = row["val_loss"]
            row |= {"learning_rate": lr, "seconds": time.perf_counter() - start}
            if folder and s.log_steps:
                folder.log_steps(trainer.step_losses)
            if not math.isfinite(loss):
                where = f"in step {step + 1} (epoch {epoch}), at learning rate {lr:g}"
                raise run.Diverged(f"the loss became {loss} {where}: {monitor.large_step_advice(s)}")
            for column, value in row.items():
                trainer.history.setdefault(column, []).append(value)
            if s.patience and trainer.best_epoch == epoch:
                trainer.best[:] = trainer.ema if s.ema_decay else model.values
            advice = trainer.monitor.end_epoch(epoch, lr)
            if folder:
                folder.log(trainer.history)
                folder.save_checkpoint(*trainer.state_dict())
                for line in advice:
                    tqdm.write(line)
            if on_epoch(trainer.history):
                break
    if s.patience:
        model.values[:] = trainer.best
    else:
        trainer.swap()
    if folder and s.figures:
        folder.save(training_figures(trainer, images, steps))
    return model, trainer.history


def curves(histories, title, s):
    """Figure of loss and accuracy by epoch; histories: {name: history}."""
    augmented = data.is_augmented(s)
    return plots.curves(histories, title, augmented, s.label_smoothing, s.train_on_val, s.loss)


def training_figures(trainer, images, steps):
    """{file name: Figure} of a finished training of `steps` steps per epoch."""
    model, s, history, watched = trainer.model, trainer.s, trainer.history, trainer.monitor
    title, shape = plots.run_title(model.name, images.name, s.seed), images.train.X.shape[1:]
    rates = [lr_at(step, s.epochs * steps, s) for step in range(len(history["epoch"]) * steps)]
    if s.schedule in ("plateau", "halve"):  # which lower it after an epoch
        rates = np.repeat(history["learning_rate"], steps)
    layers = watched.distributions(images.train.y[:1000], trainer.loss)
    figures = {
        "curves.png": curves({title: history}, title, s),
        "learning_rate.png": plots.learning_rate(rates, steps, title),
        "distributions.png": plots.distributions(*layers, title),
        "monitor.png": plots.monitor(watched.history, watched.names, title),
    }
    if len(shape) == 2:  # not features
        figures["first_layer.png"] = plots.first_layer(model.weights[0][0], shape, title)
    if s.log_steps:
        figures["loss_by_step.png"] = plots.loss_by_step(trainer.step_losses, steps, title)
    return figures


def save(path, model, **metadata):
    """Write the network, and metadata such as its classes, as one safetensors file."""
    scale = {"mean": np.asarray(model.mean).tolist(), "std": np.asarray(model.std).tolist()}
    run.save_weights(path, model.views, {"model": "mlp"} | model.config | scale | metadata)


def restore(path):
    """(model, metadata) of a file that `save` wrote. Raises run.Error."""
    arrays, metadata = run.load_weights(path, "mlp")
    model = MLP(metadata["sizes"], activation=metadata["activation"], norm=metadata["norm"])
    model.mean, model.std = np.asarray(metadata["mean"]), np.asarray(metadata["std"])
    for name, view in model.views.items():
        view[...] = arrays[name]
    return model, metadata


def settings(**changes):
    """The settings of this script, a namespace: its constants, those of data.py and run.py, with changes."""
    return run.settings(sys.modules[__name__], data, run, **changes)


def check_settings(s):
    """Raise run.Error for settings that cannot be combined."""
    if s.norm == "batch" and s.batch_size == 1:
        raise run.Error("--batch-size 1: batch normalization needs 2 images or more")
    if s.learning_rate * s.weight_decay >= 1:
        raise run.Error("--weight-decay: times --learning-rate, it must be below 1")
    if s.train_on_val and (s.patience or s.schedule == "plateau"):
        raise run.Error("--train-on-val: leaves no images for --patience and --schedule plateau")


def run_once(s, images=None):
    """One run: load, train, evaluate, save. Returns its folder, history, metrics, model and logits."""
    check_settings(s)
    images = images or data.load(s)
    data.check_augmentation(s, images)
    s = SimpleNamespace(**vars(s) | {"epochs": min(s.epochs, 5)}) if s.quick else s
    with run.RunFolder("mlp_from_scratch", s) as folder:
        model, history = train(images, s, folder)
        results = run.evaluate(images, model.predict_logits, s, LOSSES[s.loss])
        if s.save_weights:
            metadata = run.describe(images, results.metrics["temperature"])
            save(folder.path / "weights.safetensors", model, loss=s.loss, **metadata)
        metrics = folder.finish(images, model.name, results, plots.evaluation, parameters=len(model.params))
    return SimpleNamespace(
        folder=folder.path, history=history, metrics=metrics, model=model, logits=results.logits
    )


def main(argv=None):
    s = run.parse(argv, sys.modules[__name__], data, run)
    return run.run_seeds("mlp_from_scratch", run_once, s, curves)


if __name__ == "__main__":
    run.cli(main)
