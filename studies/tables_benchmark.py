"""results/benchmark/README.md, made from the benchmarks' json files; `python -m studies.tables` writes it."""

if __name__ == "__main__":
    raise SystemExit("studies/tables_benchmark.py is a module, not a script: experiments.py uses it")

import json
import shlex
from statistics import median

from benchmarks.timing import NAMES, with_spread
from studies.tables import ROOT, listed, table, wrapped

FOLDERS = ("benchmark", "benchmark_xeon")  # a folder for each machine; the figures are those of the first one
SETTINGS = {"batch_size": "batch size", "hidden": "hidden layers"}  # the tables of mlp.json

TEXT = """\
# Benchmark

Speed and memory of training on CPUs, compared with PyTorch and scikit-learn. Each comparison is one run of `benchmark.py` in
one process, with {threads} threads. The implementations are trained in turn, in rounds. A ratio is the median over the
rounds; the lowest and the highest round are in brackets. Compare ratios, not seconds: times depend on the machine and its
load. To measure another machine, run `python benchmark.py mlp`, and the same with `cnn`, `hybrid` or `race`. Results are
written to `runs/benchmark`. `--quick` is a smoke test.

## NumPy MLP

Time per epoch of {mlp[network]} in float32, without batch normalization, dropout or augmentation: batch size
{mlp[batch_size]}, Adam, {mlp[images]:,} images in memory, {mlp_rounds} rounds. Below 1, the NumPy MLP is faster.

{rivals}
The lower bound is the time of the matrix products alone, without activations, loss, optimizer and batches. No implementation
with the same matrix products can be faster.

{lower_bound}
![Time per epoch, ours / theirs](mlp.png)

### By batch size and width

{tables}
Above 1, PyTorch is faster. {repeated}

### Memory, start and prediction

Peak memory of a new process, and the time from its start to the end of the first epoch, which includes reading the images.
Prediction is for all training images, in the process of the comparison.

{processes}
{mlp_sources}

## CNN

Both sides train a CNN {cnn[network]} without batch normalization. The tutorial's loop is a DataLoader that transforms PIL
images one by one, channels first, batch size 64, Adam, in float32. Ours keeps the images in one tensor, augments whole
batches, computes channels last, and uses bfloat16 where that is faster. Each round has {cnn[images]:,} images.

{speedup}
Training of the default CNN {cnn[default_network]}, {rate:,.0f} images/s under PyTorch's profiler, which records where the
time goes:

{shares}
![Training speed of the CNN, and where the time goes](cnn.png)

{cnn_sources}

## Joint training

CNN and MLP {hybrid[network]}, trained end to end, {hybrid_rounds} rounds of {hybrid[images]:,} images: the time with the MLP
in NumPy, compared with the time with the same MLP in PyTorch. Both include the CNN.

{joint}
{hybrid_sources}

## Time to accuracy

The tutorial's loop, as in the section CNN, trains for {tutorial_epochs} epochs; the default CNN for {our_epochs}, fewer
than by default, with a learning rate that falls in as many.
The best validation accuracy of the tutorial, {best_accuracy:.2f} %, took {race[seconds][tutorial]:,.0f} s. {reached} This is
one run with one seed, on the {race_machine}, in {race[precision]}.

![Validation accuracy over time](race.png)

{race_sources}

## Targets

The targets were set before the measurements.

{targets}
Two further targets were missed and dropped: at most 1.3 times the lower bound for the NumPy MLP, and at most 10 % of a CNN's
training step outside the convolutions.
"""


def load(results, name):
    """[content of NAME.json of each machine]"""
    return [json.loads((results / folder / f"{name}.json").read_text(encoding="utf-8")) for folder in FOLDERS]


def machine(run):
    """AMD EPYC"""
    return run["machine"]["processor"].replace("(R)", "").replace(" Processor", "")


def machine_precision(run):
    return f"{machine(run)}, {run['precision']}"


def command(name, run):
    """The command of a run as it is today, without its --output-dir."""
    words = shlex.split(run["command"])[3:]
    words = [word for word, before in zip(words, ["", *words], strict=False) if "--output-dir" not in (word, before)]
    return f"`{shlex.join(['python', 'benchmark.py', name, *(word for word in words if word != '--race')])}`"


