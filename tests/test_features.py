"""Features of a CNN: in eval mode, in dataset order, and a cache that is never stale."""

import numpy as np
import pytest
import torch

import data
from torch_cnn import backbone, features

RNG = np.random.default_rng(0)


def small(seed=0, **options):
    return backbone.CNN((4, 6), (1, 2), generator=torch.Generator().manual_seed(seed), **options)


def test_features_are_in_eval_mode_and_change_nothing():
    model = small().train()
    X = torch.rand(7, 1, 28, 28)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    extracted = features.extract_features(model, X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for i in range(7):  # each image's features are its own, whatever the batch
        assert torch.allclose(features.extract_features(model, X[i : i + 1])[0], extracted[i], atol=1e-5)
    assert torch.allclose(features.classifier_logits(model, extracted), model(X), atol=1e-5)
    assert features.predict_logits(model, X[:, 0].numpy()) == pytest.approx(model(X).detach().numpy(), abs=1e-5)


def test_features_of_many_images_are_in_order():
    model, X = small(), torch.rand(1201, 1, 28, 28)  # more than two chunks
    extracted = features.extract_features(model, X)
    assert extracted.shape == (1201, 6 * 49)
    for i in (0, 499, 500, 1000, 1200):
        assert torch.allclose(features.extract_features(model, X[i : i + 1])[0], extracted[i], atol=1e-5)


def test_the_cache_agrees_with_the_dataset_and_is_loaded(digits, tmp_path, capsys):
    path, model = tmp_path / "features.npz", small()
    extracted = features.cached_features(path, model, digits)
    for name in ("train", "val", "test"):
        split = getattr(digits, name)
        assert np.array_equal(extracted[f"y_{name}"], split.y)
        assert np.array_equal(extracted[f"indices_{name}"], split.indices)
        some = RNG.permutation(len(split.y))[:5]
        expected = features.extract_features(model, torch.from_numpy(split.X[some])[:, None])
        assert np.allclose(extracted[f"X_{name}"][some], expected, atol=1e-5)
    assert "features: 294 per image" in capsys.readouterr().out
    loaded = features.cached_features(path, model, digits)
    assert f"features loaded from {path}" in capsys.readouterr().out
    assert loaded.keys() == extracted.keys()
    assert all(np.array_equal(loaded[name], extracted[name]) for name in loaded)


def test_a_stale_or_damaged_cache_is_extracted_again(digits, tmp_path, capsys):
    path, model = tmp_path / "features.npz", small()
    first = features.cached_features(path, model, digits)
    with torch.no_grad():
        model.backbone[0].weight[0, 0, 0, 0] += 0.01
    changed = features.cached_features(path, model, digits)
    assert "was made from other weights: extracting" in capsys.readouterr().out
    assert not np.array_equal(changed["X_train"], first["X_train"])

    other_split = data.load("digits", split_seed=1)
    features.cached_features(path, model, other_split)
    assert "was made from other data and split: extracting" in capsys.readouterr().out

    features.cached_features(path, model, other_split, layer="another")
    assert "was made from other layer: extracting" in capsys.readouterr().out
    features.cached_features(path, model, other_split)

    with np.load(path) as file:
        content = dict(file)
    for change in ({"made_from": np.array("[]")}, {"X_val": None}):
        np.savez(path, **{name: value for name, value in (content | change).items() if value is not None})
        features.cached_features(path, model, other_split)
        assert "cannot be read" in capsys.readouterr().out

    path.write_bytes(path.read_bytes()[:10_000])
    features.cached_features(path, model, digits)
    assert "cannot be read" in capsys.readouterr().out
    assert path.stat().st_size > 10_000


def test_running_statistics_are_weights_too(digits, tmp_path, capsys):
    path, model = tmp_path / "features.npz", small()
    features.cached_features(path, model, digits)
    model.backbone[2].running_mean += 0.1
    features.cached_features(path, model, digits)
    assert "was made from other weights" in capsys.readouterr().out


def test_a_cache_that_does_not_fit_is_not_overwritten(digits, tmp_path, capsys):
    path, fallback_path = tmp_path / "features.npz", tmp_path / "fallback.npz"
    features.cached_features(path, small(seed=1), digits)
    before = path.read_bytes()
    features.cached_features(path, small(seed=2), digits, fallback_path)
    assert path.read_bytes() == before
    assert fallback_path.exists()
    features.cached_features(path, small(seed=1), digits, fallback_path)
    assert f"features loaded from {path}" in capsys.readouterr().out


def test_a_cache_that_cannot_be_written_is_no_error(digits, tmp_path, capsys):
    extracted = features.cached_features(tmp_path / "missing" / "features.npz", small(), digits)
    assert "features are not saved" in capsys.readouterr().out
    assert len(extracted["X_train"]) == len(digits.train.y)
