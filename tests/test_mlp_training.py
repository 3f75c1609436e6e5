"""The NumPy MLP's Trainer: held against PyTorch, its moving average, early stopping, and resuming."""

import numpy as np
import pytest
import torch
from conftest import relative

import data
import mlp_from_scratch as mlp
from numpy_nn import layers, monitor
from numpy_nn.optimizers import OPTIMIZERS
from support import files, runs, settings, training

RNG = np.random.default_rng(8)


def make_trainer(model, n, **options):
    """A Trainer with nothing but what the options say."""
    baseline = {"label_smoothing": 0.0, "weight_decay": 0.0, "ema_decay": 0.0, "warmup": 0.0}
    return mlp.Trainer(model, mlp.make_rngs(0), settings.load(mlp, **(baseline | options)), n)


def small_mlp(hidden=8, **options):
    return mlp.MLP((784, hidden, 10), np.random.default_rng(0), **options)


@pytest.mark.parametrize(("name", "torch_optimizer"), [
    ("momentum", lambda p: torch.optim.SGD(p, momentum=0.9)), ("adam", torch.optim.Adam),
])  # fmt: skip
def test_ten_training_steps_match_torch(name, torch_optimizer, digits):
    X, y = digits.train.X.reshape(-1, 784), digits.train.y
    model = mlp.MLP((784, 256, 128, 10), np.random.default_rng(3))
    reference = torch.nn.Sequential(torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 128),
                                    torch.nn.ReLU(), torch.nn.Linear(128, 10))  # fmt: skip
    with torch.no_grad():
        for number in range(3):
            reference[2 * number].weight.copy_(torch.tensor(model.views[f"{number}.W"].T))
            reference[2 * number].bias.copy_(torch.tensor(model.views[f"{number}.b"]))
    optimizer, expected = OPTIMIZERS[name](model.params, model.grads), torch_optimizer(reference.parameters())
    expected.param_groups[0]["lr"] = 0.001
    losses = []
    for batch in data.batches(len(y), 64, np.random.default_rng(4))[:10]:
        loss, dlogits = layers.softmax_cross_entropy(model.forward(X[batch], training=True), y[batch])
        model.backward(dlogits)
        optimizer.step(0.001)
        torch_loss = torch.nn.functional.cross_entropy(reference(torch.tensor(X[batch])), torch.tensor(y[batch]))
        expected.zero_grad()
        torch_loss.backward()
        expected.step()
        assert loss == pytest.approx(torch_loss.item(), rel=1e-5)
        losses.append(loss)
    assert losses[-1] < losses[0]


def test_decoupled_weight_decay_is_adamw_on_the_weights(digits):
    X, y = digits.train.X[:256].reshape(-1, 784), digits.train.y[:256]
    model, initial = small_mlp(), small_mlp()
    tensors = {name: torch.tensor(view, requires_grad=True) for name, view in initial.views.items()}
    groups = [{"params": [t for name, t in tensors.items() if "W" in name], "weight_decay": 0.1},
              {"params": [t for name, t in tensors.items() if "b" in name], "weight_decay": 0}]  # fmt: skip
    adamw = torch.optim.AdamW(groups, lr=0.01)
    flags = {"epochs": 3, "batch_size": 64, "schedule": "constant", "learning_rate": 0.01, "weight_decay": 0.1}
    make_trainer(model, 256, **flags).fit(X, y, X, y)
    rng = mlp.make_rngs(0)["shuffle"]
    for _ in range(3):
        for batch in data.batches(256, 64, rng):
            hidden = torch.relu(torch.tensor(X[batch]) @ tensors["0.W"] + tensors["0.b"])
            loss = torch.nn.functional.cross_entropy(hidden @ tensors["1.W"] + tensors["1.b"], torch.tensor(y[batch]))
            adamw.zero_grad()
            loss.backward()
            adamw.step()
    for name, tensor in tensors.items():
        assert relative(model.views[name], tensor.detach().numpy()) < 1e-4


