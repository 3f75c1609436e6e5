"""README.md of the studies: for each the question, table, figure, verdict and claims, made from the summary.json files.

    python -m studies.readme runs/studies    # verdicts, claims, figures and README.md anew from them, without training
"""

if __name__ == "__main__" and not __package__:
    raise SystemExit("studies/readme.py: run it as python -m studies.readme FOLDER, in the repository's folder")

from support import entry

if __name__ == "__main__":  # before the slow imports: Ctrl-C
    entry.prepare()

import argparse
import json
import textwrap
from pathlib import Path

from studies import findings
from studies.comparison import LINKS, baselines_in, claim_result, not_learned, percent, tests_of, verdict
from studies.statistics import word_of
from support import files

INTRODUCTION = """# Studies

Made by `python experiments.py`; the numbers are in each folder's `runs.csv` and `summary.json`.

Most studies change one factor of a plain baseline; the others say so. Validation chooses the learning rate of every
variant, with the first seed, except where a study says otherwise; "(edge)" marks the lowest or highest of those to choose
from. All variants have the same seeds. Tables show mean ± standard deviation over the seeds. The test images choose
nothing. Differences in test accuracy are tested against a baseline by paired t tests over the seeds, corrected within a
study (Holm, level 0.05): p depends on the number of tests in the study, too. With few seeds, small differences remain
undetected: "not distinguishable" does not mean equal. Seeds that learn nothing are counted, and their variant is not
tested. Below each study: what similar projects report, from single runs, or have chosen. What is reported holds if the
difference has the same sign here and p < 0.05; its size may differ.
"""
HEADS = "Does the NumPy MLP classify a CNN's features better than other classifiers do?"
COLUMNS = ("variant", "learning rate", "validation", "test", "difference in points", "p", "verdict", "on training images")
SECONDS = "s per run"  # a column of studies of time alone, since it shows the load of the machine, too


def paths(folder, names):
    """The summary.json files in `folder`, in the order of `names`, then the others."""
    found = {path.parent.name: path for path in folder.glob("*/summary.json")}
    order = [name for name in names if name in found] + sorted(found.keys() - set(names))
    return [found[name] for name in order]


def read(path):
    """(the summary in a file, its section). Raises files.FileError for a file that is damaged or of another version."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        return summary, section(summary)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise files.FileError(f"{path}: cannot be read ({error!r})") from None


def write(folder, names, warn):
    """Write README.md of the studies in `folder`. A summary.json that cannot be read is left out: warn(message)."""
    readable = []
    for path in paths(folder, names):
        try:
            readable.append(read(path))
        except files.FileError as error:
            warn(f"{error}: left out of {folder / 'README.md'}; running its study writes it again")
    files.write_text(folder / "README.md", text_of(folder, readable))


def contents(folder, names):
    """The text of README.md. Raises files.FileError."""
    return text_of(folder, [read(path) for path in paths(folder, names)])


def text_of(folder, studies):
    lines = [INTRODUCTION, "| study | question | verdict |", "| --- | --- | --- |"]
    lines += [row([f"[{summary['name']}](#{summary['name']})", summary["question"], summary["verdict"]])
              for summary, _ in studies]  # fmt: skip
    if (folder / "heads" / "README.md").exists():
        lines.append(row(["[heads](heads/README.md)", HEADS, "see there"]))
    return "\n".join(lines) + "\n\n" + "\n".join(section for _, section in studies)


def row(cells):
    """A line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def section(summary):
    """One study in Markdown."""
    name = summary["name"]
    parts = [f"## {name}", f"{summary['question']} {summary['note']}".strip(), setup(summary), table(summary),
             f"![{summary['question']}]({name}/{name}.png)", f"**Verdict.** {summary['verdict']}"]  # fmt: skip
    if summary["claims"]:
        parts.append("\n".join(map(claim_line, summary["claims"])))
    return "\n\n".join(parts) + "\n"


def setup(summary):
    """The command, what is held fixed, and where it ran."""
    command = summary.get("command") or f"python experiments.py {summary['name']}"
    fixed = " ".join(words for name, value in summary["fixed"].items() for words in flag(name, value))
    text = f"`{command}`. {budget(summary)}" + (f", fixed: `{fixed}`" if fixed else "")
    seconds, processor = summary["run_seconds"], summary["machine"]["processor"]
    time = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds} seconds"
    tests = f"{len(summary['tests'])} test{'s' * (len(summary['tests']) != 1)}"
    return f"{text}. {summary['runs']} runs, {time} of one core ({processor}); {tests}."


def budget(summary):
    """Fashion-MNIST, 5 seeds, 12 epochs"""
    first, last = summary["epochs"][0], summary["epochs"][-1]
    epochs = f"{first} epoch{'s' * (first != 1)}" if first == last else f"{first} to {last} epochs"
    seeds = f"{summary['seeds']} seed{'s' * (summary['seeds'] != 1)}"
    return ", ".join(filter(None, [summary["dataset"], seeds, epochs]))


