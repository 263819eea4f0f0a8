"""What an answer's Markdown becomes, in a real browser: the same however it arrives, and never HTML."""

from __future__ import annotations

import pytest
from playwright.async_api import Page

pytestmark = pytest.mark.browser

MARKDOWN = """\
# Title
A *line* with **bold**, `code`, ~~not~~ and a [link](https://example.org/a?b=1&c=2).
Next line &lt;kept&gt; \\*

1. one
2. two
   - deep `x < y`
   - deeper

3. loose

```python
def f(a: int) -> str:
    return "<b>" * a
```

| a | b |
|:--|--:|
| 1 | **2** |

> quoted
> twice

- [x] done

[late]: https://example.org/late
See [late].
"""

HOSTILE = """\
<script>window.owned = true</script>
<img src=x onerror="window.owned = true">

![picture](https://elsewhere.example/pixel.png) [click](javascript:window.owned=true)
[data](data:text/html,hello) <a href="javascript:window.owned=true">raw</a>

"""

RENDER = """async ([text, step]) => {
  const { MarkdownStream } = await import("/assets/markdown.js")
  const root = document.createElement("div")
  document.body.append(root)
  const stream = new MarkdownStream(root)
  for (let end = step; end < text.length; end += step) stream.update(text.slice(0, end))
  stream.finish(text)
  const names = [...root.querySelectorAll("*")].map((node) => node.localName)
  const seen = { html: root.innerHTML, names, links: [...root.querySelectorAll("[href]")].map((a) => a.href) }
  root.remove()
  return seen
}"""


CODE = """async ([text, language]) => {
  const { codeBlock } = await import("/assets/code.js")
  const block = codeBlock(text, language)
  document.body.append(block)
  const code = block.querySelector("code")
  for (let tries = 0; tries < 200 && code.querySelector("span") === null; tries += 1) {
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  const kinds = new Set([...code.querySelectorAll("span")].map((piece) => piece.className))
  block.remove()
  return { text: code.textContent, kinds: [...kinds] }
}"""


async def test_markdown_grows_to_what_it_is_as_a_whole(page: Page) -> None:
    await page.evaluate(CODE, ["def f(): ...", "python"])  # from here on its colours are there at once
    whole = await page.evaluate(RENDER, [MARKDOWN, len(MARKDOWN)])
    for part in (
        '<h3 dir="auto">Title</h3>',
        "<strong>bold",
        '<ol class="loose"',
        "<pre",
        "<td",
        "<blockquote",
    ):
        assert part in whole["html"]
    assert whole["links"] == ["https://example.org/a?b=1&c=2", "https://example.org/late"]
    for step in (1, 2, 3, 7, 40):
        assert await page.evaluate(RENDER, [MARKDOWN, step]) == whole
    with_returns = MARKDOWN.replace("\n", "\r\n")
    assert await page.evaluate(RENDER, [with_returns, 1]) == whole


async def test_hostile_text_stays_text(page: Page) -> None:
    for nested in ("", "\n" + ">" * 20_000, "\n" + "- " * 5_000, "\n" + "*a_" * 2_000):
        text = HOSTILE + nested
        seen = await page.evaluate(RENDER, [text, len(text) // 3])
        assert "&lt;script&gt;" in seen["html"]
        assert not {"script", "img", "iframe", "style", "form"} & set(seen["names"])
        assert set(seen["links"]) <= {"https://elsewhere.example/pixel.png"}
    assert seen["links"]
    assert await page.evaluate("window.owned") is None


LONG = """async ([text, step]) => {
  const { MarkdownStream } = await import("/assets/markdown.js")
  const root = document.createElement("div")
  document.body.append(root)
  let redrawn = 0
  const seen = new MutationObserver((changes) => {
    const removed = changes.flatMap(({ removedNodes }) => [...removedNodes])
    redrawn = removed.reduce((sum, node) => sum + node.textContent.length, redrawn)
  })
  seen.observe(root, { childList: true, subtree: true })
  const stream = new MarkdownStream(root)
  for (let end = step; end < text.length; end += step) stream.update(text.slice(0, end))
  stream.finish(text)
  await Promise.resolve()
  root.remove()
  return redrawn
}"""


async def test_a_long_answer_is_not_drawn_again_with_each_token(page: Page) -> None:
    """Counts characters that were taken off the page to be drawn anew: a clock would tell of the machine."""
    step = 20
    paragraphs = "A paragraph of some length, about nothing in particular, in many words.\n\n" * 300
    code = "```text\n" + "x = 1  # a line of code\n" * 900 + "```\n"
    for text in (paragraphs, code):
        assert len(text) > 20_000
        redrawn = await page.evaluate(LONG, [text, step])
        # Each step may draw the open block again, and no more; all of it would be 10,000,000 characters.
        assert redrawn < 10 * len(text)


@pytest.mark.parametrize(
    ("language", "text", "kind"),
    [
        ("python", "def f():\n    return '<b>'  # why\n", "code-kwd"),
        ("TypeScript", "const a: number = 1 // why", "code-kwd"),
        ("sql", "SELECT a FROM b WHERE c = 'd'", "code-kwd"),
        ("sh", 'if true; then echo "$HOME"; fi', "code-kwd"),
        ("json", '{"a": [1, true]}', "code-num"),
    ],
)
async def test_code_is_coloured_and_stays_what_it_is(page: Page, language: str, text: str, kind: str) -> None:
    seen = await page.evaluate(CODE, [text, language])
    assert seen["text"] == text
    assert kind in seen["kinds"]
