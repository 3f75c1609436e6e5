"""Write report.html on finished runs: one page that opens from disk, with all figures in it, to read, print or hand in.

    python report.py runs/hybrid_train/DATE
    python report.py results/mlp_from_scratch results/cnn_feature_extraction --output report.html

A run is its folder, or the folder of several seeds. Several runs stand side by side, with paired tests. The labels come
from the dataset, which is loaded as for training.
"""

from support import entry

if __name__ == "__main__":  # before the slow imports: Ctrl-C
    entry.prepare()

import argparse
import io
import itertools
import math
from pathlib import Path

import numpy as np

import plots
from studies.compare import curves as compare_curves
from studies.finished import compare, network, p_value, read_runs, same_test_images, verdict
from studies.statistics import LEVEL
from support import files, report_page, runs
from support.report_page import Table

# ---- settings: edit here ----
MISTAKES = 20  # wrong predictions shown of each run
CONFUSIONS = 5  # pairs of classes listed of each run
# ----

CURVES = {"cnn_curves": "the CNN", "curves": ""}  # figures of a run, and of which part if there are two


def plus_minus(metrics, name, factor=100.0, digits=2):
    """A result, with its standard deviation if there are several seeds; "-" if it was not recorded."""
    if name not in metrics:
        return "-"
    std = f" ± {factor * metrics[f'{name}_std']:.{digits}f}" if f"{name}_std" in metrics else ""
    return f"{factor * metrics[name]:.{digits}f}{std}"


def seeds_of(run):
    """seed 0, or 5 seeds"""
    return f"{len(run.folders)} seeds" if len(run.folders) > 1 else f"seed {run.first}"


def summary_table(finished):
    header = ["model", "test (%)", "test, flip TTA (%)", "validation (%)", "test loss", "seeds", "parameters",
              "time per seed (s)", "network"]  # fmt: skip
    rows, several_datasets = [], len({run.metrics["dataset"] for run in finished}) > 1
    header += ["dataset"] * several_datasets
    for run in finished:
        m = run.metrics
        rows.append([run.label, *(plus_minus(m, name) for name in ("test_accuracy", "test_accuracy_flip_tta",
                     "val_accuracy")), plus_minus(m, "test_loss", 1, 3), str(len(run.folders)),
                     f"{m['parameters']:,}" if "parameters" in m else "-", plus_minus(m, "seconds", 1, 0),
                     network(m), *[m["dataset"]] * several_datasets])  # fmt: skip
    spread = ", mean ± standard deviation over the seeds" if any(len(run.folders) > 1 for run in finished) else ""
    return Table(f"Accuracy{spread}; TTA is test-time augmentation", header, rows)


def comparison_section(finished, comparisons):
    header = ["first", "second", "difference (points)", "seeds in common", "p, paired t", "only first right",
              "only second right", "p, McNemar"]  # fmt: skip
    rows = [[c["first"], c["second"], f"{c['points']:+.2f}" + (f" ± {c['std']:.2f}" if "std" in c else ""), str(c["seeds"]),
             p_value(c["p_t"]) if "p_t" in c else "-", f"{c['only_first']:,}", f"{c['only_second']:,}",
             p_value(c["p_mcnemar"])] for c in comparisons]  # fmt: skip
    if not comparisons:
        return "<p>The runs have no test images in common: a paired test is not possible.</p>\n"
    left_out = math.comb(len(finished), 2) - len(comparisons)
    note = f" {left_out} pairs have different test images and are left out." if left_out else ""
    seeds = {c["mcnemar_seeds"] for c in comparisons}
    of_seed = f", with seed {next(iter(seeds))[0]}," if len(seeds) == 1 and len(set(*seeds)) == 1 else ""
    return (f"<p>The paired t test compares the accuracies of the seeds that both runs have. McNemar's exact test{of_seed} "
            "compares the predictions for each test image: how many only one of the two has right. The p values are "
            f"corrected for {len(comparisons)} {'comparisons' if len(comparisons) > 1 else 'comparison'} by Holm's method; "
            f"below {LEVEL:g} a difference counts as real.{note}</p>\n"
            + Table("Differences in test accuracy, first minus second", header, rows).html())  # fmt: skip


