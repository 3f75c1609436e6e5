"""How scripts begin and end: Ctrl-C at any moment, closed and full outputs, --help before the slow imports."""

import ast
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import ROOT, SCRIPTS, command, environment, heed_ctrl_c, one_line, read_metrics
from test_imports import MODULES

from support import entry, runs

BEGINNING = "from support import entry\n\nif __name__ == \"__main__\":  # before the slow imports: Ctrl-C"
RUNNABLE = {name for name, path in MODULES.items() if "entry.cli(" in path.read_text(encoding="utf-8")} - {"support.entry"}
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and a POSIX shell")


def started(folder, *arguments):
    return subprocess.Popen(arguments, cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, preexec_fn=heed_ctrl_c)  # fmt: skip


def python(code, *arguments):
    """The finished process of `python -c`, in the repository's folder, that prepares itself as scripts do."""
    process = started(ROOT, sys.executable, "-c", f"import os, signal\nfrom support import entry\nentry.prepare()\n{code}",
                      *arguments)  # fmt: skip
    out, errors = process.communicate(timeout=300)
    return SimpleNamespace(returncode=process.returncode, stdout=out, stderr=errors)


# ---- Ctrl-C


def numpy_is_loaded(process, folder):
    with open(f"/proc/{process.pid}/maps") as file:
        return "numpy" in file.read()


STAGES = {  # what is awaited before Ctrl-C
    "imports": numpy_is_loaded,
    "training": lambda process, folder: (folder / "run/settings.json").exists(),
    "figures": lambda process, folder: (folder / "run/curves.png").exists(),
}


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux")
@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_is_one_line_at_every_stage(stage, tmp_path):
    flags = ("--dataset", "digits", "--quick", "--hidden", 8, "--output-dir", "run")
    process = started(tmp_path, *command("mlp_from_scratch", *flags))
    try:
        while process.poll() is None and not STAGES[stage](process, tmp_path):
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    if process.returncode == 0 and stage == "figures":  # a machine so fast that the run was over
        assert (errors, read_metrics(tmp_path / "run")["dataset"]) == ("", "digits (subset)")
        return
    assert process.returncode == 130, errors
    where = ": what was saved so far is in run" if (tmp_path / "run").exists() else ""
    assert errors.strip() in ("interrupted" + where, "interrupted")
    assert not list(tmp_path.glob("run/.partial*"))


INTERRUPTED = {  # the body of `main`, in which ctrl_c() stands for the user
    "plain": "ctrl_c()",
    "swallowed": "type('', (), {'__del__': lambda self: ctrl_c()})()",
    "turned": "try: ctrl_c()\n    except KeyboardInterrupt: raise ImportError from None",
    "twice": "try: ctrl_c()\n    finally: ctrl_c()",
}


@posix
@pytest.mark.parametrize("body", INTERRUPTED.values(), ids=INTERRUPTED)
def test_an_interrupt_is_neither_lost_nor_a_traceback(body):
    done = python(f"def ctrl_c(): os.kill(os.getpid(), signal.SIGINT)\ndef main():\n    {body}\nentry.cli(main)")
    assert one_line(done, 130) == "interrupted"


@posix
def test_an_interrupt_outside_main():
    assert one_line(python("os.kill(os.getpid(), signal.SIGTERM)"), 130) == "interrupted"  # while it imports
    done = python("import atexit\natexit.register(os.kill, os.getpid(), signal.SIGINT)\nentry.cli(lambda: print('done'))")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_run_stops_at_the_next_file_after_a_swallowed_interrupt(tmp_path, monkeypatch):
    run = runs.Run("test", SimpleNamespace(output_dir=str(tmp_path), epochs=1))
    with pytest.raises(KeyboardInterrupt, match=f"what was saved so far is in {tmp_path}"), run:
        monkeypatch.setattr(entry, "interrupted", True)
        run.save({"notes.txt": "x"})
    assert not (tmp_path / "notes.txt").exists()


