"""What leaves the notebook is read by software that nobody here wrote: transformers, onnxruntime, the hub's client."""

import base64
import hashlib
import http.server
import json
import socket
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import SHIPPED

from guppylm import chat, checkpoint, corpus, datagen, evaluate, export, onnx_export

CPU = torch.device("cpu")
ODD = [
    "",
    "  two  spaces ",
    "HELLO!!!",
    "ünïcödé 鱼 🐠🐠",
    "don't\nstop",
    "“don’t”, she ‘said’",
    "12345",
    "x" * 300,
    "e\u0301",
]


@pytest.fixture(scope="module")
def fish():
    """The shipped model, tokenizer and record."""
    return checkpoint.load(SHIPPED, CPU)


@pytest.fixture(scope="module")
def messages(guppy):
    return [c.message for c in datagen.conversations(guppy, 50, seed=71)]


@pytest.fixture(scope="module")
def rows(guppy, fish):
    """Conversations that the shipped fish was not trained on, as token ids."""
    return corpus.encode([c.row() for c in datagen.conversations(guppy, 60, seed=72)], fish[1])


@pytest.fixture(scope="module")
def hf(fish, tmp_path_factory):
    """The exported folder, and what transformers makes of it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("hf")
    model, tok, record = fish
    evaluation = {"replies": {"some prompts": {"prompts": 7, "on_topic": 0.5, "sayable": 0.75}}}
    export.save_hf(model, tok, record, evaluation, folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return folder, theirs.eval(), transformers.AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def test_transformers_computes_the_same_logits(fish, hf):
    ids = torch.randint(3, 4096, (3, 128), generator=torch.Generator().manual_seed(0))
    ours = fish[0](ids)
    assert torch.allclose(hf[1](ids).logits, ours, atol=1e-4)
    assert ours.abs().max() > 1


def test_its_chat_template_gives_our_ids(fish, hf, messages):
    for message in messages + ODD:
        said = [{"role": "user", "content": message}]
        theirs = hf[2].apply_chat_template(said, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert theirs == fish[1].encode_prompt(message)
    said = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi."}]
    theirs = hf[2].apply_chat_template(said, return_dict=True)["input_ids"]
    assert theirs == fish[1].encode_conversation("hello", "hi.")[0]


def test_its_greedy_replies_are_ours(fish, hf, messages):
    ours = evaluate.answer(chat.Bot(*fish[:2], "guppy"), messages, temperature=0, top_k=0, seed=0)
    ours = [answer.text for answer in ours]
    theirs = []
    for message in messages:
        said = [{"role": "user", "content": fish[1].mend(message)}]  # which transformers does not do
        ids = hf[2].apply_chat_template(said, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        reply = hf[1].generate(**ids, do_sample=False, temperature=None, top_k=None)[0, ids["input_ids"].shape[1] :]
        theirs.append(hf[2].decode(reply, skip_special_tokens=True).strip())
    assert theirs == ours
    assert len(set(ours)) > 20


def test_an_exported_folder_reads_back(fish, hf):
    model, tok, record = checkpoint.load(hf[0], CPU)
    assert record == fish[2]
    assert tok.encode("hello fish") == fish[1].encode("hello fish")
    assert tok.mend("caslte") == fish[1].mend("caslte") == "castle"
    for name, tensor in fish[0].state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_the_card_tells_what_the_record_and_the_evaluation_hold(fish, hf):
    card = (hf[0] / "README.md").read_text(encoding="utf-8")
    assert "| some prompts | 7 | 50.0% | 75.0% |" in card
    for key, value in fish[2]["training"].items():
        assert f"| {key} | {value} |" in card
    unjudged = export.model_card(fish[0], fish[2], None)
    assert "have not been judged" in unjudged and "| some prompts |" not in unjudged


def test_another_gpt2_and_a_damaged_file_are_refused(hf, tmp_path):
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_bytes((hf[0] / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\x08" + bytes(30))
    with pytest.raises(checkpoint.CheckpointError, match="model.safetensors: is damaged"):
        checkpoint.load(tmp_path, CPU)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(checkpoint.CheckpointError, match="model.safetensors"):
        checkpoint.load(tmp_path, CPU)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) | {"activation_function": "gelu_new"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(checkpoint.CheckpointError, match="config.json: is a GPT-2 that GuppyLM did not export"):
        checkpoint.load(tmp_path, CPU)


def test_a_dataset_reads_back(small, tmp_path):
    train, held = datagen.split(datagen.generate(small, 120), 10)
    export.save_dataset(small, train, held, tmp_path)
    assert corpus.read_rows(tmp_path / "train.jsonl") == train
    assert corpus.read_rows(tmp_path / "eval.jsonl") == held
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"{len(train):,} conversations" in card and json.dumps(train[0], ensure_ascii=False) in card
    assert corpus.read(tmp_path).tok.vocab_size > 259


class Hub(http.server.BaseHTTPRequestHandler):
    """The calls of the Hugging Face hub that uploads and downloads make; what it holds is kept in `files`."""

    files: dict[str, bytes] = {}
    asked: list[str] = []  # the files that were downloaded
    tokens: set[str] = set()

    def answer(self, table: dict | list, status: int = 200) -> None:
        body = json.dumps(table).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.tokens.add(self.headers.get("Authorization"))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        host = f"http://{self.headers['Host']}"
        if self.headers.get("Authorization") != "Bearer right":
            self.answer({"error": "Invalid token"}, 401)
        elif self.path == "/api/repos/create":
            self.answer({"url": f"{host}/datasets/me/minnow"})
        elif self.path == "/api/validate-yaml":  # of the card
            self.answer({"warnings": [], "errors": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            plain = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self.answer({"files": plain})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"{host}/datasets/me/minnow/commit/abc", "commitOid": "abc", "success": True})
        else:
            self.answer({}, 404)

    def do_GET(self) -> None:
        owner, _, place = self.path.removeprefix("/").partition("/")
        repository, _, file = place.partition("/resolve/abc/")
        if owner == "me" and repository == "minnow" and file in self.files:
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha1(self.files[file]).hexdigest()}"')
            self.send_header("X-Repo-Commit", "abc")
            self.send_header("Content-Length", str(len(self.files[file])))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(self.files[file])
                self.asked.append(file)
        elif "me/minnow/tree/" in self.path:
            self.answer([{"type": "file", "path": n, "size": len(d), "oid": "0"} for n, d in self.files.items()])
        elif "me/minnow" in self.path:
            self.answer({"id": "me/minnow", "sha": "abc", "siblings": [{"rfilename": name} for name in self.files]})
        else:
            self.answer({"error": "Repository not found"}, 404)

    do_HEAD = do_GET

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    from huggingface_hub import hf_api

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    for place in (constants, hf_api.api):
        name = "ENDPOINT" if place is constants else "endpoint"
        monkeypatch.setattr(place, name, address)
    files = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    Hub.files, Hub.tokens, Hub.asked = {}, set(), []
    yield address
    server.shutdown()
    server.server_close()


def test_push_uploads_the_folder_with_the_token_of_the_environment(hub, small, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "right")
    train, held = datagen.split(datagen.generate(small, 40), 5)
    folder = tmp_path / "data"
    export.save_dataset(small, train, held, folder)
    ours = {file.name: file.read_bytes() for file in folder.iterdir()}
    for name in ("diary.txt", "secrets.json", "config.json"):
        (folder / name).write_text("what lay there before is nobody's business", encoding="utf-8")
    address = export.push(folder, "me/minnow", "dataset")
    assert address.startswith(hub)
    assert Hub.files == ours
    assert Hub.tokens == {"Bearer right"}


@pytest.mark.parametrize(("name", "token"), [("me/minnow", "wrong"), ("not a name!", "right")])
def test_push_says_in_one_line_why_it_failed(hub, tmp_path, monkeypatch, name, token):
    monkeypatch.setenv("HF_TOKEN", token)
    (tmp_path / "README.md").write_text("x", encoding="utf-8")
    with pytest.raises(ValueError, match=f"^{name}: could not be uploaded: ") as error:
        export.push(tmp_path, name, "model")
    assert "\n" not in str(error.value)
    assert not Hub.files


def test_without_a_network_the_hub_can_not_be_reached(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants, hf_api

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(hf_api.api, "endpoint", address)
    monkeypatch.setenv("HF_TOKEN", "right")
    with pytest.raises(ValueError, match="^me/minnow: could not be uploaded: "):
        export.push(tmp_path, "me/minnow", "model")


def test_a_full_disk_is_said_in_one_line(fish, tmp_path, monkeypatch):
    def full(self, data):
        if len(data) > 1_000_000:
            raise OSError(28, "No space left on device")
        return whole(self, data)

    whole = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(checkpoint.CheckpointError, match="model.safetensors: can't be written: No space left"):
        export.save_hf(*fish[:2], {}, None, tmp_path)


def test_no_readme_but_a_card_is_overwritten(small, tmp_path):
    rows = datagen.split(datagen.generate(small, 40), 5)
    for _ in range(2):
        export.save_dataset(small, *rows, tmp_path / "data")
    for own in ("# My project\n", "---\nlicense: mit\n---\n# My own model\n"):
        (tmp_path / "README.md").write_text(own, encoding="utf-8")
        with pytest.raises(ValueError, match="README.md: was not written by an export: choose another folder"):
            export.save_dataset(small, *rows, tmp_path)
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".jsonl"] == []


@pytest.fixture(scope="module")
def onnx_files(fish, tmp_path_factory):
    """The shipped fish in 32 and in 8 bits a weight."""
    folder = tmp_path_factory.mktemp("onnx")
    onnx_export.save_onnx(fish[0], folder / "fp32.onnx", eight_bit=False)
    onnx_export.save_onnx(fish[0], folder / "int8.onnx")
    return folder


def run(file, ids, inspect=False):
    """logits and attention, of ids (B, T)."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(["logits", "attention"], {"ids": np.asarray(ids), "inspect": np.array(inspect)})


