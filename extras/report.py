"""report.html on finished runs: one page with all figures in it, to read, print or hand in.

    python -m extras.report runs/hybrid_train/DATE
    python -m extras.report results/mlp_from_scratch results/cnn_feature_extraction --output report.html

A run is its folder, or the folder of several seeds. Several runs stand side by side, with paired tests. The
figures are drawn from a run's files; its dataset, for labels and images, is loaded as for training.
"""

import argparse
import base64
import io
import itertools
import re
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

import plots
import run
from studies import finished, output

MISTAKES = 20  # wrong predictions shown of each run

# {heading: (name in metrics.json, factor, decimal places)}
SUMMARY = {
    "test (%)": ("test_accuracy", 100, 2),
    "test, flip TTA (%)": ("test_accuracy_flip_tta", 100, 2),
    "validation (%)": ("val_accuracy", 100, 2),
    "test loss": ("test_loss", 1, 3),
    "parameters": ("parameters", 1, 0),
    "time per seed (s)": ("seconds", 1, 0),
    "peak memory (MiB)": ("peak_memory_mib", 1, 0),
}
CALIBRATION = {
    "expected calibration error (%)": ("test_ece", 100, 2),
    "after temperature scaling (%)": ("test_ece_calibrated", 100, 2),
    "temperature": ("temperature", 1, 2),
}


class Table(NamedTuple):
    """A table of strings. "CNN: recall" in the header is a column "recall" in a group of columns "CNN"."""

    caption: str
    header: list
    rows: list

    @property
    def groups(self):
        """[(text before the colon, number of columns)] of the header."""
        names = [cell.rpartition(": ")[0] for cell in self.header]
        return [(name, len(list(cells))) for name, cells in itertools.groupby(names)]

    @property
    def numeric(self):
        """For each column, whether it has numbers, which are aligned at the right."""
        columns = zip(*self.rows, strict=True)
        return [all(re.match(r"[-+<]? ?\d|-$", cell) for cell in column) for column in columns]

    def markdown(self):
        return output.markdown(self.header, self.rows)


def picture(png, caption):
    """An embedded PNG file, for the template."""
    return {"uri": "data:image/png;base64," + base64.b64encode(png).decode(), "caption": caption}


