"""The study of the heads: its statistics by hand, its verdicts, and the script as a user runs it."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import one_line

from torch_cnn import backbone
import cnn_feature_extraction as cnn
import data
from studies import heads as study
import hybrid_train
from support import runs
from support import settings


def test_mcnemar_by_hand():
    right = np.array([True] * 20 + [True] + [False] * 9 + [False] * 5)
    right_too = np.array([True] * 20 + [False] + [True] * 9 + [False] * 5)
    first, second, p = study.mcnemar(right, right_too)
    assert (first, second) == (1, 9)
    assert p == pytest.approx(2 * (1 + 10) / 2**10)  # both tails of ten fair coins: 0 or 1 heads, 9 or 10
    assert study.mcnemar(right, right) == (0, 0, 1.0)


def test_holm_by_hand():
    assert study.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert study.holm([0.5, 0.9]) == [1.0, 1.0]


OTHERS = (study.OWN, study.LOGISTIC, study.NEAREST, study.FRESH, study.JOINT, study.HALF_OWN, study.SEEN, study.UNSEEN,
          study.LINEAR)  # fmt: skip


def outcomes(*more_right):
    """Of 1,000 images the MLP alone has so many right in each seed, and the CNN, linear classifier alone 100."""
    every, y = {}, np.zeros(1_000, int)
    for seed, n in enumerate(more_right):
        own, mlp = np.ones(1_000, int), np.ones(1_000, int)
        own[:800] = mlp[:700] = 0
        mlp[800 : 800 + n] = 0
        every[seed] = {name: {"test": np.stack([own, y])} for name in OTHERS} | {study.MLP: {"test": np.stack([mlp, y])}}
    return every


@pytest.mark.parametrize(("more_right", "said", "counts", "words"), [
    ((190, 190, 190), "+9.00 +- 0.00 points, p = 0 (paired t over the", "better in 3, worse in 0 of 3", "better"),
    ((30, 40, 35), "-6.50 +- 0.50 points", "better in 0, worse in 3 of 3", "worse"),
    ((130, 95, 105), "+1.00 +- 1.80 points", "better in 0, worse in 0 of 3", "no difference shown"),
    ((190, 190, 30), "+3.67 +- 9.24 points", "better in 2, worse in 1 of 3", "no difference shown"),
    # t = 7.23 with 2 degrees of freedom, whose tails hold 0.0186, times nine; 136 against 100 has p = 0.02, times 27
    ((130, 122, 136), "+2.93 +- 0.70 points, p = 0.167 ", "better in 0, worse in 0 of 3", "no difference shown"),
])  # fmt: skip
def test_verdicts(more_right, said, counts, words):
    heads, tests, verdicts = study.summary(outcomes(*more_right))
    assert len(tests) == 9
    for number, other in ((0, study.OWN), (1, study.LOGISTIC)):  # whose outcomes are the same
        assert verdicts[number].startswith(f"NumPy MLP, against {other}: {said}")
        assert verdicts[number].endswith(f"; {counts} seeds (McNemar, Holm): {words}")
    assert all("no difference shown" in verdict for verdict in verdicts[2:])
    assert [(test["head"], test["against"]) for test in tests] == list(study.COMPARED)
    assert [one["only_head_right"] for one in tests[0]["by_seed"]] == list(more_right)
    assert heads[study.MLP]["by_seed"]["test_accuracy"] == pytest.approx([0.7 + n / 1_000 for n in more_right])
    assert heads[study.MLP]["test_accuracy"] == pytest.approx(0.7 + np.mean(more_right) / 1_000)
    assert heads[study.MLP]["test_accuracy_std"] == pytest.approx(np.std(more_right, ddof=1) / 1_000)


def test_the_t_test_by_hand():
    # mean 2, deviation 1, n 4: t = 4 with 3 degrees of freedom, whose two tails hold 0.0280
    points = 2 + np.array([1.0, -1.0, 1.0, -1.0]) / np.sqrt(4 / 3)
    assert study.over_the_seeds(points) == pytest.approx(0.0280, abs=1e-4)
    assert (study.over_the_seeds([0, 0]), study.over_the_seeds([3, 3])) == (1, 0)


def small(digits, tmp_path, **options):
    return settings.load(study, hybrid_train, cnn, data, runs, dataset="digits", channels=(4,), pool_after=(1,), epochs=1,
                         head_epochs=1, logistic_c=(0.01,), output_dir=str(tmp_path), **options)  # fmt: skip


def test_the_heads_of_the_half_learn_from_the_images_that_their_names_say(digits, tmp_path, monkeypatch):
    s, seen = small(digits, tmp_path, seed=3), {}
    train, train_head, logistic = cnn.train, hybrid_train.train_head, study.logistic_regression

    def spy(name, function, images_of):
        def called(first, *rest, **more):
            seen.setdefault(name, []).append(images_of(first))
            return function(first, *rest, **more)

        return called

    rows = lambda features: features["index_train"].tolist()  # noqa: E731
    monkeypatch.setattr(cnn, "train", spy("cnn", train, lambda images: images.train.indices.tolist()))
    monkeypatch.setattr(hybrid_train, "train_head", spy("mlp", train_head, rows))
    monkeypatch.setattr(study, "logistic_regression", spy("logistic", logistic, rows))
    found, _ = study.on_half_of_them(digits, tmp_path / "half", s)
    (of_cnn,), (of_seen, of_unseen), (of_linear,) = seen["cnn"], seen["mlp"], seen["logistic"]
    assert of_cnn == of_seen
    assert of_unseen == of_linear
    assert sorted(of_seen + of_unseen) == digits.train.indices.tolist()
    assert abs(len(of_seen) - len(of_unseen)) <= 1
    labels = dict(zip(digits.train.indices.tolist(), digits.train.y.tolist(), strict=True))
    for head, of in ((study.HALF_OWN, of_cnn), (study.SEEN, of_seen), (study.UNSEEN, of_unseen), (study.LINEAR, of_linear)):
        assert found[head]["train"][1].tolist() == [labels[row] for row in of]
        assert np.array_equal(found[head]["test"][1], digits.test.y)


def test_the_fresh_images_are_augmented_anew(digits, tmp_path, monkeypatch):
    s, batches = small(digits, tmp_path, head_batch_size=500), []
    original = cnn.augment
    monkeypatch.setattr(cnn, "augment", lambda *arguments: batches.append(original(*arguments)) or batches[-1])
    model = backbone.build(s, mean=0.3, std=0.4, generator=torch.Generator().manual_seed(0))
    features = {f"X_{part}": cnn.extract_features_numpy(model, getattr(digits, part).X).numpy() for part in study.PARTS}
    study.fresh_mlp(model, digits, features, 0.0, 1.0, s)
    assert sum(map(len, batches)) == len(digits.train.y)
    plain = {image.tobytes() for image in digits.train.X}
    same = sum(image.numpy().tobytes() in plain for batch in batches for image in batch[:, 0])
    assert same / len(digits.train.y) < 0.2  # one in eighteen stays as it was, and a symmetrical few


def test_the_script(run_script, tmp_path):
    flags = ("--dataset", "digits", "--quick", "--channels", 8, 16, "--pool-after", 1, 2, "--learning-rate", 0.2)
    done = run_script("hybrid_study", *flags, "--output-dir", "out")
    assert (done.returncode, done.stderr) == (0, "")
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["seeds"] == [0, 1]
    heads = metrics["heads"]
    assert len(heads) == 10
    assert set(metrics["chosen"]["0"]) == {study.LOGISTIC, study.NEAREST, study.LINEAR}
    for name, head in heads.items():
        assert head["test_accuracy"] > 0.7, name
        assert f"{head['test_accuracy']:.2%}" in done.stdout
    for kind, name in (("frozen", study.MLP), ("joint", study.JOINT)):
        for number, seed in enumerate(metrics["seeds"]):
            alone = json.loads((tmp_path / f"out/{kind}/seed_{seed}/metrics.json").read_text())
            for part in ("val", "test"):
                assert heads[name]["by_seed"][f"{part}_accuracy"][number] == pytest.approx(alone[f"{part}_accuracy"])
    assert (tmp_path / "out/study.png").stat().st_size > 10_000
    assert (tmp_path / "out/verdicts.txt").read_text().splitlines() == metrics["verdicts"]
    assert all(verdict in done.stdout for verdict in metrics["verdicts"])

    with pytest.raises(settings.SettingError, match="folder of the backbones"):
        study.check_settings(small(None, tmp_path / "out", backbones=str(tmp_path / "out")))
    with pytest.raises(settings.SettingError, match="give it --backbones"):
        study.check_settings(small(None, tmp_path / "other", backbone=str(tmp_path / "out/frozen/seed_0/backbone.safetensors")))
    with pytest.raises(settings.SettingError, match="no finished run in nowhere/seed_0; make them by"):
        study.check_settings(small(None, tmp_path, backbones="nowhere"))
    with pytest.raises(settings.SettingError, match=r"no finished run in .*joint/seed_0"):
        study.check_settings(small(None, tmp_path, backbones=str(tmp_path / "out/joint")))
    with pytest.raises(settings.SettingError, match="not for the study"):
        study.check_settings(small(None, tmp_path, training="joint"))
    done = run_script("hybrid_study", *flags, "--backbones", "out/frozen", "--epochs", 3)
    assert "made with other settings: epochs" in one_line(done, 2)

    (tmp_path / "out/metrics.json").unlink()  # as if it had been stopped while it trained the heads of the second seed
    (tmp_path / "out/predictions_1.npz").unlink()
    done = run_script("hybrid_study", "--resume", "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "out/metrics.json").read_text())["heads"] == heads

    saved = tmp_path / "out/frozen/seed_0/settings.json"
    for text, said in (("{", "cannot be read"), ('{"training": "joint"}', "made with other settings: training")):
        saved.write_text(text)
        assert said in one_line(run_script("hybrid_study", *flags, "--backbones", "out/frozen"), 2)
    shutil.copy(tmp_path / "out/predictions_0.npz", tmp_path)
    digits = data.load("digits", split_seed=5)
    with pytest.raises(files.RunError, match="is of other data than"):
        study.of_seed(digits, tmp_path, small(None, tmp_path))
