"""Which classifier is best on a CNN's features? Several heads on the same features, over several seeds.

    python experiments.py heads       trains new CNNs; the same command continues an interrupted one
    python experiments.py heads --backbones runs/hybrid_train/DATE      of python hybrid_train.py --seeds 5

The CNN has already fitted its training images, so their features are unrealistically easy to separate. Two
controls: the MLP on features of augmented images; and, with a CNN trained on half of the training images,
heads on the features of either half.
"""

import io
import json
import math
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import cnn_feature_extraction as cnn
import data
import hybrid_train
import mlp_from_scratch as mlp
import plots
import run
from studies import output, tables
from studies.statistics import correct, mcnemar, paired_test, with_verdicts

BACKBONES: str = ""  # folder of a finished run of hybrid_train.py with --seeds; "" trains new ones

LIMITS = {}
LOGISTIC_C = (0.0001, 0.001, 0.01)  # inverse penalties of logistic regression; validation chooses
NEIGHBORS = (1, 3, 5, 10, 20, 40)  # numbers of nearest neighbors; validation chooses
LINEAR, MLP, LOGREG, KNN = "CNN, linear classifier", "NumPy MLP", "logistic regression", "k nearest neighbors"
AUGMENTED, JOINT = "NumPy MLP, augmented images", "NumPy MLP, trained jointly with the CNN"
HALF_LINEAR, HALF_SAME = "half: CNN, linear classifier", "half: NumPy MLP, same half"
HALF_OTHER, HALF_LOGREG = "half: NumPy MLP, other half", "half: logistic regression, other half"
COMPARISONS = [(MLP, LINEAR), (MLP, LOGREG), (LOGREG, LINEAR), (KNN, LINEAR), (AUGMENTED, LINEAR)]
COMPARISONS += [(JOINT, LINEAR), (HALF_SAME, HALF_LINEAR), (HALF_OTHER, HALF_SAME), (HALF_OTHER, HALF_LOGREG)]


def right(name, predict, images, splits=("train", "val", "test")):
    """{"name/split": is each image right (N,)}. predict: X -> logits (N, classes), or classes (N,)."""
    results = {}
    for split in splits:
        X, y = getattr(images, split).X, getattr(images, split).y
        predicted = np.asarray(predict(X))
        results[f"{name}/{split}"] = (predicted.argmax(axis=1) if predicted.ndim == 2 else predicted) == y
    return results


def best_of(name, models, features, splits=("train", "val", "test")):
    """right(...) of the best of {value: scikit-learn classifier} on validation; its value: "name/chosen"."""
    scores = {}
    for value, model in models.items():
        model.fit(features.train.X, features.train.y)
        scores[value] = model.score(features.val.X, features.val.y)
    best = max(scores, key=scores.get)
    return right(name, models[best].predict, features, splits) | {f"{name}/chosen": np.array(best)}


def logistic_regression(name, features):
    return best_of(name, {C: LogisticRegression(C=C, max_iter=300) for C in LOGISTIC_C}, features)


def augmented_mlp(model, images, features, s):
    """The NumPy MLP on the CNN's features of augmented images, redrawn for every batch.

    features: a Dataset of those without augmentation, by which the MLP standardizes.
    """
    head_s, rng = hybrid_train.head_settings(s), cnn.generator(model.mean.device, s.seed, 0, 0)
    trainer, X, y = mlp.Trainer(features, head_s), cnn.as_tensor(model, images.train.X), images.train.y
    steps = math.ceil(len(y) / head_s.batch_size)
    for epoch in range(head_s.epochs):
        batches = data.batches(len(y), head_s.batch_size, trainer.rngs["shuffle"])
        for step, batch in enumerate(batches, epoch * steps):
            x = cnn.features_of(model, cnn.augment(X[batch], s.flip, s.shift, s.erase, rng)).cpu().numpy()
            x = data.standardize(x, trainer.model.mean, trainer.model.std)
            trainer.train_step(x, y[batch], mlp.lr_at(step, head_s.epochs * steps, head_s))
    return trainer.model


