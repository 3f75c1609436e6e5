"""A multilayer perceptron in NumPy: forward pass, backward pass, optimisers and training loop written by hand.

    python mlp_from_scratch.py

ends, after 68 s on 2 cores of an Intel(R) Xeon(R) Processor @ 2.50GHz (Python 3.11.7, NumPy 2.4.6), with

    Fashion-MNIST                       validation      test
    NumPy MLP 784-256-128-10              91.52%      90.53%
      mean with the mirrored image's      91.63%      90.54%
"""

import itertools
import math
import sys
import time

import numpy as np
from tqdm import tqdm

import data
import doctor
import plots
import runs
import settings
from layers import ACTIVATIONS, LOSSES, NORMS, Dropout, Linear
from optimizers import OPTIMIZERS, Average, ReduceOnPlateau, learning_rates

# ---- settings: edit here, or override any of them on the command line (--epochs 5) ----
EPOCHS = 40  # passes over the training set, in [1, 10000]
BATCH_SIZE = 128  # images in each step, in [1, inf)
HIDDEN: tuple = (256, 128)  # neurons in each hidden layer; none at all is softmax regression; in [1, 100000]
ACTIVATION = "relu"  # of the hidden neurons: {relu, leaky_relu, tanh, gelu, sigmoid}
NORM = "batch"  # normalisation of what enters the activation: {none, batch, layer}
DROPOUT = 0.05  # share of the hidden neurons that each training step leaves out, in [0, 1)
INPUT_DROPOUT = 0.0  # share of the pixels that each training step leaves out, in [0, 1)
INPUT = "standard"  # pixels as they are, in [0, 1], or with mean 0 and deviation 1, of all or each: {none, standard, pixel}
FLIP = True  # show half of the training images mirrored, drawn anew for each batch
SHIFT = 0  # move each training image by up to so many pixels, drawn anew for each batch, in [0, 27]
ERASE = 0  # side of a square of noise in half of the training images, in pixels, drawn anew for each batch, in [0, 28]
LOSS = "softmax"  # cross-entropy of one softmax, or binary cross-entropy of a sigmoid for each class: {softmax, sigmoid}
LABEL_SMOOTHING = 0.1  # share of each label that is spread over all classes, in [0, 1)
INIT = "he"  # how the weights are drawn: {he, xavier, lecun, random}
INIT_SCALE = 0.01  # standard deviation of the weights that random draws, in (0, 100]
OPTIMIZER = "adam"  # what turns gradients into steps: {sgd, momentum, nesterov, rmsprop, adam, adamw}
LEARNING_RATE = 0.003  # the highest one; about 0.1 suits sgd, 0.02 momentum and nesterov; in (0, inf)
MOMENTUM = 0.9  # of momentum and nesterov, in [0, 1)
SCHEDULE = "one_cycle"  # how the learning rate goes on: {constant, step, exponential, cosine, one_cycle, plateau}
WARMUP = 0.2  # share of the training in which it first rises, in a straight line; 0.2 suits one_cycle; in [0, 1)
L1 = 0.0  # penalty on the weights: this times the sum of their magnitudes, in [0, inf)
L2 = 0.0  # penalty on the weights: half of this times the sum of their squares, in [0, inf)
WEIGHT_DECAY = 0.1  # share of the weights, times the learning rate, that each step takes off, as in AdamW; with the
                    # higher learning rates of sgd and momentum less of it is enough; in [0, inf)
CLIP_NORM = 0.0  # gradients that are longer than this, all of them as one vector, are shortened; 0: none; in [0, inf)
AVERAGE = 0.999  # decay of the running average of the weights, then what is evaluated and saved; 0: none; in [0, 1)
PATIENCE = 0  # epochs without a better validation accuracy after which it stops, and takes the best; 0: never; in [0, inf)
RESUME = ""  # the folder of a run that was stopped, to take it up again with its own settings, bit for bit
SEED = 0  # of the initial weights, the order of the batches, dropout and the augmentation, in [0, inf)
SEEDS = 1  # runs, one for each seed from SEED on; metrics.json then has means, deviations and single values; in [1, 1000]
QUICK = False  # a short tour: 5 epochs at most, on a subset; its figures are only a tour's
# ----

