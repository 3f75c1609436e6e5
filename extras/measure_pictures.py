"""How well predict.py does on pictures other than the dataset's: the tables of results/predict/README.md.

    python -m extras.measure_pictures           pictures made from test images: writes pictures.json
    python -m extras.measure_pictures FOLDER    your own photos: writes photos.json, photos.csv

FOLDER contains labels.csv with the columns file (its path in FOLDER), group and label; a label may be none of
the network's classes. The even lines of labels.csv, sorted by file and counted from 0, and the odd ones are
summarized, too: predict.py's rules were chosen on one half of a folder, and measured on the other.
"""

import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.stats import binomtest
from tqdm import tqdm

import data
import predict
import run
from extras import garment
from studies.output import markdown

PHOTOS: str = ""  # folder of your own photos, with labels.csv; may be given without the flag
MODEL: str = ""  # weights file of the network; "": models/cnn.safetensors
PICTURES: int = 200  # number of test images of which pictures are made
SEED: int = 0  # seed of the choice of images and of all changes
OUTPUT_DIR: str = ""  # folder of the results, new or empty; "" makes runs/measure_pictures/<date_time>

LIMITS = {"PICTURES": (1, 10_000), "SEED": (0, 2**31 - 1)}

ALL = "all of these at random"
CHANGES = ("scaled up", "inverted", "cut out", "other background", "recolored", "off-center", "in a corner")
CHANGES += ("JPEG", ALL)
LABELS = ("file", "group", "label")  # columns of labels.csv
COLUMNS = ("photos", "number", "right", "warned, of the wrong", "warned, of the right", "right, not warned")


def cutout(x, side):
    """Image x (28, 28) as a photographed garment: (brightness, dark on light, opacity), both (side, side)."""
    inside = garment.without_holes(x > 0.02, 12)  # white spots; the handle of a bag is larger
    pair = [Image.fromarray(values.astype(np.float32)) for values in (x, inside)]
    gray, opacity = (np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)) for image in pair)
    return np.clip(1 - gray, 0, 1), np.clip(2 * opacity - 0.5, 0, 1)


def background(height, width, rng):
    """A flat color, a gradient or a texture (height, width, 3)."""
    canvas, kind = np.ones((height, width, 3)) * rng.uniform(0.1, 1, 3), rng.integers(3)
    if kind == 1:
        y, x = np.mgrid[:height, :width] / max(height, width) - 0.5
        angle = rng.uniform(0, 2 * np.pi)
        canvas += (0.3 * (x * np.cos(angle) + y * np.sin(angle)))[..., None]
    if kind == 2:
        noise = ndimage.gaussian_filter(rng.standard_normal((height, width)), rng.uniform(0, 2))
        canvas += (0.03 * noise / noise.std())[..., None]
    return canvas


def write_picture(folder, i, x, change, seed):
    """Write the i-th image x (28, 28) as a picture of a kind of CHANGES; return the path of the file."""
    rng, everything = np.random.default_rng((seed, i)), change == ALL
    height = width = side = int(rng.integers(140, 421))
    brightness, opacity = cutout(x, side)
    top = left = 0
    place = rng.choice(["off-center", "in a corner"]) if everything else change
    if place in ("off-center", "in a corner"):
        height, width = (int(side * factor) for factor in rng.uniform(1.3, 2.5, 2))
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    if place == "in a corner":
        top, left = rng.choice([0, height - side]), rng.choice([0, width - side])
    colored = everything or change == "other background"
    canvas = background(height, width, rng) if colored else np.ones((height, width, 3))
    tint = rng.uniform(0.4, 1, 3) if everything or change == "recolored" else np.ones(3)
    covered = canvas[top : top + side, left : left + side]
    covered += opacity[..., None] * (1 - (1 - brightness[..., None]) * tint - covered)
    if change == "scaled up":  # bright on black, as in the dataset
        canvas[:] = 1 - brightness[..., None]
    if change == "cut out":  # bright, transparent around it
        canvas = np.dstack([np.repeat(1 - brightness[..., None], 3, axis=2), opacity])
    is_jpeg = everything or change == "JPEG"
    options = {"quality": int(rng.integers(20, 61))} if is_jpeg else {}
    path = Path(folder, f"{i:03d}.{'jpg' if is_jpeg else 'png'}")
    Image.fromarray(np.round(255 * np.clip(canvas, 0, 1)).astype(np.uint8)).save(path, **options)
    return path


