"""The grammar and the generator, on a persona small enough to enumerate."""

import dataclasses
import hashlib
import itertools
import json
import math
import random
from collections import Counter

import pytest

from guppylm import datagen
from guppylm.grammar import Word, expand, fillings, fold, parse


def sampled_replies(exchange, shared, n=4000):
    rng = random.Random(1)
    return Counter(datagen.say(exchange, shared, rng)[0] for _ in range(n))


def test_a_field_agrees_with_the_nearest_word_before_it():
    pools = {"x": (Word(("fins",), (("be", "are"),)), Word(("tail",), (("be", "is"),)))}
    said = {expand(parse("{x} {x.be}, {x} {x.be}"), pools, random.Random(i), {}, {}) for i in range(50)}
    assert said == {f"{a}, {b}" for a, b in itertools.product(("fins are", "tail is"), repeat=2)}


def test_braces_are_written_twice():
    assert "".join(parse("if (x) {{ return; }}")) == "if (x) { return; }"


def test_a_word_of_the_message_is_the_same_in_the_reply(small):
    for conversation in datagen.conversations(small, 300):
        if conversation.topic == "food":
            named = [food for food in ("flakes", "peas", "red worms") if food in conversation.message]
            others = {"flakes", "peas", "red worms"} - set(named)
            assert len(named) == 1
            assert named[0] in conversation.reply and not any(food in conversation.reply for food in others)


def test_a_word_with_slots_of_its_own_is_repeated_whole(small):
    replies = [c for c in datagen.conversations(small, 2000) if c.exchange.place == "topics.home.like"]
    about_castle = [c for c in replies if "castle" in c.message and "castle" in c.reply]
    assert len(about_castle) > 20
    assert all(("red" in c.message) == ("red" in c.reply) for c in about_castle)


def test_a_reply_takes_a_word_over_where_another_word_would_be_wrong(small):
    like = small.topics["home"].exchanges[0]
    shared = {"thing": Word(("the cave",))}
    assert datagen.takes_over(like, shared, "yes. the cave and my tail is old.")
    assert datagen.takes_over(like, shared, "yes. the gravel and my tail is old.")  # it should, and names the wrong one
    assert not datagen.takes_over(like, {}, "yes. the gravel and my tail is old.")  # the message named nothing
    assert not datagen.takes_over(like, shared, "yes. yes.")
    assert not datagen.takes_over(like, shared, "flakes. yes.")  # another exchange's reply


def test_probabilities_of_all_replies_add_up_to_one(small):
    """Each exchange's replies are few: 4,000 samples meet all of them, and their probabilities must add up to 1."""
    for topic in small.topics.values():
        for exchange in topic.exchanges:
            shared = {}
            expand(exchange.user[0], exchange.pools, random.Random(3), shared, {})
            replies = sampled_replies(exchange, shared)
            assert math.isclose(sum(math.exp(datagen.reply_log_prob(exchange, shared, r)) for r in replies), 1)


def test_probability_is_how_often_a_reply_is_sampled(small):
    exchange = small.topics["home"].exchanges[0]
    shared = {"thing": Word(("the gravel",))}
    replies = sampled_replies(exchange, shared, 20_000)
    for reply, count in replies.items():
        assert math.exp(datagen.reply_log_prob(exchange, shared, reply)) == pytest.approx(count / 20_000, abs=0.012)


def test_probabilities_of_all_replies_of_a_topic_add_up_to_one(small):
    ask, shared = "do you like the gravel?", {"thing": Word(("the gravel",))}
    replies = {reply for exchange in small.topics["home"].exchanges for reply in sampled_replies(exchange, shared)}
    assert math.isclose(sum(math.exp(datagen.log_prob(small, "home", ask, reply)) for reply in replies), 1)


