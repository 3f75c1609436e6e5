"""The NumPy MLP behind scikit-learn's interface, for pipelines, grid search, cross-validation and calibration.

    from sklearn_mlp import ScratchMLPClassifier
    GridSearchCV(ScratchMLPClassifier(epochs=5), {"dropout": [0, 0.2]}).fit(X, y)
"""

import numbers
from types import SimpleNamespace

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data

from numpy_nn import layers
import mlp_from_scratch as mlp
from support import settings


class ScratchMLPClassifier(ClassifierMixin, BaseEstimator):
    """(N, features) -> classes. The parameters are settings of mlp_from_scratch.py, and mean what they do there.

    Inputs are taken as they come: put a StandardScaler before it. Computes in the precision of the first X, float32 or
    float64. There is no validation split, and so no schedule "plateau".
    """

    def __init__(self, hidden=(256, 128), activation="relu", norm="none", dropout=0.0, label_smoothing=0.0,
                 optimizer="adam", learning_rate=0.001, schedule="cosine", weight_decay=0.0, batch_size=64, epochs=50,
                 random_state=None):  # fmt: skip
        self.hidden = hidden
        self.activation = activation
        self.norm = norm
        self.dropout = dropout
        self.label_smoothing = label_smoothing
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.epochs = epochs
        self.random_state = random_state

    def fit(self, X, y):
        """Train a new network on X (N, features), y (N,) for `epochs` passes. Raises ValueError for what cannot be."""
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32))
        check_classification_targets(y)
        self._start(X, unique_labels(y))
        self._train(X, y)
        return self

    def partial_fit(self, X, y, classes=None):
        """One more pass, over X and y, at a constant learning rate. The first call must name all `classes`."""
        first = not hasattr(self, "model_")
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), reset=first)
        check_classification_targets(y)
        if first:
            if classes is None:
                raise ValueError("the first call of partial_fit must name all classes")
            self._start(X, unique_labels(classes))
        self.settings_ = SimpleNamespace(**(vars(self.settings_) | {"schedule": "constant", "epochs": 1}))
        if classes is not None and not np.array_equal(unique_labels(classes), self.classes_):
            raise ValueError(f"classes are {unique_labels(classes)}, but were {self.classes_} in the first call")
        if not np.isin(y, self.classes_).all():
            raise ValueError(f"y holds classes that the first call did not name: {np.setdiff1d(y, self.classes_)}")
        self._train(X, y)
        return self

    def _start(self, X, classes):
        if len(classes) < 2:
            raise ValueError(f"Classifier can't train when only one class is present: {classes}")
        options = mlp.BASELINE | {name: value for name, value in self.get_params().items() if name != "random_state"}
        if isinstance(self.hidden, numbers.Integral):
            raise ValueError(f"hidden is {self.hidden}, expected a tuple with the neurons of each layer: ({self.hidden},)")
        if options["schedule"] == "plateau":
            raise ValueError('schedule "plateau" needs a validation split; choose another')
        self.settings_ = settings.load(mlp, **options, seed=int(check_random_state(self.random_state).randint(2**31)))
        self.classes_ = classes
        self.model_, self.rngs_ = mlp.build(X.shape[1], len(classes), self.settings_, X.dtype)
        self.training_ = None

    def _train(self, X, y):
        """Train with the optimiser of the last call, if there was one."""
        training = mlp.Trainer(self.model_, self.rngs_, self.settings_, len(X))
        if self.training_:
            training.optimizer = self.training_.optimizer
        X, y = X.astype(self.model_.params.dtype, copy=False), np.searchsorted(self.classes_, y)
        training.run(X, y, X[:1], y[:1], log=lambda row: None)
        self.training_ = training
        self.loss_curve_ = training.history["train_loss"]

    def predict_proba(self, X):
        """Probabilities (N, classes) of X (N, features), in the order of `classes_`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        return layers.softmax(self.model_.predict_logits(X.astype(self.model_.params.dtype, copy=False)))

    def predict(self, X):
        """The most probable class of each row of X (N, features)."""
        chosen = self.predict_proba(X).argmax(axis=1)
        return self.classes_[chosen]
