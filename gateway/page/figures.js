// Owns the figures under an answer: one line, and behind it where the time went, part by part.

import { element } from "./dom.js"
import { duration, waterfall } from "./waterfall.js"

const NAMES = {
  edge: "Edge",
  queue: "Queue",
  prefill: "Prefill",
  decode: "Decode",
  reconnect: "Reconnect",
  transport: "Transport",
  network: "Network",
  overlap: "Overlap",
}
const MEANINGS = {
  edge: "read, tokenized and stored by the gateway",
  queue: "until the model had a place for it",
  prefill: "the model read the prompt",
  decode: "the model wrote",
  reconnect: "a worker was lost, and another went on",
  transport: "on its way inside the service",
  network: "between the service and this page",
  overlap: "measured twice, by two clocks",
  untold: "not told apart by the service",
}

export function figures({ model, meta }) {
  const line = [...summary(meta)].join(" · ")
  const fall = waterfall(meta.timings, meta.totalMs)
  if (fall === null) return element("p", "meta", line)
  const text = element("span", "", line)
  const details = element("details", "meta", element("summary", "", miniature(fall), text))
  details.append(element("dl", "waterfall", ...rows(fall, meta.totalMs !== null)), element("p", "provenance", ...provenance(model, meta)))
  return details
}

function* summary({ ttftMs, outputTokens, tokensPerS, totalMs }) {
  if (ttftMs !== null) yield `First token ${duration(ttftMs)}` // else it came before a reload
  if (outputTokens !== null) yield `${outputTokens} ${outputTokens === 1 ? "token" : "tokens"}`
  if (tokensPerS !== null) yield `${tokensPerS.toFixed(tokensPerS < 10 ? 1 : 0)} tokens/s`
  if (totalMs !== null) yield duration(totalMs)
}

const nameOf = ({ name, of }) => NAMES[name] ?? sentence(of)

function sentence(names) {
  const text = names.length > 1 ? `${names.slice(0, -1).join(", ")} and ${names.at(-1)}` : names[0]
  return text[0].toUpperCase() + text.slice(1)
}

/** The same bars in a few pixels: a slow part catches the eye. */
function miniature({ parts }) {
  const bar = element("span", "miniature", ...parts.filter(({ ms }) => ms > 0).map(segment))
  bar.setAttribute("aria-hidden", "true")
  return bar
}

function segment(part) {
  const node = element("span", "")
  node.dataset.part = part.name
  node.style.flexGrow = part.ms
  return node
}

function* rows({ parts, totalMs }, measuredHere) {
  const spanMs = Math.max(1e-6, parts.reduce((sum, { ms }) => sum + Math.max(0, ms ?? 0), 0))
  let beforeMs = 0
  for (const part of parts) {
    const value = part.ms === null ? "unknown" : `${part.ms < 0 ? "−" : ""}${duration(Math.abs(part.ms))}`
    const bar = element("span", "bar-of")
    bar.dataset.part = part.name
    if (part.ms > 0) {
      bar.style.marginInlineStart = `${(100 * beforeMs) / spanMs}%`
      bar.style.width = `${(100 * part.ms) / spanMs}%`
      beforeMs += part.ms
    }
    const track = element("span", "track", ...(part.ms > 0 ? [bar] : []))
    const name = element("dt", "", nameOf(part), element("small", "", MEANINGS[part.name]))
    yield element("div", "row", name, element("dd", "", track, element("span", "value", value)))
  }
  const measured = element("small", "", `as ${measuredHere ? "this page" : "the service"} measured it`)
  const total = element("dd", "", element("span", "track"), element("span", "value", duration(totalMs)))
  yield element("div", "row sum", element("dt", "", "In all", measured), total)
}

function* provenance(model, { inputTokens, cachedTokens }) {
  yield model
  if (inputTokens === null) return
  yield ` · ${inputTokens} prompt ${inputTokens === 1 ? "token" : "tokens"}`
  if (cachedTokens > 0) yield `, ${cachedTokens} of them from the cache`
}
