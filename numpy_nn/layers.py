"""The layers and losses of the NumPy MLP, each with a hand-written backward pass; check_gradients.py checks them.

Shapes: N rows of a batch, n_in or D features, C classes. `dout` is the gradient of the loss with respect to a layer's
output, `dx` with respect to its input.
"""

if __name__ == "__main__":
    raise SystemExit("numpy_nn/layers.py is a module, not a script: mlp_from_scratch.py uses it")

import math

import numpy as np


class Layer:
    """Base class of all layers.

    `forward(x, training)` returns the output. In training mode it also stores what `backward(dout)` needs, which fills
    `grads` and returns dx. Neither changes its argument or a parameter. In training mode, returned arrays are workspaces
    that the next call overwrites; in eval mode, `forward` is stateless and thread-safe.

    `shapes` are those of the parameters, `buffer_shapes` those of the running statistics. The network sets `params`, `grads`
    and `buffers`: {name: view into one of its flat vectors}.
    """

    def __init__(self, buffer_shapes=(), **shapes):
        self.shapes, self.buffer_shapes = shapes, dict(buffer_shapes)
        self.params, self.grads, self.buffers = {}, {}, {}
        self.workspaces = {}

    def init(self, rng):
        """Initialize `params` and `buffers`, where they do not start at 0."""

    def __getstate__(self):  # a copy or pickle omits the arrays of the last batch; the network binds the views again
        attributes = {name: value for name, value in vars(self).items() if not isinstance(value, np.ndarray)}
        return attributes | {"params": {}, "grads": {}, "buffers": {}, "workspaces": {}}

    def workspace(self, name, x, width=None, dtype=None):
        """An uninitialized array (N, width) for results, by default of the width and dtype of x (N, D).

        It is allocated once and used again at every step, since allocation takes longer than the computation.
        """
        width, dtype = width or x.shape[1], dtype or x.dtype
        array = self.workspaces.get(name)
        if array is None or len(array) < len(x) or array.shape[1] != width or array.dtype != dtype:
            array = self.workspaces[name] = np.empty((len(x), width), dtype)
        return array[: len(x)]


class Linear(Layer):
    """y = x W + b.  x (N, n_in), W (n_in, n_out), b (n_out,), y (N, n_out); no b if bias is False.

    Backward: dW = x^T dout, db = sum of dout over the batch, dx = dout W^T.

    W is drawn from N(0, variance); b starts at 0. The variance is 2 / n_in for "he", which preserves that of the signal
    through ReLUs (He et al. 2015, eq. 10), 2 / (n_in + n_out) for "xavier" (Glorot and Bengio 2010, eq. 12), 1 / n_in for
    "lecun" (LeCun et al. 1998, sec. 4.6), and scale^2 for "random".
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
        np.matmul(self.x.T, dout, out=self.grads["W"])  # (n_in, N) @ (N, n_out) -> (n_in, n_out)
        if "b" in self.grads:
            dout.sum(axis=0, out=self.grads["b"])  # (N, n_out) -> (n_out,)
        return np.matmul(dout, W.T, out=self.workspace("dx", self.x)) if input_gradient else None  # (N, n_out) -> (N, n_in)


class ReLU(Layer):
    """y = max(x, 0);  dy/dx = 1 where x > 0, else 0 (Nair and Hinton 2010)."""

    def forward(self, x, training=False):
        if not training:
            return np.maximum(x, 0)
        self.mask = np.greater(x, 0, out=self.workspace("mask", x))  # 0.0 or 1.0: float times float is faster
        return np.multiply(x, self.mask, out=self.workspace("y", x))

    def backward(self, dout):
        return np.multiply(dout, self.mask, out=self.workspace("dx", dout))


class LeakyReLU(Layer):
    """y = x where x > 0, else 0.01 x;  dy/dx = 1 or 0.01 (Maas et al. 2013)."""

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
    """y = x P(x);  dy/dx = P(x) + x P'(x).  P is the normal distribution function (Hendrycks and Gimpel 2016), exact."""

    def forward(self, x, training=False):
        from scipy.special import ndtr  # P; imported only if needed, since SciPy takes a while to import

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
    """Inverted dropout: in training mode, y = x mask, where mask is 0 with probability p, else 1 / (1 - p).

    In eval mode y = x, which is the expected value of y in training mode (Srivastava et al. 2014, sec. 10).
    """

    def __init__(self, p, rng):
        super().__init__()
        self.p, self.rng = p, rng

    def forward(self, x, training=False):
        if not training:
            return x
        uniform = self.rng.random(out=self.workspace("uniform", x, dtype=np.float32), dtype=np.float32)
        self.mask = np.greater_equal(uniform, self.p, out=self.workspace("mask", x))
        self.mask *= 1 / (1 - self.p)
        return np.multiply(x, self.mask, out=self.workspace("y", x))

    def backward(self, dout):
        return np.multiply(dout, self.mask, out=self.workspace("dx", dout))


