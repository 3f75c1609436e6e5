"""The benchmark: each side does the work it is named for; ratios and their spread. No speed is tested."""

import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

import cnn_feature_extraction as cnn
import data
import hybrid_train
import mlp_from_scratch as mlp
import run
from extras import benchmark

y = np.arange(600) % 10
X = np.random.default_rng(5).random((600, 784), np.float32) / 20 + np.eye(10, 784, dtype=np.float32)[y]
COMMITTED = {path.stem: json.loads(path.read_text()) for path in (ROOT / "results/benchmark").glob("*.json")}
ADDED = {"dataset", "threads", "command", "machine", "versions"}  # by main
S = SimpleNamespace(rounds=2)


@pytest.fixture
def images(digits, monkeypatch):
    """The first 100 digits of each split; the CNNs are small."""
    small = {"channels": (4, 4), "pool_after": (1, 2), "batch_size": 50}
    for module in (cnn, hybrid_train):
        settings = functools.partial(module.settings, **small)
        monkeypatch.setattr(module, "settings", settings)
    splits = (getattr(digits, name) for name in ("train", "val", "test"))
    return data.Dataset("digits", digits.classes, *(data.Split(s.X[:100], s.y[:100], None) for s in splits))


def test_rounds_and_the_committed_ratios():
    order = []
    seconds = benchmark.interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert (order, [len(times) for times in seconds.values()]) == (list("abababab"), [3, 3])
    assert benchmark.compare({"ours": [1, 2, 9], "b": [2, 4, 3]}) == ({"b": 0.5}, {"b": [0.5, 3.0]})
    for name, seconds in (("mlp", "seconds_per_epoch"), ("hybrid", "seconds")):
        results = COMMITTED[name]
        assert (results["ratios"], results["spread"]) == benchmark.compare(results[seconds])
    ratios, _ = benchmark.compare(COMMITTED["cnn"]["seconds"])
    assert COMMITTED["cnn"]["speedup"]["tutorial"] == pytest.approx(1 / ratios["tutorial"])


@pytest.mark.parametrize("name", ["ours", "torch_fused", "torch_tutorial", "scikit_learn"])
def test_each_implementation_trains_and_predicts(name):
    epoch, predict = benchmark.IMPLEMENTATIONS[name](X, y, (32,), 50)
    floor, _ = benchmark.matmul_only(X, y, (32,), 50)
    for _ in range(9):
        epoch()
        floor()  # whose numbers must not overflow, which would be a RuntimeWarning
    assert np.mean(np.asarray(predict()) == y) > 0.8


def test_ours_is_the_plain_network_with_adam(monkeypatch):
    """What PyTorch's and scikit-learn's networks are, too: no normalization, decay, moving average."""
    steps = []
    monkeypatch.setattr(mlp.Trainer, "train_step", lambda self, x, y, lr: steps.append((self, len(x), lr)))
    benchmark.ours(X, y, (256, 128), 128)[0]()
    assert [step[1:] for step in steps] == [(128, 0.001)] * 4 + [(88, 0.001)]
    model, s = steps[0][0].model, steps[0][0].s
    about = (model.name, len(model.params), model.mean, model.std)
    assert about == ("NumPy MLP 784-256-128-10", 235_146, 0, 1)
    off = ("dropout", "label_smoothing", "weight_decay", "l1", "l2", "max_grad_norm", "ema_decay")
    assert {getattr(s, name) for name in off} == {0}
    assert s.optimizer == "adam"


def test_mlp_results_have_the_keys_of_the_committed_ones(images, monkeypatch):
    monkeypatch.setattr(benchmark, "BATCH_SIZE", 50)
    results, committed = benchmark.measure_mlp(images, S), COMMITTED["mlp"]
    assert results.keys() == committed.keys() - ADDED
    assert results["targets"] == committed["targets"]


def test_the_tutorial_trains_the_same_network(images, monkeypatch):
    seen = []
    monkeypatch.setattr(benchmark, "torch_epoch", lambda *arguments: seen.append(arguments))
    benchmark.tutorial(images)()
    network, _, batches = seen[0]
    same = cnn.CNN(SimpleNamespace(**vars(cnn.settings()) | benchmark.TUTORIAL))
    assert [p.shape for p in network.parameters()] == [p.shape for p in same.parameters()]
    (x, labels), _ = batches
    assert (x.shape, labels.shape, len(batches.dataset)) == ((64, 1, 28, 28), (64,), 100)
    assert x.min().item() == pytest.approx(-0.286 / 0.353)


def test_cnn_and_hybrid(images, monkeypatch):
    monkeypatch.setattr(benchmark, "tutorial", lambda images: lambda: None)
    monkeypatch.setattr(benchmark, "TUTORIAL", {"norm": "none"})
    results = benchmark.measure_cnn(images, S)
    assert results.keys() == COMMITTED["cnn"].keys() - ADDED
    low, high = results["spread"]["tutorial"]
    assert 0 < low <= results["speedup"]["tutorial"] <= high < 1
    results = benchmark.measure_hybrid(images, S)
    assert results.keys() == (COMMITTED["hybrid"].keys() | {"dataset"}) - ADDED
    assert results["network"] == "4-4 + 256-128-10"


def test_main_writes_the_results(monkeypatch, tmp_path):
    results = {key: value for key, value in COMMITTED["mlp"].items() if key not in ADDED}
    monkeypatch.setitem(benchmark.MEASURES, "mlp", lambda images, s: results)
    arguments = ["mlp", "--dataset", "digits", "--threads", "1", "--output-dir", str(tmp_path / "out")]
    assert benchmark.main(arguments).keys() == COMMITTED["mlp"].keys()
    assert run.read_json(tmp_path / "out/mlp.json").keys() == COMMITTED["mlp"].keys()
    for wrong, said in ((arguments, "not empty"), (["nlp"], "choose from mlp, cnn"), ([], "choose from mlp")):
        with pytest.raises(run.Error, match=said):
            benchmark.main(wrong)
