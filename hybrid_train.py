"""The main job: train a CNN, extract its flattened features, and train the NumPy MLP to classify them.

    python hybrid_train.py

prints at the end, after 340 s on 2 cores of an AMD EPYC (Python 3.11.7, NumPy 2.4.6, torch 2.14.1, in bfloat16),

    Fashion-MNIST                                       validation      test
    CNN 24-48-96-96-192, linear classifier                  94.65%      94.11%
    hybrid: CNN features, NumPy MLP 1728-256-128-10         94.57%      93.70%
      with flip test-time augmentation (TTA)                94.83%      94.11%
"""

from support import entry

if __name__ == "__main__":  # before the slow imports: Ctrl-C, --help and wrong flags
    entry.prepare(__file__, "cnn_feature_extraction.py", "data.py", "support/runs.py")

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

import cnn_feature_extraction as cnn
import data
import mlp_from_scratch as mlp
import plots
from numpy_nn.calibration import fit_temperature
from numpy_nn.optimizers import OPTIMIZERS
from support import files, runs, settings, training
from support.small_data import suitable_batch_size, with_suitable_batch_size
from support.tta import tta_logits
from torch_cnn import backbone
from torch_cnn.devices import init_distributed, pick_device
from torch_cnn.features import cached_features, predict_logits

# ---- settings: edit here, or override any of them on the command line (--head-epochs 5) ----
# -- hybrid
TRAINING = "frozen"  # the MLP on the features of a trained, frozen CNN; or CNN and MLP jointly, end to end: {frozen, joint}
HEAD_HIDDEN: tuple = (256, 128)  # neurons in each hidden layer of the MLP; not with --head; in [1, 100000]
HEAD_EPOCHS = 3  # passes of the MLP over the features; only with --training frozen; in [1, 10000]
HEAD_LEARNING_RATE = 0.0003  # initial learning rate of the MLP (Adam), falls to 0 along a cosine; only with
                             # --training frozen; in (0, 1000)
HEAD_BATCH_SIZE = 128  # feature vectors per step; only with --training frozen; in [1, 1000000]
JOINT_LEARNING_RATE = 0.001  # peak learning rate of the MLP (Adam), schedule as the CNN's; only with --training joint;
                             # in (0, 1000)
FEATURE_LAYER = 0  # number of the convolution whose output, after pooling and activation, gives the features; 0 is the
                   # input of the CNN's classifier; only with --training frozen; in [0, 1000]
BACKBONE = ""  # backbone.safetensors of an earlier run: used as it is, or as the start of joint training; "" trains one
HEAD = ""  # head.safetensors next to that backbone: start of joint training
# -- run
SEED = 0  # seed of initialization, batch order and augmentation, in [0, 2147483647]
QUICK = False  # smoke test of about a minute on a subset: few epochs, small batches; numbers are not representative
# ----


def single_blas_thread():
    """A context in which NumPy's matrix products use one thread, for code that alternates with PyTorch's layers.

    OpenBLAS's threads keep spinning after each product while PyTorch's threads wait for a core, which costs more than the
    second thread saves.
    """
    return threadpool_limits(1, user_api="blas")


class NumpyMLPFunction(torch.autograd.Function):
    """The NumPy MLP as a PyTorch function: features (N, F) -> logits (N, classes), with the MLP's own backward pass.

    Backward fills the MLP's `grads` and returns the gradient with respect to the features to PyTorch.
    """

    @staticmethod
    def forward(ctx, features, mlp):
        ctx.mlp = mlp
        mlp.forward_id = ctx.forward_id = getattr(mlp, "forward_id", 0) + 1
        logits = mlp.forward(features.detach().cpu().numpy(), training=True)  # (N, F) -> (N, classes)
        return torch.tensor(logits, device=features.device)  # a copy, since the MLP reuses its memory

    @staticmethod
    def backward(ctx, dlogits):
        if ctx.mlp.forward_id != ctx.forward_id:
            raise RuntimeError("the MLP has run another forward pass since: it can only go back through its last one")
        dfeatures = ctx.mlp.backward(dlogits.cpu().numpy(), input_gradient=True)  # (N, classes) -> (N, F)
        return torch.tensor(dfeatures, device=dlogits.device), None


