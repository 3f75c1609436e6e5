"""Where and how PyTorch computes: device, precision, distributed processes, random generators."""

if __name__ == "__main__":
    raise SystemExit("torch_cnn/devices.py is a module, not a script: cnn_feature_extraction.py uses it")

import copy
import math
import os
import time

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from support import settings
from torch_cnn.backbone import to_channels_last


def init_distributed():
    """(rank, world size) under torchrun, whose process group is joined at the first call; (0, 1) otherwise."""
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group()  # gloo between CPUs, NCCL between GPUs
    return dist.get_rank(), dist.get_world_size()


class Processes:
    """The processes that train together under torchrun: each takes a part of every batch. Without torchrun, this one."""

    def __init__(self):
        self.rank, self.world_size = init_distributed()

    def wrap(self, model):
        """The model as a training step calls it: the processes' gradients are averaged."""
        return DistributedDataParallel(model) if self.world_size > 1 else model

    def shard(self, batch):
        """(this process's part of a batch of indices, the factor by which its loss counts)."""
        shard = batch[self.rank :: self.world_size]
        return shard, len(shard) * self.world_size / len(batch)

    def sum_over_processes(self, *tensors):
        for tensor in tensors if self.world_size > 1 else ():
            dist.all_reduce(tensor)

    def same_everywhere(self, value):
        """The first process's value."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values)
        return values[0]


def pick_device(name):
    """The torch.device "cuda", "mps" or "cpu"; "auto" is the first of them that is available.

    Under torchrun, each process of a machine uses its own GPU. Raises settings.SettingError.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, is_available in available.items() if is_available)
    if not available[name]:
        raise settings.SettingError(f"--device {name}: not available on this machine or in this PyTorch; use auto or cpu")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if rank >= gpus:
            raise settings.SettingError(f"--device {name}: more processes than GPUs on this machine ({gpus}); lower "
                                        "torchrun's --nproc-per-node, or use cpu")  # fmt: skip
        torch.cuda.set_device(rank)
    return torch.device(name)


def pick_precision(name, model, device):
    """torch.float32 or torch.bfloat16. "auto" on a CPU with bfloat16 instructions times some training steps of both.

    Without such instructions bfloat16 is emulated and several times slower (pytorch issues 118499, 146508), and with them
    some builds are still slow (183815): hence the measurement. The fastest of six interleaved steps counts, since other
    work on the machine disturbs the mean. bfloat16 must be clearly faster: a small network would get now one, now the other.
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "mps":
        return torch.float32
    unknown = {"bf16": True}  # an older torch has no get_capabilities: the measurement decides
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else unknown
    if not any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "avx10_1", "bf16")):
        return torch.float32
    model, x, y = copy.deepcopy(model), torch.rand(128, *model.input_shape), torch.zeros(128, dtype=torch.long)
    fastest = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    for dtype in 6 * tuple(fastest):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss = F.cross_entropy(model(to_channels_last(x)), y)
        loss.backward()
        fastest[dtype] = min(fastest[dtype], time.perf_counter() - start)
    return torch.bfloat16 if fastest[torch.bfloat16] < 0.9 * fastest[torch.float32] else torch.float32


def generator(device, seed, *purpose):
    """A torch.Generator on the device; other whole numbers as its purpose give an independent one."""
    return torch.Generator(device).manual_seed(int(np.random.SeedSequence(seed, spawn_key=purpose).generate_state(1)[0]))
