"""report.py: the page is whole, and its numbers and tests are those of the runs."""

import csv
import html
import io
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Page, make_run
from scipy.stats import binomtest, ttest_rel

import data
import report
from studies import finished
from support import report_page
from support.report_page import Table


def copies(page, caption):
    """The table with a caption that begins so, as read from its CSV form: a list of rows."""
    part = page.split(f"<span>{caption}")[1].split("</details>")[0]
    text = re.search(r"CSV</p>\s*<pre[^>]*>(.*?)</pre>", part, re.DOTALL)[1]
    return list(csv.reader(io.StringIO(html.unescape(text))))


# ---- the page


def test_the_page_is_whole_and_needs_no_other_file(built_page):
    parsed = Page(built_page)
    assert not parsed.all("script", "iframe", "object", "base", "form")
    assert [link["href"] for link in parsed.all("link")] == ["data:,"]
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)|url\(|@import", built_page)
    assert "default-src 'none'" in built_page
    images = parsed.all("img")
    assert len(images) > 60
    assert all(image["src"].startswith("data:image/png;base64,") and len(image["alt"]) > 10 for image in images)


def test_the_page_is_semantic(built_page):
    parsed = Page(built_page)
    assert parsed.all("html") == [{"lang": "en"}]
    assert [len(parsed.all(tag)) for tag in ("h1", "main", "nav", "header", "footer")] == [1] * 5
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch(r"h\d", tag)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in parsed.all("a")} <= set(ids)
    assert all(section["aria-labelledby"] in ids for section in parsed.all("section"))
    assert parsed.words["h2"] == ["Summary", "Comparison", "Curves", "Confusion matrix", "Classes", "Worst mistakes",
                                  "Calibration", "Settings", "Runs"]  # fmt: skip
    assert len(parsed.all("caption")) == len(parsed.all("table"))
    assert all("scope" in heading for heading in parsed.all("th"))
    assert len(parsed.all("figcaption")) == len(parsed.all("figure")) > 6


def test_the_numbers_are_those_of_the_runs(finished_runs, built_page, digits):
    metrics = {name: json.loads((folder / "metrics.json").read_text()) for name, folder in finished_runs.items()}
    rows = copies(built_page, "Accuracy")[1:]
    assert [row[0] for row in rows] == ["CNN", "NumPy MLP", "CNN features + NumPy MLP"]
    assert [row[8] for row in rows] == ["8-16", "784-8-10", "8-16 + 144-8-10"]
    assert rows[0][1] == f"{100 * metrics['one']['test_accuracy']:.2f}"
    three = metrics["three"]
    assert rows[1][1] == f"{100 * three['test_accuracy']:.2f} ± {100 * three['test_accuracy_std']:.2f}"
    y, predicted = digits.test.y, np.load(finished_runs["one"] / "test_probabilities.npy").argmax(axis=1)
    counts = np.array([[int(cell) for cell in row[1:11]] for row in copies(built_page, "Test images by true class")[1:]])
    assert (counts.sum(), counts.trace()) == (len(y), (predicted == y).sum())
    assert counts[3, 3] == ((y == 3) & (predicted == 3)).sum()
    classes = copies(built_page, "Precision, recall and F1")
    assert classes[0][:4] == ["class", "precision, CNN", "recall, CNN", "F1, CNN"]
    assert float(classes[4][2]) == pytest.approx((predicted[y == 3] == 3).mean(), abs=5e-4)  # the row of class 3
    confidence = np.load(finished_runs["one"] / "test_probabilities.npy").astype(float).max(axis=1)
    assert float(copies(built_page, "Calibration")[1][2]) == pytest.approx(100 * confidence.mean(), abs=0.01)


def test_the_worst_mistakes_are_the_most_confident(finished_runs, digits):
    (run,) = finished.read_runs([finished_runs["one"]])
    block = report.mistakes(run)
    p, y = run.probabilities[0], digits.test.y
    wrong = np.flatnonzero(p.argmax(axis=1) != y)
    shown = [int(number) for number in re.findall(r"Test image (\d+), labeled", block)]
    assert shown == sorted(wrong.tolist(), key=lambda i: -p[i].max())[: report.MISTAKES]
    assert f"of {len(wrong)} wrong predictions" in block


def test_settings_that_differ_stand_apart(finished_runs, digits, tmp_path):
    other = make_run(tmp_path / "other", digits, dropout=0.25)
    page = report.build([finished_runs["three"], other])
    assert ["dropout", "0.05", "0.25"] in copies(page, "Settings that differ")
    assert ["hidden", "256 128"] in copies(page, "Settings that are the same in all runs")
    assert "NumPy MLP (three)" in page  # labels that tell two runs of one network apart


def test_a_single_run_has_no_comparison(finished_runs):
    parsed = Page(report.build([finished_runs["one"]]))
    assert parsed.words["h1"] == ["CNN on digits"]
    assert "Comparison" not in parsed.words["h2"]


def test_what_a_run_says_is_text(finished_runs, tmp_path):
    """No name or setting of a run becomes HTML."""
    folder = shutil.copytree(finished_runs["one"], tmp_path / "<b>&")
    metrics = json.loads((folder / "metrics.json").read_text())
    hostile = "<script>alert(1)</script>\"'&"
    metrics |= {"model": hostile, "command": hostile}
    metrics["settings"] |= {hostile: hostile}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    parsed = Page(report.build([folder], title=hostile))
    assert not parsed.all("script", "b")
    assert parsed.words["h1"] == [hostile]


# ---- the comparison