def test_each_step_takes_the_scheduled_learning_rate(digits):
    X, y = digits.train.X[:100].reshape(-1, 784), digits.train.y[:100]
    trainer = make_trainer(small_mlp(), 100, epochs=3, batch_size=30, schedule="cosine", warmup=0.3, optimizer="sgd")
    rates, step = [], trainer.optimizer.step
    trainer.optimizer.step = lambda lr: (rates.append(lr), step(lr))
    trainer.fit(X, y, X, y)
    assert rates == [trainer.lr_of_step(number) for number in range(12)]
    assert len(set(rates)) > 6
    assert trainer.history["learning_rate"] == rates[3::4]  # of each epoch's last step


def test_the_moving_average_is_evaluated_and_left_in_the_model(digits):
    X, y = digits.train.X[:200].reshape(-1, 784), digits.train.y[:200]
    model = small_mlp(norm="batch")
    trainer, last = make_trainer(model, 200, epochs=3, batch_size=50, ema_decay=0.9), None
    update, expected = trainer.ema.update, model.params.astype(np.float64)

    def spy():
        nonlocal expected, last
        update()
        decay = min(0.9, (1 + trainer.ema.t) / (10 + trainer.ema.t))
        expected, last = decay * expected + (1 - decay) * model.params, model.params.copy()

    trainer.ema.update = spy
    trainer.fit(X, y, X, y)
    assert relative(model.params, expected) < 1e-5 < relative(last, expected)
    assert trainer.history["val_loss"][-1] == layers.softmax_cross_entropy(model.predict_logits(X), y)[0]


def test_early_stopping_restores_the_best_weights(digits):
    X, X_val = digits.train.X.reshape(-1, 784), digits.val.X.reshape(-1, 784)
    model = small_mlp(16)
    trainer = make_trainer(model, len(X), epochs=200, patience=3, schedule="constant", learning_rate=0.01)
    trainer.fit(X, digits.train.y, X_val, digits.val.y)
    accuracies = trainer.history["val_accuracy"]
    assert len(accuracies) == trainer.best_epoch + 3 < 200
    best = training.accuracy(model.predict_logits(X_val), digits.val.y)
    assert best == max(accuracies) == accuracies[trainer.best_epoch - 1]


def test_evaluation_is_in_eval_mode_without_smoothing(digits):
    """train_eval_* of the last epoch are those of the weights that are left, on the first training images."""
    X, y = digits.train.X[:300].reshape(-1, 784), digits.train.y[:300]
    model = small_mlp(norm="batch", dropout=0.5, dropout_rng=np.random.default_rng(1))
    trainer = make_trainer(model, 300, epochs=2, batch_size=50, label_smoothing=0.3)
    trainer.fit(X, y, X[:50], y[:50])
    logits = model.predict_logits(X)
    assert trainer.history["train_eval_loss"][-1] == layers.softmax_cross_entropy(logits, y)[0]
    assert trainer.history["train_eval_accuracy"][-1] == training.accuracy(logits, y)
    assert trainer.history["train_loss"][-1] > trainer.history["train_eval_loss"][-1] + 0.1


def test_dropout_does_not_change_the_batch_order(digits, monkeypatch):
    orders, batches = [], data.batches
    for dropout in (0.0, 0.5):
        seen = []
        monkeypatch.setattr(data, "batches", lambda *arguments, seen=seen: seen.extend(batches(*arguments)) or seen)
        s = settings.load(mlp, hidden=(4,), dropout=dropout, epochs=1)
        X, X_val = digits.train.X.reshape(-1, 784), digits.val.X.reshape(-1, 784)
        mlp.train(X, digits.train.y, X_val, digits.val.y, 10, s, lambda row: None)
        orders.append(np.concatenate(seen))
    assert np.array_equal(*orders)


def test_each_epoch_visits_every_image_once_in_another_order():
    seen = []

    class Spy(mlp.MLP):
        def forward(self, x, training=False):
            if training:
                seen.extend(x[:, 0].tolist())
            return super().forward(x, training)

    X, y = np.zeros((50, 4), np.float32), np.zeros(50, int)
    X[:, 0] = np.arange(50)
    make_trainer(Spy((4, 3), np.random.default_rng(0)), 50, epochs=2, batch_size=16).fit(X, y, X, y)
    assert sorted(seen[:50]) == sorted(seen[50:]) == list(range(50))
    assert seen[:50] != seen[50:] != sorted(seen[50:])


