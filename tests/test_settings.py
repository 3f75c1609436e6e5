"""Constants and flags: a wrong one ends in a line that names it; each is declared, explained and limited."""

import inspect
import json
import math
import re
import shutil

import pytest
from conftest import ROOT

import cnn_feature_extraction as cnn
import data
import experiments
import hybrid_train
import mlp_from_scratch as mlp
import predict
import run
from extras import benchmark, check_gradients, evaluate, measure_pictures, report, train, transfer_learning

PROGRAMS = (data, mlp, cnn, hybrid_train, transfer_learning, experiments, predict)
PROGRAMS += (benchmark, check_gradients, evaluate, measure_pictures, report, train)
WITH_CONSTANTS = [module for module in (run, *PROGRAMS) if hasattr(module, "LIMITS")]
WRONG = [
    (mlp, "EPOCHS", 10.5, "10.5"),
    (mlp, "EPOCHS", "40", "'40'"),
    (mlp, "FLIP", "no", "False"),
    (mlp, "LEARNING_RATE", "0.1", "number"),
    (mlp, "LEARNING_RATE", -0.1, "1,000"),
    (mlp, "LEARNING_RATE", math.nan, "1,000"),
    (mlp, "BATCH_SIZE", 128.0, "128.0"),
    (run, "SEED", 1.5, "1.5"),
    (mlp, "INIT", None, "he, xavier, lecun, fan_out, random"),
    (mlp, "HIDDEN", 300, "(256, 128)"),
    (mlp, "HIDDEN", (256.0, 128.0), "(256.0, 128.0)"),
    (mlp, "OPTIMIZER", "SGD", "mean sgd?"),
    (mlp, "ACTIVATION", "ReLU", "mean relu?"),
    (cnn, "KERNEL_SIZES", 3, "KERNEL_SIZES = 3"),
    (hybrid_train, "HEAD_NORM", "batch", "none, layer"),
]


