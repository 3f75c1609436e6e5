"""experiments.py as a user runs it: its list and help, wrong input, interrupted and killed studies, processes, a sweep."""

import errno
import json
import os
import signal
import subprocess
import time

import pytest
from conftest import ROOT, command, environment, heed_ctrl_c, kill_after, succeeded

import experiments
from studies import catalog, workers
from support import entry, files

SWEEP = ("sweep", "mlp", "--vary", "dropout", 0, 0.2, "--set", "hidden", 32, "--set", "recipe", "plain", "--dataset",
         "digits", "--seeds", 3, "--epochs", 12)  # fmt: skip
TINY = ("sweep", "mlp", "--vary", "dropout", 0, 0.2, "--set", "hidden", "8-8", "--set", "recipe", "plain", "--dataset",
        "digits", "--seeds", 2, "--epochs", 1, "--fixed-learning-rate")  # fmt: skip
DIVERGING = ("--set", "optimizer", "sgd", "--set", "activation", "leaky_relu")  # with a learning rate of 999
NAME = "sweep_mlp_dropout"


def without_seconds(value):
    if isinstance(value, dict):
        return {name: without_seconds(child) for name, child in value.items() if "seconds" not in name}
    return [without_seconds(child) for child in value] if isinstance(value, list) else value


def results(folder, name=NAME):
    """All files of a study, apart from the seconds and the versions, which are those of the packages that are imported."""
    path = folder / "runs/studies"
    lines = (path / name / "runs.csv").read_text().splitlines()
    place = lines[0].split(",").index("seconds")
    table = [[cell for number, cell in enumerate(line.split(",")) if number != place] for line in lines]
    summary = without_seconds(json.loads((path / name / "summary.json").read_text()))
    del summary["versions"]
    return summary, table, (path / name / f"{name}.png").read_bytes()


def store(folder):
    return folder / "runs/studies/store"


