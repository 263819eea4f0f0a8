// Owns the list of conversations: beside the page where there is room, a drawer over it on a phone.

import { byId, element, iconButton } from "./dom.js"

const KEY = "headrace.list-hidden"

export class Sidebar {
  #on
  #storage
  #list = byId("conversations")
  #narrow = matchMedia("(width < 52rem)")
  #open // as a drawer, or beside
  #drawn = "" // what the list was drawn from
  #renaming = null // the id of the conversation whose title is being written

  /** `on`: {open(id), rename(id, title), delete(id, title), newChat()} */
  constructor(on, storage) {
    this.#on = on
    this.#storage = storage
    byId("show-list").addEventListener("click", () => this.toggle(true))
    byId("hide-list").addEventListener("click", () => this.toggle(false))
    byId("backdrop").addEventListener("click", () => this.toggle(false))
    byId("new-chat").addEventListener("click", () => {
      this.#closeDrawer()
      on.newChat()
    })
    byId("sidebar").addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.#narrow.matches) return
      event.stopPropagation() // it closes the drawer, and stops no answer
      this.toggle(false)
    })
    this.#list.addEventListener("click", (event) => this.#clicked(event.target.closest("[data-action]")))
    this.#narrow.addEventListener("change", () => this.#arrange())
    this.#arrange()
  }

  /** `conversations`: [{id, title, running}], the latest first; `current`: the id of the one on the page. */
  draw(conversations, current) {
    if (this.#renaming !== null) return
    const drawn = JSON.stringify([conversations, current])
    if (drawn === this.#drawn) return
    this.#drawn = drawn
    const focused = this.#list.contains(document.activeElement) ? focusOf(document.activeElement) : null
    this.#list.replaceChildren(...conversations.map((each) => entry(each, each.id === current)))
    if (focused === null) return
    this.#list.querySelector(`[data-id="${focused.id}"] [data-action="${focused.action}"]`)?.focus()
  }

  toggle(open = !this.#open) {
    this.#open = open
    if (!this.#narrow.matches) remember(this.#storage, !open)
    this.#show()
    byId(open ? "hide-list" : "show-list").focus()
  }

  #closeDrawer() {
    if (this.#narrow.matches && this.#open) this.toggle(false)
  }

  #arrange() {
    this.#open = !this.#narrow.matches && this.#storage?.getItem(KEY) !== "yes"
    this.#show()
  }

  #show() {
    const drawer = this.#narrow.matches && this.#open
    document.body.dataset.list = this.#open ? "open" : "hidden"
    byId("sidebar").inert = !this.#open
    byId("stage").inert = drawer
    byId("backdrop").hidden = !drawer
    byId("show-list").setAttribute("aria-expanded", String(this.#open))
  }

  #clicked(button) {
    if (button === null) return
    const { id } = button.closest("[data-id]").dataset
    const title = button.closest("[data-id]").querySelector(".title").textContent
    if (button.dataset.action === "rename") this.#rename(button.closest("[data-id]"), id, title)
    else if (button.dataset.action === "delete") this.#on.delete(id, title)
    else {
      this.#closeDrawer()
      this.#on.open(id)
    }
  }

  #rename(item, id, title) {
    const field = element("input", "rename")
    field.value = title
    field.maxLength = 120
    field.dir = "auto"
    field.setAttribute("aria-label", "New title")
    this.#renaming = id
    item.replaceChildren(field)
    field.focus()
    field.select()
    const end = (kept) => {
      if (this.#renaming === null) return
      this.#renaming = null
      this.#drawn = "" // the field goes, whatever the title is now
      this.#on.rename(id, kept ? field.value : title)
      this.#list.querySelector(`[data-id="${id}"] [data-action="rename"]`)?.focus()
    }
    field.addEventListener("blur", () => end(true))
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.isComposing) {
        event.preventDefault() // or it would press the button that has the focus next
        end(true)
      }
      if (event.key !== "Escape") return
      event.stopPropagation()
      end(false)
    })
  }
}

function entry({ id, title, running }, isCurrent) {
  const open = element("button", "open", element("span", "title", title))
  open.type = "button"
  open.dataset.action = "open"
  open.title = title
  open.querySelector(".title").dir = "auto"
  if (isCurrent) open.setAttribute("aria-current", "true")
  if (running) open.append(element("span", "unseen", ", being answered"))
  const tools = [
    iconButton("rename", "edit", `Rename ${title}`),
    iconButton("delete", "delete", `Delete ${title}`),
  ]
  const item = element("li", running ? "running" : "", open, ...tools)
  item.dataset.id = id
  return item
}

const focusOf = (node) => ({ id: node.closest("[data-id]")?.dataset.id, action: node.dataset.action })

function remember(storage, hidden) {
  try {
    storage?.setItem(KEY, hidden ? "yes" : "no")
  } catch {
    // Full: the next visit begins with the list shown.
  }
}
