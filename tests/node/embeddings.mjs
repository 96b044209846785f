// What OpenAI's SDK for JavaScript makes of the server at BASE_URL: texts as JSON on stdin, findings as JSON on stdout.
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "anything", maxRetries: 0 });
const input = JSON.parse(readFileSync(0, "utf8"));
const model = "tiny";

async function vectors(options) {
  const answer = await client.embeddings.create({ input, model, ...options });
  return answer.data.map((item) => Array.from(item.embedding));
}

async function refusal(request) {
  try {
    await client.embeddings.create(request);
  } catch (error) {
    return { name: error.constructor.name, status: error.status, param: error.param, code: error.code };
  }
  throw new Error("the request was not refused");
}

const findings = {
  default: await vectors({}),
  float: await vectors({ encoding_format: "float" }),
  short: await vectors({ dimensions: 8 }),
  tokens: (await client.embeddings.create({ input, model })).usage.total_tokens,
  models: (await client.models.list()).data.map((item) => item.id),
  empty: await refusal({ input: "", model }),
  unknown: await refusal({ input, model: "gpt-5" }),
};
process.stdout.write(JSON.stringify(findings));
