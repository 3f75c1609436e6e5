"""Studies of several networks: training images, label noise, training time; and those of the hybrid."""

import itertools

from studies import cnn, mlp
from studies.study import study, vary

CNN = cnn.PLAIN | {"norm": "batch", "learning_rate": 0.03}  # the rate that cnn_optimizer's validation chooses
MODELS = {
    "MLP": {"script": "mlp", **mlp.PLAIN, "group": "NumPy MLP"},
    "CNN": {"script": "cnn", **CNN, "group": "CNN"},
    "hybrid": {"script": "hybrid", **CNN, "head_learning_rate": 0.001, "group": "CNN features + NumPy MLP"},
}
# images: (epochs, batch size); a hybrid's MLP has those of its CNN
SIZES = {500: (60, 32), 1_500: (30, 32), 5_000: (15, 64), 15_000: (10, 128), 48_000: (5, 128)}
IMAGES, IMAGES_BASELINES = {}, {}
for model, (size, (epochs, batch_size)) in itertools.product(MODELS, SIZES.items()):
    changes = {"train_size": size, "epochs": epochs, "batch_size": batch_size}
    head = {"head_epochs": epochs, "head_batch_size": batch_size} if model == "hybrid" else {}
    IMAGES[f"{model}, {size:,}"] = MODELS[model] | changes | head
    IMAGES_BASELINES[f"{model}, {size:,}"] = f"CNN, {size:,}"

NOISE, NOISE_BASELINES = {}, {}
for model, noise in itertools.product(MODELS, (0.0, 0.1, 0.2, 0.4)):
    NOISE[f"{model}, {noise:g}"] = MODELS[model] | {"label_noise": noise}
    NOISE_BASELINES[f"{model}, {noise:g}"] = f"{model}, 0"

TIMES, TIMES_BASELINES = {}, {}
for model, numbers in {"MLP": (2, 5, 12, 30), "CNN": (1, 2, 5, 12), "hybrid": (1, 2, 5, 12)}.items():
    for epochs in numbers:
        words = f"{epochs} epoch" + ("s" if epochs > 1 else "")
        TIMES[f"{model}, {words}"] = MODELS[model] | {"epochs": epochs}
        baselines = {"MLP": "MLP, 12 epochs", "CNN": "CNN, 5 epochs", "hybrid": f"CNN, {words}"}
        TIMES_BASELINES[f"{model}, {words}"] = baselines[model]

LAYERS = {"convolution 1": {"feature_layer": 1}, "convolution 2": {"feature_layer": 2}}
LAYERS |= {"convolution 3, the last": {}}
HEADS = vary(head_hidden=((), (64,), (128, 64), (256, 128), (512, 256)))
JOINT = {"training": "joint"}
TUNED = JOINT | {"from_backbone": True, "learning_rate": 0.0003}
TRAINING = {"frozen": {}, "joint": JOINT | {"learning_rates": mlp.HIGHER}, "fine-tuned": TUNED}


def models(name, variants, baseline, baselines, x):
    baselines = {label: other for label, other in baselines.items() if label != other}
    return study(name, "mlp", variants, baseline, seeds=3, baselines=baselines, x=x)


def hybrid(name, variants, baseline):
    fixed = CNN | {"head_epochs": 5}
    return study(name, "hybrid", variants, baseline, fixed, mlp.RATES, 3, backbone=CNN)


STUDIES = (
    models("training_images", IMAGES, "CNN, 48,000", IMAGES_BASELINES, "train_size"),
    models("label_noise", NOISE, "CNN, 0", NOISE_BASELINES, "label_noise"),
    models("training_time", TIMES, "CNN, 5 epochs", TIMES_BASELINES, "seconds"),
    hybrid("feature_layer", LAYERS, "convolution 3, the last"),
    hybrid("head_size", HEADS, "256-128"),
    hybrid("hybrid_training", TRAINING, "frozen"),
)
