"""Studies of the NumPy MLP, from a plain baseline: 784-256-128-10, ReLU, Adam, a cosine schedule, no more.

Batch normalization, label smoothing, the moving average of the weights and flips would hide what one factor
does. The claims are what similar projects report, from single runs, or have chosen.
"""

import itertools

from studies.study import Study, vary

PLAIN = {"epochs": 12, "learning_rate": 0.001, "optimizer": "adam", "schedule": "cosine", "warmup": 0.0}
PLAIN |= {"activation": "relu", "norm": "none", "init": "he", "loss": "softmax", "label_smoothing": 0.0}
PLAIN |= {"dropout": 0.0, "input_dropout": 0.0, "l1": 0.0, "l2": 0.0, "weight_decay": 0.0}
PLAIN |= {"max_grad_norm": 0.0, "ema_decay": 0.0, "patience": 0, "flip": False}
RATES = (0.0003, 0.001, 0.003, 0.01)  # of Adam
LOWER, HIGHER = (0.0001, *RATES), (*RATES, 0.03)  # where validation has chosen the lowest or the highest


def plain(name, question, variants, baseline, fixed=None, **options):
    options = {"learning_rates": RATES} | options
    return Study(name, question, "mlp", variants, baseline, PLAIN | (fixed or {}), **options)


def initializations():
    variants = {}
    for norm, words, rates in (("none", "", RATES), ("batch", ", batch norm", HIGHER)):
        for depth, init in itertools.product((2, 8), ("he", "xavier", "random")):
            changes = {"hidden": (128,) * depth, "init": init, "norm": norm, "learning_rates": rates}
            variants[f"{depth} layers, {init}{words}"] = changes
    return variants


def he_baselines():
    """Xavier and random are compared with He; He with batch norm is compared with He without."""
    baselines = {}
    for depth, words in itertools.product((2, 8), ("", ", batch norm")):
        for init in ("xavier", "random"):
            baselines[f"{depth} layers, {init}{words}"] = f"{depth} layers, he{words}"
        baselines[f"{depth} layers, he, batch norm"] = f"{depth} layers, he"
    return baselines


def averages():
    variants = {}
    for schedule, decay in itertools.product(("constant", "cosine"), (0.0, 0.999)):
        changes = {"schedule": schedule, "ema_decay": decay, "learning_rates": LOWER}
        variants[f"{schedule}, {'EMA' if decay else 'no EMA'}"] = changes
    return variants


