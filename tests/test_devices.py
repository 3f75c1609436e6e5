"""Where PyTorch computes: device, precision, random generators, and the shares of torchrun's processes."""

import itertools

import pytest
import torch

from support import settings
from torch_cnn import backbone, devices

CPU = torch.device("cpu")


def small():
    return backbone.CNN((4, 6), (1, 2), generator=torch.Generator().manual_seed(0))


def test_precision_is_what_was_asked_for_or_measured():
    model = small()
    assert devices.pick_precision("bfloat16", model, CPU) is torch.bfloat16
    assert devices.pick_precision("float32", model, CPU) is torch.float32
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chosen = devices.pick_precision("auto", model, CPU)
    capabilities = torch.cpu.get_capabilities()
    if not any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "avx10_1", "bf16")):
        assert chosen is torch.float32  # never emulated
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_short_disturbance_does_not_choose_the_precision(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    for ratio, expected in ((3, torch.bfloat16), (1 / 3, torch.float32)):  # seconds of a float32 step over bfloat16's
        steps = itertools.cycle([ratio, 1, ratio, 100, 50, 1])
        clock = itertools.accumulate(itertools.chain.from_iterable((0, step) for step in steps))  # before, after
        monkeypatch.setattr(devices.time, "perf_counter", lambda clock=clock: next(clock))
        assert devices.pick_precision("auto", small(), CPU) is expected


@pytest.mark.parametrize("available", [(), ("mps",), ("cuda",), ("cuda", "mps")])
def test_auto_is_the_first_device_that_is_available(available, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in available)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in available)
    assert devices.pick_device("auto").type == (available or ("cpu",))[0]
    assert devices.pick_device("cpu") == CPU
    for name in {"cuda", "mps"}.difference(available):
        with pytest.raises(settings.SettingError, match=f"--device {name}: not available"):
            devices.pick_device(name)


def test_more_processes_than_gpus_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(settings.SettingError, match=r"more processes than GPUs on this machine \(2\)"):
        devices.pick_device("cuda")


def test_generators_are_independent_and_reproducible():
    purposes = [(0,), (0, 0), (0, 1), (0, 1, 1), (1,), (1, 0), (1, 1)]
    drawn = [tuple(torch.rand(3, generator=devices.generator("cpu", *purpose)).tolist()) for purpose in purposes]
    assert len(set(drawn)) == len(purposes)
    assert drawn == [tuple(torch.rand(3, generator=devices.generator("cpu", *purpose)).tolist()) for purpose in purposes]


def test_without_torchrun_there_is_one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert devices.init_distributed() == (0, 1)
    processes, model, value = devices.Processes(), small(), torch.ones(2)
    assert processes.wrap(model) is model
    batch, loss_scale = processes.shard(torch.arange(7))
    assert (batch.tolist(), loss_scale) == (list(range(7)), 1)
    processes.sum_over_processes(value)
    assert value.tolist() == [1, 1]
    assert processes.same_everywhere("x") == "x"


def test_processes_share_each_batch_and_their_mean_gradient_is_the_batchs(monkeypatch):
    batch, losses = torch.arange(7), torch.arange(7.0)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(devices, "init_distributed", lambda rank=rank: (rank, 3))
        shares.append(devices.Processes().shard(batch))
    assert sorted(torch.cat([shard for shard, _ in shares]).tolist()) == batch.tolist()
    mean = sum(losses[shard].mean() * loss_scale for shard, loss_scale in shares) / 3  # as DistributedDataParallel averages
    assert mean == pytest.approx(losses.mean())
