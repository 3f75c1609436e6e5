"""Every table of README.md and results/**/README.md, made from the committed metrics.json files.

    python -m studies.tables            writes the tables into the files
    python -m studies.tables --check    changes nothing; exits with 1 if a file differs from what would be written

results/studies/README.md is written as a whole, from the summary.json files. Elsewhere, a table is the text between a
line `<!-- table: NAME -->` and a line `<!-- end -->`, where NAME is one of TABLES.
"""

if __name__ == "__main__" and not __package__:
    raise SystemExit("studies/tables.py: run it as python -m studies.tables, in the repository's folder")

from support import entry

if __name__ == "__main__":  # before the slow imports: Ctrl-C
    entry.prepare()

import argparse
import importlib
import importlib.util
import json
import re
import statistics
import sys
import textwrap
from pathlib import Path

from studies import comparison, findings
from studies.cnn import NETWORKS
from studies.statistics import LEVEL, word_of
from studies.study import training_command
from support import files

ROOT = Path(__file__).resolve().parent.parent
FILES = ("README.md", "results/README.md", "results/studies/heads/README.md")  # the files with tables
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

# ---- which runs are in which table: edit here ----
MLP, MLP_BEST, CNN, FROZEN, JOINT = "mlp_from_scratch", "mlp_best", "cnn_feature_extraction", "hybrid_train", "hybrid_best"
ALL_IMAGES = "hybrid_60000"
HEADS, REFERENCES = "studies/heads", "studies/references"
MODELS = (  # (folder in results/, name), in README.md
    (MLP, "NumPy MLP"),
    (MLP_BEST, "NumPy MLP"),
    (CNN, "CNN, linear classifier"),
    (FROZEN, "CNN features + NumPy MLP (frozen backbone)"),
    (JOINT, "CNN + NumPy MLP, trained jointly"),
)
RUNS = (*MODELS,  # in results/README.md
        (ALL_IMAGES, "CNN + NumPy MLP, trained jointly on all 60,000 training images"),
        ("cnn_compiled", "CNN, linear classifier, with `torch.compile`"),
        ("transfer_learning", "transfer_learning.py, without ImageNet's weights"))  # fmt: skip
REFERENCE_MLPS = (  # (folder in results/references/, what is special, test accuracy in % as its project reports it)
    ("softmax_regression", "no hidden layer", 73.80),
    ("mlp_128", "one hidden layer", None),
    ("mlp_128_l2", "one hidden layer, L2 penalty", 84.69),
    ("mlp_128_64", "two hidden layers", 90.10),
    ("mlp_128_64_tanh", "two hidden layers, tanh, L2 penalty", 85.20),
    ("mlp_300_100_sgd", "two hidden layers, sigmoid outputs, SGD", 87.48),
)
# ----


def metrics_of(results, folder, name="metrics.json"):
    """The content of the JSON file results/folder/name. Raises files.FileError."""
    path = results / folder / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise files.FileError(f"{path}: cannot be read ({error})") from None


def percent(metrics, name):
    """An accuracy, with its standard deviation over the seeds if there are several; "-" if it was not recorded.

    And "-" for the validation accuracy of a model that was trained on the validation images.
    """
    if name not in metrics or (name.startswith("val_") and metrics.get("settings", {}).get("train_on_val")):
        return "-"
    std = f" ± {100 * metrics[name + '_std']:.2f}" if f"{name}_std" in metrics else ""
    return f"{100 * metrics[name]:.2f}{std} %"


def parameters(metrics):
    return f"{metrics['parameters']:,}"


def number(metrics, name, form):
    return form.format(metrics[name]) if name in metrics else "-"


def duration(seconds, longest=None):
    """78 s or 28 min; with `longest`, a range: 68 to 87 s"""
    longest = seconds if longest is None else longest
    divisor, unit = (1, "s") if longest < 600 else (60, "min")
    first, last = f"{seconds / divisor:.0f}", f"{longest / divisor:.0f}"
    return f"{first} {unit}" if first == last else f"{first} to {last} {unit}"


def time_of(metrics):
    """Median time of a seed, since other programs may have run beside one; "-" if it was not recorded."""
    seconds = metrics.get("by_seed", {}).get("seconds") or [metrics[name] for name in ("seconds",) if name in metrics]
    return duration(statistics.median(seconds)) if seconds else "-"


def time_range(metrics):
    """Median time of a seed, with the shortest and the longest one."""
    seconds = metrics.get("by_seed", {}).get("seconds")
    return time_of(metrics) + (f" ({duration(min(seconds), max(seconds))})" if seconds else "")