class BatchNorm(Layer):
    """y = gamma x_hat + beta, x_hat = (x - mean) rstd, rstd = 1 / sqrt(var + eps)  (Ioffe and Szegedy 2015).

    mean and var (D,) are those of each column of x (N, D) in the batch. In eval mode they are running averages of the means
    and of the unbiased variances, as in torch.nn.BatchNorm1d; a batch of a single row, which has no variance, does not
    update them.
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
        n, mean = len(x), x.mean(axis=0)  # (N, D) -> (D,)
        self.x_centered = np.subtract(x, mean, out=self.workspace("x_centered", x))
        var = np.einsum("nd,nd->d", self.x_centered, self.x_centered) / n  # (N, D) -> (D,)
        if n > 1:
            buffers["mean"] += self.momentum * (mean - buffers["mean"])
            buffers["var"] += self.momentum * (var * (n / (n - 1)) - buffers["var"])
        self.rstd = 1 / np.sqrt(var + self.eps)
        # y = gamma * x_hat + beta; rstd * gamma is (D,), so that only two operations are on (N, D)
        y = np.multiply(self.x_centered, self.rstd * gamma, out=self.workspace("y", x))
        y += beta
        return y

    def backward(self, dout):
        # dbeta = sum(dout), dgamma = sum(dout * x_hat), over the batch
        # dx = gamma * rstd * (dout - mean(dout) - x_hat * mean(dout * x_hat))
        #    = gamma * rstd * (dout - dbeta / N - x_centered * rstd * dgamma / N); the code starts at its right end
        n, dgamma, dbeta = len(dout), self.grads["gamma"], self.grads["beta"]
        dout.sum(axis=0, out=dbeta)  # (N, D) -> (D,)
        np.einsum("nd,nd->d", dout, self.x_centered, out=dgamma)  # (N, D) -> (D,)
        dgamma *= self.rstd  # x_hat = x_centered * rstd
        dx = np.multiply(self.x_centered, -self.rstd * dgamma / n, out=self.workspace("dx", dout))
        dx -= dbeta / n
        dx += dout
        dx *= self.params["gamma"] * self.rstd
        return dx


class LayerNorm(Layer):
    """y = gamma x_hat + beta, x_hat = (x - mean) rstd, rstd = 1 / sqrt(var + eps)  (Ba, Kiros and Hinton 2016).

    mean and var (N, 1) are those of each row of x (N, D).
    """

    def __init__(self, n, eps=1e-5):
        super().__init__(gamma=(n,), beta=(n,))
        self.eps = eps

    def init(self, rng):
        self.params["gamma"][...] = 1

    def forward(self, x, training=False):
        x_centered = x - x.mean(axis=1, keepdims=True)
        rstd = 1 / np.sqrt((x_centered**2).mean(axis=1, keepdims=True) + self.eps)  # (N, D) -> (N, 1)
        x_hat = x_centered * rstd
        if training:
            self.rstd, self.x_hat = rstd, x_hat
        return x_hat * self.params["gamma"] + self.params["beta"]

    def backward(self, dout):
        # dx_hat = gamma * dout;  dx = rstd * (dx_hat - mean(dx_hat) - x_hat * mean(dx_hat * x_hat)), means over each row
        (dout * self.x_hat).sum(axis=0, out=self.grads["gamma"])  # (N, D) -> (D,)
        dout.sum(axis=0, out=self.grads["beta"])
        dx_hat = dout * self.params["gamma"]
        projection = (dx_hat * self.x_hat).mean(axis=1, keepdims=True)  # (N, D) -> (N, 1)
        return (dx_hat - dx_hat.mean(axis=1, keepdims=True) - self.x_hat * projection) * self.rstd


def sigmoid(x):
    """1 / (1 + exp(-x)) of each element, computed by tanh, which cannot overflow."""
    return (1 + np.tanh(x / 2)) / 2


def softmax(logits):
    """Probabilities (N, C) of logits (N, C). The largest logit of each row is subtracted, so that exp cannot overflow."""
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def softmax_cross_entropy(logits, y, smoothing=0.0):
    """(loss, dlogits (N, C)) of logits (N, C) and labels y (N,).

    loss = mean over the batch of -sum_c t_c log softmax(logits)_c;  dlogits = (softmax(logits) - t) / N, the only division
    by N. The target t_c is smoothing / C for all classes, plus 1 - smoothing for the class y (Szegedy et al. 2016, sec. 7).
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
    """(loss, dlogits (N, C)): binary cross-entropy of one sigmoid per class, summed over classes, mean over the batch.

    With s = sigmoid(logit) and targets t as in `softmax_cross_entropy`, the loss of a logit is
    -t log s - (1 - t) log(1 - s) = max(logit, 0) - t logit + log(1 + exp(-|logit|)), which cannot overflow;
    dlogits = (s - t) / N.
    """
    targets = np.full_like(logits, smoothing / logits.shape[1])
    targets[np.arange(len(y)), y] += 1 - smoothing
    losses = np.maximum(logits, 0) - targets * logits + np.log1p(np.exp(-np.abs(logits)))
    return float(losses.sum(axis=1).mean()), (sigmoid(logits) - targets) / len(y)


ACTIVATIONS = {"relu": ReLU, "leaky_relu": LeakyReLU, "tanh": Tanh, "gelu": GELU, "sigmoid": Sigmoid}
NORMS = {"batch": BatchNorm, "layer": LayerNorm}
LOSSES = {"softmax": (softmax_cross_entropy, softmax), "sigmoid": (sigmoid_cross_entropy, sigmoid)}  # (loss, probabilities)
