"""Speed of training, compared with PyTorch and scikit-learn on a CPU.

    python -m extras.benchmark mlp      the NumPy MLP, PyTorch, scikit-learn, and the matrix products alone
    python -m extras.benchmark cnn      the CNN and a tutorial's training loop
    python -m extras.benchmark hybrid   joint training with the MLP in NumPy and with the MLP in PyTorch

Times depend on the machine and its load. Compare the ratios, ours / theirs: the implementations run in turn,
in one process. The median over the rounds is the result; the lowest and the highest round are its spread.
Prints the results and writes them as mlp.json, cnn.json or hybrid.json.
"""

import functools
import itertools
import json
import sys
import time
from statistics import median

import numpy as np
import torch
from PIL import Image
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision import transforms

import cnn_feature_extraction as cnn
import data
import hybrid_train
import mlp_from_scratch as mlp
import run

ROUNDS: int = 7  # measured epochs of each implementation, whose median counts
THREADS: int = 2  # threads of each implementation
IMAGES: int = 4_096  # cnn and hybrid: training images in each round
OUTPUT_DIR: str = ""  # folder of the results, new or empty; "" makes runs/benchmark/<date_time>

LIMITS = {"ROUNDS": (1, 1000), "THREADS": (1, 1024), "IMAGES": (512, 48_000)}

NAMES = {
    "ours": "this project",
    "torch_fused": "PyTorch, resident tensors, fused Adam",
    "torch_tutorial": "PyTorch, DataLoader and Adam",
    "scikit_learn": "scikit-learn MLPClassifier",
    "matmul_only": "matrix products alone",
    "tutorial": "PyTorch, DataLoader, Adam, batch size 64",
    "torch_reference": "the same with the MLP in PyTorch, fused Adam",
}
TARGETS = {"torch_fused": 0.75, "torch_tutorial": 0.42, "scikit_learn": 0.50, "torch_reference": 1.05}
TARGETS["tutorial"] = 3.0  # of the speedup; the others are of times, ours / theirs

HIDDEN, BATCH_SIZE = (256, 128), 128
PLAIN = {"optimizer": "adam", "norm": "none", "normalize": "none", "flip": False, "dropout": 0.0}
PLAIN |= {"label_smoothing": 0.0, "weight_decay": 0.0, "ema_decay": 0.0}
# The CNN that both sides of `cnn` train: five convolutions, without batch normalization
TUTORIAL = {"channels": (32, 64, 128, 256, 512), "pool_after": (1, 2, 5), "norm": "none", "device": "cpu"}


def interleave(calls, rounds):
    """{name: [seconds of each round]} of {name: function}, called in turn; a first round is not counted."""
    seconds = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def compare(seconds):
    """({name: median over the rounds of ours / theirs}, {name: [lowest, highest]}) of interleaved seconds."""
    ratios, spread = {}, {}
    for name in [name for name in seconds if name != "ours"]:
        rounds = [a / b for a, b in zip(seconds["ours"], seconds[name], strict=True)]
        ratios[name], spread[name] = median(rounds), [min(rounds), max(rounds)]
    return ratios, spread


def measure(calls, rounds, num_images):
    """{"seconds": ..., "ratios": ..., "spread": ..., "targets": ...} of {name: function}, printed, too."""
    seconds = interleave(calls, rounds)
    ratios, spread = compare(seconds)
    print(f"{'':<46}{'images/s':>10}{'time, ours / theirs':>24}")
    for name, values in seconds.items():
        ratio = "{:.2f} ({:.2f} to {:.2f})".format(ratios[name], *spread[name]) if name in ratios else ""
        print(f"{NAMES[name]:<46}{num_images / median(values):10,.0f}{ratio:>24}", flush=True)
    targets = {name: TARGETS[name] for name in seconds if name in TARGETS}
    return {"seconds": seconds, "ratios": ratios, "spread": spread, "targets": targets}


def ours(X, y, hidden, batch_size):
    """Functions that train an MLP on X (N, features), y (N,) for an epoch, and that predict X's classes."""
    images = data.Dataset("", tuple(range(10)), data.Split(X, y, None), None, None)
    trainer = mlp.Trainer(images, mlp.settings(**PLAIN, hidden=hidden, batch_size=batch_size))

    def epoch():
        for batch in data.batches(len(y), batch_size, trainer.rngs["shuffle"]):
            trainer.train_step(X[batch], y[batch], 0.001)

    return epoch, lambda: trainer.model.predict_logits(X).argmax(axis=1)