def test_two_derivations_of_one_reply_add_up(small):
    """Either part one is "yes. yes." and part two empty, or both are "yes."; and a red castle is two entries' doing."""
    like, where = small.topics["home"].exchanges
    shared = {"thing": Word(("the gravel",))}
    twice = math.exp(datagen.reply_log_prob(like, shared, "yes. yes."))
    assert twice == pytest.approx(1 / 3 * 1 / 3 + 1 / 3 * 1 / 3)
    castle = math.exp(datagen.reply_log_prob(where, {}, "in the red castle."))
    assert castle == pytest.approx(1 / 2 * 1 / 4 + 1 / 2 * 1 / 2)


def test_log_prob_knows_topic_and_message(small):
    ask = "Do you like the RED castle??"
    assert datagen.log_prob(small, "home", ask, "no. the red castle and my fins are old.") > -math.inf
    assert datagen.log_prob(small, "home", ask, "no. the blue castle and my fins are old.") == -math.inf
    assert datagen.log_prob(small, "home", ask, "no. the red castle and my tail are old.") == -math.inf
    assert datagen.log_prob(small, "food", ask, "no.") == -math.inf


def test_a_word_is_known_by_its_letters_alone(small):
    assert fold("  Green - FLAKES?!  ") == " green flakes "
    food = small.topics["food"].exchanges[0]
    assert datagen.shared_words(food, "RED - worms?")["food"].text == ("red worms",)


def test_a_word_may_agree_within_itself(small):
    pools = small.pools | {"place": (Word(parse("cave where {body_part} {body_part.be} {color}")),)}
    filled = {word.text[0] for word in fillings(pools["place"], pools)}
    each = [f"cave where {part} {color}" for part in ("fins are", "tail is") for color in ("red", "blue")]
    assert filled == set(each)
    assert {expand(pools["place"][0].text, pools, random.Random(i), {}, {}) for i in range(50)} == filled


def test_generation_is_a_pure_function(small):
    rows = datagen.generate(small, 50, seed=7)
    assert rows == datagen.generate(small, 50, seed=7)
    assert rows == datagen.generate(small, 80, seed=7)[:50]
    assert rows != datagen.generate(small, 50, seed=8)
    assert set(rows[0]) == {"input", "output", "category"}


def test_generation_is_the_same_on_every_machine(small):
    """The digest was taken once; another Python or platform that draws otherwise fails here."""
    text = json.dumps(datagen.generate(small, 200, seed=0))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "47b5cd207d757890"


