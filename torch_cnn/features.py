"""Features and logits of a trained CNN: extraction in eval mode and dataset order, the feature cache."""

if __name__ == "__main__":
    raise SystemExit("torch_cnn/features.py is a module, not a script: cnn_feature_extraction.py uses it")

import json
import math
import zipfile
from pathlib import Path

import numpy as np
import torch

import data
from support import files
from torch_cnn.backbone import to_channels_last

SPLITS = ("train", "val", "test")


@torch.no_grad()
def extract_features(model, X, dtype=torch.float32):
    """Flattened features (N, F), float32, of X (N, 1, 28, 28), in order, on its device. Leaves the model in eval mode."""
    model.eval()
    with torch.autocast(X.device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
        return torch.cat([model.features(to_channels_last(x)).float() for x in X.split(getattr(model, "chunk_size", 500))])


def extract_features_numpy(model, X):
    """The same for a NumPy array X (N, 28, 28); returns a tensor on the model's device."""
    return extract_features(model, torch.from_numpy(np.ascontiguousarray(X))[:, None].to(model.mean.device))


@torch.no_grad()
def classifier_logits(model, features):
    """Logits (N, classes) of features (N, F), a tensor or NumPy array, by the model's classifier."""
    return model.classifier(torch.as_tensor(features, device=model.mean.device)).float()


def predict_logits(model, X):
    """Logits (N, classes), a NumPy array, of images X (N, 28, 28)."""
    return classifier_logits(model, extract_features_numpy(model, X)).cpu().numpy()


def cached_features(path, model, images, fallback_path=None, save=True, layer="flatten"):
    """Features, labels and indices of all three splits, in dataset order, from the cache `path` if it is valid.

    Returns {"X_train": (N, F) float32, "y_train": (N,), "indices_train": (N,), ... _val ... _test}. The cache records the
    weights, data and split it was made from, and `layer`, which says what the features are. Where they differ, features
    are extracted again and saved to fallback_path, or `path`, and the reason is printed. Without `save`, no file is written.
    """
    weights = data.digest(*(value.cpu().numpy() for value in model.state_dict().values()))
    made_from = {"weights": weights, "data and split": images.fingerprint(), "layer": layer, "format": 2}
    if path.exists():
        features, reason = load_cache(path, made_from, cache_layout(model, images))
        if features:
            print(f"features loaded from {path}")
            return features
        print(f"{path} {reason}: extracting the features again")
        path = fallback_path or path
    features = {}
    for name in SPLITS:
        split = getattr(images, name)
        features[f"X_{name}"] = extract_features_numpy(model, split.X).cpu().numpy()
        features[f"y_{name}"], features[f"indices_{name}"] = split.y, split.indices
    if save:
        save_cache(path, features, made_from)
    return features


def cache_layout(model, images):
    """{name: (shape, dtype)} of the arrays in the cache of the model's features."""
    layout, num_features = {}, extract_features_numpy(model, images.val.X[:1]).shape[1]
    for name in SPLITS:
        n = len(getattr(images, name).y)
        layout[f"X_{name}"] = (n, num_features), np.dtype(np.float32)
        layout[f"y_{name}"] = layout[f"indices_{name}"] = (n,), np.dtype(np.int64)
    return layout


def load_cache(path, made_from, layout):
    """(features, "") of a valid cache, or (None, reason). layout: as from `cache_layout`."""
    try:
        with zipfile.ZipFile(path) as archive:
            check_layout(archive, layout)
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            recorded = json.loads(str(file["made_from"]))
            changed = [name for name in made_from if recorded.get(name) != made_from[name]]
            if changed:
                return None, f"was made from other {' and other '.join(changed)}"
            return {name: file[name] for name in layout}, ""
    except Exception as error:  # whatever is wrong with it, the features can be extracted again
        return None, f"cannot be read ({files.first_line(error)})"


def check_layout(archive, layout):
    """Raise ValueError, before anything is allocated, where the arrays in an open ZipFile are not those of the layout.

    Then a file that declares hundreds of gigabytes is not believed.
    """
    size = Path(archive.filename).stat().st_size
    for name in ("made_from", *layout):
        info = archive.getinfo(f"{name}.npy")
        with archive.open(info) as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError(f"{name}: not an array as this project writes them")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            header = file.tell()
        stored = info.compress_type == zipfile.ZIP_STORED and info.file_size <= size
        if not stored or header + math.prod(shape) * dtype.itemsize != info.file_size:
            raise ValueError(f"{name}: its size is not that of its data")
        if name in layout and (shape, dtype) != layout[name]:
            raise ValueError(f"{name} is {dtype} of shape {shape}, expected {layout[name][1]} of {layout[name][0]}")


def save_cache(path, features, made_from):
    """Write the cache, or print why it cannot be written."""
    try:
        with files.atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, made_from=json.dumps(made_from), **features)
        print(f"features: {features['X_train'].shape[1]:,} per image, {path.stat().st_size / 1e6:.0f} MB in {path}")
    except OSError as error:
        print(f"features are not saved: {path} cannot be written ({error.strerror})")
