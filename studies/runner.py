"""Runs the trainings of studies: each result is kept at once and found again by what it is made from."""

if __name__ == "__main__":
    raise SystemExit("studies/runner.py is a module, not a script: experiments.py uses it")

import json
import platform
import sys
from pathlib import Path

from tqdm import tqdm

import data
from studies.execute import Job, backbone_path, file_digest
from studies.study import settings_of
from studies.versions import code_digest, package_versions
from support import files, runs, settings

FULL_SPLIT = 48_000  # training images for which the studies' numbers of images are meant


class Runner:
    """Runs jobs on `workers`, one of studies.workers, and keeps their rows in `folder`.

    overrides: settings of every run, such as {"quick": True}. on_finished(job, row): called for each finished run.
    """

    def __init__(self, folder, workers=None, overrides=None, on_finished=lambda job, row: None):
        self.folder = Path(folder).resolve()  # the same for every worker
        self.workers, self.overrides, self.on_finished = workers, overrides or {}, on_finished
        self.versions, self.failed = {}, {}  # failed: {key: row} of the runs that failed twice

    def job(self, script, changes, backbone="", is_backbone=False):
        """The Job of a script with settings that differ from its defaults. Raises settings.SettingError."""
        changes = changes | {name: value for name, value in self.overrides.items() if name not in changes}
        s = settings_of(script, changes | self.precision(script, changes))
        fingerprint, num_images, image_shape = self.dataset(s)
        if s.quick and s.train_size:
            s.train_size = max(20, s.train_size * num_images // FULL_SPLIT)
        if s.train_size > num_images:
            raise settings.SettingError(f"--train-size {s.train_size:,}: the training split has {num_images:,} images")
        settings.check_augmentation(s, image_shape)
        contents = [file_digest(vars(s)[name]) for name in ("backbone", "head") if vars(s).get(name)]
        identity = {"script": script, "settings": runs.training_settings(vars(s)), "backbone": backbone,
                    "is_backbone": is_backbone, "files": contents, "code": self.version(script), "data": fingerprint}
        key = data.digest_text(json.dumps(identity, sort_keys=True))
        return Job(script, vars(s), key, backbone, is_backbone)

    def precision(self, script, changes):
        """{"device": ..., "precision": ...} as "auto" would choose them, once for all runs and for all later calls.

        The choice is kept in the store, since it is made by trial on some machines and another one gives other results.
        """
        if script == "mlp":
            return {}
        if "precision" not in self.versions:
            path, machine = self.folder / "precision.json", [platform.node(), platform.processor()]
            try:
                saved = json.loads(path.read_text(encoding="utf-8"))
                self.versions["precision"] = {name: saved[name] for name in ("device", "precision")}
                if saved["machine"] != machine:
                    raise ValueError
            except (OSError, ValueError, TypeError, KeyError):
                self.versions["precision"] = choice = choose_precision()
                self.folder.mkdir(parents=True, exist_ok=True)
                files.write_text(path, json.dumps(choice | {"machine": machine}) + "\n")
        return {name: value for name, value in self.versions["precision"].items() if changes.get(name, "auto") == "auto"}

    def version(self, script):
        """Digest of the code, and of the versions of the packages, that a script's results depend on."""
        if script not in self.versions:
            self.versions[script] = data.digest_text(code_digest(script) + str(package_versions(script)))
        return self.versions[script]

    def dataset(self, s):
        """(fingerprint, number of training images, shape of an image) of the dataset of s, before --train-size and noise."""
        given = {name: getattr(s, name) for name in ("dataset", "data_dir", "quick", "image_size", "val_fraction")}
        key = tuple(given.values())
        if key not in self.versions:
            images = data.load(**given, offline_fallback=False)
            self.versions[key] = images.fingerprint(), len(images.train.y), images.image_shape
        return self.versions[key]

    def path(self, key):
        return self.folder / f"{key}.json"

    def finished(self, job):
        """The row of a finished run, or None. A damaged file is renamed and named; its run is done again."""
        path = self.path(job.key)
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            if data.digest_text(job.key + saved["row"]) != saved["digest"]:
                raise ValueError("its content has changed")
            row = json.loads(saved["row"])
            weights = backbone_path(self.folder, job.key)
            if "weights" in row and not (weights.exists() and file_digest(weights) == row["weights"]):
                raise ValueError(f"{weights} is missing or has changed")
            return row
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            path.replace(aside := path.with_suffix(".damaged"))
            tqdm.write(f"{path} is damaged ({error}): renamed to {aside.name}; its run is done again", file=sys.stderr)
            return None

    def keep(self, job, row):
        """Write a finished run's row, with a digest. Raises files.FileError where that is impossible, as on a full disk."""
        text = json.dumps(row, allow_nan=False, sort_keys=True)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            content = {"digest": data.digest_text(job.key + text), "row": text}
            files.write_text(self.path(job.key), json.dumps(content) + "\n")
        except OSError as error:
            raise stopped(f"{self.path(job.key)}: cannot be written ({error.strerror})") from None

    def rows(self, jobs):
        """{key: row} of the jobs: those that are finished, and the others after running them.

        A run that ends with an error, or whose process dies, is repeated once, alone; if it fails again, its row is
        {"error": message}. Raises files.FileError where the disk is full.
        """
        rows, waiting = {}, {}
        for job in jobs:
            if row := self.failed.get(job.key) or self.finished(job):
                rows[job.key] = row
                self.on_finished(job, row)
            else:
                waiting[job.key] = job
        failed = [job for job, row in self.run(waiting, rows) if "error" in row]
        for job in failed:
            for _, row in self.run({job.key: job}, rows):
                if "error" in row:
                    self.failed[job.key] = rows[job.key] = row
                    self.on_finished(job, row)
        return rows

    def run(self, jobs, rows):
        """Yield (job, row) of the jobs {key: job} as they end; those without an error are kept and put into `rows`."""
        for key, row in self.workers.run(list(jobs.values()), self.folder) if jobs else ():
            if row.get("disk_full"):
                raise stopped(row["error"])
            if "error" not in row:
                self.keep(jobs[key], row)
                rows[key] = row
                self.on_finished(jobs[key], row)
            yield jobs[key], row

    def remove_features(self):
        """Remove the features of the backbones, the largest files by far; a later run extracts them again."""
        for path in self.folder.glob("backbones/*/features*.npz"):
            path.unlink(missing_ok=True)


def choose_precision():
    """{"device": ..., "precision": ...} for the CNNs on this machine."""
    from torch_cnn import backbone, devices

    s = settings_of("cnn", {})
    device = devices.pick_device(s.device)
    precision = devices.pick_precision("auto", backbone.build(s), device)
    return {"device": device.type, "precision": str(precision).removeprefix("torch.")}


def stopped(reason):
    """The error of a command that cannot go on for now."""
    return files.FileError(f"{reason}; finished runs are kept, and the same command continues with them")
