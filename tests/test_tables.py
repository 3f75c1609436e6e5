"""The tables of the READMEs are those that studies.tables makes from the committed metrics.json files."""

import json
import shutil

import pytest
from conftest import ROOT

from studies import tables
from studies.statistics import verdict
from support import files

FOLDERS = ([folder for folder, _ in tables.RUNS] + [f"references/{folder}" for folder, *_ in tables.REFERENCE_MLPS]
           + [f"{tables.FROZEN}/seed_0", tables.HEADS])  # fmt: skip


@pytest.fixture
def copy(tmp_path):
    """A folder with the READMEs, the metrics.json and the summary.json files, as in the repository."""
    summaries = (path.relative_to(ROOT) for path in ROOT.glob("results/studies/*/summary.json"))
    metrics = (f"results/{folder}/metrics.json" for folder in FOLDERS)
    for path in (*tables.FILES, "results/studies/README.md", *metrics, *summaries):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def test_the_committed_tables_are_those_made_from_the_results(capsys):
    assert tables.main(["--check"]) == 0, capsys.readouterr().out
    assert capsys.readouterr().out == ""


def test_what_we_found_follows_the_studies(copy):
    path = copy / "results/studies/depth/summary.json"
    changed = json.loads(path.read_text(encoding="utf-8"))
    changed["claims"][0] |= {"verdict": "does not hold", "points": -1.25}
    path.write_text(json.dumps(changed), encoding="utf-8")
    assert tables.main(["--check"], copy) == 1
    tables.main([], copy)
    assert "[**does not hold here** (-1.25 points" in (copy / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_changed_number_is_noticed_and_written(copy, folder, capsys):
    assert tables.main(["--check"], copy) == 0
    path = copy / "results" / folder / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    changed = metrics["heads"]["NumPy MLP"] if "heads" in metrics else metrics
    changed["test_accuracy"] += 0.001
    path.write_text(json.dumps(metrics), encoding="utf-8")
    before = (copy / "README.md").read_text(encoding="utf-8")
    assert tables.main(["--check"], copy) == 1
    assert "differs; run python -m studies.tables" in capsys.readouterr().out
    assert (copy / "README.md").read_text(encoding="utf-8") == before  # --check writes nothing
    assert tables.main([], copy) == 0
    assert tables.main(["--check"], copy) == 0
    assert any(f"{100 * changed['test_accuracy']:.2f}" in (copy / name).read_text(encoding="utf-8") for name in tables.FILES)


def test_a_changed_cell_is_noticed(copy):
    for name in tables.FILES:
        path = copy / name
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(" ± 0.", " ± 9."), encoding="utf-8")
        assert tables.main(["--check"], copy) == 1, name
        path.write_text(text, encoding="utf-8")
        assert tables.main(["--check"], copy) == 0


def test_what_is_outside_the_markers_stays():
    text = "before\n<!-- table: heads_run -->\nold\n<!-- end -->\nafter\n"
    filled = tables.fill(text, ROOT / "results")
    assert filled.startswith("before\n<!-- table: heads_run -->\nThe committed study has ")
    assert filled.endswith("```\n<!-- end -->\nafter\n")
    assert "old" not in filled


def test_mistakes_are_named(copy):
    with pytest.raises(files.FileError, match="no table is called speeds; choose from main_output, models"):
        tables.fill("<!-- table: speeds -->\n<!-- end -->\n", ROOT / "results")
    path = copy / "results" / tables.CNN / "metrics.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(files.FileError, match=r"metrics\.json: cannot be read \(Expecting"):
        tables.contents(copy)
    path.unlink()
    with pytest.raises(files.FileError, match=r"metrics\.json: cannot be read \(.*No such file"):
        tables.contents(copy)


def test_every_table_is_in_a_file_and_every_run_in_a_table():
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in tables.FILES]
    names = [match[2] for text in texts for match in tables.MARKED.finditer(text)]
    assert sorted(names) == sorted(tables.TABLES)
    runs = {path.parent.relative_to(ROOT / "results").as_posix() for path in (ROOT / "results").rglob("metrics.json")}
    assert {run for run in runs if "seed_" not in run} == set(FOLDERS) - {f"{tables.FROZEN}/seed_0"}


@pytest.mark.parametrize(("points", "p", "word"), [
    (0.3, 0.01, "better"), (-0.3, 0.01, "worse"), (0.3, 0.05, "not distinguishable"),
])  # fmt: skip
def test_a_verdict_is_that_of_the_study(points, p, word):
    test = {"head": "A", "against": "B", "points": points, "points_std": 0.1, "p_holm": p, "by_seed": []}
    assert tables.word_of(test) == word
    assert f"A vs B: {word};" in verdict(test)


@pytest.mark.parametrize(("p_linear", "p_logistic", "begin"), [
    (0.5, 0.5, "Not measurably: on the features of a frozen CNN, the NumPy MLP is not distinguishable from the CNN's"),
    (0.01, 0.5, "Yes: on the features of a frozen CNN, the NumPy MLP is better than the CNN's linear classifier and not"),
])  # fmt: skip
def test_the_answer_follows_from_the_tests(copy, p_linear, p_logistic, begin):
    path = copy / "results" / tables.HEADS / "metrics.json"
    study = json.loads(path.read_text(encoding="utf-8"))
    for test in study["tests"]:
        if test["head"] == "NumPy MLP":
            test["p_holm"] = p_linear if test["against"] == "CNN, linear classifier" else p_logistic
            test["points"] = 0.2
    path.write_text(json.dumps(study), encoding="utf-8")
    assert tables.mlp_help(copy / "results").replace("\n", " ").startswith(begin)


def test_validation_accuracy_is_omitted_where_the_model_was_trained_on_it():
    metrics = {"val_accuracy": 0.987, "test_accuracy": 0.951, "settings": {"train_on_val": True}}
    assert [tables.percent(metrics, f"{split}_accuracy") for split in ("val", "test")] == ["-", "95.10 %"]
    metrics["settings"]["train_on_val"] = False
    assert tables.percent(metrics, "val_accuracy") == "98.70 %"


def test_times_rows_and_machines_in_words():
    assert [tables.duration(*seconds) for seconds in ((77.5,), (1694.9,), (68.3, 86.6), (507.2, 1081.3), (90, 90.2))] == [
        "78 s", "28 min", "68 to 87 s", "8 to 18 min", "90 s"]  # fmt: skip
    assert [tables.places_of(rows) for rows in ([5], [1, 2], [1, 2, 3, 4], [1, 3, 4])] == [
        "row 5", "rows 1 and 2", "rows 1 to 4", "rows 1, 3 and 4"]  # fmt: skip
    machine = {"processor": "AMD EPYC", "cores": 2, "gpu": "NVIDIA H100"}
    metrics = {"machine": machine, "device": "cpu", "precision": "bfloat16"}
    assert tables.machine(metrics) == "2 cores of an AMD EPYC, in bfloat16"
    assert tables.machine(metrics | {"device": "cuda"}) == "NVIDIA H100, in bfloat16"
    assert tables.machine(metrics | {"precision": "float32"}) == "2 cores of an AMD EPYC"
    assert tables.percent({"x": 0.91234, "x_std": 0.00123}, "x") == "91.23 ± 0.12 %"
    assert tables.percent({}, "x") == "-"
