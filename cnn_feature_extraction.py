"""A convolutional network in PyTorch, trained on Fashion-MNIST, and the flattened features it gives of every image.

    python cnn_feature_extraction.py

ends, after 199 s on 2 cores of an AMD EPYC (Python 3.11.7, NumPy 2.4.6, torch 2.15.0, in bfloat16), with

    Fashion-MNIST                       validation      test
    CNN 24-48-96-96-192                   94.09%      93.54%
      mean with the mirrored image's      94.41%      93.77%
"""

import contextlib
import copy
import io
import json
import math
import os
import shutil
import sys
import time
import zipfile
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import data
import insights
import plots
import runs
import settings
from backbone import build, layout, sides, stage_table

# ---- settings: edit here, or override any of them on the command line (--epochs 5) ----
EPOCHS = 13  # passes over the training set, in [1, inf)
BATCH_SIZE = 256  # images in each step, in [1, inf)
CHANNELS: tuple = (24, 48, 96, 96, 192)  # output channels of each convolution, in [1, inf)
KERNEL_SIZES: tuple = (3,)  # of each convolution, in pixels; a single one is for all, in [1, 27]
POOL_AFTER: tuple = (1, 2, 4)  # the convolutions, counted from 1, that a 2 x 2 pooling follows, in [1, inf)
POOL = "max"  # what the pooling takes of four pixels: {max, average}
REDUCE = "flatten"  # what is made of the last maps: all of their pixels, or the mean of each map: {flatten, average}
ACTIVATION = "relu"  # of all layers: {relu, leaky_relu, tanh, gelu, sigmoid}
DROPOUT = 0.0  # share of what each convolution puts out that a training step leaves out, in [0, 1)
FC: tuple = ()  # neurons of the fully connected layers before the classifier; the last one gives the features; in [1, inf)
FC_NORM = False  # layer normalisation in each of them
FC_DROPOUT = 0.0  # share of their neurons that a training step leaves out, in [0, 1)
INIT = "he"  # how the weights are drawn, but for the classifier's: {he, xavier, random}
INIT_SCALE = 0.05  # standard deviation of the weights that random draws, in (0, 100]
BATCH_NORM = True  # batch normalisation after each convolution; without it, try --learning-rate 0.02
OPTIMIZER = "nesterov"  # SGD with Nesterov's momentum; about 0.003 suits the others: {nesterov, adam, adamw}
LEARNING_RATE = 0.2  # the highest one, in (0, inf)
SCHEDULE = "triangle"  # how it goes on after its rise: to 0 in a straight line, or along a cosine, or it stays:
                       # {triangle, cosine, constant}
WARMUP = 0.2  # the part of the training in which it rises, in a straight line, in (0, 1)
MOMENTUM = 0.9  # of nesterov, in (0, 1)
WEIGHT_DECAY = 0.0005  # added to the gradient as L2; by adamw decoupled from it, in [0, inf)
LABEL_SMOOTHING = 0.1  # the share of each label that is spread over all classes, in [0, 1)
FLIP = True  # show half of the training images mirrored, drawn anew in each epoch
SHIFT = 1  # move each training image by up to so many pixels, drawn anew in each epoch, in [0, 27]
ERASE = 0  # side of a square of noise in half of the training images, in pixels, drawn anew in each epoch, in [0, 28]
FLIP_AVERAGE = True  # with FLIP, also tell the accuracies by the mean of the logits of each image and its mirror image
AVERAGE = 0.995  # decay of the running average of the weights, which is what is evaluated and saved, in [0, 1)
DEVICE = "auto"  # where to train; auto takes the first that is there: {auto, cuda, mps, cpu}
PRECISION = "auto"  # of the training's convolutions; auto takes what is faster here: {auto, float32, bfloat16}
COMPILE = False  # let torch.compile put layers together, which needs a C++ compiler; on two CPU cores it did not pay
RESUME = ""  # the folder of a run that was stopped, to take it up again with its own settings; on a CPU, with as many
             # threads, bit for bit
SEED = 0  # of the initial weights, the order of the batches and the augmentation, in [0, inf)
SEEDS = 1  # runs, one for each seed from SEED on; metrics.json then has means, deviations and single values; in [1, 1000]
QUICK = False  # a tour of half a minute: 4 epochs at most, on a subset; its figures are only a tour's
# ----


