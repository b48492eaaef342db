"""The loop and its parts: what bears loss, how gradients add up, what resuming gives back."""

import dataclasses
import math
import platform
import time

import pytest
import torch
from conftest import SMALL
from torch.nn import functional as F

from guppylm import corpus, datagen, device, runs, tokenizer, train
from guppylm.corpus import Row
from guppylm.model import GuppyLM, ModelConfig
from guppylm.muon import Muon, orthogonal
from guppylm.tokenizer import IM_END, PAD
from guppylm.train import TrainConfig

CPU = torch.device("cpu")
CONFIG = TrainConfig(steps=12, batch_size=8, micro_batch=3, warmup_steps=4, eval_every=5, learning_rate=5e-3)


def start(corpus, config=CONFIG):
    torch.manual_seed(0)
    sizes = ModelConfig(vocab_size=corpus.tok.vocab_size, d_model=32, n_layers=2, n_heads=2, d_ff=64)
    return train.start(GuppyLM(sizes), config, torch.float32)


def test_the_schedule_rises_in_a_line_and_falls_in_a_cosine():
    config = TrainConfig(steps=110, warmup_steps=10, learning_rate=1.0)
    rates = [train.learning_rate(step, config) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[109] == pytest.approx((1 + math.cos(math.pi * 0.99)) / 2)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_batch_says_what_is_predicted_and_what_counts():
    rows = [Row([1, 5, 6, 7, 8, 2], prompt=3), Row([1, 5, 9, 2], prompt=2)]
    batch = train.make_batch(rows, CPU)
    assert batch.inputs.tolist() == [[1, 5, 6, 7, 8], [1, 5, 9, 2, PAD]]
    assert batch.targets.tolist() == [[5, 6, 7, 8, 2], [5, 9, 2, PAD, PAD]]
    assert batch.counts.int().tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]]


def test_loss_is_the_cross_entropy_of_the_positions_that_count(tiny):
    batch = train.make_batch([Row([1, 5, 6, 7, 8, 2], 3), Row([1, 5, 9, 2], 2)], CPU)
    by_hand = F.cross_entropy(tiny(batch.inputs).transpose(1, 2), batch.targets, reduction="none")
    expected = torch.cat([by_hand[0, 2:5], by_hand[1, 1:3]])
    assert torch.allclose(train.token_losses(tiny, batch, torch.float32), expected, rtol=1e-5)


def test_a_long_gradient_is_cut_to_length(small_corpus):
    state, seen = start(small_corpus), []
    train.backward(state, small_corpus.train[:4], CONFIG)
    for parameter in state.model.parameters():
        parameter.grad *= 1_000
    for optimizer in state.optimizers:
        optimizer.register_step_pre_hook(
            lambda own, *_: seen.extend(p.grad.norm() for group in own.param_groups for p in group["params"])
        )
    assert train.update(state, CONFIG) > 10
    assert torch.stack(seen).norm().item() == pytest.approx(CONFIG.grad_clip, rel=1e-3)


def test_float16_alone_gets_a_scaler(tiny, monkeypatch):
    whole = torch.amp.GradScaler  # which without a GPU is off, whatever is asked for
    monkeypatch.setattr(torch.amp, "GradScaler", lambda enabled: whole("cpu", enabled=enabled))
    for precision in (torch.float32, torch.bfloat16, torch.float16):
        assert train.start(tiny, CONFIG, precision).scaler.is_enabled() == (precision == torch.float16)


def test_the_tokenizer_learns_from_the_training_rows_alone(small, monkeypatch):
    learned, whole = [], tokenizer.train
    monkeypatch.setattr(tokenizer, "train", lambda texts: whole(learned.extend(texts) or learned))
    corpus.prepare(small, n=200, n_eval=20)
    rows, _ = datagen.split(datagen.generate(small, 220, seed=0), 20)
    assert learned == list(tokenizer.conversation_texts(rows))


def test_the_first_words_of_a_reply_weigh_most(tiny):
    batch = train.make_batch([Row([1, 5, 6, 7, 8, 2], 3), Row([1, 5, 9, 2], 2)], CPU)
    assert train.token_weights(batch, 1.0).tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1, 1 / 2])
    assert train.token_weights(batch, 0.0).tolist() == [1, 1, 1, 1, 1]


