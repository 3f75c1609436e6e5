"""The scikit-learn interface: scikit-learn's checks, its tools, and accuracies next to those of MLPClassifier."""

import inspect
import pickle
import warnings

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from threadpoolctl import threadpool_limits

from sklearn_mlp import ScratchMLPClassifier

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(autouse=True)
def single_blas_thread():
    """Networks this small gain nothing from a second thread, and lose a lot where another process uses the cores."""
    with threadpool_limits(1, user_api="blas"):
        yield


@parametrize_with_checks([ScratchMLPClassifier(), ScratchMLPClassifier(norm="layer", learning_rate="cosine")])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_shared_parameters_have_the_defaults_of_mlpclassifier():
    ours, theirs = (inspect.signature(kind).parameters for kind in (ScratchMLPClassifier, MLPClassifier))
    shared = ours.keys() & theirs.keys()
    assert {"hidden_layer_sizes", "activation", "solver", "alpha", "batch_size", "learning_rate", "learning_rate_init",
            "max_iter", "random_state", "tol", "early_stopping", "validation_fraction", "n_iter_no_change"} <= shared
    assert {name: ours[name].default for name in shared} == {name: theirs[name].default for name in shared}


@pytest.mark.parametrize(("load", "scaler", "least"), [
    (load_iris, None, 0.94), (load_iris, StandardScaler(), 0.93), (load_wine, StandardScaler(), 0.96),
])
def test_small_datasets_are_learned_as_well_as_by_mlpclassifier(load, scaler, least):
    X, y = load(return_X_y=True)
    accuracies = {ScratchMLPClassifier: [], MLPClassifier: []}
    for kind, seed in ((kind, seed) for kind in accuracies for seed in range(3)):
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        accuracies[kind].append(cross_val_score(make_pipeline(scaler, kind(random_state=seed)), X, y, cv=folds).mean())
    ours, theirs = map(np.mean, accuracies.values())
    assert ours >= least
    assert ours >= theirs - 0.012


def test_it_learns_in_pipelines_searches_and_calibration(digits):
    X, y = digits.train.X.reshape(-1, 784), np.array(list("abcdefghij"))[digits.train.y]
    X_test, y_test = digits.test.X.reshape(-1, 784), np.array(list("abcdefghij"))[digits.test.y]
    classifier = ScratchMLPClassifier(hidden_layer_sizes=(32,), batch_size=32, max_iter=8, random_state=0)
    pipeline = make_pipeline(StandardScaler(), classifier)
    assert pipeline.fit(X, y).score(X_test, y_test) > 0.93
    assert cross_val_score(pipeline, X, y, cv=3).mean() > 0.9
    search = GridSearchCV(pipeline, {"scratchmlpclassifier__max_iter": np.array([1, 8])}, cv=2).fit(X, y)
    assert search.best_params_ == {"scratchmlpclassifier__max_iter": 8}
    assert CalibratedClassifierCV(pipeline, cv=2).fit(X, y).score(X_test, y_test) > 0.9


