"""Evaluate a saved network on the test images, as in `python -m extras.evaluate models/mlp.safetensors`.

    python -m extras.evaluate runs/hybrid_train/DATE/hybrid.safetensors
    python -m extras.evaluate runs/mlp_from_scratch/DATE/weights.safetensors --dataset digits --npy

prints accuracy, loss, precision, recall and F1 of each class, the confusion matrix and the calibration, and
writes them as evaluation.txt, evaluation.json and figures. --npy writes the weights and settings, too, for
programs that do not read safetensors.
"""

import itertools
import json
import sys

import numpy as np
from sklearn.metrics import confusion_matrix

import data
import mlp_from_scratch as mlp
import plots
import predict
import run
from studies.output import aligned

NPY: bool = False  # write each array of weights as .npy, and what else is in the file as network.json
OUTPUT_DIR: str = ""  # folder of the results, new or empty; "" makes runs/evaluate/<date_time>

LIMITS = {}


def main(argv=None):
    """Returns the content of evaluation.json. Raises run.Error."""
    argv = sys.argv[1:] if argv is None else list(argv)
    paths = list(itertools.takewhile(lambda word: not word.startswith("--"), argv))
    s = run.parse(argv[len(paths) :], sys.modules[__name__], data)
    s.resume, s.seeds, s.figure_format = "", 1, "png"  # as RunFolder needs it
    if len(paths) != 1:
        raise run.Error("name one weights file, such as models/mlp.safetensors")
    network, (arrays, metadata) = predict.load(paths[0]), run.load_weights(paths[0])
    images = data.load(s)
    if (images.classes, images.image_shape) != (network.classes, network.shape):
        raise run.Error(f"{paths[0]}: was trained on {metadata['dataset']}, which --dataset has to name")
    loss, _ = mlp.LOSSES[metadata.get("loss", "softmax")]
    y, classes, title = images.test.y, images.classes, f"{network.name} on {images.name}"
    logits = network.logits(images.test.X).astype(np.float64)
    p, calibrated = network.probabilities(logits), network.probabilities(logits / network.temperature)
    bins = {"before": run.calibration(y, p), "after": run.calibration(y, calibrated)}
    metrics = {"test_accuracy": run.accuracy(logits, y), "test_loss": loss(logits, y)[0]}
    metrics |= {"test_ece": bins["before"][-1], "test_ece_calibrated": bins["after"][-1]}
    metrics["temperature"] = network.temperature
    with run.RunFolder("evaluate", s) as folder:
        files = plots.evaluation(images.as_shown(images.test.X), y, p, classes, title, bins, calibrated)
        counts = confusion_matrix(y, p.argmax(axis=1), labels=range(len(classes)))
        rows = [[name, *row] for name, row in zip(classes, counts, strict=True)]
        lines = [f"{title}, {len(y):,} test images", ""]
        lines += [f"{name:<20} {value:.4f}" for name, value in metrics.items()]
        lines += ["", files["classification_report.txt"], "true classes down, predicted ones across"]
        text = "\n".join([*lines, aligned(["", *classes], rows), ""])
        metrics |= {"confusion_matrix": counts.tolist(), "classes": classes, "model": network.name}
        metrics |= {"dataset": images.name, "command": run.command_line(), **run.environment()}
        files |= {"evaluation.txt": text, "evaluation.json": json.dumps(metrics, indent=2) + "\n"}
        if s.npy:
            files |= {f"{name}.npy": array for name, array in arrays.items()}
            files["network.json"] = json.dumps(metadata, indent=2) + "\n"
        folder.save(files)
    print(f"{text}\nall files are in\n{folder.path}")
    return metrics


if __name__ == "__main__":
    run.cli(main)
