"""A study from its first run to its verdict: a learning rate for each variant, all seeds, paired tests, words."""

if __name__ == "__main__":
    raise SystemExit("studies/comparison.py is a module, not a script: experiments.py uses it")

import itertools
import math
import re
import statistics
from dataclasses import dataclass

import numpy as np

from studies.statistics import holm, paired_t, word_of
from studies.study import learning_rate_of
from support import runs

RESERVED = ("learning_rates", "script", "seeds", "group", "from_backbone")  # of a variant: not settings
LINKS = {"better": "better than", "worse": "worse than", "not distinguishable": "not distinguishable from"}
MANY = 12  # tests, from which on the verdict counts the variants instead of naming them
WITH_HEAD = ("hybrid", "transfer")  # scripts that with --training frozen train a head, for head_epochs


@dataclass(frozen=True)
class Options:
    """What the command line changes in every study."""

    seeds: int = 0  # 0: the study's own
    epochs: int = 0  # 0: the study's own
    most_seeds: int = 1000  # of the study's own
    tune: bool = True  # each variant's learning rate is chosen on validation; otherwise all have the middle one


@dataclass
class Variant:
    """A variant with its jobs. learning_rates: candidates, None for the setting's own."""

    label: str
    script: str
    changes: dict
    learning_rates: tuple
    seeds: range
    group: str = ""
    from_backbone: bool = False
    chosen: float | None = None


