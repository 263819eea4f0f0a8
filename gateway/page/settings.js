// Owns how this browser's user wants answers: model, instructions, sampling. Kept from visit to visit.

const KEY = "headrace.settings.1"

export const DEFAULTS = Object.freeze({
  model: "", // "": the first one served
  instructions: "",
  temperature: 0.3, // for chat; the API's own default of 1 makes small models ramble
  maxOutputTokens: null, // null: the gateway's default
})

export function loadSettings(storage) {
  try {
    return { ...DEFAULTS, ...JSON.parse(storage?.getItem(KEY) ?? "{}") }
  } catch {
    return { ...DEFAULTS }
  }
}

export function saveSettings(storage, settings) {
  try {
    storage?.setItem(KEY, JSON.stringify(settings))
  } catch {
    // Full or forbidden: the settings last as long as the page.
  }
}
