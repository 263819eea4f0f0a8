// Where the time of an answer went: the sum that its reader waited for, by part. Pure arithmetic over what the
// gateway told (`timings` of the last event) and what this browser measured. A part that nobody told is
// null or is named among those that cannot be told apart; none is guessed.

/** The service's parts in the order a response passes them: gateway/PROTOCOL.md, "Where the time went". */
const STAGES = ["edge", "queue", "prefill", "decode", "reconnect", "transport"]

/**
 * `totalMs`: from the send to the last event on this browser's clock, or null (an earlier load of the page sent it).
 * Returns null where nothing is known, or {totalMs, parts}, whose known milliseconds add up to `totalMs`:
 *   those of STAGES, as told; reconnect only where there was one
 *   untold    the service's time that belongs to the stages `of`, which it did not tell apart
 *   network   the browser's time that is none of the service's; ms null where the browser did not measure
 *   overlap   negative: by how much the parts, which two clocks measured, exceed the total
 */
export function waterfall(timings, totalMs) {
  const stages = STAGES.map((name) => ({ name, ms: timings[`${name}_ms`] ?? null }))
  const told = stages.filter(({ name, ms }) => ms !== null && (ms > 0 || name !== "reconnect"))
  const untold = stages.filter(({ ms }) => ms === null).map(({ name }) => name)
  const servedMs = timings.total_ms ?? null
  const total = totalMs ?? servedMs
  if (total === null) return null
  const parts = [...told]
  const insideMs = (servedMs ?? total) - sum(told.map(({ ms }) => ms))
  if (insideMs > 0 && untold.length > 0) parts.push({ name: "untold", of: untold, ms: insideMs })
  const restMs = total - sum(parts.map(({ ms }) => ms))
  if (totalMs === null) parts.push({ name: "network", ms: null })
  else if (servedMs !== null || untold.length === 0) parts.push({ name: "network", ms: Math.max(0, restMs) })
  if (restMs < 0) parts.push({ name: "overlap", ms: restMs })
  return { totalMs: total, parts }
}

const sum = (values) => values.reduce((total, value) => total + value, 0)

export function duration(ms) {
  if (ms < 10) return `${ms.toFixed(1)} ms`
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`
}
