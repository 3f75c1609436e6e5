"""Atomic writes, and weights as safetensors files: tensors, with JSON metadata that says what they are. No pickles."""

import contextlib
import json
import os
from pathlib import Path


class FileError(Exception):
    """A file or folder that cannot be used. The message names it and says what to do."""

    exit_code = 1


@contextlib.contextmanager
def atomic_write(path):
    """Yield a temporary path beside `path`; rename it to `path` once written, so that `path` is never half a file."""
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Write `text` to `path` atomically, in UTF-8 with Unix line ends on every system."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def save_weights(path, tensors, metadata):
    """Write {name: array} with the dict `metadata` (JSON) as one safetensors file."""
    from safetensors.numpy import save

    with atomic_write(path) as temporary:
        temporary.write_bytes(save(tensors, {"metadata": json.dumps(metadata)}))


def load_weights(path, kind=None):
    """({name: array}, metadata) of a file that `save_weights` wrote.

    kind: what metadata["model"] must be, such as "cnn". Raises FileError for a file that is missing, damaged, foreign or
    of another kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(json.loads(file.metadata()["metadata"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path}: not a weights file of this project, or damaged ({error})") from None
    if kind and metadata.get("model") != kind:
        raise FileError(f"{path}: contains {KINDS.get(metadata.get('model'), 'another model')}, expected {KINDS[kind]}")
    return tensors, metadata


KINDS = {"mlp": "a NumPy MLP (weights.safetensors or head.safetensors)", "cnn": "a CNN (backbone.safetensors)",
         "hybrid": "a hybrid (hybrid.safetensors)", "checkpoint": "a training checkpoint"}  # fmt: skip


@contextlib.contextmanager
def checked_format(path):
    """Raise FileError for whatever goes wrong inside because the weights file `path` lacks what it should contain."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise FileError(f"{path}: not in this project's format ({str(error).splitlines()[0]})") from None