def sources(name, runs):
    """AMD EPYC: [mlp.json](mlp.json), `python benchmark.py mlp`. Intel ..."""
    links = [f"{name}.json", *(f"../{folder}/{name}.json" for folder in FOLDERS[1:])]
    return " ".join(f"{machine(run)}: [{name}.json]({link}), {command(name, run)}."
                    for run, link in zip(runs, links, strict=False))  # fmt: skip


def ratio(run, name, form=".2f"):
    return with_spread(run["ratios"][name], run["spread"][name], form)


def rivals(mlps):
    """Time per epoch, ours / theirs."""
    rows = [[NAMES[name], *(ratio(run, name) for run in mlps), f"{target:.2f}"]
            for name, target in mlps[0]["targets"].items()]  # fmt: skip
    return table(["ours / theirs", *map(machine, mlps), "target, at most"], rows)


def lower_bound(mlps):
    name = "matmul_only"
    return table(["ours / theirs", *map(machine, mlps)], [[NAMES[name], *(ratio(run, name) for run in mlps)]])


def tables(mlps):
    """Ours / PyTorch and ours / matrix products, by batch size and by width."""
    rows, peers = [], {"torch_fused": "PyTorch, fused Adam", "matmul_only": "matrix products"}
    for setting, heading in SETTINGS.items():
        for label in mlps[0]["tables"][setting]:
            cells = [table_cell(run["tables"][setting][label], name) for run in mlps for name in peers]
            rows.append([label.replace("batch", heading), *cells])
    return table(["", *(f"{machine(run)}: ours / {name}" for run in mlps for name in peers.values())], rows)


def table_cell(row, name):
    value = row[f"against_{name}"]
    return with_spread(value, row["spread"][name]) if "spread" in row else f"{value:.2f}"


def repeated(mlps):
    """What the two rows of the default network are: the measurement above, or others, which earlier runs made."""
    above, again = [], []
    for run in mlps:
        rows = [run["tables"]["batch_size"][f"batch {run['batch_size']}"], run["tables"]["hidden"][run["network"]]]
        values = [run["ratios"]["torch_fused"], *(row["against_torch_fused"] for row in rows)]
        if len(set(values)) == 1:
            above.append(machine(run))
        else:
            again.append(f"{listed([f'{value:.2f}' for value in values])} on the {machine(run)}")
    sentences = [f"Batch size {mlps[0]['batch_size']} and {mlps[0]['network']} are the network above."]
    if above:
        sentences.append(f"On the {listed(above)}, they are the measurement above; the other rows have fewer rounds.")
    if again:
        sentences.append(f"Measured again, ours / PyTorch was {listed(again)}; differences of this size are noise. Where no "
                         "spread is given, it was not recorded.")  # fmt: skip
    return " ".join(sentences)


def processes(mlps):
    """Memory, cold start and prediction."""
    rows = [[machine(run), NAMES[name], f"{row['peak_memory_mib']:,.0f} MiB" if row["peak_memory_mib"] else "-",
             f"{row['seconds']:.1f} s", f"{run['images_per_second_predicted'][name]:,.0f}"]
            for run in mlps for name, row in run["cold_start"].items()]  # fmt: skip
    return table(["machine", "implementation", "peak memory", "end of the first epoch", "images/s, prediction"], rows)


def speedup(cnns):
    cells = (with_spread(run["speedup"]["tutorial"], run["spread"]["tutorial"]) for run in cnns)
    rounds = (len(run["seconds"]["ours"]) for run in cnns)
    header = ["", *map(machine_precision, cnns), "target, at least"]
    rows = [["images/s, ours / tutorial", *cells, f"{cnns[0]['targets']['tutorial']:.1f}"], ["rounds", *rounds, ""]]
    return table(header, rows)


def profiled(cnns):
    """The runs whose shares were measured with PyTorch's profiler; older files have shares measured by other means."""
    return [run for run in cnns if isinstance(run["default_seconds"], list)]


