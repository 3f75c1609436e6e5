"""The runs of studies: kept at once, found again, repeated once; processes that die; a full disk."""

import errno
import json
import os
import signal

import pytest
from conftest import ROOT
from planted_studies import row_of

import data
from studies import execute, runner, versions, workers
from studies.execute import Job
from studies.study import settings_of
from support import files, runs, settings


class Counting:
    """Workers that give planted rows and note which jobs they were asked for."""

    number = 1

    def __init__(self, answer=lambda job: row_of(0.8, 0.7)):
        self.answer, self.asked = answer, []

    def run(self, jobs, folder):
        for job in jobs:
            self.asked.append(job.key)
            yield job.key, self.answer(job)


@pytest.fixture
def make_runner(no_data, tmp_path):
    def make(answer=lambda job: row_of(0.8, 0.7)):
        return runner.Runner(tmp_path / "store", Counting(answer))

    return make


def test_two_studies_share_a_run_and_a_second_call_runs_nothing(make_runner):
    first = make_runner()
    jobs = [first.job("mlp", {"dropout": p}) for p in (0.0, 0.2)]
    rows = first.rows(jobs)
    assert rows == first.rows([jobs[1]]) | first.rows([jobs[0]])
    assert first.workers.asked == [job.key for job in jobs]
    again = make_runner()
    assert again.rows([*jobs, again.job("mlp", {"dropout": 0.4})]).keys() > rows.keys()
    assert len(again.workers.asked) == 1


def test_a_run_is_known_by_its_settings_data_and_code(make_runner, monkeypatch):
    def key(script="mlp", **changes):
        return make_runner().job(script, changes).key

    same = key()
    assert key(output_dir="elsewhere", figures=True, dropout=0.05) == same  # the default
    others = [key(dropout=0.2), key(seed=1), key(dataset="digits"), key("cnn")]
    for where, name, other in ((versions, "code_of", lambda path: "other code"),
                               (versions.importlib.metadata, "version", lambda package: "other version"),
                               (runner.Runner, "dataset", lambda self, s: ("other data", 48_000, (28, 28)))):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(where, name, other)
            others.append(key())
    assert len({same, *others}) == 8


def test_comments_and_docstrings_are_no_other_version(tmp_path):
    path = tmp_path / "code.py"
    texts = ('"""Doc."""\n\ndef f(x):\n    """Doc."""\n    return x  # comment\n', "def f(x):\n    return x\n")
    digests = [path.write_text(text) and versions.code_of(path) for text in texts]
    assert digests[0] == digests[1]
    path.write_text("def f(x):\n    return x + 1\n")
    assert versions.code_of(path) != digests[0]


def test_the_code_of_a_script_is_all_that_its_training_imports():
    for script, names in versions.CODE.items():
        if (ROOT / names[0]).exists():
            paths = {path.relative_to(ROOT).as_posix() for path in versions.source_files(names)}
            assert {"data.py", "support/training.py", "numpy_nn/layers.py", "numpy_nn/calibration.py"} < paths
            assert ("torch_cnn/backbone.py" in paths) == (script != "mlp")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"row": "{}", "digest": "0"}', "changed"])
def test_a_damaged_result_is_set_aside_and_named_and_its_run_repeated(make_runner, capsys, damage):
    first = make_runner()
    job = first.job("mlp", {})
    rows, path = first.rows([job]), first.path(job.key)
    path.write_text(path.read_text().replace("0.8", "0.9") if damage == "changed" else damage)
    again = make_runner()
    assert again.rows([job]) == rows
    assert again.workers.asked == [job.key]
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert f"{path} is damaged" in error
    assert error.endswith(f"renamed to {job.key}.damaged; its run is done again\n")
    assert path.with_suffix(".damaged").exists()


