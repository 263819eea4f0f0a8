// Builds DOM nodes: the only way in which this page makes any. Text goes in as text, so none is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg"

export const byId = (id) => document.getElementById(id)

/** Children are nodes or strings. */
export function element(name, className, ...children) {
  const node = document.createElement(name)
  if (className) node.className = className
  node.append(...children)
  return node
}

/** One of the symbols of index.html. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg")
  const use = document.createElementNS(SVG, "use")
  use.setAttribute("href", `#icon-${name}`)
  svg.setAttribute("aria-hidden", "true")
  svg.append(use)
  return svg
}

/** `action` is what a listener further up reads from the click. */
export function button(className, action, ...children) {
  const node = element("button", className, ...children)
  node.type = "button"
  node.dataset.action = action
  return node
}

export function iconButton(action, name, label) {
  const node = button("icon-button", action, icon(name))
  node.setAttribute("aria-label", label)
  node.title = label
  return node
}