class NumpyHead(nn.Module):
    """The NumPy MLP `mlp` in place of a CNN's classifier; `step` updates it with its own optimizer (Adam).

    Features are standardized by mean and std. The MLP's parameters are also a buffer of this module, so that PyTorch
    averages, moves and copies them with the rest; in eval mode the buffer's values are used.
    """

    def __init__(self, mlp, learning_rate=0.0, mean=0.0, std=1.0):
        super().__init__()
        self.mlp, self.learning_rate, self.mean, self.std = mlp, learning_rate, mean, std
        self.optimizer = OPTIMIZERS["adam"](mlp.params, mlp.grads)
        self.register_buffer("params", torch.tensor(mlp.params))

    def forward(self, features):
        features = (features.to(self.params.dtype) - self.mean) / self.std
        if self.training:
            return NumpyMLPFunction.apply(features, self.mlp)
        self.mlp.params[:] = self.params.cpu().numpy()
        return torch.tensor(self.mlp.predict_logits(features.detach().cpu().numpy()), device=features.device)

    def step(self, lr_factor=1.0):
        """One optimizer step along the gradient that backward has left, with lr_factor times the learning rate."""
        self.optimizer.step(lr_factor * self.learning_rate)
        self.params.copy_(torch.from_numpy(self.mlp.params))

    def optimizer_state_dict(self):
        """{name: array}: what it needs to continue training, besides its buffer."""
        return {"moments": self.optimizer.state, "t": np.array(self.optimizer.t)}

    def load_optimizer_state_dict(self, state):
        """Continue from what `optimizer_state_dict` has returned, as tensors, and from the buffer."""
        files.copy_into({"moments": self.optimizer.state}, {"moments": state["moments"].numpy()})
        self.optimizer.t = int(state["t"])
        self.mlp.params[:] = self.params.cpu().numpy()


def save(path, model, images, s, **metadata):
    """Write the whole hybrid, a CNN whose classifier is a NumpyHead, and other metadata as one safetensors file."""
    head = model.classifier
    metadata |= {"model": "hybrid", "head": head.mlp.config, "feature_mean": head.mean, "feature_std": head.std,
                 "dataset": images.name, "classes": images.classes, "image_shape": images.image_shape,
                 "fingerprint": images.fingerprint(), "settings": vars(s)}  # fmt: skip
    files.save_weights(path, backbone.numpy_state(model), metadata)


def restore(path):
    """(the CNN with its NumpyHead, on the CPU in eval mode, metadata) of a file that `save` wrote. Raises files.FileError.

    The model takes images (N, 1, *metadata["image_shape"]) in [0, 1] and returns logits (N, classes), in the order of
    metadata["classes"].
    """
    tensors, metadata = files.load_weights(path, "hybrid")
    with files.checked_format(path):
        config = metadata["head"]
        network = mlp.MLP(config["sizes"], activation=config["activation"], norm=config["norm"],
                          num_values=tensors["classifier.params"].size)  # fmt: skip
        model, s = backbone.build_empty(metadata), metadata["settings"]
        (n_in, *_, n_out), number = network.config["sizes"], s.get("feature_layer", 0)
        backbone.cut_after(model, number)
        num_features = (backbone.num_features_after(number, image_shape=model.input_shape[1:], **s) if number
                        else model.classifier.in_features)  # fmt: skip
        if (n_in, n_out) != (num_features, len(metadata["classes"])):
            raise ValueError(f"an MLP {network.name} for {num_features} features and {len(metadata['classes'])} classes")
        model.classifier = NumpyHead(network, 0.0, float(metadata["feature_mean"]), float(metadata["feature_std"]))
        backbone.load_tensors(model, tensors)
    return model.eval(), metadata


def head_settings(s):
    """The settings of mlp_from_scratch.py by which the MLP learns from features."""
    return settings.load(mlp, **mlp.BASELINE, epochs=s.head_epochs, batch_size=s.head_batch_size, hidden=s.head_hidden,
                         learning_rate=s.head_learning_rate, seed=s.seed)  # fmt: skip


def standardize_(features, mean, std):
    """Standardize the features of `cached_features` in place, since these are the largest arrays of the job."""
    for split in ("train", "val", "test"):
        features[f"X_{split}"] -= np.float32(mean)
        features[f"X_{split}"] /= np.float32(std)


