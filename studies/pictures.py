"""How well predict.py does on pictures other than the dataset's, and how well its warning tells what is unlike them.

    python -m studies.pictures

makes PICTURES pictures of each kind in CHANGES from test images, classifies the files as predict.py does with the
networks in models/, and writes results/predict/: pictures.json, README.md with its tables, and figures. What
pictures/garment.py does was chosen with pictures made from validation images (--split val).
"""

from support import entry

if __name__ == "__main__":  # before the slow imports: Ctrl-C
    entry.prepare()

import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

import data
import plots
import predict
from numpy_nn.calibration import calibrated, calibration, risk_coverage
from pictures import figures, garment
from support import files, runs, settings

# ---- settings: edit here, or override any of them on the command line (--pictures 50) ----
# -- study
PICTURES = 200  # number of test images of which pictures are made, in [1, 10000]
SPLIT = "test"  # whose images they are: {val, test}
SEED = 0  # seed of the choice of images and of all changes, in [0, inf)
OUTPUT_DIR = "results/predict"  # folder of the results
# ----

ALL = "all of these at random"
CHANGES = {  # kind of picture: what is done to the garment
    "scaled up": "bright on black as in the dataset, 140 to 420 pixels wide",
    "inverted": "dark on white",
    "other background": "dark on a color, a gradient or a texture",
    "recolored": "tinted, on white",
    "off-center": "anywhere on a white canvas 1.3 to 2.5 times as large in both directions",
    "in a corner": "in a corner of such a canvas",
    "JPEG": "dark on white, JPEG of quality 20 to 60",
    ALL: "on a background, tinted, off-center or in a corner, and compressed",
}


def cutout(x, side):
    """Test image x (28, 28) as a photographed garment: (brightness, dark on light, and opacity), both (side, side)."""
    from PIL import Image
    from scipy import ndimage

    def enlarged(values):
        return np.asarray(Image.fromarray(values.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))

    inside = x > 0.02
    holes, count = ndimage.label(~inside)
    small = np.bincount(holes.ravel(), minlength=count + 1) < 12  # white spots of the garment; the handle of a bag is larger
    small[0] = False
    return np.clip(1 - enlarged(x), 0, 1), np.clip(2 * enlarged(inside | small[holes]) - 0.5, 0, 1)


def background(height, width, rng):
    """A flat color, a gradient or a texture (height, width, 3)."""
    from scipy import ndimage

    canvas, kind = np.broadcast_to(rng.uniform(0.1, 1, 3), (height, width, 3)).copy(), rng.integers(3)
    if kind == 1:
        y, x = np.mgrid[:height, :width] / max(height, width) - 0.5
        angle = rng.uniform(0, 2 * np.pi)
        canvas += (0.3 * (x * np.cos(angle) + y * np.sin(angle)))[..., None]
    if kind == 2:
        noise = ndimage.gaussian_filter(rng.standard_normal((height, width)), rng.uniform(0, 2))
        canvas += (0.03 * noise / noise.std())[..., None]
    return canvas


def make_picture(x, change, rng):
    """(picture (height, width, 3) in [0, 1], options of its JPEG file or {} for PNG) of a test image x (28, 28)."""
    everything, side = change == ALL, int(rng.integers(140, 421))
    brightness, opacity = cutout(x, side)
    if change == "scaled up":
        return np.repeat(1 - brightness[..., None], 3, axis=2), {}
    height, width, top, left = side, side, 0, 0
    place = rng.choice(["off-center", "in a corner"]) if everything else change
    if place in ("off-center", "in a corner"):
        height, width = (int(side * factor) for factor in rng.uniform(1.3, 2.5, 2))
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    if place == "in a corner":
        top, left = rng.choice([0, height - side]), rng.choice([0, width - side])
    canvas = background(height, width, rng) if everything or change == "other background" else np.ones((height, width, 3))
    tint = rng.uniform(0.4, 1, 3) if everything or change == "recolored" else np.ones(3)
    part = canvas[top : top + side, left : left + side]
    part += opacity[..., None] * (1 - (1 - brightness[..., None]) * tint - part)
    return np.clip(canvas, 0, 1), {"quality": int(rng.integers(20, 61))} if everything or change == "JPEG" else {}


def write_picture(folder, number, x, change, seed):
    """Write the picture of a test image as a file; return its path."""
    from PIL import Image

    picture, options = make_picture(x, change, np.random.default_rng((seed, number)))
    path = folder / f"{number:03d}{'.jpg' if options else '.png'}"
    Image.fromarray(np.round(255 * picture).astype(np.uint8)).save(path, **options)
    return path


def accuracies(classifiers, X, y):
    """{"MLP": accuracy, ...} on images X (N, 28, 28), y (N,), and the share of warnings."""
    shares = {figures.kind_of(c.name): float(np.mean(c.logits(X).argmax(axis=1) == y)) for c in classifiers}
    return shares | {"warned": float(np.mean(classifiers[0].detector.is_unlike(X)))}