@pytest.mark.parametrize("shape", [(1, 1), (1, 128), (3, 17)])
def test_onnx_of_any_batch_and_length_equals_the_model(fish, onnx_files, shape):
    ids = torch.randint(3, 4096, shape, generator=torch.Generator().manual_seed(1))
    logits, attention = run(onnx_files / "fp32.onnx", ids, inspect=True)
    with torch.no_grad():
        assert np.allclose(logits, fish[0](ids).numpy(), atol=1e-4)
    for layer, steps in enumerate(fish[0].attention(ids)):
        assert np.allclose(attention[layer], steps.weights.numpy(), atol=1e-5)


def test_attention_is_given_out_only_when_asked_for(onnx_files):
    _, attention = run(onnx_files / "int8.onnx", [[1, 5, 9]])
    assert attention.shape == (0, 1, 6, 3, 3)


def test_the_files_are_whole_and_small(onnx_files):
    sizes = {file.name: file.stat().st_size for file in onnx_files.iterdir()}
    assert sizes.keys() == {"fp32.onnx", "int8.onnx"}  # no external data beside them
    assert sizes["int8.onnx"] <= 10e6 and sizes["fp32.onnx"] > 34e6


def test_eight_bits_lose_next_to_nothing(onnx_files, rows):
    loss, first = {"fp32": 0.0, "int8": 0.0}, {"fp32": [], "int8": []}
    for name in loss:
        session = onnxruntime.InferenceSession(str(onnx_files / f"{name}.onnx"))
        for row in rows:
            inputs = {"ids": np.array([row.ids[:-1]]), "inspect": np.array(False)}
            logits = torch.from_numpy(session.run(["logits"], inputs)[0][0])[row.prompt - 1 :]  # (reply tokens, V)
            targets = torch.tensor(row.ids[row.prompt :])
            loss[name] += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
            first[name] += logits.argmax(-1).tolist()
    tokens = sum(row.reply_tokens for row in rows)
    assert loss["int8"] / tokens < loss["fp32"] / tokens + 0.02
    assert np.mean(np.array(first["int8"]) == np.array(first["fp32"])) >= 0.97
    assert loss["int8"] != loss["fp32"]


