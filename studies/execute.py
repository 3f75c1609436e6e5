"""One training run of a study, as a worker process does it: settings in, a row of results out, no files left behind."""

if __name__ == "__main__":
    raise SystemExit("studies/execute.py is a module, not a script: experiments.py uses it")

import contextlib
import functools
import importlib
import io
import json
import os
import tempfile
from pathlib import Path

from threadpoolctl import threadpool_limits

import data
import plots
from studies.study import SCRIPTS, settings_of
from support import runs

RESULTS = ("val_accuracy", "test_accuracy", "test_loss", "test_ece", "parameters", "seconds", "dataset", "train_size")
RUNNING = "running"  # folder of the store with an empty file for each run that a worker is busy with


@functools.lru_cache(maxsize=1)
def load_images(**values):
    """The dataset, which the next run of this process shares if it is the same."""
    return data.load(**values)


def execute(job, folder):
    """Train the run of a runner.Job: its row, a dict that JSON can hold. folder: that of the store.

    The row has RESULTS, "history" and "train_eval_accuracy"; after a training whose loss became infinite "diverged", the
    message, instead; and after any other error "error". Every run uses one thread, so that its results do not depend on
    how many run at once.
    """
    running = Path(folder, RUNNING, job.key)
    with contextlib.suppress(OSError):  # a worker on another machine may not see the folder
        running.parent.mkdir(parents=True, exist_ok=True)
        running.write_text(str(os.getpid()))
    try:
        silent = io.StringIO()
        with threadpool_limits(1), contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            return train(job, folder)
    except runs.Diverged as error:
        return {"diverged": str(error).split("; the last checkpoint")[0]}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]}
    finally:
        running.unlink(missing_ok=True)


def train(job, folder):
    """The row of a run. Raises what the script raises."""
    if job.script != "mlp":
        import torch  # here, since an MLP needs none

        torch.set_num_threads(1)
    s, script = settings_of(job.script, job.settings), importlib.import_module(SCRIPTS[job.script])
    names = ("dataset", "data_dir", "offline_fallback", "split_seed", "quick", "val_fraction", "train_size", "label_noise")
    images = load_images(**{name: getattr(s, name) for name in names})
    if job.is_backbone:  # its weights and features are kept for the runs that need them
        path = backbone_folder(folder, job.key)
        if not (path / "metrics.json").exists():
            s.output_dir, s.save_weights = str(path), True
            script.run(s, images)
        return row_of(path)
    if job.backbone:
        s.backbone = str(backbone_folder(folder, job.backbone) / "backbone.safetensors")
    with tempfile.TemporaryDirectory(prefix="study_") as temporary:
        s.output_dir = str(Path(temporary, "run"))
        script.run(s, images)
        return row_of(Path(s.output_dir))


def backbone_folder(folder, key):
    return Path(folder, "backbones", key)


def row_of(path):
    """The row of a finished run in the folder `path`."""
    metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    history = plots.read_history(path / "history.csv")
    row = {name: metrics[name] for name in RESULTS if name in metrics}
    return row | {"train_eval_accuracy": history["train_eval_accuracy"][-1], "epochs": len(history["epoch"]),
                  "history": {name: history[name] for name in ("train_loss", "val_loss", "val_accuracy")}}  # fmt: skip
