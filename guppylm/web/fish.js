// The fish without its page: its files, text to tokens, tokens to probabilities, and the loop that speaks. The class
// Fish does what guppylm/tokenizer.py, spelling.py and chat.py do, under the same names where it does the same.

const [PAD, IM_START, IM_END] = [0, 1, 2]; // ids
const SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>"]; // in the order of their ids

// ---- Its files, which the browser keeps for the next visit

/** The cache of this build; undefined where the browser has none, as on plain http. */
export async function openCache(site) {
  try {
    return await caches.open(cacheName(site.version));
  } catch {
    return undefined; // the page works without, and downloads again on the next visit
  }
}

function cacheName(version) {
  return `guppy ${new URL("./", location)} ${version}`; // as in sw.js
}

export async function isComplete(site, cache) {
  const kept = await Promise.all(site.load.map(({ url }) => cache?.match(url)));
  return kept.every(Boolean);
}

/** The bytes of every file to load, by its url: from the cache, or fetched into it. `arrived` is told of each part. */
export async function download(site, cache, arrived) {
  const files = new Map();
  for (const { url, bytes, integrity } of site.load) {
    const kept = await cache?.match(url);
    const response = kept ?? (await fetch(url, crypto.subtle ? {} : { integrity }));
    if (!response.ok) throw new Error(`${url}: the server answered ${response.status}`);
    const data = await read(response, bytes, arrived);
    if (integrity && !kept && crypto.subtle) await verify(data, integrity);
    files.set(url, data);
    if (kept || !cache) continue;
    const headers = { "Content-Type": response.headers.get("Content-Type") ?? "" };
    await cache.put(url, new Response(data, { headers })).catch(() => {}); // a full disk: fetched again next time
  }
  return files;
}

async function read(response, length, arrived) {
  const data = new Uint8Array(length);
  const reader = response.body.getReader();
  let at = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (at + part.value.length > length) throw new Error("a file is longer than it should be");
    data.set(part.value, at);
    at += part.value.length;
    arrived(part.value.length);
  }
  if (at < length) throw new Error("a file came incomplete");
  return data;
}

/**
 * fetch can check the integrity itself, but then gives out nothing before the end, and no progress could be shown. So it
 * does only where crypto.subtle is missing, on plain http.
 */
async function verify(data, integrity) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-384", data));
  if (integrity !== `sha384-${btoa(String.fromCharCode(...digest))}`) throw new Error("a file was changed on its way");
}

/** Let sw.js serve this page and the next visits, and forget older builds. Where that fails, the page needs a network. */
export async function serve(site) {
  try {
    const { installing, waiting, active } = await navigator.serviceWorker.register(`sw.js?${site.version}`);
    await activated(installing ?? waiting ?? active);
    const builds = (await caches.keys()).filter((name) => name.startsWith(cacheName("")));
    await Promise.all(builds.filter((name) => name !== cacheName(site.version)).map((name) => caches.delete(name)));
  } catch {
    // No workers here, or this one could not be installed.
  }
}

function activated(worker) {
  return new Promise((resolve, reject) => {
    worker.onstatechange = () => {
      if (worker.state === "activated") resolve();
      if (worker.state === "redundant") reject();
    };
    worker.onstatechange(); // it may be active already
  });
}

// ---- Tokens and the model

// A byte-level tokenizer spells each byte as one visible character: printable Latin-1 stands for itself, and the other
// bytes take the characters from U+0100 on, so that a space is "Ġ".
const BYTE = new Map();
for (let byte = 0, next = 256; byte < 256; byte++) {
  const printable = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  BYTE.set(String.fromCharCode(printable ? byte : next++), byte);
}

export class Fish {
  constructor(ort, tok, words, session, contextLength) {
    Object.assign(this, { ort, tok, words, session, contextLength });
  }

