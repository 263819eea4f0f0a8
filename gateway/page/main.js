// Wires the parts: what the user does and what the server says go to the chat's state, and the state goes
// to the view, at most once a frame. Owns the models' list and what survives a reload of the tab.

import { Chat } from "./chat.js"
import { HeadraceClient } from "./headrace.js"
import { View } from "./view.js"

const MODELS_RETRY_MS = 2_000
const SAVED_AS = "headrace.chat.2" // the number changes with the form of chat.save()

const storage = openStorage()
const chat = new Chat()
const view = new View({
  send: (text) => begin(chat.ask(text, view.model, performance.now())),
  retry: (turn) => begin(chat.retry(turn, view.model, performance.now())),
  stop,
  newChat: () => {
    view.drawNotice(null)
    stop()
    chat.reset()
    save()
    draw()
  },
  reconnect: () => client.wake(),
})

const url = new URL("/v1/responses", location.href)
url.protocol = location.protocol === "https:" ? "wss:" : "ws:"
let connection = { name: "connecting" }
let answer = null // the client's side of chat.active
let modelsTimer = 0
let frame = 0
const client = new HeadraceClient(url, {
  onState: connectionChanged,
  onNotice: (error) => view.drawNotice(error),
})

function begin(request) {
  view.drawNotice(null)
  answer = client.respond(request, handlersOf(chat.active))
  save()
  draw()
}

function handlersOf(turn) {
  return {
    onEvent: (event) => {
      chat.receive(turn, event, performance.now())
      if (!chat.busy) save()
      draw()
    },
    onWaiting: () => {
      chat.refused(turn)
      draw()
    },
  }
}

function stop() {
  if (!chat.busy || chat.stopping) return
  chat.stop()
  answer.cancel()
  save()
  draw()
}

function connectionChanged(state) {
  connection = state
  clearTimeout(modelsTimer)
  if (state.name === "connected") loadModels()
  draw()
}

/** A gateway may be up before the first worker is, so an empty list is asked for again. */
async function loadModels() {
  let ids = []
  try {
    const answer = await fetch("/v1/models")
    if (answer.ok) ids = (await answer.json()).data.map((model) => model.id)
  } catch (error) {
    if (!(error instanceof TypeError)) throw error // TypeError: the network failed, and the socket will say so
  }
  view.drawModels(ids)
  if (ids.length === 0) modelsTimer = setTimeout(loadModels, MODELS_RETRY_MS)
}

function draw() {
  frame ||= requestAnimationFrame(() => {
    frame = 0
    view.drawTurns(chat.turns)
    view.drawBusy(chat.busy, chat.stopping)
    view.drawConnection(connection, chat.active?.waiting ?? false)
  })
}

/** What survives a reload, or null: where a site may keep no data, browsers throw at the very name. */
function openStorage() {
  try {
    return sessionStorage
  } catch {
    return null
  }
}

function save() {
  if (storage === null) return
  try {
    storage.setItem(SAVED_AS, JSON.stringify(chat.save(chat.busy ? answer.checkpoint() : null)))
  } catch {
    // Storage is full: the chat goes on, and a reload starts a new one.
    storage.removeItem(SAVED_AS)
  }
}

function restore() {
  const saved = storage?.getItem(SAVED_AS) ?? null
  if (saved === null) return
  const checkpoint = chat.restore(JSON.parse(saved))
  if (checkpoint !== null) answer = client.resume(checkpoint, handlersOf(chat.active))
}

restore()
draw()
addEventListener("online", () => client.wake())
addEventListener("pagehide", save)
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") client.wake()
  else save() // a phone may end a page that it has hidden without a word
})
