"""The parts of a study that need no training: its learning rates, paired tests, claims and verdicts, and its settings."""


import numpy as np
import pytest
from conftest import crowded_texts
from planted_studies import DROPOUT, RATES, summary_of, with_effects

from studies import catalog, comparison, output, readme, runner
from studies.comparison import Comparison, Options
from studies.study import Claim, Study
from support import settings


def test_validation_chooses_the_learning_rate_and_the_test_images_never():
    def result(s):  # the best test accuracy is planted where the validation accuracy is poor, and for other seeds
        val = {0.001: 0.8, 0.003: 0.9, 0.01: 0.7}[s["learning_rate"]] + 0.01 * s["dropout"]
        if s["seed"]:
            val = 0.5 + s["learning_rate"]
        return val, 0.99 if s["learning_rate"] != 0.003 else 0.6

    summary, compared, rows = summary_of(DROPOUT, result)
    assert [variant["learning_rate"] for variant in summary["variants"].values()] == [0.003] * 3
    assert not any(variant["at_edge"] for variant in summary["variants"].values())
    assert summary["variants"]["0.2"]["test_accuracy"] == pytest.approx(0.6)
    assert len(rows) == 3 * (3 + 4)
    assert compared.runs_by_script() == {"cnn": 0, "mlp": 21}
    table = compared.table(rows)
    assert {row["stage"] for row in table if "test_accuracy" in row} == {"final"}
    assert len(table) == 9 + 15


def test_the_best_variant_is_the_best_on_validation():
    def result(s):
        return 0.9 - s["dropout"] / 10, 0.8 + s["dropout"] / 10

    summary, *_ = summary_of(DROPOUT, result)
    assert summary["verdict"].startswith("The best on validation is dropout 0: 80.00 ± 0.00 % on the test images.")


def test_the_lowest_and_the_highest_learning_rate_are_marked():
    summary, *_ = summary_of(DROPOUT, lambda s: (s["learning_rate"] * (1 if s["dropout"] else -1), 0.8))
    assert [(v["learning_rate"], v["at_edge"]) for v in summary["variants"].values()] == [(0.001, True), (0.01, True),
                                                                                          (0.01, True)]  # fmt: skip
    assert readme.table(summary).count("0.01 (edge)") == 2
    equal, *_ = summary_of(DROPOUT, lambda s: (0.8, 0.8))
    assert {v["learning_rate"] for v in equal["variants"].values()} == {0.001}  # of equal ones the smallest


def test_options_change_seeds_epochs_and_learning_rates():
    runs_made = []

    def result(s):
        runs_made.append((s["seed"], s["epochs"], s["learning_rate"]))
        return 0.8, 0.8

    summary_of(DROPOUT, result, seeds=2, epochs=7, tune=False)
    assert sorted(set(runs_made)) == [(0, 7, 0.003), (1, 7, 0.003)]
    assert len(runs_made) == 6
    runs_made.clear()
    summary_of(DROPOUT, result, most_seeds=2)
    assert {seed for seed, *_ in runs_made} == {0, 1}
    assert {epochs for _, epochs, _ in runs_made} == {12}
    runs_made.clear()
    timed = Study("time", "?", "mlp", {"2": {"epochs": 2}, "5": {"epochs": 5}}, "2", seeds=1, x="seconds")
    summary_of(timed, result, epochs=7)
    assert {epochs for _, epochs, _ in runs_made} == {2, 5}  # what varies stays


def test_epochs_are_those_of_both_networks_of_a_script():
    for script, training, names in (("transfer", "frozen", ("epochs", "head_epochs")), ("mlp", None, ("epochs",))):
        fixed = {"training": training} if training else {}
        study = Study("s", "?", script, {"a": {}, "b": {"seed": 0}}, "a", fixed=fixed, seeds=1)
        summary, compared, _ = summary_of(study, lambda s: (0.8, 0.8), epochs=3)
        assert all(variant.changes[name] == 3 for variant in compared.variants for name in names)
        assert summary["epochs"] == [3]


def test_a_sweeps_learning_rates_are_around_each_variants_default():
    def rates(*arguments):
        return [given["learning_rates"] for given in catalog.sweep(*arguments, 3).variants.values()]

    frozen, from_scratch = rates(["transfer"], [["training", "frozen", "from_scratch"]], [])
    assert frozen == (0.0003, 0.001, 0.003)
    assert from_scratch == (0.03, 0.1, 0.3)
    assert rates(["cnn"], [["recipe", "default", "plain"]], []) == [(0.07, 0.2, 0.6), (0.001, 0.003, 0.009)]
    assert rates(["mlp"], [["dropout", "0", "0.2"]], [["recipe", "plain"]]) == [(0.0003, 0.001, 0.003)] * 2


