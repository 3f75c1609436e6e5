"""What several test files share: the datasets, scripts run as a user runs them, and checks of a run's folder."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

import data
import mlp_from_scratch
import report
from pictures import ood
from support import files, runs, settings, training

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes: each and its children compute in one thread
    os.environ |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    threadpool_limits(1)
    torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent
SCRIPTS = ("mlp_from_scratch", "cnn_feature_extraction", "hybrid_train")
NOWHERE = "http://127.0.0.1:9"  # the discard port: a proxy there refuses every connection at once

# What every script writes, and what its metrics.json contains at least
FILES = {"settings.json", "history.csv", "metrics.json", "test_probabilities.npy", "checkpoint.safetensors", "curves.png",
         "confusion_matrix.png", "classification_report.png", "classification_report.txt", "samples.png", "mistakes.png",
         "reliability.png", "rejection.png"}  # fmt: skip
KEYS = {"dataset", "model", "train_size", "val_size", "test_size", "val_accuracy", "test_accuracy", "test_loss", "test_ece",
        "test_ece_calibrated", "temperature", "parameters", "seconds", "settings", "command", "versions",
        "machine"}  # fmt: skip
TTA_KEYS = {"val_accuracy_flip_tta", "test_accuracy_flip_tta"}


@pytest.fixture(scope="session")
def real_folder():
    """The folder of the four original files; the test is skipped where FASHION_MNIST_DIR does not name one."""
    folder = os.environ.get("FASHION_MNIST_DIR")
    if not folder:
        pytest.skip("needs the real dataset: set FASHION_MNIST_DIR to the folder of its four files")
    return Path(folder)


@pytest.fixture(scope="session")
def real(real_folder):
    return data.load(data_dir=str(real_folder))


@pytest.fixture(scope="session")
def digits():
    return data.load("digits")


@pytest.fixture
def no_data(monkeypatch):
    """The runs of studies are planned without a dataset and without a measurement of the precision."""
    from studies import runner

    monkeypatch.setattr(runner.Runner, "dataset", lambda self, s: ("digest", 6_000 if s.quick else 48_000, (28, 28)))
    monkeypatch.setattr(runner, "choose_precision", lambda: {"device": "cpu", "precision": "float32"})


@pytest.fixture
def environ():
    """Restores the environment variables afterwards: Dask sets the number of threads of its workers in them."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def run_script(tmp_path):
    """run_script("mlp_from_scratch", "--epochs", 1): the finished process, run in an empty folder and with no network."""

    def run(name, *arguments, real_folder=None, timeout=300):
        return subprocess.run(command(name, *arguments), cwd=tmp_path, env=environment(real_folder), timeout=timeout,
                              capture_output=True, text=True, check=False)  # fmt: skip

    return run


