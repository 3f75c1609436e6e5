"""The networks of similar projects as they were made, and what is said about their figures."""

import re
import statistics

import numpy as np
import pytest
from conftest import ROOT, crowded_texts
from scipy import stats

import cnn_feature_extraction as cnn
import hybrid_train
import run
from studies import as_made, published
from studies.runner import RESERVED

NETWORKS = as_made.NETWORKS | {"backbone": as_made.R2_CNN}


def planted(accuracies, script="mlp"):
    """{network: a result with these test accuracies in percent}"""
    results = {}
    for name, values in accuracies.items():
        result = {"script": script, "seeds": [*range(len(values))], "parameters": 10}
        result["by_seed"] = {"test_accuracy": [value / 100 for value in values]}
        result["test_accuracy"] = np.mean(values) / 100
        result["test_accuracy_std"] = np.std(values, ddof=1) / 100 if len(values) > 1 else 0.0
        results[name] = result
    return results


def test_every_published_figure_and_claim_has_its_network():
    assert published.PUBLISHED["figures"].keys() == NETWORKS.keys() - {"R4 MLP, right gradients"}
    for claim in published.PUBLISHED["claims"].values():
        assert {*claim["pair"]} <= NETWORKS.keys()
        figures = [published.PUBLISHED["figures"][name] for name in claim["pair"]]
        values = [figure.get(claim["split"], [np.nan]) for figure in figures]
        differences = [a - b for a in values[0] for b in values[1]]
        assert any(difference == pytest.approx(claim["published"]) for difference in differences), claim


