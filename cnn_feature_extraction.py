"""A convolutional network in PyTorch, trained on Fashion-MNIST, and the flattened features of every image.

    python cnn_feature_extraction.py

prints at the end, after 332 s on 2 cores of AMD EPYC; python 3.11.7, numpy 2.4.6, torch 2.14.1 (in bfloat16),

    Fashion-MNIST                               validation      test
    CNN 24-48-96-96-192                             94.65%    94.11%
      with flip test-time augmentation (TTA)        94.83%    94.25%
"""

import contextlib
import copy
import dataclasses
import io
import json
import math
import os
import sys
import time
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import data
import plots
import run

Init = Literal["he", "he_uniform", "he_fan_out", "xavier", "pytorch", "random"]
Order = Literal["pool_norm_activation", "norm_activation_pool", "activation_norm_pool"]
Schedule = Literal["constant", "step", "exponential", "cosine", "linear", "plateau", "halve"]

# Edit here, or use flags: EPOCHS is --epochs. The first ten are the ones to change first.
EPOCHS: int = 24  # passes over the training set
CHANNELS: tuple[int, ...] = (24, 48, 96, 96, 192)  # output channels of each convolution
POOL_AFTER: tuple[int, ...] = (1, 2, 4)  # numbers, from 1, of the convolutions followed by 2 x 2 pooling
LEARNING_RATE: float = 0.2  # peak learning rate; try 0.003 with adam or adamw, 0.02 without norm
BATCH_SIZE: int = 256  # images per step
OPTIMIZER: Literal["nesterov", "adam", "adamw"] = "nesterov"  # SGD with Nesterov momentum, or Adam
WEIGHT_DECAY: float = 0.0005  # L2 penalty on all parameters, added to the gradient; decoupled with adamw
FLIP: bool = True  # mirror each training image with probability 0.5
SHIFT: int = 1  # random shift of training images, in pixels
ERASE: int = 0  # side of a square of noise in half of the training images, in pixels
ROTATE: float = 0.0  # random rotation of training images, up to this many degrees
TRANSLATE: float = 0.0  # random translation of training images, up to this fraction of their size
TTA: Literal["none", "flip", "shifts", "6_views", "10_views", "18_views"] = "flip"  # test-time augmentation
KERNEL_SIZES: tuple[int, ...] = (3,)  # kernel size of each convolution; a single one is for all
PADDING: tuple[int, ...] = ()  # padding of each convolution; empty: the maps keep their size
POOL: Literal["max", "average"] = "max"  # kind of pooling
GLOBAL_POOL: Literal["none", "average"] = "none"  # flatten the last maps, or take the mean of each
NORMALIZE: Literal["none", "symmetric", "global"] = "global"  # standardization of the pixels
NORM: Literal["none", "batch"] = "batch"  # normalization after each convolution
ACTIVATION: Literal["relu", "leaky_relu", "tanh", "gelu", "sigmoid"] = "relu"  # of all layers
BLOCK_ORDER: Order = "pool_norm_activation"  # what follows each convolution; the first is the fastest
FC: tuple[int, ...] = ()  # neurons of fully connected layers before the classifier
FC_NORM: bool = False  # layer normalization in the fully connected layers
INIT: Init = "he"  # initialization of the weights; the classifier's have variance 1 / inputs
INIT_CLASSIFIER: bool = False  # initialize the classifier by INIT, too
INIT_SCALE: float = 0.05  # standard deviation of the weights with INIT = "random"
MOMENTUM: float = 0.9  # decay of the velocity of nesterov
SCHEDULE: Schedule = "linear"  # learning rate after the warm-up
PLATEAU_PATIENCE: int = 3  # schedule plateau: epochs without improvement in validation loss
WARMUP: float = 0.2  # fraction of the training in which the learning rate rises to its peak
EMA_DECAY: float = 0.995  # decay of the moving average of the weights, which is evaluated
LABEL_SMOOTHING: float = 0.1  # fraction of each label that is spread over all classes
DROPOUT: float = 0.0  # dropout probability after each convolution
DROPOUT_AFTER: tuple[int, ...] = ()  # numbers of the convolutions followed by dropout; empty: all
DROPOUT_MAPS: bool = False  # dropout after convolutions drops whole maps (Tompson et al. 2015)
FC_DROPOUT: float = 0.0  # dropout probability in the fully connected layers
DEVICE: Literal["auto", "cuda", "mps", "cpu"] = "auto"  # where to train; auto: the first available
PRECISION: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 where there are instructions
COMPILE: bool = False  # use torch.compile; needs a C++ compiler; slower on two CPU cores

