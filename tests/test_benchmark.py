"""The benchmark: each implementation does the work it is named for; the arithmetic of ratios, spread and tables.

No speed is tested.
"""

import ast
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, one_line, succeeded
from torch import nn

import benchmark
import cnn_feature_extraction
import data
from benchmarks import cnn, mlp, timing
from studies.tables_benchmark import benchmark_readme
from support import settings

RNG = np.random.default_rng(5)
y = np.arange(600) % 10
X = (0.05 * RNG.random((600, 784)) + np.eye(10).repeat(79, axis=1)[y][:, :784]).astype(np.float32)  # easy to tell apart


# ---- timing


def test_ratio_is_the_median_of_the_rounds_and_spread_its_range():
    seconds = {"ours": [1.0, 2.0, 9.0], "torch_fused": [2.0, 4.0, 3.0]}
    assert timing.ratios(seconds) == {"torch_fused": 0.5}
    assert timing.spread(seconds) == {"torch_fused": [0.5, 3.0]}
    assert timing.with_spread(0.5, [0.5, 3.0]) == "0.50 (0.50 to 3.00)"


def test_interleave_calls_in_turn_and_does_not_count_the_first_round():
    order = []
    seconds = timing.interleave({name: lambda name=name: order.append(name) for name in "ab"}, 3)
    assert order == list("abababab")
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_cold_start_is_a_process_of_its_own(monkeypatch):
    s = settings.load(benchmark, data, dataset="digits", quick=True)
    row = timing.cold_start("ours", s, repeats=2)
    assert row["spread"][0] <= row["seconds"] <= row["spread"][1]
    assert row["seconds"] > 0.05
    if sys.platform == "linux":
        assert 30 < row["peak_memory_mib"] < 400  # without PyTorch, which takes more
    with pytest.raises(timing.BenchmarkError, match=r"^--cold-start nothing: .*choose from"):
        timing.cold_start("nothing", s, repeats=1)