def test_own_learning_rates_and_seeds_of_a_variant():
    variants = {"adam": {}, "sgd": {"optimizer": "sgd", "learning_rates": (0.1, 0.2, 0.4), "seeds": 2},
                "fixed": {"learning_rate": 0.5, "recipe": "plain"}}  # fmt: skip
    study = Study("s", "?", "mlp", variants, "adam", {"recipe": "plain"}, RATES, 3)
    summary, *_ = summary_of(study, lambda s: (s["learning_rate"], 0.8))
    chosen = {name: (v["learning_rate"], v["seeds"]) for name, v in summary["variants"].items()}
    assert chosen == {"adam": (0.01, [0, 1, 2]), "sgd": (0.4, [0, 1]), "fixed": (0.5, [0, 1, 2])}
    assert "at_edge" not in summary["variants"]["fixed"]
    assert summary["tests"][0]["seeds"] == 2


# ---- tests, claims, verdicts


def test_verdicts_and_claims_follow_the_numbers():
    pairs = ("ba", "ca", "ac", "da", "bc", "ea")
    claims = (*(Claim(f"{better} over {worse}", better, worse) for better, worse in pairs), Claim("said without a figure"))
    summary = with_effects({"a": 0, "b": 0.02, "c": -0.02, "d": 0.0, "e": None}, claims)
    assert summary["verdict"] == (
        "The best on validation is b: 82.00 ± 0.17 % on the test images. b (+2.00) is better than a; c (-2.00) is worse "
        "than a; d (+0.00) is not distinguishable from a. Diverged or failed in some seeds: e.")  # fmt: skip
    assert {claim["text"]: claim["verdict"] for claim in summary["claims"]} == {
        "b over a": "holds", "c over a": "does not hold", "a over c": "holds", "d over a": "not distinguishable",
        "b over c": "holds", "said without a figure": "", "e over a": "not tested"}  # fmt: skip
    assert summary["claims"][2]["points"] == -summary["claims"][1]["points"] > 0
    assert [test["variant"] + test["against"] for test in summary["tests"]] == ["ba", "ca", "da", "bc"]


def test_tests_are_paired_over_the_seeds_and_corrected():
    from scipy.stats import ttest_rel

    summary = with_effects({"a": 0, "b": 0.0003, "c": 0.001, "d": 0.0})
    accuracies = {name: variant["by_seed"]["test_accuracy"] for name, variant in summary["variants"].items()}
    p = [ttest_rel(accuracies[name], accuracies["a"]).pvalue for name in "bcd"]
    assert [test["p"] for test in summary["tests"]] == pytest.approx(p)
    order, corrected, largest = np.argsort(p), {}, 0
    for rank, index in enumerate(order):  # Holm: the smallest times 3, the next times 2, never decreasing
        largest = corrected[index] = max(largest, min(1, p[index] * (3 - rank)))
    assert [test["p_holm"] for test in summary["tests"]] == pytest.approx([corrected[index] for index in range(3)])


def test_a_difference_that_only_the_correction_removes_is_not_distinguishable():
    test = {"variant": "b", "against": "a", "points": 0.3, "p_holm": 0.06, "p": 0.03}
    assert comparison.word_of(test) == "not distinguishable"
    assert comparison.claim_result(Claim("b", "b", "a"), [test])["verdict"] == "not distinguishable"


def test_many_variants_are_counted_and_a_single_seed_is_not_tested():
    effects = {"a": 0} | {f"v{number}": 0.02 if number < 4 else -0.02 for number in range(14)}
    verdict = with_effects(effects, (Claim("x", "v1", "v9"),))["verdict"]
    assert "4 of 14 variants are better than a; 10 of 14 variants are worse than a." in verdict
    single = with_effects({"a": 0, "b": 0.02}, seeds=1)
    assert single["tests"] == []
    assert single["verdict"] == ("The best on validation is b: 82.02 % on the test images. Nothing is tested: that needs "
                                 "two seeds or more of the baseline and of another variant.")  # fmt: skip
    assert "± " not in readme.table(single)


def test_variants_are_compared_with_their_own_baselines():
    results = with_effects({"a": 0, "a2": 0.02, "b": 0.01, "b2": -0.02})["variants"]
    study = Study("s", "?", "mlp", {name: {} for name in results}, "a", baselines={"b2": "b"})
    tests = comparison.tests_of(study, results)
    assert [(test["variant"], test["against"], round(test["points"], 2)) for test in tests] == [
        ("a2", "a", 2.0), ("b", "a", 1.0), ("b2", "b", -3.0)]  # fmt: skip
    verdict = comparison.verdict(study, results, tests)
    assert verdict.endswith("a2 (+2.00), b (+1.00) are better than a; b2 (-3.00) is worse than b.")
    summary = with_effects(dict.fromkeys(results, 0))
    summary |= {"variants": results, "tests": tests, "baseline_of": study.baseline_of}
    table = readme.table(summary)
    assert "| worse than b |" in table
    assert [line.split("**")[1] for line in table.splitlines() if "(baseline)" in line] == ["a", "b"]
    assert Study("s", "?", "mlp", {"a": {}, "b": {}, "c": {}}, "", baselines={"c": "b"}).baseline_of == {"c": "b"}
    with pytest.raises(ValueError, match="the baseline 'x' is none of its variants"):
        Study("s", "?", "mlp", {"a": {}}, "a", baselines={"a": "x"})


