"""Out-of-distribution detection: is an image unlike the training images?

The score is the reconstruction error of a principal component analysis: the part of an image that the first COMPONENTS
principal components of the training images cannot express. A warning is due above a threshold that FALSE_ALARMS of the
validation images exceed. python -m studies.pictures measures it and compares it with scores made of the logits.
"""

if __name__ == "__main__":
    raise SystemExit("pictures/ood.py is a module, not a script: predict.py uses it")

import base64

import numpy as np

COMPONENTS = 16  # with more of them, images that are no garments are expressed well, too
FALSE_ALARMS = 0.05  # of the validation images
NUM_IMAGES = 5_000  # training images that are enough for so few components


class Detector:
    """mean (D,), components (COMPONENTS, D) and threshold, from the dict that `fit` returned. Raises ValueError."""

    def __init__(self, saved):
        self.mean = decode(saved["mean"])
        self.components = decode(saved["components"]).reshape(-1, len(self.mean))
        self.threshold = float(saved["threshold"])

    def score(self, X):
        """Scores (N,) of images X (N, ...): squared distance to the nearest image that the components can express."""
        centered = flat(X) - self.mean  # (N, D)
        weights = centered @ self.components.T  # (N, COMPONENTS)
        return np.einsum("nd,nd->n", centered, centered) - np.einsum("nk,nk->n", weights, weights)

    def is_unlike(self, X):
        """Booleans (N,): whether images X (N, ...) are unlike the training images."""
        return self.score(X) > self.threshold


def fit(images):
    """The detector of a Dataset as a dict for JSON, about 36 kB: mean and components in float16, and the threshold."""
    from sklearn.decomposition import PCA

    X = flat(images.train.X[:NUM_IMAGES])
    pca = PCA(min(COMPONENTS, *X.shape), svd_solver="randomized", random_state=0).fit(X)
    saved = {"mean": encode(pca.mean_), "components": encode(pca.components_), "threshold": 0.0}
    threshold = np.quantile(Detector(saved).score(images.val.X), 1 - FALSE_ALARMS)
    return saved | {"threshold": float(threshold)}


def encode(array):
    """An array as a string: Base64 of float16, little-endian."""
    return base64.b64encode(np.ascontiguousarray(array, "<f2").tobytes()).decode("ascii")


def decode(text):
    return np.frombuffer(base64.b64decode(text, validate=True), "<f2").astype(np.float32)


def flat(X):
    return np.asarray(X, np.float32).reshape(len(X), -1)
