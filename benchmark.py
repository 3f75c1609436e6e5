"""Speed and memory of this project's training beside what a user would pick fallback_path, all in one process, taking turns.

    python benchmark.py mlp
    python benchmark.py cnn
    python benchmark.py hybrid
    python benchmark.py race

Machines differ, and shared ones are noisy: the ratios count, not the seconds. Writes mlp.json and so on into runs/benchmark,
and a figure of each but the hybrid. The race takes an hour or more: how soon our default CNN is as good as a tutorial's gets
in 20 epochs.
"""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
from threadpoolctl import threadpool_limits

import data
from support import runs
from support import settings

# ---- settings: edit here, or override any of them on the command line (--rounds 9) ----
ROUNDS = 7  # epochs of each side, taking turns, of which the median counts, in [1, inf)
TABLE_ROUNDS = 3  # the same, for the tables over batch sizes and widths; 0 leaves them out; in [0, inf)
THREADS = 2  # of every side, in [1, inf)
IMAGES = 4_096  # that a round of the CNN and of the hybrid trains on, in [1000, 48000]
ALONE = "none"  # mlp: one epoch of this side, and its memory: {none, ours, torch_fused, torch_tutorial, scikit_learn}
OUTPUT_DIR = "runs/benchmark"  # where the results go, in place of those of an earlier time
# ----

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before PyTorch is loaded: its profiler has nothing to say here

HIDDEN, BATCH_SIZE = (256, 128), 128
TARGETS = {"torch_fused": 0.75, "torch_tutorial": 0.42, "scikit_learn": 0.50, "matmul_only": 1.3}
R0 = {"channels": (32, 64, 128, 256, 512), "pool_after": (1, 2, 5), "batch_norm": False, "learning_rate": 0.02}
CNN_TARGETS = {"tutorial": 3.0, "outside": 0.10}  # of the convolutions' own forward and backward passes
NAMES = {"ours": "this project", "torch_fused": "PyTorch, resident tensors, fused Adam",
         "torch_tutorial": "PyTorch, DataLoader and Adam", "scikit_learn": "scikit-learn MLPClassifier",
         "matmul_only": "the matrix products alone", "tutorial": "PyTorch, DataLoader, Adam, batches of 64",
         "torch_reference": "the same, its MLP in PyTorch, fused Adam"}  # fmt: skip


# Each side is a function of (X (N, 784) float32, y (N,), hidden, batch size) that prepares a training with Adam at 0.001 and
# returns (a function that trains one epoch, a function that predicts the classes of X). They load their packages themselves.


def ours(X, y, hidden, batch_size):
    import mlp_from_scratch as mlp

    s = settings.load(mlp, **mlp.BASELINE, hidden=hidden, batch_size=batch_size, epochs=1)
    training = mlp.Trainer(*mlp.build(X.shape[1], 10, s), s, len(X))
    training.rates = [0.001] * training.steps
    return lambda: training.train_epoch(X, y), lambda: training.model.predict_logits(X).argmax(axis=1)


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


def matmul_only(X, y, hidden, batch_size):
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


IMPLEMENTATIONS = {side.__name__: side for side in (ours, torch_fused, torch_tutorial, scikit_learn, matmul_only)}


def interleave(calls, rounds):
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
    made = {name: IMPLEMENTATIONS[name](X, y, hidden, batch_size) for name in sides}
    training = interleave({name: epoch for name, (epoch, _) in made.items()}, rounds)
    return training, interleave({name: predict for name, (_, predict) in made.items() if predict}, rounds)


