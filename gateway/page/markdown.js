// Turns the Markdown of an answer into DOM nodes. The text comes from a model and is never trusted: nodes
// are built one by one, HTML in it stays text, images become links, and links open only safe addresses.
// Parsing is marked's lexer (vendor/); its HTML renderer is not used.

import { codeBlock, growCode } from "./code.js"
import { element } from "./dom.js"
import { Lexer } from "./vendor/marked.esm.js"

const OPTIONS = { gfm: true, breaks: true }
const SAFE_PROTOCOLS = new Set(["http:", "https:", "mailto:"])
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" }
// The page has h1, an answer starts at h3: a screen reader's outline stays in order.
const HEADING_OFFSET = 2

/** Renders a growing text into `root`, touching only the blocks that changed since the last call. */
export class MarkdownStream {
  #root
  #text = ""
  // Offset in the text of the last block. What stands before it is closed: nothing that is appended to
  // the text can change it, so it is neither parsed nor drawn again.
  #openFrom = 0
  #closedNodes = 0
  #open = null // the token of the last block, as drawn
  #hasDefinitions = false

  constructor(root) {
    this.#root = root
  }

  update(raw) {
    const text = raw.replace(/\r\n?/g, "\n") // as the lexer does: its lengths are offsets here
    if (text === this.#text) return
    this.#text = text
    const tokens = lex(text.slice(this.#openFrom))
    this.#hasDefinitions ||= tokens.some((token) => token.type === "def")
    if (this.#grows(tokens)) return
    while (this.#root.childNodes.length > this.#closedNodes) this.#root.lastChild.remove()
    const open = tokens.findLastIndex((token) => token.type !== "space")
    for (const [index, token] of tokens.entries()) {
      if (index < open) this.#openFrom += token.raw.length
      if (index === open) this.#closedNodes = this.#root.childNodes.length
      this.#root.append(...blocks([token]))
    }
    this.#open = tokens[open] ?? null
  }

  /** A code block that only became longer stays in its place, scrolled as it is. */
  #grows([token, ...others]) {
    if (others.length > 0 || token?.type !== "code" || this.#open?.type !== "code") return false
    if (token.lang !== this.#open.lang || !token.text.startsWith(this.#open.text)) return false
    growCode(this.#root.lastChild, token.text, languageOf(token))
    this.#open = token
    return true
  }

  /** The text is whole: link definitions at its end now reach the links before them. */
  finish(text) {
    this.update(text)
    if (this.#hasDefinitions) this.#root.replaceChildren(...blocks(lex(this.#text)))
  }
}

function lex(text) {
  try {
    return new Lexer(OPTIONS).lex(text)
  } catch {
    // What the parser cannot take is shown as it stands: ten thousand ">", say, exhaust its stack.
    return [{ type: "html", raw: text, text }]
  }
}

const languageOf = ({ lang }) => (lang ?? "").match(/^\S*/)[0]

function blocks(tokens) {
  const nodes = tokens.map(block).filter((node) => node !== null)
  // Each block runs in the direction of its own first letter; code always from the left.
  for (const node of nodes) if (!node.classList.contains("code")) node.dir = "auto"
  return nodes
}

function block(token) {
  switch (token.type) {
    case "space":
    case "def":
      return null
    case "heading":
      return element(`h${Math.min(token.depth + HEADING_OFFSET, 6)}`, "", ...inlines(token.tokens))
    case "paragraph":
      return element("p", "", ...inlines(token.tokens))
    case "text": // the content of a tight list item
      return element("span", "", ...inlines(token.tokens ?? [token]))
    case "code":
      return codeBlock(token.text, languageOf(token))
    case "list":
      return list(token)
    case "blockquote":
      return element("blockquote", "", ...blocks(token.tokens))
    case "table":
      return table(token)
    case "hr":
      return element("hr")
    case "checkbox":
      return checkbox(token)
    default: // block HTML: shown, never obeyed
      return element("p", "", token.raw.trimEnd())
  }
}

function list({ ordered, start, items, loose }) {
  const node = element(ordered ? "ol" : "ul", loose ? "loose" : "")
  if (ordered && start !== 1) node.start = start
  for (const item of items) node.append(element("li", item.task ? "task" : "", ...blocks(item.tokens)))
  return node
}

function checkbox({ checked }) {
  const box = element("input")
  box.type = "checkbox"
  box.disabled = true
  box.checked = checked
  box.setAttribute("aria-label", checked ? "done" : "to do")
  return box
}

function table({ header, rows }) {
  const cell = (name) => (token) => element(name, token.align ?? "", ...inlines(token.tokens))
  const row = (name) => (cells) => element("tr", "", ...cells.map(cell(name)))
  const body = element("tbody", "", ...rows.map(row("td")))
  const wrap = element("div", "table", element("table", "", element("thead", "", row("th")(header)), body))
  wrap.tabIndex = 0
  wrap.setAttribute("role", "group")
  wrap.setAttribute("aria-label", "Table")
  return wrap
}

const inlines = (tokens) => tokens.map(inline)

function inline(token) {
  switch (token.type) {
    case "strong":
    case "em":
    case "del":
      return element(token.type, "", ...inlines(token.tokens))
    case "codespan":
      return element("code", "", token.text)
    case "br":
      return element("br")
    case "link":
      return link(token.href, inlines(token.tokens))
    case "image": // the page asks other origins for nothing
      return link(token.href, [token.text || token.href])
    case "checkbox":
      return checkbox(token)
    case "escape":
      return document.createTextNode(token.text)
    case "text":
      return token.tokens ? element("span", "", ...inlines(token.tokens)) : document.createTextNode(decode(token.text))
    default: // inline HTML
      return document.createTextNode(token.raw)
  }
}

function link(href, children) {
  if (!URL.canParse(href) || !SAFE_PROTOCOLS.has(new URL(href).protocol)) return element("span", "", ...children)
  const node = element("a", "", ...children)
  node.href = href
  node.target = "_blank"
  node.rel = "noopener noreferrer nofollow"
  return node
}

function decode(text) {
  return text.replace(/&(?:#(\d{1,7})|#x([0-9a-f]{1,6})|([a-z]{2,4}));/gi, (whole, decimal, hex, name) => {
    if (name) return ENTITIES[name] ?? whole
    const point = decimal ? Number(decimal) : parseInt(hex, 16)
    return point > 0 && point <= 0x10ffff ? String.fromCodePoint(point) : whole
  })
}
