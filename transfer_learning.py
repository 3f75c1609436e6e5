"""torchvision's ResNet18 on Fashion-MNIST: ImageNet's features, frozen or fine-tuned, or the same network from scratch.

    python transfer_learning.py                             features of ImageNet's weights, then the NumPy MLP
    python transfer_learning.py --training fine_tuned       all layers, from ImageNet's weights
    python transfer_learning.py --training from_scratch     all layers, from random weights

The first two need ImageNet's weights (45 MB), which torchvision downloads into its cache, `$TORCH_HOME/hub/checkpoints` or
`~/.cache/torch/hub/checkpoints`.
"""

from support import entry

if __name__ == "__main__":  # before the slow imports: Ctrl-C, --help and wrong flags
    entry.prepare(__file__, "data.py", "support/runs.py")

import dataclasses
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

import cnn_feature_extraction as cnn
import data
import mlp_from_scratch as mlp
import plots
from hybrid_train import standardize_
from support import runs, settings, training
from support.tta import tta_logits
from torch_cnn import backbone, resnet
from torch_cnn.devices import init_distributed, pick_device
from torch_cnn.features import SPLITS, cached_features, classifier_logits, predict_logits

# ---- settings: edit here, or override any of them on the command line (--epochs 5) ----
# -- first to change
TRAINING = "frozen"  # a classifier on features of ImageNet's weights; or all layers, starting from ImageNet's or random
                     # weights: {frozen, fine_tuned, from_scratch}
FC: tuple = ()  # neurons of fully connected layers between the 512 features and the classifier, in [1, 100000]
INPUT_SIZE = 0  # side to which images are enlarged, in pixels, which costs time; ImageNet's is 224; 0 stands for 64 with
                # ImageNet's weights, and for no enlargement from scratch; in [0, 512]
EPOCHS = 6  # passes over the training set; not with --training frozen; in [1, 10000]
SEEDS = 1  # number of runs, with seeds from SEED on; metrics.json contains mean and standard deviation; in [1, 1000]
# -- frozen network
HEAD = "numpy_mlp"  # what classifies the features, the NumPy MLP or PyTorch's layers; only with --training frozen:
                    # {numpy_mlp, torch}
HEAD_EPOCHS = 10  # passes over the features; only with --training frozen; in [1, 10000]
HEAD_LEARNING_RATE = 0.001  # initial learning rate of the head (Adam), falls to 0 along a cosine; only with
                            # --training frozen; in (0, 1000)
HEAD_BATCH_SIZE = 128  # feature vectors per step; only with --training frozen; in [1, 1000000]
FEATURES_DIR = "runs/resnet18_features"  # folder of the extracted features, which later runs use again; only with
                                         # --training frozen
# -- optimization
LEARNING_RATE = 0.1  # peak learning rate; try 0.001 with adam or adamw; not with --training frozen; in (0, 1000)
BACKBONE_LEARNING_RATE = 0.01  # peak learning rate of all layers but the fully connected ones; only with
                               # --training fine_tuned; in (0, 1000)
OPTIMIZER = "nesterov"  # update rule; nesterov is SGD with Nesterov momentum; not with --training frozen:
                        # {nesterov, adam, adamw}
BATCH_SIZE = 256  # images per step; not with --training frozen; in [2, 1000000]
MOMENTUM = 0.9  # decay of the velocity; only with --optimizer nesterov; not with --training frozen; in (0, 1)
SCHEDULE = "linear"  # learning rate after the warm-up; not with --training frozen:
                     # {constant, step, exponential, cosine, linear}
WARMUP = 0.2  # fraction of the training in which the learning rate rises linearly to its peak; not with
              # --training frozen; in (0, 1)
EMA_DECAY = 0.995  # decay of the moving average of the weights, which is evaluated and saved; not with
                   # --training frozen; in [0, 1)
# -- regularization
WEIGHT_DECAY = 0.0005  # L2 penalty added to the gradient; decoupled with adamw; not with --training frozen; in [0, 1000)
FC_DROPOUT = 0.0  # dropout probability in the fully connected layers; only with --fc; in [0, 1)
LABEL_SMOOTHING = 0.1  # fraction of each label that is spread over all classes; not with --training frozen; in [0, 1)
# -- augmentation
FLIP = True  # mirror each training image with probability 0.5; redrawn in every epoch; not with --training frozen
SHIFT = 1  # random shift of training images, in pixels; redrawn in every epoch; not with --training frozen; in [0, 27]
ERASE = 0  # side of a square of noise in half of the training images, in pixels; redrawn in every epoch; not with
           # --training frozen; in [0, 28]
