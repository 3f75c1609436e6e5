"""Search for good settings of a script by validation accuracy, with Optuna (TPE, poor trials stopped early).

    python experiments.py search mlp

All trials have the same seed and one thread; the first one has the script's own values. The test images are
never used. The folder gets trials.csv, best.json, Optuna's figures and search.db, Optuna's storage, from
which the same command continues.
"""

import contextlib
import functools
import io
import json
import sys
import warnings
from pathlib import Path

import optuna
from optuna.trial import FixedTrial, TrialState

import data
import run
from studies.output import save_figure
from studies.runner import one_thread
from studies.study import command, label, script_of

TRIALS: int = 60  # number of trials, those of an earlier call included
EPOCHS: int = 15  # epochs of each trial that is not stopped early
MINUTES: float = 0.0  # start no further trial after this many minutes; 0: no limit
SEED: int = 0  # seed of the search and of every training
OUTPUT_DIR: str = ""  # "": runs/studies/search_SCRIPT, or with --quick runs/studies/quick/search_SCRIPT

LIMITS = {"TRIALS": (1, 100_000), "EPOCHS": (1, 10_000), "MINUTES": (0, 1_000_000), "SEED": (0, 2**31 - 1)}


# ---- what is searched: edit here. number() and one_of() add a setting to those of the trial


def mlp_space(number, one_of):
    number("learning_rate", 0.0003, 0.03, log=True)
    one_of("hidden", (128,), (256, 128), (256, 256), (512, 256), (512, 512), (512, 256, 128))
    number("dropout", 0.0, 0.5)
    number("weight_decay", 0.001, 0.3, log=True)
    one_of("batch_size", 64, 128, 256, 512)
    one_of("activation", "relu", "leaky_relu", "tanh", "gelu")
    one_of("norm", "none", "batch", "layer")
    number("label_smoothing", 0.0, 0.2)
    one_of("schedule", "constant", "cosine", "linear")
    number("warmup", 0.0, 0.3)
    one_of("flip", False, True)
    one_of("shift", 0, 1, 2)


def cnn_space(number, one_of):
    number("learning_rate", 0.03, 1.0, log=True)
    one_of("channels", (16, 32, 64, 64, 128), (24, 48, 96, 96, 192), (32, 64, 128, 128, 256))
    one_of("batch_size", 128, 256, 512)
    one_of("activation", "relu", "leaky_relu", "gelu")
    number("weight_decay", 0.00005, 0.005, log=True)
    number("dropout", 0.0, 0.3)
    number("label_smoothing", 0.0, 0.2)
    one_of("schedule", "cosine", "linear")
    one_of("shift", 0, 1, 2)
    one_of("erase", 0, 8, 12)


SPACES = {"mlp": mlp_space, "cnn": cnn_space}


def settings_of(trial, space):
    """The settings of a trial; numbers have three digits, so that a command can repeat them."""
    settings = {}

    def number(name, low, high, log=False):
        settings[name] = float(f"{trial.suggest_float(name, low, high, log=log):.3g}")

    def one_of(name, *values):
        labels = {label(value): value for value in values}
        settings[name] = labels[trial.suggest_categorical(name, list(labels))]

    space(number, one_of)
    return settings


def validation_accuracy(trial, script, fixed, images):
    """After a whole training. Raises optuna.TrialPruned for poor trials, and for those that diverge."""
    module = script_of(script)
    s = module.settings(**fixed | settings_of(trial, SPACES[script]))

    def report(history):
        trial.report(history["val_accuracy"][-1], len(history["epoch"]))
        if len(history["epoch"]) < s.epochs and trial.should_prune():
            raise optuna.TrialPruned

    try:
        module.check_settings(s)
        with one_thread(), contextlib.redirect_stdout(io.StringIO()):
            return module.train(images, s, on_epoch=report)[1]["val_accuracy"][-1]
    except run.Error as error:  # the loss diverged, or settings that cannot be combined
        trial.set_user_attr("message", str(error))
        raise optuna.TrialPruned from None  # which TPE takes for poor, while it ignores failed trials


