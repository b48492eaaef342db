"""A persona file: read, checked, and turned into the grammar that `datagen` samples from.

The format is explained at the head of `data_templates/guppy.toml`. What is wrong in a file is said in one line that
names the file, the place and what to do, because this is the file that learners edit.
"""

import difflib
import re
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from guppylm.grammar import Pools, Slot, Text, Word, fold, parse, pools_of

AROUND = ("ask_in", "lead_in", "tag")  # noise that is drawn from a pool: before a question, before any line, behind it
NOISE = (*AROUND, "texting", "drop_word", "no_apostrophe", "typo", "no_punctuation", "extra_punctuation", "capital",
         "shout")  # fmt: skip


class PersonaError(ValueError):
    """A persona file that can't be used: one line that names the file, the place in it and what to do."""


@dataclass(frozen=True)
class Exchange:
    """One kind of message of a topic, and how it is answered."""

    place: str  # where it stands in the file, such as topics.food.offer
    pools: Pools  # the words it may use: the topic's own, then the persona's
    user: tuple[Text, ...]
    reply: tuple[tuple[Text, ...], ...]  # one text of each part is said; an empty text leaves its part out

    @cached_property
    def _asked(self) -> set[str]:
        """The pools that the user lines draw from."""
        return set().union(*(pools_of(line, self.pools) for line in self.user))

    @cached_property
    def _answered(self) -> list[Slot]:
        """The slots in the reply's own texts."""
        return [piece for part in self.reply for text in part for piece in text if isinstance(piece, Slot)]

    @cached_property
    def taken_over(self) -> set[str]:
        """The pools that both user lines and reply use: there the message decides the word."""
        return {slot.pool for slot in self._answered} & self._asked

    @cached_property
    def repeats(self) -> set[str]:
        """Pools taken over whose word the reply says, and not only agrees with."""
        return {slot.pool for slot in self._answered if not slot.field} & self._asked

    @cached_property
    def line_words(self) -> set[str]:
        """The words of its user lines that name nothing: all except those of the pools that the reply takes over."""
        others = self._asked - self.taken_over
        texts = [*self.user, *(word.text for pool in others for word in self.pools[pool])]
        return {word for text in texts for piece in text if isinstance(piece, str) for word in fold(piece).split()}


@dataclass(frozen=True)
class Topic:
    exchanges: tuple[Exchange, ...]
    test: tuple[str, ...]  # phrasings that are never trained on
    weight: float  # how often the topic comes up, against 1 for the others


@dataclass(frozen=True)
class Persona:
    file: Path
    name: str
    summary: str
    greeting: str  # what it says first, where it has a face: on the page
    color: str  # of that page, such as "#e0662f"
    pools: Pools
    noise: dict[str, float]  # probability of each kind of noise in a message
    texting: dict[str, tuple[str, ...]]  # how words are written in a hurry: you -> u
    topics: dict[str, Topic]


def find_persona(persona: str | Path) -> Path:
    """The file of a persona: a path to a .toml as it is, a name in ./data_templates, else the copy in the package."""
    if Path(persona).suffix == ".toml":
        return Path(persona)
    package = Path(__file__).parent
    folders = [Path("data_templates"), package / "data_templates", package.parent / "data_templates"]
    for folder in folders:
        if (folder / f"{persona}.toml").is_file():
            return folder / f"{persona}.toml"
    known = sorted({file.stem for folder in folders for file in folder.glob("*.toml")})
    raise PersonaError(f"no persona named {persona!r}: there are {', '.join(known)}; or give the path of a .toml file")


