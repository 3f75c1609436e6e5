"""report.py: figures that a run lacks, damaged runs, the end of a run and the command line."""

import contextlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import PIXEL, Page, command, environment, make_run, one_line, succeeded
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import data
import plots
import report
from studies import finished
from support import files, runs, settings

# ---- figures


@pytest.mark.parametrize("form", ["svg", "pdf"])
def test_the_figures_of_a_run_are_embedded_or_drawn(form, digits, tmp_path):
    folder = make_run(tmp_path / "run", digits, figures=True, figure_format=form, report=True)
    drawn = {path.stem for path in folder.glob(f"*.{form}")}
    assert {"confusion_matrix", "mistakes", "reliability"} <= drawn
    starts = {"svg": b"<?xml", "pdf": b"%PDF"}
    assert (folder / f"reliability.{form}").read_bytes().startswith(starts[form])
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml;base64,") == (form == "svg")  # the run drew no curves
    assert Page(page).words["h1"] == ["NumPy MLP on digits"]


def test_redrawn_figures_have_the_format_of_the_run(digits, tmp_path):
    folder = make_run(tmp_path / "run", digits, figure_format="svg")
    assert list(folder.glob("*.svg")) == []  # figures=False
    plots.main([str(folder)])
    assert (folder / "curves.svg").read_bytes().startswith(b"<?xml")
    assert list(folder.glob("*.png")) == []


def test_a_damaged_figure_is_drawn_again(finished_runs, tmp_path):
    folder = shutil.copytree(finished_runs["one"], tmp_path / "run")
    whole = report.rendered(plots.figure("title", 3, 3)[0])
    (folder / "curves.png").write_bytes(whole[: len(whole) // 2])
    (run,) = finished.read_runs([folder])
    assert report.figures_of(folder, ["curves"], run.images)["curves"].endswith(b"IEND\xaeB`\x82")
    assert report.figures_of(folder, ["reliability"], run.images)["reliability"] == PIXEL


# ---- at the end of a run, and on the command line


def test_a_run_of_several_seeds_ends_with_one_report(digits, tmp_path, capsys):
    folder = make_run(tmp_path / "run", digits, seeds=2, report=True)
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / "report.html")
    assert list(tmp_path.rglob("report.html")) == [folder / "report.html"]
    assert "2 seeds" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_report_needs_the_test_probabilities(digits, tmp_path):
    with pytest.raises(settings.SettingError, match=r"--report: .* leave out --no-save-weights"):
        make_run(tmp_path / "run", digits, report=True, save_weights=False)
    assert list(tmp_path.iterdir()) == []


def test_where_the_report_is_written(finished_runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    single = shutil.copytree(finished_runs["one"], tmp_path / "single")
    report.main([str(single)])
    report.main([str(single), str(finished_runs["three"]), "--title", "Homework"])
    report.main([str(single), "--output", "named.html", "--data-dir", "elsewhere"])  # which digits do not need
    assert capsys.readouterr().out.split() == [str(single / "report.html"), "report.html", "named.html"]
    assert "<title>Homework</title>" in Path("report.html").read_text(encoding="utf-8")


def damage_metrics(folder, change):
    metrics = json.loads((folder / "metrics.json").read_text())
    change(metrics)
    (folder / "metrics.json").write_text(json.dumps(metrics))


DAMAGES = {
    "missing": (shutil.rmtree, "no such folder"),
    "empty": (lambda folder: [path.unlink() for path in folder.iterdir()], "not the folder of a run"),
    "unfinished": (lambda folder: (folder / "metrics.json").unlink(), "finish it with --resume"),
    "cut": (lambda folder: (folder / "metrics.json").write_text("{"), "metrics.json: damaged"),
    "a list": (lambda folder: (folder / "metrics.json").write_text("[1]"), "metrics.json: damaged"),
    "a word": (lambda folder: damage_metrics(folder, lambda m: m.update(test_loss="low")), "is not a number"),
    "no seeds": (lambda folder: damage_metrics(folder, lambda m: m.update(seeds=[])), "seeds are missing"),
    "no model": (lambda folder: damage_metrics(folder, lambda m: m.pop("model")), "model"),
    "other data": (lambda folder: damage_metrics(folder, lambda m: m.update(dataset="letters")), "its dataset is letters"),
    "other accuracy": (lambda folder: damage_metrics(folder, lambda m: m.update(test_accuracy=0.1)), "does not belong"),
    "no history": (lambda folder: (folder / "history.csv").write_text("epoch\n"), "history.csv: damaged"),
    "history": (lambda folder: (folder / "history.csv").write_bytes(b"\xff\x00,\n1"), "damaged"),
    "no probabilities": (lambda folder: (folder / "test_probabilities.npy").unlink(), "probabilities.npy: no such file"),
    "cut probabilities": (lambda folder: (folder / "test_probabilities.npy").write_bytes(b"\x93NUMPY\x01"), "damaged"),
    "few probabilities": (lambda folder: np.save(folder / "test_probabilities.npy", np.ones((3, 10))), "does not belong"),
    "objects": (lambda folder: np.save(folder / "test_probabilities.npy", np.array([{}]), allow_pickle=True), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_unfinished_run_is_one_line(damage, finished_runs, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(finished_runs["one"], tmp_path / "run")
    spoil, said = DAMAGES[damage]
    spoil(folder)
    monkeypatch.setattr("sys.argv", ["report.py"])
    with pytest.raises(SystemExit) as ended:
        runs.cli(lambda: report.main([str(folder)]))
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"report.py: {folder}")
    assert said in line
    assert not (folder / "report.html").exists()


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                    max_leaves=5)  # fmt: skip


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choice=st.data())
def test_any_value_in_metrics_gives_a_page_or_an_error_of_one_line(choice, finished_runs, digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    shutil.copytree(finished_runs["one"], folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    place = choice.draw(st.sampled_from([metrics, metrics, metrics["settings"]]))
    place[choice.draw(st.sampled_from([*place, "seeds", "by_seed"]))] = choice.draw(JSON)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda **options: digits)  # whatever the settings say
        with contextlib.suppress(files.FileError):
            Page(report.build([folder]))


def test_without_a_run_it_says_so(capsys):
    with pytest.raises(SystemExit) as ended:
        report.main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "report.py: the following arguments are required: RUN\n"


def test_the_command_line(finished_runs, tmp_path):
    def run(*arguments):
        return subprocess.run(command("report", *arguments), cwd=tmp_path, env=environment(), capture_output=True, text=True,
                              check=False)  # fmt: skip

    assert "choose another --output" in one_line(run(finished_runs["one"], "--output", "no/such/folder.html"), 1)
    assert succeeded(run(finished_runs["one"], "--output", "page.html")).strip() == "page.html"
