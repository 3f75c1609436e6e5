"""--track: what TensorBoard, wandb and trackio get of a run."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

import hybrid_train
import mlp_from_scratch as mlp
import plots
import run

SMALL = ["--dataset", "digits", "--train-size", "300", "--hidden", "8", "--epochs", "2"]


@pytest.fixture
def one_figure(monkeypatch):
    """Each run draws a single, small figure."""
    monkeypatch.setattr(mlp, "training_figures", lambda *ignored: {"curves.png": Figure((1, 1))})
    monkeypatch.setattr(plots, "evaluation", lambda *ignored: {})


def train(place, package):
    """(history, metrics) of a run that is tracked."""
    result = mlp.main([*SMALL, "--track", package, "--output-dir", str(place / "run")])
    return result.history, result.metrics


def test_tensorboard_has_settings_epochs_results_and_figures(tmp_path, one_figure):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history, metrics = train(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    for column, values in history.items():
        scalars = events.Scalars(column)
        assert [scalar.step for scalar in scalars] == [1, 2]
        assert [scalar.value for scalar in scalars] == pytest.approx(values, rel=1e-6)
    (last,) = events.Scalars("final/test_accuracy")
    assert last.value == pytest.approx(metrics["test_accuracy"], rel=1e-6)
    (image,) = events.Images("curves")
    assert (image.width, image.height) == (100, 100)
    (settings,) = events.Tensors("settings/text_summary")
    assert "- hidden: (8,)" in settings.tensor_proto.string_val[0].decode()


@pytest.fixture
def calls(monkeypatch):
    """What a package with the functions of wandb is called with: [(name, arguments), ...]."""
    recorded = []

    def recorder(function):
        return lambda *numbers, **options: recorded.append((function, *numbers, options))

    functions = {function: recorder(function) for function in ("init", "log", "finish")}
    package = SimpleNamespace(Image=lambda path: f"image {path}", **functions)
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    return recorded


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_wandb_and_trackio_get_the_same(package, calls, tmp_path, one_figure):
    history, metrics = train(tmp_path, package)
    (_, options), *rows, (_, last, _), end = calls
    assert (options["project"], options["config"]["hidden"]) == ("mine", (8,))
    assert options["name"] == f"{tmp_path.name}/run"
    assert options.get("dir") == (tmp_path / "run" if package == "wandb" else None)
    columns = {name: [numbers[name] for _, numbers, _ in rows] for name in rows[0][1]}
    assert columns == history
    assert last["final/test_loss"] == metrics["test_loss"]
    assert last["curves"] == f"image {tmp_path / 'run/curves.png'}"
    assert end == ("finish", {})


def test_each_seed_and_each_history_is_tracked(calls, tmp_path):
    mlp.main(
        [*SMALL, "--seeds", "2", "--no-figures", "--track", "wandb", "--output-dir", str(tmp_path / "a")]
    )
    names = [name for name, *_ in calls]
    assert names == ["init", "log", "log", "log", "finish"] * 2
    calls.clear()
    with run.RunFolder("x", hybrid_train.settings(track="wandb", output_dir=str(tmp_path / "b"))) as folder:
        folder.log({"epoch": [1], "val_loss": [0.5]}, "cnn_history.csv")
    assert calls[-1][1] == {"cnn_epoch": 1, "cnn_val_loss": 0.5}


def test_a_missing_package_is_one_line_before_the_training(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        run.cli(lambda: train(tmp_path, "trackio"))
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert "pip install trackio" in line
    assert not list(tmp_path.iterdir())


def test_a_training_does_not_depend_on_what_tracks_it():
    s = [mlp.settings(track=package) for package in ("none", "wandb")]
    assert run.training_settings(s[0]) == run.training_settings(s[1])
