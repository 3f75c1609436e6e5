"""extras.train, extras.evaluate and docs/assignments.md."""

import json

import assignments
import numpy as np
import pytest
from conftest import ROOT
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

import cnn_feature_extraction as cnn
import hybrid_train
import mlp_from_scratch as mlp
import run
from extras import evaluate
from extras import train as course

SHOWN = "-d fashion_mnist -e 1 -b 32 -o nadam -l mean_squared_error -nhl 3 -sz 64 -a tanh -w_i Xavier"
ALL = "-d digits -e 3 -b 16 -l cross_entropy -o nag -lr 0.02 -m 0.5 -beta 0.6 -beta1 0.7 -beta2 0.8 -eps 1e-6"
ALL += " -w_d 0.0005 -w_i random -a ReLU -sz 32 16"


@pytest.fixture
def settings(monkeypatch):
    """A function: the settings with which mlp_from_scratch.py would run."""

    def settings_of(flags):
        monkeypatch.setattr(run, "run_seeds", lambda script, run_once, s, curves: vars(s))
        return course.main(flags.split())

    return settings_of


def test_every_flag_of_the_course_is_a_setting(settings):
    s = settings(SHOWN)
    assert (s["dataset"], s["epochs"], s["batch_size"], s["optimizer"]) == ("fashion-mnist", 1, 32, "nadam")
    assert (s["loss"], s["hidden"], s["activation"]) == ("squared_error", (64, 64, 64), "tanh")
    assert s["init"] == "xavier"
    s = settings(ALL)
    expected = {"dataset": "digits", "epochs": 3, "batch_size": 16, "loss": "softmax", "hidden": (32, 16)}
    expected |= {"optimizer": "nesterov", "learning_rate": 0.02, "momentum": 0.5, "rmsprop_decay": 0.6}
    expected |= {
        "beta1": 0.7,
        "beta2": 0.8,
        "eps": 1e-6,
        "l2": 0.0005,
        "init": "random",
        "activation": "relu",
    }
    assert s.items() >= expected.items()
    off = dict.fromkeys(("dropout", "warmup", "weight_decay", "label_smoothing", "ema_decay", "flip"), 0)
    assert s.items() >= (off | {"norm": "none", "schedule": "constant", "track": "none"}).items()


