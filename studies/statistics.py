"""Paired tests over seeds and over images, Holm's correction, and verdicts in words."""

if __name__ == "__main__":
    raise SystemExit("studies/statistics.py is a module, not a script: experiments.py uses it")

import numpy as np

LEVEL = 0.05  # of significance, for all comparisons of a study together


def mcnemar(correct, correct_other):
    """McNemar's exact test of two classifiers on the same images: (only the first correct, only the second, p).

    correct, correct_other: booleans (N,). Under the null hypothesis, either is equally often the only correct one
    (McNemar 1947).
    """
    from scipy.stats import binomtest  # SciPy comes with scikit-learn

    first, second = int((correct & ~correct_other).sum()), int((correct_other & ~correct).sum())
    return first, second, float(binomtest(first, first + second).pvalue) if first + second else 1.0


def holm(p):
    """The p values of several tests, corrected for multiple testing (Holm 1979). A list in the same order."""
    p = np.asarray(p)
    order, corrected = np.argsort(p), np.empty(len(p))
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected.tolist()


def paired_t(differences):
    """Two-sided p value of the paired t test. differences (seeds,): of two methods, one for each seed.

    Where all are equal, which happens with few test images, the sign test takes its place: 2 / 2^seeds.
    """
    from scipy.stats import ttest_1samp

    if np.ptp(differences) == 0:
        return 2 / 2 ** len(differences) if differences[0] else 1.0
    return float(ttest_1samp(differences, 0).pvalue)


def word_of(test):
    """The verdict on a comparison in a word: better, worse or not distinguishable."""
    return "not distinguishable" if test["p_holm"] >= LEVEL else "better" if test["points"] > 0 else "worse"


def verdict(test):
    """One sentence on a comparison, an entry of `heads.summary`'s tests."""
    significant = [row["only_head_correct"] > row["only_other_correct"] for row in test["by_seed"] if row["p_holm"] < LEVEL]
    points = f"{test['points']:+.2f} +- {test['points_std']:.2f} points"
    return (f"{test['head']} vs {test['against']}: {word_of(test)}; {points}, p = {test['p_holm']:.3g} "
            f"(paired t test over {len(test['by_seed'])} seeds, Holm); McNemar's test: better in "
            f"{sum(significant)}, worse in {len(significant) - sum(significant)} seeds")  # fmt: skip
