"""README.md of the studies: for each the question, table, figure, verdict and claims, made from the summary.json files."""

if __name__ == "__main__":
    raise SystemExit("studies/readme.py is a module, not a script: experiments.py uses it")

import json
import textwrap

from studies.comparison import percent, word_of
from support import files

INTRODUCTION = """# Studies

Made by `python experiments.py`; the numbers are in each folder's `runs.csv` and `summary.json`.

Each study changes one factor of a plain baseline. Validation chooses the learning rate of every variant, with the first
seed; all variants share splits and seeds. Tables show mean ± standard deviation over the seeds. The test images choose
nothing. Differences are tested against the baseline by paired t tests over the seeds, corrected within a study (Holm,
level 0.05). With few seeds, small differences remain undetected: "not distinguishable" does not mean equal. R1 to R4 are
similar projects, whose figures are single runs.
"""


def read(folder, names):
    """The summaries of the finished studies in `folder`, in the order of `names`, then the others."""
    paths = {path.parent.name: path for path in folder.glob("*/summary.json")}
    order = [name for name in names if name in paths] + sorted(paths.keys() - set(names))
    try:
        return [json.loads(paths[name].read_text(encoding="utf-8")) for name in order]
    except (OSError, ValueError) as error:
        raise files.FileError(f"{folder}: a summary.json cannot be read ({error})") from None


def write(folder, names):
    files.write_text(folder / "README.md", contents(folder, names))


def contents(folder, names):
    """The text of README.md."""
    summaries = read(folder, names)
    lines = [INTRODUCTION, "| study | question | verdict |", "| --- | --- | --- |"]
    lines += [f"| [{summary['name']}](#{summary['name']}) | {summary['question']} | {summary['verdict']} |"
              for summary in summaries]  # fmt: skip
    if (folder / "heads" / "README.md").exists():
        lines.append("| [heads](heads/README.md) | Does the NumPy MLP classify a CNN's features better than other "
                     "classifiers do? | see there |")  # fmt: skip
    return "\n".join(lines) + "\n\n" + "\n".join(map(section, summaries))


def section(summary):
    """One study in Markdown."""
    name = summary["name"]
    parts = [f"## {name}", f"{summary['question']} {summary['note']}".strip(),
             f"`python experiments.py {name}`. {setup(summary)}", table(summary),
             f"![{summary['question']}]({name}/{name}.png)", f"**Verdict.** {summary['verdict']}"]  # fmt: skip
    if summary["claims"]:
        parts.append("\n".join(map(claim_line, summary["claims"])))
    return "\n\n".join(parts) + "\n"


def setup(summary):
    """What is held fixed, and where it ran."""
    epochs = summary["epochs"]
    number = f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
    fixed = " ".join(f"--{key.replace('_', '-')} {' '.join(map(str, value if isinstance(value, list) else [value]))}"
                     for key, value in summary["fixed"].items())  # fmt: skip
    text = f"{summary['dataset']}, {summary['seeds']} seeds, {number} epochs"
    text += f", fixed: `{fixed}`" if fixed else ""
    machine = summary["machine"]
    return f"{text}. {summary['runs']} runs, {summary['run_seconds'] / 60:.0f} minutes of one core ({machine['processor']})."


def claim_line(claim):
    if not claim["verdict"]:
        return f"- {claim['text']}"
    if "points" not in claim:
        return f"- {claim['text']}: {claim['verdict']}"
    return f"- {claim['text']}: **{claim['verdict']}** here ({claim['points']:+.2f} points, p = {claim['p_holm']:.2g})"


def table(summary):
    """The Markdown table of a study's variants."""
    tests = {test["variant"]: test for test in summary["tests"] if test["against"] == summary["baseline"]}
    lines = ["| variant | learning rate | validation | test | difference in points | p | verdict | training images | "
             "s per run |", "| --- " * 9 + "|"]  # fmt: skip
    for name, result in summary["variants"].items():
        shown = f"**{name}** (baseline)" if name == summary["baseline"] else name
        rate = f"{result['learning_rate']:g}" + (" (edge)" if result.get("at_edge") else "")
        if "val_accuracy" not in result:
            lines.append(f"| {shown} | {rate} | - | - | - | - | {result.get('message', 'failed')} | - | - |")
            continue
        verdict = 3 * ["-"]
        if test := tests.get(name):
            verdict = [f"{test['points']:+.2f} ± {test['points_std']:.2f}", f"{test['p_holm']:.2g}", word_of(test)]
        if result.get("failed"):
            verdict[2] += f"; {result['failed']} seeds failed"
        cells = [shown, rate, percent(result, "val_accuracy"), percent(result, "test_accuracy"), *verdict,
                 percent(result, "train_eval_accuracy"), f"{result['seconds']:.0f}"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def text_of(summary):
    """A study's result as lines for the terminal."""
    width = max(map(len, summary["variants"])) + 2
    lines = ["", f"{summary['name']}: {summary['question']}"]
    lines.append(f"{'':<{width}}{'learning rate':>14}{'validation':>17}{'test':>17}")
    for name, result in summary["variants"].items():
        if "val_accuracy" in result:
            lines.append(f"{name:<{width}}{result['learning_rate']:>14g}{percent(result, 'val_accuracy'):>17}"
                         f"{percent(result, 'test_accuracy'):>17}")  # fmt: skip
        else:
            lines.append(f"{name:<{width}}{result['learning_rate']:>14g}  {result.get('message', 'failed')}")
    lines += textwrap.wrap(summary["verdict"], 118)
    lines += [claim_line(claim).replace("**", "") for claim in summary["claims"] if claim["verdict"]]
    return "\n".join(lines)
