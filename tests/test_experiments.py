"""experiments.py as a user runs it: its list, wrong input, a sweep, processes and Ctrl-C."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, crowded_texts

import experiments
import run
from studies import STUDIES, output
from studies.runner import Runner, make_job

SWEEP = ["sweep", "mlp", "--plain", "--vary", "dropout", "0", "0.2", "--set", "hidden", "8-8"]
SWEEP += ["--set", "learning_rate", "0.001", "--dataset", "digits", "--seeds", "2"]
TINY = [*SWEEP, "--epochs", "1", "--jobs", "1"]
DIGITS = {"dataset": "digits", "hidden": (8,), "epochs": 2, "figures": False}
NAME = "sweep_mlp_dropout"


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "STORE", tmp_path / "store")


def rows_of(path):
    with open(path, newline="") as file:
        return [row | {"seconds": ""} for row in csv.DictReader(file)]


# ---- what it prints


def test_the_list_has_the_commands_and_a_line_for_each_study(capsys):
    experiments.main([])
    lines = capsys.readouterr().out.splitlines()
    for study in STUDIES.values():
        (line,) = [line for line in lines if line.startswith(f"{study.name} ")]
        assert line.endswith(study.question)
        assert line.split()[1].isdecimal()
    assert sum("python experiments.py" in line for line in lines) == 6


MISTAKES = {
    "dropuot": r"^dropuot: no such study \(did you mean dropout\?\); python experiments.py lists them$",
    "cnn-dropout": r"did you mean cnn_dropout\?",
    "dropout serch": r"serch: no such study \(did you mean search\?\)",
    "dropout --vary l1 0 1": "^--vary, --set, --plain: only for sweep",
    "dropout --plain": "only for sweep",
    "dropout --seeds 5000": "seeds.* 5000: expected 0 to 1,000",
    "dropout --dataset dogits": "dogits",
    "dropout --dataset digits --finished": "^dropout: has no finished runs; leave out --finished$",
    "sweep mpl --vary l1 0 1": "^sweep: name a script .* scripts: mlp, cnn, hybrid, transfer$",
    "sweep mlp": "^sweep: name a script and one or two settings",
    "sweep mlp --vary lr 1 2": "unknown setting lr",
    "sweep mlp --vary dropout 0": "^--vary dropout: give two values or more$",
    "sweep mlp --vary dropout 0 1": "^dropout = 1.0: expected 0 to 0.999$",
    "sweep mlp --vary dropout 0 x": "^--vary dropout x: not a value of this setting, such as 0.05$",
    "sweep mlp --vary flip yes maybe": "^--vary flip maybe: not a value of this setting, such as True",
    "sweep mlp --vary hidden 64 1x": "^--vary hidden 1x: not a value",
    "sweep mlp --vary l1 0 1 --set optimizer sdg": "optimizer = 'sdg': choose from sgd",
    "sweep mlp --vary l1 0 1 --set hidden 64 32": "^--set hidden: give one value$",
    "sweep mlp --vary erase 0 40 --dataset digits": "--shift, --erase: must be",
    "compare nowhere": "nowhere: not the folder of a finished run",
    "search mpl": "^search mpl: name a script: mlp, cnn$",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_wrong_input_is_one_line(tmp_path, monkeypatch, words):
    monkeypatch.setattr(run, "ROOT", tmp_path)
    with pytest.raises(run.Error, match=MISTAKES[words]) as raised:
        experiments.main(words.split())
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.rglob("*.json"))


RATES = {
    "mlp --vary dropout 0 0.2 --plain": [(0.0003, 0.001, 0.003)] * 2,
    "cnn --vary optimizer adam adamw --set learning_rate 0.01": [None, None],
    "hybrid --vary training frozen joint": [(0.0001, 0.0003, 0.0009), (0.0003, 0.001, 0.003)],
}


@pytest.mark.parametrize("words", RATES)
def test_a_sweeps_learning_rates_are_around_each_variants_own(words):
    ((study,), _) = experiments.studies_of(["sweep", *words.split()])
    assert [changes.get("learning_rates") for changes in study.variants.values()] == RATES[words]
    assert study.seeds == 3


# ---- a sweep


def test_a_sweep_from_its_command_to_its_files(tmp_path, capsys):
    folder = tmp_path / "out"
    experiments.main([*TINY, "--output-dir", str(folder)])
    printed = capsys.readouterr().out
    assert "Sweep of dropout in mlp_from_scratch (digits, 2 seeds, 1 epochs)" in printed
    assert f"start with {folder / 'README.md'}" in printed
    names = sorted(path.name for path in (folder / NAME).iterdir())
    assert names == ["runs.csv", "summary.json", f"{NAME}.png"]
    summary = json.loads((folder / NAME / "summary.json").read_text())
    rows = rows_of(folder / NAME / "runs.csv")
    assert list(rows[0]) == output.COLUMNS
    runs = [(row["variant"], row["stage"], row["seed"]) for row in rows]
    assert runs == [(name, "final", seed) for name in ("0", "0.2") for seed in "01"]
    assert (summary["dataset"], summary["epochs"], summary["runs"]) == ("digits", [1], 4)
    assert summary["variants"]["0.2"]["settings"]["hidden"] == [8, 8]
    assert summary["variants"]["0.2"]["learning_rate"] == 0.001
    assert len(list((tmp_path / "store").glob("*.json"))) == 4
    assert crowded_texts(output.draw(summary)) == []

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()}
    experiments.main([*TINY, "--output-dir", str(tmp_path / "again")])  # from the store
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()} == before
    assert rows_of(tmp_path / "again" / NAME / "runs.csv") == rows
    experiments.main([*TINY, "--output-dir", str(tmp_path / "fresh"), "--fresh"])
    assert all(path.stat().st_mtime_ns > before[path] for path in before)
    assert rows_of(tmp_path / "fresh" / NAME / "runs.csv") == rows  # the same seeds give the same results


def test_several_processes_give_the_same_results(tmp_path):
    jobs = [make_job("mlp", DIGITS | {"seed": seed}) for seed in range(3)]
    one, two = (Runner(tmp_path / str(number), number).rows(jobs) for number in (1, 2))
    assert one.keys() == two.keys()
    for key, row in one.items():
        assert row | {"seconds": 0} == two[key] | {"seconds": 0}


# ---- runs


def test_a_run_is_known_by_its_settings_and_data():
    changes = ({}, {"output_dir": "x"}, {"seed": 1}, {"tta": "flip"})
    keys = [make_job("mlp", DIGITS | change).key for change in changes]
    assert [key == keys[0] for key in keys] == [True, True, False, False]


def test_a_diverged_run_is_a_row_with_a_message(tmp_path):
    changes = {"optimizer": "sgd", "activation": "leaky_relu", "norm": "none", "learning_rate": 999.0}
    job = make_job("mlp", DIGITS | changes | {"weight_decay": 0.0})
    (row,) = Runner(tmp_path).rows([job]).values()
    assert list(row) == ["message"]
    assert row["message"].startswith("the loss became")
    assert [path.name for path in tmp_path.iterdir()] == [f"{job.key}.json"]  # nothing else is left behind


def test_a_hybrid_uses_the_cnn_of_its_backbone(tmp_path):
    small = {"dataset": "digits", "train_size": 200, "channels": (4, 4), "pool_after": (1, 2), "epochs": 1}
    backbone = make_job("cnn", small, is_backbone=True)
    jobs = [make_job("hybrid", small | {"head_epochs": epochs}, backbone) for epochs in (1, 2)]
    first = Runner(tmp_path)
    rows = first.rows(jobs)
    weights = tmp_path / f"{backbone.key}.safetensors"
    assert {row["epochs"] for row in rows.values()} == {1, 2}
    assert first.finished.keys() == {backbone.key, *rows}
    weights.unlink()
    again = Runner(tmp_path)
    assert again.rows(jobs) == rows
    assert not weights.exists()  # nothing needs it
    again.rows([backbone])
    assert weights.exists()


def test_ctrl_c_keeps_finished_runs_and_the_same_command_continues(tmp_path):
    arguments = [*SWEEP, "--epochs", "15", "--jobs", "2"]
    arguments += ["--output-dir", str(tmp_path / "out")]
    code = "import signal, sys, experiments, pathlib, run\n"
    code += "experiments.STORE = pathlib.Path(sys.argv.pop(1))\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\nrun.cli(experiments.main)"
    command = [sys.executable, "-c", code, str(tmp_path / "store"), *arguments]
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, start_new_session=True, **options)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("store/*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, error = process.communicate(timeout=60)
    said = "interrupted; finished runs are kept, and the same command continues"
    assert (process.returncode, error.splitlines()[-1]) == (130, said)
    assert len(list(tmp_path.glob("store/*.json"))) in (1, 2, 3)
    experiments.main(arguments)
    assert len(list(tmp_path.glob("store/*.json"))) == 4


def test_dask_workers(tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs the optional package distributed")
    jobs = [make_job("mlp", DIGITS)]
    cluster = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**cluster) as local:
        runs = Runner(tmp_path, dask=local.scheduler_address)
        rows = runs.rows(jobs)
        runs.client.close()
    assert rows.keys() == {job.key for job in jobs}