def train_head(features, classes, s, run):
    """The NumPy MLP on the features of `cached_features`, which are standardized in place: (NumpyHead, history)."""
    mean, std = data.mean_std(features["X_train"])
    standardize_(features, mean, std)
    X, y, X_val, y_val = (features[name] for name in ("X_train", "y_train", "X_val", "y_val"))
    try:
        network, history = mlp.train(X, y, X_val, y_val, len(classes), head_settings(s), run.log)
    except runs.Diverged as error:
        raise runs.Diverged(f"the NumPy MLP: {error}".replace("--learning-rate", "--head-learning-rate")) from None
    return NumpyHead(network, 0.0, mean, std), history


def new_head(images, s):
    """The untrained NumpyHead of joint training."""
    sizes = backbone.build(s, image_shape=images.image_shape).classifier.in_features, *s.head_hidden, len(images.classes)
    head_s = settings.load(mlp, **mlp.BASELINE, hidden=s.head_hidden, batch_size=s.batch_size, seed=s.seed)
    return NumpyHead(mlp.build(sizes[0], sizes[-1], head_s)[0], s.joint_learning_rate)


def load_head(path, images, s):
    """The NumpyHead of the file `path`, to continue in joint training. Raises files.FileError for one that does not fit."""
    network, metadata = mlp.restore(path)
    num_features = backbone.build(s, image_shape=images.image_shape).classifier.in_features
    n_in, *_, n_out = network.config["sizes"]
    with files.checked_format(path):
        if network.config["norm"] == "batch" or not isinstance(metadata["mean"], float):
            raise files.FileError(f"{path}: joint training needs a head from this script, without batch normalization")
        if n_in != num_features or tuple(metadata["classes"]) != tuple(images.classes):
            raise files.FileError(f"{path}: is a head for {n_in:,} features and {n_out} classes of {metadata['dataset']}; "
                                  f"expected {num_features:,} features and {len(images.classes)} classes of {images.name}")
        check_split(path, metadata, s)
        return NumpyHead(network, s.joint_learning_rate, metadata["mean"], float(metadata["std"]))


def load_backbone(path, images, s):
    """(the CNN of the weights file `path` on its device, the settings `s` with those that it was trained with).

    Joint training continues with settings of its own and takes only those of the architecture. Raises files.FileError for a
    file that is damaged, foreign, or was trained on other classes or another split, and settings.SettingError for a flag
    that contradicts the file.
    """
    model, metadata = backbone.restore(path)
    if s.feature_layer > len(metadata["settings"]["channels"]):
        raise settings.SettingError(f"--feature-layer {s.feature_layer}: {path} has fewer convolutions")
    if tuple(metadata["classes"]) != tuple(images.classes):
        raise files.FileError(f"{path}: was trained on {metadata['dataset']} and does not know the classes of {images.name}")
    if model.input_shape[1:] != images.image_shape:
        ours, theirs = (" x ".join(map(str, shape)) for shape in (images.image_shape, model.input_shape[1:]))
        raise files.FileError(f"{path}: was trained on images of {theirs} pixels, and those of {images.name} have {ours}; "
                              f"use --image-size {theirs.replace(' x', '')}")  # fmt: skip
    check_split(path, metadata["settings"], s)
    defaults = cnn.quick_settings(settings.load(cnn)) if s.quick else settings.load(cnn)
    names = decided_by_backbone(s)
    saved = {name: metadata["settings"][name] for name in names & metadata["settings"].keys()}
    trained_with = settings.load(cnn, **saved)
    for name in sorted(names):
        value = getattr(trained_with, name)
        if getattr(s, name) not in (getattr(defaults, name), value):
            raise settings.SettingError(f"{settings.flag(name)}: {path} was trained with {value}; leave the flag out")
    print(f"backbone {path}: {model.name}, trained on {metadata['dataset']}")
    s = SimpleNamespace(**vars(s) | {name: getattr(trained_with, name) for name in names})
    return model.to(pick_device(s.device)), s


def decided_by_backbone(s):
    """The names of the settings that a given backbone decides: in joint training its architecture, else all of the CNN's."""
    if s.training == "joint":
        return set(backbone.ARCHITECTURE_KEYS)
    return {name.lower() for name in settings.constants(cnn)} - {"device", "seed", "seeds", "quick", "resume", "tta"}


