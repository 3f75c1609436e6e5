"""The one epoch loop, `fit`, and the one closing report of every script."""

if __name__ == "__main__":
    raise SystemExit("support/training.py is a module, not a script: every script uses it")

import math
import time

import numpy as np
from tqdm import tqdm

import plots
from numpy_nn.calibration import calibrated, calibration, fit_temperature
from numpy_nn.layers import LOSSES
from pictures import ood
from support import runs

TRAIN_EVAL_SIZE = 5_000  # training images whose loss and accuracy in eval mode stand beside those of validation


class Trainer:
    """The epoch loop of both networks. A subclass defines `train_epoch` and `evaluate`, and what else it needs below.

    s: settings with `epochs`; steps_per_epoch: for the progress bar. `history` is {column: [value of each epoch]}.
    """

    def __init__(self, s, steps_per_epoch):
        self.s, self.steps_per_epoch = s, steps_per_epoch
        self.history = {column: [] for column in runs.COLUMNS}
        self.step_losses = [] if getattr(s, "log_steps", False) else None  # the loss of every step

    def fit(self, X, y, X_val=None, y_val=None, log=lambda row: None, save_checkpoint=lambda: None, train_eval=None):
        """Train to the last epoch, or until `should_stop`. X (N, ...), y (N,), X_val (M, ...), y_val (M,).

        After each epoch `save_checkpoint` is called, and `log` with a row, a dict of runs.COLUMNS. train_loss and
        train_accuracy are means over the epoch's batches as they were trained on, train_eval_* those of train_eval (X, y)
        in eval mode, by default the first training images. Without X_val only the former are recorded. Raises
        runs.Diverged, and ValueError for unusable X or y.
        """
        train_eval = train_eval or (X[:TRAIN_EVAL_SIZE], y[:TRAIN_EVAL_SIZE])
        self.check_data(X, y)
        if X_val is not None:
            self.check_data(X_val, y_val)
        epoch, steps = len(self.history["epoch"]), self.steps_per_epoch
        bar = tqdm(total=self.s.epochs * steps, initial=epoch * steps, disable=self.no_progress, leave=False, unit="batch")

        def on_step(loss):
            bar.update()
            if self.step_losses is not None:
                self.step_losses.append(float(loss))

        with bar, np.errstate(over="ignore", invalid="ignore"):  # Diverged explains it better
            while epoch < self.s.epochs and not self.should_stop:
                start, epoch = time.perf_counter(), epoch + 1
                train_loss, train_accuracy, lr = self.train_epoch(X, y, on_step)
                row = {"epoch": epoch, "train_loss": train_loss, "train_accuracy": train_accuracy}
                if X_val is not None:
                    row["train_eval_loss"], row["train_eval_accuracy"] = self.evaluate(*train_eval)
                    row["val_loss"], row["val_accuracy"] = self.evaluate(X_val, y_val)
                row |= {"learning_rate": lr, "seconds": time.perf_counter() - start}
                if not all(map(math.isfinite, row.values())):
                    raise runs.Diverged(self.divergence_message(row, X_val))
                for column, value in row.items():
                    self.history[column].append(value)
                advice = self.on_epoch_end(row)
                save_checkpoint()
                log(row)
                for line in advice:
                    tqdm.write(line)
        self.finish()

    def step_log(self, title):
        """{file name: text or Figure}: the losses of all steps, if they were recorded."""
        if self.step_losses is None:
            return {}
        rows = "".join(f"{step},{loss:.6g}\n" for step, loss in enumerate(self.step_losses, 1))
        figure = {"loss_by_step.png": plots.loss_by_step(self.step_losses, self.steps_per_epoch, title)}
        return {"steps.csv": "step,train_loss\n" + rows} | (figure if self.s.figures else {})

    def load_history(self, history, step_losses):
        """Continue after the epochs of a checkpoint. Raises ValueError for values that `fit` cannot have made."""
        epochs, steps = len(history["epoch"]), len(step_losses or ())
        numbers = [value for values in history.values() for value in values] + list(step_losses or ())
        if not (history.keys() == self.history.keys() and history["epoch"] == list(range(1, epochs + 1))
                and all(len(values) == epochs for values in history.values()) and epochs <= self.s.epochs
                and all(type(value) in (int, float) and math.isfinite(value) for value in numbers)):  # fmt: skip
            raise ValueError(f"its history is not that of 0 to {self.s.epochs} epochs")
        if type(step_losses) is not type(self.step_losses) or steps > epochs * self.steps_per_epoch:
            raise ValueError("its losses by step are not those of its epochs")
        self.history, self.step_losses = history, step_losses

    no_progress = None  # True hides the progress bar; None does so where the output is not a terminal
    should_stop = False

    def check_data(self, X, y):
        """Raise ValueError for data that cannot be trained on."""

    def on_epoch_end(self, row):
        """Update what depends on the validation results; return lines to print."""
        return []

    def finish(self):
        """After the last epoch."""

    def divergence_message(self, row, X):
        """Why a value of the row is not finite, and what to do. X: the images that were evaluated."""
        return f"the loss became {row['train_loss'] + row['val_loss']:g} in epoch {row['epoch']}: lower --learning-rate"


