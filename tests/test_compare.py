"""experiments.py compare: tables, curves and verdicts of planted runs."""

import csv
import json

import numpy as np
import pytest
from conftest import crowded_texts

import experiments
from studies import compare
from studies.statistics import paired_t
from support import files, runs


def planted(folder, accuracies, probabilities=None):
    """A run's folder with one seed, or FOLDER/seed_0 and so on; accuracies: {seed: test accuracy}."""
    settings = {"seed": 0, "dataset": "digits", "split_seed": 0, "quick": False, "val_fraction": 0.2}
    common = {"model": "NumPy MLP 784-8-10", "dataset": "digits", "command": "python mlp_from_scratch.py", "versions": {},
              "machine": {}}  # fmt: skip
    several = len(accuracies) > 1
    for seed, accuracy in accuracies.items():
        path = folder / f"seed_{seed}" if several else folder
        path.mkdir(parents=True)
        metrics = common | {"settings": settings | {"seed": seed}, "val_accuracy": 0.9, "test_accuracy": accuracy}
        (path / "metrics.json").write_text(json.dumps(metrics))
        rows = [dict.fromkeys(runs.COLUMNS, 0.8 + 0.01 * epoch + 0.001 * seed) | {"epoch": epoch} for epoch in (1, 2, 3)]
        lines = [",".join(runs.COLUMNS), *(",".join(map(str, row.values())) for row in rows)]
        (path / "history.csv").write_text("\n".join(lines) + "\n")
        if probabilities is not None:
            np.save(path / "test_probabilities.npy", probabilities.astype(np.float16))
    if several:
        values = list(accuracies.values())
        by_seed = {"val_accuracy": [0.9] * len(values), "test_accuracy": values}
        metrics = common | {"settings": settings, "seeds": list(accuracies), "by_seed": by_seed, "val_accuracy": 0.9,
                            "test_accuracy": float(np.mean(values))}  # fmt: skip
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_several_seeds_by_the_seeds_that_both_have(tmp_path, capsys):
    first = planted(tmp_path / "first", {0: 0.80, 1: 0.81, 2: 0.82, 3: 0.10})
    second = planted(tmp_path / "second", {0: 0.85, 1: 0.865, 2: 0.87})
    experiments.main(["compare", str(first), str(second), "--output-dir", str(tmp_path / "out")])
    differences = [5.0, 5.5, 5.0]
    row = list(csv.DictReader((tmp_path / "out/table.csv").read_text().splitlines()))[1]
    assert (row["run"], row["seeds"], row["difference in points"], row["verdict"]) == ("second", "3", "+5.17", "better")
    assert float(row["p"]) == pytest.approx(paired_t(differences), rel=0.05)
    printed = capsys.readouterr().out
    assert "second is better than first (+5.17 points" in printed
    assert printed.startswith((tmp_path / "out/table.md").read_text().splitlines()[0])
    assert r"86.17 $\pm$ 1.04" in (tmp_path / "out/table.tex").read_text()
    assert (tmp_path / "out/curves.png").exists()


def test_single_runs_image_by_image(tmp_path, digits):
    n, y = len(digits.test.y), digits.test.y
    right = np.eye(10)[y]
    wrong = right.copy()
    wrong[:10] = np.eye(10)[(y[:10] + 1) % 10]
    folders = planted(tmp_path / "all", {0: 1.0}, right), planted(tmp_path / "ten_wrong", {0: 1 - 10 / n}, wrong)
    rows, sentences = compare.table_of([*map(compare.read, folders)])
    assert float(rows[1][-2]) == pytest.approx(2 * 0.5**10, rel=0.05)  # ten of ten differences in one direction
    assert sentences[0].startswith("ten_wrong is worse than all")
    assert "McNemar" in sentences[0]


def test_one_seed_beside_several_is_compared_with_the_same_seed(tmp_path, digits):
    n, right = len(digits.test.y), np.eye(10)[digits.test.y]
    wrong = right.copy()
    wrong[:10] = np.eye(10)[(digits.test.y[:10] + 1) % 10]
    folders = planted(tmp_path / "several", {0: 0.5, 1: 1.0}, right), planted(tmp_path / "one", {1: 1 - 10 / n}, wrong)
    rows, sentences = compare.table_of([*map(compare.read, folders)])
    points = f"{-1000 / n:.2f}"
    assert rows[1][-3] == points  # against its own seed, not against the mean
    assert float(rows[1][-2]) == pytest.approx(2 * 0.5**10, rel=0.05)
    assert sentences[0].endswith("McNemar's test of seed 1).")
    (tmp_path / "one/test_probabilities.npy").write_bytes(b"damaged")
    with pytest.raises(files.FileError, match="one: its probabilities cannot be read"):
        compare.table_of([*map(compare.read, folders)])
    (tmp_path / "one/test_probabilities.npy").unlink()
    rows, sentences = compare.table_of([*map(compare.read, folders)])
    assert rows[1][-3:] == [points, "-", "not tested"]
    assert sentences == [f"one is not tested against several ({points} points, p = -; seed 1, without saved probabilities)."]


def test_curves_have_a_band_over_the_seeds(tmp_path):
    folders = planted(tmp_path / "several", {0: 0.8, 1: 0.82}), planted(tmp_path / "one", {0: 0.9})
    figure = compare.curves([*map(compare.read, folders)], "digits")
    assert [len(ax.collections) for ax in figure.axes] == [1, 1]
    assert crowded_texts(figure) == []


def test_what_cannot_be_compared(tmp_path, capsys):
    run = planted(tmp_path / "run", {0: 0.9})
    for arguments, message in (([run, tmp_path / "none"], "no such folder"), ([run, run], "a run is named twice")):
        with pytest.raises(files.FileError, match=message):
            compare.main([*map(str, arguments), "--output-dir", str(tmp_path / "out")])
    found = planted(tmp_path / "found", {0: 0.9}, np.eye(10)), planted(tmp_path / "moved", {0: 0.9}, np.eye(10))
    for path in found:
        metrics = json.loads((path / "metrics.json").read_text())
        (path / "metrics.json").write_text(json.dumps(metrics | {"dataset": "shapes"}))
    with pytest.raises(files.FileError, match=r"probabilities cannot be read \(its dataset is shapes; found digits\)"):
        compare.main([*map(str, found), "--output-dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit, match="2"):
        compare.main([str(run), str(run), "--output-dir", str(run / "metrics.json")])
    said = f"experiments.py compare: --output-dir {run / 'metrics.json'}: is a file; name a folder\n"
    assert capsys.readouterr().err == said
