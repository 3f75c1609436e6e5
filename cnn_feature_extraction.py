"""A convolutional network in PyTorch, trained on Fashion-MNIST, and the flattened features of every image.

    python cnn_feature_extraction.py

prints at the end, after 332 s on 2 cores of an AMD EPYC (Python 3.11.7, NumPy 2.4.6, torch 2.14.1, in bfloat16),

    Fashion-MNIST                               validation      test
    CNN 24-48-96-96-192                             94.65%      94.11%
      with flip test-time augmentation (TTA)        94.83%      94.25%
"""

from support import entry

if __name__ == "__main__":  # before the slow imports: Ctrl-C, --help and wrong flags
    entry.prepare(__file__, "data.py", "support/runs.py")

import contextlib
import io
import math
import shutil
import sys
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import data
import plots
from numpy_nn.optimizers import lr_at
from support import files, runs, settings, training
from support.small_data import with_batch_size, with_suitable_batch_size
from support.tta import tta_logits
from torch_cnn.backbone import build, feature_map_sizes, numpy_state, save, summary, to_channels_last
from torch_cnn.devices import Processes, generator, init_distributed, pick_device, pick_precision
from torch_cnn.features import cached_features, classifier_logits, extract_features, predict_logits
from torch_cnn.figures import cnn_figures

# ---- settings: edit here, or override any of them on the command line (--epochs 5) ----
# -- first to change
EPOCHS = 24  # passes over the training set, in [1, 10000]
CHANNELS: tuple = (24, 48, 96, 96, 192)  # output channels of each convolution, in [1, 4096]
POOL_AFTER: tuple = (1, 2, 4)  # numbers of the convolutions, from 1, that are followed by 2 x 2 pooling; in [1, 1000]
LEARNING_RATE = 0.2  # peak learning rate; try 0.003 with adam or adamw, 0.02 with --norm none; in (0, 1000)
SEEDS = 1  # number of runs, with seeds from SEED on; metrics.json contains mean and standard deviation; in [1, 1000]
# -- network
KERNEL_SIZES: tuple = (3,)  # kernel size of each convolution, in pixels; a single one is for all; in [1, 27]
PADDING: tuple = ()  # padding of each convolution, in pixels; a single one is for all; empty: the maps keep their size;
                     # in [0, 27]
POOL = "max"  # pooling; not with an empty --pool-after: {max, average}
GLOBAL_POOL = "none"  # after the last convolution: flatten all pixels of its maps, or take each map's mean: {none, average}
NORM = "batch"  # normalization after each convolution: {none, batch}
ACTIVATION = "relu"  # activation function of all layers: {relu, leaky_relu, tanh, gelu, sigmoid}
BLOCK_ORDER = "pool_norm_activation"  # what follows each convolution, in this order; the default is the fastest:
                                      # {pool_norm_activation, norm_activation_pool, activation_norm_pool}
FC: tuple = ()  # neurons of fully connected layers before the classifier; the last one gives the features;
                # in [1, 100000]
FC_NORM = False  # layer normalization in the fully connected layers; only with --fc
INIT = "he"  # initialization of the weights, except the classifier's: {he, xavier, random}
INIT_SCALE = 0.05  # standard deviation of the weights; only with --init random; in (0, 100]
# -- optimization
OPTIMIZER = "nesterov"  # update rule; nesterov is SGD with Nesterov momentum: {nesterov, adam, adamw}
BATCH_SIZE = 256  # images per step, in [1, 1000000]
MOMENTUM = 0.9  # decay of the velocity; only with --optimizer nesterov; in (0, 1)
SCHEDULE = "linear"  # learning rate after the warm-up: {constant, step, exponential, cosine, linear}
WARMUP = 0.2  # fraction of the training in which the learning rate rises linearly to its peak, in (0, 1)
EMA_DECAY = 0.995  # decay of the moving average of the weights, which is evaluated and saved, in [0, 1)
# -- regularization
WEIGHT_DECAY = 0.0005  # L2 penalty added to the gradient; decoupled with adamw; in [0, 1000)
DROPOUT = 0.0  # dropout probability after each convolution, in [0, 1)
FC_DROPOUT = 0.0  # dropout probability in the fully connected layers; only with --fc; in [0, 1)
LABEL_SMOOTHING = 0.1  # fraction of each label that is spread over all classes, in [0, 1)
# -- augmentation
FLIP = True  # mirror each training image with probability 0.5; redrawn in every epoch
SHIFT = 1  # random shift of training images, in pixels; redrawn in every epoch; in [0, 1023]
ERASE = 0  # side of a square of noise in half of the training images, in pixels; redrawn in every epoch; in [0, 1024]
TTA = "flip"  # test-time augmentation: add the logits of the mirrored image; shifts: also of images shifted by one pixel,
              # the views that are best on validation; only with --flip: {none, flip, shifts, 6_views, 10_views, 18_views}
