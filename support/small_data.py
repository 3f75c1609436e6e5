"""Batch sizes for few training images: larger ones would leave an epoch too few steps."""

if __name__ == "__main__":
    raise SystemExit("support/small_data.py is a module, not a script: the training scripts use it")

import math
from types import SimpleNamespace

from support.own_data import NAMED

MIN_STEPS, MIN_BATCH_SIZE = 12, 16  # of an epoch


def suitable_batch_size(s, images):
    """The largest power of two by which an epoch has MIN_STEPS. Infinite for the datasets in NAMED."""
    if s.dataset in NAMED:
        return math.inf
    return max(MIN_BATCH_SIZE, 2 ** int(math.log2(max(1, len(images.train.y) / MIN_STEPS))))


def with_batch_size(s, batch_size):
    """The settings with another batch size and learning rate, by the linear scaling rule (Goyal et al. 2017)."""
    learning_rate = s.learning_rate * batch_size / s.batch_size
    return SimpleNamespace(**vars(s) | {"batch_size": batch_size, "learning_rate": learning_rate})


def with_suitable_batch_size(s, images, default_batch_size, default_learning_rate):
    """The settings with a `suitable_batch_size`, if it is smaller and batch size and learning rate are the defaults.

    A resumed run has its smaller batch size from its settings.json, which is not changed again.
    """
    batch_size, chosen = suitable_batch_size(s, images), s.batch_size != default_batch_size
    if chosen or s.learning_rate != default_learning_rate or batch_size >= s.batch_size:
        return s
    s = with_batch_size(s, batch_size)
    print(f"few training images ({len(images.train.y):,}): --batch-size {batch_size} --learning-rate {s.learning_rate:g}")
    return s