def test_fetch_takes_a_published_model_and_no_code(hub, fish, tmp_path):
    model, tok, _ = fish
    sizes = {theirs: getattr(model.config, ours) for ours, theirs in checkpoint.PUBLISHED.items()}
    torch.save(model.state_dict(), tmp_path / "weights")
    Hub.files = {
        "config.json": json.dumps({"model_type": "guppylm", **sizes}).encode(),
        "tokenizer.json": tok.to_json().encode(),
        "pytorch_model.bin": (tmp_path / "weights").read_bytes(),
        "modeling_guppylm.py": b"raise SystemExit",
        "README.md": b"# a fish",
    }
    folder = export.fetch("me/minnow", tmp_path / "minnow")
    assert sorted(Hub.asked) == ["config.json", "pytorch_model.bin", "tokenizer.json"]
    assert chat.load(str(folder)).reply("hello", seed=1) == chat.load(str(SHIPPED)).reply("hello", seed=1)


@pytest.mark.parametrize("name", ["me/salmon", "not a name!"])
def test_fetch_says_in_one_line_why_it_failed(hub, tmp_path, name):
    with pytest.raises(ValueError, match=f"^{name}: could not be downloaded: ") as error:
        export.fetch(name, tmp_path)
    assert "\n" not in str(error.value)
