"""Timing on a shared machine: interleaved rounds, ratios with their spread, cold starts. Names and targets.

A ratio is "ours / theirs". It is taken within each round, since implementations that run one after the other see the same
load from other processes; the median over the rounds is the result, the lowest and the highest round are its spread.
"""

if __name__ == "__main__":
    raise SystemExit("benchmarks/timing.py is a module, not a script: benchmark.py uses it")

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import data
from support import settings

SCRIPT = Path(__file__).resolve().parent.parent / "benchmark.py"
NAMES = {"ours": "this project", "torch_fused": "PyTorch, resident tensors, fused Adam",
         "torch_tutorial": "PyTorch, DataLoader and Adam", "scikit_learn": "scikit-learn MLPClassifier",
         "matmul_only": "matrix products alone", "tutorial": "PyTorch, DataLoader, Adam, batch size 64",
         "torch_reference": "the same with the MLP in PyTorch, fused Adam"}  # fmt: skip
# Time of ours / theirs, at most
TARGETS = {"torch_fused": 0.75, "torch_tutorial": 0.42, "scikit_learn": 0.50, "torch_reference": 1.05}


def load_images(s):
    """The Dataset of the settings `s`. Raises settings.SettingError for one that the networks here do not fit."""
    images = data.load_for(s)
    if images.image_shape != (28, 28) or len(images.classes) != 10:
        size = " x ".join(map(str, images.image_shape))
        raise settings.SettingError(f"--dataset {s.dataset}: {len(images.classes)} classes of {size} pixels; the networks "
                                    "of the benchmark are for 10 classes of 28 x 28")  # fmt: skip
    return images


class BenchmarkError(Exception):
    """A measurement that failed."""

    exit_code = 1


def interleave(calls, rounds):
    """{name: [seconds of each round]} of {name: function}, called in turn, after a warm-up round that is not counted."""
    seconds = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def round_ratios(seconds):
    """{name: [ours / theirs in each round]} of what `interleave` returned."""
    return {name: [a / b for a, b in zip(seconds["ours"], theirs, strict=True)]
            for name, theirs in seconds.items() if name != "ours"}  # fmt: skip


def ratios(seconds):
    """{name: median over the rounds of ours / theirs}"""
    return {name: median(values) for name, values in round_ratios(seconds).items()}


def spread(seconds):
    """{name: [lowest, highest]} of ours / theirs over the rounds."""
    return {name: [min(values), max(values)] for name, values in round_ratios(seconds).items()}


def with_spread(value, low_high, form=".2f"):
    """0.79 (0.72 to 0.94)"""
    return f"{value:{form}} ({low_high[0]:{form}} to {low_high[1]:{form}})"


def cold_start(name, s, repeats):
    """Time from the start of a new process to the end of its first epoch, and the process's peak memory.

    Return {"seconds": median over the repeats, "spread": [lowest, highest], "peak_memory_mib": highest, or None where the
    system does not report it}. name: one of mlp.IMPLEMENTATIONS.
    """
    command = [sys.executable, str(SCRIPT), "mlp", "--cold-start", name, "--threads", str(s.threads),
               "--split-seed", str(s.split_seed), "--val-fraction", str(s.val_fraction),
               "--dataset", s.dataset, "--data-dir", s.data_dir]  # fmt: skip
    command += ["--quick"] * s.quick
    seconds, memory = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - start)
        if result.returncode:
            raise BenchmarkError(f"--cold-start {name}: {(result.stderr.strip().splitlines() or ['failed'])[-1]}")
        memory.append(json.loads(result.stdout))
    peak = max(memory) if all(memory) else None
    return {"seconds": median(seconds), "spread": [min(seconds), max(seconds)], "peak_memory_mib": peak}


def limit_torch_threads(threads):
    """PyTorch has a thread pool of its own, which threadpoolctl cannot limit before PyTorch is loaded."""
    import torch

    torch.set_num_threads(threads)
