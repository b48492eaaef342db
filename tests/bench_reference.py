"""How much sooner our training reaches what the original's reached on its own rows: `python tests/bench_reference.py`.

The original's run is scaled to this machine: 50 steps of the same model in its settings, times its number of steps.
Ours counts all but the evaluations, with which the crossing is found.
"""

import argparse
import gzip
import json
import random
import shutil
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from guppylm import corpus, runs, train
from guppylm.device import pick_device, pick_precision
from guppylm.model import GuppyLM, ModelConfig
from guppylm.tokenizer import PAD

REFERENCE = Path(__file__).parent.parent.parent / "shared" / "reference"
TIMED, WARM_UP = 50, 5  # steps


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--reference", type=Path, default=REFERENCE, help="folder of baseline.json and the rows")
    options.add_argument("--steps", type=int, default=720)
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--learning-rate", type=float, default=3e-3)
    args = options.parse_args()
    baseline = json.loads((args.reference / "baseline.json").read_text(encoding="utf-8"))
    rows = reference_rows(args.reference)
    goal = baseline["best_nats_per_reply"]
    theirs = baseline["settings"]["steps"] * original_step(rows, baseline["settings"])
    device = pick_device()  # from here on memory is kept, so the original's steps come before
    print(f"the original's settings: {theirs:,.0f} s for {goal} nats a reply", flush=True)
    config = train.TrainConfig(
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        first_words=0.0,  # the goal is counted over all tokens alike
        eval_every=max(1, args.steps // 20),
    )
    torch.manual_seed(config.seed)
    model = GuppyLM(ModelConfig(vocab_size=rows.tok.vocab_size)).to(device)
    state = train.start(model, config, pick_precision(device))
    for progress in train.train(state, rows, config):
        if progress.evaluation:
            spent = sum(s for what, s in state.clock.seconds.items() if what != "evaluation")
            nats = progress.evaluation["nats_per_reply"]
            print(f"step {progress.step}: {nats:.3f} nats a reply after {spent:.0f} s", flush=True)
            if nats < goal:
                print(f"the original's best is passed after {spent:.0f} s: {theirs / spent:.1f} times sooner")
                break
    else:
        print("the original's best was not reached")
    print(runs.describe_time(state.clock.seconds))


def reference_rows(folder: Path) -> corpus.Corpus:
    """The rows that the original's generator made."""
    with tempfile.TemporaryDirectory() as name:
        for part in ("train.jsonl", "eval.jsonl"):
            with gzip.open(folder / f"{part}.gz") as packed, (Path(name) / part).open("wb") as file:
                shutil.copyfileobj(packed, file)
        return corpus.read(Path(name))


def original_step(rows: corpus.Corpus, settings: dict) -> float:
    """Seconds of a step as the original takes it: fp32, AdamW, all tokens, rows in any order, the full logits."""
    gpu = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = gpu or torch.device("cpu")  # the one that pick_device takes
    model = GuppyLM(ModelConfig(vocab_size=rows.tok.vocab_size, dropout=settings["dropout"])).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["learning_rate"], betas=(0.9, 0.95))
    shuffled = random.Random(0).sample(rows.train, settings["batch_size"] * (TIMED + WARM_UP))
    began = 0.0
    for step in range(TIMED + WARM_UP):
        if step == WARM_UP:
            began = time.perf_counter()
        group = shuffled[step * settings["batch_size"] : (step + 1) * settings["batch_size"]]
        batch = train.make_batch(group, device)
        logits = model(batch.inputs)  # (B, T, V)
        loss = F.cross_entropy(logits.transpose(1, 2), batch.targets, ignore_index=PAD)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["grad_clip"])
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
    return (time.perf_counter() - began) / TIMED


if __name__ == "__main__":
    main()
