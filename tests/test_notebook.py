"""The scripts from a notebook: the README's lines, and main under Jupyter's flags."""

import re
import signal

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
    assert result.model.name == "784-8-10"