def load_persona(persona: str | Path) -> Persona:
    """Read and check a persona, by name or path. PersonaError names file, place and entry of the first mistake."""
    file = find_persona(persona)
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8-sig"))  # some Windows editors begin a file with a mark
    except OSError as error:
        raise PersonaError(f"{file}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PersonaError(f"{file}: is not UTF-8 text (byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise PersonaError(f"{file}: is not TOML: {error}") from error
    try:
        return _read_persona(file, table)
    except PersonaError as error:
        raise PersonaError(f"{file}: {error}") from error


def _read_persona(file: Path, table: dict) -> Persona:
    _check_keys(table, ("name", "summary", "greeting", "color", "words", "noise", "texting", "topics"), "the top level")
    for key in ("name", "summary"):
        if not isinstance(table.get(key), str):
            raise PersonaError(f'{key} is missing: write {key} = "..." at the top')
    greeting, color = table.get("greeting", ""), table.get("color", "#e0662f")
    if not isinstance(greeting, str):
        raise PersonaError(f"greeting: must be a text, not {greeting!r}")
    if not isinstance(color, str) or not re.fullmatch("#[0-9a-fA-F]{6}", color):
        raise PersonaError(f'color: must be red, green and blue in hexadecimal, such as "#e0662f", not {color!r}')
    if not isinstance(table.get("topics"), dict) or not table["topics"]:
        raise PersonaError("there are no topics: write [topics.food] with user = [...] and reply = [[...], ...]")
    if not re.fullmatch(r"\w[\w -]*", table["name"]):
        raise PersonaError(f"name: must be made of letters, digits, spaces and - alone, not {table['name']!r}")
    if not isinstance(table.get("texting", {}), dict):
        raise PersonaError("texting: must be a table, written [texting]")
    pools = _read_pools(table.get("words", {}), "words")
    noise = _read_noise(table.get("noise", {}), pools)
    texting = {word: tuple(_strings(short, f"texting.{word}")) for word, short in table.get("texting", {}).items()}
    topics = {name: _read_topic(topic, f"topics.{name}", pools) for name, topic in table["topics"].items()}
    return Persona(file, table["name"], table["summary"], greeting, color, pools, noise, texting, topics)


def _check_keys(table: object, known: tuple[str, ...], place: str) -> None:
    if not isinstance(table, dict):
        raise PersonaError(f"{place}: must be a table, written [{place}]")
    for key in table:
        if key not in known:
            raise PersonaError(f"{place}: there is nothing called {key!r}{_nearest(key, known)}")


def _nearest(name: str, known) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(sorted(known))}" if known else "; there are none yet: write [words]"


def _strings(value: object, place: str) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(entry, str) for entry in value):
        raise PersonaError(f'{place}: must be a list of one or more texts: ["...", "..."]')
    return value


def _read_text(entry: str, place: str) -> Text:
    try:
        return parse(entry)
    except ValueError as error:
        raise PersonaError(f"{place}: {error}: {entry!r}") from error


def _read_pools(table: object, place: str) -> Pools:
    if not isinstance(table, dict):
        raise PersonaError(f"{place}: must be a table of lists, written [{place}]")
    return {name: _read_pool(entries, f"{place}.{name}") for name, entries in table.items()}


def _read_pool(entries: object, place: str) -> tuple[Word, ...]:
    if not isinstance(entries, list) or not entries:
        raise PersonaError(f'{place}: must be a list of one or more words: ["...", "..."]')
    words = []
    for i, entry in enumerate(entries):
        fields = dict(entry) if isinstance(entry, dict) else {"text": entry}
        text = fields.pop("text", None)
        if not all(isinstance(value, str) for value in (text, *fields.values())) or not text:
            raise PersonaError(f'{place}[{i}]: must be a word, "fins", or with grammar {{ text = "fins", be = "are" }}')
        words.append(Word(_read_text(text, f"{place}[{i}]"), tuple(fields.items())))
    return tuple(words)


def _read_noise(table: object, pools: Pools) -> dict[str, float]:
    _check_keys(table, NOISE, "noise")
    for kind, probability in table.items():
        if not isinstance(probability, int | float) or not 0 <= probability <= 1:
            raise PersonaError(f"noise.{kind}: must be a probability from 0 to 1, not {probability!r}")
        if kind in AROUND:
            if kind not in pools:
                place = f"noise.{kind}"
                raise PersonaError(f"{place}: is drawn from a pool that is missing: write {kind} = [...] in [words]")
            _mentions((Slot(kind),), pools, f"words.{kind}", set())
    return table