def rendered(figure):
    """The bytes of a matplotlib Figure as a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def intact(content):
    """Whether the bytes are a whole PNG or SVG file."""
    png_ends, svg_ends = (b"\x89PNG", b"IEND\xaeB`\x82"), (b"<?xml", b"</svg>")
    return any(content.startswith(start) and content.rstrip().endswith(end) for start, end in (png_ends, svg_ends))


def figures_of(folder, names, images):
    """{name: bytes of a PNG or SVG file}: the figures of those names in the folder; what it lacks is drawn."""
    found = {}
    for name in names:
        for path in (folder / f"{name}.svg", folder / f"{name}.png"):
            if name not in found and path.is_file() and intact(content := path.read_bytes()):
                found[name] = content
    if len(found) < len(names):
        try:
            drawn = plots.redraw(folder, images)
        except (OSError, *files.DAMAGED) as error:
            raise files.FileError(f"{folder}: its figures cannot be drawn ({error})") from None
        found |= {name: rendered(drawn[f"{name}.png"]) for name in names if name not in found and f"{name}.png" in drawn}
    return {name: found[name] for name in names if name in found}


def curves(run):
    folder = next(iter(run.folders.values()))
    names = [name for name in CURVES if name == "curves" or (folder / "cnn_history.csv").exists()]
    block = ""
    for name, content in figures_of(run.path, names, run.images).items():
        part = CURVES[name] or ("the NumPy MLP on its features" if len(names) > 1 else run.label)
        table = plots.read_history(folder / name.replace("curves", "history.csv"))
        alt = f"Two line charts of {part}: loss and accuracy by epoch, for training and validation images."
        epochs = f"{len(table['epoch'])} epoch{'s' * (len(table['epoch']) != 1)}"
        caption = (f"Loss and accuracy of {part} by epoch, {seeds_of(run)}. After {epochs}, "
                   f"validation accuracy is {table['val_accuracy'][-1]:.2%} with seed {run.first}.")  # fmt: skip
        block += report_page.figure(content, f"{alt} {caption}", caption)
    return block


def overlaid_curves(finished):
    """The validation curves of several runs in one figure."""
    if len(finished) < 2:
        return ""
    entries = [{"name": run.label, "histories": list(run.histories.values())} for run in finished]
    colors = [plots.color_of(run.label) for run in finished]
    if len(set(colors)) == len(colors):  # as in the figure of the recalls
        entries = [entry | {"color": color} for entry, color in zip(entries, colors, strict=True)]
    caption = ("Validation loss and accuracy of all runs by epoch; of several seeds the mean, and a band from the lowest to "
               "the highest.")  # fmt: skip
    datasets = " and ".join(dict.fromkeys(run.images.name for run in finished))
    return report_page.figure(rendered(compare_curves(entries, datasets)), f"Two line charts. {caption}", caption)


def confusion_counts(run):
    """(classes, classes) integers of the first seed: true classes down, predicted ones across."""
    n, y = len(run.images.classes), run.images.test.y
    return np.bincount(n * y + run.predicted[run.first], minlength=n * n).reshape(n, n)


def confusion(run):
    classes, counts = run.images.classes, confusion_counts(run)
    wrong = [(int(counts[i, j]), i, j) for i, j in itertools.permutations(range(len(classes)), 2) if counts[i, j]]
    wrong.sort(key=lambda entry: -entry[0])
    rows = [[classes[i], classes[j], f"{count:,}"] for count, i, j in wrong[:CONFUSIONS]]
    caption = (f"Test images by true class (down) and predicted class (across), seed {run.first}; at the right, the recall "
               "in percent. The color is the share of the true class.")  # fmt: skip
    most = Table("Most frequent confusions", ["true class", "predicted class", "images"], rows).html() if rows else ""
    return report_page.heat_table(counts, classes, caption) + most


def class_table(finished):
    """Precision, recall and F1 of each class, a group of columns for each run."""
    from sklearn.metrics import precision_recall_fscore_support as score

    classes, columns, header = finished[0].images.classes, [], ["class"]
    if any(run.images.classes != classes for run in finished):
        return "".join(map(class_table, ([run] for run in finished)))  # each its own classes
    for run in finished:
        y, scores = run.images.test.y, []
        for predicted in run.predicted.values():
            scores.append(score(y, predicted, labels=range(len(classes)), zero_division=0)[:3])
        of = f", {run.label}" if len(finished) > 1 else ""
        header += [f"{name}{of}" for name in ("precision", "recall", "F1")]
        columns += list(np.mean(scores, axis=0))
    columns = np.array(columns)  # (3 * runs, classes)
    counts = np.bincount(finished[0].images.test.y, minlength=len(classes))
    rows = [[name, *(f"{value:.3f}" for value in columns[:, i]), f"{counts[i]:,}"] for i, name in enumerate(classes)]
    means = [f"{value:.3f}" for value in columns.mean(axis=1)]
    rows.append([f"mean of {len(classes)} classes", *means, f"{counts.sum():,}"])
    spread = ", means over the seeds" if any(len(run.folders) > 1 for run in finished) else ""
    label = f": {finished[0].label}" if len(finished) == 1 else ""
    caption = f"Precision, recall and F1 of each class on the test images{spread}{label}"
    return Table(caption, [*header, "images"], rows).html()


def recalls(finished):
    """The recalls of several runs with the same test images as a figure."""
    if len(finished) < 2 or not all(same_test_images(finished[0], run) for run in finished):
        return ""
    test, classes = finished[0].images.test, finished[0].images.classes
    predictions = {run.label: np.stack(list(run.predicted.values())) for run in finished}
    content = rendered(plots.recall_comparison(test.y, predictions, classes, finished[0].images.name))
    caption = "Recall of each class by each run; a dot for each seed, a line for their mean. The numbers are in the table."
    return report_page.figure(content, f"Dot plot. {caption}", caption)


def png(picture):
    """The bytes of a PNG file of a picture (height, width) in [0, 1], of which 1 is drawn black, as in all figures."""
    from PIL import Image  # matplotlib needs it too

    content = io.BytesIO()
    Image.fromarray(np.uint8(np.round(255 * (1 - picture)))).save(content, "PNG", optimize=True)
    return content.getvalue()


def mistakes(run):
    """The wrong predictions with the highest probability, of the first seed."""
    test, classes, probabilities = run.images.test, run.images.classes, run.probabilities[run.first]
    X = run.images.as_shown(test.X)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != test.y)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    shown = [(png(X[i]), classes[test.y[i]], classes[predicted[i]], plots.percent(confidence[i]),
              f"Test image {i}, labeled {classes[test.y[i]]}") for i in wrong[:MISTAKES]]  # fmt: skip
    count = (f'<p class="note">{len(shown)} of {len(wrong):,} wrong predictions, seed {run.first}: label, predicted class, '
             "probability.</p>\n")  # fmt: skip
    rows = [[f"{i}", classes[test.y[i]], classes[predicted[i]], f"{confidence[i]:.3f}"] for i in wrong[:MISTAKES]]
    table = Table("Worst mistakes", ["test image", "label", "predicted class", "probability"], rows)
    return count + report_page.gallery(shown) + (table.copies() if rows else "")


def calibration_section(finished):
    header, rows = ["model", "accuracy (%)", "mean confidence (%)", "expected calibration error (%)", "test loss"], []
    for run in finished:
        confidence = np.mean([values.max(axis=1).mean() for values in run.probabilities.values()])
        rows.append([run.label, plus_minus(run.metrics, "test_accuracy"), f"{100 * confidence:.2f}",
                     plus_minus(run.metrics, "test_ece"), plus_minus(run.metrics, "test_loss", 1, 3)])  # fmt: skip
    table = Table("Calibration on the test images; confidence is the probability of the predicted class", header, rows)
    return table.html() + report_page.side_by_side({run.label: reliability(run) for run in finished})


def reliability(run):
    figures = figures_of(run.folders[run.first], ["reliability"], run.images)
    caption = f"Accuracy against confidence, seed {run.first}; below, the number of images in each bin."
    return "".join(report_page.figure(content, f"Reliability diagram of {run.label}. {caption}", caption, square=True)
                   for content in figures.values())  # fmt: skip


def shown_value(settings, name):
    """A setting as one would type it after its flag."""
    value = settings.get(name, "-")
    return (" ".join(map(str, value)) if isinstance(value, list) else str(value)) or "-"


def settings_section(finished):
    labels = [run.label for run in finished]
    names = dict.fromkeys(name for run in finished for name in run.metrics["settings"])
    rows = [[name, *(shown_value(run.metrics["settings"], name) for run in finished)] for name in names
            if name not in ("resume", "output_dir")]  # fmt: skip
    different = [row for row in rows if len(set(row[1:])) > 1]
    same = [row[:2] for row in rows if len(set(row[1:])) == 1]
    caption = "Settings that are the same in all runs" if len(finished) > 1 else "Settings"
    tables = (Table("Settings that differ; - where a script has no such setting", ["setting", *labels], different),
              Table(caption, ["setting", "value"], same))  # fmt: skip
    return "".join(table.html() for table in tables if table.rows)


def runs_section(finished):
    def machine(m):
        return ", ".join(f"{name} {value}" for name, value in m["machine"].items())

    lines = {
        "folder": lambda m, run: str(run.path), "command": lambda m, run: m["command"],
        "dataset": lambda m, run: m["dataset"],
        "images": lambda m, run: ", ".join(f"{name} {m.get(f'{name}_size', '-')}" for name in ("train", "val", "test")),
        "peak memory (MiB)": lambda m, run: f"{m['peak_memory_mib']:,.0f}" if "peak_memory_mib" in m else "-",
        "machine": lambda m, run: machine(m),
        "versions": lambda m, run: ", ".join(f"{name} {version}" for name, version in m["versions"].items()),
    }  # fmt: skip
    rows = [[name, *(line(run.metrics, run) for run in finished)] for name, line in lines.items()]
    return Table("How the runs were made", ["", *(run.label for run in finished)], rows).html()


def build(paths, title="", command="", data_dir=None):
    """The page on the runs in the folders `paths`, HTML text. Raises files.FileError and data.DataError."""
    finished = read_runs(paths, data_dir)
    datasets = " and ".join(dict.fromkeys(run.metrics["dataset"] for run in finished))
    several = len(finished) > 1
    lead = [f"{run.label}: test accuracy {plus_minus(run.metrics, 'test_accuracy')} %, {seeds_of(run)}." for run in finished]
    lead += map(verdict, comparisons := compare(finished))
    if any(run.metrics["settings"].get("quick") for run in finished):
        lead.append("Smoke test on a subset (--quick): the numbers are not representative.")
    sections = {"Summary": summary_table(finished).html()}
    if several:
        sections["Comparison"] = comparison_section(finished, comparisons)
    sections |= {
        "Curves": overlaid_curves(finished) + report_page.side_by_side({run.label: curves(run) for run in finished}),
        "Confusion matrix": report_page.side_by_side({run.label: confusion(run) for run in finished}, narrow=True),
        "Classes": class_table(finished) + recalls(finished),
        "Worst mistakes": report_page.side_by_side({run.label: mistakes(run) for run in finished}, narrow=True),
        "Calibration": calibration_section(finished),
        "Settings": settings_section(finished),
        "Runs": runs_section(finished),
    }
    title = title or f"{f'{len(finished)} models' if several else finished[0].label} on {datasets}"
    foot = ("Counts are from the saved probabilities, whose half precision may change the prediction for an image or two. "
            f"Written by {command or 'report.py'}.")  # fmt: skip
    return report_page.page(title, lead, sections, foot)


def write(paths, output, title="", command="", data_dir=None):
    """Write the page on the runs in the folders `paths` to the file `output`. Raises files.FileError and data.DataError."""
    content = build(paths, title, command, data_dir)
    try:
        files.write_text(output, content)
    except OSError as error:
        raise files.FileError(f"cannot write {output}: {error.strerror}; choose another --output") from None


def main(argv=None):
    parser = argparse.ArgumentParser("report.py", description=__doc__.split("\n\n")[0])
    parser.error = lambda mistake: parser.exit(2, f"report.py: {mistake}\n")
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a run's folder, or that of several seeds")
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: report.html in the folder of a single run, in "
                        "the current folder for several")  # fmt: skip
    parser.add_argument("--title", metavar="TEXT", default="", help="the page's title")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the dataset; default: that of the run if it exists")
    given = parser.parse_args(argv)
    output = given.output or (given.runs[0] if len(given.runs) == 1 else Path()) / "report.html"
    write(given.runs, output, given.title, runs.command_line(), given.data_dir)
    print(output)


if __name__ == "__main__":
    entry.cli(main)