def test_the_tests_are_paired_and_corrected(finished_runs, digits):
    comparisons = finished.compare(finished.read_runs([finished_runs[name] for name in ("one", "three", "better")]))
    hybrid = "CNN features + NumPy MLP"
    assert [(c["first"], c["second"], c["seeds"]) for c in comparisons] == [
        ("CNN", "NumPy MLP", 1), ("CNN", hybrid, 1), ("NumPy MLP", hybrid, 3)]  # fmt: skip
    last = comparisons[-1]
    accuracies = [json.loads((finished_runs[name] / "metrics.json").read_text())["by_seed"]["test_accuracy"]
                  for name in ("three", "better")]  # fmt: skip
    assert last["points"] == pytest.approx(100 * (np.mean(accuracies[0]) - np.mean(accuracies[1])))
    assert last["p_t"] == pytest.approx(ttest_rel(*accuracies).pvalue)  # the only one: nothing to correct
    right = [np.load(finished_runs[name] / "seed_0/test_probabilities.npy").argmax(axis=1) == digits.test.y
             for name in ("three", "better")]  # fmt: skip
    only_first, only_second = (right[0] & ~right[1]).sum(), (~right[0] & right[1]).sum()
    assert (last["only_first"], last["only_second"]) == (only_first, only_second)
    uncorrected = binomtest(int(only_first), int(only_first + only_second)).pvalue
    assert uncorrected < last["p_mcnemar"] <= 3 * uncorrected * (1 + 1e-9)


@pytest.mark.parametrize(("changes", "sentence"), [
    ({}, "A is better than B: +1.50 ± 0.20 points of test accuracy, p = 0.010 (paired t test over 3 seeds)."),
    ({"points": -1.5}, "A is worse than B: -1.50 ± 0.20 points of test accuracy, p = 0.010 (paired t test over 3 seeds)."),
    ({"p_t": 0.06}, "A is not distinguishable from B: +1.50 ± 0.20 points of test accuracy, p = 0.060 (paired t test over 3 "
                    "seeds)."),
    ({"p_t": None, "std": None}, "A is better than B: +1.50 points of test accuracy, p < 0.001 (McNemar's test)."),
])  # fmt: skip
def test_verdicts_in_words(changes, sentence):
    comparison = {"first": "A", "second": "B", "points": 1.5, "std": 0.2, "p_t": 0.01, "p_mcnemar": 1e-5, "seeds": 3}
    comparison = {name: value for name, value in (comparison | changes).items() if value is not None}
    assert finished.verdict(comparison) == sentence


def test_runs_on_other_test_images_are_not_compared(finished_runs, tmp_path):
    quick = data.load("digits", quick=True)
    runs_of = finished.read_runs([finished_runs["one"], make_run(tmp_path / "quick", quick, quick=True)])
    page = report.build([finished_runs["one"], tmp_path / "quick"])
    if not finished.same_test_images(*runs_of):  # as on Fashion-MNIST; the digits are too few for a smaller subset
        assert "a paired test is not possible" in page
    assert finished.compare([runs_of[0], with_other_images(runs_of[1])]) == []
    assert "Smoke test on a subset" in page


def with_other_images(run):
    test = data.Split(run.images.test.X[:, ::-1], run.images.test.y, run.images.test.indices)
    images = data.Dataset(run.images.name, run.images.classes, run.images.train, run.images.val, test)
    return finished.replace(run, images=images)


# ---- tables


TABLE = Table("caption", ["name", "a_b", "share (%)"], [["x|y", "1,234", "90.4 ± 0.2"], ["50 & more", "-5", "-"]])


def test_a_table_in_each_form():
    assert TABLE.markdown() == ("| name | a_b | share (%) |\n| --- | ---: | ---: |\n| x\\|y | 1,234 | 90.4 ± 0.2 |\n"
                                "| 50 & more | -5 | - |\n")  # fmt: skip
    assert list(csv.reader(io.StringIO(TABLE.csv()))) == [TABLE.header, *TABLE.rows]
    assert TABLE.latex().splitlines() == [
        r"\begin{tabular}{lrr}", r"\hline", r"name & a\_b & share (\%) \\", r"\hline",
        r"x\textbar{}y & 1,234 & 90.4 $\pm$ 0.2 \\", r"50 \& more & -5 & - \\", r"\hline", r"\end{tabular}"]  # fmt: skip
    assert '<td class="number">1,234</td>' in TABLE.html()


def test_a_confusion_matrix_as_a_table():
    block = report_page.heat_table(np.array([[3, 1], [0, 0]]), ("a", "b<"), "caption")
    assert re.findall(r"<td style[^>]*>(\d)</td>", block) == ["3", "1", "0", "0"]
    assert re.findall(r"<td>([\d.]+)</td>", block) == ["75.0", "0.0"]
    assert "--share: 0.87" in block  # the root of 3 / 4
    assert "b&lt;" in block
    assert "b<" not in block


# ---- the committed report


def test_the_committed_report_is_of_the_committed_runs(real_folder, monkeypatch):
    path = ROOT / "results/report/report.html"
    assert path.stat().st_size < 2 * 2**20
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("FASHION_MNIST_DIR", str(real_folder))
    text = path.read_text(encoding="utf-8")
    line = re.search(r"Written by (python report\.py [^<]*)\.\s*</footer>", text)[1]
    folders = [Path(word) for word in line.split() if word.startswith("results/") and not word.endswith(".html")]
    again = report.build(folders, command=line)
    assert len(folders) == 3

    def without_images(page):
        return re.sub(r"base64,[^\"]*", "", page)

    assert without_images(text) == without_images(again)
    for name in ("light", "dark", "phone"):
        assert (path.parent / f"{name}.png").stat().st_size < 300_000
