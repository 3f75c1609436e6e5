"""docs/reading_the_plots.md: its commands parse, its figures are small, and the first loss is as it says."""

import math
import re
import shlex

import numpy as np
import pytest
from conftest import ROOT

import data
import mlp_from_scratch as mlp
import run

PAGE = (ROOT / "docs/reading_the_plots.md").read_text(encoding="utf-8")
PLAIN = re.search('^PLAIN="(.*)"$', PAGE, re.MULTILINE)[1]
COMMANDS = re.findall(r"^python mlp_from_scratch.py (\$PLAIN .*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_flags_that_exist(command):
    s = run.parse(shlex.split(command.replace("$PLAIN", PLAIN)), mlp, data, run)
    mlp.check_settings(s)
    assert (s.norm, s.schedule, s.ema_decay, s.flip) == ("none", "constant", 0, False)


def test_every_figure_is_shown_and_they_are_small():
    files = sorted((ROOT / "docs/figures").glob("*.png"))
    assert {path.name for path in files} == set(re.findall(r"\(figures/(.*?)\)", PAGE))
    assert sum(path.stat().st_size for path in files) < 400_000
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize(("options", "low", "high"), [({"init": "random"}, 2.30, 2.305), ({}, 2.60, 2.85)])
def test_the_first_loss(options, low, high):
    rng, losses = np.random.default_rng(0), []
    x, y = rng.standard_normal((1000, 784)), rng.integers(0, 10, 1000)
    norm = "none" if options else "batch"
    for _ in range(10):
        model = mlp.MLP((784, 256, 128, 10), rng, norm=norm, **options)
        losses.append(mlp.softmax_cross_entropy(model.forward(x, training=True), y)[0])
    assert low < np.mean(losses) < high
    assert math.isclose(math.log(10), 2.303, abs_tol=5e-4)
