"""A trained model as a folder of files: config.json, tokenizer.json, words.txt, model.pt, and what `train` adds.

Weights are read with `weights_only=True`: a pickle can run any program, a file of tensors can't. Every file is
written whole under another name and then moved into place, so that no crash leaves half a file behind.
"""

import io
import json
import os
import pickle
import time
import zipfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch

from guppylm import gpt2
from guppylm.model import GuppyLM, ModelConfig
from guppylm.tokenizer import Tokenizer

# Hugging Face's names for the sizes, as in the published guppylm-9M
PUBLISHED = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
}


class CheckpointError(ValueError):
    """A checkpoint that can't be used: one line that names the file and what is wrong with it."""


def write_whole(file: Path, content: bytes | memoryview) -> None:
    """Write a file beside `file`, then move it into place in one step. CheckpointError if it can't."""
    part = file.with_name(f".{file.name}.part")  # what a crash leaves behind, the next run overwrites
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        _move(part, file)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if not isinstance(error, OSError):
            raise
        intact = "; the file that was there is intact" if file.is_file() else ""
        raise CheckpointError(f"{file}: can't be written: {error.strerror}{intact}") from error


def _move(part: Path, file: Path) -> None:
    """Put a file in its place. While another program has the old one open, Windows refuses: try for ten seconds."""
    for _ in range(100 if os.name == "nt" else 0):
        with suppress(PermissionError):
            os.replace(part, file)
            return
        time.sleep(0.1)
    os.replace(part, file)


def write_tensors(file: Path, tensors: dict) -> None:
    """Write what `read_tensors` reads, whole."""
    memory = io.BytesIO()  # torch turns a full disk into an error of its own; plain bytes give the system's
    torch.save(tensors, memory)
    write_whole(file, memory.getbuffer())


def write_text(file: Path, text: str) -> None:
    """Write UTF-8 with plain line ends, whole."""
    write_whole(file, text.encode("utf-8"))


def save(folder: Path, model: GuppyLM, tok: Tokenizer, record: dict, dtype: torch.dtype = torch.float32) -> None:
    """Write model, tokenizer and `record` (who it is and how it was trained) into `folder`."""
    weights = {name: tensor.detach().to("cpu", dtype) for name, tensor in model.state_dict().items()}
    weights["lm_head.weight"] = weights["tok_emb.weight"]  # tied: one tensor under two names, stored once
    write_tensors(folder / "model.pt", weights)
    write_tokenizer(folder, tok)
    write_text(folder / "config.json", json.dumps({"model": asdict(model.config), **record}, indent=2) + "\n")


def write_tokenizer(folder: Path, tok: Tokenizer) -> None:
    """Write a tokenizer, and beside it the words that it mends messages by, most frequent first, one a line."""
    write_text(folder / "tokenizer.json", tok.to_json())
    write_text(folder / "words.txt", "".join(f"{word}\n" for word in tok.words))


def read_tokenizer(folder: Path, mends: bool) -> Tokenizer:
    """Read what `write_tokenizer` wrote; of a model that reads messages as they are, tokenizer.json alone."""
    try:
        words = (folder / "words.txt").read_text(encoding="utf-8").split() if mends else []
        return Tokenizer.load(folder / "tokenizer.json", words)
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{folder / 'words.txt'}: is not UTF-8 text (byte {error.start})") from error
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def load(folder: Path, device: torch.device) -> tuple[GuppyLM, Tokenizer, dict]:
    """Read model, tokenizer and record from our folder, from an exported one, or from one in the published layout.

    CheckpointError if a file is missing or broken, a tensor is missing, unknown or of another shape, or the
    tokenizer has more entries than the model.
    """
    record = _read_config(folder / "config.json")
    if "model" in record:
        sizes, file = record.pop("model"), folder / "model.pt"
    elif record.get("model_type") == "gpt2":
        sizes, file = {ours: record.get(theirs) for ours, theirs in gpt2.SIZES.items()}, folder / "model.safetensors"
        if record.get("activation_function") != "relu":
            raise CheckpointError(f"{folder / 'config.json'}: is a GPT-2 that GuppyLM did not export")
        record = record.get("guppylm", {})
    else:
        sizes, file = {ours: record.get(theirs) for ours, theirs in PUBLISHED.items()}, folder / "pytorch_model.bin"
    try:
        model = GuppyLM(ModelConfig(**sizes))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    if file.suffix == ".safetensors":
        weights = gpt2.from_gpt2(read_safetensors(file), model.config.n_layers)
    else:
        weights = read_tensors(file)
    _fill(model, weights, file)
    tok = read_tokenizer(folder, mends=file.name != "pytorch_model.bin")  # the published fish was trained without
    if tok.vocab_size > model.config.vocab_size:
        entries = f"{tok.vocab_size} entries, the model {model.config.vocab_size}"
        raise CheckpointError(f"{folder}: the tokenizer has {entries}")
    return model.to(device).eval(), tok, record


def read_tensors(file: Path) -> dict:
    """Read what torch.save wrote, without running any code that may be in it."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()  # torch.load checks no sums
            if damaged:
                raise CheckpointError(f"{file}: is damaged, in {damaged}: it was not loaded")
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}") from error
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file}: is damaged, or holds more than tensors: it was not loaded") from error


def read_safetensors(file: Path) -> dict:
    """Read the tensors of an exported folder."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(f"{file}: safetensors is missing: pip install safetensors") from error
    try:
        return load_file(file)
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{file}: is damaged: {error}") from error


def _read_config(file: Path) -> dict:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: is not a table of settings")
    return config


def _fill(model: GuppyLM, weights: dict, file: Path) -> None:
    """Copy the tensors into the model, all of them and no others."""
    expected = model.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            raise CheckpointError(f"{file}: has no tensor {name}")
        if name not in expected:
            raise CheckpointError(f"{file}: has a tensor that the model doesn't know: {name}")
        if weights[name].shape != expected[name].shape:
            shapes = f"{tuple(weights[name].shape)}, config.json says {tuple(expected[name].shape)}"
            raise CheckpointError(f"{file}: the shape of {name} is {shapes}")
    if not torch.equal(weights["lm_head.weight"], weights["tok_emb.weight"]):
        raise CheckpointError(f"{file}: lm_head.weight and tok_emb.weight differ, but this model ties them")
    model.load_state_dict(weights)
