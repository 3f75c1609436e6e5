"""Train the NumPy MLP with the flags of a course's train.py (IIT Madras, DA6401 and CS6910).

    python -m extras.train -d fashion_mnist -e 1 -b 32 -o nadam -l mean_squared_error -nhl 3 -sz 64 -a tanh

runs mlp_from_scratch.py with flags that it prints first. What the course does not ask for is switched off:
batch normalization, dropout, augmentation, label smoothing, schedule, moving average. -w_d is an L2 penalty.
All flags of mlp_from_scratch.py can be added, such as --quick or --output-dir runs/mine.
"""

import argparse
import os
import shlex
import sys

import mlp_from_scratch as mlp
import run

# {the course's flag: (its long name, flag of mlp_from_scratch.py)}
FLAGS = {
    "-d": ("--dataset", "--dataset"),
    "-e": ("--epochs", "--epochs"),
    "-b": ("--batch_size", "--batch-size"),
    "-l": ("--loss", "--loss"),
    "-o": ("--optimizer", "--optimizer"),
    "-lr": ("--learning_rate", "--learning-rate"),
    "-m": ("--momentum", "--momentum"),
    "-beta": ("--beta", "--rmsprop-decay"),
    "-beta1": ("--beta1", "--beta1"),
    "-beta2": ("--beta2", "--beta2"),
    "-eps": ("--epsilon", "--eps"),
    "-w_d": ("--weight_decay", "--l2"),
    "-w_i": ("--weight_init", "--init"),
    "-a": ("--activation", "--activation"),
}
VALUES = {"fashion_mnist": "fashion-mnist", "cross_entropy": "softmax", "mean_squared_error": "squared_error"}
VALUES |= {"nag": "nesterov", "Xavier": "xavier", "ReLU": "relu"}
DEFAULTS = "-d fashion_mnist -e 10 -b 64 -lr 0.001 -w_i xavier -sz 128"
PLAIN = "--schedule constant --warmup 0 --norm none --dropout 0 --weight-decay 0 --no-flip"
PLAIN += " --label-smoothing 0 --ema-decay 0"


def parse(argv):
    """(the course's flags as a dict, other flags as a list)"""
    options = {"description": __doc__.split("\n")[0], "allow_abbrev": False}
    parser = argparse.ArgumentParser("python -m extras.train", **options)
    parser.error = lambda message: parser.exit(2, f"train.py: {message.removeprefix('argument ')}\n")
    for short, (long, flag) in FLAGS.items():
        parser.add_argument(short, long, dest=flag, metavar="X", help=f"{flag} of mlp_from_scratch.py")
    parser.add_argument("-nhl", "--num_layers", type=int, metavar="N", help="number of hidden layers")
    sizes = {"type": int, "nargs": "+", "metavar": "N", "help": "neurons of all hidden layers, or of each"}
    parser.add_argument("-sz", "--hidden_size", **sizes)
    parser.add_argument("-wp", "--wandb_project", metavar="X", help="wandb's project, which gets the metrics")
    parser.add_argument("-we", "--wandb_entity", metavar="X", help="wandb's user or team")
    given, others = parser.parse_known_args([*DEFAULTS.split(), *argv])
    return vars(given), others


def main(argv=None):
    """What mlp_from_scratch.main returns. Raises run.Error."""
    given, others = parse(sys.argv[1:] if argv is None else argv)
    sizes, num_layers = given.pop("hidden_size"), given.pop("num_layers")
    if len(sizes) == 1:
        sizes = sizes * (1 if num_layers is None else num_layers)
    elif num_layers not in (None, len(sizes)):
        raise run.Error(f"-nhl {num_layers}: -sz has {len(sizes)} sizes; leave one of the two out")
    project, entity = given.pop("wandb_project"), given.pop("wandb_entity")
    if project:
        os.environ |= {"WANDB_PROJECT": project} | ({"WANDB_ENTITY": entity} if entity else {})
        others = ["--track", "wandb", *others]
    flags = [*PLAIN.split(), "--hidden", *map(str, sizes)]
    for flag, value in given.items():
        flags += [flag, VALUES.get(value, value)] if value else []
    flags += others
    print(f"python mlp_from_scratch.py {shlex.join(flags)}")
    return mlp.main(flags)


if __name__ == "__main__":
    run.cli(main)