LIMITS = {
    **dict.fromkeys(("EPOCHS", "CHANNELS", "POOL_AFTER", "DROPOUT_AFTER", "BATCH_SIZE", "FC"), (1, 10**6)),
    **dict.fromkeys(("LEARNING_RATE", "INIT_SCALE"), (1e-12, 1000)),
    **dict.fromkeys(("WEIGHT_DECAY", "SHIFT", "ERASE", "PADDING", "PLATEAU_PATIENCE"), (0, 1000)),
    **dict.fromkeys(
        ("MOMENTUM", "DROPOUT", "FC_DROPOUT", "LABEL_SMOOTHING", "WARMUP", "TRANSLATE"), (0, 0.999)
    ),
    "KERNEL_SIZES": (1, 99),
    "ROTATE": (0, 180),
    "EMA_DECAY": (0, 0.9999999),
}

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
}
POOLS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
INITS = {  # function and arguments: He et al. 2015, Glorot and Bengio 2010, PyTorch's default, INIT_SCALE
    "he": (nn.init.kaiming_normal_, {"nonlinearity": "relu"}),
    "he_uniform": (nn.init.kaiming_uniform_, {"nonlinearity": "relu"}),
    "he_fan_out": (nn.init.kaiming_normal_, {"nonlinearity": "relu", "mode": "fan_out"}),
    "xavier": (nn.init.xavier_normal_, {}),
    "pytorch": (nn.init.kaiming_uniform_, {"a": math.sqrt(5)}),
    "random": (nn.init.normal_, {}),
}
# The settings that define the network
ARCHITECTURE = ("channels", "kernel_sizes", "padding", "pool_after", "pool", "global_pool", "norm")
ARCHITECTURE += ("activation", "block_order", "dropout", "dropout_after", "dropout_maps", "fc", "fc_norm")
ARCHITECTURE += ("fc_dropout", "init", "init_classifier", "init_scale")


