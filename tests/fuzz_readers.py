"""Damaged files, at random, for every reader of this project: a refusal in one line, or a usable content; nothing else.

    python -m tests.fuzz_readers --inputs 100000

Half of the inputs are valid files with changed bytes. The other half are written again, digests and checksums included,
with values that make no sense; a checkpoint or network that is accepted must work. It ends with exit code 1, and keeps the
file, if a reader lets another exception through, takes more than LIMIT seconds, or needs more than MEMORY MiB.
"""

import argparse
import contextlib
import functools
import gzip
import io
import json
import random
import re
import shutil
import tempfile
import time
import traceback
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
from tqdm import tqdm

import cnn_feature_extraction as cnn
import data
import hybrid_train
import mlp_from_scratch as mlp
import plots
from support import dataset_files, files, runs, settings
from torch_cnn import backbone, features

LIMIT = 10  # seconds; a reader takes milliseconds
MEMORY = 500  # MiB that the readers may need at most; their files are below a megabyte
REFUSED = (files.FileError, dataset_files.DataError, settings.SettingError, runs.Diverged)
NONSENSE = [None, True, -1, 0, 1, 2**63, 10**30, -(10**400), 0.5, -1e308, float("inf"), float("nan"), "", "x", "0" * 5000,
            "a\0b", [], [None], [[]], [1, "x"], {}, {"a": 1}]  # fmt: skip
TOKENS = [b"0", b"-1", b"1e999", b"NaN", b"null", b"[", b"{", b"}", b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"9" * 30,
          b"[" * 3000, b"\\u0000", b"Infinity", b"true", b"float32", b"F64", b"shape", b"<f4", b"|O"]  # fmt: skip


# ---- damage