def variants_of(study, options):
    """The Variants of a study."""
    variants = []
    for label, given in study.variants.items():
        script, rates = given.get("script", study.script), given.get("learning_rates", study.learning_rates) or (None,)
        changes = study.fixed | {name: value for name, value in given.items() if name not in RESERVED}
        if options.epochs and study.x != "seconds":  # there the epochs are what varies
            changes |= dict.fromkeys(("epochs", "head_epochs") if script in WITH_HEAD else ("epochs",), options.epochs)
        if learning_rate_of(script, changes) in changes:
            rates = (None,)
        elif not options.tune:
            rates = (rates[len(rates) // 2],)
        num_seeds = options.seeds or min(options.most_seeds, study.seeds, given.get("seeds", study.seeds))
        variants.append(Variant(label, script, changes, rates, range(num_seeds), given.get("group", ""),
                                given.get("from_backbone", False)))  # fmt: skip
    return variants


class Comparison:
    """The runs of one study: those of `backbones` and `tuning` come first, those of `final` after `choose`.

    command: the command that runs it, for the README. Raises settings.SettingError for impossible settings.
    """

    def __init__(self, study, runner, options, command=""):
        self.study, self.runner, self.command = study, runner, command
        self.variants = variants_of(study, options)
        self.backbones = {}  # {seed: Job}
        if study.backbone is not None:
            seeds = sorted({seed for variant in self.variants for seed in variant.seeds})
            epochs = {"epochs": options.epochs} if options.epochs else {}
            self.backbones = {seed: runner.job("cnn", study.backbone | epochs | {"seed": seed}, is_backbone=True)
                              for seed in seeds}  # fmt: skip
        self.tuning = {(variant.label, rate): self.job(variant, rate, variant.seeds[0])
                       for variant in self.variants for rate in variant.learning_rates if len(variant.learning_rates) > 1}
        self.final = {}  # {(label, seed): Job}
        if not self.tuning:
            self.choose({})

    def runs_by_script(self):
        """{script: number of runs}. The first seed's final runs are among those of the tuning."""
        counts = {"cnn": len(self.backbones)}
        for variant in self.variants:
            counts[variant.script] = counts.get(variant.script, 0) + len(variant.learning_rates) - 1 + len(variant.seeds)
        return counts

    def job(self, variant, rate, seed):
        changes = variant.changes | {"seed": seed}
        if rate is not None:
            changes[learning_rate_of(variant.script, changes)] = rate
        frozen = variant.script == "hybrid" and changes.get("training", "frozen") == "frozen"
        uses = self.backbones and (frozen or variant.from_backbone)
        return self.runner.job(variant.script, changes, self.backbones[seed].key if uses else "")

    def run(self):
        """All runs: {key: row}."""
        rows = self.runner.rows(list(self.backbones.values()))
        rows |= self.runner.rows(list(self.tuning.values()))
        if self.tuning:
            self.choose(rows)
        return rows | self.runner.rows(list(self.final.values()))

    def choose(self, rows):
        """Give each variant the learning rate with the highest validation accuracy; of equal ones the smallest."""
        for variant in self.variants:
            rates = sorted(variant.learning_rates) if len(variant.learning_rates) > 1 else variant.learning_rates
            scores = [rows.get(self.tuning[variant.label, rate].key, {}).get("val_accuracy", -1.0) if len(rates) > 1 else 0
                      for rate in rates]  # fmt: skip
            variant.chosen = rates[scores.index(max(scores))]
            for seed in variant.seeds:
                self.final[variant.label, seed] = self.job(variant, variant.chosen, seed)

    def table(self, rows):
        """A dict for each run, for runs.csv. The test results of the tuning's runs are left out: nobody chose by them."""
        table = [{"variant": "backbone", "stage": "backbone"} | self.cells(job, rows[job.key])
                 for job in self.backbones.values()]  # fmt: skip
        table += [{"variant": label, "stage": "tuning"} | self.cells(job, rows[job.key], test=False)
                  for (label, _), job in self.tuning.items()]  # fmt: skip
        return table + [{"variant": label, "stage": "final"} | self.cells(job, rows[job.key])
                        for (label, _), job in self.final.items()]  # fmt: skip

    def cells(self, job, row, test=True):
        names = ("epochs", "parameters", "val_accuracy", *(("test_accuracy", "test_loss", "test_ece") * test),
                 "train_eval_accuracy", "seconds")  # fmt: skip
        rate = job.settings[learning_rate_of(job.script, job.settings)]
        cells = {"seed": job.settings["seed"], "learning_rate": rate} | {name: row.get(name, "") for name in names}
        return cells | {"message": message_of(row)}

    def summary(self, rows):
        """The content of summary.json."""
        results = {variant.label: self.result(variant, rows) for variant in self.variants}
        tests = tests_of(self.study, results)
        return {
            "name": self.study.name, "question": self.study.question, "command": self.command, "script": self.study.script,
            "dataset": next((row["dataset"] for row in rows.values() if "dataset" in row), ""),
            "baseline": self.study.baseline, "baseline_of": self.study.baseline_of, "fixed": self.study.fixed,
            "seeds": max(len(v.seeds) for v in self.variants), "epochs": self.epochs(), "variants": results, "tests": tests,
            "verdict": verdict(self.study, results, tests),
            "claims": [claim_result(claim, tests) for claim in self.study.claims], "note": self.study.note,
            "factors": list(self.study.factors), "x": self.study.x, "curves": self.study.curves,
            "backbone": self.study.backbone, "run_seconds": round(sum(row.get("seconds", 0) for row in rows.values())),
            "runs": len(rows), **runs.environment(),
        }  # fmt: skip

    def epochs(self):
        """Numbers of epochs of all variants, increasing."""
        return sorted({job.settings["head_epochs" if job.script in WITH_HEAD and job.settings["training"] == "frozen"
                                    else "epochs"] for job in self.final.values()})  # fmt: skip

    def result(self, variant, rows):
        """One variant's entry of the summary."""
        jobs = {seed: self.final[variant.label, seed] for seed in variant.seeds}
        done = {seed: rows[job.key] for seed, job in jobs.items() if "val_accuracy" in rows[job.key]}
        first = jobs[variant.seeds[0]].settings
        result = {"learning_rate": first[learning_rate_of(variant.script, first)], "seeds": list(done),
                  "settings": variant.changes, "script": variant.script, "group": variant.group}  # fmt: skip
        rates = variant.learning_rates
        if len(rates) > 1:
            result |= {"learning_rates": sorted(rates), "at_edge": bool(done) and variant.chosen in (min(rates), max(rates))}
        if lost := [rows[job.key] for job in jobs.values() if "val_accuracy" not in rows[job.key]]:
            diverged = all("diverged" in row for row in lost)
            result |= {"failed": len(lost), "diverged": diverged, "message": message_of(lost[0])}
        if not done:
            return result
        row = next(iter(done.values()))
        result |= {"parameters": row["parameters"], "num_classes": row.get("num_classes", 10)}  # 10 in older runs
        if self.study.x:
            seconds = statistics.fmean(row["seconds"] for row in done.values())
            result["x"] = seconds if self.study.x == "seconds" else first[self.study.x]
        for name in ("val_accuracy", "test_accuracy", "train_eval_accuracy", "seconds"):
            values = [row[name] for row in done.values()]
            result |= {name: statistics.fmean(values), f"{name}_std": statistics.stdev(values) if len(values) > 1 else 0.0}
            result.setdefault("by_seed", {})[name] = values
        if self.study.curves:
            histories = [row["history"]["val_accuracy"] for row in done.values()]
            result["val_accuracy_by_epoch"] = np.mean([h[: min(map(len, histories))] for h in histories], axis=0).tolist()
        return result


def tests_of(study, results):
    """A paired t test of each variant against its baseline, and of each claim; corrected over the study (Holm)."""
    pairs = [*study.baseline_of.items(), *((claim.better, claim.worse) for claim in study.claims if claim.better)]
    tests = {}
    for variant, against in pairs:
        test = paired_test(results[variant], results[against])
        if test and (variant, against) not in tests and (against, variant) not in tests:
            tests[variant, against] = {"variant": variant, "against": against} | test
    corrected = holm([test["p"] for test in tests.values()])
    return [test | {"p_holm": p} for test, p in zip(tests.values(), corrected, strict=True)]


def not_learned(result):
    """Number of seeds of a variant that have learned nothing: their accuracy on training images is that of guessing."""
    guessing = 1 / result.get("num_classes", 10)
    lowest = min(1.5 * guessing, guessing + 0.05)
    return sum(value < lowest for value in result.get("by_seed", {}).get("train_eval_accuracy", ()))


def baselines_in(summary):
    """The variants of a summary that others are compared with."""
    return set(summary.get("baseline_of", {}).values()) or {summary["baseline"]}


def message_of(row):
    """Why a run has no results; "" if it has."""
    return row.get("diverged", row.get("error", ""))


def paired_test(result, other):
    """{"points": mean difference in test accuracy, ...} over the seeds that both have; None if these are fewer than two.

    None, too, where only some seeds of either have learned: such differences are far from normally distributed.
    """
    seeds = [seed for seed in result["seeds"] if seed in other["seeds"]]
    if len(seeds) < 2 or any(0 < not_learned(side) < len(side["seeds"]) for side in (result, other)):
        return None
    values, others = (dict(zip(side["seeds"], side["by_seed"]["test_accuracy"], strict=True)) for side in (result, other))
    points = [100 * (values[seed] - others[seed]) for seed in seeds]
    return {"points": statistics.fmean(points), "points_std": statistics.stdev(points), "seeds": len(seeds),
            "p": paired_t(points)}  # fmt: skip


def claim_result(claim, tests):
    """{"text": ..., "verdict": "holds", "does not hold", "not distinguishable" or ""}, with the test's numbers."""
    for test in tests:
        sign = {(claim.better, claim.worse): 1, (claim.worse, claim.better): -1}.get((test["variant"], test["against"]))
        if claim.better and sign:
            word = {"better": "holds", "worse": "does not hold"}.get(word_of(test | {"points": sign * test["points"]}))
            return {"text": claim.text, "verdict": word or "not distinguishable", "points": sign * test["points"],
                    "p_holm": test["p_holm"]}  # fmt: skip
    return {"text": claim.text, "verdict": "not tested" if claim.better else ""}


def verdict(study, results, tests):
    """One to three sentences made from the numbers."""
    valid = {label: result for label, result in results.items() if "val_accuracy" in result}
    if not valid:
        return "Every variant diverged or failed."
    name = {label: spoken(study, label) for label in results}
    best = max(valid, key=lambda label: valid[label]["val_accuracy"])
    sentences = [f"The best on validation is {name[best]}: {percent(valid[best], 'test_accuracy')} on the test images"]
    tests, clauses = [test for test in tests if study.baseline_of.get(test["variant"]) == test["against"]], []
    baselines = list(dict.fromkeys(test["against"] for test in tests))
    many = len(tests) >= MANY
    if many and len(baselines) > 1:
        baselines = [""]  # all together
    for baseline, (word, link) in itertools.product(baselines, LINKS.items()):
        group = [test for test in tests if word_of(test) == word and baseline in (test["against"], "")]
        named = [f"{name[label] if len(study.factors) == 2 or number == 0 else label} ({test['points']:+.2f})"
                 for number, test in enumerate(group) for label in [test["variant"]]]  # fmt: skip
        subject = f"{len(group)} of {len(tests)} variants" if many else ", ".join(named)
        if group:
            verb, its = ("is", "its") if len(group) == 1 else ("are", "their")
            clauses.append(f"{subject} {verb} {link} {name.get(baseline, f'{its} baseline')}")
    sentences.append("; ".join(clauses))
    if len(valid) > 1 and study.baseline_of and not tests:
        sentences.append("Nothing is tested: that needs two seeds or more of the baseline and of another variant")
    stuck = [f"{name[label]} ({number} of {len(result['seeds'])} seeds)"
             for label, result in valid.items() if (number := not_learned(result))]  # fmt: skip
    sentences.append(f"Learned nothing: {', '.join(stuck)}" if stuck else "")
    failed = [name[label] for label, result in results.items() if result.get("failed")]
    sentences.append(f"Diverged or failed in some seeds: {', '.join(failed)}" if failed else "")
    return ". ".join(filter(None, sentences)) + "."


def spoken(study, label):
    """A variant's name in a sentence: dropout 0.2 for 0.2; learning rate 0.001, batch size 128 for 0.001, 128."""
    factors, values = [factor.replace("_", " ") for factor in study.factors], label.split(", ")
    if len(factors) == len(values):
        return ", ".join(map(" ".join, zip(factors, values, strict=True)))
    return f"{study.name.replace('_', ' ')} {label}" if re.fullmatch(r"\d[\d.e-]*", label) else label


def percent(result, name):
    """An accuracy with its standard deviation over the seeds, if there are several."""
    std = f" ± {100 * result[name + '_std']:.2f}" if len(result["seeds"]) > 1 else ""
    return f"{100 * result[name]:.2f}{std} %"


def interval(values):
    """Half the width of the 95 % confidence interval of a mean, by Student's t; 0 for fewer than three values."""
    if len(values) < 3:
        return 0.0
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values)))
