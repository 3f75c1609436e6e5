"""What a script needs around its training: settings, a run's folder, metrics, weights. Safe to skip.

s = run.parse(argv, this_module, data, run)           constants and flags -> s.epochs, s.hidden, ...
with run.RunFolder("mlp_from_scratch", s) as folder:  runs/mlp_from_scratch/<date_time>/
    folder.log(history)                               prints a row, writes history.csv
    folder.save({"curves.png": figure})
    results = run.evaluate(images, predict, s)        accuracies, calibration
    folder.finish(images, name, results, ...)         figures, metrics.json; prints the results
"""

import argparse
import csv
import difflib
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import io
import itertools
import json
import math
import os
import platform
import re
import shlex
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, get_args, get_origin, get_type_hints

import filelock
import numpy as np
import safetensors
import safetensors.numpy
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from tqdm import tqdm

SEED: int = 0  # seed of initialization, batch order, dropout and augmentation
SEEDS: int = 1  # number of runs, with seeds from SEED on; metrics.json has mean and standard deviation
OUTPUT_DIR: str = ""  # folder of the run, new or empty; "" makes runs/<script>/<date_time>
RESUME: str = ""  # folder of an interrupted run to continue, with its own settings
FIGURES: bool = True  # draw the figures
FIGURE_FORMAT: Literal["png", "svg", "pdf"] = "png"  # format of the figures
SAVE_WEIGHTS: bool = True  # save weights, features, checkpoints and test probabilities
LOG_STEPS: bool = False  # save the loss of every training step in steps.csv, and draw it
TRACK: Literal["none", "tensorboard", "wandb", "trackio"] = "none"  # also send metrics and figures there

LIMITS = {"SEED": (0, 2**31 - 1), "SEEDS": (1, 1000)}

ROOT = Path(__file__).resolve().parent
CHECKPOINT = "checkpoint.safetensors"
COLUMNS = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds")
FORMATS = dict(zip(COLUMNS, ("d", ".4f", ".2%", ".4f", ".2%", ".2e", ".1f"), strict=True))  # as printed
# Test-time augmentation: (down, right) shifts in pixels, each one also mirrored
VIEWS = {
    "2_views": [(0, 0)],
    "6_views": [(0, 0), (-1, -1), (1, 1)],
    "10_views": [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)],
    "18_views": list(itertools.product((0, -1, 1), (0, -1, 1))),
}
TYPES = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}


class Error(Exception):
    """A user's mistake, or what only a user can mend. One line: what is wrong, where, and what to do."""


class Diverged(Error):
    """A training whose loss is no longer a finite number."""


def cli(main):
    """Call `main` as a script: a user's mistake is one line and exit code 2, Ctrl-C one line and 130."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # any text can be printed on any terminal
    try:
        main()
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted{interrupt}", file=sys.stderr)
        sys.exit(130)
    except (Error, OSError, MemoryError) as error:
        print(f"{Path(sys.argv[0]).name}: {error or 'not enough memory'}", file=sys.stderr)
        sys.exit(2)


# ---- constants and flags


def constants(module):
    """{name: (type, value, help)} of the constants NAME: type = value  # help of a module."""
    types, source = get_type_hints(module), inspect.getsource(module)
    lines = re.findall(r"^([A-Z][A-Z0-9_]*): .*?(?:  # (.*))?$", source, re.MULTILINE)
    return {name: (types[name], getattr(module, name), text) for name, text in lines}


def checked(text, kind, value, limits):
    """The value as `kind`. Raises Error, starting with `text`, for another type or beyond the limits."""
    inner = get_args(kind)
    if get_origin(kind) is tuple:
        if type(value) is not tuple:
            raise Error(f"{text}: expected a tuple of whole numbers, such as (256, 128), (256,) or ()")
        return tuple(checked(text, inner[0], number, limits) for number in value)
    if get_origin(kind) is Literal:
        if value not in inner:
            raise Error(f"{text}: choose from {', '.join(inner)}{did_you_mean(str(value).lower(), inner)}")
        return value
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise Error(f"{text}: expected {TYPES[kind]}")
    if limits and not limits[0] <= value <= limits[1]:  # neither is NaN
        raise Error(f"{text}: expected {limits[0]:,} to {limits[1]:,}")
    return kind(value)


