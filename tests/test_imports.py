"""Imports run one way, and importing a module does nothing else."""

import ast
import graphlib
import subprocess
import sys

import pytest
from conftest import ROOT, environment

ROOMS = ("numpy_nn", "torch_cnn", "pictures", "support", "studies", "benchmarks")
PATHS = sorted([*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).glob("*.py"))])
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in PATHS}
SCRIPTS = {"mlp_from_scratch", "cnn_feature_extraction", "hybrid_train", "transfer_learning", "experiments", "benchmark",
           "check_gradients", "sklearn_mlp", "predict"}  # fmt: skip


def imported(path, lazy=True):
    """The project's modules and the other packages that a file imports; without `lazy`, only when it is itself imported."""
    tree, names = ast.parse(path.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            names |= inside or {node.module}
    return names


def test_imports_make_no_circle():
    graph = {name: imported(path, lazy=False) & MODULES.keys() for name, path in MODULES.items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(MODULES) > 30


@pytest.mark.parametrize(("room", "forbidden"), [
    ("numpy_nn", SCRIPTS | {"torch", "torchvision", "torch_cnn", "studies", "benchmarks"}),
    ("support", SCRIPTS | {"torch_cnn", "studies", "benchmarks"}),
    ("pictures", SCRIPTS | {"torch", "torchvision", "torch_cnn", "studies", "benchmarks"}),
    ("torch_cnn", SCRIPTS | {"studies", "benchmarks", "numpy_nn.layers"}),
])  # fmt: skip
def test_a_room_does_not_import_what_is_above_it(room, forbidden):
    for path in (ROOT / room).glob("*.py"):
        names = imported(path)
        assert (names | {name.split(".")[0] for name in names}) & forbidden == set(), path


def test_importing_does_nothing_else(tmp_path):
    code = f"""
import os, sys, warnings, importlib
import numpy, torch, torchvision, matplotlib, sklearn, safetensors.numpy, scipy.optimize, sklearn.utils.estimator_checks
before = dict(os.environ), list(warnings.filters)
for name in {sorted(MODULES)}:
    importlib.import_module(name)
    assert (dict(os.environ), list(warnings.filters)) == before, name
"""
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env=environment() | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
