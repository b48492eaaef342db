"""Which chip to compute on, and in which precision."""

import ctypes
import math
import platform
import time
from contextlib import AbstractContextManager, nullcontext

import torch


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name, or with "auto" the best there is; on a CPU, memory is kept from now on.

    ValueError if it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # "meta", say, can't be read back
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} can't be used here; try auto, cpu, cuda or mps") from error
    if name == "cpu":
        keep_memory()
    return torch.device(name)


def keep_memory() -> None:
    """Make glibc, the C library of most Linuxes, keep the memory of a tensor that is gone for the next one.

    By default it returns large blocks to the system, which hands them out again page by page, each filled with zeros.
    Training makes new tensors in every layer of every step, and would spend much of its time waiting for pages.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, -1)  # never give memory back
        libc.mallopt(mmap_max, 0)  # and take no block from outside the heap


def pick_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the chip really computes with it, float16 on older CUDA chips, else float32.

    A T4 (compute capability 7.5) has no bfloat16 units; `torch.cuda.is_bf16_supported()` says yes all the same,
    because it counts emulation, which is slow. Metal trains in float32: half precision has been silently wrong there.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if device.type == "cpu":
        half, full = cpu_seconds(torch.bfloat16, torch.float32)
        return torch.bfloat16 if half < 0.8 * full else torch.float32
    return torch.float32


def cpu_seconds(*dtypes: torch.dtype) -> list[float]:
    """The time of a matrix product on the CPU, about as large as in training, in each precision: the best of ten.

    They take turns, so that whatever else the machine is doing slows them alike.
    """
    factors = [(torch.ones(1024, 384, dtype=dtype), torch.ones(384, 1536, dtype=dtype)) for dtype in dtypes]
    best = [math.inf] * len(dtypes)
    for _ in range(10):  # the first one warms up, and is not the best
        for i, (a, b) in enumerate(factors):
            start = time.perf_counter()
            a @ b  # (1024, 384) @ (384, 1536) -> (1024, 1536)
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def mixed_precision(device: torch.device, precision: torch.dtype) -> AbstractContextManager:
    """Matrix products in `precision`; the weights stay in float32, and on a GPU so does what needs the digits."""
    return nullcontext() if precision == torch.float32 else torch.autocast(device.type, dtype=precision)
