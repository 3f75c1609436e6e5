"""The study of pictures: what it makes, and that the committed results, their README and README.md agree."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

import predict
from studies import pictures

RESULTS = ROOT / "results/predict"


@pytest.fixture(scope="module")
def committed():
    return json.loads((RESULTS / "pictures.json").read_text(encoding="utf-8"))


def bag():
    """An image as in the dataset: a bag with a handle."""
    x = np.zeros((28, 28), np.float32)
    x[10:28, 2:26] = np.linspace(0.6, 1, 24)
    x[0:10, 8:20] = 0.8
    x[4:10, 11:17] = 0
    return x


@pytest.mark.parametrize("change", pictures.CHANGES)
def test_a_picture_is_what_its_kind_says(change, tmp_path):
    path = pictures.write_picture(tmp_path, 7, bag(), change, 0)
    again = pictures.write_picture(tmp_path, 7, bag(), change, 0).read_bytes()
    assert path.read_bytes() == again
    assert path.suffix == (".jpg" if change in ("JPEG", pictures.ALL) else ".png")
    p, _ = pictures.make_picture(bag(), change, np.random.default_rng(0))
    assert (p.min() >= 0, p.max() <= 1) == (True, True)
    gray, corners = np.ptp(p, axis=2).max() < 1e-6, p[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert gray == (change in ("scaled up", "inverted", "off-center", "in a corner", "JPEG"))
    if change == "scaled up":
        assert np.median(corners) < 0.01
    elif change not in ("other background", pictures.ALL):
        assert np.median(corners) == 1
    seen = pictures.garment.find(path).image
    assert np.abs(seen - bag()).mean() < 0.15
    assert seen[7, 14] < 0.2  # within the handle one sees the background


def test_pictures_differ_by_seed_and_place(tmp_path):
    places = [pictures.make_picture(bag(), "off-center", np.random.default_rng(seed))[0].shape for seed in range(4)]
    assert len(set(places)) == 4


def test_the_rows_of_a_small_study(capsys):
    rng = np.random.default_rng(0)
    split = SimpleNamespace(X=np.stack([bag()] * 3), y=np.array([8, 8, 0]))
    detector = SimpleNamespace(is_unlike=lambda X: np.arange(len(X)) == 0)
    always_bag = SimpleNamespace(name="CNN", logits=lambda X: np.eye(10)[np.full(len(X), 8)] + rng.random((len(X), 10)) / 9,
                                 shape=(28, 28), garments=True, classes=tuple("0123456789"), temperature=1.0, loss="softmax",
                                 detector=detector)  # fmt: skip
    rows, sheet = pictures.robustness([always_bag], split, SimpleNamespace(pictures=3, split="test", seed=0))
    assert list(rows) == ["all 3 test images", "these 3 images", *pictures.CHANGES]
    for row in rows.values():
        assert row["found"] == {"CNN": pytest.approx(2 / 3), "warned": pytest.approx(1 / 3)}
    assert len(sheet) == 3
    assert len(capsys.readouterr().out.splitlines()) == len(pictures.CHANGES)


def test_what_is_unlike_a_garment():
    test = SimpleNamespace(X=np.stack([bag()] * 2))
    others = pictures.unlike_images(test, 0)
    assert [len(X) for X in others.values()] == [1797, 2000, 2000, 2]
    for X in others.values():
        assert X.shape[1:] == (28, 28)
        assert (X.min(), X.max()) == (pytest.approx(0, abs=1e-3), pytest.approx(1, abs=1e-3))


# ---- the committed results


def test_the_committed_readme_is_made_from_the_committed_numbers(committed):
    assert (RESULTS / "README.md").read_text(encoding="utf-8") == pictures.readme(committed)
    for name in ("contact_sheet.png", "rejection.png"):
        assert (RESULTS / name).stat().st_size > 10_000


def test_the_study_used_the_committed_networks(committed):
    for classifier, row in zip(predict.load(), committed["calibration"].values(), strict=True):
        assert row["temperature"] == classifier.temperature
    assert committed["settings"]["pictures"] == 200
    assert committed["settings"]["split"] == "test"
    assert list(committed["pictures"])[2:] == list(pictures.CHANGES)


def test_the_sentences_of_the_readme_hold(committed):
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    found, plain = (pictures.percent(committed["pictures"][name]["found"]["hybrid"])
                    for name in (pictures.ALL, "these 200 images"))  # fmt: skip
    assert f"the hybrid classifies {found} right, of the same images as they are {plain}" in text
    used, *others = committed["detection"].values()
    assert used["false alarms"] < 0.06
    assert all(value["auroc"] > 0.9 for value in used.values() if isinstance(value, dict))
    assert used["validation"] > max(row["validation"] for row in others)  # by which it was chosen
    assert all(row["ece_calibrated"] < row["ece"] for row in committed["calibration"].values())
    assert len(others) == 6


def test_the_readme_of_the_models_names_their_commands():
    text = (ROOT / "models/README.md").read_text(encoding="utf-8")
    assert re.findall(r"`python (\w+)\.py", text) == ["mlp_from_scratch", "hybrid_train", "hybrid_train"]