def torch_mlp(sizes):
    layers = [layer for n, m in itertools.pairwise(sizes) for layer in (nn.Linear(n, m), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def torch_epoch(network, optimizer, batches):
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()


def in_torch(X, y, hidden, batch_size, fused):
    """With resident tensors and fused Adam; or with a DataLoader and Adam, as a tutorial has it."""
    X, y, network = torch.from_numpy(X), torch.from_numpy(y), torch_mlp((X.shape[1], *hidden, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001, fused=fused)
    loader = DataLoader(TensorDataset(X, y), batch_size, shuffle=True)

    def epoch():
        resident = ((X[batch], y[batch]) for batch in torch.randperm(len(X)).split(batch_size))
        torch_epoch(network, optimizer, resident if fused else loader)

    @torch.inference_mode()
    def predict():
        return torch.cat([network(x) for x in X.split(2000)]).argmax(dim=1)

    return epoch, predict


def scikit_learn(X, y, hidden, batch_size):
    classifier = MLPClassifier(hidden, batch_size=batch_size, alpha=0)  # Adam at 0.001 is its default
    return lambda: classifier.partial_fit(X, y, classes=np.arange(10)), lambda: classifier.predict(X)


def matmul_only(X, y, hidden, batch_size):
    """The lower bound: the matrix products of an epoch and nothing else, with preallocated outputs."""
    sizes = (X.shape[1], *hidden, 10)
    x = [np.ones((batch_size, n), np.float32) for n in sizes]
    W = [np.ones(shape, np.float32) for shape in itertools.pairwise(sizes)]
    dW = [np.empty_like(w) for w in W]

    def epoch():
        for _ in range(-(-len(X) // batch_size)):
            for i, w in enumerate(W):
                np.matmul(x[i], w, out=x[i + 1])  # forward
            for i in reversed(range(len(W))):
                np.matmul(x[i].T, x[i + 1], out=dW[i])  # gradient of the weights
                if i:
                    np.matmul(x[i + 1], W[i].T, out=x[i])  # gradient of the inputs
            for array in x[1:]:
                array.fill(1)  # otherwise the values would grow from step to step and overflow

    return epoch, None


IMPLEMENTATIONS = {
    "ours": ours,
    "torch_fused": functools.partial(in_torch, fused=True),
    "torch_tutorial": functools.partial(in_torch, fused=False),
    "scikit_learn": scikit_learn,
    "matmul_only": matmul_only,
}


def dashes(*widths):
    return "-".join(map(str, widths))


def measure_mlp(images, s):
    """The content of mlp.json."""
    X, y = images.train.X.reshape(len(images.train.y), -1), images.train.y
    calls = {name: prepare(X, y, HIDDEN, BATCH_SIZE) for name, prepare in IMPLEMENTATIONS.items()}
    results = measure({name: epoch for name, (epoch, _) in calls.items()}, s.rounds, len(y))
    results["seconds_per_epoch"] = results.pop("seconds")
    prediction = interleave({name: predict for name, (_, predict) in calls.items() if predict}, s.rounds)
    rates = {name: len(y) / median(seconds) for name, seconds in prediction.items()}
    results |= {"network": dashes(784, *HIDDEN, 10), "batch_size": BATCH_SIZE, "images": len(y)}
    return results | {"images_per_second_predicted": rates}


def cnn_epoch(images, s, head=None):
    """(a function that trains one epoch of our CNN, its precision). head: what replaces its classifier."""
    trainer = cnn.Trainer(images, s, head=head)
    X, y, rng = torch.from_numpy(images.train.X[:, None]), torch.from_numpy(images.train.y), torch.Generator()

    def epoch():
        trainer.model.train()
        for batch in trainer.batches(len(y), 0):
            x = cnn.to_channels_last(cnn.augment(X[batch], s.flip, s.shift, s.erase, rng))
            trainer.train_step(x, y[batch], 0.05 * s.learning_rate)  # as at the start of the warm-up

    return epoch, str(trainer.precision).removeprefix("torch.")


def tutorial(images):
    """A function that trains a CNN for an epoch as a tutorial does it.

    float32, channels first, a DataLoader that transforms PIL images one by one, batch size 64, Adam.
    """
    steps = [transforms.RandomCrop(28, padding=1), transforms.RandomHorizontalFlip()]
    transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(0.286, 0.353)])
    pixels, y = np.round(255 * images.train.X).astype(np.uint8), images.train.y

    def collate(rows):
        x = torch.stack([transform(Image.fromarray(pixels[i])) for i in rows])
        return x, torch.tensor(y[rows])

    layers = []
    for number, (n, m) in enumerate(itertools.pairwise((1, *TUTORIAL["channels"])), 1):
        pool = [nn.MaxPool2d(2)] if number in TUTORIAL["pool_after"] else []
        layers += [nn.Conv2d(n, m, 3, padding=1), nn.ReLU(), *pool]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512 * 9, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    loader = DataLoader(range(len(y)), 64, shuffle=True, collate_fn=collate)
    return lambda: torch_epoch(network, optimizer, loader)


def measure_cnn(images, s):
    """The content of cnn.json."""
    settings, n = cnn.settings(**TUTORIAL, learning_rate=0.02), len(images.train.y)
    epoch, precision = cnn_epoch(images, settings)
    results = measure({"ours": epoch, "tutorial": tutorial(images)}, s.rounds, n)
    results["speedup"] = {"tutorial": 1 / results.pop("ratios")["tutorial"]}
    results["spread"] = {"tutorial": [1 / ratio for ratio in reversed(results["spread"]["tutorial"])]}
    return results | {"network": dashes(*settings.channels), "precision": precision, "images": n}


def torch_head(sizes, learning_rate):
    """The MLP of the hybrid in PyTorch, with the interface of hybrid_train.NumpyHead."""
    head = torch_mlp(sizes)
    optimizer = torch.optim.Adam(head.parameters(), fused=True)

    def step(lr_factor):
        optimizer.param_groups[0]["lr"] = lr_factor * learning_rate
        optimizer.step()
        optimizer.zero_grad()

    head.step = step
    return head


def measure_hybrid(images, s):
    """The content of hybrid.json: joint training with the NumPy MLP, and with the same MLP in PyTorch."""
    joint, n = hybrid_train.settings(training="joint", device="cpu"), len(images.train.y)
    sizes = (cnn.CNN(joint).classifier.in_features, *joint.head_hidden, 10)
    network = mlp.MLP(sizes, np.random.default_rng(0))
    epoch, precision = cnn_epoch(images, joint, hybrid_train.NumpyHead(network, joint.joint_learning_rate))
    reference, _ = cnn_epoch(images, joint, torch_head(sizes, joint.joint_learning_rate))

    def our_epoch():  # as hybrid_train.py does it
        with threadpool_limits(1, user_api="blas"):
            epoch()

    name = f"{dashes(*joint.channels)} + {dashes(*sizes[1:])}"
    results = measure({"ours": our_epoch, "torch_reference": reference}, s.rounds, n)
    return results | {"network": name, "images": n, "precision": precision}


MEASURES = {"mlp": measure_mlp, "cnn": measure_cnn, "hybrid": measure_hybrid}


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    name = next((word for word in argv[:1] if not word.startswith("-")), "")
    s = run.parse(argv[bool(name) :], sys.modules[__name__], data)
    if name not in MEASURES:
        raise run.Error(f"benchmark {name}: choose from {', '.join(MEASURES)}")
    if s.quick:
        s.rounds, s.images = 1, 1000
    s.train_size = s.images if name in ("cnn", "hybrid") or s.quick else s.train_size
    images = data.load(s)
    if images.image_shape != (28, 28) or len(images.classes) != 10:
        raise run.Error(f"--dataset {s.dataset}: the networks here are for 10 classes of 28 x 28 pixels")
    torch.set_num_threads(s.threads)
    s.resume, s.seeds = "", 1  # as RunFolder needs it
    with run.RunFolder("benchmark", s) as folder, threadpool_limits(s.threads):
        results = {"dataset": images.name, "threads": s.threads} | MEASURES[name](images, s)
        results |= {"command": run.command_line(), **run.environment()}
        folder.save({f"{name}.json": json.dumps(results, indent=2) + "\n"})
        print(f"\nall files are in\n{folder.path}")
    return results


if __name__ == "__main__":
    run.cli(main)
