/** One prompt and its answer. */

import { announce } from "./announce.js";
import { answer } from "./answer_stream.js";
import { make, say } from "./dom.js";
import { TokenSpans } from "./token_spans.js";
import { counted, milliseconds, short } from "./wording.js";

/** @typedef {import("./answer_stream.js").News} News */
/** @typedef {import("./watched_request.js").Receipt} Receipt */

/**
 * @typedef {object} Surroundings
 * @property {import("./session.js").Session} session
 * @property {import("./parameters.js").Parameters} parameters
 * @property {import("./connections.js").Connections} connections
 * @property {(receipt: Receipt) => void} onReceipt
 * @property {() => void} onChange whenever it begins or ends
 * @property {(card: PromptCard) => void} onRemove
 */

export class PromptCard {
  root = make("article", "panel card");
  prompt = make("textarea", "prompt");
  #around;
  #title = make("h3");
  #button = button("Run", "primary small", () => this.toggle());
  #remove = button("×", "quiet", () => this.#around.onRemove(this));
  #output = make("div", "output");
  #thought = make("span", "thought");
  #footer = make("p", "outcome");
  #spans = new TokenSpans(this.#output);
  /** @type {AbortController | null} */
  #abort = null;
  /** @type {Clock} */
  #clock = new Clock();
  /** @type {Text | null} */
  #text = null;

  /** @param {Surroundings} around */
  constructor(around) {
    this.#around = around;
    this.prompt.rows = 2;
    this.prompt.placeholder = "Ask something";
    this.#remove.setAttribute("aria-label", "Remove this prompt");
    this.#output.tabIndex = 0;
    this.#output.setAttribute("role", "region");
    const head = make("div", "card-head", this.#title, this.#button, this.#remove);
    this.root.append(head, this.prompt, this.#output, this.#footer);
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) void this.start();
    });
  }

  get isRunning() {
    return this.#abort !== null;
  }

  /**
   * @param {number} number from 1
   * @param {boolean} isAlone
   */
  name(number, isAlone) {
    say(this.#title, `Prompt ${number}`);
    this.prompt.setAttribute("aria-label", `Prompt ${number}`);
    this.#output.setAttribute("aria-label", `Answer ${number}`);
    this.#remove.hidden = isAlone;
  }

  toggle() {
    if (this.isRunning) this.stop();
    else void this.start();
  }

  stop() {
    this.#abort?.abort();
  }

  async start() {
    if (this.isRunning) return;
    const abort = new AbortController();
    this.#begin(abort);
    try {
      const ask = this.#around.parameters.ask(this.prompt.value);
      await this.#run(ask, abort.signal);
      this.#end("done");
    } catch (error) {
      if (abort.signal.aborted) this.#end("stopped", "stopped");
      else this.#end("failed", error instanceof Error ? error.message : String(error));
    }
  }

  /**
   * @param {import("./parameters.js").Ask} ask
   * @param {AbortSignal} signal
   */
  async #run(ask, signal) {
    const { session, connections } = this.#around;
    if (connections.areTaken) this.#footer.replaceChildren("waits for one of the browser's connections");
    await connections.take(signal);
    try {
      this.#footer.replaceChildren("waits for its first token");
      this.#clock = new Clock();
      for await (const news of answer(session, ask, signal)) this.#take(news);
    } finally {
      connections.giveBack();
    }
  }

  /** @param {AbortController} abort */
  #begin(abort) {
    this.#abort = abort;
    this.#clock = new Clock();
    this.#spans.clear();
    this.#text = null;
    this.#thought.textContent = "";
    this.#output.replaceChildren();
    this.#show("running");
  }

  /** @param {News} news */
  #take(news) {
    const isPinned = this.#output.scrollTop + this.#output.clientHeight >= this.#output.scrollHeight - 8;
    this.#clock.take(news);
    if (news.thought) this.#think(news.thought);
    if (news.tokens.length) for (const token of news.tokens) this.#spans.add(token);
    else if (news.text && !this.#clock.hasTokens) this.#write(news.text);
    if (isPinned) this.#output.scrollTop = this.#output.scrollHeight;
    this.#footer.replaceChildren(...this.#clock.words());
    if (news.usage?.receipt) this.#footer.append(...news.usage.receipt.map((one) => this.#link(one)));
  }

  /** @param {string} text */
  #write(text) {
    if (!this.#text) {
      this.#text = document.createTextNode("");
      this.#output.append(this.#text);
    }
    this.#text.appendData(text);
  }

  /** @param {string} text */
  #think(text) {
    if (!this.#thought.isConnected) this.#output.prepend(this.#thought);
    this.#thought.append(text);
  }

  /** @param {Receipt} receipt */
  #link(receipt) {
    const link = button(receipt.request, "hash", () => this.#around.onReceipt(receipt));
    link.setAttribute("aria-label", `Receipt of request ${receipt.request}`);
    return link;
  }

  /**
   * @param {"done" | "stopped" | "failed"} state
   * @param {string} [reason]
   */
  #end(state, reason) {
    this.#abort = null;
    if (reason) {
      const words = this.#clock.hasBegun ? this.#clock.words() : [];
      this.#footer.replaceChildren(make("span", state === "failed" ? "error" : "", reason), ...words);
    }
    this.#show(state);
    announce(`${this.#title.textContent}: ${[...this.#footer.children].map((part) => part.textContent).join(", ")}`);
  }

  /** @param {string} state */
  #show(state) {
    this.root.dataset.state = state;
    this.#output.setAttribute("aria-busy", String(state === "running"));
    say(this.#button, state === "running" ? "Stop" : "Run");
    this.#button.classList.toggle("primary", state !== "running");
    this.#around.onChange();
  }
}

/** When what came, by this browser's clock. */
class Clock {
  #began_ms = performance.now();
  /** @type {number | null} */
  #first_ms = null;
  #last_ms = 0;
  #numTokens = 0;
  #finish = "";
  hasTokens = false;

  get hasBegun() {
    return this.#first_ms !== null;
  }

  /** @param {News} news */
  take(news) {
    const now_ms = performance.now();
    this.hasTokens ||= news.tokens.length > 0;
    if (news.text || news.thought || news.tokens.length) {
      this.#first_ms ??= now_ms;
      this.#last_ms = now_ms;
      this.#numTokens += news.tokens.length || 1;
    }
    this.#finish = news.finish_reason ?? this.#finish;
    this.#numTokens = news.usage?.completion_tokens ?? this.#numTokens;
  }

  /** @returns {HTMLElement[]} */
  words() {
    const words = this.#finish ? [this.#finish] : [];
    words.push(counted(this.#numTokens, "token"));
    if (this.#first_ms !== null) {
      const during_s = (this.#last_ms - this.#first_ms) / 1000;
      if (this.#numTokens > 1 && during_s > 0) words.push(`${short((this.#numTokens - 1) / during_s)} tokens/s`);
      words.push(`first after ${milliseconds(this.#first_ms - this.#began_ms)}`);
    }
    return words.map((word) => make("span", "", word));
  }
}

/**
 * @param {string} text
 * @param {string} className
 * @param {() => void} onClick
 */
function button(text, className, onClick) {
  const made = make("button", className, text);
  made.type = "button";
  made.addEventListener("click", onClick);
  return made;
}
