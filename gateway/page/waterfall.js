// Where the time of an answer went: the sum that its reader waited for, by part. Pure arithmetic over what the
// gateway told (`timings` of the last event) and what this browser measured. A part that nobody told is
// null or is named among those that cannot be told apart; none is guessed.

/** The stages in the order a response passes them. */
const STAGES = [
  ["edge", ["edge_ms"]],
  ["queue", ["queue_ms", "engine_queue_ms"]],
  ["prefill", ["prefill_ms"]],
  ["decode", ["decode_ms"]],
]

/**
 * `totalMs`: from the send to the last event on this browser's clock, or null (an earlier load of the page sent it).
 * Returns null where nothing is known, or {totalMs, parts}, whose known milliseconds add up to `totalMs`:
 *   edge, queue, prefill, decode  as told
 *   untold    the service's time that belongs to the stages `of`, which it did not tell apart
 *   delivery  the service's time that is none of the stages: tokens on their way between its parts
 *   network   the browser's time that is none of the service's; ms null where the browser did not measure
 *   overlap   negative: by how much the parts, which two clocks measured, exceed the total
 */
export function waterfall(timings, totalMs) {
  const stages = STAGES.map(([name, keys]) => ({ name, ms: sum(keys.map((key) => timings[key])) }))
  const told = stages.filter(({ ms }) => ms !== null)
  const untold = stages.filter(({ ms }) => ms === null).map(({ name }) => name)
  const servedMs = timings.total_ms ?? null
  const total = totalMs ?? servedMs
  if (total === null) return null
  const parts = [...told]
  const insideMs = (servedMs ?? total) - sum(told.map(({ ms }) => ms))
  if (insideMs > 0 && untold.length > 0) parts.push({ name: "untold", of: untold, ms: insideMs })
  else if (insideMs > 0 && servedMs !== null) parts.push({ name: "delivery", ms: insideMs })
  const restMs = total - sum(parts.map(({ ms }) => ms))
  if (totalMs === null) parts.push({ name: "network", ms: null })
  else if (servedMs !== null || untold.length === 0) parts.push({ name: "network", ms: Math.max(0, restMs) })
  if (restMs < 0) parts.push({ name: "overlap", ms: restMs })
  return { totalMs: total, parts }
}

/** The known ones added up; null where there are some and none is known. */
function sum(values) {
  const known = values.filter((value) => value !== null && value !== undefined)
  return values.length > 0 && known.length === 0 ? null : known.reduce((total, value) => total + value, 0)
}

export function duration(ms) {
  if (ms < 10) return `${ms.toFixed(1)} ms`
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`
}
