"""The exercise and its checker: an empty copy, a student's right solution, and the usual mistakes."""

import ast
import re
import textwrap

import pytest
from conftest import ROOT

import run
from extras import check_gradients, exercise

# A student's solution: simple lines, names of its own
SOLUTION = {
    "Linear.forward": 'self.inputs = x\nreturn x @ self.params["W"] + self.params.get("b", 0)',
    "Linear.backward": """
        self.grads["W"][...] = self.inputs.T @ dout
        if "b" in self.grads:
            self.grads["b"][...] = dout.sum(axis=0)
        return dout @ self.params["W"].T""",
    "Activation.forward": "self.a = x\nself.b = ACTIVATIONS[self.name][0](x)\nreturn self.b",
    "Activation.backward": "return dout * ACTIVATIONS[self.name][1](self.a, self.b)",
    "relu'": "np.where(y > 0, 1, 0)",
    "tanh'": "1 - y * y",
    "sigmoid'": "y - y**2",
    "Dropout.forward": """
        if training:
            self.kept = self.rng.random(size=x.shape) >= self.p
            return np.where(self.kept, x / (1 - self.p), 0)
        return x""",
    "Dropout.backward": "return self.kept * dout / (1 - self.p)",
    "BatchNorm.forward": """
        mean, var = x.mean(axis=0), x.var(axis=0)
        if training:
            self.buffers["mean"][...] = 0.9 * self.buffers["mean"] + 0.1 * mean
            self.buffers["var"][...] = 0.9 * self.buffers["var"] + 0.1 * x.var(axis=0, ddof=1)
        else:
            mean, var = self.buffers["mean"], self.buffers["var"]
        self.deviation = np.sqrt(var + self.eps)
        self.normal = (x - mean) / self.deviation
        return self.params["gamma"] * self.normal + self.params["beta"]""",
    "BatchNorm.backward": """
        self.grads["gamma"][...] = (dout * self.normal).sum(axis=0)
        self.grads["beta"][...] = dout.sum(axis=0)
        d = dout * self.params["gamma"]
        projection = self.normal * (d * self.normal).mean(axis=0)
        return (d - d.mean(axis=0) - projection) / self.deviation""",
    "softmax_cross_entropy": """
        t = np.eye(logits.shape[1])[y] * (1 - smoothing) + smoothing / logits.shape[1]
        z = logits - logits.max(axis=1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        return -(t * log_p).sum() / len(y), (np.exp(log_p) - t) / len(y)""",
    "sgd": "p[:] = p - lr * g",
    "momentum": "v[:] = optimizer.momentum * v + g\np -= lr * v",
    "adam": """
        t, beta1, beta2, eps = optimizer.t, 0.9, 0.999, 1e-8
        m[:] = beta1 * m + (1 - beta1) * g
        v[:] = beta2 * v + (1 - beta2) * g**2
        p -= lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)""",
    "NumpyMLPFunction.forward": """
        ctx.network = mlp
        return torch.from_numpy(mlp.forward(features.detach().numpy(), training=True))""",
    "NumpyMLPFunction.backward": """
        return torch.from_numpy(ctx.network.backward(dlogits.numpy(), input_gradient=True)), None""",
}
MISTAKES = [  # blank, right text, mistaken text, {array: a word of its name}
    ("Linear.forward", ' + self.params.get("b", 0)', "", {"y": "bias", "y in eval mode": "bias"}),
    ("Linear.backward", '["W"].T', '["W"]', {"dx": "W for W.T"}),
    ("Linear.backward", "self.inputs.T @ dout", "dout.T @ self.inputs", {"dW": "transposed"}),
    ("Linear.backward", "@ dout", "@ dout / len(dout)", {"dW": "division by N too many"}),
    ("Linear.backward", '["b"][...] = dout.sum(axis=0)', '["b"] = dout', {"db": "sum over the batch"}),
    ("Linear.backward", '["W"][...] =', '["W"][...] +=', {"dW": "not filled"}),
    ("Activation.backward", " * ACTIVATIONS[self.name][1](self.a, self.b)", "", {"dx": "no mask"}),
    ("Activation.backward", "self.a, self.b", "self.b, self.a", {"dx": ""}),
    ("relu'", "np.where(y > 0, 1, 0)", "1 + 0 * x", {"f'(x)": "no mask"}),
    ("tanh'", "y * y", "x * x", {"f'(x)": "exchanged"}),
    ("Dropout.forward", " / (1 - self.p)", "", {"y": "1 - p"}),
    ("Dropout.forward", ">=", "<", {"y": "below p"}),
    ("Dropout.forward", "if training", "if True", {"y in eval mode": "eval mode"}),
    ("Dropout.backward", "self.kept * dout / (1 - self.p)", "dout", {"dx": "no mask"}),
    ("BatchNorm.forward", ", ddof=1", "", {"running var": "N - 1"}),
    ("BatchNorm.backward", "d - d.mean(axis=0) - projection", "d", {"dx": "missing sums"}),
    ("BatchNorm.backward", "(dout * self.normal).sum(axis=0)", "dout.sum(axis=0)", {"dgamma": ""}),
    (
        "softmax_cross_entropy",
        "np.exp(log_p) - t) / len(y)",
        "np.exp(log_p) - t)",
        {"dlogits": "division by N"},
    ),
    ("softmax_cross_entropy", "(np.exp(log_p) - t)", "np.exp(log_p)", {"dlogits": "targets"}),
    ("softmax_cross_entropy", "-(t * log_p).sum()", "(t * log_p).sum()", {"loss": "sign"}),
    (
        "softmax_cross_entropy",
        "z = logits - logits.max(axis=1, keepdims=True)",
        "z = logits",
        {"loss of large logits": "overflow"},
    ),
    ("sgd", "p[:] =", "p =", {"params": "in place"}),
    ("sgd", "- lr", "+ lr", {"params": "uphill"}),
    ("momentum", "v[:] = optimizer.momentum * v + g", "v = g", {"params": "no velocity"}),
    ("momentum", "+ g", "+ (1 - optimizer.momentum) * g", {"params": "1 - momentum"}),
    (
        "adam",
        "m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t))",
        "m) / (np.sqrt(v)",
        {"params": "correction"},
    ),
    (
        "NumpyMLPFunction.backward",
        "dlogits.numpy()",
        "-dlogits.numpy()",
        {"dfeatures": "sign", "grads of the MLP": "sign"},
    ),
]