def test_a_variant_of_which_some_seeds_have_learned_nothing_is_not_tested():
    summary = with_effects({"a": 0, "b": -0.3})
    result = summary["variants"]["b"]
    result["by_seed"]["train_eval_accuracy"] = [0.1, 0.1, 0.9, 0.9, 0.1]
    study = Study("s", "?", "mlp", {"a": {}, "b": {}}, "a", claims=(Claim("a over b", "a", "b"),))
    tests = comparison.tests_of(study, summary["variants"])
    assert tests == []
    assert comparison.claim_result(study.claims[0], tests)["verdict"] == "not tested"
    assert "Learned nothing: b (3 of 5 seeds)." in comparison.verdict(study, summary["variants"], tests)
    assert "-; 3 of 5 seeds learned nothing" in readme.table(summary | {"tests": tests})
    result["num_classes"] = 100  # of which 0.1 is more than guessing
    assert comparison.not_learned(result) == 0
    two = {"num_classes": 2, "by_seed": {"train_eval_accuracy": [0.5, 0.54, 0.56, 0.74]}}
    assert comparison.not_learned(two) == 2
    result |= {"num_classes": 10, "by_seed": result["by_seed"] | {"train_eval_accuracy": [0.1] * 5}}
    assert comparison.tests_of(study, summary["variants"])[0]["points"] < -20  # no seed has: that can be tested


def test_a_diverged_variant_is_a_row_that_says_so():
    summary = with_effects({"a": 0, "b": None})
    line = next(line for line in readme.table(summary).splitlines() if line.startswith("| b |"))
    assert "5 of 5 seeds: the loss became nan in epoch 1" in line
    assert "b, 5 of 5 seeds: the loss became nan" in readme.terminal_text(summary)
    for effects in ({"a": None, "b": None}, {"a": None, "b": 0.0}):
        summary = with_effects(effects, (Claim("b over a", "b", "a"),), curves=True)
        assert summary["claims"][0]["verdict"] == "not tested"
        assert crowded_texts(output.draw(summary)) == []
        readme.section(summary)
    assert with_effects({"a": None, "b": None})["verdict"] == "Every variant diverged or failed."
    assert summary["dataset"] == "planted"


def test_names_in_a_sentence():
    assert comparison.spoken(DROPOUT, "0.2") == "dropout 0.2"
    two, words = (catalog.STUDIES[name] for name in ("learning_rate_batch_size", "initialization"))
    assert comparison.spoken(two, "0.001, 128") == "learning rate 0.001, batch size 128"
    assert comparison.spoken(words, "2 layers, he") == "2 layers, he"
    assert comparison.interval([1.0, 2.0]) == 0
    assert comparison.interval([1.0, 2.0, 3.0]) == pytest.approx(4.3027 / 3**0.5, abs=1e-3)


# ---- all studies


def test_the_settings_of_every_study_are_valid(no_data, tmp_path):
    studies_runner, keys, total = runner.Runner(tmp_path), set(), 0
    for study in catalog.STUDIES.values():
        compared = Comparison(study, studies_runner, Options())
        if compared.tuning:
            compared.choose({})
        jobs = [*compared.backbones.values(), *compared.tuning.values(), *compared.final.values()]
        own = {job.key for job in jobs}
        assert len(own) == sum(compared.runs_by_script().values()) == catalog.cost(study)[0], study.name
        keys |= own
        total += len(own)
    assert len(keys) < total  # some runs are those of two studies
    assert len(catalog.STUDIES) > 30


def test_a_smoke_test_trains_on_as_many_images_as_there_are(no_data, tmp_path):
    quick = runner.Runner(tmp_path, overrides={"quick": True})
    sizes = [quick.job("mlp", {"train_size": size}).settings["train_size"] for size in (0, 500, 48_000)]
    assert sizes == [0, 62, 6_000]


def test_a_run_whose_images_do_not_allow_its_settings(tmp_path):
    jobs = runner.Runner(tmp_path, overrides={"dataset": "digits"})
    with pytest.raises(settings.SettingError, match="--erase 40: images of 28 x 28 pixels allow at most 28"):
        jobs.job("mlp", {"erase": 40})
    with pytest.raises(settings.SettingError, match="--train-size 5,000: the training split has 1,"):
        jobs.job("mlp", {"train_size": 5_000})
    assert jobs.job("mlp", {"train_size": 1_300, "val_fraction": 0.1}).settings["train_size"] == 1_300


def test_a_study_that_names_a_variant_which_does_not_exist():
    with pytest.raises(ValueError, match="the baseline 'x' is none of its variants"):
        Study("s", "?", "mlp", {"a": {}}, "x")
    with pytest.raises(ValueError, match="a claim names a variant"):
        Study("s", "?", "mlp", {"a": {}}, "a", claims=(Claim("c", "a", "b"),))


