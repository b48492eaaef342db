"""From a persona to conversations: sampling its grammar, adding the noise of real typing, keeping some rows apart.

A topic holds exchanges: lines that a user may type, and the parts of the replies that answer them. Generation is a
pure function of (persona, number, seed). Because we wrote the grammar, `reply_log_prob` knows the exact probability of
every reply to a message that is fully understood, and with it a floor: no model can do better, and where a message can
be read in two ways, none quite reaches it.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from guppylm.grammar import PUNCTUATION, Slot, Words, expand, fillings, fold, pick, ways
from guppylm.persona import AROUND, Exchange, Persona, PersonaError, Topic, load_persona
from guppylm.spelling import plain

__all__ = ["PersonaError", "load_persona"]  # not used here: passed on, so that a notebook needs one import

Decks = dict[str, Iterator[tuple[Exchange, int]]]  # by topic, the user lines that are still to come


@dataclass(frozen=True)
class Conversation:
    """A message and its reply, with where they come from: what an honest evaluation needs, and a row leaves out."""

    topic: str
    exchange: Exchange
    shared: Words = field(repr=False)  # the words of the message, by pool, of which the reply may take some over
    message: str
    reply: str
    entries: tuple[str, ...]  # of the exchange that were used, such as ("user[3]", "reply[0][2]", "reply[1][0]")

    def row(self) -> dict[str, str]:
        return {"input": self.message, "output": self.reply, "category": self.topic}


def converse(persona: Persona, rng: random.Random, decks: Decks) -> Conversation:
    """Sample one conversation: a topic, its next user line with words drawn for it, noise, and a reply."""
    names = list(persona.topics)
    topic = rng.choices(names, [persona.topics[name].weight for name in names])[0]
    exchange, line = next(decks[topic])
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


def deal(topic: Topic, rng: random.Random) -> Iterator[tuple[Exchange, int]]:
    """User lines of a topic without end, like cards of a deck: all of them, shuffled, before any comes again.

    Of 500 lines thrown like dice 10 times each, one comes up 20 times and another twice: too seldom to be learned.
    """
    lines = [(exchange, line) for exchange in topic.exchanges for line in range(len(exchange.user))]
    while True:
        lines.sort(key=lambda line: rng.random())  # shuffle() may change with Python's version, random() does not
        yield from lines


def endless(persona: Persona, seed: int | str) -> Iterator[Conversation]:
    """Conversations, one after the other, without end: the same on every machine."""
    rng = random.Random(seed)
    decks = {name: deal(topic, rng) for name, topic in persona.topics.items()}
    while True:
        yield converse(persona, rng, decks)


def conversations(persona: Persona, n: int, seed: int = 0) -> Iterator[Conversation]:
    """The first n conversations of this seed."""
    return islice(endless(persona, seed), n)


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


# What people in a hurry leave out. "cat" and "hot" are short too, but without them nobody knows what was meant.
SMALL = set("a am an and are at can did do does for has have i in is it my of on so that the to was you your".split())
KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")  # a slip of the finger hits a neighbour on its row


def misspell(text: str, rng: random.Random) -> str:
    """One typo: two letters swapped, one left out, one doubled, or one replaced by its neighbour on the keyboard."""
    letters = [i for i in range(1, len(text)) if text[i].isalpha() and text[i - 1].isalpha()]
    if not letters:
        return text
    i = pick(rng, letters)
    slips = [
        text[: i - 1] + text[i] + text[i - 1] + text[i + 1 :],  # two letters swapped
        text[:i] + text[i + 1 :],  # one left out
        text[:i] + text[i] + text[i:],  # one doubled
    ]
    for row in KEYS:
        if (at := row.find(text[i].lower())) >= 0:
            neighbours = row[max(0, at - 1) : at] + row[at + 1 : at + 2]
            slips.append(text[:i] + pick(rng, neighbours) + text[i + 1 :])
    return pick(rng, [slip for slip in slips if slip != text])  # two equal letters, swapped, are no slip


def add_noise(message: str, persona: Persona, rng: random.Random) -> str:
    """The message as real people type it. Every kind is tried in turn with its probability in [noise], but no mark is
    added where all were taken away, and no capital where all is shouted.

    Capitals are for other readers of the rows: our tokenizer puts every message in lower case.
    """

    def happens(kind: str) -> bool:
        return rng.random() < persona.noise.get(kind, 0)

    asks = "ask_in" in persona.noise and message.endswith("?")
    for kind in AROUND if asks else ("lead_in", "tag"):
        if happens(kind):
            extra = expand((Slot(kind),), persona.pools, rng, {}, {})
            message = f"{message} {extra}" if kind == "tag" else f"{extra} {message}"
    words = message.split(" ")
    if happens("texting"):
        words = [pick(rng, persona.texting[w]) if w in persona.texting and rng.random() < 0.7 else w for w in words]
    small = [i for i, word in enumerate(words) if word in SMALL]
    if len(words) > 3 and small and happens("drop_word"):
        words.pop(pick(rng, small))
    message = " ".join(words)
    if happens("no_apostrophe"):
        message = message.replace("'", "")
    if happens("typo"):
        message = misspell(message, rng)
    if happens("no_punctuation"):
        bare = "".join(c for c in message if c not in PUNCTUATION)
        message = bare if bare.strip() else message  # which may be "?!", and nothing else
    elif happens("extra_punctuation"):
        message = message.rstrip(".!?") + pick(rng, ("!!!", "??", "?!", "...", " !!", "!", ".."))
    if happens("shout"):
        return message.upper()
    return capitalise(message) if happens("capital") else message


def capitalise(text: str) -> str:
    """Sentence case: a capital at the start and after . ! ?, and for the word i."""
    words = text.split(" ")
    for i, word in enumerate(words):
        if i == 0 or words[i - 1].endswith((".", "!", "?")) or word in ("i", "i'm", "i'll", "i've", "i'd"):
            words[i] = word[:1].upper() + word[1:]
    return " ".join(words)


def pair(row: dict[str, str]) -> tuple[str, str]:
    """Message and reply of a row as a model meets them: capitals, say, don't make another pair."""
    return plain(row["input"]), row["output"]


