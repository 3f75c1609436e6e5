"""The CNN: shapes, augmentation, what a features file knows, and the script as a user runs it."""

import csv
import itertools
import json
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import command, environment, one_line
from test_mlp_from_scratch import FILES, KEYS

from torch_cnn import backbone
import cnn_feature_extraction as cnn
import data
import hybrid_train
from torch_cnn import figures
import mlp_from_scratch as mlp
from support import runs
from support import settings

R0 = (32, 64, 128, 256, 512)


def small(seed=0, **options):
    return backbone.CNN((4, 6), (1, 2), generator=torch.Generator().manual_seed(seed), **options)


def test_parameter_counts():
    # by hand: 3 x 3 x n_in x n_out weights and n_out biases each, then 512 x 3 x 3 features to 10 classes
    convolutions = 9 * (1 * 32 + 32 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + sum(R0)
    assert backbone.CNN(R0, (1, 2, 5), batch_norm=False).num_parameters == convolutions + 4608 * 10 + 10 == 1_614_090
    assert backbone.CNN(R0, (1, 2, 5)).num_parameters == 1_614_090 + sum(R0)  # two numbers instead of a bias


def five(*channels, **options):
    """(parameters, multiply-adds) of the network with these settings, by the table of its stages."""
    s = settings.load(cnn, channels=channels, **options)
    model = backbone.build(s)
    rows = backbone.layer_summary(model)
    assert sum(row[2] for row in rows) == model.num_parameters
    text = backbone.summary(model).splitlines()
    assert len(text) == 1 + len(rows) + 1
    assert text[-1].split() == ["sum", f"{model.num_parameters:,}", f"{sum(row[3] for row in rows):,}"]
    assert model.eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    return model.num_parameters, sum(row[3] for row in rows)


def test_the_networks_of_the_reference_projects():
    """Their parameters and multiply-adds, by hand: 9 or k^2 for a kernel, maps of 28, 14, 7, 3, 1 pixels after each pool."""
    # R0: 32-64-128-256-512, pools after 1, 2, 5, no batch norm
    weights = [9 * 32, 9 * 32 * 64, 9 * 64 * 128, 9 * 128 * 256, 9 * 256 * 512]
    work = weights[0] * 784 + weights[1] * 196 + sum(weights[2:]) * 49 + 4608 * 10
    assert five(*R0, pool_after=(1, 2, 5), batch_norm=False) == (sum(weights) + sum(R0) + 4608 * 10 + 10, work)
    # R1 as a variant: the same widths, batch norm, pools after 1 to 4, average pooling, 5 x 5 kernels first
    k = [25 * 32, 25 * 32 * 64, *weights[2:]]
    work = k[0] * 784 + k[1] * 196 + k[2] * 49 + k[3] * 9 + k[4] * 1 + 512 * 10
    expected = sum(k) + 2 * sum(R0) + 512 * 10 + 10, work
    shape = {"kernel_sizes": (5, 5, 3, 3, 3), "pool_after": (1, 2, 3, 4), "global_pool": "average", "pool": "average"}
    assert five(*R0, **shape) == expected
    # R2: five convolutions with dropout, whose last fully connected layer (128) gives the features
    size = sum(weights) + sum(R0) + 4608 * 128 + 128 + 128 * 10 + 10
    assert five(*R0, pool_after=(1, 2, 5), batch_norm=False, dropout=0.2, fc=(128,))[0] == size
    # R3: two convolutions, one fully connected layer, dropout
    size = 9 * 32 + 32 + 9 * 32 * 64 + 64 + 64 * 49 * 128 + 128 + 1290
    assert five(32, 64, pool_after=(1, 2), batch_norm=False, fc=(128,), fc_dropout=0.4)[0] == size
    # R4: v1 two convolutions 64-128 with batch norm; v2 two fully connected layers of 1024 with layer norm; v3 dropout 0.1
    v1 = 9 * 64 + 9 * 64 * 128 + 2 * (64 + 128)
    assert five(64, 128, pool_after=(1, 2))[0] == v1 + 128 * 49 * 10 + 10
    v2 = v1 + 128 * 49 * 1024 + 1024 + 1024 * 1024 + 1024 + 4 * 1024 + 1024 * 10 + 10
    assert five(64, 128, pool_after=(1, 2), fc=(1024, 1024), fc_norm=True)[0] == v2
    options = {"fc": (1024, 1024), "fc_norm": True, "dropout": 0.1, "fc_dropout": 0.1}
    assert five(64, 128, pool_after=(1, 2), **options)[0] == v2


def test_the_options_make_the_layers_they_name():
    options = {"activation": "gelu", "pool": "average", "kernel_sizes": (4, 5), "dropout": 0.3, "global_pool": "average",
               "fc": (7,), "fc_norm": True, "fc_dropout": 0.2}  # fmt: skip
    model = backbone.build(settings.load(cnn, channels=(3, 5), pool_after=(2,), **options))
    names = [type(module).__name__ for module in model.backbone]
    assert names == ["Conv2d", "BatchNorm2d", "GELU", "Dropout", "Conv2d", "AvgPool2d", "BatchNorm2d", "GELU", "Dropout",
                     "AdaptiveAvgPool2d", "Flatten", "Linear", "LayerNorm", "GELU", "Dropout"]  # fmt: skip
    assert [module.p for module in model.backbone if isinstance(module, torch.nn.Dropout)] == [0.3, 0.3, 0.2]
    assert model.features(torch.zeros(2, 1, 28, 28)).shape == (2, 7)
    assert model.name == "CNN 3-5-7"
    with pytest.raises(settings.SettingError, match="give one for each"):
        cnn.check_settings(settings.load(cnn, kernel_sizes=(3, 5)))


@pytest.mark.parametrize(("init", "std"), [
    ("he", (2 / 576) ** 0.5), ("xavier", (2 / (576 + 1152)) ** 0.5), ("random", 0.02),
])  # fmt: skip
def test_initialisation(init, std):
    s = settings.load(cnn, channels=(64, 128), pool_after=(), init=init, init_scale=0.02)
    weight = backbone.build(s, generator=torch.Generator().manual_seed(0)).backbone[3].weight
    assert weight.std().item() == pytest.approx(std, rel=0.02)


def test_learning_rates_of_each_schedule():
    quarter = (1 + 0.5**0.5) / 2  # the cosine of 45 degrees, from 0 to 1
    for schedule, fall in (("linear", (0.75, 0.5, 0)), ("cosine", (quarter, 0.5, 0)), ("constant", (1, 1, 1))):
        s = settings.load(cnn, schedule=schedule, warmup=0.2, learning_rate=0.4)
        found = [cnn.rate_at(done, s) / 0.4 for done in (0, 0.1, 0.2, 0.4, 0.6, 1)]
        assert found == pytest.approx([0.05, 0.525, 1, *fall])


def test_erased_squares():
    X = torch.zeros(400, 1, 28, 28)
    found = cnn.augment(X, False, 0, torch.Generator().manual_seed(0), erase=6)[:, 0] > 0
    sizes = found.sum(dim=(1, 2))
    assert set(sizes.tolist()) <= {0, 35, 36}  # a noise of exactly 0 is possible
    assert 150 < (sizes > 0).sum() < 250
    for image in found[sizes > 0][:20]:
        rows, columns = image.any(dim=1).nonzero(), image.any(dim=0).nonzero()
        assert len(rows) == len(columns) == 6 == rows[-1] - rows[0] + 1


def test_hires_cam_by_hand():
    model = backbone.CNN((2,), (1,), batch_norm=False, classes=3, generator=torch.Generator().manual_seed(0))
    X, labels = torch.rand(4, 1, 28, 28), torch.tensor([0, 2, 1, 2])
    with torch.no_grad():
        maps = model.features(X).reshape(4, 2, 14, 14)
        weights = model.classifier.weight[labels].reshape(4, 2, 14, 14)  # a linear classifier's gradient
    heat = (weights * maps).sum(dim=1).clamp(min=0)
    expected = torch.nn.functional.interpolate(heat[:, None], scale_factor=2, mode="bilinear")[:, 0]
    found = figures.hires_cam(model, X, labels)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert found.max() > 0


@pytest.mark.parametrize("features", [np.full((200, 8), 0.5, np.float32), np.eye(200, 1, dtype=np.float32)])
def test_features_without_two_dimensions_have_no_picture(features):
    """As of a network whose neurons have died, which t-SNE would crash on."""
    assert figures.embed_2d(features) == {}


def test_features_that_fit_no_longer_are_not_overwritten(digits, tmp_path, capsys):
    path, own = tmp_path / "features.npz", tmp_path / "own.npz"
    cnn.cached_features(path, small(seed=1), digits)
    before = path.read_bytes()
    cnn.cached_features(path, small(seed=2), digits, own)
    assert path.read_bytes() == before
    assert own.exists()
    cnn.cached_features(path, small(seed=1), digits, own)
    assert f"features are taken from {path}" in capsys.readouterr().out


def test_the_last_stages_maps_are_the_features():
    model = small().eval()
    X = torch.rand(3, 1, 28, 28)
    maps = figures.activation_maps(model, X)
    assert [values.shape for values in maps.values()] == [(3, 4, 14, 14), (3, 6, 7, 7)]
    assert np.allclose(maps["convolution 2"].reshape(3, -1), cnn.extract_features(model, X).numpy(), atol=1e-6)


def test_two_processes_take_the_steps_of_one(tmp_path):
    """Over gloo on this machine: the same batches, in halves, give the same weights; and only the first process writes."""
    flags = ("--dataset", "digits", "--epochs", 2, "--batch-size", 50, "--channels", 4, 6, "--pool-after", 1, 2,
             "--norm none", "--no-flip", "--shift", 0, "--learning-rate", 0.02, "--precision", "float32")  # fmt: skip
    script, *_ = command("cnn_feature_extraction")[1:]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    for name, start in (("one", [sys.executable, script]), ("two", torchrun)):
        done = subprocess.run([*start, *map(str, flags), "--output-dir", name], cwd=tmp_path, env=environment(), text=True,
                              capture_output=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("figures, weights and metrics.json are in") == 1
    one, two = (files.load_weights(tmp_path / name / "backbone.safetensors")[0] for name in ("one", "two"))
    for name, value in one.items():
        assert np.allclose(value, two[name], rtol=1e-3, atol=1e-5), name
    tables = [list(csv.DictReader((tmp_path / name / "history.csv").read_text().splitlines())) for name in ("one", "two")]
    for first, second in zip(*tables, strict=True):
        for column in ("train_loss", "train_accuracy", "val_loss"):
            assert float(first[column]) == pytest.approx(float(second[column]), rel=1e-3)


def test_each_process_needs_images_of_every_batch(monkeypatch):
    monkeypatch.setattr(cnn, "init_distributed", lambda: (0, 3))
    with pytest.raises(settings.SettingError, match="--batch-size 5: with so many processes at least 6"):
        cnn.check_settings(settings.load(cnn, batch_size=5))
    cnn.check_settings(settings.load(cnn, batch_size=6))


def test_a_gpu_without_enough_memory_is_one_line(digits, monkeypatch):
    def full(*arguments):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cnn.Trainer, "run", full)
    s = settings.load(cnn, channels=(2,), pool_after=(1,), batch_size=64)
    with pytest.raises(files.RunError, match="try --batch-size 32"):
        cnn.train(digits, s, SimpleNamespace(keep=lambda *whatever: None))
    s.batch_size = 1
    with pytest.raises(files.RunError, match="--batch-size 1: try --device cpu"):
        cnn.train(digits, s, SimpleNamespace(keep=lambda *whatever: None))


@pytest.mark.parametrize(("pool_after", "expected"), [
    ((1, 2, 5), [14, 7, 7, 7, 3]), ((), [28] * 5), ((1, 2, 3, 4), [14, 7, 3, 1, 1]),
])  # fmt: skip
def test_sides(pool_after, expected):
    assert backbone.feature_map_sizes(R0, pool_after) == expected
    features = cnn.extract_features(backbone.CNN((2,) * 5, pool_after), torch.zeros(1, 1, 28, 28))
    assert features.shape == (1, 2 * expected[-1] ** 2)


@pytest.mark.parametrize(("channels", "pool_after", "said"), [
    (R0, (1, 2, 3, 4, 5), "convolution 5 would be 0 x 0"), (R0, (6,), "the last convolution is number 5"),
    ((), (), "at least one"),
])  # fmt: skip
def test_an_impossible_stack(channels, pool_after, said):
    with pytest.raises(settings.SettingError, match=said):
        backbone.feature_map_sizes(channels, pool_after)


def test_the_features_are_those_of_convolution_max_pooling_norm_and_relu():
    model = small(mean=0.3, std=0.4).eval()
    X = torch.rand(3, 1, 28, 28)
    x = (X - 0.3) / 0.4
    for convolution, norm in ((model.backbone[0], model.backbone[2]), (model.backbone[4], model.backbone[6])):
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
        torch.nn.init.uniform_(norm.weight, 0.5, 2)
        x = torch.nn.functional.conv2d(x, convolution.weight, padding=1)
        side = x.shape[2] // 2
        x = x.reshape(3, -1, side, 2, side, 2).amax(dim=(3, 5))
        scale = norm.weight / torch.sqrt(norm.running_var + 1e-5)
        x = torch.relu((x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None])
    assert torch.allclose(cnn.extract_features(model, X), x.flatten(1), atol=1e-5)


def tiny(**options):
    return settings.load(cnn, data, runs, channels=(4,), pool_after=(1,), device="cpu", precision="float32", **options)


def test_training_steps_by_hand(digits, tmp_path):
    """Three steps of SGD with Nesterov momentum, weight decay, smoothing, the linear and the average, by hand."""
    s = tiny(epochs=1, batch_size=500, learning_rate=0.1, flip=False, shift=0, average=0.9, batch_norm=False)
    X, y = torch.from_numpy(digits.train.X[:1500])[:, None], torch.from_numpy(digits.train.y[:1500])
    model = backbone.CNN((4,), (1,), False, generator=torch.Generator().manual_seed(0))
    params = [p.detach().clone().requires_grad_() for p in model.parameters()]
    mean, velocity = [p.detach().clone() for p in params], [torch.zeros_like(p) for p in params]
    order = torch.randperm(len(y), generator=cnn.generator("cpu", s.seed, 0))
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
    training = cnn.Trainer(model, s)
    training.run(X, y, X, y, lambda row: None)
    for ours, expected in zip(training.averaged.module.parameters(), mean, strict=True):
        assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-6)


