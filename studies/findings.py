"""The lines "What we found" of README.md: what similar projects report or have chosen, and whether it holds here."""

if __name__ == "__main__":
    raise SystemExit("studies/findings.py is a module, not a script: python -m studies.tables uses it")

from support import files

CHOSEN = (  # (study, number of its claim)
    ("depth", 0), ("depth", 1), ("width", 1), ("activation", 0), ("optimizer", 0), ("loss", 0), ("augmentation", 0),
    ("cnn_dropout", 0), ("cnn_augmentation", 0), ("training_images", 0),
)  # fmt: skip
WORDS = {  # of what is reported, and of what was chosen
    "holds": ("holds here", "better here"),
    "does not hold": ("does not hold here", "worse here"),
    "not distinguishable": ("no distinguishable difference here",) * 2,
}


def word_of(claim):
    """The verdict on a claim in words; one on a choice has other words than one on what is reported."""
    return WORDS[claim["verdict"]][claim["text"].startswith("Choice")]


def lines(results):
    """A Markdown list with a line for each chosen claim that was tested in results/studies; those that hold come first.

    Raises files.FileError.
    """
    groups = {word: [] for word in WORDS}
    for name, number in CHOSEN:
        path = results / "studies" / name / "summary.json"
        if path.exists():
            claim = files.read_json(path)["claims"][number]
            if claim["verdict"] not in WORDS:  # not tested: a variant diverged, or has one seed
                continue
            word = f"**{word_of(claim)}** ({claim['points']:+.2f} points, p = {claim['p_holm']:.2g})"
            groups[claim["verdict"]].append(f"- {claim['text']}: [{word}](results/studies/README.md#{name})")
    return "".join(f"{line}\n" for group in groups.values() for line in group)
