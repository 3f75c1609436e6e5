"""Atomic writes, the lock of a folder, and weights as safetensors files: tensors, with JSON metadata. No pickles."""

if __name__ == "__main__":
    raise SystemExit("support/files.py is a module, not a script: every script uses it")

import contextlib
import hashlib
import json
import math
import os
import sys
from pathlib import Path

import numpy as np

PARTIAL = ".partial-"  # how the name of a file that is being written begins
# What a damaged file may raise in the code that reads it, besides OSError
DAMAGED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class FileError(Exception):
    """A file or folder that cannot be used. The message names it and says what to do."""

    exit_code = 1


class WriteError(OSError):
    """A file that cannot be written, as on a full disk."""

    def __str__(self):
        return f"{self.filename}: cannot be written ({self.strerror})"


@contextlib.contextmanager
def atomic_write(path):
    """Yield a temporary path beside `path`; rename it to `path` once written, so that `path` is never half a file.

    Raises WriteError.
    """
    path = Path(path)
    temporary = path.with_name(f"{PARTIAL}{os.getpid()}.{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise WriteError(error.errno, error.strerror or str(error), str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(folder):
    """Remove what killed processes have left half-written in `folder`."""
    for path in Path(folder).glob(f"{PARTIAL}[0-9]*.*"):
        path.unlink()


@contextlib.contextmanager
def locked(folder, otherwise="name another"):
    """Lock `folder`, by a file .lock in it, so that only one run at a time writes to it.

    The system unlocks it when the process ends, even if it is killed. Raises FileError if another run has locked it, which
    says what to do otherwise, or if it cannot be written to.
    """
    path = Path(folder, ".lock")
    try:
        file = open_locked(path)
    except BlockingIOError:
        raise FileError(f"{folder}: another run is writing to this folder; wait until it ends, or {otherwise}") from None
    except OSError as error:
        raise FileError(f"cannot write to {folder}: {error.strerror}") from None
    with file:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows does not remove an open file: there it stays, unlocked
                if is_open_at(file, path):
                    path.unlink()


def open_locked(path):
    """The file `path`, created if need be, open and locked. Raises BlockingIOError if it is locked already."""
    while True:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(path.open("a"))
            lock(file)
            if is_open_at(file, path):  # the run that had locked it may have removed it just now
                stack.pop_all()
                return file


def is_open_at(file, path):
    """Whether the open file is the one that is now at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def lock(file):
    """Lock an open file until it is closed. Raises BlockingIOError if it is locked already."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the latter on Windows
        raise BlockingIOError from None
    except OSError:
        pass  # a file system without locks


def write_text(path, text):
    """Write `text` to `path` atomically, in UTF-8 with Unix line ends on every system."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def read_json(path):
    """The JSON object in the file `path`, a dict. Raises FileError, also for numbers that are not finite."""

    def number(text):
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{text} is not a finite number")
        return value

    try:
        if Path(path).stat().st_size > 100_000_000:
            raise ValueError("larger than any file of this project")
        content = json.loads(Path(path).read_text(encoding="utf-8"), parse_float=number, parse_constant=number)
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: damaged ({error})") from None
    return content


def digest(*arrays):
    """Hexadecimal BLAKE2b of the arrays' shapes, types and bytes."""
    hasher = hashlib.blake2b(digest_size=16)
    for array in arrays:
        hasher.update(f"{array.shape} {array.dtype}".encode())
        hasher.update(np.ascontiguousarray(array).data)
    return hasher.hexdigest()


def weights_digest(tensors, metadata):
    """Digest of {name: array} and of the text `metadata`, whatever the order of the names."""
    names = sorted(tensors)
    text = json.dumps([metadata, *names]).encode()
    return digest(np.frombuffer(text, np.uint8), *(tensors[name] for name in names))


def save_weights(path, tensors, metadata):
    """Write {name: array} with the dict `metadata` (JSON) and a digest of both as one safetensors file."""
    from safetensors.numpy import save

    text = json.dumps(metadata)
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(tensors, {"metadata": text, "digest": weights_digest(tensors, text)}))


def load_weights(path, kind=None):
    """({name: array}, metadata) of a file that `save_weights` wrote; files of earlier versions have no digest.

    kind: what metadata["model"] must be, such as "cnn". Raises FileError for a file that is missing, damaged, foreign or
    of another kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if set(header) not in ({"metadata"}, {"metadata", "digest"}):
            raise ValueError("without this project's metadata")
        metadata = dict(json.loads(header["metadata"]))
        if "digest" in header and header["digest"] != weights_digest(tensors, header["metadata"]):
            raise ValueError("its content is not what was written: the digest differs")
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except (OSError, SafetensorError, *DAMAGED) as error:
        raise FileError(f"{path}: not a weights file of this project, or damaged ({first_line(error)})") from None
    if kind and metadata.get("model") != kind:
        content = KINDS.get(str(metadata.get("model")), "another model")
        raise FileError(f"{path}: contains {content}, expected {KINDS[kind]}")
    return tensors, metadata


KINDS = {"mlp": "a NumPy MLP (weights.safetensors or head.safetensors)", "cnn": "a CNN (backbone.safetensors)",
         "hybrid": "a hybrid (hybrid.safetensors)", "resnet18": "a ResNet18 (resnet18.safetensors)",
         "checkpoint": "a training checkpoint"}  # fmt: skip


@contextlib.contextmanager
def checked_format(path):
    """Raise FileError for whatever goes wrong inside because the weights file `path` lacks what it should contain."""
    try:
        yield
    except DAMAGED as error:
        raise FileError(f"{path}: not in this project's format ({first_line(error)})") from None


def first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0]


def copy_into(targets, tensors):
    """Copy {name: array} into the arrays of these names. Raises KeyError or ValueError, before it changes any."""
    for name, array in targets.items():
        value = tensors[name]
        if (value.shape, value.dtype) != (array.shape, array.dtype):
            raise ValueError(f"{name} is {value.dtype} of shape {value.shape}, expected {array.dtype} of {array.shape}")
    for name, array in targets.items():
        array[...] = tensors[name]