def test_training_stays_in_float32(digits):
    X, y = digits.train.X[:100].reshape(100, -1), digits.train.y[:100]
    model = small_mlp(norm="batch")
    trainer = make_trainer(model, 100, epochs=1, l1=1e-4, l2=1e-4, weight_decay=0.1, max_grad_norm=0.1, ema_decay=0.9)
    trainer.fit(X, y, X, y)
    tensors, _ = trainer.state_dict()
    arrays = [*tensors.values(), *(dW for _, dW in model.weights), *model.layers[0].workspaces.values()]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


@pytest.mark.parametrize(("X", "y", "message"), [
    (np.full((4, 3), np.nan, np.float32), np.zeros(4, int), "NaN or infinity in 4 of 4 rows"),
    (np.ones((4, 3), np.float32), np.zeros(3, int), "X has 4 rows and y has 3"),
    (np.ones((4, 3), np.float32), np.full(4, 2), "whole numbers from 0 to 1"),
])  # fmt: skip
def test_data_that_cannot_be_trained_on(X, y, message):
    trainer = make_trainer(mlp.MLP((3, 2), np.random.default_rng(0)), len(X), epochs=1)
    with pytest.raises(ValueError, match=message):
        trainer.fit(X, y, X, y)


def test_divergence_tells_where_and_what_to_do(digits):
    X, y = digits.train.X[:100].reshape(-1, 784), digits.train.y[:100]
    trainer = make_trainer(small_mlp(), 100, epochs=5, optimizer="sgd", learning_rate=0.1, schedule="constant")
    trainer.s.learning_rate = 1e30  # more than a flag can say
    with pytest.raises(runs.Diverged, match=r"at learning rate 1e\+30: lower --learning-rate, or set --max-grad-norm 1"):
        trainer.fit(X, y, X, y)


@pytest.mark.parametrize("options", [
    {"schedule": "linear", "warmup": 0.3, "input_dropout": 0.2, "dropout": 0.1, "ema_decay": 0.9, "norm": "batch"},
    {"optimizer": "nesterov", "schedule": "step", "learning_rate": 0.02, "norm": "layer", "max_grad_norm": 0.5},
    {"optimizer": "rmsprop", "schedule": "plateau", "patience": 2, "l1": 1e-5, "l2": 1e-4, "loss": "sigmoid"},
    {"optimizer": "momentum", "schedule": "exponential", "learning_rate": 0.02, "patience": 4, "ema_decay": 0.99},
    {"optimizer": "sgd", "schedule": "cosine", "learning_rate": 0.1, "activation": "tanh", "hidden": ()},
])  # fmt: skip
def test_resumed_after_any_epoch_it_ends_the_same(options, digits, tmp_path):
    X_val, X_eval = digits.val.X.reshape(-1, 784), digits.train.X[:100].reshape(-1, 784)
    s = settings.load(mlp, **({"hidden": (16, 8), "epochs": 5, "batch_size": 50} | options))

    def fresh():
        trainer = mlp.Trainer(*mlp.build(784, 10, s), s, len(digits.train.X))
        trainer.monitor = monitor.TrainingMonitor(trainer.model, X_val[:100], s)
        trainer.transform = lambda x: data.augment(x, trainer.rngs["augment"], True, 1, 3).reshape(len(x), -1)
        return trainer

    def fit(trainer, save_checkpoint=lambda: None):
        trainer.fit(digits.train.X, digits.train.y, X_val, digits.val.y, save_checkpoint=save_checkpoint,
                    train_eval=(X_eval, digits.train.y[:100]))  # fmt: skip
        trainer.history.pop("seconds")

    complete = fresh()
    fit(complete, lambda: files.save_weights(tmp_path / f"{complete.epoch}.safetensors", *complete.state_dict()))
    for epoch in range(1, complete.epoch + 1):  # after the last one, too: a run interrupted while it drew its figures
        resumed = fresh()
        resumed.load_state_dict(*files.load_weights(tmp_path / f"{epoch}.safetensors"))
        fit(resumed)
        assert np.array_equal(resumed.model.params, complete.model.params), epoch
        assert np.array_equal(resumed.model.buffers, complete.model.buffers)
        assert resumed.history == complete.history
        assert resumed.monitor.history == complete.monitor.history
