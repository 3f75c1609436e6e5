"""Does the NumPy MLP classify a CNN's features better than the CNN does? Several heads on the same features, over seeds.

    python hybrid_study.py

For each seed: a CNN's own linear classifier, the NumPy MLP, logistic regression and k nearest neighbours, all on the same
features; the MLP trained together with the CNN; and two ways out of a trap. A head that learns from features of images
which the CNN has fitted sees them clearer than new ones will be. So the MLP learns, besides, from features of freshly
augmented images; and, with a CNN trained on one half of the training images, from the features of the one or the other half.
"""

import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import cnn_feature_extraction as cnn
import data
import hybrid_train
import mlp_from_scratch as mlp
import plots
import runs
import settings

# ---- settings: edit here, or override any of them on the command line (--seeds 3) ----
BACKBONES = ""  # the folder of a run of hybrid_train.py with --seeds, whose CNNs are taken; "" trains them here
SEEDS = 5  # networks of each kind, with seeds from SEED on, in [2, 1000]
LOGISTIC_C = (0.0001, 0.001, 0.01)  # inverse regularisation of logistic regression: validation chooses one, in (0, inf)
NEIGHBOURS = (5, 10, 20, 40)  # that vote in k nearest neighbours: validation chooses how many, in [1, 1000]
QUICK = False  # a tour of some minutes, on a subset, two seeds; its figures are only a tour's
# ----

OWN, MLP, LOGISTIC, NEAREST = "CNN's own classifier", "NumPy MLP", "logistic regression", "k nearest neighbours"
FRESH, JOINT = "NumPy MLP, on freshly augmented images", "NumPy MLP, trained together with the CNN"
HALF_OWN = "half: CNN's own classifier"
SEEN, UNSEEN = "half: NumPy MLP, on the CNN's half", "half: NumPy MLP, on the other half"
COMPARED = [(name, OWN) for name in (MLP, LOGISTIC, NEAREST, FRESH, JOINT)] + [(SEEN, HALF_OWN), (UNSEEN, HALF_OWN),
                                                                               (UNSEEN, SEEN)]  # fmt: skip
LEVEL = 0.05  # of significance, all comparisons together


def mcnemar(right, right_too):
    """(only the first is right, only the second is, p) of two classifiers' (N,) booleans on the same images.

    The exact test (McNemar 1947): were they equally good, either would be as likely to be the one that is right.
    """
    from scipy.stats import binomtest  # SciPy comes with scikit-learn

    first, second = int((right & ~right_too).sum()), int((right_too & ~right).sum())
    return first, second, float(binomtest(first, first + second).pvalue) if first + second else 1.0


def holm(p):
    """The p values of several tests, each corrected for there being so many (Holm 1979)."""
    p = np.asarray(p)
    order, corrected = np.argsort(p), np.empty(len(p))
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected.tolist()


def mlp_predictions(features, classes, s):
    """{part: classes (N,)} that the NumPy MLP predicts, which learns from features["X_train"]; standardised in place."""
    head, *_ = hybrid_train.train_head(features, classes, s, SimpleNamespace(log=lambda row: None))
    return {part: head.logits(features[f"X_{part}"]).argmax(axis=1) for part in ("train", "val", "test")}


def fresh_predictions(model, images, features, mean, std, s):
    """The same, of an MLP that learns from features of images augmented anew for each batch.

    features: of the images as they are, standardised by mean and std.
    """
    device = model.mean.device
    draw = cnn.generator(device, s.seed, 0, 0)  # a stream that the CNN's training does not use

    def prepare(x):
        x = cnn.augment(torch.from_numpy(x)[:, None].to(device), s.flip, s.shift, draw, s.erase)
        return (cnn.extract(model, x).cpu().numpy() - np.float32(mean)) / np.float32(std)

    own = hybrid_train.head_settings(s)
    training = mlp.Training(*mlp.build(features["X_val"].shape[1], len(images.classes), own), own, len(images.train.y))
    training.run(images.train.X, images.train.y, features["X_val"], images.val.y, lambda row: None, prepare=prepare)
    return {part: training.model.logits(features[f"X_{part}"]).argmax(axis=1) for part in ("train", "val", "test")}


def logistic_predictions(features, y_val, s):
    """The same, of scikit-learn's logistic regression, which minimises the same loss as the CNN's own classifier."""
    from sklearn.linear_model import LogisticRegression

    tried = [LogisticRegression(C=C, max_iter=300).fit(features["X_train"], features["y_train"]) for C in s.logistic_c]
    best = max(tried, key=lambda one: one.score(features["X_val"], y_val))
    return {part: best.predict(features[f"X_{part}"]) for part in ("train", "val", "test")}