def test_augmentation_is_drawn_afresh_for_every_batch(digits, monkeypatch):
    calls = []
    original = cnn.augment
    monkeypatch.setattr(cnn, "augment", lambda *arguments: calls.append(original(*arguments)) or calls[-1])
    X, y = torch.from_numpy(digits.train.X[:64])[:, None], torch.from_numpy(digits.train.y[:64])
    model = backbone.CNN((4,), (1,), generator=torch.Generator().manual_seed(0))
    cnn.Trainer(model, tiny(epochs=2, batch_size=64)).run(X, y, X, y, lambda row: None)
    assert len(calls) == 2
    first, second = (set(map(bytes, map(np.ascontiguousarray, call.numpy()))) for call in calls)
    assert len(first & second) < 48  # of 64 images, each one of 18 variants


def test_augmentation_draws_every_flip_and_shift_and_nothing_else():
    image = torch.rand(1, 1, 28, 28) + 0.1
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
    corners = [(row, column) for row in range(5) for column in range(5)]
    possible = [both[..., r : r + 28, c : c + 28] for both in (padded, padded.flip(3)) for r, c in corners]
    found = cnn.augment(image.repeat(600, 1, 1, 1), True, 2, torch.Generator().manual_seed(0))
    matches = torch.stack([(found == candidate).all(dim=3).all(dim=2)[:, 0] for candidate in possible], dim=1)
    assert (matches.sum(dim=1) == 1).all()
    assert matches.any(dim=0).all()
    assert matches[:, :25].any(dim=1).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(cnn.augment(image, False, 0, None), image)


