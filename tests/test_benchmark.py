"""The benchmark: that every side does the work it is named for, and the arithmetic of its ratios. No speed is tested."""

import json

import numpy as np
import pytest
import torch
from conftest import one_line
from torch import nn

import benchmark
import cnn_feature_extraction as cnn
import data
from support import settings

RNG = np.random.default_rng(5)
y = np.arange(600) % 10
X = (0.05 * RNG.random((600, 784)) + np.eye(10).repeat(79, axis=1)[y][:, :784]).astype(np.float32)  # easy to tell apart


@pytest.mark.parametrize("name", [name for name in benchmark.IMPLEMENTATIONS if name != "matmul_only"])
def test_each_side_trains_and_predicts(name):
    epoch, predict = benchmark.IMPLEMENTATIONS[name](X, y, (32,), 50)
    before = np.mean(np.asarray(predict()) == y) if name != "scikit_learn" else 0  # which cannot predict yet
    for _ in range(6):
        epoch()
    assert np.mean(np.asarray(predict()) == y) > max(0.9, before)


def test_the_mlps_part_names_its_dataset(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "alone", lambda name, s: {"seconds": 1.0, "peak_memory_mib": 2.0})
    found = benchmark.mlp(settings.load(benchmark, data, dataset="digits", rounds=1, table_rounds=0))
    assert found["dataset"] == "digits"
    assert capsys.readouterr().out.startswith("digits: 784-256-128-10")
    assert set(found["ratios"]) == set(benchmark.TARGETS)


def test_the_products_alone():
    epoch, predict = benchmark.products(X, y, (32, 16), 50)
    with np.errstate(all="raise"):
        for _ in range(20):
            epoch()
    assert predict is None


def test_ratios():
    seconds = {"ours": [1.0, 2.0, 9.0], "torch_fused": [2.0, 4.0, 3.0]}
    assert benchmark.ratios(seconds) == {"torch_fused": 0.5}
    calls = {"a": lambda: None, "b": lambda: None}
    assert {name: len(times) for name, times in benchmark.interleave(calls, 3).items()} == {"a": 3, "b": 3}


def test_goals_and_names_are_of_sides():
    assert set(benchmark.TARGETS) == set(benchmark.IMPLEMENTATIONS) - {"ours"}
    assert set(benchmark.NAMES) == set(benchmark.IMPLEMENTATIONS) | {"tutorial", "torch_reference"}


def test_a_wrong_part_is_one_line(run_script):
    assert "name what to measure" in one_line(run_script("benchmark", "nlp"), 2)
    assert "name what to measure" in one_line(run_script("benchmark"), 2)


def test_a_folder_that_cannot_be_is_refused_before_any_work(run_script, tmp_path):
    (tmp_path / "taken").write_text("a file")
    refused = one_line(run_script("benchmark", "cnn", "--output-dir", "taken"), 1)
    assert "cannot write to taken" in refused
    assert "--output-dir" in refused


def test_the_tutorials_network_is_r0s_and_learns(digits):
    pixels = np.round(255 * digits.train.X).astype(np.uint8)
    epoch, accuracy = benchmark.tutorial_cnn(pixels[:640], digits.train.y[:640], pixels[:300], digits.train.y[:300])
    (network,) = (cell.cell_contents for cell in epoch.__closure__ if isinstance(cell.cell_contents, nn.Module)
                  and not isinstance(cell.cell_contents, nn.CrossEntropyLoss))  # fmt: skip
    assert sum(p.numel() for p in network.parameters()) == 1_614_090
    before = accuracy()
    epoch()
    epoch()
    assert accuracy() > max(before, 0.3)


def test_the_profile_tells_convolutions_from_other_layers():
    x = torch.rand(32, 8, 28, 28, requires_grad=True)
    conv, norm = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)

    def passes(*modules):
        def epoch():
            for module in modules:
                module(x).sum().backward()

        return benchmark.profile_epoch(epoch)

    seconds, of_conv = passes(conv)
    assert seconds > 0
    assert 0 < of_conv["convolutions"] == of_conv["layers"] < 1
    _, of_norm = passes(norm)
    assert of_norm["convolutions"] == 0 < of_norm["layers"] < 1
    _, of_others = passes(nn.ReLU(), nn.MaxPool2d(2), nn.Sequential(nn.Flatten(), nn.Linear(8 * 28 * 28, 5)))
    assert of_others["convolutions"] == 0 < of_others["layers"]


def test_every_pass_of_the_default_network_has_a_name_in_the_profile():
    s = settings.load(cnn, batch_size=16, precision="bfloat16")  # by which some events stand inside others of their name
    training, epoch = benchmark.ours_cnn(torch.rand(32, 1, 28, 28), torch.arange(32) % 10, s)
    kinds = {type(module) for module in training.model.modules() if not list(module.children())}
    assert kinds == {nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d, nn.ReLU, nn.Flatten, nn.Linear}  # as in benchmark.PASSES
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        epoch()
    counts = {event.key.split(": ")[-1]: event.count for event in profile.key_averages()}
    found = {name: counts[name] // 2 for name in benchmark.PASSES["layers"]}  # in each of two steps
    assert list(found.values()) == [5, 5, 3, 3, 5, 5, 5, 5, 1, 1]


def test_the_cnn_and_the_hybrid(run_script, real_folder, tmp_path):
    flags = ("--images", 1000, "--rounds", 1, "--output-dir", "out")
    for part in ("cnn", "hybrid"):
        done = run_script("benchmark", part, *flags, real_folder=real_folder)
        assert (done.returncode, done.stderr) == (0, "")
    found = json.loads((tmp_path / "out/cnn.json").read_text())
    assert found["faster"]["tutorial"] == pytest.approx(found["seconds"]["tutorial"][0] / found["seconds"]["ours"][0])
    shares = found["shares"]
    assert 0 < shares["convolutions"] < shares["layers"] < 1
    assert shares["outside"] == pytest.approx(1 - shares["layers"])
    assert json.loads((tmp_path / "out/hybrid.json").read_text())["ratios"]["torch_reference"] > 0
    assert (tmp_path / "out/cnn.png").exists()


@pytest.mark.parametrize("best", [0.2, 1.1])
def test_the_race(best, monkeypatch):
    """Ours, small and on the digits, beside a tutorial whose accuracies are known: within reach, and out of it."""
    monkeypatch.setattr(cnn, "CHANNELS", (4, 4, 4, 4, 4))
    monkeypatch.setattr(cnn, "EPOCHS", 4)
    told = iter([0.1] * 6 + [best] + [0.15] * 13)
    monkeypatch.setattr(benchmark, "tutorial_cnn", lambda *images: (lambda: None, lambda: next(told)))
    found = benchmark.race(settings.load(benchmark, data, dataset="digits"))
    assert [len(rows) for rows in found["rows"].values()] == [4, 20]
    assert found["accuracy"] == best
    assert found["seconds"]["tutorial"] == found["rows"]["tutorial"][6][0] > found["rows"]["tutorial"][5][0]
    if best > 1:
        assert found["seconds"]["ours"] is found["ratio"] is None
    else:
        first = next(seconds for seconds, right in found["rows"]["ours"] if right >= best)
        assert found["seconds"]["ours"] == first
        assert found["ratio"] == pytest.approx(first / found["seconds"]["tutorial"])