SIZES = {  # network: parameters of the CNN, number of its features, by hand; R4's are published
    "R4 CNN v1": (120_970, 4608),
    "R4 CNN v2": (5_858_442, 1024),
    "R4 CNN v3": (5_858_442, 1024),
    "backbone": (536_714, 128),
    "R3 CNN": (824_458, 256),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
    s = cnn.settings(**{key: value for key, value in NETWORKS[name].items() if key not in RESERVED})
    model = cnn.CNN(s)
    assert (sum(p.numel() for p in model.parameters()), model.classifier.in_features) == SIZES[name]


def test_the_joint_hybrid_has_the_features_of_its_project():
    s = {key: value for key, value in as_made.R0_JOINT.items() if key not in RESERVED}
    assert cnn.CNN(hybrid_train.settings(**s)).classifier.in_features == 4608


def test_prediction_intervals_by_hand():
    """Deviations are pooled over a project's networks of a kind, or over those of all projects."""
    results = planted({"R3 a": [90.0, 91.0], "R3 b": [80.0, 80.2, 80.4], "R4 c": [70.0]})
    results |= planted({"R3 CNN": [92.0, 96.0], "R4 CNN": [92.0, 93.0]}, "cnn")
    std = ((0.5 + 0.08) / 3) ** 0.5  # sums of squares and degrees of freedom: 0.5 and 1, 0.08 and 2
    for name, n in (("R3 a", 2), ("R4 c", 1)):
        assert published.spread(results, name, "test") == (pytest.approx(std), 3)
        mean, half = published.predicted(results, name, "test")
        assert mean == pytest.approx(np.mean(published.points(results[name], "test")))
        assert half == pytest.approx(3.1824 * std * (1 + 1 / n) ** 0.5, rel=1e-4)  # Student's t, 3 degrees
    expected = ((8 + 0.5) / 2) ** 0.5, 2
    assert published.spread(results, "R3 CNN", "test") == pytest.approx(expected)


def test_a_claim_of_two_kinds_is_welchs_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(90, 0.1, 6), rng.normal(84, 0.5, 4)
    results = planted({"R3 MLP": b}) | planted({"R3 CNN": a}, "cnn")
    test = published.claim(results, ("R3 CNN", "R3 MLP"), "test")
    expected = stats.ttest_ind(a, b, equal_var=False)
    assert (test["p"], test["points"]) == pytest.approx((expected.pvalue, a.mean() - b.mean()))
    assert (test["low"], test["high"]) == pytest.approx(tuple(expected.confidence_interval()))
    assert published.claim(results, ("R3 CNN", "R4 CNN v1"), "test") is None


def test_a_claim_of_one_kind_is_the_paired_test():
    a, b = [90.0, 91.0, 92.5, 93.0], [89.0, 90.5, 91.0]
    test = published.claim(planted({"R3 a": a, "R3 b": b}), ("R3 a", "R3 b"), "test")
    expected = stats.ttest_rel(a[:3], b)
    assert (test["p"], test["points"]) == pytest.approx((expected.pvalue, 1.0))
    assert (test["low"], test["high"]) == pytest.approx(tuple(expected.confidence_interval()))
    std, df = published.spread(planted({"R3 a": a, "R3 b": b}), "R3 a", "test")
    half = stats.t.ppf(0.975, df) * std * 2**0.5
    assert test["reach"] == pytest.approx((half**2 + (test["high"] - 1.0) ** 2) ** 0.5)


def test_tables(monkeypatch):
    results = planted(
        {"R0 MLP": [78.0, 79.0], "R3 MLP": [84.0, 85.0], "R3 MLP, 1 hidden layer": [84.0, 84.5]}
    )
    for result in results.values():
        result["by_seed"] |= {"val_accuracy": [0.7, 0.7001], "train_eval_accuracy": [0.9, 0.9]}
    monkeypatch.setattr(published, "results_of", lambda name: results if name == "as_made" else {})
    name = "R3: two hidden layers instead of one"
    figures = {network: published.PUBLISHED["figures"][network] for network in results}
    claims = {name: published.PUBLISHED["claims"][name]}
    monkeypatch.setattr(published, "PUBLISHED", {"figures": figures, "claims": claims})
    rows = [line.strip("| ").split(" | ") for line in published.figures_table().splitlines()]
    cells = {(row[0], row[2]): row for row in rows}
    assert cells["R0 MLP", "test"][1:5] == ["78.53", "test", "2", "78.50 ± 0.71 %"]
    assert cells["R0 MLP", "test"][6] == "reproduced"
    assert cells["R0 MLP", "validation"][6] == "higher"  # 79.60 against 70.5
    (claim,) = published.claims()
    assert (claim.published, claim.tuned) == (0.21, None)
    assert claim.ours["points"] == pytest.approx(statistics.fmean([84.0, 85.0]) - 84.25)
    assert "two hidden layers instead of one | +0.21 | +0.25 (" in published.claims_table()


def depth_after_he():
    """R3's hidden layer with the chosen rates, and with He's initialization of softmax regression."""
    first, other = "R3 MLP, 1 hidden layer", "R3 MLP, no hidden layer: rate 0.01"
    results = {first: published.results_of("tuned")[first], other: published.results_of("why")[other]}
    return published.claim(results, (first, other), "test")


def test_numbers_in_the_pages_sentences_are_those_of_the_results():
    page = (ROOT / "results/as_made/README.md").read_text(encoding="utf-8")
    tables = "\n".join(line for line in page.splitlines() if line.startswith("|"))
    prose = "\n".join(line for line in page.splitlines() if not line.startswith("|"))
    known = set(re.findall(r"\d+\.\d\d", tables)) | {"0.32", "0.05", "0.83", "0.01"}  # theirs, and settings
    for name in ("as_made", "tuned", "why"):
        for result in published.results_of(name).values():
            known |= {f"{statistics.fmean(published.points(result, split)):.2f}" for split in ("val", "test")}
    last = "R3 MLP: cosine schedule"
    results = published.results_of("as_made") | {last: published.results_of("why")[last]}
    tests = [published.claim(results, ("R3 CNN", last), "test"), depth_after_he()]
    pairs = {"heads/metrics": ("NumPy MLP", "CNN, linear classifier"), "depth/summary": ("0", "1")}
    pairs["input_normalization/summary"] = ("global", "none")
    for path, pair in pairs.items():
        found = run.read_json(ROOT / f"results/studies/{path}.json")["tests"]
        tests += [test for test in found if (test["variant"], test["against"]) == pair]
    means = [
        run.read_json(ROOT / f"results/{name}/metrics.json")["test_accuracy"]
        for name in ("cnn_feature_extraction", "mlp_from_scratch")
    ]
    tests.append(dict.fromkeys(("points", "low", "high"), 100 * (means[0] - means[1])))
    known |= {f"{abs(test[key]):.2f}" for test in tests for key in ("points", "low", "high")}
    assert set(re.findall(r"(?<![\d.])\d+\.\d\d(?!\d)", prose)) - known == set()


def test_figures_are_readable():
    assert crowded_texts(published.draw_claims()) == []
    for network in as_made.CHAINS:
        assert crowded_texts(published.draw_why(network)) == []