# -- run
RECIPE = "default"  # plain is a small baseline, three convolutions and Adam, nothing else: {default, plain}
SEED = 0  # seed of initialization, batch order and augmentation, in [0, 2147483647]
DEVICE = "auto"  # where to train; auto is the first that is available: {auto, cuda, mps, cpu}
PRECISION = "auto"  # of the convolutions in training; auto is the faster one on this machine: {auto, float32, bfloat16}
COMPILE = False  # use torch.compile; needs a C++ compiler; slower on two CPU cores
RESUME = ""  # folder of an interrupted run to continue with its own settings; bit for bit on a CPU with as many threads
QUICK = False  # smoke test: at most 4 epochs in batches of at most 64, on a subset; numbers are not representative
# ----

# {recipe: the settings that it changes}, other than those given on the command line
RECIPES = {"plain": {"epochs": 5, "channels": (16, 32, 64), "pool_after": (1, 2, 3), "norm": "none", "optimizer": "adam",
                     "learning_rate": 0.003, "schedule": "cosine", "warmup": 0.1, "ema_decay": 0.0, "weight_decay": 0.0,
                     "label_smoothing": 0.0, "batch_size": 128, "flip": False, "shift": 0, "tta": "none"}}  # fmt: skip


def augment(x, flip, shift, generator, erase=0):
    """A randomly changed copy of x (N, 1, 28, 28), as data.augment makes it, but on the device and for tensors."""
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


def make_optimizer(parameters, s):
    """The optimizer of the settings `s`. parameters: tensors, or groups with their own learning rates (torch.optim)."""
    if s.optimizer == "nesterov":
        return torch.optim.SGD(parameters, s.learning_rate, s.momentum, weight_decay=s.weight_decay, nesterov=True)
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[s.optimizer]
    return optimizer(parameters, s.learning_rate, weight_decay=s.weight_decay)


