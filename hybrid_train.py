"""The main job: a CNN is trained, its flattened features are extracted, and the NumPy MLP learns to classify them.

    python hybrid_train.py

ends, after 330 s on 2 cores of an Intel(R) Xeon(R) Processor @ 2.50GHz (Python 3.11.7, NumPy 2.4.6, torch 2.15.0), with

    Fashion-MNIST                                      validation      test
    CNN 32-48-96-96-192, its own classifier              94.08%      93.25%
    hybrid: its features, NumPy MLP 1728-256-128-10      94.29%      93.54%
"""

import sys
from pathlib import Path

import numpy as np

import cnn_feature_extraction as cnn
import data
import layers
import mlp_from_scratch as mlp
import plots
import runs
import settings

# ---- settings: edit here, or override any of them on the command line (--head-epochs 5) ----
BACKBONE = ""  # a backbone.safetensors of an earlier run to take instead of training one; "" trains one
HEAD_EPOCHS = 3  # passes of the MLP over the features, in [1, inf)
HEAD_BATCH_SIZE = 128  # images in each of its steps, in [1, inf)
HEAD_HIDDEN = (256, 128)  # neurons in each of its hidden layers, in [1, inf)
HEAD_LEARNING_RATE = 0.0003  # of its first step (Adam); it falls to 0 along a cosine, in (0, inf)
SEED = 0  # of everything random, in [0, inf)
QUICK = False  # a tour of about a minute, on a subset; its figures are only a tour's
# ----


def train_head(features, classes, s, run):
    """The NumPy MLP on the features of `cnn.cached_features`, standardised in place: (model, history, mean, std)."""
    mean, std = data.statistics(features["X_train"])
    for part in ("train", "val", "test"):  # in place: these are the largest arrays of the job
        features[f"X_{part}"] -= np.float32(mean)
        features[f"X_{part}"] /= np.float32(std)
    head = settings.load(mlp, **mlp.PLAIN, epochs=s.head_epochs, batch_size=s.head_batch_size, hidden=s.head_hidden,
                         learning_rate=s.head_learning_rate, seed=s.seed)  # fmt: skip
    X, y, X_val, y_val = (features[name] for name in ("X_train", "y_train", "X_val", "y_val"))
    return *mlp.train(X, y, X_val, y_val, len(classes), head, run.log), mean, std


def take_backbone(path, images, s):
    """The CNN of the weights file `path`, on its device; its shape becomes that of the settings `s`.

    Raises runs.RunError for a file that is damaged, foreign, or was trained for other classes or on another split.
    """
    model, about = cnn.restore(path)
    if tuple(about["classes"]) != tuple(images.classes):
        raise runs.RunError(f"{path}: was trained on {about['dataset']}, and cannot tell the classes of {images.name}")
    if about["split_seed"] != s.split_seed:
        raise runs.RunError(f"{path}: was trained with --split-seed {about['split_seed']}: with {s.split_seed}, images that "
                            "it has learnt from would be in the validation split")  # fmt: skip
    s.channels, s.pool_after, s.batch_norm = tuple(about["channels"]), tuple(about["pool_after"]), about["batch_norm"]
    print(f"backbone {path}: {model.name}, trained on {about['dataset']}")
    return model.to(cnn.pick_device(s.device))


def run(s):
    """The whole job with the settings `s`: backbone, features, head, test, save. Returns what metrics.json holds."""
    cnn.check(s)
    if s.backbone and not Path(s.backbone).is_file():
        raise settings.SettingError(f"--backbone {s.backbone}: no such file")
    if s.backbone and s.output_dir and Path(s.output_dir).resolve() == Path(s.backbone).resolve().parent:
        raise settings.SettingError(f"--output-dir {s.output_dir}: is the backbone's own folder; name another")
    images = data.load(s.dataset, s.data_dir, s.offline_fallback, s.split_seed, s.quick)
    if s.quick:
        cnn.tour(s)
        s.head_epochs, s.head_batch_size = min(s.head_epochs, 3), min(s.head_batch_size, 32)
    if s.backbone:
        model = take_backbone(s.backbone, images, s)

    with runs.Run("hybrid_train", s) as run:
        if s.backbone:
            kept = Path(s.backbone).with_name("features.npz")
        else:
            model, history = cnn.train(images, s, run, "cnn_history.csv")
            cnn.save(run.path / "backbone.safetensors", model, images, s)
            title = f"{model.name} on {images.name}"
            run.save({"cnn_curves.png": plots.curves(history, title, s.flip or s.shift, s.label_smoothing)})
            kept = run.path / "features.npz"
        features = cnn.cached_features(kept, model, images)
        cnn_val, cnn_test = (cnn.classify(model, features[f"X_{part}"]).cpu().numpy() for part in ("val", "test"))

        head, history, mean, std = train_head(features, images.classes, s, run)
        about = {"dataset": images.name, "classes": images.classes, "mean": mean, "std": std, "split_seed": s.split_seed}
        mlp.save(run.path / "head.safetensors", head, about)
        val, test = head.logits(features["X_val"]), head.logits(features["X_test"])

        y, y_test = images.val.y, images.test.y
        results = {
            f"{model.name}, its own classifier": (mlp.accuracy(cnn_val, y), mlp.accuracy(cnn_test, y_test)),
            f"hybrid: its features, NumPy MLP {head.name}": (mlp.accuracy(val, y), mlp.accuracy(test, y_test)),
        }
        (cnn_val_accuracy, cnn_test_accuracy), (val_accuracy, test_accuracy) = results.values()
        run.save({"curves.png": plots.curves(history, f"NumPy MLP on the CNN's features of {images.name}")})
        title = f"hybrid of CNN and NumPy MLP on {images.name}"
        run.save(plots.evaluation(images.test.X, y_test, layers.softmax(test), images.classes, title))
        both = {"CNN's own classifier": cnn_test.argmax(axis=1), "hybrid": test.argmax(axis=1)}
        title = f"CNN and hybrid on {images.name}"
        run.save({"cnn_and_hybrid.png": plots.side_by_side(y_test, both, images.classes, title)})
        return run.finish(results, dataset=images.name, model=f"{model.name} + NumPy MLP {head.name}", **images.sizes,
                          val_accuracy=val_accuracy, test_accuracy=test_accuracy,
                          test_loss=layers.softmax_cross_entropy(test, y_test)[0],
                          cnn_val_accuracy=cnn_val_accuracy, cnn_test_accuracy=cnn_test_accuracy,
                          parameters=sum(p.numel() for p in model.backbone.parameters()) + len(head.params),
                          **model.trained_on)  # fmt: skip


def main(argv=None):
    run(settings.parse(sys.modules[__name__], cnn, data, runs, argv=argv))


if __name__ == "__main__":
    runs.command(main)
