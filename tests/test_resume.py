"""A run that was killed, or interrupted by Ctrl-C, ends as if it never was: the same bits."""

import importlib
import re
import shlex
import signal

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

import mlp_from_scratch as mlp
import run

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")

DIGITS = "--dataset digits --train-size 300 --no-figures --log-steps"
MLP = f"mlp_from_scratch.py {DIGITS} --hidden 8 --batch-size 50"  # 6 steps an epoch
CNN = f"{DIGITS} --channels 4 8 --pool-after 1 2 --batch-size 100 --dropout 0.2 --erase 4"
CNN = f"{CNN} --device cpu --precision float32"
HYBRID = f"hybrid_train.py {CNN} --epochs 2 --head-hidden 8 --head-dropout 0.2 --head-norm layer"
CHECKPOINT = "checkpoint.safetensors"

# Where it is killed, by turns, and the command: after a file of this name is written for the n-th time
CASES = {
    "mlp": (
        [("settings.json", 1), (CHECKPOINT, 2), (CHECKPOINT, 3)],  # the last one after the last epoch
        f"{MLP} --epochs 5 --dropout 0.2 --shift 1 --normalize per_pixel --schedule plateau --patience 4",
    ),
    "mlp, augmented once": (
        [(CHECKPOINT, 1)],
        f"{MLP} --epochs 3 --augment-once --erase 4 --optimizer rmsprop --ema-decay 0",
    ),
    "cnn": ([(CHECKPOINT, 2)], f"cnn_feature_extraction.py {CNN} --epochs 3 --fc 16 --fc-norm"),
    "frozen": (
        [(CHECKPOINT, 2), ("history.csv", 1)],  # after the CNN's last epoch, then in the MLP's training
        f"{HYBRID} --head-epochs 2 --optimizer adam --learning-rate 0.003",
    ),
    "joint": ([(CHECKPOINT, 1)], f"{HYBRID} --training joint"),
}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Sums in several threads depend on their number."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def interrupt(script):
    """A function that runs a command and ends it by a signal after a file is written: the process."""
    return lambda kind, name, count, command: script(
        "tests/interrupt.py", kind, name, count, *command.split()
    )


@pytest.fixture
def follow(script, tmp_path):
    """A function that runs the command in the one line with which Ctrl-C has ended a process."""

    def run_command(process):
        assert process.returncode == 130, process.stderr
        (line,) = process.stderr.strip().splitlines()
        python, file, *flags = shlex.split(re.search(r"python .*$", line)[0])
        done = script(str(tmp_path / file), *flags)
        assert (python, done.returncode, done.stderr) == ("python", 0, "")

    return run_command


def assert_same_results(folder, other):
    for path in folder.glob("*.safetensors"):
        arrays, others = (run.load_weights(file)[0] for file in (path, other / path.name))
        assert arrays.keys() == others.keys()
        for name, array in arrays.items():
            assert np.array_equal(array, others[name]), (path.name, name)
    for name in ("test_probabilities.npy", "steps.csv"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    for path in folder.glob("*history.csv"):
        history, others = run.read_history(path), run.read_history(other / path.name)
        assert all(values == others[column] for column, values in history.items() if column != "seconds")
    metrics, others = run.read_json(folder / "metrics.json"), run.read_json(other / "metrics.json")
    for name in metrics.keys() - {"seconds", "peak_memory_mib", "settings", "command", "versions"}:
        assert metrics[name] == others[name], name


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_it_ends_with_the_same_bits(case, interrupt, tmp_path):
    (kills, command), killed = CASES[case], tmp_path / "killed"
    name, *flags = command.split()
    for number, place in enumerate(kills):
        start = f"{name} --resume {killed}" if number else f"{command} --output-dir {killed}"
        process = interrupt("SIGKILL", *place, start)
        assert process.returncode == -signal.SIGKILL, process.stderr
        assert not (killed / "metrics.json").exists()
    main = importlib.import_module(name.removesuffix(".py")).main
    main(["--resume", str(killed)])
    assert_same_results(main([*flags, "--output-dir", str(tmp_path / "complete")]).folder, killed)


def test_the_line_after_ctrl_c_has_the_command_that_continues(interrupt, follow, tmp_path):
    command = f"{MLP} --epochs 4 --output-dir"
    process = interrupt("SIGINT", CHECKPOINT, 2, f"{command} it's")  # which a shell would not take as it is
    (folder,) = tmp_path.iterdir()
    assert len(run.read_history(folder / "history.csv")["epoch"]) == 2
    follow(process)
    assert_same_results(mlp.main([*command.split()[1:], str(tmp_path / "complete")]).folder, folder)


def test_several_seeds_continue_with_the_one_that_was_interrupted(interrupt, follow, tmp_path):
    command = f"{MLP} --epochs 2 --seed 3 --seeds 3 --output-dir"
    process = interrupt(
        "SIGINT", CHECKPOINT, 3, f"{command} run"
    )  # in the second seed, after its first epoch
    assert sorted(path.name for path in tmp_path.glob("run/seed_*")) == ["seed_3", "seed_4"]
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("run/seed_3/*")}
    follow(process)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    complete = mlp.main([*command.split()[1:], str(tmp_path / "complete")])
    by_seed = run.read_json(tmp_path / "run/metrics.json")["by_seed"]
    assert by_seed["test_loss"] == complete.metrics["by_seed"]["test_loss"]
    for seed in (3, 4, 5):
        assert_same_results(complete.folder / f"seed_{seed}", tmp_path / f"run/seed_{seed}")
