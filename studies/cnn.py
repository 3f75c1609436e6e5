"""Studies of the CNN, from a plain baseline: 16-32-64, 3 x 3, max-pooling after each, ReLU, Adam, 5 epochs.

Three seeds, at a smaller budget than the MLP's; five where three decide too little.
"""

from studies.study import study, vary

PLAIN = {"channels": (16, 32, 64), "pool_after": (1, 2, 3), "norm": "none", "epochs": 5, "batch_size": 128}
PLAIN |= {"optimizer": "adam", "learning_rate": 0.003, "schedule": "cosine", "warmup": 0.1}
PLAIN |= {"ema_decay": 0.0, "weight_decay": 0.0, "label_smoothing": 0.0, "flip": False, "shift": 0}
RATES = (0.001, 0.003, 0.01, 0.03)
HIGHER = (*RATES, 0.1)  # where 0.03 was chosen
BATCH_NORM = {"norm": "batch"}

KERNEL_SIZES = vary(kernel_sizes=((3,), (5,), (7,)))
FILTERS = vary(channels=((8, 16, 32), (16, 32, 64), (32, 64, 128), (64, 64, 64)))
GLOBAL = {"global_pool": "average", "learning_rates": HIGHER}
POOLING = {
    "max": {},
    "average": {"pool": "average"},
    "max, then global average": GLOBAL,
    "max after 2 and 3": {"pool_after": (2, 3)},
    "max after 1 and 3": {"pool_after": (1, 3)},
    "max after 1, then global average": GLOBAL | {"pool_after": (1,)},
}
INITIALIZATIONS = vary(init=("he", "xavier", "random"))
NORMALIZED = BATCH_NORM | {"learning_rates": HIGHER}
INITIALIZATIONS |= {f"{init}, batch norm": NORMALIZED | {"init": init} for init in INITIALIZATIONS}
HE_BASELINES = {"xavier, batch norm": "he, batch norm", "random, batch norm": "he, batch norm"}
DROPOUTS = vary(fc_dropout=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5))
AUGMENTATIONS = {
    "none": {},
    "flip": {"flip": True},
    "shift 2": {"shift": 2},
    "erase 8": {"erase": 8},
    "all": {"flip": True, "shift": 2, "erase": 8},
}
OPTIMIZERS = {
    "adam": {},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.01},
    "nesterov": {"optimizer": "nesterov", "learning_rates": (0.015, 0.05, 0.15, 0.5)},
}


def plain(name, variants, baseline, fixed=PLAIN, rates=RATES, seeds=3, **options):
    return study(name, "cnn", variants, baseline, fixed, rates, seeds, **options)


STUDIES = (
    plain("kernel_size", KERNEL_SIZES, "3", seeds=5),
    plain("filters", FILTERS, "16-32-64"),
    plain("pooling", POOLING, "max"),
    plain("cnn_initialization", INITIALIZATIONS, "he", seeds=5, baselines=HE_BASELINES),
    plain("cnn_dropout", DROPOUTS, "0", PLAIN | {"fc": (128,)}),
    plain("cnn_augmentation", AUGMENTATIONS, "none", PLAIN | BATCH_NORM | {"epochs": 8}, HIGHER, seeds=5),
    plain("cnn_optimizer", OPTIMIZERS, "adam", PLAIN | BATCH_NORM, HIGHER),
)
