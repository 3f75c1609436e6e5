"""Optimizers, schedules and the moving average of the weights, compared with torch and with their formulas."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from numpy_nn import optimizers

RNG = np.random.default_rng(3)
TORCH = {
    "sgd": lambda p: torch.optim.SGD(p),
    "momentum": lambda p: torch.optim.SGD(p, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p),
    "adam": lambda p: torch.optim.Adam(p),
    "adamw": lambda p: torch.optim.AdamW(p, weight_decay=0),
}
LONG = 2 * optimizers.CHUNK + 5  # three chunks, the last of another size


def relative(a, b):
    return np.abs(a - b).max() / max(np.abs(a).max(), np.abs(b).max())


def test_each_optimizer_has_a_reference():
    assert set(TORCH) == set(optimizers.OPTIMIZERS)


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize(("dtype", "tolerance", "size"), [
    (np.float64, 1e-12, 40), (np.float32, 1e-5, 40), (np.float64, 1e-12, LONG),
])  # fmt: skip
def test_fifty_steps_match_torch(name, dtype, tolerance, size):
    params, grads = RNG.standard_normal(size).astype(dtype), np.empty(size, dtype)
    tensor = torch.tensor(params, requires_grad=True)
    optimizer, reference = optimizers.OPTIMIZERS[name](params, grads), TORCH[name]([tensor])
    for step in range(50):
        grads[:] = RNG.standard_normal(size)
        tensor.grad = torch.tensor(grads)
        reference.param_groups[0]["lr"] = rate = 0.01 * (1 + step % 3)
        optimizer.step(rate)
        reference.step()
    assert relative(params, tensor.detach().numpy()) < tolerance
    assert params.dtype == dtype


@pytest.mark.parametrize("name", ["momentum", "nesterov", "rmsprop", "adam"])
def test_moments_of_always_zero_gradients_do_not_become_subnormal(name):
    params, grads = np.ones(8, np.float32), np.ones(8, np.float32)
    optimizer = optimizers.OPTIMIZERS[name](params, grads)
    optimizer.step(0.01)
    grads[:4] = 0
    for _ in range(1500):
        optimizer.step(0.01)
        small = np.abs(optimizer.state[optimizer.state != 0])
        assert (small >= np.finfo(np.float32).tiny).all()  # smaller numbers are subnormal
    assert optimizer.state[0, :4].max() == 0 or name == "rmsprop"
    assert optimizer.state[0, 4:].min() > 0.5


@pytest.mark.parametrize(("name", "make"), [
    ("constant", lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1)),
    ("step", lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [25, 38], 0.1)),
    ("exponential", lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.01 ** (1 / 50))),
    ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50)),
    ("linear", lambda o: torch.optim.lr_scheduler.LinearLR(o, 1, 0, 50)),
])  # fmt: skip
def test_fifty_steps_of_a_schedule_match_torch(name, make):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = make(optimizer)
    expected = []
    for _ in range(50):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    rates = [optimizers.lr_at(step / 50, 0.3, name) for step in range(50)]
    assert relative(np.array(rates), np.array(expected)) < 1e-12
    assert all(type(rate) is float for rate in rates)  # a float64 of NumPy would make float32 arrays float64


def test_reduce_lr_on_plateau_matches_torch():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=3)
    plateau = optimizers.ReduceLROnPlateau()
    factors = set()
    for epoch in range(50):
        loss = max(1.0 / (1 + epoch), 0.1) + 0.01 * RNG.random()
        plateau.step(loss)
        reference.step(loss)
        assert plateau.factor == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12, abs=2e-8)
        factors.add(plateau.factor)
    assert len(factors) > 3


def test_warmup_rises_linearly_to_the_peak():
    rates = np.array([optimizers.lr_at(step / 100, 0.1, "linear", 0.2, 1 / 21) for step in range(100)])
    assert rates[:21] == pytest.approx(0.1 * np.arange(1, 22) / 21)
    assert rates[20] == rates.max() == 0.1
    assert (np.diff(rates[20:]) < 0).all()
    assert rates[-1] > 0


def test_ema_is_the_moving_average_of_parameters_and_buffers():
    model = SimpleNamespace(params=np.array([1.0, 2.0]), buffers=np.array([5.0]))
    ema = optimizers.EMA(model, 0.9)
    expected = {"params": model.params.copy(), "buffers": model.buffers.copy()}
    for t in range(1, 200):
        model.params += RNG.standard_normal(2)
        model.buffers += RNG.standard_normal(1)
        ema.update()
        decay = min(0.9, (1 + t) / (10 + t))
        for name, mean in expected.items():
            expected[name] = decay * mean + (1 - decay) * getattr(model, name)
    assert ema.params == pytest.approx(expected["params"])
    assert ema.buffers == pytest.approx(expected["buffers"])
    latest = {name: getattr(model, name).copy() for name in expected}
    ema.swap()
    assert model.params == pytest.approx(expected["params"])
    assert model.buffers == pytest.approx(expected["buffers"])
    ema.swap()
    assert np.array_equal(model.params, latest["params"])
    assert np.array_equal(model.buffers, latest["buffers"])