class Trainer(training.Trainer):
    """Trains `model`, on its device, with the settings `s` of this script; holds all that changes during training.

    On a CPU a resumed training is bit for bit one never interrupted, since the random numbers of an epoch depend on the
    seed and the epoch's number alone. dtype: precision of the convolutions. head: the model's classifier if it is a module
    that updates itself in a method `step`, as hybrid_train.NumpyHead does. parameters: for make_optimizer, by default all
    others. Under torchrun, each process takes a part of every batch and batch normalization uses its part's statistics.
    """

    def __init__(self, model, s, num_images, dtype=torch.float32, head=None, parameters=None):
        super().__init__(s, math.ceil(num_images / s.batch_size))
        self.model, self.dtype, self.head, self.processes = model, dtype, head, Processes()
        self.network = torch.compile(model) if s.compile else self.processes.wrap(model)
        self.ema_model = AveragedModel(model, multi_avg_fn=self.update_ema, use_buffers=True)
        self.optimizer = make_optimizer(parameters or (model.backbone if head else model).parameters(), s)
        self.lr_factors = [group["lr"] / s.learning_rate for group in self.optimizer.param_groups]
        self.no_progress = True if self.processes.rank else None
        self.steps = 0  # done so far

    def update_ema(self, averages, values, _):
        decay = min(self.s.ema_decay, self.steps / (9 + self.steps))  # smaller at the start: the first weights are poor
        get_ema_multi_avg_fn(decay)(averages, values, _)

    def train_step(self, x, y, lr, loss_scale=1.0):
        """One step on images x (n, 1, 28, 28), y (n,): (loss, number of correct predictions), tensors.

        loss_scale: size of this process's part of the batch relative to the others'.
        """
        with torch.autocast(y.device.type, torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            logits = self.network(x)  # forward
            loss = F.cross_entropy(logits, y, label_smoothing=self.s.label_smoothing) * loss_scale  # loss
        self.optimizer.zero_grad()
        loss.backward()  # backward
        for group, factor in zip(self.optimizer.param_groups, self.lr_factors, strict=True):
            group["lr"] = lr * factor  # adjust
        self.optimizer.step()  # step
        if self.head:
            self.head.step(lr / self.s.learning_rate)
        self.steps += 1
        self.ema_model.update_parameters(self.model)
        return loss.detach(), (logits.argmax(1) == y).sum()

    def batches(self, n, epoch, device):
        """The epoch's batches: tensors of indices into n images. A last batch too small for batch norm is left out."""
        order = torch.randperm(n, generator=generator(device, self.s.seed, epoch), device=device)
        batches = order.split(self.s.batch_size)
        smallest = self.processes.world_size * (2 if self.s.norm == "batch" else 1)
        return batches[:-1] if len(batches[-1]) < smallest and len(batches) > 1 else batches

    def train_epoch(self, X, y, on_step=lambda loss: None):
        """One epoch on X (N, 1, 28, 28), y (N,): (mean loss, accuracy, last learning rate).

        The means are over the augmented batches while the weights change, with label smoothing.
        """
        s, processes, epoch, device = self.s, self.processes, len(self.history["epoch"]), y.device
        augment_rng = generator(device, s.seed, epoch, processes.rank + 1)
        torch.manual_seed(generator("cpu", s.seed, epoch, processes.rank + 1, 1).initial_seed())  # for nn.Dropout
        batches = self.batches(len(y), epoch, device)
        self.model.train()
        loss_sum, num_correct = torch.zeros(2, device=device)
        for step, batch in enumerate(batches, epoch * self.steps_per_epoch):
            lr = lr_at(step / (s.epochs * self.steps_per_epoch), s.learning_rate, s.schedule, s.warmup, start=0.05)
            shard, loss_scale = processes.shard(batch)
            x = to_channels_last(augment(X[shard], s.flip, s.shift, augment_rng, s.erase))
            loss, correct = self.train_step(x, y[shard], lr, loss_scale)
            loss_sum += loss * len(batch) / processes.world_size
            num_correct += correct
            on_step(loss)
        processes.sum_over_processes(loss_sum, num_correct)
        num_images = sum(map(len, batches))
        return float(loss_sum) / num_images, float(num_correct) / num_images, lr

    def evaluate(self, X, y):
        """(loss, accuracy) on X (N, 1, 28, 28), y (N,) in eval mode, by the moving average of the weights."""
        model = self.ema_model.module
        logits = classifier_logits(model, extract_features(model, X, self.dtype))
        return F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).sum().item() / len(y)

    def divergence_message(self, row, X):
        flags = "--learning-rate or --joint-learning-rate" if self.head else "--learning-rate"
        return (f"the loss became {row['train_loss'] + row['val_loss']:g} in epoch {row['epoch']}, at learning rate "
                f"{row['learning_rate']:g}: lower {flags}")  # fmt: skip

    def state_dict(self):
        """({name: NumPy array}, metadata): all that a new Trainer needs to continue."""
        tensors = numpy_state(self.model, "model.") | numpy_state(self.ema_model, "ema_model.")
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value.cpu().contiguous().numpy()
                        for name, value in state.items() if torch.is_tensor(value)}  # fmt: skip
        if self.head:
            tensors |= {f"head.{name}": array for name, array in self.head.optimizer_state_dict().items()}
        return tensors, {"epoch": len(self.history["epoch"]), "steps": self.steps, "history": self.history,
                         "step_losses": self.step_losses,
                         "world_size": self.processes.world_size, "precision": dtype_name(self.dtype)}  # fmt: skip

    def load_state_dict(self, tensors, metadata):
        """Continue from what `state_dict` has returned. Raises one of files.DAMAGED where that does not fit."""
        self.load_history(metadata["history"], metadata["step_losses"])
        tensors = {prefix: {name.removeprefix(f"{prefix}."): torch.from_numpy(array)
                            for name, array in tensors.items() if name.startswith(f"{prefix}.")}
                   for prefix in ("model", "ema_model", "optimizer", "head")}  # fmt: skip
        if metadata["world_size"] != self.processes.world_size:
            raise ValueError(f"of a training with {metadata['world_size']} processes, not {self.processes.world_size}")
        self.model.load_state_dict(tensors["model"])
        self.ema_model.load_state_dict(tensors["ema_model"])
        parameters, state = [p for group in self.optimizer.param_groups for p in group["params"]], {}
        for name, value in tensors["optimizer"].items():
            number, name = name.split(".", 1)
            like = parameters[int(number)]
            if name != "step":  # in the same memory format, so that the same instructions process it
                if value.shape != like.shape:
                    raise ValueError(f"optimizer.{number}.{name} has shape {tuple(value.shape)}, not {tuple(like.shape)}")
                value = torch.empty_like(like, requires_grad=False).copy_(value)
            state.setdefault(int(number), {})[name] = value
        names = {"momentum_buffer"} if self.s.optimizer == "nesterov" else {"step", "exp_avg", "exp_avg_sq"}
        if self.history["epoch"] and [values.keys() for values in state.values()] != [names] * len(parameters):
            raise ValueError("the optimizer's state is missing")
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        if self.head:
            self.head.load_optimizer_state_dict(tensors["head"])
        epochs, self.steps = len(self.history["epoch"]), int(self.ema_model.n_averaged)
        if not epochs * (self.steps_per_epoch - 1) <= self.steps <= epochs * self.steps_per_epoch:  # one may be left out
            raise ValueError(f"{self.steps} steps in {epochs} epochs")
        if self.head and self.head.optimizer.t != self.steps:
            raise ValueError(f"{self.steps} steps of the CNN, {self.head.optimizer.t} of the MLP")
        self.dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[metadata["precision"]]


def dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


def make_trainer(images, s, model=None, head=None, parameters=None):
    """The Trainer of `model` or a new CNN, on the device of `s`; others as for Trainer. Raises settings.SettingError."""
    device = pick_device(s.device)
    mean, std = data.mean_std(images.train.X)
    model = model or build(s, len(images.classes), mean, std, generator("cpu", s.seed), images.image_shape)
    if head:
        model.classifier = head
    model = model.to(device)
    if device.type != "mps":
        model = model.to(memory_format=torch.channels_last)
    precision = Processes().same_everywhere(pick_precision(s.precision, model, device))
    return Trainer(model, s, len(images.train.y), precision, head, parameters)


def train(images, s, run, history_name="history.csv", model=None, head=None, trainer=None):
    """Train a CNN on images.train: (its moving average, history {column: [...]}). model, head: as for make_trainer.

    trainer: the one to use. With s.resume it continues from the checkpoint there. Raises settings.SettingError, and
    files.FileError where a GPU's memory is too small or the checkpoint does not fit.
    """
    trainer = trainer or make_trainer(images, s, model, head)
    split = data.digest(images.train.indices, images.train.y)
    if s.resume:
        runs.load_checkpoint(trainer, s, split)
        run.resume(trainer.history, history_name)
    run.save_checkpoint(trainer, split)  # before the first epoch, since it records the precision that "auto" chose
    model, device = trainer.model, trainer.model.mean.device
    compute = {"device": device.type, "precision": dtype_name(trainer.dtype)}
    print(summary(model))
    num_parameters = sum(p.numel() for p in model.parameters())  # in joint training, without the NumPy MLP's
    print(f"{model.name}: {num_parameters:,} parameters, on {compute['device']} in {compute['precision']}")
    try:
        arrays = images.train.X[:, None], images.train.y, images.val.X[:, None], images.val.y
        tensors = [torch.from_numpy(array).to(device) for array in arrays]
        trainer.fit(*tensors, lambda row: run.log(row, history_name), lambda: run.save_checkpoint(trainer, split))
        run.save(trainer.step_log(plots.run_title(model.name, images.name, s.seed)))
    except torch.cuda.OutOfMemoryError:
        remedy = f"--batch-size {s.batch_size // 2}" if s.batch_size > 1 else "--device cpu"
        raise files.FileError(f"the GPU's memory is too small for --batch-size {s.batch_size}: try {remedy}") from None
    trainer.ema_model.module.compute = compute
    return trainer.ema_model.module, trainer.history


