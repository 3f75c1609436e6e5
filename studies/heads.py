"""Does the NumPy MLP classify a CNN's features better than the CNN does? Several heads on the same features, over seeds.

    python hybrid_study.py

For each seed: a CNN's own linear classifier, the NumPy MLP, logistic regression and k nearest neighbours, all on the same
features; the MLP trained jointly with the CNN; and two ways out of a trap. A head that learns from features of images
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
from support import runs
from support import settings

# ---- settings: edit here, or override any of them on the command line (--seeds 3) ----
BACKBONES = ""  # the folder of a run of hybrid_train.py with --seeds, whose CNNs are taken; "" trains them here
SEEDS = 5  # networks of each kind, with seeds from SEED on, in [2, 1000]
LOGISTIC_C: tuple = (0.0001, 0.001, 0.01)  # logistic regression's inverse penalty: validation chooses one, in (0, inf)
NEIGHBOURS: tuple = (5, 10, 20, 40)  # that vote in k nearest neighbours: validation chooses how many, in [1, 1000]
QUICK = False  # a tour of some minutes, on a subset, two seeds; its figures are only a tour's
# ----

OWN, MLP, LOGISTIC, NEAREST = "CNN, linear classifier", "NumPy MLP", "logistic regression", "k nearest neighbours"
FRESH, JOINT = "NumPy MLP, on freshly augmented images", "NumPy MLP, trained jointly with the CNN"
HALF_OWN, SEEN = "half: CNN, linear classifier", "half: NumPy MLP, on the CNN's half"
UNSEEN, LINEAR = "half: NumPy MLP, on the other half", "half: logistic regression, on the other half"
COMPARED = ((MLP, OWN), (MLP, LOGISTIC), (LOGISTIC, OWN), (NEAREST, OWN), (FRESH, OWN), (JOINT, OWN), (SEEN, HALF_OWN),
            (UNSEEN, SEEN), (UNSEEN, LINEAR))  # fmt: skip
PARTS = ("train", "val", "test")


def by_part(predict):
    """{part: classes (N,)} of a function that gives the logits of a part, a tensor or an array (N, classes)."""
    return {part: np.asarray(predict(part)).argmax(axis=1) for part in PARTS}


def fresh_mlp(model, images, features, mean, std, s):
    """The NumPy MLP, trained on features of images that are augmented anew for each batch; otherwise as hybrid_train has it.

    features: of the images as they are, standardised by mean and std.
    """
    device = model.mean.device
    draw = cnn.generator(device, s.seed, 0, 0)  # a stream that the CNN's training does not use

    def prepare(x):
        x = cnn.augment(torch.from_numpy(x)[:, None].to(device), s.flip, s.shift, draw, s.erase)
        return (cnn.extract_features(model, x).cpu().numpy() - np.float32(mean)) / np.float32(std)

    own = hybrid_train.head_settings(s)
    training = mlp.Trainer(*mlp.build(features["X_val"].shape[1], len(images.classes), own), own, len(images.train.y))
    with hybrid_train.single_blas_thread():
        training.run(images.train.X, images.train.y, features["X_val"], images.val.y, lambda row: None, prepare=prepare)
    return training.model


def logistic_regression(features, s):
    """scikit-learn's, with the best C by validation: (classes that it predicts {part: (N,)}, C).

    Plain labels and plain images; the CNN, linear classifier learns from smoothed labels and augmented images.
    """
    from sklearn.linear_model import LogisticRegression

    tried = [LogisticRegression(C=C, max_iter=300).fit(features["X_train"], features["y_train"]) for C in s.logistic_c]
    best = max(tried, key=lambda one: one.score(features["X_val"], features["y_val"]))
    return {part: best.predict(features[f"X_{part}"]) for part in PARTS}, best.C


def nearest_neighbours(features, s):
    """k nearest neighbours, with the best k by validation: ({part: (N,)}, k); without training images, their own nearest."""
    from sklearn.neighbors import NearestNeighbors

    y = features["y_train"]
    search = NearestNeighbors(n_neighbors=min(max(s.neighbours), len(y)), algorithm="brute").fit(features["X_train"])
    labels = {part: y[search.kneighbors(features[f"X_{part}"], return_distance=False)] for part in ("val", "test")}

    def vote(part, k):
        return np.stack([(labels[part][:, :k] == label).sum(axis=1) for label in range(y.max() + 1)], axis=1).argmax(axis=1)

    best = max(s.neighbours, key=lambda k: np.mean(vote("val", k) == features["y_val"]))
    return {part: vote(part, best) for part in ("val", "test")}, best


def on_all_images(images, frozen, joint, s):
    """({head: {part: predicted classes}}, what validation chose) of a CNN trained on all training images.

    frozen, joint: folders of runs of hybrid_train.py.
    """
    model = hybrid_train.load_backbone(frozen / "backbone.safetensors", images, s)
    features, chosen = cnn.cached_features(frozen / "features.npz", model, images), {}
    found = {OWN: by_part(lambda part: cnn.classifier_logits(model, features[f"X_{part}"]).cpu())}
    head, metadata = mlp.restore(frozen / "head.safetensors")
    hybrid_train.standardise(features, metadata["mean"], metadata["std"])
    found[MLP] = by_part(lambda part: head.predict_logits(features[f"X_{part}"]))
    fresh = fresh_mlp(model, images, features, metadata["mean"], metadata["std"], s)
    found[FRESH] = by_part(lambda part: fresh.predict_logits(features[f"X_{part}"]))
    found[LOGISTIC], chosen[LOGISTIC] = logistic_regression(features, s)
    found[NEAREST], chosen[NEAREST] = nearest_neighbours(features, s)
    whole = hybrid_train.restore(joint / "hybrid.safetensors")[0].to(model.mean.device)
    found[JOINT] = by_part(lambda part: cnn.classifier_logits(whole, cnn.extract_features_numpy(whole, getattr(images, part).X)).cpu())
    return {head: {part: (classes, features[f"y_{part}"]) for part, classes in parts.items()}
            for head, parts in found.items()}, chosen  # fmt: skip


def on_half_of_them(images, folder, s):
    """({head: {part: (predicted, true) classes}}, what validation chose) of a CNN trained on half of the training images.

    It is in `folder`, where it is made if need be. The heads learn from the features of that half, or of the other one.
    """
    halves = data.stratified_split(images.train.y, len(images.train.y) // 2, s.seed)
    path, train = folder / "backbone.safetensors", images.train
    if not path.exists():
        half = data.Split(X=train.X[halves[0]], y=train.y[halves[0]], indices=train.indices[halves[0]])
        resume = str(folder) if (folder / "settings.json").exists() else ""
        own = SimpleNamespace(**vars(s) | {"output_dir": str(folder), "resume": resume})
        with runs.Run("hybrid_study", own) as run:
            cnn.save(path, cnn.train(replace(images, train=half), own, run)[0], images, own)
    model = cnn.restore(path)[0].to(cnn.pick_device(s.device))
    features = cnn.cached_features(folder / "features.npz", model, images)
    first, other = ({key: array[rows] if key.endswith("_train") else array.copy() for key, array in features.items()}
                    for rows in halves)  # fmt: skip
    found = {HALF_OWN: by_part(lambda part: cnn.classifier_logits(model, first[f"X_{part}"]).cpu())}
    seen, unseen = (hybrid_train.train_head(half, images.classes, s, SimpleNamespace(log=lambda row: None))[0]
                    for half in (first, other))  # it standardises the features, too  # fmt: skip
    found[SEEN] = by_part(lambda part: seen.predict_logits(first[f"X_{part}"]))
    found[UNSEEN] = by_part(lambda part: unseen.predict_logits(other[f"X_{part}"]))
    found[LINEAR], chosen = logistic_regression(other, s)
    of = {HALF_OWN: first, SEEN: first, UNSEEN: other, LINEAR: other}
    return {head: {part: (classes, of[head][f"y_{part}"]) for part, classes in parts.items()}
            for head, parts in found.items()}, {LINEAR: chosen}  # fmt: skip


def summary(every):
    """(heads, tests, verdicts) of {seed: {head: {part: (predicted, true) classes, an array (2, N)}}}.

    heads: {head: {"test_accuracy": mean, "test_accuracy_std": ..., "by_seed": {"test_accuracy": [...]}}, ...}, for train and
    val, too; tests: a dict for each comparison; verdicts: a sentence for each.
    """
    heads, tests = {}, []
    for name, parts in next(iter(every.values())).items():
        heads[name] = {"by_seed": {}}
        for part in parts:
            values = [float(np.mean(one[name][part][0] == one[name][part][1])) for one in every.values()]
            heads[name]["by_seed"][f"{part}_accuracy"] = values
            heads[name] |= {f"{part}_accuracy": statistics.fmean(values), f"{part}_accuracy_std": statistics.stdev(values)}
    for first, second in COMPARED:
        test = {"head": first, "against": second, "by_seed": []}
        for seed, one in every.items():
            right = (one[name]["test"][0] == one[name]["test"][1] for name in (first, second))
            only_first, only_second, p = mcnemar(*right)
            test["by_seed"].append({"seed": seed, "only_head_right": only_first, "only_other_right": only_second, "p": p})
        points = [100 * (a - b) for a, b in zip(*(heads[name]["by_seed"]["test_accuracy"] for name in (first, second)),
                                                strict=True)]  # fmt: skip
        test |= {"points": statistics.fmean(points), "points_std": statistics.stdev(points), "p": over_the_seeds(points)}
        tests.append(test)
    for together in (tests, [one for test in tests for one in test["by_seed"]]):  # of methods, of single networks
        for test, p in zip(together, holm([test["p"] for test in together]), strict=True):
            test["p_holm"] = p
    return heads, tests, [verdict(test) for test in tests]


def check_settings(s):
    """Raise settings.SettingError, before any data is read, for what cannot be, and for s.backbones of another kind."""
    hybrid_train.check_settings(s)
    if s.backbone or s.head:
        raise settings.SettingError("--backbone, --head: the study has a network for each seed; give it --backbones FOLDER")
    if s.training != "frozen" or s.compile:
        raise settings.SettingError("--training, --compile: not for the study, which trains frozen and jointly")
    if not (s.logistic_c and s.neighbours):
        raise settings.SettingError("--logistic-c, --neighbours: at least one number each")
    if not s.backbones:
        return
    if s.output_dir and Path(s.output_dir).resolve() == Path(s.backbones).resolve():
        raise settings.SettingError(f"--output-dir {s.output_dir}: is the folder of the backbones; name another")
    for seed in range(s.seed, s.seed + s.seeds):
        path = Path(s.backbones, f"seed_{seed}", "settings.json")
        if not all(path.with_name(name).is_file() for name in ("backbone.safetensors", "head.safetensors", "metrics.json")):
            raise settings.SettingError(f"--backbones {s.backbones}: no finished run in {path.parent}; make them by python "
                                        f"hybrid_train.py --seed {s.seed} --seeds {s.seeds}")  # fmt: skip
        try:
            own, saved = runs.training_settings(vars(s)), runs.training_settings(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError) as error:
            raise settings.SettingError(f"--backbones {s.backbones}: {path} cannot be read ({error})") from None
        may_differ = "seed", "backbones", "logistic_c", "neighbours"
        different = sorted(name for name in saved if name not in may_differ and own.get(name) != saved[name])
        if different:
            raise settings.SettingError(f"--backbones {s.backbones}: made with other settings: {', '.join(different)}")


def trained(folder, s, training):
    """The folder, with a run of hybrid_train.py in it: finished before, or taken up where it was stopped, or made."""
    if not (folder / "metrics.json").exists():
        begun = str(folder) if (folder / "settings.json").exists() else ""
        own = vars(s) | {"training": training, "seeds": 1, "output_dir": str(folder), "resume": begun}
        hybrid_train.run(SimpleNamespace(**own))
    return folder


def of_seed(images, folder, s):
    """({head: {part: (predicted, true) classes}}, what validation chose) of the seed s.seed, kept in `folder`."""
    path = folder / f"predictions_{s.seed}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        chosen, found = json.loads(str(arrays.pop("chosen"))), {}
        for name, array in arrays.items():
            head, part = name.split("/")
            found.setdefault(head, {})[part] = tuple(array)
        if not all(np.array_equal(found[OWN][part][1], getattr(images, part).y) for part in PARTS):
            raise files.RunError(f"{path}: is of other data than {images.name}")
        return found, chosen
    place = f"seed_{s.seed}"
    frozen = Path(s.backbones, place) if s.backbones else trained(folder / "frozen" / place, s, "frozen")
    joint = trained(folder / "joint" / place, s, "joint")
    print(f"\nheads of seed {s.seed}", flush=True)
    found, chosen = on_all_images(images, frozen, joint, s)
    more, chosen_too = on_half_of_them(images, folder / "half" / place, s)
    found, chosen = found | more, chosen | chosen_too
    arrays = {f"{head}/{part}": np.stack(both) for head, parts in found.items() for part, both in parts.items()}
    with files.atomic_write(path) as part, part.open("wb") as file:
        np.savez(file, chosen=json.dumps(chosen), **arrays)
    return found, chosen


def run(s):
    """The whole study with the settings `s`. Returns what metrics.json holds, which is written anew after each seed."""
    if s.quick:
        s.seeds = min(s.seeds, 2)
        hybrid_train.quick_settings(s)
    check_settings(s)
    images = data.load(s.dataset, s.data_dir, s.offline_fallback, s.split_seed, s.quick)
    every, chosen = {}, {}
    with runs.Run("hybrid_study", s) as run:
        for seed in range(s.seed, s.seed + s.seeds):
            own = SimpleNamespace(**vars(s) | {"seed": seed, "resume": ""})
            every[seed], chosen[seed] = of_seed(images, run.path, own)
            if len(every) == 1:
                continue
            heads, tests, verdicts = summary(every)
            title = f"Heads on a CNN's features of {images.name}, {len(every)} seeds"
            run.save({"study.png": plots.classifier_comparison(heads, title), "verdicts.txt": "\n".join(verdicts) + "\n"})
            table = {name: (head["val_accuracy"], head["test_accuracy"]) for name, head in heads.items()}
            metrics = run.finish(table, dataset=images.name, **images.sizes, seeds=list(every), heads=heads, tests=tests,
                                 verdicts=verdicts, chosen=chosen)  # fmt: skip
            print("\n" + "\n".join(verdicts), flush=True)
    return metrics


def main(argv=None):
    run(settings.parse(sys.modules[__name__], hybrid_train, cnn, data, runs, argv=argv))


if __name__ == "__main__":
    runs.cli(main)
