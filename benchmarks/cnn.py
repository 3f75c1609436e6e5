"""Speed of the CNN and of joint training compared with a tutorial's training loop and with an MLP in PyTorch, on a CPU."""

if __name__ == "__main__":
    raise SystemExit("benchmarks/cnn.py is a module, not a script: benchmark.py uses it")

import itertools
import time
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import cnn_feature_extraction
import data
import hybrid_train
from benchmarks.timing import NAMES, TARGETS, interleave, load_images, ratios, spread, with_spread
from support import settings
from torch_cnn import backbone
from torch_cnn.devices import pick_precision

# The network that both sides of the comparison train: five convolutions, without batch normalization
TUTORIAL = {"channels": (32, 64, 128, 256, 512), "pool_after": (1, 2, 5), "norm": "none", "learning_rate": 0.02}
TUTORIAL_EPOCHS, OUR_EPOCHS = 20, 13  # of time_to_accuracy
MEAN, STD = 0.286, 0.353  # of the training pixels
SPEEDUP_TARGET = 3.0  # images/s, ours / tutorial, at least
TIME_TO_ACCURACY_TARGET = 0.2  # ours / tutorial, at most

# The events by which PyTorch's profiler records a layer's forward and backward passes; none of them contains another one
CONVOLUTIONS = ("aten::convolution", "ConvolutionBackward0")
PASSES = {
    "convolutions": CONVOLUTIONS,
    "layers": (*CONVOLUTIONS, "aten::max_pool2d", "MaxPool2DWithIndicesBackward0", "aten::batch_norm",
               "NativeBatchNormBackward0", "aten::relu", "ReluBackward0", "aten::addmm", "AddmmBackward0"),
}  # fmt: skip


def ours(X, y, s, make_head=None):
    """(the Trainer of a CNN with the settings `s` of cnn_feature_extraction.py, a function that trains one epoch).

    make_head: function of the number of features that returns the module to use in place of the linear classifier.
    """
    model = backbone.build(s, mean=MEAN, std=STD, generator=torch.Generator().manual_seed(0))
    if make_head:
        model.classifier = make_head(model.classifier.in_features)
    model = model.to(memory_format=torch.channels_last)
    head = model.classifier if make_head else None
    trainer = cnn_feature_extraction.Trainer(model, s, len(y), getattr(torch, s.precision), head)
    return trainer, lambda: trainer.train_epoch(X, y)


def resolve_precision(s):
    """The settings `s` with the precision that "auto" means on this machine, so that it is the same in all measurements."""
    model = backbone.build(s).to(memory_format=torch.channels_last)
    precision = pick_precision(s.precision, model, torch.device("cpu"))
    return SimpleNamespace(**vars(s) | {"precision": str(precision).removeprefix("torch.")})


class Images(Dataset):
    """Transformed PIL images, as torchvision.datasets.FashionMNIST returns them. X (N, 28, 28) uint8."""

    def __init__(self, X, y, transform):
        self.X, self.y, self.transform = X, y, transform

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.X[i])), int(self.y[i])


def tutorial_network():
    layers, n_in = [], 1
    for number, n_out in enumerate(TUTORIAL["channels"], 1):
        layers += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if number in TUTORIAL["pool_after"] else []
        n_in = n_out
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512 * 9, 10))


def tutorial(X, y, X_val, y_val):
    """The same network as a tutorial trains it: (a function that trains one epoch, one that returns validation accuracy).

    float32, channels first, a DataLoader that transforms PIL images one by one, batch size 64, Adam. X (N, 28, 28) uint8.
    """
    normalize = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augment = transforms.Compose([transforms.RandomCrop(28, padding=1), transforms.RandomHorizontalFlip(), *normalize])
    loader = DataLoader(Images(X, y, augment), 64, shuffle=True)
    validation = DataLoader(Images(X_val, y_val, transforms.Compose(normalize)), 64)
    network = tutorial_network()
    loss, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(network.parameters(), lr=0.001)

    def epoch():
        network.train()
        for images, labels in loader:
            optimizer.zero_grad()
            loss(network(images), labels).backward()
            optimizer.step()

    @torch.no_grad()
    def accuracy():
        network.eval()
        return sum((network(images).argmax(1) == labels).sum().item() for images, labels in validation) / len(y_val)

    return epoch, accuracy


def as_bytes(X):
    return np.round(255 * X).astype(np.uint8)


