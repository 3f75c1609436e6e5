"""The gradient check passes for the network as it is, and fails for every fault planted in it."""

import re

import numpy as np
import pytest

import check_gradients
from numpy_nn import layers


def worst(seed=0):
    """The largest error over a few networks that together use every layer, loss and penalty."""
    chosen = [
        ("none", "relu", 0.4, "softmax", 0.1, {"l1": 0.01}), ("batch", "tanh", 0.0, "sigmoid", 0.1, {"l2": 0.01}),
        ("layer", "gelu", 0.4, "softmax", 0.0, {}), ("batch", "leaky_relu", 0.0, "softmax", 0.0, {}),
        ("none", "sigmoid", 0.0, "sigmoid", 0.0, {}),
    ]  # fmt: skip
    errors = []
    for choice in chosen:
        case = check_gradients.GradientCase(*choice, seed)
        gradient = case.analytic()
        errors += [check_gradients.relative_error(gradient, other) for other in (case.differences(), case.autograd())]
    return max(errors)


def wrong_layers():
    """{layer: {names of gradients whose error is above the tolerance, by either method}} of the check by layer."""
    wrong = {layer: {array for array, pair in results.items() if not max(pair) < 1e-7}
             for layer, results in check_gradients.worst_by_layer().items()}  # fmt: skip
    return {layer: arrays for layer, arrays in wrong.items() if arrays}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_gradients_are_right(seed):
    assert worst(seed) < 1e-7
    results = check_gradients.worst_by_layer(seed)
    names = {kind.__name__ for kind in layers.ACTIVATIONS.values()} | {"Linear", "Dropout", "BatchNorm", "LayerNorm"}
    assert results.keys() == names | {"cross-entropy", "temperature"}
    assert results["Linear"].keys() == {"W", "b", "x"}
    assert results["BatchNorm"].keys() == results["LayerNorm"].keys() == {"gamma", "beta", "x"}
    for arrays in results.values():
        assert arrays.keys() & {"x", "T"}
        for differences, autograd in arrays.values():
            assert 0 < differences < 1e-7
            assert 0 <= autograd < 1e-13


def test_the_script_covers_everything_and_ends_with_a_table_by_layer(capsys):
    with pytest.raises(SystemExit) as ended:
        check_gradients.main(["--all"])
    assert ended.value.code == 0
    networks, table = capsys.readouterr().out.split("\n\n")
    *rows, summary = networks.splitlines()[1:]
    assert len(rows) == 360
    assert re.fullmatch(r"360 networks, worst relative error \d\.\de-\d\d: all below 1e-07", summary)
    for name in (*layers.ACTIVATIONS, *layers.NORMS, *layers.LOSSES, "L1", "L2"):
        assert re.search(rf"(^|\s){name}\s", networks, re.MULTILINE), name
    _, header, *rows = table.splitlines()
    assert header.split() == ["gradient", "of", "W", "b", "gamma", "beta", "x", "T"]
    assert len(rows) == 11
    assert [len(row.split()) - 1 for row in rows] == [3, 1, 1, 1, 1, 1, 1, 3, 3, 1, 1]
    assert all(float(error) < 1e-7 for row in rows for error in row.split()[1:])


def test_a_wrong_layer_is_marked_and_the_exit_code_is_1(capsys, monkeypatch):
    monkeypatch.setattr(check_gradients, "network_errors", lambda seed: [("network", 1e-9, None)])
    monkeypatch.setattr(layers.ReLU, "backward", lambda self, dout: dout)
    with pytest.raises(SystemExit) as ended:
        check_gradients.main([])
    assert ended.value.code == 1
    networks, table = capsys.readouterr().out.split("\n\n")
    assert networks == "1 networks, worst relative error 1.0e-09: all below 1e-07"
    assert [row.split()[0] for row in table.splitlines() if row.endswith("WRONG")] == ["ReLU"]


def test_without_torch_the_differences_remain(monkeypatch, capsys):
    monkeypatch.setattr(check_gradients, "has_torch", lambda: False)
    monkeypatch.setattr(check_gradients, "network_errors", lambda seed: [("network", 1e-9, None)])
    assert all(autograd is None for results in check_gradients.worst_by_layer().values() for _, autograd in results.values())
    with pytest.raises(SystemExit) as ended:
        check_gradients.main(["--all"])
    assert ended.value.code == 0
    assert "torch is not installed" in capsys.readouterr().out


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


