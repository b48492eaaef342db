"""The architecture, against the table, against itself, and against an implementation that nobody here wrote."""

import math

import pytest
import torch

from guppylm.model import Attention, GuppyLM, ModelConfig


def test_parameters():
    assert GuppyLM(ModelConfig()).n_parameters() == 8_726_016


def test_names_are_those_of_the_published_model():
    names = set(GuppyLM(ModelConfig(n_layers=1)).state_dict())
    layer = {f"blocks.0.{part}.{kind}" for part in ("norm1", "attn.qkv", "attn.out", "norm2", "ffn.up", "ffn.down")
             for kind in ("weight", "bias")}  # fmt: skip
    assert names == layer | {"tok_emb.weight", "pos_emb.weight", "norm.weight", "norm.bias", "lm_head.weight"}


@pytest.mark.parametrize("wrong", [{"n_heads": 5}, {"d_ff": 0}, {"n_layers": 2.0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_a_config_that_can_not_be_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ModelConfig(**wrong)


def test_untrained_loss_is_that_of_guessing():
    torch.manual_seed(0)
    ids = torch.randint(0, 4096, (4, 32))
    logits = GuppyLM(ModelConfig())(ids)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(0, 4096, (4 * 32,)))
    assert loss.item() == pytest.approx(math.log(4096), abs=0.15)


@pytest.fixture
def attention():
    torch.manual_seed(1)
    attention = Attention(ModelConfig(d_model=32, n_heads=4))
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention


def test_the_attention_that_is_taught_equals_the_fused_one(attention):
    x = torch.randn(3, 17, 32)
    assert torch.allclose(attention.steps(x).mixed, attention.fused(x), atol=1e-5)


def test_the_steps_of_attention_follow_from_each_other(attention):
    steps = attention.steps(torch.randn(2, 9, 32))
    assert torch.allclose(steps.scaled * math.sqrt(8), steps.scores, atol=1e-5)
    future = torch.ones(9, 9, dtype=torch.bool).triu(1)
    assert (steps.masked[..., future] == -math.inf).all()
    assert torch.equal(steps.masked[..., ~future], steps.scaled[..., ~future])
    assert torch.allclose(steps.weights.sum(-1), torch.ones(2, 4, 9))
    assert (steps.weights[..., future] == 0).all()


def test_the_future_changes_nothing(lively):
    ids = torch.randint(0, 200, (1, 20))
    changed = ids.clone()
    changed[0, 12:] = 7
    assert torch.allclose(lively(ids)[:, :12], lively(changed)[:, :12], atol=1e-5)
    assert not torch.allclose(lively(ids)[:, 12:], lively(changed)[:, 12:], atol=1e-3)
    assert not torch.allclose(lively(ids)[:, -1], lively(changed[:, -1:])[:, -1], atol=1e-3)  # but the past does


def test_attention_weights_are_returned_and_not_kept(tiny):
    before = set(vars(tiny.blocks[0].attn)) | set(tiny.state_dict())
    layers = tiny.attention(torch.randint(0, 200, (2, 10)))
    assert [layer.weights.shape for layer in layers] == [(2, 2, 10, 10)] * 2
    assert set(vars(tiny.blocks[0].attn)) | set(tiny.state_dict()) == before


def test_too_many_tokens_are_refused(tiny):
    with pytest.raises(ValueError, match="129 tokens, but the model's context is 128"):
        tiny(torch.zeros(1, 129, dtype=torch.long))


def test_logits_and_attention_equal_those_of_transformers_gpt2():
    """GuppyLM is a small GPT-2; its linear layers are stored transposed there."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(2)
    config = ModelConfig(vocab_size=500, d_model=48, n_layers=3, n_heads=4, d_ff=96)
    ours = GuppyLM(config).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=500, n_positions=128, n_embd=48, n_layer=3, n_head=4, n_inner=96, activation_function="relu",
            attn_implementation="eager",  # the faster ones give no weights out
        )
    ).eval()  # fmt: skip
    copy_to_gpt2(ours, theirs)
    ids = torch.randint(0, 500, (2, 40))
    with torch.no_grad():
        out = theirs(ids, output_attentions=True)
        assert torch.allclose(ours(ids), out.logits, atol=1e-4)
    for mine, other in zip(ours.attention(ids), out.attentions, strict=True):
        assert torch.allclose(mine.weights, other, atol=1e-5)


def copy_to_gpt2(ours: GuppyLM, theirs) -> None:
    names = {"norm1": "ln_1", "attn.qkv": "attn.c_attn", "attn.out": "attn.c_proj"}
    names |= {"norm2": "ln_2", "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj"}
    weights = ours.state_dict()
    state = {"transformer.wte.weight": weights["tok_emb.weight"], "transformer.wpe.weight": weights["pos_emb.weight"],
             "lm_head.weight": weights["lm_head.weight"], "transformer.ln_f.weight": weights["norm.weight"],
             "transformer.ln_f.bias": weights["norm.bias"]}  # fmt: skip
    for i in range(ours.config.n_layers):
        for our_name, their_name in names.items():
            weight = weights[f"blocks.{i}.{our_name}.weight"]
            state[f"transformer.h.{i}.{their_name}.weight"] = weight if weight.dim() == 1 else weight.T
            state[f"transformer.h.{i}.{their_name}.bias"] = weights[f"blocks.{i}.{our_name}.bias"]
    theirs.load_state_dict(state)