def settings(*modules, **changes):
    """The modules' constants as a namespace in lower case, with changes: settings(mlp, data, epochs=5)."""
    s = {}
    for module in modules:
        for name, (kind, value, _) in constants(module).items():
            text, lower = f"{name} = {value!r} in {Path(module.__file__).name}", name.lower()
            if lower in changes:
                value = tuple(changes[lower]) if isinstance(changes[lower], list) else changes[lower]
                text = f"{lower} = {value!r}"
            s[lower] = checked(text, kind, value, module.LIMITS.get(name))
    if unknown := changes.keys() - s.keys():
        raise Error(f"unknown setting {min(unknown)}{did_you_mean(min(unknown), s)}")
    return SimpleNamespace(**s)


def parse(argv, *modules):
    """The settings of the modules, with the flags of a command line (None: this process's).

    `EPOCHS: int = 40  # passes over the training set` makes the flag --epochs; its type is the annotation's.
    With --resume, they are those of that run. --help and argparse's mistakes end the process, with exit codes
    0 and 2. Raises Error for other mistakes.
    """
    name, summary = Path(modules[0].__file__).name, modules[0].__doc__.split("\n")[0]
    program = call(os.path.relpath(modules[0].__file__, ROOT))
    options = {"usage": f"python {program} [--flag value ...]", "description": summary, "allow_abbrev": False}
    formatter = functools.partial(argparse.HelpFormatter, max_help_position=32)
    parser = argparse.ArgumentParser(name, formatter_class=formatter, **options)
    parser.error = lambda message: parser.exit(2, f"{name}: {message.removeprefix('argument ')}\n")
    for module in modules:
        group = parser.add_argument_group(f"constants of {Path(module.__file__).name}")
        for constant, (kind, value, text) in constants(module).items():
            add_flag(group, flag(constant), kind, value, text.replace("%", "%%"))
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [flag(constant) for module in modules for constant in constants(module)]
        parser.error(f"unknown flag {unknown[0]}{did_you_mean(unknown[0], known)}; --help lists all")
    given = vars(given)
    if given.get("resume"):
        if others := given.keys() - {"resume", "data_dir"}:
            raise Error(f"--resume: continues with the run's own settings; leave out {flag(min(others))}")
        given = read_json(Path(given["resume"], "settings.json")) | given
    return settings(*modules, **given)


def add_flag(group, name, kind, value, text):
    """Add the flag of a constant to an argparse group."""
    options = {"type": kind, "metavar": str(value) or '""'}
    if kind is bool:
        options, text = {"action": argparse.BooleanOptionalAction}, f"{text} ({'on' if value else 'off'})"
    elif get_origin(kind) is Literal:
        options, text = {"choices": get_args(kind), "metavar": value}, f"{text}: {', '.join(get_args(kind))}"
    elif get_origin(kind) is tuple:
        options = {"type": int, "nargs": "*", "metavar": (str(value).strip("()").replace(",", "") or "N",)}
    group.add_argument(name, default=argparse.SUPPRESS, help=text, **options)


def flag(name):
    """--learning-rate for LEARNING_RATE"""
    return f"--{name.lower().replace('_', '-')}"


def did_you_mean(word, known):
    near = difflib.get_close_matches(word, known, 1)
    return f" (did you mean {near[0]}?)" if near else ""


# ---- files


def write(path, content):
    """Write text or bytes to `path` as a whole: to a temporary file beside it, which then takes its name."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


def read_json(path):
    """The dict in a JSON file. Raises Error."""
    try:
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise Error(f"{path}: cannot be read as JSON ({getattr(error, 'strerror', error)})") from None


def read_history(path):
    """{column: [value of each epoch]} of a history.csv. Raises Error."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        return {column: [float(row[i]) for row in rows] for i, column in enumerate(header)}
    except (OSError, ValueError, IndexError) as error:
        raise Error(f"{path}: not a history of a training ({error})") from None


