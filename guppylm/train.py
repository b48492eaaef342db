"""Training: batches, the learning-rate schedule, one step, evaluation, and the loop that puts them together.

Shapes: B rows of a batch, T time (position), V vocabulary, N the positions of a batch that bear loss.
What `parallel` does can be skipped at first reading: in one process rank() is 0, size() is 1, and its other functions
change nothing.
"""

import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from guppylm import parallel
from guppylm.corpus import Corpus, Row
from guppylm.device import mixed_precision
from guppylm.model import GuppyLM
from guppylm.muon import Muon
from guppylm.tokenizer import PAD

ADVICE = "begin again with a lower --learning-rate and another --out; the weights that were saved last are good"


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults made the shipped fish."""

    steps: int = 2500  # optimizer steps
    copy_steps: int = 250  # before them, those of copying.lesson
    batch_size: int = 128  # rows of a step: enough that Muon's own matrix products are not most of it
    micro_batch: int = 32  # rows computed at once; the gradients of several add up to the batch's (accumulation)
    learning_rate: float = 4e-3  # at its highest, after the warm-up
    embedding_rate: float = 2.0  # times that for the embeddings: most tokens are rare and must learn when they occur
    warmup_steps: int = 20  # small steps first: AdamW has yet to learn how large the gradients are
    weight_decay: float = 0.1  # pulls matrices towards zero; biases and norms are left alone
    beta2: float = 0.95  # how long AdamW remembers squared gradients: about 1 / (1 - beta2) = 20 steps
    first_words: float = 1.0  # token i of a reply weighs 1 / i ** first_words at the start, and 1 at the end
    grad_clip: float = 1.0  # longest gradient: one odd batch must not throw the model off
    eval_every: int = 250  # steps
    seed: int = 0  # of the rows, their order, the lesson and the first weights

    def __post_init__(self):
        for name in ("steps", "batch_size", "micro_batch", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


class Batch(NamedTuple):
    """Rows side by side, padded to the longest. At each position the model is to predict the target."""

    inputs: torch.Tensor  # (B, T) token ids, PAD after the end of a row
    targets: torch.Tensor  # (B, T) the ids one position later
    counts: torch.Tensor  # (B, T) True where the target belongs to the reply; only there is a loss


def make_batch(rows: list[Row], device: torch.device) -> Batch:
    """Pad rows to a Batch.

    The loss covers the reply and its <|im_end|>. To predict the message too costs as much again at the output head,
    and in a trial (400 steps) the replies were learned no faster for it.
    """
    B, T = len(rows), max(len(row.ids) for row in rows) - 1
    ids, counts = torch.full((B, T + 1), PAD), torch.zeros(B, T, dtype=torch.bool)
    for b, row in enumerate(rows):
        ids[b, : len(row.ids)] = torch.tensor(row.ids)
        counts[b, row.prompt - 1 : len(row.ids) - 1] = True  # position prompt - 1 predicts the reply's first token
    return Batch(ids[:, :-1].to(device), ids[:, 1:].to(device), counts.to(device))  # (B, T + 1) -> (B, T) each


def batches(corpus: Corpus, config: TrainConfig, start: int = 0) -> Iterator[list[Row]]:
    """The rows of each step from `start` on: pass after pass, each with its own rows in an order of its own.

    Both depend on nothing but seed and pass, so a run that is resumed meets the rows it would have met.
    """
    per_pass = max(1, len(corpus.train) // config.batch_size)
    order: list[Row] = []
    for step in range(start, config.steps):
        if step == start or step % per_pass == 0:
            order = list(corpus.rows(step // per_pass))
            random.Random(f"{config.seed}/{step // per_pass}").shuffle(order)
        at = step % per_pass * config.batch_size
        yield order[at : at + config.batch_size]


def micro_batches(rows: list[Row], config: TrainConfig, device: torch.device) -> Iterator[Batch]:
    """The rows of a step in smaller batches of like length, so that little is padding.

    Length goes with topic, and steps on rows of one kind learn badly; here the step itself stays a fair sample.
    """
    rows = sorted(rows, key=lambda row: len(row.ids))
    for i in range(0, len(rows), config.micro_batch):
        yield make_batch(rows[i : i + config.micro_batch], device)


class Diverged(ValueError):
    """A loss or gradient that is no finite number any more: one line that says where, and what to try."""


class Clock:
    """Where the time goes: `lap` counts what has passed since the lap before as time for something."""

    def __init__(self, device: torch.device):
        self.device, self.seconds, self.last = device, Counter(), time.perf_counter()

    def lap(self, what: str) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)  # a GPU works behind our back: wait until it has finished
        now = time.perf_counter()
        self.seconds[what] += now - self.last
        self.last = now


@dataclass
class State:
    """All that changes while training."""

    model: GuppyLM
    wrapped: nn.Module  # the model, such that a backward pass also averages over processes
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    precision: torch.dtype
    clock: Clock
    step: int = 0
    losses: list[float] = field(default_factory=list)  # of the steps since the last evaluation
    history: list[dict] = field(default_factory=list)  # one row an evaluation

    @property
    def device(self) -> torch.device:
        return self.model.device


def start(model: GuppyLM, config: TrainConfig, precision: torch.dtype) -> State:
    """A model about to be trained, with its optimizers: Muon for the blocks' matrices, AdamW for all the rest."""
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    embeddings = [model.tok_emb.weight, model.pos_emb.weight]
    vectors = [p for p in model.parameters() if p.dim() == 1]  # biases and norms: pulling them to 0 gains nothing
    adamw_groups = [
        {"params": embeddings, "weight_decay": config.weight_decay, "rate": config.embedding_rate},
        {"params": vectors, "weight_decay": 0.0, "rate": 1.0},
    ]
    muon_groups = [{"params": matrices, "rate": 1.0}]
    dtype = torch.bfloat16 if precision == torch.bfloat16 else torch.float32
    optimizers = [
        torch.optim.AdamW(adamw_groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=True),
        Muon(muon_groups, lr=config.learning_rate, weight_decay=config.weight_decay, dtype=dtype),
    ]
    # Gradients below 6e-8 are zero in float16. The scaler multiplies the loss by a large number, so that they
    # survive, and divides it out again before the step. bfloat16 has float32's range and needs none.
    scaler = torch.amp.GradScaler(enabled=precision == torch.float16)
    return State(model, parallel.wrap(model), optimizers, scaler, precision, Clock(model.device))


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine wave down to nearly 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)  # from 0 to 1
    return config.learning_rate * (1 + math.cos(math.pi * done)) / 2


