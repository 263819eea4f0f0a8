// Wires the parts: what the user does and what the server says go to the sessions, and their state goes to the
// views, at most once a frame. Owns the models' list, the settings, the sign-in and the shortcuts.

import { Composer } from "./composer.js"
import { Conversations, openStorage } from "./conversations.js"
import { confirmDelete, openDialogs, showKeys, showSettings, showSignIn } from "./dialogs.js"
import { byId } from "./dom.js"
import { Sessions } from "./sessions.js"
import { loadSettings, saveSettings } from "./settings.js"
import { Sidebar } from "./sidebar.js"
import { Status } from "./status.js"
import { View } from "./view.js"

const MODELS_RETRY_MS = 2_000
const TOKEN = "headrace.token"

const local = openStorage("localStorage")
const tab = openStorage("sessionStorage")
let settings = loadSettings(local)
let token = tab?.getItem(TOKEN) ?? null
let connection = { name: "connecting" }
let modelsTimer = 0
let frame = 0

const url = new URL("/v1/responses", location.href)
url.protocol = location.protocol === "https:" ? "wss:" : "ws:"
const sessions = new Sessions(url, new Conversations(local), [tab, local], {
  token: () => token,
  changed: draw,
  state: connectionChanged,
  forget,
  notice: (error) => error.code !== "invalid_api_key" && view.drawNotice(error), // that is the dialog's to tell
})
const view = new View({
  send: (text) => begin((chat, ...how) => chat.ask(text, ...how)),
  again: () => begin((chat, ...how) => chat.again(...how)),
  edit: () => composer.edit(),
})
const composer = new Composer({
  send: (text) => begin((chat, ...how) => chat.ask(text, ...how)),
  rephrase: (text) => begin((chat, ...how) => chat.rephrase(text, ...how)),
  stop,
  lastQuestion: () => sessions.current.lastQuestion?.text ?? null,
})
const status = new Status({ reconnect: () => sessions.wake(), signIn: () => showSignIn("") })
const sidebar = new Sidebar(
  {
    newChat: () => show(() => sessions.startNew()),
    open: (id) => show(() => sessions.open(id)),
    rename: (id, title) => {
      sessions.rename(id, title)
      drawNow()
    },
    delete: async (id, title) => {
      if (await confirmDelete(title)) show(() => sessions.delete(id))
    },
  },
  local,
)
openDialogs({
  settings: (changes) => change(changes),
  signIn,
  signOut: () => signIn(null),
})

function begin(requestOf) {
  if (!mayAsk()) return
  view.drawNotice(null)
  view.follow()
  const now = { ms: performance.now(), wallMs: Date.now() }
  sessions.ask(requestOf(sessions.current, { ...settings, model: byId("model").value }, now))
  composer.focus()
  draw()
}

/** Another conversation comes onto the page. */
function show(choose) {
  view.drawNotice(null)
  composer.endEdit()
  choose()
  view.follow()
  composer.focus()
  draw()
}

function stop() {
  sessions.stop()
  draw()
}

function change(changes) {
  settings = { ...settings, ...changes }
  saveSettings(local, settings)
}

/** Without a connection too: what is sent then goes out with the next one. */
const mayAsk = () => connection.name !== "refused" && !sessions.current.busy && byId("model").value !== ""

function connectionChanged(state) {
  connection = state
  clearTimeout(modelsTimer)
  if (state.name === "connected") loadModels()
  if (state.name === "refused" && state.code === "invalid_api_key") {
    showSignIn(token === null ? "" : "This key was not accepted: it is wrong, or its time has run out.")
  }
  draw()
}

function signIn(given) {
  token = given
  try {
    if (token === null) tab?.removeItem(TOKEN)
    else tab?.setItem(TOKEN, token)
  } catch {
    // No storage: the key lasts as long as the page.
  }
  sessions.connect()
  composer.focus()
}

const authorization = () => (token === null ? {} : { authorization: `Bearer ${token}` })

/** What cannot be deleted now is gone when its time is over. */
async function forget(responseIds) {
  const gone = responseIds.map(async (id) => {
    const answer = await fetch(`/v1/responses/${encodeURIComponent(id)}`, { method: "DELETE", headers: authorization() })
    return answer.ok || answer.status === 404
  })
  const outcomes = await Promise.allSettled(gone)
  if (outcomes.every(({ value }) => value)) return
  view.drawNotice({ message: "Deleted here. The service could not be told, and forgets it by itself within a day." })
}

/** A gateway may be up before the first worker is, so an empty list is asked for again. */
async function loadModels() {
  let ids = []
  try {
    const answer = await fetch("/v1/models", { headers: authorization() })
    if (answer.ok) ids = (await answer.json()).data.map((model) => model.id)
  } catch (error) {
    if (!(error instanceof TypeError)) throw error // TypeError: the network failed, and the socket will say so
  }
  drawModels(ids)
  if (ids.length === 0) modelsTimer = setTimeout(loadModels, MODELS_RETRY_MS)
}

/** Models once seen stay on offer while a new gateway has yet to hear of them. */
function drawModels(ids) {
  const model = byId("model")
  if (ids.length === 0 && model.value !== "") return
  model.replaceChildren(...ids.map((id) => new Option(id)))
  if (ids.length === 0) model.append(new Option("No model yet", ""))
  if (ids.includes(settings.model)) model.value = settings.model // else that choice stands for when it is back
  model.disabled = ids.length === 0
  draw()
}

function draw() {
  frame ||= requestAnimationFrame(drawNow)
}

function drawNow() {
  cancelAnimationFrame(frame)
  frame = 0
  const { id, title, turns, busy, stopping, active } = sessions.current
  view.drawTurns(turns)
  view.drawAsking(mayAsk())
  composer.draw(busy, stopping, mayAsk())
  status.draw(connection, (active?.waiting ?? null) !== null)
  sidebar.draw(sessions.list(), id)
  document.title = title === "" ? "Headrace" : `${title} · Headrace`
}

byId("model").addEventListener("change", () => {
  change({ model: byId("model").value })
  draw()
})
byId("theme").addEventListener("click", () => globalThis.toggleTheme())
byId("open-settings").addEventListener("click", () => showSettings(settings, token !== null))
byId("open-keys").addEventListener("click", showKeys)
document.addEventListener("keydown", (event) => {
  const withMod = event.ctrlKey || event.metaKey
  const key = event.key.toLowerCase()
  if (key === "escape" && event.shiftKey) composer.focus()
  else if (key === "escape" && composer.editing) composer.endEdit()
  else if (key === "escape") stop()
  else if (withMod && key === "/") showKeys()
  else if (withMod && event.shiftKey && key === "o") show(() => sessions.startNew())
  else if (withMod && event.shiftKey && key === "s") sidebar.toggle()
  else return
  event.preventDefault()
})

sessions.connect()
draw()
addEventListener("online", () => sessions.wake())
addEventListener("pagehide", () => sessions.save())
addEventListener("storage", (event) => {
  if (!Conversations.concerns(event.key)) return
  sessions.reload()
  draw()
})
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") sessions.wake()
  else sessions.save() // a phone may end a page that it has hidden without a word
})
