"""Studies of several networks: number of training images, label noise, training time; and those of the hybrid."""

if __name__ == "__main__":
    raise SystemExit("studies/both.py is a module, not a script: experiments.py uses it")

from studies.cnn import PLAIN as PLAIN_CNN
from studies.study import Claim, Study, vary

CNN = {**PLAIN_CNN, "norm": "batch"}
MODELS = {
    "MLP": {"script": "mlp", "recipe": "plain", "learning_rate": 0.001, "group": "NumPy MLP"},
    "CNN": {"script": "cnn", **CNN, "group": "CNN"},
    "hybrid": {"script": "hybrid", **CNN, "head_learning_rate": 0.001, "group": "CNN features + NumPy MLP"},
}
CNN_SETTINGS = "The CNN is that of --recipe plain --norm batch."
CNN_RATE = "The CNN's learning rate is 0.003; in cnn_optimizer, 0.03 is better for this CNN by about 0.8 points."
FIXED_RATES = f"{CNN_SETTINGS} Learning rates are fixed: MLP 0.001, the hybrid's MLP 0.001. {CNN_RATE}"
# images: (epochs, batch size)
SIZES = {500: (60, 32), 1_500: (30, 32), 5_000: (15, 64), 15_000: (10, 128), 48_000: (5, 128)}
TIMES = {"MLP": (2, 5, 12, 30), "CNN": (1, 2, 5, 12), "hybrid": (1, 2, 5, 12)}


def models(changes):
    """Variants of all three models. changes: {label: settings}; a hybrid's MLP has its CNN's epochs and batch size."""
    variants = {f"{model}, {name}": given | values for model, given in MODELS.items() for name, values in changes.items()}
    for values in (values for values in variants.values() if values["script"] == "hybrid"):
        values |= {f"head_{key}": values[key] for key in ("epochs", "batch_size") if "batch_size" in values}
    return variants


def own_baselines(label, others):
    """{variant: its model's variant `label`} of `others`, for all models."""
    return {f"{model}, {other}": f"{model}, {label}" for model in MODELS for other in others}


HEAD_RATES = (0.0003, 0.001, 0.003, 0.01)
HYBRID = {"fixed": {**CNN, "head_epochs": 5}, "backbone": CNN, "seeds": 3, "learning_rates": HEAD_RATES}

STUDIES = (
    Study("training_images", "How does accuracy depend on the number of training images?", "mlp",
          models({f"{size:,}": {"train_size": size, "epochs": epochs, "batch_size": batch_size}
                  for size, (epochs, batch_size) in SIZES.items()}), "CNN, 48,000", seeds=3, x="train_size",
          baselines={f"{model}, {size:,}": f"CNN, {size:,}" for model in ("MLP", "hybrid") for size in SIZES},
          claims=(Claim("Reported: the hybrid is better than its CNN, 93.28 to 93.37 % (here: a small CNN, five epochs)",
                        "hybrid, 48,000", "CNN, 48,000"),),
          note="The fewer the images, the more epochs and the smaller the batches: "
               + ", ".join(f"{size:,} images {epochs} and {batch_size}" for size, (epochs, batch_size) in SIZES.items())
               + f". The hybrid's MLP has its CNN's epochs and batch size. {FIXED_RATES}"),
    Study("label_noise", "How much do wrong training labels cost?", "mlp",
          models({f"{noise:g}": {"label_noise": noise} for noise in (0.0, 0.1, 0.2, 0.4)}), "CNN, 0", seeds=3,
          x="label_noise", baselines=own_baselines("0", ("0.1", "0.2", "0.4")),
          note=f"Epochs: MLP 12, CNN 5, the hybrid's MLP 3. {FIXED_RATES}"),
    Study("training_time", "What accuracy does training time buy?", "mlp",
          {f"{model}, {epochs} epoch{'s' * (epochs > 1)}": MODELS[model] | {"epochs": epochs}
           for model, numbers in TIMES.items() for epochs in numbers}, "CNN, 5 epochs", seeds=3, x="seconds",
          baselines={f"MLP, {epochs} epochs": "MLP, 12 epochs" for epochs in (2, 5, 30)}
          | {f"hybrid, {name}": f"CNN, {name}" for name in ("1 epoch", "2 epochs", "5 epochs", "12 epochs")},
          note="The hybrid's epochs are its CNN's; its MLP has 3. Times are of one thread, of training and evaluation, "
               f"measured at different hours of a shared machine, most with a second run beside. {FIXED_RATES}"),
    Study("feature_layer", "Which of the CNN's layers gives the best features?", "hybrid",
          {"convolution 1": {"feature_layer": 1}, "convolution 2": {"feature_layer": 2}, "convolution 3, the last": {}},
          "convolution 3, the last", **HYBRID, note=f"Earlier layers give more features, so a larger MLP. {CNN_RATE}"),
    Study("head_size", "How large should the hybrid's MLP be?", "hybrid",
          vary(head_hidden=((), (64,), (128, 64), (256, 128), (512, 256))), "256-128", **HYBRID, note=CNN_RATE),
    Study("hybrid_training", "Frozen backbone, joint training or fine-tuning?", "hybrid",
          {"frozen": {}, "joint": {"training": "joint"},
           "fine-tuned": {"training": "joint", "from_backbone": True, "learning_rate": 0.0003}}, "frozen", **HYBRID,
          note="frozen: five epochs of the CNN, then five of the MLP. joint: CNN and MLP from the start, five epochs. "
               "fine-tuned: joint training of the frozen variant's CNN for five more epochs, with a new MLP, the CNN's "
               f"learning rate 0.0003. The learning rate in the table is the MLP's. {CNN_RATE}"),
)  # fmt: skip
