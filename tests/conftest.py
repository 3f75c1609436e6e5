"""What several test files share: the datasets, and scripts run as a user runs them."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from threadpoolctl import threadpool_limits

import data

ROOT = Path(__file__).parent.parent
NOWHERE = "http://127.0.0.1:9"  # the discard port: a proxy there refuses every connection at once

os.environ["SCIPY_ARRAY_API"] = "1"  # before SciPy is imported: scikit-learn's checks of an estimator need it
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes: each and its children compute in one thread
    os.environ |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    threadpool_limits(1)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_folder():
    """The folder of the four original files; a test is skipped where FASHION_MNIST_DIR names none."""
    folder = os.environ.get("FASHION_MNIST_DIR")
    if not folder:
        pytest.skip("needs the real dataset: set FASHION_MNIST_DIR to the folder of its four files")
    return Path(folder)


@pytest.fixture(scope="session")
def real(real_folder):
    return data.load(data_dir=str(real_folder))


@pytest.fixture(scope="session")
def digits():
    return data.load(dataset="digits")


@pytest.fixture
def script(tmp_path):
    """A function that runs a script of the repository, as `script("mlp_from_scratch.py", "--epochs", 1)`.

    It returns the finished process, with returncode, stdout and stderr. The working folder is tmp_path, there
    is no dataset but what the arguments name, and no network.
    """

    def run_script(name, *arguments, timeout=120, **environment):
        start = ["-m", name] if "." in name and not name.endswith(".py") else [str(ROOT / name)]
        command = [sys.executable, *start, *map(str, arguments)]
        clean = {key: value for key, value in os.environ.items() if key != "FASHION_MNIST_DIR"}
        clean |= {"PYTHONPATH": str(ROOT), "http_proxy": NOWHERE, "https_proxy": NOWHERE} | environment
        options = {"cwd": tmp_path, "env": clean, "capture_output": True, "text": True, "timeout": timeout}
        return subprocess.run(command, check=False, **options)

    return run_script


def crowded_texts(figure):
    """The texts of a figure that are cut off by its edge, and the pairs of level texts that overlap."""
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
    faults = []
    for text, box in drawn.items():
        if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height:
            faults.append(f"{text.get_text()}: cut off")
    level = [(text.get_text(), box) for text, box in drawn.items() if text.get_rotation() % 90 == 0]
    for (first, box), (second, other) in itertools.combinations(level, 2):
        if box.overlaps(other):
            faults.append(f"{first} / {second}")
    return sorted(faults)