def test_features_are_in_eval_mode_and_change_nothing():
    model = small().train()
    X = torch.rand(7, 1, 28, 28)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    features = cnn.extract_features(model, X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for i in range(7):  # each image's features are its own, whatever the batch
        assert torch.allclose(cnn.extract_features(model, X[i : i + 1])[0], features[i], atol=1e-5)
    assert torch.allclose(cnn.classifier_logits(model, features), model(X), atol=1e-5)


def test_normalisation_is_part_of_the_model():
    X = torch.rand(2, 1, 28, 28)
    plain, x_hat = small(), small(mean=0.3, std=0.4)
    assert torch.allclose(cnn.extract_features(x_hat, X), cnn.extract_features(plain, (X - 0.3) / 0.4))


def test_features_file_is_in_step_and_never_stale(digits, tmp_path, capsys):
    path, model = tmp_path / "features.npz", small()
    features = cnn.cached_features(path, model, digits)
    for part in ("train", "val", "test"):
        split = getattr(digits, part)
        assert np.array_equal(features[f"y_{part}"], split.y)
        assert np.array_equal(features[f"index_{part}"], split.indices)
        some = RNG.permutation(len(split.y))[:5]
        expected = cnn.extract_features(model, torch.from_numpy(split.X[some])[:, None])
        assert np.allclose(features[f"X_{part}"][some], expected, atol=1e-5)
    capsys.readouterr()

    again = cnn.cached_features(path, model, digits)
    assert "features are taken from" in capsys.readouterr().out
    assert all(np.array_equal(again[name], features[name]) for name in features)

    with torch.no_grad():
        model.backbone[0].weight[0, 0, 0, 0] += 0.01
    changed = cnn.cached_features(path, model, digits)
    assert "was made from other weights: extracting" in capsys.readouterr().out
    assert not np.array_equal(changed["X_train"], features["X_train"])

    cnn.cached_features(path, model, data.load("digits", split_seed=1))
    assert "was made from other data and split: extracting" in capsys.readouterr().out

    with np.load(path) as file:
        content = dict(file)
    for change in ({"made_from": np.array("[]")}, {"X_val": None}):
        np.savez(path, **{name: value for name, value in (content | change).items() if value is not None})
        cnn.cached_features(path, model, data.load("digits", split_seed=1))
        assert "cannot be read" in capsys.readouterr().out

    path.write_bytes(path.read_bytes()[:10_000])
    cnn.cached_features(path, model, digits)
    assert "cannot be read" in capsys.readouterr().out
    assert path.stat().st_size > 10_000


RNG = np.random.default_rng(0)


def test_saved_and_restored_features_are_identical(digits, tmp_path):
    s = settings.load(cnn, data, runs, channels=(4, 6), pool_after=(1, 2), split_seed=3)
    model = small(mean=0.2, std=0.3)
    cnn.save(tmp_path / "b.safetensors", model, digits, s)
    again, metadata = cnn.restore(tmp_path / "b.safetensors")
    X = torch.rand(3, 1, 28, 28)
    assert torch.equal(cnn.extract_features(model, X), cnn.extract_features(again, X))
    assert (metadata["split_seed"], metadata["dataset"]) == (3, "digits")


def test_precision_and_device():
    model, cpu = small(), torch.device("cpu")
    assert cnn.pick_precision("bfloat16", model, cpu) is torch.bfloat16
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chosen = cnn.pick_precision("auto", model, cpu)
    capabilities = torch.cpu.get_capabilities()
    if not any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "avx10_1", "bf16")):
        assert chosen is torch.float32  # never emulated
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert cnn.pick_device("cpu") == cpu


