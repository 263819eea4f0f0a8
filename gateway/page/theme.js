// Runs before the first paint, or a dark page would flash white: that is why it is no module.
// The choice is "light", "dark", or none: the system's.
{
  const KEY = "headrace.theme"
  const root = document.documentElement
  const dark = matchMedia("(prefers-color-scheme: dark)")
  let storage = null
  try {
    storage = localStorage
  } catch {
    // A site that may keep no data begins with the system's choice each time.
  }
  const chosen = storage?.getItem(KEY)
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen

  /** To the other of the two; back at the system's choice, it is the system's again. */
  globalThis.toggleTheme = () => {
    const shown = root.dataset.theme ?? (dark.matches ? "dark" : "light")
    const next = shown === "dark" ? "light" : "dark"
    if ((next === "dark") === dark.matches) {
      delete root.dataset.theme
      storage?.removeItem(KEY)
    } else {
      root.dataset.theme = next
      storage?.setItem(KEY, next)
    }
    return next
  }
}
