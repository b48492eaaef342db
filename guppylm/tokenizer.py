"""Text to numbers and back: a byte-level BPE tokenizer, and the chat format as token ids.

Byte-pair encoding starts from the 256 bytes, so that no text is ever unknown, and learns merges: the pair of
neighbours that is most frequent in the training text becomes one token, again and again, until the vocabulary is
full (Sennrich et al. 2016; on bytes, as in GPT-2). One conversation is the sequence

    <|im_start|>user\\n{message}<|im_end|>\\n<|im_start|>assistant\\n{reply}<|im_end|>

with the message in lower case and its quotation marks straight. The special tokens have ids that no text encodes to:
`<|im_end|>` typed by a user is ten plain characters.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as BPETokenizer

from guppylm import spelling

PAD, IM_START, IM_END = 0, 1, 2  # ids
SPECIAL = ("<pad>", "<|im_start|>", "<|im_end|>")  # in the order of their ids

# Merges never cross these pieces: a word with the space before it, one digit (or every number would become a token of
# its own), a run of punctuation, a run of white space.
PIECES = r"'(?:s|t|re|ve|m|ll|d)\b| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class Tokenizer:
    """A trained tokenizer. Texts are any Unicode; ids are whole numbers below `vocab_size`."""

    def __init__(self, bpe: BPETokenizer, words: Iterable[str] = ()):
        """words: those that `spelling.learn` found; without them `mend` changes nothing.

        ValueError if the special tokens don't have the ids of the chat format.
        """
        for i, token in enumerate(SPECIAL):
            if bpe.token_to_id(token) != i:
                raise ValueError(f"the tokenizer gives {token} the id {bpe.token_to_id(token)}; it must be {i}")
        self.bpe = bpe
        self.bpe.encode_special_tokens = True  # what looks like a special token in a text is read as plain text
        self.bpe.no_padding()
        self.bpe.no_truncation()
        self.vocab_size = bpe.get_vocab_size()
        self.words = {word: rank for rank, word in enumerate(words)}

    @classmethod
    def load(cls, file: Path, words: Iterable[str] = ()) -> "Tokenizer":
        """Read a tokenizer.json. ValueError if it is not one."""
        try:
            return cls(BPETokenizer.from_str(Path(file).read_text(encoding="utf-8")), words)
        except OSError:
            raise
        except Exception as error:  # the library raises bare Exceptions on a broken file
            raise ValueError(f"{file}: not a tokenizer: {error}") from error

    def to_json(self) -> str:
        return self.bpe.to_str(pretty=True)

    def encode(self, text: str) -> list[int]:
        return self.bpe.encode(text).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids; special tokens have none, and bytes that make no character become U+FFFD."""
        return self.bpe.decode([i for i in ids if i >= len(SPECIAL)])

    def encode_prompt(self, message: str, longest: int | None = None) -> list[int]:
        """The conversation up to where the reply begins; a message too long for `longest` ids loses its end.

        The message is read in lower case: "Food", "FOOD" and "food" are different tokens, and a model that has to
        learn what each of them means needs three times the examples and still stumbles over what is shouted. So it is
        with the ’ of a phone's keyboard.
        """
        user = self.encode(f"user\n{spelling.plain(message)}")
        after = [IM_END, *self.encode("\n"), IM_START, *self.encode("assistant\n")]
        if longest is not None:
            user = user[: longest - 1 - len(after)]
        return [IM_START, *user, *after]

    def mend(self, message: str) -> str:
        """A message as it is read, its slips of the finger mended. For what is typed in a chat; training meets them."""
        return spelling.mend(spelling.plain(message), self.words)

    def encode_conversation(self, message: str, reply: str) -> tuple[list[int], int]:
        """The whole conversation, and how many of its ids are the prompt: what follows is reply and <|im_end|>."""
        prompt = self.encode_prompt(message)
        return [*prompt, *self.encode(reply), IM_END], len(prompt)

    def merges(self) -> list[tuple[str, str]]:
        """The learned merges, first learned first. Tokens are spelled in byte characters, where Ġ is a space."""
        return [tuple(pair) for pair in json.loads(self.bpe.to_str())["model"]["merges"]]

    def show_work(self, text: str) -> list[list[list[str]]]:
        """How `text` is encoded: for each piece, its stages from single bytes to final tokens, a merge at a time.

        tok.show_work("hello")[0] may be [["h","e","l","l","o"], ["h","e","ll","o"], ["h","ello"], ["hello"]].
        """
        rank = {pair: i for i, pair in enumerate(self.merges())}
        pieces = [piece for piece, _ in self.bpe.pre_tokenizer.pre_tokenize_str(text)]
        return [_merge_stages(list(piece), rank) for piece in pieces]


def _merge_stages(symbols: list[str], rank: dict[tuple[str, str], int]) -> list[list[str]]:
    stages = [symbols]
    while True:
        pairs = list(zip(symbols, symbols[1:], strict=False))
        learned = [pair for pair in pairs if pair in rank]
        if not learned:
            return stages
        i = pairs.index(min(learned, key=rank.get))  # the merge that was learned first, where it first occurs
        symbols = [*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :]]
        stages.append(symbols)


def train(texts: Iterable[str], vocab_size: int = 4096) -> Tokenizer:
    """Learn a tokenizer from texts. A text with too few different words gives fewer than `vocab_size` entries."""
    bpe = BPETokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),  # each byte as one visible character
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # all 256 bytes, seen in the texts or not
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return Tokenizer(bpe)


def conversation_texts(rows: Iterable[dict[str, str]]) -> Iterable[str]:
    """The texts of rows as the model will meet them, with the words of the chat format in front."""
    for row in rows:
        yield f"user\n{spelling.plain(row['input'])}"
        yield f"assistant\n{row['output']}"
