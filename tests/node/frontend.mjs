// A frontend of a worker in Node, written from docs/protocol.md alone: it streams, cancels and resumes.
import { randomBytes } from "node:crypto";
import { decode, encode } from "@msgpack/msgpack";
import { Push, Subscriber } from "zeromq";

const VERSION = 1, SYNC_MS = 1000, GAP_SYNC_MS = 20, ACKNOWLEDGE_EVERY = 100;
const NONE = new Uint8Array();
const asBigInt = { useBigInt64: true }; // an epoch has 63 bits

const hex = (bytes) => Buffer.from(bytes).toString("hex");
const packed = (ids) => Buffer.from(Uint32Array.from(ids).buffer); // little-endian, where Node runs
const unpacked = (bytes) => [...new Uint32Array(Uint8Array.from(bytes).buffer)];
const idsOf = (bytes) => Array.from({ length: bytes.length / 16 }, (_, i) => bytes.subarray(16 * i, 16 * i + 16));

export class Frontend {
  #id = randomBytes(8);
  #requests = new Map(); // unfinished, by id in hexadecimal digits
  #farewells = []; // cancels and detaches: said twice
  #greeting = null; #formerEpochs = new Set();
  #frameNumber = 0; #acknowledged = 0; #lastSync = 0; #numAttempts = 0;
  #hasGap = false; #hasFinished = false;
  #outgoing = []; #isSending = false;
  #meet; #met = new Promise((resolve) => (this.#meet = resolve));

