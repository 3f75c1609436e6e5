"""The CNN: its layers and sizes, augmentation, training, features, weights files and saliency."""

import copy
import dataclasses
import json
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

import cnn_feature_extraction as cnn
import data
import run

TINY = {"channels": (4, 6), "pool_after": (1, 2), "device": "cpu", "precision": "float32"}


def tiny(**options):
    return cnn.settings(**TINY | options)


def build(mean=0.0, std=1.0, **options):
    """A CNN with norms and running statistics that are not those of the start."""
    rng = torch.Generator().manual_seed(0)
    model = cnn.CNN(tiny(**options), 10, mean, std, rng)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                torch.nn.init.uniform_(tensor, 0.5, 2, generator=rng)
            for tensor in (module.bias, module.running_mean):
                torch.nn.init.uniform_(tensor, -0.5, 0.5, generator=rng)
    return model


def same_state(model, other):
    return all(torch.equal(value, other[name]) for name, value in model.state_dict().items())


def few(images, n):
    """The images with the first n of the training split."""
    train = data.Split(*(array[:n] for array in vars(images.train).values()))
    return dataclasses.replace(images, train=train)


LAST = "activation_norm_pool"


def num_parameters(**options):
    return sum(parameter.numel() for parameter in cnn.CNN(cnn.settings(**options)).parameters())


def test_parameter_counts():
    """By hand: kernel x kernel x n_in x n_out weights, a bias each or gamma and beta, then the classifier."""
    assert num_parameters() == 319_090
    two = {"channels": (64, 128), "padding": (1, 0), "pool_after": (1, 2), "block_order": LAST}
    assert num_parameters(**two) == 9 * 64 + 9 * 64 * 128 + 3 * (64 + 128) + 128 * 36 * 10 + 10 == 120_970
    assert num_parameters(**two, fc=(1024, 1024), fc_norm=True, dropout=0.1, fc_dropout=0.1) == 5_858_442
    five = {"channels": (32, 64, 128, 256, 512), "kernel_sizes": (5, 5, 3, 3, 3), "global_pool": "average"}
    weights = 25 * (32 + 32 * 64) + 9 * (64 * 128 + 128 * 256 + 256 * 512)
    assert num_parameters(**five, norm="none") == weights + 992 + 512 * 10 + 10
    assert num_parameters(**five) == weights + 2 * 992 + 512 * 10 + 10  # no bias before batch norm


SHAPES = [  # channels, kernel of each, padding of each, pool after, settings
    ((24, 48, 96, 96, 192), (3,) * 5, (1,) * 5, (1, 2, 4), {}),
    ((2, 3), (3, 3), (1, 0), (1,), {"padding": (1, 0), "activation": "tanh"}),
    ((2, 3), (5, 3), (0, 0), (), {"kernel_sizes": (5, 3), "padding": (0,), "norm": "none"}),
    ((2, 3, 4, 5), (3,) * 4, (1,) * 4, (1, 2, 3, 4), {"pool": "average", "activation": "leaky_relu"}),
    ((2,), (4,), (2,), (1,), {"kernel_sizes": (4,), "padding": (2,), "block_order": "norm_activation_pool"}),
    ((2, 3), (7, 1), (3, 0), (2,), {"kernel_sizes": (7, 1), "block_order": LAST, "dropout": 0.3}),
]


