"""torchvision's ResNet18 for gray images: with ImageNet's weights, or new with a stem for small images."""

if __name__ == "__main__":
    raise SystemExit("torch_cnn/resnet.py is a module, not a script: run transfer_learning.py")

import hashlib
import socket
import sys
from http.client import HTTPException
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18

from support import files
from torch_cnn.backbone import load_tensors
from torch_cnn.devices import generator

WEIGHTS = ResNet18_Weights.IMAGENET1K_V1


class Network(nn.Module):
    """A backbone and a classifier, as layers in order. `mean` and `std` of the input are part of the model.

    input_shape: of one input, such as (1, 28, 28). `features` is the output of the backbone.
    """

    chunk_size = 500  # images at a time in features.extract_features

    def __init__(self, name, backbone, classifier, mean=0.0, std=1.0, input_shape=(1, 28, 28)):
        super().__init__()
        self.name, self.backbone, self.classifier, self.input_shape = name, backbone, classifier, input_shape
        self.compute = {}  # {"device": ..., "precision": ...} of its training
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    @property
    def num_parameters(self):
        return sum(p.numel() for p in self.parameters())

    def features(self, x):
        return self.backbone((x - self.mean) / self.std)

    def forward(self, x):
        return self.classifier(self.features(x))


class Standardize(nn.Module):
    """(x - mean) / std with two numbers, which are part of the model."""

    def __init__(self, mean=0.0, std=1.0):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, x):
        return (x - self.mean) / self.std


def build(s, classes=10, mean=0.0, std=1.0, pretrained=False):
    """ResNet18 (He et al. 2016) as a Network, with the settings `s` of transfer_learning.py.

    Images (N, 1, 28, 28) in [0, 1] -> features (N, 512) -> logits (N, classes). "from_scratch": 3 x 3 convolution with
    stride 1 in place of 7 x 7 with stride 2; max-pooling after the first stage, not before it; one channel, standardized
    by mean and std, those of the training pixels. Otherwise torchvision's network: the gray image is copied to three
    channels, which are standardized by ImageNet's mean and std. "frozen" also standardizes the features.
    pretrained: load ImageNet's weights. Raises files.FileError where they are missing or damaged.
    """
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        torch.manual_seed(generator("cpu", s.seed).initial_seed())
        network, classifier = resnet18(), fully_connected(512, s.fc, s.fc_dropout, classes)
        small_stem = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(small_stem.weight, mode="fan_out", nonlinearity="relu")
    published = load_imagenet_weights(network) if pretrained else True
    if s.training == "from_scratch":
        stem, pool = [small_stem, network.bn1, network.relu], [nn.MaxPool2d(2)]
    else:
        stem, pool = [network.conv1, network.bn1, network.relu, network.maxpool], []
        preset = WEIGHTS.transforms()
        mean, std = ([[[value]] for value in values] for values in (preset.mean, preset.std))  # (3, 1, 1)
    size = input_size(s)
    enlarge = [nn.Upsample((size, size), mode="bilinear")] if size else []
    stages = [*network.layer1, *pool, *network.layer2, *network.layer3, *network.layer4]
    standardize = [Standardize()] if s.training == "frozen" else []
    backbone = nn.Sequential(*enlarge, *stem, *stages, network.avgpool, nn.Flatten(), *standardize)
    name = "ResNet18 " + s.training.replace("fine_tuned", "fine-tuned").replace("_", " ")
    if s.fc and s.training != "frozen":
        name += f", fully connected {'-'.join(map(str, s.fc))}"
    model = Network(name if published else f"{name} (not ImageNet's weights)", backbone, classifier, mean, std)
    model.chunk_size = min(500, 500 * 64**2 // max(64, size) ** 2)  # less memory for large images
    return model


def input_size(s):
    """Side to which images are enlarged, in pixels; 0: not enlarged."""
    return s.input_size or (0 if s.training == "from_scratch" else 64)


def fully_connected(n_in, hidden, dropout, classes):
    """Linear layers n_in -> hidden -> classes, each but the last with ReLU and dropout."""
    layers = []
    for n_out in hidden:
        layers += [nn.Linear(n_in, n_out), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        n_in = n_out
    return nn.Sequential(*layers, nn.Linear(n_in, classes))


def load_imagenet_weights(network):
    """Load ImageNet's weights into torchvision's ResNet18, from torch's cache, after a download to it if need be.

    Returns whether the file is the one that torchvision publishes. Raises files.FileError.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", WEIGHTS.url.rsplit("/", 1)[1])
    if not path.exists():
        download(path)
    try:
        network.load_state_dict(WEIGHTS.get_state_dict(map_location="cpu", weights_only=True))
        if not all(torch.isfinite(value).all() for value in network.state_dict().values()):
            raise ValueError("it contains NaN or infinity")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise files.FileError(f"{path}: not torchvision's ResNet18 weights, or damaged ({reason}): delete it, so that it is "
                              f"downloaded again, or replace it by {WEIGHTS.url}") from None  # fmt: skip
    published = digest.startswith(path.stem.rsplit("-", 1)[1])
    if not published:
        print(f"{path} is not the file that torchvision publishes: the results are not those of ImageNet's weights")
    return published


def download(path):
    """Let torchvision download ImageNet's weights to `path`. Raises files.FileError."""
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(20)  # seconds; without it, a network that swallows packets would hang for minutes
        WEIGHTS.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise files.FileError(f"{path}: no such file, and it could not be downloaded ({reason}): put {WEIGHTS.url} there, "
                              "or use --training from_scratch, which needs no weights") from None  # fmt: skip
    finally:
        socket.setdefaulttimeout(timeout)


def restore(path):
    """(the model on the CPU in eval mode, metadata) of a resnet18.safetensors. Raises files.FileError."""
    tensors, metadata = files.load_weights(path, "resnet18")
    with files.checked_format(path):
        s = SimpleNamespace(**metadata["settings"])
        if not 0 <= s.input_size <= 512:
            raise ValueError(f"input_size {s.input_size}")
        with torch.device("meta"):  # where the weights of build take no memory
            model = build(s, len(metadata["classes"]))
        load_tensors(model, tensors)
        model.name, model.compute = str(metadata["name"]), metadata["compute"]
    return model.eval(), metadata