  constructor(directory) {
    this.sub = new Subscriber({ maxMessageSize: 64 << 20 });
    this.sub.connect(`ipc://${directory}/tokens`);
    this.sub.subscribe(this.#id);
    this.push = new Push({ immediate: true, linger: 100, sendTimeout: 500 });
    this.push.connect(`ipc://${directory}/requests`);
    this.timer = setInterval(() => this.#tick(), SYNC_MS / 4);
    this.#listen();
  }

  close() {
    clearInterval(this.timer);
    for (const socket of [this.sub, this.push]) socket.close();
  }

  // `params` is the page's SamplingParams, an array. Leaving the loop cancels.
  async *stream(promptIds, params, { isResumable = false } = {}) {
    await this.#met;
    const id = randomBytes(16), start = ["submit", this.#id, id, this.#greeting[3], packed(promptIds)];
    const end = [params, 0, isResumable, NONE, NONE, 0];
    yield* this.#read(id, (held) => [...start, packed(held), ...end, held.length > 0]);
  }

  // Takes a request over, from its first token on.
  async *attach(id) {
    await this.#met;
    const attempt = ++this.#numAttempts;
    yield* this.#read(id, (held) => ["attach", this.#id, id, held.length, true, attempt]);
  }

  detach(id) { this.#part("detach", id); } // what is resumable goes on for the worker's grace

  async *#read(id, opening) {
    const request = { id, opening, held: [], textLength: 0, news: [], wake() {} };
    this.#requests.set(hex(id), request);
    this.#send(opening([]));
    try {
      while (this.#requests.has(hex(id)) || request.news.length) {
        if (!request.news.length) await new Promise((resolve) => (request.wake = resolve));
        else yield request.news.shift();
      }
    } finally {
      this.#part("cancel", id);
    }
  }

  #part(tag, id) {
    const request = this.#requests.get(hex(id));
    if (!this.#requests.delete(hex(id))) return;
    this.#farewells.push([tag, this.#id, id]);
    this.#send(this.#farewells.at(-1));
    request.wake();
  }

  async #send(message) {
    this.#outgoing.push(Buffer.from(encode([VERSION, message], asBigInt)));
    if (this.#isSending) return;
    this.#isSending = true;
    while (this.#outgoing.length && !this.push.closed) {
      const [bytes] = this.#outgoing, isTaken = await this.push.send(bytes).then(() => true, () => false);
      if (isTaken && bytes === this.#outgoing[0]) this.#outgoing.shift(); // else it is tried again
    }
    this.#isSending = false;
  }

  async #listen() {
    for await (const [, body] of this.sub) {
      const [version, [tag, ...fields]] = decode(body, asBigInt);
      if (version !== VERSION || tag === "tokenizer") continue;
      const epoch = BigInt(fields[0]);
      if (this.#formerEpochs.has(epoch)) continue;
      const isKnown = this.#greeting !== null && BigInt(this.#greeting[0]) === epoch;
      if (tag === "frame" && isKnown) this.#take(fields);
      else if (tag === "greeting" && !isKnown) this.#greet(fields);
      else this.#hasGap = true; // a connection made anew, or a greeting that was lost
      if (this.#hasGap) this.#syncAfter(GAP_SYNC_MS);
    }
  }

  #greet(greeting) {
    if (this.#greeting) this.#formerEpochs.add(BigInt(this.#greeting[0]));
    this.#greeting = greeting;
    this.#frameNumber = this.#acknowledged = Number(greeting[7]);
    this.#outgoing = []; // said to the worker before; farewells come with the next sync
    for (const { opening, held } of this.#requests.values()) this.#send(opening(held));
    this.#meet();
  }

  #take([, number, , , unknown, joined, ids, offsets, counts, tokenIds, textOffsets, texts, finishes]) {
    const isHeartbeat = !(ids.length || unknown.length || joined.length);
    this.#hasGap ||= Number(number) > this.#frameNumber + (isHeartbeat ? 0 : 1);
    this.#frameNumber = Math.max(this.#frameNumber, Number(number));
    const ends = new Map(finishes), tokens = unpacked(tokenIds);
    for (const [isOwner, submit] of joined) if (isOwner) this.#own(submit);
    idsOf(ids).forEach((id, row) => {
      const request = this.#requests.get(hex(id)), rowTokens = tokens.splice(0, counts[row]);
      if (request) this.#takeRow(request, offsets[row], rowTokens, textOffsets[row], [...texts[row]], ends.get(row));
    });
    for (const request of idsOf(unknown).map((id) => this.#requests.get(hex(id))))
      if (request) this.#send(request.opening(request.held));
    if (this.#frameNumber - this.#acknowledged >= ACKNOWLEDGE_EVERY) this.#sync(null);
  }

  // It is ours to submit again: what was attached to, or another's that we were next in line for.
  #own([, , id, tokenizer, prompt, , ...end]) {
    const request = this.#requests.get(hex(id)), start = ["submit", this.#id, id, tokenizer, prompt];
    if (request) request.opening = (held) => [...start, packed(held), ...end.with(6, held.length > 0)];
  }

  #takeRow(request, offset, tokens, textOffset, characters, finish) {
    const known = request.held.length - offset, knownText = request.textLength - textOffset;
    if (known < 0 || knownText < 0) return (this.#hasGap = true);
    const tokenIds = tokens.slice(known), text = known > tokens.length ? [] : characters.slice(knownText);
    request.held.push(...tokenIds);
    request.textLength += text.length; // in code points
    if (finish) this.#requests.delete(hex(request.id));
    this.#hasFinished ||= Boolean(finish);
    if (tokenIds.length || finish) request.news.push({ requestId: request.id, tokenIds, text: text.join(""), finish });
    request.wake();
  }

  #tick() {
    const hasNews = this.#requests.size || this.#farewells.length || this.#hasFinished;
    if (hasNews && !this.#outgoing.length) this.#syncAfter(SYNC_MS);
  }

  #syncAfter(pause) {
    if (Date.now() - this.#lastSync < pause) return;
    for (const farewell of this.#farewells.splice(0)) this.#send(farewell);
    this.#sync(Buffer.concat([...this.#requests.values()].flatMap(({ id, held }) => [id, packed([held.length])])));
    this.#lastSync = Date.now();
    this.#hasGap = this.#hasFinished = false;
  }

  #sync(live) {
    this.#acknowledged = this.#frameNumber;
    this.#send(["sync", this.#id, this.#greeting?.[0] ?? 0, this.#frameNumber, this.#hasGap, false, live]);
  }
}
