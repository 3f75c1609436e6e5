"""The layers and losses of the NumPy MLP, each with its backward pass written by hand; check_gradients.py proves them."""

import math

import numpy as np


class Layer:
    """What the network asks of a layer.

    `forward(x, training)` in training keeps what `backward(dout)` needs, which fills `grads` and returns the gradient with
    respect to x. Neither changes its argument or a parameter. What they return in training is memory of the layer's own,
    which its next call overwrites; in use, `forward` leaves no trace, and may run in several threads at once. `shapes` are
    those of the parameters, `buffer_shapes` those of what is learnt without gradients; the network sets `params`, `grads` and
    `state`, {name: view into one of its flat vectors}.
    """

    def __init__(self, buffer_shapes=(), **shapes):
        self.shapes, self.buffer_shapes = shapes, dict(buffer_shapes)
        self.params, self.grads, self.buffers = {}, {}, {}
        self.workspaces = {}

    def init(self, rng):
        """Set the first values of `params` and `state`, where they are not 0."""

    def __getstate__(self):  # copies and pickles need no images and results of the last batch; the network links the rest
        kept = {name: value for name, value in vars(self).items() if not isinstance(value, np.ndarray)}
        return kept | {"params": {}, "grads": {}, "buffers": {}, "workspaces": {}}

    def workspace(self, name, x, width=None, dtype=None):
        """Memory for results (N, width), the same at every step: to get new memory would take longer than to fill it.

        As wide, and of the dtype, as x (N, features) where nothing else is said.
        """
        width, dtype = width or x.shape[1], dtype or x.dtype
        kept = self.workspaces.get(name)
        if kept is None or len(kept) < len(x) or kept.shape[1] != width or kept.dtype != dtype:
            kept = self.workspaces[name] = np.empty((len(x), width), dtype)
        return kept[: len(x)]


class Linear(Layer):
    """y = x W + b.  x (N, n_in), W (n_in, n_out), b (n_out,), y (N, n_out); without b where bias is False.

    W is drawn from N(0, variance) and b is 0. The variance is 2 / n_in for "he", which keeps that of the signal through
    ReLUs (He et al. 2015, eq. 10), 2 / (n_in + n_out) for "xavier" (Glorot and Bengio 2010, eq. 12), 1 / n_in for "lecun"
    (LeCun et al. 1998, sec. 4.6), and scale^2 for "random".
    """

    def __init__(self, n_in, n_out, init="he", scale=0.01, bias=True):
        super().__init__(W=(n_in, n_out), **({"b": (n_out,)} if bias else {}))
        self.variance = {"he": 2 / n_in, "xavier": 2 / (n_in + n_out), "lecun": 1 / n_in, "random": scale**2}[init]

    def init(self, rng):
        W = self.params["W"]
        W[...] = rng.standard_normal(W.shape) * np.sqrt(self.variance)

    def forward(self, x, training=False):
        W = self.params["W"]
        if training:
            self.x = x
        y = np.matmul(x, W, out=self.workspace("y", x, W.shape[1]) if training else None)  # (N, n_in) -> (N, n_out)
        if "b" in self.params:
            y += self.params["b"]
        return y

    def backward(self, dout, input_gradient=True):
        W = self.params["W"]
        np.matmul(self.x.T, dout, out=self.grads["W"])  # (n_in, N) @ (N, n_out)
        if "b" in self.grads:
            dout.sum(axis=0, out=self.grads["b"])
        return np.matmul(dout, W.T, out=self.workspace("dx", self.x)) if input_gradient else None  # (N, n_out) -> (N, n_in)


class ReLU(Layer):
    """y = max(x, 0); the gradient at 0 is taken as 0 (Nair and Hinton 2010)."""

    def forward(self, x, training=False):
        if not training:
            return np.maximum(x, 0)
        self.mask = np.greater(x, 0, out=self.workspace("mask", x))  # 0.0 or 1.0: NumPy multiplies floats faster by floats
        return np.multiply(x, self.mask, out=self.workspace("y", x))

    def backward(self, dout):
        return np.multiply(dout, self.mask, out=self.workspace("dx", dout))


class LeakyReLU(Layer):
    """y = x where x > 0, elsewhere x / 100 (Maas et al. 2013)."""

    def forward(self, x, training=False):
        if not training:
            return np.where(x > 0, x, x * 0.01)
        self.local_grad = np.where(x > 0, x.dtype.type(1), x.dtype.type(0.01))
        return np.multiply(x, self.local_grad, out=self.workspace("y", x))

    def backward(self, dout):
        return np.multiply(dout, self.local_grad, out=self.workspace("dx", dout))


class Tanh(Layer):
    """y = tanh x;  dy/dx = 1 - y^2."""

    def forward(self, x, training=False):
        if not training:
            return np.tanh(x)
        self.y = np.tanh(x, out=self.workspace("y", x))
        return self.y

    def backward(self, dout):
        local_grad = np.square(self.y, out=self.workspace("dx", dout))
        np.subtract(1, local_grad, out=local_grad)
        return np.multiply(dout, local_grad, out=local_grad)


class Sigmoid(Layer):
    """y = 1 / (1 + exp(-x));  dy/dx = y (1 - y)."""

    def forward(self, x, training=False):
        y = sigmoid(x)
        if training:
            self.y = y
        return y

    def backward(self, dout):
        local_grad = np.subtract(1, self.y, out=self.workspace("dx", dout))
        local_grad *= self.y
        return np.multiply(dout, local_grad, out=local_grad)


