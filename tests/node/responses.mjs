// What OpenAI's SDK for JavaScript makes of the Responses API at BASE_URL: a text on stdin, findings as JSON on stdout.
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "anything", maxRetries: 0 });
const request = { model: "text_generator", input: readFileSync(0, "utf8"), temperature: 0, max_output_tokens: 12 };

const whole = await client.responses.create(request);
const pieces = [];
const stream = client.responses.stream(request).on("response.output_text.delta", (event) => pieces.push(event.delta));
const streamed = await stream.finalResponse();

async function refusal(asked) {
  try {
    await asked();
  } catch (error) {
    return { status: error.status, param: error.param, code: error.code };
  }
  throw new Error("the request was not refused");
}

const findings = {
  whole: whole.output_text,
  status: whole.status,
  usage: whole.usage,
  pieces,
  streamed: streamed.output_text,
  refused: [
    await refusal(() => client.responses.create({ ...request, previous_response_id: whole.id })),
    await refusal(() => client.responses.retrieve(whole.id)),
  ],
};
process.stdout.write(JSON.stringify(findings));
