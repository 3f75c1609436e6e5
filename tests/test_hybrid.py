"""CNN and NumPy MLP as one network: the gradient between them, joint steps, runs, files, what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_layers import relative, torch_network
from torch.nn import functional as F

import cnn_feature_extraction as cnn
import data
import hybrid_train
import mlp_from_scratch as mlp
import run

TINY = {"dataset": "digits", "train_size": 600, "channels": (4, 6), "pool_after": (1, 2), "device": "cpu"}
TINY |= {"precision": "float32", "epochs": 4, "batch_size": 30, "learning_rate": 0.1, "ema_decay": 0.9}
TINY |= {"shift": 0, "flip": False, "figures": False, "head_hidden": (16,), "head_learning_rate": 0.003}
TINY |= {"head_batch_size": 20, "head_epochs": 8}


def settings(folder="", **options):
    return hybrid_train.settings(**TINY | options, output_dir=str(folder))


def conv_net(classifier):
    """A CNN in float64, with `classifier` on its 24 features of images (N, 1, 8, 8)."""
    s = cnn.settings(channels=(3, 6), pool_after=(1, 2))
    model = cnn.CNN(s, 4, 0.3, 0.7, torch.Generator().manual_seed(0), (8, 8)).double()
    model.classifier = classifier
    return model


def numpy_mlp(**options):
    rng, masks = np.random.default_rng(0), np.random.default_rng(1)
    network = mlp.MLP((24, 6, 5, 4), rng, masks, np.float64, **options)
    network.params += 0.1 * rng.standard_normal(len(network.params))
    network.mean, network.std = 0.4, 0.8
    return network


class TorchHead(torch.nn.Module):
    """The same network as a NumpyHead in PyTorch, with the dropout masks of its last forward pass."""

    def __init__(self, network):
        super().__init__()
        self.network, self.params = network, torch.nn.Parameter(torch.tensor(network.params))

    def forward(self, features):
        return torch_network(self.network, self.params, (features - 0.4) / 0.8)


CASES = [{"activation": name} for name in mlp.ACTIVATIONS] + [{"norm": "batch", "activation": "gelu"}]
CASES += [{"norm": "layer", "activation": "tanh"}, {"dropout": 0.4, "input_dropout": 0.2, "norm": "layer"}]


@pytest.mark.parametrize("options", CASES)
def test_the_gradient_of_the_mlp_passes_into_the_cnn(options):
    network = numpy_mlp(**options)
    model, twin = conv_net(hybrid_train.NumpyHead(network)), conv_net(TorchHead(network))
    x, y = torch.rand(7, 1, 8, 8, dtype=torch.float64, requires_grad=True), torch.arange(7) % 4
    losses = [F.cross_entropy(logits, y) for logits in (model(x), twin(x))]  # the first draws the masks
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)
    network.grads[:] = np.nan
    gradients = torch.autograd.grad(losses[0], [x, *model.backbone.parameters()])
    expected = torch.autograd.grad(losses[1], [x, *twin.backbone.parameters(), twin.classifier.params])
    for gradient, other in zip([*gradients, torch.tensor(network.grads)], expected, strict=True):
        assert relative(gradient.numpy(), other.numpy()) < 1e-10


def test_backward_through_an_earlier_forward_pass_is_refused():
    network, features = numpy_mlp(), torch.ones(5, 24, dtype=torch.float64, requires_grad=True)
    first, second = (hybrid_train.NumpyMLPFunction.apply(features, network) for _ in range(2))
    second.sum().backward()
    with pytest.raises(RuntimeError):
        first.sum().backward()


def test_the_heads_own_settings():
    options = {"head_init": "random", "head_optimizer": "sgd", "head_schedule": "constant"}
    s = hybrid_train.settings(**options, head_normalize="none", head_learning_rate=0.01, seed=4)
    head = hybrid_train.head_settings(s)
    found = head.init, head.optimizer, head.schedule, head.normalize, head.learning_rate, head.seed
    assert found == ("random", "sgd", "constant", "none", 0.01, 4)
    head = hybrid_train.NumpyHead(numpy_mlp(), 0.1, "sgd")
    before, rng = head.mlp.params.copy(), np.random.default_rng(0)
    head.mlp.grads[:] = rng.standard_normal(len(before))
    head.step(0.5)
    assert head.mlp.params == pytest.approx(before - 0.05 * head.mlp.grads)


def test_joint_steps():
    """Twenty steps as in PyTorch: Nesterov with weight decay for the CNN, Adam for the MLP, one schedule."""
    head = hybrid_train.NumpyHead(numpy_mlp(dropout=0.3), 0.02)
    s = cnn.settings(device="cpu", precision="float32", weight_decay=0.01, learning_rate=0.2, ema_decay=0.7)
    trainer, network = cnn.Trainer(None, s, conv_net(head), head), head.mlp
    twin = conv_net(TorchHead(network))
    sgd = torch.optim.SGD(twin.backbone.parameters(), 1.0, 0.9, weight_decay=0.01, nesterov=True)
    adam, rng, average = torch.optim.Adam([twin.classifier.params]), torch.Generator().manual_seed(0), None
    for step in range(1, 21):
        x = torch.rand(16, 1, 8, 8, dtype=torch.float64, generator=rng)
        y, lr = torch.randint(4, (16,), generator=rng), 0.2 * (1 - step / 25)
        loss, num_correct = trainer.train_step(x, y, lr)
        logits = twin(x)
        expected = F.cross_entropy(logits, y, label_smoothing=0.1)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-8)
        assert num_correct == (logits.argmax(1) == y).sum()
        sgd.param_groups[0]["lr"], adam.param_groups[0]["lr"] = lr, 0.02 * lr / 0.2
        for optimizer in (sgd, adam):
            optimizer.zero_grad()
        expected.backward()
        for optimizer in (sgd, adam):
            optimizer.step()
        decay, params = min(0.7, step / (9 + step)), twin.classifier.params.detach().numpy().copy()
        average = params if average is None else decay * average + (1 - decay) * params
    for parameter, other in zip(trainer.model.backbone.parameters(), twin.backbone.parameters(), strict=True):
        assert relative(parameter.detach().numpy(), other.detach().numpy()) < 1e-7
    assert relative(network.params, params) < 1e-7
    assert np.array_equal(head.params, network.params)
    # in eval mode the averaged buffer is used, by a network of the average's own
    averaged, plain, before = trainer.ema_model.module, numpy_mlp(), network.params.copy()
    assert relative(averaged.classifier.params.numpy(), average) < 1e-7
    plain.params[:] = average
    expected = plain.predict_logits(cnn.features_of(averaged, x).numpy())
    assert np.allclose(cnn.logits_of(averaged, x), expected, atol=1e-5)
    assert np.array_equal(network.params, before)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """A finished run with a frozen backbone, and its images."""
    s = settings(tmp_path_factory.mktemp("frozen") / "run")
    images = data.load(s)
    return hybrid_train.run_once(s, images), images


def weights(folder, name, prefix):
    arrays, _ = run.load_weights(folder / f"{name}.safetensors")
    return {key: array for key, array in arrays.items() if key.startswith(prefix)}


def same(arrays, others):
    return {name: array.tolist() for name, array in arrays.items()} == {
        n: a.tolist() for n, a in others.items()
    }


def names_of_files(result):
    return {path.name for path in result.folder.iterdir()} - {".lock"}


def check_restored(result, images):
    """The hybrid's file gives the logits and the accuracy of the run."""
    model, metadata = hybrid_train.restore(result.folder / "hybrid.safetensors")
    assert not any(module.training for module in model.modules())
    with torch.no_grad():
        logits = model(torch.from_numpy(images.test.X)[:, None]).numpy()
    assert np.allclose(logits, cnn.predict_logits(result.model, images.test.X), atol=1e-4)
    assert run.accuracy(logits, images.test.y) == pytest.approx(result.metrics["test_accuracy"], abs=0.01)
    assert tuple(metadata["classes"]) == images.classes


