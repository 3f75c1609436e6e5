"""The study of the heads: its statistics by hand, its verdicts, and the script as a user runs it."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import one_line

import cnn_feature_extraction as cnn
import data
import hybrid_train
from studies import heads as study
from studies.statistics import holm, mcnemar, paired_t
from support import files, runs, settings
from torch_cnn import backbone
from torch_cnn.features import SPLITS, extract_features_numpy


def test_mcnemar_by_hand():
    correct = np.array([True] * 20 + [True] + [False] * 9 + [False] * 5)
    correct_other = np.array([True] * 20 + [False] + [True] * 9 + [False] * 5)
    first, second, p = mcnemar(correct, correct_other)
    assert (first, second) == (1, 9)
    assert p == pytest.approx(2 * (1 + 10) / 2**10)  # both tails of ten fair coins: 0 or 1 heads, 9 or 10
    assert mcnemar(correct, correct) == (0, 0, 1.0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


OTHERS = (
    study.CNN_LINEAR, study.LOGREG, study.KNN, study.MLP_AUGMENTED, study.MLP_JOINT, study.CNN_LINEAR_HALF,
    study.MLP_SAME_HALF, study.MLP_OTHER_HALF, study.LOGREG_OTHER_HALF,
)  # fmt: skip


def outcomes(*num_correct):
    """Of 1,000 images, only the MLP classifies num_correct correctly in each seed, only the linear classifier 100."""
    results, y = {}, np.zeros(1_000, int)
    for seed, n in enumerate(num_correct):
        linear, mlp = np.ones(1_000, int), np.ones(1_000, int)
        linear[:800] = mlp[:700] = 0
        mlp[800 : 800 + n] = 0
        results[seed] = {name: {"test": (linear, y)} for name in OTHERS} | {study.MLP: {"test": (mlp, y)}}
    return results


@pytest.mark.parametrize(("num_correct", "word", "numbers", "counts"), [
    # t = 9 / (0.2 / sqrt(3)) = 77.9, whose tails hold 0.000165, times nine
    ((188, 190, 192), "better", "+9.00 +- 0.20 points, p = 0.00148 (paired t test over 3 seeds, Holm)",
     "better in 3, worse in 0"),
    ((190, 190, 190), "not distinguishable", "+9.00 +- 0.00 points, p = 1 ", "better in 3, worse in 0"),  # the sign test
    ((30, 40, 35), "worse", "-6.50 +- 0.50 points", "better in 0, worse in 3"),
    ((130, 95, 105), "not distinguishable", "+1.00 +- 1.80 points", "better in 0, worse in 0"),
    ((190, 190, 30), "not distinguishable", "+3.67 +- 9.24 points", "better in 2, worse in 1"),
    # t = 7.23 with 2 degrees of freedom, whose tails hold 0.0186, times nine; 136 against 100 has p = 0.02, times 27
    ((130, 122, 136), "not distinguishable", "+2.93 +- 0.70 points, p = 0.167 ", "better in 0, worse in 0"),
])  # fmt: skip
def test_verdicts(num_correct, word, numbers, counts):
    heads, tests, verdicts = study.summary(outcomes(*num_correct))
    assert len(tests) == 9
    for number, other in ((0, study.CNN_LINEAR), (1, study.LOGREG)):  # whose outcomes are the same
        assert verdicts[number].startswith(f"NumPy MLP vs {other}: {word}; {numbers}")
        assert verdicts[number].endswith(f"McNemar's test: {counts} seeds")
    assert all(": not distinguishable;" in verdict for verdict in verdicts[2:])
    assert [(test["head"], test["against"]) for test in tests] == list(study.COMPARISONS)
    assert [row["only_head_correct"] for row in tests[0]["by_seed"]] == list(num_correct)
    assert heads[study.MLP]["by_seed"]["test_accuracy"] == pytest.approx([0.7 + n / 1_000 for n in num_correct])
    assert heads[study.MLP]["test_accuracy"] == pytest.approx(0.7 + np.mean(num_correct) / 1_000)
    assert heads[study.MLP]["test_accuracy_std"] == pytest.approx(np.std(num_correct, ddof=1) / 1_000)


def test_the_t_test_by_hand():
    # mean 2, deviation 1, n 4: t = 4 with 3 degrees of freedom, whose two tails hold 0.0280
    points = 2 + np.array([1.0, -1.0, 1.0, -1.0]) / np.sqrt(4 / 3)
    assert paired_t(points) == pytest.approx(0.0280, abs=1e-4)
    assert (paired_t([0, 0]), paired_t([3, 3]), paired_t([3] * 5)) == (1, 0.5, 0.0625)  # equal ones: the sign test


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

    rows = lambda features: features["indices_train"].tolist()  # noqa: E731
    monkeypatch.setattr(cnn, "train", spy("cnn", train, lambda images: images.train.indices.tolist()))
    monkeypatch.setattr(hybrid_train, "train_head", spy("mlp", train_head, rows))
    monkeypatch.setattr(study, "logistic_regression", spy("logistic", logistic, rows))
    results, _ = study.heads_on_halves(digits, tmp_path / "half", s)
    (cnn_rows,), (same, other), (logreg_rows,) = seen["cnn"], seen["mlp"], seen["logistic"]
    assert cnn_rows == same
    assert other == logreg_rows
    assert sorted(same + other) == digits.train.indices.tolist()
    assert abs(len(same) - len(other)) <= 1
    labels = dict(zip(digits.train.indices.tolist(), digits.train.y.tolist(), strict=True))
    trained_on = {study.CNN_LINEAR_HALF: cnn_rows, study.MLP_SAME_HALF: same, study.MLP_OTHER_HALF: other,
                  study.LOGREG_OTHER_HALF: logreg_rows}  # fmt: skip
    for head, rows_of_head in trained_on.items():
        assert results[head]["train"][1].tolist() == [labels[row] for row in rows_of_head]
        assert np.array_equal(results[head]["test"][1], digits.test.y)


def test_the_fresh_images_are_augmented_anew(digits, tmp_path, monkeypatch):
    s, batches = small(digits, tmp_path, head_batch_size=500), []
    original = cnn.augment
    monkeypatch.setattr(cnn, "augment", lambda *arguments: batches.append(original(*arguments)) or batches[-1])
    model = backbone.build(s, mean=0.3, std=0.4, generator=torch.Generator().manual_seed(0))
    features = {f"X_{split}": extract_features_numpy(model, getattr(digits, split).X).numpy() for split in SPLITS}
    features["y_train"] = digits.train.y
    study.augmented_mlp(model, digits, features, 0.0, 1.0, s)
    assert sum(map(len, batches)) == len(digits.train.y)
    plain = {image.tobytes() for image in digits.train.X}
    same = sum(image.numpy().tobytes() in plain for batch in batches for image in batch[:, 0])
    assert same / len(digits.train.y) < 0.2  # one in eighteen stays as it was, and a symmetrical few


def test_the_script(run_script, tmp_path):
    flags = ("--dataset", "digits", "--quick", "--channels", 8, 16, "--pool-after", 1, 2, "--learning-rate", 0.2)
    done = run_script("experiments", "heads", *flags, "--output-dir", "out")
    assert (done.returncode, done.stderr) == (0, "")
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["seeds"] == [0, 1]
    heads = metrics["heads"]
    assert len(heads) == 10
    assert set(metrics["chosen"]["0"]) == {study.LOGREG, study.KNN, study.LOGREG_OTHER_HALF}
    for name, head in heads.items():
        assert head["test_accuracy"] > 0.7, name
        assert f"{head['test_accuracy']:.2%}" in done.stdout
    for kind, name in (("frozen", study.MLP), ("joint", study.MLP_JOINT)):
        for number, seed in enumerate(metrics["seeds"]):
            single = json.loads((tmp_path / f"out/{kind}/seed_{seed}/metrics.json").read_text())
            for split in ("val", "test"):
                assert heads[name]["by_seed"][f"{split}_accuracy"][number] == pytest.approx(single[f"{split}_accuracy"])
    for name in ("study.png", "label_errors.png"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000
    assert (tmp_path / "out/verdicts.txt").read_text().splitlines() == metrics["verdicts"]
    assert all(verdict in done.stdout for verdict in metrics["verdicts"])

    with pytest.raises(settings.SettingError, match="folder of the backbones"):
        study.check_settings(small(None, tmp_path / "out", backbones=str(tmp_path / "out")))
    frozen = tmp_path / "out/frozen/seed_0"
    with pytest.raises(settings.SettingError, match="use --backbones FOLDER"):
        study.check_settings(small(None, tmp_path / "other", backbone=str(frozen / "backbone.safetensors")))
    with pytest.raises(settings.SettingError, match="no finished run in nowhere/seed_0; make them with"):
        study.check_backbones(small(None, tmp_path, backbones="nowhere"))
    with pytest.raises(settings.SettingError, match=r"no finished run in .*joint/seed_0"):
        study.check_backbones(small(None, tmp_path, backbones=str(tmp_path / "out/joint")))
    with pytest.raises(settings.SettingError, match="not for the study"):
        study.check_settings(small(None, tmp_path, training="joint"))
    with pytest.raises(settings.SettingError, match="--train-on-val: not for the study, which chooses by"):
        study.check_settings(small(None, tmp_path, train_on_val=True))
    done = run_script("experiments", "heads", *flags, "--backbones", "out/frozen", "--epochs", 3)
    assert "made with other settings: epochs" in one_line(done, 2)

    (tmp_path / "out/metrics.json").unlink()  # as if it had been stopped while it trained the heads of the second seed
    (tmp_path / "out/predictions_1.npz").unlink()
    done = run_script("experiments", "heads", "--resume", "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "out/metrics.json").read_text())["heads"] == heads

    saved = tmp_path / "out/frozen/seed_0/settings.json"
    for text, said in (("{", "cannot be read"), ('{"training": "joint"}', "made with other settings: training")):
        saved.write_text(text)
        assert said in one_line(run_script("experiments", "heads", *flags, "--backbones", "out/frozen"), 2)
    shutil.copy(tmp_path / "out/predictions_0.npz", tmp_path)
    digits = data.load("digits", split_seed=5)
    with pytest.raises(files.FileError, match="was made from other data than"):
        study.results_of_seed(digits, tmp_path, small(None, tmp_path))


def test_cross_validated_probabilities_come_from_the_cnn_of_the_other_half(digits, tmp_path, monkeypatch):
    """Each image is judged by the CNN that was not trained on it; the planted CNNs know only which rows those were."""
    s, trained_on = small(digits, tmp_path), []
    monkeypatch.setattr(study, "half_backbone", lambda images, rows, folder, s: trained_on.append(rows) or rows)

    def logits(rows, X):
        judged = {image.tobytes() for image in X}
        assert not judged & {digits.train.X[row].tobytes() for row in rows}
        return np.eye(len(X), 10, dtype=np.float32)

    monkeypatch.setattr(study, "predict_logits", logits)
    probabilities = study.cross_validated_probabilities(digits, tmp_path, s)
    assert probabilities.shape == (len(digits.train.y), 10)
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert sorted(np.concatenate(trained_on)) == list(range(len(digits.train.y)))


def test_experiments_lists_the_studies_and_names_them_after_a_typo(run_script):
    listed = run_script("experiments")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "heads" in listed.stdout
    assert "no such study (did you mean heads?)" in one_line(run_script("experiments", "head"), 2)