def nearest_predictions(features, y_val, s):
    """The same, of k nearest neighbours, but for the training images, each of which is its own nearest."""
    from sklearn.neighbors import NearestNeighbors

    y = features["y_train"]
    search = NearestNeighbors(n_neighbors=min(max(s.neighbours), len(y)), algorithm="brute").fit(features["X_train"])
    labels = {part: y[search.kneighbors(features[f"X_{part}"], return_distance=False)] for part in ("val", "test")}

    def vote(part, k):
        return np.stack([(labels[part][:, :k] == label).sum(axis=1) for label in range(y.max() + 1)], axis=1).argmax(axis=1)

    best = max(s.neighbours, key=lambda k: np.mean(vote("val", k) == y_val))
    return {part: vote(part, best) for part in ("val", "test")}


def network_predictions(model, images):
    """The same, of the whole network, convolutions and classifier."""
    return {part: cnn.classify(model, cnn.features_of(model, getattr(images, part).X)).argmax(1).cpu().numpy()
            for part in ("train", "val", "test")}  # fmt: skip


def on_all_images(images, frozen, joint, s):
    """{head: {part: predicted classes}} for a CNN trained on all training images. frozen, joint: folders of hybrid_train."""
    model, _ = cnn.restore(frozen / "backbone.safetensors")
    model = model.to(cnn.pick_device(s.device))
    features = cnn.cached_features(frozen / "features.npz", model, images)
    mean, std = data.statistics(features["X_train"])
    found = {OWN: {part: cnn.classify(model, features[f"X_{part}"]).argmax(1).cpu().numpy()
                   for part in ("train", "val", "test")}}  # fmt: skip
    found[MLP] = mlp_predictions(features, images.classes, s)  # from here on, the features are standardised
    found[FRESH] = fresh_predictions(model, images, features, mean, std, s)
    found[LOGISTIC] = logistic_predictions(features, images.val.y, s)
    found[NEAREST] = nearest_predictions(features, images.val.y, s)
    whole, _ = hybrid_train.restore(joint / "hybrid.safetensors")
    found[JOINT] = network_predictions(whole.to(cnn.pick_device(s.device)), images)
    return found


