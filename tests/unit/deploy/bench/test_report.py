"""What is shown of a result: the table, JSON, and a page that needs nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser
from io import StringIO

import jsonschema
import msgspec
import pytest
from rich.console import Console

from deploy.bench import charts, table
from deploy.bench.charts import Chart, Dot, Line
from deploy.bench.report import as_json, report_of
from deploy.bench.report_html import as_html
from deploy.bench.result import Report, Step
from tests.unit.deploy.bench.results import PLAN, ClosedLoop, served, step

RAMP = [served(ClosedLoop(count), slots=4) for count in (1, 2, 4, 8)]
ONE = [step(ClosedLoop(3), 50, 900, completed=90)]


def report(steps: list[Step]) -> Report:
    began = datetime(2026, 11, 23, tzinfo=UTC)
    return report_of(PLAN, steps, began=began, title="a <title>", command=["headrace", "bench", "a b"])


@pytest.mark.parametrize("steps", [RAMP, ONE])
def test_json_is_what_its_schema_says_and_comes_back(steps: list[Step]) -> None:
    written = as_json(report(steps))
    jsonschema.validate(msgspec.json.decode(written), msgspec.json.schema(Report))
    assert msgspec.json.decode(written, type=Report) == report(steps)
    assert b"2026-11-23T00:00:00+00:00" in written


def shown(steps: list[Step]) -> str:
    out = StringIO()
    table.show(report(steps), Console(file=out, width=120))
    return out.getvalue()


def test_a_table_of_one_load() -> None:
    text = shown(ONE)
    assert "3 at once, 10.0 s: 90 of 100 completed" in text
    assert "10 of 100 responses were not completed: 10 refused" in text
    assert "reasons: 10 429 <queue_full>" in text


def test_a_table_of_a_ramp_names_the_knee() -> None:
    text = shown(RAMP)
    (line,) = (line for line in text.splitlines() if line.rstrip().endswith(" knee"))
    assert line.strip().startswith("4 at once")
    assert "The knee is at 4 at once: 8 at once brings +0% throughput" in text


def test_loads_stand_in_their_order_however_they_were_measured() -> None:
    mixed = report([RAMP[0], RAMP[3], RAMP[1], RAMP[2]])
    assert mixed == report(RAMP)
    assert mixed.knee is not None
    assert mixed.knee.step == 2


class Page(HTMLParser):
    """Collects what a page would fetch or run, and checks that its tags are closed."""

    VOID = ("meta", "path", "circle", "i", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize(("steps", "drawn"), [(RAMP, 3 + 4 * 4), (ONE, 4)])
def test_the_page_fetches_and_runs_nothing(steps: list[Step], drawn: int) -> None:
    written = as_html(report(steps))
    page = Page()
    page.feed(written)
    page.close()
    assert page.open == []
    assert page.fetched == []
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert "url(" not in written
    assert "@import" not in written
    assert page.tags.count("svg") == drawn  # the gaps over time have nothing to show
    assert "a &lt;title&gt;" in written
    assert "<title>a &lt;title&gt; · headrace bench</title>" in written
    assert "headrace bench &#39;a b&#39;" in written


def test_the_page_shows_the_knee_and_what_went_wrong() -> None:
    assert "The knee is at 4 at once" in as_html(report(RAMP))
    assert as_html(report(RAMP)).count('class="ring"') == 3
    assert "429 &lt;queue_full&gt;" in as_html(report(ONE))


def test_ticks_are_round_and_span_the_values() -> None:
    assert charts.ticks(0, 97) == [0, 20, 40, 60, 80, 100]
    assert charts.ticks(3, 3)[0] <= 3
    assert charts.ticks(-2, 21)[0] == -5
    assert charts.ticks(0, 0.004)[-1] == pytest.approx(0.004)


def test_a_long_line_keeps_its_peaks_and_its_gaps() -> None:
    dots: list[Dot | None] = [Dot(x, 1.0, "") for x in range(5000)]
    dots[1234] = Dot(1234, 99.0, "the peak")
    dots[3000:3100] = [None] * 100
    thin = charts.thinned(Line("p99", "c", dots))
    assert len(thin.dots) <= 300
    assert any(dot and dot.told == "the peak" for dot in thin.dots)
    assert None in thin.dots


def test_a_chart_of_nothing_says_so() -> None:
    assert "nothing to show" in charts.svg(Chart("Title", "x", "y", [Line("p50", "a", [None])]))
