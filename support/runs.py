"""A run's folder: settings, history, metrics, weights and figures, each file written atomically.

    runs/<script>/<date_time>/settings.json   the run's settings
                              history.csv     a row for each epoch
                              metrics.json    the results, with settings, versions and machine
                              *.safetensors   weights and checkpoint
                              *.png           figures
"""

if __name__ == "__main__":
    raise SystemExit("support/runs.py is a module, not a script: every script uses it")

import contextlib
import csv
import gc
import importlib.metadata
import io
import json
import math
import os
import platform
import shlex
import statistics
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tqdm import tqdm

import plots
from support import entry, files
from support.settings import EXTENDABLE, SettingError

# ---- settings: edit here, or override on the command line (--output-dir DIR) ----
# -- run
OUTPUT_DIR = ""  # folder of the run; "" creates runs/<script>/<date_time>
FIGURES = True  # draw the figures
FIGURE_FORMAT = "png"  # format of the figures: {png, svg, pdf}
SAVE_WEIGHTS = True  # save weights, checkpoint, features and test probabilities; a run without them cannot be resumed
LOG_STEPS = False  # save the loss of every training step in steps.csv, and draw it
REPORT = False  # write report.html at the end: one page with all results, as report.py does
# ----

COLUMNS = ("epoch", "train_loss", "train_accuracy", "train_eval_loss", "train_eval_accuracy", "val_loss", "val_accuracy",
           "learning_rate", "seconds")  # of history.csv  # fmt: skip
FORMATS = {"epoch": "d", "train_loss": ".4f", "train_accuracy": ".2%", "val_loss": ".4f", "val_accuracy": ".2%",
           "learning_rate": ".2e", "seconds": ".1f"}  # of the columns that are printed  # fmt: skip
CHECKPOINT = "checkpoint.safetensors"
cli = entry.cli


class Diverged(Exception):
    """A training whose loss is no longer a finite number."""

    exit_code = 1