def digest(*arrays):
    """Hexadecimal BLAKE2b of the arrays' shapes, types and bytes."""
    hasher = hashlib.blake2b(digest_size=16)
    for array in arrays:
        hasher.update(f"{array.shape} {array.dtype}".encode())
        hasher.update(np.ascontiguousarray(array).data)
    return hasher.hexdigest()


def weights_digest(arrays, metadata):
    """Digest of {name: array} and of the text `metadata`."""
    names = sorted(arrays)
    text = json.dumps([metadata, *names]).encode()
    return digest(np.frombuffer(text, np.uint8), *(arrays[name] for name in names))


def save_weights(path, arrays, metadata):
    """Write {name: array} with the dict `metadata` (JSON) and a digest of both as one safetensors file."""
    text = json.dumps(metadata)
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}  # as safetensors wants it
    header = {"metadata": text, "digest": weights_digest(arrays, text)}
    write(path, safetensors.numpy.save(arrays, header))


def load_weights(path, kind=""):
    """({name: array}, metadata) of a file of `save_weights`, for the model `kind`. Raises Error."""
    if Path(path).is_dir():
        raise Error(f"{path}: is a folder; name a .safetensors file in it")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header.get("digest") != weights_digest(arrays, header.get("metadata")):
            raise ValueError("its digest is wrong or missing")
        metadata = json.loads(header["metadata"])
    except FileNotFoundError:
        raise Error(f"{path}: no such file") from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise Error(f"{path}: damaged, or not a file of this project ({error})") from None
    if kind and metadata.get("model") != kind:
        raise Error(f"{path}: contains a {metadata.get('model')}, expected a {kind}")
    return arrays, metadata


# ---- a run's folder