def test_in_the_end_all_tokens_weigh_the_same():
    config = TrainConfig(steps=100, first_words=2.0)
    assert [train.emphasis(step, config) for step in (0, 50, 100)] == [2.0, 1.0, 0.0]


def test_gradients_are_those_of_the_weighted_mean(small_corpus):
    rows, config, state = small_corpus.train[:4], TrainConfig(steps=100), start(small_corpus)
    state.step = 50  # half-way from 1 / i to no difference
    loss = train.backward(state, rows, config)
    found = state.model.tok_emb.weight.grad.clone()
    state.model.zero_grad()
    total, weight, plain = 0.0, 0.0, []
    for row in rows:
        losses = train.token_losses(state.model, train.make_batch([row], CPU), torch.float32)
        for i, nats in enumerate(losses, start=1):
            total, weight = total + nats / math.sqrt(i), weight + 1 / math.sqrt(i)
        plain += losses.tolist()
    (total / weight).backward()
    assert torch.allclose(found, state.model.tok_emb.weight.grad, atol=1e-6)
    assert loss == pytest.approx(sum(plain) / len(plain), rel=1e-5)  # what is reported weighs all tokens the same


def test_padding_changes_nothing(lively):
    short = Row([1, 5, 9, 2], 2)
    long = Row([1] * 30, 29)
    apart = [train.token_losses(lively, train.make_batch([row], CPU), torch.float32) for row in (long, short)]
    together = train.token_losses(lively, train.make_batch([long, short], CPU), torch.float32)
    assert torch.allclose(together, torch.cat(apart), rtol=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 3, 5])
def test_accumulated_gradients_equal_those_of_one_big_batch(small_corpus, micro_batch):
    rows = small_corpus.train[:8]
    whole = start(small_corpus)
    loss = train.backward(whole, rows, TrainConfig(micro_batch=8))
    parts = start(small_corpus)
    assert train.backward(parts, rows, TrainConfig(micro_batch=micro_batch)) == pytest.approx(loss, rel=1e-5)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-6)


def test_a_conversation_that_is_too_long_stops_no_run_that_has_begun(small_corpus, monkeypatch):
    longest = max(len(row.ids) for row in small_corpus.draw(1))
    monkeypatch.setattr(corpus, "CONTEXT", longest - 1)
    rows = small_corpus.rows(1)
    assert len(rows) == len(small_corpus.train)
    assert max(len(row.ids) for row in rows) < longest


def test_the_few_conversations_that_another_vocabulary_makes_too_long_are_left_out(small_file):
    others = tokenizer.train(["none of these words"] * 2, vocab_size=259)  # a token a byte
    long = f"""
[topics.long]
weight = 0.01
user = ["hm {{letter}}{{letter}}{{letter}}"]
reply = [["{"so " * 40}"]]
[topics.long.words]
letter = ["a", "b", "c", "d", "e", "f", "g", "h"]
"""
    small_file.write_text(SMALL + long, encoding="utf-8")
    persona = datagen.load_persona(str(small_file))
    prepared = corpus.prepare(persona, n=3_000, n_eval=100, tok=others)
    train_rows, held = datagen.split(datagen.generate(persona, 3_100, seed=0), 100)
    assert prepared.tok.bpe is others.bpe and "flakes" in prepared.tok.words
    assert 0 < len(train_rows) + len(held) - len(prepared.train) - len(prepared.evaluation) < 31
    small_file.write_text(SMALL + long.replace("0.01", "1"), encoding="utf-8")
    with pytest.raises(ValueError, match="--tokenizer: it was learned from other words"):
        corpus.prepare(datagen.load_persona(small_file), n=3_000, n_eval=100, tok=others)


def test_each_pass_meets_every_row_once_in_a_new_order(small_corpus):
    rows, config = small_corpus.train[:64], TrainConfig(steps=16, batch_size=8)
    again = dataclasses.replace(small_corpus, train=rows, draw=None)
    steps = list(train.batches(again, config))
    first, second = sum(steps[:8], []), sum(steps[8:], [])
    assert sorted(first) == sorted(second) == sorted(rows)
    assert first != second
    assert list(train.batches(again, config, start=5)) == steps[5:]