TTA = "flip"  # test-time augmentation: add the logits of the mirrored image; shifts: also of images shifted by one pixel,
              # the views that are best on validation; only with --flip; not with --training frozen:
              # {none, flip, shifts, 6_views, 10_views, 18_views}
# -- run
SEED = 0  # seed of initialization, batch order and augmentation, in [0, 2147483647]
DEVICE = "auto"  # where to train; auto is the first that is available: {auto, cuda, mps, cpu}
PRECISION = "auto"  # of the convolutions in training; auto is the faster one on this machine; not with --training frozen:
                    # {auto, float32, bfloat16}
RESUME = ""  # folder of an interrupted run to continue with its own settings; bit for bit on a CPU with as many threads
QUICK = False  # smoke test: at most 2 epochs in batches of at most 64, on a subset; numbers are not representative
# ----


def extract(model, images, s):
    """The features of the frozen `model`, as `cached_features` returns them, from the cache of an earlier run if it fits."""
    size = resnet.input_size(s)
    path = Path(s.features_dir, f"{size}_{images.fingerprint()[:8]}.npz")
    with suppress(OSError):  # where the cache cannot be written, a line says so
        path.parent.mkdir(parents=True, exist_ok=True)
    return cached_features(path, model, images, layer=f"mean of the last maps, of {size} x {size} pixels")


def train_numpy_head(classifier, features, images, s, run):
    """The NumPy MLP on the features: (logits {split: (N, classes)}, history). Its weights are copied to the `classifier`."""
    options = {"hidden": s.fc, "dropout": s.fc_dropout, "epochs": s.head_epochs, "batch_size": s.head_batch_size,
               "learning_rate": s.head_learning_rate, "seed": s.seed}  # fmt: skip
    head_s = SimpleNamespace(**vars(settings.load(mlp, **mlp.BASELINE | options)), log_steps=s.log_steps, figures=s.figures)
    X, y, X_val, y_val = (features[name] for name in ("X_train", "y_train", "X_val", "y_val"))
    trainer = mlp.Trainer(*mlp.build(X.shape[1], len(images.classes), head_s), head_s, len(y))
    split = data.digest(images.train.indices, y)
    if s.resume:
        runs.load_checkpoint(trainer, s, split)
        run.resume(trainer.history)
    trainer.fit(X, y, X_val, y_val, run.log, lambda: run.save_checkpoint(trainer, split))
    run.save(trainer.step_log(plots.run_title(f"NumPy MLP {trainer.model.name} on features", images.name, s.seed)))
    for number, linear in enumerate(layer for layer in classifier if isinstance(layer, nn.Linear)):
        linear.weight.data.copy_(torch.from_numpy(trainer.model.views[f"{number}.W"].T))
        linear.bias.data.copy_(torch.from_numpy(trainer.model.views[f"{number}.b"]))
    return {split: trainer.model.predict_logits(features[f"X_{split}"]) for split in ("val", "test")}, trainer.history


def train_torch_head(classifier, features, images, s, run):
    """The `classifier` on the features, with Adam as the NumPy MLP: (logits {split: (N, classes)}, history)."""
    head_s = SimpleNamespace(epochs=s.head_epochs, batch_size=s.head_batch_size, learning_rate=s.head_learning_rate,
                             seed=s.seed, optimizer="adam", schedule="cosine", warmup=0.0, ema_decay=0.0, weight_decay=0.0,
                             label_smoothing=0.0, flip=False, shift=0, erase=0, norm="none", device=s.device,
                             precision="float32", compile=False, log_steps=s.log_steps, figures=s.figures)  # fmt: skip
    splits = {name: dataclasses.replace(getattr(images, name), X=features[f"X_{name}"][:, :, None]) for name in SPLITS}
    model = resnet.Network("fully connected layers", nn.Sequential(nn.Flatten()), classifier, input_shape=(1, 512, 1))
    vectors = dataclasses.replace(images, **splits)  # each one an "image" of 512 x 1 pixels
    model, history = cnn.train(vectors, s, run, trainer=cnn.make_trainer(vectors, head_s, model))
    classifier.load_state_dict(model.classifier.state_dict())
    return {name: classifier_logits(model, features[f"X_{name}"]).cpu().numpy() for name in ("val", "test")}, history


