"""One training run of a study, as a worker process does it: settings in, a row of results out, no files left behind."""

if __name__ == "__main__":
    raise SystemExit("studies/execute.py is a module, not a script: experiments.py uses it")

import contextlib
import errno
import functools
import hashlib
import importlib
import io
import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from threadpoolctl import threadpool_limits

import data
import plots
from studies.study import SCRIPTS, settings_of
from support import runs

RESULTS = ("val_accuracy", "test_accuracy", "test_loss", "test_ece", "parameters", "seconds", "dataset", "train_size")
RUNNING = "running"  # folder of the store with an empty file for each run that a worker is busy with
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Job:
    """One training run: a script with settings, and the key of the run whose backbone it uses."""

    script: str
    settings: dict = field(hash=False)
    key: str
    backbone: str = ""
    is_backbone: bool = False


@functools.lru_cache(maxsize=1)
def load_images(**values):
    """The dataset, which the next run of this process shares if it is the same."""
    return data.load(**values)


def execute(job, folder):
    """Train the run of a Job: its row, a dict that JSON can hold. folder: that of the store.

    The row has RESULTS, "num_classes", "history" and "train_eval_accuracy"; after a training whose loss became infinite
    "diverged", the message, instead; and after any other error "error", with "disk_full" if that was the reason. Every run
    uses one thread, so that its results do not depend on how many run at once.
    """
    running, silent = Path(folder, RUNNING, job.key), io.StringIO()
    with contextlib.suppress(OSError):
        running.parent.mkdir(parents=True, exist_ok=True)
        running.touch()
    try:
        with one_thread(job.script), contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            return train(job, folder)
    except Exception as error:
        name = "" if hasattr(error, "exit_code") else f"{type(error).__name__}: "  # a message for users, or a fault
        message = f"{name}{str(error).strip() or 'no message'}".splitlines()[0]
        return {"error": message} | ({"disk_full": True} if is_disk_full(error) else {})
    finally:
        with contextlib.suppress(OSError):
            running.unlink(missing_ok=True)


@contextlib.contextmanager
def one_thread(script):
    """A context in which NumPy and, for other scripts than the MLP's, PyTorch compute in one thread."""
    with threadpool_limits(1):
        if script == "mlp":
            yield
            return
        import torch  # here, since an MLP needs none

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def train(job, folder):
    """The row of a run. Raises what the script raises, except runs.Diverged."""
    s, script = settings_of(job.script, job.settings), importlib.import_module(SCRIPTS[job.script])
    images = load_images(**{name: getattr(s, name) for name in data.ARGUMENTS})
    num_classes = {"num_classes": len(images.classes)}
    if job.backbone:
        s.backbone = str(backbone_path(folder, job.backbone))
    try:
        if job.is_backbone:  # its weights and features are kept for the runs that need them
            path = backbone_path(folder, job.key)
            shutil.rmtree(path.parent, ignore_errors=True)  # of a run that was killed
            s.output_dir, s.save_weights = str(path.parent), True
            script.run(s, images)
            return row_of(path.parent) | num_classes | {"weights": file_digest(path)}
        with tempfile.TemporaryDirectory(prefix="study_", ignore_cleanup_errors=True) as temporary:
            s.output_dir = str(Path(temporary, "run"))
            script.run(s, images)
            return row_of(Path(s.output_dir)) | num_classes
    except runs.Diverged as error:
        return {"diverged": str(error).split("; the last checkpoint")[0], "dataset": images.name}


def backbone_path(folder, key):
    """The weights file of a backbone in the store."""
    return Path(folder, "backbones", key, "backbone.safetensors")


def file_digest(path):
    """Hexadecimal BLAKE2b of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def is_disk_full(error):
    """Whether an exception, or one that led to it, says that the disk is full."""
    while error is not None:
        if getattr(error, "errno", None) in DISK_FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def row_of(path):
    """The row of a finished run in the folder `path`."""
    metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    history = plots.read_history(path / "history.csv")
    row = {name: metrics[name] for name in RESULTS if name in metrics}
    return row | {"train_eval_accuracy": history["train_eval_accuracy"][-1], "epochs": len(history["epoch"]),
                  "history": {name: history[name] for name in ("train_loss", "val_loss", "val_accuracy")}}  # fmt: skip
