"""Flags that would have no effect, values beyond every sense, and finished runs that are trained further."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, SCRIPTS, assert_same_weights, one_line, read_metrics, succeeded
from test_readme import MODULES as STUDIES
from test_settings import MODULES

import benchmark
import check_gradients
import cnn_feature_extraction as cnn
import data
import hybrid_train
import mlp_from_scratch as mlp
from support import files, runs, settings
from torch_cnn import backbone

TABLES = MODULES | {"heads": STUDIES["heads"], "benchmark": (benchmark, data), "check_gradients": (check_gradients,)}


def refused(capsys, *modules, argv, **options):
    """The line by which the flags are refused."""
    with pytest.raises(SystemExit) as ended:
        settings.parse(*modules, argv=argv.split(), **options)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.partition(": ")[2]


# ---- values


@pytest.mark.parametrize("script", TABLES)
def test_every_number_has_finite_ends(script, capsys):
    for name, constant in settings.constants(*TABLES[script]).items():
        default = constant.default[0] if isinstance(constant.default, tuple) and constant.default else constant.default
        if type(default) not in (int, float) and default != ():
            continue
        low, high = map(float, settings.INTERVAL.search(constant.comment).group(2, 3))
        assert -1 < low < high < 2**32, name
        for value in ("18446744073709551616", "-9223372036854775809", "1" * 400, "1e300", "nan", "inf", "-inf", "1e-400"):
            if not (value == "1e-400" and low == 0 and type(default) is float):  # which is 0
                flag = settings.flag(name)
                line = refused(capsys, *TABLES[script], argv=f"{flag}={value}")  # "-inf" by itself would be a flag
                assert line.startswith(f"{flag} {value}"[:40]), name


@pytest.mark.parametrize("seed", [0, 2**31 - 1])
def test_every_allowed_seed_is_accepted_by_all_generators(seed):
    """Also by scikit-learn, whose seeds end at 2**32, for the last of 1,000 seeds."""
    highest = settings.load(mlp, seed=seed).seed + settings.load(mlp, seeds=1000).seeds - 1
    assert np.random.RandomState(highest)
    assert mlp.make_rngs(highest)["init"].random() < 1
    assert cnn.generator("cpu", highest, 1).initial_seed() >= 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_very_large_value_ends_before_anything_is_read_or_written(script, run_script, tmp_path):
    line = one_line(run_script(script, "--batch-size", 2**63), 2)
    assert line == f"{script}.py: --batch-size {2**63}: must be in [1, 1000000]"
    assert not list(tmp_path.iterdir())


# ---- effects


@pytest.mark.parametrize(("script", "line", "said"), [
    ("mlp_from_scratch", "--momentum 0.9", "--momentum: only with --optimizer momentum or nesterov"),
    ("mlp_from_scratch", "--optimizer adamw --momentum 0.8", "--momentum: only with --optimizer momentum or nesterov"),
    ("mlp_from_scratch", "--init-scale 0.01", "--init-scale: only with --init random"),
    ("mlp_from_scratch", "--hidden --dropout 0.1", "--dropout: not with an empty --hidden"),
    ("mlp_from_scratch", "--hidden --norm layer", "--norm: not with an empty --hidden"),
    ("mlp_from_scratch", "--hidden --activation tanh", "--activation: not with an empty --hidden"),
    ("mlp_from_scratch", "--no-flip --tta flip", "--tta: only with --flip"),
    ("mlp_from_scratch", "--recipe plain --tta flip", "--tta: only with --flip"),
    ("mlp_from_scratch", "--no-flip --augment-once", "--augment-once: only with --flip, --shift or --erase"),
    ("cnn_feature_extraction", "--fc-norm", "--fc-norm: only with --fc"),
    ("cnn_feature_extraction", "--no-fc-norm", "--fc-norm: only with --fc"),
    ("cnn_feature_extraction", "--fc --fc-dropout 0.1", "--fc-dropout: only with --fc"),
    ("cnn_feature_extraction", "--optimizer adam --momentum 0.8", "--momentum: only with --optimizer nesterov"),
    ("cnn_feature_extraction", "--init xavier --init-scale 1", "--init-scale: only with --init random"),
    ("cnn_feature_extraction", "--pool-after --pool average", "--pool: not with an empty --pool-after"),
    ("hybrid_train", "--joint-learning-rate 0.001", "--joint-learning-rate: only with --training joint"),
    ("hybrid_train", "--training joint --head-epochs 3", "--head-epochs: only with --training frozen"),
    ("hybrid_train", "--training joint --head-batch-size 8", "--head-batch-size: only with --training frozen"),
    ("hybrid_train", "--training joint --head-learning-rate 1", "--head-learning-rate: only with --training frozen"),
    ("hybrid_train", "--training joint --feature-layer 1", "--feature-layer: only with --training frozen"),
    ("hybrid_train", "--training joint --head x --head-hidden 8", "--head-hidden: not with --head"),
    ("hybrid_train", "--fc-norm", "--fc-norm: only with --fc"),
    ("heads", "--fc-dropout 0.1", "--fc-dropout: only with --fc"),
    ("benchmark", "--quick --rounds 3", "--rounds: not with --quick"),
])  # fmt: skip
def test_a_flag_without_effect_is_refused(script, line, said, capsys):
    assert refused(capsys, *TABLES[script], argv=line) == said + "; it would have no effect, leave it out"


@pytest.mark.parametrize(("script", "line"), [
    ("mlp_from_scratch", "--optimizer nesterov --momentum 0.8"), ("mlp_from_scratch", "--init random --init-scale 1"),
    ("mlp_from_scratch", "--hidden 8 --dropout 0 --norm none --activation tanh --tta none"),
    ("mlp_from_scratch", "--no-flip --shift 1 --augment-once"), ("mlp_from_scratch", "--recipe plain --flip --tta flip"),
    ("cnn_feature_extraction", "--fc 8 --fc-norm --fc-dropout 0.1 --pool average --momentum 0.8"),
    ("hybrid_train", "--training joint --joint-learning-rate 0.1 --head-hidden 8"), ("hybrid_train", "--head-epochs 1"),
    ("benchmark", "--rounds 3 --images 2000"),
])  # fmt: skip
def test_a_flag_with_an_effect_is_accepted(script, line):
    settings.parse(*TABLES[script], argv=line.split())


def test_only_flags_of_the_command_line_are_refused(monkeypatch, tmp_path):
    """Not constants that were edited, settings of studies, nor those of a resumed run."""
    monkeypatch.setattr(mlp, "MOMENTUM", 0.5)
    assert settings.parse(*MODULES["mlp_from_scratch"], argv=[]).momentum == 0.5
    s = settings.load(*MODULES["mlp_from_scratch"], momentum=0.8, hidden=(), dropout=0.3)
    runs.Run("test", SimpleNamespace(**vars(s) | {"output_dir": str(tmp_path / "run")})).lock.close()
    assert settings.parse(*MODULES["mlp_from_scratch"], argv=["--resume", str(tmp_path / "run")]).dropout == 0.3


def test_the_study_of_heads_uses_the_flags_of_both_kinds_of_training():
    flags = ["--joint-learning-rate", "0.1", "--head-epochs", "2"]
    s = settings.parse(*TABLES["heads"], argv=flags, both=("training",))
    assert (s.joint_learning_rate, s.head_epochs) == (0.1, 2)
    assert 'both=("training",)' in (ROOT / "studies/heads.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["mlp", "race"])
def test_a_benchmark_names_the_flags_that_it_does_not_use(name):
    with pytest.raises(SystemExit) as ended:
        benchmark.main([name, "--images", "2000"])
    assert ended.value.code == 2


def test_clauses_name_settings_and_values_that_exist():
    count = 0
    for modules in TABLES.values():
        table = settings.constants(*modules)
        for constant in table.values():
            for _, flags, words in settings.CLAUSE.findall(constant.comment):
                count += 1
                for flag in flags.replace(",", "").split(" or ")[-1].split():
                    other = table[flag[2:].upper().replace("-", "_")]
                    assert all(word in other.comment for word in words.replace(" or ", " ").split())
    assert count > 40


# ---- a backbone's file decides


@pytest.fixture
def trained(tmp_path, digits):
    """The path of a backbone.safetensors that was trained for 5 epochs."""
    s = settings.load(cnn, data, runs, channels=(4, 6), pool_after=(1, 2), epochs=5, dataset="digits")
    backbone.save(tmp_path / "backbone.safetensors", backbone.build(s), digits, s)
    return tmp_path / "backbone.safetensors"


@pytest.mark.parametrize(("line", "said"), [
    ("--epochs 24", "--epochs: {} was trained with 5; leave the flag out"),  # the default, which it would ignore
    ("--channels 24 48 96 96 192", "--channels: {} was trained with (4, 6); leave the flag out"),
    ("--channels 4 6 --pool-after 1 2 --epochs 5", ""), ("--tta none --device cpu --seed 3", ""),
    ("--training joint --epochs 24 --learning-rate 0.1", ""), ("--training joint --norm none", "--norm: "),
])  # fmt: skip
def test_a_flag_that_contradicts_the_backbone_is_refused(trained, line, said, capsys):
    arguments, argv = MODULES["hybrid_train"], f"--backbone {trained} {line}"
    if said:
        line = refused(capsys, *arguments, argv=argv, check_given=hybrid_train.check_flags)
        assert line.startswith(said.format(trained))
    else:
        settings.parse(*arguments, argv=argv.split(), check_given=hybrid_train.check_flags)


def test_a_damaged_backbone_is_named(trained):
    tensors, _ = files.load_weights(trained)
    files.save_weights(trained, tensors, {"model": "cnn"})
    with pytest.raises(files.FileError, match="not in this project's format"):
        settings.parse(*MODULES["hybrid_train"], argv=["--backbone", str(trained)], check_given=hybrid_train.check_flags)


# ---- more epochs


CNN = ("--channels", 3, 4, "--pool-after", 1, 2, "--device", "cpu", "--precision", "float32", "--batch-size", 512)
EXTENDED = {  # name: (script, flags, its weights); the warm-up takes an epoch
    "mlp": ("mlp_from_scratch", ("--hidden", 8, "--schedule", "constant"), "weights.safetensors"),
    "plateau": ("mlp_from_scratch", ("--hidden", 8, "--schedule", "plateau", "--patience", 50), "weights.safetensors"),
    "cnn": ("cnn_feature_extraction", (*CNN, "--schedule", "constant"), "backbone.safetensors"),
}


@pytest.mark.parametrize("name", EXTENDED)
def test_a_finished_run_trained_further_is_one_that_never_ended(name, run_script, tmp_path):
    script, flags, weights = EXTENDED[name]
    flags = ("--dataset", "digits", "--no-figures", *flags)
    succeeded(run_script(script, *flags, "--epochs", 2, "--warmup", 0.5, "--output-dir", "short"))
    assert "after epoch 2" in succeeded(run_script(script, "--resume", "short", "--epochs", 4))
    succeeded(run_script(script, *flags, "--epochs", 4, "--warmup", 0.25, "--output-dir", "long"))
    assert_same_weights(tmp_path / "short" / weights, tmp_path / "long" / weights)
    first, second = (read_metrics(tmp_path / folder) for folder in ("short", "long"))
    assert first["test_loss"] == second["test_loss"]
    saved = files.read_json(tmp_path / "short/settings.json")
    assert (saved["epochs"], saved["warmup"]) == (4, 0.25)
    succeeded(run_script(script, "--resume", "short"))  # the run is one of 4 epochs now


@pytest.mark.parametrize(("changes", "epochs", "said"), [
    ({"schedule": "linear"}, 60, "its linear schedule ends with epoch 40; only --schedule constant or plateau goes on"),
    ({"quick": True}, 60, "--quick limits its epochs"),
    ({"seeds": 3}, 60, "it has several seeds; extend the run of one, as with --resume FOLDER/seed_0"),
    ({}, 39, "--epochs: the run was started with 40; leave out this flag"),
    ({}, 0, "--epochs 0: must be in [1, 10000]"), ({}, 60, ""), ({"schedule": "linear"}, 40, ""),
])  # fmt: skip
def test_a_run_that_cannot_be_trained_further_says_why(changes, epochs, said, tmp_path, capsys):
    modules, argv = MODULES["mlp_from_scratch"], f"--resume {tmp_path / 'run'} --epochs {epochs}"
    s = settings.load(*modules, **{"schedule": "constant", "output_dir": str(tmp_path / "run")} | changes)
    runs.Run("test", s).lock.close()
    capsys.readouterr()
    if said:
        assert refused(capsys, *modules, argv=argv).endswith(said)
    else:
        s = settings.parse(*modules, argv=argv.split())
        assert (s.epochs, s.epochs * s.warmup) == (epochs, pytest.approx(40 * 0.2))


def test_a_run_that_has_stopped_early_says_so(run_script, tmp_path):
    flags = ("--dataset", "digits", "--hidden", 8, "--no-figures", "--schedule", "constant", "--patience", 1, "--epochs", 40)
    succeeded(run_script("mlp_from_scratch", *flags, "--learning-rate", 1e-12, "--output-dir", "run"))
    line = one_line(run_script("mlp_from_scratch", "--resume", "run", "--epochs", 50), 1)
    assert "--epochs 50: run has stopped early, by --patience, and cannot be extended" in line
