"""The other personas that ship: enough of everything, and the promises that each of them makes."""

import json
from pathlib import Path

import pytest

from guppylm import card, corpus, datagen

RED_FLAGS = Path(__file__).parent / "red_flags.jsonl"  # prompts for `evaluate --persona medical_triage --prompts`


@pytest.mark.parametrize("name", ["pirate", "poet", "customer_service", "medical_triage"])
def test_it_has_enough_to_say(name):
    persona = datagen.load_persona(name)
    assert len(persona.topics) >= 24 and "confused" in persona.topics
    assert all(len(topic.test) >= 3 for topic in persona.topics.values())
    assert persona.greeting
    rows = datagen.generate(persona, 60_000, seed=0)
    assert len({row["output"] for row in rows}) >= 20_000
    assert len({row["input"] for row in rows}) >= 20_000
    train, held = datagen.split(rows[:20_000], 500)
    counted = card.data_card(persona, train, held, corpus.prepare(persona, 2_000, 100))
    assert card.advice(persona, counted) == []


def test_triage_sends_every_red_flag_to_the_emergency_number_and_always_says_what_it_is():
    emergencies = {json.loads(line)["topic"] for line in RED_FLAGS.read_text(encoding="utf-8").splitlines()}
    assert len(emergencies) >= 10
    seen = set()
    for row in datagen.generate(datagen.load_persona("medical_triage"), 20_000, seed=1):
        reply = row["output"].lower()
        assert "teaching toy" in reply and "doctor" in reply, row
        called = "call your local emergency number now" in reply
        assert called == (row["category"] in emergencies), row
        seen.add(row["category"])
    assert emergencies <= seen


def test_there_are_forty_red_flags():
    assert len(RED_FLAGS.read_text(encoding="utf-8").splitlines()) == 40
