"""Classify your own pictures: picture files, or a folder of them, with a trained network of models/.

    python predict.py shoe.jpg
    python predict.py FOLDER --output-dir runs/my_pictures
    python predict.py shoe.jpg --model runs/hybrid_train/DATE/hybrid.safetensors

The garment is found, cropped and made a 28 x 28 image as in the dataset (extras/garment.py). Prints a line
for each picture, and writes predictions.csv and contact sheets. From Python:

    from predict import load, classify
    prediction = classify("shoe.jpg", load())
    print(prediction.label, prediction.probability, prediction.warning)
"""

import argparse
import glob
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

import cnn_feature_extraction as cnn
import data
import hybrid_train
import mlp_from_scratch as mlp
import plots
import run
from extras import garment, transfer_learning

MODEL = run.ROOT / "models/cnn.safetensors"  # predicts without --model
TOP = 3  # classes that are printed for a single picture
UNCERTAIN = 0.7  # a largest probability below this gives a warning
COLUMNS, SHOWN = 6, 48  # of pictures on a contact sheet
HEADER = ("number", "picture", "class", "probability", "warning")
HEADER += ("left", "top", "right", "bottom", "inverted")  # the box, relative to the picture's size
RESTORE = {  # metadata["model"] of a weights file: function that reads the file
    "mlp": mlp.restore,
    "cnn": cnn.restore,
    "hybrid": hybrid_train.restore,
    "resnet18": transfer_learning.restore,
}


class Network(NamedTuple):
    """A trained network with what its weights file says about it."""

    name: str  # "NumPy MLP 784-256-128-10"
    logits: Callable  # images (N, H, W) in [0, 1] -> logits (N, C)
    probabilities: Callable  # logits (N, C) -> probabilities (N, C)
    classes: tuple
    shape: tuple  # of its images: (H, W)
    temperature: float  # of temperature scaling
    bright_on_dark: bool  # its images are as those of the dataset; others are whole pictures


class Prediction(NamedTuple):
    """What a network says about a picture."""

    picture: str
    label: str  # the predicted class
    probability: float  # of that class, after temperature scaling
    warning: str  # "", or why not to believe it
    probabilities: dict  # {class: probability}, in the network's order
    garment: garment.Garment  # what the network saw


# ---- networks and predictions


def load(path=MODEL):
    """The Network of a weights file. Raises run.Error."""
    metadata = run.load_weights(path)[1]
    kind = metadata.get("model")
    if kind not in RESTORE:
        raise run.Error(f"{path}: contains a {kind}, expected one of {', '.join(RESTORE)}")
    if metadata.get("input") == "features":
        raise run.Error(f"{path}: classifies the features of a CNN, not pictures; give hybrid.safetensors")
    model, _ = RESTORE[kind](path)
    name = f"{model.name} + {model.classifier.mlp.name}" if kind == "hybrid" else model.name
    logits = model.predict_logits if kind == "mlp" else lambda X: cnn.predict_logits(model, X)
    probabilities = mlp.LOSSES[metadata.get("loss", "softmax")][1]
    classes, shape = tuple(metadata["classes"]), tuple(metadata["image_shape"])
    others = metadata["temperature"], metadata.get("bright_on_dark", True)
    return Network(name, logits, probabilities, classes, shape, *others)


def logits_of(network, X):
    """Logits (N, C) of images X (N, H, W); with flip TTA for images of the dataset's kind."""
    views = (X, X[..., ::-1]) if network.bright_on_dark else (X,)
    return np.mean([network.logits(view).astype(np.float64) for view in views], axis=0)


def probabilities_of(network, X):
    """Probabilities (N, C) of images X (N, H, W), after temperature scaling."""
    return network.probabilities(logits_of(network, X) / network.temperature)


