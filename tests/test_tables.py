"""The tables of the READMEs are those that studies.tables makes from the committed files."""

import json
import shutil

import pytest
from conftest import ROOT, crowded_texts

from studies import figures, finished, output, published, tables

FOLDERS = [*tables.RUNS, "studies/heads"]


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A folder with the READMEs and the JSON files, as in the repository."""
    paths = [f"results/{folder}/metrics.json" for folder in FOLDERS]
    paths += [path.relative_to(ROOT) for path in ROOT.glob("results/studies/*/summary.json")]
    paths += [path.relative_to(ROOT) for path in ROOT.glob("results/benchmark*/*.json")]
    for path in (*tables.FILES, "results/studies/README.md", *paths):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    monkeypatch.setattr(tables.run, "ROOT", tmp_path)
    return tmp_path


def test_the_committed_tables_are_those_made_from_the_results(capsys):
    assert tables.main(["--check"]) == 0, capsys.readouterr().out
    assert capsys.readouterr().out == ""


CHANGES = {  # file in results/: a number in it
    "mlp_best/metrics.json": ("test_accuracy",),
    "studies/as_made/summary.json": ("variants", "R0 MLP", "by_seed", "test_accuracy", 0),
    "studies/heads/metrics.json": ("heads", "NumPy MLP", "test_accuracy"),
    "studies/l1/summary.json": ("run_seconds",),
    "benchmark_xeon/cnn.json": ("speedup", "tutorial"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_number_is_noticed_and_written(copy, name, capsys):
    path, (*keys, last) = copy / "results" / name, CHANGES[name]
    content = changed = json.loads(path.read_text(encoding="utf-8"))
    for key in keys:
        changed = changed[key]
    changed[last] *= 1.1
    path.write_text(json.dumps(content), encoding="utf-8")
    readmes = [copy / readme for readme in (*tables.FILES, "results/studies/README.md")]
    before = [readme.read_text(encoding="utf-8") for readme in readmes]
    assert tables.main(["--check"]) == 1
    assert "differs; run python -m studies.tables" in capsys.readouterr().out
    assert [readme.read_text(encoding="utf-8") for readme in readmes] == before
    with pytest.raises(SystemExit):
        tables.main(["--chek"])  # a typo writes nothing
    assert [readme.read_text(encoding="utf-8") for readme in readmes] == before
    assert (tables.main([]), tables.main(["--check"])) == (0, 0)
    shown = f"{100 * changed[last]:.2f}" if last == "test_accuracy" else ""
    assert any(shown in readme.read_text(encoding="utf-8") for readme in readmes)


@pytest.mark.parametrize("name", tables.FILES)
def test_a_changed_cell_is_noticed(copy, name):
    path = copy / name
    text = path.read_text(encoding="utf-8")
    start = text.index("<!-- table:")
    path.write_text(text[:start] + text[start:].replace("| --- |", "| -- |", 1), encoding="utf-8")
    assert tables.main(["--check"]) == 1
    path.write_text(text.replace("<!-- table: ", "<!-- table: x", 1), encoding="utf-8")
    with pytest.raises(tables.run.Error, match=r"no table is called x\w+; choose from models, accuracies"):
        tables.main([])


def test_the_differences_of_the_default_runs_are_those_that_compare_prints(real):
    folders = ("mlp_from_scratch", "cnn_feature_extraction", "hybrid_train")
    rows = finished.rows_of(finished.compare(finished.read_runs(ROOT / "results" / name for name in folders)))
    page = (ROOT / "results/README.md").read_text(encoding="utf-8")
    assert all(f"| {' | '.join(row[:2] + row[3:6])} |" in page for row in rows)


def test_cells():
    seeds = {"by_seed": {"seconds": [46.2, 48.9, 53.4]}, "seconds": 49.5}
    assert tables.duration(seeds) == "49 s (46 to 53)"
    assert tables.duration({"seconds": 1450.0}) == "24 min"
    machine = {"cores": 2, "processor": "AMD EPYC"}
    assert tables.machine({"machine": machine, "precision": "bfloat16"}) == "2 cores of AMD EPYC, bfloat16"
    assert tables.machine({"machine": machine}) == "2 cores of AMD EPYC"
    on_val = {"val_accuracy": 0.99, "test_accuracy": 0.95, "settings": {"train_on_val": True}}
    assert tables.accuracy("val_accuracy")(on_val) == "-"
    assert tables.accuracy("test_accuracy")(on_val) == "95.00 %"
    several = {"test_accuracy": 0.9, "test_accuracy_std": 0.0012, "by_seed": {"test_accuracy": [0.8988, 0.9]}}
    assert tables.percent(several, "test_accuracy") == "90.00 ± 0.12 %"
    assert tables.markdown(["a|b"], [[1]]) == "| a/b |\n| --- |\n| 1 |\n"


def test_the_figure_of_all_models_is_readable():
    runs = finished.read_runs(ROOT / "results" / folder for folder in tables.MODELS)
    assert crowded_texts(figures.accuracy_vs_parameters(runs, published.results_of("as_made"))) == []


@pytest.mark.parametrize("name", ["initialization", "training_images", "as_made"])
def test_the_figure_of_a_study_is_readable(name):
    assert crowded_texts(output.draw(tables.metrics_of(f"studies/{name}", "summary.json"))) == []