@posix
def test_ignored_signals_stay_ignored():
    """As those of a process in the background of a shell."""
    code = ("import os, signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nfrom support import entry\nentry.prepare()\n"
            "entry.cli(lambda: os.kill(os.getpid(), signal.SIGINT))")  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# ---- outputs


OUTPUT = """
from support import entry
entry.prepare()
from tqdm import tqdm
def main():
    for _ in tqdm(range(99), disable=None):
        tqdm.write(999 * "x")
entry.cli(main)
"""
FULL = "cannot write to the standard output: No space left on device"


@posix
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("redirection", "code", "said"), [
    (">&-", 0, ""), ("2>&-", 0, ""), (">&- 2>&- <&-", 0, ""), (">/dev/full", 1, f"-c: {FULL}"), ("2>/dev/full", 0, ""),
    (">/dev/full 2>/dev/full", 1, ""),
])  # fmt: skip
def test_closed_and_full_outputs(redirection, code, said, unbuffered):
    if "full" in redirection and not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    done = subprocess.run(f"{sys.executable} -c '{OUTPUT}' {redirection}", shell=True, check=False, text=True, cwd=ROOT,
                          stderr=subprocess.PIPE, env=environment() | {"PYTHONUNBUFFERED": unbuffered})  # fmt: skip
    assert (done.returncode, done.stderr.strip()) == (code, said)


@posix
@pytest.mark.parametrize(("flags", "code", "said"), [
    ("--help >/dev/full", 1, f"data.py: {FULL}"), ("--epochs 1 2>/dev/full", 2, ""),
    ("--epochs 1 >&-", 2, "data.py: unknown flag --epochs; --help lists all flags"),
])  # fmt: skip
def test_help_and_wrong_flags_on_closed_and_full_outputs(flags, code, said):
    if "full" in flags and not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    done = subprocess.run(f"{sys.executable} {MODULES['data']} {flags}", shell=True, check=False, text=True,
                          stderr=subprocess.PIPE, env=environment() | {"PYTHONUNBUFFERED": ""})  # fmt: skip
    assert (done.returncode, done.stderr.strip()) == (code, said)


# ---- scripts and modules


def test_every_script_prepares_itself_before_its_imports():
    assert set(SCRIPTS) | {"data", "plots", "experiments", "benchmark", "check_gradients", "studies.tables"} <= RUNNABLE
    for name in RUNNABLE:
        assert BEGINNING in MODULES[name].read_text(encoding="utf-8").split("\nimport ")[0], name


@pytest.mark.parametrize("name", sorted(MODULES.keys() - RUNNABLE))
def test_a_module_that_is_run_says_that_it_is_none(name):
    path = MODULES[name]
    if path.name == "__init__.py":
        assert len(ast.parse(path.read_text(encoding="utf-8")).body) == 1  # its docstring
        return
    done = subprocess.run([sys.executable, "-S", str(path)], capture_output=True, text=True, check=False)
    assert f"{path.relative_to(ROOT).as_posix()} is a module, not a script: " in one_line(done, 1)


@pytest.mark.parametrize("name", ["studies.tables", "studies.figures"])
def test_a_script_in_a_folder_says_how_to_run_it(name):
    done = subprocess.run([sys.executable, "-S", str(MODULES[name])], capture_output=True, text=True, check=False)
    assert f"run it as python -m {name}, in the repository's folder" in one_line(done, 1)


@pytest.mark.parametrize("name", [*SCRIPTS, "data", "check_gradients"])
def test_help_and_wrong_flags_come_before_the_slow_imports(name):
    for flags, exit_code in ((["--help"], 0), (["--sed", "1"], 2)):
        code = f"""
import runpy, sys
sys.argv = [{f"{name}.py"!r}, *{flags}]
try:
    runpy.run_path({str(MODULES[name])!r}, run_name="__main__")
except SystemExit as ended:
    assert ended.code == {exit_code}
assert not {{"numpy", "torch", "matplotlib", "sklearn"}} & sys.modules.keys()
"""
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, bool(done.stdout)) == (0, exit_code == 0), done.stderr
