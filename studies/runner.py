"""Runs the trainings of studies: each result is kept at once and found again by what it is made from."""

if __name__ == "__main__":
    raise SystemExit("studies/runner.py is a module, not a script: experiments.py uses it")

import ast
import contextlib
import json
import statistics
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import data
from studies.execute import RUNNING, execute
from studies.study import settings_of
from support import files, runs

ROOT = Path(__file__).parent.parent
CODE = {"mlp": ("mlp_from_scratch.py", "data.py", "support/training.py", "numpy_nn")}  # what a script's results depend on
CODE["cnn"] = ("cnn_feature_extraction.py", "data.py", "support/training.py", "torch_cnn", "numpy_nn/optimizers.py")
CODE["hybrid"] = ("hybrid_train.py", *CODE["mlp"], *CODE["cnn"])
CODE["transfer"] = ("transfer_learning.py", *CODE["hybrid"])
TYPICAL_SECONDS = {"mlp": 15, "cnn": 60, "hybrid": 30, "transfer": 600}  # of a run, before one of its kind is finished


@dataclass(frozen=True)
class Job:
    """One training run: a script with settings, and the key of the run whose backbone it uses."""

    script: str
    settings: dict = field(hash=False)
    key: str
    backbone: str = ""
    is_backbone: bool = False


