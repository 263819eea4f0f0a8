// Owns what the header says of the connection. Short gaps are not told: answers go on over them by themselves.

import { byId } from "./dom.js"

const HINT_AFTER_MS = 1_000 // nobody need hear of a gap that short
const LONG_WAIT_MS = 3_000
const STATUS = {
  connecting: "Connecting",
  reconnecting: "Reconnecting",
  leaving: "Moving to another gateway",
  waiting: "Waiting for the service",
  connected: "Connected",
  offline: "Offline",
  unauthorized: "Signed out",
  refused: "Not allowed",
}

export class Status {
  #connection = { name: "connecting" } // as HeadraceClient told it
  #waiting = false
  #shown = "connecting"
  #wasConnected = false
  #hint = 0
  #countdown = 0

  /** `on`: {reconnect(), signIn()} */
  constructor(on) {
    byId("reconnect").addEventListener("click", () => on.reconnect())
    byId("sign-in").addEventListener("click", () => on.signIn())
  }

  /** `waiting`: there is a connection, and the service behind it is away. */
  draw(connection, waiting) {
    if (connection === this.#connection && waiting === this.#waiting) return
    this.#connection = connection
    this.#waiting = waiting
    this.#wasConnected ||= connection.name === "connected"
    const atOnce = (connection.name === "connected" && !waiting) || connection.name === "refused"
    if (atOnce || this.#shown !== "connected") this.#draw()
    else this.#hint ||= setTimeout(() => this.#draw(), HINT_AFTER_MS)
  }

  #draw() {
    clearTimeout(this.#hint)
    clearInterval(this.#countdown)
    this.#hint = 0
    const { reason, retryAtMs } = this.#connection
    const name = this.#name()
    if (name === this.#shown && name !== "offline") return // not to be announced again
    this.#shown = name
    byId("status").dataset.state = name
    byId("status-text").textContent = (name === "refused" && reason) || STATUS[name]
    byId("reconnect").hidden = name !== "offline"
    byId("sign-in").hidden = name !== "unauthorized"
    byId("countdown").textContent = ""
    if (name !== "offline") return
    const count = () => {
      const leftS = Math.max(0, Math.ceil((retryAtMs - Date.now()) / 1000))
      byId("countdown").textContent = `, retrying in ${leftS} s`
    }
    count()
    this.#countdown = setInterval(count, 250)
  }

  #name() {
    const { name, code, retryAtMs } = this.#connection
    if (name === "connected") return this.#waiting ? "waiting" : "connected"
    if (name === "refused") return code === "invalid_api_key" ? "unauthorized" : "refused"
    if (name === "leaving" || (name === "offline" && retryAtMs - Date.now() >= LONG_WAIT_MS)) return name
    return this.#wasConnected ? "reconnecting" : "connecting"
  }
}
