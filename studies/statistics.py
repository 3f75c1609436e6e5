"""Differences with intervals and verdicts, corrected for multiple testing (Holm); the summary of a study."""

import statistics

import numpy as np
from scipy import stats

import run

SUMMARIZED = ("val_accuracy", "test_accuracy", "train_eval_accuracy", "seconds")
LEVEL = 0.05  # of significance, for all comparisons of a study together
MARGIN = 0.3  # points: the largest difference between methods that count as equal


def pooled_spread(accuracies):
    """The standard deviation that the runs of all methods share, by an analysis of variance; None if not.

    accuracies: {method: {seed: points}}. A dict: "std"; "df", its degrees of freedom; "blocks", whether the
    seeds' common effect was taken out, as is done where all methods have the same seeds and an F test finds
    such an effect (p < 0.05); "bartlett_p". None where Bartlett's test finds the variances unlike (p < 0.05),
    or there is one method. Levene's test would hardly ever find it: of three seeds, one is the median, from
    which its deviation is 0.
    """
    values = [np.array([*by_seed.values()]) for by_seed in accuracies.values() if len(by_seed) > 1]
    if len(values) < 2:
        return None
    residuals = [v - v.mean() for v in values]
    spreads, bartlett_p = [v for v in values if len(v) > 2], 1.0
    if len(spreads) > 1 and any(map(np.ptp, spreads)):
        with np.errstate(divide="ignore"):  # p is 0 where only some methods vary
            bartlett_p = float(stats.bartlett(*spreads).pvalue)
    if bartlett_p < LEVEL:
        return None
    square, df = sum(np.vdot(r, r) for r in residuals), sum(len(r) - 1 for r in residuals)
    blocks = False
    if len({(*by_seed,) for by_seed in accuracies.values()}) == 1:
        table = np.array(residuals)  # (methods, seeds)
        effect, df_effect = len(table) * np.sum(table.mean(axis=0) ** 2), table.shape[1] - 1
        f = (effect / df_effect) / max((square - effect) / (df - df_effect), 1e-12)
        blocks = bool(stats.f.sf(f, df_effect, df - df_effect) < LEVEL)
    if blocks:
        square, df = square - effect, df - df_effect
    return {"std": float(np.sqrt(square / df)), "df": df, "blocks": blocks, "bartlett_p": bartlett_p}


def t_test(points, error, df):
    """The test of a mean difference with this standard error and degrees of freedom (Student's t), a dict.

    "points"; "low", "high": its 95 % interval; "low_90", "high_90"; "p": that it is 0.
    """
    test = {"points": float(points)}
    for level, words in ((0.95, ""), (0.9, "_90")):
        half = float(stats.t.ppf((1 + level) / 2, df)) * error
        test |= {f"low{words}": test["points"] - half, f"high{words}": test["points"] + half}
    return test | {"p": float(2 * stats.t.sf(abs(points) / error, df))}


def paired_test(differences):
    """`t_test` of the differences (seeds,) of two methods, in points; two seeds or more.

    Where all are equal, which happens with few test images, p is that of the sign test, 2 / 2^seeds.
    """
    mean, n = statistics.fmean(differences), len(differences)
    if np.ptp(differences) == 0:
        p = 2 / 2**n if mean else 1.0
        return dict.fromkeys(("points", "low", "high", "low_90", "high_90"), mean) | {"p": p}
    return t_test(mean, float(stats.sem(differences)), n - 1)


def compare(accuracies, pairs):
    """(a test of each of the pairs of methods, the `pooled_spread` on which they rest, or None).

    accuracies: {method: {seed: points}}. A test is that of `t_test` with the pooled spread, or else paired
    over the seeds that both have; with "variant", "against", their number "seeds", "p_holm" and "verdict".
    """
    spread, tests = pooled_spread(accuracies), []
    for pair in pairs:
        first, second = (accuracies[name] for name in pair)
        common = [seed for seed in first if seed in second]
        if len(common) < 2:
            continue
        if spread and spread["std"]:
            points = statistics.fmean(first.values()) - statistics.fmean(second.values())
            error = spread["std"] * (1 / len(first) + 1 / len(second)) ** 0.5
            test = t_test(points, error, spread["df"])
        else:
            test = paired_test([first[seed] - second[seed] for seed in common])
        tests.append({"variant": pair[0], "against": pair[1], "seeds": len(common)} | test)
    return with_verdicts(tests), spread


