"""The CNN's augmentation and Trainer: steps by hand, new random numbers in every epoch, resuming."""

import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import cnn_feature_extraction as cnn
import data
from numpy_nn.optimizers import lr_at
from support import files, runs, settings, training
from torch_cnn import backbone, devices
from torch_cnn.features import classifier_logits, extract_features


def small(seed=0, **options):
    return backbone.CNN((4, 6), (1, 2), generator=torch.Generator().manual_seed(seed), **options)


def tiny(**options):
    return settings.load(cnn, data, runs, channels=(4,), pool_after=(1,), device="cpu", precision="float32", **options)


def tiny_model(**options):
    return backbone.CNN((4,), (1,), generator=torch.Generator().manual_seed(0), **options)


def tensors(split, n=None):
    return torch.from_numpy(split.X[:n])[:, None], torch.from_numpy(split.y[:n])


# ---- augmentation


def test_augmentation_draws_every_flip_and_shift_and_nothing_else():
    image = torch.rand(1, 1, 28, 28) + 0.1
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
    corners = [(row, column) for row in range(5) for column in range(5)]
    possible = [both[..., r : r + 28, c : c + 28] for both in (padded, padded.flip(3)) for r, c in corners]
    augmented = cnn.augment(image.repeat(600, 1, 1, 1), True, 2, torch.Generator().manual_seed(0))
    matches = torch.stack([(augmented == candidate).all(dim=3).all(dim=2)[:, 0] for candidate in possible], dim=1)
    assert (matches.sum(dim=1) == 1).all()
    assert matches.any(dim=0).all()
    assert matches[:, :25].any(dim=1).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(cnn.augment(image, False, 0, None), image)


def test_erased_squares():
    X = torch.zeros(400, 1, 28, 28)
    erased = cnn.augment(X, False, 0, torch.Generator().manual_seed(0), erase=6)[:, 0] > 0
    sizes = erased.sum(dim=(1, 2))
    assert set(sizes.tolist()) <= {0, 35, 36}  # a noise of exactly 0 is possible
    assert 150 < (sizes > 0).sum() < 250
    for image in erased[sizes > 0][:20]:
        rows, columns = image.any(dim=1).nonzero(), image.any(dim=0).nonzero()
        assert len(rows) == len(columns) == 6 == rows[-1] - rows[0] + 1


def augmented_batches(monkeypatch, **options):
    """The batches of three epochs of a training on 64 copies of one image, as bytes."""
    batches, augment = [], cnn.augment
    with monkeypatch.context() as patch:
        patch.setattr(cnn, "augment", lambda *arguments: batches.append(augment(*arguments)) or batches[-1])
        X, y = torch.linspace(0.1, 1, 784).reshape(1, 1, 28, 28).repeat(64, 1, 1, 1), torch.arange(64) % 10
        cnn.Trainer(tiny_model(), tiny(epochs=3, batch_size=32, shift=2, **options), 64).fit(X, y, X, y)
    assert len(batches) == 6
    return [batch.numpy().tobytes() for batch in batches]


def test_no_batch_repeats_the_random_numbers_of_another(monkeypatch):
    """All images are the same, so that batches differ by what is drawn alone, in whatever order they are visited."""
    batches = augmented_batches(monkeypatch)
    assert len(set(batches)) == 6
    assert augmented_batches(monkeypatch) == batches  # the same seed
    assert not set(augmented_batches(monkeypatch, seed=1)) & set(batches)
    monkeypatch.setattr(devices, "init_distributed", lambda: (1, 1))  # another process of torchrun ...
    monkeypatch.setattr(devices.Processes, "shard", lambda self, batch: (batch, 1.0))  # ... with batches as large
    assert not set(augmented_batches(monkeypatch)) & set(batches)


def test_no_epoch_repeats_the_dropout_masks_of_another():
    model, masks = tiny_model(activation="sigmoid", dropout=0.5), []  # a sigmoid is never 0
    dropout = next(module for module in model.backbone if isinstance(module, torch.nn.Dropout))
    dropout.register_forward_hook(lambda module, x, y: masks.append((y == 0).numpy().tobytes()) if module.training else None)
    X, y = torch.rand(64, 1, 28, 28), torch.arange(64) % 10
    cnn.Trainer(model, tiny(epochs=3, batch_size=32), 64).fit(X, y, X, y)
    assert len(masks) == len(set(masks)) == 6


# ---- training


