"""docs/backpropagation.md: quoted code is the source's, numbers are recomputed, call diagrams are real, formulas render."""

import ast
import importlib
import inspect
import re
import sys
import textwrap
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from matplotlib.mathtext import MathTextParser

import check_gradients
import cnn_feature_extraction as cnn
import data
import hybrid_train
import mlp_from_scratch as mlp
from check_gradients import central_differences
from numpy_nn import layers
from numpy_nn.optimizers import OPTIMIZERS
from support import settings, training
from torch_cnn import backbone

PATH = ROOT / "docs/backpropagation.md"
PAGE = PATH.read_text(encoding="utf-8")
LISTINGS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
TEXTS = re.findall(r"^```text\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
QUOTE = re.compile(r"^# (\w+(?:\.\w+)+)\n(.*?)(?=^# \w+(?:\.\w+)+$|\Z)", re.DOTALL | re.MULTILINE)
QUOTES = [(name, code) for listing in LISTINGS for name, code in QUOTE.findall(listing)]
NUMPY_DIAGRAM, TORCH_DIAGRAM = (text for text in TEXTS if not text.startswith("#"))
FORMULAS = re.findall(r"\$\$(.*?)\$\$", PAGE, re.DOTALL)


class Numbers:
    """The numbers in `text` as an array, and by how much rounding may have changed them: half of the last digit."""

    def __init__(self, text):
        self.array = np.array(ast.literal_eval(text), dtype=float)
        digits = [Decimal(number).as_tuple().exponent for number in re.findall(r"-?\d[\d.]*(?:e-?\d+)?", text)]
        self.tolerance = 0.5001 * 10.0 ** min(-4, *digits)  # a whole number is exact

    def assert_equals(self, values, name):
        assert np.shape(values) == self.array.shape, name
        np.testing.assert_allclose(values, self.array, rtol=0, atol=self.tolerance, err_msg=name)


def assignments(text):
    return {name: Numbers(value) for name, value in re.findall(r"(\w+) = (.+?)(?=`| {2,}|$)", text, re.MULTILINE)}


def read_examples():
    """{title: {name: Numbers}} of the blocks that begin with "# title"."""
    chunks = [chunk for text in TEXTS if text.startswith("#") for chunk in text.split("\n\n")]
    titled = [chunk.removeprefix("# ").split("\n", 1) for chunk in chunks]
    found = {title: assignments(body) for title, body in titled}
    inline = re.search(r"With the default epsilon, .*?\n\n", PAGE, re.DOTALL)[0]
    found["BatchNorm(2)"] = {name: found["BatchNorm(2, eps=3)"][name] for name in ("x", "gamma", "beta", "dout")}
    found["BatchNorm(2)"] |= assignments(inline)
    given = assignments(re.search(r"Two images, two neurons, (`x = .*)", PAGE)[1])
    for name, y, dx in re.findall(r"^\| `(\w+)` \| `(\[\[.*?)` \| `(\[\[.*?)` \|$", PAGE, re.MULTILINE):
        found[f"{name}()"] = given | {"y": Numbers(y), "dx": Numbers(dx)}
    return found


EXAMPLES = read_examples()
LAYER_TITLES = [title for title in EXAMPLES if title.split("(")[0] in check_gradients.LAYERS]
LOSS_TITLES = [title for title in EXAMPLES if title.split("(")[0].endswith("cross_entropy")]


def resolve(name):
    """The object with the dotted name, as in mlp_from_scratch.MLP.backward."""
    parts = name.split(".")
    number = next(i for i, part in enumerate(parts) if (ROOT.joinpath(*parts[:i], f"{part}.py")).is_file()) + 1
    value = importlib.import_module(".".join(parts[:number]))
    for part in parts[number:]:
        value = getattr(value, part)
    return value


def arrays(title, *names):
    return [EXAMPLES[title][name].array.copy() for name in names]


def test_the_page_can_be_read_in_one_sitting():
    assert len(PAGE.splitlines()) <= 500
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert links
    assert [link for link in links if not (PATH.parent / link).exists()] == []


@pytest.mark.parametrize(("name", "quote"), QUOTES, ids=[f"{number}-{name}" for number, (name, _) in enumerate(QUOTES)])
def test_quoted_code_stands_in_the_source(name, quote):
    source = inspect.getsource(resolve(name))
    assert any(f"\n{textwrap.indent(quote, indent)}" in source for indent in (4 * " ", 8 * " ", 12 * " "))


def test_every_listing_is_a_quote():
    assert "".join(f"# {name}\n{quote}" for name, quote in QUOTES) == "".join(LISTINGS)


def test_every_layer_and_loss_has_a_quote_and_an_example():
    losses = {loss.__name__ for loss, _ in layers.LOSSES.values()}
    layer_names = {title.split("(")[0] for title in LAYER_TITLES}
    assert layer_names == set(check_gradients.LAYERS)
    assert {title.split("(")[0] for title in LOSS_TITLES} == losses
    assert layer_names | losses <= {name.split(".")[2] for name, _ in QUOTES if name.startswith("numpy_nn.layers.")}


class FixedRng:
    """A generator that draws the numbers of the page."""

    def __init__(self, uniform):
        self.uniform = uniform

    def random(self, out, dtype):
        out[...] = self.uniform
        return out


@pytest.mark.parametrize("title", LAYER_TITLES)
def test_layer_example(title):
    example = EXAMPLES[title]
    uniform = example["uniform"].array if "uniform" in example else None
    layer = eval(title, vars(layers) | {"rng": FixedRng(uniform)})
    x, dout = arrays(title, "x", "dout")
    for name, shape in layer.shapes.items():
        layer.params[name], layer.grads[name] = example[name].array.copy(), np.full(shape, np.nan)
        assert layer.params[name].shape == shape
    layer.buffers = {name: np.zeros(shape) for name, shape in layer.buffer_shapes.items()}

    values = {"y": layer.forward(x, training=True).copy(), "dx": layer.backward(dout).copy()}
    values |= {f"d{name}": gradient for name, gradient in layer.grads.items()}
    if "gamma" in layer.params:
        axis = {"axis": 0} if title.startswith("BatchNorm") else {"axis": 1, "keepdims": True}
        values |= {"mean": x.mean(**axis), "var": x.var(**axis), "rstd": layer.rstd}
        values["x_hat"] = (values["y"] - layer.params["beta"]) / layer.params["gamma"]
    if uniform is not None:
        values["mask"] = layer.mask
    computed = example.keys() - {"x", "dout", "uniform"} - layer.shapes.keys()
    assert {"y", "dx"} <= computed or title == "BatchNorm(2)"
    for name in computed:
        example[name].assert_equals(values[name], name)

    inputs = {"x": x} | layer.params
    leaves = {name: torch.tensor(array, requires_grad=True) for name, array in inputs.items()}
    y = check_gradients.torch_forward(layer, leaves, leaves["x"])
    autograd = torch.autograd.grad((torch.tensor(dout) * y).sum(), list(leaves.values()))
    for (name, array), gradient in zip(inputs.items(), autograd, strict=True):
        if f"d{name}" in example:
            differences = central_differences(lambda: np.vdot(dout, layer.forward(x, training=True)), array)
            example[f"d{name}"].assert_equals(differences, f"d{name} by central differences")
            example[f"d{name}"].assert_equals(gradient.numpy(), f"d{name} by autograd")
        else:
            assert title == "BatchNorm(2)"


@pytest.mark.parametrize("title", LOSS_TITLES)
def test_loss_example(title):
    example = EXAMPLES[title]
    logits, y = example["logits"].array.copy(), example["y"].array.astype(int)
    smoothing = float(re.search(r"smoothing=([\d.]+)", title)[1])

    def loss():
        return eval(title, vars(layers) | {"logits": logits, "y": y})

    targets = np.eye(logits.shape[1])[y] * (1 - smoothing) + smoothing / logits.shape[1]
    values = {"t": targets, "p": layers.softmax(logits), "s": layers.sigmoid(logits)}
    values["loss"], values["dlogits"] = loss()
    for name in example.keys() - {"logits", "y"}:
        example[name].assert_equals(values[name], name)
    example["dlogits"].assert_equals(central_differences(lambda: loss()[0], logits), "by central differences")
    leaf = torch.tensor(logits, requires_grad=True)
    name = next(name for name, (function, _) in layers.LOSSES.items() if function.__name__ in title)
    reference = check_gradients.torch_loss(name, leaf, y, smoothing)
    example["loss"].assert_equals(reference.item(), "loss in PyTorch")
    example["dlogits"].assert_equals(torch.autograd.grad(reference, leaf)[0].numpy(), "by autograd")


def jacobian(function, x):
    return torch.autograd.functional.jacobian(function, torch.tensor(x)).numpy()


def test_the_derivatives_between_the_lines():
    """The formulas that the derivations of batch norm and of both losses pass through, for five images or classes."""
    x, eps, n = np.random.default_rng(0).standard_normal(5), 0.1, 5
    r = (x.var() + eps) ** -0.5
    x_hat, delta = r * (x - x.mean()), np.eye(n)

    def centered(x):
        return x - x.mean()

    def rstd(x):
        return (x.var(correction=0) + eps) ** -0.5

    assert jacobian(centered, x) == pytest.approx(delta - 1 / n)
    assert jacobian(lambda x: x.var(correction=0), x) == pytest.approx(2 / n * (x - x.mean()))
    assert jacobian(rstd, x) == pytest.approx(-(r**3) / 2 * 2 / n * (x - x.mean()))
    assert jacobian(rstd, x) == pytest.approx(-(r**2) / n * x_hat)
    expected = r * (delta - 1 / n - np.outer(x_hat, x_hat) / n)
    assert jacobian(lambda x: centered(x) * rstd(x), x) == pytest.approx(expected)

    p, t, s = np.exp(x) / np.exp(x).sum(), np.random.default_rng(1).dirichlet(np.ones(n)), layers.sigmoid(x)
    assert jacobian(lambda z: torch.log_softmax(z, 0), x) == pytest.approx(delta - p)
    assert jacobian(lambda z: -(torch.tensor(t) * torch.log_softmax(z, 0)).sum(), x) == pytest.approx(p - t)
    assert layers.softmax_cross_entropy(np.log([[0.7, 0.2, 0.1]]), np.array([1]))[1] / 2 == pytest.approx(
        np.array([[0.35, -0.4, 0.05]]))  # the answer to question 6  # fmt: skip
    assert -t * np.log(s) - (1 - t) * np.log(1 - s) == pytest.approx(np.maximum(x, 0) - t * x + np.log1p(np.exp(-abs(x))))
    assert ((1 - t) / (1 - s) - t / s) * s * (1 - s) == pytest.approx(s - t)


def example_titled(start):
    return next((title, example) for title, example in EXAMPLES.items() if title.startswith(start))


def test_penalties_clipping_and_decay():
    title, example = example_titled("l1")
    l1, l2, _, max_norm, weight_decay, lr = map(float, re.findall(r"(?<=\s)\d[.\d]*", title))
    model = mlp.MLP((1, 2), dtype=np.float64)
    ((W, dW),) = model.weights
    W[...] = example["W"].array
    loss = model.add_penalties(l1, l2)
    assert loss == pytest.approx(l1 * np.abs(W).sum() + l2 / 2 * (W**2).sum())
    example["dW"].assert_equals(dW, "dW")
    example["dW"].assert_equals(central_differences(lambda: model.add_penalties(l1, l2), W), "by central differences")
    model.grads[:2], model.grads[2:] = example["grads"].array, 0
    model.clip_grad_norm(max_norm)
    example["clipped"].assert_equals(model.grads[:2], "clipped")
    mlp.Trainer.decay_weights(SimpleNamespace(s=SimpleNamespace(weight_decay=weight_decay), model=model), lr)
    example["decayed"].assert_equals(W, "decayed")


def test_two_steps_of_adam():
    title, example = example_titled("two steps of Adam")
    lr = float(re.search(r"lr = ([\d.]+)", title)[1])
    params, grads = example["params"].array.copy(), np.empty(2)
    optimizer, tensor = OPTIMIZERS["adam"](params, grads), torch.tensor(params.copy(), requires_grad=True)
    reference, m, v, by_formula = torch.optim.Adam([tensor], lr), 0, 0, params.copy()
    for t, grad in enumerate(example["grads"].array, 1):
        grads[:], tensor.grad = grad, torch.tensor(grad)
        optimizer.step(lr)
        reference.step()
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        by_formula -= lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        expected = Numbers(str(example["after"].array[t - 1].tolist()))
        for values in (params, tensor.detach().numpy(), by_formula):
            expected.assert_equals(values, f"step {t}")


def test_a_whole_step():
    example = EXAMPLES["MLP((2, 2, 2))"]
    model, lr = mlp.MLP((2, 2, 2), dtype=np.float64), example["lr"].array
    x, y = example["x"].array, example["y"].array.astype(int)
    model.views["0.W"][...], model.views["1.W"][...] = example["W1"].array, example["W2"].array
    s = settings.load(mlp, **mlp.BASELINE | {"optimizer": "sgd"})
    trainer = mlp.Trainer(model, mlp.make_rngs(0), s, len(y))

    def loss():
        return layers.softmax_cross_entropy(model.forward(x), y)[0]

    differences = central_differences(loss, model.params)
    z = model.layers[0].forward(x)
    values = {"z": z, "h": model.layers[1].forward(z), "logits": model.forward(x, training=True), "loss": loss()}
    _, values["dlogits"] = layers.softmax_cross_entropy(values["logits"], y)
    values["dh"] = model.layers[2].backward(values["dlogits"])
    values["dz"] = model.layers[1].backward(values["dh"])
    values = {name: np.copy(value) for name, value in values.items()}

    assert trainer.train_step(x, y, lr)[0] == values["loss"]
    names = ("dW1", "db1", "dW2", "db2")
    for gradients, way in ((model.grads, "backward"), (differences, "central differences")):
        for name, gradient in zip(names, np.split(gradients, (4, 6, 10)), strict=True):
            example[name].assert_equals(gradient.reshape(example[name].array.shape), f"{name} by {way}")
    values |= {f"new_{name}{number + 1}": model.views[f"{number}.{name}"] for name in "Wb" for number in (0, 1)}
    values |= {"new_loss": loss()}
    for name in example.keys() - {"x", "y", "W1", "W2", "lr", *names}:
        example[name].assert_equals(values[name], name)


def test_the_gradient_crosses_into_pytorch():
    features, W, b, dout, dx = arrays("Linear(3, 2)", "x", "W", "b", "dout", "dx")
    model = mlp.MLP((3, 2), dtype=np.float64)
    model.views["0.W"][...], model.views["0.b"][...] = W, b
    tensor = torch.tensor(features, requires_grad=True)
    hybrid_train.NumpyMLPFunction.apply(tensor, model).backward(torch.tensor(dout))
    assert np.array_equal(tensor.grad.numpy(), dx)


def test_the_table_of_shapes():
    model, _ = mlp.build(784, 10, settings.load(mlp))
    x, y = np.random.default_rng(0).standard_normal((128, 784), dtype=np.float32), np.arange(128) % 10
    rows = re.findall(r"^\| (`.*?`) \| (.*?) \| (\(.*?\)) \| (\(.*?\).*?) \|$", PAGE, re.MULTILINE)
    remaining, layers_of_row, shapes = list(model.layers), [], {}
    for names, *_ in rows[:-1]:
        layers_of_row.append([remaining.pop(0) for _ in re.findall(r"\w+", names)])
        assert [type(layer).__name__ for layer in layers_of_row[-1]] == re.findall(r"\w+", names)
        for layer in layers_of_row[-1]:
            shapes[layer] = [x.shape]
            x = layer.forward(x, training=True)
            shapes[layer].append(x.shape)
    assert remaining == []
    loss, dout = layers.softmax_cross_entropy(x, y)
    assert rows[-1] == ("`softmax_cross_entropy`", "-", f"{x.shape} to {np.shape(loss)}", f"() to {dout.shape}")
    for layer in reversed(model.layers):
        dx = layer.backward(dout, input_gradient=False) if layer is model.first else layer.backward(dout)
        shapes[layer] += [dout.shape, "nothing" if dx is None else dx.shape]
        dout = dx
    for (_, parameters, *columns), row in zip(rows, layers_of_row, strict=False):
        named = [f"{name} {view.shape}" for layer in row for name, view in layer.params.items()]
        assert parameters == ", ".join(named)
        for layer in row:
            assert columns == ["{} to {}".format(*shapes[layer][:2]), "{} to {}".format(*shapes[layer][2:])]


def diagram_edges(diagram):
    """[(caller, callee), ...] of an indented diagram; the first caller is None."""
    edges, path = [], []
    for line in diagram.splitlines():
        indent, name = re.match(r"( *)([\w.]+)", line).groups()
        path = path[: len(indent) // 2]
        edges.append((path[-1] if path else None, name))
        path.append(name)
    return edges


def is_ours(path):
    return path.startswith(str(ROOT)) and "site-packages" not in path


def missing_edges(diagram, action):
    """The edges of the diagram along which no call goes while `action()` runs. Frames of PyTorch are passed over."""
    edges, seen = diagram_edges(diagram)[1:], set()
    codes = {resolve(name).__code__: name for _, name in diagram_edges(diagram)}

    def record(frame, event, argument):
        if event == "call" and frame.f_code in codes:
            caller = frame.f_back
            while caller and not is_ours(caller.f_code.co_filename):
                caller = caller.f_back
            seen.add((caller and codes.get(caller.f_code), codes[frame.f_code]))

    sys.setprofile(record)
    try:
        action()
    finally:
        sys.setprofile(None)
    return [edge for edge in edges if edge not in seen]


def test_the_call_diagram_from_main_to_the_gradient(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "report", lambda *arguments, **options: {})  # draws figures
    flags = ["--dataset", "digits", "--quick", "--epochs", "1", "--hidden", "8", "--no-figures"]
    flags += ["--output-dir", str(tmp_path / "run")]
    regularized = [*flags, "--l2", "0.0001", "--max-grad-norm", "1"]
    assert NUMPY_DIAGRAM.startswith("mlp_from_scratch.main ")
    assert missing_edges(NUMPY_DIAGRAM, lambda: mlp.main(regularized)) == []
    missing = missing_edges(NUMPY_DIAGRAM, lambda: mlp.main(flags))
    assert {name for _, name in missing} == {"mlp_from_scratch.MLP.add_penalties", "mlp_from_scratch.MLP.clip_grad_norm"}


def test_the_call_diagram_into_the_cnn():
    images = data.load("digits", quick=True)
    s = settings.load(hybrid_train, cnn, data, channels=(4,), pool_after=(1,), head_hidden=(8,), device="cpu")
    trainer = cnn.make_trainer(images, s, None, hybrid_train.new_head(images, s))
    x, y = torch.tensor(images.train.X[:8, None]), torch.tensor(images.train.y[:8], dtype=torch.long)
    trainer.model.train()
    assert missing_edges(TORCH_DIAGRAM, lambda: trainer.train_step(x, y, 0.001)) == []
    num_features = backbone.build(settings.load(cnn)).classifier.in_features
    assert f"the gradient of the features, (N, {num_features}) in the default network" in PAGE


@pytest.mark.parametrize("formula", FORMULAS)
def test_formula_renders_on_github(formula):
    """Markdown, which comes before LaTeX there, must leave it alone: no emphasis, no escaped punctuation, no HTML."""
    assert f"\n\n$${formula}$$\n\n" in PAGE
    assert "\n" not in formula
    assert re.findall(r"(?<![A-Za-z0-9])_|\\[^A-Za-z]|[*<>&~`$]|\\operatorname", formula) == []
    MathTextParser("path").parse(f"${formula}$")


def test_every_dollar_sign_belongs_to_a_formula():
    assert len(FORMULAS) > 10
    assert PAGE.count("$") == 4 * len(FORMULAS)


def test_ten_questions_have_answers():
    section = PAGE.split("## Ten questions")[1]
    pairs = re.findall(r"<details><summary>(\d+)\. ([^<]+\?)</summary>\n([^<]+\.)</details>", section)
    assert [int(number) for number, *_ in pairs] == list(range(1, 11))
    assert section.count("<details>") == section.count("</details>") == 10