class CNN(nn.Module):
    """Convolutions with pooling, batch normalization, activation and dropout, then fully connected layers.

    By default, pooling comes before normalization and activation, which then process a quarter of the pixels.
    Input: (N, 1, *image_shape) in [0, 1]; `mean` and `std` of the training pixels are part of the model. s:
    settings, as ARCHITECTURE names them. `backbone` gives the features: the flattened maps of the last
    convolution (or their means, with global_pool "average"), or the output of the last layer of `fc`;
    `classifier` is the last linear layer. Raises run.Error for impossible settings.
    """

    def __init__(self, s, num_classes=10, mean=0.0, std=1.0, rng=None, image_shape=(28, 28)):
        super().__init__()
        self.name = f"CNN {'-'.join(map(str, (*s.channels, *s.fc)))}"
        self.compute = {}  # {"device": ..., "precision": ...} of its training
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        activation_first = s.block_order.startswith("activation")
        bias = s.norm == "none" or activation_first  # batch norm right after a convolution would cancel it
        kernels = s.kernel_sizes * (len(s.channels) if len(s.kernel_sizes) == 1 else 1)
        paddings = s.padding * (len(s.channels) if len(s.padding) == 1 else 1) or [k // 2 for k in kernels]
        layers, n_in = [], 1
        for number, (n_out, *shape) in enumerate(zip(s.channels, kernels, paddings, strict=True), 1):
            layers.append(nn.Conv2d(n_in, n_out, shape[0], padding=shape[1], bias=bias))
            initialize(layers[-1], s.init, s.init_scale, rng)
            block = {
                "pool": [POOLS[s.pool](2)] if number in s.pool_after else [],
                "norm": [nn.BatchNorm2d(n_out)] if s.norm == "batch" else [],
                "activation": [ACTIVATIONS[s.activation]()],
            }
            layers += [layer for name in s.block_order.split("_") for layer in block[name]]
            if s.dropout and number in (s.dropout_after or range(1, len(s.channels) + 1)):
                layers.append(nn.Dropout2d(s.dropout) if s.dropout_maps else nn.Dropout(s.dropout))
            n_in = n_out
        layers += [nn.AdaptiveAvgPool2d(1)] if s.global_pool == "average" else []
        layers.append(nn.Flatten())
        try:
            n_in = nn.Sequential(*layers).eval()(torch.zeros(1, 1, *image_shape)).shape[1]
        except RuntimeError as error:
            text = f"--channels, --pool-after, --padding: do not fit the images ({error})"
            raise run.Error(text) from None
        for n_out in s.fc:
            layers.append(nn.Linear(n_in, n_out))
            initialize(layers[-1], s.init, s.init_scale, rng)
            norm = [nn.LayerNorm(n_out)] if s.fc_norm else []
            activation = [ACTIVATIONS[s.activation]()]
            layers += activation + norm if activation_first else norm + activation
            layers += [nn.Dropout(s.fc_dropout)] if s.fc_dropout else []
            n_in = n_out
        self.backbone = nn.Sequential(*layers)  # (N, 1, height, width) -> (N, features)
        self.classifier = nn.Linear(n_in, num_classes)
        init = (s.init, s.init_scale) if s.init_classifier else ("random", n_in**-0.5)
        initialize(self.classifier, *init, rng)

    def features(self, x):
        return self.backbone((x - self.mean) / self.std)

    def forward(self, x):
        return self.classifier(self.features(x))


def initialize(layer, init, std, rng):
    """Draw the weights of a convolution or linear layer; its bias starts at 0, but for "pytorch"."""
    function, arguments = INITS[init]
    function(layer.weight, **arguments | ({"std": std} if init == "random" else {}), generator=rng)
    if layer.bias is not None and init == "pytorch":
        bound = layer.weight[0].numel() ** -0.5  # the number of inputs
        nn.init.uniform_(layer.bias, -bound, bound, generator=rng)
    elif layer.bias is not None:
        nn.init.zeros_(layer.bias)


def cut_after(model, number):
    """A copy of the model whose features are those after convolution `number`; 0: after the last layer."""
    model, kinds = copy.deepcopy(model), (nn.Conv2d, nn.AdaptiveAvgPool2d, nn.Flatten)
    ends = [place for place, layer in enumerate(model.backbone) if isinstance(layer, kinds)]
    if number:
        model.backbone = nn.Sequential(*model.backbone[: ends[number]], nn.Flatten())
    return model


def augment(x, flip, shift, erase, rng, rotate=0.0, translate=0.0):
    """A randomly changed copy of the tensor x (N, 1, H, W), as data.augment makes it of arrays."""
    n, _, height, width = x.shape
    device = {"generator": rng, "device": x.device}
    if flip:
        x = torch.where(torch.rand(n, 1, 1, 1, **device) < 0.5, x.flip(3), x)
    if rotate:
        angle = torch.deg2rad(rotate * (2 * torch.rand(n, **device) - 1))
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        rows = [cos, -sin * height / width, zero, sin * width / height, cos, zero]  # coordinates in [-1, 1]
        grid = F.affine_grid(torch.stack(rows, dim=1).view(n, 2, 3), x.shape, align_corners=False)
        x = F.grid_sample(x, grid, mode="nearest", align_corners=False)
    if shift:
        x = moved(x, torch.randint(2 * shift + 1, (2, n, 1, 1), **device), shift)
    if translate:
        limits = translate * torch.tensor([height, width], device=x.device).view(2, 1, 1, 1)  # in pixels
        reach = math.ceil(translate * max(height, width))
        x = moved(x, reach + torch.round(limits * (2 * torch.rand(2, n, 1, 1, **device) - 1)).long(), reach)
    if erase:
        top = torch.randint(height - erase + 1, (n, 1, 1, 1), **device)
        left = torch.randint(width - erase + 1, (n, 1, 1, 1), **device)
        row, column = torch.arange(height, device=x.device)[:, None], torch.arange(width, device=x.device)
        inside = (row >= top) & (row < top + erase) & (column >= left) & (column < left + erase)
        inside &= torch.rand(n, 1, 1, 1, **device) < 0.5
        x = torch.where(inside, torch.rand(x.shape, **device), x)
    return x


def moved(x, corners, reach):
    """Of each of the images x (N, 1, H, W), padded by `reach` zeros, H x W pixels from its corner on.

    corners (2, N, 1, 1): rows and columns.
    """
    _, _, height, width = x.shape
    image = torch.arange(len(x), device=x.device)[:, None, None]
    rows = torch.arange(height, device=x.device)[:, None] + corners[0]  # (N, H, 1)
    columns = torch.arange(width, device=x.device) + corners[1]  # (N, 1, W)
    return F.pad(x, 4 * (reach,))[image, 0, rows, columns][:, None]  # -> (N, 1, H, W)


def lr_at(progress, s):
    """The learning rate at `progress`, from 0 to 1, as in mlp_from_scratch.py, from 5 % of its peak on."""
    if progress < s.warmup:
        return s.learning_rate * (0.05 + 0.95 * progress / s.warmup)
    done = (progress - s.warmup) / (1 - s.warmup)
    factors = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "exponential": 0.01**done}
    factors["step"] = 1 if done < 0.5 else 0.1 if done < 0.75 else 0.01
    return s.learning_rate * factors.get(s.schedule, 1)