  /** A fish from its files. The libraries are imported only here, after `download`, so that the progress bar counts them. */
  static async load(site, files) {
    const ort = await import("onnxruntime-web");
    const { Tokenizer } = await import("@huggingface/tokenizers");
    ort.env.wasm.numThreads = 1; // more need headers that a static host doesn't send
    ort.env.wasm.wasmBinary = files.get(site.wasm);
    const session = await ort.InferenceSession.create(files.get(site.model), { executionProviders: ["wasm"] });
    const text = (file) => new TextDecoder().decode(files.get(file));
    const words = new Map(text(site.words).split("\n").map((word, rank) => [word, rank])); // most frequent first
    const json = JSON.parse(text(site.tokenizer));
    json.added_tokens = []; // what looks like a special token in a text is read as plain text
    return new Fish(ort, new Tokenizer(json, {}), words, session, site.context_length);
  }

  encode(text) {
    const whole = text.replace(/\p{Surrogate}/gu, "?"); // half characters from a broken paste
    return this.tok.encode(whole, { add_special_tokens: false }).ids;
  }

  /** The conversation up to where the reply begins, the message in lower case, its quotation marks straight, mended. */
  prompt(message) {
    const plain = message.toLowerCase().replace(/[‘’]/g, "'").replace(/[“”]/g, '"');
    const user = this.encode(`user\n${mend(plain, this.words)}`);
    return [IM_START, ...user, IM_END, ...this.encode("\n"), IM_START, ...this.encode("assistant\n")];
  }

  bytes(ids) {
    const spelled = ids.filter((id) => id >= SPECIAL.length).map((id) => this.tok.id_to_token(id));
    return Uint8Array.from(spelled.join(""), (character) => BYTE.get(character));
  }

  /** The text of these ids; special tokens have none, and bytes that make no character become U+FFFD. */
  decode(ids) {
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(this.bytes(ids));
  }

  /** One pass of the model: the logits (V) for the token that comes after `ids`, and the attention where asked for. */
  async run(ids, inspect) {
    const { Tensor } = this.ort;
    const feeds = {
      ids: new Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
      inspect: new Tensor("bool", [inspect], []),
    };
    const { logits, attention } = await this.session.run(feeds, inspect ? ["logits", "attention"] : ["logits"]);
    const last = logits.data.slice(-logits.dims.at(-1)); // (1, T, V) -> (V)
    last[PAD] = last[IM_START] = -Infinity; // no reply can hold them
    return { logits: last, attention };
  }

  /** Generate a reply, a token at a time, until <|im_end|> or the end of the context. */
  async *stream(prompt, { temperature, topK }) {
    const ids = [...prompt]; // longer by one at each step
    let said = "";
    while (ids.length < this.contextLength) {
      const { logits } = await this.run(ids, false);
      const id = draw(probabilities(logits, temperature, topK));
      ids.push(id); // what was said is read again: this is autoregression
      // As far as its characters are complete: one may take several tokens.
      const text = this.decode(ids.slice(prompt.length)).replace(/\uFFFD+$/, "");
      yield { id, text: text.slice(said.length) };
      said = text;
      if (id === IM_END) return;
    }
  }

  /** What the token after `ids` was drawn from, (V), and where the heads looked: weights[layer][head][position]. */
  async look(ids, { temperature, topK }) {
    const { logits, attention } = await this.run(ids, true);
    const [layers, , heads, T] = attention.dims; // (layers, 1, heads, T, T); the last row predicted the token
    const lastRow = (layer, head) => {
      const end = (layer * heads + head + 1) * T * T; // of this head's (T, T)
      return attention.data.subarray(end - T, end);
    };
    const weights = range(layers).map((layer) => range(heads).map((head) => lastRow(layer, head)));
    return { p: probabilities(logits, temperature, topK), weights };
  }

  /** A token as a person can read it. */
  label(id) {
    if (id < SPECIAL.length) return SPECIAL[id];
    const text = this.decode([id]);
    return text.includes("\uFFFD") ? this.characters(id).map(({ bytes }) => hex(bytes)).join(" ") : visible(text);
  }

