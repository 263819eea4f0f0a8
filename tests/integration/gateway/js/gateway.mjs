// The official client, towards the gateway under test, and what its tests ask of a stream.

import assert from "node:assert/strict"
import OpenAI from "openai"

export const client = new OpenAI({
  baseURL: `${process.env.HEADRACE_URL}/v1`,
  apiKey: "none",
  maxRetries: 0,
  timeout: 30_000,
})
export const model = (await client.models.list()).data[0].id
export const TOKENS = 12
export const ENDS = ["response.completed", "response.incomplete", "response.failed"]

export async function collect(stream) {
  const all = []
  for await (const each of stream) all.push(each)
  return all
}

/** One whole, well-formed stream of events; returns its text. */
export function check(events) {
  const numbers = events.map((event) => event.sequence_number)
  assert.deepEqual(numbers, [...new Set(numbers)].sort((a, b) => a - b))
  assert.equal(events[0].type, "response.created")
  assert.ok(ENDS.includes(events.at(-1).type), events.at(-1).type)
  const deltas = events.filter((event) => event.type === "response.output_text.delta")
  const text = deltas.map((event) => event.delta).join("")
  const { output } = events.at(-1).response
  assert.equal(output[0].content[0].text, text)
  return text
}
