"""docs/faults.md names tests that exist; and three of them."""

import itertools
import re

import numpy as np
import pytest
from conftest import ROOT

import data
import mlp_from_scratch as mlp
from support import files, runs, settings

PAGE = (ROOT / "docs/faults.md").read_text(encoding="utf-8")
SOURCES = [path for path in ROOT.rglob("*.py") if not {"tests", ".venv", "venv"} & set(path.relative_to(ROOT).parts)]


def test_every_fault_has_a_test():
    tables = [[line for line in part.splitlines() if line.startswith("| ")][2:] for part in PAGE.split("\n## ")]
    assert [len(rows) for rows in tables] == [15, 24]
    for row in itertools.chain(*tables):
        tests = re.findall(r"`(tests/\w+\.py)::(\w+)`", row)
        assert tests, row
        for path, name in tests:
            assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8"), name


def test_pixels_are_standardized_by_the_training_images_alone(digits, tmp_path):
    s = settings.load(mlp, data, runs, epochs=1, hidden=(4,), figures=False, output_dir=str(tmp_path / "run"))
    mlp.run(s, digits)
    _, metadata = files.load_weights(tmp_path / "run/weights.safetensors")
    X = digits.train.X.astype(np.float64)
    assert (metadata["mean"], metadata["std"]) == pytest.approx((X.mean(), X.std()), rel=1e-6)
    both = np.concatenate([X, digits.val.X])
    assert metadata["mean"] != pytest.approx(both.mean(), rel=1e-6)


def test_no_screen_is_needed():
    assert len(SOURCES) > 40
    for path in SOURCES:
        assert not re.search(r"pyplot|plt\.show", path.read_text(encoding="utf-8").replace("not pyplot", "")), path


def test_the_requirements_can_be_installed():
    lines = (ROOT / "requirements.txt").read_bytes().decode("ascii").splitlines()
    names = [re.match(r"[\w-]+", line)[0] for line in lines]
    assert "scikit-learn" in names
    assert "sklearn" not in names
    assert names.index("torch") + 1 == names.index("torchvision")  # pip chooses two that fit each other
