// Owns the dialogs: settings, the question before something is deleted, sign-in, the list of shortcuts.

import { byId } from "./dom.js"
import { DEFAULTS } from "./settings.js"

// What may stand in a WebSocket's subprotocol (RFC 9110, token), where a browser has to put it.
const TOKEN = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/

/** `on`: {settings(changes), signIn(token), signOut()} */
export function openDialogs(on) {
  const settings = byId("settings")
  const number = (text) => (text === "" ? null : Number(text))
  const changed = () => {
    if (!byId("max-tokens").checkValidity()) return
    byId("temperature-shown").textContent = Number(byId("temperature").value).toFixed(1)
    on.settings({
      instructions: byId("instructions").value.trim(),
      temperature: Number(byId("temperature").value),
      maxOutputTokens: number(byId("max-tokens").value),
    })
  }
  settings.addEventListener("input", changed)
  byId("defaults").addEventListener("click", () => {
    fill(DEFAULTS)
    changed()
  })
  byId("sign-out").addEventListener("click", () => {
    settings.close()
    on.signOut()
  })
  byId("sign-in-form").addEventListener("submit", (event) => {
    event.preventDefault()
    const token = byId("token").value.trim()
    if (TOKEN.test(token)) {
      byId("sign-in-dialog").close()
      on.signIn(token)
    } else failSignIn(token === "" ? "Paste a key or a token." : "A key or token has no spaces and no such characters.")
  })
  byId("no-sign-in").addEventListener("click", () => byId("sign-in-dialog").close())
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close("no") // beside it
    })
    // It closes the dialog, and stops no answer.
    dialog.addEventListener("keydown", (event) => event.key === "Escape" && event.stopPropagation())
  }
  const onMac = navigator.platform.startsWith("Mac")
  for (const key of document.querySelectorAll("[data-mod]")) key.textContent = onMac ? "⌘" : "Ctrl"
}

function fill({ instructions, temperature, maxOutputTokens }) {
  byId("instructions").value = instructions
  byId("temperature").value = temperature
  byId("temperature-shown").textContent = temperature.toFixed(1)
  byId("max-tokens").value = maxOutputTokens ?? ""
}

export function showSettings(settings, signedIn) {
  fill(settings)
  byId("sign-out").hidden = !signedIn
  byId("settings").showModal()
}

export function showKeys() {
  if (!byId("keys").open) byId("keys").showModal()
}

/** `error`: why the last key was not taken, or "". */
export function showSignIn(error) {
  const dialog = byId("sign-in-dialog")
  byId("token").value = ""
  failSignIn(error)
  if (!dialog.open) dialog.showModal()
}

function failSignIn(error) {
  byId("sign-in-error").hidden = error === ""
  byId("sign-in-error").textContent = error
  byId("token").toggleAttribute("aria-invalid", error !== "")
}

/** Whether the user wants the conversation gone. */
export function confirmDelete(title) {
  const dialog = byId("confirm")
  byId("confirm-text").textContent = `“${title}” goes from this browser for good.`
  dialog.returnValue = ""
  dialog.showModal()
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true })
  })
}