def search(script, s, fixed, images):
    """Optuna's study in the folder s.output_dir, after what was left of its trials. Raises run.Error."""
    path, space = Path(s.output_dir, "search.db"), SPACES[script]
    path.parent.mkdir(parents=True, exist_ok=True)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=s.epochs // 3, n_min_trials=5)
    options = {"storage": f"sqlite:///{path.as_posix()}", "load_if_exists": True, "direction": "maximize"}
    study = optuna.create_study(study_name=script, pruner=pruner, **options)
    made_from = json.loads(json.dumps(fixed))
    if (earlier := study.user_attrs.get("made_from", made_from)) != made_from:
        raise run.Error(f"{path}: is of a search with {earlier}; name another --output-dir")
    study.set_user_attr("made_from", made_from)
    finished = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    study.sampler = optuna.samplers.TPESampler(seed=s.seed + len(finished), n_startup_trials=10)
    if not finished:
        own = vars(script_of(script).settings())
        own = {name: value if type(value) is float else label(value) for name, value in own.items()}
        with contextlib.suppress(ValueError):  # a value that is not in the space
            settings_of(FixedTrial(own), space)
            study.enqueue_trial(own)
    options = {"timeout": 60 * s.minutes or None, "show_progress_bar": sys.stderr.isatty()}
    function = functools.partial(validation_accuracy, script=script, fixed=fixed, images=images)
    study.optimize(function, n_trials=max(0, s.trials - len(finished)), **options)
    return study


def write(study, script, fixed, folder):
    """Write trials.csv, best.json and the figures; return the content of best.json. Raises run.Diverged."""
    rows, names = [], list(study.trials[0].params)
    for trial in study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)):
        about = [trial.number, trial.state.name.lower(), trial.value, len(trial.intermediate_values)]
        rows.append([*about, *(trial.params[name] for name in names), trial.user_attrs.get("message", "")])
    header = ["trial", "state", "val_accuracy", "epochs", *names, "message"]
    run.write(folder / "trials.csv", run.csv_text(header, rows))
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    if not complete:
        raise run.Diverged(f"all trials diverged, see {folder / 'trials.csv'}; edit studies/search.py")
    changes = fixed | settings_of(FixedTrial(study.best_params), SPACES[script])
    best = {"val_accuracy": study.best_value, "trial": study.best_trial.number, "trials": len(rows)}
    best |= {"settings": changes, "command": command(script, changes), **run.environment()}
    run.write(folder / "best.json", json.dumps(best, indent=2) + "\n")
    save_figures(study, folder, several=len({trial.value for trial in complete}) > 1)
    return best


def save_figures(study, folder, several):
    """Optuna's figures: accuracy by trial, against each setting, and which settings mattered."""
    import matplotlib

    matplotlib.use("Agg")  # Optuna's figures are pyplot's
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as optuna_figures

    names = ["optimization_history", "slice", *(["param_importances"] if several else [])]
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    for name in names:
        getattr(optuna_figures, f"plot_{name}")(study)
        save_figure(folder / f"{name}.png", pyplot.gcf())
        pyplot.close()


def main(argv):
    script, *argv = argv or [""]
    if script not in SPACES:
        raise run.Error(f"search {script}: name a script: {', '.join(SPACES)}")
    s = run.parse(argv, sys.modules[__name__], data)
    if s.train_on_val:
        raise run.Error("--train-on-val: not in a search, which chooses by the validation images")
    if s.quick:
        s.trials, s.epochs = min(s.trials, 6), min(s.epochs, 3)
    folder = run.ROOT / ("runs/studies/quick" if s.quick else "runs/studies")
    s.output_dir = s.output_dir or str(folder / f"search_{script}")
    changed = {name.lower(): default for name, (_, default, _) in run.constants(data).items()}
    fixed = {name: getattr(s, name) for name in changed if getattr(s, name) != changed[name]}
    fixed |= {"epochs": s.epochs, "seed": s.seed}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = search(script, s, fixed, data.load(s))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("; finished trials are kept, and the same command continues") from None
    best = write(study, script, fixed, Path(s.output_dir))
    print(f"highest validation accuracy of {best['trials']} trials, partly luck: {best['val_accuracy']:.2%};")
    print(f"this command gives the mean over seeds:\n\n{best['command']} --seeds 5\n")
    print(f"trials.csv, best.json and figures are in {s.output_dir}")
