"""A report on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.bench.plan import OpenLoop
from deploy.bench.result import Report, Step

_FIGURES = (
    ("TTFT", "ttft_ms"),
    ("gap", "gap_ms"),
    ("longest gap", "stall_ms"),
    ("TPOT", "tpot_ms"),
    ("E2E", "e2e_ms"),
)


def show(report: Report, console: Console) -> None:
    console.print(Text(report.title, style="bold"))
    if len(report.steps) == 1:
        _show_one(report.steps[0], console)
    else:
        _show_ramp(report, console)
    for line in remarks(report):
        console.print(Text(line, style="yellow"))


def remarks(report: Report) -> Iterator[str]:
    """What a reader must know before believing the figures."""
    for step in report.steps:
        where = "" if len(report.steps) == 1 else f"at {step.load}: "
        responses = step.responses
        ended = ", ".join(f"{count} {reason}" for reason, count in step.reasons.items())
        if lacking := responses.due - responses.completed:
            yield f"{where}{lacking} of {responses.due} responses were not completed: {_kinds(step)}"
            if ended:
                yield f"{where}reasons: {ended}"
        if responses.unfinished:
            yield f"{where}percentiles lack the unfinished ones, and are too low"
        if responses.completed and step.tokens.output != step.tokens.asked:
            yield f"{where}{step.tokens.asked} tokens were asked for, {step.tokens.output} came"
        if responses.completed and step.tokens.counted_by != "usage":
            yield f"{where}the server told no usage: each delta counts as one token"
        for complaint in step.client.complaints:
            yield f"{where}{complaint}"


def _kinds(step: Step) -> str:
    responses = step.responses
    kinds = ("refused", "failed", "broken", "unreachable", "timed_out", "unfinished", "dropped")
    counts = ((kind.replace("_", " "), getattr(responses, kind)) for kind in kinds)
    return ", ".join(f"{count} {kind}" for kind, count in counts if count)


def _show_one(step: Step, console: Console) -> None:
    table = Table("ms", box=SIMPLE_HEAD)
    for name in ("mean", "p50", "p90", "p95", "p99", "max", "count"):
        table.add_column(name, justify="right")
    for name, field in _FIGURES:
        spread = getattr(step, field)
        values = (spread.mean, spread.p50, spread.p90, spread.p95, spread.p99, spread.max)
        shown = [ms(value) if spread.count else "-" for value in values]
        table.add_row(name, *shown, str(spread.count))
    console.print(table)
    throughput, tokens, client = step.throughput, step.tokens, step.client
    offered = f" of {throughput.due_per_s:.2f} due" if isinstance(step.load, OpenLoop) else ""
    console.print(
        f"{step.load}, {step.span_s:.1f} s: {step.responses.completed} of {step.responses.due} completed; "
        f"{throughput.completed_per_s:.2f}{offered} a second, {throughput.tokens_per_s:.0f} tokens a second; "
        f"{tokens.per_arrival:.2f} tokens an arrival"
    )
    prompts = f"prompts {tokens.prompt} tokens, {tokens.cached} of them cached; " if tokens.prompt else ""
    shares = ", ".join(f"{share:.0%}" for share in client.cpu)
    console.print(
        f"{prompts}load generator: CPU {shares} of a core, {client.cpu_us_per_delta:.0f} us a delta; "
        f"late p99 {ms(max(client.late_ms.p99, client.lag_ms.p99))} ms; "
        f"{client.connections} connections; machine {client.machine_busy:.0%} busy"
    )


def _show_ramp(report: Report, console: Console) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("load", no_wrap=True)
    for name in ("done", "tokens/s", "TTFT p50", "p99", "gap p50", "p99", "E2E p50", "p99", "client"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for index, step in enumerate(report.steps):
        at_knee = report.knee is not None and report.knee.step == index
        figures = (step.ttft_ms, step.gap_ms, step.e2e_ms)
        table.add_row(
            str(step.load),
            f"{step.responses.completed}/{step.responses.due}",
            f"{step.throughput.tokens_per_s:.0f}",
            *(ms(value) for spread in figures for value in (spread.p50, spread.p99)),
            f"{max(step.client.cpu, default=0):.0%}{'' if step.client.trusted else ' !'}",
            "knee" if at_knee else "",
            style="bold" if at_knee else "",
        )
    console.print(table)
    if report.knee is not None:
        console.print(report.knee.why)


def ms(value: float) -> str:
    """Three digits that matter."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
