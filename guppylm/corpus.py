"""What a model is trained on: conversations as token ids, and others kept apart to measure on."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from guppylm import datagen, spelling, tokenizer
from guppylm.checkpoint import write_text
from guppylm.model import ModelConfig
from guppylm.tokenizer import Tokenizer

CONTEXT = ModelConfig.context_length  # tokens of the longest conversation that a model of the default size can read


class Row(NamedTuple):
    """One conversation as token ids. The first `prompt` of them are the message, the rest the reply."""

    ids: list[int]
    prompt: int

    @property
    def reply_tokens(self) -> int:
        """Tokens of the reply, its <|im_end|> included."""
        return len(self.ids) - self.prompt


@dataclass(frozen=True)
class Corpus:
    """What is trained on, and what is kept apart to measure on."""

    tok: Tokenizer
    train: list[Row]  # of the first pass
    evaluation: list[Row]
    digest: str  # SHA-256 of the rows, by which one knows later whether they are still the same
    message: str  # one of the evaluation rows', to be answered again and again as training goes on
    floor: float | None = None  # nats a reply that no model can get under on the evaluation rows, where it is known
    draw: Callable[[int], list[Row]] | None = None  # as many rows for a later pass; None: the same ones again

    @property
    def reply_tokens(self) -> int:
        """Tokens of all replies of the evaluation rows."""
        return sum(row.reply_tokens for row in self.evaluation)

    def rows(self, number: int) -> list[Row]:
        """The training rows of a pass, the first of which has the number 0."""
        return self.train if number == 0 or self.draw is None else self.draw(number)


def prepare(
    persona: datagen.Persona, n: int = 60_000, n_eval: int = 1_000, seed: int = 0, tok: Tokenizer | None = None
) -> Corpus:
    """n conversations of a persona to train on, n_eval others to measure on, and a tokenizer.

    The tokenizer is trained on the former, if none is given. With one that was learned on other words conversations
    get longer; if at most one in a hundred no longer fits the context, these are left out.

    Every later pass draws new conversations: a model can't learn by heart what it meets only once.
    PersonaError if a conversation is longer than the context (CONTEXT tokens), or if the persona can say only one;
    ValueError if the given tokenizer makes too many too long.
    """
    made = list(datagen.conversations(persona, n + n_eval, seed))
    train, held = datagen.split([c.row() for c in made], n_eval)
    if not train:
        raise datagen.PersonaError(f"{persona.file}: can say one conversation alone: write more lines or replies")
    digest, borrowed = digest_of(train + held), tok is not None
    tok = tokenizer_of(train, tok, datagen.spelled(persona))
    if borrowed:  # a few may go, but where many are too long the tokenizer is wrong
        short_train, short_held = (
            [row for row in rows if len(tok.encode_conversation(row["input"], row["output"])[0]) <= CONTEXT]
            for rows in (train, held)
        )
        if not short_held or len(short_train) + len(short_held) < 0.99 * (len(train) + len(held)):
            raise ValueError(
                "--tokenizer: it was learned from other words: more than one conversation in a hundred is longer than "
                f"{CONTEXT} tokens with it. Leave it out, or take another"
            )
        train, held = short_train, short_held
    origin = {(c.message, c.reply): c for c in made}
    kept_apart = {datagen.pair(row) for row in held}
    said = [origin[row["input"], row["output"]] for row in held]
    floor = sum(-datagen.reply_log_prob(c.exchange, c.shared, c.reply) for c in said) / len(said)

    def draw(number: int) -> list[Row]:
        # What is too long stops a run before it begins. Later that would cost the run, so the next is taken instead.
        again = draw_again(persona, seed, number, kept_apart)
        encoded = (Row(*tok.encode_conversation(c.message, c.reply)) for c in again)
        return list(islice((row for row in encoded if len(row.ids) <= CONTEXT), len(train)))

    train_rows, eval_rows = (
        [_checked(persona, origin[row["input"], row["output"]], tok) for row in rows] for rows in (train, held)
    )
    return Corpus(tok, train_rows, eval_rows, digest, held[0]["input"], floor, draw)


def _checked(persona: datagen.Persona, c: datagen.Conversation, tok: Tokenizer) -> Row:
    """A conversation as token ids. PersonaError names the entries it was made from if it is longer than CONTEXT."""
    row = Row(*tok.encode_conversation(c.message, c.reply))
    if len(row.ids) <= CONTEXT:
        return row
    longer = "line" if 2 * row.prompt > len(row.ids) else "reply"
    raise datagen.PersonaError(
        f"{persona.file}: {c.exchange.place}: {', '.join(c.entries)}: make a conversation of {len(row.ids)} tokens, "
        f"and {CONTEXT} fit: shorten the {longer}"
    )


def tokenizer_of(rows: list[dict[str, str]], given: Tokenizer | None, lines: Iterable[str] = ()) -> Tokenizer:
    """The tokenizer of a model trained on the rows: with their words, and with their merges if none is given.

    lines: what the messages were made from, where that is known.
    """
    tok = given or tokenizer.train(tokenizer.conversation_texts(rows))
    return Tokenizer(tok.bpe, spelling.learn((row["input"] for row in rows), lines))


def draw_again(
    persona: datagen.Persona, seed: int, number: int, kept_apart: set[tuple[str, str]]
) -> Iterator[datagen.Conversation]:
    """The conversations of a later pass, without end: new ones, and none of those that are kept apart to measure on."""
    made = datagen.endless(persona, f"{seed}/{number}")
    return (c for c in made if datagen.pair(c.row()) not in kept_apart)


def training_replies(persona: datagen.Persona, training: dict) -> set[str]:
    """Every reply that a run met, from what its config.json says: rows, eval_rows, seed, step, batch_size.

    The pass in which it stopped counts as a whole. Where config.json says by rows_digest that the templates made other
    rows then, nobody can know: the set is empty.
    """
    rows = datagen.generate(persona, training["rows"] + training["eval_rows"], training["seed"])
    train, held = datagen.split(rows, training["eval_rows"])
    digest = digest_of(train + held)
    if training.get("rows_digest", digest) != digest:  # a config.json without one is believed
        return set()
    kept_apart = {datagen.pair(row) for row in held}
    replies = {row["output"] for row in train}
    passes = math.ceil(training.get("step", training["steps"]) / max(1, len(train) // training["batch_size"]))
    for number in range(1, passes):
        again = draw_again(persona, training["seed"], number, kept_apart)
        replies |= {c.reply for c in islice(again, len(train))}
    return replies


def read(folder: Path, tok: Tokenizer | None = None) -> Corpus:
    """folder/train.jsonl and folder/eval.jsonl as a corpus. ValueError names the file and line of a mistake."""
    train, held = read_rows(folder / "train.jsonl"), read_rows(folder / "eval.jsonl")
    tok = tokenizer_of(train, tok)
    corpus = Corpus(tok, encode(train, tok), encode(held, tok), digest_of(train + held), held[0]["input"])
    for name, rows in (("train", corpus.train), ("eval", corpus.evaluation)):
        for i, row in enumerate(rows):
            if len(row.ids) > CONTEXT:
                place = f"{folder / name}.jsonl: row {i + 1}"
                raise ValueError(f"{place}: has {len(row.ids)} tokens, and {CONTEXT} fit")
    return corpus


def read_lines(file: Path) -> list[str]:
    """The lines of a text file, with or without the mark that some Windows editors begin it with. ValueError if it
    isn't UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is not UTF-8 text (byte {error.start})") from error


