"""A multilayer perceptron in NumPy: forward pass, backward pass, optimizers and training loop written by hand.

    python mlp_from_scratch.py

prints at the end, after 46 s on 2 cores of an AMD EPYC (Python 3.11.7, NumPy 2.4.6),

    Fashion-MNIST                               validation      test
    NumPy MLP 784-256-128-10                        91.52%      90.53%
      with flip test-time augmentation (TTA)        91.63%      90.54%
"""

from support import entry

if __name__ == "__main__":  # before the slow imports: Ctrl-C, --help and wrong flags
    entry.prepare(__file__, "data.py", "support/runs.py")

import itertools
import math
import sys
from types import SimpleNamespace

import numpy as np

import data
import numpy_nn.figures
import plots
from numpy_nn.flat_parameters import FlatParameters
from numpy_nn.layers import ACTIVATIONS, LOSSES, NORMS, Dropout, Linear
from numpy_nn.monitor import TrainingMonitor, large_step_advice, locate_nonfinite
from numpy_nn.optimizers import EMA, OPTIMIZERS, ReduceLROnPlateau, lr_at
from support import files, runs, settings, training
from support.tta import tta_logits

# ---- settings: edit here, or override any of them on the command line (--epochs 5) ----
# -- first to change
EPOCHS = 40  # passes over the training set, in [1, 10000]
HIDDEN: tuple = (256, 128)  # neurons in each hidden layer; empty for softmax regression; in [1, 100000]
LEARNING_RATE = 0.003  # peak learning rate; try 0.1 with sgd, 0.02 with momentum or nesterov; in (0, 1000)
DROPOUT = 0.05  # dropout probability in the hidden layers; not with an empty --hidden; in [0, 1)
SEEDS = 1  # number of runs, with seeds from SEED on; metrics.json contains mean and standard deviation; in [1, 1000]
# -- network
ACTIVATION = "relu"  # activation function; not with an empty --hidden: {relu, leaky_relu, tanh, gelu, sigmoid}
NORM = "batch"  # normalization before each activation; not with an empty --hidden: {none, batch, layer}
INIT = "he"  # initialization of the weights: {he, xavier, lecun, random}
INIT_SCALE = 0.01  # standard deviation of the weights; only with --init random; in (0, 100]
# -- optimization
LOSS = "softmax"  # softmax cross-entropy, or binary cross-entropy of one sigmoid per class: {softmax, sigmoid}
OPTIMIZER = "adam"  # update rule: {sgd, momentum, nesterov, rmsprop, adam, adamw}
BATCH_SIZE = 128  # images per step, in [1, 1000000]
MOMENTUM = 0.9  # decay of the velocity; only with --optimizer momentum or nesterov; in [0, 1)
SCHEDULE = "linear"  # learning rate after the warm-up: {constant, step, exponential, cosine, linear, plateau}
WARMUP = 0.2  # fraction of the training in which the learning rate rises linearly to its peak, in [0, 1)
MAX_GRAD_NORM = 0.0  # clip the norm of the gradient to this; 0 disables; in [0, 1000000)
EMA_DECAY = 0.999  # decay of the moving average of the weights, which is evaluated and saved; 0 disables; in [0, 1)
# -- regularization
WEIGHT_DECAY = 0.1  # decoupled weight decay, as in AdamW; use less with sgd and momentum; in [0, 1000)
L1 = 0.0  # L1 penalty: this times the sum of the absolute weights, in [0, 1000000)
L2 = 0.0  # L2 penalty: half of this times the sum of the squared weights, in [0, 1000000)
INPUT_DROPOUT = 0.0  # dropout probability of the pixels, in [0, 1)
LABEL_SMOOTHING = 0.1  # fraction of each label that is spread over all classes, in [0, 1)
PATIENCE = 0  # stop after this many epochs without improvement in validation accuracy and restore the best weights;
              # 0 disables; in [0, 10000]
# -- augmentation
FLIP = True  # mirror each training image with probability 0.5; redrawn for every batch
SHIFT = 0  # random shift of training images, in pixels; redrawn for every batch; in [0, 1023]
ERASE = 0  # side of a square of noise in half of the training images, in pixels; redrawn for every batch; in [0, 1024]
AUGMENT_ONCE = False  # augment once, before training, not anew for every batch; only with --flip, --shift or --erase
NORMALIZE = "global"  # mean 0 and standard deviation 1 over all pixels, or for each pixel: {none, global, per_pixel}
TTA = "flip"  # test-time augmentation: add the logits of the mirrored image; shifts: also of images shifted by one pixel,
              # the views that are best on validation; only with --flip: {none, flip, shifts, 6_views, 10_views, 18_views}
