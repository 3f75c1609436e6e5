"""Studies of the CNN, from a plain baseline: 16-32-64, 3 x 3, max-pooling after each, ReLU, Adam, 5 epochs.

Three seeds, at a smaller budget than the MLP's. `references` trains the networks of the similar projects.
"""

from studies.study import Study, vary

PLAIN = {"channels": (16, 32, 64), "pool_after": (1, 2, 3), "norm": "none", "epochs": 5, "batch_size": 128}
PLAIN |= {"optimizer": "adam", "learning_rate": 0.003, "schedule": "cosine", "warmup": 0.1}
PLAIN |= {"ema_decay": 0.0, "weight_decay": 0.0, "label_smoothing": 0.0, "flip": False, "shift": 0}
RATES = (0.001, 0.003, 0.01, 0.03)
HIGHER = (*RATES, 0.1)  # with batch normalization, where 0.03 was chosen
BATCH_NORM = {"norm": "batch"}


def plain(name, question, variants, baseline, fixed=None, **options):
    options = {"learning_rates": RATES, "seeds": 3} | options
    return Study(name, question, "cnn", variants, baseline, PLAIN | (fixed or {}), **options)


def initializations():
    variants = {init: {"init": init} for init in ("he", "xavier", "random")}
    normalized = BATCH_NORM | {"learning_rates": HIGHER}
    return variants | {f"{init}, batch norm": normalized | {"init": init} for init in variants}


STUDIES = (
    plain("kernel_size", "How large should a CNN's kernels be?", vary(kernel_sizes=((3,), (5,), (7,))), "3"),
    plain(
        "filters",
        "How many filters does a CNN need?",
        vary(channels=((8, 16, 32), (16, 32, 64), (32, 64, 128), (64, 64, 64))),
        baseline="16-32-64",
        learning_rates=RATES[1:],
    ),
    plain(
        "convolutions",
        "How many convolutions does a CNN need?",
        {
            str(number): {"channels": (32,) * number, "pool_after": tuple(range(1, min(number, 3) + 1))}
            for number in (1, 2, 3, 4, 5)
        },
        baseline="3",
        note="Pooling follows the first three: with one or two, maps and classifier are larger.",
    ),
    plain(
        "pooling",
        "Which pooling, and where?",
        {
            "max": {},
            "average": {"pool": "average"},
            "max, then global average": {"global_pool": "average"},
            "max after 2 and 3": {"pool_after": (2, 3)},
            "max after 1 and 3": {"pool_after": (1, 3)},
            "max after 1, then global average": {"pool_after": (1,), "global_pool": "average"},
        },
        baseline="max",
    ),
    plain(
        "cnn_initialization",
        "How should a CNN be initialized, with and without batch normalization?",
        initializations(),
        baseline="he",
        baselines={"xavier, batch norm": "he, batch norm", "random, batch norm": "he, batch norm"},
        claims={
            "Choice: He initialization, not random": ("he", "random"),
            "The same with batch norm": ("he, batch norm", "random, batch norm"),
        },
        note="Two factors vary: the initialization and batch normalization.",
    ),
    plain(
        "cnn_dropout",
        "How much dropout helps a CNN?",
        vary(fc_dropout=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5)),
        baseline="0",
        claims={"Reported: dropout of 0.4, 91.57 to 92.40 % (here: a smaller CNN)": ("0.4", "0")},
        fixed={"fc": (128,)},
        note="In a fully connected layer of 128 neurons. The reported network is in references.",
    ),
    plain(
        "cnn_augmentation",
        "Does augmentation help a CNN?",
        {
            "none": {},
            "flip": {"flip": True},
            "shift 2": {"shift": 2},
            "erase 8": {"erase": 8},
            "all": {"flip": True, "shift": 2, "erase": 8},
        },
        baseline="none",
        claims={"Reported: 0.65 points by augmentation (here: also erasing)": ("all", "none")},
        fixed={**BATCH_NORM, "epochs": 8},
        learning_rates=HIGHER,
        note="With batch normalization; eight epochs.",
    ),
    plain(
        "cnn_optimizer",
        "Which optimizer trains a CNN best in five epochs?",
        {
            "adam": {},
            "adamw": {"optimizer": "adamw", "weight_decay": 0.01},
            "nesterov": {"optimizer": "nesterov", "learning_rates": (0.05, 0.15, 0.5)},
        },
        baseline="adam",
        fixed=BATCH_NORM,
        learning_rates=HIGHER,
        note="With batch normalization.",
    ),
)

