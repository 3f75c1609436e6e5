"""The convolutional network in PyTorch: layers, summary, and its weights file."""

if __name__ == "__main__":
    raise SystemExit("torch_cnn/backbone.py is a module, not a script: cnn_feature_extraction.py uses it")

import copy
import math
import warnings
from types import SimpleNamespace

import torch
from torch import nn

from support import files, runs

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "sigmoid": nn.Sigmoid}
POOLS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
INITS = {  # (weight, standard deviation for random, generator): He et al. 2015, Glorot and Bengio 2010, or plain
    "he": lambda weight, scale, generator: nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator),
    "xavier": lambda weight, scale, generator: nn.init.xavier_normal_(weight, generator=generator),
    "random": lambda weight, scale, generator: nn.init.normal_(weight, std=scale, generator=generator),
}
# The settings that define the network
ARCHITECTURE_KEYS = ("channels", "kernel_sizes", "padding", "pool_after", "pool", "global_pool", "norm", "activation",
                     "block_order", "dropout", "fc", "fc_norm", "fc_dropout", "init", "init_scale")  # fmt: skip


class CNN(nn.Module):
    """Convolutions, each with optional pooling, batch normalization, activation and dropout, then fully connected layers.

    By default, pooling comes before normalization and activation, which then process a quarter of the pixels. Input:
    (N, 1, *image_shape) in [0, 1]; `mean` and `std` of the training pixels are part of the model. The keywords are the
    settings of cnn_feature_extraction.py. `features` is the input of the last linear layer, the classifier: the flattened
    feature maps (or their means, with global_pool "average"), or the output of the last layer of `fc`.
    """

    def __init__(self, channels, pool_after, norm="batch", classes=10, mean=0.0, std=1.0, generator=None, *,
                 kernel_sizes=(3,), padding=(), pool="max", global_pool="none", activation="relu",
                 block_order="pool_norm_activation", dropout=0.0, fc=(), fc_norm=False, fc_dropout=0.0, init="he",
                 init_scale=0.05, image_shape=(28, 28)):  # fmt: skip
        super().__init__()
        self.name = f"CNN {'-'.join(map(str, (*channels, *fc)))}"
        self.input_shape = (1, *image_shape)
        self.compute = {}  # {"device": ..., "precision": ...} of its training
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        kernels, paddings = (for_each(values, channels) for values in (kernel_sizes, padding or (None,)))
        sizes = feature_map_sizes(channels, pool_after, kernel_sizes, padding, image_shape)
        activation_first = block_order.startswith("activation")
        bias = norm == "none" or activation_first  # batch normalization right after a convolution would cancel it
        layers, n_in = [], 1
        for number, (n_out, kernel, pad) in enumerate(zip(channels, kernels, paddings, strict=True), 1):
            layers.append(convolution(n_in, n_out, kernel, bias, pad))
            initialize(layers[-1], init, init_scale, generator)
            block = {"pool": [POOLS[pool](2)] if number in pool_after else [],
                     "norm": [nn.BatchNorm2d(n_out)] if norm == "batch" else [],
                     "activation": [ACTIVATIONS[activation]()]}  # fmt: skip
            layers += [layer for name in block_order.split("_") for layer in block[name]]
            layers += [nn.Dropout(dropout)] if dropout else []
            n_in = n_out
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if global_pool == "average" else [nn.Flatten()]
        n_in *= 1 if global_pool == "average" else math.prod(sizes[-1])
        for n_out in fc:
            layers.append(nn.Linear(n_in, n_out))
            initialize(layers[-1], init, init_scale, generator)
            block = [*([nn.LayerNorm(n_out)] if fc_norm else []), ACTIVATIONS[activation]()]
            layers += reversed(block) if activation_first else block
            layers += [nn.Dropout(fc_dropout)] if fc_dropout else []
            n_in = n_out
        self.backbone = nn.Sequential(*layers)  # (N, 1, height, width) -> (N, features)
        self.classifier = nn.Linear(n_in, classes)
        initialize(self.classifier, "random", n_in**-0.5, generator)
        self.num_parameters = sum(p.numel() for p in self.parameters())

    def features(self, x):
        return self.backbone((x - self.mean) / self.std)

    def forward(self, x):
        return self.classifier(self.features(x))