def test_a_later_pass_draws_new_rows_and_none_of_the_evaluation(small_corpus):
    config = TrainConfig(steps=3 * (len(small_corpus.train) // 8), batch_size=8)
    steps = list(train.batches(small_corpus, config))
    assert list(train.batches(small_corpus, config, start=len(steps) - 2)) == steps[-2:]
    later = small_corpus.rows(1)
    assert len(later) == len(small_corpus.train)
    assert sorted(later) != sorted(small_corpus.train) and later != small_corpus.rows(2)
    assert later == small_corpus.rows(1)
    assert not {tuple(row.ids) for row in later} & {tuple(row.ids) for row in small_corpus.evaluation}


def test_micro_batches_hold_the_step_with_little_padding(small_corpus):
    rows = small_corpus.train[:32]
    batches = list(train.micro_batches(rows, TrainConfig(micro_batch=4), CPU))
    cells = sum(batch.inputs.numel() for batch in batches)
    assert sum(int((batch.targets != PAD).sum()) for batch in batches) == sum(len(row.ids) - 1 for row in rows)
    assert cells < train.make_batch(rows, CPU).inputs.numel()


def test_every_parameter_has_one_optimizer_and_vectors_do_not_decay(small_corpus):
    state = start(small_corpus)
    groups = [group for optimizer in state.optimizers for group in optimizer.param_groups]
    trained = [id(p) for group in groups for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for p in state.model.parameters())
    for group in groups:
        expected = {2: CONFIG.weight_decay, 1: 0.0}
        assert all(group["weight_decay"] == expected[p.dim()] for p in group["params"])


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (64, 64)])
def test_muons_direction_is_the_gradients_with_equal_strengths(shape):
    """Against the exact answer: the singular vectors of the gradient, with all singular values 1."""
    torch.manual_seed(0)
    g = torch.randn(shape)
    u, _, vh = torch.linalg.svd(g, full_matrices=False)
    direction = orthogonal(g)
    assert ((direction * (u @ vh)).sum() / direction.norm() / (u @ vh).norm()).item() > 0.97
    strengths = torch.linalg.svdvals(direction)
    assert strengths.quantile(0.05) > 0.6 and strengths.max() < 1.3  # a square one has a direction close to 0


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
def test_our_muon_steps_as_torchs_does(shape):
    reference = getattr(torch.optim, "Muon", None)
    if reference is None:
        pytest.skip("this torch has no Muon of its own")
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    settings = {"lr": 0.1, "weight_decay": 0.5, "momentum": 0.95}
    optimizers = [
        Muon([ours], **settings, dtype=torch.bfloat16),
        reference([theirs], **settings, adjust_lr_fn="match_rms_adamw"),
    ]
    for seed in range(10):
        ours.grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert (ours - theirs).norm() < 0.01 * (theirs - 1).norm()


def test_training_learns_and_says_how_it_goes(small_corpus):
    config = TrainConfig(steps=80, batch_size=16, micro_batch=8, warmup_steps=8, eval_every=40, learning_rate=1e-2)
    state = start(small_corpus, config)
    events = list(train.train(state, small_corpus, config))
    assert [event.step for event in events] == list(range(1, 81))
    assert [event.step for event in events if event.evaluation] == [40, 80]
    assert events[0].loss == pytest.approx(math.log(small_corpus.tok.vocab_size), abs=0.3)
    last = state.history[-1]
    assert last["eval_loss"] < 2.5
    assert last["eval_loss"] > last["floor"] > 0
    assert "as unsure as choosing among" in runs.describe(events[-1], config)


def test_evaluation_counts_replies_and_their_end_tokens(small_corpus):
    state, rows = start(small_corpus), small_corpus.evaluation
    total = train.total_nats(state, rows, CONFIG)
    assert all(row.ids[-1] == IM_END for row in rows)
    tokens = sum(len(small_corpus.tok.encode(small_corpus.tok.decode(row.ids[row.prompt :]))) + 1 for row in rows)
    assert sum(row.reply_tokens for row in rows) == tokens
    assert total / tokens == pytest.approx(math.log(small_corpus.tok.vocab_size), abs=0.3)
    assert train.total_nats(state, rows, TrainConfig(micro_batch=20)) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_is_not_a_number_stops_before_it_spoils_the_weights(small_corpus, monkeypatch, broken):
    state = start(small_corpus)
    events = train.train(state, small_corpus, CONFIG)
    next(events)
    good = [p.clone() for p in state.model.parameters()]
    whole = train.token_losses
    monkeypatch.setattr(train, "token_losses", lambda *args: whole(*args) * broken)
    with pytest.raises(train.Diverged, match="step 2: the loss is (nan|inf): begin again with a lower --learning-rate"):
        next(events)
    assert all(torch.equal(a, b) for a, b in zip(good, state.model.parameters(), strict=True))