# The networks of similar projects, with their hyper-parameters as published. Of the first three, neither
# learning rate nor epochs are: theirs is Adam with PyTorch's default learning rate, 10 epochs.
FIVE = {"channels": (32, 64, 128, 256, 512), "pool_after": (1, 2, 5), "norm": "none"}
FIVE_BATCH_NORM = FIVE | {"pool_after": (1, 2, 3, 4), "norm": "batch", "block_order": "norm_activation_pool"}
TWO = {"channels": (32, 64), "pool_after": (1, 2), "kernel_sizes": (5,), "norm": "none", "fc": (128,)}
LADDER = {"channels": (64, 128), "pool_after": (1, 2), "padding": (1, 0)}
LADDER |= {"block_order": "activation_norm_pool"}
LADDER_FC = LADDER | {"fc": (1024, 1024), "fc_norm": True}
ADAM = {"optimizer": "adam", "learning_rate": 0.001, "schedule": "constant", "warmup": 0.01, "epochs": 10}
ADAM |= {"batch_size": 64, "weight_decay": 0.0, "ema_decay": 0.0, "label_smoothing": 0.0}
ADAM |= {"flip": False, "shift": 0}
ADAM_20 = ADAM | {"epochs": 20}
ADAMW = ADAM | {"optimizer": "adamw", "learning_rate": 0.0003, "weight_decay": 0.01}
NETWORKS = {  # name: (network, hyper-parameters as published, fraction of validation images, reported)
    "5 convolutions": (FIVE, ADAM, 0.2, "-"),
    "5 convolutions, batch norm": (FIVE_BATCH_NORM, ADAM, 0.2, "93.28 %"),
    "5 convolutions, dropout": (FIVE | {"dropout": 0.2, "fc": (128,)}, ADAM, 0.2, "about 92 %"),
    "2 convolutions": (TWO, ADAM_20, 0.2, "91.57 %"),
    "2 convolutions, dropout 0.4": (TWO | {"fc_dropout": 0.4}, ADAM_20, 0.2, "92.40 %"),
    "ladder v1": (LADDER, ADAMW, 0.1, "91.73 %"),
    "ladder v2": (LADDER_FC, ADAMW, 0.1, "92.54 %"),
    "ladder v3": (LADDER_FC | {"dropout": 0.1, "fc_dropout": 0.1}, ADAMW, 0.1, "93.19 %"),
}


def references():
    """Two variants of each network: as published, and with this project's recipe for 10 epochs."""
    variants = {}
    for name, (network, published, val_fraction, _) in NETWORKS.items():
        rate = {"learning_rate": 0.02 if network.get("norm") == "none" else 0.2}
        variants[f"{name}, as published"] = network | published | {"val_fraction": val_fraction}
        variants[f"{name}, our recipe"] = network | rate | {"epochs": 10, "val_fraction": val_fraction}
    return variants


STUDIES += (
    Study(
        "references",
        "How good are the CNNs of similar projects, as published and with our recipe?",
        "cnn",
        references(),
        baseline="",
        baselines={f"{name}, our recipe": f"{name}, as published" for name in NETWORKS},
        seeds=1,
        note="All settings vary. The ladder trains on 54,000 images, the others on 48,000. Our recipe: this "
        "project's defaults, 10 epochs, learning rate 0.2, and 0.02 without batch normalization. Of the "
        "networks with five convolutions, neither learning rate nor epochs are published: 0.001 and 10 are "
        "chosen here.",
    ),
)
