"""Optimizers, schedules, weight decay, penalties, clipping and averages, against PyTorch and slow loops."""

import dataclasses
import inspect
import math
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from test_layers import relative
from torch.nn import functional as F
from torch.optim import lr_scheduler

import cnn_feature_extraction as cnn
import mlp_from_scratch as mlp
import run

DEFAULTS = {"momentum": 0.9, "rmsprop_decay": 0.99, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
OTHERS = {"momentum": 0.7, "rmsprop_decay": 0.8, "beta1": 0.6, "beta2": 0.95, "eps": 0.01}


def in_torch(name, params, momentum, rmsprop_decay, beta1, beta2, eps):
    """PyTorch's optimizer of this name, with the same settings."""
    adam = {"betas": (beta1, beta2), "eps": eps}
    options = {
        "sgd": (torch.optim.SGD, {}),
        "momentum": (torch.optim.SGD, {"momentum": momentum}),
        "nesterov": (torch.optim.SGD, {"momentum": momentum, "nesterov": True}),
        "rmsprop": (torch.optim.RMSprop, {"alpha": rmsprop_decay, "eps": eps}),
        "adam": (torch.optim.Adam, adam),
        "adamw": (torch.optim.AdamW, adam | {"weight_decay": 0}),
        "nadam": (torch.optim.NAdam, adam | {"momentum_decay": 1e9}),  # its mu is then beta1 in all steps
    }
    optimizer, kwargs = options[name]
    return optimizer(params, lr=1.0, **kwargs)


LONG = 2 * mlp.CHUNK + 5  # three chunks, the last of another size
SIZES = [(40, np.float64, 1e-12), (40, np.float32, 1e-5), (LONG, np.float64, 1e-12)]


@pytest.fixture
def float64_scalars():
    """PyTorch's NAdam keeps the product of its mu in the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("options", [DEFAULTS, OTHERS], ids=["defaults", "others"])
@pytest.mark.parametrize(("size", "dtype", "tolerance"), SIZES)
@pytest.mark.parametrize("name", mlp.OPTIMIZERS)
def test_twenty_steps(name, size, dtype, tolerance, options, float64_scalars):
    rng = np.random.default_rng(3)
    params, grads = rng.standard_normal(size).astype(dtype), np.empty(size, dtype)
    tensor = torch.tensor(params, requires_grad=True)
    optimizer, reference = mlp.Optimizer(name, params, grads, **options), in_torch(name, [tensor], **options)
    for step in range(20):
        grads[:] = rng.standard_normal(size)
        before = grads.copy()
        tensor.grad = torch.tensor(grads)
        reference.param_groups[0]["lr"] = lr = 0.01 * (1 + step % 3)
        optimizer.step(lr)
        reference.step()
        assert np.array_equal(grads, before)
    assert relative(params, tensor.detach().numpy()) < tolerance
    assert params.dtype == optimizer.moments.dtype == dtype


def test_the_settings_of_the_optimizers_are_those_of_the_constants(digits):
    s, parameters = vars(mlp.settings()), inspect.signature(mlp.Optimizer).parameters
    assert {name: s[name] for name in DEFAULTS} == DEFAULTS
    assert {name: parameters[name].default for name in DEFAULTS} == DEFAULTS
    optimizer = make_trainer(digits, **OTHERS)[0].optimizer
    assert {name: getattr(optimizer, name) for name in OTHERS} == OTHERS


@pytest.mark.parametrize("name", ["momentum", "nesterov", "rmsprop", "adam", "nadam"])
def test_moments_of_always_zero_gradients_do_not_become_subnormal(name):
    params, grads = np.ones(8, np.float32), np.ones(8, np.float32)
    optimizer = mlp.Optimizer(name, params, grads)
    optimizer.step(0.01)
    grads[:4] = 0
    for _ in range(1000):
        optimizer.step(0.01)
        small = np.abs(optimizer.moments[optimizer.moments != 0])
        assert (small >= np.finfo(np.float32).tiny).all()  # smaller numbers are subnormal
    assert optimizer.moments[0, :4].max() == 0 or name == "rmsprop"  # which decays more slowly
    assert optimizer.moments[0, 4:].min() > 0.5


SCHEDULERS = {
    "constant": lambda o: lr_scheduler.ConstantLR(o, factor=1),
    "step": lambda o: lr_scheduler.MultiStepLR(o, [20, 30], 0.1),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.01 ** (1 / 40)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 40),
    "linear": lambda o: lr_scheduler.LinearLR(o, 1, 0, 40),
}
DONE = (0, 0.25, 0.5, 0.625, 0.75)  # fractions of the training after the warm-up
FALLS = {  # the rate at these, relative to its peak
    "linear": [1 - done for done in DONE],
    "cosine": [(1 + math.cos(math.pi * done)) / 2 for done in DONE],
    "exponential": [0.01**done for done in DONE],
    "step": [1, 1, 0.1, 0.1, 0.01],
} | dict.fromkeys(("constant", "plateau", "halve"), [1] * 5)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedules_of_torch(name):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler, s = SCHEDULERS[name](optimizer), mlp.settings(schedule=name, warmup=0.0, learning_rate=0.3)
    for step in range(40):
        rate = mlp.lr_at(step, 40, s)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        assert type(rate) is float  # a float64 of NumPy would turn arrays of float32 into float64
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", get_args(mlp.Schedule))
def test_schedules_with_warmup(name):
    """The rate rises in a straight line; in the CNN from 5 %, in the MLP the peak is the step after it."""
    s = SimpleNamespace(schedule=name, warmup=0.2, learning_rate=0.3)
    rates = [mlp.lr_at(step, 100, s) / 0.3 for step in range(100)]
    assert rates[:20] == pytest.approx([(step + 1) / 21 for step in range(20)])
    assert [rates[step] for step in (20, 40, 60, 70, 80)] == pytest.approx(FALLS[name])
    rates = [cnn.lr_at(progress, s) / 0.3 for progress in (0, 0.05, 0.1, 0.2, 0.4, 0.6000001, 0.7, 0.8000001)]
    assert rates == pytest.approx([0.05, 0.2875, 0.525, *FALLS[name]], rel=1e-5)
    assert name in get_args(cnn.Schedule)


def plateau(losses):
    return run.lr_factor({"val_loss": losses}, "plateau")


def test_plateau():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = lr_scheduler.ReduceLROnPlateau(optimizer, patience=3)
    losses, factors, rng = [], set(), np.random.default_rng(0)
    for epoch in range(60):
        losses.append(max(1.0 / (1 + epoch), 0.1) + 1e-3 * rng.random())
        reference.step(losses[-1])
        factors.add(plateau(losses))
        assert plateau(losses) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=2e-8)
    assert len(factors) > 3
    assert plateau([]) == plateau([1.0, 0.99995, 0.99992, 0.99992]) == 1
    assert plateau([1.0, 0.99995, 0.99992, 0.99991, 0.99991]) == pytest.approx(0.1)  # below 0.01 %
    assert run.lr_factor({"val_loss": [1.0, 2.0, 3.0, 4.0]}, "plateau", patience=2) == pytest.approx(0.1)
    assert run.lr_factor({"val_loss": [1.0, 2.0, 3.0, 4.0, 5.0]}, "cosine") == 1


def test_the_rate_is_halved_after_each_rise_of_the_training_loss(digits):
    losses = [2.0, 1.0, 1.5, 1.5, 1.6, 0.5]
    factors = [run.lr_factor({"train_loss": losses[:n]}, "halve") for n in range(7)]
    assert factors == [1, 1, 1, 0.5, 0.5, 0.25, 0.25]
    options = {"schedule": "halve", "warmup": 0.0, "learning_rate": 3.0, "optimizer": "sgd", "epochs": 12}
    _, history = mlp.train(digits, mlp.settings(**options, flip=False))
    rises = np.cumsum(np.diff(history["train_loss"]) > 0)
    assert rises[-1] > 0
    assert history["learning_rate"] == pytest.approx(3.0 * 0.5 ** np.array([0, 0, *rises[:-1]]))


def make_trainer(digits, dtype=np.float64, **options):
    """A Trainer for 8 features and 10 classes with nothing but what the options say, and its data x, y."""
    plain = {"hidden": (6,), "norm": "none", "normalize": "none", "flip": False}
    plain |= dict.fromkeys(("dropout", "weight_decay", "label_smoothing", "ema_decay"), 0.0)
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((200, 8)).astype(dtype), rng.integers(0, 10, 200)
    images = dataclasses.replace(digits, train=dataclasses.replace(digits.train, X=x, y=y))
    return mlp.Trainer(images, mlp.settings(**plain | options)), x, y


def compare_with_torch(trainer, x, y, make_optimizer, penalty, tolerance):
    """Twenty steps of both; penalty(weights) is added to the loss of PyTorch. Returns the unclipped norms."""
    tensors = {name: torch.tensor(view, requires_grad=True) for name, view in trainer.model.views.items()}
    weights, biases = ([tensors[f"{number}.{name}"] for number in (0, 1)] for name in "Wb")
    reference, s, norms = make_optimizer(weights, biases), trainer.s, []
    for step, batch in enumerate(np.split(np.arange(200), 20)):
        lr = s.learning_rate * (1 + step % 3)
        loss, num_correct = trainer.train_step(x[batch], y[batch], lr)
        hidden = torch.relu(torch.tensor(x[batch]) @ weights[0] + biases[0])
        logits, labels = hidden @ weights[1] + biases[1], torch.tensor(y[batch])
        cross_entropy = F.cross_entropy(logits, labels, label_smoothing=s.label_smoothing)
        assert loss == pytest.approx(cross_entropy.item(), rel=tolerance)  # without the penalties
        assert num_correct == (logits.argmax(1) == labels).sum()
        reference.zero_grad()
        (cross_entropy + penalty(weights)).backward()
        limit = s.max_grad_norm or math.inf
        norms.append(torch.nn.utils.clip_grad_norm_(tensors.values(), limit).item())
        for group in reference.param_groups:
            group["lr"] = lr
        reference.step()
    for name, view in trainer.model.views.items():
        assert relative(view, tensors[name].detach().numpy()) < tolerance, name
    return norms


def test_weight_decay_is_that_of_adamw_on_the_weights_only(digits):
    def adamw(weights, biases):
        no_decay = {"params": biases, "weight_decay": 0.0}
        return torch.optim.AdamW([{"params": weights, "weight_decay": 0.3}, no_decay])

    trainer, x, y = make_trainer(digits, weight_decay=0.3, learning_rate=0.01)
    compare_with_torch(trainer, x, y, adamw, lambda weights: 0, 1e-9)


PENALTIES = [{"l1": 0.01}, {"l2": 0.03}, {"l1": 0.01, "l2": 0.03, "max_grad_norm": 1.2}]


@pytest.mark.parametrize("options", PENALTIES)
def test_penalties_and_clipping(options, digits):
    """The penalties are of the weights only, and are clipped with the rest of the gradient."""
    l1, l2, limit = (options.get(name, 0) for name in ("l1", "l2", "max_grad_norm"))
    trainer, x, y = make_trainer(digits, optimizer="sgd", label_smoothing=0.1, learning_rate=0.2, **options)

    def penalty(weights):
        return l1 * sum(W.abs().sum() for W in weights) + l2 / 2 * sum((W**2).sum() for W in weights)

    tolerance = 1e-5 if limit else 1e-9  # torch divides by the norm + 1e-6
    norms = compare_with_torch(trainer, x, y, lambda w, b: torch.optim.SGD([*w, *b]), penalty, tolerance)
    assert not limit or min(norms) < limit < max(norms)


@pytest.mark.parametrize(("name", "kind"), [("nesterov", "SGD"), ("adam", "Adam"), ("adamw", "AdamW")])
def test_weight_decay_of_the_cnn_is_on_all_tensors(name, kind):
    s = cnn.settings(channels=(2,), pool_after=(1,), optimizer=name, weight_decay=0.01)
    optimizer = cnn.make_optimizer(cnn.CNN(s).parameters(), s)
    (group,) = optimizer.param_groups
    assert len(group["params"]) == 5  # convolution, gamma, beta, classifier and its bias
    assert (group["weight_decay"], type(optimizer).__name__) == (0.01, kind)


def test_the_moving_average_by_a_slow_loop(digits):
    """Of parameters and buffers; `swap` exchanges them with their average, twice: back."""
    trainer, x, y = make_trainer(digits, norm="batch", ema_decay=0.8)
    values = trainer.model.values
    mean = values.copy()
    for t in range(1, 41):
        trainer.train_step(x[:32], y[:32], 0.01)
        decay = min(0.8, (1 + t) / (10 + t))
        mean = decay * mean + (1 - decay) * values
    assert trainer.ema == pytest.approx(mean, rel=1e-9)
    latest = values.copy()
    trainer.swap()
    assert values == pytest.approx(mean, rel=1e-9)
    trainer.swap()
    assert np.array_equal(values, latest)
    assert np.shares_memory(trainer.model.views["0.W"], values)


KINDS = [{"norm": norm} for norm in mlp.NORMS] + [{"activation": name} for name in mlp.ACTIVATIONS]
KINDS += [{"loss": name, "label_smoothing": 0.1} for name in mlp.LOSSES]
KINDS += [{"optimizer": name} for name in mlp.OPTIMIZERS] + [{"dropout": 0.1, "input_dropout": 0.1}]


@pytest.mark.parametrize("options", KINDS)
def test_steps_stay_in_float32(options, digits):
    others = {"l1": 1e-4, "l2": 1e-4, "weight_decay": 0.1, "max_grad_norm": 0.1, "ema_decay": 0.9}
    trainer, x, y = make_trainer(digits, np.float32, **others | options)
    logits = trainer.model.forward(x, training=True)
    dx = trainer.model.backward(trainer.loss(logits, y)[1], input_gradient=True)
    trainer.train_step(x, y, 0.01)
    arrays = [*trainer.state_dict()[0].values(), trainer.model.grads, logits, dx, trainer.model.forward(x)]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}
