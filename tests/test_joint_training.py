"""CNN and NumPy MLP as one network: the gradient between them, joint steps against PyTorch, schedule, resuming."""

import copy

import numpy as np
import pytest
import torch

import cnn_feature_extraction as cnn
import data
import hybrid_train
import mlp_from_scratch as mlp
from numpy_nn import layers
from numpy_nn.optimizers import lr_at
from support import files, runs, settings
from torch_cnn import backbone


def tensors(split, n=None):
    return torch.from_numpy(split.X[:n])[:, None], torch.from_numpy(split.y[:n])


@pytest.mark.parametrize("options", [
    {"activation": "tanh"}, {"activation": "gelu", "norm": "layer"}, {"activation": "sigmoid", "norm": "batch"},
    {"activation": "tanh", "dropout": 0.4},
])  # fmt: skip
def test_the_gradient_that_the_mlp_hands_to_pytorch(options):
    rng, masks = np.random.default_rng(0), np.random.default_rng(1)
    network = mlp.MLP((6, 5, 4, 3), rng, dtype=np.float64, dropout_rng=masks, **options)
    network.params += 0.1 * np.random.default_rng(2).standard_normal(network.params.shape)
    features = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    # a copy for each call: gradcheck runs all backward passes after many forward passes, and each draws the same dropout
    assert torch.autograd.gradcheck(lambda x: hybrid_train.NumpyMLPFunction.apply(x, copy.deepcopy(network)), (features,))


def test_backward_through_an_earlier_forward_pass_is_refused():
    network = mlp.MLP((3, 2), np.random.default_rng(0))
    features = torch.ones(4, 3, requires_grad=True)
    first = hybrid_train.NumpyMLPFunction.apply(features, network)
    second = hybrid_train.NumpyMLPFunction.apply(features, network)
    second.sum().backward()
    with pytest.raises(RuntimeError, match="another forward pass"):
        first.sum().backward()