# -- run
RECIPE = "default"  # plain is a baseline: Adam with a cosine schedule and nothing else, 12 epochs: {default, plain}
SEED = 0  # seed of initialization, batch order, dropout and augmentation, in [0, 2147483647]
RESUME = ""  # folder of an interrupted run to continue, bit for bit, with its own settings
QUICK = False  # smoke test: at most 5 epochs on a subset; numbers are not representative
# ----

# Adam with a cosine schedule and nothing else: the defaults of the hybrid's head and of the scikit-learn classifier
BASELINE = {"activation": "relu", "norm": "none", "dropout": 0.0, "input_dropout": 0.0, "loss": "softmax",
            "label_smoothing": 0.0, "init": "he", "optimizer": "adam", "schedule": "cosine", "warmup": 0.0, "l1": 0.0,
            "l2": 0.0, "weight_decay": 0.0, "max_grad_norm": 0.0, "ema_decay": 0.0, "patience": 0}  # fmt: skip
# {recipe: the settings that it changes}, other than those given on the command line
RECIPES = {"plain": BASELINE | {"epochs": 12, "learning_rate": 0.001, "flip": False, "tta": "none"}}


class MLP(FlatParameters):
    """Hidden layers of Linear, norm, activation and dropout, then a Linear layer whose output are the logits.

    sizes (784, 256, 128, 10) give 784-256-128-10. The layers' parameters and gradients are views into the flat vectors
    `params` and `grads`. rng draws the initial weights, dropout_rng the dropout masks. num_values: of its parameters and
    buffers, if known from a file; others raise ValueError.
    """

    def __init__(self, sizes, rng=None, *, activation="relu", norm="none", dropout=0.0, input_dropout=0.0, init="he",
                 init_scale=0.01, dropout_rng=None, dtype=np.float32, num_values=None):  # fmt: skip
        self.name = "-".join(map(str, sizes))  # as in 784-256-128-10
        self.config = {"sizes": tuple(sizes), "activation": activation, "norm": norm}  # what a weights file contains
        self.layers = [Dropout(input_dropout, dropout_rng)] if input_dropout else []
        for n_in, n_out in itertools.pairwise(sizes[:-1]):
            self.layers.append(Linear(n_in, n_out, init, init_scale, bias=norm != "batch"))  # batch norm cancels a bias
            if norm != "none":
                self.layers.append(NORMS[norm](n_out))
            self.layers.append(ACTIVATIONS[activation]())
            if dropout:
                self.layers.append(Dropout(dropout, dropout_rng))
        self.layers.append(Linear(*sizes[-2:], init, init_scale))
        self.first = next(layer for layer in self.layers if layer.shapes)  # whose dx nothing needs
        self._allocate(dtype, num_values)
        if rng is not None:
            for layer in self.layers:
                layer.init(rng)

    def forward(self, x, training=False):
        """Logits (N, classes) of x (N, features)."""
        x = x.astype(self.params.dtype, copy=False)
        for layer in self.layers:
            x = layer.forward(x, training)
        return x

    def backward(self, dlogits, input_gradient=False):
        """Fill `grads` from dlogits (N, classes) after a forward pass in training mode; return dx (N, features) if asked."""
        dout = dlogits
        for layer in reversed(self.layers):
            if layer is self.first and not input_gradient:
                return layer.backward(dout, input_gradient=False)
            dout = layer.backward(dout)
        return dout

    def predict_logits(self, X, batch_size=2000):
        """Logits (N, classes) of all of X in eval mode, in batches that fit the processor's caches."""
        logits = np.empty((len(X), self.config["sizes"][-1]), self.params.dtype)
        for start in range(0, len(X), batch_size):
            logits[start : start + batch_size] = self.forward(X[start : start + batch_size])
        return logits

    def add_penalties(self, l1, l2):
        """Add the gradients of l1 sum |W| + l2 / 2 sum W^2 over all weights (not biases) to `grads`; return the penalty."""
        penalty = 0.0
        for W, dW in self.weights:
            if l1:
                penalty += l1 * float(np.abs(W).sum())
                dW += l1 * np.sign(W)
            if l2:
                penalty += l2 / 2 * float(np.vdot(W, W))
                dW += l2 * W
        return penalty

    def clip_grad_norm(self, max_norm):
        """Scale `grads`, as one vector, to the norm `max_norm` if it is larger (Pascanu et al. 2013, alg. 1)."""
        norm = float(np.sqrt(np.vdot(self.grads, self.grads)))
        if norm > max_norm:
            self.grads *= max_norm / norm
        return norm


