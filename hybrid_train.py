"""The main job: train a CNN, extract its flattened features, and train the NumPy MLP to classify them.

    python hybrid_train.py

prints at the end, after 340 s on 2 cores of AMD EPYC; python 3.11.7, numpy 2.4.6, torch 2.14.1 (in bfloat16),

    Fashion-MNIST                                       validation      test
    CNN 24-48-96-96-192, linear classifier                  94.65%    94.11%
    CNN 24-48-96-96-192 + NumPy MLP 1728-256-128-10         94.57%    93.70%
      with flip test-time augmentation (TTA)                94.83%    94.11%
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

import cnn_feature_extraction as cnn
import data
import mlp_from_scratch as mlp
import plots
import run

# Edit here, or use flags: HEAD_EPOCHS is --head-epochs. The CNN's settings are in cnn_feature_extraction.py.
TRAINING: Literal["frozen", "joint"] = "frozen"  # MLP on a trained, frozen CNN; or both end to end
HEAD_HIDDEN: tuple[int, ...] = (256, 128)  # neurons of each hidden layer of the MLP
HEAD_ACTIVATION: Literal["relu", "leaky_relu", "tanh", "gelu", "sigmoid", "identity"] = "relu"  # of the MLP
HEAD_NORM: Literal["none", "layer"] = "none"  # normalization before each activation of the MLP
HEAD_DROPOUT: float = 0.0  # dropout probability in the MLP's hidden layers
HEAD_INIT: Literal["he", "xavier", "lecun", "fan_out", "random"] = "he"  # initialization of the MLP's weights
HEAD_OPTIMIZER: Literal["sgd", "momentum", "nesterov", "rmsprop", "adam"] = "adam"  # of the MLP
HEAD_SCHEDULE: mlp.Schedule = "cosine"  # frozen: learning rate of the MLP
HEAD_NORMALIZE: Literal["none", "global"] = "global"  # frozen: standardization of the features
HEAD_EPOCHS: int = 3  # frozen: passes of the MLP over the features
HEAD_LEARNING_RATE: float = 0.0003  # frozen: initial learning rate of the MLP
HEAD_BATCH_SIZE: int = 128  # frozen: feature vectors per step
JOINT_LEARNING_RATE: float = 0.001  # joint: peak learning rate of the MLP, schedule as the CNN's
FEATURE_LAYER: int = 0  # frozen: number of the convolution that gives the features; 0: the last layer
BACKBONE: str = ""  # backbone.safetensors of an earlier run, used frozen or as the start; "" trains one
HEAD: str = ""  # head.safetensors next to that backbone: start of joint training

LIMITS = {
    **dict.fromkeys(("HEAD_HIDDEN", "HEAD_EPOCHS", "HEAD_BATCH_SIZE"), (1, 10**6)),
    **dict.fromkeys(("HEAD_LEARNING_RATE", "JOINT_LEARNING_RATE"), (1e-12, 1000)),
    "HEAD_DROPOUT": (0, 0.999),
    "FEATURE_LAYER": (0, 1000),
}


class NumpyMLPFunction(torch.autograd.Function):
    """The NumPy MLP as a PyTorch function: features (N, F) -> logits (N, classes).

    Backward fills the MLP's `grads` and gives PyTorch the gradient with respect to the features.
    """

    @staticmethod
    def forward(ctx, features, mlp):
        ctx.mlp = mlp
        mlp.forward_id = ctx.forward_id = getattr(mlp, "forward_id", 0) + 1
        logits = mlp.forward(features.detach().cpu().numpy(), training=True)  # (N, F) -> (N, classes)
        return torch.tensor(logits, device=features.device)

    @staticmethod
    def backward(ctx, dlogits):
        if ctx.mlp.forward_id != ctx.forward_id:
            raise RuntimeError("the MLP has run forward again: it only goes back through its last pass")
        dfeatures = ctx.mlp.backward(dlogits.cpu().numpy(), input_gradient=True)  # (N, classes) -> (N, F)
        return torch.tensor(dfeatures, device=dlogits.device), None


class NumpyHead(nn.Module):
    """The NumPy MLP `mlp` in place of a CNN's classifier; `step` updates it with its own optimizer.

    Features are standardized by the MLP's mean and std. The MLP's parameters are also a buffer of this
    module, so that PyTorch averages, moves and copies them with the rest; in eval mode the buffer's values
    are used.
    """

    def __init__(self, mlp_, learning_rate=0.0, optimizer="adam"):
        super().__init__()
        self.mlp, self.learning_rate = mlp_, learning_rate
        self.optimizer = mlp.Optimizer(optimizer, mlp_.params, mlp_.grads)
        self.register_buffer("params", torch.tensor(mlp_.params))

    def forward(self, features):
        features = features.to(self.params.dtype)
        if self.training:
            return NumpyMLPFunction.apply((features - self.mlp.mean) / self.mlp.std, self.mlp)
        self.mlp.params[:] = self.params.cpu().numpy()
        return torch.tensor(self.mlp.predict_logits(features.detach().cpu().numpy()), device=features.device)

    def step(self, lr_factor):
        """One optimizer step along the gradient that backward has left, at lr_factor times the rate."""
        self.optimizer.step(lr_factor * self.learning_rate)
        self.params.copy_(torch.from_numpy(self.mlp.params))

    def dropout_rngs(self):
        return [layer.rng for layer in self.mlp.layers if isinstance(layer, mlp.Dropout)]

    def optimizer_state(self):
        """{name: array}: what it needs to continue training, besides its buffer."""
        rngs = json.dumps([rng.bit_generator.state for rng in self.dropout_rngs()]).encode()
        state = {"moments": self.optimizer.moments, "t": np.array(self.optimizer.t)}
        return state | {"rngs": np.frombuffer(rngs, np.uint8)}

    def load_optimizer_state(self, state):
        """Continue from what `optimizer_state` has returned, as tensors, and from the buffer."""
        self.optimizer.moments[:], self.optimizer.t = state["moments"].numpy(), int(state["t"])
        for rng, saved in zip(self.dropout_rngs(), json.loads(state["rngs"].numpy().tobytes()), strict=True):
            rng.bit_generator.state = saved
        self.mlp.params[:] = self.params.cpu().numpy()


def head_settings(s):
    """The settings of mlp_from_scratch.py for training on features, without regularization."""
    head = {name: value for name, value in vars(s).items() if name.startswith("head_")}
    options = {name.removeprefix("head_"): value for name, value in head.items()}
    zeros = ("warmup", "weight_decay", "label_smoothing", "input_dropout", "max_grad_norm", "ema_decay")
    zeros += ("l1", "l2", "patience", "shift", "erase", "rotate", "translate")
    options |= dict.fromkeys(zeros, 0) | {"flip": False, "seed": s.seed}
    options["train_on_val"] = s.train_on_val  # for the names of the curves
    options |= {"momentum": 0.9, "rmsprop_decay": 0.99, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    return mlp.settings(loss="softmax", **options)


def save(path, model, s, **metadata):
    """Write the whole hybrid, a CNN whose classifier is a NumpyHead, as one safetensors file."""
    network = model.classifier.mlp
    metadata |= {"model": "hybrid", "head": network.config, "settings": run.training_settings(s)}
    metadata |= {"feature_mean": float(network.mean), "feature_std": float(network.std)}
    run.save_weights(path, cnn.numpy_state(model), metadata)


def restore(path):
    """(the CNN with its NumpyHead, on the CPU in eval mode, metadata) of a file. Raises run.Error.

    The model takes images (N, 1, *metadata["image_shape"]) in [0, 1] and returns logits (N, classes), in the
    order of metadata["classes"].
    """
    arrays, metadata = run.load_weights(path, "hybrid")
    model = cnn.cut_after(cnn.from_metadata(metadata), metadata["settings"]["feature_layer"])
    network = mlp.MLP(**metadata["head"])
    network.mean, network.std = metadata["feature_mean"], metadata["feature_std"]
    model.classifier = NumpyHead(network)
    cnn.load_arrays(model, arrays)
    return model.eval(), metadata


def load_backbone(images, s):
    """(the CNN of the file s.backbone, s with its architecture). Raises run.Error where it does not fit."""
    model, metadata = cnn.restore(s.backbone)
    trained = SimpleNamespace(**metadata["settings"])
    if (metadata["classes"], metadata["image_shape"]) != (list(images.classes), list(images.image_shape)):
        raise run.Error(f"{s.backbone}: was trained on other classes or sizes ({metadata['dataset']})")
    if (trained.split_seed, trained.val_fraction) != (s.split_seed, s.val_fraction):
        raise run.Error(f"{s.backbone}: was trained with another --split-seed or --val-fraction")
    if trained.train_on_val and not s.train_on_val:
        raise run.Error(f"{s.backbone}: was trained with --train-on-val, so give it here as well")
    architecture = cnn.architecture(metadata["settings"])
    for name, value in architecture.items():
        if getattr(s, name) not in (getattr(cnn, name.upper()), value):
            raise run.Error(f"{run.flag(name)}: {s.backbone} has {value}; leave it out")
    if s.feature_layer > len(architecture["channels"]):
        raise run.Error(f"--feature-layer {s.feature_layer}: {s.backbone} has fewer convolutions")
    print(f"backbone {s.backbone}: {model.name}, trained on {metadata['dataset']}")
    return model, SimpleNamespace(**vars(s) | architecture)


def train_frozen(images, s, folder, model):
    """The CNN `model`, or a new one that is trained, then the NumPy MLP on its features.

    Returns (the CNN with the MLP as its classifier, the MLP's history, its logits, those of the CNN's linear
    classifier), logits as run.evaluate has them. Writes the files of both parts.
    """
    cnn_history = {}
    if model is None:
        model, cnn_history = cnn.train(images, s, folder, file="cnn_history.csv")
    hybrid = cnn.cut_after(model, s.feature_layer)
    name = f"features_{s.feature_layer}.npz" if s.feature_layer else "features.npz"
    cache = Path(s.backbone or folder.path / "backbone.safetensors").with_name(name)
    features = cnn.extract_features(hybrid, images, cache if s.save_weights else None)
    network, history = mlp.train(features, head_settings(s), on_epoch=folder.log)
    hybrid.classifier = NumpyHead(network).to(model.mean.device).eval()
    logits = {split: network.predict_logits(getattr(features, split).X) for split in ("val", "test")}
    if s.feature_layer:  # the features are not those of the linear classifier
        linear = {split: cnn.predict_logits(model, getattr(images, split).X) for split in ("val", "test")}
    else:
        linear = cnn.classify(model, features)
    if s.save_weights and cnn_history:
        temperature = run.fit_temperature(linear["val"], images.val.y, run.cross_entropy)
        cnn.save(folder.path / "backbone.safetensors", model, s, **run.describe(images, temperature))
    if s.save_weights:
        metadata = {"dataset": images.name, "classes": images.classes, "input": "features"}
        mlp.save(folder.path / "head.safetensors", network, **metadata)
    if s.figures:
        title = plots.run_title(f"NumPy MLP on the features of {model.name}", images.name, s.seed)
        predicted = {"CNN": linear["test"].argmax(axis=1)}
        predicted["CNN features + NumPy MLP"] = logits["test"].argmax(axis=1)
        recall = plots.recall_comparison(images.test.y, predicted, images.classes, title)
        folder.save({"curves.png": curves({title: history}, title, s), "cnn_and_hybrid.png": recall})
    if s.figures and cnn_history:
        title = plots.run_title(model.name, images.name, s.seed)
        folder.save({"cnn_curves.png": cnn.curves({title: cnn_history}, title, s)})
    return hybrid, history, logits, linear


def train_joint(images, s, folder, model):
    """CNN and NumPy MLP as one network, trained end to end; `model`: the CNN to start from, or None.

    Returns (the CNN with the MLP as its classifier, history, None, None) and writes the curves.
    """
    num_features = (model or cnn.CNN(s, image_shape=images.image_shape)).classifier.in_features
    if s.head:
        network, metadata = mlp.restore(s.head)
        if network.config["sizes"][0] != num_features or tuple(metadata["classes"]) != images.classes:
            raise run.Error(f"{s.head}: is a {network.name}; this CNN has {num_features} features")
        network.mean, network.std = float(network.mean), float(network.std)  # to standardize tensors
    else:
        rngs, sizes = mlp.make_rngs(s.seed), (num_features, *s.head_hidden, len(images.classes))
        options = {name: getattr(s, f"head_{name}") for name in ("activation", "norm", "dropout", "init")}
        network = mlp.MLP(sizes, rngs["init"], rngs["dropout"], **options)
    head = NumpyHead(network, s.joint_learning_rate, s.head_optimizer)
    # One BLAS thread: OpenBLAS's threads keep spinning after each product while PyTorch's wait for a core
    with threadpool_limits(1, user_api="blas"):
        model, history = cnn.train(images, s, folder, model, head)
    if s.figures:
        title = plots.run_title(f"{model.name} + {head.mlp.name}", images.name, s.seed)
        folder.save({"curves.png": curves({title: history}, title, s)})
    return model, history, None, None


def curves(histories, title, s):
    """Figure of loss and accuracy by epoch. A frozen CNN's features are not augmented."""
    return cnn.curves(histories, title, s if s.training == "joint" else head_settings(s))