def check_flags(given, s):
    """Raise settings.SettingError for a flag that contradicts the backbone, even if its value is the default.

    given: the names of the flags on the command line.
    """
    if s.resume or not Path(s.backbone).is_file():
        return
    _, metadata = files.load_weights(s.backbone, "cnn")
    with files.checked_format(s.backbone):
        saved = dict(metadata["settings"])
    s = quick_settings(s) if s.quick else s
    for name in sorted(decided_by_backbone(s) & given & saved.keys()):
        value = tuple(saved[name]) if isinstance(saved[name], list) else saved[name]
        if getattr(s, name) != value:
            raise settings.SettingError(f"{settings.flag(name)}: {s.backbone} was trained with {value}; leave the flag out")


def check_split(path, trained_with, s):
    """Raise files.FileError if the weights of the file `path` were trained on images of this run's validation split."""
    for name, value in (("split_seed", trained_with["split_seed"]), ("val_fraction", trained_with.get("val_fraction", 0.2))):
        if value != getattr(s, name):
            flag = f"--{name.replace('_', '-')}"
            raise files.FileError(f"{path}: was trained with {flag} {value}; with {getattr(s, name)}, the validation split "
                                  "would contain images of its training split")  # fmt: skip
    if trained_with.get("train_on_val") and not s.train_on_val:
        raise files.FileError(f"{path}: was trained with --train-on-val, so give it here as well")


def quick_settings(s):
    """The settings of --quick."""
    head = {"head_epochs": min(s.head_epochs, 3), "head_batch_size": min(s.head_batch_size, 32)}
    return SimpleNamespace(**vars(cnn.quick_settings(s)) | head)


def own_data_settings(s, images):
    """The settings with smaller batches for few images of one's own; a trained CNN keeps the settings of its file."""
    if not s.backbone or s.training == "joint":
        s = with_suitable_batch_size(s, images, cnn.BATCH_SIZE, cnn.LEARNING_RATE)
    chosen = s.head_batch_size != HEAD_BATCH_SIZE
    head_batch_size = s.head_batch_size if chosen else min(s.head_batch_size, suitable_batch_size(s, images))
    return SimpleNamespace(**vars(s) | {"head_batch_size": head_batch_size})


def check_settings(s):
    """Raise settings.SettingError, before any data is read, for settings that cannot be combined."""
    cnn.check_settings(s)
    head_settings(s)
    if init_distributed()[1] > 1:
        raise settings.SettingError("torchrun works with cnn_feature_extraction.py; pass its result with --backbone")
    for name in ("backbone", "head"):
        path = vars(s)[name]
        if path and not Path(path).is_file():
            raise settings.SettingError(f"--{name} {path}: no such file")
        if path and s.output_dir and Path(s.output_dir).resolve() in Path(path).resolve().parents:
            raise settings.SettingError(f"--output-dir {s.output_dir}: is the {name}'s own folder; name another")
    if s.head and s.training != "joint":
        raise settings.SettingError("--head: only joint training starts from a head; add --training joint")
    if s.head and not s.backbone:
        raise settings.SettingError("--head: was trained on one CNN's features; add --backbone, the file next to it")
    if s.feature_layer > len(s.channels) and not s.backbone:  # its own number of them is not known yet
        raise settings.SettingError(f"--feature-layer {s.feature_layer}: the CNN has {len(s.channels)} convolutions")
    if s.feature_layer and s.training == "joint":
        raise settings.SettingError("--feature-layer: only for --training frozen")
    if s.compile and s.training == "joint":
        raise settings.SettingError("--compile: not with --training joint, since the NumPy MLP cannot be compiled")


def run(s, images=None):
    """The whole job with the settings `s`. Return the content of metrics.json. images: the dataset, if already loaded."""
    check_settings(s)
    if images is None:
        images = data.load_for(s)
        s = own_data_settings(s, images)
    s, model = quick_settings(s) if s.quick else s, None
    if s.backbone:
        model, s = load_backbone(s.backbone, images, s)
    cnn.check_settings(s, images.image_shape)
    return run_joint(images, s, model) if s.training == "joint" else run_frozen(images, s, model)


