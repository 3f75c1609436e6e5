"""Does the NumPy MLP classify a CNN's features better than other classifiers do? Several heads on the same features.

    python experiments.py heads

For each seed: the CNN's linear classifier, the NumPy MLP, logistic regression and k nearest neighbors on the same
features, and the MLP trained jointly with the CNN. The backbone has already fitted its training images, so their features
are unrealistically easy to separate. Two controls: the MLP trained on features of augmented images; and, with a CNN
trained on one half of the training images, the MLP trained on the features of either half.
"""

if __name__ == "__main__":
    raise SystemExit("studies/heads.py is a module, not a script: experiments.py uses it")

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
from studies import figures
from studies.statistics import holm, mcnemar, paired_t, verdict
from support import files, runs, settings, training
from torch_cnn import backbone
from torch_cnn.devices import generator, pick_device
from torch_cnn.features import SPLITS, cached_features, classifier_logits, extract_features, predict_logits

# ---- settings: edit here, or override any of them on the command line (--seeds 3) ----
# -- study
BACKBONES = ""  # folder of a finished hybrid_train.py --seeds run whose CNNs are used; "" trains new ones
SEEDS = 5  # number of seeds, from SEED on, in [2, 1000]
LOGISTIC_C: tuple = (0.0001, 0.001, 0.01)  # inverse penalties of logistic regression; validation chooses, in (0, 1000000)
NEIGHBORS: tuple = (1, 3, 5, 10, 20, 40)  # numbers of nearest neighbors; validation chooses, in [1, 1000]
QUICK = False  # smoke test of some minutes: two seeds on a subset; numbers are not representative
# ----

CNN_LINEAR, MLP, LOGREG, KNN = "CNN, linear classifier", "NumPy MLP", "logistic regression", "k nearest neighbors"
MLP_AUGMENTED, MLP_JOINT = "NumPy MLP, augmented images", "NumPy MLP, trained jointly with the CNN"
CNN_LINEAR_HALF, MLP_SAME_HALF = "half: CNN, linear classifier", "half: NumPy MLP, same half"
MLP_OTHER_HALF, LOGREG_OTHER_HALF = "half: NumPy MLP, other half", "half: logistic regression, other half"
COMPARISONS = (
    (MLP, CNN_LINEAR), (MLP, LOGREG), (LOGREG, CNN_LINEAR), (KNN, CNN_LINEAR), (MLP_AUGMENTED, CNN_LINEAR),
    (MLP_JOINT, CNN_LINEAR), (MLP_SAME_HALF, CNN_LINEAR_HALF), (MLP_OTHER_HALF, MLP_SAME_HALF),
    (MLP_OTHER_HALF, LOGREG_OTHER_HALF),
)  # fmt: skip


def predict(logits_of, features):
    """{split: (predicted, true) classes}; logits_of(X) gives the logits (N, classes) of features X (N, F)."""
    logits = {split: np.asarray(logits_of(features[f"X_{split}"])) for split in SPLITS}
    return {split: (logits[split].argmax(axis=1), features[f"y_{split}"]) for split in SPLITS}


def augmented_mlp(model, images, features, mean, std, s):
    """The NumPy MLP trained on features of augmented images, redrawn for every batch; otherwise as hybrid_train's.

    features: of the images without augmentation, standardized by mean and std.
    """
    device = model.mean.device
    rng = generator(device, s.seed, 0, 0)  # a stream that the CNN's training does not use

    def transform(x):  # (n, 28, 28) -> (n, F)
        x = cnn.augment(torch.from_numpy(x)[:, None].to(device), s.flip, s.shift, rng, s.erase)
        return (extract_features(model, x).cpu().numpy() - np.float32(mean)) / np.float32(std)

    head_s = hybrid_train.head_settings(s)
    network, rngs = mlp.build(features["X_val"].shape[1], len(images.classes), head_s)
    trainer = mlp.Trainer(network, rngs, head_s, len(images.train.y), transform)
    train_eval = tuple(features[name][: training.TRAIN_EVAL_SIZE] for name in ("X_train", "y_train"))
    with hybrid_train.single_blas_thread():
        trainer.fit(images.train.X, images.train.y, features["X_val"], images.val.y, train_eval=train_eval)
    return network


