"""Runs studies: a learning rate for each variant, then all seeds, in several processes.

Each result is a JSON file, found by its settings; those of a study are runs.csv.
"""

import base64
import contextlib
import csv
import functools
import io
import json
import signal
import sys
import tempfile
import threading
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
RESERVED = ("learning_rates", "script", "group", "from_backbone", "seeds")  # of a variant: not settings
COLUMNS = ["variant", "stage", "seed", "learning_rate", "epochs", "parameters", "val_accuracy"]
COLUMNS += ["test_accuracy", "test_loss", "test_ece", "train_eval_accuracy", "seconds", "message", "correct"]
QUIET = {"figures": False, "save_weights": False, "tta": "none"}  # settings of all runs


def make_job(script, changes, backbone=None, is_backbone=False):
    """A training run: a script with settings that differ from its defaults. Raises run.Error.

    A namespace: script, settings, learning_rate, dataset (name, fingerprint, image_shape, train_size,
    num_classes), key, is_backbone, and of a hybrid perhaps its backbone, the job that trains its CNN. In a
    smoke test, a study's number of training images is scaled to the subset.
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
    job = SimpleNamespace(script=script, settings=vars(s), dataset=dataset, key=key)
    job.backbone, job.is_backbone = backbone, is_backbone
    job.learning_rate = job.settings[learning_rate_of(script, job.settings)]
    return job


def data_settings(settings):
    """((name, value), ...) of the settings on which the dataset depends."""
    return tuple((name.lower(), settings[name.lower()]) for name in run.constants(data))


@functools.lru_cache(maxsize=1)  # the next run of a process mostly has the same images
def load_images(chosen):
    return data.load(SimpleNamespace(**dict(chosen)))


@functools.cache
def describe(chosen):
    images = load_images(chosen)
    dataset = {"name": images.name, "fingerprint": images.fingerprint(), "image_shape": images.image_shape}
    return SimpleNamespace(train_size=len(images.train.y), num_classes=len(images.classes), **dataset)


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
    correct = result.logits["test"].argmax(axis=1) == images.test.y  # booleans (N,)
    return job, row | {"correct": base64.b64encode(np.packbits(correct)).decode()}


def weights_of(job, folder):
    return Path(folder, f"{job.key}.safetensors")


def start_process():
    """Ctrl-C reaches every process of a terminal; the first one ends the others, which say nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())  # not a semaphore, about which a killed process leaves a message


class Runner:
    """Runs jobs in `num_jobs` processes, or on a Dask scheduler's workers, and keeps their rows in `folder`.

    fresh: rows of earlier commands are not used; only_finished: no others are run.
    """

    def __init__(self, folder, num_jobs=1, dask="", fresh=False, only_finished=False):
        self.folder, self.fresh, self.finished = Path(folder).resolve(), fresh, {}
        self.only_finished = only_finished
        self.folder.mkdir(parents=True, exist_ok=True)
        self.backend = {"backend": "loky", "n_jobs": num_jobs, "initializer": start_process}
        if dask:
            try:
                from distributed import Client
            except ImportError:
                raise run.Error("--dask: needs another package: pip install distributed") from None
            self.client = Client(dask, timeout="10s")  # joblib uses the client that was made last
            self.backend = {"backend": "dask", "n_jobs": -1}

    def is_finished(self, job):
        path = self.folder / f"{job.key}.json"
        if job.key not in self.finished and not self.fresh and path.exists():
            self.finished[job.key] = run.read_json(path)
        return job.key in self.finished and (not job.is_backbone or weights_of(job, self.folder).exists())

    def rows(self, jobs):
        """{key: row} of the jobs: of those that are finished, and of the others after running them.

        Those of the first seed are run first.
        """
        waiting = {job.key: job for job in jobs if not self.is_finished(job)}
        if not self.only_finished:
            backbones = {job.backbone.key: job.backbone for job in waiting.values() if job.backbone}
            backbones |= {key: job for key, job in waiting.items() if job.is_backbone}
            self.train([job for job in backbones.values() if not self.is_finished(job)])
            others = [job for job in waiting.values() if not job.is_backbone]
            self.train(sorted(others, key=lambda job: job.settings["seed"]))
        return {job.key: self.finished[job.key] for job in jobs if job.key in self.finished}

    def train(self, jobs):
        """Run the jobs, and write each row as its run ends. Raises what a run raises."""
        calls = (joblib.delayed(execute)(job, self.folder) for job in jobs)
        with joblib.parallel_config(**self.backend):
            pool = joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs")
            with contextlib.closing(pool(calls)) as results:
                for job, row in tqdm(results, total=len(jobs), unit="run", disable=None, leave=False):
                    run.write(self.folder / f"{job.key}.json", json.dumps(row) + "\n")
                    self.finished[job.key] = row


# ---- studies


