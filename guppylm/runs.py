"""A training run on disk: its checkpoint, its history, and the state from which it can go on."""

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path

import torch

from guppylm import checkpoint
from guppylm.corpus import Corpus
from guppylm.train import Progress, State, TrainConfig


def save(folder: Path, state: State, corpus: Corpus, config: TrainConfig, record: dict) -> None:
    """Write the model as a checkpoint, its history, and the state that `resume` needs."""
    last = state.history[-1]
    losses = {name: last[name] for name in ("step", "eval_loss", "floor")}
    training = {**record["training"], **asdict(config), **losses, "precision": str(state.precision)}
    checkpoint.save(folder, state.model, corpus.tok, {**record, "training": training})
    history = "".join(json.dumps(row) + "\n" for row in state.history)
    checkpoint.write_text(folder / "history.jsonl", history)
    kept = {
        "model": state.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in state.optimizers],
        "scaler": state.scaler.state_dict(),
        "step": state.step,
        "history": state.history,
        "run": fingerprint(corpus, config),
    }
    checkpoint.write_whole(folder / "state.pt", lambda part: torch.save(kept, part))


def resume(folder: Path, state: State, corpus: Corpus, config: TrainConfig) -> None:
    """Bring `state` to where the run in `folder` was last saved. ValueError where that was another run."""
    kept = checkpoint.read_tensors(folder / "state.pt")
    for name, value in fingerprint(corpus, config).items():
        if kept["run"].get(name) != value:
            raise ValueError(f"{folder}: can't resume: {name} was {kept['run'].get(name)}, now it is {value}")
    state.model.load_state_dict(kept["model"])
    for optimizer, values in zip(state.optimizers, kept["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    state.scaler.load_state_dict(kept["scaler"])
    state.step, state.history = kept["step"], kept["history"]


def fingerprint(corpus: Corpus, config: TrainConfig) -> dict:
    """What has to be the same when a run goes on."""
    rows = hashlib.sha256(repr((corpus.train, corpus.evaluation)).encode()).hexdigest()
    return {**asdict(config), "rows and tokenizer": rows[:16]}


def describe(progress: Progress, config: TrainConfig) -> str:
    """An evaluation as a line to read while waiting."""
    row = progress.evaluation
    floor = "" if row["floor"] is None else f", floor {row['floor']:.3f}"
    left = progress.seconds / progress.steps_run * (config.steps - progress.step) / 60
    return (
        f"step {progress.step}/{config.steps}: loss {row['eval_loss']:.3f}, as unsure as choosing among "
        f"{math.exp(row['eval_loss']):.1f} tokens (training {row['train_loss']:.3f}{floor}); "
        f"{progress.tokens_run / progress.seconds:,.0f} tokens/s, {left:.0f} min left"
    )
