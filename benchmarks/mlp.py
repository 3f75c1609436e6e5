"""Speed and memory of the NumPy MLP compared with PyTorch, scikit-learn and a lower bound.

An implementation is a function of (X (N, 784) float32, y (N,), hidden, batch_size) that prepares a training with Adam at
learning rate 0.001 and returns (a function that trains one epoch, a function that predicts the classes of X). It imports
its packages itself, so that a cold start loads no others.
"""

if __name__ == "__main__":
    raise SystemExit("benchmarks/mlp.py is a module, not a script: benchmark.py uses it")

import itertools
from statistics import median

import numpy as np

from benchmarks.timing import NAMES, TARGETS, cold_start, interleave, load_images, ratios, spread, with_spread
from support import settings

HIDDEN, BATCH_SIZE = (256, 128), 128
TABLES = {"batch_size": (32, 64, 128, 256, 512, 1024), "hidden": ((128, 64), (256, 128), (1024, 1024))}


def ours(X, y, hidden, batch_size):
    import mlp_from_scratch as mlp

    changes = {"schedule": "constant", "learning_rate": 0.001, "hidden": hidden, "batch_size": batch_size, "epochs": 1}
    s = settings.load(mlp, **mlp.BASELINE | changes)
    trainer = mlp.Trainer(*mlp.build(X.shape[1], 10, s), s, len(X))
    return lambda: trainer.train_epoch(X, y), lambda: trainer.model.predict_logits(X).argmax(axis=1)


def torch_network(hidden):
    from torch import nn

    widths = (784, *hidden)
    layers = [layer for sizes in itertools.pairwise(widths) for layer in (nn.Linear(*sizes), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 10))


def torch_prediction(network, X):
    import torch

    @torch.inference_mode()
    def predict():
        return torch.cat([network(x) for x in X.split(2000)]).argmax(dim=1)

    return predict


def torch_fused(X, y, hidden, batch_size):
    import torch

    X, y, network, loss = torch.from_numpy(X), torch.from_numpy(y), torch_network(hidden), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001, fused=True)

    def epoch():
        for batch in torch.randperm(len(X)).split(batch_size):
            optimizer.zero_grad()
            loss(network(X[batch]), y[batch]).backward()
            optimizer.step()

    return epoch, torch_prediction(network, X)


def torch_tutorial(X, y, hidden, batch_size):
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    X, y, network, loss = torch.from_numpy(X), torch.from_numpy(y), torch_network(hidden), torch.nn.CrossEntropyLoss()
    loader = DataLoader(TensorDataset(X, y), batch_size, shuffle=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)

    def epoch():
        for images, labels in loader:
            optimizer.zero_grad()
            loss(network(images), labels).backward()
            optimizer.step()

    return epoch, torch_prediction(network, X)


def scikit_learn(X, y, hidden, batch_size):
    from sklearn.neural_network import MLPClassifier

    classifier = MLPClassifier(hidden, batch_size=batch_size, alpha=0)  # Adam at 0.001 is its default
    return lambda: classifier.partial_fit(X, y, classes=np.arange(10)), lambda: classifier.predict(X)


def matmul_only(X, y, hidden, batch_size):
    """The lower bound: the matrix products of an epoch and nothing else, with preallocated outputs."""
    sizes = (784, *hidden, 10)
    x = [np.ones((batch_size, n), np.float32) for n in sizes]
    W = [np.ones((n, m), np.float32) for n, m in itertools.pairwise(sizes)]
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


IMPLEMENTATIONS = {build.__name__: build for build in (ours, torch_fused, torch_tutorial, scikit_learn, matmul_only)}


def compare(X, y, names, rounds, hidden=HIDDEN, batch_size=BATCH_SIZE):
    """({name: [seconds per epoch]}, {name: [seconds to predict all of X]}) of the named implementations."""
    calls = {name: IMPLEMENTATIONS[name](X, y, hidden, batch_size) for name in names}
    training = interleave({name: epoch for name, (epoch, _) in calls.items()}, rounds)
    return training, interleave({name: predict for name, (_, predict) in calls.items() if predict}, rounds)


def pixels(s):
    """The training images (N, 784) and labels (N,), all of them in memory, and the dataset's name."""
    images = load_images(s)
    X, y = (array[: s.images] if s.quick else array for array in (images.train.X, images.train.y))
    return np.ascontiguousarray(X.reshape(len(X), -1)), y, images.name  # (N, 28, 28) -> (N, 784)


