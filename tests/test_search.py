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


def small(number, one_of):
    number("learning_rate", 0.0005, 0.02, log=True)
    one_of("hidden", (16,), (256, 128))
    one_of("flip", False, True)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setitem(search.SPACES, "mlp", small)
    monkeypatch.setattr(search, "save_figures", lambda *ignored, **more: None)


def run_search(folder, *flags):
    search.main(["mlp", *DATA, "--output-dir", str(folder), *map(str, flags)])
    return json.loads((folder / "best.json").read_text())


def trials(folder):
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("script", ["mlp", "cnn"])
def test_the_first_trial_has_the_scripts_own_values(script, monkeypatch):
    space = search.cnn_space if script == "cnn" else search.mlp_space
    own = vars(script_of(script).settings())
    params = {name: value if type(value) is float else label(value) for name, value in own.items()}
    changes = search.settings_of(optuna.trial.FixedTrial(params), space)
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


def test_the_same_command_continues_and_another_search_is_refused(tmp_path):
    whole = tmp_path / "whole"
    run_search(whole, "--epochs", 1, "--trials", 2)
    first = trials(whole)
    run_search(whole, "--epochs", 1, "--trials", 2)  # nothing is left
    assert trials(whole) == first
    run_search(whole, "--epochs", 1, "--trials", 3)
    assert (trials(whole)[:2], len(trials(whole))) == (first, 3)
    with pytest.raises(run.Error, match=r"is of a search with .*'epochs': 1.*; name another --output-dir"):
        run_search(whole, "--epochs", 2, "--trials", 3)


def test_poor_and_diverging_trials_are_rows(tmp_path, monkeypatch):
    def space(number, one_of):
        one_of("learning_rate", 0.003, 1e-7, 999.0)
        one_of("weight_decay", 0.1)

    monkeypatch.setitem(search.SPACES, "mlp", space)
    run_search(tmp_path, "--epochs", 1, "--trials", 6)
    rows = trials(tmp_path)
    assert {row["state"] for row in rows if row["learning_rate"] == "999"} == {"pruned"}
    assert all(("--weight-decay" in row["message"]) == (row["learning_rate"] == "999") for row in rows)


def test_nothing_but_diverging_trials(tmp_path, monkeypatch):
    monkeypatch.setitem(search.SPACES, "mlp", lambda number, one_of: one_of("learning_rate", 999.0))
    with pytest.raises(run.Diverged, match="all trials diverged, see"):
        run_search(tmp_path, "--epochs", 1, "--trials", 2)


def test_optunas_figures(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(search.SPACES, "mlp", lambda number, one_of: number("dropout", 0.0, 0.5))
    planted = lambda trial, **_: trial.suggest_float("dropout", 0.0, 0.5)  # noqa: E731
    monkeypatch.setattr(search, "validation_accuracy", planted)
    run_search(tmp_path, "--trials", 4)
    names = {"optimization_history.png", "slice.png", "param_importances.png"}
    names |= {"trials.csv", "best.json", "search.db"}
    assert {path.name for path in tmp_path.iterdir()} == names