def logistic_regression(features, s):
    """scikit-learn's logistic regression with the best C by validation: ({split: (predicted, true)}, C).

    It is trained on plain labels; the CNN on smoothed labels and augmented images.
    """
    from sklearn.linear_model import LogisticRegression

    models = [LogisticRegression(C=C, max_iter=300).fit(features["X_train"], features["y_train"]) for C in s.logistic_c]
    best = max(models, key=lambda model: model.score(features["X_val"], features["y_val"]))
    return {split: (best.predict(features[f"X_{split}"]), features[f"y_{split}"]) for split in SPLITS}, best.C


def nearest_neighbors(features, s):
    """k nearest neighbors with the best k by validation: ({split: (predicted, true)}, k).

    Without the training split, where each image is its own nearest neighbor.
    """
    from sklearn.neighbors import NearestNeighbors

    y = features["y_train"]
    search = NearestNeighbors(n_neighbors=min(max(s.neighbors), len(y)), algorithm="brute").fit(features["X_train"])
    labels = {split: y[search.kneighbors(features[f"X_{split}"], return_distance=False)] for split in ("val", "test")}

    def vote(split, k):
        votes = [(labels[split][:, :k] == label).sum(axis=1) for label in range(y.max() + 1)]
        return np.stack(votes, axis=1).argmax(axis=1)

    best = max(s.neighbors, key=lambda k: np.mean(vote("val", k) == features["y_val"]))
    return {split: (vote(split, best), features[f"y_{split}"]) for split in ("val", "test")}, best


def heads_on_all_images(images, frozen, joint, s):
    """Heads on a CNN trained on all training images: ({head: {split: (predicted, true)}}, {head: what validation chose}).

    frozen, joint: folders of finished runs of hybrid_train.py.
    """
    model, s = hybrid_train.load_backbone(frozen / "backbone.safetensors", images, s)
    features, chosen = cached_features(frozen / "features.npz", model, images), {}
    results = {CNN_LINEAR: predict(lambda X: classifier_logits(model, X).cpu(), features)}
    head, metadata = mlp.restore(frozen / "head.safetensors")
    mean, std = metadata["mean"], metadata["std"]
    hybrid_train.standardize_(features, mean, std)
    results[MLP] = predict(head.predict_logits, features)
    results[MLP_AUGMENTED] = predict(augmented_mlp(model, images, features, mean, std, s).predict_logits, features)
    results[LOGREG], chosen[LOGREG] = logistic_regression(features, s)
    results[KNN], chosen[KNN] = nearest_neighbors(features, s)
    hybrid = hybrid_train.restore(joint / "hybrid.safetensors")[0].to(model.mean.device)
    pixels = {f"X_{split}": getattr(images, split).X for split in SPLITS}
    results[MLP_JOINT] = predict(lambda X: predict_logits(hybrid, X), features | pixels)
    return results, chosen


def half_backbone(images, rows, folder, s):
    """The CNN in `folder` that was trained on the rows (N / 2,) of the training images; trained now if need be."""
    path, train = folder / "backbone.safetensors", images.train
    if not path.exists():
        half = data.Split(X=train.X[rows], y=train.y[rows], indices=train.indices[rows])
        resume = str(folder) if (folder / "settings.json").exists() else ""
        s = SimpleNamespace(**vars(s) | {"output_dir": str(folder), "resume": resume})
        with runs.Run("heads", s) as run:
            backbone.save(path, cnn.train(replace(images, train=half), s, run)[0], images, s)
    return backbone.restore(path)[0].to(pick_device(s.device))


