"""Search for good settings of a script by validation accuracy, with Optuna.

    python experiments.py search mlp

Optuna rather than scikit-learn's HalvingRandomSearchCV, since it learns from earlier trials (TPE), stops poor ones early by
their validation accuracy, keeps every finished one in a file from which a killed search continues, and says which settings
mattered; HalvingRandomSearchCV draws at random, searches estimators only, not scripts, and loses everything when killed.

All trials use the same seed and one thread. The first one has the script's defaults. The test images are never read: the
validation images take their place. The output folder gets trials.csv, best.json and search.png; search.db is Optuna's
file, from which the same command continues.
"""

if __name__ == "__main__":
    raise SystemExit("studies/search.py is a module, not a script: run it as python experiments.py search mlp")

import contextlib
import csv
import difflib
import importlib
import io
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optuna
from optuna.trial import TrialState
from tqdm import tqdm

import data
from studies import search_figure
from studies.execute import one_thread, row_of
from studies.runner import Runner
from studies.study import SCRIPTS, label, settings_of, training_command
from support import files, runs, settings


class Range(NamedTuple):
    """All numbers from `low` to `high`; log: drawn evenly on a logarithmic scale. Whole numbers if both ends are."""

    low: float
    high: float
    log: bool = False


# ---- settings: edit here, or override any of them on the command line (--trials 20) ----
# -- search
TRIALS = 60  # number of trials, those of an earlier call included, in [1, 100000]
EPOCHS = 15  # epochs of each trial that is not stopped early, in [1, 10000]
MINUTES = 0.0  # start no further trial after this many minutes; 0 is no limit; in [0, inf)
SEED = 0  # seed of the search and of every training, in [0, inf)
OUTPUT_DIR = ""  # folder of the search, to be continued if it exists; "" is runs/studies/search_SCRIPT, or ..._quick
QUICK = False  # smoke test: at most 6 trials of 3 epochs on a subset; numbers are not representative
# ----

# What is searched, for each script: a Range, or a tuple of the values to choose from. The names are the script's settings;
# hidden_layers, width and narrowing (each layer's width divided by the next one's) make up the MLP's HIDDEN.
SPACES = {
    "mlp": {
        "learning_rate": Range(0.0003, 0.03, log=True),
        "hidden_layers": Range(1, 3),
        "width": (64, 128, 256, 512),
        "narrowing": (1, 2),
        "dropout": Range(0.0, 0.5),
        "weight_decay": Range(0.001, 0.3, log=True),
        "batch_size": (64, 128, 256, 512),
        "activation": ("relu", "leaky_relu", "tanh", "gelu"),
        "norm": ("none", "batch", "layer"),
        "label_smoothing": Range(0.0, 0.2),
        "schedule": ("constant", "cosine", "linear"),
        "warmup": Range(0.0, 0.3),
        "flip": (False, True),
        "shift": (0, 1, 2),
    },
    "cnn": {
        "learning_rate": Range(0.03, 1.0, log=True),
        "channels": ((16, 32, 64, 64, 128), (24, 48, 96, 96, 192), (32, 64, 128, 128, 256)),
        "batch_size": (128, 256, 512),
        "activation": ("relu", "leaky_relu", "gelu"),
        "weight_decay": Range(0.00005, 0.005, log=True),
        "dropout": Range(0.0, 0.3),
        "label_smoothing": Range(0.0, 0.2),
        "schedule": ("cosine", "linear"),
        "shift": (0, 1, 2),
        "erase": (0, 8, 12),
    },
}
# entries of SPACES that are no settings themselves, with the values that give the script's defaults
DERIVED = {"mlp": {"hidden_layers": 2, "width": 256, "narrowing": 2}, "cnn": {}}
STARTUP_TRIALS = 10  # drawn at random before TPE begins
PRUNER = {"n_startup_trials": 5, "n_min_trials": 5}  # stop trials below the median of earlier ones, after a third of EPOCHS
MIN_COMPLETE = 10  # trials trained to the end from which importances are estimated
DB = "search.db"