# Adam along a cosine and nothing more: what the hybrid's head and the scikit-learn classifier start from
PLAIN = {"activation": "relu", "norm": "none", "dropout": 0.0, "input_dropout": 0.0, "loss": "softmax",
         "label_smoothing": 0.0, "init": "he", "optimizer": "adam", "schedule": "cosine", "warmup": 0.0, "l1": 0.0,
         "l2": 0.0, "weight_decay": 0.0, "clip_norm": 0.0, "average": 0.0, "patience": 0}  # fmt: skip


class MLP:
    """Hidden layers of Linear, norm, activation and dropout, and a Linear that gives the logits.

    sizes (784, 256, 128, 10) make 784-256-128-10. All parameters are views into one vector, `params`, and their gradients
    into another, `grads`, so that an optimiser works on two flat vectors, whatever the layers are; what is learnt without
    gradients is in a third, `state`. rng draws the initial weights, dropout_rng what dropout leaves out.
    """

    def __init__(self, sizes, rng=None, *, activation="relu", norm="none", dropout=0.0, input_dropout=0.0, init="he",
                 init_scale=0.01, dropout_rng=None, dtype=np.float32):  # fmt: skip
        self.name = "-".join(map(str, sizes))  # as in 784-256-128-10
        self.built = {"sizes": tuple(sizes), "activation": activation, "norm": norm}  # what a file of weights must tell
        self.layers = [Dropout(input_dropout, dropout_rng)] if input_dropout else []
        for n_in, n_out in itertools.pairwise(sizes[:-1]):
            self.layers.append(Linear(n_in, n_out, init, init_scale, bias=norm != "batch"))  # which takes the mean off
            if norm != "none":
                self.layers.append(NORMS[norm](n_out))
            self.layers.append(ACTIVATIONS[activation]())
            if dropout:
                self.layers.append(Dropout(dropout, dropout_rng))
        self.layers.append(Linear(*sizes[-2:], init, init_scale))

        self.first = next(layer for layer in self.layers if layer.shapes)
        self.params, self.grads = (np.zeros(self.count("shapes"), dtype) for _ in range(2))
        self.state = np.zeros(self.count("state_shapes"), dtype)
        self.link()
        if rng is not None:
            for layer in self.layers:
                layer.init(rng)

    def count(self, shapes):
        """How many numbers the layers' `shapes` or `state_shapes` make."""
        return sum(math.prod(shape) for layer in self.layers for shape in getattr(layer, shapes).values())

    def link(self):
        """Make the layers' arrays views into `params`, `grads` and `state`."""
        self.views = self.cut("params", "shapes") | self.cut("state", "state_shapes")  # {"0.W": view, "0.b": view, ...}
        self.cut("grads", "shapes")
        self.weights = [(layer.params["W"], layer.grads["W"]) for layer in self.layers if "W" in layer.params]

    def __getstate__(self):  # views would become arrays of their own in a copy or a pickle, which links them again
        return {name: value for name, value in vars(self).items() if name not in ("views", "weights")}

    def __setstate__(self, attributes):
        vars(self).update(attributes)
        self.link()

    def cut(self, attribute, shapes):
        """Give each layer its part of the vector `attribute`; returns {"number.name": view}."""
        views, start, vector = {}, 0, getattr(self, attribute)
        learning = (layer for layer in self.layers if layer.shapes)  # numbered without dropout, which use has no need of
        for number, layer in enumerate(learning):
            own = getattr(layer, attribute)
            for name, shape in getattr(layer, shapes).items():
                end = start + math.prod(shape)
                own[name] = views[f"{number}.{name}"] = vector[start:end].reshape(shape)
                start = end
        return views

    def forward(self, x, training=False):
        """Logits (N, classes) of x (N, features)."""
        x = x.astype(self.params.dtype, copy=False)
        for layer in self.layers:
            x = layer.forward(x, training)
        return x

    def backward(self, dlogits, input_gradient=False):
        """Fill `grads` from dlogits (N, classes), after a forward pass in training; dx (N, features) where it is wanted."""
        dout = dlogits
        for layer in reversed(self.layers):
            if layer is self.first and not input_gradient:
                return layer.backward(dout, input_gradient=False)
            dout = layer.backward(dout)
        return dout

    def logits(self, X, batch_size=2000):
        """Logits (N, classes) of all of X, in pieces that fit the processor's caches."""
        logits = np.empty((len(X), self.built["sizes"][-1]), self.params.dtype)
        for start in range(0, len(X), batch_size):
            logits[start : start + batch_size] = self.forward(X[start : start + batch_size])
        return logits

    def regularise(self, l1, l2):
        """Add the gradients of l1 sum |W| + l2 / 2 sum W^2 over all weights (not biases) to `grads`; return that penalty."""
        penalty = 0.0
        for W, dW in self.weights:
            if l1:
                penalty += l1 * float(np.abs(W).sum())
                dW += l1 * np.sign(W)
            if l2:
                penalty += l2 / 2 * float(np.vdot(W, W))
                dW += l2 * W
        return penalty

    def clip(self, longest):
        """Shorten `grads`, as one vector, to the length `longest` where it is longer (Pascanu et al. 2013, alg. 1)."""
        norm = float(np.sqrt(np.vdot(self.grads, self.grads)))
        if norm > longest:
            self.grads *= longest / norm
        return norm


