"""Slips are mended, and what is no slip is left alone."""

import dataclasses
import itertools
import random

import pytest

from guppylm import datagen, spelling

WORDS = {word: rank for rank, word in enumerate(["the", "form", "from", "bubbles", "don't", "castle", "snail"])}


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("the bubles", "the bubbles"),  # a letter left out
        ("the bubblees, snaill!", "the bubbles, snail!"),  # added
        ("the castke?", "the castle?"),  # replaced
        ("the csatle", "the castle"),  # swapped
        ("dont", "don't"),
        ("frrm", "form"),  # "from" is one slip away, too, but less frequent
        ("buuubbles", "buuubbles"),  # two slips
        ("teh cat", "teh cat"),  # too short to say
        ("castlé snai1 snail_ 日snai", "castlé snai1 snail_ 日snai"),  # parts of something else
        ("from the castle", "from the castle"),
        ("", ""),
    ],
)
def test_an_unknown_word_is_read_as_the_known_one_next_to_it(typed, read):
    assert spelling.mend(typed, WORDS) == read


def test_without_words_nothing_is_mended():
    assert spelling.mend("the bubles", {}) == "the bubles"


def test_words_are_learned_where_they_are_met_often_and_stand_in_that_order():
    messages = ["Snail, SNAIL!", "a snail's shell", "a sanil", "A shell", "a shell, a snail"]
    assert spelling.learn(messages) == ["a", "snail", "shell"]
    meant = ["a {snail's}", "a shell", "sand"]
    assert spelling.learn(messages, meant) == ["a", "snail", "shell", "snail's", "sand"]
    assert spelling.learn(3 * ["I don’t"], ["it’s"]) == ["i", "don't", "it's"]


def distance(a: str, b: str) -> int:
    """Letters left out, added, replaced, or swapped with their neighbour (optimal string alignment)."""
    d = [[i + j if i == 0 or j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            d[i][j] = min(d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 2 : i] == b[j - 2 : j][::-1]:
                d[i][j] = min(d[i][j], d[i - 2][j - 2] + 1)
    return d[-1][-1]


def test_slips_are_the_words_at_distance_one():
    short = ["".join(letters) for n in range(4) for letters in itertools.product("ab'", repeat=n)]
    for a, b in itertools.product(short, repeat=2):
        assert (b in spelling.slips(a)) == (distance(a, b) == 1 or (a == b != "")), (a, b)


def test_words_of_the_persona_stay_and_most_typos_in_them_are_mended(guppy, guppy_rows):
    known = spelling.learn((row["input"] for row in guppy_rows), datagen.spelled(guppy))
    words = {word: rank for rank, word in enumerate(known)}
    quiet = datagen.conversations(dataclasses.replace(guppy, noise={}), 3_000, 11)
    sense = [c for c in quiet if c.exchange.place != "topics.confused.gibberish"]  # that is no word, and may be a slip
    meant, rng = [c.message.lower() for c in sense], random.Random(0)
    assert [spelling.mend(message, words) for message in meant] == meant
    typed = [datagen.misspell(message, rng) for message in meant]
    assert sum(spelling.mend(typo, words) == m for typo, m in zip(typed, meant, strict=True)) > 0.5 * len(meant)


def test_a_word_of_any_length_is_read():
    long = "x" * 100_000  # all slips of a word so long would not fit into memory
    assert spelling.mend(f"{long} bubles", WORDS) == f"{long} bubbles"
