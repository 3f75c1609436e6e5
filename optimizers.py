"""What turns gradients into steps, by hand in NumPy: optimisers, learning-rate schedules, a running average of the weights.

An optimiser sees a network as two flat vectors, `params` and `grads`, and changes the first in place.
"""

import math

import numpy as np

CHUNK = 32_768  # numbers that an optimiser works on at a time: with their state, they stay in a core's L2 cache


class Optimizer:
    """Turns `grads` into steps of `params`, two flat vectors. `state` (slots, P) and `t`, the steps done, are all it knows.

    A step is taken in pieces of CHUNK numbers, since each line of `update` is a pass over its arrays: out of the cache, a
    pass costs a fraction of one that goes to memory. Where gradients stay 0, as at pixels that are always black, running
    means shrink step by step; below 1e-38 processors take a hundred times longer for a number, so they are set to 0 before.
    """

    slots = 0

    def __init__(self, params, grads):
        self.params, self.grads, self.t = params, grads, 0
        self.state = np.zeros((self.slots, len(params)), params.dtype)
        self.scratch = np.empty(min(CHUNK, len(params)), params.dtype)

    def step(self, learning_rate):
        self.t += 1
        for start in range(0, len(self.params), CHUNK):
            part = slice(start, start + CHUNK)
            p, g = self.params[part], self.grads[part]
            self.update(p, g, *self.state[:, part], self.scratch[: len(p)], learning_rate)
        if self.t % 100 == 0:  # 0.9^100 = 3e-5: from 1e-30 nothing gets below 1e-38 within so many steps
            self.state[np.abs(self.state) < 1e-30] = 0


class SGD(Optimizer):
    """params -= learning_rate grad  (Robbins and Monro 1951)."""

    def update(self, p, g, scratch, learning_rate):
        p -= np.multiply(g, learning_rate, out=scratch)


class Momentum(Optimizer):
    """v = momentum v + grad;  params -= learning_rate v  (Polyak 1964, in the form of torch.optim.SGD)."""

    slots = 1

    def __init__(self, params, grads, momentum=0.9):
        super().__init__(params, grads)
        self.momentum = momentum

    def update(self, p, g, v, scratch, learning_rate):
        v *= self.momentum
        v += g
        p -= np.multiply(v, learning_rate, out=scratch)


class Nesterov(Momentum):
    """v as for Momentum;  params -= learning_rate (grad + momentum v)  (Sutskever et al. 2013, in the form of torch)."""

    def update(self, p, g, v, scratch, learning_rate):
        v *= self.momentum
        v += g
        np.multiply(v, self.momentum, out=scratch)
        scratch += g
        scratch *= learning_rate
        p -= scratch


class RMSprop(Optimizer):
    """v = decay v + (1 - decay) grad^2;  params -= learning_rate grad / (sqrt(v) + eps)  (Tieleman and Hinton 2012)."""

    slots = 1
    decay, eps = 0.99, 1e-8

    def update(self, p, g, v, scratch, learning_rate):
        np.multiply(g, g, out=scratch)
        scratch *= 1 - self.decay
        v *= self.decay
        v += scratch
        np.sqrt(v, out=scratch)
        scratch += self.eps
        np.divide(g, scratch, out=scratch)
        scratch *= learning_rate
        p -= scratch


class Adam(Optimizer):
    """Steps by the running mean m of the gradient over the root of that of its square, v (Kingma and Ba 2015, alg. 1).

    m and v are kept without their factors 1 - beta1 and 1 - beta2. These, and the correction for a start at 0, go into
    one number for the whole step and one for eps: what the published formula gives, in two passes less.
    """

    slots = 2
    beta1, beta2, eps = 0.9, 0.999, 1e-8

    def update(self, p, g, m, v, scratch, learning_rate):
        root = math.sqrt((1 - self.beta2) / (1 - self.beta2**self.t))  # sqrt(v) times this is the published sqrt(v hat)
        m *= self.beta1
        m += g
        np.multiply(g, g, out=scratch)
        v *= self.beta2
        v += scratch
        np.sqrt(v, out=scratch)
        scratch += self.eps / root
        np.divide(m, scratch, out=scratch)
        scratch *= learning_rate * (1 - self.beta1) / (1 - self.beta1**self.t) / root
        p -= scratch


OPTIMIZERS = {"sgd": SGD, "momentum": Momentum, "nesterov": Nesterov, "rmsprop": RMSprop, "adam": Adam,
              "adamw": Adam}  # the same: decay apart from the gradient is Training's, for every optimiser


def learning_rates(schedule, highest, steps, warmup=0.0):
    """The learning rate of each step, a list, in all schedules after a straight rise over the share `warmup` of them.

    Then "constant" stays; "step" falls to a tenth half way and to a hundredth at three quarters (He et al. 2016, sec. 4.2);
    "exponential" falls evenly to a hundredth; "cosine" falls along half a cosine to 0 (Loshchilov and Hutter 2017, eq. 5);
    "one_cycle" falls in a straight line to 0 (Smith and Topin 2018, without their last, lower part; torch's OneCycleLR
    rises and falls along cosines by default). "plateau" stays, but for what ReduceOnPlateau does.
    """
    rise = round(warmup * steps)
    done = np.arange(steps - rise) / (steps - rise)  # share of the fall that lies behind, from 0 to just below 1
    fall = {
        "constant": np.ones_like(done),
        "plateau": np.ones_like(done),
        "step": np.select([done < 0.5, done < 0.75], [1, 0.1], 0.01),
        "exponential": 0.01**done,
        "cosine": (1 + np.cos(np.pi * done)) / 2,
        "one_cycle": 1 - done,
    }[schedule]
    rates = highest * np.concatenate([np.arange(1, rise + 1) / (rise + 1), fall])
    return rates.tolist()  # Python's numbers: a float64 of NumPy's would draw every array that it meets into float64


class ReduceOnPlateau:
    """Divides the learning rate by 10 when the validation loss has not fallen by 0.01 % for more than `patience` epochs.

    As torch.optim.lr_scheduler.ReduceLROnPlateau with its defaults, but for the patience, which is 10 there, and without its
    end, below which it changes a rate no more (by less than 1e-8).
    """

    def __init__(self, patience=3):
        self.patience, self.factor, self.best, self.waited = patience, 1.0, float("inf"), 0

    def step(self, loss):
        if loss < self.best * (1 - 1e-4):
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        if self.waited > self.patience:
            self.factor, self.waited = self.factor / 10, 0


class Average:
    """A running average of the network's weights and state (Polyak and Juditsky 1992; exponential, as in Adam's sec. 7.2).

    It forgets faster at the start, when there is little to remember: by min(decay, (1 + t) / (10 + t)).
    """

    def __init__(self, model, decay):
        self.model, self.decay, self.t = model, decay, 0
        self.params, self.state = model.params.copy(), model.state.copy()
        self.scratch = np.empty(CHUNK, model.params.dtype)

    def update(self):
        self.t += 1
        rest = 1 - min(self.decay, (1 + self.t) / (10 + self.t))
        for mean, value in ((self.params, self.model.params), (self.state, self.model.state)):
            for start in range(0, len(mean), CHUNK):
                part = slice(start, start + CHUNK)
                change = np.subtract(value[part], mean[part], out=self.scratch[: len(mean[part])])
                change *= rest
                mean[part] += change

    def swap(self):
        """Exchange the network's weights and state with their averages; a second call undoes it."""
        for mean, value in ((self.params, self.model.params), (self.state, self.model.state)):
            mean[:], value[:] = value.copy(), mean.copy()