def test_training_ends_when_the_loss_no_longer_improves():
    X, y = load_wine(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        classifier = ScratchMLPClassifier(learning_rate_init=0.01, random_state=0).fit(X, y)
    best = np.minimum.accumulate(classifier.loss_curve_)
    improved = np.append(True, classifier.loss_curve_[1:] <= best[:-1] - classifier.tol)
    assert 30 < classifier.n_iter_ == len(classifier.loss_curve_) < 200
    assert not improved[-11:].any()  # more than n_iter_no_change = 10 epochs
    assert improved[-12]
    assert classifier.loss_ == classifier.loss_curve_[-1]
    with pytest.warns(ConvergenceWarning, match="max_iter=3 "):
        assert ScratchMLPClassifier(max_iter=3, random_state=0).fit(X, y).n_iter_ == 3
    patient = ScratchMLPClassifier(learning_rate_init=0.01, n_iter_no_change=20, random_state=0).fit(X, y)
    assert patient.n_iter_ > classifier.n_iter_
    cosine = ScratchMLPClassifier(learning_rate="cosine", learning_rate_init=0.01, random_state=0).fit(X, y)
    assert cosine.n_iter_ == 200


def test_early_stopping_holds_out_data_and_restores_the_best_weights(digits, monkeypatch):
    X, y = digits.train.X.reshape(-1, 784), digits.train.y
    sizes = []
    original = ScratchMLPClassifier._train

    def train(self, X, y, X_val=None, y_val=None):
        sizes.append((len(X), len(X_val)))
        original(self, X, y, X_val, y_val)
        self.held_out = X_val, y_val

    monkeypatch.setattr(ScratchMLPClassifier, "_train", train)
    classifier = ScratchMLPClassifier((16,), early_stopping=True, validation_fraction=0.2, n_iter_no_change=4,
                                      learning_rate_init=0.03, random_state=0).fit(X, y)  # fmt: skip
    assert sizes == [(len(X) - -(-len(X) // 5), -(-len(X) // 5))]
    scores = classifier.validation_scores_
    assert classifier.n_iter_ == len(scores) == np.argmax(scores) + 1 + 4 < 200
    assert classifier.score(*classifier.held_out) == max(scores) > scores[-1]
    with pytest.raises(ValueError, match="does not support early_stopping"):
        classifier.partial_fit(X, y)


def test_alpha_is_divided_by_the_batch_size_as_in_mlpclassifier():
    X, y = load_iris(return_X_y=True)
    settings = ScratchMLPClassifier(alpha=0.5, batch_size=50, max_iter=1).fit(X, y).settings_
    assert (settings.l2, settings.batch_size) == (0.01, 50)
    assert ScratchMLPClassifier(max_iter=1).fit(X, y).settings_.batch_size == 150
    assert ScratchMLPClassifier(max_iter=1).fit(np.tile(X, (2, 1)), np.tile(y, 2)).settings_.batch_size == 200
    norms = [np.linalg.norm(ScratchMLPClassifier(alpha=alpha, random_state=0).fit(X, y).model_.params) for alpha in (0, 50)]
    assert norms[1] < 0.8 * norms[0]


@pytest.mark.parametrize("options", [
    {"activation": "logistic"}, {"hidden_layer_sizes": 20}, {"hidden_layer_sizes": [20, 10]}, {"solver": "nesterov"},
])  # fmt: skip
def test_other_spellings_of_mlpclassifier(options):
    X, y = load_iris(return_X_y=True)
    classifier = ScratchMLPClassifier(**options, learning_rate_init=0.01, random_state=0).fit(X, y)
    assert classifier.score(X, y) > 0.9
    assert classifier.get_params() == ScratchMLPClassifier(**options, learning_rate_init=0.01, random_state=0).get_params()
    again = pickle.loads(pickle.dumps(classifier))
    assert np.array_equal(again.predict_proba(X), classifier.predict_proba(X))


def test_partial_fit_continues(digits):
    X, y = digits.train.X.reshape(-1, 784), digits.train.y
    classifier = ScratchMLPClassifier(hidden_layer_sizes=(32,), batch_size=32, random_state=0)
    losses = []
    for _ in range(5):
        classifier.partial_fit(X[y < 8], y[y < 8], classes=np.arange(10))
        losses.append(classifier.loss_)
    assert losses[-1] < 0.5 * losses[0]
    assert classifier.predict_proba(X).shape == (len(X), 10)
    with pytest.raises(ValueError, match="did not name"):
        classifier.partial_fit(X, y + 5)
    with pytest.raises(ValueError, match="must name all classes"):
        ScratchMLPClassifier().partial_fit(X, y)


def test_partial_fit_after_fit_is_one_epoch_at_a_constant_rate(digits):
    X, y = digits.train.X.reshape(-1, 784), digits.train.y
    classifier = ScratchMLPClassifier((8,), learning_rate="cosine", max_iter=3, random_state=0).fit(X, y)
    assert len(classifier.loss_curve_) == 3
    steps = classifier.trainer_.optimizer.t
    rates = []
    optimizer_step = classifier.trainer_.optimizer.step
    classifier.trainer_.optimizer.step = lambda rate: rates.append(rate) or optimizer_step(rate)
    classifier.partial_fit(X, y)
    assert len(classifier.loss_curve_) == 1
    assert classifier.trainer_.optimizer.t == steps + steps // 3
    assert set(rates) == {0.001}
    assert classifier.predict_proba(X.astype(np.float64)).dtype == np.float32


@pytest.mark.parametrize(("options", "said"), [
    ({"hidden_layer_sizes": (0,)}, "^hidden_layer_sizes .*must be in"), ({"dropout": 1.0}, "^dropout 1.0: must be in"),
    ({"activation": "rellu"}, "^activation rellu: .*did you mean relu"), ({"max_iter": 0}, "^max_iter 0: must be in"),
    ({"solver": "lbfgs"}, "^solver lbfgs: choose from sgd"), ({"learning_rate_init": -1.0}, "^learning_rate_init -1.0: "),
    ({"n_iter_no_change": -1}, "^n_iter_no_change -1: must be in"), ({"alpha": -1}, "^alpha -1: must be in"),
    ({"learning_rate": "plateau"}, "plateau"), ({"learning_rate": 0.1}, "set learning_rate_init"),
    ({"solver": "sgd", "learning_rate_init": 999, "activation": "leaky_relu"},
     "loss became .*lower learning_rate_init, or set max_grad_norm"),
])  # fmt: skip
def test_a_mistake_is_a_valueerror_that_names_the_parameter(options, said, digits):
    with pytest.raises(ValueError, match=said) as raised:
        ScratchMLPClassifier(**options).fit(digits.train.X.reshape(-1, 784), digits.train.y)
    assert "--" not in str(raised.value)
