"""Turn the block of constants at the top of a script into command-line flags.

The constants between a line `# ---- settings ...` and the next line `# ----` are a script's only configuration.
`EPOCHS = 20  # passes over the training set, in [1, inf)` becomes `--epochs 20`. The value sets the type, the comment is the
help text, and the end of the comment restricts the value:

    `{adam, sgd}`         one of these words; the last one, PATH, stands for any file or folder
    `in (0, inf)`         a number in this interval; round brackets exclude the end. Applies to each element of a tuple.
    `$FASHION_MNIST_DIR`  anywhere in the comment: if this environment variable is set, its value is the default

A flag that would have no effect is refused by these words, anywhere in the comment:

    `only with --fc`                        unless FC is set: not empty, 0 or False
    `not with an empty --hidden`            the same
    `only with --optimizer adam or adamw`   unless OPTIMIZER is one of these words
    `only with --flip, --shift or --erase`  unless one of them is set
    `not with --head`                       if HEAD is set; or, with words after it, is one of them

A comment may continue on the lines below. A line `# -- network` starts a group, which is a heading in --help. A boolean
becomes `--quick` and `--no-quick`. `HIDDEN: tuple = (256, 128)` takes any number of values (`--hidden 256 128` or
`--hidden 256,128`), and `= 256` stands for `= (256,)`. A whole number in an interval with a round bracket at a finite end,
such as `DROPOUT = 0` with `in [0, 1)`, is converted to a float. `RECIPE` chooses one of the dicts in the script's RECIPES,
whose values replace the defaults.
"""

if __name__ == "__main__":
    raise SystemExit("support/settings.py is a module, not a script: every script uses it")

import argparse
import ast
import contextlib
import difflib
import json
import numbers
import os
import re
import textwrap
import tokenize
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from support.synonyms import MEANINGS, RENAMED, RENAMED_VALUES, VALUE_MEANINGS

ROOT = Path(__file__).resolve().parent.parent
INTERVAL = re.compile(r"in ([\[(])(\S+), (\S+)([\])])$")
CHOICES = re.compile(r"\{([^}]*)\}$")
CLAUSE = re.compile(r"(only with|not with an empty|not with) (--[\w-]+(?:(?:,| or) --[\w-]+)*)((?: (?:or )?[a-z_]+)*)")
EXTENDABLE = ("constant", "plateau")  # schedules whose learning rate does not depend on the number of epochs


class SettingError(ValueError):
    """An unknown setting or an impossible value. The message names the flag and the values that it accepts."""

    exit_code = 2


class Constant(NamedTuple):
    comment: str
    default: object
    module: object
    group: str  # "" before the first group heading


def constants(*modules):
    """{"EPOCHS": Constant, ...} of several scripts; of a name that two of them declare, that of the first one."""
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
        headings = {number: line.removeprefix("# -- ").strip() for number, line in enumerate(source, 1)
                    if number > first and line.startswith("# -- ")}  # fmt: skip
        for statement in ast.parse("".join(source)).body:
            if not isinstance(statement, (ast.Assign, ast.AnnAssign)) or statement.lineno < first:
                continue
            several = isinstance(statement, ast.AnnAssign)  # NAME: tuple = ...
            name, number = (statement.target if several else statement.targets[0]).id, statement.end_lineno
            group = next((headings[line] for line in sorted(headings, reverse=True) if line < number), "")
            comment = comments.get(number, "")
            while source[number].lstrip().startswith("#") and number + 1 < last and number + 1 not in headings:
                number += 1  # source[number] is the line below
                comment += " " + comments[number]
            variable = re.search(r"\$(\w+)", comment)
            from_environment = variable and os.environ.get(variable.group(1))
            default = variable.group() if from_environment else getattr(module, name)
            if several:
                default = tuple(default) if isinstance(default, (tuple, list)) else (default,)
            if type(default) is int and (interval := INTERVAL.search(comment)) and is_decimal(*interval.group(1, 3, 4)):
                default = float(default)
            table.setdefault(name, Constant(comment.strip(), default, module, group))
    return table


