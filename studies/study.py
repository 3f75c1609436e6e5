"""What a study is: a question, a script, what varies and what is held fixed, as data.

study("dropout", "mlp", vary(dropout=(0.0, 0.2, 0.4)), "0", PLAIN, learning_rates=(0.0003, 0.001, 0.003))

Questions and notes are in texts.toml.
"""

import importlib
import itertools
import shlex
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import run

SCRIPTS = {"mlp": "mlp_from_scratch", "cnn": "cnn_feature_extraction", "hybrid": "hybrid_train"}
SCRIPTS |= {"transfer": "extras.transfer_learning"}
TEXTS = tomllib.loads(Path(__file__).with_name("texts.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Study:
    """A comparison of variants of one script's settings over several seeds.

    variants: {label: settings that differ}. A variant's "learning_rates" replace those of the study, its
    "script" the study's; its "group" is its line in a figure; with "from_backbone", joint training starts
    from the backbone. fixed: settings of all variants. learning_rates: validation chooses one of them for
    each variant, with the first seed; empty: the setting's own. baseline: the variant that the others are
    compared with; "": none. baselines: {variant: its own baseline instead}. backbone: settings of the CNN
    whose features all variants use, one CNN for each seed; it is the variant "backbone". A variant's "seeds"
    replace the study's. resplit: each seed draws its own split.
    """

    name: str
    question: str
    script: str
    variants: dict
    baseline: str
    fixed: dict = field(default_factory=dict)
    learning_rates: tuple = ()
    seeds: int = 5
    baselines: dict = field(default_factory=dict)
    x: str = ""  # draw the test accuracy against this number: a setting, or "seconds"
    backbone: dict | None = None
    resplit: bool = False
    note: str = ""  # what else a reader has to know

    @property
    def baseline_of(self):
        """{variant: the one that it is compared with}"""
        pairs = {label: self.baselines.get(label, self.baseline) for label in self.variants}
        return {label: baseline for label, baseline in pairs.items() if baseline not in ("", label)}


def study(name, *arguments, **options):
    """The Study of this name, with its texts."""
    texts = TEXTS[name]
    return Study(name, texts["question"], *arguments, note=texts.get("note", ""), **options)


def vary(**values):
    """{label: settings} for each value of a setting, or for each pair of values of two settings."""
    combinations = itertools.product(*values.values())
    return {", ".join(map(label, chosen)): dict(zip(values, chosen, strict=True)) for chosen in combinations}


def label(value):
    """A value as a variant's name: 128-64 for (128, 64)."""
    if isinstance(value, tuple):
        return "-".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def value_of(text, default):
    """What `label` has made a text, as the type of a default. Raises ValueError or KeyError."""
    if isinstance(default, tuple):
        return tuple(int(number) for number in text.split("-")) if text != "none" else ()
    return {"yes": True, "no": False}[text] if isinstance(default, bool) else type(default)(text)


def command(script, changes):
    """The command line that trains with the settings `changes`."""
    words = ["python", f"{SCRIPTS[script]}.py"]
    for name, value in changes.items():
        values = value if isinstance(value, tuple) else [value]
        words += [run.flag(f"no_{name}" if value is False else name)]
        words += [label(value) for value in values if not isinstance(value, bool)]
    return shlex.join(words)


def learning_rate_of(script, changes):
    """The name of the setting that is this script's learning rate."""
    if script in ("hybrid", "transfer") and changes.get("training", "frozen") == "frozen":
        return "head_learning_rate"
    return "joint_learning_rate" if script == "hybrid" else "learning_rate"


def script_of(name):
    """The module of a script. The scripts with PyTorch take seconds to import."""
    return importlib.import_module(SCRIPTS[name])