class RunFolder:
    """The folder of one run, locked while it is open: `with RunFolder("mlp_from_scratch", s) as folder: ...`

    A new or empty one, s.output_dir or runs/<script>/<date_time>; or s.resume, that of an interrupted run.
    Nothing in it is moved or deleted. Raises Error where the folder cannot be used.
    """

    def __init__(self, script, s):
        self.s, self.start, now = s, time.perf_counter(), time.strftime("%Y-%m-%d_%H-%M-%S")
        self.path = Path(s.resume or s.output_dir or ROOT / "runs" / script / now)
        while not (s.resume or s.output_dir) and self.path.exists():  # by a run that began in the same second
            self.path = self.path.with_name(self.path.name + "_")
        try:
            if not s.resume and self.path.exists() and {*os.listdir(self.path)} - {".lock"}:
                raise Error(f"{self.path}: is not empty; name a new folder, or give it to --resume")
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = filelock.FileLock(self.path / ".lock", timeout=0)
            self.lock.acquire()
        except filelock.Timeout:
            raise Error(f"{self.path}: another run is writing to this folder; name another") from None
        except OSError as error:
            raise Error(f"{self.path}: cannot be used ({error.strerror}); name another folder") from None
        if not s.resume:
            write(self.path / "settings.json", json.dumps(vars(s), indent=2) + "\n")

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.lock.release()
        if kind is KeyboardInterrupt and (self.s.seeds > 1 or (self.path / CHECKPOINT).exists()):
            raise KeyboardInterrupt(f"; continue with: {command_line('--resume', str(self.path))}") from None

    def log(self, history, name="history.csv"):
        """Print the last row of history {column: [value of each epoch]}, and write all rows."""
        widths = {column: max(10, len(column) + 2) for column in COLUMNS if column in history}
        if len(history["epoch"]) == 1:
            tqdm.write("".join(f"{column:>{width}}" for column, width in widths.items()))
        row = {column: format(history[column][-1], FORMATS[column]) for column in widths}
        tqdm.write("".join(f"{row[column]:>{width}}" for column, width in widths.items()))
        sys.stdout.flush()
        self.save({name: csv_text(history, zip(*history.values(), strict=True))})
        prefix = name.removesuffix("history.csv")  # "cnn_" of a hybrid's CNN
        self.track({prefix + column: values[-1] for column, values in history.items()}, history["epoch"][-1])

    def log_steps(self, losses):
        """Write the loss of every step as steps.csv."""
        self.save({"steps.csv": csv_text(("step", "train_loss"), enumerate(losses, 1))})

    def save(self, contents):
        """Write {file name: text, array, or Figure}. A Figure's name ends in .png; the settings decide."""
        for name, content in contents.items():
            file = io.BytesIO()
            if isinstance(content, np.ndarray):
                np.save(file, content)
            elif not isinstance(content, str):
                name = f"{Path(name).stem}.{self.s.figure_format}"
                content.savefig(file, format=self.s.figure_format)
            write(self.path / name, content if isinstance(content, str) else file.getvalue())

    def save_checkpoint(self, arrays, state):
        """Write what continues the training: {name: array} and a dict (JSON)."""
        if self.s.save_weights:
            state = state | {"model": "checkpoint", "settings": training_settings(self.s)}
            save_weights(self.path / CHECKPOINT, arrays, state)

    def load_checkpoint(self):
        """(arrays, state) after the last complete epoch; None if there is none."""
        if not (self.path / CHECKPOINT).exists():
            return None
        arrays, state = load_weights(self.path / CHECKPOINT, "checkpoint")
        if state["settings"] != training_settings(self.s):
            raise Error(f"{self.path}: its checkpoint has other settings than its settings.json")
        print(f"resuming {self.path} after epoch {len(state['history']['epoch'])}")
        self.start -= sum(state["history"]["seconds"])
        return arrays, state

    def finish(self, images, name, results, draw, rows=None, **metrics):
        """Write figures, test probabilities, metrics.json; print the results; return the metrics.

        name: of the model; results: of `evaluate`; draw: plots.evaluation; rows: {model: (validation, test
        accuracy)}, which stand above the model in the printed table.
        """
        s, y, p = self.s, images.test.y, results.probabilities
        if s.figures:
            bins = {when: calibration(y, values) for when, values in p.items()}
            X, title = images.as_shown(images.test.X), f"{name} on {images.name}, seed {s.seed}"
            self.save(draw(X, y, p["before"], images.classes, title, bins, p["after"]))
        if s.save_weights:
            self.save({"test_probabilities.npy": p["before"].astype(np.float16)})
        metrics = {"dataset": images.name, "model": name, **images.sizes, **results.metrics, **metrics}
        metrics |= {"peak_memory_mib": peak_memory(), "seconds": round(time.perf_counter() - self.start, 1)}
        metrics |= {"settings": vars(s), "command": command_line(), **environment()}
        self.save({"metrics.json": json.dumps(metrics, indent=2) + "\n"})
        table = (rows or {}) | {name: [metrics[f"{split}_accuracy"] for split in ("val", "test")]}
        views = f"{metrics.get('shift_tta_views')} views"
        for kind, words in {"flip": "flip test-time augmentation (TTA)", "shift": f"TTA, {views}"}.items():
            names = [f"{split}_accuracy_{kind}_tta" for split in ("val", "test")]
            if names[0] in metrics:
                table[f"  with {words}"] = [metrics[name] for name in names]
        width = max(map(len, [images.name, *table])) + 2
        print(f"\n{images.name:<{width}}  validation      test")
        for model, (validation, test) in table.items():
            print(f"{model:<{width}}{validation:12.2%}{test:10.2%}")
        if s.quick:
            print("\nSmoke test on a subset: the numbers are not representative.")
        versions = ", ".join(f"{package} {version}" for package, version in metrics["versions"].items())
        machine = "{cores} cores of {processor}".format(**metrics["machine"])
        print(f"\n{metrics['seconds']:.0f} s on {metrics['machine'].get('gpu', machine)}; {versions}")
        print(f"all files are in\n{self.path}")
        numbers = {f"final/{name}": value for name, value in metrics.items() if type(value) in (int, float)}
        self.track(numbers, pictures=sorted(self.path.glob("*.png")))
        return metrics

    @functools.cached_property
    def track(self):
        return tracker(self.s, self.path)


