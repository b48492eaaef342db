"""How fast training is here: seconds a step, tokens a second, the share of the chip's peak, and where the time goes."""

import time
from dataclasses import replace

import torch
from torch.profiler import ProfilerActivity

from guppylm import parallel
from guppylm import train as training
from guppylm.corpus import Corpus
from guppylm.train import State, TrainConfig

WARM_UP, TIMED = 3, 8  # steps
T4 = 65e12  # operations a second in float16, by the data sheet of the chip that Colab lends


def seconds(state: State, corpus: Corpus, config: TrainConfig) -> tuple[float, float]:
    """Seconds of a step and of an evaluation, the same in all processes. Afterwards the state is of no more use."""
    began = 0.0
    for step, rows in enumerate(training.batches(corpus, replace(config, steps=WARM_UP + TIMED))):
        if step == WARM_UP:
            began = time.perf_counter()
        training.backward(state, rows, config)
        training.update(state, config)
    state.clock.lap("steps")  # waits for a GPU to finish
    per_step = (time.perf_counter() - began) / TIMED
    began = time.perf_counter()
    training.total_nats(state, corpus.evaluation, config)
    times = (per_step, time.perf_counter() - began)
    per_step, per_evaluation = (parallel.total(t, state.device) / parallel.size() for t in times)  # their mean
    return per_step, per_evaluation


def flops(state: State, rows: list) -> float:
    """Floating-point operations that the model needs to learn from the rows.

    A product with a matrix of n numbers takes 2 n a token forward, and twice that backward. The blocks' matrices see
    every token, the head those that bear loss. Attention's own products and the optimizers are left out.
    """
    matrices = sum(p.numel() for p in state.model.blocks.parameters() if p.dim() == 2)
    head = state.model.lm_head.weight.numel()
    return 6 * sum(matrices * len(row.ids) + head * row.reply_tokens for row in rows)


def peak(device: torch.device, precision: torch.dtype) -> float:
    """Operations a second of one large matrix product, the best of six: what the chip can do, measured."""
    n, best = (8192 if device.type == "cuda" else 2048), 0.0
    a = torch.ones(n, n, device=device, dtype=precision)
    for _ in range(6):
        began = time.perf_counter()
        (a @ a)[0, 0].item()  # to read a number is to wait for it
        best = max(best, 2 * n**3 / (time.perf_counter() - began))
    return best


def profile(state: State, corpus: Corpus, config: TrainConfig) -> str:
    """A report of some steps: speed, share of the peak, what the whole run will take, and the slowest operations."""
    per_step, per_evaluation = seconds(state, corpus, config)
    rows = corpus.train[: 20 * config.batch_size]
    share_of_rows = config.batch_size / len(rows)
    tokens, work = sum(len(row.ids) for row in rows) * share_of_rows, flops(state, rows) * share_of_rows
    most = peak(state.device, state.precision)
    steps = config.steps + config.copy_steps / 2  # one of the lesson reads about half as many tokens
    whole = steps * per_step + config.steps / config.eval_every * per_evaluation
    on_t4 = steps * per_step * most / T4
    activities = [ProfilerActivity.CPU]
    if state.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        training.backward(state, corpus.train[: config.batch_size], config)
        training.update(state, config)
    precision = str(state.precision).removeprefix("torch.")
    by = "self_cuda_time_total" if state.device.type == "cuda" else "self_cpu_time_total"
    return "\n".join(
        [
            f"{state.device} in {precision}: {per_step:.3f} s a step, {tokens / per_step:,.0f} tokens/s",
            f"{work / per_step / 1e12:.2f} Tflop/s of {most / 1e12:.2f} that one large matrix product reaches here: "
            f"{work / per_step / most:.0%}",
            f"the whole run: {config.copy_steps:,} steps of the lesson and {config.steps:,} on conversations, "
            f"{work * steps / 1e15:.2f} Pflop, {whole / 60:.1f} min here",
            f"a T4 at the same share of its {T4 / 1e12:.0f} Tflop/s: {on_t4 / 60:.1f} min, or longer where a GPU waits "
            "for its next operation, as it often does with a model this small",
            profiler.key_averages().table(sort_by=by, row_limit=12, max_name_column_width=40),
        ]
    )
