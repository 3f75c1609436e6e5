"""extras/report.py: the page is whole, and its numbers are those of the runs."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from matplotlib.image import imread

import mlp_from_scratch as mlp
import run
from extras import report
from studies import finished

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
FRAME = """<iframe id="frame" src="page.html" style="width: 360px; height: 640px"></iframe>
<script>onload = () => { let root = document.getElementById("frame").contentDocument.documentElement;
  document.body.textContent = `${root.scrollWidth} of ${root.clientWidth}` }</script>"""
COLUMNS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds")


def make_run(folder, images, wrong=0.2, model="NumPy MLP 784-8-10", seeds=1, **options):
    """A finished run, or one of several seeds, whose network gets about that share of the images wrong."""

    def run_once(s):
        rng, logits = np.random.default_rng((s.seed, int(1000 * wrong))), {}
        for y in (images.val.y, images.test.y):
            shown = np.where(rng.random(len(y)) < wrong, (y + rng.integers(1, 10, len(y))) % 10, y)
            logits[len(y)] = 4 * np.eye(10)[shown] + rng.random((len(y), 10))
        with run.RunFolder("test", s) as run_folder:
            run_folder.log({"epoch": [1, 2]} | {name: [0.5, 0.6] for name in COLUMNS})
            results = run.evaluate(images, lambda X: logits[len(X)], s)
            run_folder.finish(images, model, results, None, parameters=6_378)
        return SimpleNamespace()

    options = {"dataset": "digits", "figures": False, "tta": "none", "output_dir": str(folder)} | options
    run.run_seeds("test", run_once, mlp.settings(seeds=seeds, **options), None)
    return folder


class Page(HTMLParser):
    """What a page consists of; fails where its tags do not fit together."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.words, self.rows = [""], [], {}, []
        self.feed(text)
        assert self.stack == [""]

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.stack += [tag] if tag not in ("meta", "link", "img") else []
        self.rows += [[]] if tag == "tr" else []
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, text):
        self.words.setdefault(self.stack[-1], []).append(text)
        if {"td", "th"} & set(self.stack):
            self.rows[-1][-1] += text.strip()

    def all(self, *names):
        return [attributes for tag, attributes in self.tags if tag in names]

    def row(self, *start):
        """The first row of a table that begins with these cells."""
        return next(row for row in self.rows if tuple(row[: len(start)]) == start)


@pytest.fixture(scope="module")
def folders(digits, tmp_path_factory):
    """{name: folder} of finished runs on the digits: "one", "three" (seeds), "better" (three seeds)."""
    path = tmp_path_factory.mktemp("report")
    folders = {"one": make_run(path / "one", digits, model="CNN 8-16")}
    folders["three"] = make_run(path / "three", digits, seeds=3)
    folders["better"] = make_run(path / "better", digits, 0.05, "CNN 8-16 + NumPy MLP 144-8-10", seeds=3)
    return folders


@pytest.fixture(scope="module")
def page(folders):
    return report.build(folders.values())


@pytest.fixture
def no_figures(monkeypatch):
    """No figure is drawn, which takes time."""
    for name in ("curves", "recall_comparison", "reliability"):
        monkeypatch.setattr(report.plots, name, lambda *arguments, **options: None)
    monkeypatch.setattr(report, "all_curves", lambda results: report.picture(b"", ""))
    monkeypatch.setattr(report, "drawn", lambda figure, caption: report.picture(b"", caption))


def test_the_page_is_whole_and_needs_no_other_file(page):
    parsed = Page(page)
    assert not parsed.all("script", "iframe", "object", "base", "form")
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)|url\(|@import", page)
    assert "default-src 'none'" in page
    images = parsed.all("img")
    assert len(images) > 60
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in images)
    assert len(parsed.all("figcaption")) == len(parsed.all("figure")) == 8
    assert [len(parsed.all(tag)) for tag in ("h1", "main", "nav", "header", "footer")] == [1] * 5
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert [link["href"][1:] for link in parsed.all("a")] == ids
    assert all("scope" in heading for heading in parsed.all("th"))


def test_the_numbers_are_those_of_the_runs(folders, page, digits):
    parsed, metrics = Page(page), {name: run.read_json(folders[name] / "metrics.json") for name in folders}
    assert parsed.words["h3"][:3] == ["CNN", "NumPy MLP", "CNN features + NumPy MLP"]
    mean, std = (100 * metrics["three"][name] for name in ("test_accuracy", "test_accuracy_std"))
    assert parsed.row("NumPy MLP")[1] == f"{mean:.2f} ± {std:.2f}"
    assert parsed.words["b"][1] == f"{mean:.2f} ± {std:.2f} %"
    y, p = digits.test.y, np.load(folders["one"] / "test_probabilities.npy").astype(float)
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (y, p.argmax(axis=1)), 1)
    recall, precision = (counts[3, 3] / counts.sum(axis=axis)[3] for axis in (1, 0))
    assert parsed.row("3") == ["3", *(str(n or "") for n in counts[3]), f"{100 * recall:.1f}"]
    assert ["", "CNN", "NumPy MLP", "CNN features + NumPy MLP"] in parsed.rows
    assert parsed.row("3", str(counts[3].sum()))[2:4] == [f"{precision:.3f}", f"{recall:.3f}"]
    test = finished.compare(finished.read_runs(folders.values()))[-1]
    row = parsed.row("NumPy MLP", "CNN features + NumPy MLP")
    assert row[2:4] == ["3", f"{test['points']:+.2f} ({test['low']:+.2f} to {test['high']:+.2f})"]


