"""The main job: a CNN is trained, its flattened features are extracted, and the NumPy MLP learns to classify them.

    python hybrid_train.py

ends, after 190 s on 2 cores of an AMD EPYC (Python 3.11.7, NumPy 2.4.6, torch 2.15.0, in bfloat16), with

    Fashion-MNIST                                      validation      test
    CNN 24-48-96-96-192, its own classifier              94.09%      93.54%
    hybrid: its features, NumPy MLP 1728-256-128-10      94.22%      93.61%
      mean with the mirrored image's                     94.37%      93.68%
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

import cnn_feature_extraction as cnn
import data
import layers
import mlp_from_scratch as mlp
import plots
import runs
import settings
from backbone import SHAPE
from optimizers import OPTIMIZERS

# ---- settings: edit here, or override any of them on the command line (--head-epochs 5) ----
TRAINING = "frozen"  # the MLP after the CNN, on its features, or both as one network: {frozen, joint}
BACKBONE = ""  # a backbone.safetensors of an earlier run: taken as it is, or where joint training starts from; "" trains one
HEAD = ""  # the head.safetensors beside that backbone, where joint training starts from
JOINT_LEARNING_RATE = 0.001  # the highest one of the MLP (Adam) in joint training; it goes on as the CNN's, in (0, inf)
HEAD_EPOCHS = 3  # passes of the MLP over the features, in [1, 10000]
HEAD_BATCH_SIZE = 128  # images in each of its steps, in [1, inf)
HEAD_HIDDEN: tuple = (256, 128)  # neurons in each of its hidden layers, in [1, 100000]
HEAD_LEARNING_RATE = 0.0003  # of its first step (Adam); it falls to 0 along a cosine, in (0, inf)
SEED = 0  # of everything random, in [0, inf)
QUICK = False  # a tour of about a minute, on a subset; its figures are only a tour's
# ----


def beside_torch():
    """A context in which NumPy's matrix products take one thread, for where they take turns with PyTorch's layers.

    OpenBLAS's other threads go on spinning for a while after each product, and PyTorch's wait for a core meanwhile, which
    costs more than the second thread gains.
    """
    return threadpool_limits(1, user_api="blas")


class Bridge(torch.autograd.Function):
    """The NumPy MLP as a function of PyTorch: features (N, F) -> logits (N, classes), its backward pass the MLP's own.

    Backward fills the MLP's `grads`, and gives the gradient with respect to the features back to PyTorch.
    """

    @staticmethod
    def forward(ctx, features, network):
        ctx.network = network
        network.passes = ctx.number = getattr(network, "passes", 0) + 1
        logits = network.forward(features.detach().cpu().numpy(), training=True)
        return torch.tensor(logits, device=features.device)  # a copy: the MLP's memory is its own

    @staticmethod
    def backward(ctx, dlogits):
        if ctx.network.passes != ctx.number:
            raise RuntimeError("the MLP has had another forward pass since: it remembers only the last one")
        dfeatures = ctx.network.backward(dlogits.cpu().numpy(), input_gradient=True)
        return torch.tensor(dfeatures, device=dlogits.device), None


class Head(nn.Module):
    """The NumPy MLP `network` in the place of a CNN's classifier; `step` lets it learn, by an optimiser of its own (Adam).

    mean and std: of the features, which it standardises by them. Its parameters are a buffer here, too, so that PyTorch
    averages, moves and copies them with the rest: in use, it is what the buffer says.
    """

    def __init__(self, network, learning_rate=0.0, mean=0.0, std=1.0):
        super().__init__()
        self.network, self.learning_rate, self.mean, self.std = network, learning_rate, mean, std
        self.optimizer = OPTIMIZERS["adam"](network.params, network.grads)
        self.register_buffer("params", torch.tensor(network.params))

    def forward(self, features):
        features = (features.to(self.params.dtype) - self.mean) / self.std
        if self.training:
            return Bridge.apply(features, self.network)
        self.network.params[:] = self.params.cpu().numpy()
        return torch.tensor(self.network.logits(features.detach().cpu().numpy()), device=features.device)

    def arrays(self):
        """{name: array}: all that it needs to go on learning, besides its buffer."""
        return {"moments": self.optimizer.state, "t": np.array(self.optimizer.t)}

    def take_up(self, arrays):
        """Go on from what `arrays` has returned and from what the buffer holds."""
        self.optimizer.state[...], self.optimizer.t = arrays["moments"], int(arrays["t"])
        self.network.params[:] = self.params.cpu().numpy()

    def step(self, share=1.0):
        """One step at `share` of the learning rate, along the gradient that backward has left."""
        self.optimizer.step(share * self.learning_rate)
        self.params.copy_(torch.from_numpy(self.network.params))


def save(path, model, about):
    """Write the whole hybrid, a CNN whose classifier is a Head, with the dict `about`, as one safetensors file."""
    tensors = {name: value.cpu().contiguous().numpy() for name, value in model.state_dict().items()}
    head = model.classifier
    about |= {"model": "hybrid", "head": head.network.built, "feature_mean": head.mean, "feature_std": head.std}
    runs.save_weights(path, tensors, about)


def restore(path):
    """(the CNN with its Head, on the CPU, ready for use; about) of a file that `save` wrote. Raises runs.RunError.

    The network takes images (N, 1, 28, 28) in [0, 1] and gives logits (N, classes), in the order of about["classes"].
    """
    tensors, about = runs.load_weights(path)
    if about.get("model") != "hybrid":
        raise runs.RunError(f"{path}: holds a {about.get('model')}, not the hybrid")
    with runs.as_written(path):
        built = about["head"]
        model = cnn.build(SimpleNamespace(**about["settings"]), len(about["classes"]))
        network = mlp.MLP(built["sizes"], activation=built["activation"], norm=built["norm"])
        model.classifier = Head(network, 0.0, about["feature_mean"], about["feature_std"])
        model.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    return model.eval(), about


def build_head(images, s):
    """The Head that joint training begins with: new, or that of the file s.head, whose widths become those of the settings.

    Raises runs.RunError for a file that does not fit.
    """
    sizes = (cnn.build(s).classifier.in_features, *s.head_hidden, len(images.classes))
    if not s.head:
        own = settings.load(mlp, **mlp.PLAIN, hidden=s.head_hidden, batch_size=s.batch_size, seed=s.seed)
        return Head(mlp.build(sizes[0], sizes[-1], own)[0], s.joint_learning_rate)
    network, about = mlp.restore(s.head)
    found = tuple(network.built["sizes"])
    if network.built["norm"] == "batch" or not isinstance(about["mean"], float):
        raise runs.RunError(f"{s.head}: joint training takes a head as this script makes it, without batch normalisation")
    if (found[0], found[-1]) != (sizes[0], sizes[-1]) or tuple(about["classes"]) != tuple(images.classes):
        raise runs.RunError(f"{s.head}: is a head for {found[0]:,} features and {found[-1]} classes of {about['dataset']}; "
                            f"here are {sizes[0]:,} and {sizes[-1]} of {images.name}")  # fmt: skip
    check_split(s.head, about, s)
    s.head_hidden = found[1:-1]
    return Head(network, s.joint_learning_rate, about["mean"], about["std"])


def standardise(features, mean, std):
    """Standardise the features of `cnn.cached_features` in place, since these are the largest arrays of the job."""
    for part in ("train", "val", "test"):
        features[f"X_{part}"] -= np.float32(mean)
        features[f"X_{part}"] /= np.float32(std)


def train_head(features, classes, s, run):
    """The NumPy MLP on the features of `cnn.cached_features`, standardised in place: (model, history, mean, std)."""
    mean, std = data.statistics(features["X_train"])
    standardise(features, mean, std)
    X, y, X_val, y_val = (features[name] for name in ("X_train", "y_train", "X_val", "y_val"))
    try:
        return *mlp.train(X, y, X_val, y_val, len(classes), head_settings(s), run.log), mean, std
    except runs.Diverged as error:
        raise runs.Diverged(f"the NumPy MLP: {error}".replace("--learning-rate", "--head-learning-rate")) from None


def head_settings(s):
    """The settings of mlp_from_scratch.py by which the MLP learns from features."""
    return settings.load(mlp, **mlp.PLAIN, epochs=s.head_epochs, batch_size=s.head_batch_size, hidden=s.head_hidden,
                         learning_rate=s.head_learning_rate, seed=s.seed)  # fmt: skip


def check_split(path, about, s):
    """Raise runs.RunError where the weights of the file `path` learnt from images that are for validation here."""
    trained = about.get("split_seed")
    if trained != s.split_seed:
        raise runs.RunError(f"{path}: was trained with --split-seed {trained}: with {s.split_seed}, images that it has "
                            "learnt from would be in the validation split")  # fmt: skip


def take_backbone(path, images, s):
    """The CNN of the weights file `path`, on its device. `s` gets the settings that it was trained with.

    In joint training, which goes on with settings of its own, only those that shape the network. Raises runs.RunError for a
    file that is damaged, foreign, or was trained for other classes or on another split, and settings.SettingError for a flag
    that says otherwise than the file.
    """
    model, about = cnn.restore(path)
    if tuple(about["classes"]) != tuple(images.classes):
        raise runs.RunError(f"{path}: was trained on {about['dataset']}, and cannot tell the classes of {images.name}")
    check_split(path, about, s)
    defaults = settings.load(cnn)
    if s.quick:
        cnn.tour(defaults)
    of_this_run = {"device", "seed", "seeds", "quick", "resume", "flip_average"}
    names = set(SHAPE) if s.training == "joint" else vars(defaults).keys() - of_this_run
    own = settings.load(cnn, **{name: about["settings"][name] for name in sorted(names & about["settings"].keys())})
    for name in sorted(names):
        value = getattr(own, name)
        if getattr(s, name) not in (getattr(defaults, name), value):
            raise settings.SettingError(f"--{name.replace('_', '-')}: {path} was trained with {value}; leave the flag out")
        setattr(s, name, value)
    print(f"backbone {path}: {model.name}, trained on {about['dataset']}")
    return model.to(cnn.pick_device(s.device))


def tour(s):
    """The settings of --quick."""
    cnn.tour(s)
    s.head_epochs, s.head_batch_size = min(s.head_epochs, 3), min(s.head_batch_size, 32)


def check(s):
    """Raise settings.SettingError, before any data is read, for what cannot be."""
    cnn.check(s)
    head_settings(s)
    if cnn.processes()[1] > 1:
        raise settings.SettingError("torchrun is for cnn_feature_extraction.py; give this script its result with --backbone")
    for name in ("backbone", "head"):
        if vars(s)[name] and not Path(vars(s)[name]).is_file():
            raise settings.SettingError(f"--{name} {vars(s)[name]}: no such file")
        if vars(s)[name] and s.output_dir and Path(s.output_dir).resolve() in Path(vars(s)[name]).resolve().parents:
            raise settings.SettingError(f"--output-dir {s.output_dir}: is the {name}'s own folder; name another")
    if s.head and s.training != "joint":
        raise settings.SettingError("--head: only joint training starts from one; add --training joint")
    if s.head and not s.backbone:
        raise settings.SettingError("--head: has learnt from one CNN's features; add --backbone, the file beside it")
    if s.compile and s.training == "joint":
        raise settings.SettingError("--compile: not with --training joint, whose MLP is not PyTorch's")


def run(s):
    """The whole job with the settings `s`: backbone, features, head, test, save. Returns what metrics.json holds."""
    check(s)
    images = data.load(s.dataset, s.data_dir, s.offline_fallback, s.split_seed, s.quick)
    if s.quick:
        tour(s)
    model = take_backbone(s.backbone, images, s) if s.backbone else None
    if s.training == "joint":
        return run_jointly(images, s, model)

    with runs.Run("hybrid_train", s) as run:
        if s.backbone:
            kept = Path(s.backbone).with_name("features.npz")
        else:
            model, history = cnn.train(images, s, run, "cnn_history.csv")
            cnn.save(run.path / "backbone.safetensors", model, images, s)
            title = f"{model.name} on {images.name}"
            run.save({"cnn_curves.png": plots.curves(history, title, s.flip or s.shift or s.erase, s.label_smoothing)})
            kept = run.path / "features.npz"
        features = cnn.cached_features(kept, model, images, run.path / "features.npz")
        cnn_val, cnn_test = (cnn.classify(model, features[f"X_{part}"]).cpu().numpy() for part in ("val", "test"))

        head, history, mean, std = train_head(features, images.classes, s, run)
        about = {"dataset": images.name, "classes": images.classes, "mean": mean, "std": std, "split_seed": s.split_seed}
        mlp.save(run.path / "head.safetensors", head, about)
        val, test = head.logits(features["X_val"]), head.logits(features["X_test"])
        model.classifier = Head(head, 0.0, mean, std).to(model.mean.device).eval()
        save(run.path / "hybrid.safetensors", model, about_all(images, s))

        y, y_test = images.val.y, images.test.y
        results = {
            f"{model.name}, its own classifier": (mlp.accuracy(cnn_val, y), mlp.accuracy(cnn_test, y_test)),
            f"hybrid: its features, NumPy MLP {head.name}": (mlp.accuracy(val, y), mlp.accuracy(test, y_test)),
        }
        (cnn_val_accuracy, cnn_test_accuracy), (val_accuracy, test_accuracy) = results.values()
        more = {}
        if s.flip and s.flip_average:
            more = cnn.with_mirrored(model, images, torch.from_numpy(val), torch.from_numpy(test))
            results["  mean with the mirrored image's"] = tuple(more.values())
        run.save({"curves.png": plots.curves(history, f"NumPy MLP on the CNN's features of {images.name}")})
        title = f"hybrid of CNN and NumPy MLP on {images.name}"
        run.save(plots.evaluation(images.test.X, y_test, layers.softmax(test), images.classes, title))
        both = {"CNN's own classifier": cnn_test.argmax(axis=1), "hybrid": test.argmax(axis=1)}
        title = f"CNN and hybrid on {images.name}"
        run.save({"cnn_and_hybrid.png": plots.side_by_side(y_test, both, images.classes, title)})
        return run.finish(results, dataset=images.name, model=f"{model.name} + NumPy MLP {head.name}", **images.sizes,
                          val_accuracy=val_accuracy, test_accuracy=test_accuracy,
                          test_loss=layers.softmax_cross_entropy(test, y_test)[0],
                          cnn_val_accuracy=cnn_val_accuracy, cnn_test_accuracy=cnn_test_accuracy,
                          parameters=sum(p.numel() for p in model.backbone.parameters()) + len(head.params),
                          **more, **model.trained_on)  # fmt: skip


def about_all(images, s):
    """What the file of a whole hybrid tells besides its weights."""
    return {"dataset": images.name, "classes": images.classes, "fingerprint": images.fingerprint(), "settings": vars(s)}


def run_jointly(images, s, start):
    """The job where CNN and MLP are one network, learning together. Returns what metrics.json holds."""
    head = build_head(images, s)
    with runs.Run("hybrid_train", s) as run:
        with beside_torch(), np.errstate(over="ignore", invalid="ignore"):  # runs.Diverged says it better
            model, history = cnn.train(images, s, run, "history.csv", start, head)
        save(run.path / "hybrid.safetensors", model, about_all(images, s))
        name = f"{model.name} + NumPy MLP {head.network.name}"
        val, test = (cnn.classify(model, cnn.features_of(model, part.X)).cpu() for part in (images.val, images.test))
        _, val_accuracy = cnn.score(val, torch.from_numpy(images.val.y))
        test_loss, test_accuracy = cnn.score(test, torch.from_numpy(images.test.y))
        results, more = {f"{name}, trained together": (val_accuracy, test_accuracy)}, {}
        if s.flip and s.flip_average:
            more = cnn.with_mirrored(model, images, val, test)
            results["  mean with the mirrored image's"] = tuple(more.values())
        title = f"{name}, trained together, on {images.name}"
        run.save({"curves.png": plots.curves(history, title, s.flip or s.shift or s.erase, s.label_smoothing)})
        run.save(plots.evaluation(images.test.X, images.test.y, test.softmax(1).numpy(), images.classes, title))
        size = sum(p.numel() for p in model.backbone.parameters()) + len(head.network.params)
        return run.finish(results, dataset=images.name, model=name, **images.sizes, val_accuracy=val_accuracy,
                          test_accuracy=test_accuracy, test_loss=test_loss, parameters=size, **more, **model.trained_on)


def main(argv=None):
    runs.over_seeds("hybrid_train", run, settings.parse(sys.modules[__name__], cnn, data, runs, argv=argv), check)


if __name__ == "__main__":
    runs.command(main)
