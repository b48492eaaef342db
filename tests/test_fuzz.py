"""Five thousand broken persona files: each loads and speaks, or is refused in one line. None hangs, none crashes."""

import itertools
import json
import tomllib

import hypothesis.strategies as st
from conftest import SMALL
from hypothesis import HealthCheck, given, settings

from guppylm import card, datagen

NOISY = SMALL.replace(
    "[words]",
    """[noise]
lead_in = 0.5
typo = 0.1

[words]
lead_in = ["hey,", "my {food},"]""",
)
PIECES = ["{", "}", "{{", "{food}", "{food.be}", "{body_part.be}", "{place}", "{nothing}", "[", "]", "[[", '"', '""',
          "'''", "=", ",", "\\", "\\u0000", "\n", "#", "0", "-1", "1e999", "nan", "true", "1979-05-27", "{}", "[]",
          "[topics]", "[topics.home]", "[topics.food.words]", "[words]", "{lead_in}", "weight = 0", "reply = 3", "🐟",
          "\x00", "\u2028"]  # fmt: skip
VALUES = [[], [""], ["", ""], "", "x", "{food}", "{place} {color}", ["{food}"], ["{place}"], ["{color}", "{thing}"],
          [[""]], [["{body_part.be}"]], ["{lead_in}"], [["{food}"], ["", "{food.be}"]], [[], ["x"]], [["x"], "y"], {},
          {"text": "x"},
          [{"be": "is"}], [{"text": "{food}", "be": 3}],
          {"user": ["x"], "reply": [["y"]]}, 0, -1, 1e999, 5000, True, 10**400,
          "#fff"]  # fmt: skip
KEYS = [
    "user",
    "reply",
    "test",
    "words",
    "weight",
    "noise",
    "texting",
    "food",
    "color",
    "place",
    "name",
    "{",
    "a.b",
    "",
]
FUZZ = {"deadline": 2_000, "suppress_health_check": list(HealthCheck), "derandomize": True, "database": None}
share = st.floats(0, 1, exclude_max=True)


def assert_loads_or_is_refused(folder, text: str) -> None:
    file = folder / "fuzzed.toml"
    file.write_text(text, encoding="utf-8", newline="")
    try:
        persona = datagen.load_persona(str(file))
    except datagen.PersonaError as error:
        assert len(str(error).splitlines()) == 1 and str(error).startswith(str(file)), error
        return
    assert all(c.reply for c in itertools.islice(datagen.conversations(persona, 3), 3))
    assert all(card.count_replies(topic) >= 1 for topic in persona.topics.values())


@settings(max_examples=2_000, **FUZZ)
@given(edits=st.lists(st.tuples(st.sampled_from("idm"), share, share, st.sampled_from(PIECES)), min_size=1, max_size=3))
def test_mutated_text(tmp_path, edits):
    """Pieces put in anywhere; lines or a few characters taken out or moved."""
    text = NOISY
    for kind, where, size, piece in edits:
        units = text.splitlines(keepends=True) if size < 0.5 else list(text)
        at = int(where * len(units))
        if kind == "i":
            units.insert(at, piece)
        else:
            taken = [units.pop(at) for _ in range(min(1 + int(size * 6), len(units) - at))]
            units += taken if kind == "m" else []
        text = "".join(units)
    assert_loads_or_is_refused(tmp_path, text)


@settings(max_examples=3_000, **FUZZ)
@given(
    edits=st.lists(
        st.tuples(share, st.sampled_from("rdk"), st.sampled_from(VALUES), st.sampled_from(KEYS)), min_size=1, max_size=4
    )
)
def test_mutated_tables(tmp_path, edits):
    """Well-formed TOML with other values than there should be: replaced, deleted, or under another key."""
    table = tomllib.loads(NOISY)
    for where, kind, value, key in edits:
        places = list(nodes(table))
        parent, place = places[int(where * len(places))]
        if kind == "d" or (kind == "k" and isinstance(parent, list)):
            del parent[place]
        elif kind == "r":
            parent[place] = json.loads(json.dumps(value))
        else:
            parent[key] = parent.pop(place)
        if not table:
            break
    assert_loads_or_is_refused(
        tmp_path, "\n".join(f"{json.dumps(key)} = {toml(value)}" for key, value in table.items())
    )


def nodes(value):
    """Every place in a table where a value stands: its container and its key or index."""
    for key, inner in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
        yield value, key
        if isinstance(inner, dict | list):
            yield from nodes(inner)


def toml(value) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return "inf" if value == float("inf") else json.dumps(value, ensure_ascii=False)