def make_optimizer(parameters, s):
    if s.optimizer == "nesterov":
        options = {"momentum": s.momentum, "weight_decay": s.weight_decay, "nesterov": True}
        return torch.optim.SGD(parameters, s.learning_rate, **options)
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[s.optimizer]
    return optimizer(parameters, s.learning_rate, weight_decay=s.weight_decay)


def generator(device, seed, *purpose):
    """A torch.Generator on the device; other whole numbers as its purpose give an independent one."""
    state = np.random.SeedSequence(seed, spawn_key=purpose).generate_state(1)
    return torch.Generator(device).manual_seed(int(state[0]))


def pick_device(name):
    """The torch.device "cuda", "mps" or "cpu"; "auto" is the first that is available. Raises run.Error.

    Under torchrun, each process of a machine uses its own GPU.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device in available if available[device])
    if not available[name]:
        raise run.Error(f"--device {name}: not available on this machine or in this PyTorch; use auto or cpu")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device(name)


def pick_precision(name, device):
    """torch.float32 or torch.bfloat16; "auto" is bfloat16 where the processor or GPU has instructions for it.

    Without them it is emulated and several times slower (pytorch issues 118499, 146508).
    """
    if name != "auto":
        return getattr(torch, name)
    has_bfloat16 = False
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        has = torch.cpu.get_capabilities()
        has_bfloat16 = any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "avx10_1", "bf16"))
    return torch.bfloat16 if has_bfloat16 else torch.float32


class Processes:
    """The processes of torchrun, which train together, each on a part of every batch; else this one."""

    def __init__(self):
        self.rank, self.world_size = 0, 1
        if {"RANK", "WORLD_SIZE"} <= os.environ.keys():
            if not dist.is_initialized():
                dist.init_process_group()  # gloo between CPUs, NCCL between GPUs
            self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def wrap(self, model):
        """The model as a training step calls it: the processes' gradients are averaged."""
        return DistributedDataParallel(model) if self.world_size > 1 else model

    def shard(self, batch):
        """(this process's part of a batch of indices, the factor by which its loss counts)."""
        shard = batch[self.rank :: self.world_size]
        return shard, len(shard) * self.world_size / len(batch)

    def sum(self, *tensors):
        if self.world_size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)


def to_channels_last(x):
    """x in channels-last memory format, which is faster with oneDNN and cuDNN, but not with Metal."""
    return x if x.device.type == "mps" else x.contiguous(memory_format=torch.channels_last)


