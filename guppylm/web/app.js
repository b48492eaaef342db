// The page: what is seen and touched. What it is made of, the model and its tokens, is in fish.js. Whatever people or the
// model write reaches the page as text, through textContent and append, so that none of it is ever markup.

import { Fish, best, download, hex, isComplete, openCache, serve } from "./fish.js";

const $ = (id) => document.getElementById(id);

const state = {
  site: null, // site.json: who the persona is, and which files to load
  fish: null, // once it is loaded
  speaking: false,
  stopped: false, // by the Stop button
};

/** A new element with text in it. */
function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

function title() {
  return state.site.name[0].toUpperCase() + state.site.name.slice(1);
}

/** Put the persona on the page: name, summary, colour, greeting, suggestions. */
function dress({ name, summary, color, greeting, suggestions }) {
  document.title = `${title()}, a small language model`;
  $("name").textContent = title();
  $("summary").textContent = summary;
  $("avatar").textContent = name[0];
  $("message").placeholder = `Say something to ${title()}`;
  document.documentElement.style.setProperty("--accent", color);
  document.documentElement.style.setProperty("--on-accent", luminance(color) > 0.18 ? "#000" : "#fff");
  if (greeting) $("log").append(element("div", "bubble bot", greeting));
  for (const text of suggestions) {
    const chip = element("button", "", text);
    chip.disabled = true;
    chip.addEventListener("click", () => send(text));
    $("suggestions").append(chip);
  }
}

