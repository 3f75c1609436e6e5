"""The NumPy MLP with scikit-learn's interface, for pipelines, grid search, cross-validation and calibration.

    from sklearn_mlp import ScratchMLPClassifier
    GridSearchCV(ScratchMLPClassifier(max_iter=20), {"dropout": [0, 0.2]}).fit(X, y)
"""

if __name__ == "__main__":
    raise SystemExit("sklearn_mlp.py is a module, not a script: import ScratchMLPClassifier from it")

import numbers
import re
import warnings
from types import SimpleNamespace

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data

import mlp_from_scratch as mlp
from numpy_nn import layers
from support import runs, settings

# scikit-learn's parameters with another name than the setting of mlp_from_scratch.py
SETTING_OF = {"hidden_layer_sizes": "hidden", "learning_rate_init": "learning_rate", "learning_rate": "schedule",
              "solver": "optimizer", "max_iter": "epochs", "n_iter_no_change": "patience", "alpha": "l2"}  # fmt: skip
PARAMETER_OF = {setting: parameter for parameter, setting in SETTING_OF.items()}


class LossTrainer(mlp.Trainer):
    """Also stops when the training loss has not improved by `tol` for more than `n_iter_no_change` epochs in a row."""

    n_iter_no_change, tol = np.inf, 0.0  # set by the estimator

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.best_loss, self.num_bad_epochs = np.inf, 0

    def on_epoch_end(self, row):
        self.num_bad_epochs = self.num_bad_epochs + 1 if row["train_loss"] > self.best_loss - self.tol else 0
        self.best_loss = min(self.best_loss, row["train_loss"])
        return super().on_epoch_end(row)

    @property
    def should_stop(self):
        return super().should_stop or self.num_bad_epochs > self.n_iter_no_change


