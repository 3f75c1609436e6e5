"""predict.py as a user runs it: committed networks, any weights file, folders, mistakes, from Python."""

import csv
import json
import re
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import cnn_feature_extraction as cnn
import hybrid_train
import mlp_from_scratch as mlp
import predict
import run
from extras import measure_pictures

MODELS = [
    "NumPy MLP 784-256-128-10",
    "CNN 24-48-96-96-192",
    "CNN 24-48-96-96-192 + NumPy MLP 1728-256-128-10",
]
RESULTS = run.ROOT / "results/predict"


def trousers(color=(40, 60, 120), background=(235, 230, 225)):
    """A drawing of a pair of trousers, off-center."""
    image = Image.new("RGB", (400, 500), background)
    outline = [(150, 60), (270, 60), (290, 440), (225, 440), (210, 150), (195, 440), (130, 440)]
    ImageDraw.Draw(image).polygon(outline, fill=color)
    return image


@pytest.fixture(scope="module")
def networks():
    return predict.load()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """{kind: path} of weights files of untrained networks."""
    folder = tmp_path_factory.mktemp("small")
    paths = {name: folder / f"{name}.safetensors" for name in ("mlp", "cnn", "hybrid", "head", "own")}
    about = {"dataset": "digits", "classes": list("0123456789"), "image_shape": (28, 28), "temperature": 1.5}
    mlp.save(paths["mlp"], mlp.MLP((784, 8, 10), np.random.default_rng(0)), **about)
    own = about | {"classes": ["$x_1$", "$\\frac{$ 5"], "image_shape": (20, 30), "bright_on_dark": False}
    mlp.save(paths["own"], mlp.MLP((600, 2), np.random.default_rng(0)), **own)
    s = hybrid_train.settings(channels=(3, 4), pool_after=(1, 2))
    model = cnn.CNN(s, 10, 0.3, 0.3, torch.Generator().manual_seed(0)).eval()
    cnn.save(paths["cnn"], model, s, **about)
    head = mlp.MLP((4 * 49, 8, 10), np.random.default_rng(1))
    mlp.save(paths["head"], head, input="features", **about)
    model.classifier = hybrid_train.NumpyHead(head).eval()
    hybrid_train.save(paths["hybrid"], model, s, **about)
    return paths


# ---- a fresh clone