def test_a_backbone_whose_weights_are_lost_is_trained_again(make_runner, capsys):
    def train(job):
        path = execute.backbone_path(first.folder, job.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")
        return row_of(0.8, 0.7) | {"weights": execute.file_digest(path)}

    first = make_runner(train)
    job = first.job("cnn", {}, is_backbone=True)
    path = execute.backbone_path(first.folder, job.key)
    for spoil in (lambda: path.unlink(), lambda: path.write_bytes(b"other")):
        first.rows([job])
        assert len(first.workers.asked) == 1
        first.rows([job])
        assert len(first.workers.asked) == 1
        spoil()
        first.rows([job])
        assert len(first.workers.asked) == 2
        assert "is missing or has changed" in capsys.readouterr().err
        first.workers.asked.clear()
        first.path(job.key).unlink()
    (path.parent / "features_1.npz").write_bytes(b"features")
    first.remove_features()
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_a_failed_run_is_repeated_once_and_then_reported(make_runner):
    attempts = {}

    def answer(job):
        attempts[job.key] = attempts.get(job.key, 0) + 1
        fails = {0.2: 1, 0.4: 9}.get(job.settings["dropout"], 0)
        return {"error": "it failed"} if attempts[job.key] <= fails else row_of(0.8, 0.7)

    failing = make_runner(answer)
    jobs = [failing.job("mlp", {"dropout": p}) for p in (0.0, 0.2, 0.4)]
    rows = failing.rows(jobs)
    assert [rows[job.key].get("error") for job in jobs] == [None, None, "it failed"]
    assert [attempts[job.key] for job in jobs] == [1, 2, 2]
    assert failing.rows(jobs) == rows  # the next study asks again: no third attempt
    assert list(failing.failed) == [jobs[2].key]
    assert not failing.path(jobs[2].key).exists()  # another call tries again


def test_a_full_disk_stops_with_a_line_and_loses_nothing_finished(make_runner, monkeypatch):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    first = make_runner()
    jobs = [first.job("mlp", {"dropout": p}) for p in (0.0, 0.2, 0.4)]
    first.rows(jobs[:1])
    written = []

    def write_text(path, text, original=files.write_text):
        if written:
            raise full
        written.append(path)
        original(path, text)

    monkeypatch.setattr(files, "write_text", write_text)
    with pytest.raises(files.FileError, match=r"No space left on device\); finished runs are kept, and the same command"):
        first.rows(jobs)
    monkeypatch.undo()
    assert [first.path(job.key).exists() for job in jobs] == [True, True, False]

    def train(job, folder):
        try:
            raise full
        except OSError as error:
            raise files.FileError(f"cannot write ({error.strerror})") from None

    monkeypatch.setattr(execute, "train", train)
    row = execute.execute(jobs[2], first.folder)
    assert row == {"error": "cannot write (No space left on device)", "disk_full": True}
    with pytest.raises(files.FileError, match=r"^cannot write \(No space left on device\); finished runs are kept"):
        make_runner(lambda job: row).rows(jobs)


def test_a_run_that_raises_is_an_error_in_one_line(monkeypatch, tmp_path):
    job = Job("mlp", {}, "key")

    def train(job, folder, error=None):
        assert (tmp_path / execute.RUNNING / "key").exists()
        raise errors.pop()

    errors = [ValueError("one\ntwo"), data.DataError("no such file"), KeyError()]
    monkeypatch.setattr(execute, "train", train)
    rows = [execute.execute(job, tmp_path) for _ in range(3)]
    assert rows == [{"error": "KeyError: no message"}, {"error": "no such file"}, {"error": "ValueError: one"}]
    assert list((tmp_path / execute.RUNNING).iterdir()) == []


def test_the_precision_is_chosen_once(monkeypatch, tmp_path):
    choices = iter("ab")
    monkeypatch.setattr(runner, "choose_precision", lambda: {"device": "cpu", "precision": next(choices)})
    assert runner.Runner(tmp_path).precision("mlp", {}) == {}
    assert runner.Runner(tmp_path).precision("cnn", {}) == {"device": "cpu", "precision": "a"}
    assert runner.Runner(tmp_path).precision("hybrid", {"precision": "float32"}) == {"device": "cpu"}
    (tmp_path / "precision.json").write_text("{")
    assert runner.Runner(tmp_path).precision("cnn", {})["precision"] == "b"


# ---- processes that die


def dying(seed, always=True):
    """In place of workers.keyed: runs without training, of which the one with this seed kills its process."""

    def keyed(job, folder):
        from pathlib import Path

        from studies import execute

        def train(job, folder):
            died = Path(folder, "died")
            if job.settings["seed"] == seed and (always or not died.exists()):
                died.parent.mkdir(exist_ok=True)
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return {"seed": job.settings["seed"]}

        execute.train = train
        return job.key, execute.execute(job, folder)

    return keyed


@pytest.mark.parametrize("always", [True, False])
def test_a_process_that_dies_costs_its_own_run_only(no_data, monkeypatch, tmp_path, always):
    monkeypatch.setattr(workers, "keyed", dying(2, always))
    studies_runner = runner.Runner(tmp_path / "store", workers.Processes(2))
    jobs = [studies_runner.job("mlp", {"seed": seed}) for seed in range(5)]
    rows = studies_runner.rows(jobs)
    expected = [{"seed": seed} for seed in range(5)]
    if always:
        expected[2] = workers.DIED
        assert list(studies_runner.failed) == [jobs[2].key]
    assert [rows[job.key] for job in jobs] == expected


@pytest.mark.usefixtures("environ")
def test_a_dask_worker_that_dies_costs_its_own_run_only_even_if_it_is_the_only_one(no_data, monkeypatch, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs the optional package distributed")
    import dask

    first_process = os.getpid()

    def remote_call():
        def call(key, pickled):
            import pickle

            job, _ = pickle.loads(pickled)
            assert os.getpid() != first_process
            if job.settings["seed"] == 2:
                os.kill(os.getpid(), 9)
            return key, {"seed": job.settings["seed"]}

        return call

    monkeypatch.setattr(workers, "remote_call", remote_call)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, silence_logs=60) as cluster,
    ):
        studies_runner = runner.Runner(tmp_path, workers.DaskWorkers(cluster.scheduler_address))
        jobs = [studies_runner.job("mlp", {"seed": seed}) for seed in range(5)]
        rows = studies_runner.rows(jobs)
        studies_runner.workers.close()
    assert [rows[job.key] for job in jobs] == [workers.DIED if seed == 2 else {"seed": seed} for seed in range(5)]