def cold_start(name, s):
    """{"seconds": from the start of a process of its own to its first epoch's end, "peak_memory_mib": its peak memory}."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "mlp", "--alone", name, "--threads", str(s.threads), "--data-dir", s.data_dir,
               "--dataset", s.dataset, "--split-seed", str(s.split_seed)]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if result.returncode:
        raise files.RunError(f"{name}, alone: {result.stderr.strip()}")
    return {"seconds": seconds, "peak_memory_mib": json.loads(result.stdout)}


def pixels(s):
    """The training images (N, 784) and labels (N,), all of them in memory, and the dataset's name."""
    images = data.load(s.dataset, s.data_dir, s.offline_fallback, s.split_seed)
    return np.ascontiguousarray(images.train.X.reshape(len(images.train.X), -1)), images.train.y, images.name


def mlp(s):
    """The NumPy MLP. Returns what goes into mlp.json."""
    X, y, dataset = pixels(s)
    training, prediction = compare(X, y, IMPLEMENTATIONS, s.rounds)
    found = ratios(training)
    print(f"{dataset}: 784-256-128-10, batch {BATCH_SIZE}, {len(X):,} images, {s.threads} threads, {s.rounds} rounds\n")
    print(f"{'':<40}{'s per epoch':>12}{'ours / theirs':>15}{'target':>9}{'images/s predicted':>20}")
    for name, seconds in training.items():
        ratio = f"{found[name]:15.2f}{TARGETS[name]:9.2f}" if name in found else " " * 24
        rate = f"{len(X) / median(prediction[name]):20,.0f}" if name in prediction else ""
        print(f"{NAMES[name]:<40}{median(seconds):12.3f}{ratio}{rate}", flush=True)

    tables = {"batch_size": {}, "hidden": {}}
    if s.table_rounds:
        print(f"\n{'':<24}{'s per epoch':>12}   ours / torch, fused   ours / products")
        cases = [("batch_size", n) for n in (32, 64, 128, 256, 512, 1024)]
        cases += [("hidden", h) for h in ((128, 64), (256, 128), (1024, 1024))]
        for what, value in cases:
            seconds, _ = compare(X, y, ("ours", "torch_fused", "matmul_only"), s.table_rounds, **{what: value})
            label = f"batch {value}" if what == "batch_size" else f"784-{'-'.join(map(str, value))}-10"
            row = {"seconds": median(seconds["ours"]), **{f"against_{name}": r for name, r in ratios(seconds).items()}}
            tables[what][label] = row
            against = f"{row['against_torch_fused']:22.2f}{row['against_products']:18.2f}"
            print(f"{label:<24}{row['seconds']:12.3f}{against}", flush=True)

    single = {name: [cold_start(name, s) for _ in range(3)] for name in IMPLEMENTATIONS if name != "matmul_only"}
    single = {name: {"seconds": median(one["seconds"] for one in three), "peak_memory_mib": three[0]["peak_memory_mib"]}
              for name, three in single.items()}  # fmt: skip
    print(f"\n{'in a process of its own':<40}{'peak memory':>12}{'Enter to the first epoch finished':>36}")
    for name, one in single.items():
        memory = f"{one['mebibytes']:8.0f} MiB" if one["peak_memory_mib"] else f"{'?':>12}"
        print(f"{NAMES[name]:<40}{memory}{one['seconds']:34.1f} s")
    throughput = {name: len(X) / median(seconds) for name, seconds in prediction.items()}
    return {"network": "784-256-128-10", "dataset": dataset, "batch_size": BATCH_SIZE, "images": len(X),
            "threads": s.threads, "seconds_per_epoch": training, "ratios": found, "targets": TARGETS,
            "images_per_second_predicted": throughput, "tables": tables, "alone": single}  # fmt: skip


# ---- the CNN and the hybrid


def ours_cnn(X, y, s, head=None):
    """(the training of the network with the settings `s` of cnn_feature_extraction.py, a function that trains one epoch).

    head: what makes, of the number of features, the module that takes the place of the classifier.
    """
    import torch

    from torch_cnn import backbone
    import cnn_feature_extraction as cnn

    model = backbone.build(s, mean=0.286, std=0.353, generator=torch.Generator().manual_seed(0))
    if head:
        model.classifier = head(model.classifier.in_features)
    model = model.to(memory_format=torch.channels_last)
    training = cnn.Trainer(model, s, getattr(torch, s.precision), model.classifier if head else None)
    return training, lambda: training.train_epoch(X, y)


