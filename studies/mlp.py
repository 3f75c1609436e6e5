"""Studies of the NumPy MLP, from a plain baseline: 784-256-128-10, ReLU, Adam, a cosine schedule, no more.

Batch normalization, label smoothing, the moving average of the weights and flips would hide what one factor
does.
"""

import itertools

from studies.study import study, vary

PLAIN = {"epochs": 12, "learning_rate": 0.001, "optimizer": "adam", "schedule": "cosine", "warmup": 0.0}
PLAIN |= {"activation": "relu", "norm": "none", "init": "he", "loss": "softmax", "label_smoothing": 0.0}
PLAIN |= {"dropout": 0.0, "input_dropout": 0.0, "l1": 0.0, "l2": 0.0, "weight_decay": 0.0}
PLAIN |= {"max_grad_norm": 0.0, "ema_decay": 0.0, "patience": 0, "flip": False}
RATES = (0.0003, 0.001, 0.003, 0.01)  # of Adam
LOWER, HIGHER = (0.0001, *RATES), (*RATES, 0.03)  # where validation has chosen the lowest or the highest

DEPTHS = {str(depth): {"hidden": (128,) * depth} for depth in range(4)}
WIDTHS = vary(hidden=((64,), (128, 64), (256, 128), (300, 100), (512, 256), (1024, 512)))
ACTIVATIONS = vary(activation=("relu", "leaky_relu", "tanh", "gelu", "sigmoid"))
AUGMENTATIONS = {
    "none": {},
    "flip, once": {"flip": True, "augment_once": True},
    "flip, fresh": {"flip": True},
    "flip and shift 1, once": {"flip": True, "shift": 1, "augment_once": True},
    "flip and shift 1, fresh": {"flip": True, "shift": 1},
}
INITIALIZATIONS, HE_BASELINES = {}, {}  # Xavier and random to He; He with batch norm to He without
for norm, words, rates in (("none", "", RATES), ("batch", ", batch norm", HIGHER)):
    for depth, init in itertools.product((2, 8), ("he", "xavier", "random")):
        changes = {"hidden": (128,) * depth, "init": init, "norm": norm, "learning_rates": rates}
        INITIALIZATIONS[f"{depth} layers, {init}{words}"] = changes
        if init != "he":
            HE_BASELINES[f"{depth} layers, {init}{words}"] = f"{depth} layers, he{words}"
        HE_BASELINES[f"{depth} layers, he, batch norm"] = f"{depth} layers, he"
OPTIMIZERS = {
    "sgd": {"optimizer": "sgd", "learning_rates": (0.05, 0.15, 0.3, 0.6)},
    "momentum": {"optimizer": "momentum", "learning_rates": (0.005, 0.02, 0.05, 0.15)},
    "nesterov": {"optimizer": "nesterov", "learning_rates": (0.005, 0.02, 0.05, 0.15)},
    "rmsprop": {"optimizer": "rmsprop"},
    "adam": {},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.01},
}
SCHEDULES = {"constant": {"schedule": "constant", "learning_rates": LOWER}}
SCHEDULES |= vary(schedule=("step", "exponential", "cosine", "linear", "plateau"))
SCHEDULES |= {"linear, warm-up": {"schedule": "linear", "warmup": 0.2}}
GRID = vary(learning_rate=LOWER, batch_size=(32, 64, 128, 256, 512))
LOSSES = {
    "softmax": {},
    "softmax, smoothing 0.1": {"label_smoothing": 0.1},
    "sigmoid outputs": {"loss": "sigmoid"},
    "sigmoid outputs, smoothing 0.1": {"loss": "sigmoid", "label_smoothing": 0.1},
}
AVERAGES = {}
for schedule, (words, decay) in itertools.product(("constant", "cosine"), (("no EMA", 0.0), ("EMA", 0.999))):
    AVERAGES[f"{schedule}, {words}"] = {"schedule": schedule, "ema_decay": decay, "learning_rates": LOWER}


def plain(name, variants, baseline, fixed=PLAIN, rates=RATES, seeds=5, **options):
    return study(name, "mlp", variants, baseline, fixed, rates, seeds, **options)


STUDIES = (
    plain("depth", DEPTHS, "1", seeds=10),
    plain("width", WIDTHS, "128-64"),
    plain("activation", ACTIVATIONS, "relu", seeds=10),
    plain("dropout", vary(dropout=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5)), "0"),
    plain("l1", vary(l1=(0.0, 1e-6, 1e-5, 1e-4)), "0"),
    plain("l2", vary(l2=(0.0, 1e-5, 1e-4, 1e-3)), "0", seeds=10),
    plain("weight_decay", vary(weight_decay=(0.0, 0.01, 0.1, 0.3)), "0"),
    plain("input_normalization", vary(normalize=("none", "global", "per_pixel")), "none"),
    plain("norm", vary(norm=("none", "batch", "layer")), "none", rates=HIGHER),
    plain("augmentation", AUGMENTATIONS, "none", PLAIN | {"epochs": 24}, seeds=10),
    plain("initialization", INITIALIZATIONS, "2 layers, he", seeds=10, baselines=HE_BASELINES),
    plain("optimizer", OPTIMIZERS, "adam"),
    plain("schedule", SCHEDULES, "constant", seeds=10),
    plain("learning_rate_batch_size", GRID, "", seeds=3),
    plain("loss", LOSSES, "softmax", baselines={"sigmoid outputs, smoothing 0.1": "sigmoid outputs"}),
    plain("ema", AVERAGES, "constant, no EMA", baselines={"cosine, EMA": "cosine, no EMA"}),
)