def processes():
    """(number of this process, number of all) under torchrun, which this process joins at the first call; else (0, 1)."""
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group()  # gloo between processors, NCCL between GPUs
    return dist.get_rank(), dist.get_world_size()


def pick_device(name):
    """The torch.device of "cuda", "mps" or "cpu", or the first of them that is there. Raises settings.SettingError.

    Under torchrun, each process of a machine takes a GPU of its own.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, available in there.items() if available)
    if not there[name]:
        raise settings.SettingError(f"--device {name}: this machine or this PyTorch has none; choose auto or cpu")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        number, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= gpus:
            raise settings.SettingError(f"--device {name}: more processes than GPUs on this machine, {gpus}; lower "
                                        "torchrun's --nproc-per-node, or choose cpu")  # fmt: skip
        torch.cuda.set_device(number)
    return torch.device(name)


def pick_precision(name, model, device):
    """torch.float32 or torch.bfloat16. "auto" on a CPU that can multiply bfloat16 times a few steps of both, taking turns.

    Without such instructions bfloat16 is emulated, several times slower (pytorch issues 118499, 146508), and with them
    some builds are still slow (183815): hence the trial. The fastest step of each counts, the least disturbed one: by the
    sum of its steps, a run that began just after other work has once come to float32.
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "mps":
        return torch.float32
    unknown = {"bf16": True}  # an older torch cannot tell: the trial will
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else unknown
    if not any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "avx10_1", "bf16")):
        return torch.float32
    model, x, y = copy.deepcopy(model), torch.rand(128, 1, 28, 28), torch.zeros(128, dtype=torch.long)
    fastest = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    for dtype in 6 * tuple(fastest):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss = F.cross_entropy(model(layout(x)), y)
        loss.backward()
        fastest[dtype] = min(fastest[dtype], time.perf_counter() - start)
    return min(fastest, key=fastest.get)


def augment(x, flip, shift, generator, erase=0):
    """x (N, 1, 28, 28), each image mirrored with probability 1/2 and moved by up to `shift` pixels, background coming in.

    With `erase`, half of them get a square of so many pixels of noise (Zhong et al. 2020, with one size).
    """
    n, _, height, width = x.shape
    if flip:
        mirrored = torch.rand(n, 1, 1, 1, generator=generator, device=x.device) < 0.5
        x = torch.where(mirrored, x.flip(3), x)
    if shift:
        x = F.pad(x, 4 * (shift,))
        down, right = torch.randint(2 * shift + 1, (2, n, 1, 1), generator=generator, device=x.device)
        image = torch.arange(n, device=x.device)[:, None, None]
        rows = torch.arange(height, device=x.device)[:, None] + down  # (N, 28, 1)
        columns = torch.arange(width, device=x.device) + right  # (N, 1, 28)
        x = x[image, 0, rows, columns][:, None]  # -> (N, 1, 28, 28)
    if erase:
        top = torch.randint(height - erase + 1, (n, 1, 1, 1), generator=generator, device=x.device)
        left = torch.randint(width - erase + 1, (n, 1, 1, 1), generator=generator, device=x.device)
        row, column = torch.arange(height, device=x.device)[:, None], torch.arange(width, device=x.device)
        inside = (row >= top) & (row < top + erase) & (column >= left) & (column < left + erase)
        inside &= torch.rand(n, 1, 1, 1, generator=generator, device=x.device) < 0.5
        x = torch.where(inside, torch.rand(x.shape, generator=generator, device=x.device), x)
    return x


def optimizer_of(parameters, s):
    """The optimiser of the settings `s`."""
    if s.optimizer == "nesterov":
        return torch.optim.SGD(parameters, s.learning_rate, s.momentum, weight_decay=s.weight_decay, nesterov=True)
    made = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[s.optimizer]
    return made(parameters, s.learning_rate, weight_decay=s.weight_decay)


def rate_at(done, s):
    """The learning rate when the share `done` of the training is over, from 0 to 1."""
    if done < s.warmup or s.schedule == "triangle":
        return s.learning_rate * float(np.interp(done, [0, s.warmup, 1], [0.05, 1, 0]))
    fall = (done - s.warmup) / (1 - s.warmup)
    return s.learning_rate * {"cosine": (1 + math.cos(math.pi * fall)) / 2, "constant": 1.0}[s.schedule]