def read_rows(file: Path) -> list[dict[str, str]]:
    """JSON lines with "input" and "output". ValueError names the line that is not so."""
    rows = []
    for i, line in enumerate(read_lines(file)):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}: line {i + 1} is not JSON: {error}") from error
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("input", "output")):
            raise ValueError(f'{file}: line {i + 1} is not {{"input": "...", "output": "..."}}')
        if re.search("[\ud800-\udfff]", row["input"] + row["output"]):  # left by a program that cut an emoji in two
            raise ValueError(f"{file}: line {i + 1} holds half a character, which is no text")
        rows.append(row)
    return rows


def write_rows(folder: Path, train: list[dict[str, str]], held: list[dict[str, str]]) -> None:
    """Write folder/train.jsonl and folder/eval.jsonl, which `read` reads.

    ValueError if one is there that came from elsewhere: a learner's own rows can't be made again.
    """
    files = [folder / f"{name}.jsonl" for name in ("train", "eval")]
    for file in files:
        if file.exists() and '"category": ' not in read_lines(file)[0]:  # which all rows made here have
            raise ValueError(f"{file}: was not written by this program, and stays: choose another folder")
    for file, rows in zip(files, (train, held), strict=True):
        write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def digest_of(rows: list[dict[str, str]]) -> str:
    """The SHA-256 of exactly these rows."""
    return hashlib.sha256(json.dumps([(row["input"], row["output"]) for row in rows]).encode()).hexdigest()


def encode(rows: Iterable[dict[str, str]], tok: Tokenizer) -> list[Row]:
    """Rows as token ids, once, before training starts."""
    return [Row(*tok.encode_conversation(row["input"], row["output"])) for row in rows]