def profile_epoch(epoch):
    """(seconds of the call epoch(), {"convolutions": fraction spent in their passes, "layers": in those of all layers})."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        epoch()
        seconds = time.perf_counter() - start
    times = {event.key.split(": ")[-1]: event.cpu_time_total / 1e6 for event in profiler.key_averages()
             if not event.key.endswith("Backward0") or "evaluate_function" in event.key}  # fmt: skip
    return seconds, {layers: sum(times.get(name, 0) for name in names) / seconds for layers, names in PASSES.items()}


def dashes(*widths):
    return "-".join(map(str, widths))


def measure_cnn(s):
    """Return the content of cnn.json."""
    images = load_images(s)
    defaults = resolve_precision(settings.load(cnn_feature_extraction))
    same_network = resolve_precision(settings.load(cnn_feature_extraction, **TUTORIAL))
    full_batches = min(s.images, len(images.train.y)) // defaults.batch_size * defaults.batch_size
    X, y = images.train.X[:full_batches], images.train.y[:full_batches]
    tensors = torch.from_numpy(X[:, None]), torch.from_numpy(y)
    network = dashes(*TUTORIAL["channels"])
    print(f"{images.name}: CNN {network} without batch normalization, {len(X):,} images per round, {s.threads} threads, "
          f"rounds: {s.rounds}; ours in {same_network.precision} with batch size {same_network.batch_size}\n")  # fmt: skip
    epoch, _ = tutorial(as_bytes(X), y, X, y)
    _, our_epoch = ours(*tensors, same_network)
    seconds = interleave({"ours": our_epoch, "tutorial": epoch}, s.rounds)
    speedup, (low, high) = 1 / ratios(seconds)["tutorial"], spread(seconds)["tutorial"]
    low_high = [1 / high, 1 / low]
    print(f"{'':<44}{'images/s':>10}{'speedup of ours':>22}{'target':>9}")
    for name, values in seconds.items():
        cells = f"{with_spread(speedup, low_high):>22}{SPEEDUP_TARGET:9.1f}" if name == "tutorial" else ""
        print(f"{NAMES[name]:<44}{len(X) / median(values):10,.0f}{cells}", flush=True)

    _, our_epoch = ours(*tensors, defaults)
    epochs = [profile_epoch(our_epoch) for _ in range(s.rounds + 1)][1:]
    shares = {name: median(fractions[name] for _, fractions in epochs) for name in PASSES}
    shares["outside"] = 1 - shares["layers"]
    rate = len(X) / median(duration for duration, _ in epochs)
    print(f"\ntraining of the default CNN {dashes(*defaults.channels)}, {rate:,.0f} images/s; time according to PyTorch's "
          f"profiler\n{'convolutions, forward and backward':<60}{shares['convolutions']:6.1%}\n"
          f"{'all layers, with normalization, pooling, activation':<60}{shares['layers']:6.1%}\n"
          f"{'the rest: augmentation, loss, optimizer, moving average':<60}{shares['outside']:6.1%}")  # fmt: skip
    return {"network": network, "images": len(X), "threads": s.threads, "seconds": seconds, "dataset": images.name,
            "precision": same_network.precision, "default_precision": defaults.precision,
            "speedup": {"tutorial": speedup}, "spread": {"tutorial": low_high}, "targets": {"tutorial": SPEEDUP_TARGET},
            "default_network": dashes(*defaults.channels), "default_seconds": [duration for duration, _ in epochs],
            "shares": shares}  # fmt: skip


class TorchReference(nn.Sequential):
    """The MLP of the hybrid in PyTorch, with the interface of hybrid_train.NumpyHead. sizes: as in (1728, 256, 128, 10)."""

    def __init__(self, sizes, learning_rate):
        layers = [layer for n, m in itertools.pairwise(sizes) for layer in (nn.Linear(n, m), nn.ReLU())]
        super().__init__(*layers[:-1])
        self.optimizer, self.learning_rate = torch.optim.Adam(self.parameters(), fused=True), learning_rate

    def step(self, lr_factor=1.0):
        self.optimizer.param_groups[0]["lr"] = lr_factor * self.learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure_hybrid(s):
    """Joint training with the NumPy MLP compared with the same MLP in PyTorch. Return the content of hybrid.json."""
    images = load_images(s)
    X, y = torch.from_numpy(images.train.X[: s.images, None]), torch.from_numpy(images.train.y[: s.images])
    joint = resolve_precision(settings.load(hybrid_train, cnn_feature_extraction))
    widths = *joint.head_hidden, len(images.classes)
    network = f"{dashes(*joint.channels)} + {dashes(*widths)}"
    print(f"{images.name}: CNN and MLP {network}, trained jointly, {len(y):,} images per round, {s.threads} threads, "
          f"rounds: {s.rounds}; in {joint.precision}\n")  # fmt: skip
    _, epoch = ours(X, y, joint, lambda features: hybrid_train.new_head(images, joint))
    _, reference = ours(X, y, joint, lambda features: TorchReference((features, *widths), joint.joint_learning_rate))

    def our_epoch():  # as hybrid_train.py does it
        with hybrid_train.single_blas_thread():
            epoch()

    seconds = interleave({"ours": our_epoch, "torch_reference": reference}, s.rounds)
    ratio, low_high, target = ratios(seconds), spread(seconds), TARGETS["torch_reference"]
    print(f"{'':<46}{'images/s':>10}{'ours / theirs':>22}{'target':>9}")
    for name, values in seconds.items():
        cells = f"{with_spread(ratio[name], low_high[name]):>22}{target:9.2f}" if name in ratio else ""
        print(f"{NAMES[name]:<46}{len(y) / median(values):10,.0f}{cells}")
    return {"network": network, "dataset": images.name, "images": len(y), "threads": s.threads, "precision": joint.precision,
            "seconds": seconds, "ratios": ratio, "spread": low_high, "targets": {"torch_reference": target}}  # fmt: skip


def time_to_accuracy(s):
    """Seconds until the default CNN's validation accuracy equals the best of a tutorial's loop.

    They are trained for OUR_EPOCHS and TUTORIAL_EPOCHS, in turn, a few epochs at a time. Return the content of race.json.
    """
    images, ours_s = load_images(s), resolve_precision(settings.load(cnn_feature_extraction, epochs=OUR_EPOCHS))
    train, val, tutorial_epochs = images.train, images.val, TUTORIAL_EPOCHS
    if s.quick:
        ours_s, tutorial_epochs = SimpleNamespace(**vars(ours_s) | {"epochs": 2}), 2
        train, val = (data.Split(*(array[: s.images] for array in vars(split).values())) for split in (train, val))
    X, y, X_val, y_val = (torch.from_numpy(array) for split in (train, val) for array in (split.X[:, None], split.y))
    trainer, _ = ours(X, y, ours_s)
    torch.manual_seed(0)
    epoch, accuracy_of_tutorial = tutorial(as_bytes(train.X), train.y, as_bytes(val.X), val.y)
    rows = {"ours": [], "tutorial": []}  # of (seconds since the start, validation accuracy), one for each epoch

    def log(name, seconds, accuracy):
        total = rows[name][-1][0] + seconds if rows[name] else seconds
        rows[name].append((total, accuracy))
        print(f"{NAMES[name]:<44} epoch {len(rows[name]):2}, {total:6.0f} s, {accuracy:.2%}", flush=True)

    def after_our_epoch(row):
        log("ours", row["seconds"], row["val_accuracy"])
        due = round(tutorial_epochs * row["epoch"] / ours_s.epochs)
        while len(rows["tutorial"]) < due:
            start = time.perf_counter()
            epoch()
            accuracy = accuracy_of_tutorial()
            log("tutorial", time.perf_counter() - start, accuracy)  # includes validation, as ours

    # Only one image for the curve of training accuracy, since the tutorial does not compute such a curve
    trainer.fit(X, y, X_val, y_val, after_our_epoch, train_eval=(X[:1], y[:1]))
    best = max(accuracy for _, accuracy in rows["tutorial"])
    first = {name: next((seconds for seconds, accuracy in rows[name] if accuracy >= best), None) for name in rows}
    ratio = first["ours"] / first["tutorial"] if first["ours"] else None
    reached = f"{first['ours']:.0f} s ({ratio:.2f}; target: {TIME_TO_ACCURACY_TARGET} or less)" if ratio else "never"
    print(f"\ntime to the tutorial's best validation accuracy, {best:.2%}:\n"
          f"tutorial {first['tutorial']:.0f} s, ours {reached}")  # fmt: skip
    return {"dataset": images.name, "threads": s.threads, "precision": ours_s.precision, "rows": rows, "accuracy": best,
            "seconds": first, "ratio": ratio, "target": TIME_TO_ACCURACY_TARGET}  # fmt: skip
