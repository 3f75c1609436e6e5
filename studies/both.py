"""Studies of several networks: training images, label noise, training time; and those of the hybrid."""

import itertools

from studies import cnn, mlp
from studies.study import Study, vary

CNN = cnn.PLAIN | {"norm": "batch"}
MODELS = {
    "MLP": {"script": "mlp", **mlp.PLAIN, "group": "NumPy MLP"},
    "CNN": {"script": "cnn", **CNN, "group": "CNN"},
    "hybrid": {"script": "hybrid", **CNN, "head_learning_rate": 0.001, "group": "CNN features + NumPy MLP"},
}
CNN_SETTINGS = "The CNN is the plain one of the CNN's studies, with batch normalization."
CNN_RATE = "The CNN's learning rate is 0.003; in cnn_optimizer, 0.03 is better by about 0.8 points."
FIXED_RATES = f"{CNN_SETTINGS} Learning rates are fixed: MLP 0.001, the hybrid's MLP 0.001. {CNN_RATE}"
# images: (epochs, batch size)
SIZES = {500: (60, 32), 1_500: (30, 32), 5_000: (15, 64), 15_000: (10, 128), 48_000: (5, 128)}
TIMES = {"MLP": (2, 5, 12, 30), "CNN": (1, 2, 5, 12), "hybrid": (1, 2, 5, 12)}
HYBRID = {"fixed": CNN | {"head_epochs": 5}, "backbone": CNN, "seeds": 3, "learning_rates": mlp.RATES}


def models(changes):
    """Variants of all three models. changes: {label: settings}."""
    pairs = itertools.product(MODELS, changes)
    return {f"{model}, {name}": MODELS[model] | changes[name] for model, name in pairs}


def sizes():
    """Variants for numbers of training images. A hybrid's MLP has its CNN's epochs and batch size."""
    changes = {}
    for size, (epochs, batch_size) in SIZES.items():
        changes[f"{size:,}"] = {"train_size": size, "epochs": epochs, "batch_size": batch_size}
    variants = models(changes)
    for values in variants.values():
        if values["script"] == "hybrid":
            values |= {"head_epochs": values["epochs"], "head_batch_size": values["batch_size"]}
    return variants


def times():
    variants = {}
    for model, numbers in TIMES.items():
        for epochs in numbers:
            label = f"{model}, {epochs} epoch" + ("s" if epochs > 1 else "")
            variants[label] = MODELS[model] | {"epochs": epochs}
    return variants


STUDIES = (
    Study(
        "training_images",
        "How does accuracy depend on the number of training images?",
        "mlp",
        sizes(),
        baseline="CNN, 48,000",
        baselines={f"{model}, {size:,}": f"CNN, {size:,}" for model in ("MLP", "hybrid") for size in SIZES},
        seeds=3,
        x="train_size",
        claims={"Reported: hybrid over CNN, 93.28 to 93.37 %": ("hybrid, 48,000", "CNN, 48,000")},
        note="The fewer the images, the more epochs and the smaller the batches: 500 images 60 and 32, 1,500 "
        "images 30 and 32, 5,000 images 15 and 64, 15,000 images 10 and 128, 48,000 images 5 and 128. The "
        f"hybrid's MLP has its CNN's epochs and batch size. {FIXED_RATES}",
    ),
    Study(
        "label_noise",
        "How much do wrong training labels cost?",
        "mlp",
        models(vary(label_noise=(0.0, 0.1, 0.2, 0.4))),
        baseline="CNN, 0",
        baselines={f"{model}, {noise}": f"{model}, 0" for model in MODELS for noise in ("0.1", "0.2", "0.4")},
        seeds=3,
        x="label_noise",
        note=f"Epochs: MLP 12, CNN 5, the hybrid's MLP 3. {FIXED_RATES}",
    ),
    Study(
        "training_time",
        "What accuracy does training time buy?",
        "mlp",
        times(),
        baseline="CNN, 5 epochs",
        baselines={f"MLP, {epochs} epochs": "MLP, 12 epochs" for epochs in (2, 5, 30)}
        | {f"hybrid, {name}": f"CNN, {name}" for name in ("1 epoch", "2 epochs", "5 epochs", "12 epochs")},
        seeds=3,
        x="seconds",
        note="The hybrid's epochs are its CNN's; its MLP has 3. Times are of one thread, of training and "
        "evaluation, measured at different hours of a shared machine, most with a second run beside. "
        + FIXED_RATES,
    ),
    Study(
        "feature_layer",
        "Which of the CNN's layers gives the best features?",
        "hybrid",
        {f"convolution {n}": {"feature_layer": n} for n in (1, 2)} | {"convolution 3, the last": {}},
        baseline="convolution 3, the last",
        note=f"Earlier layers give more features, so a larger MLP. {CNN_RATE}",
        **HYBRID,
    ),
    Study(
        "head_size",
        "How large should the hybrid's MLP be?",
        "hybrid",
        vary(head_hidden=((), (64,), (128, 64), (256, 128), (512, 256))),
        baseline="256-128",
        note=CNN_RATE,
        **HYBRID,
    ),
    Study(
        "hybrid_training",
        "Frozen backbone, joint training or fine-tuning?",
        "hybrid",
        {
            "frozen": {},
            "joint": {"training": "joint"},
            "fine-tuned": {"training": "joint", "from_backbone": True, "learning_rate": 0.0003},
        },
        baseline="frozen",
        note="frozen: five epochs of the CNN, then five of the MLP. joint: CNN and MLP from the start, five "
        "epochs. fine-tuned: joint training of the frozen variant's CNN for 5 more epochs, with a new MLP, "
        "the CNN's learning rate 0.0003. The learning rate in the table is the MLP's. " + CNN_RATE,
        **HYBRID,
    ),
)
