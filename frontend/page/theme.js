/** Light, dark, or as the system has it. */

const STORED = "chairlift-theme";
const CHOICES = /** @type {const} */ (["auto", "light", "dark"]);
const WORDS = { auto: "◐ Auto", light: "☀ Light", dark: "☾ Dark" };

/** @typedef {typeof CHOICES[number]} Choice */

export class Theme {
  /** @type {Choice} */
  #choice;
  #button;
  #onChange;

  /**
   * @param {HTMLElement} button goes through the choices
   * @param {() => void} onChange
   */
  constructor(button, onChange) {
    this.#button = button;
    this.#onChange = onChange;
    const stored = localStorage.getItem(STORED);
    this.#choice = CHOICES.find((choice) => choice === stored) ?? "auto";
    this.#show();
    button.addEventListener("click", () => this.#next());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", onChange);
  }

  #next() {
    this.#choice = CHOICES[(CHOICES.indexOf(this.#choice) + 1) % CHOICES.length];
    localStorage.setItem(STORED, this.#choice);
    this.#show();
    this.#onChange();
  }

  #show() {
    document.documentElement.dataset.theme = this.#choice;
    this.#button.textContent = WORDS[this.#choice];
    this.#button.setAttribute("aria-label", `Colours: ${this.#choice}`);
  }
}