def shares(cnns):
    columns = [{"convolutions": run["shares"]["convolutions"],
                "normalization, pooling, activation, linear layer": run["shares"]["layers"] - run["shares"]["convolutions"],
                "augmentation, loss, optimizer, moving average": run["shares"]["outside"]}
               for run in profiled(cnns)]  # fmt: skip
    rows = [[name, *(f"{100 * column[name]:.1f} %" for column in columns)] for name in columns[0]]
    return table(["share of a training epoch", *map(machine_precision, profiled(cnns))], rows)


def joint(hybrids):
    cells = (ratio(run, "torch_reference", ".3f") for run in hybrids)
    row = ["time, MLP in NumPy / MLP in PyTorch", *cells, f"{hybrids[0]['targets']['torch_reference']:.3f}"]
    return table(["", *map(machine_precision, hybrids), "target, at most"], [row])


def reached(race):
    if race["ratio"] is None:
        return "The default CNN did not reach it."
    return (f"The default CNN reached it after {race['seconds']['ours']:,.0f} s, {race['ratio']:.2f} times as long (target: "
            f"at most {race['target']}).")  # fmt: skip


def targets(mlps, cnns, hybrids, race):
    """Where each target was reached, and where it was missed."""
    results = {NAMES[name]: [(run, run["ratios"][name] <= target) for run in mlps]
               for name, target in mlps[0]["targets"].items()}  # fmt: skip
    results["speed of the CNN"] = [(run, run["speedup"]["tutorial"] >= run["targets"]["tutorial"]) for run in cnns]
    results["joint training"] = [(run, run["ratios"]["torch_reference"] <= run["targets"]["torch_reference"])
                                 for run in hybrids]  # fmt: skip
    results["time to accuracy"] = [(race, race["ratio"] is not None and race["ratio"] <= race["target"])]
    rows = [[name, *(", ".join(machine(run) for run, is_reached in runs if is_reached == flag) or "-"
                     for flag in (True, False))] for name, runs in results.items()]  # fmt: skip
    return table(["target", "reached on", "missed on"], rows)


def benchmark_readme(results=ROOT / "results"):
    """The text of results/benchmark/README.md, from the json files in the folder `results`."""
    mlps, cnns, hybrids = (load(results, name) for name in ("mlp", "cnn", "hybrid"))
    race = json.loads((results / FOLDERS[0] / "race.json").read_text(encoding="utf-8"))
    run = profiled(cnns)[0]
    text = TEXT.format(
        mlp=mlps[0], cnn=cnns[0], hybrid=hybrids[0], race=race, threads=mlps[0]["threads"],
        mlp_rounds=len(mlps[0]["seconds_per_epoch"]["ours"]), rivals=rivals(mlps), lower_bound=lower_bound(mlps),
        tables=tables(mlps), repeated=repeated(mlps), processes=processes(mlps), mlp_sources=sources("mlp", mlps),
        speedup=speedup(cnns), rate=run["images"] / median(run["default_seconds"]), shares=shares(cnns),
        cnn_sources=sources("cnn", cnns), hybrid_rounds=len(hybrids[0]["seconds"]["ours"]), joint=joint(hybrids),
        hybrid_sources=sources("hybrid", hybrids), tutorial_epochs=len(race["rows"]["tutorial"]),
        our_epochs=len(race["rows"]["ours"]), best_accuracy=100 * race["accuracy"], reached=reached(race),
        race_machine=machine(race), race_sources=sources("race", [race]), targets=targets(mlps, cnns, hybrids, race),
    )  # fmt: skip
    paragraphs = text.strip().split("\n\n")
    return "\n".join(f"{block}\n" if block[0] in "#|!" else wrapped(block) for block in split_tables(paragraphs))


def split_tables(paragraphs):
    """The paragraphs, a table apart from the text that follows it."""
    for paragraph in paragraphs:
        lines = paragraph.splitlines()
        rows = [line for line in lines if line.startswith("|")]
        yield from filter(None, ("\n".join(rows), "\n".join(lines[len(rows) :])))
