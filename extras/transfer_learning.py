"""torchvision's ResNet18: ImageNet's features, frozen or fine-tuned, or the same network from scratch.

    python -m extras.transfer_learning                           features of ImageNet's weights, NumPy MLP
    python -m extras.transfer_learning --training fine_tuned     all layers, from ImageNet's weights
    python -m extras.transfer_learning --training from_scratch   all layers, from random weights

The first two need ImageNet's weights (45 MB), which torchvision downloads to ~/.cache/torch/hub/checkpoints.
The third prints at the end, after 1540 s on 2 cores of AMD EPYC; python 3.11.7, torch 2.14.1 (in bfloat16),

    Fashion-MNIST                               validation      test
    ResNet18 from scratch                           94.21%    93.49%
      with flip test-time augmentation (TTA)        94.42%    93.71%
"""

import sys
from types import SimpleNamespace
from typing import Literal

import torch
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18
from torchvision.ops import MLP

import cnn_feature_extraction as cnn
import data
import hybrid_train
import mlp_from_scratch as mlp
import plots
import run

# Edit here, or use flags: EPOCHS is --epochs.
TRAINING: Literal["frozen", "fine_tuned", "from_scratch"] = "frozen"  # the classifier alone, or all layers
EPOCHS: int = 6  # passes over the training set; not frozen
LEARNING_RATE: float = 0.1  # peak learning rate; try 0.001 with adam or adamw; not frozen
BACKBONE_LEARNING_RATE: float = 0.01  # fine_tuned: peak learning rate of all layers but the classifier
BATCH_SIZE: int = 256  # images per step; not frozen
INPUT_SIZE: int = 0  # side to which images are enlarged; 0: 64 with ImageNet's weights, else as they are
FC: tuple[int, ...] = ()  # neurons of fully connected layers between the 512 features and the classifier
FC_DROPOUT: float = 0.0  # dropout probability in the fully connected layers
HEAD_EPOCHS: int = 10  # frozen: passes of the NumPy MLP over the features
HEAD_LEARNING_RATE: float = 0.001  # frozen: initial learning rate of the MLP (Adam, cosine)
HEAD_BATCH_SIZE: int = 128  # frozen: feature vectors per step
OPTIMIZER: Literal["nesterov", "adam", "adamw"] = "nesterov"  # SGD with Nesterov momentum, or Adam
MOMENTUM: float = 0.9  # decay of the velocity of nesterov
SCHEDULE: Literal["constant", "step", "exponential", "cosine", "linear"] = "linear"  # after the warm-up
WARMUP: float = 0.2  # fraction of the training in which the learning rate rises to its peak
EMA_DECAY: float = 0.995  # decay of the moving average of the weights, which is evaluated
WEIGHT_DECAY: float = 0.0005  # L2 penalty on all parameters, added to the gradient; decoupled with adamw
LABEL_SMOOTHING: float = 0.1  # fraction of each label that is spread over all classes
FLIP: bool = True  # mirror each training image with probability 0.5
SHIFT: int = 1  # random shift of training images, in pixels
ERASE: int = 0  # side of a square of noise in half of the training images, in pixels
TTA: Literal["none", "flip", "shifts", "6_views", "10_views", "18_views"] = "flip"  # test-time augmentation
DEVICE: Literal["auto", "cuda", "mps", "cpu"] = "auto"  # where to train; auto: the first available
PRECISION: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 where there are instructions

LIMITS = {name: limits for name, limits in cnn.LIMITS.items() if name in globals()}
LIMITS |= dict.fromkeys(("HEAD_EPOCHS", "HEAD_BATCH_SIZE"), (1, 10**6)) | {"INPUT_SIZE": (0, 512)}
LIMITS |= dict.fromkeys(("HEAD_LEARNING_RATE", "BACKBONE_LEARNING_RATE"), LIMITS["LEARNING_RATE"])
WEIGHTS = ResNet18_Weights.IMAGENET1K_V1


class Network(nn.Module):
    """A backbone and a classifier. As in cnn.CNN, `mean` and `std` of the pixels are part of the model."""

    def __init__(self, name, backbone, classifier, mean, std):
        super().__init__()
        self.name, self.backbone, self.classifier = name, backbone, classifier
        self.compute = {}  # {"device": ..., "precision": ...} of its training
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def features(self, x):
        return self.backbone((x - self.mean) / self.std)

    def forward(self, x):
        return self.classifier(self.features(x))


