"""Five similar projects: their networks trained again as they were made, tuned, and one change at a time.

    python experiments.py as_made tuned why

The set-ups were read in the projects' public code. Each seed draws its own split. What else differs from
theirs is in results/as_made/README.md.
"""

import itertools

from studies import mlp
from studies.study import study

SGD = mlp.PLAIN | {"optimizer": "sgd", "schedule": "constant", "normalize": "none", "script": "mlp"}
ADAM = {"optimizer": "adam", "learning_rate": 0.001, "schedule": "constant", "warmup": 0.0, "batch_size": 64}
ADAM |= {"weight_decay": 0.0, "ema_decay": 0.0, "label_smoothing": 0.0, "flip": False, "shift": 0}
ADAM |= {"norm": "none", "normalize": "none", "init_classifier": True, "precision": "float32"}
ADAM |= {"script": "cnn"}

R0 = {"batch_size": 64, "epochs": 10}
R0_MLP = SGD | R0 | {"hidden": (256, 128), "init": "random", "learning_rate": 0.01}
R0_JOINT = ADAM | R0 | {"channels": (32, 64, 128, 256, 512), "pool_after": (1, 2, 5), "init": "he_uniform"}
R0_JOINT |= {"script": "hybrid", "training": "joint", "head_hidden": (256,), "head_init": "random"}
R0_JOINT |= {"head_optimizer": "sgd", "joint_learning_rate": 0.01}

R1_MLP = SGD | {"hidden": (128, 64), "init": "random", "learning_rate": 0.05, "schedule": "halve"}
R1_MLP |= {"batch_size": 32, "activation": "gelu", "dropout": 0.2, "epochs": 50}
R1_CNN = ADAM | {"channels": (64, 128, 256, 512, 512), "pool_after": (1, 2, 3, 4), "fc": (128,), "epochs": 15}
R1_CNN |= {"norm": "batch", "block_order": "norm_activation_pool", "activation": "leaky_relu"}
R1_CNN |= {"init": "he_fan_out", "schedule": "plateau", "plateau_patience": 2}

R2 = {"normalize": "symmetric", "batch_size": 64}
R2_MLP = SGD | R2 | {"hidden": (128,), "init": "random", "learning_rate": 0.01, "epochs": 50}
R2_CNN = ADAM | R2 | {"channels": (32, 64, 128, 128, 128), "pool_after": (1, 2, 5), "weight_decay": 1e-5}
R2_PLAIN = R2_CNN | {"fc": (256,), "init": "pytorch", "epochs": 10}
R2_CNN |= {"fc": (128,), "init": "he", "fc_dropout": 0.5, "epochs": 20}
R2_CNN |= {"dropout": 0.25, "dropout_after": (2,)}
R2_HYBRID = R2_CNN | {"script": "hybrid", "head_hidden": (128,), "head_init": "random", "head_epochs": 50}
R2_HYBRID |= {"head_optimizer": "sgd", "head_learning_rate": 0.01, "head_schedule": "constant"}
R2_HYBRID |= {"head_normalize": "none", "head_batch_size": 128}

R3 = {"val_fraction": 1 / 6, "normalize": "global", "batch_size": 64, "epochs": 20}
R3_MLP = SGD | R3 | {"hidden": (256, 256), "init": "fan_out", "learning_rate": 0.001}
R3_AUGMENT = {"flip": True, "rotate": 10.0, "translate": 0.1}
R3_CNN = ADAM | R3 | {"channels": (32, 64), "pool_after": (1, 2), "fc": (256,), "init": "pytorch"}
R3_CNN |= {"batch_size": 128}
R3_DROPOUT = {"dropout": 0.2, "dropout_after": (1,), "dropout_maps": True, "fc_dropout": 0.4}
R3_64 = {"channels": (64, 128), "epochs": 10}

R4_MLP = SGD | {"hidden": (300, 100), "init": "fan_out", "loss": "sigmoid", "learning_rate": 0.0001}
R4_MLP |= {"batch_size": 1, "epochs": 15, "val_fraction": 0.1}
R4 = ADAM | {"channels": (64, 128), "padding": (1, 0), "pool_after": (1, 2), "norm": "batch", "dropout": 0.1}
R4 |= {"block_order": "activation_norm_pool", "init": "pytorch", "optimizer": "adamw", "epochs": 10}
R4 |= {"learning_rate": 0.0003, "weight_decay": 0.01, "val_fraction": 0.1}
R4_FC = R4 | {"fc": (1024, 1024), "fc_norm": True}

