"""The scripts from a notebook: the README's lines, main under Jupyter's flags, and tour.ipynb."""

import dataclasses
import json
import re
import signal
import sys

import pytest
from conftest import ROOT

import data
import mlp_from_scratch as m
import run


@pytest.fixture
def jupyter(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/lib/ipykernel_launcher.py", "-f", "/run/kernel-1.json"])
    monkeypatch.chdir(tmp_path)


def test_the_readmes_lines_train_and_draw(jupyter, tmp_path, digits):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- notebook -->\s*```python\n(.*?)```", readme, re.DOTALL)
    names = {}
    exec(block[1], names)
    assert names["history"]["epoch"] == [1, 2, 3]
    loss, _ = run.cross_entropy(names["model"].predict_logits(digits.val.X), digits.val.y)
    assert names["history"]["val_loss"][-1] == pytest.approx(loss, rel=1e-5)
    (picture,) = tmp_path.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_main_returns_the_run_and_leaves_nothing_behind(jupyter, tmp_path, monkeypatch):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(m, "EPOCHS", 2)
    monkeypatch.setattr(m, "HIDDEN", (8,))
    monkeypatch.setattr(data, "DATASET", "digits")
    monkeypatch.setattr(run, "FIGURES", False)
    monkeypatch.setattr(run, "ROOT", tmp_path)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(m, "train", interrupted)
        m.main([])
    result = m.main([])
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert result.history["epoch"] == [1, 2]
    assert result.folder.parent == tmp_path / "runs/mlp_from_scratch"
    assert result.metrics["test_loss"] == run.read_json(result.folder / "metrics.json")["test_loss"]
    assert result.model.name == "NumPy MLP 784-8-10"


CELLS = [c for c in json.loads((ROOT / "tour.ipynb").read_text("utf-8"))["cells"] if c["cell_type"] == "code"]


def test_the_tour_runs_on_few_images(monkeypatch, digits, capsys):
    few = {name: getattr(digits, name) for name in ("train", "val", "test")}
    few = {name: data.Split(split.X[:600], split.y[:600], split.indices[:600]) for name, split in few.items()}
    small = dataclasses.replace(digits, **few)
    monkeypatch.setattr(data, "load", lambda **options: small)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(ROOT)
    names = {}
    for cell in CELLS:
        exec("".join(line for line in cell["source"] if not line.startswith("%")), names)
    assert min(names["accuracies"].values()) > 0.6
    assert names["zeros"]["val_accuracy"][-1] < 0.2 < 0.5 < names["he"]["val_accuracy"][-1]
    lines = capsys.readouterr().out.splitlines()
    pair = [float(line.split()[-1]) for line in lines if line.startswith(("backward", "central"))]
    assert pair[0] == pytest.approx(pair[1], rel=1e-5)


def test_the_tours_outputs_are_committed_and_small():
    assert (ROOT / "tour.ipynb").stat().st_size < 1_000_000
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert all(cell["execution_count"] for cell in CELLS)
    assert not any(output["output_type"] == "error" for output in outputs)
    assert any("nan" in "".join(output.get("text", ())) for output in outputs)  # at a learning rate of 10
    assert sum("image/png" in output.get("data", ()) for output in outputs) >= 6
