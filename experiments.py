"""Studies: comparisons over several seeds with intervals and verdicts; their data are in studies/.

python experiments.py                         lists the studies and their cost
python experiments.py dropout activation      runs two; --all runs every one, --quick is a smoke test
python experiments.py sweep mlp --plain --vary dropout 0 0.2 0.4 --set hidden 128-64
                                              one or two settings of any script
python experiments.py compare RUN RUN ...     compares finished runs
python experiments.py search mlp              searches the MLP's settings
python experiments.py heads                   classifiers on a CNN's features
"""

import argparse
import importlib
import itertools
import sys
from pathlib import Path

import joblib

import run
from studies import STUDIES, cnn, mlp, output
from studies.runner import Comparison, Runner
from studies.study import SCRIPTS, Study, learning_rate_of, script_of, value_of, vary

ALL: bool = False  # run every study
SEEDS: int = 0  # number of seeds, or all that are finished; 0: each study's, 3 in a sweep
EPOCHS: int = 0  # epochs of all runs; 0: each study's
QUICK: bool = False  # smoke test: 2 seeds, 1 epoch, one learning rate, a subset; not representative
DATASET: str = ""  # as in the scripts; "": the script's
PLAIN: bool = False  # sweep: start from the studies' plain baseline instead of the script's constants
FRESH: bool = False  # repeat finished runs
FINISHED: bool = False  # write tables and figures of the finished runs, start no others
JOBS: int = 0  # number of processes, of 0.4 to 1 GB each; 0: the number of cores
DASK: str = ""  # address of a Dask scheduler; its workers: PYTHONPATH=. dask worker ADDRESS --nthreads 1
OUTPUT_DIR: str = ""  # "": runs/studies, or with --quick runs/studies/quick

LIMITS = {"SEEDS": (0, 1000), "EPOCHS": (0, 10_000), "JOBS": (0, 1000)}
COMMANDS = {"compare": "finished", "search": "search", "heads": "heads"}  # command: module of studies
STORE = run.ROOT / "runs/studies/store"  # the finished runs of all studies
BASELINES = {"mlp": mlp.PLAIN, "cnn": cnn.PLAIN, "hybrid": cnn.PLAIN}


def listing():
    """The commands, and the studies with the number of runs and the minutes of their committed results."""
    rows = []
    for study in STUDIES.values():
        path = run.ROOT / f"results/studies/{study.name}/summary.json"
        summary = run.read_json(path) if path.exists() else {"runs": "-", "run_seconds": float("nan")}
        rows.append([study.name, summary["runs"], f"{summary['run_seconds'] / 60:.0f}", study.question])
    table = output.aligned(["study", "runs", "minutes of one core", "question"], rows)
    return f"{__doc__}\n{table}\n--help lists the flags"


def values_of(script, flag, name="", *texts):
    """(setting, values) of the words after --vary or --set; a tuple is 128-64 or none. Raises run.Error."""
    name = name.replace("-", "_").lower()
    default, values = vars(script_of(script).settings()).get(name, ""), []
    for text in texts:
        try:
            value = value_of(text, default)
        except (ValueError, KeyError):
            raise run.Error(f"{flag} {name} {text}: not a value of this setting, such as {default}") from None
        script_of(script).settings(**{name: value})  # raises for unknown settings and values
        values.append(value)
    if flag == "--vary" and len(set(values)) < 2:
        raise run.Error(f"--vary {name}: give two values or more")
    if flag == "--set" and len(values) != 1:
        raise run.Error(f"--set {name}: give one value")
    return name, values


def sweep(names, vary_words, set_words, plain):
    """The Study of `sweep SCRIPT --vary NAME VALUE ... [--set NAME VALUE]`. Raises run.Error."""
    if len(names) != 1 or names[0] not in SCRIPTS or not 1 <= len(vary_words) <= 2:
        text = "name a script and one or two settings, as in sweep mlp --vary dropout 0 0.2 0.4"
        raise run.Error(f"sweep: {text}; scripts: {', '.join(SCRIPTS)}")
    script = names[0]
    factors = dict(values_of(script, "--vary", *words) for words in vary_words)
    held = {name: value for name, (value,) in (values_of(script, "--set", *words) for words in set_words)}
    fixed, variants = (BASELINES[script] if plain else {}) | held, vary(**factors)
    for changes in variants.values():  # the learning rates to choose from are around each variant's own
        chosen = vars(script_of(script).settings(**fixed | changes))
        name = learning_rate_of(script, chosen)
        if name not in held:
            changes["learning_rates"] = tuple(float(f"{chosen[name] * f:.1g}") for f in (1 / 3, 1, 3))
    question = f"Sweep of {' and '.join(factors).replace('_', ' ')} in {SCRIPTS[script]}"
    name = f"sweep_{script}_{'_'.join(factors)}"
    return Study(name, question, script, variants, next(iter(variants)), fixed, seeds=3)


def studies_of(argv):
    """(studies, settings) of a command line. Raises run.Error."""
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--vary", "--set"):
        parser.add_argument(name, nargs="*", action="append", default=[])
    given, flags = parser.parse_known_args(argv[len(names) :])
    s = run.parse(flags, sys.modules[__name__])
    if names[:1] == ["sweep"]:
        return [sweep(names[1:], given.vary, given.set, s.plain)], s
    if given.vary or given.set or s.plain:
        raise run.Error("--vary, --set, --plain: only for sweep, as in sweep mlp --vary dropout 0 0.2 0.4")
    if s.all:
        return list(STUDIES.values()), s
    for name in names:
        if name not in STUDIES:
            near = run.did_you_mean(name.replace("-", "_"), [*STUDIES, *COMMANDS, "sweep"])
            raise run.Error(f"{name}: no such study{near}; python experiments.py lists them")
    return [STUDIES[name] for name in dict.fromkeys(names)], s


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(f"studies.{COMMANDS[argv[0]]}").main(argv[1:])
    studies, s = studies_of(argv)
    if not studies:
        return print(listing())
    folder = Path(s.output_dir or run.ROOT / ("runs/studies/quick" if s.quick else "runs/studies"))
    runner = Runner(STORE, s.jobs or joblib.cpu_count(), s.dask, s.fresh, s.finished)
    comparisons = [Comparison(study, runner, s, folder / study.name) for study in studies]
    try:
        for comparison in comparisons:
            if not (rows := comparison.run()):
                raise run.Error(f"{comparison.study.name}: has no finished runs; leave out --finished")
            summary = output.write(folder / comparison.study.name, comparison, rows)
            print(f"\n{summary['question']} ({output.caption(summary)})")
            print(output.aligned(output.HEADER, output.table(summary)), flush=True)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("; finished runs are kept, and the same command continues") from None
    print(f"tables, figures and runs are in {folder}; start with {folder / 'README.md'}")


if __name__ == "__main__":
    run.cli(main)
