"""Studies: comparisons repeated over seeds, with paired tests and a verdict in words.

    python experiments.py                  lists the studies
    python experiments.py heads            runs one; its flags follow, as in heads --seeds 3
    python experiments.py heads --help     explains them
"""

import importlib
import sys

from support import runs, settings

STUDIES = {"heads": "Does the NumPy MLP classify a CNN's features better than other classifiers do?"}


def main(argv=None):
    name, *flags = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
        for study, question in STUDIES.items():
            print(f"{study:<12}{question}")
    elif name in STUDIES:
        importlib.import_module(f"studies.{name}").main(flags)
    else:
        raise settings.SettingError(f"{name}: no such study; choose from {', '.join(STUDIES)}")


if __name__ == "__main__":
    runs.cli(main)