def test_training_steps_by_hand(digits):
    """Three steps: Nesterov momentum, weight decay, label smoothing, the linear schedule and the moving average."""
    s = tiny(epochs=1, batch_size=500, learning_rate=0.1, flip=False, shift=0, ema_decay=0.9, norm="none")
    X, y = torch.from_numpy(digits.train.X[:1500])[:, None], torch.from_numpy(digits.train.y[:1500])
    model = tiny_model(norm="none")
    params = [p.detach().clone().requires_grad_() for p in model.parameters()]
    mean, velocity = [p.detach().clone() for p in params], [torch.zeros_like(p) for p in params]
    order = torch.randperm(len(y), generator=devices.generator("cpu", s.seed, 0))
    steps = len(order.split(500))
    for step, batch in enumerate(order.split(500)):
        maps = torch.nn.functional.conv2d(X[batch], params[0], params[1], padding=1)
        features = torch.relu(torch.nn.functional.max_pool2d(maps, 2)).flatten(1)
        targets = torch.nn.functional.one_hot(y[batch], 10) * 0.9 + 0.01
        logits = features @ params[2].T + params[3]
        loss = -(targets * torch.log_softmax(logits, 1)).sum(1).mean()
        rate = 0.1 * float(np.interp(step / steps, [0, 0.2, 1], [0.05, 1, 0]))
        for i, gradient in enumerate(torch.autograd.grad(loss, params)):
            gradient = gradient + 0.0005 * params[i].detach()
            velocity[i] = 0.9 * velocity[i] + gradient
            params[i].data -= rate * (gradient + 0.9 * velocity[i])
            decay = 0 if step == 0 else min(0.9, (1 + step) / (10 + step))  # the first average is the first weights
            mean[i] = decay * mean[i] + (1 - decay) * params[i].data
    trainer = cnn.Trainer(model, s, len(y))
    trainer.fit(X, y, X, y)
    for averaged, expected in zip(trainer.ema_model.module.parameters(), mean, strict=True):
        assert torch.allclose(averaged, expected, rtol=1e-4, atol=1e-6)


def test_each_step_takes_the_scheduled_learning_rate(digits):
    X, y = tensors(digits.train, 100)
    s = tiny(epochs=3, batch_size=30, schedule="cosine", warmup=0.3, learning_rate=0.05)
    trainer, rates = cnn.Trainer(tiny_model(), s, 100), []
    trainer.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    trainer.fit(X, y, X, y)
    assert rates == [lr_at(step / 12, 0.05, "cosine", 0.3, 0.05) for step in range(12)]
    assert trainer.history["learning_rate"] == rates[3::4]  # of each epoch's last step


def test_evaluation_is_that_of_the_moving_average_in_eval_mode(digits):
    X, y = tensors(digits.train, 200)
    trainer = cnn.Trainer(tiny_model(dropout=0.5), tiny(epochs=2, batch_size=50), 200)
    trainer.fit(X, y, X[:60], y[:60])
    model = trainer.ema_model.module
    assert not torch.equal(model.backbone[0].weight, trainer.model.backbone[0].weight)
    for prefix, n in (("train_eval", 200), ("val", 60)):
        logits = classifier_logits(model, extract_features(model, X[:n]))
        loss = torch.nn.functional.cross_entropy(logits, y[:n]).item()  # without label smoothing
        assert trainer.history[f"{prefix}_loss"][-1] == pytest.approx(loss, rel=1e-6)
        assert trainer.history[f"{prefix}_accuracy"][-1] == training.accuracy(logits.numpy(), y[:n].numpy())


@pytest.mark.parametrize(("norm", "n", "sizes"), [
    ("batch", 65, [32, 32]), ("none", 65, [32, 32, 1]), ("batch", 66, [32, 32, 2]), ("batch", 1, [1]),
])  # fmt: skip
def test_a_last_batch_too_small_for_batch_norm_is_left_out(norm, n, sizes):
    trainer = cnn.Trainer(tiny_model(), tiny(batch_size=32, norm=norm), n)
    batches = trainer.batches(n, 0, "cpu")
    assert [len(batch) for batch in batches] == sizes
    visited = torch.cat(batches).tolist()
    assert len(set(visited)) == len(visited)
    assert torch.cat(trainer.batches(n, 1, "cpu")).tolist() != visited or n == 1


@pytest.mark.parametrize(("precision", "channels"), [("float32", (8, 16)), ("bfloat16", (4, 8))])  # often emulated: slow
def test_training_learns_and_the_same_seed_gives_the_same_network(digits, precision, channels, tmp_path):
    s = settings.load(cnn, data, runs, epochs=3, batch_size=64, channels=channels, pool_after=(1, 2), learning_rate=0.1,
                      device="cpu", precision=precision, dataset="digits", output_dir=str(tmp_path / "run"))  # fmt: skip
    features = []
    for _ in range(2):
        with runs.Run("test", s) as run:
            model, history = cnn.train(digits, s, run)
        assert history["val_accuracy"][-1] > 0.85
        assert history["train_loss"][-1] < history["train_loss"][0]
        assert model.compute == {"device": "cpu", "precision": precision}
        assert model.mean.item() == pytest.approx(data.mean_std(digits.train.X)[0])  # of the training split alone
        logits = classifier_logits(model, extract_features(model, tensors(digits.val)[0])).numpy()
        assert training.accuracy(logits, digits.val.y) == pytest.approx(history["val_accuracy"][-1], abs=0.01)
        features.append(extract_features(model, tensors(digits.test, 50)[0]))
    assert torch.equal(*features)


