"""A tiny grammar for sentences: text with {slots} that pools of words fill, and the exact probability of what it says.

    "my {body_part} {body_part.be} ready."      a literal, a slot, a literal, a field of the word that filled the slot

A slot is filled by a word drawn evenly from the pool of that name; the word may hold slots of its own. A field copies
an attribute of the nearest word drawn before it from the same pool, which is how verbs agree with their subjects.
This is a probabilistic context-free grammar with agreement: `expand` samples from it, and `ways` sums over every
derivation of a given string (the inside algorithm), so that nothing about the data has to be estimated.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """{pool}, or {pool.field}: a place in a text that is filled when the text is expanded."""

    pool: str
    field: str = ""


Text = tuple[str | Slot, ...]  # a parsed entry: literals and slots in reading order


@dataclass(frozen=True)
class Word:
    """One entry of a pool: its text, and the fields that agree with it, such as (("be", "are"),)."""

    text: Text
    fields: tuple[tuple[str, str], ...] = ()


Pools = dict[str, tuple[Word, ...]]
Words = dict[str, Word]  # by pool, the word it gave last
State = tuple[int, frozenset]  # how many characters are matched, and the (pool, fields) pairs that hold there

PUNCTUATION = ".,!?;:"

PIECE = re.compile(r"\{\{|\}\}|\{(\w+)(?:\.(\w+))?\}|[{}]|[^{}]+")


def parse(entry: str) -> Text:
    """Split an entry into literals and slots; {{ and }} stand for braces. ValueError on a stray brace."""
    text: list[str | Slot] = []
    for match in PIECE.finditer(entry):
        piece, (pool, field) = match.group(), match.groups()
        if pool:
            text.append(Slot(pool, field or ""))
        elif piece in ("{", "}"):
            place = match.start() + 1
            raise ValueError(f"a stray {piece} at character {place}: write {{pool}}, or {piece * 2} for a brace")
        else:
            text.append({"{{": "{", "}}": "}"}.get(piece, piece))
    return tuple(text)


def pick(rng: random.Random, choices):
    """One of the choices, all equally likely. Python promises that random() alone keeps its sequence for ever."""
    return choices[int(rng.random() * len(choices))]


def expand(text: Text, pools: Pools, rng: random.Random, words: Words, shared: Words) -> str:
    """Fill the slots of `text` at random. Each word drawn is noted in `words`, with its own slots filled.

    A pool in `shared` is not drawn from: the message that is being answered has decided its word already.
    """
    out = []
    for piece in text:
        if isinstance(piece, str):
            out.append(piece)
        elif piece.field:
            out.append(dict(words[piece.pool].fields)[piece.field])
        else:
            word = shared.get(piece.pool)
            if word is None:
                drawn = pick(rng, pools[piece.pool])
                word = Word((expand(drawn.text, pools, rng, words, shared),), drawn.fields)
            words[piece.pool] = word
            out.append("".join(word.text))
    return "".join(out)


def pools_of(text: Text, pools: Pools) -> set[str]:
    """The pools that `text` may draw from, in its own slots or in those of the words that fill them."""
    slots = [piece for piece in text if isinstance(piece, Slot)]
    inner = (pools_of(word.text, pools) for slot in slots for word in pools[slot.pool])
    return {slot.pool for slot in slots}.union(*inner)


def fillings(pool: tuple[Word, ...], pools: Pools) -> Iterator[Word]:
    """Every word of a pool with its slots filled in every way."""
    for word in pool:
        for said, _ in _filled(word.text, pools, {}):
            yield Word((said,), word.fields)


def _filled(text: Text, pools: Pools, words: Words) -> Iterator[tuple[str, Words]]:
    """Every way to fill the slots of `text`, each with the words that are then known; `words` are known before it."""
    if not text:
        yield "", words
        return
    piece, rest = text[0], text[1:]
    if isinstance(piece, str):
        begun = [(piece, words)]
    elif piece.field:
        # Its word stands in the text around this one, where we don't know which it is: then it may be any of the pool.
        drawn = [words[piece.pool]] if piece.pool in words else pools[piece.pool]
        begun = [(dict(word.fields)[piece.field], {**words, piece.pool: word}) for word in drawn]
    else:
        begun = [(said, {**known, piece.pool: word}) for word in pools[piece.pool]
                 for said, known in _filled(word.text, pools, words)]  # fmt: skip
    for first, known in begun:
        for following, known_then in _filled(rest, pools, known):
            yield first + following, known_then


def fold(text: str) -> str:
    """Letters and digits alone, in lower case, between spaces: what capitals and punctuation can't change."""
    words = ("".join(c for c in word if c.isalnum()) for word in text.lower().split())
    return f" {' '.join(word for word in words if word)} "


def ways(text: Text, pools: Pools, target: str, state: State, shared: Words) -> dict[State, float]:
    """Every state in which `text`, expanded from `state` on, has matched more of `target`, with its probability.

    Of the pool p with fins (be = are) and tail (be = is), "my {p} {p.be}" matches all 11 characters of "my fins are" in
    one state, {(11, frozenset({("p", (("be", "are"),))})): 0.5}. The half is the chance that p gave fins.

    Only fields have to be remembered along the way, so a state keeps a word's fields and not its text: derivations
    that differ in nothing that can still matter meet in one state, and their probabilities add up.
    """
    states = {state: 1.0}
    for piece in text:
        after: dict[State, float] = {}
        for before, probability in states.items():
            for following, p in _piece_ways(piece, pools, target, before, shared).items():
                after[following] = after.get(following, 0.0) + probability * p
        states = after
    return states


def _piece_ways(piece: str | Slot, pools: Pools, target: str, state: State, shared: Words) -> dict[State, float]:
    """The same for one piece."""
    start, known = state
    fields = dict(known)  # by pool, each as pairs such as ("be", "are")
    if isinstance(piece, str):
        said = piece
    elif piece.field and piece.pool in fields:
        said = dict(fields[piece.pool])[piece.field]
    elif not piece.field and piece.pool in shared:
        said, known = "".join(shared[piece.pool].text), _remember(known, piece.pool, shared[piece.pool])
    else:  # a word to draw. Or a field whose word the message named and we weren't told: then any word may be it.
        found: dict[State, float] = {}
        for word in pools[piece.pool]:
            text = (dict(word.fields)[piece.field],) if piece.field else word.text
            for (end, inner), p in ways(text, pools, target, state, shared).items():
                following = (end, _remember(inner, piece.pool, word))
                found[following] = found.get(following, 0.0) + p / len(pools[piece.pool])
        return found
    return {(start + len(said), known): 1.0} if target.startswith(said, start) else {}


def _remember(known: frozenset, pool: str, word: Word) -> frozenset:
    """The fields that hold after a word was drawn: its own take the place of its pool's former ones."""
    if not word.fields:
        return known
    return frozenset(item for item in known if item[0] != pool) | {(pool, word.fields)}
