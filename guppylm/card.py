"""The data card: what is in the rows, what the templates could say beyond them, and what is wrong with a draft."""

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from statistics import median

from guppylm.corpus import Corpus
from guppylm.datagen import Conversation, conversations, pair, takes_over
from guppylm.grammar import PUNCTUATION, Pools, Slot, Text, pools_of, ways
from guppylm.persona import AROUND, Persona, Topic

FEW_MESSAGES = 20  # different messages of a topic below which a model learns them by heart instead of their meaning
SHARED_OPENING = 0.2  # of all replies; that many may begin alike before it sounds like a machine


@dataclass(frozen=True)
class DataCard:
    """What the rows of a persona hold. Lengths are in tokens, the special ones included."""

    rows: int
    messages: int  # different ones, as are replies and pairs
    replies: int
    pairs: int
    overlap: int  # pairs that are both trained on and kept apart for evaluation
    can_say: dict[str, int]  # different replies of each topic, fewest first
    lengths: tuple[int, int, int]  # of a row: shortest, median, longest
    vocabulary: float  # share of the tokenizer's entries that occur
    openings: list[tuple[str, float]]  # how replies begin, with their share, most frequent first
    most_repeated: tuple[str, int]  # a reply, and how often it is there
    taken_over: float  # of 1,000 conversations, the share with a reply that takes a word over from its message
    floor: float  # nats a reply that no model can get under
    floor_per_token: float  # the same, in nats a token


def data_card(persona: Persona, train: list[dict], held: list[dict], corpus: Corpus) -> DataCard:
    """Count what is in the rows to train on, and compute what lies in the grammar."""
    pairs = Counter(map(pair, train))
    replies = Counter(row["output"] for row in train)
    lengths = sorted(len(row.ids) for row in corpus.train)
    used = {id for row in corpus.train for id in row.ids}
    openings = Counter(" ".join(reply.split()[:2]) for reply in replies.elements())
    counts = {name: count_replies(topic) for name, topic in persona.topics.items()}
    made = list(conversations(persona, 1_000))
    return DataCard(
        rows=len(train),
        messages=len({message for message, _ in pairs}),
        replies=len(replies),
        pairs=len(pairs),
        overlap=len(pairs.keys() & set(map(pair, held))),
        can_say=dict(sorted(counts.items(), key=lambda item: item[1])),
        lengths=(lengths[0], round(median(lengths)), lengths[-1]),
        vocabulary=len(used) / corpus.tok.vocab_size,
        openings=[(opening, n / len(train)) for opening, n in openings.most_common(3)],
        most_repeated=replies.most_common(1)[0],
        taken_over=sum(takes_over(c.exchange, c.shared, c.reply) for c in made) / len(made),
        floor=corpus.floor,
        floor_per_token=corpus.floor * len(corpus.evaluation) / corpus.reply_tokens,
    )


def count_replies(topic: Topic) -> int:
    """How many replies the topic can say, counted in its grammar: choices multiply within a reply, and add up between.

    Two derivations that happen to spell the same count twice; in real text that is rare.
    """
    return sum(math.prod(_count_part(part, e.pools) for part in e.reply) for e in topic.exchanges)


def _count_part(part: tuple[Text, ...], pools: Pools) -> int:
    return sum(_count_text(text, pools) for text in set(part))


def _count_text(text: Text, pools: Pools) -> int:
    """The expansions of a text. A {pool.field} follows from the word before it, so it multiplies nothing."""
    drawn = [piece.pool for piece in text if isinstance(piece, Slot) and not piece.field]
    return math.prod(sum(_count_text(said, pools) for said in {word.text for word in pools[pool]}) for pool in drawn)


def describe(card: DataCard) -> str:
    """The card as text."""
    shortest, middle, longest = card.lengths
    fewest = ", ".join(f"{name} {count:,}" for name, count in list(card.can_say.items())[:3])
    openings = ", ".join(f"{opening!r} {share:.1%}" for opening, share in card.openings)
    reply, times = card.most_repeated
    return "\n".join(
        [
            f"{card.rows:,} rows: {card.messages:,} different messages, {card.replies:,} different replies, "
            f"{card.pairs:,} different pairs",
            f"kept apart for evaluation and trained on all the same: {card.overlap} pairs",
            f"the templates can say {sum(card.can_say.values()):,} replies; the topics with fewest: {fewest}",
            f"tokens a row: {shortest} to {longest}, half of them up to {middle}; "
            f"{card.vocabulary:.1%} of the vocabulary in use",
            f"most frequent openings: {openings}",
            f"most repeated reply, {times} times: {reply!r}",
            f"replies that take a word over from the message: {card.taken_over:.1%}",
            f"floor: {card.floor:.2f} nats a reply, {card.floor_per_token:.3f} a token; no model can do better",
        ]
    )


def advice(persona: Persona, card: DataCard) -> list[str]:
    """What is thin or wrong in a persona, one line each with what to write, judged by clean conversations from it."""
    enough = max(card.rows, 20 * FEW_MESSAGES * len(persona.topics))  # to meet what a topic can say, and not a part
    drawn = list(conversations(replace(persona, noise={}), enough))
    made = drawn[: card.rows]
    return [
        *_few_replies(persona, card),
        *_few_messages(drawn),
        *_no_confused(persona),
        *_in_two_topics(made),
        *sayable_tests(persona),
        *_unused_pools(persona),
        *_repeats(made),
        *_one_opening(card),
    ]


