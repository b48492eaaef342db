"""A broken persona file gives one line that names the file, the place and what to do."""

import pytest
from conftest import SMALL

from guppylm import corpus, datagen

BROKEN = [  # what is replaced, by what, and what the message must name
    ('name = "minnow"', "name = minnow", "is not TOML"),
    ('name = "minnow"', "", "name is missing"),
    ("{food}. yes.", "{fod}. yes.", "topics.food.reply[0][0]: there is no pool {fod}; did you mean 'food'?"),
    ("i like {food}.", "i like {food.}.", "topics.food.reply[0][1]: a stray {"),
    ('place = ["cave", "{color} castle"]', 'place = ["{thing}", "{color} castle"]', "contains itself"),
    ('color = ["red", "blue"]', "color = []", "words.color: must be a list of one or more words"),
    ('color = ["red", "blue"]', 'color = ["red", ""]', "words.color[1]"),
    ('color = ["red", "blue"]', 'color = ["red", 3]', "words.color[1]"),
    ("my {body_part} {body_part.be} ready.", "my {body_part.be} ready.", "has no {body_part} before it"),
    ('{ text = "tail", be = "is" }', '"tail"', "{body_part.be}: word 1 of the pool has no be"),
    ('[["in the {place}.", "in the {color} castle."]]', "[]", "topics.home.where.reply: must be a list of parts"),
    ('reply = [["in the {place}.", "in the {color} castle."]]', "", "topics.home.where: has no reply lines"),
    ('[["in the {place}.", "in the {color} castle."]]', '[["", "x."]]', "topics.home.where.reply: can come out empty"),
    ('user = ["where do you live?"]', "user = []", "topics.home.where.user: must be a list of one or more texts"),
    ('name = "minnow"', 'name = "../minnow"', "name: must be made of letters"),
    ('name = "minnow"', 'name = "minnow"\ntexting = 3', "texting: must be a table"),
    ('name = "minnow"', 'name = "minnow"\ncolor = "orange"', "color: must be red, green and blue in hexadecimal"),
    ('name = "minnow"', 'name = "minnow"\ngreeting = 3', "greeting: must be a text"),
    ("weight = 2", "weight = 0", "topics.home.weight: must be a number above 0"),
    ("weight = 2", "wieght = 2", "topics.home: there is nothing called 'wieght'; did you mean 'weight'?"),
    ("[topics.food]", "[noise]\nshuot = 0.1\n[topics.food]", "noise: there is nothing called 'shuot'; did you mean"),
    ("[topics.food]", "[noise]\nshout = 5\n[topics.food]", "noise.shout: must be a probability"),
    ("[topics.food]", "[noise]\ntag = 0.5\n[topics.food]", "noise.tag: is drawn from a pool that is missing"),
    ("[topics.food]", "[topics]\nhat = 3\n[topics.food]", "topics.hat: must be a table"),
]


@pytest.mark.parametrize(("old", "new", "expected"), BROKEN, ids=[b[2] for b in BROKEN])
def test_broken(small_file, old, new, expected):
    assert SMALL.count(old) == 1
    small_file.write_text(SMALL.replace(old, new), encoding="utf-8")
    with pytest.raises(datagen.PersonaError) as error:
        datagen.load_persona(str(small_file))
    message = str(error.value)
    assert message.startswith(f"{small_file}: ")
    assert expected in message
    assert "\n" not in message


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(datagen.PersonaError, match="can't be read: No such file"):
        datagen.load_persona(str(tmp_path / "no.toml"))


def test_a_name_that_is_not_there():
    with pytest.raises(datagen.PersonaError, match="no persona named 'gupy': there are customer_service, guppy"):
        datagen.load_persona("gupy")


def test_a_file_that_is_not_utf8(small_file):
    small_file.write_bytes(b'name = "\xff"')
    with pytest.raises(datagen.PersonaError, match="is not UTF-8"):
        datagen.load_persona(str(small_file))


def test_a_row_that_is_too_long_names_its_entries(small_file):
    small_file.write_text(SMALL.replace('"in the {place}."', f'"{"glub " * 300}."'), encoding="utf-8")
    persona = datagen.load_persona(str(small_file))
    expected = r"topics.home.where: user\[0\], reply\[0\]\[0\]: .* 128 fit: shorten the reply"
    with pytest.raises(datagen.PersonaError, match=expected):
        corpus.prepare(persona, n=100, n_eval=5)


def test_a_folder_data_templates_here_wins_over_the_package(small_file, tmp_path, monkeypatch):
    (tmp_path / "data_templates").mkdir()
    (tmp_path / "data_templates" / "guppy.toml").write_text(SMALL, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert datagen.load_persona("guppy").name == "minnow"


def test_the_mark_that_windows_editors_begin_a_file_with_is_no_mistake(tmp_path):
    (tmp_path / "minnow.toml").write_text(SMALL, encoding="utf-8-sig")
    assert datagen.load_persona(str(tmp_path / "minnow.toml")).name == "minnow"
    (tmp_path / "train.jsonl").write_text('{"input": "hello", "output": "oh."}\n', encoding="utf-8-sig")
    assert corpus.read_rows(tmp_path / "train.jsonl") == [{"input": "hello", "output": "oh."}]
