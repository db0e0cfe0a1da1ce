/** What goes with every prompt; what is left empty is left to the server. */

import { element } from "./dom.js";

/** @typedef {"chat" | "completion"} Kind */
/** @typedef {{path: string, kind: Kind, body: Record<string, unknown>}} Ask */

const NUM_ALTERNATIVES = 5;

export class Parameters {
  #form = /** @type {HTMLFormElement} */ (element("parameter-form"));
  #kinds = /** @type {NodeListOf<HTMLInputElement>} */ (document.querySelectorAll("[name=kind]"));

  /** @param {(kind: Kind) => void} onKind */
  constructor(onKind) {
    this.#form.addEventListener("submit", (event) => event.preventDefault());
    for (const input of this.#kinds) {
      input.addEventListener("change", () => {
        this.#showKind();
        onKind(this.kind);
      });
    }
    this.#showKind();
  }

  /** @returns {Kind} */
  get kind() {
    const checked = [...this.#kinds].find((input) => input.checked);
    return checked?.value === "completion" ? "completion" : "chat";
  }

  #showKind() {
    const only = /** @type {NodeListOf<HTMLElement>} */ (this.#form.querySelectorAll("[data-only]"));
    for (const field of only) field.hidden = field.dataset.only !== this.kind;
  }

  /** @param {string[]} names */
  showModels(names) {
    const select = /** @type {HTMLSelectElement} */ (this.#form.elements.namedItem("model"));
    const chosen = select.value;
    select.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
  }

  /**
   * @param {string} prompt
   * @returns {Ask}
   */
  ask(prompt) {
    const isChat = this.kind === "chat";
    const common = {
      ...this.#common(),
      stream: true,
      stream_options: { include_usage: true },
      ...this.#probabilities(isChat),
    };
    if (!isChat) return { path: "v1/completions", kind: "completion", body: { ...common, prompt } };
    const system = this.#text("system");
    const messages = [{ role: "user", content: prompt }];
    if (system.trim()) messages.unshift({ role: "system", content: system });
    return { path: "v1/chat/completions", kind: "chat", body: { ...common, messages } };
  }

  #common() {
    const stop = this.#text("stop").split("\n").filter((line) => line !== "");
    const given = {
      model: this.#text("model") || undefined,
      max_tokens: this.#number("max_tokens"),
      temperature: this.#number("temperature"),
      top_p: this.#number("top_p"),
      seed: this.#number("seed"),
      stop: stop.length ? stop : undefined,
    };
    return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
  }

  /** @param {boolean} isChat */
  #probabilities(isChat) {
    const box = /** @type {HTMLInputElement} */ (this.#form.elements.namedItem("probabilities"));
    if (!box.checked) return {};
    return isChat ? { logprobs: true, top_logprobs: NUM_ALTERNATIVES } : { logprobs: NUM_ALTERNATIVES };
  }

  /** @param {string} name */
  #text(name) {
    return /** @type {HTMLInputElement} */ (this.#form.elements.namedItem(name)).value;
  }

  /** @param {string} name */
  #number(name) {
    const text = this.#text(name).trim();
    return text === "" ? undefined : Number(text);
  }
}