def classify(picture, network):
    """The Prediction of a Network.

    picture: path, file object, PIL image; or a torch tensor or array (H, W), (H, W, 1), (H, W, 3), (H, W, 4)
    or (1, H, W) of uint8, or of floats in [0, 1]. Raises run.Error for what cannot be read, or shows a single
    color.
    """
    look = garment.find if network.bright_on_dark else garment.whole
    seen = look(picture, network.shape)
    p = probabilities_of(network, seen.image[None])[0]  # (1, H, W) -> (C,)
    reasons = [] if seen.plain else ["the background is not plain"]
    if seen.cut_off and p.max() < UNCERTAIN:
        reasons.append("cut off by the picture's edge, perhaps worn")
        seen = garment.find(picture, network.shape, worn=True)
        p = probabilities_of(network, seen.image[None])[0]
    if p.max() < UNCERTAIN:
        reasons.append(f"uncertain: below {plots.percent(UNCERTAIN)}")
    probabilities = dict(zip(network.classes, p.tolist(), strict=True))
    name = os.fsencode(picture).decode(errors="backslashreplace") if isinstance(picture, (str, Path)) else ""
    label = network.classes[p.argmax()]
    return Prediction(name, label, float(p.max()), "; ".join(reasons), probabilities, seen)


def find_pictures(paths):
    """The files that the command line names; of a folder all pictures below it. Raises run.Error."""
    pictures = []
    for name in paths:
        matches = [name] if Path(name).exists() else sorted(glob.glob(name))  # Windows' shell expands no *
        for path in map(Path, matches or [name]):
            files = visible_files(path)
            chosen = [file for file in files if file == path or file.suffix.lower() in data.PICTURES]
            if not chosen:
                raise run.Error(f"{path}: contains no pictures ({', '.join(sorted(data.PICTURES))})")
            if others := sorted({*files} - {*chosen}):
                names = ", ".join(file.name for file in others[:5])
                text = f"skipped {len(others):,} files; convert what are pictures to PNG or JPEG"
                print(f"{path}: {text}: {names}", file=sys.stderr)
            pictures += chosen
    return pictures


def visible_files(path):
    """The file `path`; or the files in a folder and its folders, without hidden ones."""
    if not path.is_dir():
        return [path]
    return [file for inside in data.visible(path) for file in visible_files(inside)]


# ---- figure


def contact_sheet(predictions, names):
    """A Figure of Predictions: picture with the garment's box, what the network sees, name, class."""
    from matplotlib.patches import Rectangle  # heavy

    columns, height = min(COLUMNS, len(predictions)), 1.5  # of a cell, in sides of a picture
    rows = -(-len(predictions) // columns)
    inches = min(1.6, 9 / (2.1 * columns))  # of a picture's side
    width = 2.1 * columns * inches
    fig, axes = plots.figure("What the network sees", width, rows * height * inches + 0.8)
    ax, options = axes[0, 0], {"fontsize": 7.5 * inches, "va": "center"}
    for i, (p, name) in enumerate(zip(predictions, names, strict=True)):
        left, top, seen = 2.1 * (i % columns), height * (i // columns), p.garment
        ax.text(left, top + 0.12, plots.short(name, 24), color=plots.GREY, **options)
        scale = 0.94 / max(seen.picture.shape[:2])
        tall, wide = (scale * side for side in seen.picture.shape[:2])
        x, y = left + 0.47 - wide / 2, top + 0.72 - tall / 2  # its upper left corner
        ax.imshow(seen.picture, extent=(x, x + wide, y + tall, y))
        x0, y0, x1, y1 = (scale * side for side in seen.box)
        box = Rectangle((x + x0, y + y0), x1 - x0, y1 - y0, fill=False, color=plots.WRONG, linewidth=0.6)
        ax.add_patch(box)
        place = (left + 1, left + 1.94, top + 1.19, top + 0.25)
        ax.imshow(seen.image, cmap="gray", vmin=0, vmax=1, extent=place)
        text = f"{plots.short(p.label, 20)} {plots.percent(p.probability)}"
        ax.text(left, top + 1.32, text, color=plots.WRONG if p.warning else "black", **options)
    ax.axis("off")
    ax.set(xlim=(-0.05, 2.1 * columns), ylim=(rows * height, 0), aspect="equal")
    fig.supxlabel("in this color: with a warning", fontsize=9, color=plots.WRONG)
    return fig


# ---- the script


def parse(argv):
    parser = argparse.ArgumentParser("predict.py", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"predict.py: {message}\n")
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture file, or folder of pictures")
    model_help = "weights file of a run (default: models/cnn.safetensors)"
    parser.add_argument("--model", default=str(MODEL), metavar="FILE", help=model_help)
    folder_help = "folder of the results, new or empty (default: runs/predict/<date_time>)"
    parser.add_argument("--output-dir", default="", metavar="DIR", help=folder_help)
    inputs_help = "save the images that the network sees, as inputs/<number>.png"
    parser.add_argument("--save-inputs", action="store_true", help=inputs_help)
    s = parser.parse_args(argv)
    for path in map(Path, s.pictures):
        if s.output_dir and path.is_dir() and Path(s.output_dir).resolve().is_relative_to(path.resolve()):
            raise run.Error(f"--output-dir {s.output_dir}: is among the pictures; name another folder")
    return SimpleNamespace(**vars(s), resume="", seeds=1, figure_format="png")  # as RunFolder needs it


def report(prediction, alternatives):
    """Print a line about a picture; and the most probable other classes."""
    line = f"{prediction.picture}: {prediction.label} {plots.percent(prediction.probability)}"
    tqdm.write(f"{line} ({prediction.warning})" if prediction.warning else line)
    if alternatives:
        others = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[1:TOP]
        tqdm.write("  or " + ", ".join(f"{name} {plots.percent(p)}" for name, p in others))


def save(folder, predictions, s):
    """Write predictions.csv, the contact sheets and, if wanted, the network's inputs."""
    rows, root = [], os.path.commonpath([Path(p.picture).absolute().parent for p in predictions])
    for number, p in enumerate(predictions, 1):
        height, width = p.garment.picture.shape[:2]
        box = [side / size for side, size in zip(p.garment.box, (width, height) * 2, strict=True)]
        details = [*box, int(p.garment.inverted), *p.probabilities.values()]
        rows.append([number, p.picture, p.label, p.probability, p.warning, *details])
        if s.save_inputs:
            (folder.path / "inputs").mkdir(exist_ok=True)
            image = Image.fromarray(np.round(255 * p.garment.image).astype(np.uint8))
            image.save(folder.path / f"inputs/{number}.png")
    header = (*HEADER, *(f"p({name})" for name in predictions[0].probabilities))
    folder.save({"predictions.csv": run.csv_text(header, rows)})
    for start in range(0, len(predictions), SHOWN):
        shown = predictions[start : start + SHOWN]
        names = [os.path.relpath(Path(p.picture).absolute(), root) for p in shown]
        names = [f"{number} {name}" for number, name in enumerate(names, start + 1)]
        end = f"_{start // SHOWN + 1}" if start else ""
        folder.save({f"predictions{end}.png": contact_sheet(shown, names)})


def main(argv=None):
    """Classify the pictures: a namespace of folder and predictions. Raises run.Error if none can be read."""
    s = parse(argv)
    paths, network, predictions = find_pictures(s.pictures), load(s.model), []
    with run.RunFolder("predict", s) as folder:
        for path in tqdm(paths, "pictures", leave=False, disable=None if len(paths) > 1 else True):
            try:
                predictions.append(classify(path, network))
                report(predictions[-1], len(paths) == 1)
            except run.Error as error:
                tqdm.write(f"skipped {error}", file=sys.stderr)
        if not predictions:
            raise run.Error(f"none of {len(paths):,} pictures can be read")
        save(folder, predictions, s)
    if len(paths) > 1:
        counts = Counter(p.label for p in predictions).most_common()
        print(f"\n{len(predictions):,} of {len(paths):,} pictures read, ", end="")
        print(f"{sum(bool(p.warning) for p in predictions):,} with a warning: ", end="")
        print(", ".join(f"{count:,} {label}" for label, count in counts))
    print(f"\nall files are in\n{folder.path}")
    return SimpleNamespace(folder=folder.path, predictions=predictions)


if __name__ == "__main__":
    run.cli(main)