class GELU(Layer):
    """y = x P(x), P the normal distribution function, exact (Hendrycks and Gimpel 2016);  dy/dx = P(x) + x P'(x)."""

    def forward(self, x, training=False):
        from scipy.special import ndtr  # P, which NumPy lacks; SciPy comes with scikit-learn, and loads only for this

        if not training:
            return x * ndtr(x)
        self.x, self.P = x, ndtr(x, out=self.workspace("P", x))
        return np.multiply(x, self.P, out=self.workspace("y", x))

    def backward(self, dout):
        local_grad = np.square(self.x, out=self.workspace("dx", dout))
        local_grad /= -2
        np.exp(local_grad, out=local_grad)
        local_grad *= 1 / math.sqrt(2 * math.pi)  # P'(x), the density
        local_grad *= self.x
        local_grad += self.P
        return np.multiply(dout, local_grad, out=local_grad)


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
        drawn = self.rng.random(out=self.workspace("drawn", x, dtype=np.float32), dtype=np.float32)
        self.mask = np.greater_equal(drawn, self.rate, out=self.workspace("mask", x))
        self.mask *= 1 / (1 - self.rate)
        return np.multiply(x, self.mask, out=self.workspace("y", x))

    def backward(self, dout):
        return np.multiply(dout, self.mask, out=self.workspace("dx", dout))


class BatchNorm(Layer):
    """y = gamma (x - mean) / sqrt(var + eps) + beta, mean and variance of each column in the batch (Ioffe and Szegedy 2015).

    In use, running means of the training's means and unbiased variances stand in for those of the batch, as in
    torch.nn.BatchNorm1d; a batch of a single row, which has no variance, leaves them alone.
    """

    def __init__(self, n, momentum=0.1, eps=1e-5):
        super().__init__({"mean": (n,), "var": (n,)}, gamma=(n,), beta=(n,))
        self.momentum, self.eps = momentum, eps

    def init(self, rng):
        self.params["gamma"][...] = self.buffers["var"][...] = 1

    def forward(self, x, training=False):
        gamma, beta, buffers = self.params["gamma"], self.params["beta"], self.buffers
        if not training:
            scale = gamma / np.sqrt(buffers["var"] + self.eps)
            return x * scale + (beta - buffers["mean"] * scale)
        n, mean = len(x), x.mean(axis=0)
        self.x_centered = np.subtract(x, mean, out=self.workspace("x_centered", x))
        var = np.einsum("nd,nd->d", self.x_centered, self.x_centered) / n
        if n > 1:
            buffers["mean"] += self.momentum * (mean - buffers["mean"])
            buffers["var"] += self.momentum * (var * (n / (n - 1)) - buffers["var"])
        self.rstd = 1 / np.sqrt(var + self.eps)
        # rows are put together first, inverse and gamma here, so that there is less to do for each image
        y = np.multiply(self.x_centered, self.rstd * gamma, out=self.workspace("y", x))
        y += beta
        return y

    def backward(self, dout):
        n, dgamma, dbeta = len(dout), self.grads["gamma"], self.grads["beta"]
        dout.sum(axis=0, out=dbeta)
        np.einsum("nd,nd->d", dout, self.x_centered, out=dgamma)
        dgamma *= self.rstd
        # mean and variance depend on x, too: of each column of dout, what lies along 1 and along `x_centered` is lost
        dx = np.multiply(self.x_centered, -self.rstd * dgamma / n, out=self.workspace("dx", dout))
        dx -= dbeta / n
        dx += dout
        dx *= self.params["gamma"] * self.rstd
        return dx


class LayerNorm(Layer):
    """y = gamma (x - mean) / sqrt(var + eps) + beta, mean and variance of each row (Ba, Kiros and Hinton 2016)."""

    def __init__(self, n, eps=1e-5):
        super().__init__(gamma=(n,), beta=(n,))
        self.eps = eps

    def init(self, rng):
        self.params["gamma"][...] = 1

    def forward(self, x, training=False):
        x_centered = x - x.mean(axis=1, keepdims=True)
        inverse = 1 / np.sqrt((x_centered**2).mean(axis=1, keepdims=True) + self.eps)  # (N, 1)
        x_hat = x_centered * inverse
        if training:
            self.rstd, self.x_hat = inverse, x_hat
        return x_hat * self.params["gamma"] + self.params["beta"]

    def backward(self, dout):
        (dout * self.x_hat).sum(axis=0, out=self.grads["gamma"])
        dout.sum(axis=0, out=self.grads["beta"])
        dnormed = dout * self.params["gamma"]
        projection = (dnormed * self.x_hat).mean(axis=1, keepdims=True)  # (N, 1): as in BatchNorm, but by rows
        return (dnormed - dnormed.mean(axis=1, keepdims=True) - self.x_hat * projection) * self.rstd


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
    images, (n, classes) = np.arange(len(y)), logits.shape
    shifted = np.array(logits.T, order="C")  # (C, N): NumPy is several times faster down the columns than along short rows
    shifted -= shifted.max(axis=0)
    dlogits = np.exp(shifted)
    total = dlogits.sum(axis=0)
    log_total = np.log(total)
    loss = (1 - smoothing) * (log_total - shifted[y, images]).sum()
    dlogits /= total
    dlogits[y, images] -= 1 - smoothing
    if smoothing:
        loss += smoothing * (log_total - shifted.mean(axis=0)).sum()
        dlogits -= smoothing / classes
    dlogits /= n
    return float(loss) / n, dlogits.T


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
