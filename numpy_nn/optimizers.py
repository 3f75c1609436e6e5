"""Optimizers, the learning-rate schedule, and the moving average of the weights, by hand in NumPy.

An optimizer sees a network as two flat vectors, `params` and `grads`, and updates the first in place.
"""

if __name__ == "__main__":
    raise SystemExit("numpy_nn/optimizers.py is a module, not a script: mlp_from_scratch.py uses it")

import math

import numpy as np

CHUNK = 65_536  # elements updated at a time: few calls, and they and their moments stay in the processor's cache


class Optimizer:
    """Base class of all optimizers: `step(lr)` updates `params` by `grads`, two flat vectors (P,), in place.

    Its state is `state` (slots, P), the moments, and `t`, the number of steps. `update` is called for chunks of CHUNK
    elements: each of its lines is a pass over its arrays, and passes in the cache are much faster. Moments of always-zero
    gradients, as of pixels that are always black, decay into float32 subnormals (below 1e-38), about 100 times slower to
    compute with; they are flushed to zero.
    """

    slots = 0

    def __init__(self, params, grads):
        self.params, self.grads, self.t = params, grads, 0
        self.state = np.zeros((self.slots, len(params)), params.dtype)
        self.scratch = np.empty(min(CHUNK, len(params)), params.dtype)

    def step(self, lr):
        self.t += 1
        for start in range(0, len(self.params), CHUNK):
            chunk = slice(start, start + CHUNK)
            p, g = self.params[chunk], self.grads[chunk]
            self.update(p, g, *self.state[:, chunk], self.scratch[: len(p)], lr)
        if self.t % 100 == 0:  # 0.9^100 = 3e-5: what is above 1e-30 stays above 1e-38 for 100 steps
            self.state[np.abs(self.state) < 1e-30] = 0


class SGD(Optimizer):
    """params -= lr grad  (Robbins and Monro 1951)."""

    def update(self, p, g, scratch, lr):
        p -= np.multiply(g, lr, out=scratch)


class Momentum(Optimizer):
    """v = momentum v + grad;  params -= lr v  (Polyak 1964, in the form of torch.optim.SGD)."""

    slots = 1

    def __init__(self, params, grads, momentum=0.9):
        super().__init__(params, grads)
        self.momentum = momentum

    def update(self, p, g, v, scratch, lr):
        v *= self.momentum
        v += g
        p -= np.multiply(v, lr, out=scratch)


class Nesterov(Momentum):
    """v as for Momentum;  params -= lr (grad + momentum v)  (Sutskever et al. 2013, in the form of torch)."""

    def update(self, p, g, v, scratch, lr):
        v *= self.momentum
        v += g
        np.multiply(v, self.momentum, out=scratch)
        scratch += g
        scratch *= lr
        p -= scratch


class RMSprop(Optimizer):
    """v = decay v + (1 - decay) grad^2;  params -= lr grad / (sqrt(v) + eps)  (Tieleman and Hinton 2012)."""

    slots = 1
    decay, eps = 0.99, 1e-8

    def update(self, p, g, v, scratch, lr):
        np.multiply(g, g, out=scratch)
        scratch *= 1 - self.decay
        v *= self.decay
        v += scratch
        np.sqrt(v, out=scratch)
        scratch += self.eps
        np.divide(g, scratch, out=scratch)
        scratch *= lr
        p -= scratch


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, alg. 1):

        m = beta1 m + (1 - beta1) grad;  v = beta2 v + (1 - beta2) grad^2
        params -= lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    Here `m` and `v` are stored without their factors 1 - beta1 and 1 - beta2. These and the bias corrections are in the
    factor of the step and in that of eps: the same result with two passes fewer.
    """

    slots = 2
    beta1, beta2, eps = 0.9, 0.999, 1e-8

    def update(self, p, g, m, v, scratch, lr):
        root = math.sqrt((1 - self.beta2) / (1 - self.beta2**self.t))  # sqrt(v) * root = sqrt(v_hat)
        m *= self.beta1
        m += g
        np.multiply(g, g, out=scratch)
        v *= self.beta2
        v += scratch
        np.sqrt(v, out=scratch)
        scratch += self.eps / root
        np.divide(m, scratch, out=scratch)
        scratch *= lr * (1 - self.beta1) / (1 - self.beta1**self.t) / root
        p -= scratch


OPTIMIZERS = {"sgd": SGD, "momentum": Momentum, "nesterov": Nesterov, "rmsprop": RMSprop, "adam": Adam,
              "adamw": Adam}  # the same: decoupled weight decay, for all optimizers, is in Trainer.decay_weights


def lr_at(progress, peak, schedule="linear", warmup=0.0, start=0.0):
    """The learning rate at `progress`, the fraction of the training that is done, from 0 to 1; for both networks.

    During the fraction `warmup` it rises linearly from start * peak to peak. Then "linear" falls linearly to 0 (Smith and
    Topin 2018, without their last phase), "cosine" falls to 0 along half a cosine (Loshchilov and Hutter 2017, eq. 5),
    "exponential" falls to peak / 100, "step" falls to peak / 10 at one half and to peak / 100 at three quarters (He et al.
    2016, sec. 4.2); "constant" and "plateau" stay at peak.
    """
    if progress < warmup:
        return peak * (start + (1 - start) * progress / warmup)
    done = (progress - warmup) / (1 - warmup)
    if schedule == "linear":
        return peak * (1 - done)
    if schedule == "cosine":
        return peak * (1 + math.cos(math.pi * done)) / 2
    if schedule == "exponential":
        return peak * 0.01**done
    if schedule == "step":
        return peak * (1 if done < 0.5 else 0.1 if done < 0.75 else 0.01)
    return peak


class ReduceLROnPlateau:
    """Divides the learning rate by 10 when the validation loss has not improved by 0.01 % for more than `patience` epochs.

    As torch.optim.lr_scheduler.ReduceLROnPlateau, except for the patience, which is 10 there, and for its `eps`, by which it
    ignores changes below 1e-8.
    """

    def __init__(self, patience=3):
        self.patience, self.factor, self.best, self.num_bad_epochs = patience, 1.0, float("inf"), 0

    def step(self, loss):
        if loss < self.best * (1 - 1e-4):
            self.best, self.num_bad_epochs = loss, 0
        else:
            self.num_bad_epochs += 1
        if self.num_bad_epochs > self.patience:
            self.factor, self.num_bad_epochs = self.factor / 10, 0


class EMA:
    """Exponential moving average of a network's parameters and buffers (Polyak and Juditsky 1992; Adam paper, sec. 7.2).

    The decay at step t is min(decay, (1 + t) / (10 + t)), so that the initial weights are soon forgotten.
    """

    def __init__(self, model, decay):
        self.model, self.decay, self.t = model, decay, 0
        self.params, self.buffers = model.params.copy(), model.buffers.copy()
        self.scratch = np.empty(CHUNK, model.params.dtype)

    def update(self):
        self.t += 1
        weight = 1 - min(self.decay, (1 + self.t) / (10 + self.t))
        for mean, value in ((self.params, self.model.params), (self.buffers, self.model.buffers)):
            for start in range(0, len(mean), CHUNK):
                chunk = slice(start, start + CHUNK)
                change = np.subtract(value[chunk], mean[chunk], out=self.scratch[: len(mean[chunk])])
                change *= weight
                mean[chunk] += change

    def swap(self):
        """Exchange the network's parameters and buffers with their averages; a second call restores them."""
        for mean, value in ((self.params, self.model.params), (self.buffers, self.model.buffers)):
            mean[:], value[:] = value.copy(), mean.copy()
