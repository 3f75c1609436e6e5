"""Calibration: its error, temperature scaling, and the accuracy if the least confident predictions are rejected.

Temperature scaling divides all logits by one number T, so that probabilities are as high as predictions are often right.
T > 1 lowers the confidence, T < 1 raises it; the predicted class does not change (Guo et al. 2017, section 4.2).
"""

if __name__ == "__main__":
    raise SystemExit("numpy_nn/calibration.py is a module, not a script: check_gradients.py and predict.py use it")

import math

import numpy as np

from numpy_nn.layers import LOSSES

RANGE = 0.05, 20.0  # of temperatures


def temperature_loss(temperature, logits, y, loss="softmax"):
    """(loss, its derivative with respect to the temperature) of logits (N, C) and labels y (N,).

    With z the logits, T the temperature and s = z / T, the loss is L(T) = loss(s, y). Since ds/dT = -z / T^2, by the chain
    rule dL/dT = -1 / T^2 sum_nc (dL/ds)_nc z_nc. For the softmax this is 1 / T^2 mean_n (z_ny - sum_c softmax(s)_nc z_nc).
    """
    value, dscaled = LOSSES[loss][0](logits / temperature, y)
    return value, -float((dscaled * logits).sum()) / float(temperature) ** 2


def fit_temperature(logits, y, loss="softmax"):
    """The temperature with the lowest loss on logits (N, C) and labels y (N,), which should be those of validation images.

    The loss is convex in 1 / T, so its derivative changes sign once at most: bisection, on a logarithmic scale. Where it
    does not, as without any mistake, the result is 1.
    """
    logits, (low, high) = logits.astype(np.float64), RANGE
    if not temperature_loss(low, logits, y, loss)[1] < 0 < temperature_loss(high, logits, y, loss)[1]:
        return 1.0
    for _ in range(30):
        temperature = math.sqrt(low * high)
        if temperature_loss(temperature, logits, y, loss)[1] > 0:
            high = temperature
        else:
            low = temperature
    return temperature


def calibrated(logits, temperature, loss="softmax"):
    """Probabilities (N, C) of logits (N, C) at a temperature."""
    return LOSSES[loss][1](logits.astype(np.float64) / temperature)


def recalibrated(probabilities, temperature, loss="softmax"):
    """The same from probabilities (N, C) at temperature 1: their logarithms are logits, up to a number for each row."""
    with np.errstate(divide="ignore"):  # a probability of 0 stays 0
        logits = np.log(probabilities)
        logits -= np.log1p(-probabilities) if loss == "sigmoid" else 0
    return calibrated(logits, temperature, loss)


def calibration(y, probabilities, bins=15):
    """(edges (bins + 1,), counts, mean confidence, accuracy of each bin of confidence, expected calibration error).

    The error is the mean over all images of |accuracy - confidence| of their bin (Guo et al. 2017, eq. 3). probabilities
    (N, classes), y (N,).
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # bins are open below and closed above
    counts = np.bincount(place, minlength=bins)
    mean, accuracy = (np.bincount(place, values, bins) / np.maximum(counts, 1) for values in (confidence, right))
    return edges, counts, mean, accuracy, float(np.sum(counts * np.abs(accuracy - mean)) / len(y))


def risk_coverage(y, probabilities):
    """(fraction rejected (N,), accuracy of the others (N,)) if the images of the lowest confidence are rejected first.

    From all images but the most confident one rejected, to none. y (N,), probabilities (N, C).
    """
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    right, accepted = (probabilities.argmax(axis=1) == y)[order], np.arange(1, len(y) + 1)
    return 1 - accepted / len(y), np.cumsum(right) / accepted
