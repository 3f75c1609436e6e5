"""The gradient check passes for the network as it is, and fails for every fault planted in it."""

import numpy as np
import pytest

import mlp_from_scratch as mlp
import run
from extras import check_gradients

SILU = (lambda x: x * mlp.sigmoid(x), lambda x, y: mlp.sigmoid(x) + y * (1 - mlp.sigmoid(x)))
NETWORKS = [  # together they use every norm, loss and penalty, and dropout
    ("batch", "tanh", 0.4, "sigmoid", 0.1, "L2"),
    ("layer", "gelu", 0.4, "softmax", 0.0, "L1"),
    ("none", "relu", 0.0, "softmax", 0.1, "-"),
    ("none", "identity", 0.0, "squared_error", 0.1, "-"),
]


def wrong():
    """{layer, or "network" for all NETWORKS: {names of its gradients with an error above the tolerance}}"""
    errors = {name: check_gradients.layer_errors(name) for name in check_gradients.checks()}
    networks = [check_gradients.check_network(*choice, seed=0).values() for choice in NETWORKS]
    errors["network"] = {"all": check_gradients.worst(check_gradients.worst(pairs) for pairs in networks)}
    for name, arrays in errors.items():
        errors[name] = {array for array, pair in arrays.items() if not max(pair) < 1e-7}
    return {name: arrays for name, arrays in errors.items() if arrays}


def test_all_gradients_are_right():
    names = set(mlp.ACTIVATIONS) | {"Linear", "Dropout", "BatchNorm", "LayerNorm"}
    assert check_gradients.checks().keys() == names | {"softmax_loss", "sigmoid_loss", "squared_error_loss"}
    assert not wrong()
    for name in check_gradients.checks():
        for differences, autograd in check_gradients.layer_errors(name, seed=1).values():
            assert 0 < differences < 1e-7
            assert 0 <= autograd < 1e-13


def test_a_row_for_each_gradient_and_network(monkeypatch, capsys):
    monkeypatch.setattr(mlp, "ACTIVATIONS", {"silu": SILU})
    monkeypatch.setattr(mlp, "NORMS", {"batch": mlp.BatchNorm})
    monkeypatch.setattr(mlp, "LOSSES", {"softmax": mlp.LOSSES["softmax"]})
    check_gradients.main(["--all"])
    _, *rows, last = capsys.readouterr().out.splitlines()
    assert last.startswith("24 whole networks")
    assert len(rows) == 3 + 1 + 3 + 1 + 1 + 24  # Linear, Dropout, BatchNorm, silu, loss; networks
    assert all(float(error) < 1e-7 for row in [*rows, last] for error in row.split()[-2:])


def test_a_new_activation_is_checked_by_itself(monkeypatch, capsys):
    new = {"silu": SILU, "cube": (lambda x: x**3, lambda x, y: 3 * x**2)}
    monkeypatch.setattr(mlp, "ACTIVATIONS", mlp.ACTIVATIONS | new)
    check_gradients.main(["--layer", "silu"])
    assert float(capsys.readouterr().out.split()[-1]) < 1e-13
    check_gradients.main(["--layer", "cube"])
    assert capsys.readouterr().out.split()[-1] == "-"  # PyTorch has none


@pytest.mark.parametrize("name", ["silu", "square"])
def test_a_wrong_derivative_is_found(name, monkeypatch, capsys):
    function = SILU[0] if name == "silu" else np.square
    monkeypatch.setitem(mlp.ACTIVATIONS, name, (function, lambda x, y: y))
    monkeypatch.setattr(check_gradients, "network_errors", lambda seed: [("network", (1e-9, np.nan))])
    for arguments in ([], ["--layer", name]):
        with pytest.raises(SystemExit) as ended:
            check_gradients.main(arguments)
        assert ended.value.code == 1
        rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.endswith("WRONG")]
        assert [row[0] for row in rows] == [name]


def test_an_unknown_layer_is_refused():
    with pytest.raises(run.Error, match="--layer batchnorm: choose from Linear, Dropout, BatchNorm"):
        check_gradients.main(["--layer", "batchnorm"])


def twice_dW(layer, dx, dout):
    layer.grads["W"] *= 2
    return dx


def no_dgamma(layer, dx, dout):
    layer.grads["gamma"][:] = np.nan  # as if backward did not fill it
    return dx


FAULTS = {  # (layer, what its backward pass returns in place of dx, gradients that are wrong)
    "no mask": (mlp.Dropout, lambda layer, dx, dout: dout, {"x"}),
    "dW twice": (mlp.Linear, twice_dW, {"W"}),
    "no W": (mlp.Linear, lambda layer, dx, dout: dout @ np.ones_like(layer.params["W"]).T, {"x"}),
    "constant mean": (mlp.BatchNorm, lambda bn, dx, dout: dout * bn.params["gamma"] * bn.rstd, {"x"}),
    "no dgamma": (mlp.LayerNorm, no_dgamma, {"gamma"}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_located(name, monkeypatch):
    layer, change, arrays = FAULTS[name]
    right = layer.backward
    monkeypatch.setattr(layer, "backward", lambda self, dout: change(self, right(self, dout), dout))
    assert wrong() == {layer.__name__: arrays, "network": {"all"}}


@pytest.mark.parametrize("fault", ["not divided by N", "of the predicted class"])
def test_a_fault_in_the_loss_is_found_and_located(fault, monkeypatch):
    def faulty(logits, y, smoothing=0.0):
        loss, dlogits = mlp.softmax_cross_entropy(logits, y, smoothing)
        if fault == "not divided by N":
            return loss, dlogits * len(y)
        return -np.log(mlp.softmax(logits).max(axis=1)).mean(), dlogits

    monkeypatch.setitem(mlp.LOSSES, "softmax", (faulty, mlp.softmax))
    assert wrong() == {"softmax_loss": {"x"}, "network": {"all"}}
