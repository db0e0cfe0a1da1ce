/** Up to eight prompts side by side. */

import { Connections } from "./connections.js";
import { element } from "./dom.js";
import { Parameters } from "./parameters.js";
import { PromptCard } from "./prompt_card.js";
import { SAMPLES } from "./samples.js";

const MAX_PROMPTS = 8;
const FIRST = { chat: "Tell me a story about a fox.", completion: "Once upon a time" };

/** @typedef {import("./watched_request.js").Receipt} Receipt */

export class Playground {
  /** @type {PromptCard[]} */
  #cards = [];
  #place = element("prompts");
  #add = /** @type {HTMLButtonElement} */ (element("add-prompt"));
  #runAll = /** @type {HTMLButtonElement} */ (element("run-all"));
  #stopAll = /** @type {HTMLButtonElement} */ (element("stop-all"));
  #session;
  #onReceipt;
  #connections = new Connections();
  #parameters = new Parameters((kind) => this.#suggest(kind));

  /**
   * @param {import("./session.js").Session} session
   * @param {(receipt: Receipt) => void} onReceipt
   */
  constructor(session, onReceipt) {
    this.#session = session;
    this.#onReceipt = onReceipt;
    this.#add.addEventListener("click", () => this.#append("").prompt.focus());
    this.#runAll.addEventListener("click", () => this.#startAll());
    this.#stopAll.addEventListener("click", () => this.#cards.forEach((card) => card.stop()));
    element("samples").addEventListener("click", () => this.startSamples());
    this.#append(FIRST.chat);
  }

  /** Raises nothing: without models the server's default is asked. */
  async loadModels() {
    try {
      const answer = await this.#session.fetch("v1/models");
      const { data } = await answer.json();
      this.#parameters.showModels(data.map((/** @type {{id: string}} */ model) => model.id));
    } catch {
      this.#parameters.showModels([]);
    }
  }

  /** Eight prompts, at once. */
  startSamples() {
    for (const card of [...this.#cards]) {
      card.stop();
      card.root.remove();
    }
    this.#cards = [];
    for (const sample of SAMPLES) this.#append(sample);
    this.#startAll();
  }

  #startAll() {
    for (const card of this.#cards) void card.start();
  }

  /**
   * @param {string} prompt
   * @returns {PromptCard}
   */
  #append(prompt) {
    const card = new PromptCard({
      session: this.#session,
      parameters: this.#parameters,
      connections: this.#connections,
      onReceipt: this.#onReceipt,
      onChange: () => this.#show(),
      onRemove: (removed) => this.#drop(removed),
    });
    card.prompt.value = prompt;
    this.#cards.push(card);
    this.#place.append(card.root);
    this.#show();
    return card;
  }

  /** @param {PromptCard} card */
  #drop(card) {
    card.stop();
    card.root.remove();
    this.#cards = this.#cards.filter((other) => other !== card);
    this.#show();
    this.#add.focus();
  }

  #show() {
    this.#cards.forEach((card, index) => card.name(index + 1, this.#cards.length === 1));
    const numRunning = this.#cards.filter((card) => card.isRunning).length;
    this.#add.disabled = this.#cards.length >= MAX_PROMPTS;
    this.#runAll.disabled = numRunning === this.#cards.length;
    this.#stopAll.disabled = numRunning === 0;
  }

  /** @param {import("./parameters.js").Kind} kind */
  #suggest(kind) {
    const other = kind === "chat" ? "completion" : "chat";
    for (const card of this.#cards) {
      if (card.prompt.value === FIRST[other]) card.prompt.value = FIRST[kind];
    }
  }
}