def test_sizes_other_flags_and_wandb(settings, monkeypatch):
    for name in ("WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.setenv(name, "")  # to be restored
    sizes = {"-nhl 0": (), "-nhl 2": (128, 128), "-sz 7": (7,), "-sz 7 6 -nhl 2": (7, 6)}
    assert {flags: settings(flags)["hidden"] for flags in sizes} == sizes
    s = settings("-wp project -we team --seed 5 --quick -e 4")
    assert (s["track"], s["seed"], s["quick"], s["epochs"]) == ("wandb", 5, True, 4)
    assert (course.os.environ["WANDB_PROJECT"], course.os.environ["WANDB_ENTITY"]) == ("project", "team")


@pytest.mark.parametrize("flags", ["--epoch 3", "-lr abc", "-o nagg", "-sz 3 4 -nhl 3", "-nhl x", "-x 1"])
def test_a_wrong_flag_is_one_line(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        run.cli(lambda: course.main(flags.split()))
    assert (ended.value.code, len(capsys.readouterr().err.splitlines())) == (2, 1)


def saved_networks(digits, folder):
    """{name: (weights file, logits of the test images)} of small untrained networks of every kind."""
    X, network = digits.test.X, mlp.MLP((784, 5, 10), np.random.default_rng(0))
    s = hybrid_train.settings(channels=(2, 3), pool_after=(1, 2), head_hidden=(4,))
    convolutional, joined = cnn.CNN(s).eval(), cnn.CNN(s).eval()
    head = mlp.MLP((joined.classifier.in_features, 4, 10), np.random.default_rng(1))
    joined.classifier = hybrid_train.NumpyHead(head)
    more = run.describe(digits, 2.0)
    mlp.save(folder / "mlp", network, loss="squared_error", **more)
    cnn.save(folder / "cnn", convolutional, s, **more)
    hybrid_train.save(folder / "hybrid", joined.eval(), s, **more)
    logits = {"mlp": network.predict_logits(X)}
    logits |= {"cnn": cnn.predict_logits(convolutional, X), "hybrid": cnn.predict_logits(joined, X)}
    return {name: (folder / name, values.astype(float)) for name, values in logits.items()}


def test_evaluation_of_every_kind_of_network(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(
        evaluate.plots, "evaluation", lambda *given: {"classification_report.txt": "report\n"}
    )
    y = digits.test.y
    for name, (path, logits) in saved_networks(digits, tmp_path).items():
        folder, predicted = tmp_path / f"evaluated_{name}", logits.argmax(axis=1)
        flags = [str(path), "--dataset", "digits", "--output-dir", str(folder), "--npy"]
        metrics = evaluate.main(flags)
        loss = mlp.softmax_squared_error if name == "mlp" else mlp.softmax_cross_entropy
        assert metrics["test_accuracy"] == np.mean(predicted == y)
        assert metrics["test_loss"] == pytest.approx(loss(logits, y)[0], rel=1e-5)
        ece = [run.calibration(y, mlp.softmax(logits / T))[-1] for T in (1, 2)]
        assert [metrics["test_ece"], metrics["test_ece_calibrated"]] == pytest.approx(ece, rel=1e-3)
        assert metrics["confusion_matrix"] == confusion_matrix(y, predicted, labels=range(10)).tolist()
        assert json.loads((folder / "evaluation.json").read_text())["test_loss"] == metrics["test_loss"]
        arrays, metadata = run.load_weights(path)
        assert {file.stem for file in folder.glob("*.npy")} == set(arrays)
        for part, array in arrays.items():
            assert np.array_equal(np.load(folder / f"{part}.npy"), array)
        assert run.read_json(folder / "network.json") == metadata


def test_evaluation_of_a_committed_network(real_folder, tmp_path):
    place = ["--data-dir", str(real_folder), "--quick", "--output-dir", str(tmp_path / "run")]
    metrics = evaluate.main([str(ROOT / "models/mlp.safetensors"), *place])
    text = (tmp_path / "run/evaluation.txt").read_text()
    counts = np.array(metrics["confusion_matrix"])
    y, predicted = (np.repeat(indices, counts.ravel()) for indices in np.indices(counts.shape).reshape(2, -1))
    scores = precision_recall_fscore_support(y, predicted)
    for i, name in enumerate(metrics["classes"]):
        row = next(line.strip() for line in text.splitlines() if line.strip().startswith(f"{name} "))
        assert [f"{values[i]:.4f}" for values in scores[:3]] == row.removeprefix(name).split()[:3]
    assert {"confusion_matrix.png", "reliability.png"} <= {path.name for path in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize("words", [[], ["a", "b"], ["nowhere.safetensors"], ["models/mlp.safetensors"]])
def test_what_cannot_be_evaluated_is_one_line(words, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        run.cli(lambda: evaluate.main([*words, "--dataset", "kmnist-or-so"]))
    assert (ended.value.code, len(capsys.readouterr().err.splitlines())) == (2, 1)


COMMANDS = assignments.commands()
FAST = [command for command in COMMANDS if "extras.train" in command][:3]


def test_the_page_has_commands_of_every_kind():
    words = " ".join(COMMANDS)
    assert len(COMMANDS) > 20
    for name in ("extras.train", "extras.evaluate", "extras.check_gradients", "experiments.py search"):
        assert name in words


@pytest.mark.parametrize("command", FAST)
def test_three_commands_of_the_page_work(command, tmp_path):
    code, output = assignments.run_command(command, tmp_path / "run", ["--dataset", "digits", "--no-figures"])
    assert code == 0, output
