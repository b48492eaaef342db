"""Training in several processes at once, which torchrun starts and connects. For a process alone, they change nothing.

Each process holds the whole model and reads its share of the rows of a step. Before the optimizers step, the gradients
of all are averaged, so all copies of the model stay equal.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def join(device: torch.device) -> torch.device:
    """Meet the other processes if torchrun started this one; returns the device that is this process's own.

    ValueError if there are fewer GPUs than processes, or if the GPU is a Mac's.
    """
    if "WORLD_SIZE" not in os.environ:
        return device
    if device.type == "cuda":
        number, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= gpus:
            raise ValueError(f"--nproc-per-node {os.environ['LOCAL_WORLD_SIZE']}: this machine has GPUs for {gpus}")
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    if device.type == "mps":
        raise ValueError("torchrun can't use a Mac's GPU: leave torchrun out, or add --device cpu")
    # DistributedDataParallel imports it later, and then its functions would hold the group for ever: see `leave`.
    import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def leave(state) -> None:
    """Part from the other processes at the end, once all are there: the first one is still saving.

    The group's threads end with the last thing that holds it, the state's wrapped model. One that is still at work when
    Python has gone would abort the process.
    """
    if _joined():
        dist.barrier()
        state.wrapped = state.model
        dist.destroy_process_group()


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process, from 0. Number 0 is the one that prints and writes."""
    return dist.get_rank() if _joined() else 0


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _joined() else 1


def wrap(model: nn.Module) -> nn.Module:
    """The model, such that a backward pass through it averages the gradients of all processes."""
    return DistributedDataParallel(model) if _joined() else model


def gradients_meet(model: nn.Module, now: bool) -> AbstractContextManager:
    """Whether the backward pass inside exchanges gradients: of several that accumulate, only the last has to."""
    return nullcontext() if now or not _joined() else model.no_sync()


def agreed(value: object) -> object:
    """The value that process 0 brings. Clocks differ, and what all must do alike can't be read from each one's own."""
    values = [value]
    if _joined():
        dist.broadcast_object_list(values)
    return values[0]


def total(value: float, device: torch.device) -> float:
    """The sum of the values that the processes bring."""
    if not _joined():
        return value
    values = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(values)
    return values.item()
