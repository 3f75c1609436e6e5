"""Classify your own pictures: any PNG, JPEG or WebP file, or a folder of them, with the trained networks in models/.

    python predict.py shoe.jpg
    python predict.py FOLDER --output-dir runs/my_pictures
    python predict.py shoe.jpg --model runs/hybrid_train/DATE/hybrid.safetensors

The garment is found, cropped and made a 28 x 28 image as in the dataset (pictures/garment.py). Prints the three most
probable classes of each network and writes predictions.csv and a figure. From Python:

    from predict import load, classify
    for prediction in classify("shoe.jpg", load()):
        print(prediction.model, prediction.label, prediction.probability, prediction.warning)
"""

from support import entry

if __name__ == "__main__":  # before the slow imports: Ctrl-C
    entry.prepare()

import argparse
import contextlib
import csv
import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

import data
import mlp_from_scratch as mlp
from numpy_nn.calibration import calibrated
from numpy_nn.layers import LOSSES
from pictures import figures, ood
from pictures.garment import find, whole
from support import files, runs, settings

# ---- settings: edit here ----
MODELS = ("mlp", "cnn", "hybrid")  # files of models/ that predict without --model
TOP = 3  # classes that are printed for each network
DETAILED = 10  # with more pictures, or a folder, contact sheets replace the detailed figure
# ----

WARNING = "unlike the training images"
COLUMNS = ("picture", "model", "class", "probability", "warning")  # of predictions.csv
SUFFIXES = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp",  # of pictures; those below are named and skipped
            ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif"}  # fmt: skip


class Classifier(NamedTuple):
    """A trained network with what its weights file says about it."""

    name: str  # "NumPy MLP 784-256-128-10"
    classes: tuple
    shape: tuple  # of its images: (height, width) in pixels
    logits: Any  # a function: images (N, height, width) in [0, 1] -> logits (N, classes)
    network: Any  # the CNN or hybrid as a PyTorch module; None for the MLP
    temperature: float  # of temperature scaling; 1 in an older file
    loss: str
    detector: Any  # pictures.ood.Detector; None in an older file
    garments: bool  # whether the garment is looked for in a picture; networks for data of one's own see all of it


class Prediction(NamedTuple):
    """What one network says about one picture."""

    picture: str
    model: str
    label: str  # the predicted class
    probability: float  # after temperature scaling
    warning: str  # "", or why not to believe it
    probabilities: dict  # {class: probability}, from the highest to the lowest
    garment: Any  # pictures.garment.Garment: image (height, width), box, inverted, picture


def load(*paths):
    """The networks of weights files of this project as a list of Classifier; without paths, of models/.

    Raises files.FileError for a file that is missing, damaged, or not a network for images.
    """
    folder = Path(__file__).resolve().parent / "models"
    paths = list(dict.fromkeys(map(Path, paths))) or [folder / f"{name}.safetensors" for name in MODELS]
    loaded = list(map(load_one, paths))
    names = [classifier.name for classifier in loaded]
    return [classifier._replace(name=f"{classifier.name} ({path})") if names.count(classifier.name) > 1 else classifier
            for classifier, path in zip(loaded, paths, strict=True)]  # fmt: skip


def load_one(path):
    if path.is_dir():
        inside = sorted(file.name for file in path.glob("*.safetensors") if file.name != runs.CHECKPOINT)
        raise files.FileError(f"{path}: is a folder; name one of its weights files: {', '.join(inside) or 'there is none'}")
    _, metadata = files.load_weights(path)
    loaders = {"mlp": load_mlp, "cnn": load_cnn, "hybrid": load_hybrid, "resnet18": load_resnet}
    kind = metadata.get("model")
    if kind not in loaders:
        raise files.FileError(f"{path}: contains {files.KINDS.get(kind, 'another model')}; give weights.safetensors, "
                              "backbone.safetensors, hybrid.safetensors or resnet18.safetensors")  # fmt: skip
    shape = metadata.get("image_shape", (28, 28))
    name, logits, network = loaders[kind](path, shape)
    with files.checked_format(path):
        temperature, loss = float(metadata.get("temperature", 1.0)), metadata.get("loss", "softmax")
        detector = ood.Detector(metadata["ood"]) if "ood" in metadata else None
        if not 0 < temperature < np.inf or loss not in LOSSES:
            raise ValueError(f"temperature {temperature}, loss {loss}")
        if detector:
            detector.is_unlike(np.zeros((1, *shape)))
        garments = bool(metadata.get("bright_on_dark", True))
        return Classifier(name, tuple(metadata["classes"]), tuple(shape), logits, network, temperature, loss, detector,
                          garments)  # fmt: skip