def outline(path):
    """A stand-in for the module of a script's file, without importing it: its docstring, and what needs no import.

    The path is relative to the repository's folder, or absolute.
    """
    path = ROOT / path
    tree, values = ast.parse(path.read_text(encoding="utf-8")), {}
    for statement in tree.body:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            with contextlib.suppress(Exception):  # an expression of something imported
                code = compile(ast.Expression(statement.value), path, "eval")
                values[target.id] = eval(code, {"__builtins__": {}}, values)
    return SimpleNamespace(**values, __file__=str(path), __doc__=ast.get_docstring(tree))


def is_decimal(opening, high, closing):
    """Whether an interval excludes a finite end, as only intervals of decimal numbers do."""
    return opening == "(" or (closing == ")" and high != "inf")


def convert(value, kind):
    """`value`, a string or already of the right type, as `kind`. Raises ValueError or TypeError."""
    if kind is int and isinstance(value, float) and value.is_integer():  # such as 0.0 for a constant edited to 0
        value = int(value)
    number = {int: numbers.Integral, float: numbers.Real}.get(kind)  # includes NumPy's numbers
    if number and (isinstance(value, str) or (isinstance(value, number) and not isinstance(value, bool))):
        return kind(value)
    if type(value) is not kind:
        raise ValueError
    return value


def parse_value(name, value, comment, default):
    """`value` converted to the type of `default` and checked against the comment. Raises SettingError."""
    prefix = f"{flag(name)} {value}: "
    several = isinstance(default, tuple)
    kind = type(default) if not several else type(default[0]) if default else int
    elements = [value]
    if several:
        elements = value.replace(",", " ").split() if isinstance(value, str) else value
    try:
        elements = tuple(convert(element, kind) for element in elements)
    except (TypeError, ValueError):
        names = {int: "a whole number", float: "a number", bool: "True or False", str: "a string"}
        raise SettingError(prefix + f"not {names[kind]}") from None
    if match := INTERVAL.search(comment):
        opening, low, high, closing = match.groups()
        for x in elements:
            above = float(low) <= x if opening == "[" else float(low) < x
            if not (above and (x <= float(high) if closing == "]" else x < float(high))):
                raise SettingError(prefix + f"must be {match.group()}")
    if match := CHOICES.search(comment):
        words = [word.strip() for word in match.group(1).split(",")]
        for wrong in elements:
            if wrong not in words and not (words[-1] == "PATH" and is_path(wrong)):
                raise SettingError(prefix + unknown_value(wrong, words))
        if words[-1] == "PATH":  # which later scripts find from any folder
            elements = tuple(os.path.abspath(x) if x not in words and os.path.exists(x) else x for x in elements)
    return elements if several else elements[0]


def check_train_on_val(s):
    """Raise SettingError for what the validation images are to choose although the model is trained on them."""
    given = vars(s)
    if given["train_on_val"] and given.get("tta") == "shifts":
        raise SettingError("--tta shifts: not with --train-on-val; let a run without it choose the views, and name them: "
                           "--tta 10_views")  # fmt: skip
    if given["train_on_val"] and given.get("schedule") == "plateau":
        raise SettingError("--schedule plateau: not with --train-on-val, since validation decides when the rate falls")
    if given["train_on_val"] and given.get("patience"):
        raise SettingError(f"--patience {s.patience}: not with --train-on-val; let a run without it choose --epochs")


def check_augmentation(s, image_shape):
    """Raise SettingError for shifts and erased squares that are larger than the images, (height, width)."""
    size, smallest = " x ".join(map(str, image_shape)), min(image_shape)
    for name, most in (("shift", smallest - 1), ("erase", smallest)):
        if vars(s).get(name, 0) > most:
            raise SettingError(f"{flag(name)} {getattr(s, name)}: images of {size} pixels allow at most {most}")


def is_path(value):
    """Whether the word is the path of a file or folder, or at least looks like one."""
    return bool(re.search(r"[./\\~$]", value)) or os.path.exists(value)


def flag(name):
    """The flag of a setting: LEARNING_RATE or learning_rate becomes --learning-rate."""
    return "--" + name.lower().replace("_", "-")


def unknown_value(value, words):
    """What to say of a value that is none of the words."""
    choices = f"choose from {', '.join(words)}"
    if RENAMED_VALUES.get(value) in words:
        return f"now called {RENAMED_VALUES[value]}; {choices}"
    meant = VALUE_MEANINGS.get(value.lower().replace("-", "_"))
    return choices + did_you_mean([meant] if meant in words else difflib.get_close_matches(value, words, 1))