def settings(**changes):
    """The constants of this script, the CNN's, data.py's and run.py's as a namespace, with changes."""
    return run.settings(sys.modules[__name__], cnn, data, run, **changes)


def check_settings(s):
    """Raise run.Error for settings that cannot be combined."""
    cnn.check_settings(s)
    if "WORLD_SIZE" in os.environ:
        raise run.Error("torchrun: is for cnn_feature_extraction.py, whose result goes here with --backbone")
    if s.head and not (s.backbone and s.training == "joint"):
        raise run.Error("--head: needs --training joint and --backbone, the file next to it")
    if s.training == "joint" and (s.feature_layer or s.compile):
        raise run.Error("--feature-layer, --compile: not with --training joint")
    if s.feature_layer > len(s.channels) and not s.backbone:
        raise run.Error(f"--feature-layer {s.feature_layer}: the CNN has {len(s.channels)} convolutions")


def run_once(s, images=None):
    """One run: load, train, evaluate, save. Returns its folder, history, metrics, model and logits."""
    check_settings(s)
    images = images or data.load(s)
    data.check_augmentation(s, images)
    if s.quick:
        head = {"head_epochs": min(s.head_epochs, 3), "head_batch_size": min(s.head_batch_size, 32)}
        s = SimpleNamespace(**vars(cnn.quick_settings(s)) | head)
    model, s = load_backbone(images, s) if s.backbone else (None, s)
    with run.RunFolder("hybrid_train", s) as folder:
        train = train_joint if s.training == "joint" else train_frozen
        model, history, logits, linear = train(images, s, folder, model)
        network, rows, details = model.classifier.mlp, {}, {}
        results = run.evaluate(images, lambda X: cnn.predict_logits(model, X), s, logits=logits)
        if s.save_weights:
            temperature = results.metrics["temperature"]
            save(folder.path / "hybrid.safetensors", model, s, **run.describe(images, temperature))
        if linear:
            accuracies = [run.accuracy(values, getattr(images, split).y) for split, values in linear.items()]
            rows[f"{model.name}, linear classifier"] = accuracies
            details = dict(zip(("cnn_val_accuracy", "cnn_test_accuracy"), accuracies, strict=True))
        details["parameters"] = sum(p.numel() for p in model.backbone.parameters()) + len(network.params)
        name = f"{model.name} + {network.name}"
        metrics = folder.finish(images, name, results, plots.evaluation, rows, **details, **model.compute)
    return SimpleNamespace(
        folder=folder.path, history=history, metrics=metrics, model=model, logits=results.logits
    )


def main(argv=None):
    s = run.parse(argv, sys.modules[__name__], cnn, data, run)
    return run.run_seeds("hybrid_train", run_once, s, curves)


if __name__ == "__main__":
    run.cli(main)