def tracker(s, path):
    """A function log(numbers, step=0, pictures=None) that sends {name: number} to the package s.track.

    It is called after each epoch, and at the end with PNG files. TensorBoard's files are in the run's folder
    `path`. The project in wandb and trackio is the environment's WANDB_PROJECT; wandb reads its own others.
    """
    if s.track == "none":
        return lambda numbers, step=0, pictures=None: None
    if s.track == "tensorboard":
        from PIL import Image
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(path)
        writer.add_text("settings", "\n".join(f"- {name}: {value}" for name, value in vars(s).items()))

        def log(numbers, step=0, pictures=None):
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)
            for picture in pictures or ():
                writer.add_image(picture.stem, np.asarray(Image.open(picture)), dataformats="HWC")
            writer.flush()
            if pictures is not None:
                writer.close()

        return log
    if s.track == "wandb":
        import wandb as board
    else:
        import trackio as board
    place = {"dir": path} if s.track == "wandb" else {}
    project, name = os.environ.get("WANDB_PROJECT", "fashion-mnist"), "/".join(path.parts[-2:])
    board.init(project=project, name=name, config=vars(s), **place)

    def log(numbers, step=0, pictures=None):
        board.log(numbers | {picture.stem: board.Image(str(picture)) for picture in pictures or ()})
        if pictures is not None:
            board.finish()

    return log


def training_settings(s):
    """The settings that a training depends on, as JSON has them."""
    others = ("resume", "output_dir", "data_dir", "figures", "figure_format", "save_weights", "track")
    return json.loads(json.dumps({name: value for name, value in vars(s).items() if name not in others}))


