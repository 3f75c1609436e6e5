"""A convolutional network in PyTorch, trained on Fashion-MNIST, and the flattened features it gives of every image.

    python cnn_feature_extraction.py

ends, after 335 s on 2 cores of an Intel(R) Xeon(R) Processor @ 2.50GHz (Python 3.11.7, NumPy 2.4.6, torch 2.15.0), with

    Fashion-MNIST          validation      test
    CNN 32-48-96-96-192      94.08%      93.25%
"""

import contextlib
import copy
import io
import json
import math
import os
import sys
import time
import zipfile
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

import data
import plots
import runs
import settings

# ---- settings: edit here, or override any of them on the command line (--epochs 5) ----
EPOCHS = 12  # passes over the training set, in [1, inf)
BATCH_SIZE = 256  # images in each step, in [1, inf)
CHANNELS = (32, 48, 96, 96, 192)  # output channels of each 3 x 3 convolution, in [1, inf)
POOL_AFTER = (1, 2, 4)  # the convolutions, counted from 1, that a 2 x 2 max-pooling follows, in [1, inf)
BATCH_NORM = True  # batch normalisation after each convolution; without it, try --learning-rate 0.02
LEARNING_RATE = 0.2  # the highest one: it rises in a straight line, then falls to 0, in (0, inf)
WARMUP = 0.2  # the part of the training in which it rises, in (0, 1)
MOMENTUM = 0.9  # of SGD, Nesterov's, in (0, 1)
WEIGHT_DECAY = 0.0005  # of SGD, in [0, inf)
LABEL_SMOOTHING = 0.1  # the share of each label that is spread over all classes, in [0, 1)
FLIP = True  # show half of the training images mirrored, drawn anew in each epoch
SHIFT = 1  # move each training image by up to so many pixels, drawn anew in each epoch, in [0, 27]
AVERAGE = 0.995  # decay of the running average of the weights, which is what is evaluated and saved, in [0, 1)
DEVICE = "auto"  # where to train; auto takes the first that is there: {auto, cuda, mps, cpu}
PRECISION = "auto"  # of the training's convolutions; auto takes what is faster here: {auto, float32, bfloat16}
SEED = 0  # of the initial weights, the order of the batches and the augmentation, in [0, inf)
QUICK = False  # a tour of half a minute: 4 epochs at most, on a subset; its figures are only a tour's
# ----


class CNN(nn.Module):
    """3 x 3 convolutions, each with max-pooling (or not), batch normalisation (or not) and ReLU, then a linear classifier.

    Pooling comes before normalisation and ReLU, which then have a quarter of the pixels to do. Input: (N, 1, 28, 28) in
    [0, 1]; `mean` and `std` of the training pixels are part of the model. Initial weights: N(0, 2 / fan_in), He et al. 2015.
    """

    def __init__(self, channels, pool_after, batch_norm=True, classes=10, mean=0.0, std=1.0, generator=None):
        super().__init__()
        self.name = f"CNN {'-'.join(map(str, channels))}"
        self.trained_on = {}  # {"device": ..., "precision": ...}
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        stages, n_in = [], 1
        for number, n_out in enumerate(channels, 1):
            stages.append(nn.Conv2d(n_in, n_out, 3, padding=1, bias=not batch_norm))
            nn.init.kaiming_normal_(stages[-1].weight, nonlinearity="relu", generator=generator)
            if not batch_norm:
                nn.init.zeros_(stages[-1].bias)
            if number in pool_after:
                stages.append(nn.MaxPool2d(2))
            if batch_norm:
                stages.append(nn.BatchNorm2d(n_out))
            stages.append(nn.ReLU())
            n_in = n_out
        side = sides(channels, pool_after)[-1]
        self.backbone = nn.Sequential(*stages, nn.Flatten())  # -> (N, n_out * side * side)
        self.classifier = nn.Linear(n_in * side * side, classes)
        nn.init.normal_(self.classifier.weight, std=self.classifier.in_features**-0.5, generator=generator)
        nn.init.zeros_(self.classifier.bias)
        self.size = sum(p.numel() for p in self.parameters())

    def features(self, x):
        return self.backbone((x - self.mean) / self.std)

    def forward(self, x):
        return self.classifier(self.features(x))


