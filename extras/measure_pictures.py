"""How well predict.py does on pictures other than the dataset's: the numbers of results/predict/README.md.

    python -m extras.measure_pictures

makes pictures of each kind in CHANGES from test images, classifies the files as predict.py does with the
networks in models/, and writes pictures.json and contact_sheet.png.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

import data
import predict
import run
from extras import garment

PICTURES: int = 200  # number of test images of which pictures are made
SEED: int = 0  # seed of the choice of images and of all changes
OUTPUT_DIR: str = ""  # folder of the results, new or empty; "" makes runs/measure_pictures/<date_time>

LIMITS = {"PICTURES": (1, 10_000), "SEED": (0, 2**31 - 1)}

ALL = "all of these at random"
CHANGES = ("scaled up", "inverted", "other background", "recolored", "off-center", "in a corner", "JPEG", ALL)


def cutout(x, side):
    """Image x (28, 28) as a photographed garment: (brightness, dark on light, opacity), both (side, side)."""
    inside = x > 0.02
    holes, count = ndimage.label(~inside)
    small = np.bincount(holes.ravel(), minlength=count + 1) < 12  # white spots; the handle of a bag is larger
    small[0] = False
    pair = [Image.fromarray(values.astype(np.float32)) for values in (x, inside | small[holes])]
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
    is_jpeg = everything or change == "JPEG"
    options = {"quality": int(rng.integers(20, 61))} if is_jpeg else {}
    path = Path(folder, f"{i:03d}.{'jpg' if is_jpeg else 'png'}")
    Image.fromarray(np.round(255 * np.clip(canvas, 0, 1)).astype(np.uint8)).save(path, **options)
    return path


def measure(networks, X, y):
    """{"MLP": accuracy, ...} on images X (N, 28, 28), y (N,); "warned": warnings of the last network."""
    shares = {}
    for network in networks:
        p = network.probabilities(network.logits(X) / network.temperature)
        shares[network.kind] = run.accuracy(p, y)
    return shares | {"warned": float(np.mean(p.max(axis=1) < predict.UNCERTAIN))}


def calibration(network, X, y):
    """Temperature, calibration errors, and {percent of the least confident images rejected: accuracy}."""
    logits = network.logits(X).astype(np.float64)
    before, after = network.probabilities(logits), network.probabilities(logits / network.temperature)
    right = (after.argmax(axis=1) == y)[np.argsort(-after.max(axis=1), kind="stable")]
    accepted = {str(n): max(1, round(len(y) * (1 - n / 100))) for n in (0, 5, 10, 20, 30)}
    errors = {"ece": run.calibration(y, before)[-1], "ece_calibrated": run.calibration(y, after)[-1]}
    accuracies = {n: float(right[:count].mean()) for n, count in accepted.items()}
    return {"temperature": network.temperature, **errors, "accuracy": accuracies}


def main(argv=None):
    """Returns the content of pictures.json."""
    s = run.parse(argv, sys.modules[__name__])
    s.resume, s.seeds, s.figure_format = "", 1, "png"  # as RunFolder needs it
    images, networks = data.load(dataset="fashion-mnist"), predict.load()
    if images.classes != networks[0].classes:
        raise run.Error("needs Fashion-MNIST, on which the networks in models/ were trained")
    test = images.test
    rows = np.sort(np.random.default_rng(s.seed).permutation(len(test.y))[: s.pictures])
    X, y = test.X[rows], test.y[rows]
    with run.RunFolder("measure_pictures", s) as folder:
        pictures = {f"all {len(test.y):,} test images": {"found": measure(networks, test.X, test.y)}}
        pictures[f"these {len(y)} images"] = {"found": measure(networks, X, y)}
        looks = (garment.find, garment.whole)
        for change in CHANGES:
            with tempfile.TemporaryDirectory() as place:
                paths = [write_picture(place, i, x, change, s.seed) for i, x in enumerate(X)]
                found, whole = (np.stack([look(path).image for path in paths]) for look in looks)
                examples = [predict.classify(path, networks) for path in paths[: predict.SHOWN]]
            shares = {"found": measure(networks, found, y), "as it comes": measure(networks, whole, y)}
            print(f"{change:<24}", *(f"{name} {share:.1%} " for name, share in shares["found"].items()))
            pictures[change] = shares
        calibrations = {network.kind: calibration(network, test.X, test.y) for network in networks}
        results = {"pictures": pictures, "calibration": calibrations, "test_size": len(test.y)}
        results |= {"settings": vars(s), "command": run.command_line(), **run.environment()}
        text = json.dumps(results, indent=2) + "\n"
        folder.save({"pictures.json": text, "contact_sheet.png": predict.contact_sheet(examples)})
    return results


if __name__ == "__main__":
    run.cli(main)