def csv_text(header, rows):
    """CSV with six digits of every number that is not whole."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows)
    return text.getvalue()


def run_seeds(script, run_once, s, curves):
    """run_once(s); or with s.seeds > 1, a run for each seed from s.seed on, in FOLDER/seed_<seed>.

    FOLDER/metrics.json has the mean of every result, its standard deviation (NAME_std, with n - 1) and
    "by_seed"; FOLDER/curves.png the curves of all seeds, drawn by curves({seed: history}, title, s). A
    resumed run skips finished seeds. Returns what run_once does; of several seeds the last one's, with the
    metrics of all.
    """
    if s.track != "none" and not importlib.util.find_spec(s.track):
        raise Error(f"--track {s.track}: needs a package: pip install {s.track}")
    if s.seeds == 1:
        return run_once(s)
    all_metrics, histories, result = [], {}, SimpleNamespace(history=None, model=None)
    with RunFolder(script, s) as folder:
        for seed in range(s.seed, s.seed + s.seeds):
            path = folder.path / f"seed_{seed}"
            print(f"\nseed {seed}")
            if not (path / "metrics.json").exists():
                started = str(path) if (path / "settings.json").exists() else ""
                place = {"output_dir": str(path), "resume": started}
                result = run_once(SimpleNamespace(**vars(s) | {"seed": seed, "seeds": 1, **place}))
            all_metrics.append(read_json(path / "metrics.json"))
            histories[path.name] = read_history(path / "history.csv")
        metrics = summarize(all_metrics) | {"settings": vars(s), "command": command_line(), **environment()}
        folder.save({"metrics.json": json.dumps(metrics, indent=2) + "\n"})
        if s.figures:
            title = f"{metrics['model']} on {metrics['dataset']}"
            folder.save({"curves.png": curves(histories, title, s)})
        print(f"\n{s.seeds} seeds, mean and standard deviation:")
        for name in ("val_accuracy", "test_accuracy"):
            print(f"{name:<14}{metrics[name]:8.2%} +- {100 * metrics[f'{name}_std']:.2f}")
        print(f"\nall files are in\n{folder.path}")
    return SimpleNamespace(**vars(result) | {"folder": folder.path, "metrics": metrics})


def summarize(all_metrics):
    """The metrics of several seeds as one: what all share; of each float the mean, NAME_std and by_seed."""
    first = all_metrics[0]
    same = {name: value for name, value in first.items() if all(m.get(name) == value for m in all_metrics)}
    floats = [name for name, value in first.items() if isinstance(value, float)]
    by_seed = {name: [metrics[name] for metrics in all_metrics] for name in floats}
    means = {name: statistics.fmean(values) for name, values in by_seed.items()}
    stds = {f"{name}_std": statistics.stdev(values) for name, values in by_seed.items()}
    return same | means | stds | {"by_seed": by_seed, "seeds": [m["settings"]["seed"] for m in all_metrics]}


def call(script):
    """What stands after `python` to run the file of a script."""
    path = Path(script)
    special = {"extras": f"-m extras.{path.stem}", "studies": f"experiments.py {path.stem}"}
    return special.get(path.parent.name, shlex.quote(script))


def command_line(*arguments):
    """The command line of this process, or of its script with other arguments."""
    if "ipykernel" in sys.argv[0]:
        return f"in a notebook: main({list(arguments)})"
    return f"python {call(sys.argv[0])} {shlex.join(arguments or sys.argv[1:])}".strip()


def environment():
    """{"versions": of the packages that this process has imported, "machine": what it runs on}"""
    packages = {"numpy": "numpy", "torch": "torch", "torchvision": "torchvision", "scikit-learn": "sklearn"}
    loaded = [name for name, module in packages.items() if module in sys.modules]
    versions = {name: importlib.metadata.version(name) for name in loaded}
    cpuinfo, processor = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    if cpuinfo.exists() and (names := re.findall(r"model name\s*: (.*)", cpuinfo.read_text())):
        processor = names[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = {"system": platform.system(), "processor": processor, "cores": cores}
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        machine["gpu"] = sys.modules["torch"].cuda.get_device_name()
    return {"versions": {"python": platform.python_version()} | versions, "machine": machine}


def peak_memory():
    """Peak memory of this process in MiB; None where the system does not report it as Linux does."""
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s*(\d+)", status.read_text()) if status.exists() else None
    return round(int(peak[1]) / 1024, 1) if peak else None


# ---- metrics and calibration


def cross_entropy(logits, y):
    """(mean of -log softmax(logits)[y], None) of logits (N, C) and labels y (N,)."""
    return -float(log_softmax(logits, axis=1)[np.arange(len(y)), y].mean()), None


def lr_factor(history, schedule, patience=3):
    """The factor of the learning rate after the epochs of `history` {column: [value of each epoch]}.

    "plateau" divides the rate by 10 when the validation loss has not improved by 0.01 % for more than
    `patience` epochs, as torch.optim.lr_scheduler.ReduceLROnPlateau, whose patience is 10, and which ignores
    changes below 1e-8. "halve" halves it after each epoch whose training loss is higher than the one before.
    """
    if schedule == "halve":
        losses = history.get("train_loss", ())
        return 0.5 ** sum(later > earlier for earlier, later in itertools.pairwise(losses))
    if schedule != "plateau":
        return 1.0
    factor, best, num_bad_epochs = 1.0, math.inf, 0
    for loss in history.get("val_loss", ()):
        num_bad_epochs = 0 if loss < best * (1 - 1e-4) else num_bad_epochs + 1
        best = loss if num_bad_epochs == 0 else best
        if num_bad_epochs > patience:
            factor, num_bad_epochs = factor / 10, 0
    return factor


def accuracy(logits, y):
    """Share of the rows of logits (N, C) whose largest value is that of the label, y (N,)."""
    return float(np.mean(logits.argmax(axis=1) == y))


def evaluate(images, predict, s, loss=(cross_entropy, lambda logits: softmax(logits, axis=1)), logits=None):
    """Evaluate a classifier: a namespace of `metrics` {name: number}, `logits` and `probabilities`.

    predict: images (N, H, W) -> logits (N, C). loss: functions (logits, y) -> (loss, ...) and logits ->
    probabilities, as in LOSSES of mlp_from_scratch.py. logits: {"val": (M, C), "test": (N, C)}, if they are
    known. The probabilities are those of the test images, "before" and "after" temperature scaling.
    """
    loss_function, to_probabilities = loss
    y = {split: getattr(images, split).y for split in ("val", "test")}
    logits = logits or {split: predict(getattr(images, split).X) for split in y}
    logits = {split: values.astype(np.float64) for split, values in logits.items()}
    temperature = fit_temperature(logits["val"], y["val"], loss_function)
    scales = {"before": 1.0, "after": temperature}
    probabilities = {when: to_probabilities(logits["test"] / scale) for when, scale in scales.items()}
    metrics = {f"{split}_accuracy": accuracy(values, y[split]) for split, values in logits.items()}
    metrics["test_loss"] = loss_function(logits["test"], y["test"])[0]
    metrics["test_ece"] = calibration(y["test"], probabilities["before"])[-1]
    metrics["temperature"] = temperature
    metrics["test_ece_calibrated"] = calibration(y["test"], probabilities["after"])[-1]
    sums, num_views = tta_logits(images, predict, s.tta if s.flip else "none", logits)
    for kind, summed in sums.items():
        for split, values in summed.items():
            metrics[f"{split}_accuracy_{kind}_tta"] = accuracy(values, y[split])
    if num_views:
        metrics["shift_tta_views"] = num_views
    return SimpleNamespace(metrics=metrics, logits=logits, probabilities=probabilities)


def describe(images, temperature):
    """What predict.py needs beside a network's weights, for the metadata of their file."""
    metadata = {"dataset": images.name, "classes": images.classes, "image_shape": images.image_shape}
    return metadata | {"temperature": temperature, "bright_on_dark": images.bright_on_dark}