def measure_mlp(s):
    """Return the content of mlp.json."""
    X, y, dataset = pixels(s)
    network = f"784-{'-'.join(map(str, HIDDEN))}-10"
    print(f"{dataset}: NumPy MLP {network}, batch size {BATCH_SIZE}, {len(X):,} images, {s.threads} threads, "
          f"rounds: {s.rounds}")  # fmt: skip
    training, prediction = compare(X, y, IMPLEMENTATIONS, s.rounds)
    throughput = {name: len(X) / median(seconds) for name, seconds in prediction.items()}
    print_comparison(training, throughput)
    tables = measure_tables(X, y, s, training) if s.table_rounds else {name: {} for name in TABLES}
    repeats = 1 if s.quick else 3
    cold_starts = {name: cold_start(name, s, repeats) for name in IMPLEMENTATIONS if name != "matmul_only"}
    print_cold_starts(cold_starts)
    return {"network": network, "dataset": dataset, "batch_size": BATCH_SIZE, "images": len(X), "threads": s.threads,
            "seconds_per_epoch": training, "ratios": ratios(training), "spread": spread(training),
            "targets": {name: TARGETS[name] for name in training if name in TARGETS},
            "images_per_second_predicted": throughput, "tables": tables, "cold_start": cold_starts}  # fmt: skip


def print_comparison(training, throughput):
    medians, low_high = ratios(training), spread(training)
    print(f"\n{'':<40}{'s per epoch':>12}{'ours / theirs':>22}{'target':>9}{'images/s predicted':>20}")
    for name, seconds in training.items():
        if name == "matmul_only":
            print("lower bound:")
        ratio = with_spread(medians[name], low_high[name]) if name in medians else ""
        target = f"{TARGETS[name]:.2f}" if name in TARGETS else ""
        rate = f"{throughput[name]:,.0f}" if name in throughput else ""
        print(f"{NAMES[name]:<40}{median(seconds):12.3f}{ratio:>22}{target:>9}{rate:>20}".rstrip(), flush=True)


def measure_tables(X, y, s, training):
    """{"batch_size": {"batch 32": row, ...}, "hidden": {"784-128-64-10": row, ...}}, and print them.

    A row is {"seconds": ours, "against_torch_fused": ratio, "against_matmul_only": ratio, "spread": {name: [lowest,
    highest]}}. training: what `compare` returned for the default network, which is not measured again.
    """
    names, tables = ("ours", "torch_fused", "matmul_only"), {}
    print(f"\n{'':<24}{'s per epoch':>12}{'ours / PyTorch, fused':>24}{'ours / matrix products':>24}")
    for setting, values in TABLES.items():
        tables[setting] = {}
        for value in values:
            if value == {"batch_size": BATCH_SIZE, "hidden": HIDDEN}[setting]:
                seconds = {name: training[name] for name in names}
            else:
                seconds, _ = compare(X, y, names, s.table_rounds, **{setting: value})
            label = f"batch {value}" if setting == "batch_size" else f"784-{'-'.join(map(str, value))}-10"
            medians, low_high = ratios(seconds), spread(seconds)
            cells = "".join(f"{with_spread(medians[name], low_high[name]):>24}" for name in names[1:])
            print(f"{label:<24}{median(seconds['ours']):12.3f}{cells}", flush=True)
            row = {f"against_{name}": ratio for name, ratio in medians.items()}
            tables[setting][label] = {"seconds": median(seconds["ours"]), **row, "spread": low_high}
    return tables


def print_cold_starts(cold_starts):
    print(f"\n{'in a new process':<40}{'peak memory':>12}{'start to end of first epoch':>30}")
    for name, row in cold_starts.items():
        memory = f"{row['peak_memory_mib']:,.0f} MiB" if row["peak_memory_mib"] else "unknown"
        print(f"{NAMES[name]:<40}{memory:>12}{row['seconds']:28.1f} s")


def train_one_epoch(name, s):
    """What the process of a cold start does."""
    epoch, _ = IMPLEMENTATIONS[name](*pixels(s)[:2], HIDDEN, BATCH_SIZE)
    epoch()
