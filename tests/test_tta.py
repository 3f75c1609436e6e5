"""Test-time augmentation: which views are summed, and that the validation images alone choose them."""

from types import SimpleNamespace

import numpy as np
import pytest

from support.tta import SHIFTS, shifted, tta_logits

rng = np.random.default_rng(0)
VAL, TEST = rng.random((2, 30, 6, 5))
WEIGHTS = rng.standard_normal((30, 3))


def images(y_val=None, y_test=None):
    labels = {"val": y_val, "test": y_test}
    return SimpleNamespace(**{name: SimpleNamespace(X=X, y=np.zeros(30, int) if labels[name] is None else labels[name])
                              for name, X in (("val", VAL), ("test", TEST))})  # fmt: skip


def predict(X):
    """Not linear in X, so that the logits of two views are not those of their sum."""
    return np.tanh(X.reshape(len(X), -1) - 0.5) @ WEIGHTS


LOGITS = {"val": predict(VAL), "test": predict(TEST)}


def test_a_shift_moves_down_and_to_the_right_and_fills_with_zeros():
    X = np.arange(1, 13.0).reshape(1, 3, 4)
    assert shifted(X, 1, 0)[0].tolist() == [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert shifted(X, -1, 1)[0].tolist() == [[0, 5, 6, 7], [0, 9, 10, 11], [0, 0, 0, 0]]
    assert shifted(X, 0, 0).tolist() == X.tolist()


def setting(tta, flip=True):
    return SimpleNamespace(tta=tta, flip=flip)


@pytest.mark.parametrize("s", [setting("none"), setting("flip", False), setting("shifts", False)])
def test_none(s):
    assert tta_logits(s, None, images(), LOGITS) == ({}, None)


def test_flip_adds_the_logits_of_the_mirrored_images():
    summed, views = tta_logits(setting("flip"), predict, images(), LOGITS)
    assert views is None
    assert list(summed) == ["flip"]
    for name, X in (("val", VAL), ("test", TEST)):
        assert summed["flip"][name] == pytest.approx(predict(X) + predict(np.flip(X, axis=2)))


@pytest.mark.parametrize("name", SHIFTS)
def test_shifts_takes_the_views_that_are_best_on_the_validation_images(name):
    views = [view for down, right in SHIFTS[name] for moved in (np.roll(
        np.pad(VAL, ((0, 0), (1, 1), (1, 1))), (down, right), axis=(1, 2))[:, 1:-1, 1:-1],)
        for view in (moved, moved[:, :, ::-1])]  # fmt: skip
    assert len(views) == int(name.split("_")[0])
    wanted = sum(map(predict, views))
    summed, chosen = tta_logits(setting("shifts"), predict, images(y_val=wanted.argmax(axis=1)), LOGITS)
    assert chosen == len(views)  # the only views that get all labels right
    assert summed["shift"]["val"] == pytest.approx(wanted)
    assert summed["flip"]["val"] == pytest.approx(predict(VAL) + predict(VAL[:, :, ::-1]))


@pytest.mark.parametrize("name", SHIFTS)
def test_views_that_are_named_are_taken(name):
    best, (named, views) = (tta_logits(setting(tta), predict, images(), LOGITS) for tta in ("shifts", name))
    assert views == int(name.split("_")[0])
    assert np.array_equal(named["shift"]["test"], best[0]["shift"]["test"]) == (best[1] == views)


def test_only_the_views_that_are_named_are_computed():
    calls = []
    tta_logits(setting("6_views"), lambda X: calls.append(X) or predict(X), images(), LOGITS)
    assert len(calls) == 2 * 5  # of two splits; the logits of the images as they are were given


def test_the_test_images_do_not_choose_the_views():
    chosen = {tta_logits(setting("shifts"), predict, images(y_test=rng.integers(3, size=30)), LOGITS)[1] for _ in range(10)}
    assert len(chosen) == 1


def test_of_equally_good_views_the_fewest():
    logits = {name: np.tile([1.0, 0, 0], (30, 1)) for name in LOGITS}
    assert tta_logits(setting("shifts"), lambda X: np.tile([1.0, 0, 0], (30, 1)), images(), logits)[1] == 2