def run_frozen(model, images, s, run):
    """Extract the features once and train a classifier on them: (logits {split: (N, classes)}, history)."""
    device = pick_device(s.device)
    classifier, model.classifier = model.classifier, nn.Identity()  # so that all classifiers share the cached features
    features = extract(model.to(device), images, s)
    mean, std = data.mean_std(features["X_train"])
    standardize_(features, mean, std)
    train, name = {"numpy_mlp": (train_numpy_head, "NumPy MLP"), "torch": (train_torch_head, "PyTorch layers")}[s.head]
    try:
        logits, history = train(classifier, features, images, s, run)
    except runs.Diverged as error:
        raise runs.Diverged(f"the head: {error}".replace("--learning-rate", "--head-learning-rate")) from None
    model.backbone[-1].mean.fill_(mean)  # its Standardize
    model.backbone[-1].std.fill_(std)
    model.classifier = classifier.to(device)
    model.name += f" + {name} {'-'.join(map(str, (512, *s.fc, len(images.classes))))}"
    model.compute = {"device": device.type if s.head == "torch" else "cpu", "precision": "float32"}
    return logits, history


def run_network(model, images, s, run):
    """Train all layers; in fine-tuning, those with ImageNet's weights have a learning rate of their own.

    Returns (the moving average of the model, logits {split: (N, classes)}, what tta_logits returns, history).
    """
    groups = None
    if s.training == "fine_tuned":
        groups = [{"params": model.backbone.parameters(), "lr": s.backbone_learning_rate},
                  {"params": model.classifier.parameters()}]  # fmt: skip
    trainer_s = SimpleNamespace(**vars(s) | {"norm": "batch", "compile": False})
    model, history = cnn.train(images, s, run, trainer=cnn.make_trainer(images, trainer_s, model, parameters=groups))
    logits = {split: predict_logits(model, getattr(images, split).X) for split in ("val", "test")}
    return model, logits, tta_logits(s, lambda X: predict_logits(model, X), images, logits), history


def check_settings(s):
    """Raise settings.SettingError, before any data is read, for settings that are not possible here."""
    pick_device(s.device)
    if 0 < s.input_size < 28:
        raise settings.SettingError(f"--input-size {s.input_size}: must be 0, or 28 or more")
    if init_distributed()[1] > 1:
        raise settings.SettingError("torchrun works with cnn_feature_extraction.py alone")


def quick_settings(s):
    """The settings of --quick."""
    if s.training == "frozen":
        changes = {"head_epochs": min(s.head_epochs, 3), "head_batch_size": min(s.head_batch_size, 32)}
    else:
        quick = cnn.quick_settings(s)
        changes = {"epochs": min(s.epochs, 2), "batch_size": quick.batch_size, "learning_rate": quick.learning_rate,
                   "backbone_learning_rate": s.backbone_learning_rate * quick.batch_size / s.batch_size}  # fmt: skip
    return SimpleNamespace(**vars(s) | changes)


def run(s, images=None, on_epoch=None):
    """The whole job with the settings `s`: load, train, evaluate, save. Return the content of metrics.json.

    images: the dataset, if it is already loaded. on_epoch: called with each epoch's row of the history.
    """
    check_settings(s)
    images = images or data.load_for(s)
    s = quick_settings(s) if s.quick else s
    mean, std = data.mean_std(images.train.X)
    model = resnet.build(s, len(images.classes), mean, std, pretrained=s.training != "from_scratch")
    with runs.Run("transfer_learning", s, on_epoch) as run:
        if s.training == "frozen":
            (logits, history), tta = run_frozen(model, images, s, run), None
        else:
            model, logits, tta, history = run_network(model, images, s, run)
        if s.save_weights:
            backbone.save(run.path / "resnet18.safetensors", model, images, s, kind="resnet18", name=model.name,
                          **training.for_prediction(images, logits["val"]))
        title = plots.run_title(model.name, images.name, s.seed)
        figures = {}
        if s.figures:
            figures["curves.png"] = (plots.curves({title: history}, title) if s.training == "frozen"
                                     else cnn.training_curves(history, s, title))  # fmt: skip
        return training.report(run, images, title, model.name, logits, tta, curves=figures, model=model.name,
                               parameters=model.num_parameters, **model.compute)


def main(argv=None):
    s = settings.parse(sys.modules[__name__], data, runs, argv=argv)
    runs.run_seeds("transfer_learning", run, s, check_settings)


if __name__ == "__main__":
    entry.cli(main)