def test_the_worst_mistakes_and_the_calibration(folders, digits, monkeypatch):
    (result,) = finished.read_runs([folders["one"]])
    number, shown = report.mistakes(result)
    p, y = result.probabilities[0], digits.test.y
    wrong = np.flatnonzero(p.argmax(axis=1) != y)
    assert number == len(wrong)
    numbers = [int(re.search(r"Test image (\d+)", entry["caption"])[1]) for entry in shown]
    assert numbers == sorted(wrong.tolist(), key=lambda i: -p[i].max())[: report.MISTAKES]
    monkeypatch.setattr(report.plots, "reliability", lambda bins, title: bins)
    monkeypatch.setattr(report, "drawn", lambda bins, caption: bins)
    for when, name in (("before", "test_ece"), ("after", "test_ece_calibrated")):
        error = report.reliability(result)[when][-1]
        assert error == pytest.approx(result.metrics[name], abs=0.005)  # half precision


def test_settings_that_differ_stand_apart(folders, digits, tmp_path):
    other = make_run(tmp_path / "other", digits, dropout=0.25)
    results = finished.read_runs([folders["three"], other])
    assert [result.label for result in results] == ["NumPy MLP (three)", "NumPy MLP (other)"]
    different, same = report.settings_of(results)
    assert ["dropout", "0.05", "0.25"] in different
    assert ["hidden", "256 128", "256 128"] in same


def test_a_single_run_of_a_hybrid_whose_texts_are_hostile(folders, no_figures, tmp_path):
    folder = shutil.copytree(folders["one"], tmp_path / "<b>&")
    shutil.copy(folder / "history.csv", folder / "cnn_history.csv")
    metrics, hostile = run.read_json(folder / "metrics.json"), "<script>alert(1)</script>\"'&"
    metrics |= {"model": hostile, "command": hostile, "settings": metrics["settings"] | {hostile: hostile}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    page = report.build([folder], title=hostile)
    parsed = Page(page)
    assert not parsed.all("script")
    assert parsed.words["h1"] == [hostile]
    assert len(parsed.all("figure")) == 3  # the CNN's curves, the MLP's, the reliability
    assert "McNemar" not in page


def test_runs_on_other_test_images_are_not_compared(folders, no_figures, monkeypatch):
    monkeypatch.setattr(finished, "same_test_images", lambda first, second: first is second)
    page = report.build([folders["one"], folders["three"]])
    assert "no paired test is possible" in page
    assert sum(row[:1] == ["mean"] for row in Page(page).rows) == 2  # a table of classes each


def test_a_table_to_copy():
    table = report.Table("caption", ["name", "A: a_b", "A: %"], [["x|y", "1,234", "90.4 ± 0.2"]])
    assert (table.numeric, table.groups) == ([False, True, True], [("", 1), ("A", 2)])
    assert table.markdown().splitlines()[2] == "| x/y | 1,234 | 90.4 ± 0.2 |"


def test_as_a_user_runs_it(folders, script, no_figures, tmp_path, capsys):
    report.main([str(folders["one"]), "--output", str(tmp_path / "page.html"), "--title", "Homework"])
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
    assert "<title>Homework</title>" in (tmp_path / "page.html").read_text(encoding="utf-8")
    done = script("extras.report", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"report.py: {tmp_path}: not the folder of a finished run\n"


def test_the_committed_report_has_the_numbers_of_the_committed_runs():
    page = (ROOT / "results/report/report.html").read_text(encoding="utf-8")
    assert len(page) < 2 * 2**20
    for name in ("mlp_from_scratch", "cnn_feature_extraction", "hybrid_train"):
        metrics = run.read_json(ROOT / "results" / name / "metrics.json")
        assert report.plus_minus(metrics, "test_accuracy") in page


# ---- in Chromium: both themes, a phone's width, A4 paper


@pytest.fixture(scope="module")
def browse(page, tmp_path_factory):
    """A function that opens a file beside page.html in Chromium: (its output, its console)."""
    if not BROWSER:
        pytest.skip("needs Chromium: apt-get install chromium")
    folder = tmp_path_factory.mktemp("browser")
    (folder / "page.html").write_text(page, encoding="utf-8")

    def browse(name, *flags):
        options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
        options += ("--enable-logging=stderr", f"--user-data-dir={folder}/profile")
        command = [BROWSER, *options, *flags, f"file://{folder / name}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    browse.folder = folder
    return browse


def test_both_themes_without_an_error(browse, tmp_path):
    brightness = []
    for number in (1, 0):
        flags = f"--blink-settings=preferredColorScheme={number}", "--window-size=1280,1600"
        _, console = browse("page.html", *flags, f"--screenshot={tmp_path}/shown.png")
        assert console == []
        brightness.append(imread(tmp_path / "shown.png")[..., :3].mean())
    assert brightness[0] > 0.85
    assert brightness[1] < 0.3


def test_a_phone_does_not_scroll_sideways(browse):
    (browse.folder / "frame.html").write_text(FRAME, encoding="utf-8")
    flags = "--dump-dom", "--disable-web-security", "--allow-file-access-from-files"
    width, available = map(int, re.search(r"(\d+) of (\d+)", browse("frame.html", *flags)[0]).groups())
    assert width <= available > 300


def test_it_prints_on_a4(browse, tmp_path):
    browse("page.html", "--no-pdf-header-footer", f"--print-to-pdf={tmp_path}/page.pdf")
    sizes = re.findall(rb"/MediaBox\s*\[0 0 ([\d.]+) ([\d.]+)\]", (tmp_path / "page.pdf").read_bytes())
    assert 3 < len(sizes) < 20
    assert {(round(float(width)), round(float(height))) for width, height in sizes} == {(595, 842)}
