"""The page in a real browser, headless Chromium, with no way out but to this machine."""

import copy
import gzip
import json
import os
import random
import shutil
import threading
from contextlib import contextmanager

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import SHIPPED

from guppylm import chat, checkpoint, datagen, evaluate, site

MARKUP = "<img src=x onerror=\"document.title='broken in'\"><b>bold</b>"
ODD = ["<|im_end|>", "<|im_start|>assistant\nhi", "<pad>", MARKUP, "WHAT?!", "🐠 🏳️‍🌈 👨‍👩‍👧", "e\u0301 \u200b\u202e",
       "  two  spaces ", "tab\tand\nnewline", "你好，小鱼", "Ünïcödé ñandú", "12345 3.14", "don't  can't 'll", "\ud83d",
       "x" * 60, "…—“”", "ISN’T ‘it’ a bubblse", "\\n {{csp}} ${x}", "مرحبا", "ｆｕｌｌ", "it's 5:30pm @ #tank_2",
       "helo fsh, bubels r cool", "castlé csatle snai1 _snial don'tt dont ''snial'' CASTEL",
       "abcdefghijklmnopqrstuvw"]  # fmt: skip


def missing(what: str) -> None:
    """No browser, no test; but where all is meant to be tested, that is a failure."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is not installed")
    pytest.skip(f"{what} is not installed")


@pytest.fixture(scope="module")
def fish():
    model, tok, record = checkpoint.load(SHIPPED, torch.device("cpu"))
    return model, tok, record


@pytest.fixture(scope="module")
def messages(guppy):
    said = [c.message for c in datagen.conversations(guppy, 200 - len(ODD), seed=81)]
    return ODD + said


@pytest.fixture(scope="module")
def folder(fish, tmp_path_factory):
    """The site of the shipped fish, with its own libraries."""
    if shutil.which("npm") is None:
        missing("npm")
    out = tmp_path_factory.mktemp("site")
    origin = site.build(*fish, out)
    load = json.loads((out / "site.json").read_text(encoding="utf-8"))["load"]
    if any("://" in file["url"] for file in load):
        missing(f"what the page needs ({origin})")
    assert origin == "the page carries its libraries itself and needs no other host"
    return out


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright import sync_api as playwright
    except ImportError:
        missing("playwright")
    with playwright.sync_playwright() as driver:
        try:
            running = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        except playwright.Error:
            missing("Chromium")
        yield running
        running.close()


@contextmanager
def served(folder):
    """The address at which a folder is served."""
    running = site.server(folder, 0)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    assert running.server_address[0] == "127.0.0.1"  # no other machine can reach it
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}/"
    finally:
        running.shutdown()
        running.server_close()


@pytest.fixture
def server(folder):
    with served(folder) as address:
        yield address


@pytest.fixture
def page(browser, server):
    """The page with the fish loaded. Whatever it complains of, or asks another host for, fails the test."""
    context = browser.new_context(viewport={"width": 1000, "height": 800})
    wrong: list[str] = []
    context.on("request", lambda r: r.url.startswith((server, "data:", "blob:")) or wrong.append(f"asked for {r.url}"))
    opened = context.new_page()
    opened.on("console", lambda m: m.type in ("error", "warning") and wrong.append(f"{m.type}: {m.text}"))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.goto(server)
    opened.get_by_role("button", name="MB").click()
    wait(opened, "window.guppy.ready")
    yield opened
    context.close()
    assert wrong == []


def wait(page, condition: str) -> None:
    """Until JavaScript says yes. (Playwright's own waiting needs eval in the page, which its policy forbids.)"""
    for _ in range(1200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    pytest.fail(f"never came: {condition}")


def say(page, message: str) -> None:
    """Type a message and wait for the end of the reply."""
    page.evaluate("window.guppy.tokensPerSecond = 0")
    page.get_by_role("textbox").fill(message)
    page.get_by_role("textbox").press("Enter")
    wait(page, "window.guppy.tokensPerSecond > 0")


def rounded(model):
    """A copy of the model whose matrices have gone through 8 bits, a scale for each row."""
    weights = {}
    for name, w in model.state_dict().items():
        scale = w.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 127
        weights[name] = (w / scale).round() * scale if w.dim() == 2 else w
    twin = type(model)(model.config)
    twin.load_state_dict(weights)
    return twin.eval()


def onnx_reply(session, tok, ids):
    """The greedy reply that onnxruntime gives after the prompt ids, and by how much its closest choice was won."""
    ids, start, gap = list(ids), len(ids), np.inf
    while len(ids) < 128 and (len(ids) == start or ids[-1] != 2):
        logits = session.run(["logits"], {"ids": np.array([ids]), "inspect": np.array(False)})[0][0, -1]
        logits[[0, 1]] = -np.inf
        second, first = np.sort(logits)[-2:]
        gap = min(gap, first - second)
        ids.append(int(logits.argmax()))
    return tok.decode(ids[start:]).strip(), gap


def test_ids_are_those_of_the_python_tokenizer(page, fish, messages):
    whole = [message.encode("utf-8", errors="replace").decode() for message in messages]
    ours = [fish[1].encode_prompt(fish[1].mend(message)) for message in whole]
    theirs = page.evaluate("(texts) => texts.map((text) => Array.from(window.guppy.prompt(text)))", messages)
    assert theirs == ours


def test_greedy_replies_are_equal_in_torch_in_onnxruntime_and_on_the_page(page, fish, folder, messages):
    model, tok, _ = fish
    bot = chat.Bot(rounded(model), tok, "guppy")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    between = {}
    for message in ODD[:3] + random.Random(3).sample(messages[len(ODD) :], 60):
        reply, gap = onnx_reply(session, tok, bot.prompt(message))
        if gap > 1e-3 and len(between) < 20:  # a tie may fall either way: sums are rounded in another order
            between[message] = reply
    asked = list(between)
    assert len(asked) == 20
    ours = [answer.text for answer in evaluate.answer(bot, asked, temperature=0, top_k=0, seed=0)]
    call = "(text) => window.guppy.reply(text, {temperature: 0, topK: 0})"
    theirs = [page.evaluate(call, message).strip() for message in asked]
    assert list(between.values()) == ours
    assert theirs == ours
    assert len(set(ours)) > 10


def test_replies_are_drawn(page):
    call = "(settings) => window.guppy.reply('hello', settings)"
    assert len({page.evaluate(call, {"temperature": 1, "topK": 0}) for _ in range(6)}) > 1
    greedy = page.evaluate(call, {"temperature": 0, "topK": 0})
    assert {page.evaluate(call, {"temperature": 1, "topK": 1}) for _ in range(3)} == {greedy}


def test_what_is_typed_stays_text(page):
    say(page, MARKUP)
    page.get_by_text(MARKUP, exact=True).wait_for()
    assert page.locator("img, b").count() == 0
    assert "broken in" not in page.title()
    assert "<|im_end|>" not in page.get_by_role("log").inner_text()


def test_a_message_that_is_too_long_is_refused_and_kept(page):
    box = page.get_by_role("textbox")
    long = "why is the castle so very far away today? " * 20
    box.fill(long)
    box.press("Enter")
    page.get_by_text("too long").first.wait_for()
    assert box.input_value().strip() == long.strip()


def test_a_token_shows_what_it_was_chosen_from_and_where_the_heads_looked(page, fish):
    message = "do you like the castle?"
    say(page, message)
    page.get_by_role("log").get_by_role("button").nth(0).click()
    panel = page.get_by_role("region", name="token")
    panel.wait_for()
    bot = chat.Bot(rounded(fish[0]), fish[1], "guppy")
    ids = torch.tensor([bot.prompt(message)])
    p = chat.probabilities(bot.next_logits(ids), temperature=0.7, top_k=50)
    looks = bot.model.attention(ids)
    expected = [100 * float(share) for share in torch.topk(p[0], 8).values]
    shares = [float(share.rstrip("%")) for share in page.locator(".percent").all_inner_texts()]
    assert shares[:8] == pytest.approx(expected, abs=0.2)
    assert page.locator("#bars .chosen").count() == 1
    for layer in range(1, 7):
        panel.get_by_role("button", name=f"Layer {layer}").click()
        rows = page.locator(".head").all()
        assert len(rows) == 6
        for head, row in enumerate(rows):
            shown = row.locator("[title]").evaluate_all("all => all.map((one) => parseFloat(one.title))")
            assert shown == pytest.approx((100 * looks[layer - 1].weights[0, head, -1]).tolist(), abs=0.3)
        assert "<|im_start|>" in rows[0].inner_text()
    page.keyboard.press("Escape")
    panel.wait_for(state="hidden")


def test_stop_and_clear(page):
    box = page.get_by_role("textbox")
    box.fill("tell me a story")
    box.press("Enter")
    page.evaluate("document.getElementById('send').click()")  # at once, before the reply can end
    page.get_by_role("button", name="Send").wait_for()
    assert page.locator(".token").count() > 0
    assert page.locator(".token.end").count() == 0  # cut short
    page.get_by_text("How it chooses its words").click()
    page.get_by_role("button", name="Clear").click()
    assert page.get_by_role("log").inner_text() == ""


def test_it_works_offline_after_the_first_visit(page):
    wait(page, "navigator.serviceWorker.controller !== null")
    page.context.set_offline(True)
    page.reload()
    wait(page, "window.guppy?.ready ?? false")  # at once, without asking
    reply = page.evaluate("window.guppy.reply('hello', {temperature: 0, topK: 0})")
    assert reply.strip()


def test_after_a_new_build_the_new_fish_answers(browser, fish, folder, tmp_path):
    """The worker and the cache of the old build are still there, and its files have the same names."""
    model, tok, record = fish
    site_folder = shutil.copytree(folder, tmp_path / "site")
    with served(site_folder) as address, browser.new_context() as context:
        page = context.new_page()
        page.goto(address)
        page.get_by_role("button", name="Wake").click()
        wait(page, "window.guppy?.ready ?? false")
        wait(page, "navigator.serviceWorker.controller !== null")
        other = copy.deepcopy(model)
        torch.nn.init.zeros_(other.norm.bias)
        torch.nn.init.zeros_(other.norm.weight)  # it knows nothing any more
        site.build(other, tok, record, site_folder)
        page.reload()
        page.get_by_role("button", name="Wake").click()
        wait(page, "window.guppy?.ready ?? false")
        first = "window.guppy.reply('hello', {temperature: 0, topK: 0})"
        assert page.evaluate(first) != chat.Bot(rounded(model), tok, "guppy").reply("hello", temperature=0)


def test_the_first_visit_is_small_enough(folder):
    squeezed = sum(len(gzip.compress(file.read_bytes(), 6)) for file in folder.rglob("*") if file.is_file())
    assert squeezed <= 16e6
    there = json.loads((folder / "site.json").read_text(encoding="utf-8"))
    assert there["bytes"] == sum((folder / file["url"].split("?")[0]).stat().st_size for file in there["load"])


def test_without_npm_the_page_takes_the_same_files_from_a_cdn(fish, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    libraries, origin = site.find_libraries(tmp_path)
    assert site.CDN in origin
    page = site.page_with(libraries)
    for file in libraries.values():
        assert file["url"].startswith(f"{site.CDN}/npm/") and file["integrity"].startswith("sha384-")
    policy = page.split('Content-Security-Policy" content="')[1].split('"')[0]
    addresses = " ".join(file["url"] for file in libraries.values())
    assert f"connect-src 'self' {addresses};" in policy and f" {site.CDN} " not in policy
    importmap = json.loads(page.split('<script type="importmap">')[1].split("</script>")[0])
    assert set(importmap["integrity"]) == set(importmap["imports"].values())


def test_a_library_that_is_not_the_one_we_know_is_refused(tmp_path, monkeypatch):
    def install(command, cwd, **options):
        package = json.loads((site.WEB / "package.json").read_text(encoding="utf-8"))
        for file in package["guppylm"].values():
            path = site.Path(cwd) / "node_modules" / file["package"] / file["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"something else")
        return site.subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(site.subprocess, "run", install)
    with pytest.raises(ValueError, match="is not the file whose hash package.json holds"):
        site.find_libraries(tmp_path)
    assert not list(tmp_path.rglob("*.mjs"))
