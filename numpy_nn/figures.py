"""Figures of the NumPy MLP: the first layer's weights, activations and gradients by layer, what the monitor recorded."""

if __name__ == "__main__":
    raise SystemExit("numpy_nn/figures.py is a module, not a script: mlp_from_scratch.py uses it")

import numpy as np

import plots
from numpy_nn.monitor import distributions as monitor_distributions
from plots import DPI, GREY, TRAIN, VAL, figure, image_grid


def first_layer(W, shape, title, most=64):
    """The weights of the first `most` neurons of the first layer as images. W (pixels, neurons), shape (28, 28).

    Each weight is a square of whole pixels.
    """
    columns = min(16, W.shape[1], int(8.7 * DPI) // (shape[1] + 1))
    count = min(most, W.shape[1], columns * max(1, 1600 // (shape[0] + 1)))  # of large images, as many as fit
    height, width = -(-count // columns) * (shape[0] + 1) - 1, columns * (shape[1] + 1) - 1
    scale = max(1, min(4, int(8.7 * DPI) // width))
    total_width, total_height = 9 * DPI, scale * height + 250
    some = f"{count} of {W.shape[1]:,} neurons" if count < W.shape[1] else f"{count} neurons"
    fig, axes = figure(f"Weights of the first layer, {some}\n{title}", 9, total_height / DPI)
    fig.set_layout_engine("none")
    ax = axes[0, 0]
    limit = np.quantile(np.abs(W[:, :count]), 0.995)  # of all: a single large weight would make the rest grey
    shown = image_grid(ax, W.T[:count].reshape(count, *shape), columns, cmap="RdBu_r", vmin=-limit, vmax=limit,
                       aspect="auto")  # fmt: skip
    ax.set_position([(total_width - scale * width) // 2 / total_width, 140 / total_height, scale * width / total_width,
                     scale * height / total_height])  # fmt: skip
    bar = fig.colorbar(shown, cax=fig.add_axes([0.3, 95 / total_height, 0.4, 18 / total_height]), orientation="horizontal")
    bar.ax.tick_params(labelsize=9)
    bar.set_label("weight", fontsize=9)
    return fig


def distributions(activations, gradients, title):
    """Histograms by layer: the hidden layers' activations and the weights' gradients. {layer: flat array} each."""
    columns = 2 if activations else 1
    content = "Activations and weight gradients by layer" if activations else "Weight gradients by layer"
    fig, axes = figure(f"{content}\n{title}", 4.5 * columns, 1.9 * len(gradients) + 1.1, nrows=len(gradients), ncols=columns)
    for row, name in zip(axes, gradients, strict=True):
        for ax, values, color, what in ((row[0], activations.get(name), TRAIN, "activation"),
                                        (row[-1], gradients[name], VAL, "gradient of the weights"))[-columns:]:  # fmt: skip
            if values is None:  # the output layer, whose logits no activation follows
                ax.axis("off")
                continue
            low, high = np.quantile(values, [0.001, 0.999])
            limit = 1.05 * max(abs(low), abs(high)) or 1
            ax.hist(values, bins=80, range=(min(0, low) if what == "activation" else -limit, limit), color=color, log=True)
            zero = np.mean(values == 0)
            note = f"{name}: std {values.std():.2g}" + (f", {zero:.0%} exactly 0" if zero > 0.005 else "")
            ax.set_title(note, fontsize=9, loc="left")
            ax.set_xlabel(what, fontsize=9)
            ax.set_ylabel("count", fontsize=9)
            ax.ticklabel_format(axis="x", style="sci", scilimits=(-3, 3))
            ax.locator_params(axis="x", nbins=6)
    return fig


def monitor(history, names, title):
    """Dead neurons, gradient norms and update ratios by epoch and layer. history and names: a TrainingMonitor's."""
    from matplotlib import colormaps

    panels = [("dead", "dead neurons (%)", 100), ("gradient_norm", "norm of the weights' gradient", 1),
              ("update_ratio", "norm of a step / of the weights", 1)][len(names) == 1 :]  # fmt: skip
    fig, axes = figure(f"Dead neurons, gradients and steps by layer\n{title}", 3 * len(panels), 3.8, ncols=len(panels))
    for ax, (column, label, factor) in zip(axes[0], panels, strict=True):
        values = factor * np.asarray(history[column], dtype=float).reshape(len(history["epoch"]), -1)
        if column != "dead":
            values = np.maximum(values, 1e-12)  # a gradient of 0 still has its place on the logarithmic axis
        for i in range(values.shape[1]):
            ax.plot(history["epoch"], values[:, i], marker="o", markersize=3, linewidth=1.6, label=names[i],
                    color=colormaps["viridis"](i / max(1, len(names) - 0.6)))  # fmt: skip
        ax.set(xlabel="epoch", ylabel=label)
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        ax.grid(alpha=0.25)
        if column == "dead":
            ax.set_ylim(-2, 102)
        else:
            ax.set_yscale("log")
    axes[0, -1].axhline(1e-3, color=GREY, linewidth=1, linestyle="--", label="0.001, usual")
    fig.legend(*axes[0, -1].get_legend_handles_labels(), frameon=False, fontsize=9, ncols=6, loc="outside lower center")
    return fig


def of_training(trainer, X, images, title):
    """{file name: Figure} of a finished training. X (N, features): the network's input of the first N `images`, a Split."""
    model, s, steps = trainer.model, trainer.s, trainer.steps_per_epoch
    rates = [trainer.lr_of_step(step) for step in range(trainer.epoch * steps)]
    if trainer.plateau:  # which may lower it after each epoch
        rates = np.repeat(trainer.history["learning_rate"], steps)
    activations, gradients = monitor_distributions(model, X, images.y[: len(X)], trainer.loss)
    return {
        "curves.png": plots.curves({title: trainer.history}, title, bool(s.flip or s.shift or s.erase), s.label_smoothing),
        "learning_rate.png": plots.learning_rate(rates, steps, title),
        "first_layer.png": first_layer(model.weights[0][0], images.X.shape[1:], title),
        "distributions.png": distributions(activations, gradients, title),
        "monitor.png": monitor(trainer.monitor.history, trainer.monitor.names, title),
    }