class Trainer(training.Trainer):
    """Trains `model` with the settings `s` of this script; holds all that changes during training.

    rngs: {"shuffle": Generator, "augment": ..., ...}, from `make_rngs`; num_images: size of the training set. transform:
    makes the network's input (n, features) of a batch of training images; None where the images are that input.
    """

    def __init__(self, model, rngs, s, num_images, transform=None):
        super().__init__(s, math.ceil(num_images / s.batch_size))
        self.model, self.rngs, self.num_images, self.transform = model, rngs, num_images, transform
        options = {"momentum": s.momentum} if s.optimizer in ("momentum", "nesterov") else {}
        self.optimizer = OPTIMIZERS[s.optimizer](model.params, model.grads, **options)
        self.plateau = ReduceLROnPlateau() if s.schedule == "plateau" else None
        self.ema = EMA(model, s.ema_decay) if s.ema_decay else None
        self.loss, _ = LOSSES[s.loss]
        self.epoch, self.best_epoch, self.best_accuracy = 0, 0, 0.0
        self.best = {"params": model.params.copy(), "buffers": model.buffers.copy()} if s.patience else {}
        self.monitor = None  # a monitor.TrainingMonitor, optional

    def check_data(self, X, y):
        data.check_data(X, y, self.model.config["sizes"][-1])

    def train_step(self, x, y, lr):
        """One step on the batch x (n, features), y (n,): (loss, number of correct predictions). Raises runs.Diverged."""
        logits = self.model.forward(x, training=True)  # forward
        loss, dlogits = self.loss(logits, y, self.s.label_smoothing)  # loss
        if not np.isfinite(loss):
            raise runs.Diverged(self.divergence_message({"train_loss": loss, "learning_rate": lr}, x))
        self.model.backward(dlogits)  # backward
        self.adjust_gradients()  # adjust
        self.decay_weights(lr)
        self.optimizer.step(lr)  # step
        if self.ema:
            self.ema.update()
        return loss, np.count_nonzero(logits.argmax(axis=1) == y)

    def adjust_gradients(self):
        """Add the gradients of the L1 and L2 penalties, then clip."""
        if self.s.l1 or self.s.l2:
            self.model.add_penalties(self.s.l1, self.s.l2)
        if self.s.max_grad_norm:
            self.model.clip_grad_norm(self.s.max_grad_norm)

    def decay_weights(self, lr):
        """Weight decay, decoupled from the gradient (Loshchilov and Hutter 2019), in the form of torch.optim.AdamW."""
        for W, _ in self.model.weights if self.s.weight_decay else ():
            W *= 1 - lr * self.s.weight_decay

    def lr_of_step(self, step):
        """The learning rate of a step, counted from 0 over the whole training."""
        total = self.s.epochs * self.steps_per_epoch
        warmup_steps = round(self.s.warmup * total)
        lr = lr_at(step / total, self.s.learning_rate, self.s.schedule, warmup_steps / total, 1 / (warmup_steps + 1))
        return lr * self.plateau.factor if self.plateau else lr

    def train_epoch(self, X, y, on_step=lambda loss: None):
        """One epoch on X (N, ...), y (N,): (mean loss, accuracy, last learning rate)."""
        buffer = np.empty((min(self.s.batch_size, self.num_images), *X.shape[1:]), X.dtype)
        loss_sum, num_correct, first_step = 0.0, 0, self.epoch * self.steps_per_epoch
        for number, batch in enumerate(data.batches(self.num_images, self.s.batch_size, self.rngs["shuffle"])):
            if self.monitor and number == self.steps_per_epoch - 1:
                self.monitor.before_step()
            lr = self.lr_of_step(first_step + number)
            x = np.take(X, batch, axis=0, out=buffer[: len(batch)], mode="clip")  # mode="raise" would copy once more
            x = self.transform(x) if self.transform else x
            loss, correct = self.train_step(x, y[batch], lr)
            loss_sum += loss * len(batch)
            num_correct += correct
            on_step(loss)
        return loss_sum / self.num_images, num_correct / self.num_images, lr

    def evaluate(self, X, y):
        """(loss, accuracy) on X (N, features), y (N,) in eval mode, by the EMA of the weights if there is one."""
        if self.ema:
            self.ema.swap()
        logits = self.model.predict_logits(X)
        loss, accuracy = self.loss(logits, y)[0], training.accuracy(logits, y)
        if self.ema:
            self.ema.swap()
        return loss, accuracy

    def on_epoch_end(self, row):
        """Update what depends on validation; return the monitor's advice, a list of lines."""
        self.epoch += 1
        if self.plateau:
            self.plateau.step(row["val_loss"])
        if self.s.patience and row["val_accuracy"] > self.best_accuracy:
            weights = self.ema or self.model
            self.best_epoch, self.best_accuracy = self.epoch, row["val_accuracy"]
            self.best["params"][:], self.best["buffers"][:] = weights.params, weights.buffers
        return self.monitor.on_epoch_end(self.epoch, row["learning_rate"]) if self.monitor else []

    @property
    def should_stop(self):
        return bool(self.s.patience) and self.epoch - self.best_epoch >= self.s.patience

    def finish(self):
        """Leave the best weights, or their EMA, in the model."""
        if self.s.patience:
            self.model.params[:], self.model.buffers[:] = self.best["params"], self.best["buffers"]
        elif self.ema:
            self.ema.swap()

    def divergence_message(self, row, X):
        """Why the loss of the row is not finite and what to do. X (N, features): inputs for which it is not."""
        split, loss = ("", row["train_loss"]) if not np.isfinite(row["train_loss"]) else ("validation ", row["val_loss"])
        if split and self.ema:
            self.ema.swap()
        return (f"the {split}loss became {loss} in epoch {self.epoch + 1} ({locate_nonfinite(self.model, X)}), at learning "
                f"rate {row['learning_rate']:g}: {large_step_advice(self.s)}")  # fmt: skip

    def state_dict(self):
        """({name: array}, metadata): all that a new Trainer needs to continue bit for bit. The arrays are not copies."""
        tensors = {"params": self.model.params, "buffers": self.model.buffers, "optimizer": self.optimizer.state}
        if self.ema:
            tensors |= {"ema.params": self.ema.params, "ema.buffers": self.ema.buffers}
        metadata = {
            "epoch": self.epoch, "best_epoch": self.best_epoch, "best_accuracy": self.best_accuracy,
            "optimizer_t": self.optimizer.t, "ema_t": self.ema.t if self.ema else 0,
            "plateau": vars(self.plateau) if self.plateau else {}, "history": self.history,
            "monitor": self.monitor.state_dict() if self.monitor else {},
            "rngs": {name: rng.bit_generator.state for name, rng in self.rngs.items()}, "step_losses": self.step_losses,
        }  # fmt: skip
        return tensors | {f"best.{name}": array for name, array in self.best.items()}, metadata

    def load_state_dict(self, tensors, metadata):
        """Continue from what `state_dict` has returned. Raises one of files.DAMAGED where that does not fit."""
        self.load_history(metadata["history"], metadata["step_losses"])
        files.copy_into(self.state_dict()[0], tensors)
        self.epoch = len(self.history["epoch"])
        self.optimizer.t = self.epoch * self.steps_per_epoch
        if self.ema:
            self.ema.t = self.optimizer.t
        for loss in self.history["val_loss"] if self.plateau else ():
            self.plateau.step(loss)
        for epoch, accuracy in enumerate(self.history["val_accuracy"] if self.s.patience else (), 1):
            if accuracy > self.best_accuracy:
                self.best_epoch, self.best_accuracy = epoch, accuracy
        if self.monitor:
            self.monitor.load_state_dict(metadata["monitor"])
        for name, rng in self.rngs.items():
            rng.bit_generator.state = metadata["rngs"][name]