@pytest.mark.parametrize("image_shape", [(28, 28), (20, 31)])
@pytest.mark.parametrize(("channels", "kernels", "padding", "pool_after", "options"), SHAPES)
def test_shapes(channels, kernels, padding, pool_after, options, image_shape):
    sides = list(image_shape)
    for number, (kernel, pad) in enumerate(zip(kernels, padding, strict=True), 1):
        sides = [(side + 2 * pad - kernel + 1) // (2 if number in pool_after else 1) for side in sides]
    kinds = {"none": channels[-1] * sides[0] * sides[1], "average": channels[-1]}
    for fc, kind in (((), "none"), ((), "average"), ((9, 7), "none")):
        s = cnn.settings(channels=channels, pool_after=pool_after, fc=fc, global_pool=kind, **options)
        cnn.check_settings(s)
        model = cnn.CNN(s, 3, image_shape=image_shape)
        assert model.features(torch.rand(2, 1, *image_shape)).shape == (2, fc[-1] if fc else kinds[kind])
        assert model(torch.rand(2, 1, *image_shape)).shape == (2, 3)
        assert model.name == "CNN " + "-".join(map(str, channels + fc))


IMPOSSIBLE = [{"channels": (2,) * 5, "pool_after": (1, 2, 3, 4, 5)}, {"channels": (), "pool_after": ()}]
IMPOSSIBLE += [{"pool_after": (3,)}, {"padding": (0,), "kernel_sizes": (27,)}, {"padding": (1, 0, 0)}]
IMPOSSIBLE += [{"kernel_sizes": (3, 5, 3)}, {"kernel_sizes": (4,)}, {"batch_size": 1}]


@pytest.mark.parametrize("options", IMPOSSIBLE)
def test_impossible_networks(options):
    s = tiny(**options)
    with pytest.raises(run.Error):
        cnn.check_settings(s) or cnn.CNN(s)
    cnn.check_settings(tiny(kernel_sizes=(4,), padding=(1,), norm="none", batch_size=1))


@pytest.mark.parametrize("order", get_args(cnn.Order))
def test_the_order_of_the_layers(order):
    layers = build(pool="average", activation="gelu", block_order=order).backbone
    kinds = {"AvgPool2d": "pool", "BatchNorm2d": "norm", "GELU": "activation"}
    assert "_".join(kinds[type(layer).__name__] for layer in layers[1:4]) == order
    assert (layers[0].bias is None) == (order != LAST)


@pytest.mark.parametrize("options", [{}, {"fc": (7,)}, {"global_pool": "average"}])
def test_cut_after_a_convolution(options):
    shape, X = {"channels": (4, 8, 6), "pool_after": (1, 3)} | options, torch.rand(5, 1, 28, 28)
    for number, end, size in ((1, 4, 4 * 14 * 14), (2, 7, 8 * 14 * 14), (3, 11, 6 * 7 * 7), (0, None, None)):
        model = build(**shape).eval()
        with torch.no_grad():
            expected = model.backbone[:end](X).flatten(1)
            assert torch.equal(cnn.cut_after(model, number).features(X), expected)
        assert number == 0 or expected.shape == (5, size)


def test_rotation_is_that_of_scipy_and_translation_is_by_whole_pixels(monkeypatch):
    X = torch.rand(4, 1, 20, 28)
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.full(shape, 0.75))
    moved = cnn.augment(
        X, False, 0, 0, None, translate=0.2
    )  # by 0.5 x 0.2 x 20 rows and x 28 columns, rounded
    assert torch.equal(moved[:, :, :18, :25], X[:, :, 2:, 3:])
    assert not moved[:, :, 18:].any()
    turned = cnn.augment(X, False, 0, 0, None, 20.0)  # 20 (2 x 0.75 - 1) = 10 degrees
    for x, y in zip(X[:, 0].numpy(), turned[:, 0].numpy(), strict=True):
        expected = ndimage.rotate(x, 10, reshape=False, order=0)
        assert np.mean((y == expected)[3:-3, 3:-3]) > 0.99  # all but ties and edges


def test_dropout_after_some_convolutions():
    def kinds(**options):
        layers = build(channels=(4, 8, 6), pool_after=(), **options).backbone
        return [type(layer).__name__ for layer in layers if "Conv" in str(layer) or "Dropout" in str(layer)]

    assert kinds(dropout=0.2) == ["Conv2d", "Dropout"] * 3
    assert kinds(dropout=0.2, dropout_after=(2,)) == ["Conv2d", "Conv2d", "Dropout", "Conv2d"]
    assert kinds(dropout=0.2, dropout_after=(1, 3), dropout_maps=True)[1::3] == ["Dropout2d", "Dropout2d"]
    with pytest.raises(run.Error, match="--dropout-after"):
        cnn.check_settings(tiny(dropout_after=(9,)))