def generator(device, seed, *purpose):
    """A torch.Generator on the device; other whole numbers as its purpose give another, independent one."""
    return torch.Generator(device).manual_seed(int(np.random.SeedSequence(seed, spawn_key=purpose).generate_state(1)[0]))


class Training:
    """A training of `model`, on its device, with the settings `s`, and all that changes while it goes on.

    What `arrays` and `about` return after an epoch, `take_up` puts into a new Training. On a CPU it then goes on bit for bit
    as if never stopped, since what an epoch draws depends on the seed and the epoch's number alone.

    head: the model's classifier, where that is a module with a method `step`, by which it learns. Of several processes
    (torchrun), each takes a part of every batch; their gradients are averaged, and batch normalisation goes by each one's
    part.
    """

    def __init__(self, model, s, dtype=torch.float32, head=None):
        self.model, self.s, self.dtype, self.head = model, s, dtype, head
        self.rank, self.world = processes()
        self.network = DistributedDataParallel(model) if self.world > 1 else torch.compile(model) if s.compile else model
        self.averaged = AveragedModel(model, multi_avg_fn=self.average, use_buffers=True)
        self.optimizer = optimizer_of((model.backbone if head else model).parameters(), s)
        self.steps = 0  # done so far
        self.history = {column: [] for column in runs.COLUMNS}

    def average(self, averages, values, _):
        decay = min(self.s.average, self.steps / (9 + self.steps))  # forgets faster at the start: little to remember
        get_ema_multi_avg_fn(decay)(averages, values, _)

    def arrays(self):
        """{name: NumPy array}"""
        parts = {"model": self.model, "averaged": self.averaged}
        tensors = {f"{part}.{name}": value for part, of in parts.items() for name, value in of.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items() if torch.is_tensor(value)}
        own = {name: value.cpu().contiguous().numpy() for name, value in tensors.items()}
        return own | ({f"head.{name}": array for name, array in self.head.arrays().items()} if self.head else {})

    def about(self):
        """The rest, as a dict for JSON."""
        return {"epoch": len(self.history["epoch"]), "steps": self.steps, "history": self.history, "processes": self.world,
                "precision": str(self.dtype).removeprefix("torch.")}  # fmt: skip

    def take_up(self, tensors, about):
        """Go on from what `arrays` and `about` have returned. Raises ValueError, RuntimeError or LookupError."""
        of = {part: {name.removeprefix(f"{part}."): array for name, array in tensors.items() if name.startswith(f"{part}.")}
              for part in ("model", "averaged", "optimizer", "head")}  # fmt: skip
        if about["processes"] != self.world:
            raise ValueError(f"of a training by {about['processes']} processes, not {self.world}")
        if about["steps"] and not of["optimizer"]:
            raise ValueError("the optimiser's state is missing")
        for part in ("model", "averaged"):
            getattr(self, part).load_state_dict({name: torch.from_numpy(array) for name, array in of[part].items()})
        parameters, state = self.optimizer.param_groups[0]["params"], {}
        for name, array in of["optimizer"].items():
            number, name = name.split(".", 1)
            value = torch.from_numpy(array)
            like = parameters[int(number)]
            if value.shape == like.shape:  # in the same order in memory, so that the same instructions work on it
                value = torch.empty_like(like, requires_grad=False).copy_(value)
            state.setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        if self.head:
            self.head.take_up(of["head"])
        self.steps, self.history, self.dtype = about["steps"], about["history"], getattr(torch, about["precision"])

    def step(self, x, y, share, rate):
        """One step on images x (n, 1, 28, 28), y (n,): (loss, how many were right), tensors.

        share: this process's part of the batch, times the number of processes; its loss counts as much.
        """
        self.optimizer.param_groups[0]["lr"] = rate
        with torch.autocast(y.device.type, torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            logits = self.network(x)
            loss = F.cross_entropy(logits, y, label_smoothing=self.s.label_smoothing)
            loss = loss * share  # the processes' mean is then that of the whole batch
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.head:
            self.head.step(rate / self.s.learning_rate)
        self.steps += 1
        self.averaged.update_parameters(self.model)
        return loss.detach(), (logits.argmax(1) == y).sum()

    def one_epoch(self, X, y, done=lambda: None):
        """(mean loss, accuracy, last learning rate) of an epoch on X (N, 1, 28, 28), y (N,); `done` after each step.

        Mean over its augmented batches while the weights move, with label smoothing.
        """
        s, rank, world, epoch = self.s, self.rank, self.world, len(self.history["epoch"])
        own = generator(y.device, s.seed, epoch, rank + 1)
        torch.manual_seed(generator("cpu", s.seed, epoch, rank + 1, 1).initial_seed())  # nn.Dropout takes no generator
        batches = torch.randperm(len(y), generator=generator(y.device, s.seed, epoch), device=y.device).split(s.batch_size)
        total = s.epochs * len(batches)
        if len(batches[-1]) < world * (1 + s.batch_norm) and len(batches) > 1:
            batches = batches[:-1]  # each process needs an image, or two, since one has no variance to normalise by
        self.model.train()
        loss_sum, correct = torch.zeros(2, device=y.device)
        for number, batch in enumerate(batches, epoch * (total // s.epochs)):
            mine, rate = batch[rank::world], rate_at(number / total, s)
            x = layout(augment(X[mine], s.flip, s.shift, own, s.erase))
            loss, right = self.step(x, y[mine], len(mine) * world / len(batch), rate)
            loss_sum += loss * len(batch) / world
            correct += right
            done()
        if world > 1:
            dist.all_reduce(loss_sum)
            dist.all_reduce(correct)
        seen = sum(map(len, batches))
        return float(loss_sum) / seen, float(correct) / seen, rate

    def run(self, X, y, X_val, y_val, log, keep=lambda: None):
        """Train to the last epoch. X (N, 1, 28, 28), y (N,), X_val, y_val: tensors on the model's device.

        After each epoch `keep` is called, and `log` gets a row (a dict of runs.COLUMNS), its validation columns those of the
        averaged weights. Raises runs.Diverged.
        """
        total, before = (n * math.ceil(len(y) / self.s.batch_size) for n in (self.s.epochs, len(self.history["epoch"])))
        with tqdm(total=total, initial=before, disable=bool(self.rank) or None, leave=False, unit="batch") as bar:
            for epoch in range(len(self.history["epoch"]) + 1, self.s.epochs + 1):
                start = time.perf_counter()
                train_loss, train_accuracy, rate = self.one_epoch(X, y, bar.update)
                logits = classify(self.averaged.module, extract(self.averaged.module, X_val, self.dtype))
                val_loss, val_accuracy = score(logits, y_val)
                if not math.isfinite(train_loss + val_loss):
                    what = f"the loss became {train_loss + val_loss:g} in epoch {epoch}, at learning rate {rate:g}"
                    too = " or --joint-learning-rate" if self.head else ""
                    raise runs.Diverged(f"{what}: lower --learning-rate{too}")
                values = epoch, train_loss, train_accuracy, val_loss, val_accuracy, rate, time.perf_counter() - start
                row = dict(zip(runs.COLUMNS, values, strict=True))
                for column, value in row.items():
                    self.history[column].append(value)
                keep()
                log(row)


@torch.no_grad()
def extract(model, X, dtype=torch.float32):
    """Flattened features (N, F) of X (N, 1, 28, 28) in order, on its device, float32; in eval mode, which it leaves on."""
    model.eval()
    with torch.autocast(X.device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
        return torch.cat([model.features(layout(x)).float() for x in X.split(500)])


def features_of(model, X):
    """The same of images X (N, 28, 28), a NumPy array; a tensor on the model's device."""
    return extract(model, torch.from_numpy(np.ascontiguousarray(X))[:, None].to(model.mean.device))


@torch.no_grad()
def classify(model, features):
    """Logits (N, classes) of features (N, F), a tensor or NumPy array, by the network's own classifier."""
    return model.classifier(torch.as_tensor(features, device=model.mean.device)).float()


def score(logits, y):
    """(cross-entropy, accuracy) of logits (N, classes) against labels (N,)."""
    return F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).sum().item() / len(y)


def with_mirrored(model, images, val, test):
    """{"val_accuracy_mirrored": ..., "test_...": ...} of the logits val, test (N, classes) plus those of mirrored images."""
    found = {}
    for part, logits in (("val", val), ("test", test)):
        of = getattr(images, part)
        mirrored = classify(model, features_of(model, of.X[:, :, ::-1])).cpu()
        found[f"{part}_accuracy_mirrored"] = score(logits + mirrored, torch.from_numpy(of.y))[1]
    return found


def save(path, model, images, s):
    """Write the network, its settings and what it was trained on as one safetensors file."""
    tensors = {name: value.cpu().contiguous().numpy() for name, value in model.state_dict().items()}
    about = {"model": "cnn", "settings": runs.of_training(vars(s)), "trained_on": model.trained_on}
    about |= {"dataset": images.name, "classes": images.classes, "split_seed": s.split_seed}
    runs.save_weights(path, tensors, about)


def restore(path):
    """(model on the CPU, about) of a file that `save` wrote. Raises runs.RunError."""
    tensors, about = runs.load_weights(path)
    if about.get("model") != "cnn":
        raise runs.RunError(f"{path}: holds a {about.get('model')}, not the CNN")
    with runs.as_written(path):
        model = build(SimpleNamespace(**about["settings"]), len(about["classes"]))
        model.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
        about["dataset"], about["split_seed"]
        model.trained_on = about["trained_on"]
    return model, about


def cached_features(path, model, images, instead=None):
    """The flattened features of all three splits, in dataset order, kept in the file `path` and taken from there.

    Returns {"X_train": (N, F) float32, "y_train": (N,), "index_train": (N,), ... _val ... _test}. The file knows the
    weights, the data and the split that it was made from: where they differ, it is made again, or the file `instead` is, and
    the reason printed.
    """
    weights = data.digest(*(value.cpu().numpy() for value in model.state_dict().values()))
    parts = ("train", "val", "test")
    made_from = {"weights": weights, "data and split": images.fingerprint(), "layer": "flatten", "format": 1}
    if path.exists():
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                found = json.loads(str(file["made_from"]))
                changed = [name for name in made_from if found.get(name) != made_from[name]]
                if not changed:
                    features = {f"{kind}_{part}": file[f"{kind}_{part}"] for kind in ("X", "y", "index") for part in parts}
                    print(f"features are taken from {path}")
                    return features
            reason = f"was made from other {' and other '.join(changed)}"
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            reason = f"cannot be read ({error})"
        print(f"{path} {reason}: extracting the features again")
        path = instead or path
    features = {}
    for part in parts:
        split = getattr(images, part)
        features[f"X_{part}"] = features_of(model, split.X).cpu().numpy()
        features[f"y_{part}"], features[f"index_{part}"] = split.y, split.index
    try:
        with runs.whole(path) as part, part.open("wb") as file:
            np.savez(file, made_from=json.dumps(made_from), **features)
        print(f"features: {features['X_train'].shape[1]:,} of each image, {path.stat().st_size / 1e6:.0f} MB in {path}")
    except OSError as error:
        print(f"features are not kept: {path} cannot be written ({error.strerror})")
    return features


def train(images, s, run, history="history.csv", start=None, head=None):
    """A CNN with the settings `s` of this script, trained on images.train: (model, history), the latter {column: [...]}.

    It begins as the CNN `start`, else with new weights; with s.resume, it goes on from the checkpoint there. A `head` (see
    Training) takes the place of the linear classifier. Raises settings.SettingError for a device that is not there, and
    runs.RunError where a GPU's memory does not suffice or the checkpoint does not fit.
    """
    device = pick_device(s.device)
    mean, std = data.statistics(images.train.X)
    model = start or build(s, len(images.classes), mean, std, generator("cpu", s.seed))
    if head:
        model.classifier = head
    model = model.to(device)
    if device.type != "mps":
        model = model.to(memory_format=torch.channels_last)
    precision = [pick_precision(s.precision, model, device)]
    if processes()[1] > 1:  # a trial may end otherwise in each of them: the first one's counts
        dist.broadcast_object_list(precision)
    training = Training(model, s, *precision, head)
    split = data.digest(images.train.index, images.train.y)
    if s.resume:
        runs.take_up(training, s, split)
        run.go_on(training.history, history)
    run.keep(training, split)  # before the first epoch: the precision that auto has come to stays
    trained_on = {"device": device.type, "precision": training.about()["precision"]}  # what auto has come to
    print(stage_table(model))
    size = sum(p.numel() for p in model.parameters())  # in joint training without those of the MLP
    print(f"{model.name}: {size:,} parameters, on {trained_on['device']} in {trained_on['precision']}")
    try:
        tensors = [torch.from_numpy(a).to(device) for part in (images.train, images.val) for a in (part.X[:, None], part.y)]
        training.run(*tensors, lambda row: run.log(row, history), lambda: run.keep(training, split))
    except torch.cuda.OutOfMemoryError:
        other = f"--batch-size {s.batch_size // 2}" if s.batch_size > 1 else "--device cpu"
        message = f"the GPU's memory is too small for --batch-size {s.batch_size}: try {other}"
        raise runs.RunError(message) from None
    model = training.averaged.module
    model.trained_on = trained_on
    return model, training.history


def check(s):
    """Raise settings.SettingError, before any data is read, for an impossible network or a device that is not there."""
    if len(s.kernel_sizes) not in (1, len(s.channels)):
        raise settings.SettingError(f"--kernel-sizes: {len(s.kernel_sizes)} for {len(s.channels)} convolutions; give one "
                                    "for each, or one for all")  # fmt: skip
    side = sides(s.channels, s.pool_after)[-1]
    if s.batch_norm and s.batch_size == 1 and side == 1:
        raise settings.SettingError("--batch-size 1: batch normalisation of 1 x 1 maps needs 2 images or more")
    several, least = processes()[1] > 1, processes()[1] * (1 + s.batch_norm)
    if several and s.batch_size < least:
        raise settings.SettingError(f"--batch-size {s.batch_size}: with so many processes at least {least}")
    if s.seeds > 1 and several:
        raise settings.SettingError(f"--seeds {s.seeds}: torchrun trains one at a time; give it --seed")
    on_cpu = pick_device(s.device).type == "cpu"
    if s.compile and several:
        raise settings.SettingError("--compile: not with torchrun")
    if s.compile and on_cpu and not any(map(shutil.which, ("g++", "clang++", "c++", "cl"))):
        raise settings.SettingError("--compile: needs a C++ compiler, and none is here; leave it out")


def tour(s):
    """The settings of --quick: fewer epochs, and smaller batches and steps, so that there are still enough of them."""
    batch_size = min(s.batch_size, 64)
    s.learning_rate *= batch_size / s.batch_size  # the linear scaling rule, Goyal et al. 2017
    s.epochs, s.batch_size = min(s.epochs, 4), batch_size


def run(s):
    """The whole job with the settings `s`: load, train, extract, test, save. Returns what metrics.json holds."""
    check(s)
    rank, world = processes()
    if rank:
        dist.barrier()  # until the first process has the data: once is enough to download it
    images = data.load(s.dataset, s.data_dir, s.offline_fallback, s.split_seed, s.quick)
    if world > 1 and not rank:
        dist.barrier()
    if s.quick:
        tour(s)
    if rank:  # the first process reports and writes; the others only train
        silent = SimpleNamespace(**dict.fromkeys(("log", "keep", "go_on"), lambda *whatever: None))
        with contextlib.redirect_stdout(io.StringIO()):
            train(images, s, silent)
        dist.destroy_process_group()
        return None
    with runs.Run("cnn_feature_extraction", s) as run:
        model, history = train(images, s, run)
        if world > 1:
            dist.destroy_process_group()
        save(run.path / "backbone.safetensors", model, images, s)
        features = cached_features(run.path / "features.npz", model, images)
        val, test = (classify(model, features[f"X_{part}"]).cpu() for part in ("val", "test"))
        _, val_accuracy = score(val, torch.from_numpy(images.val.y))
        test_loss, test_accuracy = score(test, torch.from_numpy(images.test.y))

        title = f"{model.name} on {images.name}"
        run.save({"curves.png": plots.curves(history, title, s.flip or s.shift or s.erase, s.label_smoothing)})
        run.save(plots.evaluation(images.test.X, images.test.y, test.softmax(1).numpy(), images.classes, title))
        run.save(insights.figures(model, images, features, test, title))
        table, more = {model.name: (val_accuracy, test_accuracy)}, {}
        if s.flip and s.flip_average:
            more = with_mirrored(model, images, val, test)
            table["  mean with the mirrored image's"] = tuple(more.values())
        return run.finish(table, dataset=images.name, model=model.name, **images.sizes, val_accuracy=val_accuracy,
                          test_accuracy=test_accuracy, test_loss=test_loss, parameters=model.size,
                          features=features["X_train"].shape[1], **more, **model.trained_on)  # fmt: skip


def main(argv=None):
    runs.over_seeds("cnn_feature_extraction", run, settings.parse(sys.modules[__name__], data, runs, argv=argv), check)


if __name__ == "__main__":
    runs.command(main)
