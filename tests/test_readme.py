"""What the README says of the files is what the files say."""

import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import SHIPPED

from guppylm import __main__, chat, corpus, datagen, spelling, tokenizer
from guppylm.train import TrainConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.S))
TRAINING = json.loads((SHIPPED / "config.json").read_text(encoding="utf-8"))["training"]
COMMANDS = re.findall(r"guppylm ((?:data|train|chat|evaluate|export|web)\b.*)", SHELL)


def test_every_module_is_listed_with_its_lines():
    listed = dict(re.findall(r"\[`?(\w+\.py)`?\]\(guppylm/\w+\.py\) \| (\d+) \|", README))
    there = {f.name: f.read_text(encoding="utf-8").count("\n") for f in (ROOT / "guppylm").glob("*.py")}
    there.pop("__init__.py")
    assert {name: int(lines) for name, lines in listed.items()} == there
    total = sum(there.values())
    assert f"{len(there)} files, {total:,} lines" in README


def test_every_link_leads_to_a_file_or_a_heading():
    targets = re.findall(r"\]\(([^):]+)\)", README)
    assert len(targets) > 30
    headings = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", README, re.M)
    }
    for target in targets:
        assert target[1:] in headings if target.startswith("#") else (ROOT / target).exists(), target


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command):
    __main__.parser().parse_args(shlex.split(command, comments=True))


def test_nothing_is_left_to_fill_in():
    assert len(COMMANDS) > 10 and "TODO" not in README


def test_the_persona_in_the_readme_can_be_trained_on(tmp_path):
    (tmp_path / "rusty.toml").write_text(re.search(r"```toml\n(.*?)```", README, re.S).group(1), encoding="utf-8")
    persona = datagen.load_persona(str(tmp_path / "rusty.toml"))
    assert set(persona.topics) == {"greeting", "health"}
    rows = corpus.prepare(persona, n=2_000)
    assert len(rows.train) > 1_000 and rows.evaluation and rows.floor > 0


def test_the_shipped_fish_is_that_of_the_defaults_and_of_these_templates(guppy):
    assert TRAINING["command"] == "guppylm train" and asdict(TrainConfig()).items() <= TRAINING.items()
    made = datagen.generate(guppy, TRAINING["rows"] + TRAINING["eval_rows"], TRAINING["seed"])
    rows, _ = datagen.split(made, TRAINING["eval_rows"])
    again = tokenizer.train(tokenizer.conversation_texts(rows))
    assert again.merges() == tokenizer.Tokenizer.load(SHIPPED / "tokenizer.json").merges()
    words = (SHIPPED / "words.txt").read_text(encoding="utf-8").split()
    assert spelling.learn((row["input"] for row in rows), datagen.spelled(guppy)) == words


def test_the_conversation_is_what_the_shipped_fish_says():
    drawn = torch.multinomial(torch.ones(10_000), 1, generator=torch.Generator().manual_seed(1)).item()
    if drawn != 9247:
        pytest.skip("this torch draws other random numbers from a seed than the one that made the README")
    told = re.findall(r"^You> (.*)\nGuppy> (.*)$", README, re.M)
    bot = chat.load(str(SHIPPED), device="cpu")
    assert len(told) == 6 and [bot.reply(message, seed=1) for message, _ in told] == [reply for _, reply in told]


def test_the_losses_are_those_of_the_shipped_fish():
    loss, floor, steps = TRAINING["eval_loss"], TRAINING["floor"], TRAINING["steps"]
    assert f"step {steps}/{steps}: loss {loss:.3f}, {loss - floor:.3f} above the floor" in README
    assert f"{floor:.3f} a token; no model can do better" in README


def test_readme_and_the_notebook_print_the_same_data_card():
    cells = json.loads((ROOT / "train_guppylm.ipynb").read_text(encoding="utf-8"))["cells"]
    (card,) = [cell for cell in cells if "print(card.describe(facts))" in "".join(cell["source"])]
    assert all(line in README for line in "".join(card["outputs"][0]["text"]).strip().splitlines())
