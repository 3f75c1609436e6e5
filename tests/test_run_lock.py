"""Two runs never write to one folder, and a killed one leaves nothing locked."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from conftest import ROOT, command, environment, kill_after, one_line

from support import files, runs

DIGITS = ("--dataset", "digits", "--hidden", 8)


def test_a_second_run_in_the_folder_is_refused_and_changes_nothing(tmp_path):
    s = SimpleNamespace(output_dir=str(tmp_path / "run"), epochs=1)
    with runs.Run("test", s) as run:
        run.save({"a.txt": "first"})
        before = {path.name: path.read_bytes() for path in run.path.iterdir()}
        for options in ({}, {"resume": s.output_dir}):
            with pytest.raises(files.FileError, match="another run is writing to this folder; wait until it ends, or name"):
                runs.Run("test", SimpleNamespace(**vars(s) | {"epochs": 2} | options))
        assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before
    assert os.listdir(tmp_path) == ["run"]
    assert sorted(os.listdir(run.path)) == ["a.txt", "settings.json"]
    with runs.Run("test", s) as again:
        assert len(os.listdir(tmp_path)) == 2  # the earlier run was moved aside
        assert again.path == run.path
        with pytest.raises(files.FileError, match="another run"):
            runs.Run("test", s)
    assert not list(tmp_path.rglob(".lock"))


def test_the_folder_of_several_seeds_is_locked_while_a_seed_runs(tmp_path):
    s = SimpleNamespace(output_dir=str(tmp_path / "out"), resume="", seed=0, seeds=2, figures=False)

    def run(seed_s):
        with runs.Run("test", seed_s) as run:
            with pytest.raises(files.FileError, match="another run"), contextlib.ExitStack() as lock:
                runs.new_folder("test", vars(s), lock)
            return run.finish({"m": (0.5, 0.5)}, dataset="digits", model="m", val_accuracy=0.5, test_accuracy=0.5)

    runs.run_seeds("test", run, s)
    assert not list(tmp_path.rglob(".lock"))


def test_one_at_a_time(tmp_path):
    inside, most, turns = [], [], []

    def work():
        while len(turns) < 100:
            try:
                with files.locked(tmp_path):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.0005)
                    inside.pop()
                    turns.append(1)
            except files.FileError:
                time.sleep(0.0001)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert not list(tmp_path.iterdir())


def test_a_killed_process_leaves_the_folder_unlocked(tmp_path):
    code = f"from support import files\nwith files.locked({str(tmp_path)!r}): print('locked', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline().strip() == b"locked"
    with pytest.raises(files.FileError, match="another run"), files.locked(tmp_path):
        pass
    process.kill()
    process.communicate()
    with files.locked(tmp_path):
        pass


def test_two_processes_in_one_folder(tmp_path, run_script, monkeypatch):
    """As a user starts them: the second ends with one line, the first goes on, and is resumed after a kill at once."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    flags = (*DIGITS, "--epochs", 10_000, "--output-dir", "run")
    first = subprocess.Popen(command("mlp_from_scratch", *flags), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    try:
        while not (tmp_path / "run/history.csv").exists():
            time.sleep(0.01)
            assert first.poll() is None
        for arguments in ((*DIGITS, "--epochs", 1, "--output-dir", "run"), ("--resume", "run")):
            line = one_line(run_script("mlp_from_scratch", *arguments), 1)
            assert line.startswith("mlp_from_scratch.py: run: another run is writing to this folder; wait until it ends")
        assert first.poll() is None
        assert os.listdir(tmp_path) == ["run"]
    finally:
        first.kill()
        first.wait()
    rows = len((tmp_path / "run/history.csv").read_text().splitlines())
    kill_after(command("mlp_from_scratch", "--resume", "run"), tmp_path, tmp_path / "run/history.csv", rows)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_sigterm_is_ctrl_c(tmp_path):
    flags = (*DIGITS, "--epochs", 10_000, "--output-dir", "run")
    process = subprocess.Popen(command("mlp_from_scratch", *flags), cwd=tmp_path, env=environment(), text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    while not (tmp_path / "run/history.csv").exists():
        time.sleep(0.01)
        assert process.poll() is None
    process.terminate()
    _, errors = process.communicate()
    assert (process.returncode, errors.strip()) == (130, "interrupted: what was saved so far is in run")
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
