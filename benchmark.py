"""Speed and memory of training compared with PyTorch and scikit-learn: benchmark.py mlp, cnn, hybrid or race.

    python benchmark.py mlp       the NumPy MLP and PyTorch, scikit-learn, the matrix products alone; memory and start
    python benchmark.py cnn       the CNN and a tutorial's training loop; where the time goes
    python benchmark.py hybrid    joint training with the MLP in NumPy and with the MLP in PyTorch
    python benchmark.py race      time to accuracy: the default CNN and a tutorial's, trained in turn; an hour or more

Absolute times depend on the machine and its load. Compare the ratios: the implementations run in turn in one process. Writes
mlp.json and so on, and a figure of each but the hybrid, to runs/benchmark.
"""

from support import entry

if __name__ == "__main__":  # before the slow imports: Ctrl-C
    entry.prepare()

import difflib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

from threadpoolctl import threadpool_limits

import data
from benchmarks import mlp, timing
from support import files, runs, settings

# ---- settings: edit here, or override any of them on the command line (--rounds 9) ----
# -- benchmark
ROUNDS = 7  # measured epochs of each implementation, whose median counts; not with --quick; in [1, 1000]
TABLE_ROUNDS = 3  # mlp: the same for the tables of batch sizes and widths; 0 omits the tables; in [0, 1000]
THREADS = 2  # threads of each implementation, in [1, 1024]
IMAGES = 4_096  # cnn and hybrid: training images in each round; not with --quick; in [1000, 48000]
COLD_START = "none"  # mlp: only train this implementation for one epoch and print the peak memory in MiB:
                     # {none, ours, torch_fused, torch_tutorial, scikit_learn}
# -- run
OUTPUT_DIR = "runs/benchmark"  # folder of the results; earlier results in it are overwritten
QUICK = False  # smoke test of about a minute on 1,000 images; numbers are not representative
# ----

BENCHMARKS = ("mlp", "cnn", "hybrid", "race")
FLAGS_OF = {"rounds": ("mlp", "cnn", "hybrid"), "table_rounds": ("mlp",), "images": ("cnn", "hybrid"),
            "cold_start": ("mlp",)}  # the benchmarks that use them; all use the others  # fmt: skip


def quick_settings(s):
    """The settings of --quick."""
    changes = {"rounds": 1, "table_rounds": min(s.table_rounds, 1), "images": 1000}
    return SimpleNamespace(**vars(s) | changes)


def check_flags(name, given):
    """Raise settings.SettingError for a flag that the benchmark does not use. given: those on the command line."""
    for flag in sorted(given & FLAGS_OF.keys()) if name in BENCHMARKS else ():
        if name not in FLAGS_OF[flag]:
            raise settings.SettingError(f"{settings.flag(flag)}: only for benchmark.py {' and '.join(FLAGS_OF[flag])}; "
                                        "leave it out")  # fmt: skip


def measure(name, s):
    """The results of a benchmark. The CNN's are imported here, since a cold start of the NumPy MLP must not load PyTorch."""
    if name == "mlp":
        return mlp.measure_mlp(s)
    from benchmarks import cnn

    return {"cnn": cnn.measure_cnn, "hybrid": cnn.measure_hybrid, "race": cnn.time_to_accuracy}[name](s)


def draw(name, results):
    """The figure of a benchmark's results; None for the hybrid, which is a single ratio."""
    from benchmarks import figures

    functions = {"mlp": figures.mlp_speed, "cnn": figures.cnn_speed, "race": figures.time_to_accuracy}
    return functions[name](results, timing.NAMES) if name in functions else None


def save(name, results, folder):
    """Write the results and their figure; return the paths."""
    path = folder / f"{name}.json"
    files.write_text(path, json.dumps(results, indent=2) + "\n")
    figure = draw(name, results)
    if figure is None:
        return [path]
    with files.atomic_write(path.with_suffix(".png")) as temporary:
        figure.savefig(temporary)
    return [path, path.with_suffix(".png")]


def train_cold(s):
    """What the process of timing.cold_start does: one epoch; then it prints its peak memory."""
    with threadpool_limits(s.threads):
        if s.cold_start.startswith("torch"):
            timing.limit_torch_threads(s.threads)
        mlp.train_one_epoch(s.cold_start, s)
    print(json.dumps(runs.peak_memory()))


def main(argv=None):
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before PyTorch is loaded: silences its profiler
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv.pop(0) if argv and not argv[0].startswith("-") else ""
    s = settings.parse(sys.modules[__name__], data, argv=argv, check_given=lambda given, s: check_flags(name, given))
    if name not in BENCHMARKS:
        meant = settings.did_you_mean(difflib.get_close_matches(name, BENCHMARKS, 1))
        problem = f"unknown benchmark {name}{meant}" if name else "no benchmark named"
        raise settings.SettingError(f"{problem}; choose from {', '.join(BENCHMARKS)}")
    s = quick_settings(s) if s.quick else s
    if s.cold_start != "none":
        return train_cold(s)
    timing.limit_torch_threads(s.threads)
    folder = Path(s.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)  # before an hour's work
    except OSError as error:
        raise files.FileError(f"cannot write to {folder}: {error.strerror}; choose another --output-dir") from None
    with threadpool_limits(s.threads):
        results = measure(name, s)
    paths = save(name, results | {"command": runs.command_line(), **runs.environment()}, folder)
    if s.quick:
        print("\nSmoke test on a subset: the numbers are not representative. Leave out --quick for the real ones.")
    print(f"\nresults are in {' and '.join(map(str, paths))}")


if __name__ == "__main__":
    entry.cli(main)