class Runner:
    """Runs jobs in `num_jobs` processes and keeps their rows in `folder`.

    overrides: settings of every run, such as {"quick": True}. dask: address of a Dask scheduler whose workers run them.
    """

    def __init__(self, folder, num_jobs=1, overrides=None, dask=""):
        self.folder, self.num_jobs, self.overrides, self.dask = Path(folder), num_jobs, overrides or {}, dask
        self.versions, self.failed, self.seconds = {}, {}, {}
        self.bar, self.planned, self.counted = None, {}, set()  # counted: keys of the current study's finished runs

    def job(self, script, changes, backbone="", is_backbone=False):
        """The Job of a script with settings that differ from its defaults. Raises settings.SettingError."""
        changes = changes | {name: value for name, value in self.overrides.items() if name not in changes}
        s = settings_of(script, changes | self.precision(script, changes))
        identity = {"script": script, "settings": runs.training_settings(vars(s)), "backbone": backbone,
                    "is_backbone": is_backbone, "code": self.version(script), "data": self.version("data")}  # fmt: skip
        key = data.digest_text(json.dumps(identity, sort_keys=True))
        return Job(script, vars(s), key, backbone, is_backbone)

    def precision(self, script, changes):
        """{"precision": ...} as "auto" would choose it: once for all runs, since a choice by trial could differ."""
        if script == "mlp" or changes.get("precision", "auto") != "auto":
            return {}
        if "precision" not in self.versions:
            from torch_cnn import backbone, devices

            s = settings_of("cnn", {})
            device = devices.pick_device(s.device)
            self.versions["precision"] = str(devices.pick_precision("auto", backbone.build(s), device)).split(".")[1]
        return {"precision": self.versions["precision"]}

    def version(self, script):
        """Digest of the code that a script's results depend on, or of the dataset's images and labels ("data")."""
        if script not in self.versions:
            if script == "data":
                names = ("dataset", "data_dir")
                given = {name: self.overrides[name] for name in names if name in self.overrides}
                self.versions[script] = data.load(**given, offline_fallback=False).fingerprint()
            else:
                self.versions[script] = data.digest_text("".join(map(code_of, source_files(CODE[script]))))
        return self.versions[script]

    def path(self, key):
        return self.folder / f"{key}.json"

    def finished(self, key):
        """The row of a finished run, or None. A damaged file is renamed and named; its run is done again."""
        path = self.path(key)
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            if data.digest_text(key + saved["row"]) != saved["digest"]:
                raise ValueError("its digest is another one")
            return json.loads(saved["row"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            path.rename(aside := path.with_suffix(".damaged"))
            print(f"{path} is damaged ({error}): set aside as {aside.name}; its run is done again", file=sys.stderr)
            return None

    def keep(self, key, row):
        """Write a finished run's row, with a digest. Raises files.FileError where that is impossible, as on a full disk."""
        text = json.dumps(row, allow_nan=False, sort_keys=True)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write_text(self.path(key), json.dumps({"digest": data.digest_text(key + text), "row": text}) + "\n")
        except OSError as error:
            raise files.FileError(f"{self.path(key)}: cannot be written ({error.strerror}); all earlier runs are kept, and "
                                  "the same command continues with them") from None  # fmt: skip

    def rows(self, jobs):
        """{key: row} of the jobs: those that are finished, and the others after running them.

        A run that fails twice, in a process that dies or with an error, has the row {"error": message}.
        """
        rows = {job.key: self.finished(job.key) for job in jobs}
        waiting = [job for job in {job.key: job for job in jobs}.values() if rows[job.key] is None]
        for job in jobs:
            if rows[job.key] is not None:
                self.progress(job)
        for attempt in ("first", "second"):
            again = []
            for job, row in self.run(waiting):
                if "error" in row and attempt == "first":
                    again.append(job)
                    continue
                if "error" in row:
                    self.failed[job.key] = row["error"]
                else:
                    self.keep(job.key, row)
                rows[job.key] = row
                self.progress(job, row)
            waiting = again
        return rows

    def run(self, jobs):
        """Yield (job, row) of each job in the order in which they end. A process that dies has its job reported."""
        import joblib

        waiting = {job.key: job for job in jobs}
        if not waiting:
            return
        try:
            with self.backend() as options:
                work = (joblib.delayed(keyed)(job, str(self.folder)) for job in jobs)
                for key, row in joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs",
                                                **options)(work):  # fmt: skip
                    yield waiting.pop(key), row
        except Exception as error:
            if not isinstance(error, BrokenProcessPool) and type(error).__name__ != "KilledWorker":
                raise
            running = [job for job in waiting.values() if (self.folder / RUNNING / job.key).exists()] or [*waiting.values()]
            for job in running:  # alone, so that only the one at fault is lost
                yield waiting.pop(job.key), alone(job, str(self.folder))
            yield from self.run(list(waiting.values()))

    @contextlib.contextmanager
    def backend(self):
        """The options of joblib.Parallel: processes of this machine, or those of a Dask cluster."""
        import joblib

        if not self.dask:
            yield {"n_jobs": self.num_jobs}
            return
        from distributed import Client

        try:
            client = Client(self.dask, timeout="10s")
        except (OSError, ValueError) as error:
            raise files.FileError(f"--dask {self.dask}: no scheduler answers there ({error})") from None
        with client, joblib.parallel_config(backend="dask", wait_for_workers_timeout=30):
            yield {"n_jobs": -1}

    def start(self, bar, comparisons):
        """Show the progress of the runs of all `comparisons` in `bar`, a tqdm."""
        self.bar = bar
        for comparison in comparisons:
            for script, count in comparison.runs_by_script().items():
                self.planned[script] = self.planned.get(script, 0) + count

    def progress(self, job, row=None):
        """Advance the bar by a run, finished now or, without its row, earlier; learn how long runs take."""
        if not self.bar or job.key in self.counted:
            return
        self.counted.add(job.key)
        if row and "seconds" in row:
            self.seconds.setdefault(job.script, []).append(row["seconds"])
        self.planned[job.script] -= 1
        typical = {script: statistics.fmean(self.seconds.get(script, [guess])) for script, guess in TYPICAL_SECONDS.items()}
        left = sum(typical[script] * max(0, count) for script, count in self.planned.items()) / self.num_jobs
        self.bar.update()
        self.bar.set_postfix_str(f"about {left / 60:.0f} min left")


def keyed(job, folder):
    return job.key, execute(job, folder)


def alone(job, folder):
    """The row of a job run in a new process of its own."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(execute, job, folder).result()
        except BrokenProcessPool:
            return {"error": "its process was killed"}


def source_files(names):
    """The Python files of files and folders, without the figures', each once."""
    paths = {path for name in names for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).glob("*.py"))}
    return sorted(path for path in paths if path.stem != "figures")


def code_of(path):
    """A file's code without comments and docstrings, which change no result."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
