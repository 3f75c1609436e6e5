"""A run's folder: settings, history, metrics, weights and figures, every file written whole or not at all.

    runs/<script>/<date_time>/settings.json   the settings that the run had
                              history.csv     a row for each epoch
                              metrics.json    the results, with settings, versions and machine
                              *.safetensors   weights (no pickles; the metadata inside says what they are)
                              *.png           figures
"""

import contextlib
import csv
import gc
import importlib.metadata
import io
import json
import os
import platform
import shlex
import statistics
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

from tqdm import tqdm

# ---- settings: edit here, or override on the command line (--output-dir DIR) ----
OUTPUT_DIR = ""  # the run's folder; "" makes runs/<script>/<date_time>
# ----

COLUMNS = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds")
CHECKPOINT = "checkpoint.safetensors"  # in a run's folder: what its training needs to go on


class RunError(Exception):
    """A file of an earlier run that cannot be used; the message names it."""

    exit_code = 1


class Diverged(Exception):
    """A training whose loss is no longer a number."""

    exit_code = 1


def command(main):
    """Call `main`: the user's mistakes end in one line on stderr (exit 1 or 2), Ctrl-C in one line and exit 130."""
    try:
        main()
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted{interrupt}", file=sys.stderr)
        sys.exit(130)
    except Exception as mistake:
        if isinstance(mistake, BrokenPipeError):  # whoever read the output, head perhaps, has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        memory = isinstance(mistake, MemoryError) or type(mistake).__name__ == "OutOfMemoryError"  # PyTorch's, of a GPU
        memory = memory or "DefaultCPUAllocator: can't allocate memory" in str(mistake)  # PyTorch's, a RuntimeError
        if not (hasattr(mistake, "exit_code") or isinstance(mistake, OSError) or memory):
            raise
        message = str(mistake).strip().splitlines() or ["not enough memory"]
        print(f"{Path(sys.argv[0]).name}: {message[0]}", file=sys.stderr)
        sys.exit(getattr(mistake, "exit_code", 1))


@contextlib.contextmanager
def whole(path):
    """Yield a temporary path beside `path` and rename it once written: `path` is never half a file."""
    path = Path(path)
    part = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def new_folder(script, settings):
    """Make the folder settings["output_dir"], or runs/<script>/<date_time>, with settings.json; returns its path.

    An earlier run there is moved aside whole. Raises RunError.
    """
    now = time.strftime("%Y-%m-%d_%H-%M-%S")
    path = Path(settings["output_dir"] or Path("runs", script, now))
    try:
        if path.resolve() in (Path.cwd(), *Path.cwd().parents):
            raise RunError(f"--output-dir {path}: is the folder that you are in, or above it; name one of its own")
        while not settings["output_dir"] and path.exists():  # another run of this second
            path = path.with_name(path.name + "_")
        if (path / "settings.json").exists():
            aside = path.with_name(f"{path.name}.before_{now}")
            path.rename(aside)
            print(f"an earlier run was here; it is now in {aside}")
        path.mkdir(parents=True, exist_ok=bool(settings["output_dir"]))
        with whole(path / "settings.json") as part:
            part.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8", newline="\n")
    except OSError as error:
        raise RunError(f"cannot write to {path}: {error.strerror}; choose another --output-dir") from None
    return path


