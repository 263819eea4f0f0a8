// Owns the field in which the user writes, its send and stop buttons, and the rewording of the last question.

import { byId } from "./dom.js"

export class Composer {
  #on
  #prompt = byId("prompt")
  #send = byId("send")
  #stop = byId("stop")
  #busy = false
  #allowed = false
  #editing = false
  #draft = "" // what stood in the field before the last question came into it

  /** `on`: {send(text), rephrase(text), stop(), lastQuestion()}; the last returns its text or null. */
  constructor(on) {
    this.#on = on
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault()
      this.#submit()
    })
    this.#prompt.addEventListener("input", () => this.#grow())
    this.#prompt.addEventListener("keydown", (event) => this.#key(event))
    this.#stop.addEventListener("click", () => on.stop())
    byId("keep").addEventListener("click", () => this.endEdit())
    this.focus()
  }

  get editing() {
    return this.#editing
  }

  /** Not on a touch screen, where it would open the keyboard over the page. */
  focus() {
    if (matchMedia("(hover: hover)").matches) this.#prompt.focus()
  }

  /** `allowed`: a question may be sent; without a connection too, for it then goes out with the next one. */
  draw(busy, stopping, allowed) {
    const stopHadFocus = document.activeElement === this.#stop
    this.#busy = busy
    this.#allowed = allowed
    this.#stop.disabled = stopping
    this.#send.hidden = busy
    this.#stop.hidden = !busy
    if (stopHadFocus && (!busy || stopping)) this.focus()
    this.#drawSend()
  }

  /** The last question comes into the field. */
  edit() {
    const text = this.#on.lastQuestion()
    if (text === null || this.#busy) return
    if (!this.#editing) this.#draft = this.#prompt.value
    this.#setEditing(true, text)
    this.#prompt.focus()
    this.#prompt.setSelectionRange(text.length, text.length)
  }

  endEdit() {
    if (this.#editing) this.#setEditing(false, this.#draft)
  }

  #setEditing(editing, text) {
    this.#editing = editing
    byId("editing").hidden = !editing
    this.#prompt.value = text
    this.#grow()
    this.focus()
  }

  #key(event) {
    if (event.key === "ArrowUp" && this.#prompt.value === "") {
      event.preventDefault()
      this.edit()
    }
    // An Enter that ends an input method's composition is not a send.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return
    event.preventDefault()
    this.#submit()
  }

  #submit() {
    const text = this.#prompt.value.trim()
    if (!this.#allowed || text === "") return
    const editing = this.#editing
    this.#setEditing(false, "")
    if (editing) this.#on.rephrase(text)
    else this.#on.send(text)
  }

  #grow() {
    this.#prompt.style.height = "auto"
    this.#prompt.style.height = `${this.#prompt.scrollHeight}px`
    this.#drawSend()
  }

  #drawSend() {
    this.#send.disabled = !this.#allowed || this.#prompt.value.trim() === ""
  }
}
