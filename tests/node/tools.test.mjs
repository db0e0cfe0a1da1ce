import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";
import { makeParseableResponseFormat } from "openai/lib/parser";

import { client, collected, model } from "./client.mjs";

const END = "0"; // the token; likely, so that answers end where they may
const asked = {
  model,
  seed: 7,
  max_tokens: 600,
  logit_bias: { [END]: 6 },
  messages: [{ role: "user", content: "How warm will it be in Zürich?" }],
};

const parameters = {
  type: "object",
  properties: {
    city: { enum: ["Zürich", "東京"] },
    days: { type: "integer", minimum: 1, maximum: 14 },
  },
  required: ["city", "days"],
  additionalProperties: false,
};
const weather = { type: "function", function: { name: "weather", strict: true, parameters } };
const later = { type: "function", function: { name: "later" } };
const calling = { ...asked, tools: [weather, later], tool_choice: "required" };

function check({ city, days, ...others }) {
  assert.ok(parameters.properties.city.enum.includes(city), city);
  assert.ok(Number.isInteger(days) && days >= 1 && days <= 14, days);
  assert.deepEqual(others, {});
}

const said = (message) => message.tool_calls.map((call) => call.function);

test("a required call conforms to its tool's schema", async () => {
  const { choices } = await client.chat.completions.create({ ...calling, n: 4 });
  const ids = new Set();
  for (const { message, finish_reason } of choices) {
    assert.equal(finish_reason, "tool_calls");
    assert.equal(message.content, null);
    for (const call of message.tool_calls) {
      const args = JSON.parse(call.function.arguments);
      call.function.name === "weather" ? check(args) : assert.deepEqual(args, {});
      assert.ok(!ids.has(call.id));
      ids.add(call.id);
    }
  }
});

test("a streamed call is put together as the whole one", async () => {
  const named = { ...calling, tool_choice: { type: "function", function: { name: "weather" } } };
  const whole = await client.chat.completions.create(named);
  const stream = client.chat.completions.stream(named);
  const done = [];
  stream.on("tool_calls.function.arguments.done", (event) => done.push(event));
  const { message, finish_reason } = (await stream.finalChatCompletion()).choices[0];
  assert.equal(finish_reason, "tool_calls");
  assert.deepEqual(
    said(message).map((call) => [call.name, call.arguments]),
    said(whole.choices[0].message).map((call) => [call.name, call.arguments]),
  );
  assert.equal(done.length, 1);
  check(JSON.parse(done[0].arguments));
  const chunks = await collected(await client.chat.completions.create({ ...named, stream: true }));
  const deltas = chunks.flatMap((chunk) => chunk.choices[0].delta.tool_calls ?? []);
  assert.equal(deltas.filter((delta) => delta.id).length, 1);
  const pieces = deltas.map((delta) => delta.function.arguments ?? "");
  assert.equal(pieces.join(""), whole.choices[0].message.tool_calls[0].function.arguments);
});

test("the client's runner calls functions until it gets an answer", async () => {
  const seen = [];
  const tool = {
    ...weather.function,
    parse: JSON.parse,
    function: (args) => {
      seen.push(args);
      return JSON.stringify({ degrees: 25 });
    },
  };
  const once = { type: "function", function: { name: "weather" } };
  const runner = client.chat.completions.runTools({
    ...asked,
    tools: [{ type: "function", function: tool }],
    tool_choice: once,
  });
  await runner.done();
  assert.equal(seen.length, 1);
  check(seen[0]);
  const [, call, result] = runner.messages;
  assert.equal(result.tool_call_id, call.tool_calls[0].id);
  const next = await client.chat.completions.create({ ...asked, messages: runner.messages });
  assert.equal(next.choices[0].message.role, "assistant");
});

test("parse gives what the schema says, of strict tools as well", async () => {
  const json_schema = { name: "forecast", strict: true, schema: parameters };
  const format = { type: "json_schema", json_schema };
  const response_format = makeParseableResponseFormat(format, JSON.parse);
  const parsed = await client.chat.completions.parse({ ...asked, response_format, n: 2 });
  for (const choice of parsed.choices) {
    assert.equal(choice.finish_reason, "stop");
    check(choice.message.parsed);
  }
  const called = await client.chat.completions.parse({ ...calling, tools: [weather] });
  for (const call of said(called.choices[0].message)) check(call.parsed_arguments);
  const cut = client.chat.completions.parse({ ...asked, response_format, max_tokens: 3 });
  await assert.rejects(cut, OpenAI.LengthFinishReasonError);
});

for (const [param, changes] of [
  ["tool_choice", { tools: [] }],
  ["tool_choice", { tool_choice: { type: "function", function: { name: "nosuch" } } }],
  ["tools", { tools: [later, later] }],
  ["ignore_eos", { ignore_eos: true }],
]) {
  test(`a mistake with ${param} is told, ${JSON.stringify(Object.keys(changes))}`, async () => {
    await assert.rejects(client.chat.completions.create({ ...calling, ...changes }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError, String(error));
      assert.equal(error.param, param);
      return true;
    });
  });
}