def _few_replies(persona: Persona, card: DataCard) -> list[str]:
    weights = {name: topic.weight for name, topic in persona.topics.items()}
    wanted = {name: math.ceil(card.rows * weight / sum(weights.values())) for name, weight in weights.items()}
    return [
        f"topics.{name}.reply: can say {count:,} different replies, and about {wanted[name]:,} rows want one: the "
        "model will know them by heart. Write more texts in each part, or one more part; choices multiply"
        for name, count in card.can_say.items()
        if count < wanted[name]
    ]


def _few_messages(made: list[Conversation]) -> list[str]:
    messages = defaultdict(set)
    for c in made:
        messages[c.topic].add(_bare(c.message))
    return [
        f"topics.{name}.user: only {len(said)} different messages: what people type differs more. Write at least "
        f"{FEW_MESSAGES}, with {{pools}} for the words that change"
        for name, said in messages.items()
        if len(said) < FEW_MESSAGES
    ]


def _no_confused(persona: Persona) -> list[str]:
    if "confused" in persona.topics:
        return []
    return ["topics: none is called confused: whatever the persona can't know will be answered by some other topic. "
            "Write [topics.confused] with sums, names and news as user lines, and replies that say so"]  # fmt: skip


def _in_two_topics(made: list[Conversation]) -> list[str]:
    """Messages that were made for two topics: whichever reply the model learns, it is wrong half of the time."""
    first: dict[str, Conversation] = {}
    found = {}
    for c in made:
        other = first.setdefault(_bare(c.message), c)
        if other.topic != c.topic:
            places = [f"{each.exchange.place}.{each.entries[0]}" for each in (other, c)]
            found.setdefault(
                frozenset(places), f"{places[1]}: {c.message!r} can be said by {places[0]} too: change one of them"
            )
    return list(found.values())


def _bare(message: str) -> str:
    """A message without capitals and punctuation, unless it is nothing else."""
    return " ".join(re.sub(f"[{PUNCTUATION}]", " ", message.lower()).split()) or message


def sayable_tests(persona: Persona) -> list[str]:
    """Test phrasings that some user line can say, but for capitals and the mark at their end.

    Thousands of lines against hundreds of tests: those that begin with the same piece are tried together by that piece.
    """
    groups = defaultdict(list)
    for topic in persona.topics.values():
        pools: Pools = {}
        for exchange in topic.exchanges:
            pools = pools or _lower_pools(exchange.pools)  # all exchanges of a topic have the same
            for i, line in enumerate(map(_lower, exchange.user)):
                groups[line[0], id(pools)].append((pools, f"{exchange.place}.user[{i}]", line))
    found = []
    for name, topic in persona.topics.items():
        for test in topic.test:
            bare = test.lower().strip().rstrip(".?!")
            wanted = {bare + mark for mark in ("", ".", "?", "!")}
            beginnings = {text[:n] for text in wanted for n in range(len(text) + 1)}
            for (first, _), group in groups.items():
                if isinstance(first, str):
                    possible = first in beginnings
                else:  # the pools are the same for all of the group
                    possible = any(_ends((first,), group[0][0], text) for text in wanted)
                for pools, place, line in group if possible else []:
                    if any(len(text) in _ends(line, pools, text) for text in wanted):
                        found.append(f"topics.{name}.test: {test!r} is no test, {place} can say it: change one of them")
    return found


def _lower(text: Text) -> Text:
    return tuple(piece.lower() if isinstance(piece, str) else piece for piece in text)


def _lower_pools(pools: Pools) -> Pools:
    return {name: tuple(replace(word, text=_lower(word.text)) for word in pool) for name, pool in pools.items()}


def _ends(text: Text, pools: Pools, said: str) -> set[int]:
    """How many characters at the beginning of `said` the text can produce."""
    return {end for end, _ in ways(text, pools, said, (0, frozenset()), {})}


def _unused_pools(persona: Persona) -> list[str]:
    """Pools that no line, reply or other pool names. A topic's own pool of the same name wins over the persona's."""
    defined: dict[int, str] = {id(pool): f"words.{name}" for name, pool in persona.pools.items()}
    used = {id(persona.pools[kind]) for kind in AROUND if persona.noise.get(kind)}
    for name, topic in persona.topics.items():
        for exchange in topic.exchanges:
            defined |= {id(pool): f"topics.{name}.words.{key}" for key, pool in exchange.pools.items()
                        if id(pool) not in defined}  # fmt: skip
            texts = {*exchange.user, *(text for part in exchange.reply for text in part)}
            used |= {id(exchange.pools[pool]) for text in texts for pool in pools_of(text, exchange.pools)}
    return [f"{place}: no line and no reply uses this pool: name it in one, or delete it"
            for pool, place in defined.items() if pool not in used]  # fmt: skip


def _repeats(made: list[Conversation]) -> list[str]:
    """Replies that say the same sentence twice."""
    found = {}
    for c in made:
        sentences = re.split(r"(?<=[.!?])\s+", c.reply.lower())
        twice = next((s for s in sentences if sentences.count(s) > 1 and len(s.split()) > 1), None)
        if twice:
            said = f"can say {twice!r} twice in one reply: {c.reply!r}. "
            found.setdefault(c.exchange.place, f"{c.exchange.place}.reply: {said}"
                             "Parts that follow each other need texts of their own")  # fmt: skip
    return list(found.values())


def _one_opening(card: DataCard) -> list[str]:
    return [
        f"topics: {share:.0%} of the replies begin with {opening!r}: let them begin with what they are about"
        for opening, share in card.openings
        if share > SHARED_OPENING
    ]