def sides(channels, pool_after):
    """Side of the square feature maps after each stage, in pixels. Raises settings.SettingError for an impossible stack."""
    given = "--pool-after " + " ".join(map(str, pool_after))
    if not channels:
        raise settings.SettingError("--channels: at least one convolution")
    if pool_after and max(pool_after) > len(channels):
        raise settings.SettingError(f"{given}: the last convolution is number {len(channels)}")
    result = [28]
    for number in range(1, len(channels) + 1):
        result.append(result[-1] // 2 if number in pool_after else result[-1])
        if result[-1] == 0:
            raise settings.SettingError(f"{given}: the maps of convolution {number} would be 0 x 0 pixels: remove a pool")
    return result[1:]


def stages(channels, pool_after, batch_norm, classes):
    """What the network is made of: [(name, shape of what it puts out, parameters, multiply-adds for an image), ...]."""
    rows, n_in, side = [], 1, 28
    for number, (n_out, new_side) in enumerate(zip(channels, sides(channels, pool_after), strict=True), 1):
        more = (", max-pooling" if number in pool_after else "") + (", batch norm" if batch_norm else "")
        parameters = 9 * n_in * n_out + (2 * n_out if batch_norm else n_out)  # gamma and beta, or a bias
        work = 9 * n_in * n_out * side**2
        rows.append((f"convolution {number}{more}, ReLU", (n_out, new_side, new_side), parameters, work))
        n_in, side = n_out, new_side
    features = n_in * side**2
    return [*rows, ("flatten, linear classifier", (classes,), features * classes + classes, features * classes)]


def stage_table(*arguments):
    """The same as text, with the sums. Arguments as for `stages`."""
    rows = stages(*arguments)
    rows.append(("sum", (), sum(row[2] for row in rows), sum(row[3] for row in rows)))
    lines = [f"{'stage':<46}{'output':>14}{'parameters':>12}{'multiply-adds':>15}"]
    for name, shape, parameters, work in rows:
        lines.append(f"{name:<46}{' x '.join(map(str, shape)):>14}{parameters:12,}{work:15,}")
    return "\n".join(lines)


def processes():
    """(number of this process, number of all) under torchrun, which this process joins at the first call; else (0, 1)."""
    if "RANK" not in os.environ:
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
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device(name)


def pick_precision(name, model, device):
    """torch.float32 or torch.bfloat16. "auto" on a CPU that can multiply bfloat16 times a few steps of both.

    Without such instructions bfloat16 is emulated, several times slower (pytorch issues 118499, 146508), and with them
    some builds are still slow (183815): hence the trial.
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
    seconds = {}
    for dtype in 2 * (torch.float32, torch.bfloat16):  # the second time is the measured one, the first loads the kernels
        start = time.perf_counter()
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
                loss = F.cross_entropy(model(layout(x)), y)
            loss.backward()
        seconds[dtype] = time.perf_counter() - start
    return min(seconds, key=seconds.get)


def layout(x):
    """Channels last, which oneDNN and cuDNN are faster with; Metal is not."""
    return x if x.device.type == "mps" else x.contiguous(memory_format=torch.channels_last)


def augment(x, flip, shift, generator):
    """x (N, 1, 28, 28), each image mirrored with probability 1/2 and moved by up to `shift` pixels, background coming in."""
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
    return x


def fit(model, X, y, X_val, y_val, s, dtype, generator, log, after_step=lambda share: None):
    """Train `model`, which is on the device of the tensors X (N, 1, 28, 28) and y (N,), with the settings `s`.

    SGD with Nesterov momentum, the learning rate a triangle (Smith and Topin 2018). `log` gets a row (a dict of
    runs.COLUMNS) after each epoch: training columns are means over its augmented batches, with label smoothing;
    validation is of the averaged weights, without. `after_step` is called in each step with the learning rate's share of
    the highest. Of several processes (torchrun), each takes a part of every batch; their gradients are averaged, and batch
    normalisation goes by each one's part. Returns (the averaged model, the rows as columns). Raises runs.Diverged.
    """

    def average(averages, values, _):
        weight = 1 - min(s.average, (1 + step) / (10 + step))  # forgets faster at the start, with little to remember
        for mean, value in zip(averages, values, strict=True):
            mean.copy_(mean.lerp(value, weight) if mean.is_floating_point() else value)

    rank, world = processes()
    own_generator = torch.Generator(y.device).manual_seed(rank) if world > 1 else generator  # all keep to the same order
    model.train()
    parallel = DistributedDataParallel(model) if world > 1 else model
    averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), s.learning_rate, s.momentum, weight_decay=s.weight_decay, nesterov=True)
    history = {column: [] for column in runs.COLUMNS}
    steps_in_epoch = math.ceil(len(y) / s.batch_size)
    with tqdm(total=s.epochs * steps_in_epoch, disable=bool(rank) or None, leave=False, unit="batch") as bar:
        for epoch in range(1, s.epochs + 1):
            start = time.perf_counter()
            loss_sum, correct = torch.zeros(2, device=y.device)
            order = torch.randperm(len(y), generator=generator, device=y.device)
            batches = order.split(s.batch_size)
            if len(batches[-1]) < world * (1 + s.batch_norm) and len(batches) > 1:
                batches = batches[:-1]  # each process needs an image, or two, since one has no variance to normalise by
            for step, batch in enumerate(batches, (epoch - 1) * steps_in_epoch):
                rate = s.learning_rate * float(np.interp(step / bar.total, [0, s.warmup, 1], [0.05, 1, 0]))
                optimizer.param_groups[0]["lr"] = rate
                own = batch[rank::world]
                x = layout(augment(X[own], s.flip, s.shift, own_generator))
                with torch.autocast(y.device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
                    logits = parallel(x)
                    loss = F.cross_entropy(logits, y[own], label_smoothing=s.label_smoothing)
                    loss = loss * (len(own) * world / len(batch))  # the processes' mean is then that of the whole batch
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                after_step(rate / s.learning_rate)
                averaged.update_parameters(model)
                loss_sum += loss.detach() * len(batch) / world
                correct += (logits.argmax(1) == y[own]).sum()
                bar.update()
            if world > 1:
                dist.all_reduce(loss_sum)
                dist.all_reduce(correct)
            seen = sum(map(len, batches))
            val_loss, val_accuracy = score(classify(averaged.module, extract(averaged.module, X_val, dtype)), y_val)
            if not math.isfinite(loss_sum + val_loss):
                what = f"the loss became {loss_sum + val_loss:g} in epoch {epoch}, at learning rate {rate:g}"
                raise runs.Diverged(f"{what}: lower it")
            values = epoch, float(loss_sum) / seen, float(correct) / seen, val_loss, val_accuracy, rate
            row = dict(zip(runs.COLUMNS, (*values, time.perf_counter() - start), strict=True))
            log(row)
            for column, value in row.items():
                history[column].append(value)
    return averaged.module, history


@torch.no_grad()
def extract(model, X, dtype=torch.float32):
    """Flattened features (N, F) of X (N, 1, 28, 28) in order, on its device, float32; in eval mode, which it leaves on."""
    model.eval()
    with torch.autocast(X.device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
        return torch.cat([model.features(layout(x)).float() for x in X.split(500)])


@torch.no_grad()
def classify(model, features):
    """Logits (N, classes) of features (N, F), a tensor or NumPy array, by the network's own classifier."""
    return model.classifier(torch.as_tensor(features, device=model.mean.device)).float()


def score(logits, y):
    """(cross-entropy, accuracy) of logits (N, classes) against labels (N,)."""
    return F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).double().mean().item()


