"""The study of the heads: its statistics by hand, its verdicts, and the script as a user runs it."""

import json

import numpy as np
import pytest
from conftest import one_line

import hybrid_study as study


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


OTHERS = (study.OWN, study.LOGISTIC, study.NEAREST, study.FRESH, study.JOINT, study.HALF_OWN, study.SEEN, study.UNSEEN)


def outcomes(*more_right):
    """Of 1,000 images the MLP alone has so many right in each seed, and the CNN's own classifier alone 100."""
    every, y = {}, np.zeros(1_000, int)
    for seed, n in enumerate(more_right):
        own, mlp = np.ones(1_000, int), np.ones(1_000, int)
        own[:800] = mlp[:700] = 0
        mlp[800 : 800 + n] = 0
        every[seed] = {name: {"test": np.stack([own, y])} for name in OTHERS} | {study.MLP: {"test": np.stack([mlp, y])}}
    return every


@pytest.mark.parametrize(("more_right", "said"), [
    ((190, 190, 190), "+9.00 +- 0.00 points; ahead in 3 of 3 seeds, significantly better in 3, worse in 0: better"),
    ((30, 30, 105), "ahead in 1 of 3 seeds, significantly better in 0, worse in 2: worse"),
    ((110, 95, 105), "ahead in 2 of 3 seeds, significantly better in 0, worse in 0: no difference shown"),
    ((190, 190, 30), "significantly better in 2, worse in 1: no difference shown"),
])  # fmt: skip
def test_verdicts(more_right, said):
    heads, tests, verdicts = study.summary(outcomes(*more_right))
    assert verdicts[0].startswith("NumPy MLP, against CNN's own classifier: ")
    assert said in verdicts[0]
    assert all("no difference shown" in verdict for verdict in verdicts[1:])
    assert len(tests) == 3 * len(study.COMPARED)
    assert tests[0] | {"p": 0, "p_holm": 0} == {"head": study.MLP, "against": study.OWN, "seed": 0, "p": 0, "p_holm": 0,
                                                "only_head_right": more_right[0], "only_other_right": 100}  # fmt: skip
    assert heads[study.MLP]["by_seed"]["test_accuracy"] == pytest.approx([0.7 + n / 1_000 for n in more_right])
    assert heads[study.MLP]["test_accuracy"] == pytest.approx(0.7 + np.mean(more_right) / 1_000)
    assert heads[study.MLP]["test_accuracy_std"] == pytest.approx(np.std(more_right, ddof=1) / 1_000)


def test_the_script(run_script, tmp_path):
    flags = ("--dataset", "digits", "--quick", "--channels", 8, 16, "--pool-after", 1, 2, "--learning-rate", 0.2)
    done = run_script("hybrid_study", *flags, "--output-dir", "out")
    assert (done.returncode, done.stderr) == (0, "")
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["seeds"] == [0, 1]
    heads = metrics["heads"]
    assert len(heads) == 9
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

    done = run_script("hybrid_study", *flags, "--backbones", "out/frozen", "--epochs", 3)
    assert "made with other settings: epochs" in one_line(done, 2)
    done = run_script("hybrid_study", *flags, "--backbones", "nowhere")
    assert "no network in nowhere/seed_0; make it by" in one_line(done, 2)

    (tmp_path / "out/metrics.json").unlink()  # as if it had been stopped while it trained the heads of the second seed
    (tmp_path / "out/predictions_1.npz").unlink()
    done = run_script("hybrid_study", "--resume", "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "out/metrics.json").read_text())["heads"] == heads
