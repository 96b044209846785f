// What OpenAI's SDK for JavaScript makes of text generation at BASE_URL: a text on stdin, findings as JSON on stdout.
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "anything", maxRetries: 0 });
const messages = [{ role: "user", content: readFileSync(0, "utf8") }];
const request = { model: "text_generator", messages, temperature: 0, max_tokens: 12 };

const whole = await client.chat.completions.create(request);
const stream = await client.chat.completions.create({ ...request, stream: true, stream_options: { include_usage: true } });
const pieces = [];
let usage = null;
for await (const chunk of stream) {
  pieces.push(chunk.choices[0]?.delta.content ?? "");
  usage = chunk.usage ?? usage;
}

async function refusal(change) {
  try {
    await client.chat.completions.create({ ...request, ...change });
  } catch (error) {
    return { name: error.constructor.name, status: error.status, param: error.param };
  }
  throw new Error("the request was not refused");
}

// Leaving the loop closes the connection.
const endless = await client.chat.completions.create({ ...request, max_tokens: 60, min_tokens: 60, stream: true });
for await (const chunk of endless) if (chunk.choices[0].delta.content) break;

const findings = {
  whole: whole.choices[0].message.content,
  pieces,
  usage,
  refused: [await refusal({ n: 0 }), await refusal({ stream: true, messages: [] })],
};
process.stdout.write(JSON.stringify(findings));
