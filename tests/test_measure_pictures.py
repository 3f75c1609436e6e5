"""extras/measure_pictures.py and label_errors.py: made pictures, one's own photos, labels, duplicates."""

import csv
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import mlp_from_scratch as mlp
import run
from extras import label_errors, measure_pictures

RESULTS = run.ROOT / "results"


def bag():
    """An image as in the dataset: a bag with a handle."""
    x = np.zeros((28, 28), np.float32)
    x[10:28, 2:26] = np.linspace(0.6, 1, 24)
    x[0:10, 8:20] = 0.8
    x[4:10, 11:17] = 0
    return x


@pytest.mark.parametrize("change", measure_pictures.CHANGES)
def test_a_made_picture_is_what_its_kind_says(change, tmp_path):
    path = measure_pictures.write_picture(tmp_path, 7, bag(), change, 0)
    content = path.read_bytes()
    assert measure_pictures.write_picture(tmp_path, 7, bag(), change, 0).read_bytes() == content
    assert path.name == ("007.jpg" if change in ("JPEG", measure_pictures.ALL) else "007.png")
    picture = np.asarray(Image.open(path), float) / 255
    is_gray = change in ("scaled up", "inverted", "cut out", "off-center", "in a corner", "JPEG")
    assert (np.ptp(picture[..., :3], axis=2).max() == 0) == is_gray
    assert picture.shape[2] == (4 if change == "cut out" else 3)
    corner = np.median(picture[[0, 0, -1, -1], [0, -1, 0, -1]])
    if change not in ("other background", measure_pictures.ALL):
        is_black = change in ("scaled up", "cut out")
        assert corner == pytest.approx(0 if is_black else 1, abs=0.01)
    seen = measure_pictures.garment.find(path).image
    assert np.abs(seen - bag()).mean() < 0.15
    assert seen[7, 14] < 0.2  # within the handle one sees the background


def test_the_calibration_of_a_small_measurement():
    y = np.array([8, 8, 0])
    logits = 4 * np.eye(10)[[8, 8, 8]] * np.array([[1.0], [1.0], [0.1]])
    softmax = mlp.LOSSES["softmax"][1]
    network = SimpleNamespace(temperature=1.0, probabilities=softmax)
    assert measure_pictures.accuracy(softmax(logits), y) == pytest.approx({"right": 2 / 3, "warned": 1 / 3})
    row = measure_pictures.calibration(network, logits, y)
    assert (row["temperature"], row["ece"]) == (1.0, row["ece_calibrated"])
    assert row["accuracy"] == pytest.approx({"0": 2 / 3, "5": 2 / 3, "10": 2 / 3, "20": 1, "30": 1})


# ---- own photos