def save(path, model, metadata):
    """Write the model and the dict `metadata` (JSON: normalization, classes) as one safetensors file."""
    files.save_weights(path, model.views, {"model": "mlp", **model.config, **metadata})


def restore(path):
    """(model, metadata) of a file that `save` wrote. Raises files.FileError."""
    tensors, metadata = files.load_weights(path, "mlp")
    with files.checked_format(path):
        model = MLP(metadata["sizes"], activation=metadata["activation"], norm=metadata["norm"],
                    num_values=sum(array.size for array in tensors.values()))  # fmt: skip
        files.copy_into(model.views, tensors)
    return model, metadata


def make_rngs(seed):
    """Independent generators {"init": ..., "shuffle": ..., "dropout": ..., "augment": ...}."""
    names = ("init", "shuffle", "dropout", "augment")
    return dict(zip(names, map(np.random.default_rng, np.random.SeedSequence(seed).spawn(len(names))), strict=True))


def build(num_features, num_classes, s, dtype=np.float32):
    """(an untrained MLP with the settings `s` of this script, its random generators). Raises settings.SettingError."""
    check_settings(s)
    rngs = make_rngs(s.seed)
    model = MLP((num_features, *s.hidden, num_classes), rngs["init"], activation=s.activation, norm=s.norm,
                dropout=s.dropout, input_dropout=s.input_dropout, init=s.init, init_scale=s.init_scale,
                dropout_rng=rngs["dropout"], dtype=dtype)  # fmt: skip
    return model, rngs