def machine(metrics):
    """2 cores of an AMD EPYC, in bfloat16"""
    return ", in ".join(filter(None, [hardware(metrics), precision(metrics)]))


def hardware(metrics):
    """2 cores of an AMD EPYC"""
    if "gpu" in metrics["machine"] and metrics.get("device") == "cuda":
        return metrics["machine"]["gpu"]
    name = metrics["machine"]["processor"].replace("(R)", "")
    return f"{metrics['machine']['cores']} cores of {'an' if name[0] in 'AEIOU' else 'a'} {name}"


def precision(metrics):
    """bfloat16; "" for float32"""
    return metrics["precision"] if metrics.get("precision", "float32") != "float32" else ""


def networks(metrics):
    """784-256-128-10; of a hybrid, that of its CNN and of its MLP."""
    return re.sub(r"(NumPy MLP|CNN) ", "", metrics["model"])


def link(folder, name, prefix=""):
    return f"[{name}]({prefix}{folder}/metrics.json)"


def table(header, rows):
    """A Markdown table of cells."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def listed(words):
    """a, b and c"""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def wrapped(text):
    return textwrap.fill(text, 120, break_on_hyphens=False) + "\n"


def places_of(rows):
    """row 5; rows 1 and 2; rows 1 to 4"""
    if len(rows) > 2 and rows[-1] - rows[0] == len(rows) - 1:
        return f"rows {rows[0]} to {rows[-1]}"
    return f"row{'s' * (len(rows) > 1)} {listed(list(map(str, rows)))}"


# ---- README.md


def main_output(results):
    """The last lines that the main job prints, as runs.Run.finish formats them: those of seed 0."""
    metrics = metrics_of(results, f"{FROZEN}/seed_0")
    cnn, mlp = metrics["model"].split(" + ")
    rows = {f"{cnn}, linear classifier": "cnn_{}_accuracy", f"hybrid: CNN features, {mlp}": "{}_accuracy",
            "  with flip test-time augmentation (TTA)": "{}_accuracy_flip_tta"}  # fmt: skip
    width = max(map(len, [metrics["dataset"], *rows])) + 2
    lines = [f"{metrics['dataset']:<{width}}  validation      test"]
    for name, key in rows.items():
        accuracies = (metrics[key.format(split)] for split in ("val", "test"))
        lines.append(f"{name:<{width}}" + "".join(f"{accuracy:12.2%}" for accuracy in accuracies)[2:])
    lines += ["", f"{metrics['dataset']}, {metrics['seconds']:.0f} s; figures, weights and metrics.json are in",
              "runs/hybrid_train/2026-01-31_12-00-00"]  # fmt: skip
    return "\n".join(["```text", *lines, "```"]) + "\n"


def accuracy_columns(metrics, splits):
    """{column: name in metrics.json}: accuracies without TTA, with flip TTA and, if any run has it, with shifts.

    metrics: the contents of the runs' metrics.json.
    """
    kinds = {"": "", ", flip TTA": "_flip_tta", ", multi-view TTA": "_shift_tta"}
    recorded = set().union(*metrics)
    names = {"val": "validation", "test": "test"}
    return {f"{names[split]}{words}": f"{split}_accuracy{suffix}" for words, suffix in kinds.items() for split in splits
            if f"{split}_accuracy{suffix}" in recorded}  # fmt: skip


def models(results):
    """The main table, and what is below it: seeds and machines."""
    rows, seeds, machines, precisions = [], {}, {}, {}
    all_metrics = [metrics_of(results, folder) for folder, _ in MODELS]
    columns = accuracy_columns(all_metrics, ("test",))
    for place, ((folder, name), metrics) in enumerate(zip(MODELS, all_metrics, strict=True), 1):
        rows.append([f"{link(folder, name, 'results/')}<br>{networks(metrics)}",
                     *(percent(metrics, key) for key in columns.values()),
                     parameters(metrics), time_of(metrics)])  # fmt: skip
        seeds.setdefault(len(metrics.get("seeds", [0])), []).append(place)
        machines.setdefault(hardware(metrics), []).append(place)
        precisions.setdefault(precision(metrics), []).append(place)

    def spread(groups, form="{}"):  # "5", or "5 (rows 1 and 2) and 3 (row 3)"
        if len(groups) == 1:
            return form.format(next(iter(groups)))
        return listed([f"{form.format(value)} ({places_of(rows)})" for value, rows in groups.items()])

    header = ["model", *(column.replace("test", "test accuracy") for column in columns), "parameters", "time per seed"]
    lower = listed([f"{places_of(places)} in {name}" for name, places in precisions.items() if name])
    caption = (f"Mean ± standard deviation over {spread(seeds, '{} seeds')}, each trained on {metrics['train_size']:,} "
               f"images. Time is the median, on {spread(machines)}{', ' * bool(lower)}{lower}. TTA, test-time augmentation, "
               "adds the logits of the mirror image (flip) or of mirrored and shifted images (multi-view).")  # fmt: skip
    return table(header, rows) + "\n" + wrapped(caption)


def mlp_help(results):
    """Does the NumPy MLP help? In numbers, and in words that follow from the paired tests."""
    study = metrics_of(results, HEADS)
    heads, mlp, linear, logistic = study["heads"], "NumPy MLP", "CNN, linear classifier", "logistic regression"
    tests = {(test["head"], test["against"]): test for test in study["tests"]}
    versus, rival, joint = tests[mlp, linear], tests[mlp, logistic], tests[f"{mlp}, trained jointly with the CNN", linear]
    unseen = tests[f"half: {mlp}, other half", f"half: {logistic}, other half"]
    answers = {"better": "Yes", "worse": "No", "not distinguishable": "Not measurably"}
    phrase = comparison.LINKS[word_of(rival)] if word_of(rival) != word_of(versus) else ""  # said once
    comparisons = [comparison.LINKS[word_of(versus)] + " the CNN's linear classifier",
                   f"{phrase} logistic regression on the same features".strip()]  # fmt: skip
    link_word = " and " if phrase or word_of(versus) != "not distinguishable" else " or "
    return wrapped(
        f"{answers[word_of(versus)]}: on the features of a frozen CNN, the NumPy MLP is {link_word.join(comparisons)}. "
        f"Over {len(study['seeds'])} seeds, test accuracy is {percent(heads[mlp], 'test_accuracy')} with the NumPy MLP, "
        f"{percent(heads[linear], 'test_accuracy')} with the linear classifier ({difference(versus)}) and "
        f"{percent(heads[logistic], 'test_accuracy')} with logistic regression ({difference(rival)}). On the features of "
        f"images that the CNN was not trained on, the MLP is {comparison.LINKS[word_of(unseen)]} logistic regression "
        f"({difference(unseen)}). Trained jointly with the same CNN, the MLP is {comparison.LINKS[word_of(joint)]} the "
        f"linear classifier ({difference(joint)})."
    )


def difference(test):
    return f"difference {test['points']:+.2f} ± {test['points_std']:.2f} points, p = {test['p_holm']:.3g}"


def found(results):
    """What similar projects report or have chosen, and whether it holds here."""
    return findings.lines(results)


# ---- results/README.md


def accuracies(results):
    rows, all_metrics = [], [metrics_of(results, folder) for folder, _ in RUNS]
    columns = accuracy_columns(all_metrics, ("val", "test"))
    for (folder, name), metrics in zip(RUNS, all_metrics, strict=True):
        rows.append([f"{link(folder, name)}<br>{networks(metrics)}", len(metrics.get("seeds", [0])),
                     *(percent(metrics, key) for key in columns.values()),
                     number(metrics, "test_ece", "{:.3f}")])  # fmt: skip
    return table(["model", "seeds", *columns, "test ECE"], rows)


def costs(results):
    rows = []
    for folder, name in RUNS:
        metrics = metrics_of(results, folder)
        memory = number(metrics, "peak_memory_mib", "{:,.0f} MiB")
        rows.append([f"{name}<br>{networks(metrics)}", parameters(metrics), time_range(metrics), memory, machine(metrics),
                     f"`{metrics['command']}`"])  # fmt: skip
    return table(["model", "parameters", "time per seed", "peak memory", "machine", "command"], rows)


def reference_mlps(results):
    rows = []
    for name, what, reported in REFERENCE_MLPS:
        folder = f"references/{name}"
        metrics = metrics_of(results, folder)
        rows.append([f"{link(folder, networks(metrics))}, {what}", f"{reported:.2f} %" if reported else "-",
                     percent(metrics, "test_accuracy"), percent(metrics, "test_accuracy_flip_tta"),
                     parameters(metrics), time_of(metrics), machine(metrics), f"`{metrics['command']}`"])  # fmt: skip
    header = ["network", "reported there", "test here", "with flip TTA", "parameters", "time", "machine", "command"]
    return table(header, rows)


def reference_cnns(results):
    """The networks of the study `references`: as published and with this project's recipe."""
    variants = metrics_of(results, REFERENCES, "summary.json")["variants"]
    rows = []
    for name, (_, _, val_fraction, reported) in NETWORKS.items():
        published, ours = (variants[f"{name}, {kind}"] for kind in ("as published", "our recipe"))
        command = training_command("cnn", ours["settings"])
        here = (comparison.percent(variant, "test_accuracy") for variant in (published, ours))
        rows.append([name, f"{published['parameters']:,}", f"{60_000 * (1 - val_fraction):,.0f}", reported, *here,
                     f"`{command}`"])  # fmt: skip
    header = ["network", "parameters", "training images", "reported there", "as published", "our recipe",
              "command of our recipe"]  # fmt: skip
    return table(header, rows)