STUDIES = (
    plain(
        "depth",
        "How many hidden layers does an MLP need?",
        {str(depth): {"hidden": (128,) * depth} for depth in range(4)},
        baseline="1",
        claims={
            "Reported: one hidden layer instead of none, 73.80 to 84.69 %": ("1", "0"),
            "Reported: two hidden layers instead of one, 84.69 to 85.20 % (there with tanh, too)": ("2", "1"),
        },
        note="The reported networks with hidden layers have an L2 penalty, those here none.",
    ),
    plain(
        "width",
        "How wide should the hidden layers be?",
        vary(hidden=((64,), (128, 64), (256, 128), (300, 100), (512, 256), (1024, 512))),
        baseline="128-64",
        claims={
            "Choice: 256-128 instead of 128-64": ("256-128", "128-64"),
            "Choice: 300-100 instead of 128-64": ("300-100", "128-64"),
        },
    ),
    plain(
        "activation",
        "Which activation function suits an MLP?",
        vary(activation=("relu", "leaky_relu", "tanh", "gelu", "sigmoid")),
        baseline="relu",
        claims={"Choice: tanh instead of ReLU": ("tanh", "relu")},
    ),
    plain("dropout", "How much dropout helps an MLP?", vary(dropout=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5)), "0"),
    plain("l1", "Does an L1 penalty help an MLP?", vary(l1=(0.0, 1e-6, 1e-5, 1e-4)), "0"),
    plain(
        "l2",
        "Does an L2 penalty help an MLP?",
        vary(l2=(0.0, 1e-5, 1e-4, 1e-3)),
        baseline="0",
        claims={"Choice: an L2 penalty": ("0.0001", "0")},
    ),
    plain(
        "weight_decay", "How much weight decay helps an MLP?", vary(weight_decay=(0.0, 0.01, 0.1, 0.3)), "0"
    ),
    plain(
        "input_normalization",
        "Should the pixels be standardized?",
        vary(normalize=("none", "global", "per_pixel")),
        baseline="none",
    ),
    plain(
        "norm",
        "Does normalization between the layers help an MLP?",
        vary(norm=("none", "batch", "layer")),
        baseline="none",
        learning_rates=HIGHER,
    ),
    plain(
        "augmentation",
        "Does augmentation help an MLP, drawn once or redrawn for every batch?",
        {
            "none": {},
            "flip, once": {"flip": True, "augment_once": True},
            "flip, fresh": {"flip": True},
            "flip and shift 1, once": {"flip": True, "shift": 1, "augment_once": True},
            "flip and shift 1, fresh": {"flip": True, "shift": 1},
        },
        baseline="none",
        claims={"Reported: 6.77 points more without one drawn once": ("none", "flip and shift 1, once")},
        fixed={"epochs": 24},
        note="24 epochs: augmented images take longer to fit. once: drawn once; fresh: redrawn.",
    ),
    plain(
        "initialization",
        "How does the effect of the initialization depend on depth?",
        initializations(),
        baseline="2 layers, he",
        baselines=he_baselines(),
        claims={
            "Choice: He initialization, not random, in 2 layers": ("2 layers, he", "2 layers, random"),
            "Choice: He initialization, not random, in 8 layers": ("8 layers, he", "8 layers, random"),
            "The same with batch norm": ("8 layers, he, batch norm", "8 layers, random, batch norm"),
        },
        note="Three factors vary. random: normal with standard deviation 0.01.",
    ),
    plain(
        "optimizer",
        "Which optimizer trains an MLP best in 12 epochs?",
        {
            "sgd": {"optimizer": "sgd", "learning_rates": (0.05, 0.15, 0.3, 0.6)},
            "momentum": {"optimizer": "momentum", "learning_rates": (0.02, 0.05, 0.15)},
            "nesterov": {"optimizer": "nesterov", "learning_rates": (0.02, 0.05, 0.15)},
            "rmsprop": {"optimizer": "rmsprop"},
            "adam": {},
            "adamw": {"optimizer": "adamw", "weight_decay": 0.01},
        },
        baseline="adam",
        claims={"Choice: SGD instead of Adam": ("sgd", "adam")},
    ),
    plain(
        "schedule",
        "Which learning-rate schedule trains an MLP best in 12 epochs?",
        {"constant": {"schedule": "constant", "learning_rates": LOWER}}
        | vary(schedule=("step", "exponential", "cosine", "linear", "plateau"))
        | {"linear, warm-up": {"schedule": "linear", "warmup": 0.2}},
        baseline="constant",
        claims={"Choice: a rate that falls on a plateau": ("plateau", "constant")},
    ),
    plain(
        "learning_rate_batch_size",
        "How do learning rate and batch size depend on each other?",
        vary(learning_rate=LOWER, batch_size=(32, 64, 128, 256, 512)),
        baseline="0.001, 128",
        factors=("learning_rate", "batch_size"),
        seeds=3,
        note="Two factors vary. Adam, 12 epochs.",
    ),
    plain(
        "loss",
        "Do sigmoid outputs or label smoothing help an MLP?",
        {
            "softmax": {},
            "softmax, smoothing 0.1": {"label_smoothing": 0.1},
            "sigmoid outputs": {"loss": "sigmoid"},
            "sigmoid outputs, smoothing 0.1": {"loss": "sigmoid", "label_smoothing": 0.1},
        },
        baseline="softmax",
        baselines={"sigmoid outputs, smoothing 0.1": "sigmoid outputs"},
        claims={"Choice: sigmoid outputs instead of softmax": ("sigmoid outputs", "softmax")},
        note="Two factors vary.",
    ),
    plain(
        "ema",
        "Does a moving average of the weights (EMA) help an MLP?",
        averages(),
        baseline="constant, no EMA",
        baselines={"cosine, EMA": "cosine, no EMA"},
        note="Two factors vary: the schedule and the EMA.",
    ),
)