def robustness(classifiers, split, s):
    """({kind of picture: {"found": accuracies after garment.find, "as it comes": of the whole picture in gray}}, examples).

    The examples are the lists of predict.Prediction of 48 pictures of the last kind.
    """
    rows = np.sort(np.random.default_rng(s.seed).permutation(len(split.y))[: s.pictures])
    X, y = split.X[rows], split.y[rows]
    results, sheet = {f"all {len(split.y):,} {s.split} images": {"found": accuracies(classifiers, split.X, split.y)},
                      f"these {len(rows)} images": {"found": accuracies(classifiers, X, y)}}, []  # fmt: skip
    for change in CHANGES:
        with tempfile.TemporaryDirectory() as folder:
            paths = [write_picture(Path(folder), number, x, change, s.seed) for number, x in enumerate(X)]
            found = np.stack([garment.find(path).image for path in paths])
            plain = np.stack([garment.whole(path).image for path in paths])
            if change == ALL:
                sheet = [predict.classify(path, classifiers) for path in paths[:48]]
        results[change] = {"found": accuracies(classifiers, found, y), "as it comes": accuracies(classifiers, plain, y)}
        shares = "  ".join(f"{name} {value:.1%}" for name, value in results[change]["found"].items())
        print(f"{change:<24}{shares}", flush=True)
    return results, sheet


def unlike_images(split, seed):
    """{name: images (N, 28, 28)} that are no garments as in the dataset. split: whose images are inverted."""
    from scipy import ndimage

    rng, shape = np.random.default_rng(seed), (2000, 28, 28)
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), (0, 2, 2))
    low, high = smooth.min(axis=(1, 2), keepdims=True), smooth.max(axis=(1, 2), keepdims=True)
    digits = np.concatenate([X for X, _ in data.digits().values()]).astype(np.float32) / 255
    return {"scikit-learn's digits": digits, "noise": rng.random(shape, dtype=np.float32),
            "smooth noise": ((smooth - low) / (high - low)).astype(np.float32),
            "inverted garments": 1 - split.X}  # fmt: skip


def detection(classifiers, images, seed):
    """{score: {"validation": AUROC, "false alarms": share of the test images, name: {"auroc": ..., "warned": share}}}.

    Each score's threshold is exceeded by 5 % of the validation images. "validation" is the mean AUROC of the validation
    images against all kinds of others. The first score is the one that predict.py uses.
    """
    from scipy.special import logsumexp
    from sklearn.metrics import roc_auc_score

    def auroc(usual, unusual):
        labels = np.repeat([0, 1], [len(usual), len(unusual)])
        return float(roc_auc_score(labels, np.concatenate([usual, unusual])))

    others, others_val, results = unlike_images(images.test, seed), unlike_images(images.val, seed), {}
    scores = {"reconstruction error (used)": classifiers[0].detector.score}
    for c in classifiers:
        kind = figures.kind_of(c.name)
        scores[f"energy of the {kind}'s logits"] = lambda X, c=c: -logsumexp(c.logits(X), axis=1)
        scores[f"1 - highest probability of the {kind}"] = lambda X, c=c: 1 - calibrated(c.logits(X), c.temperature).max(1)
    for name, score in scores.items():
        val, test = score(images.val.X), score(images.test.X)
        threshold = np.quantile(val, 0.95)
        results[name] = {"validation": statistics.fmean(auroc(val, score(X)) for X in others_val.values()),
                         "false alarms": float(np.mean(test > threshold))}  # fmt: skip
        for other, X in others.items():
            values = score(X)
            results[name][other] = {"auroc": auroc(test, values), "warned": float(np.mean(values > threshold))}
    return results


def calibration_of(classifiers, test):
    """{"MLP": {"temperature": ..., "ece": ..., "ece_calibrated": ..., "accuracy": {share rejected in %: ...}}, ...}."""
    results = {}
    for c in classifiers:
        before, after = (calibrated(c.logits(test.X), T) for T in (1.0, c.temperature))
        _, accuracy = risk_coverage(test.y, after)
        kept = {share: max(1, round(len(test.y) * (1 - share / 100))) for share in (0, 5, 10, 20, 30)}
        results[figures.kind_of(c.name)] = {
            "temperature": c.temperature, "ece": calibration(test.y, before)[-1],
            "ece_calibrated": calibration(test.y, after)[-1],
            "accuracy": {str(share): float(accuracy[count - 1]) for share, count in kept.items()},
        }  # fmt: skip
    return results


def percent(value):
    return f"{100 * value:.1f} %"