def test_initializations():
    """The layers of PyTorch, and standard deviations by the formulas."""
    options = {"channels": (16, 32), "norm": "none", "fc": (64,), "init_classifier": True}
    layers = [m for m in build(init="pytorch", **options).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer in layers:
        bound = layer.weight[0].numel() ** -0.5
        for tensor in (layer.weight, layer.bias):
            assert tensor.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert layer.bias.abs().max() > bound / 2
    stds = {"he": lambda n_in, n_out: (2 / n_in) ** 0.5, "he_fan_out": lambda n_in, n_out: (2 / n_out) ** 0.5}
    stds["he_uniform"] = stds["he"]
    for name, std in stds.items():
        model = build(init=name, **options)
        convolution, linear = model.backbone[3], model.classifier
        assert convolution.weight.std().item() == pytest.approx(std(16 * 9, 32 * 9), rel=0.06)
        assert linear.weight.std().item() == pytest.approx(std(64, 10), rel=0.12)
        assert not linear.bias.any()
        bound = convolution.weight.abs().max() / convolution.weight.std()
        assert (bound < 1.8) == (name == "he_uniform")  # sqrt(3)
    model = build(init="he_fan_out", **options | {"init_classifier": False})
    assert model.classifier.weight.std().item() == pytest.approx(64**-0.5, rel=0.12)


@pytest.mark.parametrize("options", [(True, 0, 0), (False, 2, 0), (False, 0, 6), (True, 3, 5)])
def test_augmentation_by_slow_loops(options):
    """With the same random numbers, drawn in the same order, image by image."""
    X, rng, (flip, shift, erase) = torch.rand(60, 1, 12, 15), torch.Generator().manual_seed(0), options
    before, expected = X.clone(), X[:, 0].numpy().copy()
    augmented = cnn.augment(X, flip, shift, erase, torch.Generator().manual_seed(0))
    if flip:
        for n, number in enumerate(torch.rand(60, 1, 1, 1, generator=rng).ravel()):
            expected[n] = expected[n][:, ::-1] if number < 0.5 else expected[n]
    if shift:
        shifts = torch.randint(2 * shift + 1, (2, 60, 1, 1), generator=rng).reshape(2, 60).T.tolist()
        for n, (down, right) in enumerate(shifts):
            expected[n] = np.pad(expected[n], shift)[down : down + 12, right : right + 15]
    if erase:
        tops = torch.randint(12 - erase + 1, (60, 1, 1, 1), generator=rng).ravel().tolist()
        lefts = torch.randint(15 - erase + 1, (60, 1, 1, 1), generator=rng).ravel().tolist()
        drawn = torch.rand(60, 1, 1, 1, generator=rng).ravel()
        noise = torch.rand(X.shape, generator=rng)[:, 0].numpy()
        for n in np.flatnonzero(drawn < 0.5):
            square = np.s_[n, tops[n] : tops[n] + erase, lefts[n] : lefts[n] + erase]
            expected[square] = noise[square]
    assert np.array_equal(augmented[:, 0].numpy(), expected)
    assert torch.equal(X, before)
    assert torch.equal(cnn.augment(X, False, 0, 0, None), X)


def test_training_by_hand(digits):
    """Nesterov momentum, weight decay, label smoothing, schedule, batches; the average, with statistics."""
    options = {"channels": (4,), "pool_after": (1,), "flip": False, "shift": 0, "epochs": 2, "warmup": 0.3}
    options |= {"batch_size": 100, "learning_rate": 0.1, "ema_decay": 0.6, "momentum": 0.8}
    images, s = few(digits, 301), tiny(**options, weight_decay=0.01, label_smoothing=0.2)
    model, history = cnn.train(images, s)
    X, y = torch.from_numpy(images.train.X)[:, None], torch.from_numpy(images.train.y)
    pixels, step = data.mean_std(images.train.X), 0
    first = cnn.CNN(s, 10, *pixels, cnn.generator("cpu", 0))
    params = [p.detach().clone().requires_grad_() for p in first.parameters()]
    values, velocity = [*params, torch.zeros(4), torch.ones(4)], [torch.zeros_like(p) for p in params]
    for epoch in range(2):
        loss_sum, order = 0.0, torch.randperm(301, generator=cnn.generator("cpu", 0, epoch))
        for number, batch in enumerate(order.split(100)[:3]):  # not the last one of 1, for batch norm
            maps = F.max_pool2d(F.conv2d((X[batch] - pixels[0]) / pixels[1], params[0], padding=1), 2)
            normed = F.batch_norm(maps, *values[5:], params[1], params[2], training=True)
            logits = torch.relu(normed).flatten(1) @ params[3].T + params[4]
            targets = F.one_hot(y[batch], 10) * 0.8 + 0.02
            loss = -(targets * torch.log_softmax(logits, 1)).sum(1).mean()
            loss_sum += loss.item() * len(batch)
            lr = 0.1 * float(np.interp((4 * epoch + number) / 8, [0, 0.3, 1], [0.05, 1, 0]))
            for i, gradient in enumerate(torch.autograd.grad(loss, params)):
                gradient = gradient + 0.01 * params[i].detach()
                velocity[i] = 0.8 * velocity[i] + gradient
                params[i].data -= lr * (gradient + 0.8 * velocity[i])
            step += 1
            decay, latest = min(0.6, step / (9 + step)), [value.detach().clone() for value in values]
            if step == 1:  # the first average is the first weights
                mean = latest
            pairs = zip(mean, latest, strict=True)
            mean = [decay * average + (1 - decay) * value for average, value in pairs]
        assert history["train_loss"][epoch] == pytest.approx(loss_sum / 300, rel=1e-3)
        assert history["learning_rate"][epoch] == pytest.approx(lr)
    norm = model.backbone[2]
    averages = [*model.parameters(), norm.running_mean, norm.running_var]
    for average, expected in zip(averages, mean, strict=True):
        assert torch.allclose(average, expected, rtol=1e-2, atol=1e-4)


def test_it_learns_and_the_same_seed_gives_the_same_bits(digits):
    options = {"batch_size": 64, "learning_rate": 0.1, "dropout": 0.05}
    model, history = cnn.train(digits, tiny(epochs=3, **options))
    logits = cnn.predict_logits(model, digits.test.X)
    assert run.accuracy(logits, digits.test.y) == pytest.approx(0.94, abs=0.05)
    assert history.keys() == {*run.COLUMNS, "train_eval_loss", "train_eval_accuracy"}
    for name, split in (("train_eval", digits.train), ("val", digits.val)):  # of the average, in eval mode
        logits = cnn.predict_logits(model, split.X)
        assert history[f"{name}_loss"][-1] == pytest.approx(run.cross_entropy(logits, split.y)[0], rel=1e-5)
        assert history[f"{name}_accuracy"][-1] == run.accuracy(logits, split.y)
    settings = [tiny(epochs=1, seed=seed, **options) for seed in (3, 3, 4)]
    first, same, other = (cnn.train(few(digits, 200), s)[0] for s in settings)
    assert same_state(first, same.state_dict())
    assert not same_state(first, other.state_dict())


def test_no_batch_repeats_the_random_numbers_of_another(digits, monkeypatch):
    """All images are the same, so that batches differ by what is drawn alone."""
    one = np.full((64, 28, 28), np.linspace(0.1, 1, 28), np.float32)
    images = dataclasses.replace(digits, train=data.Split(one, np.arange(64) % 10, np.arange(64)))
    augment, seen = cnn.augment, []
    monkeypatch.setattr(cnn, "augment", lambda *given: seen.append(augment(*given)) or seen[-1])
    cnn.train(images, tiny(epochs=2, batch_size=32, shift=2))
    assert len({tensor.numpy().tobytes() for tensor in seen}) == len(seen) == 4


@pytest.mark.parametrize("available", [(), ("mps",), ("cuda",), ("cuda", "mps")])
def test_auto_is_the_first_device_that_is_available(available, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in available)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in available)
    assert cnn.pick_device("auto").type == (*available, "cpu")[0]
    assert cnn.pick_device("cpu").type == "cpu"
    for name in {"cuda", "mps"}.difference(available):
        with pytest.raises(run.Error):
            cnn.pick_device(name)


