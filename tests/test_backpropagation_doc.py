"""docs/backpropagation.md: its code is that of the scripts, its numbers are recomputed, its calls happen."""

import ast
import importlib
import inspect
import re
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

import data
import mlp_from_scratch as mlp

PAGE = (ROOT / "docs/backpropagation.md").read_text(encoding="utf-8")
LISTINGS = re.findall(r"^```python\n# (.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
TEXTS = re.findall(r"^```text\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
DIAGRAMS = [text for text in TEXTS if not text.startswith("#")]
NEXT = re.compile(r"^# (?=[\w.]+$)", re.MULTILINE)  # the name of what is quoted next in a listing
QUOTES = [quote.split("\n", 1) for listing in LISTINGS for quote in NEXT.split(listing)]


def resolve(name):
    """The object with the dotted name, of mlp_from_scratch.py if it begins with no module's name."""
    first, *rest = name.split(".")
    is_module = (ROOT / f"{first}.py").exists()
    value = importlib.import_module(first) if is_module else getattr(mlp, first)
    for part in rest:
        value = getattr(value, part)
    return value


def stripped(text):
    return [line.strip() for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize(("name", "quote"), QUOTES)
def test_quoted_code_stands_in_the_scripts(name, quote):
    value, quote = resolve(name), stripped(quote)
    source = stripped(inspect.getsource(value if callable(value) else mlp))
    assert any(source[i : i + len(quote)] == quote for i in range(len(source)))


def test_every_layer_and_loss_is_quoted_and_has_an_example():
    layers = {layer.__name__ for layer in mlp.Layer.__subclasses__()}
    losses = {loss.__name__ for loss, _ in mlp.LOSSES.values()}
    names = layers | losses | {"Trainer", "MLP", "ACTIVATIONS", "adam"}
    assert {name.split(".")[0] for name, _ in QUOTES} >= names
    assert {title.split("(")[0] for title in OF_LAYERS} == layers - {"Activation"} | set(mlp.ACTIVATIONS)
    assert {title.split("(")[0] for title in OF_LOSSES} == losses


class Numbers:
    """The numbers in `text` as an array, and by how much rounding may have changed them."""

    def __init__(self, text):
        self.array = np.array(ast.literal_eval(text), dtype=float)
        numbers = re.findall(r"-?\d[\d.]*(?:e-?\d+)?", text)
        digits = min(-4, *(Decimal(number).as_tuple().exponent for number in numbers))
        self.tolerance = 0.5001 * 10.0**digits  # a whole number is exact

    def __eq__(self, values):
        same_shape = np.shape(values) == self.array.shape
        return same_shape and np.allclose(values, self.array, rtol=0, atol=self.tolerance)


def assignments(text):
    pairs = re.findall(r"(\w+) = (.+?)(?=`| {2,}|$)", text, re.MULTILINE)
    return {name: Numbers(value) for name, value in pairs}


def read_examples():
    """{title: {name: Numbers}} of the blocks that begin with "# title", and of the table of activations."""
    chunks = [chunk for text in TEXTS if text.startswith("#") for chunk in text.split("\n\n")]
    titled = [chunk.removeprefix("# ").split("\n", 1) for chunk in chunks]
    found = {title: assignments(body) for title, body in titled}
    given = {name: found["BatchNorm(2, eps=3)"][name] for name in ("x", "gamma", "beta", "dout")}
    inline = re.search(r"With the default epsilon, .*?\n\n", PAGE, re.DOTALL)[0]
    found["BatchNorm(2)"] = given | assignments(inline)
    given = assignments(re.search(r"Two images, two neurons, (`x = .*)", PAGE)[1])
    for name, y, dx in re.findall(r"^\| `(\w+)` \| `(\[\[.*?)` \| `(\[\[.*?)` \|$", PAGE, re.MULTILINE):
        found[f"{name}()"] = given | {"y": Numbers(y), "dx": Numbers(dx)}
    return found


EXAMPLES = read_examples()
OF_LAYERS = [title for title, example in EXAMPLES.items() if "dout" in example]
OF_LOSSES = [title for title in EXAMPLES if "smoothing=" in title]
(PENALTIES,) = [title for title in EXAMPLES if title.startswith("l1")]
(ADAM,) = [title for title in EXAMPLES if title.startswith("two steps of Adam")]


@pytest.mark.parametrize("title", OF_LAYERS)
def test_example_of_a_layer(title):
    example = EXAMPLES[title]
    arrays = {name: numbers.array for name, numbers in example.items()}
    rng = SimpleNamespace(random=lambda shape, dtype: arrays["uniform"])
    activations = {name: lambda name=name: mlp.Activation(name) for name in mlp.ACTIVATIONS}
    layer = eval(title, vars(mlp) | {"rng": rng} | activations)
    layer.params = {name: arrays[name] for name in layer.params}
    layer.grads = {name: np.full_like(array, np.nan) for name, array in layer.params.items()}
    y = layer.forward(arrays["x"], training=True)
    values = {"y": y, "dx": layer.backward(arrays["dout"]), "mask": getattr(layer, "mask", None)}
    values |= {f"d{name}": gradient for name, gradient in layer.grads.items()}
    if "gamma" in layer.params:
        x, axis = arrays["x"], 0 if title.startswith("BatchNorm") else 1
        values |= {"mean": x.mean(axis, keepdims=axis), "var": x.var(axis, keepdims=axis), "rstd": layer.rstd}
        values["x_hat"] = (y - layer.params["beta"]) / layer.params["gamma"]
    for name in example.keys() - {"x", "dout", "uniform"} - layer.params.keys():
        assert example[name] == values[name], name


def test_the_graph_of_batch_norm_gives_its_gradient():
    example, steps = EXAMPLES["BatchNorm(2, eps=3)"], EXAMPLES["the graph of BatchNorm(2, eps=3)"]
    values = {name: example[name].array for name in ("x", "gamma", "beta", "dout")} | {"eps": 3, "N": 2}
    rows = re.findall(r"^\| `(\w+)` \| `(\w+ = .*?)` \| `(\w+ = .*?)` \|$", PAGE, re.MULTILINE)
    for name, forward, _ in rows:
        exec(forward, values)
        assert name not in example or example[name] == values[name]
    for _, _, backward in reversed(rows):
        exec(backward, values)
    assert len(rows) == 6
    for name, numbers in (steps | {"dx": example["dx"]}).items():
        assert numbers == values[name], name


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_the_doubled_batch_changes_no_gradient_of_a_parameter(norm):
    rng = np.random.default_rng(0)
    model = mlp.MLP((6, 5, 4, 3), rng, dtype=np.float64, norm=norm)
    x, y, found = rng.standard_normal((8, 6)), rng.integers(0, 3, 8), []
    for copies in (1, 2):
        _, dlogits = mlp.softmax_cross_entropy(
            model.forward(np.tile(x, (copies, 1)), True), np.tile(y, copies)
        )
        dx = model.backward(dlogits, input_gradient=True)
        found.append((model.grads.copy(), dx[:8] * copies))
    for one, two in zip(*found, strict=True):
        assert np.abs(one).max() > 0.01
        assert np.allclose(one, two, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("title", OF_LOSSES)
def test_example_of_a_loss(title):
    example = EXAMPLES[title]
    logits, y = example["logits"].array, example["y"].array.astype(int)
    smoothing = float(re.search(r"smoothing=([\d.]+)", title)[1])
    targets = np.eye(logits.shape[1])[y] * (1 - smoothing) + smoothing / logits.shape[1]
    values = {"t": targets, "p": mlp.softmax(logits), "s": mlp.sigmoid(logits)}
    values["loss"], values["dlogits"] = eval(title, vars(mlp) | {"logits": logits, "y": y})
    for name in example.keys() - {"logits", "y"}:
        assert example[name] == values[name], name


def test_penalties_clipping_and_decay():
    example = EXAMPLES[PENALTIES]
    l1, l2, _, max_norm, decay, lr = map(float, re.findall(r"(?<=\s)\d[.\d]*", PENALTIES))
    model = mlp.MLP((1, 2), dtype=np.float64)
    ((W, dW),) = model.weights
    W[...] = example["W"].array
    model.add_penalties(l1, l2)
    assert example["dW"] == dW
    model.grads[:2], model.grads[2:] = example["grads"].array, 0
    s = SimpleNamespace(l1=0, l2=0, max_grad_norm=max_norm, weight_decay=decay)
    mlp.Trainer.adjust(SimpleNamespace(s=s, model=model), lr)
    assert example["clipped"] == model.grads[:2]
    assert example["decayed"] == W


def test_two_steps_of_adam():
    example, lr = EXAMPLES[ADAM], float(re.search(r"lr = ([\d.]+)", ADAM)[1])
    params, grads, after = example["params"].array.copy(), np.empty(2), []
    optimizer = mlp.Optimizer("adam", params, grads)
    for grads[:] in example["grads"].array:
        optimizer.step(lr)
        after.append(params.copy())
    assert example["after"] == after


def test_a_whole_step():
    example = EXAMPLES["MLP((2, 2, 2))"]
    plain = {"norm": "none", "optimizer": "sgd", "normalize": "none", "hidden": (2,)}
    plain |= dict.fromkeys(("dropout", "weight_decay", "label_smoothing", "ema_decay"), 0.0)
    x, y = example["x"].array, example["y"].array.astype(int)
    images = SimpleNamespace(train=data.Split(x, y, y), classes=("a", "b"))
    trainer = mlp.Trainer(images, mlp.settings(**plain))
    model = trainer.model
    (W1, dW1), (W2, dW2) = model.weights
    (b1, db1), (b2, db2) = ((layer.params["b"], layer.grads["b"]) for layer in model.with_params)
    model.params[:] = 0
    W1[...], W2[...] = example["W1"].array, example["W2"].array
    values = {"logits": model.forward(x, training=True), "z": model.layers[1].x, "h": model.layers[1].y}
    values["loss"], values["dlogits"] = mlp.softmax_cross_entropy(values["logits"], y)
    values["dh"] = model.layers[2].backward(values["dlogits"])
    values["dz"] = model.layers[1].backward(values["dh"])
    trainer.train_step(x, y, example["lr"].array)
    values |= {"dW1": dW1, "db1": db1, "dW2": dW2, "db2": db2}
    values |= {"new_W1": W1, "new_b1": b1, "new_W2": W2, "new_b2": b2}
    values["new_loss"] = mlp.softmax_cross_entropy(model.forward(x), y)[0]
    for name in example.keys() - {"x", "y", "W1", "W2", "lr"}:
        assert example[name] == values[name], name


@pytest.mark.parametrize("name", re.findall(r"^ *([\w.]+)", "".join(DIAGRAMS), re.MULTILINE))
def test_what_the_call_diagrams_name_is_there(name):
    assert callable(resolve(name))