def unknown_setting(typed, known, spelling=flag):
    """What to say of a setting that is none of `known`: its present name, else those nearest by meaning, then by letters.

    `known` are in lower case with underscores; `spelling` turns them into what the message shows.
    """
    name = typed.lstrip("-").replace("-", "_").lower()
    renamed, _, value = RENAMED.get(name, "").partition(" ")
    if renamed in known:
        return f"{typed} is now called {spelling(renamed)} {value}".rstrip()
    bare = name.replace("_", "")
    rows = [names.split() for words, names in MEANINGS.items() if bare in words.replace("_", "").split()]
    rows += [names.split() for names in MEANINGS.values() if name in names.split()][:1]  # a setting of another script
    meant = list(dict.fromkeys(candidate for row in rows for candidate in row if candidate in known))
    nearest = meant or difflib.get_close_matches(name, known, 1)
    return f"unknown {'flag' if spelling is flag else 'setting'} {typed}" + did_you_mean(map(spelling, nearest))


def did_you_mean(words):
    *others, last = list(words) or [""]
    return f" (did you mean {', '.join(others) + ' or ' if others else ''}{last}?)" if last else ""


def refuse_unknown(parser, unknown):
    """End with one line, by parser.error, if there are `unknown` arguments."""
    if unknown:
        known = [flag.removeprefix("--").replace("-", "_") for action in parser._actions for flag in action.option_strings]
        parser.error(unknown_setting(unknown[0].partition("=")[0], known) + "; --help lists all flags")


def load(*modules, **overrides):
    """The settings as a namespace in lower case: `load(mlp_from_scratch, data, epochs=5)`. Raises SettingError."""
    table = constants(*modules)
    for name in overrides:
        if name.upper() not in table:
            raise SettingError(unknown_setting(name, [known.lower() for known in table], spelling=str))
    if recipe := recipe_of(table, overrides):
        overrides = recipe | overrides
    return SimpleNamespace(**{
        name.lower(): parse_value(name, overrides.get(name.lower(), constant.default), constant.comment, constant.default)
        for name, constant in table.items()
    })  # fmt: skip


def recipe_of(table, given):
    """The settings {name: value} of the recipe that is chosen by RECIPE, from the RECIPES of its script."""
    if "RECIPE" not in table:
        return {}
    comment, default, module, _ = table["RECIPE"]
    return module.RECIPES.get(parse_value("RECIPE", given.get("recipe", default), comment, default), {})


def resumed(modules, given):
    """The settings of the run in the folder given["resume"]. Raises SettingError for a flag that contradicts them."""
    from support import files  # here, since it imports NumPy, which --help does not need

    path = Path(given["resume"], "settings.json")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        s = load(*modules, **saved)
        if missing := vars(s).keys() - saved.keys():
            raise ValueError(f"its settings.json lacks {', '.join(sorted(missing))}")
    except (OSError, *files.DAMAGED) as error:
        raise SettingError(f"--resume {given['resume']}: not the folder of a run of this script ({error})") from None
    if "epochs" in given:
        saved |= (changes := more_epochs(s, load(*modules, epochs=given["epochs"]).epochs))
        vars(s).update(changes)
    for name, value in vars(load(*modules, **(saved | given))).items():
        if name not in ("resume", "data_dir") and value != getattr(s, name):  # the data may have moved
            earlier = " ".join(map(str, saved[name])) if isinstance(saved[name], list) else saved[name]
            raise SettingError(f"{flag(name)}: the run was started with {earlier or 'none'}; leave out this flag")
    moved = s.data_dir if "$" not in os.path.expandvars(s.data_dir) else load(*modules).data_dir
    s.resume, s.data_dir = given["resume"], given.get("data_dir", moved)
    return s


def more_epochs(s, epochs):
    """The changes by which a resumed run with the settings `s` trains longer: {} where `epochs` are not more than its own.

    The warm-up keeps its length in epochs. Raises SettingError for a run that cannot be extended.
    """
    if epochs <= s.epochs:
        return {}
    reason = ""
    if s.schedule not in EXTENDABLE:
        reason = f"its {s.schedule} schedule ends with epoch {s.epochs}; only --schedule {' or '.join(EXTENDABLE)} goes on"
    elif s.quick:
        reason = "--quick limits its epochs"
    elif s.seeds > 1:
        reason = "it has several seeds; extend the run of one, as with --resume FOLDER/seed_0"
    if reason:
        raise SettingError(f"--epochs {epochs}: the run was started with {s.epochs} and cannot be extended: {reason}")
    return {"epochs": epochs, "warmup": s.warmup * s.epochs / epochs}