def save(path, model, images, s):
    """Write the network, the settings that shape it and what it was trained on as one safetensors file."""
    tensors = {name: value.cpu().contiguous().numpy() for name, value in model.state_dict().items()}
    about = {"model": "cnn", "channels": s.channels, "pool_after": s.pool_after, "batch_norm": s.batch_norm}
    about |= {"dataset": images.name, "classes": images.classes, "split_seed": s.split_seed}
    about["trained_on"] = model.trained_on
    runs.save_weights(path, tensors, about)


def restore(path):
    """(model on the CPU, about) of a file that `save` wrote. Raises runs.RunError."""
    tensors, about = runs.load_weights(path)
    if about.get("model") != "cnn":
        raise runs.RunError(f"{path}: holds a {about.get('model')}, not the CNN")
    with runs.as_written(path):
        model = CNN(about["channels"], about["pool_after"], about["batch_norm"], len(about["classes"]))
        model.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
        about["dataset"], about["split_seed"]
        model.trained_on = about["trained_on"]
    return model, about


def cached_features(path, model, images):
    """The flattened features of all three splits, in dataset order, kept in the file `path` and taken from there.

    Returns {"X_train": (N, F) float32, "y_train": (N,), "index_train": (N,), ... _val ... _test}. The file knows the
    weights, the data and the split that it was made from: where they differ, it is made again, and the reason printed.
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
    features = {}
    for part in parts:
        split = getattr(images, part)
        features[f"X_{part}"] = extract(model, torch.from_numpy(split.X)[:, None].to(model.mean.device)).cpu().numpy()
        features[f"y_{part}"], features[f"index_{part}"] = split.y, split.index
    try:
        with runs.whole(path) as part, part.open("wb") as file:
            np.savez(file, made_from=json.dumps(made_from), **features)
        print(f"features: {features['X_train'].shape[1]:,} of each image, {path.stat().st_size / 1e6:.0f} MB in {path}")
    except OSError as error:
        print(f"features are not kept: {path} cannot be written ({error.strerror})")
    return features


def train(images, s, run, history="history.csv", start=None, head=None):
    """A CNN with the settings `s` of this script, trained on images.train: (model, history).

    It begins as the CNN `start`, else with new weights. Where there is a `head`, an nn.Module (N, features) -> (N, classes)
    with a method `step`, it takes the place of the linear classifier. Raises settings.SettingError for a device that is not
    there, and runs.RunError where a GPU's memory does not suffice.
    """
    device = pick_device(s.device)
    init, shuffle = np.random.SeedSequence(s.seed).generate_state(2)  # two streams: one does not change the other
    mean, std = data.statistics(images.train.X)
    generator = torch.Generator().manual_seed(int(init))
    model = start or CNN(s.channels, s.pool_after, s.batch_norm, len(images.classes), mean, std, generator)
    if head:
        model.classifier = head
    model = model.to(device)
    if device.type != "mps":
        model = model.to(memory_format=torch.channels_last)
    dtype = pick_precision(s.precision, model, device)
    trained_on = {"device": device.type, "precision": str(dtype).removeprefix("torch.")}  # what auto has come to
    if not head:
        print(stage_table(s.channels, s.pool_after, s.batch_norm, len(images.classes)))
    print(f"{model.name}: {model.size:,} parameters, on {trained_on['device']} in {trained_on['precision']}")
    tensors = [torch.from_numpy(a).to(device) for part in (images.train, images.val) for a in (part.X[:, None], part.y)]
    generator = torch.Generator(device).manual_seed(int(shuffle))
    log, after_step = (lambda row: run.log(row, history)), (head.step if head else lambda share: None)
    try:
        model, history = fit(model, *tensors, s, dtype, generator, log, after_step)
    except torch.cuda.OutOfMemoryError:
        smaller = max(1, s.batch_size // 2)
        message = f"the GPU's memory is too small for --batch-size {s.batch_size}: try --batch-size {smaller}"
        raise runs.RunError(message) from None
    model.trained_on = trained_on
    return model, history


def grad_cam(model, X, labels, least=7):
    """Where in the images X (N, 1, 28, 28) the network sees the classes `labels` (N,): (N, 28, 28), 0 or more.

    Gradient-weighted class activation mapping (Selvaraju et al. 2017), at the last convolution whose maps are at least
    `least` pixels wide: each of its maps counts by the mean gradient of the class's logit in it.
    """
    model.eval()
    x, maps = layout((X - model.mean) / model.std), None
    for module in model.backbone:
        x = module(x)
        if isinstance(module, nn.ReLU) and (maps is None or x.shape[2] >= least):
            maps = x  # (N, channels, side, side)
    (gradient,) = torch.autograd.grad(model.classifier(x).gather(1, labels[:, None]).sum(), maps)
    heat = F.relu((gradient.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1, keepdim=True))
    return F.interpolate(heat, size=X.shape[2:], mode="bilinear")[:, 0].detach()


@torch.no_grad()
def stage_maps(model, X):
    """{"convolution 1": (N, channels, side, side), ...}: what each stage puts out for the images X (N, 1, 28, 28)."""
    model.eval()
    x, maps = layout((X - model.mean) / model.std), {}
    for module in model.backbone:
        x = module(x)
        if isinstance(module, nn.ReLU):
            maps[f"convolution {len(maps) + 1}"] = x.cpu().numpy()
    return maps


def planes(features, seed=0):
    """The features (N, F) in two dimensions: {"PCA, ...": (N, 2), "t-SNE ...": (N, 2)}."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    pca = PCA(min(50, *features.shape), random_state=seed)
    reduced = pca.fit_transform(features)
    name = f"PCA, {pca.explained_variance_ratio_[:2].sum():.0%} of the variance"
    neighbours = TSNE(perplexity=min(30, len(features) // 4), random_state=seed).fit_transform(reduced)
    return {name: reduced[:, :2], "t-SNE (distances between groups mean nothing)": neighbours}


def insights(model, images, features, test_logits, title):
    """{file name: Figure}: what the network has learnt and where it errs. features: of `cached_features`."""
    test, train, classes, device = images.test, images.train, images.classes, model.mean.device
    p_test, p_train = (logits.float().softmax(1).cpu().numpy() for logits in (
        test_logits, classify(model, features["X_train"])))  # fmt: skip
    first = [int(np.flatnonzero(test.y == label)[0]) for label in range(len(classes))]  # an image of each class
    second = [int(np.flatnonzero(test.y == label)[1]) for label in range(len(classes))]
    few, ten = first[:: max(1, len(classes) // 3)][:3], first + second
    predicted = p_test.argmax(axis=1)
    heat = grad_cam(model, torch.from_numpy(test.X[ten])[:, None].to(device), torch.from_numpy(predicted[ten]).to(device))
    some = np.arange(min(2_000, len(test.y)))
    return {
        "filters.png": plots.filters(model.backbone[0].weight[:, 0].detach().cpu().numpy(), f"{title}: the first filters"),
        "feature_maps.png": plots.feature_maps(
            test.X[few], stage_maps(model, torch.from_numpy(test.X[few])[:, None].to(device)),
            [classes[label] for label in test.y[few]], title),
        "features.png": plots.embeddings(planes(features["X_test"][some]), test.y[some], classes,
                                         f"{title}: the features of {len(some):,} test images"),
        "grad_cam.png": plots.saliency(test.X[ten], heat.cpu().numpy(), test.y[ten], predicted[ten], classes, title),
        "confusable.png": plots.confusable(test.X, test.y, p_test, classes, f"{title}: classes taken for each other"),
        "label_errors.png": plots.mistakes(train.X, train.y, p_train, classes,
                                           f"{title}: training images whose label is most probably wrong"),
    }  # fmt: skip


def check(s):
    """Raise settings.SettingError, before any data is read, for an impossible network or a device that is not there."""
    side = sides(s.channels, s.pool_after)[-1]
    if s.batch_norm and s.batch_size == 1 and side == 1:
        raise settings.SettingError("--batch-size 1: batch normalisation of 1 x 1 maps needs 2 images or more")
    pick_device(s.device)


def tour(s):
    """The settings of --quick: fewer epochs, and smaller batches and steps, so that there are still enough of them."""
    batch_size = min(s.batch_size, 64)
    s.learning_rate *= batch_size / s.batch_size  # the linear scaling rule, Goyal et al. 2017
    s.epochs, s.batch_size = min(s.epochs, 4), batch_size


def run(s):
    """The whole job with the settings `s`: load, train, extract, test, save. Returns what metrics.json holds."""
    check(s)
    images = data.load(s.dataset, s.data_dir, s.offline_fallback, s.split_seed, s.quick)
    if s.quick:
        tour(s)
    rank, world = processes()
    if rank:  # the first process reports and writes; the others only train
        with contextlib.redirect_stdout(io.StringIO()):
            train(images, s, SimpleNamespace(log=lambda *row: None))
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
        run.save({"curves.png": plots.curves(history, title, s.flip or s.shift, s.label_smoothing)})
        run.save(plots.evaluation(images.test.X, images.test.y, test.softmax(1).numpy(), images.classes, title))
        run.save(insights(model, images, features, test, title))
        return run.finish({model.name: (val_accuracy, test_accuracy)}, dataset=images.name, model=model.name, **images.sizes,
                          val_accuracy=val_accuracy, test_accuracy=test_accuracy, test_loss=test_loss,
                          parameters=model.size, features=features["X_train"].shape[1], **model.trained_on)  # fmt: skip


def main(argv=None):
    run(settings.parse(sys.modules[__name__], data, runs, argv=argv))


if __name__ == "__main__":
    runs.command(main)