# ---- results/studies/heads/README.md


def heads(results):
    rows = [[name, percent(head, "train_accuracy"), percent(head, "val_accuracy"), percent(head, "test_accuracy")]
            for name, head in metrics_of(results, HEADS)["heads"].items()]  # fmt: skip
    return table(["classifier", "images it was trained on", "validation", "test"], rows)


def verdicts(results):
    study = metrics_of(results, HEADS)
    seeds, rows = len(study["seeds"]), []
    for test in study["tests"]:
        significant = sum(row["p_holm"] < LEVEL for row in test["by_seed"])
        rows.append([test["head"], test["against"], f"{test['points']:+.2f} ± {test['points_std']:.2f}",
                     f"{test['p_holm']:.3g}", word_of(test), f"{significant} of {seeds}"])  # fmt: skip
    header = ["classifier", "compared with", "difference in points", "p (paired t test)", "verdict",
              f"seeds with p < {LEVEL:g} (McNemar)"]  # fmt: skip
    return table(header, rows)


def chosen(results):
    study = metrics_of(results, HEADS)
    C, k = (listed([f"{value:g}" for value in study["settings"][name]]) for name in ("logistic_c", "neighbors"))
    text = f"The inverse penalty of logistic regression, from {C}, and the number of neighbors, from {k}.\n\n"
    names = list(study["chosen"][str(study["seeds"][0])])
    rows = [[name, *(study["chosen"][str(seed)][name] for seed in study["seeds"])] for name in names]
    return text + table(["classifier", *(f"seed {seed}" for seed in study["seeds"])], rows)


