"""The figures and the README of studies, from planted summaries."""

import json
import re
import statistics

import numpy as np
import pytest
from conftest import crowded_texts
from planted_studies import DROPOUT, NOISE, summary_of, with_effects

from studies import output, readme, tables
from studies.study import Claim
from support import files


def planted_result(accuracy, seeds=3, group="", x=None, values=None, epochs=12, failed=0):
    result = {"learning_rate": 0.003, "seeds": list(range(seeds)), "settings": values or {}, "script": "mlp", "group": group}
    if accuracy is None or failed:
        result |= {"failed": failed or seeds, "diverged": True, "message": "the loss became nan"}
    if accuracy is None:
        return result | {"seeds": []}
    test = [accuracy + 0.002 * (seed - 1) for seed in range(seeds)]
    by_seed = {"test_accuracy": test, "val_accuracy": test}
    curve = (accuracy * (1 - np.exp(-np.arange(1.0, epochs + 1)))).tolist()
    result |= {"by_seed": by_seed, "test_accuracy": statistics.fmean(test), "val_accuracy": accuracy, "seconds": 5.0,
               "val_accuracy_by_epoch": curve}  # fmt: skip
    return result | ({"x": x} if x is not None else {})


def planted(variants, **options):
    return {"name": "planted", "question": "Which of the planted variants is the best one?", "dataset": "Fashion-MNIST",
            "baseline": next(iter(variants)), "seeds": 3, "epochs": [12], "variants": variants, "factors": [], "x": "",
            "curves": False} | options  # fmt: skip


