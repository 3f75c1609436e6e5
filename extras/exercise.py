"""Write an exercise: the NumPy MLP and its bridge to PyTorch with blanks to fill in, as a course asks for it.

    python -m extras.exercise DIR                                            DIR must be new or empty
    python -m extras.check_gradients --file DIR/mlp_from_scratch.py          says which blanks are right

DIR gets mlp_from_scratch.py and hybrid_train.py. The passes of each layer, the losses, the derivatives
in ACTIVATIONS (each is "..."), the optimizers' rules and NumpyMLPFunction are blank; docstrings keep shapes
and forward formulas. The files find the other modules: python DIR/mlp_from_scratch.py --quick
"""

import argparse
import ast
import re
import textwrap
from pathlib import Path

import mlp_from_scratch as mlp
import run

FILES = ("mlp_from_scratch.py", "hybrid_train.py")
# A gradient's formula in a docstring, such as "dx = dout W^T.", from the end of what is before it
GRADIENT = r"[.;]\s+(?:Backward: )?d(?:x|logits|beta|gamma|[A-Z])\w* = .*?[.;](?=\s)"


def blanks(tree):
    """{name: node} of the functions to leave blank in a file's tree, and of the derivatives, as tanh'."""
    classes = {layer.__name__ for layer in mlp.Layer.__subclasses__()} | {"NumpyMLPFunction"}
    functions = {loss.__name__ for loss, _ in mlp.LOSSES.values()}
    functions |= {rule.__name__ for _, rule in mlp.OPTIMIZERS.values()}
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in functions:
            found[node.name] = node
        elif isinstance(node, ast.ClassDef) and node.name in classes:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name in ("forward", "backward"):
                    found[f"{node.name}.{method.name}"] = method
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ACTIVATIONS":
            for key, pair in zip(node.value.keys, node.value.values, strict=True):
                found[f"{key.value}'"] = pair.elts[1]
    return found


def body(node):
    """The first and the last line of a function without its docstring."""
    has_docstring = ast.get_docstring(node) is not None
    return (node.body[0].end_lineno if has_docstring else node.lineno) + 1, node.end_lineno


def make(source):
    """The text of a file with blanks."""
    tree, lines = ast.parse(source), source.splitlines()

    def replace(first, last, text):  # the number of lines stays as it is until the end
        lines[first - 1 : last] = [text] + [None] * (last - first)

    for name, node in blanks(tree).items():
        if isinstance(node, ast.FunctionDef):
            indent = " " * (node.col_offset + 4)
            replace(*body(node), f'{indent}raise NotImplementedError("{name}: to be written")')
        else:
            before = lines[node.lineno - 1][: node.col_offset]
            after = lines[node.end_lineno - 1][node.end_col_offset :]
            replace(node.lineno, node.end_lineno, f"{before}...{after}")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            first, last = node.body[0].lineno, node.body[0].end_lineno
            text = re.sub(GRADIENT, ".", "\n".join(lines[first - 1 : last]), flags=re.DOTALL)
            indent = {"subsequent_indent": " " * node.body[0].col_offset, "replace_whitespace": False}
            wrapped = [textwrap.fill(line, 110, **indent) for line in text.split("\n")]
            replace(first, last, "\n".join(wrapped))
    first_import = next(node.lineno for node in tree.body if isinstance(node, ast.Import))
    here = f"import sys\n\nsys.path.append({str(run.ROOT)!r})  # where the other modules are\n"
    lines[first_import - 1] = f"{here}{lines[first_import - 1]}"
    return "\n".join(line for line in lines if line is not None) + "\n"


def main(argv=None):
    options = {"description": __doc__.split("\n")[0], "allow_abbrev": False}
    parser = argparse.ArgumentParser("python -m extras.exercise", **options)
    parser.error = lambda message: parser.exit(2, f"exercise.py: {message}\n")
    parser.add_argument("folder", metavar="DIR", help="folder of the exercise, new or empty")
    folder = Path(parser.parse_args(argv).folder)
    if folder.exists() and any(folder.iterdir()):
        raise run.Error(f"{folder}: is not empty; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        source = (run.ROOT / name).read_text(encoding="utf-8")
        run.write(folder / name, make(source))
        print(f"{folder / name}: {len(blanks(ast.parse(source)))} blanks, checked by")
        print(f"    python -m extras.check_gradients --file {folder / name}")


if __name__ == "__main__":
    run.cli(main)