def test_cold_start_of_the_numpy_mlp_does_not_load_pytorch():
    code = """import sys, benchmark
s = benchmark.settings.load(benchmark, benchmark.data, dataset="digits", quick=True)
benchmark.mlp.train_one_epoch("ours", s)
print(sorted({"torch", "torchvision", "matplotlib"} & set(sys.modules)))"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert succeeded(result) == "[]\n"


def test_importing_sets_no_environment_variable():
    code = "import os; before = set(os.environ); import benchmark, benchmarks.cnn; print(sorted(set(os.environ) - before))"
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "SYSTEMROOT") if name in os.environ}  # not this process's
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True, check=False)
    assert set(ast.literal_eval(succeeded(result))) <= {"TORCHINDUCTOR_CACHE_DIR", "KMP_DUPLICATE_LIB_OK"}  # PyTorch's own


# ---- MLP


@pytest.mark.parametrize("name", [name for name in mlp.IMPLEMENTATIONS if name != "matmul_only"])
def test_each_implementation_trains_and_predicts(name):
    epoch, predict = mlp.IMPLEMENTATIONS[name](X, y, (32,), 50)
    before = np.mean(np.asarray(predict()) == y) if name != "scikit_learn" else 0  # which cannot predict yet
    for _ in range(6):
        epoch()
    assert np.mean(np.asarray(predict()) == y) > max(0.9, before)


def test_ours_is_the_plain_network_with_adam_at_a_constant_rate(monkeypatch):
    """What PyTorch's and scikit-learn's networks are, too: no normalization, decay, moving average, augmentation."""
    import mlp_from_scratch

    trainers = []
    monkeypatch.setattr(mlp_from_scratch.Trainer, "train_epoch", lambda self, *ignored: trainers.append(self))
    epoch, _ = mlp.ours(X, y, (256, 128), 128)
    epoch()
    (trainer,) = trainers
    rates = [trainer.lr_of_step(step) for step in range(12)]
    assert rates == [0.001] * 12
    assert (trainer.model.name, len(trainer.model.params)) == ("784-256-128-10", 235_146)
    assert (trainer.s.optimizer, trainer.s.batch_size, trainer.s.weight_decay) == ("adam", 128, 0)
    assert (trainer.ema, trainer.plateau, trainer.transform, trainer.monitor) == (None, None, None, None)


def test_matmul_only_neither_overflows_nor_predicts():
    epoch, predict = mlp.matmul_only(X, y, (32, 16), 50)
    with np.errstate(all="raise"):
        for _ in range(20):
            epoch()
    assert predict is None


@pytest.fixture
def quick_mlp(monkeypatch, capsys):
    """(content of mlp.json for the digits, options of each call of mlp.compare, what is printed), without cold starts."""
    monkeypatch.setattr(mlp, "cold_start", lambda *ignored: {"seconds": 1.0, "spread": [1.0, 1.0], "peak_memory_mib": 2.0})
    monkeypatch.setattr(mlp, "TABLES", {"batch_size": (64, 128), "hidden": ((16, 8), (256, 128))})
    calls, compare = [], mlp.compare

    def recorded(*arguments, **options):
        calls.append(options)
        return compare(*arguments, **options)

    monkeypatch.setattr(mlp, "compare", recorded)
    results = mlp.measure_mlp(settings.load(benchmark, data, dataset="digits", rounds=2, table_rounds=1))
    return results, calls, capsys.readouterr().out


def test_mlp_results(quick_mlp):
    results, _, printed = quick_mlp
    assert results["dataset"] == "digits"
    assert set(results["ratios"]) == set(results["spread"]) == set(mlp.IMPLEMENTATIONS) - {"ours"}
    assert set(results["targets"]) == {"torch_fused", "torch_tutorial", "scikit_learn"}  # none for the lower bound
    for name, (low, high) in results["spread"].items():
        seconds = results["seconds_per_epoch"]
        ratios = [a / b for a, b in zip(seconds["ours"], seconds[name], strict=True)]
        assert (low, high) == (min(ratios), max(ratios))
        assert results["ratios"][name] == pytest.approx(sum(ratios) / 2)
    assert printed.startswith("digits: NumPy MLP 784-256-128-10, batch size 128, 1,")
    low, high = results["spread"]["torch_fused"]
    assert f"{results['ratios']['torch_fused']:.2f} ({low:.2f} to {high:.2f})" in printed


def test_the_tables_do_not_measure_the_default_network_again(quick_mlp):
    results, calls, _ = quick_mlp
    assert calls == [{}, {"batch_size": 64}, {"hidden": (16, 8)}]
    tables = results["tables"]
    assert list(tables["batch_size"]) == ["batch 64", "batch 128"]
    assert list(tables["hidden"]) == ["784-16-8-10", "784-256-128-10"]
    assert tables["batch_size"]["batch 128"] == tables["hidden"]["784-256-128-10"]
    for row in (tables["batch_size"]["batch 128"], tables["batch_size"]["batch 64"]):
        for name in ("torch_fused", "matmul_only"):
            low, high = row["spread"][name]
            assert low <= row[f"against_{name}"] <= high
    for name in ("torch_fused", "matmul_only"):
        assert tables["batch_size"]["batch 128"][f"against_{name}"] == results["ratios"][name]


# ---- CNN and hybrid


def test_the_tutorial_trains_the_same_network_and_learns(digits):
    same = settings.load(cnn_feature_extraction, **cnn.TUTORIAL, precision="float32")
    trainer, _ = cnn.ours(torch.rand(2, 1, 28, 28), torch.arange(2), same)
    shapes = [tuple(p.shape) for p in cnn.tutorial_network().parameters()]
    assert [tuple(p.shape) for p in trainer.model.parameters()] == shapes
    assert sum(map(np.prod, shapes)) == 1_614_090
    pixels = cnn.as_bytes(digits.train.X)
    epoch, accuracy = cnn.tutorial(pixels[:640], digits.train.y[:640], pixels[:300], digits.train.y[:300])
    before = accuracy()
    epoch()
    epoch()
    assert accuracy() > max(before, 0.3)


def test_the_profile_separates_convolutions_from_other_layers():
    x = torch.rand(32, 8, 28, 28, requires_grad=True)
    conv, norm = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)

    def shares(*modules):
        def epoch():
            for module in modules:
                module(x).sum().backward()

        seconds, fractions = cnn.profile_epoch(epoch)
        assert seconds > 0
        return fractions

    fractions = shares(conv)
    assert 0 < fractions["convolutions"] == fractions["layers"] < 1
    fractions = shares(norm)
    assert fractions["convolutions"] == 0 < fractions["layers"] < 1
    fractions = shares(nn.ReLU(), nn.MaxPool2d(2), nn.Sequential(nn.Flatten(), nn.Linear(8 * 28 * 28, 5)))
    assert fractions["convolutions"] == 0 < fractions["layers"]


def test_the_profile_knows_every_layer_of_the_default_network():
    s = settings.load(cnn_feature_extraction, batch_size=16, precision="bfloat16")  # in which some events contain others
    trainer, epoch = cnn.ours(torch.rand(32, 1, 28, 28), torch.arange(32) % 10, s)
    kinds = {type(module) for module in trainer.model.modules() if not list(module.children())}
    assert kinds == {nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d, nn.ReLU, nn.Flatten, nn.Linear}  # as in PASSES
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        epoch()
    counts = {event.key.split(": ")[-1]: event.count for event in profile.key_averages()}
    assert [counts[name] // 2 for name in cnn.PASSES["layers"]] == [5, 5, 3, 3, 5, 5, 5, 5, 1, 1]  # in each of two steps


def test_precision_is_resolved_without_changing_the_callers_settings():
    s = settings.load(cnn_feature_extraction)
    assert cnn.resolve_precision(s).precision in ("float32", "bfloat16")
    assert s.precision == "auto"


def test_the_torch_reference_is_the_same_mlp_with_the_same_learning_rate(digits):
    import hybrid_train

    s = settings.load(hybrid_train, cnn_feature_extraction, precision="float32")
    head, reference = hybrid_train.new_head(digits, s), cnn.TorchReference((1728, *s.head_hidden, 10), s.joint_learning_rate)
    assert sum(p.numel() for p in reference.parameters()) == len(head.mlp.params)
    reference(torch.rand(4, 1728)).sum().backward()
    reference.step(0.5)
    assert reference.optimizer.param_groups[0]["lr"] == 0.5 * head.learning_rate
    assert all(p.grad is None for p in reference.parameters())


@pytest.mark.parametrize("best", [0.2, 1.1])
def test_time_to_accuracy(best, monkeypatch):
    """Ours, small and on the digits, and a tutorial whose accuracies are given: within reach, and out of reach."""
    monkeypatch.setattr(cnn_feature_extraction, "CHANNELS", (4, 4, 4, 4, 4))
    monkeypatch.setattr(cnn, "OUR_EPOCHS", 4)
    evaluated, evaluate = [], cnn_feature_extraction.Trainer.evaluate
    monkeypatch.setattr(cnn_feature_extraction.Trainer, "evaluate",
                        lambda self, X, y: (evaluated.append(len(y)), evaluate(self, X, y))[1])  # fmt: skip
    accuracies = iter([0.1] * 6 + [best] + [0.15] * 13)
    monkeypatch.setattr(cnn, "tutorial", lambda *images: (lambda: None, lambda: next(accuracies)))
    results = cnn.time_to_accuracy(settings.load(benchmark, data, dataset="digits"))
    assert [len(rows) for rows in results["rows"].values()] == [4, 20]
    assert evaluated == [1, 308] * 4  # no training images but one: the tutorial evaluates none
    assert results["accuracy"] == best
    assert results["seconds"]["tutorial"] == results["rows"]["tutorial"][6][0] > results["rows"]["tutorial"][5][0]
    if best > 1:
        assert results["seconds"]["ours"] is results["ratio"] is None
    else:
        first = next(seconds for seconds, accuracy in results["rows"]["ours"] if accuracy >= best)
        assert results["seconds"]["ours"] == first
        assert results["ratio"] == pytest.approx(first / results["seconds"]["tutorial"])


def test_the_cnn_and_the_hybrid(run_script, real_folder, tmp_path):
    for name in ("cnn", "hybrid"):
        done = run_script("benchmark", name, "--quick", "--output-dir", "out", real_folder=real_folder)
        assert "not representative" in succeeded(done)
    results = json.loads((tmp_path / "out/cnn.json").read_text())
    assert results["speedup"]["tutorial"] == pytest.approx(results["seconds"]["tutorial"][0] / results["seconds"]["ours"][0])
    low, high = results["spread"]["tutorial"]
    assert low <= results["speedup"]["tutorial"] * (1 + 1e-9)
    assert high >= results["speedup"]["tutorial"] * (1 - 1e-9)
    shares = results["shares"]
    assert 0 < shares["convolutions"] < shares["layers"] < 1
    assert shares["outside"] == pytest.approx(1 - shares["layers"])
    assert json.loads((tmp_path / "out/hybrid.json").read_text())["ratios"]["torch_reference"] > 0
    assert (tmp_path / "out/cnn.png").exists()


# ---- the command line, names, README


@pytest.mark.parametrize(("arguments", "message"), [
    (["nlp"], "unknown benchmark nlp (did you mean mlp?); choose from mlp, cnn, hybrid, race"),
    ([], "no benchmark named; choose from mlp, cnn, hybrid, race"),
    (["mlp", "--round", 3], "unknown flag --round (did you mean --rounds?)"),
    (["mlp", "--threads", 0], "--threads 0: must be in [1, 1024]"),
])  # fmt: skip
def test_a_mistake_is_one_line(run_script, arguments, message):
    assert message in one_line(run_script("benchmark", *arguments), 2)


def test_an_impossible_folder_is_refused_before_any_work(run_script, tmp_path):
    (tmp_path / "taken").write_text("a file")
    assert "cannot write to taken" in (line := one_line(run_script("benchmark", "cnn", "--output-dir", "taken"), 1))
    assert "--output-dir" in line


def test_quick_does_not_change_the_callers_settings():
    s = settings.load(benchmark, data)
    quick = benchmark.quick_settings(s)
    assert (quick.rounds, quick.table_rounds, quick.images) == (1, 1, 1000)
    assert (s.rounds, s.table_rounds, s.images) == (7, 3, 4096)
    assert benchmark.quick_settings(SimpleNamespace(**vars(s) | {"table_rounds": 0})).table_rounds == 0


def test_everything_measured_has_a_name_and_every_target_is_measured():
    assert set(timing.NAMES) == set(mlp.IMPLEMENTATIONS) | {"tutorial", "torch_reference"}
    assert set(timing.TARGETS) == set(timing.NAMES) - {"ours", "matmul_only", "tutorial"}


def test_the_committed_ratios_follow_from_the_committed_seconds():
    for folder in ("benchmark", "benchmark_xeon"):
        results = {path.stem: json.loads(path.read_text()) for path in (ROOT / "results" / folder).glob("*.json")}
        for name, seconds in (("mlp", "seconds_per_epoch"), ("hybrid", "seconds")):
            assert results[name]["ratios"] == timing.ratios(results[name][seconds])
            assert results[name]["spread"] == timing.spread(results[name][seconds])
        ratio = timing.ratios(results["cnn"]["seconds"])["tutorial"]
        assert results["cnn"]["speedup"]["tutorial"] == pytest.approx(1 / ratio)


@pytest.mark.parametrize("name", ["mlp", "cnn", "race"])
def test_the_committed_results_can_be_drawn(name):
    results = json.loads((ROOT / "results/benchmark" / f"{name}.json").read_text())
    assert benchmark.draw(name, results).axes
    assert benchmark.draw("hybrid", {}) is None


def test_the_readme_is_made_from_the_committed_results(tmp_path):
    committed = (ROOT / "results/benchmark/README.md").read_text(encoding="utf-8")
    assert committed == benchmark_readme()
    for folder in ("benchmark", "benchmark_xeon"):
        (tmp_path / folder).mkdir()
        for path in (ROOT / "results" / folder).glob("*.json"):
            (tmp_path / folder / path.name).write_text(path.read_text())
    assert benchmark_readme(tmp_path) == committed
    path = tmp_path / "benchmark/mlp.json"
    results = json.loads(path.read_text())
    results["ratios"]["scikit_learn"] = 0.123
    ratio = results["tables"]["batch_size"]["batch 128"]["against_torch_fused"]
    for row in (results["tables"]["batch_size"]["batch 128"], results["tables"]["hidden"]["784-256-128-10"]):
        row["spread"] = {"torch_fused": [0.701, 0.906], "matmul_only": [1, 2]}
    path.write_text(json.dumps(results))
    changed = benchmark_readme(tmp_path)
    assert "| scikit-learn MLPClassifier | 0.12 (" in changed
    assert "| scikit-learn MLPClassifier | AMD EPYC, Intel Xeon @ 2.50GHz | - |" in changed  # now reached on both
    assert f"| batch size 128 | {ratio:.2f} (0.70 to 0.91) |" in changed
    assert "/tmp" not in committed


def test_the_files_beside_the_readme_exist():
    folder = ROOT / "results/benchmark"
    names = [link.split(")")[0] for link in (folder / "README.md").read_text(encoding="utf-8").split("](")[1:]]
    assert len(names) == 10
    assert all((folder / name).is_file() for name in names)
