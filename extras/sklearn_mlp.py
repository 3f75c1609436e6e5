"""The NumPy MLP with scikit-learn's interface, for pipelines, grid search, cross-validation and calibration.

from extras.sklearn_mlp import ScratchMLPClassifier
GridSearchCV(ScratchMLPClassifier(max_iter=20), {"dropout": [0, 0.2]}).fit(X, y)
"""

import re
import warnings

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

import data
import mlp_from_scratch as mlp
import run

# scikit-learn's name of a setting of mlp_from_scratch.py: {setting: parameter}
PARAMETERS = {"hidden": "hidden_layer_sizes", "optimizer": "solver", "l2": "alpha", "epochs": "max_iter"}
PARAMETERS |= {
    "schedule": "learning_rate",
    "learning_rate": "learning_rate_init",
    "patience": "n_iter_no_change",
}
SAME = ("activation", "batch_size", "momentum", "norm", "dropout", "label_smoothing", "weight_decay")
# The other settings: as MLPClassifier, and nothing that it does not have
PLAIN = {"init": "xavier", "loss": "softmax", "normalize": "none", "flip": False, "shift": 0, "erase": 0}
PLAIN |= {"input_dropout": 0.0, "warmup": 0.0, "max_grad_norm": 0.0, "ema_decay": 0.0, "l1": 0.0}
PLAIN |= {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}


class ScratchMLPClassifier(ClassifierMixin, BaseEstimator):
    """A multilayer perceptron, trained by the hand-written backward pass. X (N, features), y (N,).

    The parameters that MLPClassifier has, too, have its names, meaning and defaults. Choices that differ:

        activation      relu, leaky_relu, tanh, gelu, identity, or sigmoid (also called logistic)
        solver          adam, adamw, nadam, rmsprop, nesterov (MLPClassifier's "sgd"), momentum, or sgd
        learning_rate   the schedule: constant, step, exponential, cosine, linear; plateau with early_stopping

    norm (none, batch, layer), dropout, label_smoothing and weight_decay are settings of mlp_from_scratch.py.
    Inputs are not standardized: put a StandardScaler in front. Computes in X's precision, float32 or float64.
    """

    def __init__(
        self,
        hidden_layer_sizes=(100,),
        activation="relu",
        *,
        solver="adam",
        alpha=0.0001,
        batch_size="auto",
        learning_rate="constant",
        learning_rate_init=0.001,
        max_iter=200,
        momentum=0.9,
        tol=1e-4,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        norm="none",
        dropout=0.0,
        label_smoothing=0.0,
        weight_decay=0.0,
        random_state=None,
    ):
        vars(self).update(locals())  # an attribute for each, as scikit-learn wants it
        del self.self

    def fit(self, X, y):
        """Train a new network on X (N, features), y (N,). Raises ValueError for unusable ones."""
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32))
        check_classification_targets(y)
        self.classes_, y = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"Classifier can't train when only one class is present: {self.classes_}")
        seed, val = int(check_random_state(self.random_state).randint(2**31)), None
        if self.early_stopping:
            size = {"test_size": self.validation_fraction, "random_state": seed}
            X, X_val, y, y_val = train_test_split(X, y, stratify=y, **size)
            val = data.Split(X_val, y_val, None)
        images = data.Dataset("", tuple(self.classes_), data.Split(X, y, None), val, None)
        try:
            s = self._settings(len(X), seed)
            by_loss = self.learning_rate == "constant" and not self.early_stopping
            self.model_, history = mlp.train(images, s, on_epoch=lambda h: by_loss and self._converged(h))
        except run.Error as error:
            raise ValueError(with_parameter_names(error)) from None
        self.n_iter_, self.loss_curve_ = len(history["epoch"]), history["train_loss"]
        self.loss_, self.validation_scores_ = self.loss_curve_[-1], history.get("val_accuracy")
        if self.learning_rate == "constant" and self.n_iter_ == self.max_iter:
            text = f"max_iter={self.max_iter} epochs are over and the optimization has not converged yet"
            warnings.warn(text, ConvergenceWarning, stacklevel=2)
        return self

    def _settings(self, n, seed):
        """The settings of mlp_from_scratch.py for n rows. Raises run.Error."""
        values = {setting: getattr(self, name) for setting, name in PARAMETERS.items()}
        values |= {name: getattr(self, name) for name in SAME}
        values = {name: v.item() if isinstance(v, np.generic) else v for name, v in values.items()}
        values["hidden"] = tuple(np.atleast_1d(self.hidden_layer_sizes).astype(int).tolist())
        if self.activation == "logistic":
            values["activation"] = "sigmoid"
        if self.batch_size == "auto":
            values["batch_size"] = min(200, n)
        s = mlp.settings(**PLAIN, **values, seed=seed)
        mlp.check_settings(s)
        if s.schedule == "plateau" and not self.early_stopping:
            raise run.Error("schedule = 'plateau': needs early_stopping=True")
        s.l2 /= s.batch_size  # as MLPClassifier weighs alpha
        s.patience = s.patience if self.early_stopping else 0
        return s

    def _converged(self, history):
        """Whether the training loss did not improve by tol for more than n_iter_no_change epochs in a row."""
        best, num_bad_epochs = np.inf, 0
        for loss in history["train_loss"]:
            num_bad_epochs = num_bad_epochs + 1 if loss > best - self.tol else 0
            best = min(best, loss)
        return num_bad_epochs > self.n_iter_no_change

    def predict_proba(self, X):
        """Probabilities (N, classes) of X (N, features), in the order of `classes_`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        return mlp.softmax(self.model_.predict_logits(X))

    def predict(self, X):
        """The most probable class of each row of X (N, features)."""
        predictions = self.predict_proba(X).argmax(axis=1)
        return self.classes_[predictions]


def with_parameter_names(error):
    """The message of an error with the estimator's parameters in place of settings: max_iter for --epochs."""
    text = str(error).removesuffix(", or set --max-grad-norm 1")  # which is no parameter
    text = re.sub(r"--([a-z0-9-]+)", lambda flag: flag[1].replace("-", "_"), text)
    return re.sub(r"\b[a-z0-9_]+\b", lambda word: PARAMETERS.get(word[0], word[0]), text)