NETWORKS = {
    "R0 MLP": R0_MLP,
    "R1 MLP": R1_MLP,
    "R2 MLP": R2_MLP,
    "R2 MLP, rate 0.001, 30 epochs": R2_MLP | {"learning_rate": 0.001, "epochs": 30},
    "R3 MLP, no hidden layer": R3_MLP | {"hidden": ()},
    "R3 MLP, 1 hidden layer": R3_MLP | {"hidden": (256,)},
    "R3 MLP": R3_MLP,
    "R3 MLP, tanh": R3_MLP | {"activation": "tanh"},
    "R3 MLP, Leaky ReLU": R3_MLP | {"activation": "leaky_relu"},
    "R3 MLP, L1": R3_MLP | {"l1": 0.001 / 64},
    "R3 MLP, L2": R3_MLP | {"l2": 0.001 / 64},
    "R3 MLP, pixels in [0, 1]": R3_MLP | {"normalize": "none"},
    "R3 MLP, augmented": R3_MLP | R3_AUGMENT | {"augment_once": True},
}
for rate, batch_size in itertools.product((0.001, 0.01, 0.1), (32, 64, 128)):
    if (rate, batch_size) != (0.001, 64):  # "R3 MLP"
        changes = {"learning_rate": rate, "batch_size": batch_size}
        NETWORKS[f"R3 MLP, rate {rate:g}, batch {batch_size}"] = R3_MLP | changes
NETWORKS |= {
    "R4 MLP, right gradients": R4_MLP,
    "R0 hybrid": R0_JOINT,
    "R1 CNN": R1_CNN,
    "R2 hybrid": R2_HYBRID,  # on the backbone, "R2 CNN"
    "R2 CNN without dropout": R2_PLAIN,
    "R3 CNN": R3_CNN,
    "R3 CNN, dropout 0.4": R3_CNN | R3_DROPOUT,
    "R3 CNN, augmented": R3_CNN | R3_AUGMENT | {"batch_size": 64},
    "R3 CNN, 64 filters 3 x 3": R3_CNN | R3_64,
    "R3 CNN, 64 filters 5 x 5": R3_CNN | R3_64 | {"kernel_sizes": (5,)},
    "R4 CNN v1": R4,
    "R4 CNN v2": R4_FC,
    "R4 CNN v3": R4_FC | {"fc_dropout": 0.1},
}
for network in NETWORKS.values():
    network["seeds"] = 10 if network["script"] == "mlp" and network["batch_size"] > 1 else 3

TUNED = {  # both sides of R3's pairs, each with the learning rate that validation chooses
    label: NETWORKS[label] | {"learning_rates": (0.003, 0.01, 0.03, 0.1, 0.3)}
    for label in ("R3 MLP, no hidden layer", "R3 MLP, 1 hidden layer", "R3 MLP", "R3 MLP, augmented")
}
TUNED |= {
    label: NETWORKS[label] | {"learning_rates": (0.0001, 0.0003, 0.001, 0.003)}
    for label in ("R3 CNN", "R3 CNN, dropout 0.4", "R3 CNN, augmented")
}
for network in TUNED.values():
    del network["learning_rate"]

HE, COSINE = {"init": "he"}, {"schedule": "cosine"}
CHAINS = {  # {network: its changes, one after the other, each kept}
    "R3 MLP, no hidden layer": {
        "He's initialization": HE,
        "rate 0.01": {"learning_rate": 0.01},
        "cosine schedule": COSINE,
        "60 epochs": {"epochs": 60},
    },
    "R0 MLP": {
        "rate 0.1": {"learning_rate": 0.1},
        "He's initialization": HE,
        "40 epochs": {"epochs": 40},
        "cosine schedule": COSINE,
    },
    "R3 MLP": {
        "rate 0.01": {"learning_rate": 0.01},
        "rate 0.1": {"learning_rate": 0.1},
        "He's initialization": HE,
        "cosine schedule": COSINE,
    },
}
WHY, BEFORE = {}, {}
for network, changes in CHAINS.items():
    settings, last = NETWORKS[network], f"{network}: as made"
    WHY[last] = settings
    for label, change in changes.items():
        settings, label = settings | change, f"{network}: {label}"
        WHY[label], BEFORE[label], last = settings, last, label

STUDIES = (
    study("as_made", "mlp", NETWORKS, "", backbone=R2_CNN | {"seeds": 3}, resplit=True),
    study("tuned", "mlp", TUNED, "", resplit=True),
    study("why", "mlp", WHY, "", baselines=BEFORE, resplit=True),
)
