"""Speed and memory of this project's training beside what a user would pick instead, all in one process, taking turns.

    python benchmark.py mlp

Machines differ, and shared ones are noisy: the ratios count, not the seconds. Writes results/benchmark/mlp.json and mlp.png.
"""

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
from threadpoolctl import threadpool_limits

import data
import runs
import settings

# ---- settings: edit here, or override any of them on the command line (--rounds 9) ----
ROUNDS = 7  # epochs of each side, taking turns, of which the median counts, in [1, inf)
TABLE_ROUNDS = 3  # the same, for the tables over batch sizes and widths; 0 leaves them out; in [0, inf)
THREADS = 2  # of every side, in [1, inf)
ALONE = "none"  # one epoch of this side, and its memory: {none, ours, torch_fused, torch_tutorial, scikit_learn}
OUTPUT_DIR = "results/benchmark"  # where the results go
# ----

HIDDEN, BATCH_SIZE = (256, 128), 128
GOALS = {"torch_fused": 0.75, "torch_tutorial": 0.42, "scikit_learn": 0.50, "products": 1.3}
NAMES = {"ours": "this project", "torch_fused": "PyTorch, resident tensors, fused Adam",
         "torch_tutorial": "PyTorch, DataLoader and Adam", "scikit_learn": "scikit-learn MLPClassifier",
         "products": "the matrix products alone"}  # fmt: skip


# Each side is a function of (X (N, 784) float32, y (N,), hidden, batch size) that prepares a training with Adam at 0.001 and
# returns (a function that trains one epoch, a function that predicts the classes of X). They load their packages themselves.


def ours(X, y, hidden, batch_size):
    import mlp_from_scratch as mlp

    s = settings.load(mlp, **mlp.PLAIN, hidden=hidden, batch_size=batch_size, epochs=1)
    training = mlp.Training(*mlp.build(X.shape[1], 10, s), s, len(X))
    training.rates = [0.001] * training.steps
    return lambda: training.one_epoch(X, y), lambda: training.model.logits(X).argmax(axis=1)


def torch_network(hidden):
    from torch import nn

    widths = (784, *hidden)
    inner = [layer for i in range(len(hidden)) for layer in (nn.Linear(widths[i], widths[i + 1]), nn.ReLU())]
    return nn.Sequential(*inner, nn.Linear(widths[-1], 10))


def torch_prediction(network, X):
    import torch

    @torch.inference_mode()
    def predict():
        return torch.cat([network(part) for part in X.split(2000)]).argmax(dim=1)

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