def load_mlp(path, shape):
    """(name, function for logits, None) of the NumPy MLP in the file `path`, for images of that shape."""
    model, metadata = mlp.restore(path)
    if metadata.get("input") == "features" or np.prod(shape) != model.config["sizes"][0]:
        raise files.FileError(f"{path}: classifies the features of a CNN, not pictures; give hybrid.safetensors beside it")
    with files.checked_format(path):
        mean, std = np.asarray(metadata["mean"], float), np.asarray(metadata["std"], float)
        data.standardize(np.zeros((1, *shape), np.float32), mean, std)
    return f"NumPy MLP {model.name}", lambda X: model.predict_logits(data.standardize(X, mean, std)), None


def load_cnn(path, shape):
    """The same of a CNN; the last is its module."""
    from torch_cnn import backbone, features  # with PyTorch, which the MLP does without

    model, _ = backbone.restore(path)
    return model.name, lambda X: features.predict_logits(model, X), model


def load_hybrid(path, shape):
    """The same of a hybrid."""
    import hybrid_train
    from torch_cnn import features

    model, _ = hybrid_train.restore(path)
    return f"{model.name} + NumPy MLP {model.classifier.mlp.name}", lambda X: features.predict_logits(model, X), model


def load_resnet(path, shape):
    """(name, function for logits, None) of a ResNet18."""
    from torch_cnn import features, resnet

    model, _ = resnet.restore(path)
    return model.name, lambda X: features.predict_logits(model, X), None


def classify(picture, classifiers):
    """A list with the Prediction of each Classifier.

    picture: path of a PNG, JPEG or WebP file, a Pillow image, or an array (height, width), (..., 3) or (..., 4), of floats
    in [0, 1] or of uint8. Raises files.FileError for a picture that cannot be read, is none or shows a single color.
    """
    name, predictions = str(picture) if isinstance(picture, (str, Path)) else "", []
    kinds = {(classifier.garments, classifier.shape) for classifier in classifiers}
    views = {(garments, shape): (find if garments else whole)(picture, shape) for garments, shape in kinds}
    for classifier in classifiers:
        garment = views[classifier.garments, classifier.shape]
        X = garment.image[None]  # (1, height, width)
        p = calibrated(classifier.logits(X), classifier.temperature, classifier.loss)[0]
        order = np.argsort(-p, kind="stable")
        probabilities = {classifier.classes[i]: float(p[i]) for i in order}
        warning = WARNING if classifier.detector and classifier.detector.is_unlike(X)[0] else ""
        label, highest = next(iter(probabilities.items()))
        predictions.append(Prediction(name, classifier.name, label, highest, warning, probabilities, garment))
    return predictions


def evidence(predictions, classifiers):
    """(name, map (height, width)) of the first classifier with a CNN: where it saw its class; ("", None) without one."""
    for prediction, classifier in zip(predictions, classifiers, strict=True):
        if classifier.network is not None:
            label = classifier.classes.index(prediction.label)
            return classifier.name, evidence_map(classifier.network, prediction.garment.image, label)
    return "", None


def evidence_map(network, image, label):
    """HiResCAM (height, width) >= 0 of the class `label` in the image (height, width), a NumPy array.

    The NumPy MLP of a hybrid is no PyTorch module with gradients in eval mode; its own backward pass gives them.
    """
    import torch

    from torch_cnn.figures import hires_cam

    X = torch.from_numpy(image)[None, None].to(network.mean.device)  # (1, 1, height, width)
    head = network.classifier
    if hasattr(head, "mlp"):
        from hybrid_train import NumpyMLPFunction

        head.mlp.params[:] = head.params.cpu().numpy()
        network = SimpleNamespace(mean=network.mean, std=network.std, backbone=network.backbone, eval=network.eval,
                                  classifier=lambda x: NumpyMLPFunction.apply((x - head.mean) / head.std, head.mlp))
    return hires_cam(network, X, torch.tensor([label], device=X.device))[0].cpu().numpy()


def find_pictures(paths):
    """The files that the command line names: pictures as they are, of a folder all pictures in it and its subfolders.

    Subfolders with results of this script are left out.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            results = {file.parent for file in path.rglob("predictions.csv") if (file.parent / "settings.json").exists()}
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()
                            and not any(part.startswith(".") for part in file.relative_to(path).parts)
                            and results.isdisjoint(file.parents))  # fmt: skip
            if not inside:
                raise files.FileError(f"{path}: no pictures (PNG, JPEG or WebP) in this folder")
            found += inside
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def printable(name):
    """A file's name with which any terminal, file and font can do; other characters become question marks."""
    text = os.fspath(name).encode("utf-8", "replace").decode("utf-8")
    return "".join(character if character.isprintable() else "?" for character in text)


