"""Who imports whom, late imports too; importing a module does nothing else; how large the code is."""

import ast
import graphlib
import os
import subprocess
import sys

import pytest
from conftest import ROOT

PATHS = [path for place in ("", "extras", "studies") for path in sorted((ROOT / place).glob("*.py"))]
NAMES = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in PATHS]
MODULES = dict(zip(NAMES, PATHS, strict=True))
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
ALLOWED = {
    **dict.fromkeys(("run", "plots", "monitor"), frozenset()),
    "data": {"run"},
    "mlp_from_scratch": {"run", "data", "plots", "monitor"},
    "cnn_feature_extraction": {"run", "data", "plots"},
    "hybrid_train": {"run", "data", "plots", "mlp_from_scratch", "cnn_feature_extraction"},
}
HEAVY = {"matplotlib", "sklearn", "torch", "torchvision", "PIL", "optuna", "distributed", "joblib"}
HEAVY |= {"wandb", "trackio"}


def imported(nodes):
    """The names of all modules that the import statements among the nodes import."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, ast.unparse(node)
            names |= {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys() or {node.module}
    return names


def top(names):
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("name", ALLOWED)
def test_the_three_scripts_and_their_modules_import_what_they_may(name):
    nodes = list(ast.walk(TREES[name]))
    assert imported(nodes) & MODULES.keys() <= ALLOWED[name]
    words = {getattr(node, "attr", getattr(node, "id", "")) for node in nodes}
    assert not words & {"import_module", "__import__", "exec"}


def test_imports_make_no_circle():
    graph = {name: imported(ast.walk(tree)) & MODULES.keys() for name, tree in TREES.items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(MODULES) > 20


@pytest.mark.parametrize("name", MODULES)
def test_imports_stand_at_the_top_and_scripts_end_the_same_way(name):
    body, tree = TREES[name].body, TREES[name]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    late = imported(node for function in functions for node in ast.walk(function))
    assert top(late) <= HEAVY
    is_import = [isinstance(node, ast.Import | ast.ImportFrom | ast.Try) for node in body[1:]]
    assert is_import == sorted(is_import, reverse=True)  # after the docstring, before all else
    ends = [node for node in body if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)]
    assert ends in ([], body[-1:])
    assert all("\n    run.cli(" in ast.unparse(node) for node in ends)


IMPORT_ALL = """
import os, signal, sys, warnings
from importlib import import_module
for name in {packages}:
    import_module(name)
state = lambda: (dict(os.environ), list(warnings.filters), signal.getsignal(signal.SIGINT), os.getcwd())
before, done = state(), []
def hook(event, arguments):
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if not done and (writes or event in ("os.mkdir", "subprocess.Popen", "socket.connect")):
        raise RuntimeError(event, arguments)
sys.addaudithook(hook)
for name in {modules}:
    import_module(name)
    assert state() == before, name
done.append(True)
"""


def python(code, folder):
    """(exit code, stdout, stderr) of the code in a new process, which writes no __pycache__."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "SYSTEMROOT") if name in os.environ}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command, options = [sys.executable, "-B", "-c", code], {"cwd": folder, "env": environment, "text": True}
    done = subprocess.run(command, capture_output=True, check=False, **options)
    return done.returncode, done.stdout, done.stderr


def test_importing_does_nothing_else(tmp_path):
    packages = {name for tree in TREES.values() for name in imported(tree.body)}
    packages = sorted(name for name in packages if top([name]) - top(MODULES))
    code = IMPORT_ALL.format(packages=packages, modules=sorted(MODULES))
    assert python(code, tmp_path) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_numpy_scripts_do_without_torch(tmp_path):
    code = """
import sys
import data, mlp_from_scratch as m, monitor, plots, run
from extras import garment, sklearn_mlp
assert not {"torch", "torchvision", "matplotlib"} & sys.modules.keys()
model, history = m.train(data.load(dataset="digits"), m.settings(epochs=1, hidden=(4,)))
plots.curves({"": history}, "")
assert not {"torch", "torchvision"} & sys.modules.keys()
"""
    assert python(code, tmp_path) == (0, "", "")


def test_the_code_is_small_and_formatted_by_ruff_alone():
    assert {path.stem for path in PATHS if path.parent == ROOT} == {*ALLOWED, "predict", "experiments"}
    tests = sorted((ROOT / "tests").glob("*.py"))
    lines = {path: path.read_text(encoding="utf-8").splitlines() for path in [*PATHS, *tests]}
    assert sum(len(lines[path]) for path in PATHS) <= 8_400
    assert sum(len(lines[path]) for path in tests) <= 6_700
    for path, text in lines.items():
        assert not [line for line in text if "# " + "fmt:" in line], path