def test_dask_without_its_package_or_a_scheduler(monkeypatch):
    with pytest.raises(settings.SettingError, match=r"--dask here: expected the address of a scheduler, as in tcp://"):
        workers.DaskWorkers("here")
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(files.FileError, match="--dask: needs another package: pip install distributed"):
        workers.DaskWorkers("tcp://127.0.0.1:1")


def test_the_rows_of_a_real_run(tmp_path, digits):
    s = {"dataset": "digits", "hidden": (8,), "epochs": 2, "recipe": "plain", "figures": False, "save_weights": False}
    job = Job("mlp", vars(settings_of("mlp", s)), "key")
    row = execute.execute(job, tmp_path)
    assert {"val_accuracy", "test_accuracy", "parameters", "seconds", "train_eval_accuracy"} < row.keys()
    assert len(row["history"]["val_accuracy"]) == row["epochs"] == 2
    json.dumps(row, allow_nan=False)
    diverging = {"optimizer": "sgd", "activation": "leaky_relu", "hidden": (8, 8), "learning_rate": 999}
    job = Job("mlp", vars(settings_of("mlp", s | diverging)), "key")
    row = execute.execute(job, tmp_path)
    assert row["dataset"] == "digits"
    assert "the loss became" in row["diverged"]
    assert {path.name for path in tmp_path.iterdir()} == {execute.RUNNING}  # no files left behind
    assert isinstance(runs.Diverged(), Exception)
