// Owns the conversations that are loaded, and the answers that are under way in any of them: each goes on while
// another conversation is on the page. Between the chats, the client and what the browser keeps; no DOM.

import { Chat } from "./chat.js"
import { HeadraceClient } from "./headrace.js"

const OPEN = "headrace.open" // the conversation on the page, for a reload of this tab or the next visit
const LEFT = { type: "error", error: { code: "cancelled", message: "Stopped while signed out." } }

export class Sessions {
  #conversations
  #kept // Storages that remember which conversation is open: this tab's, then the browser's
  #on
  #client
  #url
  #signedOut = false // the client is closed, and answers wait for the next one
  #running = new Map() // chat -> {answer, request}: the client's side of chat.active
  current

  /** `on`: {changed(), state(connection), notice(error), token(), forget(responseIds)}; `token` as for HeadraceClient. */
  constructor(url, conversations, kept, on) {
    this.#url = url
    this.#conversations = conversations
    this.#kept = kept
    this.#on = on
    const last = kept.map((storage) => storage?.getItem(OPEN)).find((id) => id && conversations.has(id))
    this.current = new Chat(conversations.get(last) ?? {})
  }

  /** Connects, or anew as somebody else, and goes on with every answer under way. */
  connect() {
    this.#client?.close()
    this.#signedOut = false
    this.#client = new HeadraceClient(this.#url, {
      token: this.#on.token,
      onState: (state) => this.#on.state(state),
      onNotice: (error) => this.#on.notice(error),
    })
    const checkpoints = new Map([...this.#running].map(([chat, { answer }]) => [chat, answer.checkpoint()]))
    for (const { id } of this.#conversations.list()) {
      const record = this.#conversations.get(id)
      if (record.checkpoint === null || [...checkpoints.keys()].some((chat) => chat.id === id)) continue
      checkpoints.set(id === this.current.id ? this.current : new Chat(record), record.checkpoint)
    }
    for (const [chat, checkpoint] of checkpoints) {
      this.#follow(chat, checkpoint.params, (handlers) => this.#client.resume(checkpoint, handlers))
    }
  }

  wake() {
    this.#client.wake()
  }

  /** [{id, title, running}], the latest first. */
  list() {
    const running = new Set([...this.#running.keys()].map(({ id }) => id))
    return this.#conversations.list().map(({ id, title }) => ({ id, title, running: running.has(id) }))
  }

  open(id) {
    const running = [...this.#running.keys()].find((chat) => chat.id === id)
    this.current = running ?? new Chat(this.#conversations.get(id) ?? {})
    this.#remember()
  }

  startNew() {
    this.current = new Chat()
    this.#remember()
  }

  rename(id, title) {
    this.#conversations.rename(id, title)
    for (const chat of [this.current, ...this.#running.keys()]) {
      if (chat.id === id) chat.title = this.#conversations.get(id)?.title ?? chat.title
    }
  }

  /** An answer under way in it is cancelled, and the service is told to forget them all. */
  delete(id) {
    const shown = [this.current, ...this.#running.keys()].find((chat) => chat.id === id)
    const { turns } = shown ?? this.#conversations.get(id) ?? { turns: [] }
    for (const [chat, { answer }] of this.#running) {
      if (chat.id !== id) continue
      this.#running.delete(chat)
      answer.cancel()
    }
    this.#conversations.delete(id)
    this.#on.forget(turns.flatMap(({ responseId }) => responseId ?? []))
    if (id === this.current.id) this.startNew()
  }

  /** Another tab wrote: the conversation on the page is that tab's, unless it is being answered here. */
  reload() {
    this.#conversations.reload()
    const record = this.#conversations.get(this.current.id)
    if (this.#running.has(this.current) || record === null || record.checkpoint !== null) return
    if (record.changedMs > this.current.changedMs) this.current = new Chat(record)
  }

  ask(request) {
    this.#follow(this.current, request, (handlers) => this.#client.respond(request, handlers))
    this.#remember()
    this.save()
  }

  stop() {
    const running = this.#running.get(this.current)
    if (running === undefined || this.current.stopping) return
    this.current.stop()
    if (this.#signedOut) this.#received(this.current, running.request, LEFT)
    else running.answer.cancel()
    this.save()
  }

  /** Everything under way, and the conversation on the page. */
  save() {
    for (const chat of new Set([...this.#running.keys(), this.current])) this.#put(chat)
  }

  #put(chat) {
    if (chat.turns.length === 0) return
    this.#conversations.put(chat.save(this.#running.get(chat)?.answer.checkpoint() ?? null))
  }

  #remember() {
    for (const storage of this.#kept) {
      try {
        storage?.setItem(OPEN, this.current.id)
      } catch {
        // Full: the next visit opens another one.
      }
    }
  }

  /** `begin(handlers)` returns the client's side of the answer that `chat` waits for. */
  #follow(chat, request, begin) {
    const running = { answer: null, request }
    this.#running.set(chat, running)
    const isMine = () => this.#running.get(chat) === running
    running.answer = begin({
      onEvent: (event) => isMine() && this.#received(chat, request, event),
      onWaiting: (error) => isMine() && this.#refused(chat, request, error),
    })
  }

  #received(chat, request, event) {
    if (event.type === "error") {
      // Signed out: the answer is not lost, and goes on with the next token.
      if (event.error.code === "invalid_api_key" && event.status === undefined) {
        this.#signedOut = true
        return
      }
      if (this.#retold(chat, request, event.error)) return
    }
    chat.receive(event, performance.now())
    if (!chat.busy) {
      this.#running.delete(chat)
      this.#put(chat)
    }
    this.#on.changed()
  }

  #refused(chat, request, error) {
    const before = this.#running.get(chat).answer
    if (this.#retold(chat, request, error)) before.cancel() // it would be asked again for a minute
    else chat.refused(error)
    this.#on.changed()
  }

  #retold(chat, request, error) {
    const retold = chat.retell(error, request)
    if (retold === null) return false
    this.#follow(chat, retold, (handlers) => this.#client.respond(retold, handlers))
    this.#put(chat)
    return true
  }
}