def half_rows(images, s):
    """The rows (N / 2,) of the training images in each half; all classes in equal proportions."""
    return data.stratified_split(images.train.y, len(images.train.y) // 2, s.seed)


def heads_on_halves(images, folder, s):
    """Heads on a CNN trained on half of the training images, which is in `folder`; as heads_on_all_images.

    They are trained on the features of the same half, or of the other one.
    """
    halves = half_rows(images, s)
    model = half_backbone(images, halves[0], folder, s)
    features = cached_features(folder / "features.npz", model, images)
    same, other = ({name: array[rows] if name.endswith("_train") else array.copy() for name, array in features.items()}
                   for rows in halves)  # fmt: skip
    results = {CNN_LINEAR_HALF: predict(lambda X: classifier_logits(model, X).cpu(), same)}
    for name, half in ((MLP_SAME_HALF, same), (MLP_OTHER_HALF, other)):
        head, _ = hybrid_train.train_head(half, images.classes, s, SimpleNamespace(log=lambda row: None))
        results[name] = predict(head.mlp.predict_logits, half)  # train_head has standardized the features
    results[LOGREG_OTHER_HALF], chosen = logistic_regression(other, s)
    return results, {LOGREG_OTHER_HALF: chosen}


def cross_validated_probabilities(images, folder, s):
    """Class probabilities (N, classes) of each training image, by a CNN trained on the half that does not contain it."""
    first, second = half_rows(images, s)
    logits = np.empty((len(images.train.y), len(images.classes)), np.float32)
    for trained_on, judged, name in ((first, second, "half"), (second, first, "other_half")):
        model = half_backbone(images, trained_on, folder / name / f"seed_{s.seed}", s)
        logits[judged] = predict_logits(model, images.train.X[judged])
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def summary(results):
    """(heads, tests, verdicts) of {seed: {head: {split: (predicted, true) classes}}}.

    heads: {head: {"test_accuracy": mean, "test_accuracy_std": ..., "by_seed": {"test_accuracy": [...]}, ...}}; tests: a
    dict for each of COMPARISONS; verdicts: a sentence for each.
    """
    heads, tests = {}, []
    for name, splits in next(iter(results.values())).items():
        heads[name] = {"by_seed": {}}
        for split in splits:
            values = [float(np.mean(np.equal(*seed_results[name][split]))) for seed_results in results.values()]
            heads[name]["by_seed"][f"{split}_accuracy"] = values
            heads[name] |= {f"{split}_accuracy": statistics.fmean(values), f"{split}_accuracy_std": statistics.stdev(values)}
    for head, against in COMPARISONS:
        test = {"head": head, "against": against, "by_seed": []}
        for seed, seed_results in results.items():
            only_head, only_other, p = mcnemar(*(np.equal(*seed_results[name]["test"]) for name in (head, against)))
            test["by_seed"].append({"seed": seed, "only_head_correct": only_head, "only_other_correct": only_other, "p": p})
        pairs = zip(*(heads[name]["by_seed"]["test_accuracy"] for name in (head, against)), strict=True)
        points = [100 * (a - b) for a, b in pairs]
        test |= {"points": statistics.fmean(points), "points_std": statistics.stdev(points), "p": paired_t(points)}
        tests.append(test)
    for family in (tests, [row for test in tests for row in test["by_seed"]]):  # of methods, of single networks
        for test, p in zip(family, holm([test["p"] for test in family]), strict=True):
            test["p_holm"] = p
    return heads, tests, [verdict(test) for test in tests]


def title_of(dataset, num_seeds):
    return f"Classifiers on a CNN's features\n{dataset}, {num_seeds} seeds"


def check_settings(s):
    """Raise settings.SettingError, before any data is read, for impossible settings."""
    hybrid_train.check_settings(s)
    if s.backbone or s.head:
        raise settings.SettingError("--backbone, --head: the study has a network for each seed; use --backbones FOLDER")
    if s.training != "frozen" or s.compile:
        raise settings.SettingError("--training, --compile: not for the study, which trains frozen and jointly")
    if not (s.logistic_c and s.neighbors):
        raise settings.SettingError("--logistic-c, --neighbors: give at least one number each")
    if s.train_on_val:
        raise settings.SettingError("--train-on-val: not for the study, which chooses by the validation images")
    if s.output_dir and s.backbones and Path(s.output_dir).resolve() == Path(s.backbones).resolve():
        raise settings.SettingError(f"--output-dir {s.output_dir}: is the folder of the backbones; name another")


def check_backbones(s):
    """Raise settings.SettingError if s.backbones is given and has no finished runs with the settings `s`."""
    for seed in range(s.seed, s.seed + s.seeds) if s.backbones else ():
        path = Path(s.backbones, f"seed_{seed}", "settings.json")
        if not all(path.with_name(name).is_file() for name in ("backbone.safetensors", "head.safetensors", "metrics.json")):
            raise settings.SettingError(f"--backbones {s.backbones}: no finished run in {path.parent}; make them with "
                                        f"python hybrid_train.py --seed {s.seed} --seeds {s.seeds}")  # fmt: skip
        try:
            saved = runs.training_settings(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError) as error:
            raise settings.SettingError(f"--backbones {s.backbones}: {path} cannot be read ({error})") from None
        current, may_differ = runs.training_settings(vars(s)), ("seed", "backbones", "logistic_c", "neighbors")
        different = sorted(name for name in saved if name not in may_differ and current.get(name) != saved[name])
        if different:
            raise settings.SettingError(f"--backbones {s.backbones}: made with other settings: {', '.join(different)}")


def hybrid_run(folder, s, training):
    """`folder` with a finished run of hybrid_train.py; trained or resumed if need be."""
    if not (folder / "metrics.json").exists():
        resume = str(folder) if (folder / "settings.json").exists() else ""
        changes = {"training": training, "seeds": 1, "output_dir": str(folder), "resume": resume}
        hybrid_train.run(SimpleNamespace(**vars(s) | changes))
    return folder


def results_of_seed(images, folder, s):
    """({head: {split: (predicted, true) classes}}, what validation chose) of the seed s.seed; saved in `folder`."""
    path = folder / f"predictions_{s.seed}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        chosen, results = json.loads(str(arrays.pop("chosen"))), {}
        for name, array in arrays.items():
            head, split = name.split("/")
            results.setdefault(head, {})[split] = tuple(array)
        if not all(np.array_equal(results[CNN_LINEAR][split][1], getattr(images, split).y) for split in SPLITS):
            raise files.FileError(f"{path}: was made from other data than {images.name}")
        return results, chosen
    name = f"seed_{s.seed}"
    frozen = Path(s.backbones, name) if s.backbones else hybrid_run(folder / "frozen" / name, s, "frozen")
    joint = hybrid_run(folder / "joint" / name, s, "joint")
    print(f"\nheads of seed {s.seed}", flush=True)
    results, chosen = heads_on_all_images(images, frozen, joint, s)
    half_results, half_chosen = heads_on_halves(images, folder / "half" / name, s)
    results, chosen = results | half_results, chosen | half_chosen
    arrays = {f"{head}/{split}": np.stack(pair) for head, splits in results.items() for split, pair in splits.items()}
    with files.atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, chosen=json.dumps(chosen), **arrays)
    return results, chosen


