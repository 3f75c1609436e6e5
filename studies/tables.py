"""Every table of README.md and results/**/README.md, made from the committed files of results/.

    python -m studies.tables            writes the tables into the files
    python -m studies.tables --check    changes nothing; exit code 1 if a file differs

A table is the text between `<!-- table: NAME -->` and `<!-- end -->`, where NAME is a function of this file.
results/studies/README.md is written as a whole, as `python experiments.py` does.
"""

import re
import statistics
import sys

import run
from studies import output
from studies.cnn import NETWORKS
from studies.output import markdown, percent
from studies.statistics import LEVEL, paired_test
from studies.study import command

FILES = ("README.md", "results/README.md", "results/studies/heads/README.md", "results/benchmark/README.md")
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
REFERENCE_MLPS = {  # folder in results/references/: (what is special, test accuracy that is reported)
    "softmax_regression": ("no hidden layer", "73.80 %"),
    "mlp_128": ("one hidden layer", "-"),
    "mlp_128_l2": ("one hidden layer, L2 penalty", "84.69 %"),
    "mlp_128_64": ("two hidden layers", "90.10 %"),
    "mlp_128_64_tanh": ("two hidden layers, tanh, L2 penalty", "85.20 %"),
    "mlp_300_100_sgd": ("two hidden layers, sigmoid outputs, SGD", "87.48 %"),
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


def reference_mlps():
    rows, columns = [], ("test", "test, flip TTA", "parameters", "time per seed", "machine", "command")
    for folder, (special, reported) in REFERENCE_MLPS.items():
        m = metrics_of(f"references/{folder}")
        name = f"[{networks(m)}](references/{folder}/metrics.json), {special}"
        rows.append([name, reported, *(COLUMNS[column](m) for column in columns)])
    return markdown(["network", "reported there", *columns], rows)


def reference_cnns():
    """The networks of the study `references`: as published, and with this project's recipe."""
    variants, rows = metrics_of("studies/references", "summary.json")["variants"], []
    for name, (_, _, val_fraction, reported) in NETWORKS.items():
        published, ours = variants[f"{name}, as published"], variants[f"{name}, our recipe"]
        cells = [f"{published['parameters']:,}", f"{60_000 * (1 - val_fraction):,.0f}", reported]
        cells += [percent(variant, "test_accuracy") for variant in (published, ours)]
        rows.append([name, *cells, f"`{command('cnn', ours['settings'])}`"])
    header = ["network", "parameters", "training images", "reported there", "as published", "our recipe"]
    return markdown([*header, "command of our recipe"], rows)


def heads(metrics=None):
    results = (metrics or metrics_of("studies/heads"))["heads"]
    splits = {"images it was trained on": "train", "validation": "val", "test": "test"}
    keys = [f"{split}_accuracy" for split in splits.values()]
    rows = [[name, *(percent(m, key) for key in keys)] for name, m in results.items()]
    return markdown(["classifier", *splits], rows)


def head_tests(metrics=None):
    study, rows = metrics or metrics_of("studies/heads"), []
    for test in study["tests"]:
        sides = (study["heads"][test[side]]["by_seed"]["test_accuracy"] for side in ("head", "against"))
        points = paired_test([100 * (a - b) for a, b in zip(*sides, strict=True)])
        significant = sum(seed["p_holm"] < LEVEL for seed in test["by_seed"])
        cells = output.difference(test | points)
        rows.append([test["head"], test["against"], *cells, f"{significant} of {len(test['by_seed'])}"])
    header = ["classifier", "compared with", "difference in points", "p (paired t test)"]
    return markdown([*header, f"seeds with p < {LEVEL:g} (McNemar)"], rows)


def chosen():
    """The settings of the classifiers that validation chose."""
    seeds = metrics_of("studies/heads")["chosen"]
    rows = [[name, *(values[name] for values in seeds.values())] for name in seeds["0"]]
    return markdown(["classifier", *(f"seed {seed}" for seed in seeds)], rows)


def with_spread(value, spread):
    return f"{value:.2f} ({spread[0]:.2f} to {spread[1]:.2f})" if spread else f"{value:.2f}"


def ratios():
    """Ours / theirs on each machine, with the targets."""
    rows, processors = [], [metrics_of(folder, "mlp.json")["machine"]["processor"] for folder in MACHINES]
    for label, (file, group, name) in BENCHMARKS.items():
        results = [metrics_of(folder, f"{file}.json") for folder in MACHINES]
        target = results[0]["targets"].get(name)
        limit = f"{'at least' if group == 'speedup' else 'at most'} {target}" if target else "-"
        rows.append([label, *(with_spread(r[group][name], r["spread"][name]) for r in results), limit])
    return markdown(["ours / theirs", *processors, "target"], rows)


def sizes():
    """Time of the MLP, ours / theirs, by batch size and by width, on the first machine."""
    rows, names = [], {"PyTorch, fused Adam": "torch_fused", "matrix products alone": "matmul_only"}
    for results in metrics_of(MACHINES[0], "mlp.json")["tables"].values():
        for size, r in results.items():
            cells = [with_spread(r[f"against_{name}"], r["spread"][name]) for name in names.values()]
            rows.append([size, *cells])
    return markdown(["", *names], rows)


def processes():
    """Memory, start and prediction of the MLP, on the first machine."""
    m, rows = metrics_of(MACHINES[0], "mlp.json"), []
    names = {name: label.split(": ")[1] for label, (_, _, name) in BENCHMARKS.items()}
    for name, r in m.get("cold_start", {}).items():
        cells = [f"{r['peak_memory_mib']:,.0f} MiB", f"{r['seconds']:.1f} s"]
        speed = f"{m['images_per_second_predicted'][name]:,.0f}"
        rows.append([names.get(name, "this project"), *cells, speed])
    return markdown(["implementation", "peak memory", "end of the first epoch", "images/s, prediction"], rows)


TABLES = (models, accuracies, costs, reference_mlps, reference_cnns, heads, head_tests, chosen)
TABLES = {function.__name__: function for function in (*TABLES, ratios, sizes, processes)}


def filled(match):
    if match[2] not in TABLES:
        raise run.Error(f"no table is called {match[2]}; choose from {', '.join(TABLES)}")
    return f"{match[1]}{TABLES[match[2]]()}{match[3]}"


def main(argv=None):
    """Write the tables, or with --check compare them. Returns the exit code."""
    check = "--check" in (sys.argv[1:] if argv is None else argv)
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
