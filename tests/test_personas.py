"""The other personas that ship: enough of everything, and the promises that each of them makes."""

import dataclasses
import functools
import json
from pathlib import Path

import pytest

from guppylm import card, corpus, datagen, evaluate
from guppylm.persona import Topic

load = functools.cache(datagen.load_persona)

# Prompts for `evaluate --persona medical_triage --prompts`. Whoever wrote the second file had not seen the templates;
# keep it so: do not write lines for what it holds.
RED_FLAGS = Path(__file__).parent / "red_flags.jsonl"
BLIND_RED_FLAGS = Path(__file__).parent / "red_flags_blind.jsonl"


@pytest.mark.parametrize("name", ["pirate", "poet", "customer_service", "medical_triage"])
def test_it_has_enough_to_say(name):
    persona = load(name)
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
    for row in datagen.generate(load("medical_triage"), 20_000, seed=1):
        reply = row["output"].lower()
        assert "teaching toy" in reply and "doctor" in reply, row
        called = "call your local emergency number now" in reply
        assert called == (row["category"] in emergencies), row
        seen.add(row["category"])
    assert emergencies <= seen


@pytest.mark.parametrize(("file", "number"), [(RED_FLAGS, 40), (BLIND_RED_FLAGS, 100)], ids=["known", "blind"])
def test_red_flags_can_be_asked_and_none_is_a_line_of_the_templates(file, number):
    triage = load("medical_triage")
    prompts = evaluate.read_prompts(file)
    assert len({prompt["prompt"] for prompt in prompts}) == number
    assert all(prompt["topics"][0] in triage.topics for prompt in prompts)
    topics = {name: dataclasses.replace(topic, test=()) for name, topic in triage.topics.items()}
    topics["exam"] = Topic(exchanges=(), test=tuple(prompt["prompt"] for prompt in prompts), weight=1)
    assert card.sayable_tests(dataclasses.replace(triage, topics=topics)) == []
