"""The data card: its counts against counting by hand, and each piece of advice on a draft that needs it."""

import itertools

import pytest

from guppylm import card, corpus, datagen


def counted(persona, n=400):
    made = [c.row() for c in datagen.conversations(persona, n + 20)]
    train, held = datagen.split(made, 20)
    return card.data_card(persona, train, held, corpus.prepare(persona, n, 20))


@pytest.fixture
def draft(small_file):
    """Advice on the small persona with something in it replaced."""

    def advise(old, new):
        text = small_file.read_text(encoding="utf-8")
        assert old in text
        small_file.write_text(text.replace(old, new), encoding="utf-8")
        persona = datagen.load_persona(str(small_file))
        return card.advice(persona, counted(persona))

    return advise


def test_replies_are_counted_in_the_grammar(small):
    """Every reply of the small persona, written out by hand."""
    foods, parts = ["flakes", "peas", "red worms"], ["", "my fins are ready.", "my tail is ready."]
    food = {f"{a} {b}" for f in foods for a in (f"{f}. yes.", f"i like {f}.")
            for b in (*parts, *(f"are there more {more}?" for more in foods))}  # fmt: skip
    things = ["the cave", "the red castle", "the blue castle", "the gravel"]
    old = [f"{thing} and my {part} old." for thing, part in itertools.product(things, ("fins are", "tail is"))]
    like = {f"{a} {b}" for a in ("yes.", "no.", "yes. yes.") for b in ("", "yes.", *old)}
    where = ["in the cave.", "in the red castle.", "in the blue castle.", "in the red castle.", "in the blue castle."]
    result = counted(small)
    assert result.can_say == {"home": len(like) + len(where), "food": len(food)}
    assert list(result.can_say.values()) == sorted(result.can_say.values())  # fewest first


def test_counts_of_the_rows(small):
    made = [c.row() for c in datagen.conversations(small, 420)]
    train, held = datagen.split(made, 20)
    result = counted(small)
    assert (result.rows, result.overlap) == (len(train), 0)
    assert result.messages == len({row["input"] for row in train})
    assert result.replies == len({row["output"] for row in train})
    assert result.pairs == len({(row["input"], row["output"]) for row in train})
    reply, times = result.most_repeated
    assert times == sum(row["output"] == reply for row in train) == max(
        sum(row["output"] == other["output"] for row in train) for other in train
    )  # fmt: skip
    shortest, middle, longest = result.lengths
    assert shortest < middle < longest <= 128
    assert 0 < result.vocabulary < 1 and 0 < result.floor_per_token < result.floor
    text = card.describe(result)
    assert 0.4 < result.taken_over < 0.8  # most foods, and the half of the things that is said
    assert f"take a word over from the message: {result.taken_over:.1%}" in text
    assert f"{result.rows:,} rows" in text and repr(reply) in text and f"{result.floor:.2f} nats a reply" in text


def test_a_leak_is_counted(small):
    made = [c.row() for c in datagen.conversations(small, 420)]
    train, held = datagen.split(made, 20)
    result = card.data_card(small, train + held[:3], held, corpus.prepare(small, 400, 20))
    assert result.overlap == 3


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "[topics.home]\nweight",
            "[topics.home]\nweight",
            "topics.home.reply: can say 35 different replies, and about 191 rows",  # two thirds of them
        ),
        ("[topics.home]\nweight", "[topics.home]\nweight", "topics.food.user: only 6 different messages"),
        ("[topics.home]\nweight", "[topics.home]\nweight", "topics: none is called confused"),
        ('"where do you live?"', '"where do you live?", "i have {food} for you."', "can be said by topics"),
        ('"snack?"', '"Want some red worms"', "'Want some red worms' is no test, topics.food.user[0] can say it"),
        ('"do you like {thing}?"', '"do you like {thing}?", "snack?"', "'snack?' is no test, topics.home.like.user[1]"),
        ('["snack?"]', '["hello!"]\n[topics.hi]\nuser = ["hello!"]\nreply = [["hi."]]', "'hello!' is no test"),
        ('["snack?"]', '["hello"]\n[topics.hi]\nuser = ["HELLO!"]\nreply = [["hi."]]', "'hello' is no test"),
        ("[words]", '[words]\nhat = ["cap"]', "words.hat: no line and no reply uses this pool"),
        ("[topics.home.words]", '[topics.home.words]\nfood = ["soup"]', "topics.home.words.food: no line and no reply"),
        ('["yes.", "no.", "yes. yes."]', '["so it is."], ["so it is."]', "can say 'so it is.' twice in one reply"),
        ('"i like {food}."', '"i like {food}.", "i like no {food}."', "of the replies begin with 'i like'"),
    ],
)
def test_what_is_thin_or_wrong_is_said(draft, old, new, expected):
    lines = draft(old, new)
    assert any(expected in line for line in lines), lines
    assert all("\n" not in line for line in lines)


def test_few_conversations_are_no_few_messages(small):
    counted = card.data_card(small, *datagen.split(datagen.generate(small, 60), 20), corpus.prepare(small, 40, 20))
    asked = [line for line in card.advice(small, counted) if "different messages" in line]
    assert sorted(line.split(" different")[0] for line in asked) == [
        "topics.food.user: only 6",
        "topics.home.user: only 5",
    ]


def test_messages_that_noise_made_alike_are_no_conflict(draft):
    """A dropped word may make two messages alike; what is compared is what was written."""
    assert not [
        line for line in draft("[words]", "[noise]\ndrop_word = 1\ntypo = 1\n[words]") if "can be said by" in line
    ]


def test_nothing_is_wrong_with_guppy(guppy, guppy_rows):
    train, held = datagen.split(guppy_rows, 1_000)
    result = card.data_card(guppy, train, held, corpus.prepare(guppy, 5_000, 100))
    assert min(result.can_say.values()) >= 2_000 and result.overlap == 0
    assert card.advice(guppy, result) == []
