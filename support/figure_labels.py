"""Which classes a figure shows, and what it writes beside them, whatever their number and their names."""

if __name__ == "__main__":
    raise SystemExit("support/figure_labels.py is a module, not a script: plots.py uses it")

import numpy as np

MOST_ROWS = 40  # classes in a figure with a row for each; of more, the worst are shown
MOST_SAMPLES = 60  # classes in a figure with images of each


def cut(name, most=24):
    """A name of at most `most` characters: the middle of a longer one is left out."""
    half = (most - 1) // 2
    return name if len(name) <= most else name[: most - 1 - half] + "\N{HORIZONTAL ELLIPSIS}" + name[-half:]


def short(name, most=24):
    """A class's or dataset's name, cut where it is long, and never read by matplotlib as mathematics or as hidden."""
    name = cut(name, most)
    return name.replace("$", r"\$") if not name.startswith("_") else f" {name}"


def percent(probability):
    """A probability in words; one that rounds to 100 % is not certain."""
    return ">99 %" if probability > 0.995 else f"{100 * probability:.0f} %"


def mark(right):
    return "\N{CHECK MARK}" if right else "\N{BALLOT X}"


def worst_classes(scores, classes, score):
    """(labels in order, their description): all classes, or the MOST_ROWS with the lowest scores (classes,)."""
    order = np.sort(np.argsort(scores, kind="stable")[:MOST_ROWS])
    some = f"the {len(order)} of {len(classes):,} classes with the lowest {score}"
    return order, "each class" if len(order) == len(classes) else some


def sampled_classes(num_classes, most=MOST_SAMPLES):
    """Labels of all classes, or of `most` of them, evenly spaced."""
    return np.linspace(0, num_classes - 1, min(num_classes, most)).round().astype(int)


def fit(shape, left, top, side):
    """(left, right, bottom, top) of an image (height, width) in the middle of a square whose y axis points down."""
    height, width = (side * n / max(shape) for n in shape)
    left, top = left + (side - width) / 2, top + (side - height) / 2
    return left, left + width, top + height, top
