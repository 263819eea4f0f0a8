// Owns the page's DOM around the turns: log, welcome, notices, scrolling, what a screen reader is told. It draws
// what it is given and reports what the user does; it must not know the protocol or the socket.

import { ENDED } from "./chat.js"
import { byId, icon } from "./dom.js"
import { AnswerTurn, UserTurn } from "./turn.js"

const AT_BOTTOM_PX = 8
const DONE_FOR_MS = 1500

export class View {
  #scroller = byId("scroller")
  #log = byId("log")
  #drawn = new Map() // turn -> its view
  #follows = true // the reader is at the bottom, and wants to stay there
  #scrollTop = 0
  #announced = null // the answer of which a screen reader was told last, and its phase
  #mayAsk = null

  /** `on`: {send(text), again(), edit()} */
  constructor(on) {
    byId("jump").addEventListener("click", () => this.#toBottom())
    byId("welcome").addEventListener("click", (event) => {
      const starter = event.target.closest("button")
      if (starter) on.send(starter.textContent)
    })
    this.#log.addEventListener("click", (event) => this.#act(on, event.target.closest("[data-action]")))
    this.#scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true })
    const resized = new ResizeObserver(() => this.#follow())
    resized.observe(this.#scroller)
    resized.observe(this.#log) // figures that are opened make it longer
  }

  /** The reader has asked, or opened another conversation: back to its end. */
  follow() {
    this.#follows = true
  }

  /** Draws the turns as they are now: new ones, changed ones, and none that is gone. */
  drawTurns(turns) {
    const kept = new Set(turns)
    for (const [turn, drawn] of this.#drawn) {
      if (kept.has(turn)) continue
      drawn.root.remove()
      this.#drawn.delete(turn)
    }
    for (const turn of turns) {
      let drawn = this.#drawn.get(turn)
      if (drawn === undefined) {
        drawn = turn.role === "user" ? new UserTurn(turn) : new AnswerTurn(turn)
        this.#drawn.set(turn, drawn)
        this.#log.append(drawn.root)
        this.#mayAsk = null // it has buttons of its own
      }
      drawn.update()
    }
    byId("welcome").hidden = turns.length > 0
    this.#announce(turns.at(-1))
    this.#follow()
  }

  /** Told once that it begins, and once as a whole: never token by token. */
  #announce(turn) {
    if (turn?.role !== "assistant") return
    const before = this.#announced
    const ended = ENDED.has(turn.phase)
    this.#announced = { turn, ended }
    if (before?.turn !== turn) byId("announcer").textContent = ended ? "" : "The answer is on its way."
    else if (ended && !before.ended) {
      const { root } = this.#drawn.get(turn)
      const told = [".prose", ".error", ".ending"].map((part) => root.querySelector(part)?.textContent ?? "")
      byId("announcer").textContent = `Answer: ${told.filter((text) => text !== "").join(" ")}`
      this.#mayAsk = null // its end brought buttons
    }
  }

  /** Whether another question may be asked now: what would ask one is open or not. */
  drawAsking(mayAsk) {
    if (mayAsk === this.#mayAsk) return
    this.#mayAsk = mayAsk
    for (const starter of byId("welcome").querySelectorAll("button")) starter.disabled = !mayAsk
    for (const asks of this.#log.querySelectorAll("[data-action=again], [data-action=edit]")) asks.disabled = !mayAsk
  }

  /** An error that belongs to no answer; null takes it away. */
  drawNotice(error) {
    byId("notice").hidden = error === null
    byId("notice").textContent = error?.message ?? ""
  }

  #act(on, pressed) {
    if (pressed === null) return
    const { action } = pressed.dataset
    if (action === "again") on.again()
    else if (action === "edit") on.edit()
    else {
      const root = pressed.closest(".turn")
      const [turn] = [...this.#drawn].find(([, drawn]) => drawn.root === root)
      copy(pressed, pressed.closest(".code")?.querySelector("code").textContent ?? turn.text)
    }
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
  let done = true
  try {
    await navigator.clipboard.writeText(text)
  } catch {
    done = false // no clipboard: the page is on plain HTTP from another machine, or the browser's user refused it
  }
  const before = [...button.childNodes]
  if (button.dataset.told) return
  button.dataset.told = "yes"
  if (button.classList.contains("icon-button") && done) button.replaceChildren(icon("done"))
  else button.textContent = done ? "Copied" : "Not allowed"
  byId("announcer").textContent = done ? "Copied" : "Copying is not allowed here"
  setTimeout(() => {
    button.replaceChildren(...before)
    delete button.dataset.told
  }, DONE_FOR_MS)
}
