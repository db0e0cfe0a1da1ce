/** Where the API key is typed in. */

import { element } from "./dom.js";
import { ApiError } from "./session.js";

const DECLINED = "an API key is needed: reload the page to give one";

export class KeyDialog {
  #dialog = /** @type {HTMLDialogElement} */ (element("key-dialog"));
  #reason = element("key-reason");
  #input = /** @type {HTMLInputElement} */ (element("key-input"));

  /**
   * @param {string} reason what the server said
   * @returns {Promise<string>} rejects when the user closes it
   */
  ask(reason) {
    this.#reason.textContent = reason;
    this.#input.value = "";
    this.#dialog.returnValue = "";
    if (!this.#dialog.open) this.#dialog.showModal();
    return new Promise((resolve, reject) => {
      const form = /** @type {HTMLFormElement} */ (this.#dialog.querySelector("form"));
      form.onsubmit = (event) => {
        event.preventDefault();
        this.#dialog.close("given");
      };
      this.#dialog.onclose = () => {
        if (this.#dialog.returnValue === "given") resolve(this.#input.value.trim());
        else reject(new ApiError(DECLINED, 401, "invalid_api_key"));
      };
    });
  }
}
