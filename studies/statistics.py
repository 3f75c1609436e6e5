"""Paired tests over seeds and images, Holm's correction, and verdicts in words."""

import numpy as np

LEVEL = 0.05  # of significance, all comparisons together


def mcnemar(right, right_too):
    """(only the first is right, only the second is, p) of two classifiers' (N,) booleans on the same images.

    The exact test (McNemar 1947): were they equally good, either would be as likely to be the one that is right.
    """
    from scipy.stats import binomtest  # SciPy comes with scikit-learn

    first, second = int((right & ~right_too).sum()), int((right_too & ~right).sum())
    return first, second, float(binomtest(first, first + second).pvalue) if first + second else 1.0


def holm(p):
    """The p values of several tests, each corrected for there being so many (Holm 1979)."""
    p = np.asarray(p)
    order, corrected = np.argsort(p), np.empty(len(p))
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected.tolist()


def over_the_seeds(points):
    """p of the paired t test: were the two methods equally good, how probable were differences of such a mean over seeds?"""
    from scipy.stats import ttest_1samp

    if np.ptp(points) == 0:
        return float(points[0] == 0)
    return float(ttest_1samp(points, 0).pvalue)


def verdict(test):
    """In words, how a head compares with another."""
    won = [one["only_head_right"] > one["only_other_right"] for one in test["by_seed"] if one["p_holm"] < LEVEL]
    words = "no difference shown" if test["p_holm"] >= LEVEL else "better" if test["points"] > 0 else "worse"
    return (f"{test['head']}, against {test['against']}: {test['points']:+.2f} +- {test['points_std']:.2f} points, p = "
            f"{test['p_holm']:.3g} (paired t over the seeds, Holm); better in {sum(won)}, worse in {len(won) - sum(won)} of "
            f"{len(test['by_seed'])} seeds (McNemar, Holm): {words}")  # fmt: skip
