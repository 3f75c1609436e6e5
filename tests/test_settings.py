"""The constants of a script as flags: every type, every kind of mistake, before any data is read."""

import importlib.util

import pytest
from conftest import SCRIPTS, one_line

import cnn_feature_extraction
import data
import hybrid_train
import mlp_from_scratch
from support import runs
from support import settings

EXAMPLE = '''"""Example."""
BEFORE = 1
# ---- settings: edit here
EPOCHS = 20  # passes, in [1, inf)
RATE = 0.5  # of something # odd, in (0, 1)
WIDTHS: tuple = (8, 4)  # of layers, in [1, inf)
NAME = "adam"  # which
               # one: {adam, sgd}
FAST = False  # hurry
FOLDER = "here"  # where ($EXAMPLE_DIR comes first)
# ----
AFTER = 2
'''


@pytest.fixture
def example(tmp_path):
    path = tmp_path / "example.py"
    path.write_text(EXAMPLE)
    spec = importlib.util.spec_from_file_location("example", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_only_the_block_counts_and_constants_are_the_defaults(example):
    expected = {"epochs": 20, "rate": 0.5, "widths": (8, 4), "name": "adam", "fast": False, "folder": "here"}
    assert vars(settings.parse(example, argv=[])) == expected


def test_every_type_is_read(example):
    line = "--epochs 3 --rate 1e-3 --widths 5 6,7 --name sgd --fast --folder there"
    expected = {"epochs": 3, "rate": 0.001, "widths": (5, 6, 7), "name": "sgd", "fast": True, "folder": "there"}
    assert vars(settings.parse(example, argv=line.split())) == expected
    assert settings.parse(example, argv=["--widths"]).widths == ()
    assert settings.parse(example, argv=["--no-fast"]).fast is False
    assert settings.load(example, widths=[9], rate=0.25).widths == (9,)


def test_constants_as_one_edits_them(example):
    example.RATE, example.WIDTHS = 1, [5, 6]
    with pytest.raises(settings.SettingError, match="must be in"):  # 1 is out of (0, 1), but a number like any other
        settings.load(example)
    assert settings.load(example, rate=0.25).rate == 0.25
    assert settings.load(example, rate=0.25).widths == (5, 6)
    assert settings.parse(example, argv=["--rate", "0.5", "--widths", "7"]).widths == (7,)
    assert settings.load(example, epochs=3.0, rate=0.5).epochs == 3
    example.WIDTHS = 9  # or (9), its comma forgotten
    assert settings.load(example, rate=0.5).widths == (9,)
    assert settings.parse(example, argv=["--rate", "0.5", "--widths", "7", "5"]).widths == (7, 5)
    with pytest.raises(settings.SettingError, match="not a whole number"):
        settings.load(example, epochs=2.5, rate=0.5)


def test_a_constant_edited_to_0_does_not_break_those_that_take_the_network_over(monkeypatch):
    for name in ("DROPOUT", "WEIGHT_DECAY", "EMA_DECAY", "L2"):
        monkeypatch.setattr(mlp_from_scratch, name, 0)
    own = settings.load(mlp_from_scratch, **mlp_from_scratch.BASELINE)
    assert (own.dropout, own.weight_decay, own.average, own.l2) == (0, 0, 0, 0)
    assert settings.parse(mlp_from_scratch, argv=["--dropout", "0.5"]).dropout == 0.5


@pytest.mark.parametrize(("line", "said"), [
    ("--epochs 0", "--epochs 0: must be in [1, inf)"),
    ("--epochs -3", "--epochs -3: must be in [1, inf)"),
    ("--epochs 2.5", "--epochs 2.5: not a whole number"),
    ("--epochs", "--epochs: expected"),
    ("--rate 1", "--rate 1: must be in (0, 1)"),
    ("--rate nan", "--rate nan: must be in (0, 1)"),
    ("--rate fast", "--rate fast: not a number"),
    ("--widths 4 0", "--widths 4 0: must be in [1, inf)"),
    ("--widths 4 x", "--widths 4 x: not a whole number"),
    ("--name adamm", "--name adamm: choose one of adam, sgd (did you mean adam?)"),
    ("--epoch 3", "unknown flag --epoch (did you mean --epochs?)"),
    ("stray", "unknown flag stray"),
])  # fmt: skip
def test_a_mistake_is_one_line_that_names_the_flag_and_exit_code_2(example, capsys, line, said):
    with pytest.raises(SystemExit) as ended:
        settings.parse(example, argv=line.split())
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_a_wrong_constant_is_found_like_a_wrong_flag(example):
    example.EPOCHS = 0
    with pytest.raises(settings.SettingError, match="--epochs 0"):
        settings.load(example)


def test_the_environment_comes_before_the_constant_and_after_the_flag(example, monkeypatch):
    monkeypatch.setenv("EXAMPLE_DIR", "elsewhere")
    assert settings.load(example).folder == "$EXAMPLE_DIR"
    assert settings.parse(example, argv=["--folder", "there"]).folder == "there"


@pytest.mark.parametrize("modules", [
    (mlp_from_scratch, data, runs), (cnn_feature_extraction, data, runs), (hybrid_train, cnn_feature_extraction, data, runs),
])  # fmt: skip
def test_help_shows_every_constant_with_its_comment(modules, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as ended:
        settings.parse(*modules, argv=["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    for name, (comment, default, _) in settings.constants(*modules).items():
        assert comment, name
        assert f"--{name.lower().replace('_', '-')}" in shown
        assert comment in shown
        if isinstance(default, int | float) and not isinstance(default, bool):
            assert f"--{name.lower().replace('_', '-')} {default} " in shown


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_with_a_wrong_flag_ends_before_it_reads_or_writes(script, run_script, tmp_path):
    assert "--seed x: not a whole number" in one_line(run_script(script, "--seed", "x"), 2)
    assert not list(tmp_path.iterdir())