FILES = {"settings.json", "history.csv", "checkpoint.safetensors", "metrics.json", "test_probabilities.npy"}
FILES |= {"hybrid.safetensors"}


def test_files_and_metrics(frozen):
    result, images = frozen
    others = {"backbone.safetensors", "head.safetensors", "cnn_history.csv", "features.npz"}
    assert names_of_files(result) == FILES | others
    metrics = json.loads((result.folder / "metrics.json").read_text())
    assert metrics["test_accuracy"] == result.metrics["test_accuracy"] > 0.7
    assert (metrics["model"], len(result.history["epoch"])) == ("CNN 4-6 + NumPy MLP 294-16-10", 8)
    assert metrics["parameters"] == 9 * (4 + 24) + 2 * 10 + 294 * 16 + 16 + 16 * 10 + 10
    for name, key in (("history.csv", "val_accuracy"), ("cnn_history.csv", "cnn_val_accuracy")):
        last = run.read_history(result.folder / name)["val_accuracy"][-1]
        assert last == pytest.approx(metrics[key], abs=1e-5)
    model, _ = cnn.restore(result.folder / "backbone.safetensors")
    linear = run.accuracy(cnn.predict_logits(model, images.test.X), images.test.y)
    assert linear == metrics["cnn_test_accuracy"]
    check_restored(result, images)
    # the backbone stays as it was trained, and the head is the MLP on its features
    backbone = weights(result.folder, "backbone", "backbone.")
    assert same(weights(result.folder, "hybrid", "backbone."), backbone)
    features = cnn.extract_features(model, images)
    head, _ = mlp.restore(result.folder / "head.safetensors")
    assert head.mean == pytest.approx(features.train.X.mean(), rel=1e-5)
    accuracy = run.accuracy(head.predict_logits(features.test.X), images.test.y)
    assert accuracy == result.metrics["test_accuracy"]