def solve(file, changes):
    """The exercise's copy of a file, its blanks filled by `changes`, SOLUTION or the source's text."""
    source = (ROOT / file).read_text(encoding="utf-8")
    text, solution = exercise.make(source), SOLUTION | changes
    for name, node in exercise.blanks(ast.parse(source)).items():
        if name.endswith("'"):
            own = solution.get(name) or ast.unparse(node.body)
            start = text.index(f'"{name[:-1]}": (')
            text = text[:start] + text[start:].replace(", ...)", f", lambda x, y: {own})", 1)
        else:
            first, last = exercise.body(node)
            own = textwrap.dedent(solution.get(name) or "\n".join(source.splitlines()[first - 1 : last]))
            raised = f'{" " * (node.col_offset + 4)}raise NotImplementedError("{name}: to be written")'
            assert text.count(raised) == 1
            text = text.replace(raised, textwrap.indent(own.strip("\n"), " " * (node.col_offset + 4)))
    return text


def check(path, capsys):
    """(exit code, {blank: verdict}) of the checker."""
    with pytest.raises(SystemExit) as ended:
        check_gradients.main(["--file", str(path)])
    *rows, _ = capsys.readouterr().out.splitlines()
    return int(ended.value.code), {row[:28].strip(): row[28:] for row in rows}


@pytest.fixture
def folder(tmp_path, capsys):
    exercise.main([str(tmp_path / "new")])
    capsys.readouterr()
    return tmp_path / "new"


