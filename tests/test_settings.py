"""The constants of a script as flags: all types, groups and mistakes, before any data is read."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, SCRIPTS, one_line

import cnn_feature_extraction
import data
import hybrid_train
import mlp_from_scratch
import transfer_learning
from studies import heads
from support import runs, settings

MODULES = {
    "mlp_from_scratch": (mlp_from_scratch, data, runs), "cnn_feature_extraction": (cnn_feature_extraction, data, runs),
    "hybrid_train": (hybrid_train, cnn_feature_extraction, data, runs), "transfer_learning": (transfer_learning, data, runs),
}  # fmt: skip
EXAMPLE = '''"""Example."""
BEFORE = 1
# ---- settings: edit here
EPOCHS = 20  # passes, in [1, inf)
# -- network
RATE = 0.5  # of something # odd, in (0, 1)
WIDTHS: tuple = (8, 4)  # of layers, in [1, inf)
# -- run
NAME = "adam"  # which
               # one: {adam, sgd}
# -- speed
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


def test_groups_are_the_headings_of_the_block_and_no_part_of_a_comment(example, capsys):
    table = settings.constants(example)
    groups = {"EPOCHS": "", "RATE": "network", "WIDTHS": "network", "NAME": "run", "FAST": "speed", "FOLDER": "speed"}
    assert {name: constant.group for name, constant in table.items()} == groups
    assert table["WIDTHS"].comment == "of layers, in [1, inf)"
    assert table["NAME"].comment == "which one: {adam, sgd}"
    with pytest.raises(SystemExit):
        settings.parse(example, argv=["--help"])
    headings = [line for line in capsys.readouterr().out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings[1:] == ["settings:", "network:", "speed:", "run:"]  # after argparse's "options:"


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


def test_edited_constants(example):
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


def test_a_constant_edited_to_0_is_still_a_decimal_number(monkeypatch):
    for name in ("DROPOUT", "WEIGHT_DECAY", "EMA_DECAY", "L2"):
        monkeypatch.setattr(mlp_from_scratch, name, 0)
    s = settings.load(mlp_from_scratch, **mlp_from_scratch.BASELINE)
    assert (s.dropout, s.weight_decay, s.ema_decay, s.l2) == (0, 0, 0, 0)
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
    ("--name adamm", "--name adamm: choose from adam, sgd (did you mean adam?)"),
    ("--epoch 3", "unknown flag --epoch (did you mean --epochs?)"),
    ("--rat=0.2", "unknown flag --rat (did you mean --rate?)"),
    ("--no-fats", "unknown flag --no-fats (did you mean --no-fast?)"),
    ("--zzz", "unknown flag --zzz; --help lists all flags"),
    ("stray", "unknown argument stray"),
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


@pytest.mark.parametrize("modules", MODULES.values(), ids=MODULES)
def test_help_shows_each_constant_with_its_comment(modules, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as ended:
        settings.parse(*modules, argv=["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    for name, constant in settings.constants(*modules).items():
        assert constant.comment, name
        assert constant.group, name
        assert settings.flag(name) in shown
        assert constant.comment in shown
        if isinstance(constant.default, bool):
            assert f"{constant.comment} (default: {constant.default})" in shown
        elif isinstance(constant.default, int | float):
            assert re.search(rf"{settings.flag(name)} {re.escape(str(constant.default))}\s", shown)


@pytest.mark.parametrize("columns", [None, "80"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_fits_80_columns_and_has_the_groups_of_the_file(script, columns):
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FASHION_MNIST_DIR")}
    environment |= {"COLUMNS": columns} if columns else {}
    process = subprocess.run([sys.executable, str(ROOT / f"{script}.py"), "--help"], env=environment, check=True,
                             capture_output=True, text=True, stdin=subprocess.DEVNULL)  # fmt: skip
    lines = process.stdout.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    headings = [line.partition(", in ")[0].rstrip(":") for line in lines if line.endswith(":") and line[0] != " "]
    source = (ROOT / f"{script}.py").read_text(encoding="utf-8").split("\n# ----\n")[0].splitlines()
    groups = [line.removeprefix("# -- ") for line in source if line.startswith("# -- ")]
    assert headings[0] == "options"
    assert headings[1] == groups[0] == ("hybrid" if script == "hybrid_train" else "first to change")
    assert headings[-1] == "run"
    assert set(groups) | {"data"} <= set(headings)
    shared = [heading for heading in headings if heading in groups]
    assert shared == groups  # in the same order
    if script != "hybrid_train":  # the five first to change are on top
        flags = [line for line in lines[: lines.index("network:")] if line.startswith("  --")]
        assert len(flags) == 5
        assert any(line.startswith("  --epochs ") for line in flags)


@pytest.mark.parametrize(("script", "typed", "said"), [
    ("mlp_from_scratch", "--lr 0.1", "unknown flag --lr (did you mean --learning-rate?)"),
    ("mlp_from_scratch", "--lr=0.1", "(did you mean --learning-rate?)"),
    ("cnn_feature_extraction", "--lr 0.1", "(did you mean --learning-rate?)"),
    ("hybrid_train", "--lr 0.1", "(did you mean --learning-rate, --head-learning-rate or --joint-learning-rate?)"),
    ("mlp_from_scratch", "--depth 3", "(did you mean --hidden?)"),
    ("cnn_feature_extraction", "--depth 3", "(did you mean --channels?)"),
    ("hybrid_train", "--depth 3", "(did you mean --channels or --head-hidden?)"),
    ("hybrid_train", "--hidden 64", "(did you mean --channels or --head-hidden?)"),
    ("mlp_from_scratch", "--bs 64", "(did you mean --batch-size?)"),
    ("mlp_from_scratch", "--batchsize 64", "(did you mean --batch-size?)"),
    ("mlp_from_scratch", "--wd 0.1", "(did you mean --weight-decay?)"),
    ("mlp_from_scratch", "--optim sgd", "(did you mean --optimizer?)"),
    ("mlp_from_scratch", "--early-stopping", "(did you mean --patience?)"),
    ("mlp_from_scratch", "--augment", "(did you mean --flip, --shift or --erase?)"),
    ("mlp_from_scratch", "--mom 0.8", "(did you mean --momentum?)"),
    ("mlp_from_scratch", "--momentun 0.8", "(did you mean --momentum?)"),  # by letters
    ("mlp_from_scratch", "--learning_rate 0.1", "unknown flag --learning_rate (did you mean --learning-rate?)"),
    ("mlp_from_scratch", "--clip-norm 1", "--clip-norm is now called --max-grad-norm"),
    ("cnn_feature_extraction", "--average 0.9", "--average is now called --ema-decay"),
    ("mlp_from_scratch", "--flip-average", "--flip-average is now called --tta flip"),
    ("hybrid_train", "--no-flip-average", "--no-flip-average is now called --tta none"),
    ("mlp_from_scratch", "--input pixel", "--input is now called --normalize"),
    ("mlp_from_scratch", "--normalize pixel", "--normalize pixel: now called per_pixel; choose from"),
    ("cnn_feature_extraction", "--reduce flatten", "--reduce is now called --global-pool"),
    ("cnn_feature_extraction", "--global-pool flatten", "--global-pool flatten: now called none; choose from"),
    ("cnn_feature_extraction", "--no-batch-norm", "--no-batch-norm is now called --norm none"),
    ("mlp_from_scratch", "--schedule one_cycle", "--schedule one_cycle: now called linear; choose from"),
    ("cnn_feature_extraction", "--schedule triangle", "--schedule triangle: now called linear; choose from"),
    ("mlp_from_scratch", "--init kaiming", "(did you mean he?)"),
    ("cnn_feature_extraction", "--optimizer sgd", "(did you mean nesterov?)"),
])  # fmt: skip
def test_suggestions_are_by_meaning_then_by_letters(script, typed, said, capsys):
    with pytest.raises(SystemExit) as ended:
        settings.parse(*MODULES[script], argv=typed.split())
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_settings_by_keyword_are_suggested_by_their_names():
    with pytest.raises(settings.SettingError, match=r"unknown setting lr \(did you mean learning_rate\?\)"):
        settings.load(mlp_from_scratch, lr=0.1)
    with pytest.raises(settings.SettingError, match="average is now called ema_decay"):
        settings.load(mlp_from_scratch, average=0.9)


def test_suggested_names_and_values_exist():
    tables = [settings.constants(*modules) for modules in (*MODULES.values(), (heads,))]
    names = {name.lower() for table in tables for name in table}
    assert {name for row in settings.MEANINGS.values() for name in row.split()} <= names
    assert {name.split()[0] for name in settings.RENAMED.values()} <= names
    assert not {name.removeprefix("no_") for name in settings.RENAMED} & names
    values = {word for table in tables for constant in table.values()
              if (match := settings.CHOICES.search(constant.comment)) for word in match.group(1).split(", ")}  # fmt: skip
    assert {*settings.RENAMED_VALUES.values(), *settings.VALUE_MEANINGS.values()} <= values


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_with_a_wrong_flag_ends_before_it_reads_or_writes(script, run_script, tmp_path):
    assert "--seed x: not a whole number" in one_line(run_script(script, "--seed", "x"), 2)
    assert not list(tmp_path.iterdir())
