"""What the three scripts have in common: they change no settings of their caller, and release one seed's memory."""

import copy
import gc
import weakref

import pytest

import cnn_feature_extraction as cnn
import data
import hybrid_train
import mlp_from_scratch as mlp
from support import runs, settings, training

CNN = {"channels": (3, 4), "pool_after": (1, 2), "device": "cpu", "precision": "float32", "learning_rate": 0.05}
JOBS = {
    "mlp": (mlp, {"hidden": (8,)}),
    "cnn": (cnn, CNN),
    "frozen": (hybrid_train, CNN | {"head_hidden": (8,)}),
    "joint": (hybrid_train, CNN | {"head_hidden": (8,), "training": "joint"}),
}


def load(name, **options):
    script, changes = JOBS[name]
    modules = dict.fromkeys((script, cnn if script is hybrid_train else script, data, runs))
    return script, settings.load(*modules, **{"dataset": "digits", "quick": True, "epochs": 1} | changes | options)


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    monkeypatch.setattr(cnn, "cnn_figures", lambda *ignored: {})  # which take most of the time


@pytest.mark.parametrize("name", JOBS)
def test_a_run_leaves_its_callers_settings_alone(name, tmp_path):
    """--quick, --backbone, --head and --resume each work with other settings than the given ones."""
    script, s = load(name, output_dir=str(tmp_path / "run"))
    before = copy.deepcopy(vars(s))
    metrics = script.run(s)
    assert vars(s) == before
    assert metrics["settings"] != before or name == "mlp"  # the run's own
    s.resume = str(tmp_path / "run")
    for column, value in metrics["settings"].items():  # as settings.parse reads them
        setattr(s, column, tuple(value) if isinstance(value, list) else value)
    s.quick, before = False, None
    s.resume, s.quick = str(tmp_path / "run"), True
    before = copy.deepcopy(vars(s))
    script.run(s)
    assert vars(s) == before


@pytest.mark.parametrize("training_mode", ["frozen", "joint"])
def test_a_given_backbone_and_head_leave_the_callers_settings_alone(training_mode, tmp_path):
    _, s = load("frozen", output_dir=str(tmp_path / "first"))
    hybrid_train.run(s)
    files = {"backbone": str(tmp_path / "first/backbone.safetensors")}
    if training_mode == "joint":
        files["head"] = str(tmp_path / "first/head.safetensors")
    s = settings.load(hybrid_train, cnn, data, runs, dataset="digits", quick=True, training=training_mode, device="cpu",
                      precision="float32" if training_mode == "joint" else "auto", head_epochs=1, epochs=13,
                      head_hidden=(9,), output_dir=str(tmp_path / "second"), **files)  # fmt: skip
    before = copy.deepcopy(vars(s))
    hybrid_train.run(s)
    assert vars(s) == before


@pytest.mark.parametrize("name", JOBS)
def test_seeds_leave_the_callers_settings_alone_and_release_one_seed_before_the_next(name, tmp_path, monkeypatch):
    """Without the garbage collector, which comes at any time or too late: each seed begins with no memory of the last."""
    script, s = load(name, seeds=2, output_dir=str(tmp_path / "run"))
    before, references, alive = copy.deepcopy(vars(s)), [], []

    def remember(function):
        def wrapper(*arguments, **options):
            result = function(*arguments, **options)
            references.extend((f"array from {function.__name__}", weakref.ref(array)) for array in result.values())
            return result

        return wrapper

    def load_images(*arguments, original=data.load, **options):
        alive.append([label for label, reference in references if reference() is not None])
        images = original(*arguments, **options)
        references.extend([("dataset", weakref.ref(images)), ("training images", weakref.ref(images.train.X))])
        return images

    def init(self, *arguments, original=training.Trainer.__init__):
        original(self, *arguments)
        references.append((f"trainer of {type(self).__module__}", weakref.ref(self)))

    monkeypatch.setattr(data, "load", load_images)
    monkeypatch.setattr(training.Trainer, "__init__", init)
    for module in (cnn, hybrid_train):
        monkeypatch.setattr(module, "cached_features", remember(module.cached_features))
    gc.collect()
    gc.disable()
    try:
        runs.run_seeds("test", script.run, s)
    finally:
        gc.enable()
    assert vars(s) == before
    assert len(references) >= 6
    assert alive == [[], []]