def test_every_line_of_a_topic_comes_up_before_any_comes_again(guppy):
    made = list(datagen.conversations(guppy, 20_000))
    for name, topic in guppy.topics.items():
        times = Counter((c.exchange.place, c.entries[0]) for c in made if c.topic == name)
        lines = sum(len(exchange.user) for exchange in topic.exchanges)
        met = sum(times.values())
        assert len(times) == min(met, lines)
        assert set(times.values()) <= {met // lines, met // lines + 1}


def test_a_persona_suggests_messages_of_several_topics(small, guppy):
    assert datagen.about(small) == datagen.about(small)
    about = datagen.about(guppy)
    assert set(about) == {"name", "summary", "greeting", "color", "suggestions"}
    assert len(set(about["suggestions"])) == 8
    said = datagen.about(small)["suggestions"]
    assert len(said) == 2  # there are two topics, and of each we see the line that its author wrote first
    assert any(line.startswith("want some ") for line in said) and any(line.startswith("do you like ") for line in said)
    assert not any("{" in line for line in said + about["suggestions"])


def test_weight_says_how_often_a_topic_comes_up(small):
    topics = Counter(row["category"] for row in datagen.generate(small, 3000))
    assert topics["home"] / topics["food"] == pytest.approx(2, rel=0.15)


def test_split_keeps_no_evaluation_pair_in_training(small):
    rows = datagen.generate(small, 500)
    train, held = datagen.split(rows, 5)
    pairs = {(row["input"], row["output"]) for row in held}
    assert len(held) == len(pairs) == 5
    assert not pairs & {(row["input"], row["output"]) for row in train}
    assert all(row in rows for row in train)


def test_a_pair_that_differs_in_capitals_alone_is_the_same_to_the_model(small):
    said = {"output": "yes.", "category": "food"}
    rows = [{"input": message, **said} for message in (*(f"{i} peas?" for i in range(20)), "PEAS?", "peas?")]
    train, held = datagen.split(rows, 1)
    assert held == rows[-1:] and train == rows[:20]


def test_a_small_persona_keeps_most_of_its_pairs_for_training(small):
    rows = datagen.generate(small, 2000)
    train, held = datagen.split(rows, 1000)
    distinct = len({(row["input"], row["output"]) for row in rows})
    assert len(held) == distinct // 10
    assert len({(row["input"], row["output"]) for row in train}) == distinct - len(held)


NOISY = {
    "shout": "do you like it?",
    "capital": "hi. do you like it? i do",
    "no_apostrophe": "don't you like it?",
    "no_punctuation": "well, do you?",
    "texting": "do you like it?",
    "ask_in": "do you?",
    "lead_in": "do you?",
    "tag": "do you?",
}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("shout", "DO YOU LIKE IT?"),
        ("capital", "Hi. Do you like it? I do"),
        ("no_apostrophe", "dont you like it?"),
        ("no_punctuation", "well do you"),
        ("ask_in", "tell me, do you?"),
        ("lead_in", "hey do you?"),
        ("tag", "do you? lol"),
        ("texting", "do u like it?"),
    ],
)
def test_noise(guppy, kind, expected):
    pools = {"ask_in": (Word(("tell me,",)),), "lead_in": (Word(("hey",)),), "tag": (Word(("lol",)),)}
    persona = dataclasses.replace(guppy, pools=pools, noise={kind: 1.0}, texting={"you": ("u",)})
    noisy = [datagen.add_noise(NOISY[kind], persona, random.Random(i)) for i in range(20)]
    assert set(noisy) == ({expected, NOISY[kind]} if kind == "texting" else {expected})  # 7 words in 10 of that kind


def test_what_leads_into_a_question_stands_before_nothing_else(guppy):
    persona = dataclasses.replace(guppy, noise={"ask_in": 1.0})
    assert {datagen.add_noise("i like it.", persona, random.Random(i)) for i in range(20)} == {"i like it."}


def test_noise_comes_as_often_as_it_says(guppy):
    persona = dataclasses.replace(guppy, noise={"shout": 0.3})
    shouted = [datagen.add_noise("do you?", persona, random.Random(i)) == "DO YOU?" for i in range(2_000)]
    assert sum(shouted) == pytest.approx(600, abs=80)


def test_marks_are_added_at_the_end_and_a_message_of_marks_alone_keeps_them(guppy):
    loud, quiet = (dataclasses.replace(guppy, noise={f"{kind}_punctuation": 1.0}) for kind in ("extra", "no"))
    ends = {datagen.add_noise("do you?", loud, random.Random(i)).removeprefix("do you") for i in range(50)}
    assert ends == {"!!!", "??", "?!", "...", " !!", "!", ".."}
    assert datagen.add_noise("?!", quiet, random.Random(0)) == "?!"


def test_only_small_words_are_dropped(guppy):
    persona = dataclasses.replace(guppy, noise={"drop_word": 1.0})
    noisy = {datagen.add_noise("do you like bubbles", persona, random.Random(i)) for i in range(50)}
    assert noisy == {"you like bubbles", "do like bubbles"}
    for kept in ("guppies like tickly bubbles", "no cat likes hot tea"):  # short words may be what it is about
        assert datagen.add_noise(kept, persona, random.Random(0)) == kept


def test_a_typo_is_one_slip():
    slips = {datagen.misspell("swimming", random.Random(i)) for i in range(200)}
    assert len(slips) > 15
    assert all(abs(len(slip) - len("swimming")) <= 1 and "s" in slip[:2] for slip in slips)
    assert datagen.misspell("42", random.Random(0)) == "42"
    assert all(datagen.misspell(word, random.Random(i)) != word for word in ("swimming", "aaa") for i in range(200))
