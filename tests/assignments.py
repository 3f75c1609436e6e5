"""Run every command of docs/assignments.md with --quick, which takes a while: `python -m tests.assignments`.

With words, only the commands that contain them: `python -m tests.assignments search mlp`. Prints each command
with its seconds and whether it works; the exit code is 1 if one does not. A command whose dataset or weights
cannot be downloaded here is reported as such.
"""

import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def commands():
    """The commands in the tables of the page, each once."""
    text = (ROOT / "docs/assignments.md").read_text(encoding="utf-8")
    return list(dict.fromkeys(re.findall(r"\| `(python [^`]+)` \|", text)))


def run_command(command, folder, flags=()):
    """(exit code, output) of a command with --quick and other flags, whose run is in the new folder."""
    _, *words = shlex.split(command)
    if "extras.check_gradients" not in words:
        words += ["--quick", "--output-dir", str(folder), *flags]
    options = {"cwd": ROOT, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([sys.executable, *words], **options)
    return done.returncode, done.stdout + done.stderr


def main():
    failed, chosen = [], [c for c in commands() if all(word in c for word in sys.argv[1:])]
    for command in chosen:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as place:
            code, output = run_command(command, Path(place, "run"))
        verdict = "works" if code == 0 else "FAILS"
        if code == 2 and re.search("cannot be downloaded|downloading it failed", output):
            verdict = "no download here"
        print(f"{verdict:<16} {time.perf_counter() - start:5.0f} s  {command}", flush=True)
        if verdict == "FAILS":
            failed.append(command)
            print(output[-2000:])
    print(f"{len(failed)} of {len(chosen)} commands fail")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
