"""Judging by the templates: on a bot whose replies are known, the card must say what is known."""

import dataclasses
import json
import math
import random

import pytest
import torch

from guppylm import corpus, datagen, evaluate
from guppylm.chat import Bot
from guppylm.evaluate import Answer
from guppylm.train import TrainConfig, batches


@pytest.fixture
def scripted(tok, tiny, monkeypatch):
    """A bot that answers everything with the same reply, or with what a function makes of the message."""
    bot = Bot(tiny, tok, "minnow")

    def says(reply):
        to = reply if callable(reply) else lambda message: reply
        monkeypatch.setattr(evaluate, "answer", lambda bot, messages, *a, **k: [Answer(to(m), True) for m in messages])
        return bot

    return says


@pytest.mark.parametrize(
    ("reply", "food", "home"),
    [
        ("peas. yes. my fins are ready.", True, False),
        ("peas. yes. my fins is ready.", False, False),
        ("no. the gravel and my tail is old.", False, True),
        ("in the blue castle.", False, True),
        ("in the blue", False, False),
        ("", False, False),
    ],
)
def test_a_topic_can_say_what_its_templates_can(small, reply, food, home):
    assert evaluate.can_say(small.topics["food"], reply) == food
    assert evaluate.can_say(small.topics["home"], reply) == home


def test_a_verb_that_agrees_with_a_word_of_the_message_can_be_judged_without_it(small_file):
    text = (
        small_file.read_text(encoding="utf-8")
        + """
[topics.body]
user = ["how about your {body_part}?"]
reply = [["they {body_part.be} fine."]]
"""
    )
    small_file.write_text(text, encoding="utf-8")
    body = datagen.load_persona(str(small_file)).topics["body"]
    assert evaluate.can_say(body, "they is fine.") and evaluate.can_say(body, "they are fine.")
    assert not evaluate.can_say(body, "they am fine.")


def test_a_word_that_agrees_with_one_of_the_text_around_it_can_be_judged_without_it(small_file):
    text = """
[topics.body]
user = ["your {body_part} {state}?"]
reply = [["my {body_part} {state}."]]
[topics.body.words]
state = ["{body_part.be} tired", "{body_part.be} sore"]
"""
    small_file.write_text(small_file.read_text(encoding="utf-8") + text, encoding="utf-8")
    persona = datagen.load_persona(str(small_file))
    parts = len(persona.pools["body_part"])
    said = next(c.reply for c in datagen.endless(persona, 0) if c.topic == "body")
    assert datagen.log_prob(persona, "body", "well?", said) == pytest.approx(-math.log(2 * parts))


def test_shares_and_misses(small):
    prompts = [
        {"prompt": "snack?", "topics": ["food"]},
        {"prompt": "house?", "topics": ["home"]},
        {"prompt": "snack at home?", "topics": ["home", "food"]},
        {"prompt": "home?", "topics": ["home"]},
    ]
    result = evaluate.score(small, prompts * 3, [Answer("peas. yes.", True)] * 12)
    assert (result["prompts"], result["on_topic"], result["sayable"]) == (4, 0.5, 1.0)
    assert [miss["prompt"] for miss in result["misses"]] == ["house?", "home?"] * 3
    assert result["misses"][0]["said_by"] == ["food"]
    assert list(result["topics"].items()) == [("home", 1 / 3), ("food", 1.0)]  # worst first
    nonsense = evaluate.score(small, prompts, [Answer("blub", True)] * 4)
    assert (nonsense["on_topic"], nonsense["sayable"]) == (0.0, 0.0)