def test_twenty_joint_steps_match_torch():
    """The same weights, batches and dropout masks, in float64: convolution, NumPy MLP with dropout, SGD and Adam."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(20, 16, 1, 8, 8, dtype=torch.float64, generator=generator)
    labels = torch.randint(4, (20, 16), generator=generator)
    network = mlp.MLP((48, 12, 10, 4), np.random.default_rng(0), dropout=0.3, dropout_rng=np.random.default_rng(1),
                      dtype=np.float64)  # fmt: skip
    head = hybrid_train.NumpyHead(network, 0.01, mean=0.3, std=0.7)

    def convolution():
        torch.manual_seed(5)
        return torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
                                   torch.nn.Flatten()).double()  # fmt: skip

    model, reference = convolution(), convolution()
    weights = {name: torch.tensor(view, requires_grad=True) for name, view in network.views.items()}
    sgd, torch_sgd = (torch.optim.SGD(module.parameters(), 0.1, 0.9, nesterov=True) for module in (model, reference))
    adam = torch.optim.Adam(weights.values(), 0.01)
    for step, (x, y) in enumerate(zip(images, labels, strict=True)):
        lr_factor = 1 - step / 20
        loss = torch.nn.functional.cross_entropy(head(model(x)), y, label_smoothing=0.1)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        head.step(lr_factor)
        masks = [torch.tensor(layer.mask) for layer in network.layers if isinstance(layer, layers.Dropout)]
        hidden = (reference(x) - 0.3) / 0.7
        for number, mask in enumerate(masks):
            hidden = torch.relu(hidden @ weights[f"{number}.W"] + weights[f"{number}.b"]) * mask
        logits = hidden @ weights["2.W"] + weights["2.b"]
        expected = torch.nn.functional.cross_entropy(logits, y, label_smoothing=0.1)
        adam.param_groups[0]["lr"] = 0.01 * lr_factor
        for optimizer in (torch_sgd, adam):
            optimizer.zero_grad()
        expected.backward()
        for optimizer in (torch_sgd, adam):
            optimizer.step()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    for parameter, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(parameter, other, rtol=1e-9, atol=1e-12)
    for name, view in network.views.items():
        assert np.allclose(view, weights[name].detach().numpy(), rtol=1e-9, atol=1e-12)
    assert np.array_equal(head.params, network.params)


def joint_trainer(s, num_images, learning_rate=0.01):
    model = backbone.build(s, generator=torch.Generator().manual_seed(0))
    model.classifier = hybrid_train.NumpyHead(mlp.MLP((196, 12, 10), np.random.default_rng(0)), learning_rate)
    return cnn.Trainer(model, s, num_images, head=model.classifier)


@pytest.mark.parametrize("options", [{"schedule": "linear", "warmup": 0.3}, {"schedule": "cosine", "learning_rate": 0.05}])
def test_the_heads_learning_rate_follows_the_schedule(options, digits):
    X, y = tensors(digits.train, 250)
    s = settings.load(cnn, channels=(3, 4), pool_after=(1, 2), batch_size=50, epochs=3, **options)
    trainer, rates = joint_trainer(s, 250, 0.003), []
    step = trainer.head.optimizer.step
    trainer.head.optimizer.step = lambda lr: (rates.append(lr), step(lr))
    trainer.fit(X, y, X, y)
    expected = [lr_at(number / 15, 0.003, s.schedule, s.warmup, start=0.05) for number in range(15)]
    assert rates == pytest.approx(expected, rel=1e-12)
    assert max(rates) > 5 * min(rates)


def test_resumed_after_any_epoch_it_ends_the_same(digits, tmp_path):
    s = settings.load(cnn, channels=(3, 4), pool_after=(1, 2), batch_size=100, epochs=3)
    X, y, X_val, y_val = *tensors(digits.train, 300), *tensors(digits.val)

    def save_checkpoint():
        files.save_weights(tmp_path / f"{len(complete.history['epoch'])}.safetensors", *complete.state_dict())

    complete = joint_trainer(s, 300)
    complete.fit(X, y, X_val, y_val, save_checkpoint=save_checkpoint)
    for epoch in (1, 2):
        resumed = joint_trainer(s, 300)
        resumed.load_state_dict(*files.load_weights(tmp_path / f"{epoch}.safetensors"))
        resumed.fit(X, y, X_val, y_val)
        assert resumed.history["train_loss"] == complete.history["train_loss"]
        for (name, array), other in zip(complete.state_dict()[0].items(), resumed.state_dict()[0].values(), strict=True):
            assert np.array_equal(array, other), (epoch, name)


def test_evaluating_the_moving_average_leaves_the_trained_head_alone(digits):
    """The average is a copy with a NumPy MLP of its own, into which evaluation writes the averaged parameters."""
    s = settings.load(cnn, channels=(3, 4), pool_after=(1, 2), batch_size=50, epochs=1)
    X, y = tensors(digits.train, 100)
    trainer = joint_trainer(s, 100)
    trainer.fit(X, y, X, y)
    averaged = trainer.ema_model.module.classifier
    assert not torch.equal(averaged.params, trainer.head.params)
    before = trainer.head.mlp.params.copy()
    trainer.evaluate(X, y)
    assert np.array_equal(trainer.head.mlp.params, before)


def test_a_copied_head_is_another_network():
    head = hybrid_train.NumpyHead(mlp.MLP((3, 4, 2), np.random.default_rng(0)), 0.1)
    averaged = copy.deepcopy(head).eval()
    averaged.params.zero_()
    x = torch.ones(5, 3)
    before = head.eval()(x).clone()
    assert not averaged(x).any()
    assert torch.equal(head(x), before)


def test_a_head_standardizes_its_features():
    network = mlp.MLP((3, 4, 2), np.random.default_rng(0))
    features = torch.rand(5, 3)
    plain, standardized = hybrid_train.NumpyHead(network).eval(), hybrid_train.NumpyHead(network, mean=0.3, std=0.7).eval()
    assert torch.allclose(standardized(features), plain((features - 0.3) / 0.7), atol=1e-6)


# ---- heads from files


@pytest.fixture
def head_file(digits, tmp_path):
    """(path, settings of a joint run) of a head for 196 features of the digits."""
    s = settings.load(hybrid_train, cnn, data, runs, dataset="digits", channels=(3, 4), pool_after=(1, 2))
    metadata = {"dataset": digits.name, "classes": digits.classes, "mean": 0.4, "std": 0.9, "split_seed": 0}
    network = mlp.MLP((196, 12, 10), np.random.default_rng(0))
    mlp.save(tmp_path / "head.safetensors", network, metadata)
    return tmp_path / "head.safetensors", s


def test_a_saved_head_is_loaded(head_file, digits):
    path, s = head_file
    head = hybrid_train.load_head(path, digits, s)
    assert head.mlp.config["sizes"] == (196, 12, 10)
    assert (head.mean, head.std, head.learning_rate) == (0.4, 0.9, s.joint_learning_rate)
    assert np.array_equal(head.mlp.params, mlp.restore(path)[0].params)


@pytest.mark.parametrize(("setting", "value", "message"), [
    ("channels", (3, 5), "is a head for 196 features and 10 classes of digits; expected 245 features"),
    ("split_seed", 5, "was trained with --split-seed 0; with 5, the validation split would contain images"),
    ("val_fraction", 0.5, "was trained with --val-fraction 0.2; with 0.5, the validation split would contain images"),
])  # fmt: skip
def test_a_head_that_does_not_fit_is_refused(head_file, digits, setting, value, message):
    path, s = head_file
    setattr(s, setting, value)
    with pytest.raises(files.FileError, match=message):
        hybrid_train.load_head(path, digits, s)


def test_a_head_trained_on_the_validation_images_is_refused_where_they_validate(head_file, digits):
    path, s = head_file
    network, metadata = mlp.restore(path)
    mlp.save(path, network, metadata | {"train_on_val": True})
    with pytest.raises(files.FileError, match="was trained with --train-on-val, so give it here as well"):
        hybrid_train.load_head(path, digits, s)
    s.train_on_val = True
    assert hybrid_train.load_head(path, digits, s).mlp.config["sizes"] == (196, 12, 10)


@pytest.mark.parametrize(("norm", "changes"), [("batch", {}), ("none", {"mean": [0.1] * 196})])
def test_heads_of_mlp_from_scratch_are_refused(norm, changes, head_file, digits):
    path, s = head_file
    _, metadata = mlp.restore(path)
    network = mlp.MLP((196, 12, 10), np.random.default_rng(0), norm=norm)
    mlp.save(path, network, metadata | network.config | changes)
    with pytest.raises(files.FileError, match="needs a head from this script, without batch normalization"):
        hybrid_train.load_head(path, digits, s)