def drawn(figure, caption):
    """A matplotlib Figure as a picture."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return picture(file.getvalue(), caption)


def seeds_of(result):
    return f"{len(result.folders)} seeds" if len(result.folders) > 1 else f"seed {result.first}"


def plus_minus(metrics, name, factor=100, digits=2):
    """93.90 ± 0.16: a result, of several seeds with its standard deviation; "-" if it was not recorded."""
    if metrics.get(name) is None:
        return "-"
    values = [metrics[key] for key in (name, f"{name}_std") if key in metrics]
    return " ± ".join(f"{factor * value:,.{digits}f}" for value in values)


def metrics_table(results, columns, caption):
    rows = [[r.label, *(plus_minus(r.metrics, *column) for column in columns.values())] for r in results]
    return Table(caption, ["model", *columns], rows)


def all_curves(results):
    """The validation curves of several runs in one figure."""
    title = f"Validation loss and accuracy by epoch\n{results[0].images.name}"
    fig, axes = plots.figure(title, 9, 4.2, ncols=2)
    panels = ("val_loss", 1, "validation loss"), ("val_accuracy", 100, "validation accuracy (%)")
    for ax, (column, factor, ylabel) in zip(axes[0], panels, strict=True):
        late = []  # after the first tenth; sets the range
        for number, result in enumerate(results):
            histories = [history[column] for history in result.histories.values()]
            epochs = min(map(len, histories))
            values = factor * np.array([history[:epochs] for history in histories])  # (seeds, epochs)
            x, color = np.arange(1, epochs + 1), plots.SERIES[number % len(plots.SERIES)]
            ax.plot(x, values.mean(axis=0), "o-" if epochs == 1 else "-", color=color, label=result.label)
            ax.fill_between(x, values.min(axis=0), values.max(axis=0), color=color, alpha=0.2, linewidth=0)
            late += [values[:, epochs // 10 :].min(), values[:, epochs // 10 :].max()]
        margin = 0.06 * (max(late) - min(late)) + 1e-6
        ax.set(xlabel="epoch", ylabel=ylabel, ylim=(min(late) - margin, max(late) + margin))
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        ax.grid(alpha=0.25)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), ncols=2, **plots.LEGEND)
    caption = "Validation loss and accuracy; of several seeds the mean, and a band from lowest to highest."
    return drawn(fig, caption)


def curves(result):
    """The training curves of a run; of a frozen hybrid those of its CNN as well."""
    s, model, seeds = result.metrics["settings"], result.metrics["model"], seeds_of(result)
    place = f"on {result.images.name}, {seeds}"
    augmented = any(s.get(name) for name in ("flip", "shift", "erase", "rotate", "translate"))
    changes = {"augmented": augmented, "smoothing": s["label_smoothing"]}
    changes |= {"trained_on_val": s["train_on_val"], "loss": s.get("loss", "softmax")}
    caption, pictures = f"Loss and accuracy by epoch, {seeds}.", []
    paths = {seed: folder / "cnn_history.csv" for seed, folder in result.folders.items()}
    if all(path.exists() for path in paths.values()):
        histories = {seed: run.read_history(path) for seed, path in paths.items()}
        figure = plots.curves(histories, f"{model.split(' + ')[0]} {place}", **changes)
        pictures.append(drawn(figure, f"The CNN alone. {caption}"))
    if s.get("training") == "frozen":  # the MLP is trained on features as they are
        changes |= {"augmented": False, "smoothing": 0}
    return [*pictures, drawn(plots.curves(result.histories, f"{model} {place}", **changes), caption)]


def confusion_counts(result):
    """(classes, classes) integers of the first seed: true classes down, predicted ones across."""
    y, classes = result.images.test.y, result.images.classes
    return confusion_matrix(y, result.predicted[result.first], labels=range(len(classes)))


def class_tables(results):
    """Scores of each class: one table if all runs have the same test images, else one for each run."""
    images = results[0].images
    if not all(finished.same_test_images(results[0], result) for result in results):
        return [table for result in results for table in class_tables([result])]
    header, columns, labels = ["class", "images"], [], range(len(images.classes))
    for result in results:
        scores = []
        for predicted in result.predicted.values():
            score = precision_recall_fscore_support(images.test.y, predicted, labels=labels, zero_division=0)
            scores.append(score[:3])
        columns += list(np.mean(scores, axis=0))
        header += [f"{result.label}: {name}" for name in ("precision", "recall", "F1")]
    scores, counts = np.stack(columns, axis=1), np.bincount(images.test.y, minlength=len(labels))
    scores, counts = [*scores, scores.mean(axis=0)], [*counts, counts.sum()]  # (classes + 1, 3 * runs)
    names = [*images.classes, "mean"]
    rows = [[names[i], f"{counts[i]:,}", *(f"{value:.3f}" for value in scores[i])] for i in range(len(names))]
    return [Table("Scores of each class on the test images; of several seeds their means", header, rows)]


def recalls(results):
    """The recalls of several runs with the same test images in one figure."""
    predictions, images = {r.label: np.stack(list(r.predicted.values())) for r in results}, results[0].images
    figure = plots.recall_comparison(images.test.y, predictions, images.classes, images.name)
    return drawn(figure, "Recall of each class by each run: a dot for each seed, a circle for their mean.")


def mistakes(result):
    """(number of wrong predictions of the first seed, those with the highest probability)."""
    images, test, p = result.images, result.images.test, result.probabilities[result.first]
    X, predicted, confidence = 1 - images.as_shown(test.X), p.argmax(axis=1), p.max(axis=1)  # drawn in black
    wrong, shown = np.flatnonzero(predicted != test.y), []
    for i in wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]:
        png, label, other = io.BytesIO(), images.classes[test.y[i]], images.classes[predicted[i]]
        Image.fromarray(np.uint8(np.round(255 * X[i]))).save(png, "PNG", optimize=True)
        texts = {"label": label, "predicted": other, "probability": plots.percent(confidence[i])}
        shown.append(picture(png.getvalue(), f"Test image {i}, labeled {label}") | texts)
    return len(wrong), shown


def reliability(result):
    """The reliability diagram of the first seed, before and after temperature scaling."""
    m, y, p = result.metrics, result.images.test.y, result.probabilities[result.first]
    bins = {"before": run.calibration(y, p)}
    if m["settings"].get("loss", "softmax") != "sigmoid":
        scaled = p ** (1 / m["temperature"])  # softmax(logits / T), up to a factor in each row
        bins["after"] = run.calibration(y, scaled / scaled.sum(axis=1, keepdims=True))
    title = plots.run_title(m["model"], result.images.name, result.first)
    caption = f"Accuracy against confidence, seed {result.first}; below, the number of images in each bin."
    return drawn(plots.reliability(bins, title), caption)


def settings_of(results):
    """(settings that differ between the runs, others): rows of a name and its value in each run."""
    names = dict.fromkeys(name for result in results for name in result.metrics["settings"])
    names.pop("output_dir", None)
    rows = []
    for name in names:
        values = [result.metrics["settings"].get(name, "-") for result in results]
        rows.append([name, *(" ".join(map(str, v)) if isinstance(v, list) else str(v) for v in values)])
    return [row for row in rows if len(set(row[1:])) > 1], [row for row in rows if len(set(row[1:])) == 1]


def build(paths, title="", command=""):
    """The page on the runs in the folders `paths`, HTML text. Raises run.Error."""
    results = finished.read_runs(paths)
    names = f"{len(results)} models" if len(results) > 1 else results[0].label
    datasets = " and ".join(dict.fromkeys(result.metrics["dataset"] for result in results))
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=folder, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= globals()  # the template calls the functions of this file
    page = {"title": title or f"{names} on {datasets}", "command": command, "results": results}
    page["comparisons"] = finished.compare(results)
    return environment.get_template("report.html.jinja").render(page)


def main(argv=None):
    options = {"description": __doc__.split("\n")[0], "allow_abbrev": False}
    parser = argparse.ArgumentParser("python -m extras.report", **options)
    parser.error = lambda message: parser.exit(2, f"report.py: {message}\n")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or of several seeds")
    parser.add_argument("--output", metavar="FILE", default="report.html", help="default: report.html")
    parser.add_argument("--title", metavar="TEXT", default="", help="the page's title")
    given = parser.parse_args(argv)
    run.write(given.output, build(given.runs, given.title, run.command_line()))
    print(given.output)


if __name__ == "__main__":
    run.cli(main)