def tta_logits(images, predict, tta, logits):
    """({"flip": {"val": (M, C), "test": (N, C)}, "shift": ...}, number of views of "shift", or None).

    Test-time augmentation: logits summed over several views of each image. tta: "none"; "flip", the image and
    its mirror image; besides, one of VIEWS, or "shifts", whichever of these is most accurate on validation
    (the fewest of equals).
    """
    if tta == "none":
        return {}, None

    def view(split, down, right):  # the shifted images and their mirror images; the edges are filled with 0
        padded = np.pad(getattr(images, split).X, ((0, 0), (1, 1), (1, 1)))
        height, width = images.test.X.shape[1:]
        X = padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]
        plain = predict(X) if (down, right) != (0, 0) else logits[split]
        return plain + predict(X[:, :, ::-1])

    flip = {split: view(split, 0, 0) for split in logits}
    if tta == "flip":
        return {"flip": flip}, None
    kinds = list(VIEWS) if tta == "shifts" else [tta]
    views = {(0, 0): flip}
    for shift in {shift for kind in kinds for shift in VIEWS[kind]} - {(0, 0)}:
        views[shift] = {split: view(split, *shift) for split in logits}
    sums = {kind: {split: sum(views[v][split] for v in VIEWS[kind]) for split in logits} for kind in kinds}
    best = max(kinds, key=lambda kind: accuracy(sums[kind]["val"], images.val.y))
    return {"flip": flip, "shift": sums[best]}, 2 * len(VIEWS[best])


def fit_temperature(logits, y, loss):
    """The T in [0.05, 20] with the lowest loss of logits / T, for validation logits (N, C), labels y (N,).

    Temperature scaling (Guo et al. 2017, section 4.2) changes the probabilities, never the predicted class.
    """
    bounds = math.log(0.05), math.log(20)
    fit = minimize_scalar(lambda log_t: loss(logits / math.exp(log_t), y)[0], bounds=bounds)
    return math.exp(fit.x)


def calibration(y, probabilities, bins=15):
    """(edges (bins + 1,); count, mean confidence, accuracy of each bin of confidence; ECE).

    The expected calibration error is the mean over all images of |accuracy - confidence| of their bin (Guo et
    al. 2017, eq. 3).
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    place = (np.ceil(confidence * bins).astype(int) - 1).clip(0, bins - 1)  # bins (low, high]
    counts = np.bincount(place, minlength=bins)
    mean, share = (np.bincount(place, values, bins) / np.maximum(counts, 1) for values in (confidence, right))
    error = float(np.sum(counts * np.abs(share - mean)) / len(y))
    return np.linspace(0, 1, bins + 1), counts, mean, share, error
