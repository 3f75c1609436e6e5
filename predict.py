"""Classify your own pictures: picture files, or a folder of them, with the trained networks in models/.

    python predict.py shoe.jpg
    python predict.py FOLDER --output-dir runs/my_pictures
    python predict.py shoe.jpg --model runs/hybrid_train/DATE/hybrid.safetensors

The garment is found, cropped and made a 28 x 28 image as in the dataset (extras/garment.py). Prints the most
probable classes of each network, and writes predictions.csv and a figure. From Python:

    from predict import load, classify
    for prediction in classify("shoe.jpg", load()):
        print(prediction.model, prediction.label, prediction.probability, prediction.warning)
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from matplotlib.patches import Rectangle

import cnn_feature_extraction as cnn
import data
import hybrid_train
import mlp_from_scratch as mlp
import plots
import run
from extras import garment, transfer_learning

MODELS = ("mlp", "cnn", "hybrid")  # files of models/ that predict without --model
TOP = 3  # classes that are printed for each network
UNCERTAIN = 0.7  # a largest probability below this gives a warning
COLUMNS, SHOWN = 6, 48  # of pictures on a contact sheet
HEADER = ("picture", "model", "class", "probability", "warning")  # of predictions.csv
KINDS = {  # metadata["model"] of a weights file: the kind of network, and what restores it
    "mlp": ("MLP", mlp.restore),
    "cnn": ("CNN", cnn.restore),
    "hybrid": ("hybrid", hybrid_train.restore),
    "resnet18": ("ResNet18", transfer_learning.restore),
}


class Network(NamedTuple):
    """A trained network with what its weights file says about it."""

    name: str  # "NumPy MLP 784-256-128-10"
    kind: str  # "MLP", "CNN", "hybrid" or "ResNet18"
    logits: Callable  # images (N, H, W) in [0, 1] -> logits (N, C)
    probabilities: Callable  # logits (N, C) -> probabilities (N, C)
    classes: tuple
    shape: tuple  # of its images: (H, W)
    temperature: float  # of temperature scaling
    bright_on_dark: bool  # its images are as those of the dataset; others are whole pictures


class Prediction(NamedTuple):
    """What a network says about a picture."""

    picture: str
    model: str
    kind: str
    label: str  # the predicted class
    probability: float  # of that class, after temperature scaling
    warning: str  # "", or why not to believe it
    probabilities: dict  # {class: probability}, from the highest to the lowest
    garment: garment.Garment  # what the network saw


# ---- networks and predictions


def load(*paths):
    """The networks of weights files as a list of Network; without paths, of models/. Raises run.Error."""
    paths = paths or [run.ROOT / "models" / f"{name}.safetensors" for name in MODELS]
    networks = [load_file(path) for path in paths]
    names = [network.name for network in networks]
    if len(set(names)) < len(names):  # of one architecture
        names = [f"{name} ({path})" for name, path in zip(names, paths, strict=True)]
    return [network._replace(name=name) for network, name in zip(networks, names, strict=True)]


def load_file(path):
    """The Network of a weights file. Raises run.Error."""
    metadata = run.load_weights(path)[1]
    if metadata.get("model") not in KINDS:
        raise run.Error(f"{path}: contains a {metadata.get('model')}, expected one of {', '.join(KINDS)}")
    if metadata.get("input") == "features":
        raise run.Error(f"{path}: classifies the features of a CNN, not pictures; give hybrid.safetensors")
    kind, restore = KINDS[metadata["model"]]
    model, _ = restore(path)
    name, logits = model.name, lambda X: cnn.predict_logits(model, X)
    if kind == "MLP":
        name, logits = f"NumPy MLP {model.name}", model.predict_logits
    if kind == "hybrid":
        name += f" + NumPy MLP {model.classifier.mlp.name}"
    probabilities = mlp.LOSSES[metadata.get("loss", "softmax")][1]
    classes, shape = tuple(metadata["classes"]), tuple(metadata["image_shape"])
    others = metadata["temperature"], metadata.get("bright_on_dark", True)
    return Network(name, kind, logits, probabilities, classes, shape, *others)


def classify(picture, networks):
    """A list with the Prediction of each Network.

    picture: path, PIL image, or array (H, W), (H, W, 3) or (H, W, 4) of uint8, or of floats in [0, 1]. Raises
    run.Error for what cannot be read, or shows a single color.
    """
    name = os.fsencode(picture).decode(errors="backslashreplace") if isinstance(picture, (str, Path)) else ""
    seen, predictions = {}, []
    for network in networks:
        key = network.bright_on_dark, network.shape
        if key not in seen:
            look = garment.find if network.bright_on_dark else garment.whole
            seen[key] = look(picture, network.shape)
        logits = network.logits(seen[key].image[None]).astype(np.float64)  # (1, H, W) -> (1, C)
        p = network.probabilities(logits / network.temperature)[0]  # (C,)
        order = np.argsort(-p, kind="stable")
        probabilities = {network.classes[i]: float(p[i]) for i in order}
        label, highest = next(iter(probabilities.items()))
        warning = f"uncertain: below {plots.percent(UNCERTAIN)}" if highest < UNCERTAIN else ""
        result = (label, highest, warning, probabilities, seen[key])
        predictions.append(Prediction(name, network.name, network.kind, *result))
    return predictions


def find_pictures(paths):
    """The files that the command line names; of a folder all pictures below it. Raises run.Error."""
    pictures = []
    for path in map(Path, paths):
        files = visible_files(path)
        others = [file for file in files if file != path and file.suffix.lower() not in data.PICTURES]
        if len(others) == len(files):
            raise run.Error(f"{path}: contains no pictures ({', '.join(sorted(data.PICTURES))})")
        if others:
            names = ", ".join(file.name for file in others[:5])
            print(f"{path}: skipped {len(others):,} files that are no pictures: {names}", file=sys.stderr)
        pictures += [file for file in files if file not in set(others)]
    return pictures


def visible_files(path):
    """The file `path`; or the files in a folder and its folders, without hidden ones."""
    if not path.is_dir():
        return [path]
    return [file for inside in data.visible(path) for file in visible_files(inside)]


# ---- figure


def contact_sheet(results):
    """A Figure of the first SHOWN lists of Prediction: picture, garment, what the networks see, classes."""
    results = results[:SHOWN]
    columns, num_lines = min(COLUMNS, len(results)), len(results[0])
    rows, height = -(-len(results) // columns), 1.3 + 0.2 * num_lines  # of a cell, in sides of a picture
    inches = min(1.6, 9 / (2.1 * columns))  # of a picture's side
    width = 2.1 * columns * inches
    fig, axes = plots.figure("What the networks see", width, rows * height * inches + 0.8)
    ax, options = axes[0, 0], {"fontsize": 7.5 * inches, "va": "center"}
    for i, predictions in enumerate(results):
        left, top, seen = 2.1 * (i % columns), height * (i // columns), predictions[0].garment
        name = plots.short(Path(predictions[0].picture).name, 20)
        ax.text(left, top + 0.12, name, color=plots.GREY, **options)
        scale = 0.94 / max(seen.picture.shape[:2])
        tall, wide = (scale * side for side in seen.picture.shape[:2])
        x, y = left + 0.47 - wide / 2, top + 0.72 - tall / 2  # its upper left corner
        ax.imshow(seen.picture, extent=(x, x + wide, y + tall, y))
        x0, y0, x1, y1 = (scale * side for side in seen.box)
        box = Rectangle((x + x0, y + y0), x1 - x0, y1 - y0, fill=False, color=plots.WRONG, linewidth=0.6)
        ax.add_patch(box)
        place = (left + 1, left + 1.94, top + 1.19, top + 0.25)
        ax.imshow(seen.image, cmap="gray", vmin=0, vmax=1, extent=place)
        for line, p in enumerate(predictions):
            text = f"{p.kind}: {plots.short(p.label, 14)} {plots.percent(p.probability)}"
            color = plots.WRONG if p.warning else "black"
            ax.text(left, top + 1.32 + 0.2 * line, text, color=color, **options)
    ax.axis("off")
    ax.set(xlim=(-0.05, 2.1 * columns), ylim=(rows * height, 0), aspect="equal")
    note = f"in this color: a probability below {plots.percent(UNCERTAIN)}"
    fig.supxlabel(note, fontsize=9, color=plots.WRONG)
    return fig


# ---- the script


def parse(argv):
    parser = argparse.ArgumentParser("predict.py", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"predict.py: {message}\n")
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture file, or folder of pictures")
    model_help = "weights file of a run, instead of those in models/; repeatable"
    parser.add_argument("--model", action="append", default=[], metavar="FILE", help=model_help)
    folder_help = "folder of the results, new or empty (default: runs/predict/<date_time>)"
    parser.add_argument("--output-dir", default="", metavar="DIR", help=folder_help)
    s = parser.parse_args(argv)
    for path in map(Path, s.pictures):
        if s.output_dir and path.is_dir() and Path(s.output_dir).resolve().is_relative_to(path.resolve()):
            raise run.Error(f"--output-dir {s.output_dir}: is among the pictures; name another folder")
    return SimpleNamespace(**vars(s), resume="", seeds=1, figure_format="png")  # as RunFolder needs it


def report(predictions):
    """Print what the networks say about one picture."""
    print(predictions[0].picture)
    width = max(len(prediction.model) for prediction in predictions)
    for prediction in predictions:
        top = [f"{name} {plots.percent(p)}" for name, p in list(prediction.probabilities.items())[:TOP]]
        print("   ".join([f"  {prediction.model:<{width}}", *top, prediction.warning]).rstrip())


def main(argv=None):
    """Classify the pictures: a namespace of folder and predictions. Raises run.Error if any was skipped."""
    s = parse(argv)
    paths, networks = find_pictures(s.pictures), load(*s.model)
    results = []
    with run.RunFolder("predict", s) as folder:
        for path in paths:
            try:
                results.append(classify(path, networks))
                report(results[-1])
            except run.Error as error:
                print(f"skipped {error}", file=sys.stderr)
        rows = [[p.picture, p.model, p.label, p.probability, p.warning] for result in results for p in result]
        figure = {"predictions.png": contact_sheet(results)} if results else {}
        folder.save({"predictions.csv": run.csv_text(HEADER, rows)} | figure)
    print(f"\n{len(results):,} of {len(paths):,} pictures; all files are in\n{folder.path}")
    if len(results) < len(paths):
        raise run.Error(f"{len(paths) - len(results):,} of {len(paths):,} pictures were skipped")
    return SimpleNamespace(folder=folder.path, predictions=results)


if __name__ == "__main__":
    run.cli(main)
