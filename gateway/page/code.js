// Owns a block of code: its head with the language and the copy button, and its colours. Colours are decoration:
// a block is drawn plain at once, and coloured as soon as its language's grammar is here. Text goes in as text nodes.

import { button, element } from "./dom.js"
import { tokenizer } from "./vendor/speed-highlight/tokenize.js"

// Beyond it a block stays plain: each frame that brings text colours the open block anew, and of text made for
// that purpose the grammars take quadratic time (4,000 characters: 0.2 s). That of HTML takes exponential time, and
// is not shipped.
const MAX_COLOURED_CHARS = 4_000

const NAMES = {
  c: ["c", "cpp", "c++", "h", "hpp"],
  bash: ["bash", "sh", "shell", "zsh", "console"],
  css: ["css"],
  diff: ["diff", "patch"],
  docker: ["docker", "dockerfile"],
  go: ["go", "golang"],
  ini: ["ini"],
  java: ["java", "kotlin"],
  js: ["js", "javascript", "jsx", "mjs"],
  json: ["json", "jsonc"],
  lua: ["lua"],
  make: ["make", "makefile"],
  py: ["py", "python", "python3"],
  rs: ["rs", "rust"],
  sql: ["sql"],
  toml: ["toml"],
  ts: ["ts", "typescript", "tsx"],
  yaml: ["yaml", "yml"],
}
const LANGUAGES = new Map(Object.entries(NAMES).flatMap(([file, names]) => names.map((name) => [name, file])))
// Those that others embed; the rest of what a grammar may name is not shipped, and stays plain.
const EMBEDDED = new Set(["jsdoc", "regex", "todo", ...LANGUAGES.values()])

const grammars = new Map() // file -> grammar
const loading = new Map() // file -> promise of it

export function codeBlock(text, language) {
  const code = element("code", "")
  const copy = button("copy", "copy", "Copy")
  const name = language || "text"
  copy.setAttribute("aria-label", `Copy ${name}`)
  const pre = element("pre", "", code)
  pre.tabIndex = 0 // long lines scroll, and must do so from the keyboard too
  pre.setAttribute("role", "group")
  pre.setAttribute("aria-label", language ? `${language} code` : "Code")
  draw(code, text, fileOf(language))
  return element("div", "code", element("div", "code-head", element("span", "", name), copy), pre)
}

/** `block`: what `codeBlock` returned; `text` begins with what stands in it. */
export function growCode(block, text, language) {
  draw(block.querySelector("code"), text, fileOf(language))
}

const fileOf = (language) => LANGUAGES.get(language.toLowerCase())

function draw(code, text, file) {
  if (file === undefined || text.length > MAX_COLOURED_CHARS) {
    const shown = code.childNodes.length === 1 && code.firstChild.nodeType === Node.TEXT_NODE ? code.firstChild : null
    if (shown !== null && text.startsWith(shown.data)) shown.appendData(text.slice(shown.length))
    else code.replaceChildren(text)
    return
  }
  const { pieces, missing } = piecesOf(text, file)
  code.replaceChildren(...pieces)
  if (missing.length > 0) whenLoaded(missing, () => code.textContent === text && draw(code, text, file))
}

/** The text as nodes, and the grammars that were wanted for it and are not here. */
function piecesOf(text, file) {
  const pieces = []
  const missing = new Set()
  const run = tokenizer(text, file, (part, type) => {
    if (part !== "") pieces.push(type === undefined ? part : element("span", `code-${type}`, part))
  })
  for (let step = run.next(); !step.done; step = run.next(grammars.get(step.value))) {
    if (!grammars.has(step.value) && EMBEDDED.has(step.value)) missing.add(step.value)
  }
  return { pieces, missing: [...missing] }
}

async function whenLoaded(files, then) {
  try {
    await Promise.all(files.map(load))
  } catch {
    return // the network is away: this block stays plain
  }
  then()
}

function load(file) {
  if (!loading.has(file)) {
    const loaded = import(`./vendor/speed-highlight/languages/${file}.js`)
    loading.set(file, loaded.then((module) => grammars.set(file, module.default)))
    loaded.catch(() => loading.delete(file)) // the next block tries again
  }
  return loading.get(file)
}