def check_folder(path):
    """Raise files.FileError unless the folder `path` can be created or written to; creates none."""
    existing = next(folder for folder in (Path(path).absolute(), *Path(path).absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "no permission" if existing.is_dir() else f"{existing} is a file"
        raise files.FileError(f"cannot write to {path}: {reason}; choose another --output-dir")


def new_folder(script, settings, lock):
    """Create the folder settings["output_dir"], or runs/<script>/<date_time>, with settings.json; return its path.

    It is locked until the ExitStack `lock` is closed. An earlier run in the same folder is renamed, never overwritten.
    Raises files.FileError.
    """
    now = time.strftime("%Y-%m-%d_%H-%M-%S")
    path = Path(settings["output_dir"] or Path("runs", script, now))
    try:
        if path.resolve() in (Path.cwd(), *Path.cwd().parents):
            raise files.FileError(f"--output-dir {path}: is the current folder or above it; name a new folder")
        while not settings["output_dir"] and path.exists():  # a run started in the same second
            path = path.with_name(path.name + "_")
        path.mkdir(parents=True, exist_ok=bool(settings["output_dir"]))
        lock.enter_context(files.locked(path))
        if (path / "settings.json").exists():
            earlier = path.with_name(f"{path.name}.before_{now}")
            if sys.platform == "win32":  # which renames no folder with an open file; others stay locked until the end
                lock.close()
            path.rename(earlier)
            (earlier / ".lock").unlink(missing_ok=True)
            print(f"the earlier run in this folder is now in {earlier}")
            path.mkdir(exist_ok=True)
            lock.enter_context(files.locked(path))
        files.write_text(path / "settings.json", json.dumps(settings, indent=2) + "\n")
    except OSError as error:
        raise files.FileError(f"cannot write to {path}: {error.strerror}; choose another --output-dir") from None
    return path


def resumed_folder(path, lock):
    """The Path of a run that is to be continued, locked as in `new_folder`, without half-written files."""
    lock.enter_context(files.locked(path))
    files.remove_partial(path)
    return Path(path)


def not_written(error, script, folder):
    """The FileError that says of a files.WriteError how to continue the run in `folder`, or all of its seeds."""
    if folder.name.startswith("seed_") and (folder.parent / "settings.json").exists():
        folder = folder.parent
    command = shlex.join(["python", f"{script}.py", "--resume", str(folder)])
    return files.FileError(f"{error}; once that is mended, continue with: {command}")


class Run:
    """The folder of one run: `with Run("mlp_from_scratch", settings) as run: ...`

    The folder is created and locked at once; an earlier run in the same `--output-dir` is renamed. With settings.resume, the
    folder of an interrupted run, that folder is used; until `resume` is called, only its half-written files are removed.
    on_epoch: called with each row that is logged; it may raise an exception, which ends the run. Raises files.FileError, as
    for a folder that another run is writing to.
    """

    def __init__(self, script, settings, on_epoch=None):
        self.on_epoch = on_epoch or (lambda row: None)
        self.script, self.settings, self.histories, self.with_header = script, vars(settings), {}, set()
        resumed = self.settings.get("resume")
        gc.collect()  # saved figures are in reference cycles that may hold an earlier run's features
        self.start = None if resumed else time.perf_counter()
        self.lock = contextlib.ExitStack()
        self.path = resumed_folder(resumed, self.lock) if resumed else new_folder(script, self.settings, self.lock)
        if resumed:
            self.extend()

    def extend(self):
        """Record in settings.json that a resumed run trains for more epochs than it was started with."""
        saved = files.read_json(self.path / "settings.json")
        changes = {name: self.settings[name] for name in ("epochs", "warmup") if name in saved}
        if changes.get("epochs", 0) > saved.get("epochs", 0):
            self.save({"settings.json": json.dumps(saved | changes, indent=2) + "\n"})

    def __enter__(self):
        values = "  ".join(f"{name}={value!r}".replace(", ", ",") for name, value in self.settings.items())
        print(textwrap.fill(f"settings  {values}", 118, subsequent_indent=10 * " ", break_on_hyphens=False))
        return self

    def __exit__(self, kind, error, traceback):
        self.lock.close()
        if kind is KeyboardInterrupt or (kind and entry.interrupted):  # which C code may turn into another exception
            raise KeyboardInterrupt(f": what was saved so far is in {self.path}") from None
        if kind is files.WriteError:
            raise not_written(error, self.script, self.path) from None
        if kind is Diverged and (self.path / CHECKPOINT).exists():
            raise Diverged(f"{error}; the last checkpoint is {self.path / CHECKPOINT}") from None

    def log(self, row, name="history.csv"):
        """Print the row of an epoch, a dict of COLUMNS, and write the history so far."""
        widths = {column: max(10, len(column) + 2) for column in FORMATS}
        if name not in self.with_header:
            self.with_header.add(name)
            tqdm.write("".join(f"{column:>{width}}" for column, width in widths.items()))
        self.histories.setdefault(name, []).append(rounded(row))
        tqdm.write("".join(f"{row[column]:>{width}{FORMATS[column]}}" for column, width in widths.items()))
        sys.stdout.flush()
        self.write_history(name)
        self.on_epoch(row)

    def save_checkpoint(self, trainer, split):
        """Write the checkpoint of a trainer, which has a `state_dict`; split: digest of the images that it trains on."""
        if not self.settings["save_weights"]:
            return
        tensors, metadata = trainer.state_dict()
        metadata |= {"model": "checkpoint", "settings": training_settings(self.settings), "split": split}
        files.save_weights(self.path / CHECKPOINT, tensors, metadata)

    def resume(self, history, name="history.csv"):
        """Continue the run in this folder after the epochs of the history {column: [...]}."""
        self.start = time.perf_counter() - sum(history["seconds"])
        rows = zip(*(history[column] for column in COLUMNS), strict=True)
        self.histories[name] = [rounded(dict(zip(COLUMNS, row, strict=True))) for row in rows]
        if self.histories[name]:
            self.write_history(name)  # the file may be an epoch behind the checkpoint, or ahead of it

    def write_history(self, name):
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.histories[name])
        self.save({name: text.getvalue()})

    def save(self, contents):
        """Write {file name: text, matplotlib Figure or NumPy array (.npy)}. Figures are named .png; the settings decide."""
        for name, content in contents.items():
            entry.check_interrupt()
            if isinstance(content, str):
                files.write_text(self.path / name, content)
                continue
            figure = not isinstance(content, np.ndarray)
            with files.atomic_write(self.path / (plots.file_name(name, self.settings) if figure else name)) as temporary:
                if figure:
                    content.savefig(temporary)
                else:
                    with temporary.open("wb") as file:
                        np.save(file, content)

    def finish(self, table, **metrics):
        """Write metrics.json with the settings, versions and machine, print the results, and return the metrics.

        table: {model: (validation accuracy, test accuracy)}. `seconds` includes the epochs before a resume; it is omitted
        if unknown.
        """
        if memory := peak_memory():
            metrics["peak_memory_mib"] = round(memory, 1)
        duration = ""
        if self.start:
            metrics["seconds"] = round(time.perf_counter() - self.start, 1)
            duration = f", {metrics['seconds']:.0f} s"
        metrics |= {"settings": self.settings, "command": command_line(), **environment()}
        self.save({"metrics.json": json.dumps(metrics, indent=2, allow_nan=False) + "\n"})
        width = max(len(name) for name in [metrics["dataset"], *table]) + 2
        print(f"\n{metrics['dataset']:<{width}}  validation      test")
        for name, accuracies in table.items():
            print(f"{name:<{width}}" + "".join(f"{accuracy:12.2%}" for accuracy in accuracies)[2:])
        if self.settings.get("quick"):
            print("\nSmoke test on a subset: the numbers are not representative. Leave out --quick for the real ones.")
        names = {"figures": "figures", "weights": "save_weights"}
        written = [word for word, name in names.items() if self.settings.get(name, True)]
        are = f"{', '.join(written)} and metrics.json are" if written else "metrics.json is"
        print(f"\n{metrics['dataset']}{duration}; {are} in\n{self.path}")
        if self.settings.get("report") and (self.path / "test_probabilities.npy").exists():  # a study has none
            write_report(self.path)
        return metrics


def run_seeds(script, run, s, check_settings=lambda s: None):
    """run(s), or with s.seeds > 1 one run for each seed from s.seed on, in FOLDER/seed_0 and so on. Return the metrics.

    FOLDER/curves.png has the curves of all seeds. FOLDER/metrics.json contains the mean of every result, its standard
    deviation (NAME_std, with n - 1) and, under "by_seed", the single values; of the peak memory, the maximum. A resumed run
    continues with the seed at which it was interrupted. `check_settings` is called before a folder is created or renamed.
    """
    check_settings(s)
    if vars(s).get("report") and not s.save_weights:
        raise SettingError("--report: is made from the saved test probabilities; leave out --no-save-weights")
    if s.seeds == 1:
        return run(s)
    with contextlib.ExitStack() as lock:
        folder = resumed_folder(s.resume, lock) if s.resume else new_folder(script, vars(s), lock)
        try:
            return run_seeds_in(folder, run, s)
        except files.WriteError as error:
            raise not_written(error, script, folder) from None


def run_seeds_in(folder, run, s):
    """The runs of `run_seeds`, in `folder`."""
    runs = []
    for number, seed in enumerate(range(s.seed, s.seed + s.seeds), 1):
        path = folder / f"seed_{seed}"
        metrics = finished_metrics(path / "metrics.json")
        print(f"\nseed {seed}, {number} of {s.seeds}" + (": already finished" if metrics else ""))
        if not metrics:
            started = str(path) if (path / "settings.json").exists() else ""
            run(SimpleNamespace(**vars(s) | {"seed": seed, "seeds": 1, "output_dir": str(path), "resume": started,
                                             "report": False}))  # fmt: skip
            gc.collect()  # figures and networks refer to themselves; the next seed needs their memory
            metrics = files.read_json(path / "metrics.json")
        runs.append(metrics)
    metrics = summarize(runs) | {"seeds": list(range(s.seed, s.seed + s.seeds)), "settings": vars(s)}
    metrics |= {"command": runs[0]["command"], **environment()}  # not the --resume by which a later seed was continued
    files.write_text(folder / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    for name, figure in plots.curves_of_run(folder, metrics).items() if s.figures else ():
        with files.atomic_write(folder / plots.file_name(name, vars(s))) as temporary:
            figure.savefig(temporary)
    print(f"\n{s.seeds} seeds, mean and standard deviation:")
    for name in ("val_accuracy", "test_accuracy"):
        print(f"{name:<14}{metrics[name]:8.2%} +- {100 * metrics[f'{name}_std']:.2f}")
    print(f"\n{metrics['dataset']}; metrics.json and the curves are in\n{folder}")
    if metrics["settings"].get("report"):
        write_report(folder)
    return metrics


def finished_metrics(path):
    """The metrics of a finished run, from its metrics.json; None where there is none, or where it is damaged: set aside."""
    if not path.exists():
        return None
    try:
        metrics = files.read_json(path)
        if not (all(isinstance(metrics.get(name), float) for name in ("val_accuracy", "test_accuracy"))
                and all(isinstance(metrics.get(name), str) for name in ("dataset", "model", "command"))):  # fmt: skip
            raise files.FileError(f"{path}: damaged (results are missing)")
    except files.FileError as error:
        aside = path.with_name("metrics.json.damaged")
        path.replace(aside)
        print(f"{error}: it is now {aside}, and the seed is run again", file=sys.stderr)
        return None
    return metrics


def write_report(folder):
    """report.html of the finished run in `folder`, in that folder."""
    import report  # which is above this module: only here

    report.write([folder], folder / "report.html", command=command_line())
    print(folder / "report.html")


def summarize(runs):
    """The metrics of several seeds as one dict: what all have in common, and of every float NAME, NAME_std and by_seed."""
    common = {name: value for name, value in runs[0].items()  # not always the seconds
              if all(run.get(name) == value or (isinstance(value, float) and isinstance(run.get(name), float))
                     for run in runs)}  # fmt: skip
    if isinstance(common.pop("peak_memory_mib", 0), float):
        common["peak_memory_mib"] = max(run["peak_memory_mib"] for run in runs)
    results = [name for name, value in common.items() if isinstance(value, float) and name != "peak_memory_mib"]
    by_seed = {name: [run[name] for run in runs] for name in results}
    common |= {name: statistics.fmean(values) for name, values in by_seed.items()}
    return common | {f"{name}_std": statistics.stdev(values) for name, values in by_seed.items()} | {"by_seed": by_seed}


def training_settings(settings):
    """The settings that a training depends on, as JSON has them."""
    others = ("resume", "output_dir", "data_dir", "offline_fallback", "seeds", "figures", "figure_format", "report",
              "save_weights")  # fmt: skip
    return json.loads(json.dumps({name: value for name, value in settings.items() if name not in others}))


def load_checkpoint(trainer, s, split):
    """Load the checkpoint in the folder s.resume into `trainer`; split: as in Run.save_checkpoint. Raises FileError."""
    folder = Path(s.resume)
    path = folder / CHECKPOINT
    if not path.exists():
        if any(folder.glob("*history.csv")):
            raise files.FileError(f"{path}: no such file, but the run has trained: it cannot be resumed without it")
        print(f"{folder} was interrupted before the end of its first epoch: starting again")
        return
    tensors, metadata = files.load_weights(path, "checkpoint")
    with files.checked_format(path):
        if metadata["split"] != split:
            raise files.FileError(f"{path}: is of a training on other data")
        current = training_settings(vars(s))
        if (saved := metadata["settings"]) != current and not extends(current, saved):
            different = sorted(name for name in current if saved.get(name) != current[name])
            raise ValueError(f"of a training with other settings: {', '.join(different)}")
        trainer.load_state_dict(tensors, metadata)
        texts = [{name: json.dumps(value, sort_keys=True) for name, value in state.items()}
                 for state in (metadata, trainer.state_dict()[1])]  # fmt: skip
        if wrong := [name for name, text in texts[1].items() if texts[0].get(name) != text]:
            raise ValueError(f"{', '.join(wrong)}: not what follows from its history")
    if saved["epochs"] < s.epochs and trainer.should_stop:
        raise files.FileError(f"--epochs {s.epochs}: {folder} has stopped early, by --patience, and cannot be extended")
    print(f"resuming {folder} after epoch {metadata['epoch']}")


def extends(current, saved):
    """Whether the training settings `current` are `saved` with more epochs, after a warm-up of the same length."""
    more = {"epochs": current["epochs"], "warmup": current["warmup"]}
    same_warmup = math.isclose(current["epochs"] * current["warmup"], saved["epochs"] * saved["warmup"])
    return saved["schedule"] in EXTENDABLE and saved | more == current and same_warmup


def command_line():
    return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])


def rounded(row):
    """A row of COLUMNS as it is in a history file: six digits."""
    return {column: value if column == "epoch" else float(f"{value:.6g}") for column, value in row.items()}


def environment():
    """{"versions": ..., "machine": ...}: of the packages that this process has imported, and of this machine."""
    packages = ("numpy", "torch", "torchvision", "matplotlib", "scikit-learn")
    imported = [name for name in packages if name.replace("scikit-learn", "sklearn") in sys.modules]
    versions = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in imported}}
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(": ")[1] for line in lines if line.startswith("model name")), processor)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = {"system": platform.system(), "processor": processor, "cores": cores}
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return {"versions": versions, "machine": machine}


def peak_memory():
    """Peak memory of this process in MiB; None where the system does not report it."""
    status = Path("/proc/self/status")  # Linux, where getrusage starts with the peak of the parent process
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS
