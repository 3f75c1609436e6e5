"""What the README and the docstrings claim: every figure is that of a committed file, every flag is one that there is."""

import importlib
import json
import re
import shlex

import pytest
from conftest import ROOT, SCRIPTS

from torch_cnn import backbone
import benchmark
import cnn_feature_extraction
import data
from studies import heads
import hybrid_train
from support import runs
from support import settings

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINK = r"^\| \[([^]]+)\]\((results/[^)]+)\)([^|]*)\|"
ROWS = re.findall(LINK + r"([^|]*)\|([^|]*)\|([^|]*)\| `(python \w+\.py [^`]*)` \|$", README, re.MULTILINE)
MAIN, OTHERS = [row for row in ROWS if "/mlp_r" not in row[1]], [row for row in ROWS if "/mlp_r" in row[1]]


def results(script):
    return json.loads((ROOT / "results" / script / "metrics.json").read_text())


def percent(metrics, name):
    std = f" ± {100 * metrics[name + '_std']:.2f}" if f"{name}_std" in metrics else ""
    return f"{100 * metrics[name]:.2f}{std} %"


def test_the_table_has_a_row_for_each_script():
    assert {path.split("/")[1] for _, path, *_ in MAIN} == {*SCRIPTS, "mlp_best", "hybrid_best"}
    assert len(OTHERS) == 6


@pytest.mark.parametrize("row", MAIN, ids=lambda row: row[1] + row[2])
def test_the_tables_figures_are_those_of_the_files(row):
    _, path, what, val, test, parameters, command = (cell.strip() for cell in row)
    metrics, kind = json.loads((ROOT / path).read_text()), "_mirrored" if "mirrored" in what else ""
    assert val == percent(metrics, f"val_accuracy{kind}")
    assert test == percent(metrics, f"test_accuracy{kind}")
    assert parameters == f"{metrics['parameters']:,}"
    assert command == metrics["command"]
    if "seeds" in what:
        assert len(metrics["by_seed"]["test_accuracy"]) == int(re.search(r"(\d+) seeds", what)[1])


@pytest.mark.parametrize("row", OTHERS, ids=lambda row: row[0])
def test_the_figures_beside_other_projects(row):
    _, path, _, network, _, test, command = (cell.strip() for cell in row)
    metrics = json.loads((ROOT / path).read_text())
    assert metrics["model"].removeprefix("NumPy MLP ") == network.split(",")[0]
    assert test == percent(metrics, "test_accuracy")
    assert command == metrics["command"]


def benchmarks(part):
    """Those of the two machines, in the order of the README's columns."""
    folders = (ROOT / "results" / name for name in ("benchmark", "benchmark_xeon"))
    return [json.loads((folder / f"{part}.json").read_text()) for folder in folders]


def test_the_speeds_are_those_of_the_files():
    amd, intel = benchmarks("mlp")
    assert ("AMD" in amd["machine"]["processor"], "Intel" in intel["machine"]["processor"]) == (True, True)
    for side, goal in amd["targets"].items():
        both = f"{amd['ratios'][side]:.2f} | {intel['ratios'][side]:.2f}"
        assert f"| {benchmark.NAMES[side]} | {both} | {goal:.2f} |" in README
    for side in ("ours", "torch_fused"):
        alone = amd["alone"][side]
        told = rf"takes {alone['mebibytes']:.0f} MiB( of memory at most,)? and ({alone['seconds']:.1f}) s"
        assert re.search(told, README)[2] == f"{alone['seconds']:.1f}"
    assert f"faster one: {amd['tables']['hidden']['784-1024-1024-10']['against_torch_fused']:.2f}." in README


