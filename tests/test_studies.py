"""Studies without training: the choice of learning rates, statistics, tables, and their committed results."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

import experiments
import run
from studies import STUDIES, finished, output, runner, statistics
from studies import cnn as cnn_studies
from studies.study import Study, command, label, vary

RATES = (0.001, 0.003, 0.01)
DROPOUT = Study("d", "How much?", "mlp", vary(dropout=(0.0, 0.2, 0.4)), "0", {}, RATES, 5)
NOISE = (0.0, 0.002, -0.001, 0.001, -0.002)
RESULTS = run.ROOT / "results"


def options(**changes):
    given = {"seeds": 0, "epochs": 0, "quick": False, "dataset": ""}
    return SimpleNamespace(**given | changes)


class Planted:
    """A Runner without trainings: result(settings) gives (validation, test accuracy) or a row."""

    fresh, finished = False, {}

    def __init__(self, result):
        self.result, self.jobs = result, []

    def rows(self, jobs):
        self.jobs += jobs
        rows = {}
        for job in jobs:
            row = self.result(job.settings)
            if not isinstance(row, dict):
                row = dict(zip(("val_accuracy", "test_accuracy"), row, strict=True))
                row |= {"test_loss": 0.5, "test_ece": 0.01, "parameters": 1000, "seconds": 5.0, "epochs": 3}
                row["train_eval_accuracy"] = 0.9
            rows[job.key] = row
        return rows


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    """A dataset of which only its description is known."""
    about = {"name": "planted", "fingerprint": "f", "image_shape": (28, 28)}
    about = SimpleNamespace(train_size=6_000, num_classes=10, **about)
    monkeypatch.setattr("studies.runner.describe", lambda chosen: about)


def compared(study, result, folder, **changes):
    """(summary, Comparison, rows, jobs) of a study with planted results."""
    planted = Planted(result)
    made = runner.Comparison(study, planted, options(**changes), folder)
    rows = made.run()
    return json.loads(json.dumps(statistics.summarize(made, rows))), made, rows, planted.jobs


def with_effects(tmp_path, effects, seeds=5, **more):
    """The summary of variants with planted differences {label: difference to "a"}, and noise."""
    variants = {name: {"dropout": number / 100} for number, name in enumerate(effects)}

    def result(s):
        number = round(100 * s["dropout"])
        effect = list(effects.values())[number]
        if effect is None:
            return {"message": "the loss became nan"}
        test = 0.8 + effect + NOISE[s["seed"]] + (0.1 * NOISE[(2 * s["seed"] + number) % 5] if number else 0)
        return test + 0.01, test

    return compared(Study("s", "?", "mlp", variants, "a", seeds=seeds, **more), result, tmp_path)[0]


# ---- statistics


def test_the_paired_t_test_is_scipys_and_that_by_hand():
    a, b = np.array([90.1, 90.4, 89.8, 90.0]), np.array([89.9, 90.0, 89.9, 89.6])
    test = statistics.paired_test(list(a - b))
    expected = stats.ttest_rel(a, b)
    assert (test["points"], test["p"]) == pytest.approx((0.225, expected.pvalue))
    assert (test["low"], test["high"]) == pytest.approx(tuple(expected.confidence_interval()))
    # mean 2, deviation 1, n 4: t = 4 with 3 degrees of freedom, whose tails hold 0.0280; t of 0.975 is 3.1824
    test = statistics.paired_test(list(2 + np.array([1.0, -1.0, 1.0, -1.0]) / np.sqrt(4 / 3)))
    assert test["p"] == pytest.approx(0.0280, abs=1e-4)
    assert (test["low"], test["high"]) == pytest.approx((2 - 3.1824 / 2, 2 + 3.1824 / 2), abs=1e-4)


@pytest.mark.parametrize(("points", "p"), [([0, 0], 1), ([3, 3], 0.5), ([3] * 5, 0.0625)])
def test_equal_differences_are_a_sign_test(points, p):
    test = statistics.paired_test(points)
    assert (test["p"], test["low"], test["high"]) == (p, points[0], points[0])


def test_mcnemar_by_hand():
    first = np.array([True] * 20 + [True] + [False] * 9 + [False] * 5)
    second = np.array([True] * 20 + [False] + [True] * 9 + [False] * 5)
    only_first, only_second, p = statistics.mcnemar(first, second)
    assert (only_first, only_second) == (1, 9)
    assert p == pytest.approx(2 * (1 + 10) / 2**10)  # both tails of ten fair coins
    assert statistics.mcnemar(first, first) == (0, 0, 1.0)


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]
    tests = [{"p": 0.01}, {}, {"p": 0.04}]
    statistics.correct(tests, "p", "p_holm")
    assert tests == [{"p": 0.01, "p_holm": 0.02}, {}, {"p": 0.04, "p_holm": 0.04}]


def test_the_interval_of_a_mean():
    assert statistics.interval([1.0, 2.0]) == 0
    assert statistics.interval([1.0, 2.0, 3.0]) == pytest.approx(4.3027 / 3**0.5, abs=1e-3)


# ---- the choice of learning rates, seeds, epochs


def test_validation_chooses_the_learning_rate_and_the_test_images_never(tmp_path):
    def result(s):  # the best test accuracy is planted where validation is poor, and for other seeds
        val = {0.001: 0.8, 0.003: 0.9, 0.01: 0.7}[s["learning_rate"]] + 0.01 * s["dropout"]
        val = val if s["seed"] == 0 else 0.5 + s["learning_rate"]
        return val, 0.6 if s["learning_rate"] == 0.003 else 0.99

    summary, _, rows, _ = compared(DROPOUT, result, tmp_path)
    assert [(v["learning_rate"], v["at_edge"]) for v in summary["variants"].values()] == [(0.003, False)] * 3
    assert summary["variants"]["0.2"]["test_accuracy"] == pytest.approx(0.6)
    assert [row["stage"] for row in rows] == ["tuning"] * 9 + ["final"] * 15
    assert not any("test_accuracy" in row for row in rows[:9])
    assert len(rows) == summary["runs"] == 24


def test_of_equal_learning_rates_the_smallest_is_chosen_and_edges_are_marked(tmp_path):
    summary = compared(DROPOUT, lambda s: (s["learning_rate"] * (s["dropout"] > 0), 0.8), tmp_path)[0]
    rates = [row[1] for row in output.table(summary)]
    assert rates == ["0.001 (edge)", "0.01 (edge)", "0.01 (edge)"]


def test_flags_change_seeds_epochs_and_learning_rates(tmp_path):
    def made(**changes):
        jobs = [job.settings for job in compared(DROPOUT, lambda s: (0.8, 0.8), tmp_path, **changes)[3]]
        return {(s["seed"], s["epochs"], s["learning_rate"]) for s in jobs}

    assert made(seeds=2, epochs=7, quick=True) == {(0, 7, 0.003), (1, 7, 0.003)}
    assert made(quick=True) == {(0, 1, 0.003), (1, 1, 0.003)}
    assert made(seeds=1) == {(0, 40, rate) for rate in RATES}


def test_a_variant_has_learning_rates_of_its_own(tmp_path):
    variants = {"adam": {}, "sgd": {"learning_rates": (0.4, 0.1)}, "fixed": {"learning_rate": 0.5}}
    study = Study("s", "?", "mlp", variants, "adam", {"weight_decay": 0.0}, RATES, 3)
    summary = compared(study, lambda s: (s["learning_rate"], 0.8), tmp_path)[0]
    chosen = [(v["learning_rate"], v.get("at_edge")) for v in summary["variants"].values()]
    assert chosen == [(0.01, True), (0.4, True), (0.5, None)]


def test_impossible_settings_of_a_variant_are_refused_before_any_run(tmp_path):
    study = Study("s", "?", "mlp", {"a": {}, "b": {"dropout": 2.0}}, "a")
    with pytest.raises(run.Error, match=r"dropout = 2.0: expected 0 to 0.999"):
        compared(study, None, tmp_path)


def test_hybrids_share_a_backbone_for_each_seed(tmp_path):
    variants = {"frozen": {}, "joint": {"training": "joint"}}
    variants["tuned"] = variants["joint"] | {"from_backbone": True}
    study = Study("s", "?", "hybrid", variants, "frozen", backbone=cnn_studies.PLAIN, seeds=2)
    summary, _, _, jobs = compared(study, lambda s: (0.8, 0.8), tmp_path)
    first, second = (job for job in jobs if job.is_backbone)
    assert first.key != second.key
    assert (first.script, first.settings["channels"]) == ("cnn", (16, 32, 64))
    keys = [job.backbone.key if job.backbone else "" for job in jobs if not job.is_backbone]
    assert keys == [first.key, second.key, "", "", first.key, second.key]
    assert [*summary["variants"]] == ["backbone", *variants]


def test_variants_have_numbers_of_seeds_and_seeds_splits_of_their_own(tmp_path):
    variants = {"a": {"seeds": 2}, "b": {"l2": 0.1}}
    study = Study("s", "?", "mlp", variants, "a", seeds=3, resplit=True)
    summary, _, _, jobs = compared(study, lambda s: (0.8, 0.8 + s["l2"]), tmp_path)
    splits = [(job.settings["seed"], job.settings["split_seed"]) for job in jobs]
    assert splits == [(0, 0), (1, 1), (0, 0), (1, 1), (2, 2)]
    assert summary["variants"]["a"]["seeds"] == [0, 1]
    assert summary["tests"][0]["points"] == pytest.approx(10)


def test_only_finished_runs(tmp_path):
    study = Study("s", "?", "mlp", {"a": {}, "b": {"l2": 0.1}, "c": {"l2": 0.2}}, "a", seeds=2)
    folder, row = tmp_path / "store", {"val_accuracy": 0.8, "test_accuracy": 0.7, "train_eval_accuracy": 0.9}
    made = runner.Comparison(study, runner.Runner(folder, only_finished=True), options(), tmp_path)
    for variant, seed in (("a", 0), ("a", 1), ("c", 1)):
        job = made.job(next(v for v in made.variants if v.label == variant), None, seed)
        row |= {"seconds": 1.0, "parameters": 1, "epochs": 1}
        (folder / f"{job.key}.json").write_text(json.dumps(row))
    summary = statistics.summarize(made, made.run())
    assert {name: result["seeds"] for name, result in summary["variants"].items()} == {"a": [0, 1], "c": [1]}


# ---- tests and tables


def test_tests_rest_on_the_pooled_deviation_with_seeds_as_blocks_and_are_corrected(tmp_path):
    summary = with_effects(tmp_path, {"a": 0, "b": 0.0003, "c": 0.001, "d": 0.0})
    y = 100 * np.array([v["by_seed"]["test_accuracy"] for v in summary["variants"].values()])  # (4, 5)
    variant, seed = (np.indices(y.shape)[axis].ravel() for axis in (0, 1))
    columns = np.concatenate([np.eye(4)[variant], np.eye(5)[seed]], axis=1)  # rank 8
    _, (square,), *_ = np.linalg.lstsq(columns[:, :8], y.reshape(-1, 1), rcond=None)
    std = np.sqrt(square / 12)  # 20 - 8 degrees of freedom
    assert summary["spread"]["std"] == pytest.approx(std)
    assert (summary["spread"]["df"], summary["spread"]["blocks"]) == (12, True)
    t = (y.mean(axis=1)[1:] - y[0].mean()) / (std * np.sqrt(2 / 5))
    p = 2 * stats.t.sf(np.abs(t), 12)
    assert [test["p"] for test in summary["tests"]] == pytest.approx(p)
    assert [test["p_holm"] for test in summary["tests"]] == pytest.approx(statistics.holm(p))


def test_without_an_effect_of_the_seeds_two_methods_have_students_t_test():
    rng = np.random.default_rng(1)
    a, b = rng.normal(90, 0.1, 5), rng.normal(90.1, 0.1, 5)
    (test,), spread = statistics.compare({"a": dict(enumerate(a)), "b": dict(enumerate(b))}, [("a", "b")])
    expected = stats.ttest_ind(a, b)
    assert (test["p"], spread["df"], spread["blocks"]) == (pytest.approx(expected.pvalue), 8, False)
    assert (test["low"], test["high"]) == pytest.approx(tuple(expected.confidence_interval()))
    interval = tuple(expected.confidence_interval(0.9))
    assert (test["low_90"], test["high_90"]) == pytest.approx(interval)


def test_unlike_variances_are_not_pooled():
    rng = np.random.default_rng(0)
    accuracies = {name: dict(enumerate(rng.normal(90, std, 10))) for name, std in (("a", 0.01), ("b", 3))}
    (test,), spread = statistics.compare(accuracies, [("a", "b")])
    assert spread is None
    assert test["p"] == pytest.approx(stats.ttest_rel(*([*v.values()] for v in accuracies.values())).pvalue)


@pytest.mark.parametrize(
    ("low_90", "high_90", "p", "expected"),
    [
        (0.5, 0.9, 0.01, "differs"),
        (0.05, 0.25, 0.01, "differs, by less than 0.3"),
        (-0.29, 0.1, 0.2, "equal within 0.3"),
        (-0.31, 0.1, 0.2, "undecided"),
        (0.1, 0.5, 0.06, "undecided"),
    ],
)
def test_verdicts(low_90, high_90, p, expected):
    assert statistics.verdict({"low_90": low_90, "high_90": high_90, "p_holm": p}) == expected


def test_the_bootstrap_covers_the_sampling_of_images():
    rng = np.random.default_rng(0)
    right, other = rng.random((5, 10_000)) < 0.94, rng.random((5, 10_000)) < 0.90
    low, high = statistics.bootstrap(right, other, samples=500)
    width = 2 * 1.96 * 100 * np.sqrt((0.94 * 0.06 + 0.9 * 0.1) / 50_000)  # of independent images
    # Both are drawn, so that noise of single predictions, all there is here, counts three times (Owen 2007)
    assert high - low == pytest.approx(width * np.sqrt(3), rel=0.1)
    assert low < 100 * (right.mean() - other.mean()) < high
    same = rng.random(10_000) < 0.9  # all seeds alike: only the images vary, together for both
    assert statistics.bootstrap(np.stack([same] * 3), np.stack([same] * 3)) == pytest.approx((0, 0))


def test_variants_are_compared_with_their_own_baselines(tmp_path):
    effects = {"a": 0, "a2": 0.02, "b": 0.01, "b2": -0.02}
    summary = with_effects(tmp_path, effects, baselines={"b2": "b"})
    found = [(test["variant"], test["against"], round(test["points"])) for test in summary["tests"]]
    assert found == [("a2", "a", 2), ("b", "a", 1), ("b2", "b", -3)]
    rows = {row[0]: row for row in output.table(summary)}
    assert rows["**a** (baseline)"][4:6] == ["-", "-"]
    assert rows["b2"][4].endswith("; to b")
    study = Study("s", "?", "mlp", vary(l1=(0, 1, 2)), "", baselines={"2": "1"})
    assert study.baseline_of == {"2": "1"}


def test_a_variant_of_which_some_seeds_have_learned_nothing_is_not_tested(tmp_path):
    summary = with_effects(tmp_path, {"a": 0, "b": -0.3})
    result, pair = summary["variants"]["b"], {"b": "a"}
    result["by_seed"]["train_eval_accuracy"] = [0.1, 0.1, 0.9, 0.9, 0.1]
    summary["tests"], _ = statistics.tests_of(summary["variants"], pair)
    assert summary["tests"] == []
    assert output.table(summary)[1][4] == "-; 3 of 5 seeds learned nothing"
    result["num_classes"] = 100  # of which 0.1 is more than guessing
    assert statistics.not_learned(result) == 0
    result |= {"num_classes": 10, "by_seed": result["by_seed"] | {"train_eval_accuracy": [0.1] * 5}}
    assert statistics.tests_of(summary["variants"], pair)[0][0]["points"] < -20  # no seed has: it is tested
    two = {"num_classes": 2, "by_seed": {"train_eval_accuracy": [0.5, 0.54, 0.56, 0.74]}}
    assert statistics.not_learned(two) == 2


def test_diverged_runs_are_counted(tmp_path):
    summary = with_effects(tmp_path, {"a": 0, "b": None})
    row = output.table(summary)[1]
    assert row[2:] == ["-", "-", "-; 5 of 5 seeds: the loss became nan", "-", "-", "-"]
    output.draw(summary)
    output.draw(with_effects(tmp_path, {"a": None, "b": None}))


def test_the_files_of_a_study_and_the_same_from_its_csv(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "STUDIES", {"d": DROPOUT})
    result = lambda s: (0.9 - s["dropout"] / 7, 0.8 + s["learning_rate"])  # noqa: E731
    made = runner.Comparison(DROPOUT, Planted(result), options(), tmp_path / "d")
    summary = output.write(tmp_path / "d", made, made.run())
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["d.png", "runs.csv", "summary.json"]
    again, _, _, jobs = compared(DROPOUT, None, tmp_path / "d")
    assert jobs == []
    same = ("variants", "tests", "epochs", "runs")
    assert [again[name] for name in same] == [summary[name] for name in same]
    text = (tmp_path / "README.md").read_text()
    assert "| [d](#d) | How much? |" in text
    assert (
        "| 0.2 | 0.001 (edge) | 87.14 ± 0.00 % | 80.10 ± 0.00 % | +0.00 (+0.00 to +0.00) | equal within 0.3 |"
        in text
    )
    more = compared(DROPOUT, result, tmp_path / "d", seeds=6)[3]
    assert [job.settings["seed"] for job in more] == [5] * 3  # only the new seed is run
    fewer = compared(DROPOUT, None, tmp_path / "d", seeds=2)[0]
    assert fewer["variants"]["0.2"]["seeds"] == [0, 1, 2, 3, 4]  # nothing finished is lost
    fresh = Planted(result)
    fresh.fresh = True
    runner.Comparison(DROPOUT, fresh, options(), tmp_path / "d").run()
    assert len(fresh.jobs) == 24
    other = Study("d", "How much?", "mlp", DROPOUT.variants, "0", {"l2": 0.1}, RATES, 5)
    with pytest.raises(run.Error, match="other data or settings; name another --output-dir"):
        compared(other, result, tmp_path / "d")


# ---- the studies and their committed results


def test_every_study_is_valid(tmp_path):
    keys, total = set(), 0
    for study in STUDIES.values():
        named = {study.baseline, *study.baselines, *study.baselines.values()}
        assert named - {""} <= study.variants.keys(), study.name
        jobs = compared(study, lambda s: (0.8, 0.8), tmp_path, seeds=1)[3]
        keys |= {job.key for job in jobs}
        total += len(jobs)
    assert len(STUDIES) == 32
    assert len(keys) < total  # some runs are those of two studies


def test_committed_rows_are_known_and_give_the_committed_numbers():
    num_rows, num_tests, numbers = 0, 0, ("points", "low", "high", "p", "p_holm")
    for study in STUDIES.values():
        folder, variants = RESULTS / "studies" / study.name, runner.variants_of(study, options())
        summary, rows = run.read_json(folder / "summary.json"), runner.read_rows(folder / "runs.csv")
        keys = {runner.key_of(row) for row in rows}
        assert keys == runner.known_rows(folder, variants, "Fashion-MNIST").keys(), study.name
        finished = {row["variant"] for row in rows if row["stage"] != "tuning"}
        variants = [variant for variant in variants if variant.label in finished]
        results = {v.label: statistics.result_of(study, v, rows) | {"num_classes": 10} for v in variants}
        for name, result in summary["variants"].items():
            for key in ("learning_rate", "seeds", "val_accuracy", "test_accuracy", "test_accuracy_std"):
                assert results[name].get(key) == pytest.approx(result.get(key)), (study.name, name, key)
        tests, _ = statistics.tests_of(results, study.baseline_of)
        for test, committed in zip(tests, summary["tests"], strict=True):
            assert (test["variant"], test["against"]) == (committed["variant"], committed["against"])
            assert [test[key] for key in numbers] == pytest.approx([committed[key] for key in numbers])
        num_rows, num_tests = num_rows + len(keys), num_tests + len(tests)
    assert (num_rows, num_tests) == (1846, 143)
    with pytest.raises(run.Error, match="other data"):
        runner.known_rows(folder, variants, "digits")


def test_labels_and_commands():
    labels = ["128-64", "none", "yes", "no", "0.001", "3", "relu"]
    assert [label(value) for value in ((128, 64), (), True, False, 0.001, 3, "relu")] == labels
    assert vary(l2=(0.0, 0.2), flip=(True,))["0.2, yes"] == {"l2": 0.2, "flip": True}
    changes = {"hidden": (128, 64), "flip": False, "fc_norm": True, "l2": 1e-05}
    words = "python mlp_from_scratch.py --hidden 128 64 --no-flip --fc-norm --l2 1e-05"
    assert command("mlp", changes) == words


# ---- finished runs


def test_committed_runs_are_read_and_compared(real_folder, monkeypatch, capsys):
    monkeypatch.setenv("FASHION_MNIST_DIR", str(real_folder))
    paths = [str(RESULTS / name) for name in ("cnn_feature_extraction", "hybrid_train", "cnn_compiled")]
    runs = first, second = finished.read_runs(paths[:2])
    assert (first.label, second.label) == ("CNN", "CNN features + NumPy MLP")
    assert list(first.folders) == [0, 1, 2, 3, 4]
    assert len(first.histories[3]["epoch"]) == 24
    y = first.images.test.y
    for seed, accuracy in first.accuracies.items():
        assert np.mean(first.predicted[seed] == y) == pytest.approx(accuracy, abs=3e-4)
    (test,) = finished.compare(runs)
    differences = [100 * (first.accuracies[seed] - second.accuracies[seed]) for seed in range(5)]
    assert test["points"] == pytest.approx(np.mean(differences))
    assert test["seeds"] == 5
    assert test["p"] == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    right, other = first.predicted[0] == y, second.predicted[0] == y
    assert (test["only_first"], test["only_second"]) == ((right & ~other).sum(), (other & ~right).sum())
    experiments.main(["compare", *paths])
    lines = [re.split("  +", line.rstrip()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["CNN (cnn_feature_extraction)", "5", "94.58 ± 0.09 %", "93.90 ± 0.16 %"]
    assert lines[6][2:5] == ["5", "+0.15 (-0.03 to +0.34)", "equal within 0.3"]
    assert lines[7][2] == "1"
    assert lines[7][4:6] == ["-", "-"]


def test_runs_of_the_same_kind_have_different_labels(tmp_path):
    runs = finished.read_runs([RESULTS / "mlp_from_scratch", RESULTS / "mlp_best"])
    assert [result.label for result in runs] == ["NumPy MLP 784-256-128-10", "NumPy MLP 784-2048-1024-10"]
    with pytest.raises(run.Error, match="not the folder of a finished run; name those in it: "):
        finished.read_runs([RESULTS])
    (tmp_path / "metrics.json").write_text('{"settings": {}}')
    with pytest.raises(run.Error, match="not the folder of a training run, or damaged"):
        finished.read_runs([tmp_path])
