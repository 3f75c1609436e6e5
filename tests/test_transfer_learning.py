"""transfer_learning.py: ResNet18 as torchvision has it, its weights file, frozen, fine-tuned, from scratch, and resumed.

ImageNet's weights are replaced by random numbers in a file of the same format, in a cache of torch's in a temporary folder.
"""

import copy
import dataclasses
import io
from functools import partial
from types import SimpleNamespace

import conftest
import numpy as np
import pytest
import torch
from conftest import (
    FILES,
    KEYS,
    TTA_KEYS,
    assert_calibrated,
    assert_reported,
    assert_same_weights,
    one_line,
    read_metrics,
    succeeded,
)
from torch import nn
from torch.nn import functional as F
from torchvision.models import ResNet18_Weights, resnet18

import cnn_feature_extraction as cnn
import data
import mlp_from_scratch as mlp
import plots
import predict
import transfer_learning as transfer
from support import files, runs, settings
from torch_cnn import backbone, features, resnet

NAME = "resnet18-f37072fd.pth"  # as torchvision calls it, with the first digits of its sha256
URL = f"https://download.pytorch.org/models/{NAME}"


@pytest.fixture(scope="module")
def state(digits):
    """{name: tensor} of a ResNet18 with random weights, and running statistics of some digits, so that features differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = resnet18(norm_layer=partial(nn.BatchNorm2d, momentum=None))
    preset = ResNet18_Weights.IMAGENET1K_V1.transforms()
    mean, std = (torch.tensor(values)[:, None, None] for values in (preset.mean, preset.std))
    with torch.no_grad():
        network.train()((torch.from_numpy(digits.train.X[:200])[:, None] - mean) / std)
    return network.state_dict()


@pytest.fixture(scope="module")
def home(state, tmp_path_factory):
    """A TORCH_HOME with that file."""
    folder = tmp_path_factory.mktemp("torch")
    (folder / "hub/checkpoints").mkdir(parents=True)
    torch.save(state, folder / "hub/checkpoints" / NAME)
    return folder


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache of torch's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "torch/hub/checkpoints").mkdir(parents=True)
    return tmp_path / "torch/hub/checkpoints"


@pytest.fixture(scope="module")
def few(digits):
    """Some images of the digits."""
    splits = {name: getattr(digits, name) for name in features.SPLITS}
    few = {name: data.Split(split.X[:60], split.y[:60], split.indices[:60]) for name, split in splits.items()}
    return dataclasses.replace(digits, **few)


def load(training, **options):
    return settings.load(transfer, data, runs, training=training, **options)


def small(training, folder, **options):
    defaults = {"dataset": "digits", "device": "cpu", "precision": "float32", "epochs": 2, "head_epochs": 2,
                "batch_size": 30, "input_size": 28, "figures": False, "output_dir": str(folder / "run"),
                "features_dir": str(folder / "features")}  # fmt: skip
    return load(training, **defaults | options)


# ---- the network


def test_with_imagenets_weights_it_is_torchvisions_network(state, home, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(home))
    x, reference = torch.rand(3, 1, 28, 28), resnet18()
    reference.load_state_dict(state)
    reference.fc = nn.Identity()
    preset = ResNet18_Weights.IMAGENET1K_V1.transforms()
    mean, std = (torch.tensor(values)[:, None, None] for values in (preset.mean, preset.std))
    for training, size in (("frozen", 0), ("fine_tuned", 28)):
        model = resnet.build(load(training, input_size=size), 10, pretrained=True).eval()
        images = x.repeat(1, 3, 1, 1)
        if size == 0:
            images = F.interpolate(images, size=(64, 64), mode="bilinear")
        expected = reference.eval()((images - mean) / std)
        assert torch.allclose(model.features(x), expected, rtol=1e-3, atol=1e-4)
        assert model.features(x).std(dim=0).max() > 1e-3  # the images are told apart


@pytest.mark.parametrize(("training", "fc", "parameters"), [
    ("from_scratch", (), 11_172_810), ("fine_tuned", (), 11_181_642), ("frozen", (256,), 11_176_512 + 131_328 + 2_570),
    ("from_scratch", (256, 128), 11_167_680 + 131_328 + 32_896 + 1_290),
])  # fmt: skip
def test_parameters_and_summary(training, fc, parameters):
    model = resnet.build(load(training, fc=fc))
    assert model.num_parameters == parameters
    rows = backbone.layer_summary(model)
    assert sum(row[2] for row in rows) == parameters
    assert len(rows) == 1 + 8 + 1 + len(fc) + (training != "from_scratch")  # with the row of the enlargement
    if training == "from_scratch":
        sides = [row[1][1] for row in rows if len(row[1]) == 3]
        assert sides == [28, 28, 14, 7, 7, 4, 4, 2]
        assert rows[1][3] == 2 * 64 * 64 * 9 * 28 * 28  # a residual block: two convolutions
        assert rows[3][3] == (64 * 128 * 9 + 128 * 128 * 9 + 64 * 128) * 7 * 7  # and one on the shortcut


def test_the_seed_gives_the_initial_weights_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, same, other = (resnet.build(load("from_scratch", seed=seed)).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert not torch.equal(first["backbone.0.weight"], other["backbone.0.weight"])


# ---- the weights file


def test_a_file_in_the_cache_is_loaded_and_named_for_what_it_is(home, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(home))
    assert resnet.build(load("frozen"), pretrained=True).name == "ResNet18 frozen (not ImageNet's weights)"
    assert f"{NAME} is not the file that torchvision publishes" in capsys.readouterr().out
    published = SimpleNamespace(hexdigest=lambda: "f37072fd" + 56 * "0")
    monkeypatch.setattr(resnet.hashlib, "file_digest", lambda *ignored: published)
    assert resnet.build(load("frozen"), pretrained=True).name == "ResNet18 frozen"
    assert capsys.readouterr().out == ""


class Mischief:
    def __reduce__(self):
        return exec, ("raise SystemExit('code in a weights file was run')",)


def changed(state, **values):
    return lambda path: torch.save(state | values, path)


@pytest.mark.parametrize(("write", "reason"), [
    (lambda state: lambda path: path.write_bytes(b""), ""),
    (lambda state: lambda path: path.write_bytes(b"<html>404</html>"), ""),
    (lambda state: lambda path: (torch.save(state, path), path.write_bytes(path.read_bytes()[:9_000_000])), ""),
    (lambda state: lambda path: path.mkdir(), "directory"),
    (lambda state: changed({}, weights=Mischief()), "Weights only load failed"),
    (lambda state: changed({}, weight=torch.zeros(2)), "Missing key"),
    (lambda state: lambda path: torch.save([1, 2], path), "dict"),
    (lambda state: changed(state, **{"fc.bias": torch.zeros(10)}), "size mismatch for fc.bias"),
    (lambda state: changed(state, **{"bn1.weight": torch.full((64,), torch.nan)}), "NaN"),
], ids=["empty", "html", "truncated", "folder", "code", "other", "list", "shape", "nan"])  # fmt: skip
def test_a_file_that_is_damaged_or_foreign_is_one_line(write, reason, state, cache):
    write(state)(cache / NAME)
    with pytest.raises(files.FileError) as raised:
        resnet.build(load("fine_tuned"), pretrained=True)
    message = str(raised.value)
    assert message.startswith(f"{cache / NAME}: not torchvision's ResNet18 weights, or damaged (")
    assert reason in message
    assert message.endswith(f"replace it by {URL}")
    assert "\n" not in message
    assert raised.value.exit_code == 1


def test_missing_weights_and_no_network_are_one_line_and_nothing_is_written(run_script, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    line = one_line(run_script("transfer_learning", "--dataset", "digits"), 1)
    path = tmp_path / "torch/hub/checkpoints" / NAME
    assert line.startswith(f"transfer_learning.py: {path}: no such file, and it could not be downloaded (")
    assert line.endswith(f"put {URL} there, or use --training from_scratch, which needs no weights")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() or path.name == "runs"]


def test_the_download_is_checked_and_leaves_nothing_behind_if_it_is_wrong(state, cache, monkeypatch):
    asked = []

    def answer(request):
        asked.append(request.full_url)
        response = io.BytesIO(b"a page of a hotel's network")
        response.info = lambda: SimpleNamespace(get_all=lambda name: None)
        return response

    monkeypatch.setattr(torch.hub, "urlopen", answer)
    with pytest.raises(files.FileError, match=r"could not be downloaded \(invalid hash value"):
        resnet.build(load("frozen"), pretrained=True)
    assert asked == [URL]
    assert not list(cache.iterdir())

    def download(url, path, hash_prefix, progress):
        assert (url, hash_prefix) == (URL, "f37072fd")
        torch.save(state, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    resnet.build(load("frozen"), pretrained=True)
    assert (cache / NAME).exists()


# ---- runs


def test_frozen_as_a_user_runs_it(run_script, home, tmp_path, monkeypatch, capsys):
    """Both heads on the same cached features; the files, the reported results and those of the saved network."""
    monkeypatch.setenv("TORCH_HOME", str(home))
    flags = ("--dataset", "digits", "--quick", "--input-size", 28, "--head-learning-rate", 0.01, "--output-dir")
    printed = succeeded(run_script("transfer_learning", "--fc", 32, *flags, "numpy"))
    assert "features: 512 per image" in printed
    assert "ResNet18 frozen (not ImageNet's weights) + NumPy MLP 512-32-10" in printed
    monkeypatch.chdir(tmp_path)
    transfer.main([*map(str, flags), "torch", "--head", "torch"])
    printed = capsys.readouterr().out
    assert "features loaded from runs/resnet18_features/28_" in printed  # though the classifier is another
    assert "PyTorch layers 512-10" in printed
    test = data.load("digits", quick=True).test
    for name in ("numpy", "torch"):
        folder = tmp_path / name
        assert {path.name for path in folder.iterdir()} == FILES | {"resnet18.safetensors"}
        metrics = assert_reported(folder, test.y)
        assert set(metrics) >= KEYS | {"device", "precision"}
        assert metrics["test_accuracy"] > 0.5  # of random features
        model, metadata = resnet.restore(folder / "resnet18.safetensors")
        assert metadata["name"] == model.name == metrics["model"]
        probabilities = torch.softmax(model(torch.from_numpy(test.X)[:, None]), dim=1).detach().numpy()
        assert np.allclose(probabilities, np.load(folder / "test_probabilities.npy"), atol=2e-3)
        assert_calibrated(folder / "resnet18.safetensors", metrics)
    (prediction,) = predict.classify(test.X[0], predict.load(folder / "resnet18.safetensors"))
    assert prediction.model == metrics["model"]
    assert prediction.probability == max(prediction.probabilities.values())


@pytest.mark.parametrize("training", ["fine_tuned", "from_scratch"])
def test_it_learns_and_the_saved_network_gives_the_reported_results(training, few, home, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(home))
    from_scratch = {"epochs": 4, "flip": False, "tta": "none"} if training == "from_scratch" else {"epochs": 2, "fc": (16,)}
    s = small(training, tmp_path, batch_size=10, shift=0, learning_rate=0.02, ema_decay=0.5, **from_scratch)
    before = copy.deepcopy(vars(s))
    metrics = transfer.run(s, few)
    assert vars(s) == before
    assert set(metrics) >= KEYS
    assert (set(metrics) >= TTA_KEYS) == s.flip
    history = plots.read_history(tmp_path / "run/history.csv")
    assert history["train_loss"][-1] < history["train_loss"][0]
    assert history["train_eval_accuracy"][-1] > 0.6 or training == "fine_tuned"
    assert_reported(tmp_path / "run", few.test.y)
    model, _ = resnet.restore(tmp_path / "run/resnet18.safetensors")
    accuracy = np.mean(features.predict_logits(model, few.test.X).argmax(axis=1) == few.test.y)
    assert metrics["test_accuracy"] == pytest.approx(accuracy)
    with pytest.raises(files.FileError, match=r"contains a ResNet18 \(resnet18.safetensors\), expected a CNN"):
        backbone.restore(tmp_path / "run/resnet18.safetensors")
    tensors, metadata = files.load_weights(tmp_path / "run/resnet18.safetensors")
    for change in ({"input_size": 10**9}, {"fc": [10**9]}, {"training": "frozen"}):  # before any memory is allocated
        files.save_weights(tmp_path / "odd", tensors, metadata | {"settings": metadata["settings"] | change})
        with pytest.raises(files.FileError, match="odd: not in this project's format"):
            resnet.restore(tmp_path / "odd")


def test_fine_tuning_has_a_learning_rate_for_the_backbone(few, home, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(home))
    rates, init = [], cnn.Trainer.__init__

    def watch(self, *arguments):
        init(self, *arguments)
        sizes = [sum(p.numel() for p in group["params"]) for group in self.optimizer.param_groups]
        assert sizes == [11_176_512, 5_130]
        self.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append([g["lr"] for g in optimizer.param_groups]))

    monkeypatch.setattr(cnn.Trainer, "__init__", watch)
    transfer.run(small("fine_tuned", tmp_path, epochs=1, batch_size=20, learning_rate=0.2, backbone_learning_rate=0.05), few)
    slow, fast = np.array(rates).T
    assert len(rates) == 3
    assert fast == pytest.approx([cnn.lr_at(step / 3, 0.2, "linear", 0.2, 0.05) for step in range(3)])
    assert slow == pytest.approx(fast / 4)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(("training", "options"), [
    ("frozen", {"fc": (8,), "fc_dropout": 0.2}), ("frozen", {"head": "torch", "fc": (8,), "fc_dropout": 0.2}),
    ("fine_tuned", {"fc": (8,), "fc_dropout": 0.2, "optimizer": "adamw", "learning_rate": 0.001}),
])  # fmt: skip
def test_interrupted_after_an_epoch_and_resumed_it_ends_the_same(training, options, few, home, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(home))
    log = runs.Run.log

    def stop(self, row, name="history.csv"):
        log(self, row, name)
        raise Interrupted

    s = small(training, tmp_path, **options)
    transfer.run(s, few)
    killed = SimpleNamespace(**vars(s) | {"output_dir": str(tmp_path / "killed")})
    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "log", stop)
        with pytest.raises(Interrupted):
            transfer.run(killed, few)
    assert not (tmp_path / "killed/metrics.json").exists()
    transfer.run(SimpleNamespace(**vars(killed) | {"resume": killed.output_dir}), few)
    assert_same_weights(tmp_path / "run/resnet18.safetensors", tmp_path / "killed/resnet18.safetensors")
    assert_same_weights(tmp_path / "run/checkpoint.safetensors", tmp_path / "killed/checkpoint.safetensors")
    first, second = (plots.read_history(tmp_path / name / "history.csv") for name in ("run", "killed"))
    assert first["train_loss"] == second["train_loss"]
    assert len(first["train_loss"]) == 2


def test_several_seeds_share_the_features(few, home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(home))
    monkeypatch.setattr(data, "load_for", lambda s: few)
    s = small("frozen", tmp_path, seeds=2, figures=True)
    metrics = runs.run_seeds("transfer_learning", transfer.run, s, transfer.check_settings)
    printed = capsys.readouterr().out
    assert printed.count("features loaded from") == printed.count("features: 512 per image") == 1
    assert len(metrics["by_seed"]["test_accuracy"]) == 2
    assert read_metrics(tmp_path / "run")["settings"]["training"] == "frozen"
    (figure,) = plots.curves_of_run(tmp_path / "run", metrics).values()
    assert conftest.crowded_texts(figure) == []
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "training batches" in names  # neither augmented nor with smoothed labels: these are settings of the other modes


@pytest.mark.parametrize("head", ["numpy_mlp", "torch"])
def test_a_diverged_head_names_its_flag(head, few, home, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(home))
    for script in (mlp, cnn):
        monkeypatch.setattr(script.Trainer, "evaluate", lambda *ignored: (np.nan, 0.1))
    with pytest.raises(runs.Diverged, match=r"the head: .*lower --head-learning-rate"):
        transfer.run(small("frozen", tmp_path, head=head), few)


def test_settings_that_are_not_possible(monkeypatch):
    with pytest.raises(settings.SettingError, match="--input-size 8: must be 0, or 28 or more"):
        transfer.check_settings(load("from_scratch", input_size=8))
    monkeypatch.setattr(transfer, "init_distributed", lambda: (0, 2))
    with pytest.raises(settings.SettingError, match="torchrun works with cnn_feature_extraction"):
        transfer.check_settings(load("from_scratch"))


@pytest.mark.parametrize("line", ["--training frozen --epochs 5", "--training frozen --no-flip", "--fc-dropout 0.5",
                                  "--training from_scratch --head torch",
                                  "--training from_scratch --backbone-learning-rate 0.1"])  # fmt: skip
def test_flags_without_effect_are_refused(line, capsys):
    with pytest.raises(SystemExit) as ended:
        settings.parse(transfer, data, runs, argv=line.split())
    assert ended.value.code == 2
    assert "it would have no effect" in capsys.readouterr().err


def test_quick_settings_keep_the_learning_rates_per_image():
    s = transfer.quick_settings(load("fine_tuned", batch_size=256, learning_rate=0.1, backbone_learning_rate=0.01))
    assert (s.epochs, s.batch_size, s.learning_rate, s.backbone_learning_rate) == (2, 64, 0.025, 0.0025)
    assert vars(transfer.quick_settings(s)) == vars(s)  # as when it is resumed
    s = transfer.quick_settings(load("frozen"))
    assert (s.head_epochs, s.head_batch_size, s.epochs) == (3, 32, transfer.EPOCHS)
