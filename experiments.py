"""Studies: comparisons over several seeds, with paired tests and a verdict.

    python experiments.py                       lists the studies and their cost
    python experiments.py dropout activation    runs two; --all runs every one
    python experiments.py --all --quick         smoke test of all in minutes
    python experiments.py sweep mlp --vary dropout 0 0.2 0.4 --seeds 3
                                                any flag of any script; two
                                                --vary give a heat map
    python experiments.py compare RUN RUN ...   compares finished runs
    python experiments.py search mlp            searches the MLP's settings
    python experiments.py heads                 classifiers on CNN features
"""

from support import entry

if __name__ == "__main__":  # before the slow imports: Ctrl-C
    entry.prepare()

import argparse
import importlib
import os
import sys
from pathlib import Path

from support import settings

COMMANDS = {"heads": "studies.heads", "compare": "studies.compare", "search": "studies.search"}
STORE = "runs/studies/store"  # the finished runs of all studies, found again by what they are made from


def make_parser():
    parser = argparse.ArgumentParser("experiments.py", usage="python experiments.py [STUDY ...] [--flag value ...]",
                                     description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=argparse.SUPPRESS)
    parser.add_argument("--all", action="store_true", help="run every study")
    parser.add_argument("--seeds", type=positive, default=0, metavar="N", help="number of seeds; default: each study's")
    parser.add_argument("--epochs", type=positive, default=0, metavar="N", help="epochs of all runs; default: each study's")
    parser.add_argument("--fixed-learning-rate", action="store_true",
                        help="use one learning rate for all variants instead of choosing each variant's on validation")
    parser.add_argument("--quick", action="store_true",
                        help="smoke test: 2 seeds, 1 epoch, a subset; numbers are not representative")
    parser.add_argument("--jobs", type=positive, default=0, metavar="N", help="processes; default: one for each core")
    parser.add_argument("--dask", default="", metavar="ADDRESS", help="run on the workers of this Dask scheduler instead")
    parser.add_argument("--output-dir", default="runs/studies", metavar="DIR", help="default: runs/studies")
    parser.add_argument("--dataset", default="", metavar="NAME", help="as in the scripts")
    parser.add_argument("--vary", nargs="+", action="append", default=[], metavar="VALUE",
                        help="sweep: a setting and its values")
    parser.add_argument("--set", nargs="+", action="append", default=[], metavar="VALUE",
                        help="sweep: a setting of all runs, and its value")
    parser.error = lambda mistake: parser.exit(2, f"experiments.py: {mistake}\n")
    return parser


def positive(text):
    """A whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least 1")
    return int(text)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in COMMANDS:
        importlib.import_module(COMMANDS[argv[0]]).main(argv[1:])
        return
    parser = make_parser()
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [action.dest for action in parser._actions if action.option_strings]
        parser.error(settings.unknown_setting(unknown[0].partition("=")[0], known) + "; --help lists all flags")
    from studies import catalog  # here, since --help needs none of it

    if not (options.studies or options.all):
        print(catalog.listing())
        return
    if options.studies[:1] == ["sweep"]:
        studies = [catalog.sweep(options.studies[1:], options.vary, options.set, options.seeds or 3)]
    else:
        if options.vary or options.set:
            raise settings.SettingError("--vary, --set: only for sweep, as in sweep mlp --vary dropout 0 0.2 0.4")
        studies = catalog.select([*catalog.STUDIES] if options.all else options.studies)
    failed = catalog.run(studies, Path(options.output_dir), STORE, options, options.jobs or os.cpu_count() or 1)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    entry.cli(main)