def accuracy(p, y):
    """{"right": share of images whose class is right, "warned": share with a low probability}; p: (N, C)."""
    return {"right": run.accuracy(p, y), "warned": float(np.mean(p.max(axis=1) < predict.UNCERTAIN))}


def calibration(network, logits, y):
    """Temperature, calibration errors, and {percent of the least confident images rejected: accuracy}."""
    before, after = network.probabilities(logits), network.probabilities(logits / network.temperature)
    right = (after.argmax(axis=1) == y)[np.argsort(-after.max(axis=1), kind="stable")]
    accepted = {str(n): max(1, round(len(y) * (1 - n / 100))) for n in (0, 5, 10, 20, 30)}
    errors = {"ece": run.calibration(y, before)[-1], "ece_calibrated": run.calibration(y, after)[-1]}
    accuracies = {n: float(right[:count].mean()) for n, count in accepted.items()}
    return {"temperature": network.temperature, **errors, "accuracy": accuracies}


def measure_made(s, network, folder):
    """The content of pictures.json; writes contact_sheet.png."""
    images = data.load(dataset="fashion-mnist")
    if images.classes != network.classes:
        raise run.Error("needs a network trained on Fashion-MNIST")
    test = images.test
    rows = np.sort(np.random.default_rng(s.seed).permutation(len(test.y))[: s.pictures])
    X, y = test.X[rows], test.y[rows]
    logits = predict.logits_of(network, test.X)
    p = network.probabilities(logits / network.temperature)
    pictures = {f"all {len(p):,} test images": accuracy(p, test.y)}
    pictures[f"these {len(y)} images"] = accuracy(p[rows], y)
    for change in tqdm(CHANGES, "kinds", leave=False, disable=None):
        with tempfile.TemporaryDirectory() as place:
            paths = [write_picture(place, i, x, change, s.seed) for i, x in enumerate(X)]
            predictions = [predict.classify(path, network) for path in paths]
            whole = np.stack([garment.whole(path).image for path in paths])
        right = np.mean([p.label == images.classes[label] for p, label in zip(predictions, y, strict=True)])
        pictures[change] = {"right": float(right)}
        pictures[change]["warned"] = float(np.mean([bool(p.warning) for p in predictions]))
        pictures[change]["as_it_comes"] = run.accuracy(predict.logits_of(network, whole), y)
        print(f"{change:<24}", *(f"{name} {share:.1%} " for name, share in pictures[change].items()))
    shown = predictions[: predict.SHOWN]
    folder.save({"contact_sheet.png": predict.contact_sheet(shown, [Path(p.picture).name for p in shown])})
    results = {"pictures": pictures, "calibration": calibration(network, logits, test.y)}
    return results | {"seconds": seconds(), "command": run.command_line()}


# ---- your own photos


def read_labels(folder):
    """[{"file": ..., "group": ..., "label": ...}] of FOLDER/labels.csv, sorted by file. Raises run.Error."""
    path = Path(folder, "labels.csv")
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row.get("file") or "")
    if not rows or not {*LABELS} <= rows[0].keys():
        raise run.Error(f"{path}: expected a line for each photo, with the columns {', '.join(LABELS)}")
    return rows


def share(values):
    """{"share", "low", "high", "number"} of an array of bools: with Wilson's 95 % interval."""
    if not len(values):
        return {"share": None, "number": 0}
    interval = binomtest(int(values.sum()), len(values)).proportion_ci(method="wilson")
    bounds = {"low": float(interval.low), "high": float(interval.high)}
    return {"share": float(values.mean()), **bounds, "number": len(values)}