def test_a_gradient_that_is_not_a_number_stops_too(small_corpus):
    state = start(small_corpus)
    train.backward(state, small_corpus.train[:4], CONFIG)
    good = state.model.norm.weight.clone()
    state.model.norm.weight.grad[0] = math.nan
    with pytest.raises(train.Diverged, match="step 1: the gradients are nan"):
        train.update(state, CONFIG)
    assert torch.equal(good, state.model.norm.weight)


def test_where_float16_overflows_no_optimizer_steps_and_training_goes_on(small_corpus):
    """Both ways round: the gradients of AdamW's weights alone, and those of Muon's."""
    for broken in ("tok_emb.weight", "blocks.0.attn.qkv.weight"):
        state = start(small_corpus)
        state.scaler = torch.amp.GradScaler("cpu")
        for problem in (math.inf, math.nan, 1.0):
            train.backward(state, small_corpus.train[:4], CONFIG)
            state.model.get_parameter(broken).grad[0] *= problem
            good, factor = [p.clone() for p in state.model.parameters()], state.scaler.get_scale()
            train.update(state, CONFIG)
            same = [torch.equal(a, b) for a, b in zip(good, state.model.parameters(), strict=True)]
            assert all(same) == (problem != 1)
            assert state.scaler.get_scale() == (factor if problem == 1 else factor / 2)


def test_the_clock_counts_all_the_time(small_corpus):
    state = start(small_corpus)
    began = time.perf_counter()
    list(train.train(state, small_corpus, CONFIG))
    seconds = state.clock.seconds
    assert set(seconds) == {"data", "forward", "backward", "optimizer", "evaluation", "printing and saving"}
    assert sum(seconds.values()) == pytest.approx(time.perf_counter() - began, rel=0.2)


def test_the_floor_is_the_mean_cost_of_the_replies_kept_apart(small, small_corpus):
    made = {datagen.pair(c.row()): c for c in datagen.conversations(small, 220)}
    _, held = datagen.split(datagen.generate(small, 220), 20)
    kept = [made[datagen.pair(row)] for row in held]
    costs = [-datagen.reply_log_prob(c.exchange, c.shared, c.reply) for c in kept]
    assert small_corpus.floor == pytest.approx(sum(costs) / len(costs))
    state = start(small_corpus)
    state.losses = [1.0]
    row = train.history_row(state, small_corpus, CONFIG)
    assert row["floor"] / row["eval_loss"] == pytest.approx(small_corpus.floor / row["nats_per_reply"])


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_precision_goes_by_what_the_chip_has(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert device.pick_precision(torch.device("cuda")) == expected


def test_precision_elsewhere(monkeypatch):
    assert device.pick_precision(torch.device("mps")) == torch.float32
    for speed, expected in ((0.1, torch.bfloat16), (1.0, torch.float32), (9.0, torch.float32)):
        monkeypatch.setattr(device, "cpu_seconds", lambda half, full, speed=speed: [speed, 1.0])
        assert device.pick_precision(CPU) == expected


def test_the_best_device_is_taken(monkeypatch):
    monkeypatch.setattr(torch, "zeros", lambda *size, device: torch.ones(*size))
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert device.pick_device().type == expected


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries can't be told, or need not be")
def test_the_memory_of_a_tensor_that_is_gone_serves_the_next():
    import resource  # Unix only

    device.pick_device("cpu")
    faults = []
    for _ in range(10):
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        torch.ones(16_000_000)  # 64 MB
    pages_asked_for = faults[9] - faults[4]  # the first may still have to make room
    assert pages_asked_for < 100  # of 2 MB at most, so that five tensors taken anew would be over 150


def test_bfloat16_gives_nearly_the_same_loss(small_corpus):
    model = start(small_corpus).model
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # untrained, its blocks would add nothing
    batch = train.make_batch(small_corpus.train[:8], CPU)
    full, half = (train.token_losses(model, batch, p).sum() for p in (torch.float32, torch.bfloat16))
    assert half.dtype == torch.float32
    assert full.item() != half.item()
    assert half.item() == pytest.approx(full.item(), rel=0.01)