def run(s):
    """The whole study with the settings `s`. Return the content of metrics.json, which is updated after each seed."""
    check_settings(s)
    images = data.load_for(s)
    s = hybrid_train.own_data_settings(s, images)
    if s.quick:
        s = SimpleNamespace(**vars(hybrid_train.quick_settings(s)) | {"seeds": min(s.seeds, 2)})
    check_backbones(s)
    results, chosen = {}, {}
    with runs.Run("heads", s) as run:
        for seed in range(s.seed, s.seed + s.seeds):
            seed_s = SimpleNamespace(**vars(s) | {"seed": seed, "resume": ""})
            results[seed], chosen[seed] = results_of_seed(images, run.path, seed_s)
            if len(results) == 1:
                probabilities = cross_validated_probabilities(images, run.path, seed_s)
                title = f"CNN trained on the other half of the training images, {images.name}, seed {seed}"
                figure = plots.mistakes(images.train.X, images.train.y, probabilities, images.classes, title,
                                        "Labels that the CNN contradicts most confidently")
                run.save({"label_errors.png": figure, "train_probabilities.npy": probabilities.astype(np.float16)})
                continue
            heads, tests, verdicts = summary(results)
            figure = figures.classifier_comparison(heads, COMPARISONS, title_of(images.name, len(results)))
            run.save({"study.png": figure, "verdicts.txt": "\n".join(verdicts) + "\n"})
            table = {name: (head["val_accuracy"], head["test_accuracy"]) for name, head in heads.items()}
            metrics = run.finish(table, dataset=images.name, **images.sizes, seeds=list(results), heads=heads, tests=tests,
                                 verdicts=verdicts, chosen=chosen)  # fmt: skip
            print("\n" + "\n".join(verdicts), flush=True)
    return metrics


def main(argv=None):
    modules = (sys.modules[__name__], hybrid_train, cnn, data, runs)
    run(settings.parse(*modules, argv=argv, both=("training",), script="experiments.py heads"))
