"""A study from its first run to its tests: a learning rate for each variant, all seeds, the statistics."""

import csv
import json
import statistics
from dataclasses import dataclass

import run
from studies import cnn, mlp
from studies.runner import make_job
from studies.statistics import correct, paired_test
from studies.study import learning_rate_of

RESERVED = ("learning_rates", "script", "group", "from_backbone")  # of a variant: not settings
WITH_HEAD = ("hybrid", "transfer")  # scripts that may train a head, for head_epochs
COLUMNS = ["variant", "stage", "seed", "learning_rate", "epochs", "parameters", "val_accuracy"]
COLUMNS += ["test_accuracy", "test_loss", "test_ece", "train_eval_accuracy", "seconds", "message"]
SUMMARIZED = ("val_accuracy", "test_accuracy", "train_eval_accuracy", "seconds")


@dataclass
class Variant:
    """A variant of a study. learning_rates: those to choose from, or (None,) for that of its settings."""

    label: str
    script: str
    changes: dict
    learning_rates: tuple
    seeds: range
    group: str
    from_backbone: bool


def variants_of(study, options):
    """The Variants of a study. options: namespace with seeds, epochs, fixed_learning_rate and quick."""
    variants = []
    for label, given in study.variants.items():
        script, own = given.get("script", study.script), {k: v for k, v in given.items() if k not in RESERVED}
        changes = study.fixed | own | (epochs_of(script, options) if study.x != "seconds" else {})
        rates = tuple(sorted(given.get("learning_rates", study.learning_rates))) or (None,)
        if learning_rate_of(script, changes) in own:
            rates = (None,)
        elif options.fixed_learning_rate or options.quick:
            rates = (rates[len(rates) // 2],)
        seeds = range(options.seeds or (min(2, study.seeds) if options.quick else study.seeds))
        more = given.get("group", ""), given.get("from_backbone", False)
        variants.append(Variant(label, script, changes, rates, seeds, *more))
    return variants


def epochs_of(script, options):
    """The settings by which --epochs and --quick change the epochs of a script."""
    names = ("epochs", "head_epochs") if script in WITH_HEAD else ("epochs",)
    epochs = options.epochs or (1 if options.quick else 0)
    return dict.fromkeys(names, epochs) if epochs else {}


class Comparison:
    """The runs of one study. folder: that of its runs.csv, whose rows are not run again unless runner.fresh.

    Raises run.Error for impossible settings of a variant.
    """

    def __init__(self, study, runner, options, folder):
        self.study, self.runner, self.variants = study, runner, variants_of(study, options)
        self.overrides = {"dataset": options.dataset} if options.dataset else {}
        self.overrides |= {"quick": True} if options.quick else {}
        self.backbones = {}
        if study.backbone:
            changes = study.backbone | epochs_of("cnn", options) | self.overrides
            for seed in self.variants[0].seeds:
                self.backbones[seed] = make_job("cnn", changes | {"seed": seed}, is_backbone=True)
        jobs = [self.job(v, v.learning_rates[0], 0) for v in self.variants]
        self.dataset = jobs[0].dataset
        self.known = {} if runner.fresh else known_rows(folder, self.variants, self.dataset.name)
        tuned = [v for v in self.variants if len(v.learning_rates) > 1]
        self.tuning = [(v, rate, v.seeds[0]) for v in tuned for rate in v.learning_rates]
        self.num_runs = len(self.tuning) + sum(len(v.seeds) for v in self.variants)

    def job(self, variant, rate, seed):
        changes = variant.changes | self.overrides | {"seed": seed}
        if rate is not None:
            changes[learning_rate_of(variant.script, changes)] = rate
        frozen = variant.script == "hybrid" and changes.get("training", "frozen") == "frozen"
        backbone = self.backbones.get(seed) if frozen or variant.from_backbone else None
        return make_job(variant.script, changes, backbone)

    def run(self):
        """All rows of runs.csv. Of learning rates that are equal on validation, the smallest is chosen."""
        tuning, chosen = self.rows("tuning", self.tuning), {}
        for variant in self.variants:
            rows = [row for row in tuning if row["variant"] == variant.label]
            best = max(rows, key=lambda row: row.get("val_accuracy", -1.0), default=None)
            chosen[variant.label] = best["learning_rate"] if best else variant.learning_rates[0]
        final = self.rows("final", [(v, chosen[v.label], seed) for v in self.variants for seed in v.seeds])
        backbones = []
        for seed, job in self.backbones.items():
            row = {"variant": "backbone", "stage": "backbone", "seed": seed}
            if job.key in self.runner.finished:  # not if all other rows were known
                row["learning_rate"] = job.learning_rate
                backbones.append(row | self.runner.finished[job.key])
        return backbones + tuning + final

    def rows(self, stage, cells):
        """A row of runs.csv for each of the cells (variant, learning rate, seed)."""
        jobs, rows = [self.job(*cell) for cell in cells], []
        for (variant, _, seed), job in zip(cells, jobs, strict=True):
            row = {"variant": variant.label, "stage": stage, "seed": seed, "learning_rate": job.learning_rate}
            rows.append(row | self.known.get(key_of(row), {}))
        missing = [number for number, row in enumerate(rows) if key_of(row) not in self.known]
        for _ in range(len(rows) - len(missing)):
            self.runner.on_row()
        results = self.runner.rows([jobs[number] for number in missing])
        for number in missing:
            rows[number] |= results[jobs[number].key]
            if stage == "tuning":  # nobody chooses by test results
                rows[number] = {name: value for name, value in rows[number].items() if "test" not in name}
        return rows


def key_of(row):
    return row["variant"], row["stage"], row["seed"], f"{row['learning_rate']:g}"


def known_rows(folder, variants, dataset):
    """{key_of(row): row} of the runs.csv in `folder`, of the variants that have the same settings there."""
    if not (folder / "summary.json").exists():
        return {}
    summary = run.read_json(folder / "summary.json")
    if summary["dataset"] != dataset:
        return {}
    settings = {label: result["settings"] for label, result in summary["variants"].items()}
    same = [v.label for v in variants if v.label in settings and is_same(v, settings[v.label])]
    return {key_of(row): row for row in read_rows(folder / "runs.csv") if row["variant"] in same}


def is_same(variant, earlier):
    """Whether a variant has the settings of a summary.json; earlier ones call the plain baseline a recipe."""
    if earlier.get("recipe") == "plain":
        earlier = (mlp.PLAIN if variant.script == "mlp" else cnn.PLAIN) | earlier
    earlier = {name: value for name, value in earlier.items() if name != "recipe"}
    return json.dumps(earlier, sort_keys=True) == json.dumps(variant.changes, sort_keys=True)


def read_rows(path):
    """The rows of a runs.csv, with numbers for texts, without empty cells."""
    with open(path, newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    whole, texts = ("seed", "epochs", "parameters"), ("variant", "stage", "message")
    kinds = dict.fromkeys(whole, int) | dict.fromkeys(texts, str)
    return [{name: kinds.get(name, float)(cell) for name, cell in row.items() if cell} for row in table]


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
    summary["seeds"] = max(len(v.seeds) for v in variants)
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
