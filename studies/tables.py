"""Every table of README.md and results/**/README.md, made from the committed files of results/.

    python -m studies.tables            writes the tables into the files
    python -m studies.tables --check    changes nothing; exit code 1 if a file differs

A table is the text between `<!-- table: NAME -->` and `<!-- end -->`, where NAME is a function of this file.
results/studies/README.md is written as a whole, as `python experiments.py` does.
"""

import argparse
import re
import statistics
import sys

import run
from studies import output, published
from studies.output import markdown, percent
from studies.statistics import LEVEL

FILES = ("README.md", "results/README.md", "results/studies/heads/README.md", "results/benchmark/README.md")
FILES += ("results/as_made/README.md",)
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

# ---- which runs are in which table: edit here
MODELS = {  # folder in results/: name
    "mlp_from_scratch": "NumPy MLP",
    "mlp_best": "NumPy MLP",
    "cnn_feature_extraction": "CNN, linear classifier",
    "hybrid_train": "CNN features + NumPy MLP (frozen backbone)",
    "hybrid_best": "CNN + NumPy MLP, trained jointly",
}
RUNS = MODELS | {
    "hybrid_60000": "CNN + NumPy MLP, trained jointly on all 60,000 training images",
    "cnn_compiled": "CNN, linear classifier, with `torch.compile`",
    "transfer_learning": "ResNet18, without ImageNet's weights",
}
MACHINES = ("benchmark", "benchmark_xeon")  # folders with the benchmarks of each machine
BENCHMARKS = {  # ours / theirs: (file, group, name in it)
    "MLP, time: PyTorch, resident tensors, fused Adam": ("mlp", "ratios", "torch_fused"),
    "MLP, time: PyTorch, DataLoader and Adam": ("mlp", "ratios", "torch_tutorial"),
    "MLP, time: scikit-learn MLPClassifier": ("mlp", "ratios", "scikit_learn"),
    "MLP, time: the matrix products alone": ("mlp", "ratios", "matmul_only"),
    "CNN, images/s: PyTorch, DataLoader and Adam": ("cnn", "speedup", "tutorial"),
    "joint training, time: the same with the MLP in PyTorch": ("hybrid", "ratios", "torch_reference"),
}


def metrics_of(folder, name="metrics.json"):
    return run.read_json(run.ROOT / "results" / folder / name)


def accuracy(key):
    """A column: no validation accuracy of a model that was trained on the validation images."""
    on_val = key.startswith("val_")
    return lambda m: "-" if on_val and m["settings"].get("train_on_val") else percent(m, key)


def duration(m):
    """48 s (46 to 53): the median of the seeds, since other programs may have run beside one."""
    seconds = m.get("by_seed", {}).get("seconds", [m["seconds"]])
    divisor, unit = (60, "min") if statistics.median(seconds) >= 600 else (1, "s")
    middle, low, high = (f"{f(seconds) / divisor:.0f}" for f in (statistics.median, min, max))
    return f"{middle} {unit}" + (f" ({low} to {high})" if len(seconds) > 1 else "")


def machine(m):
    """2 cores of AMD EPYC, bfloat16"""
    precision = "" if m.get("precision", "float32") == "float32" else f", {m['precision']}"
    return "{cores} cores of {processor}".format(**m["machine"]) + precision


def networks(m):
    """784-256-128-10; of a hybrid, that of its CNN and of its MLP."""
    return re.sub(r"(NumPy MLP|CNN) ", "", m["model"])


COLUMNS = {  # header: function of a metrics.json
    "seeds": lambda m: len(m.get("seeds", [0])),
    "validation": accuracy("val_accuracy"),
    "validation, flip TTA": accuracy("val_accuracy_flip_tta"),
    "validation, multi-view TTA": accuracy("val_accuracy_shift_tta"),
    "test": accuracy("test_accuracy"),
    "test, flip TTA": accuracy("test_accuracy_flip_tta"),
    "test, multi-view TTA": accuracy("test_accuracy_shift_tta"),
    "test ECE": lambda m: f"{m['test_ece']:.3f}",
    "parameters": lambda m: f"{m['parameters']:,}",
    "time per seed": duration,
    "peak memory": lambda m: f"{m['peak_memory_mib']:,.0f} MiB",
    "machine": machine,
    "command": lambda m: f"`{m['command']}`",
}