class Trainer:
    """All that changes while a CNN is trained with the settings s, so that it can be saved and resumed.

    head: a classifier that updates itself in a method `step`, as hybrid_train.NumpyHead does.
    """

    def __init__(self, images, s, model=None, head=None):
        self.s, self.head, self.processes, self.device = s, head, Processes(), pick_device(s.device)
        if model is None:
            pixels = data.normalization_stats(images.train.X, s.normalize)
            model = CNN(s, len(images.classes), *pixels, generator("cpu", s.seed), images.image_shape)
        if head:
            model.classifier = head
        layout = torch.preserve_format if self.device.type == "mps" else torch.channels_last
        self.model = model.to(self.device, memory_format=layout)
        self.precision = pick_precision(s.precision, self.device)
        model.compute = {"device": self.device.type, "precision": str(self.precision).removeprefix("torch.")}
        self.network = torch.compile(model) if s.compile else self.processes.wrap(model)
        self.ema_model = AveragedModel(model, multi_avg_fn=self.update_ema, use_buffers=True)
        self.optimizer = make_optimizer((model.backbone if head else model).parameters(), s)
        self.steps, self.history, self.step_losses = 0, {"epoch": []}, []

    def update_ema(self, averages, values, _):
        decay = min(self.s.ema_decay, self.steps / (9 + self.steps))  # forgets the first weights
        get_ema_multi_avg_fn(decay)(averages, values, _)

    def train_step(self, x, y, lr, loss_scale=1.0):
        """One step on images x (n, 1, H, W), y (n,): (loss, number of correct predictions), tensors.

        loss_scale: size of this process's part of the batch relative to the others'.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision is torch.bfloat16):
            logits = self.network(x)  # forward
            loss = F.cross_entropy(logits, y, label_smoothing=self.s.label_smoothing) * loss_scale  # loss
        self.optimizer.zero_grad()
        loss.backward()  # backward
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()  # step
        if self.head:
            self.head.step(lr / self.s.learning_rate)
        self.steps += 1
        self.ema_model.update_parameters(self.model)
        return loss.detach(), (logits.argmax(1) == y).sum()

    def batches(self, n, epoch):
        """The epoch's batches of indices into n images, without one that is too small for batch norm."""
        order = torch.randperm(n, generator=generator(self.device, self.s.seed, epoch), device=self.device)
        batches = order.split(self.s.batch_size)
        smallest = self.processes.world_size * (2 if self.s.norm == "batch" else 1)
        return batches[:-1] if len(batches[-1]) < smallest and len(batches) > 1 else batches

    def evaluate(self, X, y):
        """(loss, accuracy) on X (N, 1, H, W), y (N,) in eval mode, by the moving average of the weights."""
        logits = logits_of(self.ema_model.module, X, self.precision)
        return F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).sum().item() / len(y)

    def state_dict(self):
        """({name: NumPy array}, numbers): all that a new Trainer needs to continue; on a CPU, bit for bit."""
        arrays = numpy_state(self.model, "model.") | numpy_state(self.ema_model, "ema_model.")
        for number, state in self.optimizer.state_dict()["state"].items():
            for name, value in state.items():
                arrays[f"optimizer.{number}.{name}"] = value.cpu().numpy()
        if self.head:
            arrays |= {f"head.{name}": array for name, array in self.head.optimizer_state().items()}
        return arrays, {"history": self.history, "steps": self.steps, "step_losses": self.step_losses}

    def load_state_dict(self, arrays, numbers):
        """Continue from what `state_dict` has returned."""
        parts = {"model": {}, "ema_model": {}, "optimizer": {}, "head": {}}
        for name, array in arrays.items():
            part, _, name = name.partition(".")
            parts[part][name] = torch.from_numpy(array)
        self.model.load_state_dict(parts["model"])
        self.ema_model.load_state_dict(parts["ema_model"])
        parameters, state = self.optimizer.param_groups[0]["params"], {}
        for name, value in parts["optimizer"].items():
            number, _, name = name.partition(".")
            if name != "step":  # in the parameter's memory format, so that the same instructions process it
                value = torch.empty_like(parameters[int(number)], requires_grad=False).copy_(value)
            state.setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        if self.head:
            self.head.load_optimizer_state(parts["head"])
        for name in ("history", "steps", "step_losses"):
            setattr(self, name, numbers[name])


