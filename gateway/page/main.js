// Wires the parts: what the user does and what the server says go to the chat's state, and the state goes
// to the view, at most once a frame. Owns the models' list and what survives a reload of the tab.

import { Chat } from "./chat.js"
import { Connection } from "./connection.js"
import { View } from "./view.js"

const MODELS_RETRY_MS = 2_000
const SAVED_AS = "headrace.chat.1" // the number changes with the form of chat.save()

const storage = openStorage()
const chat = new Chat()
const view = new View({
  send: (text) => begin(() => chat.ask(text, view.model, performance.now())),
  retry: (turn) => begin(() => chat.retry(turn, view.model, performance.now())),
  stop: () => send(chat.stop()),
  newChat: () => {
    view.drawNotice(null)
    send(chat.reset())
  },
  reconnect: () => connection.retryNow(),
})

const url = new URL("/v1/responses", location.href)
url.protocol = location.protocol === "https:" ? "wss:" : "ws:"
const connection = new Connection(url, { onState: connectionChanged, onEvent: received })
let leaving = false // the server asked for a new connection; it gets one between two answers
let modelsTimer = 0
let frame = 0

function begin(makeRequest) {
  view.drawNotice(null)
  send(makeRequest())
}

function send(event) {
  if (event !== null && !connection.send(event)) chat.lost()
  save()
  draw()
}

function received(event) {
  if (event.type === "session.going_away") leaving = true
  const { reply, notice } = chat.receive(event, performance.now())
  if (reply !== null) connection.send(reply)
  if (notice !== null) view.drawNotice(notice)
  draw()
  if (chat.busy) return
  save()
  if (leaving) connection.renew()
}

function connectionChanged(state) {
  leaving = false
  if (state.name !== "connected") chat.lost()
  view.drawConnection(state)
  clearTimeout(modelsTimer)
  if (state.name === "connected") {
    send(chat.connected())
    loadModels()
  }
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
    storage.setItem(SAVED_AS, JSON.stringify(chat.save()))
  } catch {
    // Storage is full: the chat goes on, and a reload starts a new one.
    storage.removeItem(SAVED_AS)
  }
}

function restore() {
  const saved = storage?.getItem(SAVED_AS) ?? null
  if (saved !== null) chat.restore(JSON.parse(saved))
}

restore()
draw()
connection.open()
addEventListener("online", () => connection.retryNow())
addEventListener("pagehide", save)
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") connection.retryNow()
})
