"""Studies of the CNN, from a plain baseline: 16-32-64, 3 x 3, max-pooling after each, ReLU, Adam, five epochs, no more.

Three seeds, at a smaller budget than the MLP's. `references` trains the networks of the similar projects.
"""

if __name__ == "__main__":
    raise SystemExit("studies/cnn.py is a module, not a script: experiments.py uses it")

from studies.study import Claim, Study, vary

PLAIN = {"recipe": "plain"}
RATES = (0.001, 0.003, 0.01)
BATCH_NORM = {"norm": "batch"}


def plain(name, question, variants, baseline, claims=(), fixed=None, **options):
    return Study(name, question, "cnn", variants, baseline, PLAIN | (fixed or {}),
                 **{"learning_rates": RATES, "seeds": 3} | options, claims=tuple(claims))  # fmt: skip


STUDIES = (
    plain("kernel_size", "How large should a CNN's kernels be?", vary(kernel_sizes=((3,), (5,), (7,))), "3",
          [Claim("R3: 5 x 5 instead of 3 x 3", "5", "3")]),
    plain("filters", "How many filters does a CNN need?",
          vary(channels=((8, 16, 32), (16, 32, 64), (32, 64, 128), (64, 64, 64))), "16-32-64",
          [Claim("R1, R3: more filters are better", "32-64-128", "16-32-64")]),
    plain("convolutions", "How many convolutions does a CNN need?",
          {"1": {"channels": (32,), "pool_after": (1,)}, "2": {"channels": (32, 32), "pool_after": (1, 2)},
           "3": {"channels": (32, 32, 32), "pool_after": (1, 2, 3)},
           "4": {"channels": (32, 32, 32, 32), "pool_after": (1, 2, 3)},
           "5": {"channels": (32, 32, 32, 32, 32), "pool_after": (1, 2, 3)}}, "3"),
    plain("pooling", "Which pooling, and where?",
          {"max": {}, "average": {"pool": "average"}, "max, then global average": {"global_pool": "average"},
           "max, after 2 and 3": {"pool_after": (2, 3)}, "max, after 1 and 3": {"pool_after": (1, 3)},
           "none, then global average": {"pool_after": (1,), "global_pool": "average"}}, "max",
          [Claim("R1: max-pooling instead of average pooling", "max", "average"),
           Claim("R1: global average pooling instead of flattening", "max, then global average", "max")]),
    plain("cnn_initialization", "How should a CNN be initialized, with and without batch normalization?",
          {f"{init}{', batch norm' * (norm == 'batch')}": {"init": init, "norm": norm}
           for norm in ("none", "batch") for init in ("he", "xavier", "random")}, "he",
          [Claim("R0, R1: He initialization instead of random", "he", "random"),
           Claim("the same with batch normalization", "he, batch norm", "random, batch norm")]),
    plain("cnn_dropout", "How much dropout helps a CNN?",
          {f"{p:g}": {"fc_dropout": p} for p in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)}, "0",
          [Claim("R3: dropout of 0.4, 91.57 to 92.40 %", "0.4", "0")], fixed={"fc": (128,)},
          note="In a fully connected layer of 128 neurons, as in R3."),
    plain("cnn_augmentation", "Does augmentation help a CNN?",
          {"none": {}, "flip": {"flip": True}, "shift 2": {"shift": 2}, "erase 8": {"erase": 8},
           "all": {"flip": True, "shift": 2, "erase": 8}}, "none",
          [Claim("R3: augmentation improves the CNN by 0.65 points", "all", "none")], fixed=BATCH_NORM | {"epochs": 8},
          note="With batch normalization; eight epochs."),
    plain("cnn_optimizer", "Which optimizer trains a CNN best in five epochs?",
          {"adam": {}, "adamw": {"optimizer": "adamw", "weight_decay": 0.01},
           "nesterov": {"optimizer": "nesterov", "learning_rates": (0.02, 0.05, 0.15)}}, "adam", fixed=BATCH_NORM,
          curves=True, note="With batch normalization."),
)  # fmt: skip

# The networks of the similar projects. R0 and R2 name no learning rate or number of epochs: there "as published" is Adam
# with PyTorch's default learning rate.
NETWORKS = {
    "R0": {"channels": (32, 64, 128, 256, 512), "pool_after": (1, 2, 5), "norm": "none"},
    "R1": {"channels": (32, 64, 128, 256, 512), "pool_after": (1, 2, 3, 4), "block_order": "norm_activation_pool"},
    "R2": {"channels": (32, 64, 128, 256, 512), "pool_after": (1, 2, 5), "norm": "none", "dropout": 0.2, "fc": (128,)},
    "R3": {"channels": (32, 64), "pool_after": (1, 2), "kernel_sizes": (5,), "norm": "none", "fc": (128,)},
    "R3, dropout 0.4": {"channels": (32, 64), "pool_after": (1, 2), "kernel_sizes": (5,), "norm": "none", "fc": (128,),
                        "fc_dropout": 0.4},
}  # fmt: skip
R4 = {"channels": (64, 128), "padding": (1, 0), "pool_after": (1, 2), "block_order": "activation_norm_pool", "norm": "batch"}
NETWORKS |= {
    "R4 v1": R4,
    "R4 v2": R4 | {"fc": (1024, 1024), "fc_norm": True},
    "R4 v3": R4 | {"fc": (1024, 1024), "fc_norm": True, "dropout": 0.1, "fc_dropout": 0.1},
}
NO_EXTRAS = {"ema_decay": 0.0, "label_smoothing": 0.0, "flip": False, "shift": 0, "schedule": "constant", "warmup": 0.01}
ADAM = NO_EXTRAS | {"optimizer": "adam", "learning_rate": 0.001, "weight_decay": 0.0, "batch_size": 64}
PUBLISHED = {name: ADAM | {"epochs": 20} if name.startswith("R3") else ADAM | {"epochs": 10} for name in NETWORKS}
ADAMW = ADAM | {"optimizer": "adamw", "learning_rate": 0.0003, "weight_decay": 0.01, "epochs": 10, "val_fraction": 0.1}
PUBLISHED |= {name: ADAMW for name in NETWORKS if name.startswith("R4")}
OURS = {"epochs": 10}  # with the script's defaults


def references(names):
    """Two rows for each network: as published, and with this project's recipe."""
    variants = {}
    for name in names:
        published = PUBLISHED[name]
        normalized = NETWORKS[name].get("norm") != "none"
        rate = {"learning_rate": 0.2 if normalized else 0.02}
        variants[f"{name}, as published"] = NETWORKS[name] | published
        variants[f"{name}, our recipe"] = NETWORKS[name] | OURS | rate | {"val_fraction": published.get("val_fraction", 0.2)}
    return variants


STUDIES += (
    Study("references", "The CNNs of the similar projects, as published and with our recipe", "cnn",
          references(NETWORKS), "R4 v1, as published", seeds=1,
          claims=(Claim("R0: no figure is published"), Claim("R1: 93.28 %"), Claim("R2: about 92 %"),
                  Claim("R3: 91.57 %; with dropout of 0.4, 92.40 %", "R3, dropout 0.4, as published", "R3, as published"),
                  Claim("R4 v1: 91.73 %; v2: 92.54 %", "R4 v2, as published", "R4 v1, as published"),
                  Claim("R4 v3: 93.19 %", "R4 v3, as published", "R4 v2, as published")),
          note="R4 trains on 54,000 images, the others on 48,000. Our recipe: this project's defaults, 10 epochs."),
)  # fmt: skip