def test_the_speeds_of_the_cnn_and_the_hybrid_are_those_of_the_files():
    cnns, hybrids = benchmarks("cnn"), benchmarks("hybrid")
    race, seed_0 = (json.loads((ROOT / "results" / path).read_text())
                    for path in ("benchmark/race.json", "hybrid_train/seed_0/metrics.json"))  # fmt: skip
    hybrid, cnn = results("hybrid_train"), results("cnn_feature_extraction")
    assert all(f"`{found['command']}`" in README for found in (*cnns, *hybrids))
    assert [found["precision"] for found in cnns] == [found["precision"] for found in hybrids] == ["bfloat16", "float32"]
    rows = {
        "ours / the usual loop": [f"{found['faster']['tutorial']:.2f}" for found in cnns],
        "outside the convolutions' own passes": [f"{100 * (1 - cnns[0]['shares']['convolutions']):.1f} %", "-"],
        "averaging of the weights": [f"{100 * cnns[0]['shares']['outside']:.1f} %", "-"],
        "a step of joint training": [f"{100 * (found['ratios']['twin'] - 1):+.1f} %" for found in hybrids],
        "to its last line": [f"{hybrid['seconds']:.0f} s", "-"],
        "its peak memory": [f"{seed_0['peak_memory_mib'] / 1024:.1f} GiB", "-"],
        f"without it {cnn['seconds']:.0f} s in the mean": [f"{results('cnn_compiled')['seconds']:.0f} s", "-"],
        "ours by default / theirs": [f"{race['ratio']:.2f}", "-"],
    }
    for what, cells in rows.items():
        assert f"{what} | {' | '.join(cells)} |" in README


def test_the_studys_table_is_that_of_its_file():
    study = json.loads((ROOT / "results/hybrid_study/metrics.json").read_text())
    assert study["dataset"] == "Fashion-MNIST"
    assert f"CNNs of seeds 0 to {study['seeds'][-1]}" in README
    assert f"`{study['command']}`" in README
    for name, head in study["heads"].items():
        learnt = percent(head, "train_accuracy") if "train_accuracy" in head else "-"
        assert f"| {name} | {learnt} | {percent(head, 'test_accuracy')} |" in README
    assert all(verdict.replace("+-", "±") in README for verdict in study["verdicts"])
    shown = [verdict for verdict in study["verdicts"] if not verdict.endswith("no difference shown")]
    assert [verdict.split(":")[0] for verdict in shown] == ["NumPy MLP, against logistic regression"]  # as the README says
    assert shown[0].endswith("worse")
    single = {(test["head"], test["against"], one["seed"]) for test in study["tests"] for one in test["by_seed"]
              if one["p_holm"] < hybrid_study.LEVEL}  # fmt: skip
    assert single == {("logistic regression", "CNN, linear classifier", 0)}
    assert [one["k nearest neighbours"] for one in study["chosen"].values()].count(min(hybrid_study.NEIGHBOURS)) == 3
    defaults = json.loads(json.dumps(vars(settings.load(hybrid_study, hybrid_train, cnn_feature_extraction, data, runs))))
    different = {name for name in defaults if study["settings"][name] != defaults[name]}
    assert different <= {"output_dir", "data_dir", "backbones", "resume"}


def test_the_seconds_are_those_of_the_files():
    found = [int(number) for number in re.findall(r"(\d+) s\s+for", README)]
    assert found == [round(results(script)["seconds"]) for script in SCRIPTS]
    for best, words in (("mlp_best", "best MLP took {} to {} minutes"), ("hybrid_best", "best hybrid {} to {}.")):
        minutes = [seconds / 60 for seconds in results(best)["by_seed"]["seconds"]]
        assert words.format(round(min(minutes)), round(max(minutes))) in README


