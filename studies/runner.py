"""Runs the trainings of studies in several processes. Each result is a JSON file, found by its settings."""

import contextlib
import functools
import io
import json
import signal
import sys
import tempfile
import threading
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import data
import run
from studies.study import learning_rate_of, script_of

RESULTS = ("val_accuracy", "test_accuracy", "test_loss", "test_ece", "parameters", "seconds")
FULL_SPLIT = 48_000  # training images for which the studies' numbers of images are meant
QUIET = {"figures": False, "save_weights": False, "tta": "none"}  # settings of all runs


@dataclass(frozen=True)
class Job:
    """A training run: a script with all its settings; of a hybrid perhaps the job that trains its CNN."""

    script: str
    settings: dict
    dataset: SimpleNamespace  # name, fingerprint, image_shape, train_size, num_classes
    key: str
    backbone: "Job | None" = None
    is_backbone: bool = False

    @property
    def learning_rate(self):
        return self.settings[learning_rate_of(self.script, self.settings)]


def make_job(script, changes, backbone=None, is_backbone=False):
    """The Job of a script with settings that differ from its defaults. Raises run.Error for impossible ones.

    In a smoke test, a study's number of training images is scaled to the subset.
    """
    module = script_of(script)
    s = module.settings(**QUIET | changes)
    module.check_settings(s)
    dataset = describe(data_settings(vars(s) | {"train_size": 0, "label_noise": 0.0}))
    data.check_augmentation(s, dataset)
    if s.quick and s.train_size:
        s.train_size = max(20, s.train_size * dataset.train_size // FULL_SPLIT)
    made_from = [script, run.training_settings(s), dataset.fingerprint, is_backbone]
    made_from.append(backbone.key if backbone else "")
    key = run.digest(np.frombuffer(json.dumps(made_from).encode(), np.uint8))
    return Job(script, vars(s), dataset, key, backbone, is_backbone)


def data_settings(settings):
    """((name, value), ...) of the settings on which the dataset depends."""
    return tuple((name.lower(), settings[name.lower()]) for name in run.constants(data))


@functools.cache
def describe(chosen):
    images = data.load(SimpleNamespace(**dict(chosen)))
    about = {"name": images.name, "fingerprint": images.fingerprint(), "image_shape": images.image_shape}
    return SimpleNamespace(train_size=len(images.train.y), num_classes=len(images.classes), **about)


@functools.lru_cache(maxsize=1)  # the next run of a process mostly has the same images
def load_images(chosen):
    return data.load(SimpleNamespace(**dict(chosen)))


def one_thread():
    """A context in which all computes in one thread: results depend neither on the cores nor on --jobs."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    return threadpool_limits(1)


def execute(job, folder):
    """(job, its row). The weights of a backbone are left in `folder`, nothing else."""
    module, s, silent = script_of(job.script), SimpleNamespace(**job.settings), io.StringIO()
    images = load_images(data_settings(job.settings))
    with tempfile.TemporaryDirectory(prefix="study_") as temporary, one_thread():
        s.output_dir, s.save_weights = str(Path(temporary, "run")), job.is_backbone
        if job.backbone:
            s.backbone = str(weights_of(job.backbone, folder))
        try:
            with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
                result = module.run_once(s, images)
        except run.Diverged as error:
            return job, {"message": str(error)}
        if job.is_backbone:
            run.write(weights_of(job, folder), Path(result.folder, "backbone.safetensors").read_bytes())
    row, history = {name: result.metrics[name] for name in RESULTS}, result.history
    row |= {"epochs": len(history["epoch"]), "train_eval_accuracy": history["train_eval_accuracy"][-1]}
    return job, row | {"history": history}


def weights_of(job, folder):
    return Path(folder, f"{job.key}.safetensors")


def start_process():
    """Ctrl-C reaches every process of a terminal; the first one ends the others, which say nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())  # not a semaphore, about which a killed process leaves a message


class Runner:
    """Runs jobs in `num_jobs` processes, or on a Dask scheduler's workers, and keeps their rows in `folder`.

    fresh: rows of earlier commands are not used. on_row() is called for each row.
    """

    def __init__(self, folder, num_jobs=1, dask="", fresh=False, on_row=lambda: None):
        self.folder, self.fresh, self.on_row, self.finished = Path(folder).resolve(), fresh, on_row, {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self.backend = {"backend": "loky", "n_jobs": num_jobs, "initializer": start_process}
        if num_jobs == 1:
            self.backend = {"backend": "sequential"}
        if dask:
            self.client = connect(dask)  # joblib uses the client that was made last
            self.backend = {"backend": "dask", "n_jobs": -1}

    def is_finished(self, job):
        path = self.folder / f"{job.key}.json"
        if job.key not in self.finished and not self.fresh and path.exists():
            self.finished[job.key] = run.read_json(path)
        return job.key in self.finished and (not job.is_backbone or weights_of(job, self.folder).exists())

    def rows(self, jobs):
        """{key: row} of the jobs: of those that are finished, and of the others after running them."""
        waiting = {job.key: job for job in jobs if not self.is_finished(job)}
        backbones = {job.backbone.key: job.backbone for job in waiting.values() if job.backbone}
        for _ in range(len(jobs) - len(waiting)):
            self.on_row()
        for batch in ([job for job in backbones.values() if not self.is_finished(job)], waiting.values()):
            for job, row in self.train(batch) if batch else ():
                run.write(self.folder / f"{job.key}.json", json.dumps(row) + "\n")
                self.finished[job.key] = row
                self.on_row()
        return {job.key: self.finished[job.key] for job in jobs}

    def train(self, jobs):
        """Yield (job, row) as the runs end. Raises what a run raises, and run.Error if a process dies."""
        calls = (joblib.delayed(execute)(job, self.folder) for job in jobs)
        try:
            with joblib.parallel_config(**self.backend):
                pool = joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs")
                with contextlib.closing(pool(calls)) as results:
                    yield from results
        except BrokenProcessPool:
            reason = "a process died, perhaps for lack of memory: use fewer --jobs"
            raise run.Error(f"{reason}; finished runs are kept, and the same command continues") from None


def connect(address):
    """A client of the Dask scheduler at an address."""
    try:
        from distributed import Client
    except ImportError:
        raise run.Error("--dask: needs another package: pip install distributed") from None
    return Client(address, timeout="10s")