def _read_topic(table: object, place: str, pools: Pools) -> Topic:
    """A topic is one exchange, or holds several as tables of their own: [topics.food.offer], [topics.food.hunger]."""
    if not isinstance(table, dict):
        raise PersonaError(f"{place}: must be a table, written [{place}]")
    inner = {key: value for key, value in table.items() if isinstance(value, dict) and key != "words"}
    own_keys = {key: value for key, value in table.items() if key not in inner}
    _check_keys(own_keys, ("user", "reply", "test", "words", "weight"), place)
    own = pools | _read_pools(table.get("words", {}), f"{place}.words")
    exchanges = {place: table} if not inner else {}
    for key, value in inner.items():
        _check_keys(value, ("user", "reply"), f"{place}.{key}")
        exchanges[f"{place}.{key}"] = value
    if inner and ("user" in table or "reply" in table):
        raise PersonaError(f"{place}: holds exchanges, so its own user and reply lines need a name too: [{place}.more]")
    test = _strings(table["test"], f"{place}.test") if "test" in table else []
    weight = table.get("weight", 1)
    if not isinstance(weight, int | float) or not 0 < weight < 1000:
        raise PersonaError(f"{place}.weight: must be a number above 0 and below 1,000, not {weight!r}")
    return Topic(tuple(_read_exchange(e, p, own) for p, e in exchanges.items()), tuple(test), weight)


def _read_exchange(table: dict, place: str, pools: Pools) -> Exchange:
    for key in ("user", "reply"):
        if key not in table:
            raise PersonaError(f"{place}: has no {key} lines: write {key} = [...]")
    lines = _strings(table["user"], f"{place}.user")
    parts = table["reply"]
    if not isinstance(parts, list) or not parts or not all(isinstance(part, list) for part in parts):
        raise PersonaError(f'{place}.reply: must be a list of parts, lists of texts: [["yes.", "no."], ["", "why?"]]')
    user = tuple(_read_text(line, f"{place}.user[{i}]") for i, line in enumerate(lines))
    named = set.intersection(*(_mentions(text, pools, f"{place}.user[{i}]", set()) for i, text in enumerate(user)))
    if any(not line.strip() for line in lines):
        raise PersonaError(f"{place}.user: has an empty line")
    reply = []
    for i, part in enumerate(parts):
        texts = []
        for j, entry in enumerate(_strings(part, f"{place}.reply[{i}]")):
            texts.append(_read_text(entry, f"{place}.reply[{i}][{j}]"))
            _mentions(texts[-1], pools, f"{place}.reply[{i}][{j}]", named)
        reply.append(tuple(texts))
    if all(() in part for part in reply):
        raise PersonaError(f'{place}.reply: can come out empty: at least one part must be without ""')
    return Exchange(place, pools, user, tuple(reply))


def _mentions(text: Text, pools: Pools, place: str, before: set[str], inside: tuple[str, ...] = ()) -> set[str]:
    """The pools that `text` always draws from; PersonaError if one is unknown, endless, or lacks a field."""
    named = set(before)
    for slot in text:
        if isinstance(slot, str):
            continue
        if slot.pool not in pools:
            raise PersonaError(f"{place}: there is no pool {{{slot.pool}}}{_nearest(slot.pool, pools)}")
        if slot.pool in inside:
            circle = " -> ".join((*inside, slot.pool))
            raise PersonaError(f"{place}: the pool {{{slot.pool}}} contains itself: {circle}")
        if not slot.field:
            each = [_mentions(word.text, pools, place, named, (*inside, slot.pool)) for word in pools[slot.pool]]
            named = set.intersection(*each) | {slot.pool}
            continue
        if slot.pool not in named:
            raise PersonaError(f"{place}: {{{slot.pool}.{slot.field}}} has no {{{slot.pool}}} before it to agree with")
        for i, word in enumerate(pools[slot.pool]):
            if slot.field not in dict(word.fields):
                raise PersonaError(f"{place}: {{{slot.pool}.{slot.field}}}: word {i} of the pool has no {slot.field}")
    return named