FAULTS = {  # name: (layer, its wrong backward pass)
    "ReLU without its mask": (layers.ReLU, lambda self, original, dout, **_: dout),
    "leaky ReLU without its local_grad": (layers.LeakyReLU, lambda self, original, dout, **_: dout),
    "tanh's derivative is 1 - y": (layers.Tanh, lambda self, original, dout, **_: dout * (1 - self.y)),
    "sigmoid's derivative is y": (layers.Sigmoid, lambda self, original, dout, **_: dout * self.y),
    "GELU without x P'(x)": (layers.GELU, lambda self, original, dout, **_: dout * self.P),
    "dropout without its mask": (layers.Dropout, lambda self, original, dout, **_: dout),
    "W's gradient twice": (layers.Linear, twice_dW),
    "b's gradient forgotten": (layers.Linear, no_db),
    "W left out": (layers.Linear, lambda self, original, dout, **_: (
        original(self, dout), dout @ np.ones_like(self.params["W"]).T)[1]),
    "batch norm as if its mean did not depend on x": (layers.BatchNorm, lambda self, original, dout, **_: (
        original(self, dout), dout * self.params["gamma"] * self.rstd)[1]),
    "layer norm as if its variance did not depend on x": (layers.LayerNorm, lambda self, original, dout, **_: (
        original(self, dout), (dout - dout.mean(axis=1, keepdims=True)) * self.params["gamma"] * self.rstd)[1]),
    "gamma's gradient not filled": (layers.LayerNorm, forgotten_gamma),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_located(name, monkeypatch):
    layer, change = FAULTS[name]
    monkeypatch.setattr(layer, "backward", fault(layer.backward, change))
    assert not worst() < 1e-7
    assert wrong_layers().keys() == {layer.__name__}


def test_the_check_by_layer_names_the_array(monkeypatch):
    monkeypatch.setattr(layers.Linear, "backward", fault(layers.Linear.backward, twice_dW))
    assert wrong_layers() == {"Linear": {"W"}}
    monkeypatch.setattr(layers.LayerNorm, "backward", fault(layers.LayerNorm.backward, forgotten_gamma))
    assert wrong_layers() == {"Linear": {"W"}, "LayerNorm": {"gamma"}}


def test_a_weight_that_is_not_transposed_is_found(monkeypatch):
    monkeypatch.setattr(check_gradients, "SIZES", (4, 4, 4, 4))  # otherwise its shape would not fit
    assert worst() < 1e-7
    right = layers.Linear.backward
    wrong = fault(right, lambda self, original, dout, **_: (original(self, dout), dout @ self.params["W"])[1])
    monkeypatch.setattr(layers.Linear, "backward", wrong)
    assert not worst() < 1e-7


@pytest.mark.parametrize("change", [
    lambda loss, dlogits, logits, y: (loss, dlogits * len(y)),  # not divided by N
    lambda loss, dlogits, logits, y: (loss, layers.softmax(logits) / len(y)),  # without the targets
    lambda loss, dlogits, logits, y: (-np.log(layers.softmax(logits).max(axis=1)).mean(), dlogits),  # of the predicted class
])  # fmt: skip
def test_a_fault_in_the_loss_is_found_and_located(change, monkeypatch):
    def wrong(logits, y, smoothing=0.0):
        return change(*layers.softmax_cross_entropy(logits, y, smoothing), logits, y)

    monkeypatch.setitem(layers.LOSSES, "softmax", (wrong, layers.softmax))
    assert not worst() < 1e-7
    assert wrong_layers() == {"cross-entropy": {"x"}, "temperature": {"T"}}  # which is made of the loss's gradient


@pytest.mark.parametrize("change", [lambda T, dT: -dT, lambda T, dT: dT * T, lambda T, dT: dT * T**2])
def test_a_fault_in_the_temperatures_gradient_is_found(change, monkeypatch):
    def wrong(T, *arguments, right=check_gradients.temperature_loss):
        loss, dT = right(T, *arguments)
        return loss, change(T, dT)

    monkeypatch.setattr(check_gradients, "temperature_loss", wrong)
    assert wrong_layers() == {"temperature": {"T"}}