def distributions(space):
    """{name: Optuna's distribution} of a search space. Choices are named by their labels, such as 512-256."""
    result = {}
    for name, values in space.items():
        if not isinstance(values, Range):
            result[name] = optuna.distributions.CategoricalDistribution([label(value) for value in values])
        elif isinstance(values.low, int) and isinstance(values.high, int):
            result[name] = optuna.distributions.IntDistribution(*values)
        else:
            result[name] = optuna.distributions.FloatDistribution(*values)
    return result


def changes_of(space, params):
    """The script's settings of a trial's parameters; decimal numbers to three digits, so that a command can repeat them."""
    changes = {}
    for name, values in space.items():
        value = params[name]
        if not isinstance(values, Range):
            changes[name] = {label(choice): choice for choice in values}[value]
        else:
            changes[name] = float(f"{value:.3g}") if isinstance(value, float) else value
    if "hidden_layers" in changes:
        layers, width, narrowing = (changes.pop(name) for name in ("hidden_layers", "width", "narrowing"))
        changes["hidden"] = tuple(max(1, width // narrowing**layer) for layer in range(layers))
    return changes


def default_params(script, space):
    """The parameters that give the script's defaults; None where the space does not contain them."""
    defaults = vars(settings_of(script, {}))
    params = {}
    for name, values in space.items():
        value = (defaults | DERIVED[script])[name]
        if not (values.low <= value <= values.high if isinstance(values, Range) else value in values):
            return None
        params[name] = value if isinstance(values, Range) else label(value)
    return params if all(defaults[name] == value for name, value in changes_of(space, params).items()) else None


STATES = {"finished": "trained to the end", "stopped early": "stopped early", "diverged": "diverged", "failed": "failed"}


def state_of(trial):
    """One of STATES."""
    return trial.user_attrs.get("state", "finished" if trial.state is TrialState.COMPLETE else "stopped early")


class Search:
    """The search of one script: `stored` is the study in the folder, which has finished trials only, `study` its copy.

    s: settings of this module and data.py. A trial that is killed leaves nothing behind: the next call repeats it, with the
    same parameters, since they depend on the seed, the trial's number and the finished trials alone.
    """

    def __init__(self, script, s):
        self.script, self.s, self.space, self.database = script, s, SPACES[script], None
        if s.train_on_val:
            raise settings.SettingError("--train-on-val: not in a search, which chooses by the validation images")
        self.folder = Path(s.output_dir or f"runs/studies/search_{script}{'_quick' * s.quick}")
        defaults, runner = vars(settings_of(script, {})), Runner(self.folder)
        for name in self.space.keys() - DERIVED[script].keys() - defaults.keys():
            raise settings.SettingError(f"SPACES: {settings.unknown_setting(name, [*defaults], spelling=str)}")
        changed = [name for name in map(str.lower, settings.constants(data)) if getattr(s, name) != defaults[name]]
        self.fixed = {name: getattr(s, name) for name in ("epochs", "seed", *changed) if name != "offline_fallback"}
        self.fixed |= runner.precision(script, {}) | ({"quick": True} if s.quick else {})
        self.default_params = default_params(script, self.space)
        images = data.load_for(settings_of(script, self.fixed))
        self.dataset, self.images = images.name, replace(images, test=images.val)
        self.made_from = {"search space": {name: list(map(str, values)) for name, values in self.space.items()},
                          "data": images.fingerprint(), "version of code or packages": runner.version(script),
                          **{name: value for name, value in self.fixed.items() if name != "data_dir"}}  # fmt: skip

    @contextlib.contextmanager
    def opened(self):
        """The folder locked, and the study in it opened or created. Raises files.FileError where it is of something else."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.FileError(f"cannot write to {self.folder}: {error.strerror}; choose another --output-dir") from None
        with files.locked(self.folder):
            files.remove_partial(self.folder)
            try:
                self.open()
                yield self
            finally:
                if self.database:
                    self.database.engine.dispose()  # closes the file

    def open(self):
        pruner = optuna.pruners.MedianPruner(n_warmup_steps=self.s.epochs // 3, **PRUNER)
        self.study = optuna.create_study(direction="maximize", pruner=pruner)
        with self.storage():
            self.database = optuna.storages.RDBStorage(f"sqlite:///{(self.folder / DB).as_posix()}")
            self.stored = optuna.create_study(storage=self.database, study_name=self.script, direction="maximize",
                                              load_if_exists=True)  # fmt: skip
            if "made_from" not in self.stored.user_attrs:
                self.stored.set_user_attr("made_from", self.made_from)
            earlier = self.stored.user_attrs["made_from"]
            self.study.add_trials(self.stored.trials)
        if names := [name for name in earlier | self.made_from if earlier.get(name) != self.made_from.get(name)]:
            raise files.FileError(f"{self.folder}: holds a search with another {', '.join(names)}; repeat its command to "
                                  "continue it, or name another --output-dir")  # fmt: skip

    @contextlib.contextmanager
    def storage(self):
        """Raise files.FileError where Optuna's file cannot be read or written."""
        from sqlalchemy.exc import SQLAlchemyError  # here, since Optuna imports it with the first storage only

        try:
            yield
        except (SQLAlchemyError, optuna.exceptions.OptunaError, OSError, RuntimeError) as error:
            reason = str(getattr(error.__cause__ or error, "orig", error)).splitlines()[0]
            raise files.FileError(f"{self.folder / DB}: cannot be used ({reason}); if it is damaged, move it away to start "
                                  "again") from None  # fmt: skip

    @property
    def trials(self):
        """The finished trials: trained to the end, stopped early or diverged."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]

    @property
    def complete(self):
        """The trials that were trained to the end."""
        return [trial for trial in self.trials if trial.state is TrialState.COMPLETE]

    @property
    def best(self):
        return max(self.complete, key=lambda trial: trial.value, default=None)  # of equal ones the first

    def run(self):
        """Run what is left of the trials, with one progress bar."""
        start, limit, done = time.perf_counter(), 60 * self.s.minutes or float("inf"), len(self.trials)
        with tqdm(total=self.s.trials, initial=min(done, self.s.trials), unit="trial", disable=None, leave=False,
                  dynamic_ncols=True) as bar:  # fmt: skip
            while done < self.s.trials and (not done or time.perf_counter() - start < limit):
                best = self.best.value if self.complete else 0.0
                shown = f"best {best:.2%}, epoch" if best else "epoch"
                trial = self.run_trial(
                    lambda row, shown=shown: bar.set_postfix_str(f"{shown} {row['epoch']} of {self.s.epochs}")
                )
                done += 1
                bar.update()
                if self.complete and self.best.value > best:
                    tqdm.write(f"trial {trial.number + 1}: {trial.value:.2%}, the best so far")
                    sys.stdout.flush()

    def run_trial(self, on_epoch):
        """Train with the next parameters and keep the result; return the finished trial."""
        number = len(self.study.trials)
        if not number and self.default_params:
            self.study.enqueue_trial(self.default_params)
        seed = int(np.random.SeedSequence((self.s.seed, number)).generate_state(1)[0])
        self.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
        trial = self.study.ask(distributions(self.space))
        start = time.perf_counter()
        try:
            value, state = self.train(trial, on_epoch), TrialState.COMPLETE
        except optuna.TrialPruned:
            value, state = None, TrialState.PRUNED
        except (runs.Diverged, settings.SettingError, MemoryError) as error:
            value, state = None, TrialState.PRUNED  # which TPE takes for poor, while it ignores FAIL
            trial.set_user_attr("state", "diverged" if isinstance(error, runs.Diverged) else "failed")
            trial.set_user_attr("message", str(error).split("; the last checkpoint")[0] or "not enough memory")
        trial.set_user_attr("seconds", round(time.perf_counter() - start, 1))
        self.study.tell(trial, value, state)
        with self.storage():
            self.stored.add_trial(self.study.trials[number])
        return self.study.trials[number]

    def train(self, trial, on_epoch):
        """The validation accuracy after a whole training. Raises optuna.TrialPruned, runs.Diverged."""
        s = settings_of(self.script, self.fixed | changes_of(self.space, trial.params))

        def report(row):
            on_epoch(row)
            trial.report(row["val_accuracy"], row["epoch"])
            if row["epoch"] < s.epochs and trial.should_prune():
                raise optuna.TrialPruned

        silent = io.StringIO()
        with tempfile.TemporaryDirectory(prefix="search_") as temporary:
            s.output_dir = str(Path(temporary, "run"))
            try:
                with one_thread(self.script), contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
                    importlib.import_module(SCRIPTS[self.script]).run(s, self.images, report)
            except files.FileError as error:  # a full disk
                reason = str(error).split("; once")[0]
                raise files.FileError(f"{reason}; finished trials are kept, and the same command continues") from None
            return row_of(Path(s.output_dir))["val_accuracy"]

    def rows(self):
        """A dict for each trial, for trials.csv."""
        return [{"trial": trial.number + 1, "state": state_of(trial),
                 "val_accuracy": "" if "message" in trial.user_attrs else trial.value,
                 "epochs": max(trial.intermediate_values, default=0), "seconds": trial.user_attrs["seconds"]}
                | {name: label(value) for name, value in changes_of(self.space, trial.params).items()}
                | {"message": trial.user_attrs.get("message", "")} for trial in self.trials]  # fmt: skip

    def importances(self):
        """{name: share of the variance of the validation accuracy}, the largest first; {} for too few finished trials."""
        values = [trial.value for trial in self.complete]
        if len(values) < MIN_COMPLETE or min(values) == max(values):
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=self.s.seed)
        return optuna.importance.get_param_importances(self.study, evaluator=evaluator)

    def summary(self):
        """The content of best.json."""
        best, states = self.best, [*map(state_of, self.trials)]
        changes = self.fixed | changes_of(self.space, best.params)
        default = next((trial.value for trial in self.complete if trial.params == self.default_params), None)
        return {"script": SCRIPTS[self.script], "dataset": self.dataset, "val_accuracy": best.value,
                "default_val_accuracy": default, "trial": best.number + 1, "settings": changes,
                "command": training_command(self.script, changes), "epochs": self.s.epochs,
                "trials": {state: states.count(state) for state in STATES}, "importances": self.importances(),
                "seconds": round(sum(trial.user_attrs["seconds"] for trial in self.trials)),
                "made_from": self.made_from, **runs.environment()}  # fmt: skip


def write(search):
    """Write trials.csv, best.json and search.png; return the content of best.json. Raises files.FileError, runs.Diverged."""
    rows, text = search.rows(), io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        files.write_text(search.folder / "trials.csv", text.getvalue())
        if not search.complete:
            raise runs.Diverged(f"all trials diverged or failed, see {search.folder / 'trials.csv'}; edit SPACES in "
                                "studies/search.py")  # fmt: skip
        summary = search.summary()
        files.write_text(search.folder / "best.json", json.dumps(summary, indent=1) + "\n")
        with files.atomic_write(search.folder / "search.png") as temporary:
            search_figure.draw(search, summary).savefig(temporary, format="png")
    except files.WriteError as error:
        raise files.FileError(f"{error}; the trials are kept, and the same command writes it again") from None
    return summary


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    script = argv.pop(0) if argv and not argv[0].startswith("-") else ""
    s = settings.parse(sys.modules[__name__], data, argv=argv, script="experiments.py search")
    if script not in SPACES:
        near = settings.did_you_mean(difflib.get_close_matches(script, SPACES, 1))
        raise settings.SettingError(f"search {script}".rstrip() + f": name a script: {', '.join(SPACES)}{near}")
    if s.quick:
        s.trials, s.epochs = min(s.trials, 6), min(s.epochs, 3)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with Search(script, s).opened() as search:
        try:
            search.run()
        except KeyboardInterrupt:
            raise KeyboardInterrupt("; finished trials are kept, and the same command continues") from None
        summary = write(search)
    counts = ", ".join(f"{count} {STATES[state]}" for state, count in summary["trials"].items() if count)
    default = summary["default_val_accuracy"]
    print(f"{summary['dataset']}, {len(search.trials)} trials of up to {s.epochs} epochs: {counts}")
    print(f"highest validation accuracy: {summary['val_accuracy']:.2%}, trial {summary['trial']}"
          + (f"; with the script's defaults: {default:.2%}" if default is not None else ""))  # fmt: skip
    print("The best of many trials is partly luck; with --seeds 5, this command gives the mean over seeds:\n")
    print(f"{summary['command']}\n\ntrials.csv, best.json and search.png are in {search.folder}")
