"""Search for good settings of a script by validation accuracy, with Optuna (TPE, poor trials stopped early).

    python experiments.py search mlp

All trials have the same seed and one thread; the first one has the script's own values. The test images are
never used. The folder gets trials.csv, best.json, Optuna's figures and search.db, Optuna's storage, from
which the same command continues. Another dataset or number of epochs is another search in the same storage.
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
from studies.study import command, label, script_of, value_of

TRIALS: int = 60  # number of trials, those of an earlier call included
EPOCHS: int = 15  # epochs of each trial that is not stopped early
SEED: int = 0  # seed of the search and of every training
OUTPUT_DIR: str = ""  # "": runs/studies/search_SCRIPT, or with --quick runs/studies/quick/search_SCRIPT

LIMITS = {"TRIALS": (1, 100_000), "EPOCHS": (1, 10_000), "SEED": (0, 2**31 - 1)}
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)

# ---- what is searched: edit here. The range of a number, or values as they are called in a study: 256-128

SPACES = {
    "mlp": {
        "learning_rate": {"low": 0.0003, "high": 0.03, "log": True},
        "hidden": ("128", "256-128", "256-256", "512-256", "512-512", "512-256-128"),
        "dropout": {"low": 0.0, "high": 0.5},
        "weight_decay": {"low": 0.001, "high": 0.3, "log": True},
        "batch_size": ("64", "128", "256", "512"),
        "activation": ("relu", "leaky_relu", "tanh", "gelu"),
        "norm": ("none", "batch", "layer"),
        "label_smoothing": {"low": 0.0, "high": 0.2},
        "schedule": ("constant", "cosine", "linear"),
        "warmup": {"low": 0.0, "high": 0.3},
        "flip": ("no", "yes"),
        "shift": ("0", "1", "2"),
    },
    "cnn": {
        "learning_rate": {"low": 0.03, "high": 1.0, "log": True},
        "channels": ("16-32-64-64-128", "24-48-96-96-192", "32-64-128-128-256"),
        "batch_size": ("128", "256", "512"),
        "activation": ("relu", "leaky_relu", "gelu"),
        "weight_decay": {"low": 0.00005, "high": 0.005, "log": True},
        "dropout": {"low": 0.0, "high": 0.3},
        "label_smoothing": {"low": 0.0, "high": 0.2},
        "schedule": ("cosine", "linear"),
        "shift": ("0", "1", "2"),
        "erase": ("0", "8", "12"),
    },
}


def settings_of(trial, script):
    """The settings of a trial; numbers have three digits, so that a command can repeat them."""
    settings, own = {}, vars(script_of(script).settings())
    for name, space in SPACES[script].items():
        if isinstance(space, dict):
            settings[name] = float(f"{trial.suggest_float(name, **space):.3g}")
        else:
            settings[name] = value_of(trial.suggest_categorical(name, space), own[name])
    return settings


def validation_accuracy(trial, script, fixed, images):
    """After a whole training. Raises optuna.TrialPruned for poor trials, and for those that diverge."""
    module = script_of(script)
    s = module.settings(**fixed | settings_of(trial, script))

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
    """Optuna's study in the folder s.output_dir, after what was left of its trials."""
    path = Path(s.output_dir, "search.db")
    path.parent.mkdir(parents=True, exist_ok=True)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=s.epochs // 3, n_min_trials=5)
    options = {"storage": f"sqlite:///{path.as_posix()}", "load_if_exists": True, "direction": "maximize"}
    study = optuna.create_study(study_name=f"{script} {json.dumps(fixed)}", pruner=pruner, **options)
    finished = study.get_trials(states=FINISHED)
    study.sampler = optuna.samplers.TPESampler(seed=s.seed + len(finished), n_startup_trials=10)
    if not finished:
        own = vars(script_of(script).settings())
        own = {name: value if type(value) is float else label(value) for name, value in own.items()}
        with contextlib.suppress(ValueError):  # a value that is not in the space
            settings_of(FixedTrial(own), script)
            study.enqueue_trial(own)
    function = functools.partial(validation_accuracy, script=script, fixed=fixed, images=images)
    left = max(0, s.trials - len(finished))
    study.optimize(function, n_trials=left, show_progress_bar=sys.stderr.isatty())
    return study


def write(study, script, fixed, folder):
    """Write trials.csv, best.json and the figures; return the content of best.json. Raises run.Diverged."""
    rows, names = [], list(study.trials[0].params)
    for trial in study.get_trials(states=FINISHED):
        row = [trial.number, trial.state.name.lower(), trial.value, len(trial.intermediate_values)]
        rows.append([*row, *(trial.params[name] for name in names), trial.user_attrs.get("message", "")])
    header = ["trial", "state", "val_accuracy", "epochs", *names, "message"]
    run.write(folder / "trials.csv", run.csv_text(header, rows))
    if all(row[1] == "pruned" for row in rows):
        raise run.Diverged(f"all trials diverged, see {folder / 'trials.csv'}; edit studies/search.py")
    changes = fixed | settings_of(FixedTrial(study.best_params), script)
    best = {"val_accuracy": study.best_value, "trial": study.best_trial.number, "trials": len(rows)}
    best |= {"settings": changes, "command": command(script, changes), **run.environment()}
    run.write(folder / "best.json", json.dumps(best, indent=2) + "\n")
    save_figures(study, folder)
    return best


def save_figures(study, folder):
    """Optuna's figures: accuracy by trial, against each and all settings, and which settings mattered."""
    import matplotlib

    matplotlib.use("Agg")  # Optuna's figures are pyplot's
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as figures

    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    several = len({trial.value for trial in study.get_trials(states=(TrialState.COMPLETE,))}) > 1
    names = ["optimization_history", "slice"]
    names += ["param_importances", "parallel_coordinate"] if several else []
    for name in names:
        getattr(figures, f"plot_{name}")(study)
        figure = pyplot.gcf()
        if name == "parallel_coordinate":  # an axis for each setting, with its values beside it
            figure.set_size_inches(3 + 1.4 * len(study.best_params), 5.5)
            figure.subplots_adjust(left=0.06, right=0.98, bottom=0.22)
        save_figure(folder / f"{name}.png", figure)
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
    folder = run.ROOT / ("runs/studies/quick" if s.quick else "runs/studies") / f"search_{script}"
    s.output_dir, defaults = s.output_dir or str(folder), vars(run.settings(data))
    fixed = {name: getattr(s, name) for name in defaults if getattr(s, name) != defaults[name]}
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