@pytest.mark.parametrize("file", exercise.FILES)
def test_a_new_copy_has_blanks_and_no_backward_formula(file, folder, capsys):
    code, verdicts = check(folder / file, capsys)
    assert code == 1
    assert set(verdicts.values()) == {"not done"}
    assert len(verdicts) == len(exercise.blanks(ast.parse((ROOT / file).read_text(encoding="utf-8"))))
    text = (folder / file).read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 110
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            docstring = ast.get_docstring(node) or ""
            assert not any(f"{name} =" in docstring for name in ("dW", "db", "dx", "dlogits"))
    assert file == "hybrid_train.py" or "y = x W + b.  x (N, n_in), W (n_in, n_out)" in text


@pytest.mark.parametrize("file", exercise.FILES)
def test_a_students_solution_is_right(file, folder, capsys):
    (folder / file).write_text(solve(file, {}), encoding="utf-8")
    code, verdicts = check(folder / file, capsys)
    assert code == 0
    assert set(verdicts.values()) == {"right"}


@pytest.mark.parametrize(("blank", "right", "mistaken", "expected"), MISTAKES)
def test_a_usual_mistake_is_located_and_named(blank, right, mistaken, expected, tmp_path, capsys):
    assert right in SOLUTION[blank]
    file = exercise.FILES[blank.startswith("NumpyMLP")]
    (tmp_path / file).write_text(
        solve(file, {blank: SOLUTION[blank].replace(right, mistaken)}), encoding="utf-8"
    )
    code, verdicts = check(tmp_path / file, capsys)
    assert code == 1
    assert {name for name, verdict in verdicts.items() if verdict.startswith("wrong")} == {blank}
    pieces = re.split(r"; (?=[^;]*: (?:relative|shape))", verdicts[blank].removeprefix("wrong: "))
    found = dict(piece.split(": ", 1) for piece in pieces)
    for array, word in expected.items():
        assert word in found[array]
        error = re.search("relative error (.*?)(,|$)", found[array])
        assert not error or float(error[1]) > 1e-3


def test_a_backward_pass_may_be_that_of_the_files_own_forward(tmp_path, capsys):
    changes = {"BatchNorm.forward": SOLUTION["BatchNorm.forward"].replace("self.eps", "0.1")}
    (tmp_path / "mlp.py").write_text(solve(exercise.FILES[0], changes), encoding="utf-8")
    code, verdicts = check(tmp_path / "mlp.py", capsys)
    assert code == 1
    assert [name for name in verdicts if verdicts[name].startswith("wrong")] == ["BatchNorm.forward"]
    assert verdicts["BatchNorm.backward"].startswith("right")


def test_code_that_fails_and_a_wrong_pass_after_a_blank_one_are_verdicts(tmp_path, capsys):
    changes = {
        "sgd": "p -= rate",
        "Dropout.forward": "raise NotImplementedError",
        "Dropout.backward": "return dout",
    }
    (tmp_path / "mlp.py").write_text(solve(exercise.FILES[0], changes), encoding="utf-8")
    _, verdicts = check(tmp_path / "mlp.py", capsys)
    assert "NameError" in verdicts["sgd"]
    assert verdicts["Dropout.forward"] == "not done"
    assert "no mask" in verdicts["Dropout.backward"]


def test_the_copies_run_where_they_are_and_no_folder_is_overwritten(folder, script):
    with pytest.raises(run.Error, match="not empty"):
        exercise.main([str(folder)])
    flags = ("--dataset", "digits", "--train-size", 100, "--epochs", 1, "--no-figures", "--output-dir")
    blank = script(str(folder / "mlp_from_scratch.py"), *flags, "blank", PYTHONPATH="")
    assert "NotImplementedError: Linear.forward" in blank.stderr
    for file in exercise.FILES:
        (folder / file).write_text(solve(file, {}), encoding="utf-8")
    solved = script(str(folder / "mlp_from_scratch.py"), *flags, "solved", PYTHONPATH="")
    assert solved.returncode == 0, solved.stderr
    assert run.read_json(folder.parent / "solved/metrics.json")["val_accuracy"] > 0.3
