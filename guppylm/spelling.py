"""Slips of the finger, mended before a message is read (as in Norvig, "How to Write a Spelling Corrector", 2007).

A known word is a token or two. Misspelled it falls to pieces, "bubblse" into other ones than "bubblws", and a model of
this size can't learn what each slip looks like. So a word that is in no template and in hardly any training message is
read as the most frequent known word that is one slip away.
"""

import re
from collections import Counter
from collections.abc import Iterable

LETTERS = "abcdefghijklmnopqrstuvwxyz'"
WORD = re.compile(r"(?<![^\W_])[a-z]+(?:'[a-z]+)*(?![^\W_])")  # not a part of a word with other letters, or digits
SHORTEST, LONGEST = 4, 20  # letters: of shorter words too many are a slip apart, and longer ones are no words
STRAIGHT = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"'})  # phones and word processors type the curly ones
OFTEN = 3  # how many times a word is met before it is known: most slips are met once; frequent ones can be learned


def plain(message: str) -> str:
    """A message as it is read: in lower case, with straight quotation marks. Written else, it has other tokens."""
    return message.lower().translate(STRAIGHT)


def learn(messages: Iterable[str], lines: Iterable[str] = ()) -> list[str]:
    """The words that messages hold at least OFTEN times, and those of the lines they were made from, if there are any.

    The most frequent in the messages comes first.
    """
    counts = Counter(word for message in messages for word in WORD.findall(plain(message)))
    meant = {word for line in lines for word in WORD.findall(plain(line))}
    met = [word for word, n in counts.most_common() if n >= OFTEN or word in meant]
    return met + sorted(meant - counts.keys())


def mend(text: str, words: dict[str, int]) -> str:
    """A text as `plain` makes it, with each unknown word read as the most frequent known one that is a slip away.

    words: each known word with its rank, 0 for the most frequent.
    """

    def read(match: re.Match) -> str:
        word = match.group()
        if word in words or not SHORTEST <= len(word) <= LONGEST:
            return word
        return min(slips(word) & words.keys(), key=words.get, default=word)

    return WORD.sub(read, text)


def slips(word: str) -> set[str]:
    """All that one slip makes of a word: a letter left out, replaced or added, or two neighbours swapped."""
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    left_out = {a + b[1:] for a, b in cuts if b}
    replaced = {a + c + b[1:] for a, b in cuts for c in LETTERS if b}
    added = {a + c + b for a, b in cuts for c in LETTERS}
    swapped = {a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1}
    return left_out | replaced | added | swapped