class Training:
    """A training of `model` with the settings `s`, and all that changes while it goes on.

    rng: {"shuffle": Generator, ...}, a stream for each purpose; n: the number of training images. What `arrays` and
    `about` return after an epoch, `take_up` puts into a new Training: it then goes on bit for bit as if never stopped.
    """

    def __init__(self, model, rng, s, n):
        self.model, self.s, self.rng, self.n = model, s, rng, n
        more = {"momentum": s.momentum} if s.optimizer in ("momentum", "nesterov") else {}
        self.optimizer = OPTIMIZERS[s.optimizer](model.params, model.grads, **more)
        self.steps = -(-n // s.batch_size)  # in an epoch
        self.rates = learning_rates(s.schedule, s.learning_rate, s.epochs * self.steps, s.warmup)
        self.plateau = ReduceOnPlateau() if s.schedule == "plateau" else None
        self.average = Average(model, s.average) if s.average else None
        self.loss, _ = LOSSES[s.loss]
        self.epoch, self.best_epoch, self.best_accuracy = 0, 0, 0.0
        self.best = {"params": model.params.copy(), "state": model.state.copy()} if s.patience else {}
        self.history = {column: [] for column in runs.COLUMNS}
        self.doctor = None  # a doctor.Doctor, where one is wanted

    def arrays(self):
        """{name: array}: the arrays themselves, not copies."""
        own = {"params": self.model.params, "state": self.model.state, "optimizer": self.optimizer.state}
        if self.average:
            own |= {"average.params": self.average.params, "average.state": self.average.state}
        return own | {f"best.{name}": array for name, array in self.best.items()}

    def about(self):
        """The rest, as a dict for JSON."""
        return {
            "model": "mlp training", "epoch": self.epoch,
            "best_epoch": self.best_epoch, "best_accuracy": self.best_accuracy,
            "optimizer_t": self.optimizer.t, "average_t": self.average.t if self.average else 0,
            "plateau": vars(self.plateau) if self.plateau else {}, "history": self.history,
            "doctor": self.doctor.history if self.doctor else {}, "advised": self.doctor.advised if self.doctor else [],
            "rng": {name: stream.bit_generator.state for name, stream in self.rng.items()},
        }  # fmt: skip

    def take_up(self, tensors, about):
        """Go on from what `arrays` and `about` have returned. Raises KeyError or ValueError where that does not fit."""
        for name, array in self.arrays().items():
            if tensors[name].shape != array.shape:
                raise ValueError(f"{name} has the shape {tensors[name].shape}, expected {array.shape}")
        for name, array in self.arrays().items():
            array[...] = tensors[name]
        self.epoch, self.best_epoch, self.best_accuracy = (about[key] for key in ("epoch", "best_epoch", "best_accuracy"))
        self.optimizer.t, self.history = about["optimizer_t"], about["history"]
        if self.average:
            self.average.t = about["average_t"]
        if self.plateau:
            vars(self.plateau).update(about["plateau"])
        if self.doctor:
            self.doctor.history, self.doctor.advised = about["doctor"], about["advised"]
        for name, stream in self.rng.items():
            stream.bit_generator.state = about["rng"][name]

    def step(self, x, y, rate):
        """One step on the batch x (N, features), y (N,): (loss, how many were right). Raises runs.Diverged."""
        s, model = self.s, self.model
        logits = model.forward(x, training=True)
        loss, dlogits = self.loss(logits, y, s.label_smoothing)
        if not np.isfinite(loss):
            raise runs.Diverged(f"the loss became {loss} in epoch {self.epoch + 1} ({doctor.cause(model, x)}), at learning "
                                f"rate {rate:g}: {doctor.shorter(s)}")  # fmt: skip
        model.backward(dlogits)
        if s.l1 or s.l2:
            model.regularise(s.l1, s.l2)
        if s.clip_norm:
            model.clip(s.clip_norm)
        if s.weight_decay:  # decoupled from the gradient (Loshchilov and Hutter 2019), in the form of torch.optim.AdamW
            for W, _ in model.weights:
                W *= 1 - rate * s.weight_decay
        self.optimizer.step(rate)
        if self.average:
            self.average.update()
        return loss, np.count_nonzero(logits.argmax(axis=1) == y)

    def validate(self, X, y):
        """(loss, accuracy) of the weights, or of their average where there is one. Raises runs.Diverged."""
        if self.average:
            self.average.swap()
        logits = self.model.logits(X)
        loss, right = self.loss(logits, y)[0], accuracy(logits, y)
        cause = "" if np.isfinite(loss) else doctor.cause(self.model, X)  # before the weights are exchanged again
        if self.s.patience and right > self.best_accuracy:
            self.best_epoch, self.best_accuracy = self.epoch + 1, right
            self.best["params"][:], self.best["state"][:] = self.model.params, self.model.state
        if self.average:
            self.average.swap()
        if not np.isfinite(loss):  # as after a last step that was too long
            raise runs.Diverged(f"the validation loss became {loss} in epoch {self.epoch + 1} ({cause}): "
                                f"{doctor.shorter(self.s)}")  # fmt: skip
        return loss, right

    def one_epoch(self, X, y, prepare=lambda x: x, done=lambda: None):
        """(mean loss, accuracy, last learning rate). Arguments as for `run`; `done` after each step."""
        images = np.empty((min(self.s.batch_size, self.n), *X.shape[1:]), X.dtype)
        factor = self.plateau.factor if self.plateau else 1
        loss_sum, correct, first = 0.0, 0, self.epoch * self.steps
        for number, batch in enumerate(data.batches(self.n, self.s.batch_size, self.rng["shuffle"])):
            if self.doctor and number == self.steps - 1:
                self.doctor.before_step()
            rate = factor * self.rates[first + number]
            x = np.take(X, batch, axis=0, out=images[: len(batch)], mode="clip")  # "raise" would copy it once more
            loss, right = self.step(prepare(x), y[batch], rate)
            loss_sum += loss * len(batch)
            correct += right
            done()
        return loss_sum / self.n, correct / self.n, rate

    def run(self, X, y, X_val, y_val, log, keep=lambda: None, prepare=lambda x: x):
        """Train to the last epoch, or until validation accuracy has not risen for s.patience epochs.

        `prepare` makes (n, features) of a batch of X; y (N,). X_val (M, features) is as it is used, y_val (M,). After each
        epoch `keep` is called, and `log` gets a row (a dict of runs.COLUMNS). The training columns are means over the
        epoch's batches, taken while the weights moved, with label smoothing and without penalties. Leaves the averaged or,
        with patience, the best weights in the model. Raises runs.Diverged, and ValueError for what `check` refuses.
        """
        classes = self.model.built["sizes"][-1]
        check(X, y, classes)
        check(X_val, y_val, classes)
        s = self.s
        quiet = np.errstate(over="ignore", invalid="ignore")  # runs.Diverged says it better
        total, before = s.epochs * self.steps, self.epoch * self.steps
        with quiet, tqdm(total=total, initial=before, disable=None, leave=False, unit="batch") as bar:
            while self.epoch < s.epochs and not (s.patience and self.epoch - self.best_epoch >= s.patience):
                start = time.perf_counter()
                train_loss, train_accuracy, rate = self.one_epoch(X, y, prepare, bar.update)
                val_loss, val_accuracy = self.validate(X_val, y_val)
                if self.plateau:
                    self.plateau.step(val_loss)
                self.epoch += 1
                values = self.epoch, train_loss, train_accuracy, val_loss, val_accuracy, rate, time.perf_counter() - start
                row = dict(zip(runs.COLUMNS, values, strict=True))
                for column, value in row.items():
                    self.history[column].append(value)
                advice = self.doctor.examine(self.epoch, rate) if self.doctor else []
                keep()
                log(row)
                for line in advice:
                    tqdm.write(line)
        if s.patience:
            self.model.params[:], self.model.state[:] = self.best["params"], self.best["state"]
        elif self.average:
            self.average.swap()


def check(X, y, classes):
    """Raise ValueError where X (N, ...) and y (N,) do not fit each other or the classes, or X has a number not finite."""
    if len(X) != len(y) or not len(X):
        raise ValueError(f"X has {len(X):,} rows and y has {len(y):,}: they must be of the same images, one at least")
    if y.ndim != 1 or y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= classes:
        raise ValueError(f"y must hold whole numbers from 0 to {classes - 1}, one for each image, in a single dimension")
    if not np.isfinite([X.min(), X.max()]).all():
        rows = np.flatnonzero(~np.isfinite(X.reshape(len(X), -1)).all(axis=1))
        raise ValueError(f"X holds NaN or infinite values in {len(rows):,} of {len(X):,} rows, the first of them {rows[0]}")


def accuracy(logits, y):
    """Share of rows whose largest logit is that of the true class."""
    return float(np.mean(logits.argmax(axis=1) == y))


def save(path, model, about):
    """Write the model and the dict `about` (JSON: what the input was, what the classes are) as one safetensors file."""
    runs.save_weights(path, model.views, {"model": "mlp", **model.built, **about})


def restore(path):
    """(model, about) of a file that `save` wrote. Raises runs.RunError."""
    tensors, about = runs.load_weights(path)
    if about.get("model") != "mlp":
        raise runs.RunError(f"{path}: holds a {about.get('model')}, not the NumPy MLP")
    with runs.as_written(path):
        model = MLP(about["sizes"], activation=about["activation"], norm=about["norm"])
        for name, view in model.views.items():
            if tensors[name].shape != view.shape:
                raise ValueError(f"{name} has the shape {tensors[name].shape}, expected {view.shape}")
            view[...] = tensors[name]
    return model, about


def standardised(X, mean, std):
    """(N, ...) -> (N, features): a new array (X - mean) / std; these are numbers, or arrays for a single image."""
    X = X.reshape(len(X), -1) * np.ravel(1 / np.asarray(std)).astype(np.float32)
    X -= np.ravel(np.asarray(mean) / std).astype(np.float32)
    return X


def seeds(seed):
    """Independent generators, {"init": ..., "shuffle": ..., ...}: what one draws does not change the others."""
    names = ("init", "shuffle", "dropout", "augment")
    streams = np.random.SeedSequence(seed).spawn(len(names))
    return dict(zip(names, map(np.random.default_rng, streams), strict=True))


def build(features, classes, s, dtype=np.float32):
    """(an untrained MLP with the settings `s` of this script, its random streams). Raises settings.SettingError."""
    check_settings(s)
    rng = seeds(s.seed)
    model = MLP((features, *s.hidden, classes), rng["init"], activation=s.activation, norm=s.norm, dropout=s.dropout,
                input_dropout=s.input_dropout, init=s.init, init_scale=s.init_scale, dropout_rng=rng["dropout"],
                dtype=dtype)  # fmt: skip
    return model, rng


def check_settings(s):
    """Raise settings.SettingError for settings that cannot go together."""
    if s.norm == "batch" and s.batch_size == 1:
        raise settings.SettingError("--batch-size 1: batch normalisation needs 2 images or more")
    if s.learning_rate * s.weight_decay >= 1:
        raise settings.SettingError(f"--weight-decay {s.weight_decay:g}: with --learning-rate {s.learning_rate:g} a step "
                                    "would take off all of the weights; lower one of them")  # fmt: skip


def train(X, y, X_val, y_val, classes, s, log):
    """A new MLP with the settings `s` of this script, trained: (model, history). X (N, features), y (N,)."""
    training = Training(*build(X.shape[1], classes, s), s, len(y))
    training.run(X, y, X_val, y_val, log)
    return training.model, training.history


def run(s):
    """The whole job with the settings `s`: load, train, test, save. Returns what metrics.json holds."""
    images = data.load(s.dataset, s.data_dir, s.offline_fallback, s.split_seed, s.quick)
    if s.quick:
        s.epochs = min(s.epochs, 5)
    mean, std = data.normalisation(images.train.X, s.input)
    X, X_val, X_test = (standardised(part.X, mean, std) for part in (images.train, images.val, images.test))
    model, rng = build(X.shape[1], len(images.classes), s)
    training = Training(model, rng, s, len(X))
    augmented = {}
    if s.flip or s.shift or s.erase:
        X = images.train.X
        augmented["prepare"] = lambda x: standardised(data.augment(x, rng["augment"], s.flip, s.shift, s.erase), mean, std)
    training.doctor = doctor.Doctor(model, X_val[:1000], s)
    split = data.digest(images.train.index, images.train.y)
    if s.resume:
        runs.take_up(training, s, split)

    with runs.Run("mlp_from_scratch", s) as run:
        if s.resume:
            run.go_on(training.history)
        training.run(X, images.train.y, X_val, images.val.y, run.log, lambda: run.keep(training, split), **augmented)
        about = {"dataset": images.name, "classes": images.classes}
        about |= {"mean": np.asarray(mean).tolist(), "std": np.asarray(std).tolist()}
        save(run.path / "weights.safetensors", model, about)
        title = f"NumPy MLP {model.name} on {images.name}"
        run.save(training_figures(training, X_val[:1000], images.val.y[:1000], images.val.X.shape[1:], title))

        loss, probabilities = LOSSES[s.loss]
        val, test = model.logits(X_val), model.logits(X_test)
        p, y = probabilities(test.astype(np.float64)), images.test.y
        run.save(plots.evaluation(images.test.X, y, p, images.classes, title))
        found = {"val_accuracy": accuracy(val, images.val.y), "test_accuracy": accuracy(test, y),
                 "test_loss": loss(test, y)[0], "test_calibration_error": plots.calibration(y, p)[-1]}  # fmt: skip
        table = {f"NumPy MLP {model.name}": (found["val_accuracy"], found["test_accuracy"])}
        if s.flip:  # what it learnt from mirrored images it can be asked of them, too: a second opinion of the same network
            for part, logits in (("val", val), ("test", test)):
                of = getattr(images, part)
                mirrored = model.logits(standardised(of.X[:, :, ::-1], mean, std))
                found[f"{part}_accuracy_mirrored"] = accuracy(logits + mirrored, of.y)
            both = found["val_accuracy_mirrored"], found["test_accuracy_mirrored"]
            table["  mean with the mirrored image's"] = both
        if s.patience:
            found["best_epoch"] = training.best_epoch
        return run.finish(table, dataset=images.name, model=f"NumPy MLP {model.name}", **images.sizes, **found,
                          parameters=len(model.params))  # fmt: skip


def training_figures(training, X, y, shape, title):
    """{file name: Figure} of a training that is over. X (N, features), y (N,): some images; shape: theirs, (28, 28)."""
    model, s, steps = training.model, training.s, training.steps
    rates = training.rates[: training.epoch * steps]
    if training.plateau:  # which each epoch may lower
        rates = np.repeat(training.history["learning_rate"], steps)
    samples = doctor.distributions(model, X, y, training.loss)
    return {
        "curves.png": plots.curves(training.history, title, s.flip or s.shift or s.erase, s.label_smoothing),
        "learning_rate.png": plots.learning_rate(rates, steps, title),
        "first_layer.png": plots.first_layer(model.weights[0][0], shape, title),
        "distributions.png": plots.distributions(*samples, title),
        "doctor.png": plots.doctor(training.doctor.history, training.doctor.names, title),
    }


def main(argv=None):
    runs.over_seeds("mlp_from_scratch", run, settings.parse(sys.modules[__name__], data, runs, argv=argv), check_settings)


if __name__ == "__main__":
    runs.command(main)