class ScratchMLPClassifier(ClassifierMixin, BaseEstimator):
    """A multilayer perceptron, trained by the hand-written backward pass. X (N, features), y (N,).

    The parameters that MLPClassifier has, too, have its names, meaning and defaults:

        hidden_layer_sizes   neurons in each hidden layer
        activation           relu, leaky_relu, tanh, gelu, or sigmoid (also called logistic)
        solver               adam, adamw, rmsprop, nesterov (MLPClassifier's "sgd"), momentum, or sgd without momentum
        alpha                L2 penalty, divided by the batch size
        batch_size           rows per step; "auto" is min(200, N)
        learning_rate        schedule: constant, step, exponential, cosine, or linear
        learning_rate_init   initial learning rate
        max_iter             largest number of epochs. With the schedule constant, training ends earlier when the loss has
                             not improved by tol for more than n_iter_no_change epochs in a row.
        early_stopping       hold out validation_fraction of the data; stop after n_iter_no_change epochs without
                             improvement in validation accuracy and restore the best weights
        momentum, tol, n_iter_no_change, validation_fraction, random_state
        verbose              show a progress bar

    norm (none, batch, layer), dropout, label_smoothing and weight_decay are settings of mlp_from_scratch.py. Inputs are not
    standardized: put a StandardScaler in front. Computations are in the precision of the first X, float32 or float64.
    """

    def __init__(self, hidden_layer_sizes=(100,), activation="relu", *, solver="adam", alpha=0.0001, batch_size="auto",
                 learning_rate="constant", learning_rate_init=0.001, max_iter=200, momentum=0.9, tol=1e-4,
                 early_stopping=False, validation_fraction=0.1, n_iter_no_change=10, norm="none", dropout=0.0,
                 label_smoothing=0.0, weight_decay=0.0, random_state=None, verbose=False):  # fmt: skip
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.momentum = momentum
        self.tol = tol
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.norm = norm
        self.dropout = dropout
        self.label_smoothing = label_smoothing
        self.weight_decay = weight_decay
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X, y):
        """Train a new network on X (N, features), y (N,). Raises ValueError for impossible data or parameters."""
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32))
        check_classification_targets(y)
        X_val = y_val = None
        seed = self._init(X, unique_labels(y))
        if self.early_stopping:
            X, X_val, y, y_val = train_test_split(X, y, test_size=self.validation_fraction, stratify=y, random_state=seed)
        self._train(X, y, X_val, y_val)
        if self.learning_rate == "constant" and not self.trainer_.should_stop:
            warnings.warn(f"max_iter={self.max_iter} epochs are over and the optimization has not converged yet",
                          ConvergenceWarning, stacklevel=2)  # fmt: skip
        return self

    def partial_fit(self, X, y, classes=None):
        """Train for one epoch on X and y with a constant learning rate. The first call must name all `classes`."""
        if self.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True")
        first = not hasattr(self, "model_")
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), reset=first)
        check_classification_targets(y)
        if first:
            if classes is None:
                raise ValueError("the first call of partial_fit must name all classes")
            self._init(X, unique_labels(classes))
        self.settings_ = SimpleNamespace(**vars(self.settings_) | {"schedule": "constant", "epochs": 1})
        if classes is not None and not np.array_equal(unique_labels(classes), self.classes_):
            raise ValueError(f"classes are {unique_labels(classes)}, but were {self.classes_} in the first call")
        if not np.isin(y, self.classes_).all():
            raise ValueError(f"y contains classes that the first call did not name: {np.setdiff1d(y, self.classes_)}")
        self._train(X, y)
        return self

    def _init(self, X, classes):
        """Make an untrained network for X (N, features); return the seed."""
        if len(classes) < 2:
            raise ValueError(f"Classifier can't train when only one class is present: {classes}")
        known, hidden = settings.constants(mlp), self.hidden_layer_sizes
        options = {SETTING_OF.get(name, name): value for name, value in self.get_params().items()}
        options = {name: value for name, value in options.items() if name.upper() in known}
        options["hidden"] = (hidden,) if isinstance(hidden, numbers.Integral) else tuple(hidden)
        options["activation"] = "sigmoid" if self.activation == "logistic" else self.activation
        options["batch_size"] = min(200, len(X)) if self.batch_size == "auto" else self.batch_size
        options["init"] = "xavier"  # as MLPClassifier
        options["seed"] = int(check_random_state(self.random_state).randint(2**31))
        if isinstance(self.learning_rate, numbers.Real):
            raise ValueError(f"learning_rate={self.learning_rate}: is the schedule; set learning_rate_init")
        if self.learning_rate == "plateau":
            raise ValueError("learning_rate='plateau': is not supported; choose another schedule")
        try:
            s = settings.load(mlp, **mlp.BASELINE | options)
            s.l2 /= s.batch_size  # as MLPClassifier weighs alpha
            s.patience = s.patience if self.early_stopping else 0
            self.model_, self.rngs_ = mlp.build(X.shape[1], len(classes), s, X.dtype)
        except settings.SettingError as error:
            raise ValueError(with_parameter_names(error)) from None
        self.settings_, self.classes_, self.trainer_ = s, classes, None
        return s.seed

    def _train(self, X, y, X_val=None, y_val=None):
        """Train on X (N, features), y (N,) with the optimizer of the last call, if there was one."""
        trainer = LossTrainer(self.model_, self.rngs_, self.settings_, len(X))
        trainer.no_progress = not self.verbose
        if self.learning_rate == "constant" and not self.early_stopping:
            trainer.n_iter_no_change, trainer.tol = self.n_iter_no_change, self.tol
        if self.trainer_:
            trainer.optimizer = self.trainer_.optimizer
        dtype = self.model_.params.dtype
        X, y = X.astype(dtype, copy=False), np.searchsorted(self.classes_, y)
        if X_val is not None:
            X_val, y_val = X_val.astype(dtype, copy=False), np.searchsorted(self.classes_, y_val)
        try:
            trainer.fit(X, y, X_val, y_val)
        except runs.Diverged as error:
            raise ValueError(with_parameter_names(error)) from None
        self.trainer_, self.n_iter_ = trainer, trainer.epoch
        self.loss_curve_, self.loss_ = trainer.history["train_loss"], trainer.history["train_loss"][-1]
        self.validation_scores_ = trainer.history["val_accuracy"] if self.early_stopping else None

    def predict_proba(self, X):
        """Probabilities (N, classes) of X (N, features), in the order of `classes_`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        return layers.softmax(self.model_.predict_logits(X.astype(self.model_.params.dtype, copy=False)))

    def predict(self, X):
        """The most probable class of each row of X (N, features)."""
        predictions = self.predict_proba(X).argmax(axis=1)
        return self.classes_[predictions]


def with_parameter_names(error):
    """The message of an error with the estimator's parameters in place of the flags: max_iter for --epochs."""

    def parameter(match):
        name = match.group(1).replace("-", "_")
        return PARAMETER_OF.get(name, name)

    return re.sub(r"--([a-z0-9-]+)", parameter, str(error))