class Run:
    """The folder of one run, made on entering; `with Run("mlp_from_scratch", settings) as run: ...`

    An earlier run in the same `--output-dir` is moved aside whole, never mixed with this one. With settings.resume, the name
    of a run's folder, it is that run; nothing of it changes before `go_on`, but for half-written files, which are removed.
    """

    def __init__(self, script, settings):
        self.settings, self.histories, self.headed = vars(settings), {}, set()
        resumed = self.settings.get("resume")
        gc.collect()  # a figure that was saved may hold on to the frames around it, and so to a former run's features
        self.start = None if resumed else time.perf_counter()
        self.path = Path(resumed) if resumed else new_folder(script, self.settings)
        for part in self.path.glob(".[0-9]*.*") if resumed else ():  # what a process that was killed was just writing
            part.unlink()

    def __enter__(self):
        values = "  ".join(f"{name}={value!r}".replace(", ", ",") for name, value in self.settings.items())
        print(textwrap.fill(f"settings  {values}", 118, subsequent_indent=10 * " ", break_on_hyphens=False))
        return self

    def __exit__(self, kind, error, traceback):
        if kind is KeyboardInterrupt:
            raise KeyboardInterrupt(f": what was written so far is in {self.path}") from None
        if kind is Diverged and (self.path / CHECKPOINT).exists():
            raise Diverged(f"{error}; the last checkpoint is kept: {self.path / CHECKPOINT}") from None

    def log(self, row, name="history.csv"):
        """Print one epoch's row (a dict of COLUMNS), and write the history so far."""
        rows = self.histories.setdefault(name, [])
        widths = [max(10, len(column) + 2) for column in COLUMNS]
        if name not in self.headed:
            self.headed.add(name)
            tqdm.write("".join(f"{column:>{width}}" for column, width in zip(COLUMNS, widths, strict=True)))
        rows.append(rounded(row))
        formats = ("d", ".4f", ".2%", ".4f", ".2%", ".2e", ".1f")
        tqdm.write("".join(f"{row[c]:>{w}{f}}" for c, w, f in zip(COLUMNS, widths, formats, strict=True)))
        sys.stdout.flush()
        self.write_history(name)

    def keep(self, training, split):
        """Write the checkpoint of a training with methods `arrays` and `about`; split: a digest of the images it is on."""
        about = training.about() | {"settings": of_training(self.settings), "split": split}
        save_weights(self.path / CHECKPOINT, training.arrays(), about)

    def go_on(self, history, name="history.csv"):
        """Take the run in this folder up with the history {column: [...]} of the epochs that are behind it."""
        self.start = time.perf_counter() - sum(history["seconds"])
        rows = zip(*(history[column] for column in COLUMNS), strict=True)
        self.histories[name] = [rounded(dict(zip(COLUMNS, row, strict=True))) for row in rows]
        if self.histories[name]:
            self.write_history(name)  # which may be behind the checkpoint by an epoch, or before

    def write_history(self, name):
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.histories[name])
        self.save({name: text.getvalue()})

    def save(self, files):
        """Write {file name: text or matplotlib Figure}."""
        for name, content in files.items():
            with whole(self.path / name) as part:
                if isinstance(content, str):
                    part.write_text(content, encoding="utf-8", newline="\n")
                else:
                    content.savefig(part)

    def finish(self, table, **metrics):
        """Write metrics.json with the settings, versions and machine, print the results, and return the metrics.

        table: {model: (validation accuracy, test accuracy)}. The seconds are those since the data was read, and of a run
        that was taken up those of the epochs before, too; without such a history nobody knows, and they are left out.
        """
        if memory := peak_memory():
            metrics["peak_memory_mib"] = round(memory, 1)
        took = ""
        if self.start:
            metrics["seconds"] = round(time.perf_counter() - self.start, 1)
            took = f", {metrics['seconds']:.0f} s"
        metrics |= {"settings": self.settings, "command": command_line(), **surroundings()}
        self.save({"metrics.json": json.dumps(metrics, indent=2, allow_nan=False) + "\n"})
        width = max(len(name) for name in [metrics["dataset"], *table]) + 2
        print(f"\n{metrics['dataset']:<{width}}  validation      test")
        for name, accuracies in table.items():
            print(f"{name:<{width}}" + "".join(f"{accuracy:12.2%}" for accuracy in accuracies)[2:])
        if self.settings.get("quick"):
            print("\nA quick tour on a subset: these figures are only a tour's; the real ones come without --quick.")
        print(f"\n{metrics['dataset']}{took}; figures, weights and metrics.json are in\n{self.path}")
        return metrics