def token_losses(model: nn.Module, batch: Batch, precision: torch.dtype) -> torch.Tensor:
    """(N,) in nats: -ln of the probability that the model gives to each target that counts."""
    with mixed_precision(batch.inputs.device, precision):
        logits = model(batch.inputs, batch.counts)  # (N, V): none where there is no loss
    return F.cross_entropy(logits.float(), batch.targets[batch.counts], reduction="none")


def emphasis(step: int, config: TrainConfig) -> float:
    """The e in the weight 1 / i ** e of a reply's token i: first_words at the beginning, 0 at the end.

    A reply's first words say what the message was taken for, and the rest follows from them. They are two tokens
    in twenty, so with equal weights they would be two twentieths of the gradient. So first comes what is meant, and
    then how to say it. A perfect model is the same with any weights: nothing beats the true probabilities.
    """
    return config.first_words * (1 - step / config.steps)


def token_weights(batch: Batch, e: float) -> torch.Tensor:
    """(N,) how much each target that counts weighs: 1 / i ** e for token i of a reply."""
    place = batch.counts.cumsum(dim=1)[batch.counts]  # (B, T) -> (N,): in each reply 1, 2, 3, ...
    return place**-e


def backward(state: State, rows: list[Row], config: TrainConfig) -> float:
    """Gradients of the rows' weighted mean loss, added up over micro-batches; returns unweighted nats a reply token.

    Diverged if that is not finite. Of n processes that train together, each takes every n-th row.
    """
    tokens, e = sum(row.reply_tokens for row in rows), emphasis(state.step, config)
    weight = sum(i**-e for row in rows for i in range(1, row.reply_tokens + 1))  # of the whole step
    own = rows[parallel.rank() :: parallel.size()]
    parts, total = list(micro_batches(own, config, state.device)), 0.0
    state.clock.lap("data")
    for i, batch in enumerate(parts, start=1):
        with parallel.gradients_meet(state.wrapped, i == len(parts)):
            losses = token_losses(state.wrapped, batch, state.precision)  # (N,)
            weighted = (losses * token_weights(batch, e)).sum() / weight
            state.clock.lap("forward")
            # What is averaged over n processes, times n, is their sum: the same as for one that read all rows.
            state.scaler.scale(weighted * parallel.size()).backward()
        total += losses.sum().item() / tokens
        state.clock.lap("backward")
    loss = parallel.total(total, state.device)
    if not math.isfinite(loss):
        raise Diverged(f"step {state.step + 1}: the loss is {loss}: {ADVICE}")
    return loss