def test_a_saved_backbone_gives_the_same_hybrid(frozen, tmp_path):
    first, images = frozen
    cache, backbone = first.folder / "features.npz", str(first.folder / "backbone.safetensors")
    written = cache.stat().st_mtime_ns
    architecture = {"channels": cnn.CHANNELS, "pool_after": cnn.POOL_AFTER}  # left out: the file's are used
    result = hybrid_train.run_once(settings(tmp_path / "run", backbone=backbone, **architecture), images)
    for name in ("test_accuracy", "test_loss", "test_ece", "cnn_test_accuracy", "val_accuracy", "model"):
        assert result.metrics[name] == first.metrics[name], name
    assert names_of_files(result) == FILES - {"checkpoint.safetensors"} | {"head.safetensors"}
    assert cache.stat().st_mtime_ns == written
    assert result.metrics["settings"]["channels"] == (4, 6)


def test_joint_training_continues_from_a_backbone_and_a_head(frozen, tmp_path):
    first, images = frozen
    options = {name: str(first.folder / f"{name}.safetensors") for name in ("backbone", "head")}
    options |= {"training": "joint", "learning_rate": 1e-9, "joint_learning_rate": 1e-9, "epochs": 1}
    result = hybrid_train.run_once(settings(tmp_path / "same", **options), images)
    before, after = (weights(folder, "hybrid", "classifier.") for folder in (first.folder, result.folder))
    assert np.allclose(before["classifier.params"], after["classifier.params"], rtol=0, atol=1e-6)
    assert result.model.classifier.mlp.mean == pytest.approx(first.model.classifier.mlp.mean)
    options |= {"learning_rate": 0.02, "joint_learning_rate": 0.003, "epochs": 3}
    result = hybrid_train.run_once(settings(tmp_path / "tuned", **options), images)
    assert result.metrics["val_accuracy"] > first.metrics["val_accuracy"]
    assert names_of_files(result) == FILES
    check_restored(result, images)


def test_joint_training_from_the_start(frozen, tmp_path):
    options = {"training": "joint", "epochs": 6, "head_norm": "layer", "head_dropout": 0.1}
    result = hybrid_train.run_once(settings(tmp_path / "run", **options), frozen[1])
    assert result.metrics["test_accuracy"] > 0.7
    assert "cnn_test_accuracy" not in result.metrics
    check_restored(result, frozen[1])


def test_an_earlier_layer_gives_the_features(frozen, tmp_path):
    first, images = frozen
    backbone = str(first.folder / "backbone.safetensors")
    result = hybrid_train.run_once(settings(tmp_path / "run", backbone=backbone, feature_layer=1), images)
    assert result.metrics["cnn_test_accuracy"] == first.metrics["cnn_test_accuracy"]
    assert result.metrics["model"] == "CNN 4-6 + NumPy MLP 784-16-10"  # 4 x 14 x 14 features
    assert (first.folder / "features_1.npz").exists()
    check_restored(result, images)


BACKBONE, HEAD, JOINT = {"backbone": "backbone"}, {"head": "head"}, {"training": "joint"}
REFUSED = [{"feature_layer": 3}, JOINT | {"feature_layer": 1}, JOINT | {"compile": True}, HEAD, HEAD | JOINT]
REFUSED += [HEAD | BACKBONE, JOINT | BACKBONE | {"head": "backbone"}, {"backbone": "head"}, {"backbone": "x"}]
CHANGES = {"split_seed": 5, "val_fraction": 0.3, "channels": (4, 7), "activation": "gelu", "feature_layer": 3}
REFUSED += [BACKBONE | {name: value} for name, value in CHANGES.items()] + [BACKBONE | {"other": "classes"}]


@pytest.mark.parametrize("options", REFUSED)
def test_what_cannot_be_combined_is_refused(options, frozen, tmp_path):
    (result, images), options = frozen, dict(options)
    for name in options.keys() & {"backbone", "head"}:
        options[name] = str(result.folder / f"{options[name]}.safetensors")
    if options.pop("other", None):
        images = dataclasses.replace(images, classes=(*images.classes[:9], "other"))
    with pytest.raises(run.Error):
        hybrid_train.run_once(settings(tmp_path / "run", **options), images)


def test_the_committed_network(real):
    """93.70 % of the 10,000 test images, as models/README.md says; 1,880 of the first 2,000."""
    model, metadata = hybrid_train.restore(ROOT / "models/hybrid.safetensors")
    correct = cnn.predict_logits(model, real.test.X[:2000]).argmax(axis=1) == real.test.y[:2000]
    assert correct.sum() == pytest.approx(1880, abs=2)
    assert tuple(metadata["classes"]) == real.classes
    models = ROOT / "models"
    assert same(weights(models, "hybrid", "backbone."), weights(models, "cnn", "backbone."))