def train(images, s, folder=None, model=None, head=None, on_epoch=lambda history: False, file="history.csv"):
    """A CNN trained on images.train with the settings s: (the moving average of its weights, history).

    model: the one to train, by default a new one; head: as for Trainer. train_loss and train_accuracy are
    means over the epoch's augmented batches, train_eval_* those of 5,000 training images in eval mode. With a
    run.RunFolder, each epoch is logged in `file`, a checkpoint is written, and a training of s.resume
    continues. on_epoch(history) is called after each epoch; if it returns true, the training ends. Under
    torchrun all processes call this. Raises run.Diverged.
    """
    trainer = Trainer(images, s, model, head)
    model, processes, device = trainer.model, trainer.processes, trainer.device
    if s.resume and (checkpoint := folder.load_checkpoint()):
        trainer.load_state_dict(*checkpoint)
    X, y = as_tensor(model, images.train.X), torch.from_numpy(images.train.y).to(device)
    X_val, y_val = as_tensor(model, images.val.X), torch.from_numpy(images.val.y).to(device)
    steps = math.ceil(len(y) / s.batch_size)
    first = len(trainer.history["epoch"])
    bar = tqdm(total=s.epochs * steps, initial=first * steps, disable=None if folder else True, leave=False)
    for epoch in range(first, s.epochs):
        start, (loss_sum, num_correct) = time.perf_counter(), torch.zeros(2, device=device)
        rng = generator(device, s.seed, epoch, processes.rank + 1)
        torch.manual_seed(generator("cpu", s.seed, epoch, processes.rank + 1, 1).initial_seed())  # dropout
        factor = run.lr_factor(trainer.history, s.schedule, s.plateau_patience)
        batches, losses = trainer.batches(len(y), epoch), []
        model.train()
        for step, batch in enumerate(batches, epoch * steps):
            lr = factor * lr_at(step / (s.epochs * steps), s)
            shard, loss_scale = processes.shard(batch)
            x = to_channels_last(augment(X[shard], s.flip, s.shift, s.erase, rng, s.rotate, s.translate))
            loss, correct = trainer.train_step(x, y[shard], lr, loss_scale)
            loss_sum += loss * len(batch) / processes.world_size
            num_correct += correct
            losses.append(loss)
            bar.update()
        processes.sum(loss_sum, num_correct)
        num_images = sum(map(len, batches))
        row = {"epoch": epoch + 1, "train_loss": loss_sum.item() / num_images}
        row["train_accuracy"] = num_correct.item() / num_images
        row["train_eval_loss"], row["train_eval_accuracy"] = trainer.evaluate(X[:5000], y[:5000])
        row["val_loss"], row["val_accuracy"] = trainer.evaluate(X_val, y_val)
        row |= {"learning_rate": lr, "seconds": time.perf_counter() - start}
        losses = torch.stack(losses).tolist()
        if folder and s.log_steps:
            trainer.step_losses += losses
            folder.log_steps(trainer.step_losses)
        if not math.isfinite(row["train_loss"] + row["val_loss"]):
            number = next((i for i, loss in enumerate(losses, 1) if not math.isfinite(loss)), len(losses))
            where = f"in step {epoch * steps + number} (epoch {epoch + 1})"
            raise run.Diverged(f"the loss became {losses[number - 1]} {where}: lower --learning-rate")
        for column, value in row.items():
            trainer.history.setdefault(column, []).append(value)
        if folder:
            folder.log(trainer.history, file)
            folder.save_checkpoint(*trainer.state_dict())
        if on_epoch(trainer.history):
            break
    bar.close()
    return trainer.ema_model.module, trainer.history


@torch.no_grad()
def features_of(model, X, precision=torch.float32):
    """Features (N, F), float32, of X (N, 1, H, W), in order, on its device, in eval mode."""
    model.eval()
    with torch.autocast(X.device.type, torch.bfloat16, enabled=precision is torch.bfloat16):
        batches = X.split(getattr(model, "chunk_size", 500))
        return torch.cat([model.features(to_channels_last(x)).float() for x in batches])


@torch.no_grad()
def logits_of(model, X, precision=torch.float32):
    """Logits (N, classes), float32, of X (N, 1, H, W) on its device, in eval mode."""
    return model.classifier(features_of(model, X, precision)).float()


@torch.no_grad()
def classify(model, features):
    """Logits {"val": (N, classes), "test": ...}, arrays, of the classifier on a Dataset of features."""
    X = {split: torch.from_numpy(getattr(features, split).X) for split in ("val", "test")}
    device = model.mean.device
    return {split: model.classifier(x.to(device)).float().cpu().numpy() for split, x in X.items()}


def as_tensor(model, X):
    """Images X (N, H, W), an array, as a tensor (N, 1, H, W) on the model's device."""
    return torch.from_numpy(np.ascontiguousarray(X))[:, None].to(model.mean.device)


def predict_logits(model, X):
    """Logits (N, classes), an array, of images X (N, H, W), an array."""
    return logits_of(model, as_tensor(model, X)).cpu().numpy()