class SameConv2d(nn.Conv2d):
    """A convolution with an even kernel that keeps the size of the maps; without PyTorch's warning that it copies x."""

    def forward(self, x):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using padding='same' with even kernel")
            return super().forward(x)


def cut_after(model, number):
    """Remove the layers of `model` after convolution `number` and its block, so that this block gives the features.

    0 changes nothing. The classifier no longer fits then and must be replaced.
    """
    if not number:
        return
    layers = list(model.backbone)
    starts = [place for place, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    ends = [place for place, layer in enumerate(layers) if isinstance(layer, (nn.AdaptiveAvgPool2d, nn.Flatten))]
    model.backbone = nn.Sequential(*layers[: [*starts, ends[0]][number]], nn.Flatten())


def num_features_after(number, channels, pool_after, kernel_sizes=(3,), padding=(), image_shape=(28, 28), **ignored):
    """Number of features of a CNN with these settings that `cut_after` has cut."""
    sizes = feature_map_sizes(channels, pool_after, kernel_sizes, padding, image_shape)
    return channels[number - 1] * math.prod(sizes[number - 1])


def initialize(layer, init, scale, generator):
    """Draw the weights of a convolution or linear layer; its bias starts at 0. On the meta device it has no values."""
    draw = INITS[init]
    if not layer.weight.is_meta:
        draw(layer.weight, scale, generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def for_each(values, channels):
    """One value for each convolution; a single value is for all."""
    return tuple(values) * len(channels) if len(values) == 1 else tuple(values)


def convolution(n_in, n_out, kernel, bias, padding=None):
    """A convolution; without `padding` (pixels), its output is as large as its input."""
    if padding is not None:
        return nn.Conv2d(n_in, n_out, kernel, padding=padding, bias=bias)
    if kernel % 2:
        return nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2, bias=bias)
    return SameConv2d(n_in, n_out, kernel, padding="same", bias=bias)


def build(s, classes=10, mean=0.0, std=1.0, generator=None, image_shape=(28, 28)):
    """The CNN of the settings `s`, which have ARCHITECTURE_KEYS as attributes. Raises ValueError for an impossible stack."""
    architecture = {name: getattr(s, name) for name in ARCHITECTURE_KEYS if hasattr(s, name)}  # older files lack some
    architecture = {name: tuple(value) if isinstance(value, list) else value for name, value in architecture.items()}
    for name in ("channels", "kernel_sizes", "fc"):
        if min(architecture.get(name, ()), default=1) < 1:
            raise ValueError(f"{name}: must be at least 1")
    return CNN(classes=classes, mean=mean, std=std, generator=generator, image_shape=image_shape, **architecture)


def feature_map_sizes(channels, pool_after, kernel_sizes=(3,), padding=(), image_shape=(28, 28)):
    """(height, width) of the feature maps after each convolution, in pixels. Raises ValueError for an impossible stack."""
    prefix = "pool_after " + " ".join(map(str, pool_after))
    if not channels:
        raise ValueError("channels: at least one convolution is needed")
    if pool_after and max(pool_after) > len(channels):
        raise ValueError(f"{prefix}: the last convolution is number {len(channels)}")
    sizes, kernels = [tuple(image_shape)], for_each(kernel_sizes, channels)
    for number, kernel in enumerate(kernels, 1):
        lost = kernel - 1 - 2 * for_each(padding, channels)[number - 1] if padding else 0
        height, width = (side - lost for side in sizes[-1])
        if min(height, width) <= 0:
            raise ValueError(f"padding {' '.join(map(str, padding))}: convolution {number} has a kernel of {kernel} pixels, "
                             f"larger than its padded input")  # fmt: skip
        sizes.append((height // 2, width // 2) if number in pool_after else (height, width))
        if min(sizes[-1]) == 0:
            size = " x ".join(map(str, sizes[-1]))
            raise ValueError(f"{prefix}: the maps of convolution {number} would be {size} pixels; remove a pooling layer")
    return sizes[1:]


def layer_summary(model):
    """[(layers, output shape, parameters, multiply-adds per image), ...]: a row for each convolution or linear layer.

    A residual block is one row.
    """
    model = copy.deepcopy(model).to("meta").eval()
    rows, x = [], (torch.zeros(1, *model.input_shape, device="meta") - model.mean) / model.std  # a shape without data
    classifier = {nn.Linear: [model.classifier], nn.Sequential: model.classifier}.get(type(model.classifier), [])
    for module in (*model.backbone, *classifier):  # the classifier can also be the NumPy MLP
        x, multiply_adds = count_multiply_adds(module, x)
        name, parameters = type(module).__name__, sum(p.numel() for p in module.parameters())
        if isinstance(module, nn.Conv2d):
            name = f"Conv2d {module.kernel_size[0]} x {module.kernel_size[1]}"
        if multiply_adds or not rows:
            rows.append([name, (), parameters, multiply_adds])
        else:
            rows[-1][0] += f", {name}"
            rows[-1][2] += parameters
        rows[-1][1] = tuple(x.shape[1:])
    return [tuple(row) for row in rows]


def count_multiply_adds(module, x):
    """(output of the module for one image x, multiply-adds of its convolutions and linear layers)."""
    counts = []
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(lambda layer, _, y: counts.append(y.numel() * layer.weight[0].numel()))
    return module(x), sum(counts)


def summary(model):
    """`layer_summary` as a text table, with the totals."""
    rows = layer_summary(model)
    rows.append(("total", (), sum(row[2] for row in rows), sum(row[3] for row in rows)))
    width = max(len(row[0]) for row in rows) + 2
    lines = [f"{'layers':<{width}}{'output':>14}{'parameters':>12}{'multiply-adds':>15}"]
    for name, shape, parameters, multiply_adds in rows:
        lines.append(f"{name:<{width}}{' x '.join(map(str, shape)):>14}{parameters:12,}{multiply_adds:15,}")
    return "\n".join(lines)


def to_channels_last(x):
    """x in channels-last memory format, which is faster with oneDNN and cuDNN, but not with Metal."""
    return x if x.device.type == "mps" else x.contiguous(memory_format=torch.channels_last)


def numpy_state(module, prefix=""):
    """The module's state_dict as {prefix + name: NumPy array}."""
    return {prefix + name: value.cpu().contiguous().numpy() for name, value in module.state_dict().items()}


def save(path, model, images, s, kind="cnn", **metadata):
    """Write the network, its settings, what it was trained on, and other metadata as one safetensors file."""
    metadata = {"model": kind, "settings": runs.training_settings(vars(s)), "compute": model.compute,
                "dataset": images.name, "classes": images.classes, "image_shape": images.image_shape} | metadata  # fmt: skip
    files.save_weights(path, numpy_state(model), metadata)


def build_empty(metadata):
    """The CNN of a weights file's metadata, on the meta device, where its weights take no memory."""
    shape = metadata.setdefault("image_shape", [28, 28])  # which older files lack
    with torch.device("meta"):
        return build(SimpleNamespace(**metadata["settings"]), len(metadata["classes"]), image_shape=shape)


def load_tensors(model, tensors):
    """Give the `model`, which may be on the meta device, the weights {name: NumPy array}.

    A file may declare any size: raises ValueError or RuntimeError where they do not fit, with no memory allocated.
    """
    for name, value in model.state_dict().items():
        array = torch.from_numpy(tensors[name])
        if (array.shape, array.dtype) != (value.shape, value.dtype):
            raise ValueError(f"{name} has shape {tuple(array.shape)}, expected {tuple(value.shape)}")
    copies = {name: torch.from_numpy(array).clone() for name, array in tensors.items()}
    model.load_state_dict(copies, assign=True)


def restore(path):
    """(the model on the CPU in eval mode, metadata) of a file that `save` wrote. Raises files.FileError."""
    tensors, metadata = files.load_weights(path, "cnn")
    with files.checked_format(path):
        model = build_empty(metadata)
        load_tensors(model, tensors)
        metadata["dataset"], metadata["settings"]["split_seed"]
        model.compute = metadata["compute"]
    return model.eval(), metadata
