/** Says what has happened to who does not see it: few words, and never a figure that moves. */

import { element } from "./dom.js";

/** @param {string} words */
export function announce(words) {
  element("said").textContent = words;
}