def extract_features(model, images, cache=None):
    """The data.Dataset `images` with the model's features (N, F) as X, in order, extracted in eval mode.

    cache: file in which they are kept. It records the weights, data and split that it was made from; where
    they differ, or it cannot be read, features are extracted again and written.
    """
    weights = run.digest(*numpy_state(model).values())
    made_from = json.dumps({"weights": weights, "data": images.fingerprint()})
    splits, features = {name: getattr(images, name) for name in ("train", "val", "test")}, {}
    if cache:
        with contextlib.suppress(Exception), open(cache, "rb") as opened, np.load(opened) as file:
            if str(file["made_from"]) == made_from:
                features = {name: file[name] for name in splits}
                print(f"features loaded from {cache}")
    if not features:
        for name, split in splits.items():
            features[name] = features_of(model, as_tensor(model, split.X)).cpu().numpy()
        if cache:
            file = io.BytesIO()
            np.savez(file, made_from=made_from, **features)
            run.write(cache, file.getvalue())
    of_features = {name: dataclasses.replace(split, X=features[name]) for name, split in splits.items()}
    return dataclasses.replace(images, **of_features)


def numpy_state(module, prefix=""):
    """The module's state_dict as {prefix + name: NumPy array}."""
    return {prefix + name: value.cpu().numpy() for name, value in module.state_dict().items()}


def save(path, model, s, **metadata):
    """Write the network, its settings and other metadata, such as its classes, as one safetensors file."""
    metadata |= {"model": "cnn", "settings": run.training_settings(s), "compute": model.compute}
    run.save_weights(path, numpy_state(model), metadata)


def architecture(saved):
    """The settings of ARCHITECTURE in those of a file; what older files lack has its default."""
    s = settings(**{name: saved[name] for name in ARCHITECTURE if name in saved})
    return {name: getattr(s, name) for name in ARCHITECTURE}


def from_metadata(metadata):
    """The CNN, without its weights, of a file's metadata."""
    s = SimpleNamespace(**architecture(metadata["settings"]))
    model = CNN(s, len(metadata["classes"]), image_shape=tuple(metadata["image_shape"]))
    model.compute = metadata.get("compute", {})
    return model


def load_arrays(model, arrays):
    """Give the model the weights {name: array}."""
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})


def restore(path):
    """(the model on the CPU in eval mode, metadata) of a file that `save` wrote. Raises run.Error."""
    arrays, metadata = run.load_weights(path, "cnn")
    model = from_metadata(metadata)
    load_arrays(model, arrays)
    return model.eval(), metadata


def stages(model, X):
    """([output (N, channels, H, W) of each convolution's activation], logits) for X (N, 1, H, W)."""
    x, maps = to_channels_last((X - model.mean) / model.std), []
    for module in model.backbone:
        x = module(x)
        if isinstance(module, tuple(ACTIVATIONS.values())) and x.ndim == 4:
            maps.append(x)
    return maps, model.classifier(x)


def hires_cam(model, X, labels):
    """Where in the images X (N, 1, H, W) the network sees the classes `labels` (N,): (N, H, W), 0 or more.

    HiResCAM (Draelos and Carin 2020, arXiv:2011.08891): maps times gradients of the class's logit, summed
    over the channels of the last convolution whose maps are at least 7 pixels wide. Grad-CAM
    (Selvaraju et al. 2017) averages the gradients over each map, which suits networks with global average
    pooling; this one flattens its maps.
    """
    maps, logits = stages(model.eval(), X)
    large = [m for m in maps if min(m.shape[2:]) >= 7] or maps[:1]
    (gradient,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), large[-1])
    heat = F.relu((gradient * large[-1]).sum(dim=1, keepdim=True))
    return F.interpolate(heat, size=X.shape[2:], mode="bilinear")[:, 0].detach()


def cnn_figures(model, images, features, probabilities, title):
    """{file name: Figure} of what the CNN has learned. features: a Dataset of `extract_features`;
    probabilities (N, classes) of the test images."""
    test, classes, shown = images.test, images.classes, images.as_shown(images.test.X)
    few, many = plots.examples(test.y, 3), plots.examples(test.y, 20)
    predicted = probabilities.argmax(axis=1)
    X, labels = as_tensor(model, test.X[many]), torch.from_numpy(predicted[many]).to(model.mean.device)
    heat = hires_cam(model, X, labels).cpu().numpy()
    maps, _ = stages(model, as_tensor(model, test.X[few]))
    maps = {f"convolution {i}": values.detach().cpu().numpy() for i, values in enumerate(maps, 1)}
    W = model.backbone[0].weight[:, 0].detach().cpu().numpy()
    names = [classes[label] for label in test.y[few]]
    return {
        "filters.png": plots.filters(W, title),
        "feature_maps.png": plots.feature_maps(shown[few], maps, names, title),
        "saliency.png": plots.saliency(shown[many], heat, test.y[many], predicted[many], classes, title),
        "confusable.png": plots.confusable(shown, test.y, probabilities, classes, title),
        "features.png": plots.embeddings(features.test.X[:2000], test.y[:2000], classes, title),
    }