def heed_ctrl_c():
    """In a new process: heed Ctrl-C, which the processes of a background shell ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def command(name, *arguments):
    return [sys.executable, str(ROOT / f"{name}.py"), *map(str, arguments)]


def environment(real_folder=None):
    without = ("FASHION_MNIST_DIR", "DISPLAY", "MPLBACKEND")
    variables = {name: value for name, value in os.environ.items() if name not in without}
    variables |= {"http_proxy": NOWHERE, "https_proxy": NOWHERE, "no_proxy": "", "COLUMNS": "200"}
    return variables | ({"FASHION_MNIST_DIR": str(real_folder)} if real_folder else {})


def one_line(process, code):
    """The single line on stderr of a process that ended with `code`."""
    assert process.returncode == code, process.stderr
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1, process.stderr
    return lines[0]


def succeeded(process):
    """The standard output of a process that ended well and wrote nothing to stderr."""
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout


def kill_after(arguments, folder, awaited, lines):
    """Run a command in `folder` and kill it once the file `awaited` has more than that many lines."""
    process = subprocess.Popen(arguments, cwd=folder, env=environment(), stdout=subprocess.DEVNULL)
    while process.poll() is None and not (awaited.exists() and len(awaited.read_text().splitlines()) > lines):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9


def read_metrics(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def relative(a, b):
    """Largest difference relative to the largest number."""
    return np.abs(a - b).max() / max(np.abs(a).max(), np.abs(b).max())


def assert_same_weights(path, other):
    first, second = files.load_weights(path)[0], files.load_weights(other)[0]
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert np.array_equal(value, second[name]), name


def assert_reported(folder, y):
    """metrics.json agrees with test_probabilities.npy, recomputed by hand: accuracy, loss and calibration error.

    y (N,): the test labels.
    """
    metrics = read_metrics(folder)
    saved = np.load(folder / "test_probabilities.npy", allow_pickle=False)
    assert (saved.dtype, saved.shape) == (np.float16, (metrics["test_size"], 10))
    p = saved.astype(np.float64)
    assert p.sum(axis=1) == pytest.approx(1, abs=0.01)
    correct, confidence = p.argmax(axis=1) == y, p.max(axis=1)
    assert correct.mean() == pytest.approx(metrics["test_accuracy"], abs=2 / len(y))  # float16 may tie two classes
    loss = -np.log(np.maximum(p[np.arange(len(y)), y], 1e-8)).mean()
    assert metrics["test_loss"] == pytest.approx(loss, abs=0.02)
    ece = 0.0
    for number in range(15):  # bins of confidence, open below and closed above
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            ece += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert metrics["test_ece"] == pytest.approx(ece, abs=0.01)
    return metrics


def assert_calibrated(path, metrics):
    """The weights file has what predict.py needs: the temperature of metrics.json and a detector."""
    metadata = files.load_weights(path)[1]
    assert metadata["temperature"] == metrics["temperature"]
    assert metadata["loss"] == metrics["settings"].get("loss", "softmax")
    assert 0.1 < metrics["temperature"] < 10
    assert 0 <= metrics["test_ece_calibrated"] < 0.2
    assert ood.Detector(metadata["ood"]).threshold > 0


def crowded_texts(figure):
    """The texts of a matplotlib figure that are cut off by its edge, and the pairs that overlap, in alphabetical order."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    drawn, draw = {}, Text.draw

    def record(text, renderer):
        if text.get_visible() and text.get_text().strip():
            drawn[text] = Text.get_window_extent(text, renderer).padded(-1)
        draw(text, renderer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", record)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    width, height = canvas.get_width_height()
    faults = [f"{text.get_text()}: cut off" for text, box in drawn.items()
              if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height]  # fmt: skip
    level = [(text.get_text(), box) for text, box in drawn.items() if text.get_rotation() % 90 == 0]
    pairs = itertools.combinations(level, 2)
    return sorted(faults + [f"{first} / {second}" for (first, box), (second, other) in pairs if box.overlaps(other)])


# ---- of report.py

PIXEL = report.png(np.zeros((1, 1)))
ROW = dict(zip(runs.COLUMNS, (1, 0.5, 0.8, 0.55, 0.75, 0.6, 0.7, 1e-3, 2.0), strict=True))


def make_run(folder, images, wrong=0.2, model="NumPy MLP 784-8-10", seeds=1, **options):
    """A finished run, or one of several seeds, whose network gets about that share of the images wrong."""

    def run(s):
        rng = np.random.default_rng((s.seed, int(1000 * wrong)))
        with runs.Run("test", s) as run:
            run.log(ROW)
            run.log(ROW | {"epoch": 2, "val_accuracy": 0.75})
            logits = {}
            for name in ("val", "test"):
                y = getattr(images, name).y
                shown = np.where(rng.random(len(y)) < wrong, (y + rng.integers(1, 10, len(y))) % 10, y)
                logits[name] = 4 * np.eye(10)[shown] + rng.random((len(y), 10))
            return training.report(run, images, "title", "row", logits, model=model, parameters=6_378)

    given = {"dataset": "digits", "figures": False, "output_dir": str(folder), "seeds": seeds} | options
    runs.run_seeds("test", run, settings.load(mlp_from_scratch, data, runs, **given))
    if not {"report", "figure_format"} & options.keys():
        (folder / "curves.png").write_bytes(PIXEL)  # so that nothing is drawn
        (next(folder.glob("seed_0"), folder) / "reliability.png").write_bytes(PIXEL)
    return folder


@pytest.fixture(scope="session")
def finished_runs(digits, tmp_path_factory):
    """{name: folder} of finished runs on the digits: "one", "three" (seeds), "better" (three seeds)."""
    folder = tmp_path_factory.mktemp("report")
    return {"one": make_run(folder / "one", digits, model="CNN 8-16"),
            "three": make_run(folder / "three", digits, seeds=3),
            "better": make_run(folder / "better", digits, 0.05, "CNN 8-16 + NumPy MLP 144-8-10", seeds=3)}  # fmt: skip


@pytest.fixture(scope="session")
def built_page(finished_runs):
    """The page of report.py on these runs."""
    return report.build(list(finished_runs.values()))


class Page(HTMLParser):
    """What a page consists of; fails where its tags do not fit together."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.words = [], [], {}
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, text):
        self.words.setdefault(self.stack[-1] if self.stack else "", []).append(text)

    def all(self, *names):
        return [attributes for tag, attributes in self.tags if tag in names]