def trained(module, folder, s, images, training="frozen"):
    """`folder` with a finished run of the script `module`, which is started or resumed if need be."""
    resume = str(folder) if (folder / "settings.json").exists() else ""
    changes = {"output_dir": str(folder), "resume": resume, "training": training, "figures": False}
    if not (folder / "metrics.json").exists():
        module.run_once(SimpleNamespace(**vars(s) | changes | {"seeds": 1}), images)
    return folder


def heads_on_all_images(images, frozen, joint, s):
    """The results of the heads, {"name/split": (N,)}. frozen, joint: folders of runs of hybrid_train.py."""
    model, _ = cnn.restore(frozen / "backbone.safetensors")
    features = cnn.extract_features(model.to(cnn.pick_device(s.device)), images)
    head, _ = mlp.restore(frozen / "head.safetensors")
    hybrid, _ = hybrid_train.restore(joint / "hybrid.safetensors")
    neighbors = {k: KNeighborsClassifier(k, algorithm="brute") for k in NEIGHBORS}
    return {
        **right(LINEAR, lambda X: cnn.predict_logits(model, X), images),
        **right(MLP, head.predict_logits, features),
        **right(AUGMENTED, augmented_mlp(model, images, features, s).predict_logits, features),
        **logistic_regression(LOGREG, features),
        **best_of(KNN, neighbors, features, ("val", "test")),  # a training image is its own neighbor
        **right(JOINT, lambda X: cnn.predict_logits(hybrid, X), images),
    }