def test_the_card_has_every_set(small, scripted, tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": "got peas?", "topic": "food", "also": [], "kind": "topic"},
        {"prompt": "2 + 2", "topic": "home", "also": ["food"], "kind": "probe"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    card = evaluate.evaluate(scripted("peas. yes."), small, {}, file)
    shares = {name: result["on_topic"] for name, result in card["replies"].items()}
    assert list(shares) == ["fresh template messages", "test phrasings", "prompts.jsonl: topic", "prompts.jsonl: probe"]
    assert shares["test phrasings"] == shares["prompts.jsonl: topic"] == shares["prompts.jsonl: probe"] == 1.0
    assert 0.1 < shares["fresh template messages"] < 0.6
    assert set(card["robustness"].values()) == {1.0}
    text = evaluate.describe(card)
    assert "test phrasings (1): 100.0% on topic, 100.0% sayable" in text
    assert "100 messages that name something: " in text
    assert "composed or recited: not known." in text  # nobody said what this bot was trained on
    assert "novelty" not in card
    assert card == json.loads(json.dumps(card))


def test_each_answer_is_judged_with_its_own_prompt(small, scripted):
    food = ("want some", "i have", "snack")
    bot = scripted(lambda message: "peas. yes." if any(word in message.lower() for word in food) else "yes. yes.")
    card = evaluate.evaluate(bot, small, {})
    assert {result["on_topic"] for result in card["replies"].values()} == {1.0}
    assert card["robustness"]["as they are"] == card["robustness"]["in capitals"] == 1.0


def test_a_reply_names_what_the_message_names(small, scripted):
    result = evaluate.naming(scripted("peas. yes."), small, 0.7, 50)
    assert result["asked"] == evaluate.NAMING
    assert 0.1 < result["right"] < result["another"] < 0.7  # peas are one food of three; the gravel is no food
    nothing = {"asked": evaluate.NAMING, "right": 0, "another": 0}
    assert evaluate.naming(scripted("yes. yes."), small, 0.7, 50) == nothing


def test_a_persona_that_takes_no_word_over_is_not_asked_for_names(small, scripted):
    home = dataclasses.replace(small.topics["home"], exchanges=small.topics["home"].exchanges[1:])
    assert evaluate.naming(scripted("x"), dataclasses.replace(small, topics={"home": home}), 0.7, 50) == {}


def test_a_word_of_the_message_may_stand_where_a_reply_takes_one_over(small):
    food = small.topics["food"]
    assert evaluate.can_say(food, "plovumba. yes.", "want some plovumba?")
    assert evaluate.can_say(food, "i like fresh plovumba.", "want some fresh Plovumba!")
    assert not evaluate.can_say(food, "plovumba. yes.", "want some vemkox?")
    assert not evaluate.can_say(food, "want some. yes.", "want some peas?")  # these two name nothing
    assert not evaluate.can_say(food, "vumba. yes.", "want some plovumba?")
    assert not evaluate.can_say(small.topics["home"], "in the plovumba.", "where is plovumba?")  # it takes none over
    assert evaluate.can_say(food, "mac-n-cheese. yes.", "Want some mac-n-cheese?")
    assert evaluate.can_say(food, "farmer's bread. yes.", "want some farmer's bread?")


def test_words_of_the_lines_and_of_their_other_pools_name_nothing(small_file):
    text = small_file.read_text(encoding="utf-8").replace(
        'user = ["want some {food}?",', 'user = ["don\'t you like {food}, right?", "the {place} has {food}",'
    )
    small_file.write_text(text, encoding="utf-8")
    food = datagen.load_persona(str(small_file)).topics["food"]
    assert evaluate.can_say(food, "pizza. yes.", "don't you like pizza, right?")
    assert not evaluate.can_say(food, "right. yes.", "don't you like pizza, right?")
    assert not evaluate.can_say(food, "don't. yes.", "don't you like pizza, right?")
    assert not evaluate.can_say(food, "castle. yes.", "the castle has pizza")


def test_a_slip_that_is_repeated_is_a_word_of_what_was_typed(small, tiny, tok, monkeypatch):
    def repeat(bot, messages, *rest):
        return [Answer(f"{message.lower().split()[-1].strip('?!')}. yes.", True) for message in messages]

    monkeypatch.setattr(evaluate, "answer", repeat)
    prompts = [{"prompt": f"want some plovumb{letter}?", "topics": ["food"]} for letter in "abcdefgh"]
    said = repeat(None, [p["prompt"] for p in prompts])
    shares = evaluate.robustness(Bot(tiny, tok, "minnow"), small, prompts, said, 0.7, 50)
    assert set(shares.values()) == {1.0}


def test_disturbed_messages_are_the_same_ones_typed_otherwise():
    rng = random.Random(0)
    typed = {kind: disturb("Do you, fish?", rng) for kind, disturb in evaluate.DISTURBED.items()}
    assert typed.pop("with one typo") not in ("Do you, fish?", "")
    assert list(typed.values()) == ["DO YOU, FISH?", "Do you fish"]


def test_what_reads_the_same_is_not_asked_again(small, tok, tiny, monkeypatch):
    asked = []

    def wrong(bot, messages, *rest):
        asked.append(messages)
        return [evaluate.Answer("what?", True)] * len(messages)

    monkeypatch.setattr(evaluate, "answer", wrong)
    prompts = [{"prompt": "peas", "topics": ["food"]}, {"prompt": "peas?", "topics": ["food"]}]
    right = [evaluate.Answer("peas. yes.", True)] * 2
    shares = evaluate.robustness(Bot(tiny, tok, "minnow"), small, prompts, right, 0.7, 50)
    assert asked[:2] == [[], ["peas"]]  # in capitals; without punctuation
    assert shares["as they are"] == shares["in capitals"] == 1.0
    assert asked[3] == ["hey minnow, peas", "hey minnow, peas?"]
    assert (shares["without punctuation"], shares["with one typo"], shares["after 'hey minnow,'"]) == (0.5, 0.0, 0.0)


def test_loss_and_floor_of_a_model_that_knows_nothing(small, tok, tiny):
    """Untrained it is as unsure as among the whole vocabulary; the floor is what the templates leave open."""
    card = evaluate.losses(Bot(tiny.eval(), tok, "minnow"), small)
    for name in ("seen phrasings", "test phrasings"):
        row = card[name]
        assert row["loss"] == pytest.approx(math.log(tok.vocab_size), abs=0.3)
        assert row["excess"] == pytest.approx(row["loss"] - row["floor"])
    made = list(datagen.conversations(small, evaluate.FRESH, evaluate.FRESH_SEED))
    tokens = sum(len(tok.encode(c.reply)) + 1 for c in made)
    by_topic = [-datagen.reply_log_prob(c.exchange, c.shared, c.reply) for c in made]
    row = card["seen phrasings"]
    assert row["floor"] == pytest.approx(sum(by_topic) / tokens)
    assert row["floor_per_reply"] == pytest.approx(sum(by_topic) / len(made))
    assert row["excess_per_reply"] == pytest.approx(row["excess"] * tokens / len(made))
    assert card["test phrasings"]["floor"] > 0


def test_a_conversation_that_does_not_fit_is_left_out_of_the_loss(tok, tiny):
    bot = Bot(tiny.eval(), tok, "minnow")
    short = evaluate.loss(bot, [("peas", "yes.")], [-1.0])
    both = evaluate.loss(bot, [("peas", "yes."), ("peas", "blub " * 200)], [-1.0, -50.0])
    assert both == short and both["rows"] == 1


def test_a_test_phrasing_that_names_no_word_has_a_floor_too(small_file, tok, tiny):
    """The reply agrees with a word that only our own phrasings name."""
    topic = '\n[topics.body]\nuser = ["how about your {body_part}?"]\nreply = [["they {body_part.be} fine."]]\n'
    text = small_file.read_text(encoding="utf-8") + topic + 'test = ["well?"]\n'
    small_file.write_text(text, encoding="utf-8")
    card = evaluate.losses(Bot(tiny.eval(), tok, "minnow"), datagen.load_persona(str(small_file)))
    assert card["test phrasings"]["rows"] == 2
    assert 0 < card["test phrasings"]["floor"] < card["test phrasings"]["loss"]


def test_composed_replies_are_those_that_no_training_row_holds(small):
    training = {"rows": 20, "eval_rows": 4, "seed": 3, "steps": 7, "batch_size": 8}
    known = corpus.training_replies(small, training)
    first, _ = datagen.split(datagen.generate(small, 24, 3), 4)
    assert {row["output"] for row in first} < known  # later passes met others
    prepared, config = corpus.prepare(small, 20, 4, seed=3), TrainConfig(steps=7, batch_size=8, seed=3)
    assert {prepared.tok.decode(row.ids[row.prompt :]) for rows in batches(prepared, config) for row in rows} <= known
    met = sorted(known)[0]
    new = next(c.reply for c in datagen.conversations(small, 2_000, 5) if c.reply not in known)
    assert corpus.training_replies(small, training | {"rows_digest": prepared.digest}) == known
    assert corpus.training_replies(small, training | {"rows_digest": "of other rows"}) == set()
    result = evaluate.novelty(small, known, ["hi"] * 4, [met, met, new, "blub"])
    assert (result["verbatim"], result["composed"]) == (0.5, 0.25)
    assert [example["reply"] for example in result["examples"]] == [new]
    assert evaluate.nearest("no. the gravel", {"yes.", "no. the cave", "the sky"}) == "no. the cave"


def test_style_counts_what_is_empty_cut_off_and_repeated():
    answers = [Answer("one two", True), Answer("one two", True), Answer("", True), Answer("One two three", False)]
    expected = {"lowercase": 0.75, "empty": 0.25, "cut_off": 0.25, "distinct": 0.75, "median_words": 2, "most_words": 3}
    assert evaluate.style(answers) == expected


def test_prompts_on_unknown_topics_are_refused(small, scripted, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "hi", "topic": "hats", "also": [], "kind": "topic"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="the persona minnow has no topic hats"):
        evaluate.evaluate(scripted("x"), small, {}, file)


PROMPT = {"prompt": "hi", "topic": "food", "also": ["home"], "kind": "topic"}
WRONG = [{"prompt": 5}, {"topic": 3}, {"also": "food"}, {"also": [3]}, {"kind": None}]


@pytest.mark.parametrize("row", [{"prompt": "hi"}, *({**PROMPT, **wrong} for wrong in WRONG)])
def test_prompts_of_another_form_are_refused(tmp_path, row):
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps(PROMPT) + "\n" + json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="prompts.jsonl: line 2 is not"):
        evaluate.read_prompts(file)


@pytest.mark.parametrize(("temperature", "top_k"), [(0, 0), (0.01, 0), (1.0, 1)])
def test_answers_together_are_the_answers_alone(tok, tiny, monkeypatch, temperature, top_k):
    """The likeliest token each time, so that the order of random draws plays no part. Prompts of several lengths."""
    bot = Bot(tiny.eval(), tok, "minnow")
    one_hot = torch.eye(tok.vocab_size)  # the token of all that came before: an untrained model says one thing to all
    monkeypatch.setattr(bot, "next_logits", lambda ids: one_hot[ids.sum(dim=1) % tok.vocab_size])
    messages = ["hello", "do you like the castle?", "fish", "hello fish", "x" * 500, "food", "hello", "snow", "moon"]
    together = [answer.text for answer in evaluate.answer(bot, messages, temperature, top_k, 0)]
    assert together == [bot.reply(message, temperature=0) for message in messages]
    assert len(set(together)) > 4


@pytest.mark.parametrize(("token", "text", "ended"), [("<|im_end|>", "", True), ("a", "a", False)])
def test_an_answer_knows_whether_the_model_ended_it(tok, tiny, monkeypatch, token, text, ended):
    bot, id = Bot(tiny, tok, "minnow"), tok.bpe.token_to_id(token)
    logits = torch.zeros(tok.vocab_size).index_fill(0, torch.tensor(id), 99.0)
    monkeypatch.setattr(bot, "next_logits", lambda ids: logits.repeat(len(ids), 1))
    answers = evaluate.answer(bot, ["hello", "fish"], 0, 0, 0)
    assert [answer.ended for answer in answers] == [ended, ended]
    assert all(set(answer.text) == set(text) for answer in answers)
