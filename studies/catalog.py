"""All studies, and what `python experiments.py` does with them."""

if __name__ == "__main__":
    raise SystemExit("studies/catalog.py is a module, not a script: experiments.py uses it")

import ast
import difflib
import json
import sys
from pathlib import Path

from tqdm import tqdm

from studies import both, cnn, mlp, output, readme
from studies.comparison import Comparison, Options
from studies.runner import TYPICAL_SECONDS, Runner
from studies.study import SCRIPTS, Study, learning_rate_of, modules_of, vary
from support import settings

STUDIES = {study.name: study for module in (mlp, cnn, both) for study in module.STUDIES}
ROOT = Path(__file__).parent.parent


def listing():
    """The studies with their numbers of runs and their time, as text."""
    lines = [f"{'study':<26}{'runs':>6}{'time':>10}  question"]
    for study in STUDIES.values():
        runs, minutes = cost(study)
        lines.append(f"{study.name:<26}{runs:>6}{minutes:>6.0f} min  {study.question}")
    lines.append(f"{'heads':<26}{'-':>6}{'45 min':>10}  Does the NumPy MLP classify a CNN's features better than others do?")
    return "\n".join([*lines, "", "Time of one core; it is divided by --jobs. --help explains how to run them."])


def cost(study):
    """(number of runs, minutes of one core): measured where results are committed, otherwise an estimate."""
    path = ROOT / "results/studies" / study.name / "summary.json"
    if path.exists():
        summary = json.loads(path.read_text(encoding="utf-8"))
        return summary["runs"], summary["run_seconds"] / 60
    runs = {}
    for given in study.variants.values():
        script = given.get("script", study.script)
        tuned = len(given.get("learning_rates", study.learning_rates)) or 1
        if learning_rate_of(script, study.fixed | given) in study.fixed | given:
            tuned = 1
        runs[script] = runs.get(script, 0) + tuned - 1 + min(study.seeds, given.get("seeds", study.seeds))
    return sum(runs.values()), sum(count * TYPICAL_SECONDS[script] for script, count in runs.items()) / 60


def select(names):
    """The studies of these names. Raises settings.SettingError, with the nearest name."""
    for name in names:
        if name not in STUDIES:
            near = difflib.get_close_matches(name, [*STUDIES, "heads", "sweep", "compare", "search"], 1)
            raise settings.SettingError(f"{name}: no such study{settings.did_you_mean(near)}; python experiments.py lists "
                                        "them")  # fmt: skip
    return [STUDIES[name] for name in dict.fromkeys(names)]


def value_of(setting, text):
    """A value from the command line as the constant of its setting has it; numbers of a tuple are joined by - or commas."""
    if isinstance(setting.default, tuple):
        text = text.replace("-", ",") if not text.startswith("-") else text
        return tuple(ast.literal_eval(number) for number in text.split(",") if number not in ("", "none"))
    if isinstance(setting.default, bool):
        return {"yes": True, "true": True, "no": False, "false": False}.get(text.lower(), text)
    return settings.convert(text, type(setting.default))


def sweep(arguments, varied, fixed, seeds):
    """The Study of `sweep SCRIPT --vary NAME VALUE ... [--set NAME VALUE]`. Raises settings.SettingError."""
    script = arguments[0] if len(arguments) == 1 else ""
    if script not in SCRIPTS:
        raise settings.SettingError(f"sweep {' '.join(arguments)}: name one script: {', '.join(SCRIPTS)}")
    if not 1 <= len(varied) <= 2:
        raise settings.SettingError("sweep: give --vary once or twice, as in --vary dropout 0 0.2 0.4")
    table = settings.constants(*modules_of(script))
    parsed = []
    for flag, group in [("--vary", group) for group in varied] + [("--set", group) for group in fixed]:
        name = group[0].lstrip("-").replace("-", "_").lower()
        if name.upper() not in table:
            known = [constant.lower() for constant in table]
            raise settings.SettingError(f"{flag} {group[0]}: {settings.unknown_setting(group[0], known, spelling=str)}")
        try:
            values = [value_of(table[name.upper()], text) for text in group[1:]]
        except (ValueError, TypeError, SyntaxError):
            raise settings.SettingError(f"{flag} {' '.join(group)}: not values of {name}") from None
        if len(values) < (2 if flag == "--vary" else 1):
            raise settings.SettingError(f"{flag} {group[0]}: give {'two values or more' if flag == '--vary' else 'a value'}")
        values = [settings.parse_value(name, value, *table[name.upper()][:2]) for value in values]
        parsed.append((name, values if flag == "--vary" else values[0]))
    factors = dict(parsed[: len(varied)])
    variants = vary(**factors)
    names = " and ".join(name.replace("_", " ") for name in factors)
    return Study(f"sweep_{script}_{'_'.join(factors)}", f"Sweep of {names}", script, variants, next(iter(variants)),
                 dict(parsed[len(varied) :]), seeds=seeds, factors=tuple(factors), curves=len(factors) == 1)  # fmt: skip


def run(studies, folder, store, options, num_jobs):
    """Run the studies and write their files into `folder`; return the number of runs that failed.

    options: the namespace of experiments.py's flags. store: folder of the finished runs.
    """
    overrides = {"dataset": options.dataset} if options.dataset else {}
    overrides |= {"quick": True} if options.quick else {}
    runner = Runner(store, num_jobs, overrides, options.dask)
    changes = Options(options.seeds or 2 * options.quick, options.epochs or 1 * options.quick,
                      not (options.fixed_learning_rate or options.quick))  # fmt: skip
    comparisons = [Comparison(study, runner, changes) for study in studies]  # so that all settings are checked first
    total = sum(sum(comparison.runs_by_script().values()) for comparison in comparisons)
    with tqdm(total=total, unit="run", disable=None, leave=False, dynamic_ncols=True,
              bar_format="{l_bar}{bar}| {n_fmt} of {total_fmt} runs{postfix}") as bar:  # fmt: skip
        runner.start(bar, comparisons)
        try:
            for comparison in comparisons:
                rows = comparison.run()
                summary = output.write(folder / comparison.study.name, comparison, rows)
                tqdm.write(readme.text_of(summary))
                sys.stdout.flush()
                readme.write(folder, STUDIES)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("; finished runs are kept, and the same command continues") from None
    for message in sorted(set(runner.failed.values())):
        count = list(runner.failed.values()).count(message)
        print(f"{count} run{'s' * (count > 1)} failed twice: {message}", file=sys.stderr)
    print(f"tables, figures and runs are in {folder}; start with {folder / 'README.md'}")
    return len(runner.failed)
