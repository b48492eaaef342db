"""GuppyLM is a small GPT-2 with ReLU: this is what Hugging Face's transformers calls its sizes and its tensors.

So a fish that was trained here runs in any software that reads a GPT-2, with no code of ours.
"""

import torch

# our ModelConfig -> GPT2Config
SIZES = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "d_model": "n_embd",
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "d_ff": "n_inner",
}

# our tensors -> those of GPT2LMHeadModel; N is the number of a block
TENSORS = {
    "tok_emb.weight": "transformer.wte.weight",
    "pos_emb.weight": "transformer.wpe.weight",
    "norm": "transformer.ln_f",
    "blocks.N.norm1": "transformer.h.N.ln_1",
    "blocks.N.norm2": "transformer.h.N.ln_2",
    "blocks.N.attn.qkv": "transformer.h.N.attn.c_attn",
    "blocks.N.attn.out": "transformer.h.N.attn.c_proj",
    "blocks.N.ffn.up": "transformer.h.N.mlp.c_fc",
    "blocks.N.ffn.down": "transformer.h.N.mlp.c_proj",
}


def names(n_layers: int) -> dict[str, str]:
    """Every tensor of ours and its name in GPT-2. The tied output head is left out: it is the token embedding."""
    pairs = {}
    for ours, theirs in TENSORS.items():
        for layer in range(n_layers) if ".N." in ours else [0]:
            a, b = ours.replace(".N.", f".{layer}."), theirs.replace(".N.", f".{layer}.")
            parts = [""] if a.endswith(".weight") else [".weight", ".bias"]
            pairs |= {a + part: b + part for part in parts}
    return pairs


def turned(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """GPT-2 keeps the matrices of its linear layers as (in, out), ours are (out, in); embeddings stay as they are."""
    linear = tensor.dim() == 2 and name.startswith("blocks.")
    return tensor.T.contiguous() if linear else tensor


def to_gpt2(weights: dict[str, torch.Tensor], n_layers: int) -> dict[str, torch.Tensor]:
    """Our state dict as GPT2LMHeadModel's."""
    return {theirs: turned(ours, weights[ours]) for ours, theirs in names(n_layers).items()}


def from_gpt2(weights: dict[str, torch.Tensor], n_layers: int) -> dict[str, torch.Tensor]:
    """GPT2LMHeadModel's state dict as ours; tensors that we don't know keep their names, missing ones stay missing."""
    known = {theirs: ours for ours, theirs in names(n_layers).items()}
    ours = {known.get(name, name): turned(known.get(name, name), tensor) for name, tensor in weights.items()}
    if "tok_emb.weight" in ours:
        ours.setdefault("lm_head.weight", ours["tok_emb.weight"])
    return ours