def heads_run(results):
    study = metrics_of(results, HEADS)
    backbones = " --backbones runs/hybrid_train/DATE" * bool(study["settings"]["backbones"])
    of = f"; DATE is the run of `python hybrid_train.py --seeds {len(study['seeds'])}`" * bool(backbones)
    return (f"The committed study has {len(study['seeds'])} seeds and ran on {machine(study)}{of}:\n\n```bash\n"
            f"python experiments.py heads{backbones} --output-dir results/studies/heads\n```\n")  # fmt: skip


TABLES = {builder.__name__: builder for builder in (main_output, models, mlp_help, found, accuracies, costs, reference_mlps,
                                                    reference_cnns, heads, verdicts, chosen, heads_run)}  # fmt: skip


def fill(text, results):
    """The text with each of its tables made anew from the files in the folder `results`. Raises files.FileError."""

    def replace(match):
        if match[2] not in TABLES:
            raise files.FileError(f"no table is called {match[2]}; choose from {', '.join(TABLES)}")
        return f"{match[1]}{TABLES[match[2]](results)}{match[3]}"

    return MARKED.sub(replace, text)


def contents(root=ROOT):
    """{path: text}: the files with tables, as they should be."""
    texts = {root / name: fill((root / name).read_text(encoding="utf-8"), root / "results") for name in FILES}
    if root == ROOT and importlib.util.find_spec("studies.tables_benchmark"):
        texts[root / "results/benchmark/README.md"] = importlib.import_module("studies.tables_benchmark").benchmark_readme()
    if any((root / "results/studies").glob("*/summary.json")):
        from studies import catalog, readme

        texts[root / "results/studies/README.md"] = readme.contents(root / "results/studies", catalog.STUDIES)
    return texts


def main(argv=None, root=ROOT):
    """Write the tables, or with --check compare them. Return the exit code."""
    parser = argparse.ArgumentParser("python -m studies.tables", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a file differs")
    check = parser.parse_args(argv).check
    different = {path: text for path, text in contents(root).items()
                 if not path.exists() or path.read_text(encoding="utf-8") != text}  # fmt: skip
    for path, text in different.items():
        print(f"{path.relative_to(root)}: {'differs; run python -m studies.tables' if check else 'written'}")
        if not check:
            files.write_text(path, text)
    return int(check and bool(different))


if __name__ == "__main__":
    entry.cli(lambda: sys.exit(main()))
