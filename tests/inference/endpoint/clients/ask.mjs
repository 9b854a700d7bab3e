// Asks the model `router` as the README says, with one client and its default API; prints the answer.
//
//     node ask.mjs <client> <address> <question>

import Anthropic from "@anthropic-ai/sdk";
import { createOpenAI } from "@ai-sdk/openai";
import { Agent, run } from "@openai/agents";
import { generateText, streamText } from "ai";
import OpenAI from "openai";

const [client, address, question] = process.argv.slice(2);
const key = process.env.OPENAI_API_KEY;
const messages = [{ role: "user", content: question }];

async function joined(pieces) {
  let text = "";
  for await (const piece of pieces) text += piece ?? "";
  return text;
}

async function* mapped(stream, piece) {
  for await (const event of stream) yield piece(event);
}

const openai = () => new OpenAI({ baseURL: `${address}/v1`, apiKey: key });
const anthropic = () => new Anthropic({ baseURL: address, apiKey: key });
const router = () => createOpenAI({ baseURL: `${address}/v1`, apiKey: key })("router");

const clients = {
  "openai-chat": async () =>
    (await openai().chat.completions.create({ model: "router", messages })).choices[0].message.content,
  "openai-chat-stream": async () => {
    const stream = await openai().chat.completions.create({ model: "router", messages, stream: true });
    return joined(mapped(stream, (chunk) => chunk.choices[0]?.delta.content));
  },
  "openai-responses": async () => (await openai().responses.create({ model: "router", input: question })).output_text,
  "openai-responses-stream": async () => {
    const stream = await openai().responses.create({ model: "router", input: question, stream: true });
    return joined(mapped(stream, (event) => (event.type === "response.output_text.delta" ? event.delta : "")));
  },
  anthropic: async () =>
    (await anthropic().messages.create({ model: "router", max_tokens: 99, messages })).content[0].text,
  "anthropic-stream": async () =>
    anthropic().messages.stream({ model: "router", max_tokens: 99, messages }).finalText(),
  "ai-sdk": async () => (await generateText({ model: router(), prompt: question })).text,
  "ai-sdk-stream": async () => joined(streamText({ model: router(), prompt: question }).textStream),
  "openai-agents": async () => (await run(new Agent({ name: "a", model: "router" }), question)).finalOutput,
  "openai-agents-stream": async () => {
    const result = await run(new Agent({ name: "a", model: "router" }), question, { stream: true });
    await result.completed;
    return result.finalOutput;
  },
};

console.log((await clients[client]()).trim());
