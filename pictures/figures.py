"""Figures of predictions: a row for each picture, or contact sheets of many pictures."""

if __name__ == "__main__":
    raise SystemExit("pictures/figures.py is a module, not a script: predict.py uses it")

import itertools
import os

import numpy as np

from plots import GREY, MODEL_COLORS, SERIES, WRONG, figure, percent
from support.figure_labels import short

ROWS, COLUMNS = 8, 6  # of pictures on a contact sheet
CLASSES = 5  # classes at most with bars


def shown(name, longest=28):
    """A file's name as matplotlib can draw it: at most so many characters, letters its font has, and no formulas."""
    name = os.path.basename(name.rstrip("/\\")) or "picture"
    name = "".join(c if c.isprintable() and ord(c) < 0x590 else "?" for c in name)
    name = name if len(name) <= longest else f"{name[: longest // 2 - 1]}...{name[-(longest // 2 - 2) :]}"
    return name.replace("$", r"\$")


def in_percent(probability):
    """A probability in words; one that rounds to 0 or 100 % is not certain."""
    return "<1 %" if probability < 0.005 else percent(probability)


def color_of(model):
    """The color of a network by its kind, as in all figures."""
    kind = "CNN features + NumPy MLP" if " + NumPy MLP" in model else model.split(" ")[0]
    return MODEL_COLORS.get("NumPy MLP" if kind == "NumPy" else kind, GREY)


def colors_of(models):
    """{network: color}: that of its kind, or one of its own where several are of one kind."""
    colors = [color_of(model) for model in models]
    return dict(zip(models, colors if len(set(colors)) == len(colors) else itertools.cycle(SERIES), strict=False))


def kind_of(model):
    """hybrid, CNN or MLP."""
    return "hybrid" if " + " in model else "MLP" if model.startswith("NumPy MLP") else "CNN"


def predictions(results, maps):
    """A row for each picture: the picture, what the networks see, the probabilities, and where the CNN looked.

    results: a list of lists of predict.Prediction; maps: [(name of the CNN, map (28, 28) or None), ...].
    """
    from matplotlib.patches import Rectangle

    colors = colors_of([prediction.model for prediction in results[0]])
    with_map = any(heat is not None for _, heat in maps)
    fig, axes = figure("Predictions on your own pictures\nprobabilities after temperature scaling", 9,
                       2.5 * len(results) + 1.3 + 0.2 * len(colors), nrows=len(results), ncols=3 + with_map,
                       width_ratios=[1.1, 1, 1.9, 1][: 3 + with_map])  # fmt: skip
    for row, result, (name, heat) in zip(axes, results, maps, strict=True):
        garment = result[0].garment
        row[0].imshow(garment.picture)
        left, top, right, bottom = garment.box
        row[0].add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, color=WRONG))
        row[0].set_title(shown(result[0].picture), fontsize=8.5)
        row[1].imshow(garment.image, cmap="gray", vmin=0, vmax=1)
        row[1].set_title("what the networks see" + "\n(inverted)" * garment.inverted, fontsize=8.5)
        bars(row[2], result, colors)
        if warned := [kind_of(prediction.model) for prediction in result if prediction.warning]:
            of = "" if len(warned) == len(result) else f"\nof the {' and the '.join(dict.fromkeys(warned))}"
            row[2].set_title("unlike the training images" + of, fontsize=8.5, color=WRONG, fontweight="bold")
        if heat is not None:
            relative = heat / max(heat.max(), 1e-12)
            row[3].imshow(garment.image, cmap="gray", vmin=0, vmax=1)
            row[3].imshow(relative, cmap="plasma", alpha=relative, vmin=0, vmax=1)  # opaque where the evidence is strong
            label = next(prediction.label for prediction in result if prediction.model == name)
            row[3].set_title(f"where the {kind_of(name)}\nsaw {short(label, 18)}", fontsize=8.5)
        for ax in row[[0, 1, 3] if with_map else [0, 1]]:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(visible=True, color="#cccccc", linewidth=0.6)  # a picture on white has no other border
    handles = [Rectangle((0, 0), 1, 1, color=color) for color in colors.values()]
    names = [short(model, 90) for model in colors]
    fig.legend(handles, names, frameon=False, fontsize=9, ncols=1, loc="outside lower center")
    return fig


