"""Optimisers, schedules and the running average, held against torch and against their formulas."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from numpy_nn import optimizers

RNG = np.random.default_rng(3)
TWINS = {
    "sgd": lambda p: torch.optim.SGD(p),
    "momentum": lambda p: torch.optim.SGD(p, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p),
    "adam": lambda p: torch.optim.Adam(p),
    "adamw": lambda p: torch.optim.AdamW(p, weight_decay=0),
}
LONG = 2 * optimizers.CHUNK + 5  # more than one piece, and a ragged last one


def relative(a, b):
    return np.abs(a - b).max() / max(np.abs(a).max(), np.abs(b).max())


def test_every_optimiser_has_a_twin():
    assert set(TWINS) == set(optimizers.OPTIMIZERS)


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize(("dtype", "tolerance", "size"), [
    (np.float64, 1e-12, 40), (np.float32, 1e-5, 40), (np.float64, 1e-12, LONG),
])  # fmt: skip
def test_fifty_steps_beside_torch(name, dtype, tolerance, size):
    params, grads = RNG.standard_normal(size).astype(dtype), np.empty(size, dtype)
    tensor = torch.tensor(params, requires_grad=True)
    optimizer, twin = optimizers.OPTIMIZERS[name](params, grads), TWINS[name]([tensor])
    for step in range(50):
        grads[:] = RNG.standard_normal(size)
        tensor.grad = torch.tensor(grads)
        twin.param_groups[0]["lr"] = rate = 0.01 * (1 + step % 3)
        optimizer.step(rate)
        twin.step()
    assert relative(params, tensor.detach().numpy()) < tolerance
    assert params.dtype == dtype


@pytest.mark.parametrize("name", ["momentum", "nesterov", "rmsprop", "adam"])
def test_running_means_of_gradients_that_stay_0_never_get_slow(name):
    params, grads = np.ones(8, np.float32), np.ones(8, np.float32)
    optimizer = optimizers.OPTIMIZERS[name](params, grads)
    optimizer.step(0.01)
    grads[:4] = 0
    for _ in range(1500):
        optimizer.step(0.01)
        small = np.abs(optimizer.state[optimizer.state != 0])
        assert (small >= np.finfo(np.float32).tiny).all()  # smaller ones are denormal
    assert optimizer.state[0, :4].max() == 0 or name == "rmsprop"
    assert optimizer.state[0, 4:].min() > 0.5


@pytest.mark.parametrize(("name", "torch_reference"), [
    ("constant", lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1)),
    ("step", lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [25, 38], 0.1)),
    ("exponential", lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.01 ** (1 / 50))),
    ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50)),
    ("linear", lambda o: torch.optim.lr_scheduler.LinearLR(o, 1, 0, 50)),
])  # fmt: skip
def test_fifty_steps_of_a_schedule_beside_torch(name, twin):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = twin(optimizer)
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert relative(np.array(optimizers.learning_rates(name, 0.3, 50)), np.array(rates)) < 1e-12


def test_reduce_on_plateau_beside_torch():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    twin = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=3)
    ours = optimizers.ReduceOnPlateau()
    factors = set()
    for epoch in range(50):
        loss = max(1.0 / (1 + epoch), 0.1) + 0.01 * RNG.random()
        ours.step(loss)
        twin.step(loss)
        assert ours.factor == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12, abs=2e-8)
        factors.add(ours.factor)
    assert len(factors) > 3


def test_warm_up_rises_in_a_straight_line_to_the_highest():
    rates = np.array(optimizers.learning_rates("linear", 0.1, 100, warmup=0.2))
    assert len(rates) == 100
    assert rates[:21] == pytest.approx(0.1 * np.arange(1, 22) / 21)
    assert rates[20] == rates.max() == 0.1
    assert (np.diff(rates[20:]) < 0).all()
    assert rates[-1] > 0


def test_average():
    model = SimpleNamespace(params=np.array([1.0, 2.0]), state=np.array([5.0]))
    average = optimizers.EMA(model, 0.9)
    expected = model.params.copy()
    for t in range(1, 200):
        model.params += RNG.standard_normal(2)
        model.buffers[:] = model.params[:1]  # so that its average is that of the first weight, once the start is forgotten
        average.update()
        decay = min(0.9, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * model.params
    assert average.params == pytest.approx(expected)
    assert average.state == pytest.approx(expected[:1])
    latest = model.params.copy()
    average.swap()
    assert model.params == pytest.approx(expected)
    average.swap()
    assert np.array_equal(model.params, latest)
