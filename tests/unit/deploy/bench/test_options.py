"""The command line's words."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.bench.options import Options
from deploy.bench.plan import ClosedLoop, OpenLoop
from deploy.bench.run import Run
from deploy.commands import headrace


def planned(*words: str, monkeypatch: pytest.MonkeyPatch, **environ: str) -> Run:
    """What would have been run."""
    found: list[Run] = []

    def run(what: Run, command: object) -> bool:
        found.append(what)
        return True

    monkeypatch.setattr("deploy.bench.run.run", run)
    monkeypatch.delenv("HEADRACE_API_KEY", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(headrace, ["bench", "--model", "m", *words])
    assert result.exit_code == 0, result.output
    return found[0]


def test_without_options_eight_clients_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned(monkeypatch=monkeypatch)
    assert run.plan.target.urls == ("http://127.0.0.1:8080",)
    assert run.plan.target.api == "responses-ws"
    assert list(run.loads) == [run.plan.load] == [ClosedLoop(8)]
    assert (run.plan.duration_s, run.plan.conversations, run.search, run.api_key) == (20, 0, False, "")


def test_ramps(monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned("--rate", "0.5,2", "--arrivals", "constant", monkeypatch=monkeypatch)
    assert list(run.loads) == [OpenLoop(0.5, "constant"), OpenLoop(2, "constant")]
    run = planned("http://a", "http://b", "--concurrency", "auto", monkeypatch=monkeypatch)
    assert (list(run.loads), run.search) == ([ClosedLoop(1)], True)
    assert run.plan.target.urls == ("http://a", "http://b")


def test_the_key_comes_from_the_environment_or_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert planned(monkeypatch=monkeypatch, HEADRACE_API_KEY="one").api_key == "one"
    (tmp_path / "key").write_text("two\n")
    run = planned("--key-file", str(tmp_path / "key"), monkeypatch=monkeypatch, HEADRACE_API_KEY="one")
    assert run.api_key == "two"
    assert "two" not in repr(run.plan)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rate", "1", "--concurrency", "1"], "give one of them"),
        (["--rate", "0"], "--rate: expected a number above 0"),
        (["--rate", "nan"], "--rate: expected a number above 0"),
        (["--concurrency", "1,two"], "--concurrency: expected a number above 0"),
        (["--prompt-tokens", "many"], "--prompt-tokens: 'many' is no length"),
        (["--think-time", "-1"], "--think-time: '-1' is no length"),
        (["--extra", "{"], "--extra: "),
        (["--extra", "[1]"], "--extra: expected a JSON object"),
        (["--key-file", "/nowhere"], "--key-file: /nowhere: No such file"),
        (["gopher://x"], "gopher://x is not an address"),
        (["--prompts", "/nowhere"], "/nowhere: No such file"),
        (["--html", "/no/such/folder/r.html"], "/no/such/folder/r.html: No such file"),
    ],
)
def test_a_refusal_is_one_line_that_names_its_option(words: list[str], told: str) -> None:
    result = CliRunner().invoke(headrace, ["bench", "--model", "m", *words])
    assert result.exit_code == 2
    assert result.output.startswith("headrace: ")
    assert len(result.output.splitlines()) == 1
    assert told in result.output


def test_a_server_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(headrace, ["bench", "http://127.0.0.1:9"])
    assert result.exit_code == 2
    assert result.output == "headrace: http://127.0.0.1:9/v1/models: [Errno 111] Connection refused\n"


def test_every_option_is_taken() -> None:
    command = headrace.get_command(None, "bench")  # type: ignore[arg-type]
    assert command is not None
    assert {parameter.name for parameter in command.params} == set(Options.__dataclass_fields__)
