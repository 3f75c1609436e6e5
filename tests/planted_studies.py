"""Planted results of studies, for the tests of their parts: no training."""

import json

from studies.comparison import Comparison, Options
from studies.execute import Job
from studies.study import Study, settings_of, vary


def row_of(val, test, seconds=5.0):
    return {"val_accuracy": val, "test_accuracy": test, "test_loss": 0.5, "test_ece": 0.01, "parameters": 1000, "epochs": 3,
            "seconds": seconds, "dataset": "planted", "train_eval_accuracy": 0.9,
            "history": {"val_accuracy": [val / 2, val]}}  # fmt: skip


class Planted:
    """A Runner without trainings: result(settings) gives (validation, test accuracy) or a row."""

    def __init__(self, result):
        self.result = result

    def job(self, script, changes, backbone="", is_backbone=False):
        s = vars(settings_of(script, changes))
        return Job(script, s, json.dumps([script, changes, backbone], sort_keys=True), backbone, is_backbone)

    def rows(self, jobs):
        results = {job.key: self.result(job.settings) for job in jobs}
        return {key: value if isinstance(value, dict) else row_of(*value) for key, value in results.items()}


def summary_of(study, result, **options):
    compared = Comparison(study, Planted(result), Options(**options))
    rows = compared.run()
    return json.loads(json.dumps(compared.summary(rows), allow_nan=False)), compared, rows


RATES = (0.001, 0.003, 0.01)
DROPOUT = Study("dropout", "How much?", "mlp", vary(dropout=(0.0, 0.2, 0.4)), "0", {"recipe": "plain"}, RATES, 5)


NOISE = (0.0, 0.002, -0.001, 0.001, -0.002)


def with_effects(effects, claims=(), seeds=5, **options):
    """The summary of planted variants: `effects` {label: difference to the baseline "a"}, with noise over the seeds."""
    variants = {label: {"dropout": number / 100} for number, label in enumerate(effects)}
    study = Study("planted", "?", "mlp", variants, "a", claims=claims, seeds=seeds, **options)

    def result(s):
        number = round(100 * s["dropout"])
        label = list(effects)[number]
        if effects[label] is None:
            return {"diverged": "the loss became nan in epoch 1: lower --learning-rate", "dataset": "planted"}
        test = 0.8 + effects[label] + NOISE[s["seed"]] + (0.1 * NOISE[(2 * s["seed"] + number) % 5] if number else 0)
        return test + 0.01, test

    return summary_of(study, result)[0]
