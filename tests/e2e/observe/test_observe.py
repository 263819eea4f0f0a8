"""What an operator's Prometheus and Grafana see of a live system: every query of every panel returns data
under load, and every alert fires where its fault is provoked."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker import subjects
from deploy.observe.grafana import FOLDER
from tests.e2e.observe.prometheus import alert_rules, programs
from tests.e2e.observe.world import MODELS, POISON, SLOTS, World
from tests.e2e.stack import wait_until

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    running = World(tmp_path_factory.mktemp("observed"))
    yield running
    running.end()


def queries() -> dict[str, str]:
    """Of all panels as Grafana would send them, with where they stand."""
    found = {}
    for path in sorted(FOLDER.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                expression = target["expr"].replace("$model", ".*")
                for window in ("$__rate_interval", "$__range"):
                    expression = expression.replace(window, "2m")
                found[f"{path.stem}: {panel['title']} {target['refId']}"] = expression
    return found


def test_rules_are_timed_as_they_say() -> None:
    """promtool: each alert waits its time, and no longer."""
    tests = Path(__file__).parent / "alerts_test.yml"
    checked = subprocess.run(
        [programs() / "promtool", "test", "rules", tests], capture_output=True, text=True, cwd=tests.parent
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    named = {line.split(":")[1].strip() for line in tests.read_text().splitlines() if "alertname:" in line}
    assert named == set(alert_rules())


def test_every_query_of_every_panel_returns_data(world: World) -> None:
    """Alerts fire here, too: those of the worker that a poisoned prompt kills three times."""
    world.busy(2, lambda: world.stream("acme"))
    world.busy(1, lambda: world.stream("globex", model=MODELS[1]))
    world.busy(1, lambda: world.stream("globex", leave_after=3, max_output_tokens=300))
    world.busy(1, lambda: world.ask("acme", input="the same again", temperature=0))
    world.busy(1, lambda: world.ask("limited") and time.sleep(0.3))
    long = [world.busy(1, lambda: world.stream("acme", max_output_tokens=400)) for _ in range(6)]
    world.resume("acme", world.stream("acme"))
    world.stack.kill_worker_process()
    poisoned = world.ask("globex", model=MODELS[1], input=f"say {POISON} now", timeout_s=90)
    assert poisoned["error"]["code"] == "poison", poisoned
    world.until_fired("HeadraceWorkerFlapping", "HeadraceDeadLetters", "HeadraceResponsesFail")
    for stop in long:
        stop.set()
    empty = queries()

    def all_answered() -> bool:
        for name, expression in list(empty.items()):
            if world.prometheus.query(expression):
                del empty[name]
        return not empty

    try:
        wait_until(all_answered, timeout_s=40, what="data in every panel")
    except AssertionError:
        raise AssertionError("no data:\n" + "\n".join(f"{n}: {q}" for n, q in empty.items())) from None


def flood(world: World) -> None:
    """One tenant sends more than there are slots, for longer than requests may take."""
    stop = world.busy(8 * SLOTS, lambda: world.ask("flood", max_output_tokens=150) and time.sleep(0.1))
    world.until_fired(
        "HeadraceCapacityRefusals",
        "HeadraceKvCacheFull",
        "HeadraceQueueOld",
        "HeadraceSlowFirstToken",
        "HeadraceTenantFlood",
    )
    stop.set()


def tries_keys(world: World) -> None:
    stop = world.busy(2, lambda: world.ask("hr-nobody-has-this") and time.sleep(0.1))
    stop2 = world.busy(2, lambda: world.ask("limited") and time.sleep(0.1))
    world.until_fired("HeadraceLoginsFail", "HeadraceTenantLimited")
    stop.set()
    stop2.set()


def leaves(world: World) -> None:
    """Clients ask for long answers and go."""
    stop = world.busy(6, lambda: world.stream("flood", leave_after=3, max_output_tokens=300))
    world.until_fired("HeadraceTokensWasted")
    stop.set()


def loses_engines(world: World) -> None:
    with world.streams_run():
        for _ in range(2):
            world.until(f'headrace_worker_requests_running{{model="{MODELS[0]}"}} >= 6')
            world.stack.kill_worker_process()
        world.until_fired("HeadraceTakeovers")


def crawls(world: World) -> None:
    """A model whose tokens take 1.5 s, whose process stops again and again, and then is gone."""
    world.start_crawl()
    stop = world.busy(2, lambda: world.stream("acme", model="crawl", max_output_tokens=4))
    world.until_fired("HeadraceStreamsStall")
    stop.set()
    world.crawl_hiccups(8)
    world.until_fired("HeadraceEventLoopLag")
    world.stop_crawl()
    world.until_fired("HeadraceWorkerDown", "HeadraceModelWithoutWorkers")


def reads_slowly(world: World) -> None:
    response = world.stream("acme", max_output_tokens=400)
    for _ in range(2):
        world.unread("acme", response)
    world.until_fired("HeadraceSlowReaders")


def loses_redis(world: World) -> None:
    with world.paused(world.stack.part("redis").pid):
        world.until_fired("HeadraceRedisDegraded")


def meets_garbage(world: World) -> None:
    world.nats_publish(f"$KV.{subjects.WORKERS_KV}.wk-garbage", b"\xc1 this is no card")
    world.until_fired("HeadraceUndecodable")


def fills_a_stream(world: World) -> None:
    """An operator lowers its limit to what it holds already."""
    world.shrink_stream(subjects.REPLIES)
    world.until_fired("HeadraceStreamFull", "HeadraceReplyLogsCut")


def loses_a_gateway(world: World) -> None:
    world.stack.kill_gateway()
    world.until_fired("HeadraceGatewayDown")
    wait_until(world.answers, timeout_s=30, what="a gateway that answers")


def broker_hangs(world: World) -> None:
    with world.streams_run():
        world.until(f'headrace_worker_requests_running{{model="{MODELS[0]}"}} >= 6')
        with world.paused(world.stack.part("nats").pid):
            world.until_fired("HeadraceBrokerDisconnected", "HeadraceGatewayNotReady", "HeadraceSurveyOld")
        world.until_fired("HeadraceTokensUnconfirmed")


def broker_stutters(world: World) -> None:
    """It takes a second for what takes a millisecond; a longer one would be a loss."""
    for _ in range(30):
        with world.paused(world.stack.part("nats").pid):
            time.sleep(1)
        time.sleep(0.3)
        if "HeadraceBrokerSlow" in world.prometheus.fired():
            break
    world.until_fired("HeadraceBrokerSlow")


def broker_dies(world: World) -> None:
    """Again and again, and is started anew."""
    for _ in range(5):
        wait_until(world.answers, timeout_s=30, what="an answer")
        world.stack.kill("nats")
    world.until_fired("HeadraceBrokerReconnects")


FAULTS: tuple[Callable[[World], None], ...] = (
    flood,
    tries_keys,
    leaves,
    loses_engines,
    reads_slowly,
    crawls,
    meets_garbage,
    loses_redis,
    fills_a_stream,
    loses_a_gateway,
    broker_stutters,
    broker_hangs,
    broker_dies,
)


@pytest.mark.parametrize("provoke", FAULTS, ids=lambda fault: fault.__name__)
def test_alerts_fire(world: World, provoke: Callable[[World], None]) -> None:
    provoke(world)


def test_every_alert_has_fired(world: World) -> None:
    """Of all the product's."""
    assert world.prometheus.fired("10m") == set(alert_rules())