@pytest.mark.parametrize("capability", ["avx2", "avx512_bf16", "amx_bf16", "avx10_1", "bf16"])
def test_precision(capability, monkeypatch):
    """bfloat16 where the processor has instructions for it, which are asked for, not measured."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True, "other": True})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: capability != "avx2")
    cpu, cuda, mps = map(torch.device, ("cpu", "cuda", "mps"))
    chosen = torch.float32 if capability == "avx2" else torch.bfloat16
    assert cnn.pick_precision("auto", cpu) is cnn.pick_precision("auto", cuda) is chosen
    assert cnn.pick_precision("float32", cpu) is cnn.pick_precision("auto", mps) is torch.float32
    assert cnn.pick_precision("bfloat16", cpu) is torch.bfloat16


def test_processes_share_each_batch_and_their_mean_loss_is_the_batchs(monkeypatch):
    batch, losses, processes, shards = torch.arange(7), torch.arange(7.0) ** 2, cnn.Processes(), []
    assert (processes.rank, processes.world_size) == (0, 1)
    processes.world_size = 3
    for processes.rank in range(3):
        shards.append(processes.shard(batch))
    assert sorted(torch.cat([shard for shard, _ in shards]).tolist()) == batch.tolist()
    mean = sum(losses[shard].mean() * scale for shard, scale in shards) / 3  # as DistributedDataParallel does
    assert mean == pytest.approx(losses.mean().item())
    monkeypatch.setenv("WORLD_SIZE", "3")
    cnn.check_settings(cnn.settings(batch_size=6))
    for options in ({"batch_size": 5}, {"seeds": 2}, {"compile": True}):
        with pytest.raises(run.Error):
            cnn.check_settings(cnn.settings(**options))


DRIVER = """
import json, os, sys
import cnn_feature_extraction as cnn
import run