def over_seeds(script, run, s, check=lambda s: None):
    """run(s), or with s.seeds > 1 a run for each seed from s.seed on, in FOLDER/seed_0 and so on. Returns the metrics.

    FOLDER/metrics.json then has of every result its mean, its standard deviation (NAME_std, with n - 1) and, under
    "by_seed", the single values; of the memory the highest. Taken up with --resume, it goes on with the seed at which it was
    stopped. `check` is called before any folder is made or moved; it raises SettingError for what `run` would refuse.
    """
    check(s)
    if s.seeds == 1:
        return run(s)
    folder = Path(s.resume) if s.resume else new_folder(script, vars(s))
    every = []
    for number, seed in enumerate(range(s.seed, s.seed + s.seeds), 1):
        path = folder / f"seed_{seed}"
        print(f"\nseed {seed}, {number} of {s.seeds}" + (": done before" if (path / "metrics.json").exists() else ""))
        if not (path / "metrics.json").exists():
            begun = str(path) if (path / "settings.json").exists() else ""
            run(SimpleNamespace(**vars(s) | {"seed": seed, "seeds": 1, "output_dir": str(path), "resume": begun}))
        every.append(json.loads((path / "metrics.json").read_text(encoding="utf-8")))
    first = {name: value for name, value in every[0].items()  # what all of them have; not always the seconds
             if all(name in one and (isinstance(value, float) or one[name] == value) for one in every)}  # fmt: skip
    memory = {"peak_memory_mib": max(one["peak_memory_mib"] for one in every)} if first.pop("peak_memory_mib", 0) else {}
    results = [name for name, value in first.items() if isinstance(value, float)]  # sizes are whole numbers
    by_seed = {name: [one[name] for one in every] for name in results}
    metrics = first | {name: statistics.fmean(values) for name, values in by_seed.items()}
    metrics |= {f"{name}_std": statistics.stdev(values) for name, values in by_seed.items()}
    metrics |= memory | {"seeds": list(range(s.seed, s.seed + s.seeds)), "by_seed": by_seed, "settings": vars(s)}
    metrics |= {"command": every[0]["command"], **surroundings()}  # not --resume, where a later seed was taken up
    with whole(folder / "metrics.json") as part:
        part.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8", newline="\n")
    print(f"\n{s.seeds} seeds, mean and standard deviation:")
    for name in ("val_accuracy", "test_accuracy"):
        print(f"{name:<14}{metrics[name]:8.2%} +- {100 * metrics[f'{name}_std']:.2f}")
    print(f"\n{metrics['dataset']}; metrics.json is in\n{folder}")
    return metrics


def of_training(settings):
    """The settings that make a training what it is, as JSON has them."""
    elsewhere = ("resume", "output_dir", "data_dir", "offline_fallback", "seeds")
    return json.loads(json.dumps({name: value for name, value in settings.items() if name not in elsewhere}))


def take_up(training, s, split):
    """Put the checkpoint in the folder s.resume into `training`; split: as in Run.keep. Raises RunError."""
    folder = Path(s.resume)
    path = folder / CHECKPOINT
    if not path.exists():
        if any(folder.glob("*history.csv")):
            raise RunError(f"{path}: no such file, but the run has been training: it cannot be taken up without it")
        print(f"{folder} was stopped before its first epoch was over: starting again")
        return
    tensors, about = load_weights(path)
    with as_written(path):
        if about["split"] != split:
            raise RunError(f"{path}: is of a training on other data")
        if about["settings"] != (own := of_training(vars(s))):
            different = sorted(name for name in own if about["settings"].get(name) != own[name])
            raise ValueError(f"of a training with other settings: {', '.join(different)}")
        training.take_up(tensors, about)
    print(f"taking up {folder} after epoch {about['epoch']}")


def command_line():
    return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])


def rounded(row):
    """A row of COLUMNS as it stands in a history file: six digits."""
    return {column: float(f"{value:.6g}") if column != "epoch" else value for column, value in row.items()}


def surroundings():
    """{"versions": ..., "machine": ...}: of the packages that this process has imported, and of this machine."""
    packages = ("numpy", "torch", "torchvision", "matplotlib", "scikit-learn")
    loaded = [name for name in packages if name.replace("scikit-learn", "sklearn") in sys.modules]
    versions = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in loaded}}
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
    """Of this process so far, in MiB; None where the system does not tell."""
    status = Path("/proc/self/status")  # Linux; getrusage there begins with the peak of the process that started this one
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    try:
        import resource  # which Windows lacks
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def save_weights(path, tensors, about):
    """Write {name: array} with the dict `about` (JSON) as one safetensors file."""
    from safetensors.numpy import save

    with whole(path) as part:
        part.write_bytes(save(tensors, {"about": json.dumps(about)}))


@contextlib.contextmanager
def as_written(path):
    """Raise RunError for whatever goes wrong inside because the weights file `path` does not hold what it should."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise RunError(f"{path}: not as this project writes it ({str(error).splitlines()[0]})") from None


def load_weights(path):
    """({name: array}, about) of a file that save_weights wrote. Raises RunError for anything else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = dict(json.loads(file.metadata()["about"]))
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: not a weights file of this project, or a damaged one ({error})") from None