def line_of(main, capsys):
    """The one line on stderr of what ends with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        run.cli(main)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    return line


@pytest.mark.parametrize(("module", "name", "value", "text"), WRONG)
def test_a_wrong_constant_is_one_line_that_names_it(module, name, value, text, monkeypatch, capsys):
    monkeypatch.setattr(module, name, value)
    script = module if hasattr(module, "settings") and module is not run else mlp
    line = line_of(lambda: script.main(["--dataset", "digits"]), capsys)
    assert f"{name} = " in line
    assert text in line
    with pytest.raises(run.Error, match=name):
        script.settings()


EDITS = {"EPOCHS": "10.5", "FLIP": '"no"', "OPTIMIZER": '"SGD"'}


@pytest.mark.parametrize("name", EDITS)
def test_a_constant_edited_in_the_file_is_one_line_that_names_it(name, script, tmp_path):
    for file in ("mlp_from_scratch", "data", "monitor", "plots", "run"):
        shutil.copy(ROOT / f"{file}.py", tmp_path)
    path = tmp_path / "mlp_from_scratch.py"
    text = path.read_text()
    path.write_text(re.sub(rf"^({name}: .* = ).*(  #)", rf"\g<1>{EDITS[name]}\2", text, flags=re.M))
    assert path.read_text() != text
    done = script(str(path), "--dataset", "digits", PYTHONPATH="")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert name in done.stderr


@pytest.mark.parametrize(
    ("script", "flags", "text"),
    [
        (mlp, "--epochs 10.5", "--epochs"),
        (mlp, "--optimizer SGD", "--optimizer"),
        (mlp, "--epoch 3", "mean --epochs?"),
        (mlp, "--learning-rate -0.1", "learning_rate = -0.1"),
        (mlp, "--hidden 300 1.5", "--hidden"),
        (mlp, "--hidden 300 0", "hidden = (300, 0)"),
        (cnn, "--pool-after 9", "--pool-after"),
        (hybrid_train, "--head x.safetensors", "--head"),
        (hybrid_train, "--backbone nowhere.safetensors", "nowhere.safetensors"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(script, flags, text, capsys, tmp_path):
    arguments = ["--dataset", "digits", "--output-dir", str(tmp_path / "run"), *flags.split()]
    assert text in line_of(lambda: script.main(arguments), capsys)
    assert not (tmp_path / "run" / "history.csv").exists()


def test_an_edited_constant_takes_effect_and_a_flag_comes_before_it(monkeypatch):
    monkeypatch.setattr(mlp, "EPOCHS", 3)
    monkeypatch.setattr(mlp, "LEARNING_RATE", 1)  # fine for a float, and then one
    assert isinstance(mlp.settings(weight_decay=0).learning_rate, float)
    assert mlp.settings().epochs == 3
    assert run.parse([], mlp, data, run).epochs == 3
    assert run.parse(["--epochs", "4"], mlp, data, run).epochs == 4


def test_flags_of_every_kind():
    flags = (
        "--epochs 3 --hidden 64 32 --no-flip --augment-once --optimizer sgd --learning-rate 1e-3 --resume="
    )
    s = run.parse([*flags.split(), "--output-dir", "a b"], mlp, data, run)
    assert (s.epochs, s.hidden, s.flip, s.augment_once, s.optimizer) == (3, (64, 32), False, True, "sgd")
    assert (s.learning_rate, s.output_dir, s.resume) == (0.001, "a b", "")
    assert run.parse(["--hidden"], mlp, data, run).hidden == ()


def test_changes_from_python():
    s = mlp.settings(hidden=[64, 32], epochs=2)
    assert (s.hidden, s.epochs, s.batch_size) == ((64, 32), 2, mlp.BATCH_SIZE)
    with pytest.raises(run.Error, match=r"epoch.*epochs"):
        mlp.settings(epoch=2)
    with pytest.raises(run.Error, match=r"hidden = 300"):
        mlp.settings(hidden=300)


def test_a_resumed_run_has_its_own_settings(tmp_path):
    s = vars(mlp.settings(hidden=(7,), epochs=3, figures=False))
    (tmp_path / "settings.json").write_text(json.dumps(s))
    resume = ["--resume", str(tmp_path)]
    assert vars(run.parse(resume, mlp, data, run)) == s | {"resume": str(tmp_path)}
    with pytest.raises(run.Error, match="--epochs"):
        run.parse([*resume, "--epochs", "4"], mlp, data, run)
    for text in ("{", "[1, 2]", json.dumps(s | {"epochs": 1.5}), json.dumps(s | {"unknown": 1})):
        (tmp_path / "settings.json").write_text(text)
        with pytest.raises(run.Error):
            run.parse(resume, mlp, data, run)


@pytest.mark.parametrize("module", WITH_CONSTANTS, ids=lambda module: module.__name__)
def test_every_constant_has_a_type_a_help_and_every_number_has_limits(module):
    """From the first of them to the last there is nothing else but comments."""
    lines = inspect.getsource(module).splitlines()
    places = [i for i, line in enumerate(lines) if re.match(r"[A-Z][A-Z0-9_]*: ", line)]
    block = [line for line in lines[places[0] : places[-1] + 1] if line and not line.startswith("#")]
    assert len(block) == len(places) == len(run.constants(module))
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]*: [^=]+ = .+  # .+", line) for line in block)
    numbers = {name for name, (kind, *_) in run.constants(module).items() if kind in (int, float)}
    tuples = {name for name, (kind, *_) in run.constants(module).items() if kind == tuple[int, ...]}
    assert numbers | tuples == set(module.LIMITS)


@pytest.mark.parametrize("module", PROGRAMS, ids=lambda module: module.__name__)
def test_help_has_every_flag_on_two_screens(module, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 110
    words = " ".join(lines).split()
    for name in run.constants(module) if module in WITH_CONSTANTS else ():
        assert {run.flag(name), f"{run.flag(name)},"} & set(words), name