  /** The characters of a token with the bytes of each; of half a character, the bytes alone. */
  characters(id) {
    const text = this.decode([id]);
    if (text.includes("\uFFFD")) return Array.from(this.bytes([id]), (byte) => ({ text: "", bytes: [byte] }));
    return [...text].map((character) => ({ text: visible(character), bytes: [...new TextEncoder().encode(character)] }));
  }

  isEnd(id) {
    return id === IM_END;
  }
}

const [SHORTEST, LONGEST] = [4, 20]; // letters of a word that is mended
// Not a part of a word with other letters, or digits.
const WORD = /(?<![\p{L}\p{N}])[a-z]+(?:'[a-z]+)*(?![\p{L}\p{N}])/gu;

/** A text in lower case, with each unknown word read as the most frequent of `words` that is one slip away. */
function mend(text, words) {
  return text.replace(WORD, (word) => {
    if (words.has(word) || word.length < SHORTEST || word.length > LONGEST) return word;
    const known = slips(word).filter((other) => words.has(other));
    return known.sort((a, b) => words.get(a) - words.get(b))[0] ?? word; // the most frequent
  });
}

/** All that one slip makes of a word: a letter left out, replaced or added, or two neighbours swapped. */
function slips(word) {
  const cuts = range(word.length + 1).map((i) => [word.slice(0, i), word.slice(i)]);
  return cuts.flatMap(([a, b]) => [
    a + b.slice(1),
    ...[..."abcdefghijklmnopqrstuvwxyz'"].flatMap((c) => (b ? [a + c + b, a + c + b.slice(1)] : [a + c])),
    ...(b.length > 1 ? [a + b[1] + b[0] + b.slice(2)] : []),
  ]);
}

/**
 * Logits (V) -> the probabilities (V) to draw from. Dividing by a temperature below 1 stretches the differences, so
 * that likely tokens become likelier; 0 is the limit, all on the best. Of the tokens the topK best are kept; 0 keeps all.
 */
export function probabilities(logits, temperature, topK) {
  if (temperature === 0) {
    const likeliest = logits.indexOf(logits.reduce((a, b) => Math.max(a, b)));
    return logits.map((_, id) => (id === likeliest ? 1 : 0));
  }
  let scaled = logits.map((x) => x / temperature);
  const sorted = scaled.slice().sort(); // typed arrays sort by number, smallest first
  if (topK > 0 && topK < scaled.length) {
    const kthBest = sorted.at(-topK);
    scaled = scaled.map((x) => (x < kthBest ? -Infinity : x));
  }
  const powers = scaled.map((x) => Math.exp(x - sorted.at(-1))); // the largest is 1, so that none overflows
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((x) => x / sum);
}

/** An id, drawn with these probabilities. */
function draw(p) {
  let left = Math.random();
  for (let id = 0; id < p.length; id++) {
    left -= p[id];
    if (left < 0) return id;
  }
  return best(p, 1)[0]; // rounding may leave a sum a little below 1
}

/** The n likeliest ids, best first. */
export function best(p, n) {
  return [...p.keys()].filter((id) => p[id] > 0).sort((a, b) => p[b] - p[a]).slice(0, n);
}

/** Text with its spaces and control characters made visible. */
function visible(text) {
  const shown = { " ": "␣", "\n": "⏎", "\t": "⇥" };
  return text.replace(/[\p{Z}\p{C}]/gu, (c) => shown[c] ?? `U+${hex([c.codePointAt(0)]).padStart(4, "0")}`);
}

/** Numbers in base 16: hex([240, 159]) is "F0 9F". */
export function hex(numbers) {
  return numbers.map((n) => n.toString(16).toUpperCase().padStart(2, "0")).join(" ");
}

function range(n) {
  return [...Array(n).keys()];
}
