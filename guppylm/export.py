"""Out of the notebook: a model and its data as folders that the Hugging Face libraries read, to the hub and back."""

import json
from pathlib import Path

from guppylm import corpus, gpt2
from guppylm.checkpoint import write_text, write_tokenizer, write_whole
from guppylm.model import GuppyLM
from guppylm.persona import Persona
from guppylm.tokenizer import IM_END, IM_START, PAD, SPECIAL, Tokenizer
from guppylm.train import unsure

# The files that are written here, by kind of repository. Nothing else in a folder is uploaded.
WRITTEN = {
    "model": ["README.md", "config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json",
              "words.txt", "model.safetensors"],
    "dataset": ["README.md", "train.jsonl", "eval.jsonl"],
}  # fmt: skip

# One conversation as guppylm.tokenizer spells it. Jinja, the template language that transformers runs.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% set text = message['content'] %}"
    "{% if message['role'] == 'user' %}"
    """{% set text = text | lower | replace('’', "'") | replace('‘', "'") | replace('“', '"') | replace('”', '"') %}"""
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + text + '<|im_end|>' }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save_hf(model: GuppyLM, tok: Tokenizer, record: dict, evaluation: dict | None, out: Path) -> None:
    """Write a model as a folder that transformers' AutoModelForCausalLM and AutoTokenizer load.

    record: what `checkpoint.load` returns of config.json. evaluation: what `evaluate --json` printed, for the model
    card. ValueError if `out` holds a README.md of somebody else's.
    """
    from safetensors.torch import save  # here, because data sets and downloads do without it

    card = model_card(model, record, evaluation)
    write_card(out, card)
    sizes = {theirs: getattr(model.config, ours) for ours, theirs in gpt2.SIZES.items()}
    ends = {"bos_token_id": IM_START, "eos_token_id": IM_END, "pad_token_id": PAD}
    none_dropped = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **sizes, "activation_function": "relu",
              **none_dropped, **ends, "tie_word_embeddings": True, "torch_dtype": "float32",
              "guppylm": record}  # fmt: skip
    generation = {"do_sample": True, "temperature": 0.7, "top_k": 50, "max_length": model.config.context_length, **ends}
    pad, start, end = SPECIAL
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": model.config.context_length,
                 "bos_token": start, "eos_token": end, "pad_token": pad, "clean_up_tokenization_spaces": False,
                 "chat_template": CHAT_TEMPLATE}  # fmt: skip
    weights = {name: tensor.detach().cpu().float() for name, tensor in model.state_dict().items()}
    tensors = gpt2.to_gpt2(weights, model.config.n_layers)
    packed = save(tensors, metadata={"format": "pt"})  # its own writing hides what is wrong with a disk
    write_whole(out / "model.safetensors", packed)
    write_tokenizer(out, tok)
    for name, table in (("config", config), ("generation_config", generation), ("tokenizer_config", tokenizer)):
        write_text(out / f"{name}.json", json.dumps(table, indent=2) + "\n")


def write_card(out: Path, text: str) -> None:
    """Write README.md, first of all files, but never over one that is no card of ours."""
    file = out / "README.md"
    if file.exists() and b"\ntags: [guppylm" not in file.read_bytes():
        raise ValueError(f"{file}: was not written by an export: choose another folder")
    write_text(file, text)


