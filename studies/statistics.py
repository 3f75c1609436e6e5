"""Tests and intervals: paired over seeds, and over images, with Holm's correction; the summary of a study."""

import statistics

import numpy as np
from scipy import stats

import run

SUMMARIZED = ("val_accuracy", "test_accuracy", "train_eval_accuracy", "seconds")
LEVEL = 0.05  # of significance, for all comparisons of a study together


def paired_test(differences):
    """The paired t test of two methods: {"points": mean difference, "points_std", "low", "high", "p"}.

    differences (seeds,): in points, one for each seed, two or more. low, high: the 95 % interval of the mean.
    Where all are equal, which happens with few test images, p is that of the sign test, 2 / 2^seeds.
    """
    mean, std = statistics.fmean(differences), statistics.stdev(differences)
    if np.ptp(differences) == 0:
        low, high, p = mean, mean, 2 / 2 ** len(differences) if mean else 1.0
    else:
        result = stats.ttest_1samp(differences, 0)
        p, (low, high) = result.pvalue, result.confidence_interval(0.95)
    return {"points": mean, "points_std": std, "low": float(low), "high": float(high), "p": float(p)}


def interval(values):
    """Half the width of the 95 % interval of a mean, by Student's t; 0 for fewer than three values."""
    if len(values) < 3:
        return 0.0
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def mcnemar(correct, correct_other):
    """McNemar's exact test of two classifiers on the same images (McNemar 1947).

    correct, correct_other: booleans (N,). Returns how many images only the first has right, how many only the
    second, and p: under the null hypothesis, both are equally likely.
    """
    first, second = int((correct & ~correct_other).sum()), int((correct_other & ~correct).sum())
    return first, second, float(stats.binomtest(first, first + second).pvalue) if first + second else 1.0


def holm(p):
    """The p values of several tests, corrected for multiple testing (Holm 1979). A list in the same order."""
    p = np.asarray(p)
    order, corrected = np.argsort(p), np.empty(len(p))
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected.tolist()


def correct(tests, name, corrected):
    """Write the p values `name` of the dicts that have it as `corrected`: for their number (Holm)."""
    tested = [test for test in tests if name in test]
    for test, p in zip(tested, holm([test[name] for test in tested]), strict=True):
        test[corrected] = p


# ---- from rows to statistics


def summarize(comparison, rows):
    """The content of summary.json."""
    study, variants = comparison.study, comparison.variants
    results = {variant.label: result_of(study, variant, rows) for variant in variants}
    for result in results.values():
        result["num_classes"] = comparison.dataset.num_classes
    names = ("name", "question", "note", "script", "baseline", "baseline_of", "fixed", "x")
    summary = {name: getattr(study, name) for name in names}
    summary |= {"command": run.command_line(), "dataset": comparison.dataset.name, "runs": len(rows)}
    summary["seeds"] = len(comparison.seeds)
    summary["epochs"] = sorted({row["epochs"] for row in rows if row["stage"] == "final" and "epochs" in row})
    summary["run_seconds"] = round(sum(row.get("seconds", 0) for row in rows))
    tests = tests_of(results, study.baseline_of, study.claims)
    return summary | {"variants": results, "tests": tests} | run.environment()


def result_of(study, variant, rows):
    """Mean, standard deviation and values of a variant's results, over the seeds that did not diverge."""
    rows = [row for row in rows if row["variant"] == variant.label and row["stage"] == "final"]
    done, rates = [row for row in rows if "val_accuracy" in row], variant.learning_rates
    result = {"script": variant.script, "group": variant.group, "settings": variant.changes}
    result |= {"learning_rate": rows[0]["learning_rate"], "seeds": [row["seed"] for row in done]}
    if len(rates) > 1:
        at_edge = bool(done) and result["learning_rate"] in (rates[0], rates[-1])
        result |= {"learning_rates": rates, "at_edge": at_edge}
    if messages := [row["message"] for row in rows if row not in done]:
        result |= {"failed": len(messages), "message": messages[0]}
    if done:
        result |= {"parameters": done[0]["parameters"], "by_seed": {}}
        for name in SUMMARIZED:
            values = result["by_seed"][name] = [row[name] for row in done]
            std = statistics.stdev(values) if len(values) > 1 else 0.0
            result |= {name: statistics.fmean(values), f"{name}_std": std}
        result |= {"x": (variant.changes | result)[study.x]} if study.x else {}
    return result


def tests_of(results, baseline_of, claims):
    """A paired t test of each variant and its baseline, and of each claim, corrected for all (Holm)."""
    tests = {}
    for variant, against in [*baseline_of.items(), *claims.values()]:
        points = differences(results[variant], results[against])
        if len(points) > 1 and not {(variant, against), (against, variant)} & tests.keys():
            tests[variant, against] = {"variant": variant, "against": against, "seeds": len(points)}
            tests[variant, against] |= paired_test(points)
    correct(tests.values(), "p", "p_holm")
    return list(tests.values())


def differences(result, other):
    """Differences in test accuracy, in points, of the common seeds; none if only some have learned."""
    if any(0 < not_learned(side) < len(side["seeds"]) for side in (result, other)):
        return []  # such differences are far from normally distributed
    accuracies = []
    for side in (result, other):
        values = side.get("by_seed", {}).get("test_accuracy", ())
        accuracies.append(dict(zip(side["seeds"], values, strict=True)))
    values, others = accuracies
    return [100 * (values[seed] - others[seed]) for seed in values if seed in others]


def not_learned(result):
    """Number of seeds of a variant that have learned nothing: on training images no better than guessing."""
    guessing = 1 / result.get("num_classes", 10)  # in earlier files always 10
    lowest = min(1.5 * guessing, guessing + 0.05)
    return sum(value < lowest for value in result.get("by_seed", {}).get("train_eval_accuracy", ()))
