"""Studies of the NumPy MLP, from a plain baseline: 784-256-128-10, ReLU, Adam with a cosine schedule, nothing else.

Batch normalization, label smoothing, the moving average of the weights and flips would hide what one factor does. The
claims are what similar projects report, from single runs, or have chosen.
"""

if __name__ == "__main__":
    raise SystemExit("studies/mlp.py is a module, not a script: experiments.py uses it")

from studies.study import Claim, Study, vary

PLAIN = {"recipe": "plain"}
RATES = (0.0003, 0.001, 0.003, 0.01)  # of Adam
LOWER, HIGHER = (0.0001, *RATES), (*RATES, 0.03)  # where validation has chosen the lowest or the highest of them


def plain(name, question, variants, baseline, claims=(), fixed=None, **options):
    return Study(name, question, "mlp", variants, baseline, PLAIN | (fixed or {}), **{"learning_rates": RATES} | options,
                 claims=tuple(claims))  # fmt: skip


STUDIES = (
    plain("depth", "How many hidden layers does an MLP need?",
          {"0": {"hidden": ()}, "1": {"hidden": (128,)}, "2": {"hidden": (128, 128)}, "3": {"hidden": (128, 128, 128)}}, "1",
          [Claim("Reported: one hidden layer instead of none, 73.80 to 84.69 %", "1", "0"),
           Claim("Reported: two hidden layers instead of one, 84.69 to 85.20 % (there with tanh, too)", "2", "1")],
          note="The reported networks with hidden layers have an L2 penalty, those here none."),
    plain("width", "How wide should the hidden layers be?",
          vary(hidden=((64,), (128, 64), (256, 128), (300, 100), (512, 256), (1024, 512))), "128-64",
          [Claim("Choice: 256-128 instead of 128-64", "256-128", "128-64"),
           Claim("Choice: 300-100 instead of 128-64", "300-100", "128-64")]),
    plain("activation", "Which activation function suits an MLP?",
          vary(activation=("relu", "leaky_relu", "tanh", "gelu", "sigmoid")), "relu",
          [Claim("Choice: tanh instead of ReLU", "tanh", "relu")],
          curves=True),
    plain("dropout", "How much dropout helps an MLP?", vary(dropout=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5)), "0"),
    plain("l1", "Does an L1 penalty help an MLP?", vary(l1=(0.0, 1e-6, 1e-5, 1e-4)), "0"),
    plain("l2", "Does an L2 penalty help an MLP?", vary(l2=(0.0, 1e-5, 1e-4, 1e-3)), "0",
          [Claim("Choice: an L2 penalty", "0.0001", "0")]),
    plain("weight_decay", "How much decoupled weight decay helps an MLP?", vary(weight_decay=(0.0, 0.01, 0.1, 0.3)), "0"),
    plain("input_normalization", "Should the pixels be standardized?",
          vary(normalize=("none", "global", "per_pixel")), "none"),
    plain("norm", "Does normalization between the layers help an MLP?", vary(norm=("none", "batch", "layer")), "none",
          learning_rates=HIGHER),
    plain("augmentation", "Does augmentation help an MLP, drawn once or redrawn for every batch?",
          {"none": {}, "flip, once": {"flip": True, "augment_once": True}, "flip, fresh": {"flip": True},
           "flip and shift 1, once": {"flip": True, "shift": 1, "augment_once": True},
           "flip and shift 1, fresh": {"flip": True, "shift": 1}}, "none",
          [Claim("Reported: 6.77 points more without augmentation than with one drawn once", "none",
                 "flip and shift 1, once")],
          fixed={"epochs": 24}, note="24 epochs: augmented images take longer to fit. once: drawn once; fresh: redrawn."),
    plain("initialization", "How does the effect of the initialization depend on depth?",
          {f"{depth} layers, {init}{', batch norm' * (norm == 'batch')}":
           {"hidden": (128,) * depth, "init": init, "norm": norm, "learning_rates": HIGHER if norm == "batch" else RATES}
           for norm in ("none", "batch") for depth in (2, 8) for init in ("he", "xavier", "random")}, "2 layers, he",
          [Claim("Choice: He initialization instead of random, two hidden layers", "2 layers, he", "2 layers, random"),
           Claim("Choice: He initialization instead of random, eight hidden layers", "8 layers, he", "8 layers, random"),
           Claim("Choice: He initialization instead of random, eight hidden layers, batch norm", "8 layers, he, batch norm",
                 "8 layers, random, batch norm")],
          baselines={f"{depth} layers, {init}{norm}": f"{depth} layers, he{norm}" for norm in ("", ", batch norm")
                   for depth in (2, 8) for init in ("xavier", "random")}
          | {"2 layers, he, batch norm": "2 layers, he", "8 layers, he, batch norm": "8 layers, he"},
          note="Three factors vary. random: normal with standard deviation 0.01."),
    plain("optimizer", "Which optimizer trains an MLP best in 12 epochs?",
          {"sgd": {"optimizer": "sgd", "learning_rates": (0.05, 0.15, 0.3, 0.6)},
           "momentum": {"optimizer": "momentum", "learning_rates": (0.02, 0.05, 0.15)},
           "nesterov": {"optimizer": "nesterov", "learning_rates": (0.02, 0.05, 0.15)},
           "rmsprop": {"optimizer": "rmsprop"}, "adam": {}, "adamw": {"optimizer": "adamw", "weight_decay": 0.01}}, "adam",
          [Claim("Choice: SGD instead of Adam", "sgd", "adam")], curves=True),
    plain("schedule", "Which learning-rate schedule trains an MLP best in 12 epochs?",
          {"constant": {"schedule": "constant", "learning_rates": LOWER}}
          | {name: {"schedule": name} for name in ("step", "exponential", "cosine", "linear", "plateau")}
          | {"linear, warm-up": {"schedule": "linear", "warmup": 0.2}}, "constant",
          [Claim("Choice: a learning rate that adapts during training (plateau)", "plateau", "constant")]),
    plain("learning_rate_batch_size", "How do learning rate and batch size depend on each other?",
          vary(learning_rate=(0.0001, 0.0003, 0.001, 0.003, 0.01), batch_size=(32, 64, 128, 256, 512)), "0.001, 128",
          factors=("learning_rate", "batch_size"), seeds=3, learning_rates=(), note="Two factors vary. Adam, 12 epochs."),
    plain("loss", "Do sigmoid outputs or label smoothing help an MLP?",
          {"softmax": {}, "softmax, smoothing 0.1": {"label_smoothing": 0.1},
           "sigmoid outputs": {"loss": "sigmoid"}, "sigmoid outputs, smoothing 0.1": {"loss": "sigmoid",
                                                                                     "label_smoothing": 0.1}}, "softmax",
          [Claim("Choice: sigmoid outputs instead of softmax", "sigmoid outputs", "softmax")],
          baselines={"sigmoid outputs, smoothing 0.1": "sigmoid outputs"}, note="Two factors vary."),
    plain("ema", "Does a moving average of the weights (EMA) help an MLP?",
          {f"{schedule}, {'EMA' if decay else 'no EMA'}": {"schedule": schedule, "ema_decay": decay, "learning_rates": LOWER}
           for schedule in ("constant", "cosine") for decay in (0.0, 0.999)}, "constant, no EMA",
          baselines={"cosine, EMA": "cosine, no EMA"}, note="Two factors vary: the schedule and the EMA."),
)  # fmt: skip