def run_frozen(images, s, model):
    """A CNN, or the given `model`, then the NumPy MLP on its features."""
    with runs.Run("hybrid_train", s) as run:
        if model is None:
            model, cnn_history = cnn.train(images, s, run, "cnn_history.csv")
            if s.save_weights:
                extras = training.for_prediction(images, predict_logits(model, images.val.X))
                backbone.save(run.path / "backbone.safetensors", model, images, s, **extras)
            cnn_title = plots.run_title(model.name, images.name, s.seed)
            run.save({"cnn_curves.png": cnn.training_curves(cnn_history, s, cnn_title)} if s.figures else {})
        cnn_logits = cnn.evaluate(model, images) if s.feature_layer else None  # before its last layers are removed
        features = features_of(model, images, s, run)
        cnn_logits = cnn_logits or cnn.evaluate(model, images, features)

        head, history = train_head(features, images.classes, s, run)
        metadata = {"dataset": images.name, "classes": images.classes, "mean": head.mean, "std": head.std,
                    "split_seed": s.split_seed, "val_fraction": s.val_fraction, "train_on_val": s.train_on_val,
                    "input": "features"}  # fmt: skip
        logits = {split: head.mlp.predict_logits(features[f"X_{split}"]) for split in ("val", "test")}
        model.classifier = head.to(model.mean.device).eval()
        if s.save_weights:
            metadata["temperature"] = fit_temperature(logits["val"], images.val.y)
            mlp.save(run.path / "head.safetensors", head.mlp, metadata)
            save(run.path / "hybrid.safetensors", model, images, s, **training.for_prediction(images, logits["val"]))

        title = plots.run_title(f"{model.name} + NumPy MLP {head.mlp.name}", images.name, s.seed)
        predictions = {"CNN": cnn_logits["test"], "CNN features + NumPy MLP": logits["test"]}
        predictions = {name: values.argmax(axis=1) for name, values in predictions.items()}
        head_title = plots.run_title(f"NumPy MLP on the features of {model.name}", images.name, s.seed)
        figures = {
            "curves.png": plots.curves({head_title: history}, head_title),
            "cnn_and_hybrid.png": plots.recall_comparison(images.test.y, predictions, images.classes, title),
        } if s.figures else {}
        cnn_accuracies = {f"cnn_{split}_accuracy": training.accuracy(values, getattr(images, split).y)
                          for split, values in cnn_logits.items()}  # fmt: skip
        return close(run, images, s, model, title, f"hybrid: CNN features, NumPy MLP {head.mlp.name}", logits, figures,
                     {f"{model.name}, linear classifier": tuple(cnn_accuracies.values())}, **cnn_accuracies)  # fmt: skip


def features_of(model, images, s, run):
    """The features of `cached_features` by the model's convolution s.feature_layer, whose later layers are removed."""
    backbone.cut_after(model, s.feature_layer)
    name = f"features_{s.feature_layer}.npz" if s.feature_layer else "features.npz"
    path = Path(s.backbone).with_name(name) if s.backbone else run.path / name
    return cached_features(path, model, images, run.path / name, save=bool(s.save_weights or s.backbone))


def run_joint(images, s, model):
    """CNN and NumPy MLP as one network, trained end to end; `model`: the CNN to start from, or None."""
    head = load_head(s.head, images, s) if s.head else new_head(images, s)
    s = SimpleNamespace(**vars(s) | {"head_hidden": head.mlp.config["sizes"][1:-1]})  # a resumed run is built from it
    with runs.Run("hybrid_train", s) as run:
        with single_blas_thread():
            model, history = cnn.train(images, s, run, "history.csv", model, head)
        logits = cnn.evaluate(model, images)
        if s.save_weights:
            save(run.path / "hybrid.safetensors", model, images, s, **training.for_prediction(images, logits["val"]))
        title = plots.run_title(f"{model.name} + NumPy MLP {head.mlp.name}", images.name, s.seed)
        return close(run, images, s, model, title, f"{model.name} + NumPy MLP {head.mlp.name}, trained jointly", logits,
                     {"curves.png": cnn.training_curves(history, s, title)} if s.figures else {})  # fmt: skip


def close(run, images, s, model, title, row, logits, figures, other_rows=None, **metrics):
    """The closing report of a CNN whose classifier is a NumpyHead."""
    tta = tta_logits(s, lambda X: predict_logits(model, X), images, logits)
    network = model.classifier.mlp
    num_parameters = sum(p.numel() for p in model.backbone.parameters()) + len(network.params)
    return training.report(run, images, title, row, logits, tta, other_rows=other_rows, curves=figures,
                           model=f"{model.name} + NumPy MLP {network.name}", parameters=num_parameters, **metrics,
                           **model.compute)  # fmt: skip


def main(argv=None):
    s = settings.parse(sys.modules[__name__], cnn, data, runs, argv=argv, check_given=check_flags)
    runs.run_seeds("hybrid_train", run, s, check_settings)


if __name__ == "__main__":
    entry.cli(main)
