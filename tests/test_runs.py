"""A run's folder: nothing lost, nothing mixed, and what its metrics contain."""

import contextlib
import csv
import gc
import json
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from numpy_nn.calibration_figures import reliability
from support import files, runs

ROW = dict(zip(runs.COLUMNS, (1, 0.5, 0.8, 0.55, 0.75, 0.6, 0.7, 1e-3, 2.0), strict=True))


def test_an_earlier_run_is_moved_aside_complete(tmp_path):
    folder = tmp_path / "run"
    for epochs in (1, 2):
        with runs.Run("test", SimpleNamespace(output_dir=str(folder), epochs=epochs)) as run:
            run.save({f"only_in_{epochs}.txt": "x"})
    (earlier,) = tmp_path.glob("run.before_*")
    assert json.loads((folder / "settings.json").read_text())["epochs"] == 2
    assert json.loads((earlier / "settings.json").read_text())["epochs"] == 1
    assert not (folder / "only_in_1.txt").exists()
    assert (earlier / "only_in_1.txt").exists()


def test_a_folder_that_cannot_be_created_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(files.FileError, match="choose another --output-dir"):
        runs.Run("test", SimpleNamespace(output_dir=str(tmp_path / "file")))


def test_the_current_folder_is_not_moved_aside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (".", "..", str(tmp_path)):
        with pytest.raises(files.FileError, match="is the current folder or above it; name a new folder"):
            runs.Run("test", SimpleNamespace(output_dir=folder))


@pytest.mark.parametrize(("mistake", "code", "said"), [
    (runs.Diverged("the loss"), 1, "the loss"), (OSError(28, "No space left on device"), 1, "No space left"),
    (MemoryError(), 1, "not enough memory"), (torch.cuda.OutOfMemoryError("CUDA out of memory"), 1, "CUDA out of memory"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you\ntried"), 1, "can't allocate memory"),
    (KeyboardInterrupt(": saved in x"), 130, "interrupted: saved in x"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_an_exit_code(mistake, code, said, capsys):
    def main():
        raise mistake

    with pytest.raises(SystemExit) as ended:
        runs.cli(main)
    assert ended.value.code == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_a_bug_has_its_traceback():
    with pytest.raises(ZeroDivisionError):
        runs.cli(lambda: 1 / 0)


def test_history_and_metrics(tmp_path, capsys):
    with runs.Run("test", SimpleNamespace(output_dir=str(tmp_path), epochs=2)) as run:
        run.log(ROW)
        run.log(ROW | {"epoch": 2})
        run.finish({"model": (0.7, 0.6)}, dataset="digits", test_accuracy=0.6)
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert list(rows[0]) == ["epoch", "train_loss", "train_accuracy", "train_eval_loss", "train_eval_accuracy", "val_loss",
                             "val_accuracy", "learning_rate", "seconds"]  # fmt: skip
    assert float(rows[1]["val_accuracy"]) == 0.7
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["settings"] == {"output_dir": str(tmp_path), "epochs": 2}
    assert {"python", "numpy"} <= set(metrics["versions"])
    assert metrics["machine"]["cores"] >= 1
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-1] == str(tmp_path)
    assert "digits" in lines[-2]


def test_half_written_files_are_removed_on_resume_and_no_others(tmp_path):
    names = {".partial-2024.curves.png", ".2024.notes.txt", ".partial-notes.txt", ".1.curves.png", "notes.txt"}
    for name in names:
        (tmp_path / name).write_text("x")
    runs.Run("test", SimpleNamespace(output_dir=str(tmp_path)))
    assert names < {path.name for path in tmp_path.iterdir()}
    runs.Run("test", SimpleNamespace(output_dir=str(tmp_path), resume=str(tmp_path)))
    assert {path.name for path in tmp_path.iterdir()} == names - {".partial-2024.curves.png"} | {"settings.json"}


def test_the_seconds_of_a_resumed_run(tmp_path):
    runs.Run("test", SimpleNamespace(output_dir=str(tmp_path)))
    seconds = []
    for history in (None, {column: [value, value] for column, value in ROW.items()}):
        with runs.Run("test", SimpleNamespace(output_dir=str(tmp_path), resume=str(tmp_path))) as run:
            if history:
                run.resume(history)
            seconds.append(run.finish({"model": (0.7, 0.6)}, dataset="digits").get("seconds"))
    assert seconds[0] is None  # unknown
    assert seconds[1] == pytest.approx(2 * ROW["seconds"], abs=1)


def test_a_result_that_a_seed_lacks_is_left_out(tmp_path):
    """As where a seed was interrupted and its seconds are unknown."""
    s = SimpleNamespace(seed=3, seeds=3, output_dir=str(tmp_path / "out"), resume="", epochs=1, figures=True)

    def run(s):
        with runs.Run("test", s) as run:
            results = {"val_accuracy": 0.7, "test_accuracy": s.seed / 10} | ({} if s.seed == 4 else {"took": 1.5})
            return run.finish({"model": (0.7, 0.6)}, dataset="digits", **results)

    metrics = runs.run_seeds("test", run, s)
    assert metrics["by_seed"]["test_accuracy"] == [0.3, 0.4, 0.5]
    assert (metrics["test_accuracy"], metrics["test_accuracy_std"]) == pytest.approx((0.4, 0.1))
    assert "took" not in metrics
    assert json.loads((tmp_path / "out/metrics.json").read_text())["seeds"] == [3, 4, 5]


def test_a_new_run_releases_what_the_last_ones_figures_held(tmp_path):
    def job():
        features = np.zeros(5)
        with runs.Run("test", SimpleNamespace(output_dir=str(tmp_path / "first"))) as run:
            p = np.random.default_rng(0).dirichlet(np.ones(3), 50)
            run.save({"reliability.png": reliability(p.argmax(axis=1), p, "title")})
        return weakref.ref(features)

    gc.disable()  # else it may come at any time, or too late
    try:
        held = job()
        runs.Run("test", SimpleNamespace(output_dir=str(tmp_path / "second")))
        assert held() is None
    finally:
        gc.enable()


def test_resumed_seeds_record_the_first_command(tmp_path, monkeypatch):
    def run(s):
        if s.seed == 1 and not s.resume:
            raise KeyboardInterrupt
        with runs.Run("test", s) as run:
            return run.finish({"model": (0.7, 0.6)}, dataset="digits", model="m", val_accuracy=0.7,
                              test_accuracy=s.seed / 10)  # fmt: skip

    out = str(tmp_path / "out")
    s = SimpleNamespace(seed=0, seeds=3, output_dir=out, resume="", epochs=1, figures=True)
    monkeypatch.setattr("sys.argv", ["test.py", "--seeds", "3"])
    with pytest.raises(KeyboardInterrupt):
        runs.run_seeds("test", run, s)
    with contextlib.ExitStack() as lock:
        runs.new_folder("test", {"output_dir": f"{out}/seed_1"}, lock)
    monkeypatch.setattr("sys.argv", ["test.py", "--resume", out])
    metrics = runs.run_seeds("test", run, SimpleNamespace(**vars(s) | {"resume": out}))
    assert metrics["command"] == "python test.py --seeds 3"
    assert metrics["by_seed"]["test_accuracy"] == [0.0, 0.1, 0.2]
