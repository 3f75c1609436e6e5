"""Properties of any network and any batch, drawn by hypothesis; check_gradients.py has the fixed cases."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as drawing
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import data
import mlp_from_scratch as mlp
from numpy_nn import layers
from support import settings

drawing.register_profile("here", deadline=None, derandomize=True, max_examples=60)  # the same examples on every machine
drawing.load_profile("here")


@given(st.lists(st.integers(1, 6), max_size=3), st.integers(1, 9), st.integers(1, 7), st.integers(2, 5),
       st.sampled_from(["tanh", "gelu", "sigmoid"]), st.sampled_from(["none", "batch", "layer"]),
       st.sampled_from(sorted(layers.LOSSES)), st.integers(0, 9999))  # fmt: skip
def test_the_gradient_of_any_network_in_any_direction(hidden, n, features, classes, activation, norm, loss, seed):
    rng = np.random.default_rng(seed)
    model = mlp.MLP((features, *hidden, classes), rng, activation=activation, norm=norm, dtype=np.float64)
    model.params += 0.1 * rng.standard_normal(model.params.shape)
    X, y = rng.standard_normal((n, features)), rng.integers(0, classes, n)
    start, direction, h = model.params.copy(), rng.standard_normal(len(model.params)), 1e-6

    def loss_at(t):
        model.params[:] = start + t * direction
        return layers.LOSSES[loss][0](model.forward(X, training=True), y, 0.1)

    derivative = (loss_at(h)[0] - loss_at(-h)[0]) / (2 * h)
    model.backward(loss_at(0)[1])
    assert model.grads @ direction == pytest.approx(derivative, rel=1e-4, abs=1e-7)


@given(st.integers(1, 40), st.integers(1, 50), st.sampled_from(["none", "layer"]), st.integers(0, 9999))
def test_batches_of_any_size_give_the_same_logits(n, batch_size, norm, seed):
    rng = np.random.default_rng(seed)
    model = mlp.MLP((5, 4, 3), rng, norm=norm, dtype=np.float64)
    X = rng.standard_normal((n, 5))
    assert np.allclose(model.predict_logits(X, batch_size), model.forward(X), rtol=1e-12, atol=1e-14)


@given(st.integers(1, 30), st.integers(1, 40), st.sampled_from(["none", "batch", "layer"]))
def test_any_batch_size_trains_on_each_image_once_per_epoch(n, batch_size, norm):
    s = settings.load(mlp, hidden=(4,), norm=norm, batch_size=max(batch_size, 2), epochs=2)  # a last batch of 1 remains
    rng = np.random.default_rng(0)
    X, y = rng.random((n, 6), dtype=np.float32), np.arange(n) % 3
    rows = []
    trainer = mlp.Trainer(*mlp.build(6, 3, s), s, n)
    trainer.fit(X, y, X, y, rows.append)
    assert trainer.optimizer.t == 2 * -(-n // s.batch_size)
    assert np.isfinite(trainer.model.params).all()
    assert np.isfinite([row["train_loss"] for row in rows]).all()


@given(arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(2, 6)), elements=st.floats(-1e4, 1e4, width=32)),
       st.sampled_from(sorted(layers.LOSSES)), st.sampled_from([0.0, 0.1]), st.data())  # fmt: skip
def test_extreme_logits(logits, loss, smoothing, data):
    y = np.array(data.draw(st.lists(st.integers(0, logits.shape[1] - 1), min_size=len(logits), max_size=len(logits))))
    before = logits.copy()
    function, probabilities = layers.LOSSES[loss]
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        value, dlogits = function(logits, y, smoothing)
        p = probabilities(logits)
    assert np.isfinite(value)
    assert value >= -1e-6
    assert np.isfinite(dlogits).all()
    assert np.abs(dlogits).max() <= 1 / len(y) + 1e-6  # a probability minus a target
    assert ((p >= 0) & (p <= 1)).all()
    assert np.array_equal(logits, before)
    if loss == "softmax":
        assert np.allclose(p.sum(axis=1), 1, atol=1e-5)
        assert np.allclose(dlogits.sum(axis=1), 0, atol=1e-5)


@given(st.sampled_from(["none", "global", "per_pixel"]), st.sampled_from(["none", *layers.NORMS]), st.floats(0, 1, width=32))
def test_constant_pixels(normalize, norm, value):
    X = np.random.default_rng(0).random((20, 3, 3), dtype=np.float32)
    X[:, 0] = value  # a row of pixels that is the same in all images
    mean, std = data.normalization_stats(X, normalize)
    rows = data.standardize(X, mean, std)
    assert np.isfinite(rows).all()
    s = settings.load(mlp, hidden=(4,), norm=norm, batch_size=8, epochs=2)
    with np.errstate(all="raise", under="ignore"):
        model, history = mlp.train(rows, np.arange(20) % 3, rows, np.arange(20) % 3, 3, s, lambda row: None)
    assert np.isfinite(model.params).all()
    assert np.isfinite(history["val_loss"]).all()


@given(st.integers(0, 4), st.sampled_from(sorted(layers.LOSSES)))
def test_a_class_missing_from_the_data(missing, loss):
    rng = np.random.default_rng(missing)
    y = rng.choice([label for label in range(5) if label != missing], 60)
    X = rng.random((60, 6), dtype=np.float32)
    s = settings.load(mlp, hidden=(8,), loss=loss, batch_size=20, epochs=60, learning_rate=0.03, ema_decay=0.0)
    model, _ = mlp.train(X, y, X, y, 5, s, lambda row: None)
    assert layers.LOSSES[loss][1](model.predict_logits(X)).mean(axis=0).argmin() == missing
    assert np.isfinite(model.params).all()


@pytest.mark.parametrize("make", [copy.deepcopy, lambda trainer: pickle.loads(pickle.dumps(trainer))])
def test_a_copy_of_a_trainer_continues_as_the_original(make):
    rng = np.random.default_rng(0)
    X, y = rng.random((40, 6), dtype=np.float32), np.arange(40) % 3
    s = settings.load(mlp, hidden=(4,), epochs=2, batch_size=8, norm="batch", schedule="constant", warmup=0.0)
    trainer = mlp.Trainer(*mlp.build(6, 3, s), s, 40)
    trainer.fit(X, y, X, y)
    twin = make(trainer)
    before = trainer.model.params.copy()
    for continued in (trainer, twin):
        continued.s.epochs = 4
        continued.fit(X, y, X, y)
    assert not np.array_equal(trainer.model.params, before)
    assert twin.model.params is not trainer.model.params
    assert np.array_equal(twin.model.params, trainer.model.params)
    assert np.array_equal(twin.model.predict_logits(X), trainer.model.predict_logits(X))
    assert all(np.shares_memory(view, twin.model.params) for name, view in twin.model.views.items() if "W" in name)


@pytest.mark.parametrize(("X", "y", "said"), [
    (np.zeros((5, 3), np.float32), np.zeros(4, int), "X has 5 rows and y has 4"),
    (np.zeros((0, 3), np.float32), np.zeros(0, int), "at least one"),
    (np.array([[0, 1], [np.nan, 1], [0, np.inf]], np.float32), np.zeros(3, int), "in 2 of 3 rows; the first is row 1"),
    (np.zeros((4, 3), np.float32), np.array([0, 1, 2, 3]), "whole numbers from 0 to 2"),
    (np.zeros((4, 3), np.float32), np.array([0, 1, -1, 2]), "whole numbers from 0 to 2"),
    (np.zeros((4, 3), np.float32), np.zeros(4), "whole numbers from 0 to 2"),
    (np.zeros((4, 3), np.float32), np.zeros((4, 1), int), "one-dimensional"),
])  # fmt: skip
def test_data_that_cannot_be_trained_on(X, y, said):
    s = settings.load(mlp, hidden=(4,), epochs=1, batch_size=2)
    right = np.zeros((2, X.shape[1]), np.float32), np.zeros(2, int)
    for both in ((X, y, *right), (*right, X, y)):  # in training or validation
        with pytest.raises(ValueError, match=said):
            mlp.train(*both, 3, s, lambda row: None)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_images_of_another_dtype_are_converted_to_that_of_the_network(dtype):
    model = mlp.MLP((5, 4, 3), np.random.default_rng(0), norm="batch", dtype=dtype)
    X = np.arange(30).reshape(6, 5)
    for training in (True, False):
        expected = model.forward(X.astype(dtype), training).copy()
        for other in (np.float64, np.float32, np.uint8):
            logits = model.forward(X.astype(other), training)
            assert logits.dtype == dtype
            assert np.allclose(logits, expected, rtol=1e-6)


@pytest.mark.parametrize("options", [{"norm": norm, "activation": activation} for norm in ("none", *layers.NORMS)
                                     for activation in layers.ACTIVATIONS])  # fmt: skip
def test_a_network_is_thread_safe_in_eval_mode(options):
    rng = np.random.default_rng(0)
    model = mlp.MLP((50, 40, 30, 10), rng, **options)
    model.forward(rng.standard_normal((64, 50), dtype=np.float32), training=True)
    X = rng.standard_normal((4000, 50), dtype=np.float32)
    expected = model.predict_logits(X, 100)
    with ThreadPoolExecutor(4) as pool:
        logits = np.concatenate(list(pool.map(lambda i: model.predict_logits(X[i : i + 100]), range(0, len(X), 100))))
    assert np.allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_pickle_contains_no_images():
    rng = np.random.default_rng(0)
    X = rng.random((500, 20), dtype=np.float32)
    model = mlp.MLP((20, 4, 3), rng, norm="batch")
    model.predict_logits(X)
    size = len(pickle.dumps(model))
    model.forward(X, training=True)
    assert len(pickle.dumps(model)) == size < 4 * 4 * len(model.params) + 4000