def test_a_picture_in_a_fresh_clone(tmp_path):
    trousers().save(tmp_path / "my jeans.jpg", quality=80)
    command = [sys.executable, str(run.ROOT / "predict.py"), "my jeans.jpg", "--output-dir", "out"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    for model in MODELS:
        assert re.search(rf"^  {re.escape(model)} +Trouser >?\d+ %   ", process.stdout, re.MULTILINE)
    files = {path.name for path in (tmp_path / "out").iterdir()} - {".lock"}
    assert files == {"settings.json", "predictions.csv", "predictions.png"}
    with open(tmp_path / "out/predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["picture", "model", "class", "probability", "warning"]
    assert [row["model"] for row in rows] == MODELS
    assert {(row["picture"], row["class"]) for row in rows} == {("my jeans.jpg", "Trouser")}
    assert all(float(row["probability"]) > 0.7 and not row["warning"] for row in rows)


def test_the_committed_networks_are_small_and_described(networks):
    assert [network.name for network in networks] == MODELS
    assert [network.kind for network in networks] == ["MLP", "CNN", "hybrid"]
    assert sum(path.stat().st_size for path in (run.ROOT / "models").glob("*.safetensors")) < 10e6
    text = (run.ROOT / "models/README.md").read_text(encoding="utf-8")
    for network, name in zip(networks, predict.MODELS, strict=True):
        (row,) = (line for line in text.splitlines() if line.startswith(f"| [{name}.safetensors]"))
        assert f"| {network.name} |" in row
        assert f"| {network.temperature:.3f} |" in row


def test_the_committed_networks_have_the_accuracy_that_their_readme_names(networks, real):
    text = (run.ROOT / "models/README.md").read_text(encoding="utf-8")
    for network in networks[:2]:  # the hybrid takes as long as the CNN
        stated = re.search(rf"\| {re.escape(network.name)} \| ([\d.]+) % ", text)[1]
        assert f"{100 * run.accuracy(network.logits(real.test.X), real.test.y):.2f}" == stated


def test_three_lines_of_python(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    trousers().save("shoe.jpg")
    exec(textwrap.dedent("    from predict" + predict.__doc__.partition("    from predict")[2]), {})
    assert capsys.readouterr().out.count("Trouser") == 3


# ---- predictions


def test_a_low_probability_warns(networks, small):
    for picture in (trousers(), trousers((200, 40, 60), (120, 200, 180)), trousers((220,) * 3, (0, 0, 0))):
        predictions = predict.classify(picture, [*networks, *predict.load(small["mlp"])])
        assert [prediction.label for prediction in predictions[:3]] == ["Trouser"] * 3
        assert [bool(p.warning) for p in predictions] == [p.probability < 0.7 for p in predictions]
        assert predictions[-1].warning


@pytest.mark.parametrize("kind", ["mlp", "cnn", "hybrid", "own"])
def test_probabilities_are_those_of_the_network_after_temperature_scaling(kind, small, tmp_path):
    restore = {"cnn": cnn.restore, "hybrid": hybrid_train.restore}.get(kind, mlp.restore)
    (network,), (model, metadata) = predict.load(small[kind]), restore(small[kind])
    trousers().save(tmp_path / "a.png")
    arguments = [tmp_path / "a.png", "--model", small[kind], "--output-dir", tmp_path / "out"]
    result = predict.main([str(argument) for argument in arguments])
    ((prediction,),) = result.predictions
    X = prediction.garment.image[None]
    assert X.shape == (1, *metadata["image_shape"]) == (1, *network.shape)
    logits = model.predict_logits(X) if restore is mlp.restore else cnn.predict_logits(model, X)
    p = np.exp(logits[0] / 1.5) / np.exp(logits[0] / 1.5).sum()
    assert [prediction.probabilities[name] for name in metadata["classes"]] == pytest.approx(p, abs=1e-5)
    assert list(prediction.probabilities.values()) == sorted(prediction.probabilities.values(), reverse=True)
    assert (prediction.label, prediction.probability) == next(iter(prediction.probabilities.items()))
    assert (result.folder / "predictions.png").stat().st_size > 10_000


def test_a_network_of_own_data_sees_the_whole_picture(small):
    predictions = predict.classify(trousers(), predict.load(small["own"], small["mlp"]))
    whole, found = (prediction.garment for prediction in predictions)
    assert (whole.image.shape, whole.box, whole.inverted) == ((20, 30), (0, 0, 400, 500), False)
    assert whole.image.min() == pytest.approx(0.22, abs=0.05)
    assert (found.image[0, 0], found.inverted) == (0, True)


def test_networks_of_one_architecture_are_told_apart(small, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(small["mlp"].read_bytes())
    names = [network.name for network in predict.load(small["mlp"], other)]
    assert names == [f"NumPy MLP 784-8-10 ({path})" for path in (small["mlp"], other)]


# ---- folders and mistakes


def test_a_folder_with_files_that_cannot_be_read(small, tmp_path, capsys):
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for name in ("a.png", "more/B.JPEG", "$x$ \u9774\n.webp"):
        trousers().save(folder / name)
    (folder / "broken.jpg").write_bytes((folder / "more/B.JPEG").read_bytes()[:300])
    Image.new("I;16", (9, 9)).save(folder / "deep.png")
    Image.new("RGB", (9, 9)).save(folder / "black.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture")
    models = [f"--model={small[kind]}" for kind in ("mlp", "cnn")]
    with pytest.raises(run.Error, match="3 of 6"):
        predict.main([str(folder), "--output-dir", str(tmp_path / "out"), *models])
    messages = capsys.readouterr().err
    assert all(name in messages for name in ("broken.jpg", "deep.png", "black.png", "notes.txt"))
    names = [str(folder / name) for name in ("$x$ \u9774\n.webp", "a.png", "more/B.JPEG")]
    with open(tmp_path / "out/predictions.csv", newline="", encoding="utf-8") as file:
        rows = [(row["picture"], row["model"]) for row in csv.DictReader(file)]
    assert rows == [(name, model) for name in names for model in ("NumPy MLP 784-8-10", "CNN 3-4")]
    assert (tmp_path / "out/predictions.png").stat().st_size > 10_000


def test_a_sheet_of_the_first_48_pictures(small, tmp_path):
    result = predict.classify(trousers(), predict.load(small["own"], small["cnn"]))
    result = [prediction._replace(picture=f"folder/{'long ' * 9}$name$_{{.png") for prediction in result]
    sheets = [predict.contact_sheet([result] * count) for count in (1, 49)]
    assert [len(sheet.axes[0].patches) for sheet in sheets] == [1, 48]  # boxes of the garments
    for sheet in sheets:
        assert sheet.get_size_inches()[0] <= 9.01
    sheets[0].savefig(tmp_path / "sheet.png")


MODEL_FILES = ["none.safetensors", "a.png", "empty", "HEAD", "in/checkpoint.safetensors"]
MISTAKES = [[], ["none.png"], ["a.png", "--modle", "x"], ["empty"], ["a.png", "--output-dir", "in"]]
MISTAKES += [["in", "--output-dir", "in/out"], ["a.png", "--output-dir", "a.png/out"]]


@pytest.mark.parametrize("arguments", [*MISTAKES, *(["a.png", "--model", name] for name in MODEL_FILES)])
def test_mistakes_are_one_line_and_exit_code_2(arguments, small, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "in"):
        (tmp_path / name).mkdir()
    for name in ("a.png", "in/a.png"):
        trousers().save(name)
    run.save_weights(tmp_path / "in/checkpoint.safetensors", {"a": np.zeros(1)}, {"model": "checkpoint"})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    arguments = [str(small["head"]) if argument == "HEAD" else argument for argument in arguments]
    if arguments and "--model" not in arguments:
        arguments += ["--model", str(small["mlp"])]
    if arguments and "--output-dir" not in arguments:
        arguments += ["--output-dir", "out"]
    with pytest.raises(SystemExit) as ended:
        run.cli(lambda: predict.main(arguments))
    assert ended.value.code == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("skipped")]
    assert len(lines) == 1
    assert {path: path.read_bytes() for path in before} == before


# ---- extras/measure_pictures.py


def bag():
    """An image as in the dataset: a bag with a handle."""
    x = np.zeros((28, 28), np.float32)
    x[10:28, 2:26] = np.linspace(0.6, 1, 24)
    x[0:10, 8:20] = 0.8
    x[4:10, 11:17] = 0
    return x


@pytest.mark.parametrize("change", measure_pictures.CHANGES)
def test_a_made_picture_is_what_its_kind_says(change, tmp_path):
    path = measure_pictures.write_picture(tmp_path, 7, bag(), change, 0)
    content = path.read_bytes()
    assert measure_pictures.write_picture(tmp_path, 7, bag(), change, 0).read_bytes() == content
    assert path.name == ("007.jpg" if change in ("JPEG", measure_pictures.ALL) else "007.png")
    picture = np.asarray(Image.open(path), float) / 255
    is_gray = change in ("scaled up", "inverted", "off-center", "in a corner", "JPEG")
    assert (np.ptp(picture, axis=2).max() == 0) == is_gray
    corner = np.median(picture[[0, 0, -1, -1], [0, -1, 0, -1]])
    if change not in ("other background", measure_pictures.ALL):
        assert corner == pytest.approx(0 if change == "scaled up" else 1, abs=0.01)
    seen = measure_pictures.garment.find(path).image
    assert np.abs(seen - bag()).mean() < 0.15
    assert seen[7, 14] < 0.2  # within the handle one sees the background


def test_the_numbers_of_a_small_measurement():
    y = np.array([8, 8, 0])
    logits = 4 * np.eye(10)[[8, 8, 8]] * np.array([[1.0], [1.0], [0.1]])
    softmax, X = mlp.LOSSES["softmax"][1], np.zeros((3, 28, 28))
    network = SimpleNamespace(kind="CNN", logits=lambda X: logits, temperature=1.0, probabilities=softmax)
    shares = measure_pictures.measure([network], X, y)
    assert shares == pytest.approx({"CNN": 2 / 3, "warned": 1 / 3})
    row = measure_pictures.calibration(network, X, y)
    assert (row["temperature"], row["ece"]) == (1.0, row["ece_calibrated"])
    assert row["accuracy"] == pytest.approx({"0": 2 / 3, "5": 2 / 3, "10": 2 / 3, "20": 1, "30": 1})


def test_the_committed_tables_are_those_of_the_committed_numbers(networks):
    committed = json.loads((RESULTS / "pictures.json").read_text(encoding="utf-8"))
    lines = (RESULTS / "README.md").read_text(encoding="utf-8").splitlines()
    assert list(committed["pictures"])[2:] == list(measure_pictures.CHANGES)
    for name, row in committed["pictures"].items():
        shares = [f"{100 * row['found'][kind]:.1f} %" for kind in ("MLP", "CNN", "hybrid")]
        (line,) = (line for line in lines if re.match(rf"\| {re.escape(name)}[ :]", line))
        assert " | ".join(["", *shares, ""]) in line
    for network, (kind, row) in zip(networks, committed["calibration"].items(), strict=True):
        assert (kind, row["temperature"]) == (network.kind, network.temperature)
        numbers = [f"{row['temperature']:.3f}", f"{row['ece']:.4f}", f"{row['ece_calibrated']:.4f}"]
        accuracies = [f"{100 * share:.1f} %" for share in row["accuracy"].values()]
        assert f"| {' | '.join([kind, *numbers, *accuracies])} |" in lines
