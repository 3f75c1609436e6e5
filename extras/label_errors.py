"""Images whose label is probably wrong, and images that are in the training and in the test split.

    python -m extras.label_errors

Every image is judged by a network that was not trained on it: a training image by a CNN trained on the other
half (`python experiments.py heads` writes PROBABILITIES), a test image by the mean of TEST_PROBABILITIES. The
less probable the label is, compared with the most probable other class, the more likely it is wrong (the
normalized margin of Northcutt et al. 2021, arXiv:1911.00068). Writes label_errors.csv, label_errors.png with
the same images in the same order, and label_errors.json.
"""

import glob
import json
import sys

import numpy as np
from sklearn.neighbors import NearestNeighbors

import data
import plots
import run

PROBABILITIES: str = "results/studies/heads/train_probabilities.npy"  # of the training images, (N, C)
TEST_PROBABILITIES: str = "results/cnn_feature_extraction/seed_*/test_probabilities.npy"  # of the test images
STRONGEST: int = 100  # number of images in the table
NEAR: float = 0.05  # root mean squared difference of the pixels up to which two images are near duplicates
OUTPUT_DIR: str = ""  # folder of the results, new or empty; "" makes runs/label_errors/<date_time>

LIMITS = {"STRONGEST": (1, 1000), "NEAR": (0, 1)}
LARGE = 0.9  # a margin below -LARGE is counted as a contradiction
SPLIT = ("X", "y", "indices")
HEADER = ("split", "index", "label", "p(label)", "prediction", "p(prediction)")


def read(pattern, split):
    """Probabilities (N, C) of a split: the mean of the files that match the pattern. Raises run.Error."""
    paths = sorted(glob.glob(str(run.ROOT / pattern)))
    arrays = [np.load(path, allow_pickle=False) for path in paths]
    if not arrays or {len(array) for array in arrays} != {len(split.y)}:
        raise run.Error(f"{pattern}: {len(arrays)} files; expected (N, C) of {len(split.y):,} images in each")
    return np.mean(arrays, axis=0, dtype=np.float64)


def margins(p, y):
    """(margin (N,), most probable other class (N,)) of probabilities p (N, C) and labels y (N,).

    margin = p[y] - max over k != y of p[k], from -1, probably wrong, to 1.
    """
    rows, others = np.arange(len(y)), p.copy()
    others[rows, y] = -1
    other = others.argmax(axis=1)
    return p[rows, y] - others[rows, other], other


def duplicates(X, X_test, near):
    """Pairs (n, 2) of a row of X and a row of X_test, and their differences (n,), up to `near`.

    The difference is the root of the mean squared difference of the pixels.
    """
    radius = near * np.sqrt(X[0].size) + 0.01  # a little more, as scikit-learn rounds distances
    neighbors = NearestNeighbors(radius=radius, algorithm="brute").fit(X.reshape(len(X), -1))
    rows = neighbors.radius_neighbors(X_test.reshape(len(X_test), -1), return_distance=False)
    pairs = np.array([(i, j) for j, found in enumerate(rows) for i in found], int).reshape(-1, 2)
    differences = np.array([np.sqrt(np.mean((X[i] - X_test[j]) ** 2)) for i, j in pairs])
    return pairs[differences <= near], differences[differences <= near]


def count_duplicates(X, y, X_test, y_test, near):
    """{"exact": {"pairs", "test_images", "pairs_with_other_label"}, "near": ...} of images in both splits."""
    pairs, differences = duplicates(X, X_test, near)
    differs, counts = y[pairs[:, 0]] != y_test[pairs[:, 1]], {}
    for name, inside in (("exact", differences == 0), ("near", differences <= near)):
        counts[name] = {"pairs": int(inside.sum()), "test_images": len(np.unique(pairs[inside, 1]))}
        counts[name]["pairs_with_other_label"] = int(differs[inside].sum())
    return counts


def main(argv=None):
    """Returns the content of label_errors.json."""
    s = run.parse(argv, sys.modules[__name__])
    s.resume, s.seeds, s.figure_format = "", 1, "png"  # as RunFolder needs it
    images = data.load(dataset="fashion-mnist")
    train, val, test = images.train, images.val, images.test
    X, y, indices = (np.concatenate([getattr(split, name) for split in (train, test)]) for name in SPLIT)
    p = np.concatenate([read(s.probabilities, train), read(s.test_probabilities, test)])
    splits = np.repeat(["train", "test"], [len(train.y), len(test.y)])
    margin, other = margins(p, y)
    chosen = np.argsort(margin, kind="stable")[: s.strongest]
    table, classes = [], images.classes
    for i in chosen:
        table.append([splits[i], indices[i], classes[y[i]], p[i, y[i]], classes[other[i]], p[i, other[i]]])
    title = f"The {len(chosen)} labels that are contradicted most, {images.name}"
    figure = plots.gallery(images.as_shown(X), y, p, classes, chosen, title)
    X, y = np.concatenate([train.X, val.X]), np.concatenate([train.y, val.y])
    results = {
        "contradicted": {name: int(np.sum(margin[splits == name] < -LARGE)) for name in ("train", "test")},
        "judged": {name: int(np.sum(splits == name)) for name in ("train", "test")},
        "duplicates": count_duplicates(X, y, test.X, test.y, s.near),
    }
    print(json.dumps(results, indent=2))
    results |= {"settings": vars(s), "command": run.command_line(), **run.environment()}
    with run.RunFolder("label_errors", s) as folder:
        folder.save({"label_errors.csv": run.csv_text(HEADER, table), "label_errors.png": figure})
        folder.save({"label_errors.json": json.dumps(results, indent=2) + "\n"})
        print(f"all files are in\n{folder.path}")
    return results


if __name__ == "__main__":
    run.cli(main)
