"""How good the fish is, in honest numbers: loss against the floor, and do its replies belong to what was said?

A reply is on topic when the templates of an acceptable topic can say it. Templates are exact, so this needs no judge.
"""

import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from guppylm import corpus, datagen
from guppylm.chat import Bot, probabilities
from guppylm.device import mixed_precision, pick_precision
from guppylm.grammar import PUNCTUATION, Slot, Word, Words, expand, fold, pick
from guppylm.persona import Exchange, Persona, Topic
from guppylm.tokenizer import IM_END
from guppylm.train import TrainConfig, micro_batches, token_losses, unsure

FRESH, FRESH_SEED = 300, 987_654_321  # messages drawn for the card, from a seed that nobody trains with
NAMING = 100  # fresh messages whose own reply takes a word over from them
DRAWS = 3  # how often each message is answered
AT_ONCE = 128  # rows of a batch: more would not fit a processor's caches

# The same messages as other people would have typed them
DISTURBED = {
    "in capitals": lambda message, rng: message.upper(),
    "without punctuation": lambda message, rng: "".join(c for c in message if c.isalnum() or c == " "),
    "with one typo": datagen.misspell,
}


class Answer(NamedTuple):
    text: str
    ended: bool  # by the model, with <|im_end|>; or cut off, where the context is full


@torch.inference_mode()
def answer(
    bot: Bot, messages: list[str], temperature: float, top_k: int, seed: int, precision: torch.dtype = torch.float32
) -> list[Answer]:
    """Replies to many messages at once.

    All rows of the batch have one length, so that nothing has to be padded: a prompt joins when the batch has grown
    to its length, and a reply leaves when it has ended.
    """
    if not messages:
        return []
    prompts = [bot.prompt(message) for message in messages]
    waiting = defaultdict(list)  # by length
    for i, prompt in enumerate(prompts):
        waiting[len(prompt)].append(i)
    answers, rng = [Answer("", False)] * len(messages), torch.Generator().manual_seed(seed)
    device = bot.model.device
    context = bot.model.config.context_length
    group: list[int] = []
    shortest = min(waiting)
    ids = torch.empty(0, shortest, dtype=torch.long)  # (B, T), a column longer at each step
    for length in range(shortest, context):
        joining = waiting[length]
        joined = torch.tensor([prompts[i] for i in joining], dtype=torch.long).view(-1, length)  # (J, T)
        ids = torch.cat([ids, joined])  # (B, T) and (J, T) -> (B + J, T), which is B from here on
        group = group + joining
        chosen = ids.new_empty(0, 1)
        if group:
            # The answers to one message are the same at first, and what is the same has to be read only once.
            different, which = torch.unique(ids, dim=0, return_inverse=True)  # (U, T), and of each row which: (B,)
            with mixed_precision(device, precision):
                logits = torch.cat([bot.next_logits(rows) for rows in different.split(AT_ONCE)])  # (U, V)
            p = probabilities(logits[which], temperature, top_k)  # (B, V)
            chosen = torch.multinomial(p, 1, generator=rng)  # (B, 1)
        ids = torch.cat([ids, chosen], dim=1)
        ended = (ids[:, -1] == IM_END).tolist()
        for b, i in enumerate(group):
            if ended[b] or length + 1 == context:
                answers[i] = Answer(bot.text(ids[b, len(prompts[i]) :]).strip(), ended[b])
        going = [b for b in range(len(group)) if not ended[b]]
        group, ids = [group[b] for b in going], ids[going]
    return answers


def can_say(topic: Topic, reply: str, message: str = "") -> bool:
    """Whether any exchange of the topic can say this, whatever words the message may have given it.

    So a reply about flakes answers a message about a banana; `naming` counts these apart. Where it takes a word over,
    that may be one of the message that the pool lacks.
    """
    return any(
        datagen.reply_log_prob(exchange, words, reply) > -math.inf
        for exchange in topic.exchanges
        if begins(exchange, reply)
        for words in ({}, *taken_words(exchange, reply, message))
    )


def begins(exchange: Exchange, reply: str) -> bool:
    """Whether a reply of the exchange may begin like this one. It rules out most of them, at little cost."""
    first = (text[0] if text else "" for text in exchange.reply[0])
    return any(isinstance(piece, Slot) or reply.startswith(piece) for piece in first)


def taken_words(exchange: Exchange, reply: str, message: str) -> Iterator[Words]:
    """Each way to take one to four words in a row, said in both message and reply, as the word of a pool.

    Words that stand in the exchange's own lines ("do you") don't name anything.
    """
    words, asked = reply.split(), fold(message)
    texts = {" ".join(words[i : i + n]).strip(PUNCTUATION) for i in range(len(words)) for n in (1, 2, 3, 4)}
    for text in sorted(texts):
        named = fold(text).strip()
        if named and f" {named} " in asked and not exchange.line_words.issuperset(named.split()):
            for pool in sorted(exchange.taken_over):
                for fields in sorted({word.fields for word in exchange.pools[pool]}):
                    yield {pool: Word((text,), fields)}