def model_card(model: GuppyLM, record: dict, evaluation: dict | None) -> str:
    """The README.md of a model: who it is, how it was trained, how good it is, how to run it."""
    persona, training = record.get("persona", {}), record.get("training", {})
    name, config = persona.get("name", "guppy"), model.config
    lines = [
        "---",
        "license: mit",
        "language: en",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [guppylm, from-scratch, education]",
        "---",
        "",
        f"# {name}",
        "",
        f"{persona.get('summary') or 'A character of its own'}, as a language model of {model.n_parameters():,} "
        "parameters, trained from scratch with GuppyLM on conversations that a grammar made up.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
        "model = AutoModelForCausalLM.from_pretrained(FOLDER)",
        'chat = [{"role": "user", "content": "hello!"}]',
        'ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)',
        'reply = model.generate(**ids)[0, ids["input_ids"].shape[1] :]',
        "print(tokenizer.decode(reply, skip_special_tokens=True))",
        "```",
        "",
        f"A vanilla decoder: {config.n_layers} layers of {config.n_heads} heads, {config.d_model} channels, "
        f"feed-forward {config.d_ff} with ReLU, {config.vocab_size:,} tokens, a context of {config.context_length}; "
        "the output head is tied. In transformers it is a GPT-2. Each message stands alone: send one, not the "
        "conversation so far. GuppyLM mends slips of the finger before its model reads a message, by the words in "
        "`words.txt`; transformers gives it what you typed.",
        "",
        "## Training",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {key} | {value} |" for key, value in training.items()),
        "",
        "## Evaluation",
        "",
    ]
    if "eval_loss" in training:
        loss = training["eval_loss"]
        lines += [f"Loss on replies that it was not trained on: {loss:.3f} nats a token, {unsure(loss)}.", ""]
    if evaluation is None:
        lines.append("Its replies have not been judged yet: `python -m guppylm evaluate --save` does it.")
    else:
        lines += ["| messages | number | on topic | sayable by some topic |", "| --- | --- | --- | --- |"]
        for asked, result in evaluation["replies"].items():
            shares = f"{result['on_topic']:.1%} | {result['sayable']:.1%}"
            lines.append(f"| {asked} | {result['prompts']} | {shares} |")
    lines += ["", "It knows its own small world and nothing else, and it means nothing by what it says.", ""]
    return "\n".join(lines)


def save_dataset(persona: Persona, train: list[dict[str, str]], held: list[dict[str, str]], out: Path) -> None:
    """Write rows as a data set: train.jsonl and eval.jsonl, which `train --data` reads, and a card.

    ValueError if `out` holds a README.md of somebody else's.
    """
    card = [
        "---",
        "license: mit",
        "language: en",
        "tags: [guppylm, synthetic, conversational]",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - {split: train, path: train.jsonl}",
        "  - {split: test, path: eval.jsonl}",
        "---",
        "",
        f"# Conversations with {persona.name}",
        "",
        f"{persona.summary}: {len(train):,} conversations on {len(persona.topics)} topics, made by a grammar, and "
        f"{len(held):,} more to evaluate with, none of which is among the former.",
        "",
        "Each row has a message (`input`), the reply (`output`) and the topic (`category`), such as",
        "",
        "```json",
        *(json.dumps(row, ensure_ascii=False) for row in train[:3]),
        "```",
        "",
        f"Topics: {', '.join(persona.topics)}.",
        "",
    ]
    write_card(out, "\n".join(card))
    corpus.write_rows(out, train, held)


def push(folder: Path, name: str, kind: str) -> str:
    """Upload a folder to the Hugging Face hub as the repository `name` of that kind, "model" or "dataset".

    The token comes from HF_TOKEN or `hf auth login`. Returns the address; ValueError if the hub says no.
    """
    import huggingface_hub

    try:
        huggingface_hub.create_repo(name, repo_type=kind, exist_ok=True)
        done = huggingface_hub.upload_folder(
            repo_id=name, repo_type=kind, folder_path=folder, commit_message="Upload from guppylm",
            allow_patterns=WRITTEN[kind],
        )  # fmt: skip
    except _hub_errors() as error:
        raise ValueError(
            f"{name}: could not be uploaded: {_first_line(error)}; is HF_TOKEN set to a token that may write?"
        ) from error
    return str(done)


def fetch(name: str, into: Path) -> Path:
    """Download a model that was published on the Hugging Face hub, such as "arman-bd/guppylm-9M", into a folder.

    Only weights, configuration and tokenizer are taken, never code. Returns the folder, which `chat.load` reads;
    ValueError if there is no such model, or no network.
    """
    import huggingface_hub

    wanted = ["config.json", "tokenizer.json", "words.txt", "model.pt", "model.safetensors", "pytorch_model.bin"]
    try:
        return Path(huggingface_hub.snapshot_download(name, local_dir=into, allow_patterns=wanted))
    except _hub_errors() as error:
        raise ValueError(
            f"{name}: could not be downloaded: {_first_line(error)}; is the name right, is there a network?"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _hub_errors() -> tuple[type[Exception], ...]:
    """What goes wrong between here and the hub: it says no, the name is none, or there is no network."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # HfHubHTTPError derives from the error of the library's HTTP client, which differs from version to version; where
    # that does not cover a failed connection, OSError does. So no client has to be imported.
    return (*HfHubHTTPError.__bases__, HFValidationError, OSError)
