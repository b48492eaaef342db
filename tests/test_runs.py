"""Nothing lost: a run that is interrupted, killed or out of disk goes on as if nothing had happened."""

import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL

from guppylm import __main__, chat, checkpoint, copying, corpus, measure, parallel, runs, tokenizer, train
from guppylm.checkpoint import CheckpointError
from guppylm.model import GuppyLM, ModelConfig
from guppylm.train import TrainConfig

ROOT = Path(__file__).parent.parent
ENV = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}", "PYTHONIOENCODING": "utf-8"}
CONFIG = TrainConfig(
    steps=12, copy_steps=0, batch_size=8, micro_batch=3, warmup_steps=4, eval_every=5, learning_rate=5e-3
)


def start(corpus, config=CONFIG):
    torch.manual_seed(0)
    sizes = ModelConfig(vocab_size=corpus.tok.vocab_size, d_model=32, n_layers=2, n_heads=2, d_ff=64, dropout=0.1)
    return train.start(GuppyLM(sizes), config, torch.float32)


@pytest.mark.parametrize("stop", [5, 7])  # at an evaluation, and between two
def test_a_run_that_is_resumed_ends_where_it_would_have_ended(small_corpus, tmp_path, stop):
    """With dropout, so that the random state counts; even the training loss of the interval goes on."""
    straight = start(small_corpus)
    list(train.train(straight, small_corpus, CONFIG))
    broken = start(small_corpus)
    next(event for event in train.train(broken, small_corpus, CONFIG) if event.step == stop)
    runs.save_state(tmp_path, broken, small_corpus, CONFIG)
    torch.manual_seed(99)
    again = start(small_corpus)
    runs.resume(tmp_path, again, small_corpus)
    assert again.step == stop
    list(train.train(again, small_corpus, runs.saved_config(tmp_path, {"batch_size": 8})))
    for a, b in zip(straight.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert again.history == straight.history


def test_the_evaluation_of_older_weights_does_not_stay_beside_new_ones(small_corpus, tmp_path):
    state = start(small_corpus)
    list(train.train(state, small_corpus, CONFIG))
    (tmp_path / "evaluation.json").write_text("{}", encoding="utf-8")
    runs.save(tmp_path, state, small_corpus, CONFIG, {"training": {}})
    assert (tmp_path / "model.pt").exists() and not (tmp_path / "evaluation.json").exists()


def test_a_run_goes_on_in_its_precision_whatever_the_chip_seems_to_prefer_today(small_corpus, tmp_path, monkeypatch):
    state = start(small_corpus)
    runs.save_state(tmp_path, state, small_corpus, CONFIG)
    monkeypatch.setattr(runs, "pick_precision", lambda device: torch.float16)
    assert runs.saved_precision(tmp_path, torch.device("cpu")) == torch.float32
    assert runs.saved_precision(tmp_path, torch.device("meta")) == torch.float16


def test_a_run_begun_without_a_scaler_goes_on_where_one_is_needed(small_corpus, tmp_path):
    """As from a CPU to a T4."""
    runs.save_state(tmp_path, start(small_corpus), small_corpus, CONFIG)
    again = start(small_corpus)
    again.scaler = torch.amp.GradScaler("cpu")
    runs.resume(tmp_path, again, small_corpus)
    list(train.train(again, small_corpus, CONFIG))
    assert again.step == CONFIG.steps


def test_a_gpu_trains_in_its_own_precision_whatever_the_last_one_had(small_corpus, tmp_path, monkeypatch):
    runs.save_state(tmp_path, start(small_corpus), small_corpus, CONFIG)
    kept = checkpoint.read_tensors(tmp_path / "state.pt") | {"device": "cuda", "precision": torch.bfloat16}
    checkpoint.write_tensors(tmp_path / "state.pt", kept)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert runs.saved_precision(tmp_path, torch.device("cuda")) == torch.float16


def test_a_changed_run_is_not_resumed_and_says_what_changed(small, small_corpus, tmp_path):
    state = start(small_corpus)
    list(train.train(state, small_corpus, CONFIG))
    runs.save(tmp_path, state, small_corpus, CONFIG, {"training": {}})
    with pytest.raises(ValueError, match="can't resume: steps was 12, now it is 30"):
        runs.saved_config(tmp_path, {"steps": 30})
    assert runs.saved_config(tmp_path, {"micro_batch": 1}) == replace(CONFIG, micro_batch=1)  # memory may be short
    with pytest.raises(ValueError, match=r"can't resume: the rows \(the persona, --data or --rows\) changed"):
        runs.resume(tmp_path, state, corpus.prepare(small, 200, 20, seed=5))
    other = tokenizer.train(["user\nhello", "assistant\nhello"], 280)
    with pytest.raises(ValueError, match="can't resume: the tokenizer changed"):
        runs.resume(tmp_path, state, corpus.prepare(small, 200, 20, tok=other))


@pytest.mark.parametrize("kept", [{"config": {"swing": 1}}, {"step": 3}])
def test_a_state_of_another_version_is_refused_in_one_line(tmp_path, kept):
    checkpoint.write_tensors(tmp_path / "state.pt", kept)
    with pytest.raises(ValueError, match="another version") as error:
        runs.saved_config(tmp_path, {"steps": 3})
    assert "\n" not in str(error.value)


def test_the_state_is_saved_every_minute_and_the_time_to_go_is_said(small_corpus, tmp_path, monkeypatch, capsys):
    config, saved, clock = replace(CONFIG, eval_every=12), [], itertools.count(0, 25)
    monkeypatch.setattr(__main__, "time", SimpleNamespace(monotonic=lambda: next(clock)))  # 25 s a step
    monkeypatch.setattr(runs, "save_state", lambda folder, state, *rest: saved.append(state.step))
    monkeypatch.setattr(runs, "save", lambda *args: None)
    state = start(small_corpus, config)
    bot = chat.Bot(state.model, small_corpus.tok, "minnow")
    out = tmp_path / "two words"
    __main__.show(train.train(state, small_corpus, config), state, small_corpus, config, bot, out, {})
    assert saved == [3, 6, 9]
    printed = capsys.readouterr().out
    assert printed.count("about 0 min to go") == 1 and f'--model "{out}"' in printed


LIFE = """
import sys, torch
from conftest import SMALL
from guppylm import corpus, datagen, runs, train
from guppylm.model import GuppyLM, ModelConfig
from guppylm.train import TrainConfig
from pathlib import Path
folder = Path(sys.argv[1])
(folder / "minnow.toml").write_text(SMALL, encoding="utf-8")
rows = corpus.prepare(datagen.load_persona(str(folder / "minnow.toml")), 200, 20)
config = TrainConfig(steps=500, batch_size=8, micro_batch=4, warmup_steps=4, eval_every=50)
torch.manual_seed(0)
model = GuppyLM(ModelConfig(vocab_size=rows.tok.vocab_size, d_model=32, n_layers=2, n_heads=2, d_ff=64))
state = train.start(model, config, torch.float32)
if (folder / "state.pt").exists():
    runs.resume(folder, state, rows)
print("ready", flush=True)
for progress in train.train(state, rows, config):
    if progress.evaluation:
        runs.save(folder, state, rows, config, {"training": {}})
    elif len(sys.argv) > 2:
        runs.save_state(folder, state, rows, config)
"""


def live(folder, *args):
    return subprocess.Popen([sys.executable, "-c", LIFE, str(folder), *args], env=ENV, stdout=subprocess.PIPE)


def test_a_run_killed_at_any_moment_ends_with_the_same_weights(tmp_path):
    """Saved after each step, so that many of the twenty kills fall into a write."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    straight.mkdir(), broken.mkdir()
    alone = live(straight)
    rng, steps = random.Random(0), []
    for _ in range(20):
        life = live(broken, "each step")
        assert life.stdout.readline().strip() == b"ready"
        time.sleep(0.3 * rng.random())
        assert life.poll() is None, "the run ended before it could be killed"
        life.kill()
        life.wait()
        if (broken / "state.pt").exists():
            steps.append(checkpoint.read_tensors(broken / "state.pt")["step"])
    assert steps == sorted(steps) and steps[-1] > steps[0]
    assert live(broken, "each step").wait(timeout=120) == 0 and alone.wait(timeout=120) == 0
    a, b = (checkpoint.read_tensors(folder / "model.pt") for folder in (straight, broken))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (straight / "history.jsonl").read_bytes() == (broken / "history.jsonl").read_bytes()


DIES_WRITING = """
import os
from pathlib import Path
whole, writes = Path.write_bytes, []
def half(part, data):
    writes.append(part.name)
    if writes.count(".state.pt.part") < 3:
        return whole(part, data)
    whole(part, bytes(data)[: len(data) // 2])
    os._exit(9)  # like SIGKILL: nothing is tidied up
Path.write_bytes = half
"""


def test_a_run_killed_in_the_middle_of_a_write_goes_on_from_the_state_before(tmp_path):
    dying = [sys.executable, "-c", DIES_WRITING + LIFE, str(tmp_path), "each step"]
    assert subprocess.run(dying, env=ENV, stdout=subprocess.DEVNULL).returncode == 9
    assert (tmp_path / ".state.pt.part").exists()
    assert checkpoint.read_tensors(tmp_path / "state.pt")["step"] == 2
    assert live(tmp_path).wait(timeout=120) == 0
    assert checkpoint.read_tensors(tmp_path / "state.pt")["step"] == 500


def test_a_run_killed_in_the_lesson_ends_where_it_would_have_ended(small_corpus, tmp_path):
    config = replace(CONFIG, copy_steps=6)

    def go(state):
        list(copying.lesson(state, small_corpus.tok, config))
        list(train.train(state, small_corpus, config))
        return list(state.model.parameters())

    straight = go(start(small_corpus, config))
    killed = start(small_corpus, config)
    runs.save_state(tmp_path, killed, small_corpus, config)  # as `train` does before the lesson
    next(copying.lesson(killed, small_corpus.tok, config))
    again = start(small_corpus, config)
    runs.resume(tmp_path, again, small_corpus)
    assert all(torch.equal(a, b) for a, b in zip(straight, go(again), strict=True))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C to a whole console, the tests' too")
def test_ctrl_c_saves_and_resume_goes_on(tmp_path):
    (tmp_path / "minnow.toml").write_text(SMALL, encoding="utf-8")
    command = [sys.executable, "-m", "guppylm", "train", "--persona", "minnow.toml", "-n", "200", "--eval-rows", "20"]
    options = {"cwd": tmp_path, "env": ENV, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    run = subprocess.Popen([*command, "--steps", "400", "--batch-size", "4", "--eval-every", "3"], **options)
    while "step 3/400" not in run.stdout.readline():
        assert run.poll() is None
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in err, err
    assert "the same command with --resume goes on" in out
    folder = tmp_path / "checkpoints" / "minnow"
    step = checkpoint.read_tensors(folder / "state.pt")["step"]
    assert f"stopped after step {step} " in out
    run = subprocess.Popen([*command, "--resume"], **options)
    assert f"step {3 * (step // 3 + 1)}/400" in "".join(run.stdout.readline() for _ in range(3))
    run.kill()
    run.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C to a whole console, the tests' too")
def test_ctrl_c_in_the_lesson_stops_there_and_resume_begins_it_anew(tmp_path):
    (tmp_path / "minnow.toml").write_text(SMALL, encoding="utf-8")
    command = [sys.executable, "-m", "guppylm", "train", "--persona", "minnow.toml", "-n", "200", "--eval-rows", "20"]
    options = {"cwd": tmp_path, "env": ENV, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    for more in (["--steps", "600", "--batch-size", "2"], ["--resume"]):
        run = subprocess.Popen([*command, *more], **options)
        while "copying random tokens, step 50/250: loss" not in run.stdout.readline():
            assert run.poll() is None
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=60)
        assert run.returncode == 130 and "Traceback" not in err, err
        assert "stopped in the lesson: the same command with --resume begins it anew" in out
        assert checkpoint.read_tensors(tmp_path / "checkpoints" / "minnow" / "state.pt")["step"] == 0


def test_a_second_ctrl_c_stops_at_once():
    before = signal.getsignal(signal.SIGINT)  # a shell may have had it ignored
    with pytest.raises(KeyboardInterrupt), runs.interrupts() as caught:
        signal.raise_signal(signal.SIGINT)
        assert caught
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_full_disk_is_one_line_and_the_last_state_is_intact(small_corpus, tmp_path, monkeypatch):
    state = start(small_corpus)
    events = train.train(state, small_corpus, CONFIG)
    next(events)
    runs.save_state(tmp_path, state, small_corpus, CONFIG)
    before = (tmp_path / "state.pt").read_bytes()
    next(events)

    def full(part, data):
        with part.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError, match="state.pt: can't be written: No space left on device; the file that was"):
        runs.save_state(tmp_path, state, small_corpus, CONFIG)
    assert (tmp_path / "state.pt").read_bytes() == before
    assert [file.name for file in tmp_path.glob(".*")] == []


def test_every_flipped_bit_is_noticed_or_harmless(small_corpus, tmp_path):
    state = start(small_corpus)
    runs.save_state(tmp_path, state, small_corpus, CONFIG)
    file = tmp_path / "state.pt"
    good, kept = file.read_bytes(), checkpoint.read_tensors(file)["model"]
    rng, noticed = random.Random(0), 0
    for _ in range(60):
        at = rng.randrange(len(good))
        file.write_bytes(good[:at] + bytes([good[at] ^ 1 << rng.randrange(8)]) + good[at + 1 :])
        try:
            read = checkpoint.read_tensors(file)["model"]
            assert all(torch.equal(kept[name], read[name]) for name in kept)
        except CheckpointError as error:
            assert "is damaged" in str(error) and "\n" not in str(error)
            noticed += 1
    assert noticed > 30
    file.write_bytes(good[: len(good) // 2])
    with pytest.raises(CheckpointError, match="is damaged"):
        runs.saved_config(tmp_path, {})


def test_two_processes_train_as_one(tmp_path):
    """The same global batch, so the same losses but for rounding; one of them writes, and the run can be resumed."""
    (tmp_path / "minnow.toml").write_text(SMALL, encoding="utf-8")
    train = ["-m", "guppylm", "train", "--device", "cpu", "--persona", "minnow.toml", "-n", "200", "--eval-rows", "21",
             "--steps", "6", "--batch-size", "9", "--micro-batch", "2", "--eval-every", "2"]  # fmt: skip
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = {"cwd": tmp_path, "env": {**ENV, "OMP_NUM_THREADS": "1"}, "capture_output": True, "encoding": "utf-8"}
    for arguments in ([*train, "--out", "one"], [*two, *train, "--out", "two"]):
        result = subprocess.run([sys.executable, *arguments], timeout=200, **options)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("step 6/6") == 1
    one, two_of_them = (
        [json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("one", "two")
    )
    for a, b in zip(one, two_of_them, strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=2e-3)
        assert b["eval_loss"] == pytest.approx(a["eval_loss"], rel=2e-3)
    result = subprocess.run([sys.executable, *two, *train, "--out", "two", "--resume"], timeout=200, **options)
    assert result.returncode == 0, result.stderr
    result = subprocess.run([sys.executable, *two, *train, "--batch-size", "1"], timeout=200, **options)
    assert "--nproc-per-node 2: a step has fewer rows (1)" in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to another process")
@pytest.mark.parametrize(("steps", "said"), [(400, "and saved in two"), (600, "stopped in the lesson")])
def test_two_processes_stop_together_at_ctrl_c(tmp_path, steps, said):
    """Started as torchrun does it. The signal reaches the second alone, and the first, which saves, hears of it."""
    (tmp_path / "minnow.toml").write_text(SMALL, encoding="utf-8")
    train = ["-m", "guppylm", "train", "--device", "cpu", "--persona", "minnow.toml", "-n", "200",
             "--steps", str(steps), "--batch-size", "4", "--eval-every", "5"]  # fmt: skip

    def start_both(*more):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        together = {**ENV, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        command, pipes = [sys.executable, "-u", *train, "--out", "two", *more], {"stdout": subprocess.PIPE}
        return (
            subprocess.Popen(command, cwd=tmp_path, env={**together, "RANK": rank}, encoding="utf-8", **pipes)
            for rank in "01"
        )

    first, second = start_both()
    while "an untrained model" not in first.stdout.readline():
        assert first.poll() is None
    time.sleep(1)
    second.send_signal(signal.SIGINT)
    assert said in first.communicate(timeout=60)[0] and first.returncode == 130
    second.communicate(timeout=60)
    assert second.returncode == 130
    before = checkpoint.read_tensors(tmp_path / "two" / "state.pt")["step"]
    assert (before > 0) == (steps == 400)
    if before:
        first, second = start_both("--resume")
        while not (done := re.match(r"step (\d+)/400", first.stdout.readline())):
            assert first.poll() is None
        assert before < int(done[1]) <= before + 5
        second.send_signal(signal.SIGINT)
        assert "and saved in two" in first.communicate(timeout=60)[0]
        second.communicate(timeout=60)
        rows = (tmp_path / "two" / "history.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(row)["step"] for row in rows] == list(range(5, 5 * len(rows) + 1, 5))


def test_nothing_holds_the_group_of_processes_that_was_left():
    """Else its threads go on, and one that is at work when Python ends aborts the process."""
    code = """
import weakref
from types import SimpleNamespace
import torch, torch.distributed as dist
from guppylm import parallel
parallel.join(torch.device("cpu"))
model = torch.nn.Linear(2, 2)
state = SimpleNamespace(model=model, wrapped=parallel.wrap(model))
state.wrapped(torch.ones(1, 2)).sum().backward()
group = weakref.ref(dist.group.WORLD)
print(group() is not None)
parallel.leave(state)
print(group() is not None)
"""
    alone = {**ENV, "WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=alone, capture_output=True, encoding="utf-8", timeout=120)
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_more_processes_than_gpus_are_a_mistake(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="--nproc-per-node 2: this machine has GPUs for 1"):
        parallel.join(torch.device("cuda"))


def test_processes_can_not_use_a_macs_gpu(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="torchrun can't use a Mac's GPU: leave torchrun out, or add --device cpu"):
        parallel.join(torch.device("mps"))


def test_a_few_steps_are_timed(small_corpus, monkeypatch):
    ticks = itertools.count(0, 80)  # each look at the clock is 80 s after the one before
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert measure.seconds(start(small_corpus), small_corpus, CONFIG) == (80 / measure.TIMED, 80)


def test_the_peak_is_that_of_a_real_product():
    assert measure.peak(torch.device("cpu"), torch.float32) > 1e8


def test_minutes_become_steps():
    config = runs.fit(TrainConfig(), seconds=60, per_step=0.5, per_evaluation=1)
    assert (config.steps, config.warmup_steps, config.eval_every) == (100, 10, 10)
    long = runs.fit(TrainConfig(copy_steps=300), 3600, 0.5, 0)
    assert (long.steps, long.copy_steps, long.warmup_steps) == (7050, 300, TrainConfig().warmup_steps)
    assert runs.fit(TrainConfig(), 1, 5, 5).steps == 1


@pytest.mark.parametrize(("steps", "lesson"), [(599, 0), (600, 300)])
def test_a_short_run_has_no_time_for_the_lesson(steps, lesson):
    config = runs.suited(TrainConfig(steps=steps, copy_steps=300, warmup_steps=100))
    assert (config.copy_steps, config.warmup_steps) == (lesson, steps // 10)


def test_a_profile_counts_the_work(small_corpus, monkeypatch):
    """6 operations a matrix entry and token: 2 forward, 4 backward."""
    state, rows = start(small_corpus), small_corpus.train[:5]
    block = 32 * 96 + 32 * 32 + 2 * 32 * 64
    head = 32 * small_corpus.tok.vocab_size
    tokens, replies = sum(len(row.ids) for row in rows), sum(row.reply_tokens for row in rows)
    assert measure.flops(state, rows) == 6 * (2 * block * tokens + head * replies)
    monkeypatch.setattr(measure, "peak", lambda device, precision: 1e12)
    monkeypatch.setattr(measure, "seconds", lambda *args: (390.0, 0.0))  # of a step, and of an evaluation
    report = measure.profile(state, small_corpus, replace(CONFIG, copy_steps=4))
    assert "tokens/s" in report and "4 steps of the lesson and 12 on conversations" in report
    assert "91.0 min here" in report  # a step of the lesson counts half
    assert "T4 at the same share of its 65 Tflop/s: 1.4 min" in report and "aten::" in report


def test_memorisation_is_called_by_its_name():
    def line(train_loss):
        row = {"step": 2, "train_loss": train_loss, "eval_loss": 0.5, "nats_per_reply": 9.0, "floor": 0.4}
        return runs.describe(train_progress(row), TrainConfig(steps=4))

    assert "loss 0.500, 0.100 above the floor" in line(0.45) and "memorisation" not in line(0.45)
    assert "training 0.390, under the floor: memorisation" in line(0.39)


def test_the_worst_loss_can_still_be_said():
    row = {"step": 2, "train_loss": 9e9, "eval_loss": 2669.0, "nats_per_reply": 9.0, "floor": None}
    assert "loss 2669.000, as unsure as choosing among" in runs.describe(train_progress(row), TrainConfig(steps=4))


def train_progress(evaluation):
    return train.Progress(2, 1.0, 1e-3, 1.0, 4.0, 2, 100, evaluation)