def split(rows: list[dict[str, str]], n_eval: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Keep the last n_eval distinct pairs for evaluation, and take every copy of them out of the training rows.

    A small persona has few different pairs; of these at most one in ten is kept apart, and always one.
    """
    distinct = len({pair(row) for row in rows})
    held: dict[tuple[str, str], dict[str, str]] = {}
    for row in reversed(rows):
        if len(held) == min(n_eval, max(1, distinct // 10)):
            break
        held.setdefault(pair(row), row)
    return [row for row in rows if pair(row) not in held], list(held.values())


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
    """Whether the reply says a word that the message decides, even if it says the wrong one.

    A pool of one word leaves nothing to decide.
    """
    free, given = (reply_log_prob(exchange, words, reply) for words in ({}, shared))
    return not math.isclose(free, given)


def log_prob(persona: Persona, topic: str, message: str, reply: str) -> float:
    """ln P(reply | topic, words that the message names), natural log; -inf if the topic's templates can't say it.

    Which exchange of the topic was meant is not asked of the message: each counts with its share of the user lines. A
    word that the message names is taken to be shared, where a text of the reply uses its pool; where none is named, as
    in a phrasing we never wrote, or where only a word of another pool uses it, it is drawn afresh. For a conversation
    of our own, `reply_log_prob` with the words of its message is exact in all this.
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
    said = fold(message)
    shared: Words = {}
    for pool in exchange.taken_over:
        named = [word for word in fillings(exchange.pools[pool], exchange.pools) if fold(word.text[0]) in said]
        if named:
            shared[pool] = max(named, key=lambda word: len(word.text[0]))
    return shared