def report(run, images, title, row, logits, tta=None, *, loss="softmax", other_rows=None, curves=None, **metrics):
    """Write the figures, test probabilities and metrics of a trained model, print its results; return the metrics.

    title: of the figures; row: the model in the printed table, below other_rows {name: (validation, test accuracy)}.
    logits: {"val": (N, classes), "test": (N, classes)}; tta: what tta.tta_logits returns, or None.
    curves: {file name: Figure}; metrics: what metrics.json contains besides.
    """
    s = run.settings
    loss_function, to_probabilities = LOSSES[loss]
    y, probabilities = images.test.y, to_probabilities(logits["test"].astype(np.float64))
    temperature = fit_temperature(logits["val"], images.val.y, loss)
    after = calibrated(logits["test"], temperature, loss)
    if s["figures"]:
        X = images.as_shown(images.test.X)
        run.save((curves or {}) | plots.evaluation(X, y, probabilities, images.classes, title, after))
    if s["save_weights"]:
        run.save({"test_probabilities.npy": probabilities.astype(np.float16)})
    results = {f"{split}_accuracy": accuracy(values, getattr(images, split).y) for split, values in logits.items()}
    table = (other_rows or {}) | {row: (results["val_accuracy"], results["test_accuracy"])}
    results |= {"test_loss": loss_function(logits["test"], y)[0], "test_ece": calibration(y, probabilities)[-1],
                "temperature": temperature, "test_ece_calibrated": calibration(y, after)[-1]}
    tta_logits, views = tta or ({}, None)
    rows = {"flip": "  with flip test-time augmentation (TTA)", "shift": f"  with flip and shift TTA ({views} views)"}
    for kind, summed in tta_logits.items():
        accuracies = {split: accuracy(values, getattr(images, split).y) for split, values in summed.items()}
        table[rows[kind]] = tuple(accuracies.values())
        results |= {f"{split}_accuracy_{kind}_tta": value for split, value in accuracies.items()}
    results |= {"shift_tta_views": views} if views else {}
    return run.finish(table, dataset=images.name, **images.sizes, **results, **metrics)


def for_prediction(images, logits, loss="softmax"):
    """What predict.py needs besides a network, for the metadata of its weights file.

    logits (N, classes): of the validation images.
    """
    return {"temperature": fit_temperature(logits, images.val.y, loss), "loss": loss, "ood": ood.fit(images),
            "bright_on_dark": images.bright_on_dark}  # fmt: skip


def accuracy(logits, y):
    """Share of the rows of logits (N, classes) whose largest value is that of the label, y (N,)."""
    return float(np.mean(logits.argmax(axis=1) == y))
