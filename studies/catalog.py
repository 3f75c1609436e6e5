"""All studies, and what `python experiments.py` does with them."""

if __name__ == "__main__":
    raise SystemExit("studies/catalog.py is a module, not a script: experiments.py uses it")

import difflib
import json
import shlex
import sys
from pathlib import Path

from tqdm import tqdm

from studies import both, cnn, mlp, output, readme, workers
from studies.comparison import Comparison, Options, variants_of
from studies.progress import TYPICAL_SECONDS, Progress
from studies.runner import Runner, stopped
from studies.study import SCRIPTS, Study, learning_rate_of, modules_of, settings_of, vary
from support import files, settings

STUDIES = {study.name: study for module in (mlp, cnn, both) for study in module.STUDIES}
COMMANDS = ("sweep", "compare", "search", "heads")  # other words for the first argument
RESULTS = Path(__file__).parent.parent / "results/studies"
# Settings that change no result of a study, or have a flag of their own
NOT_VARIED = ("seed", "seeds", "output_dir", "resume", "figures", "save_weights", "log_steps", "tta", "quick",
              "offline_fallback", "train_on_val")  # fmt: skip


def listing():
    """The studies with their numbers of runs and their time, as text."""
    lines = [f"{'study':<26}{'runs':>6}{'time':>10}  question"]
    for study in STUDIES.values():
        runs, minutes = cost(study)
        lines.append(f"{study.name:<26}{runs:>6}{minutes:>6.0f} min  {study.question}")
    lines.append(f"{'heads':<26}{'-':>6}{heads_minutes():>6.0f} min  {readme.HEADS}")
    end = ("Time of one core; it is divided by --jobs, that of heads by the number of cores.\n"
           "Run some with python experiments.py NAME NAME; --help explains more.")  # fmt: skip
    return "\n".join([*lines, "", end])


def cost(study):
    """(number of runs, minutes of one core): measured where results are committed, otherwise an estimate."""
    try:
        summary = json.loads((RESULTS / study.name / "summary.json").read_text(encoding="utf-8"))
        return summary["runs"], summary["run_seconds"] / 60
    except (OSError, ValueError, KeyError):
        counts = {"cnn": study.seeds if study.backbone else 0}
    for variant in variants_of(study, Options()):
        counts[variant.script] = counts.get(variant.script, 0) + len(variant.learning_rates) - 1 + len(variant.seeds)
    return sum(counts.values()), sum(count * TYPICAL_SECONDS[script] for script, count in counts.items()) / 60


def heads_minutes():
    """Minutes of one core of the study `heads`, with its CNNs, as measured; nan where no results are committed."""
    try:
        study, hybrid = (json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
                         for folder in (RESULTS / "heads", RESULTS.parent / "hybrid_train"))  # fmt: skip
        backbones = sum(hybrid["by_seed"]["seconds"]) if study["settings"]["backbones"] else 0
        return (study["seconds"] + backbones) * study["machine"]["cores"] / 60
    except (OSError, ValueError, KeyError):
        return float("nan")


def select(names):
    """The studies of these names. Raises settings.SettingError, with the nearest name."""
    for name in names:
        if name in COMMANDS:
            raise settings.SettingError(f"{name}: must be the first argument, and without names of studies")
        if name not in STUDIES:
            near = difflib.get_close_matches(name.replace("-", "_"), [*STUDIES, *COMMANDS], 1)
            raise settings.SettingError(f"{name}: no such study{settings.did_you_mean(near)}; python experiments.py lists "
                                        "them")  # fmt: skip
    return [STUDIES[name] for name in dict.fromkeys(names)]


def value_of(name, text, constant):
    """The value of a setting from the command line; the numbers of a tuple are joined by - or commas."""
    if isinstance(constant.default, tuple):
        text = "" if text == "none" else text.replace("-", " ") if not text.startswith("-") else text
    if isinstance(constant.default, bool):
        text = {"yes": True, "true": True, "no": False, "false": False}.get(text.lower(), text)
    return settings.parse_value(name, text, constant.comment, constant.default)


def given(script, flag, groups):
    """{setting: [values]} of the words after each `flag`. Raises settings.SettingError."""
    table, result = settings.constants(*modules_of(script)), {}
    for typed, *texts in groups:
        name = typed.lstrip("-").replace("-", "_").lower()
        if name.upper() not in table:
            known = [constant.lower() for constant in table]
            raise settings.SettingError(f"{flag} {typed}: {settings.unknown_setting(typed, known, spelling=str)}")
        if name in NOT_VARIED:
            raise settings.SettingError(f"{flag} {typed}: not in a sweep; see --seeds, --quick and --help")
        if name in result:
            raise settings.SettingError(f"{flag} {typed}: is given twice")
        try:
            result[name] = list(dict.fromkeys(value_of(name, text, table[name.upper()]) for text in texts))
        except settings.SettingError as error:
            raise settings.SettingError(f"{flag} {str(error).removeprefix('--')}") from None
        if flag == "--vary" and len(result[name]) < 2:
            raise settings.SettingError(f"{flag} {typed}: give two different values or more")
        if flag == "--set" and len(texts) != 1:
            raise settings.SettingError(f"{flag} {typed}: give one value; those of several layers are joined, as in 256-128")
    return result


