"""A small persona, a small tokenizer and a small model, made anew: no test needs a GPU or another test.

No test needs the network either, except that npm may have to fetch the page's libraries.
"""

import os
from pathlib import Path

import pytest
import torch

import guppylm
from guppylm import corpus, datagen, tokenizer
from guppylm.model import GuppyLM, ModelConfig


def pytest_configure(config):
    """Processes that test side by side (pytest -n) share the cores: each computes on one, and so do its children."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
        os.environ |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}  # of torch; of the tokenizers


SHIPPED = Path(guppylm.__file__).parent / "pretrained"  # the fish that comes with the package

SMALL = """
name = "minnow"
summary = "a very small fish"

[words]
food = ["flakes", "peas", "red worms"]
place = ["cave", "{color} castle"]
color = ["red", "blue"]
body_part = [{ text = "fins", be = "are" }, { text = "tail", be = "is" }]

[topics.food]
user = ["want some {food}?", "i have {food} for you"]
reply = [["{food}. yes.", "i like {food}."], ["", "my {body_part} {body_part.be} ready.", "are there more {food}?"]]
test = ["snack?"]

[topics.home]
weight = 2
[topics.home.words]
thing = ["the {place}", "the gravel"]
[topics.home.like]
user = ["do you like {thing}?"]
reply = [["yes.", "no.", "yes. yes."], ["", "yes.", "{thing} and my {body_part} {body_part.be} old."]]
[topics.home.where]
user = ["where do you live?"]
reply = [["in the {place}.", "in the {color} castle."]]
"""


@pytest.fixture
def small_file(tmp_path):
    file = tmp_path / "minnow.toml"
    file.write_text(SMALL, encoding="utf-8")
    return file


@pytest.fixture
def small(small_file):
    return datagen.load_persona(str(small_file))


@pytest.fixture(scope="session")
def guppy():
    return datagen.load_persona("guppy")


@pytest.fixture(scope="session")
def guppy_rows(guppy):
    return datagen.generate(guppy, 60_000, seed=0)


@pytest.fixture
def tok():
    texts = ["user\nhello fish, do you like the castle?", "assistant\nhello. the castle is my castle. hello."] * 20
    return tokenizer.train(texts, vocab_size=300)


@pytest.fixture
def tiny(tok):
    """A model small enough to train in a test."""
    torch.manual_seed(0)
    return GuppyLM(ModelConfig(vocab_size=tok.vocab_size, d_model=32, n_layers=2, n_heads=2, d_ff=64))


@pytest.fixture
def lively(tiny):
    """The same after training, as it were. Untrained, its blocks add nothing, and what is wrong in them can't show."""
    for parameter in tiny.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return tiny


@pytest.fixture
def small_corpus(small):
    return corpus.prepare(small, n=200, n_eval=20)
