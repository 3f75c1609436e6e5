"""README.md and docs: links, commands, and the numbers in their sentences."""

import re
import shlex

import numpy as np
import pytest
from conftest import ROOT
from test_published import depth_after_he

import cnn_feature_extraction
import data
import hybrid_train
import mlp_from_scratch
import run
from studies import published
from studies.statistics import paired_test

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
PAGES += [ROOT / "models/README.md", *sorted(ROOT.glob("results/**/README.md"))]
MODULES = {
    "mlp_from_scratch.py": (mlp_from_scratch, data, run),
    "cnn_feature_extraction.py": (cnn_feature_extraction, data, run),
    "hybrid_train.py": (hybrid_train, cnn_feature_extraction, data, run),
}


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 160


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_definitions(page):
    for text, target in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        assert not path or (page.parent / path).exists(), target
        if re.fullmatch(r"L\d+", anchor):
            line = (page.parent / path).read_text(encoding="utf-8").splitlines()[int(anchor[1:]) - 1]
            assert re.match(rf" *(class|def) {text.strip('`')}\b", line), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_have_flags_that_exist(page):
    text = page.read_text(encoding="utf-8")
    for command in re.findall(r"`(?:python|torchrun \S+) ((?:mlp|cnn|hybrid)_\w+\.py[^`]*)`", text):
        script, *flags = shlex.split(command)
        if "--resume" not in flags:
            run.parse(flags, *MODULES[script])


def accuracies(folder):
    return 100 * np.array(
        run.read_json(ROOT / "results" / folder / "metrics.json")["by_seed"]["test_accuracy"]
    )


DIFFERENCE = r"[+-]\d+\.\d\d \([^)]*\)"
LINEAR = "CNN, linear classifier"
SAID = {  # study: the pairs whose differences the README states
    "heads": [("NumPy MLP", LINEAR), ("NumPy MLP, trained jointly with the CNN", LINEAR)],
    "depth": [("0", "1")],
    "ema": [
        ("constant, EMA", "constant, no EMA"),
        ("cosine, no EMA", "constant, no EMA"),
        ("cosine, EMA", "cosine, no EMA"),
    ],
    "width": [("1024-512", "128-64")],
    "optimizer": [("sgd", "adam"), ("momentum", "adam")],
    "augmentation": [("flip and shift 1, once", "none"), ("flip and shift 1, fresh", "none")],
    "dropout": [("0.2", "0")],
    "norm": [("batch", "none")],
    "cnn_initialization": [("he, batch norm", "he")],
    "pooling": [("max after 2 and 3", "max")],
    "kernel_size": [("5", "3")],
    "hybrid_training": [("joint", "frozen")],
}
SAID["heads"].append(("half: NumPy MLP, other half", "half: logistic regression, other half"))


def test_numbers_in_sentences_are_those_of_the_results():
    cnn, mlp = (accuracies(folder) for folder in ("cnn_feature_extraction", "mlp_from_scratch"))
    (depth,) = (c.ours for c in published.claims() if c.text == "R3: one hidden layer instead of none")
    tests, seen = {"differences": [paired_test(cnn - mlp)], "why": [depth, depth_after_he()]}, set()
    numbers = {name: [difference(test) for test in of_name] for name, of_name in tests.items()}
    numbers |= {study: [differences(study)[pair] for pair in pairs] for study, pairs in SAID.items()}
    section = README.split("## What we found")[1].split("\n## ")[0]
    for sentences in re.split(r"\n- |\n\n", section):
        links = ["".join(link) for link in re.findall(r"/README\.md#(\w+)|studies/(heads)/", sentences)]
        said = re.findall(DIFFERENCE, " ".join(sentences.split()))
        assert sorted(said) == sorted(number for link in links for number in numbers[link]), sentences
        seen |= {*links}
    assert seen == numbers.keys()
    (interval,) = re.findall(r"images were drawn, too, (\S+) to (\S+) ", README)
    assert f"| -{interval[1]} to -{interval[0]} |" in (ROOT / "results/README.md").read_text(encoding="utf-8")


def test_numbers_in_the_answers_for_courses_are_those_of_the_results():
    lines, found = (ROOT / "docs/assignments.md").read_text(encoding="utf-8").splitlines(), 0
    for line in lines:
        for study in re.findall(r"studies/README\.md#(\w+)", line):
            said = re.findall(DIFFERENCE, line)
            assert {*said} <= {*differences(study).values()}, line
            found += len(said)
    assert found >= 10


def differences(study):
    """{(variant, the one it is compared with): "-0.15 (-0.29 to -0.02)"} of a committed study."""
    path = f"results/studies/{study}/{'metrics' if study == 'heads' else 'summary'}.json"
    return {(t["variant"], t["against"]): difference(t) for t in run.read_json(ROOT / path)["tests"]}


def difference(test):
    return f"{test['points']:+.2f} ({test['low']:+.2f} to {test['high']:+.2f})"


def test_the_printed_results_are_those_of_the_committed_run():
    m = run.read_json(ROOT / "results/hybrid_train/seed_0/metrics.json")
    for kinds in (("cnn_val_accuracy", "cnn_test_accuracy"), ("val_accuracy", "test_accuracy")):
        assert "".join(f"{m[name]:12.2%}"[2 * i :] for i, name in enumerate(kinds)) in README
    for script in MODULES:
        folder = ROOT / "results" / script.removesuffix(".py") / "seed_0/metrics.json"
        metrics, text = run.read_json(folder), (ROOT / script).read_text(encoding="utf-8")
        for kind in ("", "_flip_tta"):
            row = f"{metrics[f'val_accuracy{kind}']:12.2%}{metrics[f'test_accuracy{kind}']:10.2%}"
            assert row.strip() in text
        assert f"after {metrics['seconds']:.0f} s" in text


def test_every_fault_names_a_test_that_exists():
    pairs = re.findall(r"`(tests/\w+\.py)::(\w+)`", (ROOT / "docs/faults.md").read_text(encoding="utf-8"))
    assert len(pairs) > 10
    for file, name in pairs:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), name
