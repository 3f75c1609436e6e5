"""The scikit-learn interface: scikit-learn's own checks, and the tools that people use it for."""

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_mlp import ScratchMLPClassifier


@parametrize_with_checks([ScratchMLPClassifier()])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_it_learns_in_pipelines_searches_and_calibration(digits):
    X, y = digits.train.X.reshape(-1, 784), np.array(list("abcdefghij"))[digits.train.y]
    X_test, y_test = digits.test.X.reshape(-1, 784), np.array(list("abcdefghij"))[digits.test.y]
    pipeline = make_pipeline(StandardScaler(), ScratchMLPClassifier(hidden=(32,), batch_size=32, epochs=8, random_state=0))
    assert pipeline.fit(X, y).score(X_test, y_test) > 0.93
    assert cross_val_score(pipeline, X, y, cv=3).mean() > 0.9
    search = GridSearchCV(pipeline, {"scratchmlpclassifier__epochs": np.array([1, 8])}, cv=2).fit(X, y)
    assert search.best_params_ == {"scratchmlpclassifier__epochs": 8}
    assert CalibratedClassifierCV(pipeline, cv=2).fit(X, y).score(X_test, y_test) > 0.9


def test_partial_fit_goes_on(digits):
    X, y = digits.train.X.reshape(-1, 784), digits.train.y
    one = ScratchMLPClassifier(hidden=(32,), batch_size=32, random_state=0)
    losses = []
    for _ in range(5):
        one.partial_fit(X[y < 8], y[y < 8], classes=np.arange(10))
        losses.append(one.loss_curve_[-1])
    assert losses[-1] < 0.5 * losses[0]
    assert one.predict_proba(X).shape == (len(X), 10)
    with pytest.raises(ValueError, match="did not name"):
        one.partial_fit(X, y + 5)
    with pytest.raises(ValueError, match="must name all classes"):
        ScratchMLPClassifier().partial_fit(X, y)


def test_partial_fit_after_fit_is_one_pass_at_a_constant_rate(digits):
    X, y = digits.train.X.reshape(-1, 784), digits.train.y
    one = ScratchMLPClassifier(hidden=(8,), epochs=3, random_state=0).fit(X, y)
    assert len(one.loss_curve_) == 3
    steps = one.training_.optimizer.t
    one.partial_fit(X, y)
    assert len(one.loss_curve_) == 1
    assert one.training_.optimizer.t == steps + steps // 3
    assert set(one.training_.rates) == {0.001}
    assert one.predict_proba(X.astype(np.float64)).dtype == np.float32


@pytest.mark.parametrize("options", [
    {"hidden": (0,)}, {"dropout": 1.0}, {"activation": "rellu"}, {"epochs": 0}, {"schedule": "plateau"},
])  # fmt: skip
def test_impossible_parameters(options, digits):
    with pytest.raises(ValueError, match=r"--|plateau"):
        ScratchMLPClassifier(**options).fit(digits.train.X.reshape(-1, 784), digits.train.y)
