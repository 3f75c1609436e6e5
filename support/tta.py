"""Test-time augmentation (TTA): logits summed over several views of each image, mirrored and shifted by one pixel."""

if __name__ == "__main__":
    raise SystemExit("support/tta.py is a module, not a script: the training scripts use it")

import numpy as np

# {name: shifts (down, right) in pixels}; each shifted image is a view, and so is its mirror image
SHIFTS = {
    "2_views": ((0, 0),),
    "6_views": ((0, 0), (-1, -1), (1, 1)),
    "10_views": ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)),
    "18_views": tuple((down, right) for down in (0, -1, 1) for right in (0, -1, 1)),
}


def tta_logits(s, predict, images, logits):
    """({"flip": {"val": (N, classes), "test": ...}, "shift": ...}, number of views of "shift" or None).

    s.tta is none, or s.flip False: nothing. flip: the logits of each image plus those of its mirror image. shifts: besides,
    the sum over that one of SHIFTS with the highest validation accuracy; of two with the same, the one with fewer views. Or
    the name of one of SHIFTS.
    predict: images (N, H, W) -> logits (N, classes). logits: {"val": (N, classes), "test": ...} of the images as they are.
    """
    if s.tta == "none" or not s.flip:
        return {}, None
    flip = {split: values + predict(getattr(images, split).X[:, :, ::-1]) for split, values in logits.items()}
    if s.tta == "flip":
        return {"flip": flip}, None
    pairs = {(0, 0): flip}  # {shift: logits of the shifted images and of their mirror images}
    candidates = SHIFTS if s.tta == "shifts" else {s.tta: SHIFTS[s.tta]}
    for shift in set().union(*candidates.values()) - pairs.keys():
        views = {split: shifted(getattr(images, split).X, *shift) for split in logits}
        pairs[shift] = {split: predict(X) + predict(X[:, :, ::-1]) for split, X in views.items()}
    sums = {name: {split: sum(pairs[shift][split] for shift in shifts) for split in logits}
            for name, shifts in candidates.items()}  # fmt: skip
    best = max(sums, key=lambda name: np.mean(sums[name]["val"].argmax(axis=1) == images.val.y))
    return {"flip": flip, "shift": sums[best]}, 2 * len(SHIFTS[best])


def shifted(X, down, right):
    """Images (N, H, W) shifted by one pixel or not at all (-1, 0 or 1 in each direction), filled with 0."""
    height, width = X.shape[1:]
    padded = np.pad(X, ((0, 0), (1, 1), (1, 1)))
    return padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]
