"""What the README says of the files is what the files say."""

import re
import shlex
from pathlib import Path

import pytest

from guppylm import __main__, corpus, datagen

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.S))
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