/** How light a colour "#rrggbb" is, from 0 to 1: on more than 0.18, black has more contrast than white. */
function luminance(color) {
  const [r, g, b] = [1, 3, 5].map((i) => (parseInt(color.slice(i, i + 2), 16) / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** Learn who lives here, and start at once if the browser has kept all files of an earlier visit. */
async function arrive() {
  if (typeof WebAssembly === "undefined") {
    return fail("This browser has no WebAssembly, which the model runs on. Another browser may have it.", arrive);
  }
  $("start").disabled = true; // one try at a time
  let cache, complete;
  try {
    const answer = await fetch("site.json");
    state.site = await answer.json();
    cache = await openCache(state.site);
    complete = await isComplete(state.site, cache);
  } catch {
    return fail("The page can't reach its files. Is there a network?", arrive);
  }
  dress(state.site);
  if (complete) start(cache);
  else offer(`Wake ${title()} (${megabytes(state.site.bytes)})`, () => start(cache));
}

/** Load everything, wake the fish and open the conversation; what goes wrong is said, and can be tried again. */
async function start(cache) {
  const { site } = state;
  let files;
  let loaded = 0;
  const arrived = (bytes) => {
    loaded += bytes;
    $("progress").value = loaded / site.bytes;
    $("amount").textContent = `${megabytes(loaded)} of ${megabytes(site.bytes)}`;
  };
  $("start").disabled = true;
  $("progress").hidden = false;
  try {
    files = await download(site, cache, arrived);
  } catch (error) {
    const unreachable = error instanceof TypeError; // what fetch throws without a network
    const why = unreachable ? "Is there a network?" : "The site may have changed.";
    const again = unreachable ? () => start(cache) : () => location.reload();
    return fail(`The download stopped (${error.message}). ${why}`, again);
  }
  try {
    await serve(site); // before the libraries are imported: they come from the cache
    state.fish = await Fish.load(site, files);
  } catch (error) {
    return fail(`The model can't run here: ${error.message}`, () => location.reload());
  }
  $("start").hidden = true;
  $("progress").hidden = true;
  $("amount").textContent = "";
  const offline = navigator.serviceWorker?.controller && (await isComplete(site, cache));
  $("status").textContent = offline ? "Ready. It works offline from now on." : "Ready.";
  for (const control of [$("message"), $("send"), ...$("suggestions").children]) control.disabled = false;
  if ([document.body, $("start")].includes(document.activeElement)) $("message").focus(); // not from where a visitor is
  Object.assign(window.guppy, { ready: true, prompt: (text) => state.fish.prompt(text), reply });
}

function offer(text, action) {
  Object.assign($("start"), { textContent: text, onclick: action, disabled: false });
  $("progress").hidden = true;
  $("amount").textContent = "";
  $("status").textContent = "";
}

function fail(problem, again) {
  offer("Try again", again);
  $("status").textContent = problem;
}

function settings() {
  const topK = Math.max(0, Math.round(Number($("top-k").value) || 0)); // an empty box: all
  return { temperature: Number($("temperature").value), topK };
}

/** The text of a whole reply, for tests/test_web.py and bench_web.py, which drive the page. */
async function reply(message, chosen) {
  let text = "";
  let tokens = 0;
  const began = performance.now();
  for await (const token of state.fish.stream(state.fish.prompt(message), chosen)) {
    text += token.text;
    tokens += 1;
  }
  window.guppy.tokensPerSecond = tokens / ((performance.now() - began) / 1000);
  return text.trim();
}

/** Say a message to the fish and show the reply as it comes. */
async function send(message) {
  if (!message.trim() || state.speaking) return;
  const prompt = state.fish.prompt(message);
  const tooMany = prompt.length - (state.site.context_length - state.site.reply_room);
  if (tooMany > 0) {
    const tokens = tooMany === 1 ? "1 token" : `${tooMany} tokens`;
    $("refusal").textContent = `That is ${tokens} too long for ${title()}. Could you put it more briefly?`;
    return;
  }
  $("refusal").textContent = "";
  if ($("message").value === message) $("message").value = ""; // a suggestion leaves there what is being written
  const asked = element("div", "bubble user", message);
  const bubble = element("div", "bubble bot");
  asked.dir = bubble.dir = "auto"; // some scripts run from right to left
  $("log").append(asked, bubble);
  speaking(true);
  try {
    await speak(bubble, prompt, settings());
  } catch (error) {
    console.error(error);
    $("refusal").textContent = `The reply broke off: ${error.message}`;
  } finally {
    speaking(false);
  }
}

function speaking(now) {
  Object.assign(state, { speaking: now, stopped: false });
  $("send").textContent = now ? "Stop" : "Send";
  for (const chip of $("suggestions").children) chip.ariaDisabled = String(now); // disabled, it would lose the focus
}

/** Fill the bubble, a token at a time; each token can be touched. */
async function speak(bubble, prompt, chosen) {
  const ids = [...prompt];
  const began = performance.now();
  for await (const { id, text } of state.fish.stream(prompt, chosen)) {
    const word = text.trimStart(); // a space stays outside the button, so that a line can break there
    const space = ids.length > prompt.length ? text.slice(0, text.length - word.length) : "";
    // A span and not a <button>, which may be torn from its neighbour at the end of a line, in the middle of a word.
    const token = state.fish.isEnd(id) ? element("span", "token end", " ■") : element("span", "token", word);
    token.role = "button";
    token.ariaLabel = state.fish.isEnd(id) ? "end of the reply" : word || state.fish.label(id);
    const before = [...ids]; // what it was predicted from
    token.tabIndex = bubble.childElementCount ? -1 : 0; // Tab goes from reply to reply, the arrows from token to token
    token.addEventListener("click", () => inspect(token, id, before, chosen));
    bubble.append(space, token);
    ids.push(id);
    $("log").scrollTop = $("log").scrollHeight;
    await new Promise((resume) => setTimeout(resume)); // let the browser draw
    if (state.stopped) break;
  }
  window.guppy.tokensPerSecond = bubble.childElementCount / ((performance.now() - began) / 1000);
  if (bubble.isConnected) $("announce").textContent = `${title()}: ${bubble.textContent.replace("■", "")}`;
}

/** Open the panel on a token: what it was chosen from, its characters, and where each layer's heads looked. */
async function inspect(token, id, before, chosen) {
  if (state.speaking) return;
  const { fish } = state;
  let p, weights;
  try {
    ({ p, weights } = await fish.look(before, chosen));
  } catch (error) {
    console.error(error);
    $("refusal").textContent = `That could not be looked into: ${error.message}`;
    return;
  }
  for (const other of document.querySelectorAll(".token[aria-pressed]")) other.removeAttribute("aria-pressed");
  token.setAttribute("aria-pressed", "true");
  $("panel-title").textContent = `The token “${fish.label(id)}”, number ${id}`;
  const shown = best(p, 8);
  if (!shown.includes(id)) shown.push(id);
  $("bars").replaceChildren(...shown.map((other) => bar(fish.label(other), p[other], other === id)));
  const characters = fish.characters(id).map(({ text, bytes }) => `${text} ${hex(bytes)}`.trim());
  const special = "A special token, which ends the reply: no text spells it.";
  $("characters").textContent = fish.isEnd(id) ? special : `Each with its bytes: ${characters.join(" · ")}`;
  showLayers(weights, before.map((one) => fish.label(one)));
  $("panel").hidden = false;
  const [at, over] = [token, $("panel")].map((one) => one.getBoundingClientRect());
  if (over.left < at.right && over.top < at.bottom) $("log").scrollTop += at.bottom - over.top + 16; // on a phone
  $("panel").focus();
}

/** A button for each layer; the pressed one's heads are shown. weights[layer][head][position] */
function showLayers(weights, labels) {
  const choose = (layer) => {
    [...$("layers").children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === layer)));
    $("heads").replaceChildren(...weights[layer].map((row, head) => headRow(head, row, labels)));
  };
  const buttons = weights.map((heads, layer) => {
    const button = element("button", "", `Layer ${layer + 1}`);
    button.append(heatmap(heads));
    button.addEventListener("click", () => choose(layer));
    return button;
  });
  $("layers").replaceChildren(...buttons);
  choose(weights.length - 1);
}

/** A layer at a glance: a row of pixels for each head, a column for each token. The style sheet makes it larger. */
function heatmap(heads) {
  const canvas = element("canvas", "");
  Object.assign(canvas, { width: heads[0].length, height: heads.length, ariaHidden: "true" });
  const pen = canvas.getContext("2d");
  pen.fillStyle = getComputedStyle(document.documentElement).accentColor;
  heads.forEach((row, y) => row.forEach((weight, x) => {
    pen.globalAlpha = weight;
    pen.fillRect(x, y, 1, 1);
  }));
  return canvas;
}

function bar(label, share, isChosen) {
  const row = element("li", isChosen ? "chosen" : "");
  const filled = element("span", "bar");
  filled.style.setProperty("--share", share);
  row.append(element("code", "", label), filled, element("span", "percent", `${(100 * share).toFixed(1)}%`));
  if (isChosen) row.append(element("span", "unseen", "chosen"));
  return row;
}

/** What one head looked at: the tokens so far, each as dark as its weight, and the one with the most. */
function headRow(head, weights, labels) {
  const row = element("div", "head");
  const tokens = element("span", "tokens");
  labels.forEach((label, i) => {
    const token = element("span", "", label);
    token.style.setProperty("--share", weights[i]);
    token.title = `${(100 * weights[i]).toFixed(1)}%`;
    tokens.append(token, document.createElement("wbr"));
  });
  const most = weights.indexOf(Math.max(...weights));
  const strongest = element("span", "", `${labels[most]} ${(100 * weights[most]).toFixed(0)}%`);
  row.append(element("span", "", `Head ${head + 1}`), tokens, strongest);
  return row;
}

function close() {
  $("panel").hidden = true;
  const token = document.querySelector(".token[aria-pressed]");
  token?.removeAttribute("aria-pressed");
  token?.focus();
}

function listen() {
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (state.speaking) state.stopped = true;
    else send($("message").value);
  });
  $("message").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send($("message").value);
  });
  $("temperature").addEventListener("input", () => {
    $("temperature-value").textContent = Number($("temperature").value).toFixed(1);
  });
  $("clear").addEventListener("click", () => {
    state.stopped = true;
    close();
    $("log").replaceChildren();
    $("message").focus();
  });
  $("close").addEventListener("click", close);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !$("panel").hidden) close();
  });
  $("log").addEventListener("keydown", (event) => {
    if (!event.target.classList.contains("token")) return;
    const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    if (step) event.target[step]?.focus();
    else if (event.key === "Enter" || event.key === " ") event.target.click();
    else return;
    event.preventDefault();
  });
}

window.guppy = { ready: false, tokensPerSecond: 0 };
listen();
arrive();
