"""The persona that ships: enough of everything, in character, and nothing of the examination in the lessons."""

import json
import random
import re
from collections import defaultdict

import pytest

from guppylm import datagen
from guppylm.grammar import Slot, expand, pools_of

TOPICS = """greeting feeling temp_hot temp_cold food light water about confused tank noise night lonely misc bye bubbles
glass reflection breathing swimming colors taste plants filter algae snail glass_tap scared excited bored curious happy
tired outside cat rain seasons music visitors children meaning time memory dreams size future past name weather sleep
friends joke fear love age smart poop doctor singing tv""".split()


def test_all_topics_are_there_with_phrasings_to_test_them(guppy):
    assert sorted(guppy.topics) == sorted(TOPICS)
    assert all(len(topic.test) >= 3 for topic in guppy.topics.values())


def test_pools_are_as_large_as_promised(guppy):
    assert len(guppy.pools["decor"]) >= 30 and len(guppy.pools["food"]) >= 17 and len(guppy.pools["activity"]) >= 25


def test_rows_are_varied(guppy_rows):
    assert len(guppy_rows) == 60_000 and all(row["input"].strip() for row in guppy_rows)
    assert len({row["input"] for row in guppy_rows}) >= 20_000
    assert len({row["output"] for row in guppy_rows}) >= 45_000
    assert len({(row["input"], row["output"]) for row in guppy_rows}) >= 55_000


@pytest.mark.parametrize("name", TOPICS)
def test_every_topic_can_say_2000_replies(guppy, name):
    rng, replies = random.Random(0), set()
    for _ in range(8000):
        exchange = rng.choice(guppy.topics[name].exchanges)
        shared = {}
        expand(rng.choice(exchange.user), exchange.pools, rng, shared, {})
        replies.add(datagen.say(exchange, shared, rng)[0])
        if len(replies) == 2000:
            return
    raise AssertionError(f"{name}: only {len(replies)} different replies in 8,000")


def test_replies_are_in_guppys_voice(guppy_rows):
    """Short lowercase sentences that end; words that it copies from a message may bring a digit or a capital."""
    for row in guppy_rows[:20_000]:
        reply = row["output"]
        assert reply[-1] in ".?", reply
        assert "  " not in reply and "{" not in reply and "!" not in reply, reply
        assert len(reply.split()) <= 50, reply
        if row["category"] != "confused":
            assert reply == reply.lower(), reply


def test_verbs_agree(guppy_rows):
    plural, singular = "fins|gills|scales|eyes", "tail|mouth|belly|whole body"
    wrong = re.compile(rf"(?<! of )my (({plural}) (is|has|does)|({singular}) (are|have|do))\b")
    assert not [row["output"] for row in guppy_rows if wrong.search(row["output"])]


def test_a_reply_that_names_the_decoration_names_the_right_one(guppy):
    checked = 0
    for conversation in datagen.conversations(guppy, 5_000, seed=2):
        word = conversation.shared.get("decor")
        mentioned = [w.text[0] for w in guppy.pools["decor"] if w.text[0] in conversation.reply]
        if word and any(Slot("decor") in text for part in conversation.exchange.reply for text in part) and mentioned:
            assert mentioned == [word.text[0]], conversation
            checked += 1
    assert checked > 10


def test_no_evaluation_pair_and_no_test_phrasing_is_trained_on(guppy, guppy_rows):
    train, held = datagen.split(guppy_rows, 1_000)
    assert not {json.dumps(row) for row in train} & {json.dumps(row) for row in held}
    pairs = {(row["input"], row["output"]) for row in train}
    assert not pairs & {(row["input"], row["output"]) for row in held}
    tests = {test.lower().strip(" .?!") for topic in guppy.topics.values() for test in topic.test}
    assert not tests & {row["input"].lower().strip(" .?!") for row in train}


def test_no_line_stands_in_two_topics(guppy):
    places = defaultdict(set)
    for name, topic in guppy.topics.items():
        for exchange in topic.exchanges:
            for line in exchange.user:
                if not any(isinstance(piece, Slot) for piece in line):
                    places[re.sub(r"[^\w ]", "", line[0])].add(name)
    assert not {line: names for line, names in places.items() if len(names) > 1}


def test_what_every_line_names_the_reply_names(guppy):
    checked = 0
    for topic in guppy.topics.values():
        for e in topic.exchanges:
            for pool in e.repeats & set.intersection(*(pools_of(line, e.pools) for line in e.user)):
                assert all(Slot(pool) in text for text in e.reply[1]), e.place
                checked += 1
    assert checked > 5


def test_each_topic_has_one_first_word_of_its_own(guppy):
    firsts = [{text for e in topic.exchanges for text in e.reply[0]} for topic in guppy.topics.values()]
    assert all(len(first) == 1 for first in firsts) and len(set.union(*firsts)) == len(TOPICS)


def test_confused_meets_what_people_type_at_a_bot(guppy, guppy_rows):
    kinds = {e.place.split(".")[-1] for e in guppy.topics["confused"].exchanges}
    assert {"knowledge", "sums", "code_help", "tongues", "insults", "instructions", "gibberish"} <= kinds
    typed = "".join(row["input"] for row in guppy_rows if row["category"] == "confused")
    assert any(c > "\U0001f300" for c in typed) and "ignore" in typed.lower()