@pytest.fixture
def main(tmp_path, monkeypatch, capsys):
    """main(*arguments): (exit code, standard output, standard error) of the command, in this process, in tmp_path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASHION_MNIST_DIR", raising=False)

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            entry.cli(lambda: experiments.main(list(map(str, arguments))))
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(folder, standard output) of SWEEP, run without interruption in one process."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = subprocess.run(command("experiments", *SWEEP, "--jobs", 1), cwd=folder, env=environment(), capture_output=True,
                          text=True, check=False)  # fmt: skip
    return folder, succeeded(done)


# ---- what it prints


def test_the_list_and_the_help_need_little(tmp_path):
    code = "import sys, experiments\ntry: experiments.main({})\nexcept SystemExit: pass\n"
    code += "print({{'torch', 'matplotlib', 'sklearn', 'scipy', 'joblib'}} & sys.modules.keys(), file=sys.stderr)"
    said = {(): ("dropout", "heads", "study", "runs", "time"), ("--help",): ("--vary", "--dask", "joblib")}
    for arguments, words in said.items():
        script = code.replace("{}", repr(list(arguments))).replace("{{", "{").replace("}}", "}")
        done = subprocess.run([*command("x")[:1], "-c", script], cwd=tmp_path, env=environment() | {"PYTHONPATH": str(ROOT)},
                              capture_output=True, text=True, check=True)  # fmt: skip
        assert done.stderr == "set()\n"
        assert all(word in done.stdout for word in words)
    assert not list(tmp_path.iterdir())


def test_the_list_has_a_line_for_each_study():
    lines = catalog.listing().splitlines()
    for study in catalog.STUDIES.values():
        assert [line for line in lines if line.startswith(f"{study.name} ") and line.endswith(study.question)]
    assert max(map(len, lines)) <= 130


def test_a_damaged_committed_result_does_not_stop_the_list(tmp_path, monkeypatch):
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth/summary.json").write_text("{")
    (tmp_path / "width").mkdir()
    (tmp_path / "width/summary.json").write_text('{"runs": 7, "run_seconds": 600}')
    monkeypatch.setattr(catalog, "RESULTS", tmp_path)
    lines = {line.split()[0]: line.split() for line in catalog.listing().splitlines() if line}
    assert lines["depth"][1:3] == ["32", "8"]
    assert lines["width"][1:3] == ["7", "10"]


@pytest.mark.parametrize(("arguments", "message"), [
    (["dropuot"], "dropuot: no such study (did you mean dropout?); python experiments.py lists them"),
    (["cnn-dropout"], "cnn-dropout: no such study (did you mean cnn_dropout?); python experiments.py lists them"),
    (["dropout", "sweep"], "sweep: must be the first argument, and without names of studies"),
    (["--all", "dropuot"], "--all: runs every study; leave out dropuot"),
    (["compare"], "name the folders of two runs or more"),
    (["compare", "a", "b", "--output"], "unknown flag --output (did you mean --output-dir?); --help lists all flags"),
    (["--quick"], "name a study, or give --all; python experiments.py lists the studies"),
    (["dropout", "--vary", "l1", "0", "1"], "--vary, --set: only for sweep, as in sweep mlp --vary dropout 0 0.2 0.4"),
    (["dropout", "--sede", "1"], "unknown flag --sede (did you mean --seeds?); --help lists all flags"),
    (["dropout", "--seeds", "0"], "--seeds: 0: must be a whole number of at least 1"),
    (["dropout", "--dataset", "dogits"],
     "--dataset dogits: choose from fashion-mnist, mnist, kmnist, digits, PATH (did you mean digits?)"),
    (["sweep", "mpl", "--vary", "l1", "0", "1"],
     "sweep mpl: name one script: mlp, cnn, hybrid, transfer (did you mean mlp?)"),
    (["sweep", "mlp"], "sweep: give --vary once or twice, as in --vary dropout 0 0.2 0.4"),
    (["sweep", "mlp", "--vary", "lr", "1", "2"], "--vary lr: unknown setting lr (did you mean learning_rate?)"),
    (["sweep", "mlp", "--vary", "dropout", "0"], "--vary dropout: give two different values or more"),
    (["sweep", "mlp", "--vary", "dropout", "0.1", ".10"], "--vary dropout: give two different values or more"),
    (["sweep", "mlp", "--vary", "dropout", "0", "1"], "--vary dropout 1: must be in [0, 1)"),
    (["sweep", "mlp", "--vary", "dropout", "0", "x"], "--vary dropout x: not a number"),
    (["sweep", "mlp", "--vary", "hidden", "64", "1x"], "--vary hidden 1x: not a whole number"),
    (["sweep", "mlp", "--vary", "flip", "yes", "maybe"], "--vary flip maybe: not True or False"),
    (["sweep", "mlp", "--vary", "seed", "0", "1"], "--vary seed: not in a sweep; see --seeds, --quick and --help"),
    (["sweep", "mlp", "--vary", "dropout", "0", "0.2", "--set", "dropout", "0"], "--set dropout: is given with --vary, too"),
    (["sweep", "mlp", "--vary", "l1", "0", "1", "--vary", "l1", "0", "2"], "--vary l1: is given twice"),
    (["sweep", "mlp", "--vary", "l1", "0", "1", "--set", "optimizer", "sdg"],
     "--set optimizer sdg: choose from sgd, momentum, nesterov, rmsprop, adam, adamw (did you mean sgd?)"),
    (["sweep", "mlp", "--vary", "l1", "0", "1", "--set", "hidden", "64", "32"],
     "--set hidden: give one value; those of several layers are joined, as in 256-128"),
    (["dropout", "--dataset", "digits", "--dask", "here"],
     "--dask here: expected the address of a scheduler, as in tcp://127.0.0.1:8786"),
])  # fmt: skip
def test_wrong_input_is_one_line(main, tmp_path, arguments, message):
    code, out, error = main(*arguments)
    assert (code, out) == (2, "")
    assert error.endswith(f": {message}\n")
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.rglob("*.json"))


def test_flags_before_and_after_the_names(main, monkeypatch):
    asked = []
    monkeypatch.setattr(catalog, "run", lambda studies, folder, store, options, jobs: asked.append(
        ([study.name for study in studies], str(folder), options.seeds, jobs)) or 0)  # fmt: skip
    main("--jobs", 3, "dropout", "l1", "--seeds", 2)
    main("dropout", "--quick", "--jobs", 3, "l1", "dropout")
    main("--all", "--jobs", 3, "--output-dir", "out")
    assert asked[0] == (["dropout", "l1"], "runs/studies", 2, 3)
    assert asked[1] == (["dropout", "l1"], "runs/studies/quick", 0, 3)
    assert asked[2] == ([*catalog.STUDIES], "out", 0, 3)


# ---- a study


def test_a_sweep_from_its_command_to_its_files(uninterrupted):
    folder, printed = uninterrupted
    summary, table, _ = results(folder)
    assert printed.startswith(f"\n{NAME}: Sweep of dropout in mlp_from_scratch.py (digits, 3 seeds, 12 epochs)\n")
    assert summary["verdict"].split(".")[0] in printed
    assert printed.endswith("\ntables, figures and runs are in runs/studies; start with runs/studies/README.md\n")
    assert summary["command"] == "python experiments.py " + " ".join(
        map(str, [*SWEEP[:12], "--seeds", 3, "--epochs", 12, "--dataset", "digits"]))  # fmt: skip
    readme = (folder / "runs/studies/README.md").read_text()
    assert f"`{summary['command']}`" in readme
    for name, variant in summary["variants"].items():
        assert variant["learning_rates"] == [0.0003, 0.001, 0.003]
        tuning = [row for row in table if row[:2] == [name, "tuning"]]
        best = max(tuning, key=lambda row: float(row[table[0].index("val_accuracy")]))
        assert float(best[table[0].index("learning_rate")]) == variant["learning_rate"]
        finals = [float(row[table[0].index("test_accuracy")]) for row in table if row[:2] == [name, "final"]]
        assert finals == variant["by_seed"]["test_accuracy"]
        assert len(finals) == 3
    assert len(list(store(folder).glob("*.json"))) == 2 * (3 + 2)
    assert not list(folder.rglob(".*"))


def test_a_study_killed_twice_gives_the_files_of_one_never_interrupted(uninterrupted, run_script, tmp_path):
    for number in (1, 4):
        kill_after(command("experiments", *SWEEP, "--jobs", 2), tmp_path, Count(store(tmp_path)), number)
    assert len(list(store(tmp_path).glob("*.json"))) < 10
    succeeded(run_script("experiments", *SWEEP, "--jobs", 2))
    assert results(tmp_path) == results(uninterrupted[0])


class Count:
    """Looks to kill_after like a file with a line for each finished run."""

    def __init__(self, folder):
        self.folder = folder

    def exists(self):
        return self.folder.exists()

    def read_text(self):
        return "\n" * len(list(self.folder.glob("*.json")))


@pytest.mark.skipif(os.name == "nt", reason="a group of processes is sent a signal")
def test_ctrl_c_is_one_line_and_the_same_command_continues(uninterrupted, run_script, tmp_path):
    process = subprocess.Popen(command("experiments", *SWEEP, "--jobs", 2), cwd=tmp_path, env=environment(), text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                               preexec_fn=heed_ctrl_c)  # fmt: skip
    while process.poll() is None and len(list(store(tmp_path).glob("*.json"))) < 2:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all processes
    out, error = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert error.startswith("\ninterrupted; finished runs are kept, and the same command continues with them\n")
    assert "Traceback" not in error  # joblib's resource tracker sometimes adds a warning about a semaphore
    finished = {path.name: path.stat().st_mtime_ns for path in store(tmp_path).glob("*.json")}
    assert 2 <= len(finished) < 10
    succeeded(run_script("experiments", *SWEEP, "--jobs", 2))
    assert finished.items() <= {path.name: path.stat().st_mtime_ns for path in store(tmp_path).glob("*.json")}.items()
    assert results(tmp_path) == results(uninterrupted[0])


@pytest.mark.usefixtures("environ")
def test_dask_gives_the_results_of_one_process(uninterrupted, main, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="needs the optional package distributed")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(workers, "execute", None)  # not in this process
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=60) as cluster:
        code, out, error = main(*SWEEP, "--dask", cluster.scheduler_address)
    assert (code, error) == (0, "")
    assert out == uninterrupted[1]
    assert results(tmp_path) == results(uninterrupted[0])


def test_a_process_that_dies_is_reported_and_the_others_are_finished(main, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "keyed", dying(1))
    code, out, error = main(*TINY, "--jobs", 2)
    assert code == 1
    assert error == "2 runs failed twice: its process died, perhaps for lack of memory\n"
    summary, table, _ = results(tmp_path)
    assert [(variant["seeds"], variant["failed"]) for variant in summary["variants"].values()] == [([0], 1), ([0], 1)]
    assert "1 of 2 seeds: its process died" in out
    assert sum(workers.DIED["error"] in ",".join(row) for row in table[1:]) == 2


def dying(seed):
    """In place of workers.keyed: the run with this seed kills its process."""

    def keyed(job, folder):
        from studies import execute

        if job.settings["seed"] == seed:
            execute.train = lambda job, folder: os.kill(os.getpid(), signal.SIGKILL)
        return job.key, execute.execute(job, folder)

    return keyed


def test_diverged_variants_are_rows_that_say_so(main, tmp_path):
    flags = [*TINY[:5], "0.2", *TINY[6:-1], "--jobs", 1]
    flags[2:6] = ["--vary", "learning_rate", "0.001", "999", *DIVERGING]
    code, out, error = main(*flags)
    assert (code, error) == (0, "")
    assert "999, 2 of 2 seeds: the loss became" in out
    summary, *_ = results(tmp_path, "sweep_mlp_learning_rate")
    assert summary["variants"]["999"]["diverged"] is True
    assert summary["verdict"].endswith("Diverged or failed in some seeds: learning rate 999.")
    code, out, error = main(*TINY, "--set", "learning_rate", "999", *DIVERGING, "--jobs", 1)
    assert (code, error) == (0, "")
    assert "Every variant diverged or failed." in out
    readme = (tmp_path / "runs/studies/README.md").read_text()
    assert "| **0** (baseline) | 999 | - | - | - | - | 2 of 2 seeds: the loss became" in readme


def test_two_commands_at_once_do_not_share_the_runs(main, tmp_path):
    store(tmp_path).mkdir(parents=True)
    with files.locked(store(tmp_path)):
        code, out, error = main(*TINY, "--jobs", 1)
    assert (code, out) == (1, "")
    assert "runs/studies/store: another run is writing to this folder; wait until it ends, or give all studies" in error


def test_a_damaged_result_is_named_and_repeated(main, tmp_path):
    assert main(*TINY, "--jobs", 1)[0] == 0
    before = results(tmp_path)
    path = next(store(tmp_path).glob("*.json"))
    path.write_text(path.read_text()[:-20])
    code, _, error = main(*TINY, "--jobs", 1)
    assert code == 0
    assert error.startswith(f"{path} is damaged")
    assert len(error.splitlines()) == 1
    assert results(tmp_path) == before


@pytest.mark.parametrize("name", ["json", "README.md"])
def test_a_full_disk_is_one_line(main, tmp_path, monkeypatch, name):
    written = []

    def write_text(path, text, original=files.write_text):
        if path.name.endswith(name):
            if len(written) == 2 or name == "README.md":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written.append(path)
        original(path, text)

    monkeypatch.setattr(files, "write_text", write_text)
    code, out, error = main(*TINY, "--jobs", 2)
    assert (code, out) == (1, "")
    assert len(error.splitlines()) == 1
    assert "(No space left on device); finished runs are kept, and the same command continues with them" in error
    assert all(path.exists() for path in written)
    monkeypatch.setattr(files, "write_text", write_text.__defaults__[0])
    assert main(*TINY, "--jobs", 2)[0] == 0


def test_two_factors_give_a_heat_map_and_numbers_of_layers_are_joined(main, tmp_path):
    flags = ("--vary", "hidden", "none", "8-4", "--vary", "flip", "no", "yes")
    code, out, _ = main("sweep", "mlp", *flags, "--quick", "--dataset", "digits", "--jobs", 1)
    assert code == 0
    assert "runs/studies/quick/README.md" in out
    summary = json.loads((tmp_path / "runs/studies/quick/sweep_mlp_hidden_flip/summary.json").read_text())
    assert [variant["settings"] for variant in summary["variants"].values()] == [
        {"hidden": hidden, "flip": flip, "epochs": 1} for hidden in ([], [8, 4]) for flip in (False, True)]  # fmt: skip
    assert summary["dataset"] == "digits (subset)"
    assert summary["seeds"] == 2


def test_studies_of_the_hybrid_share_their_backbones(main, tmp_path):
    flags = ("--quick", "--dataset", "digits", "--jobs", 1)
    assert main("feature_layer", *flags)[0] == 0
    kept = store(tmp_path)
    backbones = sorted(path.name for path in (kept / "backbones").iterdir())
    assert len(backbones) == 2
    assert not list(kept.rglob("features*.npz"))
    before = {path.name for path in kept.glob("*.json")}
    code, out, error = main("hybrid_training", *flags)
    assert (code, error) == (0, "")
    assert "fine-tuned" in out
    assert sorted(path.name for path in (kept / "backbones").iterdir()) == backbones
    assert len({path.name for path in kept.glob("*.json")} - before) == 4  # joint and fine-tuned; frozen was there


def test_the_dataset_is_needed(run_script):
    done = run_script("experiments", "dropout")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("experiments.py: no Fashion-MNIST in data, and it could not")
