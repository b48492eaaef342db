"""What makes a fish name what the message names: `python tests/bench_naming.py`.

A short training with the lesson in copying, and one without. Then, of messages that name something, how probable the
model finds the right word at its place in the reply.
"""

import dataclasses
import math
from itertools import islice

import torch

from guppylm import copying, corpus, datagen, train
from guppylm.device import pick_device, pick_precision
from guppylm.model import GuppyLM, ModelConfig
from guppylm.tokenizer import Tokenizer

SHORT = train.TrainConfig(steps=500, eval_every=500)
ASKED = 200  # messages


def main() -> None:
    guppy = datagen.load_persona("guppy")
    rows = corpus.prepare(guppy)
    for name, steps in (("with the lesson", SHORT.copy_steps), ("without", 0)):
        model, excess = trained(rows, dataclasses.replace(SHORT, copy_steps=steps))
        right = right_word(model, rows.tok, guppy)
        print(f"{name}: the right word has {right:.2f}; {excess:.3f} nats a token above the floor", flush=True)


def trained(rows: corpus.Corpus, config: train.TrainConfig) -> tuple[GuppyLM, float]:
    """A model after the lesson and the training, and its excess over the floor in nats a token."""
    device = pick_device()
    torch.manual_seed(0)
    state = train.start(GuppyLM(ModelConfig()).to(device), config, pick_precision(device))
    for _ in copying.lesson(state, rows.tok, config):
        pass
    *_, last = train.train(state, rows, config)
    return state.model.eval(), last.evaluation["eval_loss"] - last.evaluation["floor"]


def named(c: datagen.Conversation) -> str:
    """The word of the message that comes first in the reply; "" where there is none."""
    words = ("".join(c.shared[pool].text) for pool in c.exchange.taken_over & c.shared.keys())
    return min((word for word in words if word in c.reply), key=c.reply.index, default="")


@torch.inference_mode()
def right_word(model: GuppyLM, tok: Tokenizer, persona: datagen.Persona) -> float:
    """Mean probability of the word that the reply takes over, given all that stands before it."""
    made = datagen.endless(dataclasses.replace(persona, noise={}), seed=5)
    asked = list(islice(filter(named, made), ASKED))
    total = 0.0
    for c in asked:
        begin = c.reply.index(named(c))
        end = begin + len(named(c))
        offsets = tok.bpe.encode(c.reply).offsets  # of each token, its first and last character in the reply
        ids, prompt = tok.encode_conversation(c.message, c.reply)
        logits = model(torch.tensor([ids[:-1]], device=model.device))[0]  # (T, V)
        log_p = logits.float().log_softmax(dim=-1)
        at = [prompt + i for i, (a, b) in enumerate(offsets) if b > begin and a < end]
        total += math.exp(sum(log_p[i - 1, ids[i]].item() for i in at))
    return total / len(asked)


if __name__ == "__main__":
    main()
