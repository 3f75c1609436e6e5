"""What several test files need: the real dataset where it is, and scripts run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import data

ROOT = Path(__file__).parent.parent
SCRIPTS = ("mlp_from_scratch", "cnn_feature_extraction", "hybrid_train")
NOWHERE = "http://127.0.0.1:9"  # the discard port: a proxy there refuses every connection at once


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
def run_script(tmp_path):
    """run_script("mlp_from_scratch", "--epochs", 1): the finished process, run in an empty folder and with no network."""

    def run(name, *arguments, real_folder=None, timeout=300):
        return subprocess.run(command(name, *arguments), cwd=tmp_path, env=environment(real_folder), timeout=timeout,
                              capture_output=True, text=True, check=False)  # fmt: skip

    return run


def command(name, *arguments):
    return [sys.executable, str(ROOT / f"{name}.py"), *map(str, arguments)]


def environment(real_folder=None):
    kept = {name: value for name, value in os.environ.items() if name not in ("FASHION_MNIST_DIR", "DISPLAY", "MPLBACKEND")}
    kept |= {"http_proxy": NOWHERE, "https_proxy": NOWHERE, "no_proxy": "", "COLUMNS": "200"}
    return kept | ({"FASHION_MNIST_DIR": str(real_folder)} if real_folder else {})


def one_line(process, code):
    """The single line on stderr of a process that ended with `code`."""
    assert process.returncode == code, process.stderr
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1, process.stderr
    return lines[0]
