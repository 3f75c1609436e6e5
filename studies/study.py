"""What a study is: a question, a script, what varies and what is held fixed, as data.

    Study("dropout", "How much dropout helps an MLP?", "mlp", vary(dropout=(0, 0.2, 0.4)), baseline="0",
          fixed={"recipe": "plain"}, learning_rates=(0.0003, 0.001, 0.003), seeds=5)
"""

if __name__ == "__main__":
    raise SystemExit("studies/study.py is a module, not a script: experiments.py uses it")

import importlib
import itertools
import shlex
from dataclasses import dataclass, field

from support import settings

SCRIPTS = {"mlp": "mlp_from_scratch", "cnn": "cnn_feature_extraction", "hybrid": "hybrid_train",
           "transfer": "transfer_learning"}  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """What a similar project reports: that the variant `better` has a higher test accuracy than `worse`."""

    text: str
    better: str = ""
    worse: str = ""


@dataclass(frozen=True)
class Study:
    """A comparison of variants of one script's settings over several seeds.

    variants: {label: settings that differ}. A variant's "learning_rates" replace those of the study, its "script" the
    study's, its "seeds" limits the study's; its "group" is its line in a figure, and with "from_backbone" joint training
    starts from the backbone. fixed: settings of all variants. learning_rates: those from which validation
    chooses for each variant, with the first seed; empty: the setting's own. baseline: the variant that the others are
    compared with; "": none. baselines: {variant: its own baseline instead}. backbone: settings of the CNN whose features
    all variants use, one CNN for each seed.
    """

    name: str
    question: str
    script: str
    variants: dict
    baseline: str
    baselines: dict = field(default_factory=dict, kw_only=True)
    fixed: dict = field(default_factory=dict)
    learning_rates: tuple = ()
    seeds: int = 5
    claims: tuple = ()
    factors: tuple = ()  # names of the settings that vary, if the variants are their values: two give a heat map
    curves: bool = False  # also draw the validation accuracy by epoch
    x: str = ""  # draw the test accuracy against this number: a setting, or "seconds"
    backbone: dict | None = None
    note: str = ""  # what else a reader has to know

    def __post_init__(self):
        for name in {self.baseline, *self.baselines, *self.baselines.values()} - {"", *self.variants}:
            raise ValueError(f"study {self.name}: the baseline {name!r} is none of its variants")
        for claim in self.claims:
            if {claim.better, claim.worse} - {"", *self.variants}:
                raise ValueError(f"study {self.name}: a claim names a variant that does not exist")

    @property
    def baseline_of(self):
        """{variant: the one that it is compared with}"""
        pairs = {label: self.baselines.get(label, self.baseline) for label in self.variants}
        return {label: baseline for label, baseline in pairs.items() if baseline not in ("", label)}


def vary(**values):
    """{label: settings} for each value of a setting, or for each pair of values of two settings."""
    names = list(values)
    return {", ".join(map(label, combination)): dict(zip(names, combination, strict=True))
            for combination in itertools.product(*values.values())}  # fmt: skip


def label(value):
    """A value as a variant's name: 128-64 for (128, 64)."""
    if isinstance(value, (tuple, list)):
        return "-".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def training_command(script, changes):
    """The command line that trains with the settings `changes`."""
    words = ["python", f"{SCRIPTS[script]}.py"]
    for name, value in changes.items():
        if isinstance(value, bool):
            words.append(settings.flag(name) if value else settings.flag(f"no_{name}"))
        else:
            words += [settings.flag(name), *map(label, value if isinstance(value, (tuple, list)) else [value])]
    return shlex.join(words)


def modules_of(script):
    """The modules whose constants are a script's settings, itself first."""
    below = ["cnn_feature_extraction"] if script == "hybrid" else []
    names = [SCRIPTS[script], *below, "data", "support.runs"]
    return [importlib.import_module(name) for name in names]


def learning_rate_of(script, changes):
    """The setting that is this script's learning rate."""
    training = changes.get("training", "frozen")  # of the scripts that have it
    if script == "hybrid" and training == "joint":
        return "joint_learning_rate"
    return "head_learning_rate" if script in ("hybrid", "transfer") and training == "frozen" else "learning_rate"


def settings_of(script, changes):
    """The settings of one run, a namespace. A study's run writes no files. Raises settings.SettingError."""
    modules, without = modules_of(script), {"figures": False, "save_weights": False, "offline_fallback": False}
    s = settings.load(*modules, **without | {"tta": "none"} | changes)
    modules[0].check_settings(s)
    return s