def settings(**changes):
    """The settings of this script, a namespace: its constants, those of data.py and run.py, with changes."""
    return run.settings(sys.modules[__name__], data, run, **changes)


def check_settings(s):
    """Raise run.Error for settings that cannot be combined."""
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if max(s.pool_after, default=0) > len(s.channels) or not s.channels:
        raise run.Error(f"--pool-after: there are {len(s.channels)} convolutions")
    if max(s.dropout_after, default=0) > len(s.channels):
        raise run.Error(f"--dropout-after: there are {len(s.channels)} convolutions")
    if {len(s.kernel_sizes), len(s.padding) or 1} - {1, len(s.channels)}:
        raise run.Error("--kernel-sizes, --padding: give one value, or one for each convolution")
    if not s.padding and any(kernel % 2 == 0 for kernel in s.kernel_sizes):
        raise run.Error("--kernel-sizes: even kernels cannot keep the size of the maps: give --padding")
    if s.train_on_val and s.schedule == "plateau":
        raise run.Error("--train-on-val: leaves no images for --schedule plateau")
    if world_size > 1 and (s.seeds > 1 or s.compile):
        raise run.Error("--seeds, --compile: not under torchrun")
    if s.batch_size < world_size * (1 + (s.norm == "batch")):
        raise run.Error(f"--batch-size {s.batch_size}: too small for batch norm, in {world_size} processes")


def quick_settings(s):
    """The settings of --quick: few epochs; small batches, so that there are enough steps."""
    batch_size = min(s.batch_size, 64)
    learning_rate = s.learning_rate * batch_size / s.batch_size  # Goyal et al. 2017
    changes = {"epochs": min(s.epochs, 4), "batch_size": batch_size, "learning_rate": learning_rate}
    return SimpleNamespace(**vars(s) | changes)


def curves(histories, title, s):
    """Figure of loss and accuracy by epoch; histories: {name: history}."""
    return plots.curves(histories, title, data.is_augmented(s), s.label_smoothing, s.train_on_val)


def run_once(s, images=None):
    """One run: load, train, extract, evaluate, save. Returns its folder, history, metrics, model, logits."""
    check_settings(s)
    images = images or data.load(s)
    data.check_augmentation(s, images)
    s = quick_settings(s) if s.quick else s
    if int(os.environ.get("RANK", 0)):  # of torchrun's processes, only the first reports and writes
        model, history = train(images, s)
        return SimpleNamespace(folder=None, history=history, metrics=None, model=model)
    with run.RunFolder("cnn_feature_extraction", s) as folder:
        model, history = train(images, s, folder)
        features = extract_features(model, images, folder.path / "features.npz" if s.save_weights else None)
        logits = classify(model, features)
        results = run.evaluate(images, lambda X: predict_logits(model, X), s, logits=logits)
        if s.save_weights:
            metadata = run.describe(images, results.metrics["temperature"])
            save(folder.path / "backbone.safetensors", model, s, **metadata)
        if s.figures:
            title = plots.run_title(model.name, images.name, s.seed)
            figures = cnn_figures(model, images, features, results.probabilities["before"], title)
            folder.save(figures | {"curves.png": curves({title: history}, title, s)})
        details = {"parameters": sum(p.numel() for p in model.parameters()), **model.compute}
        details["features"] = features.test.X.shape[1]
        metrics = folder.finish(images, model.name, results, plots.evaluation, **details)
    return SimpleNamespace(
        folder=folder.path, history=history, metrics=metrics, model=model, logits=results.logits
    )


def main(argv=None):
    s = run.parse(argv, sys.modules[__name__], data, run)
    return run.run_seeds("cnn_feature_extraction", run_once, s, curves)


if __name__ == "__main__":
    run.cli(main)
