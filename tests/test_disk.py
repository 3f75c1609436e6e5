"""Disks that are full or read-only, and processes that are killed in the middle of a write: nothing is lost."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, environment, one_line, succeeded

from support import files, runs

MLP = ("mlp_from_scratch", "--dataset", "digits", "--hidden", 8)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 200 KB, and a function that mounts it again with other options; skipped where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("a disk can only be mounted on Linux, by root")

    if not sys.platform.startswith("linux") or os.geteuid():
        pytest.skip("a disk can only be mounted on Linux, by root")
    mount("size=200k")
    yield folder, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_names_the_file_and_how_to_continue(small_disk, run_script):
    disk, remount = small_disk
    line = one_line(run_script(*MLP, "--epochs", 2, "--output-dir", disk / "run"), 1)
    assert line == (f"mlp_from_scratch.py: {disk}/run/checkpoint.safetensors: cannot be written (No space left on device); "
                    f"once that is mended, continue with: python mlp_from_scratch.py --resume {disk}/run")  # fmt: skip
    assert {path.name for path in (disk / "run").iterdir()} <= {"settings.json", "checkpoint.safetensors", "history.csv"}
    remount("size=5m")
    succeeded(run_script("mlp_from_scratch", "--resume", disk / "run"))
    remount("ro")
    assert "cannot write to" in one_line(run_script("mlp_from_scratch", "--resume", disk / "run"), 1)
    assert "cannot write to" in one_line(run_script(*MLP, "--output-dir", disk / "other"), 1)


def test_features_that_do_not_fit_are_not_saved(small_disk, capsys):
    from torch_cnn import features

    disk, _ = small_disk
    features.save_cache(disk / "features.npz", {"X_train": np.zeros((1000, 1000), np.float32)}, {})
    printed = capsys.readouterr().out
    assert printed == f"features are not saved: {disk / 'features.npz'} cannot be written (No space left on device)\n"
    assert not list(disk.iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(tmp_path, run_script):
    tmp_path.joinpath("folder").mkdir(mode=0o500)
    assert "cannot write to folder/run" in one_line(run_script(*MLP, "--output-dir", "folder/run"), 1)


@pytest.mark.parametrize("name", ["history.csv", "checkpoint.safetensors", "curves.png", "array.npy", "metrics.json"])
def test_a_full_disk_at_every_kind_of_write(name, tmp_path, monkeypatch):
    """Simulated, so that every system has this test."""
    from matplotlib.figure import Figure

    contents = {"history.csv": "x", "curves.png": Figure(), "array.npy": np.zeros(3), "metrics.json": "{}"}
    trainer = SimpleNamespace(state_dict=lambda: ({"W": np.zeros(3)}, {}))
    replace = Path.replace

    def full(path, target):
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(path, target)

    s = SimpleNamespace(output_dir=str(tmp_path / "out" / "seed_0"), resume="", seeds=1, save_weights=True)
    (tmp_path / "out").mkdir()
    with pytest.raises(files.FileError) as error, runs.Run("test", s) as run:
        monkeypatch.setattr(Path, "replace", full)
        run.save_checkpoint(trainer, "split")
        run.save(contents)
    assert str(error.value) == (f"{run.path / name}: cannot be written (No space left on device); once that is mended, "
                                f"continue with: python test.py --resume {run.path}")  # fmt: skip
    assert not (run.path / name).exists()
    assert not [path.name for path in run.path.iterdir() if path.name.startswith(".")]


def test_several_seeds_are_continued_together(tmp_path):
    def run(s):
        with runs.Run("test", s) as run:
            raise files.WriteError(errno.ENOSPC, "No space left on device", str(run.path / "curves.png"))

    s = SimpleNamespace(output_dir=str(tmp_path / "out"), resume="", seed=0, seeds=2, figures=False)
    with pytest.raises(files.FileError, match=f"continue with: python test.py --resume {tmp_path / 'out'}$"):
        runs.run_seeds("test", run, s)


KILLED = '''
import contextlib, io, json, os, signal, sys
from pathlib import Path
import matplotlib.backends.backend_agg, matplotlib.figure, sklearn.metrics, safetensors.numpy  # once, for all children
sys.path.insert(0, {root!r})
import {script} as script, cnn_feature_extraction as cnn, numpy_nn.figures, plots, data
from support import training

if {script!r} != "mlp_from_scratch":
    import torch._dynamo  # which the first step of an optimizer imports
cnn.summary = lambda model: ""
cnn.cnn_figures = lambda *ignored: {{}}  # figures take most of the time: a single one is enough
plots.evaluation = lambda *ignored: {{}}
numpy_nn.figures.of_training = lambda *ignored: {{"curves.png": plots.learning_rate([0.1, 0.2], 1, "title")}}
cnn.training_curves = lambda *ignored: plots.learning_rate([0.1, 0.2], 1, "title")
plots.recall_comparison = lambda *ignored: plots.learning_rate([0.1, 0.2], 1, "title")
images = data.load("digits")
data.load = lambda *ignored, **named: images
replace = Path.replace

def job(arguments, name=None, times=1):
    """Run the script in a child process, killed half way through its `times`-th write of the file `name`; its status."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    counts = []
    def killed(path, target):
        if Path(target).name == name:
            counts.append(1)
            if len(counts) == times:
                os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        return replace(path, target)
    Path.replace = killed
    code = 1
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            script.main(arguments)
        code = 0
    finally:
        os._exit(code)

def results(folder):
    metrics = json.loads(Path(folder, "metrics.json").read_text())
    return {{name: value for name, value in metrics.items() if name.startswith(("val", "test", "cnn"))}}

flags = {flags!r}
assert job([*flags, "--output-dir", "complete"]) == 0
for number, (name, times) in enumerate({writes!r}):
    folder = f"killed_{{number}}"
    assert job([*flags, "--output-dir", folder], name, times) == signal.SIGKILL, name
    partial = [path for path in Path(folder).iterdir() if path.name.startswith(".partial-")]
    assert len(partial) == 1 and partial[0].name.endswith(name), name
    if name != "settings.json":
        assert job(["--resume", folder]) == 0, name
        assert results(folder) == results("complete"), name
        names = [{{path.name for path in Path(f).iterdir()}} for f in (folder, "complete")]
        assert names[0] == names[1], name
print("done")
'''
CNN = ("--channels", "2", "3", "--pool-after", "1", "2", "--device", "cpu", "--precision", "float32", "--batch-size", "500")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize(("script", "flags", "writes"), [
    ("mlp_from_scratch", ("--hidden", "4", "--epochs", "2"),
     [("settings.json", 1), ("checkpoint.safetensors", 1), ("checkpoint.safetensors", 2), ("history.csv", 1),
      ("weights.safetensors", 1), ("curves.png", 1), ("test_probabilities.npy", 1), ("metrics.json", 1)]),
    ("hybrid_train", (*CNN, "--epochs", "1", "--head-epochs", "1", "--head-hidden", "4", "--no-flip"),
     [("checkpoint.safetensors", 2), ("backbone.safetensors", 1), ("features.npz", 1), ("head.safetensors", 1),
      ("hybrid.safetensors", 1)]),
])  # fmt: skip
def test_killed_in_every_kind_of_write_it_ends_the_same(script, flags, writes, tmp_path):
    code = KILLED.format(root=str(ROOT), script=script, flags=["--dataset", "digits", *flags], writes=writes)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env=environment() | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