def resolve_precision(s):
    """The settings `s` with the precision that its "auto" comes to here, for all sides of a comparison."""
    import torch

    from torch_cnn import backbone
    import cnn_feature_extraction as cnn

    model = backbone.build(s).to(memory_format=torch.channels_last)
    s.precision = str(cnn.pick_precision(s.precision, model, torch.device("cpu"))).removeprefix("torch.")
    return s


def tutorial_cnn(X, y, X_val, y_val):
    """R0's network as a tutorial trains it. Returns a function that trains one epoch, and one for validation accuracy.

    float32, images channels first, through a DataLoader that transforms one PIL image after the other, batch 64, Adam.
    X (N, 28, 28) uint8.
    """
    import torch
    from PIL import Image
    from torch import nn
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    class Images(Dataset):  # as torchvision.datasets.FashionMNIST has it
        def __init__(self, X, y, transform):
            self.X, self.y, self.transform = X, y, transform

        def __len__(self):
            return len(self.y)

        def __getitem__(self, i):
            return self.transform(Image.fromarray(self.X[i], mode="L")), int(self.y[i])

    plain = [transforms.ToTensor(), transforms.Normalize(0.286, 0.353)]
    shown = transforms.Compose([transforms.RandomCrop(28, padding=1), transforms.RandomHorizontalFlip(), *plain])
    loader = DataLoader(Images(X, y, shown), 64, shuffle=True)
    validation = DataLoader(Images(X_val, y_val, transforms.Compose(plain)), 64)
    layers, n_in = [], 1
    for number, n_out in enumerate(R0["channels"], 1):
        layers += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if number in R0["pool_after"] else []
        n_in = n_out
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512 * 9, 10))
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


# The events by which PyTorch's profiler tells a layer's forward and backward passes, none of them inside another one
CONVOLUTIONS = ("aten::convolution", "ConvolutionBackward0")
PASSES = {
    "convolutions": CONVOLUTIONS,
    "layers": (*CONVOLUTIONS, "aten::max_pool2d", "MaxPool2DWithIndicesBackward0", "aten::batch_norm",
               "NativeBatchNormBackward0", "aten::relu", "ReluBackward0", "aten::addmm", "AddmmBackward0"),
}  # fmt: skip