class Head(nn.Sequential):
    """Fully connected layers with an optimizer and learning rate of their own: the `head` of cnn.train."""

    def __init__(self, layers, s):
        super().__init__(*layers)
        self.optimizer, self.learning_rate = cnn.make_optimizer(self.parameters(), s), s.learning_rate

    def step(self, lr_factor):
        self.optimizer.param_groups[0]["lr"] = lr_factor * self.learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()

    def optimizer_state(self):
        """{name: array}: what it needs to continue training, besides its weights."""
        state = self.optimizer.state_dict()["state"]
        return {f"{i}.{name}": value.cpu().numpy() for i in state for name, value in state[i].items()}

    def load_optimizer_state(self, tensors):
        """Continue from what `optimizer_state` has returned, as tensors."""
        state = {}
        for name, value in tensors.items():
            i, _, name = name.partition(".")
            state.setdefault(int(i), {})[name] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})


def build(s, num_classes, mean=0.0, std=1.0, imagenet=None):
    """ResNet18 (He et al. 2016): images (N, 1, H, W) in [0, 1] -> features (N, 512) -> logits (N, classes).

    imagenet: weights to start from. "from_scratch" is for small images: a 3 x 3 convolution, not 7 x 7 with
    stride 2; max-pooling after the first stage, not before it; mean and std of the training pixels. Otherwise
    it is torchvision's network: standardized by ImageNet's channels, the gray image becomes three channels.
    """
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        torch.manual_seed(cnn.generator("cpu", s.seed).initial_seed())
        network = resnet18()
        *layers, _ = MLP(512, [*s.fc, num_classes], inplace=False, dropout=s.fc_dropout)
        classifier = nn.Sequential(*layers)  # without dropout of the logits
        small_stem = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(small_stem.weight, mode="fan_out", nonlinearity="relu")
    size = s.input_size
    if imagenet:
        network.load_state_dict(imagenet)
    if s.training == "from_scratch":
        stem, pool = [small_stem, network.bn1, network.relu], [nn.MaxPool2d(2)]
    else:
        stem, pool, size = [network.conv1, network.bn1, network.relu, network.maxpool], [], size or 64
        preset = WEIGHTS.transforms()
        mean, std = ([[[value]] for value in values] for values in (preset.mean, preset.std))  # (3, 1, 1)
    enlarge = [nn.Upsample((size, size), mode="bilinear")] if size else []
    stages = [network.layer1, *pool, network.layer2, network.layer3, network.layer4]
    layers = [*enlarge, *stem, *stages, network.avgpool, nn.Flatten()]
    name = f"ResNet18 {s.training.replace('fine_tuned', 'fine-tuned').replace('_', ' ')}"
    model = Network(name, nn.Sequential(*layers), classifier, mean, std)
    model.chunk_size = min(500, 500 * 64**2 // max(64, size) ** 2)  # images at a time: fewer large ones
    return model


def imagenet_weights():
    """The weights of torchvision's ResNet18, from torch's cache or downloaded to it. Raises run.Error."""
    path = f"{torch.hub.get_dir()}/checkpoints/{WEIGHTS.url.rpartition('/')[2]}"
    try:
        state = WEIGHTS.get_state_dict(check_hash=True, map_location="cpu", weights_only=True)
        resnet18().load_state_dict(state)
    except Exception as error:  # the network or the disk, and a damaged file can raise anything
        reason = " ".join(str(error).split())[:120]
        remedy = f"put {WEIGHTS.url} there, or use --training from_scratch, which needs no weights"
        raise run.Error(f"{path}: cannot be downloaded or read ({reason}): {remedy}") from None
    return state


def train_frozen(model, images, s, folder):
    """Train the NumPy MLP on the model's features, as its classifier: (model, history, results)."""
    head = {"head_hidden": s.fc, "head_dropout": s.fc_dropout, "head_activation": "relu", "head_norm": "none"}
    mlp_s = hybrid_train.head_settings(complete(s, head))
    classifier, model.classifier = model.classifier, nn.Identity()  # so that all classifiers share the cache
    cache = run.ROOT / "runs" / "resnet18_features" / f"{s.input_size or 64}.npz"
    cache.parent.mkdir(parents=True, exist_ok=True)
    features = cnn.extract_features(model.to(cnn.pick_device(s.device)), images, cache)
    network, history = mlp.train(features, mlp_s, on_epoch=folder.log)
    for number, linear in enumerate(layer for layer in classifier if isinstance(layer, nn.Linear)):
        W, b = network.views[f"{number}.W"], network.views[f"{number}.b"]
        if number == 0:  # (x - mean) / std W + b = x (W / std) + b - mean / std (sum of W over the features)
            W, b = W / network.std, b - network.mean / network.std * W.sum(axis=0)
        linear.weight.data.copy_(torch.from_numpy(W.T))
        linear.bias.data.copy_(torch.from_numpy(b))
    model.classifier = classifier.to(model.mean.device)
    model.name += f" + {network.name}"
    model.compute = {"device": model.mean.device.type, "precision": "float32"}
    return model, history, run.evaluate(features, network.predict_logits, mlp_s)


def train_all(model, images, s, folder):
    """Train all layers; in fine-tuning the backbone has its own learning rate. Returns the same."""
    cnn_s, head = complete(s, {"norm": "batch", "compile": False}), None
    if s.training == "fine_tuned":
        head, cnn_s.learning_rate = Head(model.classifier, s), s.backbone_learning_rate
    model, history = cnn.train(images, cnn_s, folder, model, head)
    return model, history, run.evaluate(images, lambda X: cnn.predict_logits(model, X), s)


def curves(histories, title, s):
    """Figure of loss and accuracy by epoch; histories: {name: history}. Features are as they come."""
    return (hybrid_train if s.training == "frozen" else cnn).curves(histories, title, complete(s))


def complete(s, changes=()):
    """The settings s with changes; others of the CNN and of the MLP on its features have their defaults."""
    return SimpleNamespace(**vars(hybrid_train.settings()) | vars(s) | dict(changes))


def restore(path):
    """(the network on the CPU in eval mode, metadata) of a resnet18.safetensors. Raises run.Error."""
    arrays, metadata = run.load_weights(path, "resnet18")
    model = build(SimpleNamespace(**metadata["settings"]), len(metadata["classes"]))
    cnn.load_arrays(model, arrays)
    model.name, model.compute = metadata["name"], metadata["compute"]
    return model.eval(), metadata


def settings(**changes):
    """The settings of this script, a namespace: its constants, those of data.py and run.py, with changes."""
    return run.settings(sys.modules[__name__], data, run, **changes)


def quick_settings(s):
    """The settings of --quick."""
    quick = cnn.quick_settings(s)
    quick.epochs, quick.head_epochs, quick.head_batch_size = min(s.epochs, 2), min(s.head_epochs, 3), 32
    quick.backbone_learning_rate *= quick.batch_size / s.batch_size
    return quick


def run_once(s, images=None):
    """One run with the settings s, with its files: a namespace of folder, history, metrics and model."""
    images = images or data.load(s)
    data.check_augmentation(s, images)
    s = quick_settings(s) if s.quick else s
    imagenet = imagenet_weights() if s.training != "from_scratch" else None
    model = build(s, len(images.classes), *data.mean_std(images.train.X), imagenet)
    with run.RunFolder("transfer_learning", s) as folder:
        train = train_frozen if s.training == "frozen" else train_all
        model, history, results = train(model, images, s, folder)
        if s.figures:
            title = plots.run_title(model.name, images.name, s.seed)
            folder.save({"curves.png": curves({title: history}, title, s)})
        if s.save_weights:
            metadata = {"model": "resnet18", "name": model.name, "settings": run.training_settings(s)}
            metadata |= {"compute": model.compute, **run.describe(images, results.metrics["temperature"])}
            run.save_weights(folder.path / "resnet18.safetensors", cnn.numpy_state(model), metadata)
        details = {"parameters": sum(p.numel() for p in model.parameters()), **model.compute}
        metrics = folder.finish(images, model.name, results, plots.evaluation, **details)
    return SimpleNamespace(
        folder=folder.path, history=history, metrics=metrics, model=model, logits=results.logits
    )


def main(argv=None):
    s = run.parse(argv, sys.modules[__name__], data, run)
    return run.run_seeds("transfer_learning", run_once, s, curves)


if __name__ == "__main__":
    run.cli(main)