def sweep(arguments, varied, fixed, seeds):
    """The Study of `sweep SCRIPT --vary NAME VALUE ... [--set NAME VALUE]`. Raises settings.SettingError."""
    script = arguments[0] if len(arguments) == 1 else ""
    if script not in SCRIPTS:
        near = settings.did_you_mean(difflib.get_close_matches(arguments[0], SCRIPTS, 1) if arguments else ())
        raise settings.SettingError(f"{' '.join(['sweep', *arguments])}: name one script: {', '.join(SCRIPTS)}{near}")
    if not 1 <= len(varied) <= 2:
        raise settings.SettingError("sweep: give --vary once or twice, as in --vary dropout 0 0.2 0.4")
    factors, held = given(script, "--vary", varied), given(script, "--set", fixed)
    if twice := factors.keys() & held.keys():
        raise settings.SettingError(f"--set {min(twice)}: is given with --vary, too")
    held = {name: values[0] for name, values in held.items()}
    variants = {label: changes | {"learning_rates": rates_around_default(script, held | changes)}
                for label, changes in vary(**factors).items()}  # fmt: skip
    names = " and ".join(name.replace("_", " ") for name in factors)
    return Study(f"sweep_{script}_{'_'.join(factors)}", f"Sweep of {names} in {SCRIPTS[script]}.py", script, variants,
                 next(iter(variants)), fixed=held, seeds=seeds, factors=tuple(factors), curves=len(factors) == 1)


def rates_around_default(script, changes):
    """Learning rates to choose from: the script's default with these settings, a third of it, and three times it."""
    rate = vars(settings_of(script, changes))[learning_rate_of(script, changes)]
    return tuple(float(f"{rate * factor:.1g}") for factor in (1 / 3, 1, 3))


def command_of(study, options):
    """The command that runs one study with the options that its results depend on."""
    words = [study.name] if not study.name.startswith("sweep_") else ["sweep", study.script]
    words += [word for flag in ("vary", "set") for group in vars(options)[flag] for word in (f"--{flag}", *group)]
    for name in ("seeds", "epochs", "fixed_learning_rate", "quick", "dataset"):
        if value := vars(options)[name]:
            words += [f"--{name.replace('_', '-')}"] + [str(value)] * (value is not True)
    return shlex.join(["python", "experiments.py", *words])


def write(folder, comparison, rows):
    """Write the files of a finished study and README.md into `folder`; return the summary. Raises files.FileError."""
    try:
        summary = output.write(folder / comparison.study.name, comparison, rows)
        readme.write(folder, STUDIES, lambda message: tqdm.write(message, file=sys.stderr))
        return summary
    except OSError as error:
        raise stopped(f"{folder}: cannot be written ({error.strerror})") from None


def run(studies, folder, store, options, num_jobs):
    """Run the studies and write their files into `folder`; return the number of runs that failed.

    options: the namespace of experiments.py's flags. store: folder of the finished runs.
    """
    overrides = {"dataset": options.dataset} if options.dataset else {}
    overrides |= {"quick": True} if options.quick else {}
    runner = Runner(store, overrides=overrides)
    changes = Options(options.seeds, options.epochs or 1 * options.quick, 2 if options.quick else 1000,
                      not (options.fixed_learning_rate or options.quick))  # fmt: skip
    comparisons = [Comparison(study, runner, changes, command_of(study, options)) for study in studies]  # checks settings
    folder.mkdir(parents=True, exist_ok=True)
    Path(store).mkdir(parents=True, exist_ok=True)
    with files.locked(store, "give all studies to one command"):
        return run_comparisons(comparisons, runner, folder, options, num_jobs)


def run_comparisons(comparisons, runner, folder, options, num_jobs):
    """`run`, with the store locked."""
    runner.workers = workers.DaskWorkers(options.dask) if options.dask else workers.Processes(num_jobs)
    try:
        with tqdm(unit="run", disable=None, leave=False, dynamic_ncols=True,
                  bar_format="{l_bar}{bar}| {n_fmt} of {total_fmt} runs{postfix}") as bar:  # fmt: skip
            progress = Progress(bar, comparisons, runner.workers.number)
            runner.on_finished = progress.finished
            for comparison in comparisons:
                rows = comparison.run()
                progress.end_study()
                tqdm.write(readme.terminal_text(write(folder, comparison, rows)))
                sys.stdout.flush()
    except KeyboardInterrupt:
        raise KeyboardInterrupt("; finished runs are kept, and the same command continues with them") from None
    finally:
        runner.workers.close()
    runner.remove_features()
    messages = [row["error"] for row in runner.failed.values()]
    for message in dict.fromkeys(messages):
        number = messages.count(message)
        print(f"{number} run{'s' * (number > 1)} failed twice: {message}", file=sys.stderr)
    print(f"\ntables, figures and runs are in {folder}; start with {folder / 'README.md'}")
    return len(messages)