def check_settings(s):
    """Raise settings.SettingError for settings that cannot be combined."""
    if s.norm == "batch" and s.batch_size == 1:
        raise settings.SettingError("--batch-size 1: batch normalization needs 2 images or more")
    if s.learning_rate * s.weight_decay >= 1:
        raise settings.SettingError(f"--weight-decay {s.weight_decay:g}: with --learning-rate {s.learning_rate:g} one step "
                                    "would remove all of the weights; lower one of them")  # fmt: skip


def train(X, y, X_val, y_val, num_classes, s, log):
    """A new MLP with the settings `s` of this script, trained: (model, history). X (N, features), y (N,)."""
    trainer = Trainer(*build(X.shape[1], num_classes, s), s, len(y))
    trainer.fit(X, y, X_val, y_val, log)
    return trainer.model, trainer.history


def run(s, images=None, on_epoch=None):
    """The whole job with the settings `s`: load, train, evaluate, save. Return the content of metrics.json.

    images: the dataset, if it is already loaded. on_epoch: called with each epoch's row of the history.
    """
    images = images or data.load_for(s)
    s = SimpleNamespace(**vars(s) | {"epochs": min(s.epochs, 5)}) if s.quick else s
    mean, std = data.normalization_stats(images.train.X, s.normalize)
    X_val, X_test, X_eval = (data.standardize(X, mean, std) for X in (  # (N, 28, 28) -> (N, 784)
        images.val.X, images.test.X, images.train.X[: training.TRAIN_EVAL_SIZE]))  # fmt: skip
    model, rngs = build(X_val.shape[1], len(images.classes), s)
    trainer, augmented = Trainer(model, rngs, s, len(images.train.y)), s.flip or s.shift or s.erase

    def augment(x):  # (n, 28, 28) -> (n, 784)
        return data.standardize(data.augment(x, rngs["augment"], s.flip, s.shift, s.erase), mean, std)

    X = images.train.X
    if augmented and not s.augment_once:
        trainer.transform = augment
    else:
        X = augment(X) if augmented else data.standardize(X, mean, std)
    trainer.monitor = TrainingMonitor(model, X_val[:1000], s)
    split = data.digest(images.train.indices, images.train.y)

    with runs.Run("mlp_from_scratch", s, on_epoch) as run:
        if s.resume:
            runs.load_checkpoint(trainer, s, split)
            run.resume(trainer.history)
        trainer.fit(X, images.train.y, X_val, images.val.y, run.log, lambda: run.save_checkpoint(trainer, split),
                    (X_eval, images.train.y[: len(X_eval)]))  # fmt: skip
        metadata = {"dataset": images.name, "classes": images.classes, "image_shape": images.image_shape}
        metadata |= {"mean": np.asarray(mean).tolist(), "std": np.asarray(std).tolist()}
        logits = {"val": model.predict_logits(X_val), "test": model.predict_logits(X_test)}
        if s.save_weights:
            metadata |= training.for_prediction(images, logits["val"], s.loss)
            save(run.path / "weights.safetensors", model, metadata)
        tta = tta_logits(s, lambda X: model.predict_logits(data.standardize(X, mean, std)), images, logits)
        title = plots.run_title(f"NumPy MLP {model.name}", images.name, s.seed)
        run.save(trainer.step_log(title))
        figures = numpy_nn.figures.of_training(trainer, X_val[:1000], images.val, title) if s.figures else {}
        best = {"best_epoch": trainer.best_epoch} if s.patience else {}
        return training.report(run, images, title, f"NumPy MLP {model.name}", logits, tta, loss=s.loss,
                               curves=figures, model=f"NumPy MLP {model.name}", parameters=len(model.params), **best)


def main(argv=None):
    runs.run_seeds("mlp_from_scratch", run, settings.parse(sys.modules[__name__], data, runs, argv=argv), check_settings)


if __name__ == "__main__":
    entry.cli(main)