def check_effect(given, s, table):
    """Raise SettingError for a given flag that has no effect with the settings `s`, by the clauses of its comment."""
    for name in given:
        for clause in CLAUSE.finditer(table[name.upper()].comment):
            kind, flags, words = clause.groups()
            others, words = re.findall(r"--([\w-]+)", flags), words.replace(" or ", " ").split()
            values = [getattr(s, other.replace("-", "_"), None) for other in others]
            holds = any(value in words if words else value for value in values)
            if None not in values and holds == (kind == "not with"):
                raise SettingError(f"{flag(name)}: {clause.group()}; it would have no effect, leave it out")


class Help(argparse.HelpFormatter):
    """Shows `--epochs 20`, the flag with its default, where the file has `EPOCHS = 20`."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=32)

    def _format_args(self, action, default_metavar):
        return action.metavar

    def _split_lines(self, text, width):
        text = re.sub(r"in ([\[(]\S+), (\S+[\])])", "in\xa0\\1,\xa0\\2", text)  # keep an interval on one line
        return [line.replace("\xa0", " ") for line in textwrap.wrap(text, width, break_on_hyphens=False)]


def module_path(constant):
    """The file of a constant's module as one names it in the repository's folder: data.py, support/runs.py."""
    path = Path(constant.module.__file__).resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def make_parser(table, modules, script=""):
    """The ArgumentParser of the constants in the table, in their groups; "run" is the last group."""
    script, main_path = script or Path(modules[0].__file__).name, module_path(next(iter(table.values())))
    summary = (modules[0].__doc__ or "").split("\n\n")[0] + " Defaults are the constants at the top of the file."
    usage = "%(prog)s [--flag value ...]"
    parser = argparse.ArgumentParser(script, usage, summary, formatter_class=Help, allow_abbrev=False)
    parser.error = lambda mistake: parser.exit(2, f"{script}: {mistake.removeprefix('argument ')}\n")
    names = list(dict.fromkeys(constant.group for constant in table.values()))
    for group in sorted(names, key="run".__eq__):
        members = {name: constant for name, constant in table.items() if constant.group == group}
        paths = list(dict.fromkeys(map(module_path, members.values())))
        title = group or "settings"
        section = parser.add_argument_group(f"{title}, in {', '.join(paths)}" if paths != [main_path] else title)
        for name, (comment, default, *_) in members.items():
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
            options = {"nargs": "*" if isinstance(default, tuple) else None, "metavar": shown or '""'}
            if isinstance(default, bool):
                options, comment = {"action": argparse.BooleanOptionalAction}, f"{comment} (default: {default})"
            section.add_argument(flag(name), default=argparse.SUPPRESS, help=comment.replace("%", "%%"), **options)
    return parser


def parse(*modules, argv=None, both=(), check_given=lambda given, s: None, script=""):
    """The settings of `modules` from the command line. For a wrong flag or value: one line on stderr, exit code 2.

    both: settings whose values a script runs through itself, so that no flag is refused for them. check_given(names of the
    flags that were given, settings) may raise SettingError, too. script: how the user calls it, if not by its file's name.
    """
    table = constants(*modules)
    parser = make_parser(table, modules, script)
    given, unknown = parser.parse_known_args(argv)
    if unknown and not unknown[0].startswith("-"):
        parser.error(f"unknown argument {unknown[0]}; --help lists all flags")
    refuse_unknown(parser, unknown)
    given = {name: " ".join(value) if isinstance(value, list) else value for name, value in vars(given).items()}
    try:
        s = resumed(modules, given) if given.get("resume") else load(*modules, **given)
        check_effect(given, SimpleNamespace(**{name: value for name, value in vars(s).items() if name not in both}), table)
        check_given(given.keys(), s)
    except SettingError as mistake:
        parser.error(str(mistake))
    return s


def parse_early(*paths):
    """`parse` for --help and mistakes alone, before the modules of these files are imported."""
    with contextlib.suppress(SyntaxError, AttributeError):  # of a constant that needs an import: `parse` comes later
        parse(*map(outline, paths))
