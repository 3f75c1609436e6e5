"""predict.py as a user runs it: committed networks, any weights file, folders, unreadable files, from Python."""

import csv
import re
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, crowded_texts, one_line, succeeded
from PIL import Image, ImageDraw

import cnn_feature_extraction as cnn
import data
import hybrid_train
import mlp_from_scratch as mlp
import predict
from numpy_nn.calibration import calibrated
from pictures import figures, ood
from support import files, settings, training
from torch_cnn import backbone

MODELS = ["NumPy MLP 784-256-128-10", "CNN 24-48-96-96-192", "CNN 24-48-96-96-192 + NumPy MLP 1728-256-128-10"]


def trousers(color=(40, 60, 120), background=(235, 230, 225)):
    """A drawing of a pair of trousers, off-center."""
    image = Image.new("RGB", (400, 500), background)
    draw = ImageDraw.Draw(image)
    draw.polygon([(150, 60), (270, 60), (290, 440), (225, 440), (210, 150), (195, 440), (130, 440)], fill=color)
    return image


def noise(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (200, 200, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def networks():
    return predict.load()


@pytest.fixture(scope="module")
def small(digits, tmp_path_factory):
    """Weights files of untrained networks for the digits: {"mlp": path, "cnn": ..., "hybrid": ..., "head": ...}."""
    folder, classes = tmp_path_factory.mktemp("small"), digits.classes
    s = settings.load(cnn, data, channels=(3, 4), pool_after=(1, 2))
    logits = np.random.default_rng(0).standard_normal((len(digits.val.y), 10)) + 2 * np.eye(10)[digits.val.y]
    extras = training.for_prediction(digits, logits)
    paths = {name: folder / f"{name}.safetensors" for name in ("mlp", "cnn", "hybrid", "head")}
    metadata = {"dataset": digits.name, "classes": classes, "mean": 0.1, "std": 0.3}
    mlp.save(paths["mlp"], mlp.MLP((784, 8, 10), np.random.default_rng(0)), metadata | extras)
    model = backbone.build(s, 10)
    backbone.save(paths["cnn"], model, digits, s, **extras)
    head = mlp.MLP((4 * 49, 8, 10), np.random.default_rng(1))
    mlp.save(paths["head"], head, metadata | {"split_seed": 0, "input": "features"})
    model.classifier = hybrid_train.NumpyHead(head, 0.0, 0.2, 0.5).eval()
    hybrid_train.save(paths["hybrid"], model, digits, s, **extras)
    return paths


# ---- a fresh clone


def test_a_picture_in_a_fresh_clone_with_no_network(run_script, tmp_path):
    trousers().save(tmp_path / "my jeans.jpg", quality=80)
    printed = succeeded(run_script("predict", "my jeans.jpg")).splitlines()
    assert printed[0] == "my jeans.jpg, inverted"
    for line, model in zip(printed[1:4], MODELS, strict=True):
        assert re.fullmatch(rf"  {re.escape(model)} +Trouser >?\d+ %   [\w/ -]+ <?\d+ %   [\w/ -]+ <?\d+ %", line), line
    folder = tmp_path / printed[-1]
    assert {path.name for path in folder.iterdir()} == {"settings.json", "predictions.csv", "predictions.png"}
    rows = list(csv.DictReader((folder / "predictions.csv").read_text(encoding="utf-8").splitlines()))
    assert list(rows[0]) == ["picture", "model", "class", "probability", "warning"]
    assert [(row["picture"], row["model"], row["class"]) for row in rows] == [("my jeans.jpg", m, "Trouser") for m in MODELS]
    assert all(float(row["probability"]) > 0.5 for row in rows)


def test_the_committed_networks_are_small_and_described(networks):
    paths = sorted((ROOT / "models").glob("*.safetensors"))
    assert [path.stem for path in paths] == sorted(predict.MODELS)
    assert sum(path.stat().st_size for path in paths) < 10e6
    text = (ROOT / "models/README.md").read_text(encoding="utf-8")
    for path, classifier in zip(paths, predict.load(*paths), strict=True):
        assert path.name in text
        assert f"{classifier.temperature:.3f}" in text
        assert classifier.detector.threshold == networks[0].detector.threshold
    assert [classifier.name for classifier in networks] == MODELS


def test_the_committed_networks_have_the_accuracy_that_their_readme_names(networks, real):
    text, X, y = (ROOT / "models/README.md").read_text(encoding="utf-8"), real.test.X, real.test.y
    for classifier in networks[:2]:  # the hybrid takes as long as the CNN
        stated = re.search(rf"\| {re.escape(classifier.name)} \| ([\d.]+) % ", text)[1]
        assert f"{100 * np.mean(classifier.logits(X).argmax(axis=1) == y):.2f}" == stated
    assert np.mean(networks[0].detector.is_unlike(X)) == pytest.approx(0.05, abs=0.01)


# ---- warnings and evidence


def test_noise_and_stripes_are_unlike_the_training_images_and_trousers_are_not(networks):
    assert {p.warning for p in predict.classify(noise(), networks)} == {predict.WARNING}
    stripes = np.tile(np.repeat([0.0, 1.0], 14), (280, 10))
    assert {p.warning for p in predict.classify(stripes, networks)} == {predict.WARNING}
    for color, background in (((40, 60, 120), (235, 230, 225)), ((200, 40, 60), (120, 200, 180)), ((220,) * 3, (0, 0, 0))):
        for prediction in predict.classify(trousers(color, background), networks):
            assert (prediction.label, prediction.warning) == ("Trouser", "")


def test_a_detector_knows_its_training_images(digits):
    detector = ood.Detector(ood.fit(digits))
    assert detector.components.shape == (ood.COMPONENTS, 784)
    assert detector.components @ detector.components.T == pytest.approx(np.eye(ood.COMPONENTS), abs=2e-3)
    assert np.mean(detector.is_unlike(digits.val.X)) == pytest.approx(ood.FALSE_ALARMS, abs=0.01)
    assert np.mean(detector.is_unlike(digits.test.X)) < 0.12
    assert detector.is_unlike(1 - digits.test.X).all()
    x, mean, components = digits.test.X[:1].reshape(1, -1), detector.mean, detector.components  # by least squares
    weights = np.linalg.lstsq(components.T, (x - mean)[0], rcond=None)[0]
    assert detector.score(digits.test.X[:1]) == pytest.approx(((x - mean - weights @ components) ** 2).sum(), rel=1e-2)
    assert ood.fit(digits) == ood.fit(digits)


def test_the_evidence_of_a_hybrid_is_that_of_the_same_head_in_pytorch(small):
    import torch

    from torch_cnn.figures import hires_cam

    (classifier,) = predict.load(small["hybrid"])
    image = np.random.default_rng(0).random((28, 28), dtype=np.float32)
    heat = predict.evidence_map(classifier.network, image, 3)
    model, _ = hybrid_train.restore(small["hybrid"])
    head, (first, second) = model.classifier, [torch.nn.Linear(4 * 49, 8), torch.nn.Linear(8, 10)]
    head.mlp.params[:] = head.params.numpy()
    for layer, ours in zip((first, second), (head.mlp.layers[0], head.mlp.layers[-1]), strict=True):
        layer.weight.data, layer.bias.data = torch.tensor(ours.params["W"].T), torch.tensor(ours.params["b"])
    model.classifier = torch.nn.Sequential(first, torch.nn.ReLU(), second)
    standardized = SimpleNamespace(mean=model.mean, std=model.std, backbone=model.backbone, eval=model.eval,
                                   classifier=lambda x: model.classifier((x - head.mean) / head.std))  # fmt: skip
    expected = hires_cam(standardized, torch.from_numpy(image)[None, None], torch.tensor([3]))[0].numpy()
    assert heat.shape == (28, 28)
    assert heat.max() > 0
    assert heat == pytest.approx(expected, rel=1e-4, abs=1e-7)


# ---- --model FILE


@pytest.mark.parametrize("kind", ["mlp", "cnn", "hybrid"])
def test_any_weights_file_of_a_run(kind, small, tmp_path):
    trousers().save(tmp_path / "a.png")
    predictions, skipped = predict.run([tmp_path / "a.png"], [small[kind]], tmp_path / "out")
    assert skipped == 0
    assert [len(p) for p in predictions] == [1]
    assert set(predictions[0][0].probabilities) == set("0123456789")
    assert (tmp_path / "out/predictions.png").stat().st_size > 10_000


def test_probabilities_are_those_of_the_network_after_temperature_scaling(small, digits):
    (classifier,) = predict.load(small["mlp"])
    model, metadata = mlp.restore(small["mlp"])
    x = digits.test.X[0]
    logits = model.predict_logits((x.reshape(1, -1) - 0.1) / 0.3)
    (prediction,) = predict.classify(x, [classifier])
    p = calibrated(logits, metadata["temperature"])[0]
    assert metadata["temperature"] != 1
    assert [prediction.probabilities[name] for name in digits.classes] == pytest.approx(p, abs=0.01)  # of 8-bit gray
    assert prediction.label == digits.classes[p.argmax()]
    assert list(prediction.probabilities.values()) == sorted(prediction.probabilities.values(), reverse=True)


def test_several_models_in_one_call(small):
    classifiers = predict.load(small["mlp"], small["cnn"])
    assert [p.model for p in predict.classify(trousers(), classifiers)] == ["NumPy MLP 784-8-10", "CNN 3-4"]


def test_a_head_alone_is_refused(small, run_script, tmp_path):
    trousers().save(tmp_path / "a.png")
    process = run_script("predict", "a.png", "--model", small["head"])
    assert one_line(process, 1) == (f"predict.py: {small['head']}: classifies the features of a CNN, not pictures; give "
                                    "hybrid.safetensors beside it")  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_file_of_an_earlier_version_gives_no_warning_and_says_so(small, tmp_path, capsys):
    tensors, metadata = files.load_weights(small["mlp"])
    for name in ("temperature", "loss", "ood"):
        del metadata[name]
    files.save_weights(tmp_path / "old.safetensors", tensors, metadata)
    noise().save(tmp_path / "a.png")
    predictions, _ = predict.run([tmp_path / "a.png"], [tmp_path / "old.safetensors"], tmp_path / "out")
    assert predictions[0][0].warning == ""
    assert "of an earlier version, has no temperature and no threshold" in capsys.readouterr().out


def test_a_network_for_data_of_ones_own_sees_the_whole_picture(small, tmp_path):
    tensors, metadata = files.load_weights(small["mlp"])
    mine = {"dataset": "digits_of_mine", "bright_on_dark": False}
    files.save_weights(tmp_path / "own.safetensors", tensors, metadata | mine)
    (own,), (digits_network,) = predict.load(tmp_path / "own.safetensors"), predict.load(small["mlp"])
    whole, found = (predict.classify(trousers(), [c])[0].garment for c in (own, digits_network))
    assert (whole.image.min(), whole.box) == (pytest.approx(0.22, abs=0.05), (0, 0, 400, 500))
    assert (found.image[0, 0], found.inverted) == (0, True)


@pytest.mark.parametrize("change", [
    {"model": "checkpoint"}, {"model": None}, {"temperature": -1.0}, {"temperature": "warm"}, {"loss": "hinge"},
    {"mean": [1.0, 2.0]}, {"classes": 3}, {"ood": {}}, {"ood": {"mean": "!", "components": "", "threshold": 1}},
    {"ood": {"mean": "AAAA", "components": "AAAA", "threshold": 1}},
])  # fmt: skip
def test_metadata_that_are_nonsense(change, small, tmp_path):
    tensors, metadata = files.load_weights(small["mlp"])
    files.save_weights(tmp_path / "bad.safetensors", tensors, metadata | change)
    with pytest.raises(files.FileError, match=r"bad\.safetensors: "):
        predict.load(tmp_path / "bad.safetensors")


# ---- folders and faults


def test_a_folder_gives_a_table_and_a_contact_sheet_and_names_what_it_skips(small, run_script, tmp_path):
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    trousers().save(folder / "a.png")
    trousers().save(folder / "more/B.JPEG")
    trousers().save(folder / "$x$ \u9774\n.webp")
    noise().save(folder / "c.gif")
    (folder / "broken.jpg").write_bytes((folder / "more/B.JPEG").read_bytes()[:300])
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture")
    process = run_script("predict", "pictures", "--output-dir", "out", "--model", small["mlp"], "--model", small["cnn"])
    assert process.returncode == 1
    skipped = process.stderr.splitlines()
    assert len(skipped) == 2
    assert skipped[0].startswith("skipped pictures/broken.jpg: damaged, or not a picture")
    assert skipped[1] == "skipped pictures/c.gif: not a PNG, JPEG or WebP picture"
    assert process.stdout.splitlines()[-2:] == ["3 pictures, 2 skipped; predictions.csv and contact_sheet.png are in", "out"]
    rows = list(csv.reader((tmp_path / "out/predictions.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0] == ["picture", "model", "class", "probability", "warning"]
    names = ["pictures/$x$ \u9774?.webp", "pictures/a.png", "pictures/more/B.JPEG"]
    assert [row[:2] for row in rows[1:]] == [[name, model] for name in names for model in ("NumPy MLP 784-8-10", "CNN 3-4")]


@pytest.mark.parametrize(("arguments", "code", "message"), [
    ((), 2, "name a picture or a folder of pictures, such as: python predict.py shoe.jpg"),
    (("",), 2, "name a picture or a folder of pictures, such as: python predict.py shoe.jpg"),
    (("a.png", "--model", "empty"), 1, "empty: is a folder; name one of its weights files: there is none"),
    (("a.png", "--output-dir", "a.png/out"), 1, "cannot write to a.png/out: "),
    (("a.png", "--modle", "x"), 2, "unknown flag --modle (did you mean --model?); --help lists all flags"),
    (("none.png",), 1, "none of the pictures could be used"),
    (("a.png", "--model", "none.safetensors"), 1, "none.safetensors: no such file"),
    (("a.png", "--model", "a.png"), 1, "a.png: not a weights file of this project"),
    (("empty",), 1, "empty: no pictures (PNG, JPEG or WebP) in this folder"),
    (("in/a.png", "--output-dir", "in"), 1, "--output-dir in: contains the pictures; name another folder"),
])  # fmt: skip
def test_mistakes_are_one_line(arguments, code, message, tmp_path, monkeypatch, capsys):
    from support import entry

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["predict.py"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "in").mkdir()
    for name in ("a.png", "in/a.png"):
        trousers().save(name)
    with pytest.raises(SystemExit) as ended:
        entry.cli(lambda: predict.main(list(arguments)))
    assert ended.value.code == code
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("skipped")]
    assert len(lines) == 1
    assert lines[0].startswith(f"predict.py: {message}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "empty", "in"]


def test_its_own_results_are_no_pictures_and_a_users_table_is_kept(small, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    trousers().save(folder / "a.png")
    for _ in range(2):  # the second time, the first results are renamed
        results, _ = predict.run([folder], [small["mlp"]], folder / "out")
        assert [result[0].picture for result in results] == [str(folder / "a.png")]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/predictions.csv").write_text("my own")
    with pytest.raises(files.FileError, match=r"mine: has a predictions.csv that is not this script's"):
        predict.run([folder], [small["mlp"]], tmp_path / "mine")
    assert (tmp_path / "mine/predictions.csv").read_text() == "my own"


def test_two_networks_of_one_architecture_are_told_apart(small, tmp_path):
    tensors, metadata = files.load_weights(small["mlp"])
    files.save_weights(tmp_path / "other.safetensors", tensors, metadata)
    networks = predict.load(small["mlp"], tmp_path / "other.safetensors", small["mlp"])
    assert [network.name for network in networks] == [f"NumPy MLP 784-8-10 ({path})" for path in (
        small["mlp"], tmp_path / "other.safetensors")]  # fmt: skip
    colors = figures.colors_of([network.name for network in networks])
    assert len(set(colors.values())) == 2


def test_class_names_that_are_formulas_or_long_can_be_drawn(networks):
    names = ("$\\frac{$ 5", "_x", "a very long name of a class of my own number 1", "$x^2$", "\u9774") * 2
    odd = [network._replace(classes=names[:5] + tuple(f"{name} b" for name in names[5:])) for network in networks]
    results = [predict.classify(trousers(), odd), predict.classify(noise(), odd)]
    maps = [predict.evidence(result, odd) for result in results]
    for figure in (*figures.contact_sheets(results).values(), figures.predictions(results, maps)):
        assert crowded_texts(figure) == []


def test_a_sheet_for_each_48_pictures_and_figures_that_can_be_read(networks):
    results = [predict.classify(trousers(), networks), predict.classify(noise(), networks)]
    results = [[p._replace(picture=f"folder/{'long ' * 9}$name$.png") for p in result] for result in results]
    sheets = figures.contact_sheets(results * 25)
    assert list(sheets) == ["contact_sheet_1.png", "contact_sheet_2.png"]
    maps = [predict.evidence(result, networks) for result in results]
    assert maps[0][0] == "CNN 24-48-96-96-192"
    for figure in (*sheets.values(), *figures.contact_sheets(results).values(), figures.predictions(results, maps)):
        assert crowded_texts(figure) == []
        assert figure.get_size_inches()[0] <= 9


def test_three_lines_of_python(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    trousers().save("shoe.jpg")
    for name, pattern in (("README.md", r"```python\n(from predict .*?)```"), ("predict.py", r"    (from predict .*?)\n\"")):
        example = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)[1]
        example = example.replace("\n    ", "\n") if name == "predict.py" else example
        assert len(example.strip().splitlines()) == 3
        exec(example, {})
        assert capsys.readouterr().out.count("Trouser") == 3
