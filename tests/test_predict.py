"""predict.py as a user runs it: committed networks, any weights file, folders, mistakes, from Python."""

import csv
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
import data
import hybrid_train
import mlp_from_scratch as mlp
import predict
import run
from extras import garment

MODELS = {
    "mlp": "NumPy MLP 784-256-128-10",
    "cnn": "CNN 24-48-96-96-192",
    "hybrid": "CNN 24-48-96-96-192 + NumPy MLP 1728-256-128-10",
}


def trousers(color=(40, 60, 120), background=(235, 230, 225)):
    """A drawing of a pair of trousers, off-center."""
    image = Image.new("RGB", (400, 500), background)
    outline = [(150, 60), (270, 60), (290, 440), (225, 440), (210, 150), (195, 440), (130, 440)]
    ImageDraw.Draw(image).polygon(outline, fill=color)
    return image


@pytest.fixture(scope="module")
def networks():
    return {name: predict.load(run.ROOT / f"models/{name}.safetensors") for name in MODELS}


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
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    first, second = process.stdout.splitlines()[:2]
    assert re.fullmatch(r"my jeans.jpg: Trouser >?\d+ %", first)
    assert second.count(" %") == predict.TOP - 1
    files = {path.name for path in (tmp_path / "out").iterdir()} - {".lock"}
    assert files == {"settings.json", "predictions.csv", "predictions.png"}
    (row,) = read_csv(tmp_path / "out/predictions.csv")
    assert list(row) == [*predict.HEADER, *(f"p({name})" for name in data.CLASSES)]
    assert (row["number"], row["picture"], row["class"]) == ("1", "my jeans.jpg", "Trouser")
    assert (row["warning"], row["inverted"]) == ("", "1")
    assert float(row["probability"]) == float(row["p(Trouser)"]) > 0.7
    assert sum(float(row[f"p({name})"]) for name in data.CLASSES) == pytest.approx(1, abs=1e-4)
    box = [float(row[side]) for side in ("left", "top", "right", "bottom")]
    assert box == pytest.approx([130 / 400, 60 / 500, 290 / 400, 440 / 500], abs=0.01)


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_committed_networks_are_small_and_described(networks):
    assert {name: network.name for name, network in networks.items()} == MODELS
    assert sum(path.stat().st_size for path in (run.ROOT / "models").glob("*.safetensors")) < 10e6
    text = (run.ROOT / "models/README.md").read_text(encoding="utf-8")
    for name, network in networks.items():
        (row,) = (line for line in text.splitlines() if line.startswith(f"| [{name}.safetensors]"))
        assert f"| {network.name} |" in row
        assert f"| {network.temperature:.3f} |" in row


def test_the_committed_networks_have_the_accuracy_that_their_readme_names(real):
    text = (run.ROOT / "models/README.md").read_text(encoding="utf-8")
    for name, restore in (("mlp", mlp.restore), ("cnn", cnn.restore)):  # the hybrid takes as long as the CNN
        model, _ = restore(run.ROOT / f"models/{name}.safetensors")
        logits = (
            cnn.predict_logits(model, real.test.X) if name == "cnn" else model.predict_logits(real.test.X)
        )
        stated = re.search(rf"\| {re.escape(MODELS[name])} \| ([\d.]+) % ", text)[1]
        assert f"{100 * run.accuracy(logits, real.test.y):.2f}" == stated