def update(state: State, config: TrainConfig) -> float:
    """One step of the optimizers along the gradients; returns the length they had before clipping.

    If that is not finite, no weight is changed. Without a scaler it is Diverged; with one, its factor was too large
    for float16 and is halved, and training goes on.
    """
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(state.step, config) * group["rate"]
        state.scaler.unscale_(optimizer)
    length = float(torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.grad_clip))
    if not math.isfinite(length) and not state.scaler.is_enabled():
        raise Diverged(f"step {state.step + 1}: the gradients are {length}: {ADVICE}")
    if math.isfinite(length):
        for optimizer in state.optimizers:
            state.scaler.step(optimizer)
    state.scaler.update()
    state.model.zero_grad(set_to_none=True)
    state.step += 1
    return length


@torch.no_grad()
def total_nats(state: State, rows: list[Row], config: TrainConfig) -> float:
    """Nats over all reply tokens of the rows, each reply's <|im_end|> included."""
    state.model.eval()
    parts = micro_batches(rows[parallel.rank() :: parallel.size()], config, state.device)
    total = sum(token_losses(state.model, batch, state.precision).sum().item() for batch in parts)
    state.model.train()
    return parallel.total(total, state.device)


def unsure(loss: float) -> str:
    """A loss in nats a token, as a number of choices that a reader can picture."""
    return f"as unsure as choosing among {math.exp(min(loss, 700)):.2f} tokens"  # e^710 is more than a float holds


class Progress(NamedTuple):
    """What `train` yields after each step."""

    step: int  # steps done
    loss: float  # nats a reply token on the rows of this step
    learning_rate: float
    grad_norm: float
    seconds: float  # since training started or resumed
    steps_run: int  # in these seconds
    tokens_run: int  # read in these seconds, padding not counted
    evaluation: dict | None  # every `eval_every` steps and at the end: the new row of the history


def train(state: State, corpus: Corpus, config: TrainConfig) -> Iterator[Progress]:
    """The training loop: from state.step on, yields a Progress after every step. Diverged if the loss is not finite."""
    state.model.train()
    began, tokens_run = time.perf_counter(), 0
    for steps_run, rows in enumerate(batches(corpus, config, state.step), start=1):
        lr = learning_rate(state.step, config)
        loss = backward(state, rows, config)
        grad_norm = update(state, config)
        state.losses.append(loss)
        state.clock.lap("optimizer")
        evaluation = None
        if state.step % config.eval_every == 0 or state.step == config.steps:
            evaluation = history_row(state, corpus, config)
            state.history.append(evaluation)
            state.losses = []
            state.clock.lap("evaluation")
        tokens_run += sum(len(row.ids) for row in rows)
        yield Progress(state.step, loss, lr, grad_norm, time.perf_counter() - began, steps_run, tokens_run, evaluation)
        state.clock.lap("printing and saving")


def history_row(state: State, corpus: Corpus, config: TrainConfig) -> dict:
    """What is kept of an evaluation. All losses are in nats a token, except nats_per_reply."""
    replies, tokens = len(corpus.evaluation), corpus.reply_tokens
    total = total_nats(state, corpus.evaluation, config)
    return {
        "step": state.step,
        "train_loss": sum(state.losses) / len(state.losses),  # mean since the evaluation before
        "eval_loss": total / tokens,
        "nats_per_reply": total / replies,
        "floor": None if corpus.floor is None else corpus.floor * replies / tokens,
    }
