"""The same network without options, in plain NumPy: 784-256-128-10, ReLU, softmax cross-entropy, SGD.

    python -m extras.minimal_mlp

prints loss and validation accuracy of each epoch, and at the end: test accuracy on Fashion-MNIST 87.23%

X (N, 784) are images, y (N,) their labels from 0 to 9. `dz` is the gradient of the loss with respect to z.
"""

import itertools
import sys

import numpy as np

import data
import run

SIZES = 784, 256, 128, 10
EPOCHS, BATCH_SIZE, LEARNING_RATE = 5, 128, 0.1


def init(rng):
    """[(W (n_in, n_out), b (n_out,)) of each layer]: W is normal with variance 2 / n_in (He), b is 0."""
    params = []
    for n_in, n_out in itertools.pairwise(SIZES):
        W = rng.standard_normal((n_in, n_out)) * np.sqrt(2 / n_in)
        params.append((W, np.zeros(n_out)))
    return params


def forward(params, X):
    """[X, output of each layer]; the last output is the logits (N, 10)."""
    outputs = [X]
    for W, b in params[:-1]:
        outputs.append(np.maximum(outputs[-1] @ W + b, 0))  # (N, n_in) -> (N, n_out)
    W, b = params[-1]
    outputs.append(outputs[-1] @ W + b)
    return outputs


def cross_entropy(logits, y):
    """(loss, dlogits (N, 10)): the mean of -log softmax(logits)[y], and its gradient."""
    n = len(y)
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))  # which cannot overflow
    p = exp / exp.sum(axis=1, keepdims=True)  # (N, 10), each row sums to 1
    loss = -np.log(p[np.arange(n), y]).mean()
    dlogits = p / n
    dlogits[np.arange(n), y] -= 1 / n
    return loss, dlogits


def backward(params, outputs, dlogits):
    """[(dW, db) of each layer], computed from the last to the first."""
    grads, dz = [], dlogits
    for (W, _), x in zip(params[::-1], outputs[-2::-1], strict=True):
        grads.append((x.T @ dz, dz.sum(axis=0)))
        dx = dz @ W.T  # (N, n_out) -> (N, n_in)
        dz = dx * (x > 0)  # through the ReLU that made x
    return grads[::-1]


def step(params, grads, lr):
    """Gradient descent, in place."""
    for (W, b), (dW, db) in zip(params, grads, strict=True):
        W -= lr * dW
        b -= lr * db


def train_step(params, X, y, lr):
    """One step on a batch; returns its loss."""
    outputs = forward(params, X)
    loss, dlogits = cross_entropy(outputs[-1], y)
    grads = backward(params, outputs, dlogits)
    step(params, grads, lr)
    return loss


def accuracy(params, X, y):
    return np.mean(forward(params, X)[-1].argmax(axis=1) == y)


def main(argv=None):
    images = data.load(run.parse(argv, sys.modules[__name__], data))
    mean, std = data.mean_std(images.train.X)
    splits = images.train, images.val, images.test
    X, X_val, X_test = (data.standardize(split.X, mean, std) for split in splits)
    y, rng = images.train.y, np.random.default_rng(0)
    params = init(rng)
    for epoch in range(EPOCHS):
        order, losses = rng.permutation(len(y)), []
        for start in range(0, len(y), BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            losses.append(train_step(params, X[batch], y[batch], LEARNING_RATE))
        val_accuracy = accuracy(params, X_val, images.val.y)
        print(f"epoch {epoch + 1}   loss {np.mean(losses):.4f}   validation accuracy {val_accuracy:.2%}")
    print(f"test accuracy on {images.name} {accuracy(params, X_test, images.test.y):.2%}")


if __name__ == "__main__":
    run.cli(main)
