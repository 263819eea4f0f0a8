"""Results for people: one as a few lines, many as a table, what would run as a list. Must not know how they
came about."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.replay.comparison import Comparison
from deploy.replay.finding import Finding, Found
from deploy.replay.results import Result, Side, Summary

PIPED_WIDTH = 200  # columns, where there is no terminal whose width counts
WIDE = 140  # narrower, a table leaves out the new ids
_STYLES = {"same": "green", "continues": "yellow", "different": "red", "unknown": "dim"}


def console() -> Console:
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=PIPED_WIDTH)


def show(out: Console, results: Sequence[Result], summary: Summary) -> None:
    if summary.selected == 1 and results:
        _show_one(out, results[0])
    else:
        _show_all(out, results, summary)


def _show_one(out: Console, result: Result) -> None:
    onto = f" on {result.onto}" if result.onto else ""
    lines = [f"{result.origin} ({result.model}){f' → {result.response}{onto}' if result.response else ''}"]
    if result.comparison is None or result.replay is None:
        lines.append(f"  {result.state}: {result.problem or 'it was closed'}")
    else:
        lines.append(f"  answer       {_answer(result)}")
        lines.append(f"  end          {_end(result.replay)}{_before(result.original)}")
        before, after, found = result.original, result.replay, result.comparison
        for name, was, is_, speed in (
            ("first token", before.ttft_ms if before else None, after.ttft_ms, found.ttft),
            ("total", before.total_ms if before else None, after.total_ms, found.total),
        ):
            lines.append(f"  {name:<12} {_ms(was)} → {_ms(is_)}{f': {speed}' if speed else ''}")
        for name, side in (("original", before), ("replay", after)):
            if side is not None and side.context is not None:
                lines.append(f"  {name:<12} {side.context!r} {list(side.ids or ())}")
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)


def _show_all(out: Console, results: Sequence[Result], summary: Summary) -> None:
    wide = out.width >= WIDE
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("original", *["replay"] * wide, "answer", "end", "first token, ms", "total, ms"):
        table.add_column(name, no_wrap=name in ("original", "replay"))
    for result in results:
        ids = (result.origin, *[result.response or "-"] * wide)
        if result.comparison is None or result.replay is None:
            table.add_row(*ids, Text(result.state, style="red"))
            continue
        before, after = result.original, result.replay
        table.add_row(
            *ids,
            Text(_answer(result), style=_STYLES[result.comparison.answer]),
            _end(after),
            f"{_number(before.ttft_ms if before else None)} → {_number(after.ttft_ms)}",
            f"{_number(before.total_ms if before else None)} → {_number(after.total_ms)}",
        )
    out.print(table)
    for result in results:
        if result.problem is not None:
            out.print(f"{result.origin} {result.state}: {result.problem}", markup=False, soft_wrap=True)
    out.print(_sum(summary), markup=False, soft_wrap=True)


def show_finding(out: Console, finding: Finding, now_unix_ms: int) -> None:
    """What would run."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("response", "age", "model", "tenant", "class", "prompt", "max", "outcome"):
        table.add_column(name, no_wrap=name == "response")
    for found in finding.found:
        job = found.job
        table.add_row(
            found.response,
            age(now_unix_ms - found.stored_unix_ms),
            job.model_name,
            job.tenant,
            f"{job.priority}/{job.lane}",
            str(found.prompt_tokens),
            str(job.sampling.max_tokens),
            _outcome(found),
        )
    out.print(table, markup=False)
    out.print(f"{len(finding.found)} would run; nothing was.", markup=False)


def age(ms: float) -> str:
    seconds = max(0, int(ms / 1000))
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def moment(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds")


def _outcome(found: Found) -> str:
    if found.letter is not None:
        return f"dead ({found.letter.code})"
    return found.outcome or "not kept"


def _answer(result: Result) -> str:
    comparison = result.comparison
    assert comparison is not None
    where = _where(comparison)
    match comparison.answer:
        case "same":
            return f"same, {result.replay.tokens if result.replay else 0} tokens"
        case "continues":
            none = comparison.token == 0 or comparison.character == 0
            return "the original has no tokens" if none else f"same as far as the original went, {where}"
        case "different":
            sampled = " (sampled without a seed)" if result.sampled else ""
            return f"different from {where}{_ended_there(result)}{sampled}"
        case "unknown":
            return "original not kept"


def _ended_there(result: Result) -> str:
    assert result.comparison is not None
    for name, side in (("the original ended", result.original), ("the replay ended", result.replay)):
        if side is not None and side.tokens == result.comparison.token:
            return f", where {name}"
    return ""


def _where(comparison: Comparison) -> str:
    if comparison.character is not None:
        return f"character {comparison.character}"
    return f"token {comparison.token}"


def _end(side: Side) -> str:
    why = side.code or side.reason
    return f"{side.outcome} ({why})" if why and why != side.outcome else side.outcome


def _before(original: Side | None) -> str:
    return f", before {_end(original)}" if original is not None else ""


def _number(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:.0f}"


def _ms(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:.0f} ms"


def _sum(summary: Summary) -> str:
    counts = [
        (summary.same, "same"),
        (summary.continues, "same as far as the original went"),
        (summary.different, "different"),
        (summary.unknown, "original not kept"),
        (summary.ended_badly, "ended badly"),
        (summary.refused, "refused"),
        (summary.lost, "lost"),
        (summary.interrupted, "interrupted"),
    ]
    parts = [f"{count} {name}" for count, name in counts if count]
    line = f"{summary.ran} of {summary.selected} ran: {', '.join(parts) or 'nothing'}"
    for name, pair in (("first token", summary.ttft_ms), ("total", summary.total_ms)):
        if pair is not None:
            line += f"; median {name} {pair[0]:.0f} → {pair[1]:.0f} ms"
    return line
