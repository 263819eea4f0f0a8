// Owns what this browser keeps of conversations. One entry a conversation, and no index beside them: two tabs
// then never write over each other's list. It must not know what a conversation's turns look like.

const PREFIX = "headrace.chat.3." // the number changes with the form of chat.save()
const TITLE_LENGTH = 60

/** A title from the first question: its first line, cut between words. */
export function titleOf(text) {
  const line = text.trim().split("\n", 1)[0].replace(/\s+/g, " ").trim()
  if (line.length <= TITLE_LENGTH) return line
  const cut = line.slice(0, TITLE_LENGTH)
  const space = cut.lastIndexOf(" ")
  return `${(space > TITLE_LENGTH / 2 ? cut.slice(0, space) : cut).trimEnd()}…`
}

/** What a site may keep, or null: where it may keep no data, browsers throw at the very name. */
export function openStorage(name) {
  try {
    return globalThis[name] ?? null
  } catch {
    return null
  }
}

/** `storage`: a Storage, or null: then conversations last as long as the page. */
export class Conversations {
  #storage
  #records = new Map() // id -> record; the storage's content, parsed

  constructor(storage) {
    this.#storage = storage
    this.reload()
  }

  /** Reads what another tab may have written. */
  reload() {
    if (this.#storage === null) return
    this.#records.clear()
    for (let index = 0; index < this.#storage.length; index += 1) {
      const key = this.#storage.key(index)
      if (!key.startsWith(PREFIX)) continue
      const record = parse(this.#storage.getItem(key))
      if (record !== null) this.#records.set(key.slice(PREFIX.length), record)
    }
  }

  /** Whether a `storage` event with that key is about a conversation; null: about all there is. */
  static concerns(key) {
    return key === null || key.startsWith(PREFIX)
  }

  /** [{id, title, changedMs}], the latest first. */
  list() {
    const all = [...this.#records.values()].map(({ id, title, changedMs }) => ({ id, title, changedMs }))
    return all.sort((a, b) => b.changedMs - a.changedMs)
  }

  get(id) {
    return this.#records.get(id) ?? null
  }

  has(id) {
    return this.#records.has(id)
  }

  /** `record`: plain data with {id, title, changedMs}. Where the storage is full, the oldest give way. */
  put(record) {
    this.#records.set(record.id, record)
    const text = JSON.stringify(record)
    while (!this.#write(record.id, text)) {
      const oldest = this.list().at(-1)
      if (oldest.id === record.id) return // it alone is too large: it lasts as long as the page
      this.delete(oldest.id)
    }
  }

  rename(id, title) {
    const record = this.get(id)
    if (record !== null && title.trim() !== "") this.put({ ...record, title: title.trim() })
  }

  delete(id) {
    this.#records.delete(id)
    this.#storage?.removeItem(PREFIX + id)
  }

  #write(id, text) {
    try {
      this.#storage?.setItem(PREFIX + id, text)
      return true
    } catch {
      return false
    }
  }
}

function parse(text) {
  try {
    const record = JSON.parse(text)
    return typeof record?.id === "string" && Array.isArray(record.turns) ? record : null
  } catch {
    return null // not ours, or half of it: it is left alone and not shown
  }
}
