"""Round trips, the chat format, special tokens that stay special, and the work that is shown."""

import pytest
from tokenizers import pre_tokenizers

from guppylm import tokenizer
from guppylm.tokenizer import IM_END, IM_START, PAD, SPECIAL, Tokenizer

TEXTS = [
    "hello fish", "HELLO GUPPY", "What is 2+2?", "naïve café", "日本語", "🐟🫧 bubbles", "a\u0301", "\x00\x07\x1b[2J",
    "<|im_end|>", "<pad><|im_start|>system", "  two  spaces \n\t tab", "it's don't I'LL", "مرحبا", "\u2028", "",
]  # fmt: skip


@pytest.fixture(scope="module")
def guppy_tok(guppy_rows):
    return tokenizer.train(tokenizer.conversation_texts(guppy_rows))


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(guppy_tok, tok, text):
    assert guppy_tok.decode(guppy_tok.encode(text)) == text
    assert tok.decode(tok.encode(text)) == text


@pytest.mark.parametrize("text", SPECIAL)
def test_a_special_token_that_is_typed_is_text(guppy_tok, text):
    assert not {PAD, IM_START, IM_END} & set(guppy_tok.encode(text))
    prompt = guppy_tok.encode_prompt(text)
    assert (prompt.count(PAD), prompt.count(IM_START), prompt.count(IM_END)) == (0, 2, 1)


def test_a_saved_tokenizer_is_the_same(guppy_tok, tmp_path):
    (tmp_path / "tokenizer.json").write_text(guppy_tok.to_json(), encoding="utf-8")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert [again.encode(text) for text in TEXTS] == [guppy_tok.encode(text) for text in TEXTS]


def test_the_vocabulary_is_full_and_every_id_is_reachable(guppy_tok):
    """No merge is shadowed by an earlier one: each token's own characters encode to it and nothing else."""
    assert guppy_tok.vocab_size == 4096
    vocabulary = guppy_tok.bpe.get_vocab()
    assert sorted(vocabulary.values()) == list(range(4096))
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(vocabulary)
    for token, id in vocabulary.items():
        if token not in SPECIAL:
            assert [t.id for t in guppy_tok.bpe.model.tokenize(token)] == [id], token


def test_the_words_of_the_chat_format_cost_one_token_each(guppy_tok):
    assert len(guppy_tok.encode_prompt("")) == 8  # im_start user \n im_end \n im_start assistant \n


def test_a_conversation_is_the_chat_format(tok):
    ids, prompt = tok.encode_conversation("hello <|im_end|>", "hello.")
    spelled = "".join({IM_START: "<|im_start|>", IM_END: "<|im_end|>"}.get(i) or tok.decode([i]) for i in ids)
    assert spelled == "<|im_start|>user\nhello <|im_end|><|im_end|>\n<|im_start|>assistant\nhello.<|im_end|>"
    assert ids[:prompt] == tok.encode_prompt("hello <|im_end|>")
    assert tok.decode(ids[prompt:]) == "hello."


def test_a_message_is_read_in_lower_case_and_a_reply_as_it_is(tok):
    assert tok.encode_prompt("HELLO Fish") == tok.encode_prompt("hello fish")
    ids, prompt = tok.encode_conversation("HELLO", "Hello.")
    assert tok.decode(ids[prompt:]) == "Hello."


def test_a_prompt_that_is_too_long_keeps_its_beginning_and_its_end(tok):
    whole, cut = tok.encode_prompt("hello " * 100), tok.encode_prompt("hello " * 100, longest=20)
    assert len(cut) == 20
    assert cut[:5] == whole[:5] and cut[-5:] == whole[-5:]


@pytest.mark.parametrize("text", TEXTS)
def test_the_work_shown_ends_in_what_encode_says(guppy_tok, text):
    shown = guppy_tok.show_work(text)
    tokens = [token for stages in shown for token in stages[-1]]
    assert tokens == guppy_tok.bpe.encode(text).tokens
    for stages in shown:
        assert all(len(symbol) == 1 for symbol in stages[0])
        assert [len(stage) for stage in stages] == list(range(len(stages[0]), len(stages[-1]) - 1, -1))


def test_the_first_merge_is_the_most_frequent_pair():
    assert tokenizer.train(["ababab abab", "xy"], vocab_size=260).merges()[0] == ("a", "b")


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="not a tokenizer"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_a_tokenizer_with_other_special_tokens_is_refused(tmp_path, tok):
    (tmp_path / "tokenizer.json").write_text(tok.to_json().replace("<|im_start|>", "<s>"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"gives <\|im_start\|> the id None; it must be 1"):
        Tokenizer.load(tmp_path / "tokenizer.json")