def lines_of(predictions):
    """What is printed for one picture: a line for each network."""
    garment, width = predictions[0].garment, max(len(prediction.model) for prediction in predictions)
    yield f"{printable(predictions[0].picture)}{', inverted' * garment.inverted}"
    for prediction in predictions:
        top = [f"{name} {figures.in_percent(p)}" for name, p in list(prediction.probabilities.items())[:TOP]]
        yield f"  {prediction.model:<{width}}  {'   '.join(top)}"
    warned = [prediction.model for prediction in predictions if prediction.warning]
    if warned:
        yield f"  WARNING: {WARNING}" + ("" if len(warned) == len(predictions) else f" of {', '.join(warned)}")


def csv_text(results):
    """predictions.csv: a row for each picture and network."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for predictions in results:
        for p in predictions:
            writer.writerow([printable(p.picture), p.model, p.label, f"{p.probability:.4f}", p.warning])
    return text.getvalue()


def check_output_dir(output_dir, pictures):
    """Raise files.FileError for a folder that cannot be written to, or whose content would be lost or renamed."""
    folder = Path(output_dir).resolve()
    if not output_dir:
        return
    if any(folder in path.resolve().parents for path in pictures):
        raise files.FileError(f"--output-dir {output_dir}: contains the pictures; name another folder")
    if (folder / "predictions.csv").exists() and not (folder / "settings.json").exists():
        raise files.FileError(f"--output-dir {output_dir}: has a predictions.csv that is not this script's; name another "
                              "folder")  # fmt: skip
    runs.check_folder(output_dir)


def run(paths, models=(), output_dir=""):
    """Classify the pictures; print and write the results. Return (list of lists of Prediction, number of files skipped)."""
    pictures, results, skipped = find_pictures(paths), [], 0
    check_output_dir(output_dir, pictures)
    classifiers = load(*models)
    detailed = len(pictures) <= DETAILED and not any(Path(path).is_dir() for path in paths)
    maps = []
    for path in pictures:
        try:
            predictions = classify(path, classifiers)
        except files.FileError as error:
            skipped += 1
            print(f"skipped {printable(str(error))}", file=sys.stderr)
            continue
        results.append(predictions)
        maps.append(evidence(predictions, classifiers) if detailed else None)
        print("\n".join(lines_of(predictions)))
    if not results:
        raise files.FileError("none of the pictures could be used")
    for classifier in classifiers:
        if classifier.detector is None:
            print(f"{classifier.name}: its file, of an earlier version, has no temperature and no threshold for warnings")
    drawn = {"predictions.png": figures.predictions(results, maps)} if detailed else figures.contact_sheets(results)
    given = {"pictures": list(map(str, paths)), "models": list(map(str, models)), "output_dir": str(output_dir)}
    with contextlib.ExitStack() as lock:
        folder = runs.new_folder("predict", given, lock)
        files.write_text(folder / "predictions.csv", csv_text(results))
        for name, figure in drawn.items():
            with files.atomic_write(folder / name) as temporary:
                figure.savefig(temporary, format="png")
    count = f"{len(results):,} picture{'s' * (len(results) != 1)}" + (f", {skipped:,} skipped" if skipped else "")
    figures_written = next(iter(drawn)) if len(drawn) == 1 else f"{len(drawn)} contact sheets"
    print(f"\n{count}; predictions.csv and {figures_written} are in\n{folder}")
    return results, skipped


def make_parser():
    description = __doc__.split("\n\n")[0]
    parser = argparse.ArgumentParser("predict.py", description=description, allow_abbrev=False)
    parser.error = lambda mistake: parser.exit(2, f"predict.py: {mistake}\n")
    parser.usage = "predict.py PICTURE... [--model FILE] [--output-dir DIR]"
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="PNG, JPEG or WebP file, or a folder of such files")
    parser.add_argument("--model", action="append", default=[], metavar="FILE", dest="models",
                        help="weights file of a run, instead of those in models/: weights.safetensors, "
                        "backbone.safetensors, hybrid.safetensors or resnet18.safetensors; repeatable")  # fmt: skip
    parser.add_argument("--output-dir", default="", metavar="DIR", help="folder of the results; default: runs/predict/DATE")
    return parser


def main(argv=None):
    """Exit code 0; 1 if a picture was skipped or nothing could be done; 2 for wrong flags."""
    parser = make_parser()
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = unknown[0].partition("=")[0]
        parser.error(settings.unknown_setting(flag, ["model", "output_dir"]) + "; --help lists all flags")
    if not all(given.pictures) or not given.pictures:
        parser.error("name a picture or a folder of pictures, such as: python predict.py shoe.jpg")
    _, skipped = run(given.pictures, given.models, given.output_dir)
    sys.exit(int(skipped > 0))


if __name__ == "__main__":
    entry.cli(main)
