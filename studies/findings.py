"""Ten lines for README.md: which claims of the similar projects hold, made from the summaries of the studies."""

from support import files

# (study, number of its claim)
CHOSEN = (
    ("depth", 0), ("depth", 1), ("activation", 0), ("dropout", 0), ("l2", 0), ("augmentation", 0), ("initialization", 1),
    ("optimizer", 0), ("schedule", 0), ("loss", 0), ("pooling", 0), ("cnn_dropout", 0), ("cnn_augmentation", 0),
    ("training_images", 0), ("references", 3),
)  # fmt: skip
WORDS = {"holds": "Holds", "does not hold": "Does not hold", "not distinguishable": "Not distinguishable"}


def findings(results):
    """A Markdown list: a line for each chosen claim whose study is in results/studies, those that hold first."""
    lines = {word: [] for word in WORDS}
    for name, number in CHOSEN:
        path = results / "studies" / name / "summary.json"
        if not path.exists():
            continue
        claim = files.read_json(path)["claims"][number]
        if claim["verdict"] in lines:
            numbers = f"{claim['points']:+.2f} points, p = {claim['p_holm']:.2g}"
            link = f"[{claim['text']}](results/studies/README.md#{name})"
            lines[claim["verdict"]].append(f"- {WORDS[claim['verdict']]}: {link} ({numbers})")
    return "\n".join(line for group in lines.values() for line in group) + "\n"
