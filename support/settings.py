"""Turn the block of constants at the top of a script into command-line flags.

The constants between a line ``# ---- settings ...`` and the next line ``# ----`` are a script's only configuration.
``EPOCHS = 20  # passes over the training set, in [1, inf)`` becomes ``--epochs 20``: its type is that of the value, its
help is the comment, and what the comment ends in is what it may be:

    ``{adam, sgd}``         one of these words
    ``in (0, inf)``         a number in that interval (round brackets leave the end out); of a tuple, every element
    ``$FASHION_MNIST_DIR``  anywhere in the comment: this environment variable, where it is set, is the default

A comment may go on in the lines below it. A boolean becomes ``--quick`` and ``--no-quick``. ``HIDDEN: tuple = (256, 128)``
takes several values (``--hidden 256 128`` or ``--hidden 256,128``), and none at all is the empty tuple; ``= 256`` there is
as good as ``= (256,)``. A whole number in an interval with a round bracket at a finite end, ``DROPOUT = 0`` with
``in [0, 1)``, is a decimal one.
"""

import argparse
import ast
import difflib
import json
import numbers
import os
import re
import tokenize
from pathlib import Path
from types import SimpleNamespace

INTERVAL = re.compile(r"in ([\[(])(\S+), (\S+)([\])])$")
CHOICES = re.compile(r"\{([^}]*)\}$")


class SettingError(ValueError):
    """A setting that cannot be. The message names the flag and what it may be."""

    exit_code = 2


def constants(*modules):
    """{"EPOCHS": (comment, default, module), ...} of several scripts; a name that two declare is the first one's."""
    table = {}
    for module in modules:
        with open(module.__file__, encoding="utf-8") as file:
            source = file.readlines()
        rules = [number for number, line in enumerate(source, 1) if line.startswith("# ----")]
        first = next(number for number in rules if source[number - 1].startswith("# ---- settings"))
        last = next(number for number in rules if number > first)
        source = source[:last]
        tokens = tokenize.generate_tokens(iter(source).__next__)
        comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
        for statement in ast.parse("".join(source)).body:
            if not isinstance(statement, (ast.Assign, ast.AnnAssign)) or statement.lineno < first:
                continue
            several = isinstance(statement, ast.AnnAssign)  # NAME: tuple = ...
            name, number = (statement.target if several else statement.targets[0]).id, statement.end_lineno
            comment = comments.get(number, "")
            while number + 1 < last and source[number].lstrip().startswith("#"):  # source[number] is the line below
                number += 1
                comment += " " + comments[number]
            variable = re.search(r"\$(\w+)", comment)
            from_environment = variable and os.environ.get(variable.group(1))
            default = variable.group() if from_environment else getattr(module, name)
            if several:
                default = tuple(default) if isinstance(default, (tuple, list)) else (default,)
            if type(default) is int and (interval := INTERVAL.search(comment)) and decimal(*interval.group(1, 3, 4)):
                default = float(default)
            table.setdefault(name, (comment.strip(), default, module))
    return table


def decimal(opening, high, closing):
    """Whether an interval is one of decimal numbers: whole ones need no end that is left out."""
    return opening == "(" or (closing == ")" and high != "inf")


def convert(value, kind):
    """`value`, a string from the command line or already of the right type, as `kind`. Raises ValueError."""
    if kind is int and isinstance(value, float) and value.is_integer():  # 0.0, say, for a constant edited to 0
        value = int(value)
    number = {int: numbers.Integral, float: numbers.Real}.get(kind)  # NumPy's numbers are welcome, too
    if number and (isinstance(value, str) or (isinstance(value, number) and not isinstance(value, bool))):
        return kind(value)
    if type(value) is not kind:
        raise ValueError
    return value