def halves(images, s):
    """Two Datasets, each with half of the training images of each class."""
    train, datasets = images.train, []
    for rows in data.stratified_split(train.y, len(train.y) // 2, s.seed):
        half = replace(train, X=train.X[rows], y=train.y[rows], indices=train.indices[rows])
        datasets.append(replace(images, train=half))
    return datasets


def heads_on_halves(images, folder, s):
    """The same, with a CNN trained on half of the images, and heads on the features of either half."""
    first, second = halves(images, s)
    model, _ = cnn.restore(trained(cnn, folder, s, first) / "backbone.safetensors")
    same, other = cnn.extract_features(model, first), cnn.extract_features(model, second)
    results = right(HALF_LINEAR, lambda X: cnn.predict_logits(model, X), first)
    for name, half in ((HALF_SAME, same), (HALF_OTHER, other)):
        results |= right(name, mlp.train(half, hybrid_train.head_settings(s))[0].predict_logits, half)
    return results | logistic_regression(HALF_LOGREG, other)


def results_of_seed(images, folder, s):
    """The results of all heads for the seed s.seed, kept in `folder`."""
    path, seed = folder / f"right_{s.seed}.npz", f"seed_{s.seed}"
    if not path.exists():
        frozen = Path(s.backbones, seed)
        if not s.backbones:
            frozen = trained(hybrid_train, folder / "frozen" / seed, s, images)
        joint = trained(hybrid_train, folder / "joint" / seed, s, images, "joint")
        print(f"\nheads of seed {s.seed}", flush=True)
        results = heads_on_all_images(images, frozen, joint, s)
        content = io.BytesIO()
        np.savez(content, **results | heads_on_halves(images, folder / "half" / seed, s))
        run.write(path, content.getvalue())
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def summarize(results):
    """(heads, tests) of {seed: results}: accuracies over the seeds; a dict for each comparison."""
    heads, tests = {}, []
    for key in next(iter(results.values())):
        name, split = key.split("/")
        if split != "chosen":
            values = [float(of_seed[key].mean()) for of_seed in results.values()]
            head = heads.setdefault(name, {"by_seed": {}})
            head["by_seed"][f"{split}_accuracy"] = values
            head[f"{split}_accuracy"] = statistics.fmean(values)
            head[f"{split}_accuracy_std"] = statistics.stdev(values)
    for pair in COMPARISONS:
        first, second = (100 * np.array(heads[name]["by_seed"]["test_accuracy"]) for name in pair)
        test = {"variant": pair[0], "against": pair[1]} | paired_test(first - second) | {"by_seed": []}
        for seed, of_seed in results.items():
            only_variant, only_other, p = mcnemar(*(of_seed[f"{name}/test"] for name in pair))
            counts = {"only_variant_correct": only_variant, "only_other_correct": only_other}
            test["by_seed"].append({"seed": seed, **counts, "p": p})
        tests.append(test)
    correct([row for test in tests for row in test["by_seed"]], "p", "p_holm")
    return heads, with_verdicts(tests)


def draw(heads, tests, title):
    """Test accuracy of each head, and the differences: a dot for each seed, mean and 95 % interval."""
    size = {"nrows": 2, "height_ratios": (len(heads), len(COMPARISONS))}
    fig, axes = plots.figure(f"Classifiers on a CNN's features\n{title}", 9, 10, **size)
    values = {name: 100 * np.array(head["by_seed"]["test_accuracy"]) for name, head in heads.items()}
    output.dots(axes[0, 0], values, [plots.color_of(name) for name in values], "{:.2f}")
    for number, test in enumerate(tests):
        points = values[test["variant"]] - values[test["against"]]
        axes[1, 0].plot(points, np.full(len(points), number), "o", color=plots.RIGHT, alpha=0.3)
        output.difference_at(axes[1, 0], number, test, plots.RIGHT)
    names = [f"{test['variant']} vs\n{test['against']}" for test in tests]
    output.name_rows(axes[1, 0], names)
    axes[1, 0].axvline(0, color="black", linewidth=0.8)
    axes[0, 0].set_xlabel("test accuracy (%); half: of the training images for the CNN")
    axes[1, 0].set_xlabel("difference (points): seeds, mean, 95 % interval; filled: differs")
    return fig


def judge_training_images(images, folder, s):
    """Write train_probabilities.npy: of each half of the training images, by a CNN trained on the other."""
    probabilities = np.empty((len(images.train.y), len(images.classes)), np.float16)
    first, second = halves(images, s)
    for half, judged, name in ((first, second, "half"), (second, first, "other_half")):
        path = trained(cnn, folder / name / f"seed_{s.seed}", s, half) / "backbone.safetensors"
        rows = np.searchsorted(images.train.indices, judged.train.indices)
        probabilities[rows] = softmax(cnn.predict_logits(cnn.restore(path)[0], judged.train.X), axis=1)
    content = io.BytesIO()
    np.save(content, probabilities)
    run.write(folder / "train_probabilities.npy", content.getvalue())


def main(argv):
    s = run.parse(argv, sys.modules[__name__], hybrid_train, cnn, data, run)
    hybrid_train.check_settings(s)
    if s.backbone or s.resume or s.train_on_val:
        raise run.Error("heads: --backbone, --train-on-val, --resume: not here; the same command continues")
    num_seeds = s.seeds if s.seeds > 1 else 5
    seeds = range(s.seed, s.seed + (2 if s.quick else num_seeds))
    folder = Path(s.output_dir or run.ROOT / f"runs/studies{'/quick' if s.quick else ''}/heads")
    folder.mkdir(parents=True, exist_ok=True)
    made_from, path = run.training_settings(s) | {"seeds": 0}, folder / "settings.json"
    if path.exists() and run.read_json(path) != made_from:
        raise run.Error(f"{folder}: has results of other settings; name another --output-dir")
    run.write(path, json.dumps(made_from, indent=2) + "\n")
    s.head_batch_size = min(s.head_batch_size, 32) if s.quick else s.head_batch_size
    images, results = data.load(s), {}
    for seed in seeds:
        results[seed] = results_of_seed(images, folder, SimpleNamespace(**vars(s) | {"seed": seed}))
    judge_training_images(images, folder, s)
    heads, tests = summarize(results)
    output.save_figure(folder / "study.png", draw(heads, tests, f"{images.name}, {len(seeds)} seeds"))
    chosen = {}
    for seed in seeds:
        chosen[seed] = {k.split("/")[0]: v.item() for k, v in results[seed].items() if k.endswith("/chosen")}
    metrics = {"dataset": images.name, **images.sizes, "seeds": list(seeds), "heads": heads, "tests": tests}
    metrics |= {"chosen": chosen, "settings": vars(s), "command": run.command_line(), **run.environment()}
    run.write(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    print(f"\n{tables.heads(metrics)}\n{tables.head_tests(metrics)}")
    print(f"metrics.json, study.png and train_probabilities.npy are in {folder}")