@pytest.mark.parametrize("options", [
    {"optimizer": "adamw", "learning_rate": 0.01, "dropout": 0.2, "fc": (6,)},
    {"schedule": "cosine", "ema_decay": 0.9, "erase": 4, "activation": "gelu"},
    {"optimizer": "adam", "learning_rate": 0.01, "norm": "none"},
])  # fmt: skip
def test_resumed_after_any_epoch_it_ends_the_same(options, digits, tmp_path):
    s = settings.load(cnn, **{"channels": (3, 4), "pool_after": (1, 2), "batch_size": 100, "epochs": 3} | options)
    X, y, X_val, y_val = *tensors(digits.train, 300), *tensors(digits.val)

    def fresh():
        model = backbone.build(s, generator=torch.Generator().manual_seed(0))
        return cnn.Trainer(model.to(memory_format=torch.channels_last), s, 300)

    def save_checkpoint():
        files.save_weights(tmp_path / f"{len(complete.history['epoch'])}.safetensors", *complete.state_dict())

    complete = fresh()
    complete.fit(X, y, X_val, y_val, save_checkpoint=save_checkpoint)
    for epoch in (1, 2, 3):
        resumed = fresh()
        resumed.load_state_dict(*files.load_weights(tmp_path / f"{epoch}.safetensors"))
        resumed.fit(X, y, X_val, y_val)
        states = (trainer.ema_model.state_dict() for trainer in (complete, resumed))
        for (name, value), other in zip(next(states).items(), next(states).values(), strict=True):
            assert torch.equal(value, other), (epoch, name)
        assert resumed.history["train_loss"] == complete.history["train_loss"]


def test_a_state_that_does_not_fit_is_refused():
    trainer = cnn.Trainer(tiny_model(), tiny(), 64)
    state, metadata = trainer.state_dict()
    one_epoch = {column: [1 if column == "epoch" else 0.5] for column in runs.COLUMNS}
    for changed, message in (({"world_size": 2}, "2 processes, not 1"),
                             ({"history": one_epoch}, "optimizer's state is missing")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            trainer.load_state_dict(state, metadata | changed)
    with pytest.raises(RuntimeError, match="classifier"):
        trainer.load_state_dict(state | {"model.classifier.bias": np.zeros(9, np.float32)}, metadata)


@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:Guards may run slower")  # with Python 3.13.0 alone
def test_compiled_it_takes_the_same_steps(digits):
    X, y = tensors(digits.train, 128)
    models = []
    for compiled in (False, True):
        model = small()
        trainer = cnn.Trainer(model, tiny(epochs=1, batch_size=64, compile=compiled, ema_decay=0.0), 128)
        assert hasattr(trainer.network, "_orig_mod") == compiled  # as torch.compile's modules have
        trainer.fit(X, y, X, y)
        models.append(model)
    for parameter, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(parameter, other, rtol=1e-3, atol=1e-5)


def test_a_gpu_without_enough_memory_is_one_line(digits, monkeypatch):
    def full(*arguments):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cnn.Trainer, "fit", full)
    run = SimpleNamespace(save_checkpoint=lambda *ignored: None)
    for batch_size, remedy in ((64, "try --batch-size 32"), (1, "--batch-size 1: try --device cpu")):
        with pytest.raises(files.FileError, match=remedy):
            cnn.train(digits, tiny(batch_size=batch_size), run)


# ---- settings


def test_each_process_needs_images_of_every_batch(monkeypatch):
    monkeypatch.setattr(cnn, "init_distributed", lambda: (0, 3))
    with pytest.raises(settings.SettingError, match="--batch-size 5: 3 processes need at least 6"):
        cnn.check_settings(settings.load(cnn, batch_size=5))
    cnn.check_settings(settings.load(cnn, batch_size=6))
    for option, message in (({"seeds": 2}, "--seeds 2: not with torchrun"), ({"compile": True}, "--compile: not with")):
        with pytest.raises(settings.SettingError, match=message):
            cnn.check_settings(settings.load(cnn, **option))


def test_kernel_sizes_are_one_or_one_for_each():
    with pytest.raises(settings.SettingError, match="--kernel-sizes: 2 for 5 convolutions; give one for each"):
        cnn.check_settings(settings.load(cnn, kernel_sizes=(3, 5)))


def test_quick_settings_keep_the_learning_rate_per_image():
    s = cnn.quick_settings(settings.load(cnn, epochs=13, batch_size=256, learning_rate=0.2))
    assert (s.epochs, s.batch_size, s.learning_rate) == (4, 64, 0.05)
    s = cnn.quick_settings(settings.load(cnn, epochs=2, batch_size=16, learning_rate=0.2))
    assert (s.epochs, s.batch_size) == (2, 16)
    assert math.isclose(s.learning_rate, 0.2)
