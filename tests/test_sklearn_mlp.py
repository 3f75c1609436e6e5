"""The scikit-learn interface: scikit-learn's checks and tools, and accuracies."""

import inspect
import pickle
import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from extras.sklearn_mlp import ScratchMLPClassifier

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
X_IRIS, Y_IRIS = load_iris(return_X_y=True)


@parametrize_with_checks([ScratchMLPClassifier(max_iter=100)])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_shared_parameters_have_the_defaults_of_mlpclassifier():
    ours, theirs = (inspect.signature(kind).parameters for kind in (ScratchMLPClassifier, MLPClassifier))
    shared = ours.keys() & theirs.keys()
    assert {name: ours[name].default for name in shared} == {name: theirs[name].default for name in shared}


@pytest.mark.parametrize(("load", "least"), [(load_digits, 0.932), (load_iris, 0.94)])
def test_small_datasets_are_learned(load, least):
    pipeline = make_pipeline(StandardScaler(), ScratchMLPClassifier(random_state=0))
    assert cross_val_score(pipeline, *load(return_X_y=True), cv=5).mean() >= least - 1e-9


def test_training_ends_when_the_loss_no_longer_improves():
    X, y = StandardScaler().fit_transform(X_IRIS), Y_IRIS
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        classifier = ScratchMLPClassifier(learning_rate_init=0.01, random_state=0).fit(X, y)
    best = np.minimum.accumulate(classifier.loss_curve_)
    improved = np.append(True, classifier.loss_curve_[1:] <= best[:-1] - classifier.tol)
    assert 30 < classifier.n_iter_ == len(classifier.loss_curve_) < 200
    assert not improved[-11:].any()  # more than n_iter_no_change = 10 epochs
    assert improved[-12]
    with pytest.warns(ConvergenceWarning, match="max_iter=3 "):
        assert ScratchMLPClassifier(max_iter=3, random_state=0).fit(X, y).n_iter_ == 3


def test_early_stopping_holds_out_data_and_restores_the_best_weights():
    X, y = load_digits(return_X_y=True)
    options = {"early_stopping": True, "n_iter_no_change": 4, "learning_rate_init": 0.03, "random_state": 0}
    classifier = ScratchMLPClassifier((16,), **options).fit(X / 16, y)
    scores = classifier.validation_scores_
    assert classifier.n_iter_ == len(scores) == np.argmax(scores) + 1 + 4 < 200
    assert 180 * max(scores) == pytest.approx(round(180 * max(scores)))  # 10 % of 1,797 are held out


OPTIONS = [{"hidden_layer_sizes": 20}, {"hidden_layer_sizes": [20, 10]}, {"max_iter": np.int64(50)}]
OPTIONS += [{"activation": "logistic"}, {"norm": "layer", "learning_rate": "cosine", "dropout": 0.1}]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", OPTIONS)
def test_other_parameters_precisions_and_a_pickle(options, dtype):
    classifier = ScratchMLPClassifier(**options, learning_rate_init=0.01, random_state=0)
    parameters, X = classifier.get_params(), X_IRIS.astype(dtype)
    assert classifier.fit(X, Y_IRIS).score(X, Y_IRIS) > 0.9
    assert classifier.get_params() == parameters
    assert classifier.model_.params.dtype == classifier.predict_proba(X).dtype == dtype
    again = pickle.loads(pickle.dumps(classifier))
    assert np.array_equal(again.predict_proba(X), classifier.predict_proba(X))


MISTAKES = [
    ({"hidden_layer_sizes": (0,)}, "^hidden_layer_sizes = "),
    ({"activation": "rellu"}, "^activation = 'rellu': .*did you mean relu"),
    ({"solver": "lbfgs"}, "^solver = 'lbfgs': choose from sgd"),
    ({"alpha": -1}, "^alpha = -1: "),
    ({"learning_rate": "plateau"}, "^learning_rate = 'plateau': .*early_stopping"),
    ({"norm": "batch", "batch_size": 1}, "^batch_size 1: "),
    ({"solver": "sgd", "learning_rate_init": 999.0, "activation": "leaky_relu"}, "lower learning_rate_init$"),
]


@pytest.mark.parametrize(("options", "said"), MISTAKES)
def test_a_mistake_is_a_valueerror_that_names_the_parameter(options, said):
    with pytest.raises(ValueError, match=said) as raised:
        ScratchMLPClassifier(**options).fit(*load_digits(return_X_y=True))
    assert "--" not in str(raised.value)
