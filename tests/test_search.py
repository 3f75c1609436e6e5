"""The search for settings with Optuna: its trials, its files, and that the same command continues it."""

import csv
import json
import shlex

import optuna
import pytest

import mlp_from_scratch
import run
from studies import search
from studies.study import label, script_of

DATA = ["--dataset", "digits", "--train-size", "200"]


SMALL = {"learning_rate": {"low": 0.0005, "high": 0.02, "log": True}, "hidden": ("16", "256-128")}
SMALL |= {"flip": ("no", "yes")}


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setitem(search.SPACES, "mlp", SMALL)
    monkeypatch.setattr(search, "save_figures", lambda *ignored, **more: None)


def run_search(folder, *flags):
    search.main(["mlp", *DATA, "--output-dir", str(folder), *map(str, flags)])
    return json.loads((folder / "best.json").read_text())


def trials(folder):
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("script", ["mlp", "cnn"])
def test_the_first_trial_has_the_scripts_own_values(script, monkeypatch):
    monkeypatch.undo()
    own = vars(script_of(script).settings())
    params = {name: value if type(value) is float else label(value) for name, value in own.items()}
    changes = search.settings_of(optuna.trial.FixedTrial(params), script)
    assert len(changes) >= 10
    assert changes == {name: own[name] for name in changes}


def test_a_search_finds_keeps_and_prints_the_best(tmp_path, capsys, monkeypatch):
    seen, train = [], mlp_from_scratch.train
    monkeypatch.setattr(mlp_from_scratch, "train", lambda *a, **more: seen.append(a[1]) or train(*a, **more))
    best = run_search(tmp_path, "--trials", 4, "--epochs", 2)
    rows, printed = trials(tmp_path), capsys.readouterr().out
    assert [row["trial"] for row in rows] == list("0123")
    assert (rows[0]["hidden"], rows[0]["learning_rate"], rows[0]["flip"]) == ("256-128", "0.003", "yes")
    values = [float(row["val_accuracy"]) for row in rows]
    assert best["val_accuracy"] == pytest.approx(max(values), abs=1e-6)
    assert best["trial"] == values.index(max(values))
    assert {(s.seed, s.epochs, s.train_size) for s in seen} == {(0, 2, 200)}
    assert "test" not in (tmp_path / "best.json").read_text() + (tmp_path / "trials.csv").read_text()
    assert f"{best['command']} --seeds 5" in printed.splitlines()
    words = shlex.split(best["command"])
    s = run.parse(words[2:], mlp_from_scratch, mlp_from_scratch.data, run)
    images = mlp_from_scratch.data.load(s)
    with search.one_thread():
        assert train(images, s)[1]["val_accuracy"][-1] == best["val_accuracy"]  # the command repeats it


def test_the_same_command_continues_and_another_search_begins_anew(tmp_path):
    whole = tmp_path / "whole"
    run_search(whole, "--epochs", 1, "--trials", 2)
    first = trials(whole)
    run_search(whole, "--epochs", 1, "--trials", 2)  # nothing is left
    assert trials(whole) == first
    run_search(whole, "--epochs", 1, "--trials", 3)
    assert (trials(whole)[:2], len(trials(whole))) == (first, 3)
    run_search(whole, "--epochs", 2, "--trials", 2)
    assert [row["epochs"] for row in trials(whole)] == ["2", "2"]


def test_poor_and_diverging_trials_are_rows(tmp_path, monkeypatch):
    space = {"learning_rate": ("0.003", "1e-7", "999"), "weight_decay": ("0.1",)}
    monkeypatch.setitem(search.SPACES, "mlp", space)
    run_search(tmp_path / "some", "--epochs", 1, "--trials", 6)
    rows = trials(tmp_path / "some")
    assert {row["state"] for row in rows if row["learning_rate"] == "999"} == {"pruned"}
    assert all(("--weight-decay" in row["message"]) == (row["learning_rate"] == "999") for row in rows)
    monkeypatch.setitem(search.SPACES, "mlp", {"learning_rate": ("999",)})
    with pytest.raises(run.Diverged, match="all trials diverged, see"):
        run_search(tmp_path / "none", "--epochs", 1, "--trials", 2)


def test_optunas_figures(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(search.SPACES, "mlp", {"dropout": {"low": 0.0, "high": 0.5}})
    planted = lambda trial, **_: trial.suggest_float("dropout", 0.0, 0.5)  # noqa: E731
    monkeypatch.setattr(search, "validation_accuracy", planted)
    run_search(tmp_path, "--trials", 4)
    names = {"optimization_history.png", "slice.png", "param_importances.png", "parallel_coordinate.png"}
    names |= {"trials.csv", "best.json", "search.db"}
    assert {path.name for path in tmp_path.iterdir()} == names
