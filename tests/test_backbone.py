"""The CNN: its layers, parameters and summary by hand, and its weights file."""

import pytest
import torch

import cnn_feature_extraction as cnn
import data
from support import files, runs, settings
from torch_cnn import backbone
from torch_cnn.features import classifier_logits, extract_features

FIVE = (32, 64, 128, 256, 512)  # channels of five convolutions


def small(seed=0, **options):
    return backbone.CNN((4, 6), (1, 2), generator=torch.Generator().manual_seed(seed), **options)


def trained_in_part(model):
    """The model with running statistics and norms that are not those of the start."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                torch.nn.init.uniform_(tensor, 0.5, 2)
            for tensor in (module.bias, module.running_mean):
                torch.nn.init.uniform_(tensor, -0.5, 0.5)
    return model


def test_parameter_counts():
    # by hand: 3 x 3 x n_in x n_out weights and n_out biases each, then 512 x 3 x 3 features to 10 classes
    convolutions = 9 * (1 * 32 + 32 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + sum(FIVE)
    assert backbone.CNN(FIVE, (1, 2, 5), norm="none").num_parameters == convolutions + 4608 * 10 + 10 == 1_614_090
    assert backbone.CNN(FIVE, (1, 2, 5)).num_parameters == 1_614_090 + sum(FIVE)  # two numbers instead of a bias


def size(*channels, **options):
    """(parameters, multiply-adds) of the network with these settings, by its layer summary."""
    model = backbone.build(settings.load(cnn, channels=channels, **options))
    rows = backbone.layer_summary(model)
    assert sum(row[2] for row in rows) == model.num_parameters
    text = backbone.summary(model).splitlines()
    assert len(text) == 1 + len(rows) + 1
    assert text[-1].split() == ["total", f"{model.num_parameters:,}", f"{sum(row[3] for row in rows):,}"]
    assert model.eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    return model.num_parameters, sum(row[3] for row in rows)


def test_parameters_and_multiply_adds_of_published_networks():
    """By hand: 9 or k^2 for a kernel, maps of 28, 14, 7, 3, 1 pixels after each pooling."""
    # five convolutions 32-64-128-256-512, pooling after 1, 2, 5, no batch norm
    weights = [9 * 32, 9 * 32 * 64, 9 * 64 * 128, 9 * 128 * 256, 9 * 256 * 512]
    work = weights[0] * 784 + weights[1] * 196 + sum(weights[2:]) * 49 + 4608 * 10
    assert size(*FIVE, pool_after=(1, 2, 5), norm="none") == (sum(weights) + sum(FIVE) + 4608 * 10 + 10, work)
    # the same channels, batch norm, pooling after 1 to 4, average pooling, 5 x 5 kernels first
    k = [25 * 32, 25 * 32 * 64, *weights[2:]]
    work = k[0] * 784 + k[1] * 196 + k[2] * 49 + k[3] * 9 + k[4] * 1 + 512 * 10
    expected = sum(k) + 2 * sum(FIVE) + 512 * 10 + 10, work
    options = {"kernel_sizes": (5, 5, 3, 3, 3), "pool_after": (1, 2, 3, 4), "global_pool": "average", "pool": "average"}
    assert size(*FIVE, **options) == expected
    # five convolutions with dropout and a fully connected layer (128), which gives the features
    parameters = sum(weights) + sum(FIVE) + 4608 * 128 + 128 + 128 * 10 + 10
    assert size(*FIVE, pool_after=(1, 2, 5), norm="none", dropout=0.2, fc=(128,))[0] == parameters
    # two convolutions, one fully connected layer, dropout
    parameters = 9 * 32 + 32 + 9 * 32 * 64 + 64 + 64 * 49 * 128 + 128 + 1290
    assert size(32, 64, pool_after=(1, 2), norm="none", fc=(128,), fc_dropout=0.4)[0] == parameters
    # two convolutions, the second without padding, activation before batch norm; with two fully connected layers; dropout
    options = {"pool_after": (1, 2), "padding": (1, 0), "block_order": "activation_norm_pool"}
    convolutions = 9 * 64 + 9 * 64 * 128 + 3 * (64 + 128)
    assert size(64, 128, **options)[0] == convolutions + 128 * 36 * 10 + 10 == 120_970
    parameters = convolutions + 128 * 36 * 1024 + 1024 + 1024 * 1024 + 1024 + 4 * 1024 + 1024 * 10 + 10
    options |= {"fc": (1024, 1024), "fc_norm": True}
    assert size(64, 128, **options)[0] == parameters == 5_858_442
    assert size(64, 128, dropout=0.1, fc_dropout=0.1, **options)[0] == parameters


@pytest.mark.parametrize(("order", "expected"), [
    ("pool_norm_activation", "Conv2d MaxPool2d BatchNorm2d ReLU Dropout Flatten Linear LayerNorm ReLU"),
    ("norm_activation_pool", "Conv2d BatchNorm2d ReLU MaxPool2d Dropout Flatten Linear LayerNorm ReLU"),
    ("activation_norm_pool", "Conv2d ReLU BatchNorm2d MaxPool2d Dropout Flatten Linear ReLU LayerNorm"),
])  # fmt: skip
def test_the_order_of_a_block(order, expected):
    options = {"channels": (3,), "pool_after": (1,), "block_order": order, "dropout": 0.1, "fc": (5,), "fc_norm": True}
    model = backbone.build(settings.load(cnn, **options))
    assert [type(module).__name__ for module in model.backbone] == expected.split()
    assert (model.backbone[0].bias is not None) == (order == "activation_norm_pool")


def test_padding():
    assert backbone.feature_map_sizes((2, 2), (1,), (3,), (1, 0)) == [(14, 14), (12, 12)]
    assert backbone.feature_map_sizes((2, 2), (), (5, 3), (0,)) == [(24, 24), (22, 22)]
    s = settings.load(cnn, channels=(2, 2), pool_after=(1,), padding=(1, 0))
    cnn.check_settings(s)
    assert backbone.build(s).features(torch.zeros(1, 1, 28, 28)).shape == (1, 2 * 12 * 12)
    for options, message in (({"padding": (1, 0, 0)}, "3 for 2 convolutions"),
                             ({"padding": (0,), "kernel_sizes": (27,)}, "convolution 2 has a kernel of 27")):  # fmt: skip
        with pytest.raises(settings.SettingError, match=f"^--padding.*{message}"):
            cnn.check_settings(settings.load(cnn, channels=(2, 2), pool_after=(1,), **options))


def test_a_file_from_before_a_setting_existed_is_restored(digits, tmp_path):
    s = settings.load(cnn, data, runs, channels=(4, 6), pool_after=(1, 2))
    del s.padding, s.block_order
    model = small()
    backbone.save(tmp_path / "old.safetensors", model, digits, s)
    X = torch.rand(3, 1, 28, 28)
    assert torch.equal(extract_features(backbone.restore(tmp_path / "old.safetensors")[0], X), extract_features(model, X))


def test_the_settings_make_the_layers_they_name():
    options = {"activation": "gelu", "pool": "average", "kernel_sizes": (4, 5), "dropout": 0.3, "global_pool": "average",
               "fc": (7,), "fc_norm": True, "fc_dropout": 0.2}  # fmt: skip
    model = backbone.build(settings.load(cnn, channels=(3, 5), pool_after=(2,), **options))
    names = [type(module).__name__.removeprefix("Same") for module in model.backbone]
    assert names == ["Conv2d", "BatchNorm2d", "GELU", "Dropout", "Conv2d", "AvgPool2d", "BatchNorm2d", "GELU", "Dropout",
                     "AdaptiveAvgPool2d", "Flatten", "Linear", "LayerNorm", "GELU", "Dropout"]  # fmt: skip
    assert [module.p for module in model.backbone if isinstance(module, torch.nn.Dropout)] == [0.3, 0.3, 0.2]
    assert model.features(torch.zeros(2, 1, 28, 28)).shape == (2, 7)
    assert model.name == "CNN 3-5-7"


def test_an_even_kernel_keeps_the_size_of_the_maps_without_a_warning(recwarn):
    layer = backbone.convolution(2, 3, 4, bias=False)
    assert layer(torch.zeros(1, 2, 14, 14)).shape == (1, 3, 14, 14)
    assert not recwarn.list


@pytest.mark.parametrize(("init", "std"), [
    ("he", (2 / 576) ** 0.5), ("xavier", (2 / (576 + 1152)) ** 0.5), ("random", 0.02),
])  # fmt: skip
def test_initialization(init, std):
    s = settings.load(cnn, channels=(64, 128), pool_after=(), init=init, init_scale=0.02)
    weight = backbone.build(s, generator=torch.Generator().manual_seed(0)).backbone[3].weight
    assert weight.std().item() == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize(("pool_after", "expected"), [
    ((1, 2, 5), [14, 7, 7, 7, 3]), ((), [28] * 5), ((1, 2, 3, 4), [14, 7, 3, 1, 1]),
])  # fmt: skip
def test_feature_map_sizes(pool_after, expected):
    assert backbone.feature_map_sizes(FIVE, pool_after) == [(side, side) for side in expected]
    features = extract_features(backbone.CNN((2,) * 5, pool_after), torch.zeros(1, 1, 28, 28))
    assert features.shape == (1, 2 * expected[-1] ** 2)


@pytest.mark.parametrize(("channels", "pool_after", "message"), [
    (FIVE, (1, 2, 3, 4, 5), "convolution 5 would be 0 x 0"), (FIVE, (6,), "the last convolution is number 5"),
    ((), (), "at least one"),
])  # fmt: skip
def test_an_impossible_stack(channels, pool_after, message):
    with pytest.raises(ValueError, match=message):
        backbone.feature_map_sizes(channels, pool_after)
    with pytest.raises(settings.SettingError, match=f"^--(pool-after|channels).*{message}"):
        cnn.check_settings(settings.load(cnn, channels=channels, pool_after=pool_after))


def test_the_features_are_those_of_convolution_max_pooling_norm_and_relu():
    model = trained_in_part(small(mean=0.3, std=0.4)).eval()
    X = torch.rand(3, 1, 28, 28)
    x = (X - 0.3) / 0.4
    for convolution, norm in ((model.backbone[0], model.backbone[2]), (model.backbone[4], model.backbone[6])):
        x = torch.nn.functional.conv2d(x, convolution.weight, padding=1)
        side = x.shape[2] // 2
        x = x.reshape(3, -1, side, 2, side, 2).amax(dim=(3, 5))
        scale = norm.weight / torch.sqrt(norm.running_var + 1e-5)
        x = torch.relu((x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None])
    assert torch.allclose(extract_features(model, X), x.flatten(1), atol=1e-5)


def test_normalization_is_part_of_the_model():
    X = torch.rand(2, 1, 28, 28)
    plain, normalized = small(), small(mean=0.3, std=0.4)
    assert torch.allclose(extract_features(normalized, X), extract_features(plain, (X - 0.3) / 0.4))


# ---- its weights file


@pytest.fixture
def saved(digits, tmp_path):
    """(path, the model that was saved)."""
    s = settings.load(cnn, data, runs, channels=(4, 6), pool_after=(1, 2), split_seed=3)
    model = trained_in_part(small(mean=0.2, std=0.3))
    model.compute = {"device": "cpu", "precision": "float32"}
    backbone.save(tmp_path / "b.safetensors", model, digits, s)
    return tmp_path / "b.safetensors", model


def test_saved_and_restored_features_are_identical(saved):
    path, model = saved
    restored, metadata = backbone.restore(path)
    X = torch.rand(3, 1, 28, 28)
    assert torch.equal(extract_features(model, X), extract_features(restored, X))
    assert (metadata["settings"]["split_seed"], metadata["dataset"]) == (3, "digits")
    assert restored.compute == model.compute


def test_a_restored_model_is_in_eval_mode(saved):
    """Its first user calls it: these are the logits of eval mode, and running statistics stay as they are."""
    path, model = saved
    restored, _ = backbone.restore(path)
    assert not any(module.training for module in restored.modules())
    before = {name: value.clone() for name, value in restored.state_dict().items()}
    X = torch.rand(7, 1, 28, 28)
    with torch.no_grad():
        logits = restored(X)
    assert torch.allclose(logits, classifier_logits(model, extract_features(model, X)), atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in restored.state_dict().items())


def test_other_weights_files_are_refused(saved, tmp_path):
    path, _ = saved
    tensors, metadata = files.load_weights(path)
    other = tmp_path / "other.safetensors"
    for wrong in (metadata | {"settings": metadata["settings"] | {"channels": [4, 7]}}, {"model": "cnn"}):
        files.save_weights(other, tensors, wrong)
        with pytest.raises(files.FileError, match=f"{other}: not in this project's format"):
            backbone.restore(other)
    files.save_weights(other, tensors, {"model": "mlp"})
    with pytest.raises(files.FileError, match=r"contains a NumPy MLP .*, expected a CNN \(backbone.safetensors\)"):
        backbone.restore(other)


def test_features_of_an_earlier_convolution():
    model = backbone.CNN((4, 8, 6), (1, 3), generator=torch.Generator().manual_seed(0)).eval()
    X = torch.rand(5, 1, 28, 28)
    with torch.no_grad():
        after_two = model.backbone[:7]((X - model.mean) / model.std)  # conv, pool, norm, activation; conv, norm, activation
        backbone.cut_after(model, 3)
        assert model.features(X).shape == (5, 6 * 7 * 7)  # the last one: nothing is removed
        backbone.cut_after(model, 2)
        assert torch.equal(model.features(X), after_two.flatten(1))
    assert after_two.shape == (5, 8, 14, 14)
    assert [type(layer).__name__ for layer in model.backbone].count("Conv2d") == 2


@pytest.mark.parametrize("more", [{"fc": (7,)}, {"global_pool": "average"}])
def test_features_of_the_last_convolution_are_its_maps(more):
    model = backbone.CNN((4, 6), (1, 2), generator=torch.Generator().manual_seed(0), **more).eval()
    X = torch.rand(5, 1, 28, 28)
    with torch.no_grad():
        after_two = model.backbone[:8]((X - model.mean) / model.std)  # conv, pool, norm, activation, twice
        backbone.cut_after(model, 2)
        assert torch.equal(model.features(X), after_two.flatten(1))
    settings = {"channels": (4, 6), "pool_after": (1, 2), **more}
    assert after_two.shape == (5, 6, 7, 7)
    assert backbone.num_features_after(2, **settings) == 6 * 7 * 7
