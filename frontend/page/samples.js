/** Eight prompts for those who come first: some short, some long, two that begin alike. */

const STORY = "Tell me a long story about a fox who lived near the river";

export const SAMPLES = [
  `${STORY} and a dog.`,
  `${STORY} and a bear.`,
  "Count from 1 to 20.",
  "What is the capital of Japan?",
  "Hello, I am Zoe. Tell me a story about a boat and a lamp.",
  `Repeat these words: ${"river stone cloud lamp boat tree bird moon ".repeat(10).trim()}.`,
  "Tell me a story about a small robot.",
  "Count down from 30 to 1, then tell me a story about a cat.",
];
