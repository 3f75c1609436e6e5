"""What the README and the docstrings claim: every figure is that of a committed file, every command runs."""

import importlib
import json
import re
import shlex

import pytest
from conftest import ROOT, SCRIPTS

import cnn_feature_extraction
import data
import runs
import settings

README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| \[[^]]+\]\((results/[^)]+)\)[^|]*\|([^|]*)\|([^|]*)\|([^|]*)\| `(.*)` \|$", README, re.MULTILINE)


def results(script):
    return json.loads((ROOT / "results" / script / "metrics.json").read_text())


def test_the_table_has_a_row_for_each_script():
    assert {path.split("/")[1] for path, *_ in ROWS} == set(SCRIPTS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_tables_figures_are_those_of_the_files(row):
    path, val, test, parameters, command = (cell.strip() for cell in row)
    metrics = json.loads((ROOT / path).read_text())
    assert val == f"{100 * metrics['val_accuracy']:.2f} %"
    assert test == f"{100 * metrics['test_accuracy']:.2f} %"
    assert parameters == f"{metrics['parameters']:,}"
    assert command == metrics["command"]


def test_the_seconds_are_those_of_the_files():
    found = [int(number) for number in re.findall(r"(\d+) s for", README)]
    assert found == [round(results(script)["seconds"]) for script in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_docstring_shows_the_last_lines_of_the_committed_run(script):
    doc, metrics = importlib.import_module(script).__doc__, results(script)
    assert f"{metrics['test_accuracy']:.2%}" in doc
    assert f"{metrics['val_accuracy']:.2%}" in doc
    for name in metrics["versions"].keys() & {"python", "numpy", "torch"}:
        assert metrics["versions"][name].split("+")[0] in doc
    assert f"{metrics['seconds']:.0f} s on {metrics['machine']['cores']} cores" in doc
    assert metrics["machine"]["processor"] in doc


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_committed_results_are_of_real_runs(script):
    folder, metrics = ROOT / "results" / script, results(script)
    assert metrics["dataset"] == "Fashion-MNIST"
    assert (metrics["train_size"], metrics["val_size"], metrics["test_size"]) == (48_000, 12_000, 10_000)
    assert len((folder / "history.csv").read_text().splitlines()) > 2
    for name in ("curves.png", "confusion_matrix.png", "classification_report.png", "samples.png"):
        assert (folder / name).stat().st_size > 10_000
    module = importlib.import_module(script)
    modules = (module, cnn_feature_extraction, data, runs) if script == "hybrid_train" else (module, data, runs)
    defaults = json.loads(json.dumps(vars(settings.load(*modules))))
    different = {name for name in defaults if metrics["settings"].get(name) != defaults[name]}
    assert different <= {"output_dir", "data_dir"}  # the results are those of the constants as they stand


def test_the_hybrids_cnn_is_the_one_of_the_row_above():
    hybrid, alone = results("hybrid_train"), results("cnn_feature_extraction")
    assert (hybrid["cnn_val_accuracy"], hybrid["cnn_test_accuracy"]) == (alone["val_accuracy"], alone["test_accuracy"])


def test_every_command_in_the_readme_is_one_that_the_scripts_take():
    commands = re.findall(r"`?python (\w+)\.py([^`\n]*)`", README)
    assert len(commands) > 8
    for script, flags in commands:
        module = importlib.import_module(script)
        more = (cnn_feature_extraction,) if script == "hybrid_train" else ()
        settings.parse(module, *more, data, runs, argv=shlex.split(flags))


def test_every_file_that_the_readme_links_to_is_there():
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


def test_every_python_file_is_described():
    for path in ROOT.glob("*.py"):
        assert f"[`{path.name}`]({path.name})" in README