def with_verdicts(tests):
    """The dicts `tests`; those with a "p" get "p_holm", corrected for their number, and a "verdict"."""
    correct(tests, "p", "p_holm")
    for test in tests:
        if "p" in test:
            test["verdict"] = verdict(test)
    return tests


def verdict(test):
    """What a test with "p_holm" says; "equal": its 90 % interval lies within MARGIN (two one-sided tests)."""
    within = max(-test["low_90"], test["high_90"]) < MARGIN
    if test["p_holm"] < LEVEL:
        return f"differs, by less than {MARGIN:g}" if within else "differs"
    return f"equal within {MARGIN:g}" if within else "undecided"


def bootstrap(correct, correct_other, samples=2000):
    """(low, high): the 95 % interval of a difference in accuracy, in points, over images and seeds.

    correct, correct_other: booleans (seeds, N), the same images. Both are drawn with replacement: the images
    for both methods together, the seeds of each by themselves: the pigeonhole bootstrap (Owen 2007), whose
    intervals are rather too wide.
    """
    rng, n, points = np.random.default_rng(0), correct.shape[1], []
    for _ in range(samples):
        weights = rng.multinomial(n, np.full(n, 1 / n)) / n  # how often each image is drawn
        by_seed = [side @ weights for side in (correct, correct_other)]  # accuracies (seeds,) of each
        first, second = (rng.choice(accuracies, len(accuracies)).mean() for accuracies in by_seed)
        points.append(100 * (first - second))
    low, high = np.percentile(points, (2.5, 97.5))
    return float(low), float(high)


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
    finished = {row["variant"] for row in rows if row["stage"] != "tuning"}
    results = {v.label: result_of(study, v, rows) for v in variants if v.label in finished}
    for result in results.values():
        result["num_classes"] = comparison.dataset.num_classes
    names = ("name", "question", "note", "script", "baseline", "baseline_of", "fixed", "x")
    summary = {name: getattr(study, name) for name in names}
    summary |= {"command": run.command_line(), "dataset": comparison.dataset.name, "runs": len(rows)}
    summary["epochs"] = sorted({row["epochs"] for row in rows if row["stage"] == "final" and "epochs" in row})
    summary["run_seconds"] = round(sum(row.get("seconds", 0) for row in rows))
    tests, spread = tests_of(results, study.baseline_of)
    return summary | {"variants": results, "tests": tests, "spread": spread} | run.environment()


def result_of(study, variant, rows):
    """Mean, standard deviation and values of a variant's results, over the seeds that did not diverge."""
    rows = [row for row in rows if row["variant"] == variant.label and row["stage"] == variant.stage]
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


def tests_of(results, baseline_of):
    """`compare` of each variant and its baseline.

    Not of variants of which only some seeds have learned: such accuracies are far from normally distributed.
    """
    accuracies = {}
    for name, result in results.items():
        values = [100 * value for value in result.get("by_seed", {}).get("test_accuracy", ())]
        if values and not_learned(result) in (0, len(values)):
            accuracies[name] = dict(zip(result["seeds"], values, strict=True))
    return compare(accuracies, [pair for pair in baseline_of.items() if {*pair} <= accuracies.keys()])


def not_learned(result):
    """Number of seeds of a variant that have learned nothing: on training images no better than guessing."""
    guessing = 1 / result["num_classes"]
    lowest = min(1.5 * guessing, guessing + 0.05)
    return sum(value < lowest for value in result.get("by_seed", {}).get("train_eval_accuracy", ()))