def read_prompts(file: Path) -> list[dict]:
    """JSON lines {"prompt", "topic", "also", "kind"}.

    A message, the topic it means, others that are a fair reading too, and the set to report it in ("topic" or "probe").
    """
    prompts = []
    for i, line in enumerate(corpus.read_lines(file)):
        try:
            row = json.loads(line)
            topics = [row["topic"], *row["also"]]
            texts = (row["prompt"], row["kind"], *topics)
            if not isinstance(row["also"], list) or not all(isinstance(text, str) for text in texts):
                raise TypeError
            prompts.append({"prompt": row["prompt"], "topics": topics, "kind": row["kind"]})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{file}: line {i + 1} is not {{"prompt", "topic", "also", "kind"}}') from error
    return prompts


def sets_of_prompts(persona: Persona, file: Path | None) -> dict[str, list[dict]]:
    """What to ask: fresh messages of the templates, the test phrasings, and the prompts of a file by their kind."""
    made = datagen.conversations(persona, FRESH, FRESH_SEED)
    sets = {"fresh template messages": [{"prompt": c.message, "topics": [c.topic]} for c in made]}
    if tests := test_phrasings(persona):
        sets["test phrasings"] = tests
    for prompt in read_prompts(file) if file else []:
        sets.setdefault(f"{file.name}: {prompt['kind']}", []).append(prompt)
    for name, asked in sets.items():
        if unknown := {topic for prompt in asked for topic in prompt["topics"]} - persona.topics.keys():
            raise ValueError(f"{name}: the persona {persona.name} has no topic {', '.join(sorted(unknown))}")
    return sets


def test_phrasings(persona: Persona) -> list[dict]:
    """The messages that the persona keeps for examination, as prompts."""
    return [{"prompt": text, "topics": [name]} for name, topic in persona.topics.items() for text in topic.test]


def score(persona: Persona, prompts: list[dict], answers: list[Answer]) -> dict:
    """Judge the answers to the prompts, one each; a prompt may be there several times.

    Returns {"prompts": number of different ones, "on_topic", "sayable": shares from 0 to 1,
    "topics": {topic: share on topic}, worst first, "misses": [{"prompt", "topic", "reply", "said_by"}]}.
    """
    misses, right, asked = [], Counter(), Counter()
    for prompt, (reply, _) in zip(prompts, answers, strict=True):
        topic = prompt["topics"][0]
        asked[topic] += 1
        if any(can_say(persona.topics[name], reply, prompt["prompt"]) for name in prompt["topics"]):
            right[topic] += 1
        else:
            said_by = [name for name, other in persona.topics.items() if can_say(other, reply, prompt["prompt"])]
            misses.append({"prompt": prompt["prompt"], "topic": topic, "reply": reply, "said_by": said_by})
    n, unsayable = asked.total(), sum(not miss["said_by"] for miss in misses)
    shares = {topic: right[topic] / asked[topic] for topic in asked}
    topics = dict(sorted(shares.items(), key=lambda item: item[1]))
    different = len({prompt["prompt"] for prompt in prompts})
    return {"prompts": different, "on_topic": 1 - len(misses) / n, "sayable": 1 - unsayable / n,
            "topics": topics, "misses": misses}  # fmt: skip


@torch.inference_mode()
def loss(bot: Bot, pairs: list[tuple[str, str]], log_probs: list[float]) -> dict:
    """The model's loss on (message, reply) pairs, and the floor under it: minus the replies' exact log probabilities.

    Returns {"rows"; "loss", "floor", "excess" in nats a token; the same in nats a reply as "loss_per_reply", ...}.
    """
    encoded = [corpus.Row(*bot.tok.encode_conversation(message, reply)) for message, reply in pairs]
    context = bot.model.config.context_length  # with another persona's vocabulary a few are too long, as in training
    fitting = [(row, log_p) for row, log_p in zip(encoded, log_probs, strict=True) if len(row.ids) <= context]
    rows, tokens = [row for row, _ in fitting], sum(row.reply_tokens for row, _ in fitting)
    batches = micro_batches(rows, TrainConfig(), bot.model.device)
    total = sum(token_losses(bot.model, batch, torch.float32).sum().item() for batch in batches)
    best = -sum(log_p for _, log_p in fitting)
    nats = {"loss": total, "floor": best, "excess": total - best}
    per_token = {name: value / tokens for name, value in nats.items()}
    per_reply = {f"{name}_per_reply": value / len(rows) for name, value in nats.items()}
    return {"rows": len(rows), **per_token, **per_reply}