def test_a_folder_of_photos_is_measured(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, name in enumerate("abcd"):
        picture = Image.new("RGB", (200, 200), "white")
        picture.paste((60, 60, 60 + i), (60, 20 + i, 140, 180))
        picture.save(folder / f"{name}.png")
    lines = ["file,group,label", "d.png,none,hat", "a.png,one,Bag", "c.png,two,Dress", "b.png,one,Bag"]
    (folder / "labels.csv").write_text("\n".join(lines))
    output = str(tmp_path / "out")
    results = measure_pictures.main([str(folder), "--output-dir", output])
    assert results["photos"] == run.read_json(f"{output}/photos.json")["photos"]
    everything = results["photos"]["all"]
    assert {group: row["number"] for group, row in everything.items()} == {
        "one": 2,
        "two": 1,
        "none": 1,
        "all": 4,
    }
    assert {group: row["right"]["number"] for group, row in everything.items()} == {
        "one": 2,
        "two": 1,
        "none": 0,
        "all": 3,
    }
    assert list(results["photos"]["odd"]) == ["one", "none", "all"]
    assert measure_pictures.table(everything).count("\n") == 6
    (folder / "labels.csv").write_text("name,label\na.png,Bag")
    with pytest.raises(run.Error, match=r"labels\.csv"):
        measure_pictures.main([str(folder)])


def test_shares_of_a_few_photos():
    groups = np.array(["one", "one", "one", "none"])
    right, warned = np.array([1, 0, 0, 0], bool), np.array([0, 1, 0, 1], bool)
    summary = measure_pictures.summarize(groups, groups != "none", right, warned)
    assert list(summary) == ["one", "none", "all"]
    row = summary["one"]
    assert row["right"] == pytest.approx(
        {"share": 1 / 3, "low": 0.0615, "high": 0.7923, "number": 3}, abs=1e-3
    )
    shares = [row[name]["share"] for name in ("warned_wrong", "warned_right", "right_not_warned")]
    assert shares == [0.5, 0, 0.5]
    assert summary["none"]["right"] == {"share": None, "number": 0}
    assert summary["all"]["warned_wrong"]["share"] == pytest.approx(2 / 3)


# ---- label_errors.py


def test_margins_are_those_of_a_small_example():
    p = np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    margin, other = label_errors.margins(p, np.array([0, 2, 2]))
    assert margin == pytest.approx([0.5, -0.6, 0.7])
    assert other.tolist() == [1, 0, 0]


def test_duplicates_are_found_and_no_others():
    rng = np.random.default_rng(0)
    X, X_test = rng.random((40, 28, 28), np.float32), rng.random((20, 28, 28), np.float32)
    X_test[3] = X[7]
    X_test[5] = np.clip(X[9] + 0.02 * (-1) ** np.arange(28), 0, 1)  # a near one
    X_test[6] = np.clip(X[9] + 0.2 * (-1) ** np.arange(28), 0, 1)
    y, y_test = np.zeros(40, int), np.arange(20)
    pairs, differences = label_errors.duplicates(X, X_test, 0.05)
    assert pairs.tolist() == [[7, 3], [9, 5]]
    assert differences == pytest.approx([0, 0.02], abs=1e-3)
    counts = label_errors.count_duplicates(X, y, X_test, y_test, 0.05)
    assert counts == {
        "exact": {"pairs": 1, "test_images": 1, "pairs_with_other_label": 1},
        "near": {"pairs": 2, "test_images": 2, "pairs_with_other_label": 2},
    }


# ---- the committed results


def test_the_committed_tables_are_those_of_the_measured_photos():
    lines = (RESULTS / "predict/README.md").read_text(encoding="utf-8").splitlines()
    photos = run.read_json(RESULTS / "predict/photos.json")["photos"]
    for part in ("all", "even", "odd"):
        assert {*measure_pictures.table(photos[part]).splitlines()} <= {*lines}


def test_the_committed_table_is_that_of_the_made_pictures():
    lines = (RESULTS / "predict/README.md").read_text(encoding="utf-8").splitlines()
    committed = run.read_json(RESULTS / "predict/pictures.json")
    assert list(committed["pictures"])[2:] == list(measure_pictures.CHANGES)
    for name, row in committed["pictures"].items():
        shares = [f"{100 * share:.1f} %" for share in row.values()]
        (line,) = (line for line in lines if re.match(rf"\| {re.escape(name)}[ :]", line))
        assert " | ".join(["", *shares]) in line
    row = committed["calibration"]
    numbers = [f"{row['temperature']:.3f}", f"{row['ece']:.4f}", f"{row['ece_calibrated']:.4f}"]
    accuracies = [f"{100 * share:.1f} %" for share in row["accuracy"].values()]
    assert f"| {' | '.join([*numbers, *accuracies])} |" in lines


def test_the_committed_table_has_the_margins_of_the_committed_probabilities(real):
    with open(RESULTS / "label_errors/label_errors.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 100
    p = label_errors.read(label_errors.PROBABILITIES, real.train)
    assert 0.93 < run.accuracy(p, real.train.y) < 0.945  # of images that the networks were not trained on
    margin, _ = label_errors.margins(p, real.train.y)
    first = next(row for row in rows if row["split"] == "train")
    i = int(np.argmin(margin))
    assert (int(first["index"]), first["label"]) == (real.train.indices[i], real.classes[real.train.y[i]])