def summarize(groups, known, right, warned):
    """{group: {"right": share(...), ...}}, and of "all", of photos: arrays (N,).

    known: whether the label is one of the network's classes; where none is, "right" has no photos.
    """
    summary = {}
    for group in [*dict.fromkeys(groups), "all"]:
        inside = (groups == group) | (group == "all")
        summary[group] = {
            "number": int(inside.sum()),
            "right": share(right[inside & known]),
            "warned_wrong": share(warned[inside & ~right]),
            "warned_right": share(warned[inside & right]),
            "right_not_warned": share(right[inside & ~warned]),
        }
    return summary


def share_text(s):
    """81 % (69 to 89), of a `share`."""
    if not s["number"]:
        return "-"
    return f"{100 * s['share']:.0f} % ({100 * s['low']:.0f} to {100 * s['high']:.0f})"


def table(summary):
    """A Markdown table of `summarize`."""
    rows = []
    for group, row in summary.items():
        shares = (row[name] for name in ("right", "warned_wrong", "warned_right", "right_not_warned"))
        rows.append([group, row["number"], *map(share_text, shares)])
    return markdown(COLUMNS, rows)


def measure_photos(folder, rows, network):
    """({"all": `summarize` of all photos, "even": of those on even lines, "odd": ...}, Predictions)."""
    predictions = []
    for row in tqdm(rows, "photos", leave=False, disable=None):
        predictions.append(predict.classify(Path(folder, row["file"]), network))
    groups = np.array([row["group"] for row in rows])
    known = np.array([row["label"] in network.classes for row in rows])
    right = np.array([p.label == row["label"] for p, row in zip(predictions, rows, strict=True)])
    warned = np.array([bool(p.warning) for p in predictions])
    parts, summaries = {"all": slice(None), "even": slice(0, None, 2), "odd": slice(1, None, 2)}, {}
    for name, part in parts.items():
        summaries[name] = summarize(groups[part], known[part], right[part], warned[part])
    return summaries, predictions


# ---- speed


def seconds():
    """Seconds of `python predict.py` for one picture and for a hundred, from start to end of the process."""
    times, X = {}, data.load(dataset="fashion-mnist").test.X
    with tempfile.TemporaryDirectory() as place:
        paths = [str(write_picture(place, i, X[i], ALL, 0)) for i in range(100)]
        for count in (1, 100):
            command = [sys.executable, str(run.ROOT / "predict.py"), *paths[:count]]
            start = time.perf_counter()
            subprocess.run([*command, "--output-dir", f"{place}/{count}"], check=True, capture_output=True)
            times[str(count)] = round(time.perf_counter() - start, 1)
    return times


# ---- the script


def main(argv=None):
    """Returns the content of pictures.json or photos.json."""
    argv = sys.argv[1:] if argv is None else list(argv)
    argv = ["--photos", *argv] if argv and not argv[0].startswith("-") else argv
    s = run.parse(argv, sys.modules[__name__])
    s.resume, s.seeds, s.figure_format = "", 1, "png"  # as RunFolder needs it
    network, rows = predict.load(s.model or predict.MODEL), read_labels(s.photos) if s.photos else []
    with run.RunFolder("measure_pictures", s) as folder:
        if s.photos:
            summaries, predictions = measure_photos(s.photos, rows, network)
            print(table(summaries["all"]), end="")
            lines = []
            for row, p in zip(rows, predictions, strict=True):
                lines.append([*map(row.get, LABELS), p.label, p.probability, p.warning])
            folder.save({"photos.csv": run.csv_text((*LABELS, "class", "probability", "warning"), lines)})
            results, name = {"photos": summaries}, "photos.json"
        else:
            results, name = measure_made(s, network, folder), "pictures.json"
        kept = {key: value for key, value in vars(s).items() if key not in ("photos", "model", "output_dir")}
        results |= {"model": network.name, "settings": kept, **run.environment()}
        folder.save({name: json.dumps(results, indent=2) + "\n"})
    return results


if __name__ == "__main__":
    run.cli(main)