def parse_value(name, value, comment, default):
    """`value` converted to the type of `default` and held against its comment. Raises SettingError."""
    mistake = f"--{name.lower().replace('_', '-')} {value}: "
    several = isinstance(default, tuple)
    kind = type(default) if not several else type(default[0]) if default else int
    elements = [value]
    if several:
        elements = value.replace(",", " ").split() if isinstance(value, str) else value
    try:
        elements = tuple(convert(element, kind) for element in elements)
    except (TypeError, ValueError):
        names = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
        raise SettingError(mistake + f"not {names[kind]}") from None
    if match := INTERVAL.search(comment):
        opening, low, high, closing = match.groups()
        for x in elements:
            above = float(low) <= x if opening == "[" else float(low) < x
            if not (above and (x <= float(high) if closing == "]" else x < float(high))):
                raise SettingError(mistake + f"must be {match.group()}")
    if match := CHOICES.search(comment):
        words = [word.strip() for word in match.group(1).split(",")]
        for wrong in set(elements) - set(words):
            raise SettingError(mistake + f"choose one of {', '.join(words)}" + did_you_mean(wrong, words))
    return elements if several else elements[0]


def did_you_mean(word, words):
    close = difflib.get_close_matches(word, words, 1)
    return f" (did you mean {close[0]}?)" if close else ""


def load(*modules, **overrides):
    """The settings as a namespace in lower case: `load(mlp_from_scratch, data, epochs=5)`. Raises SettingError."""
    table = constants(*modules)
    for name in overrides:
        if name.upper() not in table:
            raise SettingError(f"unknown setting {name}" + did_you_mean(name, [known.lower() for known in table]))
    return SimpleNamespace(**{
        name.lower(): parse_value(name, overrides.get(name.lower(), default), comment, default)
        for name, (comment, default, _) in table.items()
    })  # fmt: skip


def resumed(modules, given):
    """The settings of the run in the folder given["resume"]: its own. Raises SettingError for a flag that says otherwise."""
    path = Path(given["resume"], "settings.json")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        own = load(*modules, **saved)
        if missing := vars(own).keys() - saved.keys():
            raise ValueError(f"its settings.json lacks {', '.join(sorted(missing))}")
    except (OSError, TypeError, ValueError) as error:
        raise SettingError(f"--resume {given['resume']}: no run of this script to take up there ({error})") from None
    for name, value in vars(load(*modules, **(saved | given))).items():
        if name not in ("resume", "data_dir") and value != getattr(own, name):  # the data may have moved
            kept = " ".join(map(str, saved[name])) if isinstance(saved[name], list) else saved[name]
            raise SettingError(f"--{name.replace('_', '-')}: the run was started with {kept or 'none'}; leave the flag out")
    moved = own.data_dir if "$" not in os.path.expandvars(own.data_dir) else load(*modules).data_dir
    own.resume, own.data_dir = given["resume"], given.get("data_dir", moved)
    return own


class Help(argparse.RawDescriptionHelpFormatter):
    """Shows `--epochs 20`, the flag with its default, as the file shows `EPOCHS = 20`."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=36)

    def _format_args(self, action, default_metavar):
        return action.metavar


def parse(*modules, argv=None):
    """The settings of `modules` from the command line. A wrong flag or value: one line on stderr, exit code 2."""
    script = Path(modules[0].__file__).name
    parser = argparse.ArgumentParser(script, "%(prog)s [--flag value ...]", modules[0].__doc__, formatter_class=Help,
                                     allow_abbrev=False)  # fmt: skip
    parser.error = lambda mistake: parser.exit(2, f"{script}: {mistake.removeprefix('argument ')}\n")
    title = "settings at the top of {}"
    groups = {module: parser.add_argument_group(title.format(Path(module.__file__).name)) for module in modules}
    flags = []
    for name, (comment, default, module) in constants(*modules).items():
        flags.append("--" + name.lower().replace("_", "-"))
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        how = {"nargs": "*" if isinstance(default, tuple) else None, "metavar": shown or '""'}
        if isinstance(default, bool):
            how = {"action": argparse.BooleanOptionalAction}
        groups[module].add_argument(flags[-1], default=argparse.SUPPRESS, help=comment.replace("%", "%%"), **how)
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(f"unknown flag {unknown[0]}{did_you_mean(unknown[0], flags)}; --help lists them all")
    given = {name: " ".join(value) if isinstance(value, list) else value for name, value in vars(given).items()}
    try:
        if given.get("resume"):
            return resumed(modules, given)
        return load(*modules, **given)
    except SettingError as mistake:
        parser.error(str(mistake))