def check_settings(s, image_shape=None):
    """Raise settings.SettingError for a network that is impossible, for images of this shape if known, or no such device."""
    image_shape = image_shape or data.known_shape(s)
    for name, fewest in (("kernel_sizes", 1), ("padding", 0)):
        if len(values := getattr(s, name)) not in (fewest, 1, len(s.channels)):
            raise settings.SettingError(f"{settings.flag(name)}: {len(values)} for {len(s.channels)} convolutions; give one "
                                        f"for each{', or one for all' if fewest else ', one for all, or none'}")  # fmt: skip
    try:
        size = feature_map_sizes(s.channels, s.pool_after, s.kernel_sizes, s.padding, image_shape or (2**30, 2**30))[-1]
    except ValueError as error:
        raise settings.SettingError("--" + str(error).replace("_", "-", 1)) from None
    batch_norm, (_, world_size) = s.norm == "batch", init_distributed()
    if batch_norm and s.batch_size == 1 and size == (1, 1):
        raise settings.SettingError("--batch-size 1: batch normalization of 1 x 1 maps needs 2 images or more")
    if world_size > 1 and s.batch_size < world_size * (1 + batch_norm):
        raise settings.SettingError(f"--batch-size {s.batch_size}: {world_size} processes need at least "
                                    f"{world_size * (1 + batch_norm)}")  # fmt: skip
    if s.seeds > 1 and world_size > 1:
        raise settings.SettingError(f"--seeds {s.seeds}: not with torchrun; use --seed")
    on_cpu = pick_device(s.device).type == "cpu"
    if s.compile and world_size > 1:
        raise settings.SettingError("--compile: not with torchrun")
    if s.compile and on_cpu and not any(map(shutil.which, ("g++", "clang++", "c++", "cl"))):
        raise settings.SettingError("--compile: needs a C++ compiler, and none was found; leave it out")


def quick_settings(s):
    """The settings of --quick: fewer epochs; smaller batches and a lower learning rate, so that there are enough steps."""
    return SimpleNamespace(**vars(with_batch_size(s, min(s.batch_size, 64))) | {"epochs": min(s.epochs, 4)})


def load_images(s):
    """The dataset; under torchrun the first process reads it first, so that it is downloaded only once."""
    rank, world_size = init_distributed()
    if rank:
        dist.barrier()
    images = data.load_for(s)
    if world_size > 1 and not rank:
        dist.barrier()
    return images


def train_silently(images, s):
    """The part of every torchrun process but the first, which alone reports and writes."""
    silent = SimpleNamespace(**dict.fromkeys(("log", "save", "save_checkpoint", "resume"), lambda *ignored: None))
    with contextlib.redirect_stdout(io.StringIO()):
        train(images, s, silent)
    dist.destroy_process_group()


def run(s, images=None, on_epoch=None):
    """The whole job with the settings `s`: load, train, extract, evaluate, save. Return the content of metrics.json.

    images: the dataset, if it is already loaded. on_epoch: called with each epoch's row of the history.
    """
    check_settings(s)
    if images is None:
        images = load_images(s)
        s = with_suitable_batch_size(s, images, BATCH_SIZE, LEARNING_RATE)
    check_settings(s, images.image_shape)
    s = quick_settings(s) if s.quick else s
    rank, world_size = init_distributed()
    if rank:
        return train_silently(images, s)
    with runs.Run("cnn_feature_extraction", s, on_epoch) as run:
        model, history = train(images, s, run)
        if world_size > 1:
            dist.destroy_process_group()
        features = cached_features(run.path / "features.npz", model, images) if s.save_weights else {}
        logits = evaluate(model, images, features)
        if s.save_weights:
            save(run.path / "backbone.safetensors", model, images, s, **training.for_prediction(images, logits["val"]))
        tta = tta_logits(s, lambda X: predict_logits(model, X), images, logits)
        title = plots.run_title(model.name, images.name, s.seed)
        figures = {"curves.png": training_curves(history, s, title)} if s.figures else {}
        if s.figures and features:
            figures |= cnn_figures(model, images, features, logits["test"], title)
        return training.report(run, images, title, model.name, logits, tta, curves=figures, model=model.name,
                               parameters=model.num_parameters, features=model.classifier.in_features, **model.compute)


def evaluate(model, images, features=None):
    """Logits {"val": (N, classes), "test": ...} of the CNN; features: those of `cached_features`, if there are any."""
    if not features:
        return {split: predict_logits(model, getattr(images, split).X) for split in ("val", "test")}
    return {split: classifier_logits(model, features[f"X_{split}"]).cpu().numpy() for split in ("val", "test")}


def training_curves(history, s, title):
    return plots.curves({title: history}, title, bool(s.flip or s.shift or s.erase), s.label_smoothing)


def main(argv=None):
    s = settings.parse(sys.modules[__name__], data, runs, argv=argv)
    runs.run_seeds("cnn_feature_extraction", run, s, check_settings)


if __name__ == "__main__":
    entry.cli(main)