def on_half_of_them(images, folder, s):
    """{head: {part: (predicted, true) classes}} for a CNN, in `folder`, trained on half of the training images."""
    halves = data.stratified_split(images.train.y, len(images.train.y) // 2, s.seed)
    path = folder / "backbone.safetensors"
    if path.exists():
        model, _ = cnn.restore(path)
        model = model.to(cnn.pick_device(s.device))
    else:
        first = data.Split(*(array[halves[0]] for array in vars(images.train).values()))
        resume = str(folder) if (folder / "settings.json").exists() else ""
        own = SimpleNamespace(**vars(s) | {"output_dir": str(folder), "resume": resume})
        with runs.Run("hybrid_study", own) as run:
            model, _ = cnn.train(replace(images, train=first), own, run)
            cnn.save(path, model, images, own)
    features = cnn.cached_features(folder / "features.npz", model, images)
    found = {}
    for name, rows in ((HALF_OWN, halves[0]), (SEEN, halves[0]), (UNSEEN, halves[1])):
        some = {key: array[rows] if key.endswith("_train") else array.copy() for key, array in features.items()}
        if name == HALF_OWN:
            predicted = {part: cnn.classify(model, some[f"X_{part}"]).argmax(1).cpu().numpy()
                         for part in ("train", "val", "test")}  # fmt: skip
        else:
            predicted = mlp_predictions(some, images.classes, s)
        found[name] = {part: np.stack([classes, some[f"y_{part}"]]) for part, classes in predicted.items()}
    return found


def summary(every):
    """(heads, tests, verdicts) of {seed: {head: {part: (predicted, true) classes, an array (2, N)}}}.

    heads: {head: {"test_accuracy": mean, "test_accuracy_std": ..., "by_seed": {"test_accuracy": [...]}}, ...}, for train and
    val, too; tests: a dict for each comparison and seed; verdicts: a sentence for each comparison.
    """
    heads, tests = {}, []
    for name, parts in next(iter(every.values())).items():
        heads[name] = {"by_seed": {}}
        for part in parts:
            values = [float(np.mean(one[name][part][0] == one[name][part][1])) for one in every.values()]
            heads[name]["by_seed"][f"{part}_accuracy"] = values
            heads[name] |= {f"{part}_accuracy": statistics.fmean(values), f"{part}_accuracy_std": statistics.stdev(values)}
    for first, second in COMPARED:
        for seed, one in every.items():
            right = [one[name]["test"][0] == one[name]["test"][1] for name in (first, second)]
            only_first, only_second, p = mcnemar(*right)
            tests.append({"head": first, "against": second, "seed": seed, "only_head_right": only_first,
                          "only_other_right": only_second, "p": p})  # fmt: skip
    for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = p
    return heads, tests, [verdict(first, second, tests, heads) for first, second in COMPARED]


def verdict(first, second, tests, heads):
    """In words, how head `first` compares with head `second`. Better is what is significantly so in most seeds."""
    a, b = (np.array(heads[name]["by_seed"]["test_accuracy"]) for name in (first, second))
    own = [test for test in tests if (test["head"], test["against"]) == (first, second) and test["p_holm"] < LEVEL]
    better = sum(test["only_head_right"] > test["only_other_right"] for test in own)
    worse, n = len(own) - better, len(a)
    words = "better" if better > n / 2 and not worse else "worse" if worse > n / 2 and not better else "no difference shown"
    return (f"{first}, against {second}: {100 * (a - b).mean():+.2f} +- {100 * (a - b).std(ddof=1):.2f} points; ahead in "
            f"{(a > b).sum()} of {n} seeds, significantly better in {better}, worse in {worse}: {words}")  # fmt: skip


def check(s):
    """Raise settings.SettingError where the folder s.backbones has not what is needed."""
    cnn.check(s)
    for seed in range(s.seed, s.seed + s.seeds if s.backbones else s.seed):
        path = Path(s.backbones, f"seed_{seed}", "settings.json")
        if not path.with_name("backbone.safetensors").is_file() or not path.is_file():
            raise settings.SettingError(f"--backbones {s.backbones}: no network in {path.parent}; make it by python "
                                        f"hybrid_train.py --seeds {s.seeds} --output-dir {s.backbones}")  # fmt: skip
        saved = json.loads(path.read_text(encoding="utf-8"))
        own = json.loads(json.dumps({name: getattr(s, name) for name in (*cnn.SHAPE, "epochs", "split_seed", "quick")}))
        if different := [name for name in own if saved.get(name) != own[name]]:
            raise settings.SettingError(f"--backbones {s.backbones}: made with other settings: {', '.join(different)}")


def trained(folder, s, training):
    """The folder, with a run of hybrid_train.py in it: finished before, or taken up where it was stopped, or made."""
    if not (folder / "metrics.json").exists():
        begun = str(folder) if (folder / "settings.json").exists() else ""
        own = vars(s) | {"training": training, "seeds": 1, "output_dir": str(folder), "resume": begun}
        hybrid_train.run(SimpleNamespace(**own))
    return folder


def of_seed(images, folder, s):
    """{head: {part: (predicted, true) classes}} of the seed s.seed, kept in `folder` and taken from there."""
    path = folder / f"predictions_{s.seed}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            names = [name.split("/") for name in file.files]
            return {head: {part: file[f"{head}/{part}"] for of, part in names if of == head} for head, _ in names}
    place = f"seed_{s.seed}"
    frozen = Path(s.backbones, place) if s.backbones else trained(folder / "frozen" / place, s, "frozen")
    joint = trained(folder / "joint" / place, s, "joint")
    print(f"\nheads of seed {s.seed}", flush=True)
    y = {part: getattr(images, part).y for part in ("train", "val", "test")}
    found = {head: {part: np.stack([predicted, y[part]]) for part, predicted in parts.items()}
             for head, parts in on_all_images(images, frozen, joint, s).items()}  # fmt: skip
    found |= on_half_of_them(images, folder / "half" / place, s)
    with runs.whole(path) as part, part.open("wb") as file:
        np.savez(file, **{f"{head}/{name}": array for head, parts in found.items() for name, array in parts.items()})
    return found


def run(s):
    """The whole study with the settings `s`. Returns what metrics.json holds, which is written anew after each seed."""
    if s.quick:
        s.seeds = min(s.seeds, 2)
        hybrid_train.tour(s)
    check(s)
    images = data.load(s.dataset, s.data_dir, s.offline_fallback, s.split_seed, s.quick)
    every = {}
    with runs.Run("hybrid_study", s) as run:
        for seed in range(s.seed, s.seed + s.seeds):
            every[seed] = of_seed(images, run.path, SimpleNamespace(**vars(s) | {"seed": seed, "resume": ""}))
            if len(every) == 1:
                continue
            heads, tests, verdicts = summary(every)
            title = f"Heads on a CNN's features of {images.name}, {len(every)} seeds"
            run.save({"study.png": plots.heads(heads, title), "verdicts.txt": "\n".join(verdicts) + "\n"})
            table = {name: (head["val_accuracy"], head["test_accuracy"]) for name, head in heads.items()}
            metrics = run.finish(table, dataset=images.name, **images.sizes, seeds=list(every), heads=heads, tests=tests,
                                 verdicts=verdicts)  # fmt: skip
            print("\n" + "\n".join(verdicts), flush=True)
    return metrics


def main(argv=None):
    run(settings.parse(sys.modules[__name__], hybrid_train, cnn, data, runs, argv=argv))


if __name__ == "__main__":
    runs.command(main)
