"""From a persona to conversations: sampling its grammar, adding the noise of real typing, keeping some rows apart.

A topic holds exchanges: lines that a user may type, and the parts of the replies that answer them. Generation is a
pure function of (persona, number, seed). Because we wrote the grammar, `log_prob` knows the exact probability of
every reply, and with it the lowest loss that any model can reach.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from guppylm.grammar import Slot, Words, expand, fillings, pick, pools_of, ways
from guppylm.persona import Exchange, Persona, PersonaError, load_persona

__all__ = ["PersonaError", "load_persona"]  # so that a notebook needs one import


@dataclass(frozen=True)
class Conversation:
    """A message and its reply, with where they come from: what an honest evaluation needs, and a row leaves out."""

    topic: str
    exchange: Exchange
    shared: Words = field(repr=False)  # the words that the reply takes over from the message
    message: str
    reply: str
    entries: tuple[str, ...]  # of the exchange that were used, such as ("user[3]", "reply[0][2]", "reply[1][0]")

    def row(self) -> dict[str, str]:
        return {"input": self.message, "output": self.reply, "category": self.topic}


def converse(persona: Persona, rng: random.Random) -> Conversation:
    """Sample one conversation: a topic, one of its user lines with the words in it, noise, and a reply."""
    names = list(persona.topics)
    topic = rng.choices(names, [persona.topics[name].weight for name in names])[0]
    exchange, line = pick(rng, [(e, i) for e in persona.topics[topic].exchanges for i in range(len(e.user))])
    shared: Words = {}
    message = expand(exchange.user[line], exchange.pools, rng, shared, {})
    reply, chosen = say(exchange, shared, rng)
    entries = (f"user[{line}]", *(f"reply[{part}][{i}]" for part, i in enumerate(chosen)))
    return Conversation(topic, exchange, shared, add_noise(message, persona, rng), reply, entries)


def say(exchange: Exchange, shared: Words, rng: random.Random) -> tuple[str, list[int]]:
    """Sample a reply to a message with these words in it: of each part one text, joined by spaces, and which it was."""
    words = dict(shared)
    chosen = [pick(rng, range(len(part))) for part in exchange.reply]
    said = [expand(part[i], exchange.pools, rng, words, shared) for part, i in zip(exchange.reply, chosen, strict=True)]
    return " ".join(text for text in said if text), chosen


def conversations(persona: Persona, n: int, seed: int = 0) -> Iterator[Conversation]:
    """n conversations, one after the other: the same on every machine, and the first of them for any larger n."""
    rng = random.Random(seed)
    for _ in range(n):
        yield converse(persona, rng)


def generate(persona: Persona, n: int = 60_000, seed: int = 0) -> list[dict[str, str]]:
    """n rows {"input", "output", "category"}: a pure function of its arguments."""
    return [conversation.row() for conversation in conversations(persona, n, seed)]


def spelled(persona: Persona) -> set[str]:
    """Every piece of text that its messages may be put together from, as the author spelled it: lines and pools."""
    texts = set()
    for topic in persona.topics.values():
        texts.update(line for exchange in topic.exchanges for line in exchange.user)
        pools = topic.exchanges[0].pools  # all exchanges of a topic have the same
        texts.update(word.text for pool in pools.values() for word in pool)
    return {piece for text in texts for piece in text if isinstance(piece, str)}


def about(persona: Persona) -> dict:
    """What a checkpoint keeps of the persona: who it is, and messages from up to eight topics to begin with."""
    rng, names = random.Random(3), list(persona.topics)  # any seed will do, but the same one each time
    chosen = sorted(names, key=lambda name: rng.random())[:8]
    first = [persona.topics[name].exchanges[0] for name in chosen]  # an author begins with what is asked most
    lines = [expand(exchange.user[0], exchange.pools, rng, {}, {}) for exchange in first]
    own = {name: getattr(persona, name) for name in ("name", "summary", "greeting", "color")}
    return {**own, "suggestions": lines}


KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")  # a slip of the finger hits a neighbour on its row


def misspell(text: str, rng: random.Random) -> str:
    """One typo: two letters swapped, one left out, one doubled, or one replaced by its neighbour on the keyboard."""
    letters = [i for i in range(1, len(text)) if text[i].isalpha() and text[i - 1].isalpha()]
    if not letters:
        return text
    i = pick(rng, letters)
    near = [row[max(0, row.index(c) - 1) : row.index(c) + 2] for row in KEYS if (c := text[i].lower()) in row]
    slip = pick(rng, near[0]) if near else text[i]
    return pick(rng, (text[: i - 1] + text[i] + text[i - 1] + text[i + 1 :], text[:i] + text[i + 1 :],
                      text[:i] + text[i] + text[i:], text[:i] + slip + text[i + 1 :]))  # fmt: skip


def add_noise(message: str, persona: Persona, rng: random.Random) -> str:
    """The message as real people type it. Every kind is tried in turn, each with its probability in [noise]."""

    def happens(kind: str) -> bool:
        return rng.random() < persona.noise.get(kind, 0)

    for kind in ("lead_in", "tag"):
        if happens(kind):
            extra = expand((Slot(kind),), persona.pools, rng, {}, {})
            message = f"{extra} {message}" if kind == "lead_in" else f"{message} {extra}"
    words = message.split(" ")
    if happens("texting"):
        words = [pick(rng, persona.texting[w]) if w in persona.texting and rng.random() < 0.7 else w for w in words]
    small = [i for i, word in enumerate(words) if len(word) <= 3]  # a long one would take the meaning with it
    if len(words) > 3 and small and happens("drop_word"):
        words.pop(pick(rng, small))
    message = " ".join(words)
    if happens("no_apostrophe"):
        message = message.replace("'", "")
    if happens("typo"):
        message = misspell(message, rng)
    if happens("no_punctuation"):
        message = "".join(c for c in message if c not in ".,!?;:")
    elif happens("extra_punctuation"):
        message = message.rstrip(".!?") + pick(rng, ("!!!", "??", "?!", "...", " !!", "!", ".."))
    if happens("shout"):
        return message.upper()
    return capitalise(message) if happens("capital") else message


def capitalise(text: str) -> str:
    """Sentence case: a capital at the start and after . ! ?, and for the word i."""
    words = text.split(" ")
    for i, word in enumerate(words):
        if i == 0 or words[i - 1][-1:] in ".!?" or word in ("i", "i'm", "i'll", "i've", "i'd"):
            words[i] = word[:1].upper() + word[1:]
    return " ".join(words)


def split(rows: list[dict[str, str]], n_eval: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Keep the last n_eval distinct pairs for evaluation, and take every copy of them out of the training rows.

    A small persona has few different pairs; of these at most one in ten is kept apart.
    """
    distinct = len({(row["input"], row["output"]) for row in rows})
    held: dict[tuple[str, str], dict[str, str]] = {}
    for row in reversed(rows):
        if len(held) == min(n_eval, max(1, distinct // 10)):
            break
        held.setdefault((row["input"], row["output"]), row)
    return [row for row in rows if (row["input"], row["output"]) not in held], list(held.values())


def reply_log_prob(exchange: Exchange, shared: Words, reply: str) -> float:
    """ln P(reply | exchange, shared words): exact, summed over every derivation; -inf where it can't be said."""
    known = frozenset((pool, word.fields) for pool, word in shared.items() if word.fields)
    states = {(0, known): 1.0}
    for part in exchange.reply:
        after: dict = {}
        for text in part:
            for (start, words), probability in states.items():
                spaced = (" ", *text) if text and start else text
                for state, p in ways(spaced, exchange.pools, reply, (start, words), shared).items():
                    after[state] = after.get(state, 0.0) + probability * p / len(part)
        states = after
    total = sum(p for (end, _), p in states.items() if end == len(reply))
    return math.log(total) if total else -math.inf


def takes_over(exchange: Exchange, shared: Words, reply: str) -> bool:
    """Whether the exchange can say this with any word of some pool, and the message has decided which it should be."""
    free, given = (reply_log_prob(exchange, words, reply) for words in ({}, shared))
    return free > -math.inf and not math.isclose(free, given)


def log_prob(persona: Persona, topic: str, message: str, reply: str) -> float:
    """ln P(reply | topic, message), exact, natural log; -inf if the topic's templates can't say it.

    Each exchange of the topic counts with its share of the user lines. A word that the message names is taken to be
    shared, where the exchange shares it; where none is named, as in a phrasing we never wrote, it is drawn afresh.
    """
    exchanges = persona.topics[topic].exchanges
    lines = sum(len(exchange.user) for exchange in exchanges)
    total = 0.0
    for exchange in exchanges:
        log_p = reply_log_prob(exchange, shared_words(exchange, message), reply)
        total += math.exp(log_p) * len(exchange.user) / lines
    return math.log(total) if total else -math.inf


def shared_words(exchange: Exchange, message: str) -> Words:
    """The words of a message that replies of this exchange may take over: of each pool, the longest one it names."""
    said = _fold(message)
    by_user = set.union(*(pools_of(line, exchange.pools) for line in exchange.user))
    by_guppy = {slot.pool for part in exchange.reply for text in part for slot in text if isinstance(slot, Slot)}
    shared: Words = {}
    for pool in by_user & by_guppy:
        named = [word for word in fillings(exchange.pools[pool], exchange.pools) if _fold(word.text[0]) in said]
        if named:
            shared[pool] = max(named, key=lambda word: len(word.text[0]))
    return shared


def _fold(text: str) -> str:
    """Letters and digits alone, in lower case, between spaces: what capitals and punctuation can't change."""
    return f" {' '.join(''.join(c for c in word if c.isalnum()) for word in text.lower().split())} "
