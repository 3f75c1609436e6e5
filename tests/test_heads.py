"""The study of the heads: its statistics by hand, which images each head learns from, and the command."""

import json
import shlex

import numpy as np
import pytest
import torch

import cnn_feature_extraction as cnn
import hybrid_train
import mlp_from_scratch as mlp
import run
from studies import heads

SMALL = {"dataset": "digits", "train_size": 200, "channels": (4,), "pool_after": (1,), "epochs": 1}
SMALL |= {"head_epochs": 1}
NAMES = (heads.LINEAR, heads.MLP, heads.LOGREG, heads.KNN, heads.AUGMENTED, heads.JOINT, heads.HALF_LINEAR)
NAMES += (heads.HALF_SAME, heads.HALF_OTHER, heads.HALF_LOGREG)


def settings(**changes):
    return hybrid_train.settings(**SMALL | {"figures": False} | changes)


@pytest.fixture(scope="module")
def images():
    return heads.data.load(settings())


def outcomes(*num_right):
    """Of 1,000 images, only the MLP has num_right right in each seed, only the other heads 100."""
    results = {}
    for seed, n in enumerate(num_right):
        first, other = np.zeros(1_000, bool), np.zeros(1_000, bool)
        other[:800] = first[:700] = True
        first[800 : 800 + n] = True
        results[seed] = {f"{name}/test": other for name in NAMES} | {f"{heads.MLP}/test": first}
        results[seed][f"{heads.KNN}/chosen"] = np.array(5)
    return results


BY_HAND = {  # numbers of images: difference, p
    (188, 190, 192): (9.0, 0.00148),  # t = 9 / (0.2 / sqrt(3)) = 77.9, tails of 0.000165, times nine
    (190, 190, 190): (9.0, 1),  # the sign test: 0.25, times nine
    (130, 122, 136): (2.9333, 0.167),  # deviation 0.7024, t = 7.23, whose tails hold 0.0186
}


@pytest.mark.parametrize("num_right", BY_HAND)
def test_the_tests_by_hand(num_right):
    points, p_holm = BY_HAND[num_right]
    table, tests = heads.summarize(outcomes(*num_right))
    assert [(test["variant"], test["against"]) for test in tests] == heads.COMPARISONS
    assert tests[0]["points"] == pytest.approx(points, abs=1e-4)
    assert tests[0]["p_holm"] == pytest.approx(p_holm, rel=0.01)
    assert [row["only_variant_correct"] for row in tests[0]["by_seed"]] == list(num_right)
    assert [row["only_other_correct"] for row in tests[0]["by_seed"]] == [100] * 3
    assert table[heads.MLP]["by_seed"]["test_accuracy"] == pytest.approx([0.7 + n / 1_000 for n in num_right])
    assert table[heads.MLP]["test_accuracy_std"] == pytest.approx(np.std(num_right, ddof=1) / 1_000)
    assert all(test["p_holm"] == 1 for test in tests[2:])
    heads.draw(table, tests, "planted")


def indices(images):
    return images.train.indices.tolist()


def test_the_heads_of_the_half_learn_from_the_images_that_their_names_say(images, tmp_path, monkeypatch):
    seen, train, logistic = [], mlp.train, heads.logistic_regression
    monkeypatch.setattr(mlp, "train", lambda half, s: seen.append(indices(half)) or train(half, s))

    def spy(name, half):
        seen.append(indices(half))
        return logistic(name, half)

    monkeypatch.setattr(heads, "logistic_regression", spy)
    s = settings(seed=3)
    results = heads.heads_on_halves(images, tmp_path / "half", s)
    first, second = heads.halves(images, s)
    assert seen == [indices(first), indices(second), indices(second)]
    assert sorted(seen[0] + seen[1]) == indices(images)
    assert len(results[f"{heads.HALF_LINEAR}/train"]) == len(results[f"{heads.HALF_OTHER}/train"]) == 100
    metrics = run.read_json(tmp_path / "half/metrics.json")
    assert metrics["train_size"] == 100
    assert results[f"{heads.HALF_LINEAR}/test"].mean() == pytest.approx(metrics["test_accuracy"])
    assert results[f"{heads.HALF_LOGREG}/chosen"] in heads.LOGISTIC_C


def test_the_images_are_augmented_anew(images, monkeypatch):
    s, batches, augment = settings(head_batch_size=64, head_epochs=2), [], cnn.augment
    monkeypatch.setattr(cnn, "augment", lambda *arguments: batches.append(augment(*arguments)) or batches[-1])
    model = cnn.CNN(s, rng=torch.Generator().manual_seed(0)).eval()
    network = heads.augmented_mlp(model, images, cnn.extract_features(model, images), s)
    assert sum(map(len, batches)) == 2 * 200
    plain = {image.tobytes() for image in images.train.X}
    assert sum(image.numpy().tobytes() in plain for batch in batches for image in batch[:, 0]) < 0.2 * 400
    assert network.config["sizes"][0] == 4 * 14 * 14


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(heads, "NEIGHBORS", (1, 3))
    flags = shlex.split(
        "--dataset digits --train-size 200 --channels 4 --pool-after 1 --epochs 1 --head-epochs 1"
    )
    flags += ["--seeds", "2", "--output-dir", str(tmp_path)]
    heads.main(flags)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics["heads"]) == [*NAMES[:2], *NAMES[4:5], *NAMES[2:4], *NAMES[5:]]
    assert set(metrics["chosen"]["1"]) == {heads.LOGREG, heads.KNN, heads.HALF_LOGREG}
    assert "train_accuracy" not in metrics["heads"][heads.KNN]
    for kind, name in (("frozen", heads.MLP), ("joint", heads.JOINT)):
        for number, seed in enumerate(metrics["seeds"]):
            single = json.loads((tmp_path / f"{kind}/seed_{seed}/metrics.json").read_text())
            for split in ("val", "test"):
                value = metrics["heads"][name]["by_seed"][f"{split}_accuracy"][number]
                assert value == pytest.approx(single[f"{split}_accuracy"])
    names = {"metrics.json", "settings.json", "study.png", "train_probabilities.npy"}
    names |= {"right_0.npz", "right_1.npz"}
    assert {path.name for path in tmp_path.glob("*.*")} == names
    capsys.readouterr()
    heads.main(flags)  # everything is there
    assert json.loads((tmp_path / "metrics.json").read_text())["heads"] == metrics["heads"]
    with pytest.raises(run.Error, match="has results of other settings"):
        heads.main([*flags, "--head-hidden", "8"])


@pytest.mark.parametrize("flags", [["--train-on-val"], ["--backbone", "x.safetensors"]])
def test_flags_that_make_no_sense(flags, tmp_path):
    with pytest.raises(run.Error, match="heads: --backbone, --train-on-val, --resume: not here"):
        heads.main([*flags, "--output-dir", str(tmp_path)])