def bars(ax, result, colors):
    """Probabilities of the classes that any of the networks puts first, second or third. colors: {network: color}."""
    highest = {}
    for prediction in result:
        for name, p in list(prediction.probabilities.items())[:3]:
            highest[name] = max(p, highest.get(name, 0))
    names = sorted(highest, key=highest.get, reverse=True)[:CLASSES]
    names = [name for place, name in enumerate(names) if place < 3 or highest[name] >= 0.005]
    thickness = 0.8 / len(result)
    for number, prediction in enumerate(result):
        places = np.arange(len(names)) - 0.4 + (number + 0.5) * thickness
        values = [100 * prediction.probabilities.get(name, 0) for name in names]
        ax.barh(places, values, thickness, color=colors[prediction.model])
        for name, place, value in zip(names, places, values, strict=True):
            text = in_percent(value / 100) if name in prediction.probabilities else "not a class of it"
            ax.text(value + 2, place, text, va="center", fontsize=6.5)
    ax.set(xlim=(0, 118), yticks=range(len(names)), xticks=(0, 50, 100))
    ax.set_yticklabels([short(name, 18) for name in names], fontsize=8.5)
    ax.set_xlabel("probability (%)", fontsize=8.5)
    ax.invert_yaxis()


def contact_sheets(results):
    """{file name: Figure}: all pictures, each beside what the networks see, with the classes; ROWS x COLUMNS on a sheet."""
    pages = [results[start : start + ROWS * COLUMNS] for start in range(0, len(results), ROWS * COLUMNS)]
    names = [f"contact_sheet_{number}.png" if len(pages) > 1 else "contact_sheet.png" for number in range(1, len(pages) + 1)]
    return {name: contact_sheet(page, f", sheet {number} of {len(pages)}" * (len(pages) > 1))
            for number, (name, page) in enumerate(zip(names, pages, strict=True), 1)}  # fmt: skip


def contact_sheet(results, title):
    rows, lines = -(-len(results) // COLUMNS), len(results[0])
    height = 1.3 + 0.2 * lines  # of a row, in widths of a picture
    fig, axes = figure(f"Pictures and what the networks see{title}", 9, 0.7 * rows * height + 0.8)
    ax = axes[0, 0]
    ax.axis("off")
    for place, result in enumerate(results):
        left, top, garment = 2.1 * (place % COLUMNS), height * (place // COLUMNS), result[0].garment
        tall, wide = garment.picture.shape[:2]
        half_width, half_height = 0.47 * wide / max(tall, wide), 0.47 * tall / max(tall, wide)
        x, y = left + 0.5, top + 0.72
        ax.imshow(garment.picture, extent=(x - half_width, x + half_width, y + half_height, y - half_height))
        ax.imshow(garment.image, cmap="gray", vmin=0, vmax=1, extent=(x + 0.53, x + 1.47, y + 0.47, y - 0.47))
        ax.text(left + 0.04, top + 0.2, shown(result[0].picture, 20), fontsize=5.5, va="bottom", color=GREY)
        for line, prediction in enumerate(result):
            text = f"{kind_of(prediction.model)}: {short(prediction.label, 14)} {in_percent(prediction.probability)}"
            ax.text(left + 0.04, y + 0.6 + 0.2 * line, text + " !" * bool(prediction.warning), fontsize=5.5, va="center",
                    color=WRONG if prediction.warning else "black")  # fmt: skip
    ax.set(xlim=(0, 2.1 * COLUMNS), ylim=(rows * height, 0), aspect="equal")
    fig.supxlabel("!: unlike the training images", fontsize=9, color=WRONG)
    return fig
