"""A life on one screen of a terminal. Must not know where it was read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from broker.stages import PARTS
from deploy.trace.job_facts import JobFacts
from deploy.trace.life import Life
from deploy.trace.log_facts import Attempt, Seam, TokenPace
from deploy.trace.read import Words
from schemas.sampling import Sampling

BAR = 44  # columns
SHOWN_SEAMS = 14  # beyond, those in the middle are left out
SHOWN_ATTEMPTS = 8
_STYLES = {
    "edge": "blue",
    "queue": "yellow",
    "prefill": "magenta",
    "decode": "green",
    "reconnect": "red",
    "transport": "cyan",
}
_OUTCOMES = {"completed": "green", "incomplete": "yellow", "cancelled": "yellow", "failed": "red"}
_BLOCKS = " ▁▂▃▄▅▆▇█"


def show(life: Life, words: Words | None, console: Console) -> None:
    console.print(_title(life))
    for note in life.missing:
        console.print(Text(f"  {note}", style="yellow"))
    if life.job is not None:
        console.print(_job(life.job))
    if life.parts is not None:
        _show_parts(life, console)
    if life.attempts:
        console.print(_attempts(life.attempts))
    if life.pace.messages:
        console.print(_pace(life.pace))
    console.print(_seams(life.seams))
    if life.dead is not None:
        console.print(
            Text(f"Dead letter, DEAD {life.dead.seq}: {life.dead.code}: {life.dead.message}", style="red")
        )
        for line in life.dead.history:
            console.print(Text(f"  {line}", style="dim"))
    if words is not None:
        console.print(Text.assemble(("Asked  ", "bold"), words.asked))
        answer = "no live worker tells its tokenizer" if words.answer is None else words.answer
        console.print(Text.assemble(("Answer ", "bold"), answer))


def _title(life: Life) -> Text:
    text = Text.assemble((life.response, "bold"), "  ")
    outcome = life.outcome
    if outcome is None:
        return text.append(life.state, style="bold cyan" if life.state != "unknown" else "bold yellow")
    text.append(outcome.kind, style=f"bold {_OUTCOMES[outcome.kind]}")
    text.append(f"  {outcome.tokens} tokens")
    reason = outcome.code or outcome.reason
    if reason:
        text.append(f", {reason}")
    return text.append(f"  {outcome.message}", style="dim") if outcome.message else text


def _job(job: JobFacts) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    for name, value in _job_lines(job):
        table.add_row(name, Text(value))
    return table


def _job_lines(job: JobFacts) -> Iterator[tuple[str, str]]:
    last = job.copies[-1]
    yield "Job", f"JOBS {last.seq}, {last.bytes} bytes, {last.subject}"
    if job.unreadable:
        yield "Headers", "  ".join(f"{name}: {value}" for name, value in job.headers.items())
        return
    yield "For", f"tenant {job.tenant}, session {job.session}, gateway {job.gateway}, {job.api}"
    asked = f", asked for {job.requested_model or 'none'}: {job.routing_reason}" if job.routing_reason else ""
    yield "Model", f"{job.model_name} ({job.model}), by {job.routed_by or 'name'}{asked}"
    yield (
        "Queue",
        f"{job.priority}/{'held' if job.held else job.lane}, deadline {_clock(job.deadline_unix_ms)}",
    )
    yield "Prompt", ", ".join(_prompt(job))
    yield "Asked", "  ".join(_sampling(job))
    if job.replay_of:
        yield "Replay of", job.replay_of
    if job.traceparent:
        yield "Trace", job.traceparent


def _prompt(job: JobFacts) -> Iterator[str]:
    yield f"{job.prompt_tokens} tokens"
    yield f"{job.text_characters} characters in the request"
    if job.conversation or job.previous_response_id:
        yield f"a conversation (memory {job.memory})"
    if job.previous_response_id:
        yield f"behind {job.previous_response_id}"
    if job.cache != "none":
        yield f"cache {job.cache}"


def _sampling(job: JobFacts) -> Iterator[str]:
    if job.sampling is not None:
        usual = Sampling(max_tokens=job.sampling.max_tokens)
        for name in job.sampling.__struct_fields__:
            value = getattr(job.sampling, name)
            if name in ("max_tokens", "temperature") or value != getattr(usual, name):
                yield f"{name}={f'{len(value)} given' if isinstance(value, dict | tuple) else value}"
    for name, count in (("stop strings", job.stop_strings), ("tools", job.tools)):
        if count:
            yield f"{name}: {count}"
    if job.structured:
        yield "structured"


def _show_parts(life: Life, console: Console) -> None:
    parts, total_ms = life.parts, life.total_ms or 0.0
    assert parts is not None
    table = Table(box=SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column("part")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right", style="dim")
    table.add_column("bar", no_wrap=True)
    before = 0.0
    for part in PARTS:
        spent = parts.of(part)
        if spent <= 0 and part in ("reconnect", "transport"):
            continue
        table.add_row(part, _ms(spent), _share(spent, total_ms), _bar(before, spent, total_ms, _STYLES[part]))
        before += spent
    name = "in all" if life.state == "ended" else "so far"
    note = (
        "" if parts.engine_queue_ms is None else f"of the queue, {_ms(parts.engine_queue_ms)} in the engine"
    )
    table.add_row(Text(name, style="bold"), Text(_ms(total_ms), style="bold"), "", Text(note, style="dim"))
    console.print(table)


def _bar(before: float, spent: float, total: float, style: str) -> Text:
    if total <= 0:
        return Text("")
    start = min(BAR - 1, round(before / total * BAR))
    width = min(BAR - start, max(1, round(spent / total * BAR)) if spent > 0 else 0)
    return Text(" " * start).append("█" * width, style=style)


def _attempts(attempts: Sequence[Attempt]) -> Table:
    """80 columns wide: dates and fences stand at the seams. TTFT: from its start to its first new token."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("")
    table.add_column("worker", overflow="fold")
    table.add_column("started", no_wrap=True)
    for name in ("delivery", "TTFT", "tokens", "silence"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ended", no_wrap=True)
    for attempt in attempts[:SHOWN_ATTEMPTS]:
        table.add_row(
            str(attempt.number),
            attempt.worker,
            _clock(attempt.started_unix_ms).partition(" ")[2],
            str(attempt.delivery),
            _ms(attempt.first_token_ms),
            str(attempt.tokens),
            _ms(attempt.silence_ms),
            Text(attempt.ended or "writes", style="red" if attempt.ended in ("replaced", "failed") else ""),
        )
    if len(attempts) > SHOWN_ATTEMPTS:
        table.add_row("…", f"{len(attempts) - SHOWN_ATTEMPTS} more")
    return table


def _pace(pace: TokenPace) -> Text:
    text = Text.assemble(("Tokens ", "bold"))
    most = max(pace.columns, default=0)
    for count in pace.columns:
        level = 0 if count == 0 else 1 + round((count / most) * (len(_BLOCKS) - 2))
        text.append(_BLOCKS[level], style="green")
    text.append(f"  {pace.tokens} in {pace.messages} messages")
    if pace.per_s is not None:
        text.append(f", {pace.per_s:.1f} a second")
    if pace.longest_gap_ms is not None:
        text.append(f", longest gap {_ms(pace.longest_gap_ms)} before token {pace.longest_gap_token}")
    return text


def _seams(seams: Sequence[Seam]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="dim")
    table.add_column(style="dim")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    since = seams[0].at_unix_ms if seams else 0.0
    left_out = len(seams) - SHOWN_SEAMS
    for place, seam in enumerate(seams):
        if left_out > 0 and SHOWN_SEAMS // 2 <= place < SHOWN_SEAMS // 2 + left_out:
            if place == SHOWN_SEAMS // 2:
                table.add_row("", "", f"… {left_out} more", "")
            continue
        offset = _clock(seam.at_unix_ms) if place == 0 else f"+{_ms(seam.at_unix_ms - since)}"
        table.add_row(offset, f"{seam.stream} {seam.seq}", seam.what, Text(seam.text))
    return table


def _clock(unix_ms: float | None) -> str:
    if unix_ms is None:
        return "unknown"
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"


def _share(spent: float, total: float) -> str:
    return "" if total <= 0 else f"{100 * spent / total:.0f} %"


def _ms(value: float | None) -> str:
    if value is None:
        return ""
    if abs(value) >= 10_000:
        return f"{value / 1000:.2f} s"
    return f"{value:.1f} ms" if abs(value) < 100 else f"{value:.0f} ms"