def readme(results):
    """The text of README.md in the results' folder."""
    from studies.tables import table

    pictures, detected, calibrated_ = (results[name] for name in ("pictures", "detection", "calibration"))
    kinds = list(calibrated_)
    rows = [[name + (f": {CHANGES[name]}" if name in CHANGES else ""), *(percent(row["found"][kind]) for kind in kinds),
             percent(row["as it comes"]["hybrid"]) if "as it comes" in row else "-", percent(row["found"]["warned"])]
            for name, row in pictures.items()]  # fmt: skip
    others = [name for name, value in next(iter(detected.values())).items() if isinstance(value, dict)]
    scores = [[name, f"{row['validation']:.3f}", percent(row["false alarms"]),
               *(f"{row[other]['auroc']:.3f} ({row[other]['warned']:.0%})" for other in others)]
              for name, row in detected.items()]  # fmt: skip
    shares = list(calibrated_[kinds[0]]["accuracy"])
    networks = [[kind, f"{row['temperature']:.3f}", f"{row['ece']:.4f}", f"{row['ece_calibrated']:.4f}",
                 *(percent(row["accuracy"][share]) for share in shares)] for kind, row in calibrated_.items()]  # fmt: skip
    return f"""# predict.py, measured

Written by `{results['command']}` with the networks in [models/](../../models/README.md), from
[pictures.json](pictures.json).

## Pictures

Accuracy on pictures made from {results['settings']['pictures']} {results['settings']['split']} images, chosen at random. "As it comes" is the hybrid on the whole picture
in gray, made 28 x 28 pixels. "Warned" is the share that predict.py calls unlike the training images.

{table(["pictures", *kinds, "hybrid, as it comes", "warned"], rows)}
[contact_sheet.png](contact_sheet.png) has 48 pictures of the last kind.

## Warning

AUROC of the {results['test_size']:,} test images against images that are no garments of the dataset's form, and in brackets the share of these above
the threshold, which 5 % of the validation images exceed. "False alarms" are test images above it. "Inverted" is 1 - image: predict.py
inverts such pictures before a network sees them. The column "validation" has the mean AUROC of the validation images against all
these; predict.py uses the score for which it is highest.

{table(["score", "validation", "false alarms", *others], scores)}
## Calibration

Temperature scaling, fitted on validation; expected calibration error (ECE) and accuracy on the test images, of which the least
confident are rejected.

{table(["network", "temperature", "ECE before", "ECE after", *(f"{share} % rejected" if share != "0" else "accuracy" for share in shares)], networks)}
![Accuracy if the least confident predictions are rejected](rejection.png)
"""  # noqa: E501


def rejection_curves(classifiers, test):
    """The risk-coverage curves of all networks in one figure."""
    title = "Accuracy if the least confident predictions are rejected\nnetworks in models/, test images of Fashion-MNIST"
    fig, axes = plots.figure(title, 6.4, 4.2)
    ax = axes[0, 0]
    for c in classifiers:
        rejected, accuracy = (100 * x for x in risk_coverage(test.y, calibrated(c.logits(test.X), c.temperature)))
        shown = rejected <= 50
        ax.plot(rejected[shown], accuracy[shown], color=figures.color_of(c.name), linewidth=1.6, label=c.name)
    ax.set(xlabel="share of the test images rejected (%)", ylabel="accuracy of the others (%)", xlim=(-1, 51))
    ax.grid(alpha=0.25)
    fig.legend(*ax.get_legend_handles_labels(), frameon=False, fontsize=9, ncols=1, loc="outside lower center")
    return fig


def run(s):
    """The whole study with the settings `s`. Return the content of pictures.json."""
    images, classifiers = data.load(s.dataset, s.data_dir, offline_fallback=False), predict.load()
    if tuple(images.classes) != classifiers[0].classes:
        raise settings.SettingError(f"--dataset {s.dataset}: the networks in models/ were trained on Fashion-MNIST")
    split = getattr(images, s.split)
    pictures, sheet = robustness(classifiers, split, s)
    results = {"pictures": pictures, "detection": detection(classifiers, images, s.seed),
               "calibration": calibration_of(classifiers, images.test), "test_size": len(images.test.y), "settings": vars(s),
               "command": "python -m studies.pictures", **runs.environment()}  # fmt: skip
    folder = Path(s.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.FileError(f"cannot write to {folder}: {error.strerror}; choose another --output-dir") from None
    drawn = {"rejection.png": rejection_curves(classifiers, images.test),
             "contact_sheet.png": figures.contact_sheet(sheet, "")}  # fmt: skip
    for name, figure in drawn.items():
        with files.atomic_write(folder / name) as temporary:
            figure.savefig(temporary, format="png")
    files.write_text(folder / "pictures.json", json.dumps(results, indent=2) + "\n")
    files.write_text(folder / "README.md", readme(json.loads(json.dumps(results))))
    print(f"\nresults are in {folder}")
    return results


def main(argv=None):
    run(settings.parse(sys.modules[__name__], data, argv=argv))


if __name__ == "__main__":
    entry.cli(main)