def losses(bot: Bot, persona: Persona) -> dict[str, dict]:
    """Loss and floor on fresh conversations, and on the test phrasings with replies drawn for them."""
    made = list(datagen.conversations(persona, FRESH, FRESH_SEED))
    exact = [datagen.reply_log_prob(c.exchange, c.shared, c.reply) for c in made]
    result = {"seen phrasings": loss(bot, [(c.message, c.reply) for c in made], exact)}
    rng, pairs, exact = random.Random(FRESH_SEED), [], []
    for prompt in test_phrasings(persona):
        message, topic = prompt["prompt"], prompt["topics"][0]
        exchanges = persona.topics[topic].exchanges
        exchange = rng.choices(exchanges, [len(e.user) for e in exchanges])[0]
        words: Words = {}  # what one of our own phrasings would have named, where this one leaves it open
        expand(pick(rng, exchange.user), exchange.pools, rng, words, {})
        shared = words | datagen.shared_words(exchange, message)
        pairs.append((message, datagen.say(exchange, shared, rng)[0]))
        exact.append(datagen.log_prob(persona, topic, *pairs[-1]))
    if pairs:
        result["test phrasings"] = loss(bot, pairs, exact)
    return result


def naming(bot: Bot, persona: Persona, temperature: float, top_k: int, precision: torch.dtype = torch.float32) -> dict:
    """Asked about the castle, does it speak of the castle, of another thing of that kind, or of none?

    Asks messages without noise whose reply takes a word over. {"asked": how many, "right": share with the word of the
    message, "another": share with another of its pool}; {} where this persona's replies take none over.
    """
    made = datagen.conversations(replace(persona, noise={}), 60 * NAMING, FRESH_SEED)
    named = (c for c in made if c.exchange.repeats & c.shared.keys())
    asked = list(islice((c for c in named if datagen.takes_over(c.exchange, c.shared, c.reply)), NAMING))
    replies = answer(bot, [c.message for c in asked], temperature, top_k, 0, precision)
    right = another = 0
    for c, (reply, _) in zip(asked, replies, strict=True):
        if datagen.takes_over(c.exchange, c.shared, reply):
            if datagen.reply_log_prob(c.exchange, c.shared, reply) > -math.inf:
                right += 1
            else:
                another += 1
    return {"asked": len(asked), "right": right / len(asked), "another": another / len(asked)} if asked else {}


def novelty(persona: Persona, known: set[str], messages: list[str], replies: list[str]) -> dict:
    """Were the replies composed, or recited? `known` are all replies that the model met in training.

    Returns {"composed": share that some topic can say and that no training row holds, "verbatim": share that a
    training row holds, "examples": [{"reply", "nearest"}] of composed ones with the most similar training reply}.
    """
    new = [(message, reply) for message, reply in zip(messages, replies, strict=True) if reply not in known]
    composed = [r for m, r in new if any(can_say(topic, r, m) for topic in persona.topics.values())]
    examples = [{"reply": r, "nearest": nearest(r, known)} for r in composed[:3]]
    verbatim = sum(r in known for r in replies) / len(replies)
    return {"composed": len(composed) / len(replies), "verbatim": verbatim, "examples": examples}


def nearest(reply: str, known: set[str]) -> str:
    """The known reply that shares most words with this one, as a share of the words of both."""
    words = set(reply.split())
    return max(sorted(known), key=lambda other: len(words & set(other.split())) / len(words | set(other.split())))


