"""extras/transfer_learning.py: ResNet18 as torchvision has it, frozen, fine-tuned and resumed, from scratch.

ImageNet's weights are replaced by random numbers, in a file of the same format in a TORCH_HOME of its own.
"""

import dataclasses
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import ResNet18_Weights, resnet18
from torchvision.models.resnet import BasicBlock, ResNet

import cnn_feature_extraction as cnn
import data
import predict
import run
from extras import transfer_learning as transfer

NAME = "resnet18-f37072fd.pth"  # as torchvision calls it
PRESET = ResNet18_Weights.IMAGENET1K_V1.transforms()
MEAN, STD = (torch.tensor(values)[:, None, None] for values in (PRESET.mean, PRESET.std))
resnet10 = partial(ResNet, BasicBlock, [1, 1, 1, 1])


def random_weights(make, images):
    """Random weights of a ResNet, with running statistics of some images, so that features differ."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = make(norm_layer=partial(nn.BatchNorm2d, momentum=None))
        network.train()((torch.from_numpy(images.train.X[:50])[:, None] - MEAN) / STD)
    return network.state_dict()


@pytest.fixture
def few(digits, tmp_path, monkeypatch):
    """Twelve images of each split, to train a ResNet of half the depth on; the features go to tmp_path."""
    monkeypatch.setattr(transfer, "resnet18", resnet10)
    monkeypatch.setattr(transfer, "imagenet_weights", lambda: random_weights(resnet10, digits))
    monkeypatch.setattr(run, "ROOT", tmp_path)
    splits = {name: getattr(digits, name) for name in ("train", "val", "test")}
    few = {name: data.Split(s.X[:12], s.y[:12], s.indices[:12]) for name, s in splits.items()}
    return dataclasses.replace(digits, **few)


def settings(training, folder="", **changes):
    small = {"dataset": "digits", "device": "cpu", "precision": "float32", "epochs": 2, "head_epochs": 2}
    small |= {"batch_size": 6, "input_size": 28, "figures": False, "output_dir": str(folder)}
    return transfer.settings(**small | {"training": training} | changes)


def test_with_imagenets_weights_it_is_torchvisions_network(digits):
    state = random_weights(resnet18, digits)
    x, reference = torch.rand(3, 1, 28, 28), resnet18()
    reference.load_state_dict(state)
    reference.fc = nn.Identity()
    for training, size in (("frozen", 0), ("fine_tuned", 28)):
        model = transfer.build(settings(training, input_size=size), 10, imagenet=state).eval()
        images = x if size else F.interpolate(x, size=(64, 64), mode="bilinear")
        expected = reference.eval()((images.repeat(1, 3, 1, 1) - MEAN) / STD)
        assert torch.allclose(model.features(x), expected, rtol=1e-3, atol=1e-4)
        assert model.features(x).std(dim=0).max() > 1e-3  # the images are told apart


def test_the_network_for_small_images():
    s, before = settings("from_scratch", fc=(256, 128), input_size=0), torch.get_rng_state()
    model, same = transfer.build(s, 10), transfer.build(s, 10).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, same[name]) for name, value in model.state_dict().items())
    x, sides = torch.rand(1, 1, 28, 28), []
    for layer in model.eval().backbone:
        x = layer(x)
        sides.append(x.shape[-1])
    assert list(dict.fromkeys(sides)) == [28, 14, 7, 4, 2, 1, 512]
    assert sum(p.numel() for p in model.parameters()) == 11_167_680 + 131_328 + 32_896 + 1_290


@pytest.mark.parametrize("content", [None, b"<html>404</html>", {"w": torch.zeros(2)}, {"w": exec}])
def test_weights_that_are_missing_or_damaged_are_one_line(content, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # no network
    path = tmp_path / "hub/checkpoints" / NAME
    path.parent.mkdir(parents=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        torch.save(content, path)
    with pytest.raises(run.Error, match="which needs no weights") as raised:
        transfer.imagenet_weights()
    assert str(raised.value).startswith(f"{path}: cannot be downloaded or read (")


def check_saved(folder, few, metrics):
    """The saved network gives the reported results, here and in predict.py."""
    model, metadata = transfer.restore(folder / "resnet18.safetensors")
    logits = model(torch.from_numpy(few.test.X)[:, None]).detach()
    saved = np.load(folder / "test_probabilities.npy")
    assert np.allclose(logits.softmax(dim=1).numpy(), saved, atol=2e-3)
    assert metadata["name"] == model.name == metrics["model"]
    assert np.allclose(predict.load(folder / "resnet18.safetensors").logits(few.test.X), logits, atol=1e-4)


def test_frozen(few, tmp_path, capsys):
    for fc, name in (((8,), "512-8-10"), ((), "512-10")):
        metrics = transfer.run_once(
            settings("frozen", tmp_path / name, fc=fc, head_batch_size=6), few
        ).metrics
        assert metrics["model"] == f"ResNet18 frozen + NumPy MLP {name}"
        check_saved(tmp_path / name, few, metrics)
    assert capsys.readouterr().out.count("features loaded from") == 1  # they are kept for all runs


def test_from_scratch(few, tmp_path):
    changes = {"epochs": 1, "flip": False, "tta": "none", "input_size": 0}
    metrics = transfer.run_once(settings("from_scratch", tmp_path / "run", **changes), few).metrics
    assert {"device", "precision", "parameters", "test_loss", "temperature"} <= metrics.keys()
    check_saved(tmp_path / "run", few, metrics)


class Interrupted(Exception):
    pass


def test_fine_tuned_and_resumed(few, tmp_path, monkeypatch):
    """Interrupted after an epoch and resumed, it ends the same. The backbone has its own learning rate."""
    s = settings("fine_tuned", tmp_path / "run", fc=(8,), fc_dropout=0.2, backbone_learning_rate=0.05)
    rates, step, log = [], torch.optim.SGD.step, run.RunFolder.log

    def watch(optimizer):
        group = optimizer.param_groups[0]
        rates.append((sum(p.numel() for p in group["params"]), group["lr"]))
        return step(optimizer)

    def stop(*arguments):
        log(*arguments)
        raise Interrupted

    monkeypatch.setattr(torch.optim.SGD, "step", watch)
    check_saved(tmp_path / "run", few, transfer.run_once(s, few).metrics)
    expected = [cnn.lr_at(number / 4, s) for number in range(4)]
    backbone = sum(p.numel() for p in resnet10(num_classes=1).parameters()) - 513
    assert [size for size, _ in rates] == 4 * [backbone, 8 * 513 + 90]
    assert [rate for _, rate in rates[1::2]] == pytest.approx(expected)
    assert [rate for _, rate in rates[::2]] == pytest.approx([rate / 2 for rate in expected])
    s.output_dir = str(tmp_path / "killed")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(run.RunFolder, "log", stop)
        transfer.run_once(s, few)
    transfer.run_once(SimpleNamespace(**vars(s) | {"resume": s.output_dir}), few)
    paths = [tmp_path / name / "resnet18.safetensors" for name in ("run", "killed")]
    arrays, others = (run.load_weights(path, "resnet18")[0] for path in paths)
    assert all(np.array_equal(value, others[name]) for name, value in arrays.items())


def test_settings_of_quick():
    s = settings("fine_tuned", batch_size=256, learning_rate=0.1, backbone_learning_rate=0.01, epochs=6)
    quick = transfer.quick_settings(s)
    assert (quick.epochs, quick.learning_rate, quick.backbone_learning_rate) == (2, 0.025, 0.0025)
