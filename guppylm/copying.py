"""A lesson in copying, before the first conversation: to read a word in the message and say the same.

Asked "do you like bananas?", Guppy speaks of bananas. A model that learns this word by word must learn it again for
each word. Two attention heads, the second in a later layer, can do it for any word, even one that nobody has met. The
first notes at each token which token came before it. The second looks for the place whose note is the token just said,
and says what stands there: an induction head (Olsson et al. 2022, "In-context Learning and Induction Heads"). Neither
gains much alone, and conversations ask for them in few places, so there they form late. Random tokens ask for nothing
else, and it takes a few hundred steps. Which word to begin with is another matter: that the conversations teach.
"""

import random
from collections.abc import Iterator
from dataclasses import replace

from guppylm.corpus import Row
from guppylm.grammar import pick
from guppylm.tokenizer import IM_END, SPECIAL, Tokenizer
from guppylm.train import Diverged, State, TrainConfig, backward, update

LONGEST = 10  # tokens of a message: with longer ones the heads form much later


def random_row(tok: Tokenizer, rng: random.Random) -> Row:
    """A message of random tokens, and a reply that repeats it from a random place on: only its start is a guess."""
    message = [pick(rng, range(len(SPECIAL), tok.vocab_size)) for _ in range(pick(rng, range(4, LONGEST + 1)))]
    reply = message[pick(rng, range(len(message) - 1)) :]
    frame = tok.encode_prompt("")
    at = frame.index(IM_END)  # where the message would stand
    return Row([*frame[:at], *message, *frame[at:], *reply, IM_END], len(frame) + len(message))


def lesson(state: State, tok: Tokenizer, config: TrainConfig) -> Iterator[float]:
    """config.copy_steps steps on random rows; yields the loss of each, in nats a token of the reply.

    They don't count: after them, or where they are cut short, the model stands at step 0 again, about to meet its first
    conversation. A run that is beyond step 0 has had its lesson, and gets none. Diverged if the loss is not finite.
    """
    if state.step:
        return
    rng = random.Random(f"{config.seed}/copying")
    even = replace(config, first_words=0.0)  # a reply's first token is a guess here, and must not count most
    try:
        for _ in range(config.copy_steps):
            rows = [random_row(tok, rng) for _ in range(config.batch_size)]
            loss = backward(state, rows, even)
            update(state, even)
            state.clock.lap("optimizer")
            yield loss
    except Diverged as error:
        raise Diverged(f"the lesson in copying, {error}") from error
    finally:
        state.step = 0
