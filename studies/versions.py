"""The version of the code that a run's results depend on: a digest of the source files without comments and docstrings."""

if __name__ == "__main__":
    raise SystemExit("studies/versions.py is a module, not a script: experiments.py uses it")

import ast
import importlib.metadata
from pathlib import Path

import data

ROOT = Path(__file__).parent.parent
CODE = {"mlp": ("mlp_from_scratch.py", "data.py", "support/training.py", "numpy_nn")}  # what a script's results depend on
CODE["cnn"] = ("cnn_feature_extraction.py", "data.py", "support/training.py", "torch_cnn", "numpy_nn")
CODE["hybrid"] = ("hybrid_train.py", *CODE["mlp"], *CODE["cnn"])
CODE["transfer"] = ("transfer_learning.py", *CODE["hybrid"])
PACKAGES = {"mlp": ("numpy",)}  # the other scripts' results depend on PyTorch's version, too


def code_digest(script=None):
    """Hexadecimal digest of the code that the results of a script depend on, or those of all scripts."""
    names = CODE[script] if script else [name for names in CODE.values() for name in names]
    return data.digest_text("".join(map(code_of, source_files(names))))


def package_versions(script):
    """{package: version} of the packages that the results of a script depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES.get(script, ("numpy", "torch"))}


def source_files(names):
    """The Python files of files and folders, without the figures', each once; those that exist."""
    paths = {path for name in names for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).glob("*.py"))}
    return sorted(path for path in paths if path.stem != "figures" and path.exists())


def code_of(path):
    """A file's code without comments and docstrings, which change no result."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
