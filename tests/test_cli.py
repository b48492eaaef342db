"""The command line as a user meets it: in a process of its own."""

import ast
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import SMALL

from guppylm import __main__, chat, checkpoint, corpus, evaluate

ROOT = Path(__file__).parent.parent
ONE = 'name = "one"\nsummary = "of few words"\n[topics.only]\nuser = ["hello"]\nreply = [["hello."]]\n'


def guppylm(*args, cwd, stdin=""):
    """Run `python -m guppylm` with this checkout on the path."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "guppylm", *args]
    pipes = {"input": stdin, "capture_output": True, "encoding": "utf-8"}
    return subprocess.run(command, cwd=cwd, env=env, timeout=300, **pipes)


def assert_one_line(result, *expected):
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for text in expected:
        assert text in result.stderr


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["data", "--persona", "gupy"], ["no persona named 'gupy'", "there are customer_service, guppy"]),
        (["data", "--persona", "no.toml"], ["no.toml: can't be read"]),
        (["data", "-n", "0"], ["0 is not a whole number of at least 1"]),
        (["data", "--topic", "hats", "--sample", "3"], ["--topic hats: guppy knows", "greeting, "]),
        (["data", "--topic", "snail"], ["--topic goes with --sample"]),
        (["data", "--sample", "3", "--json"], ["choose one"]),
        (["data", "--seed", "99999999999999999999"], ["99999999999999999999 does not fit into 64 bits"]),
        (["train", "--data", "nowhere"], ["nowhere"]),
        (["train", "--device", "abacus"], ["device 'abacus' can't be used here"]),
        (["train", "--steps", "many"], ["--steps"]),
        (["chat", "--model", "nowhere"], ["nowhere", "config.json"]),
        (["train", "--minutes", "0"], ["0 is not a number above 0"]),
        (["train", "--minutes", "1", "--eval-every", "5"], ["--minutes evaluates ten times"]),
        (["train", "--data", "latin"], ["train.jsonl: is not UTF-8 text (byte 13)"]),
        (["evaluate", "--prompts", "latin/train.jsonl"], ["train.jsonl: is not UTF-8 text (byte 13)"]),
        (["train", "--persona", "one.toml", "-n", "20"], ["one.toml: can say one conversation alone"]),
        (["data", "--persona", "one.toml", "-n", "20"], ["one.toml: can say one conversation alone"]),
        (["chat", "--temperature", "-1"], ["-1 is neither 0 nor a number from 0.01 to 100"]),
        (["chat", "--temperature", "1e-45"], ["1e-45 is neither 0 nor a number"]),
        (["chat", "--top-k", "-1"], ["-1 is below 0"]),
        (["evaluate", "--prompts", "nowhere.jsonl"], ["nowhere.jsonl"]),
        (["export", "--to", "hf", "out", "--model", "nowhere"], ["nowhere", "config.json"]),
        (["export", "--to", "dataset", "out", "--persona", "gupy"], ["no persona named 'gupy'"]),
        (
            ["export", "--to", "onnx", "out", "--push", "me/fish"],
            ["--push uploads what --to hf and"],
        ),
        (["export", "--to", "hf", "out", "--fp32"], ["--fp32 is for --to onnx, not hf"]),
        (
            ["export", "--to", "hf", "out", "--persona", "poet"],
            ["--persona is for --to dataset; --to hf takes"],
        ),
        (["train", "--data", "latin", "--persona", "poet"], ["--data brings its own conversations"]),
        (["data", "--out", "halves", "-n", "50"], ["train.jsonl: was not written by this program, and stays"]),
        (["train", "--data", "halves"], ["train.jsonl: line 2 holds half a character"]),
        (["train", "--device", "meta"], ["device 'meta' can't be used here"]),
        (["export", "--to", "paper", "out"], ["--to", "'paper'"]),
        (["web", "--model", "nowhere"], ["nowhere", "config.json"]),
        (["web", "--port", "70000"], ["port 70000 can't be used"]),
        (["swim"], ["invalid choice: 'swim'"]),
        ([], ["required"]),
    ],
)
def test_a_mistake_is_one_line(tmp_path, args, expected):
    (tmp_path / "one.toml").write_text(ONE, encoding="utf-8")
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / "train.jsonl").write_bytes(b'{"input": "ol\xe9"}\n')
    (tmp_path / "halves").mkdir()
    rows = '{"input": "hi", "output": "hello"}\n{"input": "hi \\ud83d", "output": "hello"}\n'
    (tmp_path / "halves" / "train.jsonl").write_text(rows, encoding="utf-8")
    assert_one_line(guppylm(*args, cwd=tmp_path), *expected)


def test_data_writes_rows_that_train_reads(tmp_path):
    (tmp_path / "minnow.toml").write_text(SMALL, encoding="utf-8")
    result = guppylm("data", "--persona", "minnow.toml", "-n", "300", "--eval-rows", "20", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert set(rows[0]) == {"input", "output", "category"}
    assert "eval.jsonl: minnow, 2 topics" in result.stdout and "rows: " in result.stdout and "floor: " in result.stdout
    assert "minnow.toml: topics: none is called confused" in result.stdout
    result = guppylm("data", "--persona", "minnow.toml", "-n", "300", "--eval-rows", "20", "--json", cwd=tmp_path)
    counts = json.loads(result.stdout)
    assert counts["rows"] == len(rows) and counts["can_say"].keys() == {"food", "home"}
    assert any("none is called confused" in line for line in counts["advice"])
    result = guppylm("train", "--data", "data", "--out", "fish", "--steps", "2", "--batch-size", "4", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    result = guppylm("chat", "--model", "fish", "--prompt", "hi", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_data_prints_samples_and_writes_nothing(tmp_path):
    result = guppylm("data", "--sample", "4", "--topic", "snail", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split(".")[:2] for line in lines[::3]] == [["[topics", "snail"]] * 4
    assert all("user[" in line and "reply[0][" in line for line in lines[::3])
    assert all(line.startswith("  you> ") for line in lines[1::3])
    assert all(line.startswith("  guppy> ") for line in lines[2::3])
    assert not list(tmp_path.iterdir())


def test_what_is_exported_can_be_used_again(tmp_path):
    (tmp_path / "minnow.toml").write_text(SMALL, encoding="utf-8")
    result = guppylm("export", "--to", "dataset", "rows", "--persona", "minnow.toml", "-n", "200", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "written: rows" in result.stdout
    result = guppylm("train", "--data", "rows", "--out", "fish", "--steps", "1", "--batch-size", "4", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    result = guppylm("export", "--to", "hf", "hf", "--model", "fish", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    ours, theirs = (
        guppylm("chat", "--model", m, "--prompt", "hi", "--seed", "1", cwd=tmp_path) for m in ("fish", "hf")
    )
    assert ours.returncode == theirs.returncode == 0, theirs.stderr
    assert ours.stdout == theirs.stdout


def test_what_evaluate_saves_is_what_export_tells(tmp_path, monkeypatch, capsys):
    def run(*args):
        monkeypatch.setattr(sys, "argv", ["guppylm", *args])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        __main__.main()
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    for number, few in (("FRESH", 5), ("NAMING", 3), ("DRAWS", 1)):
        monkeypatch.setattr(evaluate, number, few)
    Path("minnow.toml").write_text(SMALL, encoding="utf-8")
    own = ("--persona", "minnow.toml")
    run("train", *own, "-n", "200", "--eval-rows", "20", "--steps", "2", "--batch-size", "4", "--out", "fish")
    card = json.loads(run("evaluate", *own, "--model", "fish", "--save", "--json"))
    assert {"loss", "replies", "robustness", "naming", "style", "novelty", "precision"} == card.keys()
    assert json.loads(Path("fish/evaluation.json").read_text(encoding="utf-8")) == card
    text = run("evaluate", *own, "--model", "fish")
    for line in ("loss on replies, in nats a token:", "no model can get under", "the floor is about", "style: ",
                 "fresh template messages (", "test phrasings (1): ", "after 'hey minnow,'", "composed: ",
                 f"(replies drawn in {card['precision']})"):  # fmt: skip
        assert line in text, line
    changed = SMALL.replace('"red worms"', '"green worms"')
    Path("minnow.toml").write_text(changed, encoding="utf-8")
    assert "composed or recited: not known." in run("evaluate", *own, "--model", "fish")
    run("export", "--to", "hf", "hf", "--model", "fish")
    on_topic = f"{card['replies']['test phrasings']['on_topic']:.1%}"
    assert re.search(rf"test phrasings.*{on_topic}", Path("hf/README.md").read_text(encoding="utf-8"))


def test_web_says_that_the_port_is_taken_before_it_builds(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert_one_line(guppylm("web", "--port", port, cwd=tmp_path), f"port {port} can't be used", "--port")
    assert not list(tmp_path.iterdir())


def test_a_broken_row_is_named(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"input": "a", "output": "b"}\n{"input": "a"}\n', encoding="utf-8")
    assert_one_line(guppylm("train", "--data", ".", cwd=tmp_path), "train.jsonl: line 2 is not")


def test_train_keeps_a_record_goes_on_and_overwrites_nothing(tmp_path):
    (tmp_path / "minnow.toml").write_text(SMALL, encoding="utf-8")
    args = ["train", "--persona", "minnow.toml", "-n", "200", "--eval-rows", "20", "--steps", "4", "--eval-every", "2"]
    result = guppylm(*args, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "checkpoints" / "minnow"
    assert sorted(f.name for f in folder.iterdir()) == [
        "config.json", "history.jsonl", "model.pt", "state.pt", "tokenizer.json", "words.txt"]  # fmt: skip
    record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert record["persona"]["name"] == "minnow"
    assert record["training"]["steps"] == 4 and "eval_loss" in record["training"] and "command" in record["training"]
    assert record["training"]["warmup_steps"] == 0  # a tenth of so short a run at most
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in history] == [2, 4]
    assert "you> " in result.stdout and "minnow> " in result.stdout
    assert re.search(r"parameters, \d+ rows, 4 steps, on \S+ in \w+", result.stdout) and " min left" in result.stdout
    assert re.search(r"min: .*forward \d+%", result.stdout)  # where the time went
    assert result.stdout.endswith(f"chat --model {Path('checkpoints', 'minnow')}\n")
    again = guppylm(*args, cwd=tmp_path)
    assert again.returncode == 2 and "there is a model already: add --resume" in again.stderr
    changed = guppylm(*args, "--resume", "--seed", "5", cwd=tmp_path)
    assert changed.returncode == 2 and "can't resume: seed was 0, now it is 5" in changed.stderr
    assert guppylm(*args, "--resume", cwd=tmp_path).returncode == 0
    hurried = guppylm(*args[:-4], "--resume", "--minutes", "5", cwd=tmp_path)
    assert hurried.returncode == 0 and "goes on in its own settings; --minutes counts" in hurried.stdout
    judged = guppylm("evaluate", "--model", str(folder), cwd=tmp_path)  # by its own templates, which lie elsewhere
    assert_one_line(judged, "no persona named 'minnow'", "give the path of a .toml file")


def test_a_run_is_fitted_to_its_minutes_and_a_profile_trains_nothing(tmp_path):
    (tmp_path / "minnow.toml").write_text(SMALL, encoding="utf-8")
    args = ["train", "--persona", "minnow.toml", "-n", "200", "--eval-rows", "20", "--batch-size", "4"]
    profile = guppylm(*args, "--profile", cwd=tmp_path)
    assert profile.returncode == 0 and "the whole run: " in profile.stdout, profile.stderr
    assert not (tmp_path / "checkpoints").exists()
    timed = guppylm(*args, "--minutes", "0.03", cwd=tmp_path)
    assert timed.returncode == 0, timed.stderr
    record = json.loads((tmp_path / "checkpoints" / "minnow" / "config.json").read_text(encoding="utf-8"))
    assert f"step {record['training']['steps']}/{record['training']['steps']}: " in timed.stdout
    assert record["training"]["steps"] < 500


def test_one_prompt_gives_one_answer_offline(tmp_path):
    first = guppylm("chat", "--prompt", "hello little fish", "--seed", "1", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert len(first.stdout.strip().splitlines()) == 1 and len(first.stdout.split()) > 2
    assert guppylm("chat", "--prompt", "hello little fish", "--seed", "1", cwd=tmp_path).stdout == first.stdout


def test_what_pip_installed_is_whole(tmp_path):
    """Isolated (-I): neither this folder nor PYTHONPATH is looked into."""

    def isolated(*command):
        pipes = {"capture_output": True, "encoding": "utf-8"}
        return subprocess.run([sys.executable, "-I", *command], cwd=tmp_path, timeout=300, **pipes)

    found = isolated("-c", "import guppylm; print(guppylm.__file__)")
    there = Path(found.stdout.strip() or ".").parent
    if found.returncode or there == ROOT / "guppylm":
        pytest.skip("not installed, or as a link to this checkout")
    ours = {f.relative_to(ROOT / "guppylm").as_posix() for f in (ROOT / "guppylm").rglob("*")
            if f.is_file() and "__pycache__" not in f.parts and not f.name.startswith(".")}  # fmt: skip
    ours |= {f"data_templates/{f.name}" for f in (ROOT / "data_templates").glob("*.toml")}
    lacking = ours - {f.relative_to(there).as_posix() for f in there.rglob("*")}
    assert not lacking, f"not installed (install again after a change): {sorted(lacking)}"
    ask = ["chat", "--prompt", "hello", "--seed", "1"]
    script = shutil.which("guppylm", path=sysconfig.get_path("scripts"))
    assert script, "pip installed no command"
    said = subprocess.run([script, *ask], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=300)
    assert said.stdout == isolated("-m", "guppylm", *ask).stdout != ""


def test_chat_needs_torch_and_tokenizers_alone_and_no_network(tmp_path):
    code = ("import socket, sys; socket.socket.connect = None; "
            "sys.modules.update(dict.fromkeys(['numpy', 'tqdm', 'matplotlib', 'safetensors', 'huggingface_hub'])); "
            "from guppylm.__main__ import main; main()")  # fmt: skip
    ask = ["chat", "--prompt", "hello", "--seed", "1"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    pipes = {"capture_output": True, "encoding": "utf-8"}
    bare = subprocess.run([sys.executable, "-c", code, *ask], cwd=tmp_path, env=env, timeout=300, **pipes)
    assert bare.returncode == 0, bare.stderr
    assert bare.stdout == guppylm(*ask, cwd=tmp_path).stdout


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to a whole console, the tests' too")
def test_ctrl_c_ends_a_conversation(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell may have it ignored
    command = [sys.executable, "-c", f"{heard}; from guppylm.__main__ import main; main()", "chat"]
    with subprocess.Popen(command, cwd=tmp_path, env=env, encoding="utf-8", **pipes) as run:
        run.stdin.write("hello\n")
        run.stdin.flush()
        assert run.stdout.readline().startswith("Guppy> ")
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=60) == 130
        assert "Traceback" not in run.stderr.read()


def test_each_message_stands_alone(tmp_path):
    said = guppylm("chat", "--seed", "1", cwd=tmp_path, stdin="hello\nwhat is rain?\nhello\n")
    first, other, again = said.stdout.splitlines()
    assert first == again != other


def test_temperature_and_top_k_are_those_that_were_asked_for(tmp_path):
    def ask(*args):
        return guppylm("chat", "--prompt", "hello there", "--seed", "1", *args, cwd=tmp_path).stdout

    hot = ("--temperature", "100", "--top-k")
    assert ask(*hot, "1") == ask("--temperature", "0") != ask(*hot, "0")


def test_a_reply_appears_token_by_token(capsys):
    seen = []

    class Fish:
        def stream(self, message, **sampling):
            for text in ("oh", ". hi"):
                yield chat.Step(5, text, 1.0, [])
                seen.append(capsys.readouterr().out)

    __main__.speak(Fish(), "hello", {})
    assert seen == ["oh", ". hi"]


@pytest.mark.parametrize(
    ("args", "said", "advice"),
    [
        (["chat", "--prompt", "hi"], "CUDA out of memory", "try --device cpu, or close other programs"),
        (["chat", "--prompt", "hi"], "DefaultCPUAllocator: can't allocate memory", "try --device cpu, or close"),
        (["train", "--out", "fish"], "CUDA out of memory", "try a smaller --micro-batch (with --resume if the run had"),
        (["web"], "DefaultCPUAllocator: can't allocate memory", "close other programs"),
    ],
)
def test_too_little_memory_is_said_in_one_line(monkeypatch, tmp_path, capsys, args, said, advice):
    def greedy(*args):
        raise RuntimeError(said)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["guppylm", *args])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setattr(checkpoint, "load", greedy)
    monkeypatch.setattr(corpus, "prepare", greedy)
    with pytest.raises(SystemExit, match="2"):
        __main__.main()
    assert capsys.readouterr().err.startswith(f"guppylm: out of memory: {advice}")


def test_every_text_file_is_read_and_written_in_utf8():
    for file in (ROOT / "guppylm").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("read_text", "write_text"):
                if ast.unparse(node.func.value) != "checkpoint":  # which is that of our own
                    assert "encoding" in {k.arg for k in node.keywords}, f"{file.name}:{node.lineno}"


def test_explain_prints_what_each_token_was_chosen_from(tmp_path):
    result = guppylm("chat", "--prompt", "HELLO CASLTE", "--seed", "1", "--explain", cwd=tmp_path)
    lines = result.stdout.splitlines()
    assert lines[0] == "read as 'hello castle'"
    assert lines[1].split() == ["token", "chance", "also", "likely"]
    assert all("%" in line for line in lines[2:])
    assert "<|im_end|>" in lines[-1]


def test_a_conversation_through_a_pipe_ends_with_the_input(tmp_path):
    result = guppylm("chat", cwd=tmp_path, stdin="hello\n\n   \n" + "long " * 2000 + "\n\x07\x1b[2J\n日本語\n")
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    answers = result.stdout.splitlines()
    assert len(answers) == 4 and all(line.startswith("Guppy> ") for line in answers)
    assert result.stdout.replace("\n", "").isprintable()


@pytest.mark.skipif(os.name == "nt", reason="a pipe without a reader is another error on Windows")
def test_a_reader_that_has_seen_enough_is_no_mistake(tmp_path):
    options = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "stdout": subprocess.PIPE}
    command = [sys.executable, "-m", "guppylm", "data", "--sample", "2000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, **options) as run:
        run.stdout.readline()
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 141
