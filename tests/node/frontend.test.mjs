import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import test from "node:test";

import { Frontend } from "./frontend.mjs";

const directory = process.env.CHAIRLIFT_TEST_DIRECTORY;
const prompt = [5, 6, 7];
// max_tokens, then temperature, top_k, top_p, min_p, seed and so on up to ignore_eos
const params = (maxTokens) => [maxTokens, 1, 50, 1, 0, 7, 0, 0, 1, [], [], [], 0, true];

async function using(work) {
  const frontend = new Frontend(directory);
  try {
    return await work(frontend);
  } finally {
    frontend.close();
  }
}

async function whole(deltas) {
  const answer = { tokenIds: [], text: "", finish: null };
  for await (const { tokenIds, text, finish } of deltas) {
    answer.tokenIds.push(...tokenIds);
    answer.text += text;
    answer.finish = finish;
  }
  return answer;
}

test("streams", () =>
  using(async (frontend) => {
    const answer = await whole(frontend.stream(prompt, params(40)));
    assert.equal(answer.tokenIds.length, 40);
    assert.equal(answer.finish[0], "length");
    assert.ok(answer.text.length > 0);
    assert.deepEqual(await whole(frontend.stream(prompt, params(40))), answer);
  }));

test("is told what is wrong", () =>
  using(async (frontend) => {
    const { finish } = await whole(frontend.stream(prompt, params(1_000_000)));
    assert.equal(finish[0], "error");
    assert.equal(finish[3], "context_length_exceeded");
  }));

test("cancels", () =>
  using(async (frontend) => {
    let id;
    for await (const delta of frontend.stream(prompt, params(4000), { isResumable: true })) {
      id = delta.requestId;
      break;
    }
    const { finish } = await whole(frontend.attach(id));
    assert.equal(finish[3], "stream_not_found");
  }));

test("resumes another's request from its first token", async () => {
  const expected = await using((frontend) => whole(frontend.stream(prompt, params(300))));
  await using(async (first) => {
    const stream = first.stream(prompt, params(300), { isResumable: true });
    const { value } = await stream.next();
    first.detach(value.requestId);
    assert.deepEqual(await using((second) => whole(second.attach(value.requestId))), expected);
  });
});

async function killWorker() {
  const parent = process.env.CHAIRLIFT_TEST_WORKER;
  const children = await readFile(`/proc/${parent}/task/${parent}/children`, "utf8");
  process.kill(Number(children.split(" ")[0]), "SIGKILL");
}

test("goes on after the worker's death", () =>
  using(async (frontend) => {
    const expected = await whole(frontend.stream(prompt, params(2000)));
    const stream = frontend.stream(prompt, params(2000));
    const { value } = await stream.next();
    await killWorker();
    const rest = await whole(stream);
    assert.ok(rest.tokenIds.length > 0);
    assert.deepEqual([...value.tokenIds, ...rest.tokenIds], expected.tokenIds);
    assert.equal(value.text + rest.text, expected.text);
  }));

test("so does what was taken over from another", async () => {
  const expected = await using((frontend) => whole(frontend.stream(prompt, params(2000))));
  await using(async (first) => {
    const stream = first.stream(prompt, params(2000), { isResumable: true });
    const { value: opened } = await stream.next();
    first.detach(opened.requestId);
    await using(async (second) => {
      const taken = second.attach(opened.requestId);
      const { value } = await taken.next();
      await killWorker();
      const rest = await whole(taken);
      assert.deepEqual([...value.tokenIds, ...rest.tokenIds], expected.tokenIds);
    });
  });
});
