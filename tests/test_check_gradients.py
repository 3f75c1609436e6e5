"""The gradient check passes as the network stands, and turns red for every fault planted in it."""

import re

import numpy as np
import pytest

import check_gradients
from numpy_nn import layers


def worst(seed=0):
    """The largest error over a few combinations that together use every layer, loss and regulariser."""
    chosen = [
        ("none", "relu", 0.4, "softmax", 0.1, {"l1": 0.01}), ("batch", "tanh", 0.0, "sigmoid", 0.1, {"l2": 0.01}),
        ("layer", "gelu", 0.4, "softmax", 0.0, {}), ("batch", "leaky_relu", 0.0, "softmax", 0.0, {}),
        ("none", "sigmoid", 0.0, "sigmoid", 0.0, {}),
    ]  # fmt: skip
    errors = []
    for choice in chosen:
        one = check_gradients.GradientCase(*choice, seed)
        ours = one.analytic()
        errors += [check_gradients.relative_error(ours, other) for other in (one.central_differences(), one.autograd())]
    return max(errors)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_is_right(seed):
    assert worst(seed) < 1e-7


def test_the_script_passes_and_covers_every_part(capsys):
    with pytest.raises(SystemExit) as ended:
        check_gradients.main([])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "all below 1e-07" in printed
    for name in (*layers.ACTIVATIONS, *layers.NORMS, *layers.LOSSES, "L1", "L2"):
        assert re.search(rf"(^|\s){name}\s", printed, re.MULTILINE), name


def fault(original, change):
    def wrong(self, *arguments, **options):
        return change(self, original, *arguments, **options)

    return wrong


def twice_dW(self, original, dout, **options):
    dx = original(self, dout, **options)
    self.grads["W"] *= 2
    return dx


def no_db(self, original, dout, **options):
    dx = original(self, dout, **options)
    if "b" in self.grads:
        self.grads["b"][:] = 0
    return dx


def forgotten_gamma(self, original, dout, **options):
    dx = original(self, dout, **options)
    self.grads["gamma"][:] = np.nan
    return dx


FAULTS = {
    "ReLU without its mask": (layers.ReLU, lambda self, original, dout, **_: dout),
    "leaky ReLU without its local_grad": (layers.LeakyReLU, lambda self, original, dout, **_: dout),
    "tanh's derivative is 1 - y": (layers.Tanh, lambda self, original, dout, **_: dout * (1 - self.y)),
    "sigmoid's derivative is y": (layers.Sigmoid, lambda self, original, dout, **_: dout * self.y),
    "GELU without its density's part": (layers.GELU, lambda self, original, dout, **_: dout * self.P),
    "dropout that lets everything back": (layers.Dropout, lambda self, original, dout, **_: dout),
    "W's gradient twice": (layers.Linear, twice_dW),
    "b's gradient forgotten": (layers.Linear, no_db),
    "W left out": (layers.Linear, lambda self, original, dout, **_: (
        original(self, dout), dout @ np.ones_like(self.params["W"]).T)[1]),
    "batch norm that forgets that its mean depends on x": (layers.BatchNorm, lambda self, original, dout, **_: (
        original(self, dout), dout * self.params["gamma"] * self.rstd)[1]),
    "layer norm that forgets its variance": (layers.LayerNorm, lambda self, original, dout, **_: (
        original(self, dout), (dout - dout.mean(axis=1, keepdims=True)) * self.params["gamma"] * self.rstd)[1]),
    "gamma's gradient not filled": (layers.LayerNorm, forgotten_gamma),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_turns_it_red(name, monkeypatch):
    layer, change = FAULTS[name]
    monkeypatch.setattr(layer, "backward", fault(layer.backward, change))
    assert not worst() < 1e-7


def test_a_weight_that_is_not_transposed_turns_it_red(monkeypatch):
    monkeypatch.setattr(check_gradients, "SIZES", (4, 4, 4, 4))  # else its shape would not fit
    assert worst() < 1e-7
    right = layers.Linear.backward
    wrong = fault(right, lambda self, original, dout, **_: (original(self, dout), dout @ self.params["W"])[1])
    monkeypatch.setattr(layers.Linear, "backward", wrong)
    assert not worst() < 1e-7


@pytest.mark.parametrize("change", [
    lambda loss, dlogits, logits, y: (loss, dlogits * len(y)),  # not divided by N
    lambda loss, dlogits, logits, y: (loss, layers.softmax(logits) / len(y)),  # the derivative of the output forgotten
    lambda loss, dlogits, logits, y: (-np.log(layers.softmax(logits).max(axis=1)).mean(), dlogits),  # of the predicted class
])  # fmt: skip
def test_a_fault_in_the_loss_turns_it_red(change, monkeypatch):
    def wrong(logits, y, smoothing=0.0):
        return change(*layers.softmax_cross_entropy(logits, y, smoothing), logits, y)

    monkeypatch.setitem(layers.LOSSES, "softmax", (wrong, layers.softmax))
    assert not worst() < 1e-7