def profile_epoch(epoch):
    """(seconds of the call epoch(), {"convolutions": share of them in their passes, "layers": in those of all layers})."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        start = time.perf_counter()
        epoch()
        seconds = time.perf_counter() - start
    spent = {event.key.split(": ")[-1]: event.cpu_time_total / 1e6 for event in seen.key_averages()
             if not event.key.endswith("Backward0") or "evaluate_function" in event.key}  # fmt: skip
    return seconds, {of: sum(spent.get(name, 0) for name in names) / seconds for of, names in PASSES.items()}


def race(s):
    """Our default training and a tutorial's, taking turns by epochs: seconds until validation accuracy is as good.

    Returns what goes into race.json.
    """
    import torch

    import cnn_feature_extraction as script

    images, own = data.load(s.dataset, s.data_dir, s.offline_fallback, s.split_seed), resolve_precision(settings.load(script))
    X, y, X_val, y_val = (torch.from_numpy(a) for of in (images.train, images.val) for a in (of.X[:, None], of.y))
    training, _ = ours_cnn(X, y, own)
    torch.manual_seed(0)
    pixels = [np.round(255 * of.X).astype(np.uint8) for of in (images.train, images.val)]
    epoch, accuracy = tutorial_cnn(pixels[0], images.train.y, pixels[1], images.val.y)
    rows = {"ours": [], "tutorial": []}

    def log(name, seconds, right):
        rows[name].append((sum(last for last, _ in rows[name][-1:]) + seconds, right))
        print(f"{NAMES[name]:<40} epoch {len(rows[name]):2}, {rows[name][-1][0]:6.0f} s, {right:.2%}", flush=True)

    def tutorials_turn():
        for _ in range(round(20 * len(training.history["epoch"]) / own.epochs) - len(rows["tutorial"])):
            start = time.perf_counter()
            epoch()
            right = accuracy()
            log("tutorial", time.perf_counter() - start, right)  # with validation, as ours

    training.run(X, y, X_val, y_val, lambda row: log("ours", row["seconds"], row["val_accuracy"]), tutorials_turn)
    best = max(right for _, right in rows["tutorial"])
    first = {name: next((seconds for seconds, right in rows[name] if right >= best), None) for name in rows}
    ratio = first["ours"] / first["tutorial"] if first["ours"] else None
    print(f"the tutorial's best, {best:.2%}, is reached after {first['tutorial']:.0f} s; by our defaults "
          + (f"after {first['ours']:.0f} s: {ratio:.2f} of that, target 0.2 at most" if ratio else "never"))  # fmt: skip
    return {"dataset": images.name, "threads": s.threads, "precision": own.precision, "rows": rows, "accuracy": best,
            "seconds": first, "ratio": ratio, "target": 0.2}  # fmt: skip


def cnn(s):
    """The CNN. Returns what goes into cnn.json."""
    import torch

    import cnn_feature_extraction as script

    images = data.load(s.dataset, s.data_dir, s.offline_fallback, s.split_seed)
    defaults, r0 = resolve_precision(settings.load(script)), resolve_precision(settings.load(script, **R0))
    whole = min(s.images, len(images.train.y)) // defaults.batch_size * defaults.batch_size
    X, y = images.train.X[:whole], images.train.y[:whole]
    tensors = torch.from_numpy(X[:, None]), torch.from_numpy(y)
    epoch, _ = tutorial_cnn(np.round(255 * X).astype(np.uint8), y, X, y)
    _, own = ours_cnn(*tensors, r0)
    seconds = interleave({"ours": own, "tutorial": epoch}, s.rounds)
    faster = 1 / ratios(seconds)["tutorial"]
    print(f"{images.name}: R0's network {'-'.join(map(str, R0['channels']))}, {len(X):,} images a round, "
          f"{s.threads} threads, {s.rounds} rounds, ours in {r0.precision} and batches of {r0.batch_size}\n")  # fmt: skip
    print(f"{'':<42}{'images/s':>10}{'times as fast':>15}{'target':>9}")
    for name, found in seconds.items():
        ratio = f"{faster:14.2f}x{CNN_TARGETS['tutorial']:8.1f}x" if name == "tutorial" else ""
        print(f"{NAMES[name]:<42}{len(X) / median(found):10,.0f}{ratio}", flush=True)

    _, own = ours_cnn(*tensors, defaults)
    epochs = [profile_epoch(own) for _ in range(s.rounds + 1)][1:]
    share = {of: median(shares[of] for _, shares in epochs) for of in PASSES}
    name = "-".join(map(str, defaults.channels))
    rate = len(X) / median(took for took, _ in epochs)
    print(f"\ntraining of the default network {name}, {rate:,.0f} images/s, as PyTorch's profiler sees it\n"
          f"{'its convolutions, forward and backward':<60}{share['convolutions']:6.1%}   target: "
          f"{1 - CNN_TARGETS['outside']:.0%} at least\n"
          f"{'all its layers, with normalisation, pooling, activation':<60}{share['layers']:6.1%}\n"
          f"{'the rest: augmentation, loss, optimiser, average':<60}{1 - share['layers']:6.1%}", flush=True)  # fmt: skip
    return {"network": "-".join(map(str, R0["channels"])), "images": len(X), "threads": s.threads, "seconds": seconds,
            "dataset": images.name, "precision": r0.precision, "default_precision": defaults.precision,
            "faster": {"tutorial": faster}, "targets": CNN_TARGETS,
            "default_network": name, "default_seconds": [took for took, _ in epochs],
            "shares": {**share, "outside": 1 - share["layers"]}}  # fmt: skip


def hybrid(s):
    """What the bridge costs: joint training beside its twin all in PyTorch. Returns what goes into hybrid.json."""
    import torch
    from torch import nn

    import cnn_feature_extraction as script
    import hybrid_train

    images = data.load(s.dataset, s.data_dir, s.offline_fallback, s.split_seed)
    tensors = torch.from_numpy(images.train.X[: s.images, None]), torch.from_numpy(images.train.y[: s.images])
    own = resolve_precision(settings.load(hybrid_train, script))
    widths = *own.head_hidden, len(images.classes)

    class TorchReference(nn.Sequential):
        def __init__(self, features):
            sizes = itertools.pairwise((features, *widths))
            super().__init__(*[part for n, m in sizes for part in (nn.Linear(n, m), nn.ReLU())][:-1])
            self.optimizer = torch.optim.Adam(self.parameters(), fused=True)

        def step(self, share):
            self.optimizer.param_groups[0]["lr"] = own.joint_learning_rate * share
            self.optimizer.step()
            self.optimizer.zero_grad()

    joint = ours_cnn(*tensors, own, lambda features: hybrid_train.build_head(images, own))[1]

    def ours():  # as hybrid_train.py does it
        with hybrid_train.single_blas_thread():
            joint()

    calls = {"ours": ours, "torch_reference": ours_cnn(*tensors, own, TorchReference)[1]}
    seconds = interleave(calls, s.rounds)
    ratio = ratios(seconds)["torch_reference"]
    network = f"{'-'.join(map(str, own.channels))} + {'-'.join(map(str, widths))}"
    print(f"{images.name}: CNN and MLP {network} as one network, {len(tensors[1]):,} images a round, "
          f"{s.threads} threads, {s.rounds} rounds\n\n{'':<40}{'images/s':>10}")  # fmt: skip
    for name, found in seconds.items():
        print(f"{NAMES[name]:<40}{len(tensors[1]) / median(found):10,.0f}")
    print(f"\nthe MLP in NumPy makes the step {ratio - 1:+.1%} longer than the same in PyTorch; target: +5 % at most")
    return {"network": network, "dataset": images.name, "images": len(tensors[1]), "threads": s.threads,
            "precision": own.precision, "seconds": seconds, "ratios": {"torch_reference": ratio}, "targets": {"torch_reference": 1.05}}  # fmt: skip


PARTS = {"mlp": mlp, "cnn": cnn, "hybrid": hybrid, "race": race}


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
            epoch, _ = IMPLEMENTATIONS[s.alone](*pixels(s)[:2], HIDDEN, BATCH_SIZE)
            epoch()
        print(json.dumps(runs.peak_memory()))
        return
    limit_torch("torch", s.threads)
    import plots

    folder = Path(s.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)  # before an hour's work
    except OSError as error:
        raise files.RunError(f"cannot write to {folder}: {error.strerror}; choose another --output-dir") from None
    with threadpool_limits(s.threads):
        measured = PARTS[part](s)
    found = measured | {"command": runs.command_line(), **runs.environment()}
    with files.atomic_write(folder / f"{part}.json") as path:
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    draw = {"mlp": plots.mlp_speed, "cnn": plots.cnn_speed, "race": plots.race}.get(part)  # the hybrid is but one number
    if draw:
        with files.atomic_write(folder / f"{part}.png") as path:
            draw(found, NAMES).savefig(path)
    print(f"\n{folder / part}.json" + (f", {folder / part}.png" if draw else ""))


if __name__ == "__main__":
    runs.cli(main)