s = cnn.settings(**json.loads(sys.argv[1]))
result = cnn.run_once(s)
about = {"history": result.history, "folder": str(result.folder)}
run.save_weights(f"{s.output_dir}_{os.environ['RANK']}.safetensors", cnn.numpy_state(result.model), about)
"""


def test_two_processes_take_the_steps_of_one(digits, tmp_path, script):
    """Over gloo: the same batches, in halves, give the same weights, and only the first process writes."""
    options = TINY | {"epochs": 2, "batch_size": 51, "norm": "none", "flip": False, "shift": 0}
    options |= {"dataset": "digits", "train_size": 200, "learning_rate": 0.02, "figures": False}
    options["output_dir"] = str(tmp_path / "run")
    (tmp_path / "driver.py").write_text(DRIVER)
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = script(*torchrun, tmp_path / "driver.py", json.dumps(options))
    assert done.returncode == 0, done.stderr
    first, about = run.load_weights(tmp_path / "run_0.safetensors")
    second, others = run.load_weights(tmp_path / "run_1.safetensors")
    assert (about["folder"], others["folder"]) == (options["output_dir"], "None")
    saved, _ = cnn.restore(tmp_path / "run/backbone.safetensors")
    model, history = cnn.train(data.load(dataset="digits", train_size=200), cnn.settings(**options))
    for name, value in cnn.numpy_state(model).items():
        assert np.array_equal(first[name], second[name]), name
        assert np.array_equal(first[name], saved.state_dict()[name]), name
        assert np.allclose(first[name], value, rtol=1e-3, atol=1e-5), name
    for column in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        assert about["history"][column] == others["history"][column]
        assert about["history"][column] == pytest.approx(history[column], rel=1e-3), column


def test_features_are_in_eval_mode_in_order_and_change_nothing():
    model, X = build(dropout=0.4).train(), torch.rand(1201, 1, 28, 28)  # more than two chunks
    before = copy.deepcopy(model.state_dict())
    features = cnn.features_of(model, X)
    assert features.shape == (1201, 6 * 49)
    assert same_state(model, before)
    assert not any(module.training for module in model.modules())
    for i in (0, 1, 499, 500, 999, 1000, 1200):  # each image's features are its own, whatever the batch
        assert torch.allclose(cnn.features_of(model, X[i : i + 1])[0], features[i], atol=1e-5)


def test_the_cache(digits, tmp_path, monkeypatch):
    """It is used, unless weights, running statistics, images or labels are others, or it is damaged."""
    calls, features_of, path = [], cnn.features_of, tmp_path / "features.npz"
    monkeypatch.setattr(cnn, "features_of", lambda *arguments: calls.append(1) or features_of(*arguments))

    def extracted(images, cache=path):
        """Whether the features of all splits were extracted, not loaded."""
        calls.clear()
        features = cnn.extract_features(model, images, cache)
        for name in ("train", "val", "test"):
            split, of_split = getattr(images, name), getattr(features, name)
            rows = [0, 7, len(split.y) - 1]
            expected = features_of(model, torch.from_numpy(split.X[rows])[:, None])
            assert np.allclose(of_split.X[rows], expected, atol=1e-5)
            assert np.array_equal(of_split.y, split.y)
            assert np.array_equal(of_split.indices, split.indices)
        return {0: False, 3: True}[len(calls)]

    model, images = build(), few(digits, 50)
    assert extracted(images, None)
    assert not path.exists()
    assert (extracted(images), extracted(images)) == (True, False)
    with torch.no_grad():
        model.backbone[0].weight[0, 0, 0, 0] += 0.01
    assert (extracted(images), extracted(images)) == (True, False)
    model.backbone[2].running_mean += 0.1
    assert (extracted(images), extracted(few(digits, 51)), extracted(images)) == (True, True, True)
    labels = dataclasses.replace(images.test, y=images.test.y[::-1])
    assert (extracted(dataclasses.replace(images, test=labels)), extracted(images)) == (True, True)
    for content in (path.read_bytes()[:10_000], b""):
        path.write_bytes(content)
        assert (extracted(images), extracted(images)) == (True, False)


def test_saved_and_restored(tmp_path):
    model, path, X = build(mean=0.2, std=0.3, fc=(5,)), tmp_path / "b.safetensors", torch.rand(3, 1, 28, 28)
    model.compute = {"device": "cpu", "precision": "float32"}
    about = {"classes": [str(i) for i in range(10)], "image_shape": (28, 28), "temperature": 0.5}
    cnn.save(path, model, tiny(fc=(5,), split_seed=3), **about)
    restored, metadata = cnn.restore(path)
    assert not any(module.training for module in restored.modules())
    assert torch.equal(cnn.logits_of(model, X), restored(X))
    assert (metadata["temperature"], metadata["settings"]["split_seed"]) == (0.5, 3)
    assert restored.compute == model.compute
    arrays, metadata = run.load_weights(path)
    older = metadata["settings"].copy()
    del older["padding"], older["block_order"]  # a file from before these settings existed
    run.save_weights(path, arrays, metadata | {"settings": older})
    assert same_state(cnn.restore(path)[0], model.state_dict())
    run.save_weights(path, arrays, metadata | {"model": "mlp"})
    with pytest.raises(run.Error):
        cnn.restore(path)


def test_the_committed_network(real):
    """94.11 % of the 10,000 test images, as models/README.md says; 1,887 of the first 2,000."""
    model, metadata = cnn.restore(ROOT / "models/cnn.safetensors")
    correct = cnn.predict_logits(model, real.test.X[:2000]).argmax(axis=1) == real.test.y[:2000]
    assert correct.sum() == pytest.approx(1887, abs=2)
    assert tuple(metadata["classes"]) == real.classes


def test_hires_cam():
    """Maps times gradients of the class's logit, summed over the channels of the last maps from 7 x 7 on."""
    model = build(channels=(4, 6, 5), pool_after=(1, 2, 3)).eval()
    X, labels = torch.rand(4, 1, 28, 28), torch.tensor([3, 0, 9, 3])
    maps = model.backbone[:8](X).detach().requires_grad_()
    logits = model.classifier(model.backbone[8:](maps))
    (gradient,) = torch.autograd.grad(logits[range(4), labels].sum(), maps)
    heat = torch.relu((gradient * maps).sum(dim=1, keepdim=True))
    expected = F.interpolate(heat, size=(28, 28), mode="bilinear")[:, 0]
    assert torch.allclose(cnn.hires_cam(model, X, labels), expected, atol=1e-5)
    assert expected.max() > 0
