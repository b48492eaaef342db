"""A training run on disk: its checkpoint, its history, and the state from which it can go on."""

import hashlib
import json
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch

from guppylm import checkpoint
from guppylm.corpus import Corpus
from guppylm.device import pick_precision
from guppylm.train import Progress, State, TrainConfig, unsure


def save(folder: Path, state: State, corpus: Corpus, config: TrainConfig, record: dict) -> None:
    """Write the model as a checkpoint with its history, after an evaluation, and the state that `resume` needs.

    The state comes last: a run that dies in between goes on from the state before, and writes the rest again.
    """
    last = state.history[-1]
    losses = {name: last[name] for name in ("step", "eval_loss", "floor")}
    origin = {"precision": str(state.precision), "rows_digest": corpus.digest}
    training = {**record["training"], **asdict(config), **losses, **origin}
    (folder / "evaluation.json").unlink(missing_ok=True)  # it was of the weights that are replaced now
    checkpoint.save(folder, state.model, corpus.tok, {**record, "training": training})
    history = "".join(json.dumps(row) + "\n" for row in state.history)
    checkpoint.write_text(folder / "history.jsonl", history)
    save_state(folder, state, corpus, config)


def save_state(folder: Path, state: State, corpus: Corpus, config: TrainConfig) -> None:
    """Write state.pt: all that it takes to go on as if nothing had happened."""
    kept = {
        "config": asdict(config),
        "run": fingerprint(corpus),
        "device": state.device.type,
        "precision": state.precision,
        "model": state.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in state.optimizers],
        "scaler": state.scaler.state_dict(),
        "step": state.step,  # with the config's seed, also the place in the data
        "losses": state.losses,
        "history": state.history,
        "random": torch.get_rng_state(),  # dropout draws from these
        "random_cuda": torch.cuda.get_rng_state_all() if state.device.type == "cuda" else [],
    }
    checkpoint.write_tensors(folder / "state.pt", kept)


def saved_config(folder: Path, changes: dict) -> TrainConfig:
    """The settings of the run in `folder`. ValueError if `changes` asks for others, or if the code has others by now.

    Another micro-batch is allowed: the gradients are the same but for rounding, and a run may have stopped for memory.
    """
    kept = checkpoint.read_tensors(folder / "state.pt").get("config", {})
    if kept.keys() != TrainConfig.__annotations__.keys():
        raise ValueError(f"{folder}: can't resume: another version of this program saved it; choose another --out")
    for name, value in changes.items():
        if name != "micro_batch" and kept[name] != value:
            raise ValueError(f"{folder}: can't resume: {name} was {kept[name]}, now it is {value}")
    return TrainConfig(**kept | changes)


def saved_precision(folder: Path, device: torch.device) -> torch.dtype:
    """The precision of the run in `folder`. On another kind of device than before it is that device's own.

    A GPU always has its own, for the next one may lack what the last one had; a CPU is not asked by the clock again.
    """
    kept = checkpoint.read_tensors(folder / "state.pt")
    same = kept["device"] == device.type and device.type != "cuda"
    return kept["precision"] if same else pick_precision(device)


def resume(folder: Path, state: State, corpus: Corpus) -> None:
    """Bring `state` to where the run in `folder` was last saved. ValueError if that was another run."""
    kept = checkpoint.read_tensors(folder / "state.pt")
    for name, value in fingerprint(corpus).items():
        if kept["run"][name] != value:
            raise ValueError(f"{folder}: can't resume: the {name} changed since this run began; choose another --out")
    state.model.load_state_dict(kept["model"])
    for optimizer, values in zip(state.optimizers, kept["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    if kept["scaler"]:  # empty where the run had no need of one, on another kind of device
        state.scaler.load_state_dict(kept["scaler"])
    state.step, state.losses, state.history = kept["step"], kept["losses"], kept["history"]
    torch.set_rng_state(kept["random"])
    if state.device.type == "cuda" and len(kept["random_cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(kept["random_cuda"])


def fingerprint(corpus: Corpus) -> dict[str, str]:
    """What has to be the same when a run goes on, besides its config."""
    parts = {"rows (the persona, --data or --rows)": corpus.digest, "tokenizer": corpus.tok.to_json()}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in parts.items()}


def fit(config: TrainConfig, seconds: float, per_step: float, per_evaluation: float) -> TrainConfig:
    """The config with as many steps as fit into the seconds, evaluated ten times, after the lesson in copying.

    The lesson is left out if it would take more than half as many steps as the training. One of its steps reads about
    half as many tokens as a step on conversations, and counts as half.
    """
    steps = max(1, int((seconds - 10 * per_evaluation) / per_step))
    after_lesson = max(1, steps - config.copy_steps // 2)
    if after_lesson < 2 * config.copy_steps:
        config = replace(config, steps=steps, copy_steps=0)
    else:
        config = replace(config, steps=after_lesson)
    return replace(suited(config), eval_every=max(1, math.ceil(config.steps / 10)))


def suited(config: TrainConfig) -> TrainConfig:
    """The config for a run that may be short: at most a tenth of it warm-up, and no lesson longer than half of it."""
    lesson = config.copy_steps if config.steps >= 2 * config.copy_steps else 0
    return replace(config, warmup_steps=min(config.warmup_steps, config.steps // 10), copy_steps=lesson)


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Inside, Ctrl-C only makes a note in the list, so that the program can stop between two steps.

    A second Ctrl-C stops it at once.
    """
    caught: list[int] = []

    def catch(number, frame):
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = signal.signal(signal.SIGINT, catch)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, before)


def minutes_left(progress: Progress, config: TrainConfig) -> float:
    """How long the steps that are left will take, if they are as fast as those so far."""
    return progress.seconds / progress.steps_run * (config.steps - progress.step) / 60


def describe(progress: Progress, config: TrainConfig) -> str:
    """An evaluation as a line to read while waiting."""
    row, floor = progress.evaluation, progress.evaluation["floor"]
    above = "" if floor is None else f", {row['eval_loss'] - floor:.3f} above the floor"
    learned = f"training {row['train_loss']:.3f}"
    if floor is not None and row["train_loss"] < floor:
        learned += ", under the floor: memorisation"
    return (
        f"step {progress.step}/{config.steps}: loss {row['eval_loss']:.3f}{above}, {unsure(row['eval_loss'])} "
        f"({learned}); {progress.tokens_run / progress.seconds:,.0f} tokens/s, "
        f"{minutes_left(progress, config):.0f} min left"
    )


def describe_time(seconds: dict[str, float]) -> str:
    """Where the time went, in one line, the largest share first."""
    total = sum(seconds.values())
    shares = sorted(seconds.items(), key=lambda item: -item[1])
    return f"{total / 60:.1f} min: " + ", ".join(f"{what} {time / total:.0%}" for what, time in shares)