def test_a_moments_disturbance_does_not_choose_the_precision(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    for slower, expected in ((3, torch.bfloat16), (1 / 3, torch.float32)):  # float32's steps take so many times bfloat16's
        steps = itertools.cycle([slower, 1, slower, 100, 50, 1])
        clock = itertools.accumulate(itertools.chain.from_iterable((0, step) for step in steps))  # before, after
        monkeypatch.setattr(cnn.time, "perf_counter", lambda clock=clock: next(clock))
        assert cnn.pick_precision("auto", small(), torch.device("cpu")) is expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(run_script):
    assert "--device cuda" in one_line(run_script("cnn_feature_extraction", "--device", "cuda"), 2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_learns_and_the_same_seed_gives_the_same_network(digits, precision, tmp_path):
    s = settings.load(cnn, data, runs, epochs=3, batch_size=64, channels=(8, 16), pool_after=(1, 2), learning_rate=0.1,
                      device="cpu", precision=precision, dataset="digits", output_dir=str(tmp_path / "run"))  # fmt: skip
    found = []
    for _ in range(2):
        with runs.Run("test", s) as run:
            model, history = cnn.train(digits, s, run)
        assert history["val_accuracy"][-1] > 0.85
        assert history["train_loss"][-1] < history["train_loss"][0]
        assert model.mean.item() == pytest.approx(data.mean_std(digits.train.X)[0])  # of the training split alone
        logits = cnn.classifier_logits(model, cnn.extract_features(model, torch.from_numpy(digits.val.X)[:, None]))
        assert cnn.score(logits, torch.from_numpy(digits.val.y))[1] == pytest.approx(history["val_accuracy"][-1], abs=0.01)
        found.append(cnn.extract_features(model, torch.from_numpy(digits.test.X[:50])[:, None]))
    assert torch.equal(*found)


def test_the_script(run_script, tmp_path):
    small_network = ("--channels", 8, 16, 16, "--pool-after", 1, 2, "--norm none", "--learning-rate", 0.05)
    done = run_script("cnn_feature_extraction", "--dataset", "digits", "--quick", *small_network, "--output-dir", "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip().splitlines()[-1] == "out"
    insights = {"filters.png", "feature_maps.png", "features.png", "saliency.png", "confusable.png", "label_errors.png"}
    files = FILES - {"weights.safetensors"} | {"backbone.safetensors", "checkpoint.safetensors", "features.npz"} | insights
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert set(metrics) >= KEYS
    assert metrics["dataset"] == "digits (subset)"
    assert metrics["features"] == 16 * 7 * 7
    assert metrics["test_accuracy"] > 0.5
    assert metrics["precision"] in ("float32", "bfloat16")
    *_, last = csv.DictReader((tmp_path / "out/history.csv").read_text().splitlines())
    assert float(last["val_accuracy"]) == pytest.approx(metrics["val_accuracy"], abs=0.01)
    with np.load(tmp_path / "out/features.npz", allow_pickle=False) as file:
        assert file["X_train"].shape == (metrics["train_size"], 16 * 7 * 7)


STOPPED = ("--dataset", "digits", "--epochs", 8, "--batch-size", 32, "--channels", 4, 6, "--pool-after", 1, 2, "--dropout",
           0.1, "--learning-rate", 0.05, "--precision", "float32")  # fmt: skip


def test_killed_and_resumed_it_ends_as_if_never_stopped(run_script, tmp_path):
    whole = run_script("cnn_feature_extraction", *STOPPED, "--output-dir", "whole")
    assert (whole.returncode, whole.stderr) == (0, "")
    killed = tmp_path / "killed"
    for rows in (0, 3):  # killed twice: before the first epoch was over, and later
        resume = ("--resume", "killed") if rows else (*STOPPED, "--output-dir", "killed")
        process = subprocess.Popen(command("cnn_feature_extraction", *resume), cwd=tmp_path, env=environment(),
                                   stdout=subprocess.DEVNULL)  # fmt: skip
        awaited = killed / "history.csv" if rows else killed / "settings.json"
        while process.poll() is None and not (awaited.exists() and len(awaited.read_text().splitlines()) > rows):
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -9
        assert not (killed / "metrics.json").exists()
    resumed = run_script("cnn_feature_extraction", "--resume", "killed")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert "taking up killed after epoch" in resumed.stdout
    for name in ("backbone.safetensors", "checkpoint.safetensors"):
        one, two = (files.load_weights(tmp_path / folder / name)[0] for folder in ("whole", "killed"))
        assert one.keys() == two.keys()
        for key in one:
            assert np.array_equal(one[key], two[key]), key
    tables = [list(csv.DictReader((tmp_path / folder / "history.csv").read_text().splitlines()))
              for folder in ("whole", "killed")]  # fmt: skip
    for row in itertools.chain(*tables):
        del row["seconds"]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("options", [
    {"optimizer": "adamw", "learning_rate": 0.01, "dropout": 0.2, "fc": (6,)},
    {"schedule": "cosine", "average": 0.9, "erase": 4, "activation": "gelu"},
    {"optimizer": "adam", "learning_rate": 0.01, "batch_norm": False},
])  # fmt: skip
def test_taken_up_after_any_epoch_it_ends_the_same(options, digits, tmp_path):
    s = settings.load(cnn, **{"channels": (3, 4), "pool_after": (1, 2), "batch_size": 100, "epochs": 3} | options)
    X, y, X_val, y_val = (torch.from_numpy(a[:300]) for of in (digits.train, digits.val) for a in (of.X[:, None], of.y))

    def fresh():
        model = backbone.build(s, generator=torch.Generator().manual_seed(0))
        return cnn.Trainer(model.to(memory_format=torch.channels_last), s)

    def keep():
        files.save_weights(tmp_path / f"{len(whole.history['epoch'])}.safetensors", whole.arrays(), whole.about())

    whole = fresh()
    whole.run(X, y, X_val, y_val, lambda row: None, keep)
    for epoch in (1, 2, 3):
        again = fresh()
        again.take_up(*files.load_weights(tmp_path / f"{epoch}.safetensors"))
        again.run(X, y, X_val, y_val, lambda row: None)
        for (name, one), two in zip(whole.averaged.state_dict().items(), again.averaged.state_dict().values(), strict=True):
            assert torch.equal(one, two), (epoch, name)
        assert again.history["train_loss"] == whole.history["train_loss"]


def test_a_checkpoint_of_another_network_is_refused_and_nothing_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(insights, "figures", lambda *whatever: {})
    s = settings.load(cnn, data, runs, dataset="digits", channels=(4,), pool_after=(1,), epochs=1, batch_size=200,
                      device="cpu", output_dir=str(tmp_path / "run"))  # fmt: skip
    cnn.run(SimpleNamespace(**vars(s)))
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    path = tmp_path / "run/checkpoint.safetensors"
    tensors, metadata = files.load_weights(path)
    for change, said in (
        (lambda: path.write_bytes(before[path][:-9]), "damaged"),
        (path.unlink, "cannot be taken up without it"),
        (lambda: files.save_weights(path, tensors, metadata | {"split": "other"}), "other data"),
        (lambda: files.save_weights(path, tensors, metadata | {"settings": {}}), "other settings: activation"),
        (lambda: files.save_weights(path, tensors | {"model.classifier.bias": np.zeros(9)}, metadata), "not as this project"),
    ):
        change()
        with pytest.raises(files.RunError, match=said):
            cnn.run(SimpleNamespace(**vars(s) | {"resume": str(tmp_path / "run")}))
        assert {p: p.read_bytes() for p in (tmp_path / "run").iterdir() if p != path} == {
            p: content for p, content in before.items() if p != path}  # fmt: skip


def test_divergence_stops_with_its_cause_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    rates = cnn.rate_at
    monkeypatch.setattr(cnn, "rate_at", lambda done, s: 1e9 if done > 0.5 else rates(done, s))
    s = settings.load(cnn, data, runs, dataset="digits", channels=(4,), pool_after=(1,), epochs=4, batch_norm=False,
                      learning_rate=0.01, device="cpu", output_dir=str(tmp_path / "run"))  # fmt: skip
    with pytest.raises(runs.Diverged, match="in epoch 3, at learning rate 1e\\+09: lower --learning-rate; the last"):
        cnn.run(s)
    _, metadata = files.load_weights(tmp_path / "run/checkpoint.safetensors")
    assert metadata["epoch"] == 2
    assert not (tmp_path / "run/metrics.json").exists()


def test_several_seeds_move_nothing_before_the_settings_are_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/settings.json").write_text("{}")
    for script, flags in ((cnn, "--pool-after 1 2 3 4 5"), (hybrid_train, "--backbone x"), (mlp, "--batch-size 1")):
        with pytest.raises(settings.SettingError):
            script.main([*flags.split(), "--seeds", "2", "--output-dir", "out"])
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert (tmp_path / "out/settings.json").read_text() == "{}"


def test_several_seeds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(insights, "figures", lambda *whatever: {})  # which take most of the time, and are tested elsewhere
    flags = (*STOPPED, "--epochs", 1, "--seed", 2, "--seeds", 2, "--output-dir", "out")
    cnn.main([str(flag) for flag in flags])
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    single = [json.loads((tmp_path / f"out/seed_{seed}/metrics.json").read_text()) for seed in (2, 3)]
    assert metrics["by_seed"]["test_loss"] == [one["test_loss"] for one in single]
    assert single[0]["test_loss"] != single[1]["test_loss"]


@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler")
def test_compiled_it_takes_the_same_steps(digits):
    X, y = torch.from_numpy(digits.train.X[:128])[:, None], torch.from_numpy(digits.train.y[:128])
    networks = []
    for compiled in (False, True):
        model = small()
        training = cnn.Trainer(model, tiny(epochs=1, batch_size=64, compile=compiled, average=0.0))
        assert hasattr(training.network, "_orig_mod") == compiled  # as torch.compile's modules have
        training.run(X, y, X, y, lambda row: None)
        networks.append(model)
    for one, two in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.allclose(one, two, rtol=1e-3, atol=1e-5)


def test_an_impossible_stack_ends_the_script_before_the_data(run_script, tmp_path):
    assert "0 x 0" in one_line(run_script("cnn_feature_extraction", "--pool-after", 1, 2, 3, 4, 5), 2)
    assert not list(tmp_path.iterdir())
