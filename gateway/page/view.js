// Owns the page's DOM around the turns: header, composer, notices, scrolling. It draws what it is given and
// reports what the user does; it must not know the protocol or the socket.

import { AnswerTurn, UserTurn } from "./turn.js"

const AT_BOTTOM_PX = 8
const COPIED_FOR_MS = 1500
const HINT_AFTER_MS = 1_000 // answers go on over a gap that short, and nobody need hear of it
const LONG_WAIT_MS = 3_000
const STATUS = {
  connecting: "Connecting",
  reconnecting: "Reconnecting",
  waiting: "Waiting for the service",
  connected: "Connected",
  offline: "Offline",
  refused: "Not allowed",
}

const byId = (id) => document.getElementById(id)

export class View {
  #scroller = byId("scroller")
  #log = byId("log")
  #prompt = byId("prompt")
  #send = byId("send")
  #stop = byId("stop")
  #model = byId("model")
  #drawn = new Map() // turn -> its view
  #follows = true // the reader is at the bottom, and wants to stay there
  #scrollTop = 0
  #connection = { name: "connecting" }
  #waiting = false
  #status = "connecting" // as shown
  #wasConnected = false
  #hint = 0
  #countdown = 0
  #busy = false
  #stopping = false

  /** `on`: {send(text), stop(), newChat(), retry(turn), reconnect()} */
  constructor(on) {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault()
      this.#submit(on, this.#prompt.value)
    })
    this.#prompt.addEventListener("input", () => this.#grow())
    this.#prompt.addEventListener("keydown", (event) => {
      // An Enter that ends an input method's composition is not a send.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return
      event.preventDefault()
      this.#submit(on, this.#prompt.value)
    })
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.#busy) on.stop()
    })
    this.#stop.addEventListener("click", () => on.stop())
    byId("new-chat").addEventListener("click", () => {
      on.newChat()
      this.#prompt.focus()
    })
    byId("reconnect").addEventListener("click", () => on.reconnect())
    byId("jump").addEventListener("click", () => this.#toBottom())
    this.#model.addEventListener("change", () => this.#drawComposer())
    byId("welcome").addEventListener("click", (event) => {
      const starter = event.target.closest("button")
      if (starter) this.#submit(on, starter.textContent)
    })
    this.#log.addEventListener("click", (event) => this.#act(on, event.target.closest("[data-action]")))
    this.#scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true })
    const resized = new ResizeObserver(() => this.#follow())
    resized.observe(this.#scroller)
    resized.observe(this.#log) // figures that are opened make it longer
    // On a touch screen this would open the keyboard over the page.
    if (matchMedia("(hover: hover)").matches) this.#prompt.focus()
  }

  get model() {
    return this.#model.value
  }

  /** Draws the turns as they are now: new ones, changed ones, and none that is gone. */
  drawTurns(turns) {
    for (const [turn, drawn] of this.#drawn) {
      if (turns.includes(turn)) continue
      drawn.root.remove()
      this.#drawn.delete(turn)
    }
    for (const turn of turns) {
      let drawn = this.#drawn.get(turn)
      if (drawn === undefined) {
        drawn = turn.role === "user" ? new UserTurn(turn) : new AnswerTurn(turn)
        this.#drawn.set(turn, drawn)
        this.#log.append(drawn.root)
      }
      drawn.update()
    }
    byId("welcome").hidden = turns.length > 0
    this.#follow()
  }

  drawBusy(busy, stopping) {
    if (busy === this.#busy && stopping === this.#stopping) return
    const stopHadFocus = document.activeElement === this.#stop
    this.#busy = busy
    this.#stopping = stopping
    this.#send.hidden = busy
    this.#stop.hidden = !busy
    this.#stop.disabled = stopping
    if (stopHadFocus && (!busy || stopping)) this.#prompt.focus()
    this.#drawComposer()
  }

  /** `waiting`: there is a connection, and the service behind it is away. */
  drawConnection(connection, waiting) {
    if (connection === this.#connection && waiting === this.#waiting) return
    this.#connection = connection
    this.#waiting = waiting
    this.#wasConnected ||= connection.name === "connected"
    const good = connection.name === "connected" && !waiting
    if (good || connection.name === "refused" || this.#status !== "connected") this.#drawStatus()
    else this.#hint ||= setTimeout(() => this.#drawStatus(), HINT_AFTER_MS)
    this.#drawComposer()
  }

  #drawStatus() {
    clearTimeout(this.#hint)
    clearInterval(this.#countdown)
    this.#hint = 0
    const { reason, retryAtMs } = this.#connection
    const name = this.#statusName()
    if (name === this.#status && name !== "offline") return // not to be announced again
    this.#status = name
    byId("status").dataset.state = this.#status
    byId("status-text").textContent = reason || STATUS[this.#status]
    byId("reconnect").hidden = this.#status !== "offline"
    byId("countdown").textContent = ""
    if (this.#status !== "offline") return
    const count = () => {
      const leftS = Math.max(0, Math.ceil((retryAtMs - Date.now()) / 1000))
      byId("countdown").textContent = `, retrying in ${leftS} s`
    }
    count()
    this.#countdown = setInterval(count, 250)
  }

  #statusName() {
    const { name, retryAtMs } = this.#connection
    if (name === "connected") return this.#waiting ? "waiting" : "connected"
    if (name === "refused" || (name === "offline" && retryAtMs - Date.now() >= LONG_WAIT_MS)) return name
    return this.#wasConnected ? "reconnecting" : "connecting"
  }

  /** Models once seen stay on offer while a new gateway has yet to hear of them. */
  drawModels(ids) {
    if (ids.length === 0 && this.model !== "") return
    const chosen = this.#model.value
    this.#model.replaceChildren(...ids.map((id) => new Option(id)))
    if (ids.length === 0) this.#model.append(new Option("No model yet", ""))
    if (ids.includes(chosen)) this.#model.value = chosen
    this.#model.disabled = ids.length === 0
    this.#drawComposer()
  }

  /** An error that belongs to no answer; null takes it away. */
  drawNotice(error) {
    byId("notice").hidden = error === null
    byId("notice").textContent = error?.message ?? ""
  }

  /** Without a connection too: what is sent then goes out with the next one. */
  get #maySend() {
    return this.#connection.name !== "refused" && !this.#busy && this.model !== ""
  }

  #submit(on, text) {
    if (!this.#maySend || text.trim() === "") return
    this.#prompt.value = ""
    this.#follows = true
    this.#grow()
    this.#prompt.focus()
    on.send(text.trim())
  }

  #drawComposer() {
    this.#send.disabled = !this.#maySend || this.#prompt.value.trim() === ""
    for (const starter of byId("welcome").querySelectorAll("button")) starter.disabled = !this.#maySend
    for (const retry of this.#log.querySelectorAll("[data-action=retry]")) retry.disabled = !this.#maySend
  }

  #grow() {
    this.#prompt.style.height = "auto"
    this.#prompt.style.height = `${this.#prompt.scrollHeight}px`
    this.#drawComposer()
  }

  #act(on, button) {
    if (button === null) return
    const root = button.closest(".turn")
    const [turn] = [...this.#drawn].find(([, drawn]) => drawn.root === root)
    if (button.dataset.action === "retry") {
      if (this.#maySend) on.retry(turn)
    } else copy(button, button.closest(".code")?.querySelector("code").textContent ?? turn.text)
  }

  #scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller
    // Any move up, however small, is the reader's; only being back at the bottom takes them along again.
    if (scrollHeight - scrollTop - clientHeight < AT_BOTTOM_PX) this.#follows = true
    else if (scrollTop < this.#scrollTop) this.#follows = false
    this.#scrollTop = scrollTop
    byId("jump").hidden = this.#follows
  }

  #follow() {
    if (this.#follows) this.#toBottom()
    else this.#scrolled()
  }

  #toBottom() {
    this.#scroller.scrollTop = this.#scroller.scrollHeight
  }
}

async function copy(button, text) {
  button.dataset.label ??= button.textContent
  try {
    await navigator.clipboard.writeText(text)
    button.textContent = "Copied"
  } catch {
    // No clipboard: the page is on plain HTTP from another machine, or the browser's user refused it.
    button.textContent = "Not allowed"
  }
  setTimeout(() => (button.textContent = button.dataset.label), COPIED_FOR_MS)
}
