"""Talking to the model: one token at a time, each drawn from the probabilities that the model gives.

Each message stands alone. The model sees 128 tokens; a few turns would fill them and push the first ones out.
"""

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from guppylm import checkpoint
from guppylm.device import pick_device
from guppylm.model import GuppyLM
from guppylm.tokenizer import IM_END, IM_START, PAD, SPECIAL, Tokenizer

REPLY_ROOM = 56  # tokens of the context that a long message has to leave free for the reply


class Step(NamedTuple):
    """One generated token and what it was chosen from."""

    id: int
    text: str  # what it adds to the reply; empty while a character is incomplete, and for the end token
    probability: float  # with which it was drawn, after temperature and top_k
    choices: list[tuple[str, float]]  # the likeliest tokens and their probabilities, best first


def probabilities(logits: torch.Tensor, temperature: float, top_k: int) -> torch.Tensor:
    """Logits (B, V) -> the probabilities (B, V) to draw from.

    Dividing by a temperature below 1 stretches the differences, so that likely tokens become likelier; 0 is the
    limit, all on the best. Of the tokens the top_k best are kept; 0 keeps them all.
    """
    if temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        kth_best = torch.topk(logits, top_k).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth_best, -math.inf)
    return torch.softmax(logits, dim=-1)


class Bot:
    """A trained model that answers messages."""

    def __init__(self, model: GuppyLM, tok: Tokenizer, name: str):
        self.model, self.tok, self.name = model, tok, name

    def prompt(self, message: str) -> list[int]:
        """The ids before the reply, (T,), slips mended. Of what is too long for the context, the beginning is kept."""
        message = message.encode("utf-8", errors="replace").decode("utf-8")  # half characters from a broken paste
        return self.tok.encode_prompt(self.tok.mend(message), self.model.config.context_length - REPLY_ROOM)

    @torch.inference_mode()
    def next_logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids (B, T) -> logits (B, V) for the token that comes next; tokens that no reply can hold are ruled out."""
        last = self.model.hidden(ids.to(self.model.device))[:, -1]  # (B, T, C) -> (B, C)
        logits = self.model.lm_head(last).float().cpu()  # (B, C) @ (C, V) -> (B, V)
        logits[:, [PAD, IM_START]] = -math.inf
        return logits

    def stream(
        self, message: str, temperature: float = 0.7, top_k: int = 50, seed: int | None = None
    ) -> Iterator[Step]:
        """Generate the reply to a message, a token at a time, until <|im_end|> or the end of the context.

        temperature: 0 always takes the likeliest token, 1 draws with the model's own probabilities, more is wilder.
        top_k: how many tokens to choose among, 0 for all. seed: the same seed gives the same reply; None a new one.
        """
        rng = torch.Generator().manual_seed(random.getrandbits(63) if seed is None else seed)
        ids = torch.tensor([self.prompt(message)])  # (1, T), and longer by one at each step
        start, said = ids.shape[1], ""
        while ids.shape[1] < self.model.config.context_length:
            p = probabilities(self.next_logits(ids), temperature, top_k)  # (1, V)
            chosen = torch.multinomial(p, 1, generator=rng)  # (1, 1)
            ids = torch.cat([ids, chosen], dim=1)  # what was said is read again: this is autoregression
            text = self.text(ids[0, start:])
            yield Step(int(chosen), text[len(said) :], float(p[0, chosen]), self.best(p[0]))
            said = text
            if chosen == IM_END:
                return

    def text(self, ids: torch.Tensor) -> str:
        """The text of these ids (T,), as far as its characters are complete: one may take several tokens."""
        return self.tok.decode(ids.tolist()).rstrip("\N{REPLACEMENT CHARACTER}")

    def best(self, p: torch.Tensor, n: int = 5) -> list[tuple[str, float]]:
        """The n likeliest tokens of the probabilities p (V,), best first."""
        top = torch.topk(p, min(n, len(p)))
        return [(self.label(int(i)), float(q)) for q, i in zip(top.values, top.indices, strict=True) if q > 0]

    def label(self, id: int) -> str:
        """A token as a person can read it."""
        return SPECIAL[id] if id < len(SPECIAL) else self.tok.decode([id])

    def reply(self, message: str, temperature: float = 0.7, top_k: int = 50, seed: int | None = None) -> str:
        """The whole reply to a message. Arguments as in `stream`."""
        return "".join(step.text for step in self.stream(message, temperature, top_k, seed)).strip()


def find_model(path: str | None = None) -> Path:
    """The folder of a model: the one named, else checkpoints/guppy if you have trained it, else the shipped fish."""
    if path is not None:
        return Path(path)
    own = Path("checkpoints") / "guppy"
    return own if (own / "model.pt").exists() else Path(__file__).parent / "pretrained"


def load(path: str | None = None, device: str = "auto") -> Bot:
    """A bot from a checkpoint folder (None: your own, else the shipped one). CheckpointError says what is wrong."""
    model, tok, record = checkpoint.load(find_model(path), pick_device(device))
    return Bot(model, tok, record.get("persona", {}).get("name", "guppy"))
