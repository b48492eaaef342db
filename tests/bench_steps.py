"""What each step towards a faster training gains, on the reference rows: `python tests/bench_steps.py`.

First tokens a second, from the original's way to take a step to ours, one change after the other. Then what is learned
from as many rows: nats a reply after one short training, with one thing taken away each time.
"""

import dataclasses
import time

import torch
from bench_reference import REFERENCE, reference_rows
from torch import nn

from guppylm import train
from guppylm.device import keep_memory, pick_precision
from guppylm.model import GuppyLM, ModelConfig
from guppylm.tokenizer import PAD

CPU = torch.device("cpu")  # where the memory that is kept, and bfloat16, can be had or not
TIMED, WARM_UP = 6, 2  # steps
SHORT = train.TrainConfig(
    steps=150, batch_size=64, micro_batch=64, learning_rate=3e-3, warmup_steps=15, first_words=0.0, eval_every=150
)


@dataclasses.dataclass
class Way:
    """How to take a step."""

    everything: bool = True  # logits for all tokens, as for a loss on the message, too
    alike: bool = False  # rows of like length are computed together
    precision: torch.dtype = torch.float32
    ours: bool = False  # Muon, and AdamW in one kernel


def main() -> None:
    rows = reference_rows(REFERENCE)
    way, before = Way(), 0.0
    for name, change in (
        ("the original's way", {}),
        ("like lengths together", {"alike": True}),
        ("logits of the reply alone", {"everything": False}),
        ("memory is kept", keep_memory),
        ("matrix products in the chip's precision", {"precision": pick_precision(CPU)}),
        ("Muon, which takes longer and learns more", {"ours": True}),
    ):
        if callable(change):
            change()
        else:
            way = dataclasses.replace(way, **change)
        speed = tokens_a_second(rows, way)
        print(f"{name}: {speed:,.0f} tokens/s" + (f", {speed / before:.2f} times" if before else ""), flush=True)
        before = speed
    for name, change in (
        ("all of ours", None),
        ("AdamW alone", adamw_alone),
        ("embeddings at the rate of all others", even_rates),
        ("blocks that begin at random", random_blocks),
        ("token embeddings that begin small", small_embeddings),
    ):
        print(f"{name}: {learned(rows, change):.2f} nats a reply after {SHORT.steps} steps", flush=True)


def tokens_a_second(rows, way: Way) -> float:
    """Of steps that are taken in this way, in our batches."""
    config, model = train.TrainConfig(), GuppyLM(ModelConfig(vocab_size=rows.tok.vocab_size))
    state = train.start(model, config, way.precision)
    if not way.ours:
        state.optimizers = [torch.optim.AdamW(model.parameters(), lr=3e-4)]
    began, tokens = 0.0, 0
    for step, group in enumerate(train.batches(rows, dataclasses.replace(config, steps=WARM_UP + TIMED))):
        if step == WARM_UP:
            began, tokens = time.perf_counter(), 0
        tokens += sum(len(row.ids) for row in group)
        if way.alike:
            parts = list(train.micro_batches(group, config, CPU))
        else:
            size = config.micro_batch
            parts = [train.make_batch(group[i : i + size], CPU) for i in range(0, len(group), size)]
        for batch in parts:
            if way.everything:
                batch = batch._replace(counts=batch.targets != PAD)
            losses = train.token_losses(model, batch, way.precision)  # (N,)
            (losses.mean() / len(parts)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in state.optimizers:
            optimizer.step()
        model.zero_grad()
    return tokens / (time.perf_counter() - began)


def learned(rows, change) -> float:
    """Nats a reply on the evaluation rows after a short training of which something was changed."""
    torch.manual_seed(0)
    state = train.start(GuppyLM(ModelConfig(vocab_size=rows.tok.vocab_size)), SHORT, pick_precision(CPU))
    if change:
        change(state)
    *_, last = train.train(state, rows, SHORT)
    return last.evaluation["nats_per_reply"]


def adamw_alone(state: train.State) -> None:
    """All by AdamW, at a rate of 1e-3: more or less was worse (baseline.json)."""
    adamw, muon = state.optimizers
    adamw.add_param_group({"params": muon.param_groups[0]["params"], "weight_decay": SHORT.weight_decay})
    for group in adamw.param_groups:
        group["rate"] = 1e-3 / SHORT.learning_rate
    state.optimizers = [adamw]


def even_rates(state: train.State) -> None:
    state.optimizers[0].param_groups[0]["rate"] = 1.0


def random_blocks(state: train.State) -> None:
    for block in state.model.blocks:
        for layer in (block.attn.out, block.ffn.down):
            nn.init.normal_(layer.weight, std=0.02)


def small_embeddings(state: train.State) -> None:
    nn.init.normal_(state.model.tok_emb.weight, std=0.02)
    nn.init.normal_(state.model.pos_emb.weight, std=0.02)
    nn.init.ones_(state.model.norm.weight)


if __name__ == "__main__":
    main()
