"""What is saved comes back, and what is broken is refused in one line that names it."""

import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from guppylm import checkpoint, tokenizer
from guppylm.checkpoint import CheckpointError
from guppylm.tokenizer import Tokenizer

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path, lively, tok):
    knows = Tokenizer(tok.bpe, ["hello", "fish"])
    checkpoint.save(tmp_path, lively, knows, {"persona": {"name": "minnow"}})
    return tmp_path


def change(folder, edit):
    weights = torch.load(folder / "model.pt", weights_only=True)
    edit(weights)
    torch.save(weights, folder / "model.pt")


def test_a_checkpoint_comes_back(folder, lively, tok):
    model, again, record = checkpoint.load(folder, CPU)
    ids = torch.randint(0, tok.vocab_size, (2, 9))
    assert torch.equal(model(ids), lively.eval()(ids))
    assert again.encode("hello") == tok.encode("hello")
    assert list(again.words.items()) == [("hello", 0), ("fish", 1)]
    assert record == {"persona": {"name": "minnow"}}
    assert model.lm_head.weight is model.tok_emb.weight
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.pt", "tokenizer.json", "words.txt"]


def test_half_precision_halves_the_file_and_keeps_the_tie(tmp_path, tiny, tok):
    checkpoint.save(tmp_path / "full", tiny, tok, {})
    checkpoint.save(tmp_path / "half", tiny, tok, {}, torch.float16)
    full, half = ((tmp_path / name / "model.pt").stat().st_size for name in ("full", "half"))
    assert half < 0.6 * full  # with the tied matrix twice in it, it would be more
    model, _, _ = checkpoint.load(tmp_path / "half", CPU)
    assert model.tok_emb.weight.dtype == torch.float32


def test_the_published_layout_is_read(folder, lively):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model"]
    published = {"model_type": "guppylm", "pad_token_id": 0}
    published |= {theirs: config[ours] for ours, theirs in checkpoint.PUBLISHED.items()}
    (folder / "config.json").write_text(json.dumps(published), encoding="utf-8")
    (folder / "model.pt").rename(folder / "pytorch_model.bin")
    model, tok, _ = checkpoint.load(folder, CPU)
    assert tok.mend("HELO") == "helo"  # it was trained on messages as they are
    ids = torch.randint(0, 200, (1, 9))
    assert torch.equal(model(ids), lively.eval()(ids))


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda w: w.pop("norm.bias"), "has no tensor norm.bias"),
        (lambda w: w.update({"blocks.9.extra": torch.ones(1)}), "a tensor that the model doesn't know: blocks.9.extra"),
        (
            lambda w: w.update({"norm.bias": torch.ones(7)}),
            r"the shape of norm.bias is \(7,\), config.json says \(32,\)",
        ),
        (lambda w: w.update({"lm_head.weight": w["lm_head.weight"] + 1}), "differ, but this model ties them"),
    ],
)
def test_other_tensors_are_refused(folder, edit, expected):
    change(folder, edit)
    with pytest.raises(CheckpointError, match=expected) as error:
        checkpoint.load(folder, CPU)
    assert str(folder / "model.pt") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.pt"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_a_damaged_file_is_named(folder, name, damage):
    file = folder / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"" if damage == "empty" else file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(folder, CPU)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["missing", "not text"])
def test_words_that_can_not_be_read_are_named(folder, damage):
    (folder / "words.txt").unlink()
    if damage == "not text":
        (folder / "words.txt").write_bytes(b"hello\n\xff\xfe\n")
    with pytest.raises(CheckpointError, match="words.txt") as error:
        checkpoint.load(folder, CPU)
    assert "\n" not in str(error.value)


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle ran')",))


def test_a_pickle_that_would_run_code_is_not_loaded(folder):
    (folder / "model.pt").write_bytes(pickle.dumps({"norm.bias": Bomb()}))
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        checkpoint.load(folder, CPU)


def test_a_config_that_can_not_be_is_refused(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["model"]["n_heads"] = 5
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match="d_model 32 can't be divided among n_heads 5"):
        checkpoint.load(folder, CPU)


def test_a_tokenizer_larger_than_the_model_is_refused(folder, tiny):
    larger = tokenizer.train(["many different words in one text make a larger vocabulary " * 3] * 3, vocab_size=400)
    (folder / "tokenizer.json").write_text(larger.to_json(), encoding="utf-8")
    if larger.vocab_size <= tiny.config.vocab_size:
        pytest.fail("the tokenizer of this test must be larger")
    with pytest.raises(CheckpointError, match=f"the tokenizer has {larger.vocab_size} entries"):
        checkpoint.load(folder, CPU)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    checkpoint.write_text(tmp_path / "config.json", "old")

    def fail(part, content):
        whole(part, content[:4])
        raise OSError(28, "No space left on device")

    whole = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", fail)

    with pytest.raises(CheckpointError, match="config.json: can't be written: No space left"):
        checkpoint.write_text(tmp_path / "config.json", "new, but there is no room")
    assert (tmp_path / "config.json").read_text(encoding="utf-8") == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(("system", "tries"), [("nt", 3), ("posix", 1)])
def test_a_file_that_is_being_read_is_written_when_it_is_closed(tmp_path, monkeypatch, system, tries):
    """Windows refuses to replace it until then; elsewhere a refusal is final."""
    refusals = iter([PermissionError(13, "Permission denied")] * (tries - 1))

    def replace(part, file):
        for refusal in refusals:
            raise refusal
        if system == "posix":
            raise PermissionError(13, "Permission denied")
        os.replace(part, file)

    monkeypatch.setattr(checkpoint, "os", SimpleNamespace(name=system, replace=replace))
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(sleep=lambda seconds: None))
    if system == "posix":
        with pytest.raises(CheckpointError, match="a.txt: can't be written: Permission denied"):
            checkpoint.write_text(tmp_path / "a.txt", "new")
    else:
        checkpoint.write_text(tmp_path / "a.txt", "new")
        assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "new"


def test_a_folder_that_can_not_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(CheckpointError, match="config.json: can't be written: "):
        checkpoint.write_text(tmp_path / "file" / "config.json", "new")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "in the way"