def flag(name, value):
    """A setting as words of a command line: --dropout 0.2, --flip, --no-flip, --hidden 256 128."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", *map(str, value if isinstance(value, (list, tuple)) else [value])]


def claim_line(claim):
    if not claim["verdict"]:
        return f"- {claim['text']}"
    if "points" not in claim:
        return f"- {claim['text']}: {claim['verdict']}"
    word = findings.word_of(claim)
    return f"- {claim['text']}: **{word}** ({claim['points']:+.2f} points, p = {claim['p_holm']:.2g})"


def rate_of(result):
    return f"{result['learning_rate']:g}" + (" (edge)" if result.get("at_edge") else "")


def cells_of(summary):
    """{variant: its cells of COLUMNS without the first one}, and with SECONDS in a study of time."""
    baseline_of, cells, timed = summary.get("baseline_of", {}), {}, summary["x"] == "seconds"
    several = len(baselines_in(summary)) > 1
    tests = {test["variant"]: test for test in summary["tests"]
             if test["against"] == baseline_of.get(test["variant"], summary["baseline"])}  # fmt: skip
    for name, result in summary["variants"].items():
        test, failed = tests.get(name), f"{result.get('failed', 0)} of {summary['seeds']} seeds: {result.get('message')}"
        if "val_accuracy" not in result:
            cells[name] = [rate_of(result), "-", "-", "-", "-", failed, "-", *["-"] * timed]
            continue
        verdict = ["-", "-", "-"]
        if test:
            word, against = word_of(test), test["against"]
            word = f"{LINKS[word]} {against}" if several else word
            verdict = [f"{test['points']:+.2f} ± {test['points_std']:.2f}", f"{test['p_holm']:.2g}", word]
        if number := not_learned(result):
            verdict[2] += f"; {number} of {len(result['seeds'])} seeds learned nothing"
        if result.get("failed"):
            verdict[2] += f"; {failed}"
        cells[name] = [rate_of(result), percent(result, "val_accuracy"), percent(result, "test_accuracy"), *verdict,
                       percent(result, "train_eval_accuracy"), *[f"{result['seconds']:.0f}"] * timed]  # fmt: skip
    return cells


def table(summary):
    """The Markdown table of a study's variants."""
    columns = [*COLUMNS, *[SECONDS] * (summary["x"] == "seconds")]
    lines = [row(columns), "| --- " * len(columns) + "|"]
    for name, cells in cells_of(summary).items():
        lines.append(row([f"**{name}** (baseline)" if name in baselines_in(summary) else name, *cells]))
    return "\n".join(lines)


def terminal_text(summary):
    """A study's result as lines for the terminal."""
    rows = {"": list(COLUMNS[1:6])}
    for name, cells in cells_of(summary).items():
        rows[f"{name} (baseline)" if name in baselines_in(summary) else name] = cells[:5]
    rows = [[name, *cells] for name, cells in rows.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["", *textwrap.wrap(f"{summary['name']}: {summary['question']} ({budget(summary)})", 118)]
    for name, *cells in rows:
        aligned = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([f"{name:<{widths[0]}}", *aligned]))
    for name, result in summary["variants"].items():
        if result.get("failed"):
            lines.append(f"{name}, {result['failed']} of {summary['seeds']} seeds: {result['message']}")
    lines += textwrap.wrap(summary["verdict"], 118)
    return "\n".join(lines + [claim_line(claim).replace("**", "") for claim in summary["claims"] if claim["verdict"]])


def main(argv=None):
    from studies import catalog, output  # which import this module

    parser = argparse.ArgumentParser("python -m studies.readme", allow_abbrev=False,
                                     description="Make verdicts, figures and README.md of finished studies anew.")
    parser.add_argument("folder", type=Path, help="folder of the studies, such as runs/studies")
    folder = parser.parse_args(argv).folder
    for path in paths(folder, catalog.STUDIES):
        summary, _ = read(path)
        if summary["name"] in catalog.STUDIES:
            study = catalog.STUDIES[summary["name"]]
            if summary["variants"].keys() == study.variants.keys():
                summary |= {"question": study.question, "note": study.note, "baseline_of": study.baseline_of,
                            "tests": tests_of(study, summary["variants"])}  # fmt: skip
            summary["verdict"] = verdict(study, summary["variants"], summary["tests"])
            summary["claims"] = [claim_result(claim, summary["tests"]) for claim in study.claims]
        output.save(path.parent, summary)
        print(path.parent)
    files.write_text(folder / "README.md", contents(folder, catalog.STUDIES))


if __name__ == "__main__":
    entry.cli(main)
