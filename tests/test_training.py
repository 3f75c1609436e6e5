"""The one epoch loop and the one closing report."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import assert_reported

from numpy_nn.layers import softmax
from support import runs, training


class Counter(training.Trainer):
    """Trains nothing: its losses are numbers that count the calls."""

    def __init__(self, epochs, losses=(), stop_after=None):
        super().__init__(SimpleNamespace(epochs=epochs), steps_per_epoch=2)
        self.losses, self.stop_after, self.calls = dict(losses), stop_after, []

    def check_data(self, X, y):
        self.calls.append(("check", len(X)))

    def train_epoch(self, X, y, on_step):
        self.calls.append(("train", len(X)))
        on_step(0.5)
        on_step(0.5)
        epoch = len(self.history["epoch"]) + 1
        return self.losses.get(epoch, 1 / epoch), 0.5, 0.1 / epoch

    def evaluate(self, X, y):
        self.calls.append(("evaluate", len(X)))
        return float(len(X)), 0.25

    def on_epoch_end(self, row):
        self.calls.append(("end", row["epoch"]))
        return [f"advice {row['epoch']}"]

    @property
    def should_stop(self):
        return self.stop_after == len(self.history["epoch"])

    def finish(self):
        self.calls.append("finish")


X, y, X_VAL, Y_VAL = np.zeros((6000, 2)), np.zeros(6000, int), np.zeros((7, 2)), np.zeros(7, int)


def test_an_epoch_is_trained_evaluated_saved_and_logged_in_this_order(capsys):
    trainer = Counter(2)
    trainer.fit(X, y, X_VAL, Y_VAL, lambda row: trainer.calls.append(("log", row["epoch"])),
                lambda: trainer.calls.append("save"))  # fmt: skip
    epochs = [[("train", 6000), ("evaluate", 5000), ("evaluate", 7), ("end", epoch), "save", ("log", epoch)]
              for epoch in (1, 2)]  # fmt: skip
    assert trainer.calls == [("check", 6000), ("check", 7), *epochs[0], *epochs[1], "finish"]
    assert capsys.readouterr().out.split("\n")[:2] == ["advice 1", "advice 2"]


def test_the_history_has_every_column_of_every_epoch():
    trainer, rows = Counter(3), []
    trainer.fit(X, y, X_VAL, Y_VAL, rows.append)
    assert list(trainer.history) == list(runs.COLUMNS)
    for column, values in trainer.history.items():
        assert values == [row[column] for row in rows]
    assert trainer.history["epoch"] == [1, 2, 3]
    assert trainer.history["train_loss"] == [1, 1 / 2, 1 / 3]
    assert trainer.history["learning_rate"] == [0.1, 0.1 / 2, 0.1 / 3]
    assert (rows[0]["train_eval_loss"], rows[0]["val_loss"]) == (5000, 7)
    assert all(seconds >= 0 for seconds in trainer.history["seconds"])


def test_the_training_images_to_evaluate_may_be_given():
    trainer = Counter(1)
    trainer.fit(X, y, X_VAL, Y_VAL, train_eval=(X[:3], y[:3]))
    assert trainer.history["train_eval_loss"] == [3]


def test_without_validation_images_only_the_training_columns_are_recorded():
    trainer, rows = Counter(2), []
    trainer.fit(X, y, log=rows.append)
    assert set(rows[0]) == {"epoch", "train_loss", "train_accuracy", "learning_rate", "seconds"}
    assert not any(kind == "evaluate" for kind, _ in trainer.calls[:-1])
    assert trainer.history["val_loss"] == []


def test_it_stops_when_it_should_and_finishes():
    trainer = Counter(9, stop_after=2)
    trainer.fit(X, y, X_VAL, Y_VAL)
    assert trainer.history["epoch"] == [1, 2]
    assert trainer.calls[-1] == "finish"


def test_it_continues_after_the_epochs_of_its_history():
    trainer, rows = Counter(3), []
    trainer.history = {column: [1.0, 2.0] for column in runs.COLUMNS}
    trainer.fit(X, y, X_VAL, Y_VAL, rows.append)
    assert [row["epoch"] for row in rows] == [3]


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_before_it_is_saved(loss):
    trainer, saved = Counter(4, {3: loss}), []
    with pytest.raises(runs.Diverged, match=f"the loss became {loss} in epoch 3: lower --learning-rate"):
        trainer.fit(X, y, X_VAL, Y_VAL, save_checkpoint=lambda: saved.append(len(trainer.history["epoch"])))
    assert saved == [1, 2]
    assert "finish" not in trainer.calls


# ---- the closing report


@pytest.fixture
def reported(digits, tmp_path, capsys):
    """(folder, the returned metrics, printed text) of a report on logits made up at random."""
    rng, classes = np.random.default_rng(0), len(digits.classes)
    logits, flip, shift = ({name: 3 * np.eye(classes)[getattr(digits, name).y] + 2 * rng.standard_normal(
        (len(getattr(digits, name).y), classes)) for name in ("val", "test")} for _ in range(3))  # fmt: skip
    tta_logits = {"flip": flip, "shift": shift}
    with runs.Run("test", SimpleNamespace(output_dir=str(tmp_path), figures=True, save_weights=True)) as run:
        metrics = training.report(run, digits, "title", "my model", logits, (tta_logits, 10), model="m",
                                  other_rows={"other": (0.5, 0.25)}, parameters=7)  # fmt: skip
    return tmp_path, metrics, capsys.readouterr().out, logits, tta_logits


def test_the_report_is_what_the_logits_say(reported, digits):
    folder, metrics, printed, logits, tta_logits = reported
    assert json.loads((folder / "metrics.json").read_text()) == metrics == assert_reported(folder, digits.test.y)
    for name in ("val", "test"):
        labels = getattr(digits, name).y
        assert metrics[f"{name}_accuracy"] == np.mean(logits[name].argmax(axis=1) == labels)
        for kind, summed in tta_logits.items():
            assert metrics[f"{name}_accuracy_{kind}_tta"] == np.mean(summed[name].argmax(axis=1) == labels)
    assert metrics["shift_tta_views"] == 10
    assert np.load(folder / "test_probabilities.npy") == pytest.approx(softmax(logits["test"]), abs=1e-3)
    assert (metrics["parameters"], metrics["model"], metrics["test_size"]) == (7, "m", len(digits.test.y))
    lines = printed.splitlines()
    table = [line for line in lines if "%" in line]
    assert [line.split("  ")[0] or line.strip().split("  ")[0] for line in table] == [
        "other", "my model", "with flip test-time augmentation (TTA)", "with flip and shift TTA (10 views)"]  # fmt: skip
    assert f"{metrics['test_accuracy']:.2%}" in table[1]


def test_without_tta_nothing_is_said_of_it(digits, tmp_path, capsys):
    logits = {name: np.eye(10)[getattr(digits, name).y] for name in ("val", "test")}
    with runs.Run("test", SimpleNamespace(output_dir=str(tmp_path), figures=True, save_weights=True)) as run:
        metrics = training.report(run, digits, "title", "my model", logits)
    assert not [name for name in metrics if "tta" in name]
    assert "TTA" not in capsys.readouterr().out


def test_independent_sigmoids_give_their_own_loss_and_probabilities(digits, tmp_path):
    logits = {name: 6 * np.eye(10)[getattr(digits, name).y] - 3 for name in ("val", "test")}
    with runs.Run("test", SimpleNamespace(output_dir=str(tmp_path), figures=True, save_weights=True)) as run:
        metrics = training.report(run, digits, "title", "my model", logits, loss="sigmoid")
    assert metrics["test_loss"] == pytest.approx(10 * np.log1p(np.exp(-3)))
    p = np.load(tmp_path / "test_probabilities.npy").astype(float)
    assert p == pytest.approx(1 / (1 + np.exp(-logits["test"])), abs=1e-3)
    assert metrics["test_ece"] == pytest.approx(1 - p.max(axis=1).mean(), abs=1e-3)  # always right, and less sure than that
