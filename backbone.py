"""The convolutional network, in PyTorch: what cnn_feature_extraction.py trains, and a table of its stages."""

import copy
import warnings

import torch
from torch import nn

import settings

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "sigmoid": nn.Sigmoid}
POOLS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
INITS = {  # (weight, standard deviation for random, generator): He et al. 2015, Glorot and Bengio 2010, or plain
    "he": lambda weight, scale, generator: nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator),
    "xavier": lambda weight, scale, generator: nn.init.xavier_normal_(weight, generator=generator),
    "random": lambda weight, scale, generator: nn.init.normal_(weight, std=scale, generator=generator),
}
SHAPE = ("channels", "kernel_sizes", "pool_after", "pool", "reduce", "batch_norm", "activation", "dropout", "fc", "fc_norm",
         "fc_dropout", "init", "init_scale")  # the settings that make the network what it is  # fmt: skip


# of kernels with an even side, whose input PyTorch copies once more for it
warnings.filterwarnings("ignore", "Using padding='same' with even kernel")


class CNN(nn.Module):
    """Convolutions, each with pooling, batch normalisation, activation and dropout or not, then fully connected layers.

    Pooling comes before normalisation and activation, which then have a quarter of the pixels to do. Input: (N, 1, 28, 28)
    in [0, 1]; `mean` and `std` of the training pixels are part of the model. The keywords are the settings of this script.
    `features` is what enters the last linear layer, the classifier: the flattened maps (or their means, where reduce is
    "average"), or what the last layer of `fc` makes of them.
    """

    def __init__(self, channels, pool_after, batch_norm=True, classes=10, mean=0.0, std=1.0, generator=None, *,
                 kernel_sizes=(3,), pool="max", reduce="flatten", activation="relu", dropout=0.0, fc=(), fc_norm=False,
                 fc_dropout=0.0, init="he", init_scale=0.05):  # fmt: skip
        super().__init__()
        self.name = f"CNN {'-'.join(map(str, (*channels, *fc)))}"
        self.trained_on = {}  # {"device": ..., "precision": ...}
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        kernels = kernel_sizes * len(channels) if len(kernel_sizes) == 1 else kernel_sizes
        layers, n_in = [], 1
        for number, (n_out, kernel) in enumerate(zip(channels, kernels, strict=True), 1):
            layers.append(nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2 if kernel % 2 else "same", bias=not batch_norm))
            INITS[init](layers[-1].weight, init_scale, generator)
            if not batch_norm:
                nn.init.zeros_(layers[-1].bias)
            if number in pool_after:
                layers.append(POOLS[pool](2))
            if batch_norm:
                layers.append(nn.BatchNorm2d(n_out))
            layers.append(ACTIVATIONS[activation]())
            if dropout:
                layers.append(nn.Dropout(dropout))
            n_in = n_out
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if reduce == "average" else [nn.Flatten()]
        n_in *= 1 if reduce == "average" else sides(channels, pool_after)[-1] ** 2
        for n_out in fc:
            layers.append(nn.Linear(n_in, n_out))
            INITS[init](layers[-1].weight, init_scale, generator)
            nn.init.zeros_(layers[-1].bias)
            layers += [nn.LayerNorm(n_out)] if fc_norm else []
            layers.append(ACTIVATIONS[activation]())
            layers += [nn.Dropout(fc_dropout)] if fc_dropout else []
            n_in = n_out
        self.backbone = nn.Sequential(*layers)  # -> (N, features)
        self.classifier = nn.Linear(n_in, classes)
        nn.init.normal_(self.classifier.weight, std=self.classifier.in_features**-0.5, generator=generator)
        nn.init.zeros_(self.classifier.bias)
        self.size = sum(p.numel() for p in self.parameters())

    def features(self, x):
        return self.backbone((x - self.mean) / self.std)

    def forward(self, x):
        return self.classifier(self.features(x))


def build(s, classes=10, mean=0.0, std=1.0, generator=None):
    """The CNN of the settings `s` of cnn_feature_extraction.py, or of anything that has those in SHAPE as attributes."""
    shape = {name: getattr(s, name) for name in SHAPE}
    shape = {name: tuple(value) if isinstance(value, list) else value for name, value in shape.items()}
    return CNN(classes=classes, mean=mean, std=std, generator=generator, **shape)


def sides(channels, pool_after):
    """Side of the square feature maps after each stage, in pixels. Raises settings.SettingError for an impossible stack."""
    given = "--pool-after " + " ".join(map(str, pool_after))
    if not channels:
        raise settings.SettingError("--channels: at least one convolution")
    if pool_after and max(pool_after) > len(channels):
        raise settings.SettingError(f"{given}: the last convolution is number {len(channels)}")
    result = [28]
    for number in range(1, len(channels) + 1):
        result.append(result[-1] // 2 if number in pool_after else result[-1])
        if result[-1] == 0:
            raise settings.SettingError(f"{given}: the maps of convolution {number} would be 0 x 0 pixels: remove a pool")
    return result[1:]


def stages(model):
    """What a CNN is made of: [(name, shape of what it puts out, parameters, multiply-adds for an image), ...]."""
    rows, x = [], torch.zeros(1, 1, 28, 28, device="meta")  # which has a shape, but no numbers
    model = copy.deepcopy(model).to("meta").eval()
    linear = isinstance(model.classifier, nn.Linear)  # in joint training it is the NumPy MLP
    for module in (*model.backbone, *([model.classifier] if linear else [])):
        x = module(x)
        name, parameters, work = type(module).__name__, sum(p.numel() for p in module.parameters()), 0
        if isinstance(module, nn.Conv2d):
            name, work = f"{name} {module.kernel_size[0]} x {module.kernel_size[1]}", x.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            work = module.weight.numel()
        if work:
            rows.append([name, (), parameters, work])
        else:
            rows[-1][0] += f", {name}"
            rows[-1][2] += parameters
        rows[-1][1] = tuple(x.shape[1:])
    return [tuple(row) for row in rows]


def stage_table(model):
    """The same as text, with the sums."""
    rows = stages(model)
    rows.append(("sum", (), sum(row[2] for row in rows), sum(row[3] for row in rows)))
    width = max(len(row[0]) for row in rows) + 2
    lines = [f"{'stage':<{width}}{'output':>14}{'parameters':>12}{'multiply-adds':>15}"]
    for name, shape, parameters, work in rows:
        lines.append(f"{name:<{width}}{' x '.join(map(str, shape)):>14}{parameters:12,}{work:15,}")
    return "\n".join(lines)


def layout(x):
    """Channels last, which oneDNN and cuDNN are faster with; Metal is not."""
    return x if x.device.type == "mps" else x.contiguous(memory_format=torch.channels_last)