def style(answers: list[Answer]) -> dict:
    """Shares of the replies that are lowercase, empty, cut off, and different from each other; and their lengths."""
    n, texts = len(answers), [a.text for a in answers]
    words = sorted(len(text.split()) for text in texts)
    return {"lowercase": sum(text == text.lower() for text in texts) / n, "empty": texts.count("") / n,
            "cut_off": sum(not a.ended for a in answers) / n, "distinct": len(set(texts)) / n,
            "median_words": words[n // 2], "most_words": words[-1]}  # fmt: skip


def robustness(
    bot: Bot, persona: Persona, prompts: list[dict], answers: list[Answer], temperature: float, top_k: int,
    precision: torch.dtype = torch.float32,
) -> dict[str, float]:  # fmt: skip
    """The share on topic for the prompts as they are, with these answers, and typed in other ways: one answer to each.

    A message that is read as before (in lower case, mended) keeps its answer. So "in capitals" always equals "as they
    are", which is what reading in lower case is for.
    """
    shares = {"as they are": score(persona, prompts, answers)["on_topic"]}
    greeting = f"hey {persona.name},"
    ways = {**DISTURBED, f"after {greeting!r}": lambda message, rng: f"{greeting} {message}"}
    for kind, disturb in ways.items():
        rng, again = random.Random(0), list(answers)
        typed = [disturb(prompt["prompt"], rng) for prompt in prompts]
        other = [i for i, prompt in enumerate(prompts) if bot.prompt(typed[i]) != bot.prompt(prompt["prompt"])]
        new = answer(bot, [typed[i] for i in other], temperature, top_k, 0, precision)
        for i, reply in zip(other, new, strict=True):
            again[i] = reply
        read = [{**prompt, "prompt": text} for prompt, text in zip(prompts, typed, strict=True)]
        shares[kind] = score(persona, read, again)["on_topic"]
    return shares


def evaluate(
    bot: Bot, persona: Persona, training: dict, prompts: Path | None = None, temperature: float = 0.7, top_k: int = 50,
    say: Callable[[str], None] = lambda what: None,
) -> dict:  # fmt: skip
    """The card, as plain data. `training`: what config.json says of the run, {} where that is not known.

    {"loss": ..., "replies": {set of prompts: score}, "robustness": ..., "naming": ..., "style": ...,
    "novelty": ..., "precision": ...}; the functions of these names say more. "novelty" is left out where nobody knows
    what the model was trained on.
    `say` is told what is being measured, since all of it takes minutes.
    ValueError if the prompts name a topic that the persona lacks.
    """
    sets = sets_of_prompts(persona, prompts)
    say("loss and floor")
    card: dict = {"loss": losses(bot, persona), "replies": {}}
    answers, precision = {}, pick_precision(bot.model.device)
    for name, asked in sets.items():
        say(f"replies to {len(asked)} {name}")
        answers[name] = answer(bot, [p["prompt"] for p in asked] * DRAWS, temperature, top_k, 0, precision)
        card["replies"][name] = score(persona, asked * DRAWS, answers[name])
    measured = "test phrasings" if "test phrasings" in sets else "fresh template messages"
    first = answers[measured][: len(sets[measured])]  # of the draws
    say("other ways of typing")
    card["robustness"] = robustness(bot, persona, sets[measured], first, temperature, top_k, precision)
    say("naming")
    card["naming"] = naming(bot, persona, temperature, top_k, precision)
    fresh = answers["fresh template messages"]
    asked = [p["prompt"] for p in sets["fresh template messages"]] * DRAWS
    card["style"] = style(fresh)
    if "eval_rows" in training:
        say("composed or recited")
        if known := corpus.training_replies(persona, training):
            card["novelty"] = novelty(persona, known, asked, [a.text for a in fresh])
    card["precision"] = str(precision).removeprefix("torch.")
    return card


def describe(card: dict) -> str:
    """The card as text, with the topics that are missed most and an example of each."""
    lines = ["loss on replies, in nats a token:"]
    for name, row in card["loss"].items():
        # Of a test phrasing it isn't known which words it leaves open: there the floor is a good estimate.
        known = "no model can get under" if name == "seen phrasings" else "the floor is about"
        floor = f"{known} {row['floor']:.3f}: {row['excess']:.3f} above it"
        lines.append(f"  {name} ({row['rows']}): {row['loss']:.3f}, {unsure(row['loss'])}; {floor}")
    for name, result in card["replies"].items():
        shares = f"{result['on_topic']:.1%} on topic, {result['sayable']:.1%} sayable"
        lines.append(f"{name} ({result['prompts']}): {shares}")
        for topic, share in list(result["topics"].items())[:8]:
            miss = next((miss for miss in result["misses"] if miss["topic"] == topic), None)
            if miss:
                read_as = ", ".join(miss["said_by"]) or "nothing"
                lines.append(f"  {topic} {share:.0%}: {miss['prompt']!r} was read as {read_as}: {miss['reply']!r}")
    lines.append("the same prompts typed in other ways, on topic:")
    lines.append("  " + ", ".join(f"{kind} {share:.1%}" for kind, share in card["robustness"].items()))
    if named := card["naming"]:
        shares = f"{named['right']:.1%} of the replies name the same, {named['another']:.1%} another"
        lines.append(f"{named['asked']} messages that name something: {shares}")
    s = card["style"]
    lines.append(f"style: {s['lowercase']:.1%} lowercase, {s['distinct']:.1%} different, {s['empty']:.1%} empty, "
                 f"{s['cut_off']:.1%} cut off, {s['median_words']} words (at most {s['most_words']})")  # fmt: skip
    if "novelty" in card:
        lines.append(f"composed: {card['novelty']['composed']:.1%} of the replies are in no training row, though the "
                     f"templates can say them; {card['novelty']['verbatim']:.1%} are, word for word")  # fmt: skip
        for example in card["novelty"]["examples"]:
            lines.append(f"  {example['reply']!r}, nearest in training: {example['nearest']!r}")
    else:
        lines.append("composed or recited: not known. The templates of its training are not recorded, or not these")
    lines.append(f"(replies drawn in {card['precision']})")
    return "\n".join(lines)
