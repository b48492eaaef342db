"""The lesson in copying: what it asks can be known from the message, and the run begins after it as it would have."""

import random
from dataclasses import replace

import pytest
import torch

from guppylm import copying, train
from guppylm.corpus import CONTEXT
from guppylm.model import GuppyLM, ModelConfig
from guppylm.tokenizer import IM_END, IM_START, SPECIAL

CONFIG = train.TrainConfig(copy_steps=12, batch_size=8, micro_batch=4, warmup_steps=2)


@pytest.mark.parametrize("seed", range(50))
def test_a_reply_is_a_run_of_the_message(tok, seed):
    row = copying.random_row(tok, random.Random(seed))
    frame = tok.encode_prompt("")
    at = frame.index(IM_END)
    message, reply = row.ids[at : row.prompt - len(frame) + at], row.ids[row.prompt : -1]
    assert row.ids[: row.prompt] == [*frame[:at], *message, *frame[at:]] and row.ids[-1] == IM_END
    assert row.ids[0] == IM_START and min(message) >= len(SPECIAL) and max(message) < tok.vocab_size
    assert 2 <= len(reply) <= len(message) <= copying.LONGEST
    assert message[-len(reply) :] == reply
    assert len(row.ids) <= CONTEXT and row.reply_tokens == len(reply) + 1


def lesson(tiny, tok):
    state = train.start(tiny, CONFIG, torch.float32)
    return state, list(copying.lesson(state, tok, CONFIG))


def test_the_model_learns_and_stands_before_its_first_step(tiny, tok):
    before = tiny.blocks[0].attn.qkv.weight.clone()
    state, losses = lesson(tiny, tok)
    assert len(losses) == 12 and state.step == 0 and state.losses == [] and state.history == []
    assert losses[-1] < losses[0]
    assert not torch.equal(tiny.blocks[0].attn.qkv.weight, before)


def test_a_lesson_that_is_cut_short_does_not_count_either(tiny, tok):
    state = train.start(tiny, CONFIG, torch.float32)
    begun = copying.lesson(state, tok, CONFIG)
    next(begun)
    begun.close()
    assert state.step == 0


def test_a_run_under_way_gets_no_lesson(tiny, tok):
    before = [p.clone() for p in tiny.parameters()]
    state = train.start(tiny, CONFIG, torch.float32)
    state.step = 5
    assert list(copying.lesson(state, tok, CONFIG)) == [] and state.step == 5
    assert all(torch.equal(a, b) for a, b in zip(before, tiny.parameters(), strict=True))


def test_all_tokens_of_a_random_reply_count_the_same(tok):
    def losses(first_words):
        torch.manual_seed(0)
        model = GuppyLM(ModelConfig(vocab_size=tok.vocab_size, d_model=32, n_layers=1, n_heads=1, d_ff=32))
        config = replace(CONFIG, first_words=first_words)
        return list(copying.lesson(train.start(model, config, torch.float32), tok, config))

    assert losses(0.0) == losses(3.0)


def test_a_loss_that_is_lost_stops_the_lesson(tiny, tok):
    torch.nn.init.constant_(tiny.tok_emb.weight, float("nan"))
    state = train.start(tiny, CONFIG, torch.float32)
    with pytest.raises(train.Diverged, match="the lesson in copying, step 1: the loss is nan"):
        list(copying.lesson(state, tok, CONFIG))