def variants_of(study, options):
    """Namespaces of the variants of a study, the first its backbone, if any. options: namespace with epochs,
    quick, seeds.

    label, stage, script, changes, group, from_backbone, seeds; learning_rates: those to choose from, or
    (None,) for that of the settings.
    """
    variants, described = [], study.variants
    if study.backbone:
        described = {"backbone": study.backbone | {"script": "cnn", "learning_rates": ()}} | described
    for label, given in described.items():
        script, own = given.get("script", study.script), {k: v for k, v in given.items() if k not in RESERVED}
        fixed = {} if label == "backbone" else study.fixed
        changes = fixed | own | (epochs_of(script, options) if study.x != "seconds" else {})
        rates = tuple(sorted(given.get("learning_rates", study.learning_rates))) or (None,)
        if learning_rate_of(script, changes) in own:
            rates = (None,)
        elif options.quick:
            rates = (rates[len(rates) // 2],)
        variant = SimpleNamespace(label=label, script=script, changes=changes, learning_rates=rates)
        variant.group, variant.from_backbone = given.get("group", ""), given.get("from_backbone", False)
        variant.stage = "backbone" if label == "backbone" else "final"
        seeds = given.get("seeds", study.seeds)
        variant.seeds = range(options.seeds or (min(2, seeds) if options.quick else seeds))
        variants.append(variant)
    return variants


def epochs_of(script, options):
    """The settings by which --epochs and --quick change the epochs of a script."""
    names = ("epochs", "head_epochs") if script in ("hybrid", "transfer") else ("epochs",)
    epochs = options.epochs or (1 if options.quick else 0)
    return dict.fromkeys(names, epochs) if epochs else {}


class Comparison:
    """The runs of one study. folder: that of its runs.csv, whose rows are not run again unless runner.fresh.

    options: namespace with seeds, epochs, quick and dataset. Raises run.Error for impossible settings.
    """

    def __init__(self, study, runner, options, folder):
        self.study, self.runner, self.variants = study, runner, variants_of(study, options)
        self.overrides = {"dataset": options.dataset} if options.dataset else {}
        self.overrides |= {"quick": True} if options.quick else {}
        jobs = [self.job(variant, variant.learning_rates[0], 0) for variant in self.variants]
        self.dataset = jobs[0].dataset
        self.known = {} if runner.fresh else known_rows(folder, self.variants, self.dataset.name)

    def job(self, variant, rate, seed):
        changes = variant.changes | self.overrides | {"seed": seed}
        changes |= {"split_seed": seed} if self.study.resplit else {}
        if rate is not None:
            changes[learning_rate_of(variant.script, changes)] = rate
        frozen = variant.script == "hybrid" and changes.get("training", "frozen") == "frozen"
        on_backbone = self.study.backbone and (frozen or variant.from_backbone)
        backbone = self.job(self.variants[0], None, seed) if on_backbone else None
        return make_job(variant.script, changes, backbone, variant.stage == "backbone")

    def run(self):
        """All rows of runs.csv. Of learning rates that are equal on validation, the smallest is chosen."""
        tuned = [variant for variant in self.variants if len(variant.learning_rates) > 1]
        tuning = self.rows("tuning", [(v, rate, v.seeds[0]) for v in tuned for rate in v.learning_rates])
        cells = []
        for variant in self.variants:
            rows = [row for row in tuning if row["variant"] == variant.label]
            best = max(rows, key=lambda row: row.get("val_accuracy", -1.0), default=None)
            rate = best["learning_rate"] if best else variant.learning_rates[0]
            if variant not in tuned or len(rows) == len(variant.learning_rates):  # all of them are finished
                seeds = {*variant.seeds, *self.known_seeds(variant, rate)}
                cells += [(variant, rate, seed) for seed in sorted(seeds)]
        return tuning + self.rows("final", cells)

    def known_seeds(self, variant, rate):
        """Those that an earlier command has run."""
        kind = variant.label, variant.stage
        rows = [row for row in self.known.values() if (row["variant"], row["stage"]) == kind]
        return {row["seed"] for row in rows if rate in (None, row["learning_rate"])}

    def rows(self, stage, cells):
        """A row of runs.csv for each of the cells (variant, learning rate, seed) that is finished."""
        rows, missing = [], []
        for variant, rate, seed in cells:
            job, place = self.job(variant, rate, seed), stage if stage == "tuning" else variant.stage
            row = {"variant": variant.label, "stage": place, "seed": seed, "learning_rate": job.learning_rate}
            known = self.known.get(key_of(row))
            rows.append(row | (known or {}))
            if not known:
                missing.append((rows[-1], job))
        results = self.runner.rows([job for _, job in missing])
        hidden = ("test_accuracy", "test_loss", "test_ece", "correct") if stage == "tuning" else ()
        for row, job in missing:  # nobody chooses by test results
            row |= {name: value for name, value in results.get(job.key, {}).items() if name not in hidden}
        return [row for row in rows if "seconds" in row or "message" in row]


def key_of(row):
    return row["variant"], row["stage"], row["seed"], f"{row['learning_rate']:g}"


def known_rows(folder, variants, dataset):
    """{key_of(row): row} of the runs.csv in `folder`. Raises run.Error where it is of other settings."""
    if not (folder / "summary.json").exists():
        return {}
    summary = run.read_json(folder / "summary.json")
    earlier = {label: result["settings"] for label, result in summary["variants"].items()}
    now = json.loads(json.dumps({v.label: v.changes for v in variants}))
    if summary["dataset"] != dataset or any(now[label] != earlier.get(label, now[label]) for label in now):
        raise run.Error(f"{folder}: of other data or settings; name another --output-dir, or give --fresh")
    return {key_of(row): row for row in read_rows(folder / "runs.csv") if row["variant"] in now}


def read_rows(path):
    """The rows of a runs.csv, with numbers for texts, without empty cells."""
    with open(path, newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    whole, texts = ("seed", "epochs", "parameters"), ("variant", "stage", "message", "correct")
    kinds = dict.fromkeys(whole, int) | dict.fromkeys(texts, str)
    return [{name: kinds.get(name, float)(cell) for name, cell in row.items() if cell} for row in table]
