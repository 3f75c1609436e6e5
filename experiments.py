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
    add = parser.add_argument
    add("--all", action="store_true", help="run every study")
    add("--seeds", type=positive, default=0, metavar="N", help="number of seeds; default: each study's, 3 in a sweep")
    add("--epochs", type=positive, default=0, metavar="N", help="epochs of all runs; default: each study's")
    add("--fixed-learning-rate", action="store_true",
        help="use one learning rate for all variants instead of choosing each variant's on validation")
    add("--quick", action="store_true",
        help="smoke test: at most 2 seeds, 1 epoch, one learning rate, a subset; numbers are not representative")
    add("--dataset", default="", metavar="NAME", help="as in the scripts; digits needs no download")
    add("--vary", nargs="+", action="append", default=[], metavar=("NAME", "VALUE"),
        help="sweep: a setting of the script and its values; those of several layers are joined, as in 256-128")
    add("--set", nargs="+", action="append", default=[], metavar=("NAME", "VALUE"),
        help="sweep: another setting of all runs, such as --set recipe plain")
    add("--jobs", type=positive, default=0, metavar="N",
        help="number of processes (joblib), of 0.4 to 1 GB each; default: one for each core; 1: all runs in this process")
    add("--dask", default="", metavar="ADDRESS",
        help="use the workers of this Dask scheduler instead (pip install distributed). They must see this folder and the "
             "dataset at the same paths: start each here with PYTHONPATH=. dask worker ADDRESS --nthreads 1")
    add("--output-dir", default="", metavar="DIR", help="default: runs/studies, with --quick runs/studies/quick")
    parser.error = lambda mistake: parser.exit(2, f"experiments.py: {mistake.removeprefix('argument ')}\n")
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
    options, unknown = parser.parse_known_intermixed_args(argv)
    settings.refuse_unknown(parser, unknown)
    from studies import catalog  # here, since --help needs none of it

    if not (options.studies or options.all):
        if argv:
            parser.error("name a study, or give --all; python experiments.py lists the studies")
        print(catalog.listing())
        return
    if options.all and options.studies:
        parser.error(f"--all: runs every study; leave out {' '.join(options.studies)}")
    if options.studies[:1] == ["sweep"]:
        studies = [catalog.sweep(options.studies[1:], options.vary, options.set, options.seeds or 3)]
    elif options.vary or options.set:
        raise settings.SettingError("--vary, --set: only for sweep, as in sweep mlp --vary dropout 0 0.2 0.4")
    else:
        studies = catalog.select([*catalog.STUDIES] if options.all else options.studies)
    folder = Path(options.output_dir or ("runs/studies/quick" if options.quick else "runs/studies"))
    failed = catalog.run(studies, folder, STORE, options, options.jobs or num_cores())
    sys.exit(1 if failed else 0)


def num_cores():
    """Number of cores that this process may use, in a container, too."""
    import joblib

    return joblib.cpu_count()


if __name__ == "__main__":
    entry.cli(main)