LONG = "a long name of a variant that goes on and on, number {}, with batch normalization and dropout"
GROUPS = ("NumPy MLP", "CNN", "CNN features + NumPy MLP")
FIGURES = {
    "dots": planted({f"{p:g}": planted_result(0.88 + p / 100) for p in (0, 0.1, 0.2)}),
    "25 variants": planted({f"variant {n}": planted_result(0.88 + n / 1000) for n in range(25)}, curves=True),
    "long names": planted({LONG.format(n): planted_result(0.88) for n in range(6)}, curves=True),
    "failed": planted({"relu": planted_result(0.88), "gelu": planted_result(None), "sigmoid": planted_result(0.1),
                       "tanh": planted_result(0.87, 2, failed=1)}, curves=True),
    "all failed": planted({"relu": planted_result(None), "gelu": planted_result(None)}, curves=True),
    "one seed, one epoch": planted({name: planted_result(0.88, 1, epochs=1) for name in ("relu", "gelu")}, seeds=1,
                                   epochs=[1], curves=True),
    "heat map": planted({f"{a}, {b}": planted_result(0.8 + a * b / 1e3 if a * b else None, values={"l2": a, "shift": b})
                         for a in range(5) for b in range(5)}, factors=["l2", "shift"]),
    "heat map, long names": planted({f"{a}, {b}": planted_result(0.88, values={"hidden": a, "activation": b})
                                     for a in ([1024, 512, 256], [64, 64]) for b in ("relu", "leaky_relu", "sigmoid")},
                                    factors=["hidden", "activation"]),
    "heat map, 10 x 10": planted({f"{a}, {b}": planted_result(0.5 + (a + b) / 50, values={"l2": a, "batch_size": 2**b})
                                  for a in range(10) for b in range(10)}, factors=["l2", "batch_size"]),
    "lines": planted({f"{group}, {x}": planted_result(0.7 + x / 1e6, group=group, x=x) for group in GROUPS
                      for x in (500, 1_500, 5_000, 15_000, 48_000)}, x="train_size", epochs=[5, 60]),
    "lines, one seed, diverged": planted({f"{x}": planted_result(0.9 - x if x != 0.2 else None, 1, x=x)
                                          for x in (0.0, 0.1, 0.2, 0.4)}, x="label_noise", seeds=1),
    "lines, many places": planted({f"{x}": planted_result(0.8, x=x) for x in np.geomspace(2, 700, 12)}, x="seconds"),
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_readable(name):
    summary = json.loads(json.dumps(FIGURES[name]))
    figure = output.draw(summary)
    assert crowded_texts(figure) == []
    assert figure.get_size_inches()[0] <= 9


def words(name):
    from test_plots import texts

    return texts(output.draw(json.loads(json.dumps(FIGURES[name]))))


def test_figures_show_each_variant_with_its_mean():
    figure = output.draw(FIGURES["failed"])
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["relu (baseline)", "gelu", "sigmoid", "tanh"]
    assert [text.get_text() for text in ax.texts] == ["88.00", "diverged", "10.00", "86.90, 1 diverged"]
    assert ax.get_xlim()[0] > 70  # the one at 10 % is a mark at the edge
    assert [line.get_marker() for line in ax.lines].count("<") == 1
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert sorted(dots[0].get_xdata()) == pytest.approx([87.8, 88.0, 88.2])
    assert "every variant diverged or failed" in words("all failed")


def test_a_variant_far_below_with_a_wide_interval_does_not_stretch_the_range():
    summary = json.loads(json.dumps(FIGURES["failed"]))
    summary["variants"]["sigmoid"]["by_seed"]["test_accuracy"] = [0.1, 0.1, 0.85]  # mean 35 %, up to 143 % by the interval
    low, high = output.draw(summary).axes[0].get_xlim()
    assert 80 < low < 88 < high < 95


def test_a_heat_map_has_a_cell_for_each_pair_and_frames_the_best_on_validation():
    shown = words("heat map")
    assert shown.count("diverged") == 9  # a * b = 0
    assert "81.60" in shown
    figure = output.draw(FIGURES["heat map"])
    assert figure.axes[0].patches[0].get_xy() == (3.5, 3.5)
    summary = json.loads(json.dumps(FIGURES["heat map"]))
    summary["variants"]["1, 2"]["val_accuracy"] = 0.99
    assert output.draw(summary).axes[0].patches[0].get_xy() == (1.5, 0.5)


# ---- README


def test_readme_has_a_section_for_each_study_and_the_words_of_the_summary(tmp_path):
    summary = with_effects({"a": 0, "b|c": 0.02, "d": None}, (Claim("b over a", "b|c", "a"),))
    folder = tmp_path / "planted"
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(summary))
    text = readme.contents(tmp_path, ())
    assert f"**Verdict.** {summary['verdict']}" in text
    assert "- b over a: **holds here** (+2.00 points, p = " in text
    assert "![?](planted/planted.png)" in text
    tables_in = [line for line in text.splitlines() if line.startswith("|")]
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in tables_in[3:]}
    assert cells == {len(readme.COLUMNS) + 1}
    assert "| b\\|c | 0.003 | 83.00 ± 0.17 % | 82.00 ± 0.17 % | +2.00 ± 0.02 |" in text
    assert readme.flag("flip", True) + readme.flag("flip", False) + readme.flag("hidden", [64, 32]) == [
        "--flip", "--no-flip", "--hidden", "64", "32"]  # fmt: skip

    warnings = []
    (tmp_path / "old").mkdir()
    for content in ("{", "{}", "[]"):
        (tmp_path / "old/summary.json").write_text(content)
        readme.write(tmp_path, (), warnings.append)
        assert (tmp_path / "README.md").read_text() == text
        with pytest.raises(files.FileError, match=r"old/summary.json: cannot be read"):
            readme.contents(tmp_path, ())
    assert len(warnings) == 3
    assert "old/summary.json: cannot be read" in warnings[0]
    assert "left out of" in warnings[0]


def test_summaries_give_verdicts_figures_and_readme_anew(tmp_path, capsys):
    folder = tmp_path / "dropout"
    folder.mkdir()
    summary, *_ = summary_of(DROPOUT, lambda s: (0.8 + NOISE[s["seed"]], 0.8))
    summary["name"], summary["verdict"] = "dropout", "an old one"
    (folder / "summary.json").write_text(json.dumps(summary))
    readme.main([str(tmp_path)])
    assert json.loads((folder / "summary.json").read_text())["verdict"].startswith("The best on validation is dropout 0")
    assert (folder / "dropout.png").stat().st_size > 10_000
    assert "an old one" not in (tmp_path / "README.md").read_text()


def test_the_check_covers_the_readme_of_the_studies(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "FILES", ())
    folder = tmp_path / "results/studies/dropout"
    folder.mkdir(parents=True)
    assert tables.main(["--check"], tmp_path) == 0
    (folder / "summary.json").write_text(json.dumps(summary_of(DROPOUT, lambda s: (0.8, 0.8))[0]))
    assert tables.main(["--check"], tmp_path) == 1
    assert tables.main([], tmp_path) == 0
    assert tables.main(["--check"], tmp_path) == 0
    capsys.readouterr()