def products(X, y, hidden, batch_size):
    """The floor: the matrix products of such an epoch and nothing else, into memory that is there already."""
    sizes = (784, *hidden, 10)
    x = [np.ones((batch_size, n), np.float32) for n in sizes]
    W = [np.ones((n, m), np.float32) for n, m in itertools.pairwise(sizes)]
    dW = [np.empty_like(w) for w in W]

    def epoch():
        for _ in range(-(-len(X) // batch_size)):
            for i, w in enumerate(W):
                np.matmul(x[i], w, out=x[i + 1])
            for i in reversed(range(len(W))):
                np.matmul(x[i].T, x[i + 1], out=dW[i])
                if i:
                    np.matmul(x[i + 1], W[i].T, out=x[i])
            for one in x[1:]:
                one.fill(1)  # else they would grow from step to step, to infinity

    return epoch, None


SIDES = {side.__name__: side for side in (ours, torch_fused, torch_tutorial, scikit_learn, products)}


def taking_turns(calls, rounds):
    """{name: seconds of each round} of {name: function}, called in turn, after a round that does not count."""
    seconds = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds):
    """{name: median of the rounds' ratios ours / theirs}: sides of one round share the machine's mood."""
    return {name: median(a / b for a, b in zip(seconds["ours"], theirs, strict=True))
            for name, theirs in seconds.items() if name != "ours"}  # fmt: skip


def compare(X, y, sides, rounds, hidden=HIDDEN, batch_size=BATCH_SIZE):
    """({name: [seconds per epoch]}, {name: [seconds to predict all of X]}) of the named sides."""
    made = {name: SIDES[name](X, y, hidden, batch_size) for name in sides}
    training = taking_turns({name: epoch for name, (epoch, _) in made.items()}, rounds)
    return training, taking_turns({name: predict for name, (_, predict) in made.items() if predict}, rounds)


def alone(name, s):
    """{"seconds": from the start of a process of its own to its first epoch's end, "mebibytes": its peak memory}."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "mlp", "--alone", name, "--threads", str(s.threads), "--data-dir", s.data_dir,
               "--dataset", s.dataset, "--split-seed", str(s.split_seed)]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if result.returncode:
        raise runs.RunError(f"{name}, alone: {result.stderr.strip()}")
    return {"seconds": seconds, "mebibytes": json.loads(result.stdout)}


def images(s):
    """The training images (N, 784) and labels (N,), all of them in memory."""
    train = data.load(s.dataset, s.data_dir, s.offline_fallback, s.split_seed).train
    return np.ascontiguousarray(train.X.reshape(len(train.X), -1)), train.y


def mlp(s):
    """The NumPy MLP. Returns what goes into mlp.json."""
    X, y = images(s)
    training, prediction = compare(X, y, SIDES, s.rounds)
    found = ratios(training)
    print(f"784-256-128-10, batch {BATCH_SIZE}, {len(X):,} images, {s.threads} threads, {s.rounds} rounds\n")
    print(f"{'':<40}{'s per epoch':>12}{'ours / theirs':>15}{'wanted':>9}{'images/s predicted':>20}")
    for name, seconds in training.items():
        ratio = f"{found[name]:15.2f}{GOALS[name]:9.2f}" if name in found else " " * 24
        rate = f"{len(X) / median(prediction[name]):20,.0f}" if name in prediction else ""
        print(f"{NAMES[name]:<40}{median(seconds):12.3f}{ratio}{rate}", flush=True)

    tables = {"batch_size": {}, "hidden": {}}
    if s.table_rounds:
        print(f"\n{'':<24}{'s per epoch':>12}   ours / torch, fused   ours / products")
        cases = [("batch_size", n) for n in (32, 64, 128, 256, 512, 1024)]
        cases += [("hidden", h) for h in ((128, 64), (256, 128), (1024, 1024))]
        for what, value in cases:
            seconds, _ = compare(X, y, ("ours", "torch_fused", "products"), s.table_rounds, **{what: value})
            label = f"batch {value}" if what == "batch_size" else f"784-{'-'.join(map(str, value))}-10"
            row = {"seconds": median(seconds["ours"]), **{f"against_{name}": r for name, r in ratios(seconds).items()}}
            tables[what][label] = row
            against = f"{row['against_torch_fused']:22.2f}{row['against_products']:18.2f}"
            print(f"{label:<24}{row['seconds']:12.3f}{against}", flush=True)

    single = {name: [alone(name, s) for _ in range(3)] for name in SIDES if name != "products"}
    single = {name: {"seconds": median(one["seconds"] for one in three), "mebibytes": three[0]["mebibytes"]}
              for name, three in single.items()}  # fmt: skip
    print(f"\n{'in a process of its own':<40}{'peak memory':>12}{'Enter to the first epoch finished':>36}")
    for name, one in single.items():
        memory = f"{one['mebibytes']:8.0f} MiB" if one["mebibytes"] else f"{'?':>12}"
        print(f"{NAMES[name]:<40}{memory}{one['seconds']:34.1f} s")
    throughput = {name: len(X) / median(seconds) for name, seconds in prediction.items()}
    return {"network": "784-256-128-10", "batch_size": BATCH_SIZE, "images": len(X), "threads": s.threads,
            "seconds_per_epoch": training, "ratios": found, "goals": GOALS, "images_per_second_predicted": throughput,
            "tables": tables, "alone": single}  # fmt: skip


PARTS = {"mlp": mlp}


def limit_torch(name, threads):
    """PyTorch has a pool of threads of its own, which threadpoolctl does not reach before it is loaded."""
    if name.startswith("torch"):
        import torch

        torch.set_num_threads(threads)


def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    part = argv.pop(0) if argv and not argv[0].startswith("-") else ""
    s = settings.parse(sys.modules[__name__], data, argv=argv)
    if part not in PARTS:
        raise settings.SettingError(f"benchmark.py {part}: name what to measure first: {', '.join(PARTS)}")
    if s.alone != "none":
        with threadpool_limits(s.threads):
            limit_torch(s.alone, s.threads)
            epoch, _ = SIDES[s.alone](*images(s), HIDDEN, BATCH_SIZE)
            epoch()
        print(json.dumps(runs.peak_memory()))
        return
    limit_torch("torch", s.threads)
    import plots

    with threadpool_limits(s.threads):
        measured = PARTS[part](s)
    found = measured | {"command": f"python benchmark.py {part}", **runs.surroundings()}
    folder = Path(s.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with runs.whole(folder / f"{part}.json") as path:
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    with runs.whole(folder / f"{part}.png") as path:
        plots.speed(found, NAMES).savefig(path)
    print(f"\n{folder / part}.json, {folder / part}.png")


if __name__ == "__main__":
    runs.command(main)