def test_the_machines_are_those_of_the_files():
    """CNN and hybrids on the AMD machine, the MLPs and the study on the Intel one."""
    for script in ("cnn_feature_extraction", "hybrid_train", "mlp_from_scratch", "mlp_best", "hybrid_best", "hybrid_study"):
        amd = script in ("cnn_feature_extraction", "hybrid_train", "hybrid_best")
        name = "AMD EPYC" if amd else "Intel(R) Xeon(R) Processor @ 2.50GHz"
        assert results(script)["machine"]["processor"] == name


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_docstring_shows_the_last_lines_of_the_committed_run(script):
    doc, metrics = importlib.import_module(script).__doc__, results(script)
    first = metrics | {name: values[0] for name, values in metrics.get("by_seed", {}).items()}  # what the command prints
    assert f"{first['test_accuracy']:.2%}" in doc
    assert f"{first['val_accuracy']:.2%}" in doc
    for name in metrics["versions"].keys() & {"python", "numpy", "torch"}:
        assert metrics["versions"][name].split("+")[0] in doc
    assert f"{first['seconds']:.0f} s on {metrics['machine']['cores']} cores" in doc
    assert metrics["machine"]["processor"] in doc


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_committed_results_are_of_real_runs(script):
    folder, metrics = ROOT / "results" / script, results(script)
    assert metrics["dataset"] == "Fashion-MNIST"
    assert (metrics["train_size"], metrics["val_size"], metrics["test_size"]) == (48_000, 12_000, 10_000)
    folder = folder / "seed_0" if "seeds" in metrics else folder
    assert len((folder / "history.csv").read_text().splitlines()) > 2
    for name in ("curves.png", "confusion_matrix.png", "classification_report.png", "samples.png"):
        assert (folder / name).stat().st_size > 10_000
    module = importlib.import_module(script)
    modules = (module, cnn_feature_extraction, data, runs) if script == "hybrid_train" else (module, data, runs)
    defaults = json.loads(json.dumps(vars(settings.load(*modules))))
    different = {name for name in defaults if metrics["settings"][name] != defaults[name]}
    assert different <= {"output_dir", "data_dir", "seeds"}  # the results are those of the constants as they stand


def test_the_hybrids_cnns_are_told_beside_them():
    default = percent(results("hybrid_train"), "cnn_test_accuracy")
    assert f"whose own classifiers reach {default} on the test images" in " ".join(README.split())


def test_the_hybrids_cnns_are_those_of_the_rows_above():
    hybrid, alone = results("hybrid_train")["by_seed"], results("cnn_feature_extraction")["by_seed"]
    assert all(hybrid[f"cnn_{name}"] == alone[name] for name in ("val_accuracy", "test_accuracy"))


def test_the_other_projects_cnns_have_the_parameters_that_are_told():
    rows = re.findall(r"\| ([\d,]+) \| `python cnn_feature_extraction.py ([^`]*)` \|$", README, re.MULTILINE)
    rows = [(parameters, flags) for parameters, flags in rows if "--output-dir" not in flags]
    assert len(rows) == 7
    for parameters, flags in rows:
        s = settings.parse(cnn_feature_extraction, data, runs, argv=shlex.split(flags))
        assert f"{backbone.build(s).num_parameters:,}" == parameters


def test_every_command_in_the_readme_is_one_that_the_scripts_take():
    commands = re.findall(r"`?python (\w+)\.py([^`\n]*)`", README)
    assert len(commands) > 8
    for script, flags in commands:
        if script == "benchmark":
            part, *flags = shlex.split(flags)
            assert part in benchmark.PARTS
            settings.parse(benchmark, data, argv=flags)
            continue
        module = importlib.import_module(script)
        more = {"hybrid_train": (cnn_feature_extraction,),
                "hybrid_study": (hybrid_train, cnn_feature_extraction)}.get(script, ())  # fmt: skip
        flags = flags.replace("--resume", "--output-dir")  # the former asks for a folder that is there
        settings.parse(module, *more, data, runs, argv=shlex.split(flags))


def test_every_file_that_the_readme_links_to_is_there():
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


def test_every_python_file_is_described():
    for path in ROOT.glob("*.py"):
        assert f"[`{path.name}`]({path.name})" in README