def test_the_lines_of_python(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    trousers().save("shoe.jpg")
    exec(textwrap.dedent("    from predict" + predict.__doc__.partition("    from predict")[2]), {})
    assert capsys.readouterr().out.startswith("Trouser 0.")


# ---- predictions


def test_a_low_probability_or_a_background_that_is_not_plain_warns(networks, small):
    plain = [trousers(), trousers((200, 40, 60), (120, 200, 180)), trousers((220,) * 3, (0, 0, 0))]
    for picture in plain:
        predictions = [predict.classify(picture, network) for network in networks.values()]
        assert [prediction.label for prediction in predictions] == ["Trouser"] * 3
        assert [bool(p.warning) for p in predictions] == [p.probability < 0.7 for p in predictions]
    assert predict.classify(plain[0], predict.load(small["mlp"])).warning
    prediction = predict.classify(on_tiles(trousers()), networks["cnn"])
    assert (prediction.label, prediction.garment.plain) == ("Trouser", False)
    assert prediction.warning


def test_a_torch_tensor_is_a_picture_too():
    pixels = np.asarray(trousers())
    gray = torch.tensor(pixels[None, ..., 0] / 255, requires_grad=True)  # (1, H, W)
    for tensor in (torch.tensor(pixels), gray):
        assert garment.find(tensor).box == pytest.approx((130, 60, 290, 440), abs=2)


def on_tiles(image):
    """The drawing with tiles of two colors as its background."""
    pixels = np.array(image)
    y, x = np.indices(pixels.shape[:2]) // 50
    background = (pixels == pixels[0, 0]).all(axis=2)
    pixels[background & ((x + y) % 2 == 0)] = (150, 90, 60)
    return Image.fromarray(pixels)


def test_what_a_person_wears_is_looked_for_if_the_whole_is_uncertain(networks):
    pixels = np.full((500, 300, 3), 255, np.uint8)
    pixels[0:90, 110:190] = (60, 40, 30)  # a head, trousers below, and a pullover between them
    pixels[90:330, 90:210], pixels[90:310, 40:90], pixels[90:310, 210:260] = 3 * ((30, 90, 160),)
    pixels[330:500, 95:205] = (40, 40, 45)
    whole = garment.find(pixels)
    assert (whole.plain, whole.cut_off, whole.box) == (True, True, pytest.approx((40, 0, 260, 500), abs=3))
    worn = garment.find(pixels, worn=True)
    assert worn.box == pytest.approx((40, 90, 260, 330), abs=12)
    sure = networks["cnn"]._replace(logits=lambda X: 99 * np.eye(10)[[3]])
    unsure = networks["cnn"]._replace(logits=lambda X: np.zeros((1, 10)))
    assert predict.classify(pixels, sure).garment.box == whole.box
    assert predict.classify(pixels, unsure).garment.box == worn.box


@pytest.mark.parametrize("kind", ["mlp", "cnn", "hybrid", "own"])
def test_probabilities_are_those_of_the_network_after_temperature_scaling(kind, small, tmp_path):
    restore = {"cnn": cnn.restore, "hybrid": hybrid_train.restore}.get(kind, mlp.restore)
    network, (model, metadata) = predict.load(small[kind]), restore(small[kind])
    trousers().save(tmp_path / "a.png")
    arguments = [tmp_path / "a.png", "--model", small[kind], "--output-dir", tmp_path / "out"]
    result = predict.main([*(str(argument) for argument in arguments), "--save-inputs"])
    (prediction,) = result.predictions
    X = prediction.garment.image[None]
    assert X.shape == (1, *metadata["image_shape"]) == (1, *network.shape)
    logits_of = model.predict_logits if restore is mlp.restore else lambda X: cnn.predict_logits(model, X)
    logits = logits_of(X)[0]
    if kind != "own":  # an image of the dataset's kind and its mirror image
        logits = (logits + logits_of(X[..., ::-1])[0]) / 2
    p = np.exp(logits / 1.5) / np.exp(logits / 1.5).sum()
    assert list(prediction.probabilities.values()) == pytest.approx(p, abs=1e-5)
    assert list(prediction.probabilities) == metadata["classes"]
    assert prediction.probability == max(prediction.probabilities.values())
    assert prediction.label == max(prediction.probabilities, key=prediction.probabilities.get)
    assert (result.folder / "predictions.png").stat().st_size > 10_000
    saved = np.asarray(Image.open(result.folder / "inputs/1.png"), float) / 255
    assert saved == pytest.approx(X[0], abs=0.003)


def test_a_network_of_own_data_sees_the_whole_picture(small):
    whole, found = (
        predict.classify(trousers(), predict.load(small[kind])).garment for kind in ("own", "mlp")
    )
    assert (whole.image.shape, whole.box, whole.inverted) == ((20, 30), (0, 0, 400, 500), False)
    assert whole.image.min() == pytest.approx(0.22, abs=0.05)
    assert (found.image[0, 0], found.inverted) == (0, True)


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
    options = ["--model", str(small["cnn"]), "--output-dir"]
    predict.main([str(folder), *options, str(tmp_path / "out")])
    output = capsys.readouterr()
    assert all(name in output.err for name in ("broken.jpg", "deep.png", "black.png", "notes.txt"))
    assert "3 of 6 pictures" in output.out
    names = [str(folder / name) for name in ("$x$ \u9774\n.webp", "a.png", "more/B.JPEG")]
    rows = read_csv(tmp_path / "out/predictions.csv")
    assert [(row["number"], row["picture"]) for row in rows] == list(zip("123", names, strict=True))
    assert (tmp_path / "out/predictions.png").stat().st_size > 10_000
    predict.main([f"{folder}/*.png", *options, str(tmp_path / "glob")])  # Windows' shell leaves it to us
    assert [row["picture"] for row in read_csv(tmp_path / "glob/predictions.csv")] == names[1:2]
    with pytest.raises(run.Error):
        predict.main([str(folder / "deep.png"), str(folder / "black.png"), *options, str(tmp_path / "none")])


def test_sheets_of_48_pictures_with_names_that_differ(small, tmp_path):
    prediction = predict.classify(trousers(), predict.load(small["own"]))
    folder, s = run.RunFolder("predict", sheet_settings(tmp_path / "out")), sheet_settings("")
    names = [f"{tmp_path}/{'long ' * 9}{i}/$name$_{{.png" for i in range(49)]
    with folder:
        predict.save(folder, [prediction._replace(picture=name) for name in names], s)
    assert {path.name for path in folder.path.glob("*.png")} == {"predictions.png", "predictions_2.png"}
    sheets = [predict.contact_sheet([prediction] * count, names[:count]) for count in (1, 48)]
    assert [len(sheet.axes[0].patches) for sheet in sheets] == [1, 48]  # boxes of the garments
    assert max(sheet.get_size_inches()[0] for sheet in sheets) <= 9.01


def sheet_settings(folder):
    output = {"output_dir": str(folder), "resume": "", "seeds": 1, "figure_format": "png"}
    return SimpleNamespace(**output, save_inputs=False)


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
