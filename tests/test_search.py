import contextlib
import csv
import json
import shlex
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, crowded_texts, environment
from threadpoolctl import threadpool_limits

import cnn_feature_extraction
import data
import mlp_from_scratch
import plots
from studies import search, search_figure, study
from studies.search import Range
from studies.study import settings_of
from support import files, runs, settings

SMALL = {"learning_rate": Range(0.0005, 0.02, log=True), "hidden": ((16,), (32, 16), (256, 128)), "dropout": Range(0.0, 0.5),
         "norm": ("none", "batch"), "flip": (False, True)}  # fmt: skip
DATA = ("--dataset", "digits", "--train-size", "400")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(search.SPACES, "mlp", SMALL)


@pytest.fixture(autouse=True)
def fast_figure(request, monkeypatch):
    """The figure takes longer to draw than these trials to train: it is drawn in its own test."""
    if "figure" not in request.node.name:
        monkeypatch.setattr(search_figure, "draw", lambda *ignored: plots.figure("", 1, 1)[0])


def run(folder, *flags, script="mlp"):
    search.main([script, *DATA, "--output-dir", str(folder), *map(str, flags)])
    return json.loads((folder / "best.json").read_text())


def trials(folder, without=("seconds",)):
    """The rows of trials.csv."""
    with (folder / "trials.csv").open() as file:
        return [{name: value for name, value in row.items() if name not in without} for row in csv.DictReader(file)]


@pytest.mark.parametrize(("script", "module"), [("mlp", mlp_from_scratch), ("cnn", cnn_feature_extraction)])
def test_the_first_trial_has_the_defaults_and_any_command_can_be_pasted(script, module):
    space, rng = search.SPACES[script], np.random.default_rng(0)
    params = search.default_params(script, space)
    assert search.settings_of(script, search.changes_of(space, params)) == settings_of(script, {})
    for _ in range(20):
        params = {name: search.label(values[rng.integers(len(values))]) if not isinstance(values, Range) else
                  rng.integers(values.low, values.high + 1) if isinstance(values.low, int) else
                  rng.uniform(values.low, values.high) for name, values in space.items()}  # fmt: skip
        changes = search.changes_of(space, params)
        words = shlex.split(study.training_command(script, changes))
        assert words[:2] == ["python", f"{module.__name__}.py"]
        assert settings.parse(module, data, runs, argv=words[2:]) == settings.load(module, data, runs, **changes)


def test_a_search_does_not_choose_by_images_it_is_trained_on(small, tmp_path):
    with pytest.raises(settings.SettingError, match="--train-on-val: not in a search, which chooses by"):
        run(tmp_path, "--train-on-val")


def test_hidden_layers_are_made_of_depth_width_and_narrowing():
    params = {"hidden_layers": 3, "width": "512", "narrowing": "2", "learning_rate": 0.00123456}
    space = {name: search.SPACES["mlp"][name] for name in params}
    assert search.changes_of(space, params) == {"hidden": (512, 256, 128), "learning_rate": 0.00123}


def test_search_finds_keeps_and_prints_the_best(tmp_path, small, capsys, monkeypatch):
    seen, train = [], mlp_from_scratch.run
    monkeypatch.setattr(mlp_from_scratch, "run", lambda s, images, report: seen.append(images) or train(s, images, report))
    best = run(tmp_path, "--trials", 8, "--epochs", 3)
    monkeypatch.setattr(mlp_from_scratch, "run", train)
    assert len(seen) == 8
    assert all(images.test is images.val for images in seen)
    rows, printed = trials(tmp_path), capsys.readouterr()
    assert [row["trial"] for row in rows] == [str(number) for number in range(1, 9)]
    assert (rows[0]["hidden"], rows[0]["norm"], float(rows[0]["learning_rate"])) == ("256-128", "batch", 0.003)
    finished = [float(row["val_accuracy"]) for row in rows if row["state"] == "finished"]
    assert best["val_accuracy"] == max(finished) == float(rows[best["trial"] - 1]["val_accuracy"])
    assert best["default_val_accuracy"] == float(rows[0]["val_accuracy"])
    assert sum(best["trials"].values()) == 8
    assert best["importances"] == {}  # too few trials
    assert "test" not in (tmp_path / "best.json").read_text() + (tmp_path / "trials.csv").read_text()
    assert best["command"] in printed.out.splitlines()
    assert printed.err == ""

    words = shlex.split(best["command"])[2:] + ["--output-dir", str(tmp_path / "run"), "--no-figures"]
    with threadpool_limits(1):
        mlp_from_scratch.main(words)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["val_accuracy"] == best["val_accuracy"]


def test_a_search_killed_and_continued_is_one_never_interrupted(tmp_path, small):
    flags = ["--trials", "7", "--epochs", "2"]
    whole = run(tmp_path / "whole", *flags)
    folder = tmp_path / "killed"
    code = f"""
import sys
from studies import search
from studies.search import Range
search.SPACES["mlp"] = {SMALL!r}
search.main(sys.argv[1:])
"""
    process = subprocess.Popen([sys.executable, "-c", code, "mlp", *DATA, *flags, "--output-dir", str(folder)], cwd=tmp_path,
                               env=environment() | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)  # fmt: skip
    while process.poll() is None and count(folder) < 3:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    assert 3 <= count(folder) < 7
    continued, others = run(folder, *flags), {"seconds": 0, "versions": {}}
    assert continued | others == whole | others
    assert trials(folder) == trials(tmp_path / "whole")


