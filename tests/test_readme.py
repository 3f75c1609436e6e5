"""The claims of the READMEs and docstrings: commands parse, files exist, the example runs, numbers are those of files."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from conftest import ROOT, SCRIPTS

import cnn_feature_extraction
import data
import experiments
import hybrid_train
import mlp_from_scratch
import transfer_learning
from plots import read_history
from studies import catalog, heads, tables
from studies.cnn import NETWORKS
from support import runs, settings

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "results/README.md", "results/studies/heads/README.md")
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
README = TEXTS["README.md"]
MODULES = {  # whose constants are a script's flags
    "mlp_from_scratch": (mlp_from_scratch, data, runs),
    "cnn_feature_extraction": (cnn_feature_extraction, data, runs),
    "hybrid_train": (hybrid_train, cnn_feature_extraction, data, runs),
    "transfer_learning": (transfer_learning, data, runs),
    "heads": (heads, hybrid_train, cnn_feature_extraction, data, runs),
}
COMMANDS = sorted({match for text in TEXTS.values()
                   for match in re.findall(r"(?:python|torchrun [^`\n]*?) (\w+)\.py([^`\n]*)", text)})  # fmt: skip


def results(folder):
    return json.loads((ROOT / "results" / folder / "metrics.json").read_text(encoding="utf-8"))


def parse(script, flags):
    flags = shlex.split(flags.replace("--resume", "--output-dir"))  # the former asks for a folder that exists
    return settings.parse(*MODULES[script], argv=flags)


def parse_experiments(words):
    """Parse the command line of experiments.py, whose studies and settings are checked as well."""
    if words[:1] == ["heads"]:
        return settings.parse(*MODULES["heads"], argv=words[1:])
    if words[:1] and words[0] in experiments.COMMANDS:
        return importlib.import_module(experiments.COMMANDS[words[0]])
    options = experiments.make_parser().parse_intermixed_args(words)
    if options.studies[:1] == ["sweep"]:
        return catalog.sweep(options.studies[1:], options.vary, options.set, options.seeds)
    return catalog.select(options.studies)


def test_the_readme_is_short_and_in_order():
    assert len(README.splitlines()) <= 210
    assert re.findall(r"^## (.*)$", README, re.MULTILINE) == [
        "Run it", "Results", "Does the NumPy MLP help?", "What we found", "Your own pictures",
        "Use a trained model from Python", "How it works", "Scripts", "Recipes", "A report to hand in", "Tests", "Data",
        "License and citation"]  # fmt: skip
    assert README.index("![") < README.index("## Run it")
    assert README.index("bin/python hybrid_train.py") < 1500


def test_one_line_is_the_test_line():
    lines = re.findall(r"^python3 -m venv .* -m pytest.*$", README, re.MULTILINE)
    assert lines == ["python3 -m venv .venv && .venv/bin/pip install -r requirements.txt pytest pytest-xdist hypothesis && "
                     ".venv/bin/python -m pytest -n 2 --dist loadfile"]  # fmt: skip
    workflow = (ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8")
    assert "grep -E '^python3 -m venv .* -m pytest' README.md" in workflow


@pytest.mark.parametrize(("script", "flags"), COMMANDS, ids=lambda value: value.strip())
def test_every_command_parses(script, flags):
    if script == "experiments":
        parse_experiments(shlex.split(flags))
    elif script in MODULES:
        parse(script, flags)
    else:
        assert callable(importlib.import_module(script).main)


def test_a_wrong_flag_does_not_parse(capsys):
    for flags in ("--epoch 3", "--norm group", "--flip-average"):
        with pytest.raises(SystemExit):
            parse("cnn_feature_extraction", flags)
    assert len(capsys.readouterr().err.splitlines()) == 3
    assert len(COMMANDS) > 25


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_linked_file_exists(name):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", TEXTS[name])
    assert links or name == "CONTRIBUTING.md"
    assert [link for link in links if not ((ROOT / name).parent / link).exists()] == []


def test_every_file_in_the_contributing_guide_exists():
    names = re.findall(r"`(\w+(?:/\w+)*\.py)`", TEXTS["CONTRIBUTING.md"])
    assert len(names) > 8
    assert [name for name in names if not (ROOT / name).is_file()] == []


def test_the_scripts_are_those_of_the_top_level():
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("needs a git clone")
    listing = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True,
                             capture_output=True, check=True).stdout.split()  # fmt: skip
    paths = [Path(name) for name in listing if (ROOT / name).exists() and not name.startswith(".")]
    names = {path.parts[0] for path in paths if len(path.parts) > 1 or path.suffix == ".py"}
    section = README.split("## Scripts")[1].split("## Recipes")[0]
    described = {name.rstrip("/") for name in re.findall(r"\[`([^`]+)`\]\(", section)}
    assert described == names


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_stranger_understands_the_words(name):
    unknown = r"\bR[0-4]\b|own[ ]classifier|drawn[ ]anew|\bso[ ]many\b|learnt|\bin[ ]use\b|take[_]up|surround[i]ngs"
    assert re.findall(unknown, TEXTS[name]) == []


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """The folder of a small run of the main job and its metrics."""
    folder = tmp_path_factory.mktemp("readme") / "run"
    flags = ["--dataset", "digits", "--quick", "--epochs", "1", "--channels", "8", "16", "--pool-after", "1", "2",
             "--output-dir", str(folder)]  # fmt: skip
    return folder, hybrid_train.run(settings.parse(*MODULES["hybrid_train"], argv=flags))


def test_the_python_example_runs(digits_run, capsys):
    example = re.search(r"```python\n(import data.*?)```", README, re.DOTALL)[1]
    assert len(example.splitlines()) == 5
    saved = '"runs/hybrid_train/DATE/hybrid.safetensors"'
    assert (example.count(saved), example.count("data.load()")) == (1, 1)
    example = example.replace(saved, repr(str(digits_run[0] / "hybrid.safetensors")))
    exec(example.replace("data.load()", 'data.load("digits")'), {})
    images, probabilities = data.load("digits", quick=True).test.X, np.load(digits_run[0] / "test_probabilities.npy")
    rows = [np.flatnonzero((images == image).all(axis=(1, 2)))[0] for image in data.load("digits").test.X[:5]]
    assert capsys.readouterr().out.splitlines()[-1] == str([str(i) for i in probabilities[rows].argmax(axis=1)])


def test_the_printed_lines_have_the_form_of_the_scripts(digits_run, tmp_path, capsys):
    folder, metrics = digits_run
    target = tmp_path / tables.FROZEN / "seed_0"
    target.mkdir(parents=True)
    shutil.copy(folder / "metrics.json", target)
    shown = tables.main_output(tmp_path).splitlines()[1:-2]  # without ``` and the folder's path
    capsys.readouterr()
    rows = {f"{metrics['model'].split(' + ')[0]}, linear classifier": "cnn_{}_accuracy",
            f"hybrid: CNN features, {metrics['model'].split(' + ')[1]}": "{}_accuracy",
            "  with flip test-time augmentation (TTA)": "{}_accuracy_flip_tta"}  # fmt: skip
    run = runs.Run("hybrid_train", settings.load(*MODULES["hybrid_train"], output_dir=str(tmp_path / "again")))
    run.finish({name: tuple(metrics[key.format(split)] for split in ("val", "test")) for name, key in rows.items()},
               dataset=metrics["dataset"])  # fmt: skip
    printed = capsys.readouterr().out.splitlines()
    assert shown[:-1] == printed[1 : len(shown)]
    without_time = [re.sub(r", \d+ s;", ";", line) for line in (shown[-1], printed[len(shown)])]
    assert without_time[0] == without_time[1]


def test_the_printed_lines_are_those_of_the_docstring():
    shown = re.search(r"```text\n(.*?)\n\n", README, re.DOTALL)[1]
    lines = {" ".join(line.split()) for line in hybrid_train.__doc__.splitlines()}
    assert [line for line in shown.splitlines() if " ".join(line.split()) not in lines] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_docstring_shows_the_last_lines_of_the_committed_run(script):
    doc, metrics = importlib.import_module(script).__doc__, results(f"{script}/seed_0")
    for name in ("val_accuracy", "test_accuracy", "val_accuracy_flip_tta", "test_accuracy_flip_tta"):
        assert f"{metrics[name]:.2%}" in doc
    for name in metrics["versions"].keys() & {"python", "numpy", "torch"}:
        assert metrics["versions"][name].split("+")[0] in doc
    assert f"{metrics['seconds']:.0f} s on {metrics['machine']['cores']} cores" in doc
    assert metrics["machine"]["processor"] in doc


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_committed_results_are_of_real_runs_with_the_defaults(script):
    metrics = results(script)
    assert metrics["dataset"] == "Fashion-MNIST"
    assert (metrics["train_size"], metrics["val_size"], metrics["test_size"]) == (48_000, 12_000, 10_000)
    defaults = json.loads(json.dumps(vars(settings.load(*MODULES[script]))))
    metrics["settings"] = defaults | metrics["settings"]  # some settings are newer than the run
    different = {name for name in defaults if metrics["settings"][name] != defaults[name]}
    assert different <= {"output_dir", "data_dir", "seeds"}
    for name in ("curves.png", "confusion_matrix.png", "classification_report.png", "samples.png"):
        assert (ROOT / "results" / script / "seed_0" / name).stat().st_size > 10_000


@pytest.mark.parametrize("folder", [*(folder for folder, _ in tables.RUNS),
                                    *(f"references/{name}" for name, *_ in tables.REFERENCE_MLPS)])  # fmt: skip
def test_a_committed_command_makes_the_committed_settings(folder):
    metrics = results(folder)
    script, flags = re.fullmatch(r"python (\w+)\.py(.*)", metrics["command"]).groups()
    given = json.loads(json.dumps(vars(parse(script, flags))))
    given["resume"] = f"results/{folder}" if folder == tables.JOINT else ""  # its seed 2 was resumed
    assert {name for name, value in given.items() if metrics["settings"].get(name, value) != value} <= {"data_dir"}
    assert given["output_dir"] == f"results/{folder}"


def test_the_sentences_about_the_results_hold():
    text = " ".join(TEXTS["results/README.md"].split())
    best, more = results(tables.MLP_BEST), results(tables.ALL_IMAGES)
    seeds = [results(f"{tables.JOINT}/seed_{seed}") for seed in range(3)]
    assert "uses all eight directions, 18 views" in text
    assert [best["shift_tta_views"], more["shift_tta_views"]] == [18, 18]
    assert "most accurate on validation: 18, 10 and 6 for seeds 0, 1 and 2" in text
    assert [(run["shift_tta_views"], run["settings"]["tta"]) for run in seeds] == [(n, "shifts") for n in (18, 10, 6)]
    assert "on all 60,000 images, with seed 0 and otherwise the same settings" in text
    assert more["train_size"] == 60_000
    assert more["settings"]["train_on_val"]
    same = {name for name, value in more["settings"].items() if seeds[0]["settings"][name] == value}
    assert more["settings"].keys() - same == {"tta", "train_on_val", "output_dir"}
    assert "Seed 2 of joint training was interrupted, and resumed" in text
    assert [bool(run["settings"]["resume"]) for run in seeds] == [False, False, True]
    assert "`torch.compile` did not pay off" in text
    first, *later = read_history(ROOT / "results/cnn_compiled/history.csv")["seconds"]
    assert "compiling took half a minute, and each later epoch 19 s instead of 12 to 14 s" in text
    assert (round(median(later)), round((first - median(later)) / 30)) == (19, 1)
    epochs = [median(read_history(path)["seconds"]) for path in (ROOT / "results" / tables.CNN).glob("seed_*/history.csv")]
    assert [round(min(epochs)), round(max(epochs))] == [12, 14]
    assert 'The CNNs of the frozen-backbone runs are those of the row "CNN, linear classifier"' in text
    variants = tables.metrics_of(ROOT / "results", tables.REFERENCES, "summary.json")["variants"]
    gains = [variants[f"{name}, our recipe"]["test_accuracy"] - variants[f"{name}, as published"]["test_accuracy"]
             for name, (network, *_) in NETWORKS.items() if network.get("norm") == "none"]  # fmt: skip
    assert "of the four networks that have none, three are less accurate with the recipe than as published" in text
    assert [len(gains), sum(gain < 0 for gain in gains)] == [4, 3]
    studies = (ROOT / "results/studies/README.md").read_text(encoding="utf-8")
    assert "0.03 is better for this CNN by about 0.8 points" in studies
    tuned, fixed = (tables.metrics_of(ROOT / "results", f"studies/{study}", "summary.json")["variants"][name]
                    for study, name in (("cnn_optimizer", "adam"), ("training_images", "CNN, 48,000")))  # fmt: skip
    assert (tuned["learning_rate"], fixed["learning_rate"]) == (0.03, 0.003)
    assert round(100 * (tuned["test_accuracy"] - fixed["test_accuracy"]), 1) == 0.8
    frozen, cnn = results(tables.FROZEN)["by_seed"], results(tables.CNN)["by_seed"]
    assert all(frozen[f"cnn_{name}"] == cnn[name] for name in ("val_accuracy", "test_accuracy"))


def test_the_measured_column_of_the_targets_is_that_of_the_committed_results():
    lines = re.search(r"\| target \| measured \|\n.*?\n(.*?)\n\n", TEXTS["results/README.md"], re.DOTALL)[1].splitlines()
    measured = [line.split(" | ")[2].rstrip(" |") for line in lines]
    frozen, best, joint, more = map(results, (tables.FROZEN, tables.MLP_BEST, tables.JOINT, tables.ALL_IMAGES))
    frozen_s, best_s, joint_s = (median(run["by_seed"]["seconds"]) for run in (frozen, best, joint))
    assert measured == [f"{100 * frozen['test_accuracy_flip_tta']:.2f} % in {frozen_s:.0f} s",
                        f"{100 * best['test_accuracy']:.2f} % in {best_s / 60:.0f} minutes",
                        f"{100 * best['test_accuracy_shift_tta']:.2f} %",
                        f"{100 * joint['test_accuracy']:.2f} % in {joint_s / 60:.0f} minutes",
                        f"{100 * joint['test_accuracy_shift_tta']:.2f} %",
                        f"{100 * more['test_accuracy_shift_tta']:.2f} %"]  # fmt: skip


def test_the_diagram_has_the_default_networks_shapes():
    s = settings.load(cnn_feature_extraction, hybrid_train)
    sizes, size = [], 28
    for number, channels in enumerate(s.channels, 1):
        sizes.append(f"{channels}x{size}x{size}")
        size //= 2 if number in s.pool_after else 1
    assert " -> ".join(sizes) in README
    num_features = s.channels[-1] * size * size
    assert " -> ".join(f"(N, {n})" for n in (num_features, *s.head_hidden, 10)) in README
    mentioned = re.search(r"2 x 2 max-pooling the (.*?)\.", README)[1]
    assert mentioned == "first, second and fourth"
    assert s.pool_after == (1, 2, 4)