def changed_bytes(content, rng):
    """`content` with one to five changes: bytes flipped, cut out, doubled or inserted, numbers replaced, the end cut off."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        start = rng.randrange(len(content) + 1)
        if rng.random() < 0.3:  # in the header or the directory at the end
            start = min(len(content), rng.choice((start % 300, max(0, len(content) - start % 300))))
        end = start + rng.choice((1, 1, 2, 8, 100))
        change = rng.randrange(7)
        if change == 0 and start < len(content):
            content[start] ^= 1 << rng.randrange(8)
        elif change == 1:
            content[start:end] = rng.randbytes(end - start)
        elif change == 2:
            del content[start:end]
        elif change == 3:
            content[start:start] = content[start:end]
        elif change == 4:
            content[start:start] = rng.choice(TOKENS)
        elif change == 5 and (numbers := list(re.finditer(rb"\d+", content[start : start + 300]))):
            first, last = rng.choice(numbers).span()
            content[start + first : start + last] = rng.choice((b"0", b"-1", b"100000000000", b"1e999", b"x"))
        elif change == 6 and rng.random() < 0.2:
            del content[start:]
    return bytes(content)


def changed_json(value, rng):
    """A copy of a JSON value in which one value, anywhere, is replaced, removed or added."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        value, name = dict(value), rng.choice(list(value))
        if rng.random() < 0.1:
            value[rng.choice(("x", name + "s"))] = value.pop(name)
        elif rng.random() < 0.1:
            del value[name]
        else:
            value[name] = changed_json(value[name], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.7:
        value, index = list(value), rng.randrange(len(value))
        if rng.random() < 0.2:
            del value[index]
        elif rng.random() < 0.2:
            value *= 2
        else:
            value[index] = changed_json(value[index], rng)
        return value
    if isinstance(value, int | float) and rng.random() < 0.4:
        return rng.choice((value + 1, -value, value * 2, value * 10**12, float(value), str(value)))
    return rng.choice(NONSENSE)


def changed_array(array, rng):
    """An array of another shape, type or content."""
    change = rng.randrange(5)
    if change == 0:
        return array.astype(rng.choice((np.float64, np.int32, np.uint8, np.float16)))
    if change == 1:
        return array.reshape(-1)[: rng.randrange(array.size + 1)]
    if change == 2:
        return np.zeros(rng.choice(((), (0,), (1,), (0, 10**9), array.shape[::-1], (*array.shape, 1))), array.dtype)
    if change == 3:
        return np.full_like(array, rng.choice((0, 1, -1, 127)))
    return np.full_like(array, np.nan if array.dtype.kind == "f" else -1)


def changed_weights(content, rng):
    """A weights file or checkpoint with other metadata or arrays, and the digest that belongs to them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "w")
        path.write_bytes(content)
        tensors, metadata = files.load_weights(path)
        name = rng.choice(list(tensors))
        change = rng.randrange(8)
        if change == 0:
            tensors[name] = changed_array(tensors[name], rng)
        elif change == 1:
            tensors["x"] = tensors.pop(name)
        else:
            metadata = changed_json(metadata, rng)
        files.save_weights(path, tensors, metadata)
        return path.read_bytes()


def changed_npz(content, rng):
    """A zip file of arrays in which one is another, or is declared another, with the right checksums."""
    archive, output = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    if name != "made_from.npy" and rng.random() < 0.5:
        array, buffer = changed_array(np.load(io.BytesIO(members[name])), rng), io.BytesIO()
        np.save(buffer, array)
        members[name] = buffer.getvalue()
    else:
        members[name] = changed_bytes(members[name][:128], rng) + members[name][128:]
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(output, "w", method) as changed:
        for name, value in members.items():
            changed.writestr(name, value)
    return output.getvalue()


def changed_json_file(content, rng):
    return json.dumps(changed_json(json.loads(content), rng)).encode()


def changed_csv(content, rng):
    """Another cell."""
    rows = [line.split(",") for line in content.decode().splitlines()]
    cells = ("", "nan", "-1", "256", "1e999", "0x1", "1.5", "\N{ARABIC-INDIC DIGIT THREE}", " 7 ", "\0", "#", '"')
    row = rng.choice(rows)
    row[rng.randrange(len(row))] = rng.choice(cells)
    return "\n".join(map(",".join, rows)).encode()


# ---- readers


def small_images():
    rng = np.random.default_rng(0)
    splits = [data.Split(rng.random((n, 28, 28), np.float32), np.arange(n) % 10, np.arange(n)) for n in (24, 10, 10)]
    return data.Dataset("noise", tuple("0123456789"), *splits)


def table_readers():
    """{name: (valid content, function that changes its meaning or None, file name, reader of a path)}: tables and JSON."""
    name, pixels = "t10k-labels-idx1-ubyte", [f"pixel{i}" for i in range(1, 785)]
    labels = bytes([0, 0, 8, 1, 0, 0, 0, 100]) + bytes(range(10)) * 10
    table = [",".join(["label", *pixels])] + [",".join([str(row), *("0" for _ in pixels)]) for row in range(3)]
    history = [",".join(runs.COLUMNS), "1,0.5,0.5,0.5,0.5,0.5,0.5,0.1,1.5", "2,0.5,0.5,0.5,0.5,0.5,0.5,0.1,1.5"]
    metrics = {"val_accuracy": 0.5, "test_accuracy": 0.25, "dataset": "digits", "model": "m", "command": "c", "seconds": 1.5,
               "peak_memory_mib": 3.5, "train_size": 3, "settings": {"seed": 0, "hidden": [1]}}  # fmt: skip

    def read_idx(path):
        dataset_files.read_idx(path, name, (100,))

    def read_metrics(path):
        if loaded := runs.finished_metrics(path):
            json.dumps(runs.summarize([metrics, loaded]), allow_nan=False)

    return {
        "IDX": (labels, None, name, read_idx),
        "IDX, gzipped": (gzip.compress(labels), None, f"{name}.gz", read_idx),
        "CSV": ("\n".join(table).encode(), changed_csv, "t.csv", lambda path: dataset_files.read_csv(path, "train", 3)),
        "settings.json": (json.dumps(vars(settings.load(mlp, data, runs))).encode(), changed_json_file, "settings.json",
                          lambda path: settings.parse(mlp, data, runs, argv=["--resume", str(path.parent)])),
        "metrics.json": (json.dumps(metrics).encode(), changed_json_file, "metrics.json", read_metrics),
        "history.csv": ("\n".join(history).encode(), changed_csv, "history.csv", plots.read_history),
    }  # fmt: skip


def network_readers(folder):
    """The same of weights, checkpoints and features, whose valid contents are written in `folder`."""
    images = small_images()
    s = settings.load(mlp, data, runs, hidden=(5,), epochs=2, batch_size=8, patience=5, schedule="plateau", norm="batch")
    cnn_s = settings.load(cnn, data, runs, channels=(2, 3), pool_after=(1, 2), epochs=2, batch_size=8, device="cpu",
                          precision="float32")  # fmt: skip
    model, head = backbone.build(cnn_s), mlp.MLP((3 * 7 * 7, 4, 10))
    joint = backbone.build(cnn_s)
    joint.classifier = hybrid_train.NumpyHead(head, 0.0, 0.1, 1.0)
    layout, made_from = features.cache_layout(model, images), {"weights": "w", "format": 2}
    network = {"dataset": "d", "classes": images.classes, "mean": 0.5, "std": 0.5}

    def content(save, *arguments):
        save(folder / "valid", *arguments)
        return (folder / "valid").read_bytes()

    def predict(path):
        network = mlp.restore(path)[0]
        network.predict_logits(np.zeros((2, network.config["sizes"][0]), np.float32))

    def read_cache(path):
        loaded, _ = features.load_cache(path, made_from, layout)
        assert not loaded or {name: (array.shape, array.dtype) for name, array in loaded.items()} == layout

    return {
        "MLP": (content(mlp.save, head, network), changed_weights, "weights", predict),
        "CNN": (content(backbone.save, model, images, cnn_s), changed_weights, "weights",
                lambda path: features.predict_logits(backbone.restore(path)[0], images.val.X)),
        "hybrid": (content(hybrid_train.save, joint, images, cnn_s), changed_weights, "weights",
                   lambda path: features.predict_logits(hybrid_train.restore(path)[0], images.val.X)),
        "features": (content(features.save_cache, {name: np.zeros(*spec) for name, spec in layout.items()}, made_from),
                     changed_npz, "features.npz", read_cache),
        "checkpoint, MLP": checkpoint_reader(lambda s: mlp_trainer(images, s), s, content, images, (-1, 784)),
        "checkpoint, CNN": checkpoint_reader(lambda s: cnn.make_trainer(images, s), cnn_s, content, images, (-1, 1, 28, 28)),
    }  # fmt: skip


def mlp_trainer(images, s):
    trainer = mlp.Trainer(*mlp.build(784, 10, s), s, len(images.train.y))
    trainer.monitor = mlp.TrainingMonitor(trainer.model, images.val.X.reshape(-1, 784), s)
    return trainer


def checkpoint_reader(make_trainer, s, content, images, shape):
    """The entry of a checkpoint after the first of two epochs; one that is accepted is trained to the end."""

    def fit(trainer, save_checkpoint=lambda: None):
        arrays = images.train.X.reshape(shape), images.train.y, images.val.X.reshape(shape), images.val.y
        if len(shape) == 4:
            arrays = map(torch.from_numpy, arrays)
        trainer.fit(*arrays, save_checkpoint=save_checkpoint)

    def save(path):
        def save_first():
            if len(trainer.history["epoch"]) == 1:
                tensors, metadata = trainer.state_dict()
                metadata |= {"model": "checkpoint", "settings": runs.training_settings(vars(s)), "split": "split"}
                files.save_weights(path, tensors, metadata)

        trainer = make_trainer(s)
        fit(trainer, save_first)

    def read(path):
        trainer = make_trainer(s)
        runs.load_checkpoint(trainer, SimpleNamespace(**vars(s) | {"resume": str(path.parent)}), "split")
        fit(trainer)

    return content(save), changed_weights, runs.CHECKPOINT, read


# ---- the loop


def escape(reader, path):
    """What is wrong with how a reader takes the file `path`; "" if it is accepted, None if it is refused in one line."""
    output, start = io.StringIO(), time.monotonic()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(io.StringIO()):
            reader(path)
        answer = ""
    except REFUSED as error:
        answer = None if "\n" not in str(error) else f"more than one line: {error}"
    except SystemExit as error:
        answer = None if error.code == 2 and output.getvalue().count("\n") == 1 else f"{error.code}: {output.getvalue()}"
    except KeyboardInterrupt:
        raise
    except BaseException:  # such as a PanicException of Rust
        answer = traceback.format_exc()
    seconds = time.monotonic() - start
    return answer if seconds < LIMIT else f"{seconds:.0f} s"


@contextlib.contextmanager
def memory_limit():
    """So that a blow-up does not take the machine with it: 8 GiB more than now, where the system can limit it."""
    try:
        import resource
    except ImportError:  # on Windows
        yield
        return
    status, limits = Path("/proc/self/status"), resource.getrlimit(resource.RLIMIT_AS)
    if status.exists():
        size = int(re.search(r"VmSize:\s*(\d+)", status.read_text())[1]) * 2**10
        resource.setrlimit(resource.RLIMIT_AS, (size + 2**33, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def fuzz(inputs, seed, folder, only=""):
    """Try `inputs` files, in `folder`, in turn for all readers, or those whose name contains `only`: the failures' texts."""
    constants = functools.cache(settings.constants)  # which reads the scripts' source each time
    failures, counts = [], {}
    with memory_limit(), warnings.catch_warnings(action="ignore"), patch.object(settings, "constants", constants):
        with contextlib.redirect_stdout(io.StringIO()):
            readers = {name: reader for name, reader in (table_readers() | network_readers(folder)).items() if only in name}
        for name, (content, _, file_name, reader) in readers.items():
            (folder / file_name).write_bytes(content)
            valid = escape(reader, folder / file_name)
            assert valid == "" or name.startswith(("IDX", "CSV")), f"{name}: {valid}"  # which know one content alone
        memory = runs.peak_memory() or 0
        for number in tqdm(range(inputs), disable=None, unit="file"):
            rng = random.Random(f"{seed} {number}")
            name = list(readers)[number % len(readers)]
            content, change, file_name, reader = readers[name]
            content = change(content, rng) if change and rng.random() < 0.5 else changed_bytes(content, rng)
            (folder / file_name).write_bytes(content)
            answer = escape(reader, folder / file_name)
            peak = runs.peak_memory() or 0
            if not answer and peak - memory > MEMORY:
                answer, memory = f"{peak - memory:.0f} MiB of memory", peak
            counts[name] = np.add(counts.get(name, 0), (answer is None, answer == ""))
            if answer:
                kept = folder / f"failure_{number}_{file_name}"
                kept.write_bytes(content)
                failures.append(f"{name}, input {number}, now {kept}:\n{answer}")
    for name, (refused, accepted) in counts.items():
        print(f"{name:<18}{refused:8,} refused{accepted:8,} accepted")
    return failures


def main(argv=None):
    parser = argparse.ArgumentParser(description="Damaged files, at random, for every reader of this project.")
    parser.add_argument("--inputs", type=int, default=100_000, help="number of files")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other files")
    parser.add_argument("--only", default="", help="only readers whose name contains this")
    s = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="fuzz_readers_"))
    failures = fuzz(s.inputs, s.seed, folder, s.only)
    print("\n".join([*failures[:20], f"{s.inputs:,} inputs, {len(failures):,} failures"]))
    if failures:
        raise SystemExit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
