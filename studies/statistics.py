"""Tests and intervals: paired over seeds, and over images. Holm's correction for several tests."""

import statistics

import numpy as np
from scipy import stats

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