def of_runs(runs, columns, links=""):
    """A table with a row for each of the runs {folder: name}."""
    rows = []
    for folder, name in runs.items():
        m = metrics_of(folder)
        model = f"[{name}]({links}{folder}/metrics.json)<br>{networks(m)}"
        rows.append([model, *(COLUMNS[column](m) for column in columns)])
    return markdown(["model", *columns], rows)


def models():
    columns = ["test", "test, flip TTA", "test, multi-view TTA", "parameters", "time per seed", "machine"]
    return of_runs(MODELS, ["seeds", *columns], "results/")


def accuracies():
    return of_runs(RUNS, list(COLUMNS)[:8])


def costs():
    return of_runs(RUNS, list(COLUMNS)[8:])


def heads(metrics=None):
    results = (metrics or metrics_of("studies/heads"))["heads"]
    splits = {"images it was trained on": "train", "validation": "val", "test": "test"}
    keys = [f"{split}_accuracy" for split in splits.values()]
    rows = [[name, *(percent(m, key) for key in keys)] for name, m in results.items()]
    return markdown(["classifier", *splits], rows)


def head_tests(metrics=None):
    study, rows = metrics or metrics_of("studies/heads"), []
    for test in study["tests"]:
        significant = sum(seed["p_holm"] < LEVEL for seed in test["by_seed"])
        cells = [test["variant"], test["against"], *output.difference(test)]
        rows.append([*cells, f"{significant} of {len(test['by_seed'])}"])
    header = ["classifier", "compared with", "difference in points", "verdict"]
    return markdown([*header, f"seeds with p < {LEVEL:g} (McNemar)"], rows)


def chosen():
    """The settings of the classifiers that validation chose."""
    seeds = metrics_of("studies/heads")["chosen"]
    rows = [[name, *(values[name] for values in seeds.values())] for name in seeds["0"]]
    return markdown(["classifier", *(f"seed {seed}" for seed in seeds)], rows)


def ratios():
    """Ours / theirs on each machine, with the targets."""
    rows, processors = [], [metrics_of(folder, "mlp.json")["machine"]["processor"] for folder in MACHINES]
    for label, (file, group, name) in BENCHMARKS.items():
        results = [metrics_of(folder, f"{file}.json") for folder in MACHINES]
        target = results[0]["targets"].get(name)
        limit = f"{'at least' if group == 'speedup' else 'at most'} {target}" if target else "-"
        cells = ["{:.2f} ({:.2f} to {:.2f})".format(r[group][name], *r["spread"][name]) for r in results]
        rows.append([label, *cells, limit])
    return markdown(["ours / theirs", *processors, "target"], rows)


TABLES = (models, accuracies, costs, heads, head_tests, chosen, ratios)
TABLES += (published.figures_table, published.claims_table)
TABLES = {function.__name__: function for function in TABLES}


def filled(match):
    if match[2] not in TABLES:
        raise run.Error(f"no table is called {match[2]}; choose from {', '.join(TABLES)}")
    return f"{match[1]}{TABLES[match[2]]()}{match[3]}"


def main(argv=None):
    """Write the tables, or with --check compare them. Returns the exit code."""
    parser = argparse.ArgumentParser("python -m studies.tables", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args(argv).check
    differs, studies = False, run.ROOT / "results/studies"
    for path in [*(run.ROOT / name for name in FILES), studies / "README.md"]:
        now = path.read_text(encoding="utf-8")
        text = output.readme(studies) if path.parent == studies else MARKED.sub(filled, now)
        if text != now:
            differs = True
            print(f"{path}: {'differs; run python -m studies.tables' if check else 'written'}")
            if not check:
                run.write(path, text)
    return int(check and differs)


if __name__ == "__main__":
    run.cli(lambda: sys.exit(main()))