def count(folder):
    """Number of the trials in Optuna's file."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{folder / search.DB}?mode=ro", uri=True)) as connection:
            return connection.execute("SELECT count(*) FROM trials").fetchone()[0]
    except sqlite3.OperationalError:
        return 0
    finally:
        if "connection" in locals():
            connection.close()


def test_more_trials_continue_a_search_and_another_search_is_refused(tmp_path, small, monkeypatch):
    flags = ["--epochs", 1, "--trials"]
    run(tmp_path, *flags, 2)
    first = trials(tmp_path)
    run(tmp_path, *flags, 3)
    assert trials(tmp_path)[:2] == first
    for changed, name in ((["--epochs", 2], "epochs"), (["--seed", 1], "seed"), (["--train-size", 300], "data, train_size")):
        with pytest.raises(files.FileError, match=f"another {name}; repeat its command"):
            run(tmp_path, *flags, 3, *changed)
    monkeypatch.setitem(search.SPACES, "mlp", SMALL | {"dropout": Range(0.0, 0.4)})
    with pytest.raises(files.FileError, match="another search space; repeat its command"):
        run(tmp_path, *flags, 3)
    assert len(trials(tmp_path)) == 3
    with files.locked(tmp_path), pytest.raises(files.FileError, match="another run is writing to this folder"):
        run(tmp_path, *flags, 3)
    (tmp_path / search.DB).write_bytes(b"nothing that SQLite has written" * 1000)
    with pytest.raises(files.FileError, match=r"search\.db: cannot be used .* is damaged, move it away") as raised:
        run(tmp_path, *flags, 3)
    assert "\n" not in str(raised.value)


def test_poor_trials_are_stopped_and_impossible_ones_are_rows(tmp_path, monkeypatch):
    space = {"learning_rate": (0.003, 1e-7, 999.0), "weight_decay": (0.1,)}
    monkeypatch.setitem(search.SPACES, "mlp", space)
    monkeypatch.setattr(search, "PRUNER", {"n_startup_trials": 1})
    run(tmp_path, "--trials", 6, "--epochs", 3)
    rows = trials(tmp_path)
    states = {rate: {row["state"] for row in rows if row["learning_rate"] == rate} for rate in ("0.003", "1e-07", "999")}
    assert states == {"0.003": {"finished"}, "1e-07": {"stopped early"}, "999": {"failed"}}
    assert {row["epochs"] for row in rows} == {"3", "1", "0"}
    assert all(("one step would remove all of the weights" in row["message"]) == (row["state"] == "failed") for row in rows)


def test_diverged_trials_are_rows(tmp_path, monkeypatch):
    monkeypatch.setitem(search.SPACES, "mlp", {
        "learning_rate": (900.0, 999.0), "weight_decay": (0.0,), "norm": ("none",), "activation": ("leaky_relu",),
        "optimizer": ("sgd",)})  # fmt: skip
    with pytest.raises(runs.Diverged, match=r"all trials diverged or failed, see .*trials\.csv; edit SPACES"):
        run(tmp_path, "--trials", 2, "--epochs", 1)
    for row in trials(tmp_path):
        assert (row["state"], row["val_accuracy"]) == ("diverged", "")
        assert "loss became" in row["message"]


def test_minutes_stop_a_search_and_its_command_continues(tmp_path, small):
    run(tmp_path, "--epochs", 1, "--trials", 3, "--minutes", 0.00001)
    assert len(trials(tmp_path)) == 1
    assert run(tmp_path, "--epochs", 1, "--trials", 2)["trials"]["finished"] == 2


@pytest.mark.filterwarnings("error::UserWarning")  # of matplotlib, where something has no room
@pytest.mark.parametrize(("script", "num_trials"), [("cnn", 1), ("mlp", 12)])
def test_figure_is_readable(script, num_trials, tmp_path, monkeypatch):
    monkeypatch.setattr(search.Search, "train", lambda self, trial, _: 0.9 - trial.params["dropout"] / 10)
    s = settings.load(search, data, dataset="digits", output_dir=str(tmp_path), trials=num_trials)
    with search.Search(script, s).opened() as job:
        job.run()
        summary = search.write(job)
    assert sum(summary["importances"].values()) == pytest.approx(float(num_trials > 1))
    assert list(summary["importances"])[:1] == ["dropout"] * (num_trials > 1)
    assert crowded_texts(search_figure.draw(job, summary)) == []


def test_search_of_the_cnn(tmp_path, monkeypatch):
    monkeypatch.setitem(search.SPACES, "cnn", {"learning_rate": Range(0.1, 0.3), "channels": ((4, 8, 8, 8), (4, 4, 4, 4))})
    threads = torch.get_num_threads()
    try:
        best = run(tmp_path, "--trials", 2, "--epochs", 1, script="cnn")
    finally:
        torch.set_num_threads(threads)
    assert best["command"].startswith("python cnn_feature_extraction.py --epochs 1 --seed 0 ")
    assert best["trials"]["finished"] == 2


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "search: name a script: mlp, cnn"), (["mpl"], r"search mpl: name a script: mlp, cnn \(did you mean mlp\?\)")
])  # fmt: skip
def test_a_script_must_be_named(arguments, message):
    with pytest.raises(settings.SettingError, match=message):
        search.main(arguments)


def test_an_unknown_setting_in_a_space_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(search.SPACES, "mlp", SMALL | {"lr": (0.1, 0.2)})
    with pytest.raises(settings.SettingError, match=r"SPACES: unknown setting lr \(did you mean learning_rate\?\)"):
        run(tmp_path)
