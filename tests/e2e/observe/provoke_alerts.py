"""Every alert fires where its fault is provoked, on a live system under a real Prometheus:
``pytest tests/e2e/observe/provoke_alerts.py``, four minutes on a machine that does nothing else. By hand,
because what it waits for is a matter of seconds: a scrape that a busy machine misses is an alert that comes
late.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from broker import subjects
from tests.e2e.observe.prometheus import alert_rules
from tests.e2e.observe.world import MODELS, POISON, SLOTS, World
from tests.e2e.stack import wait_until

pytestmark = pytest.mark.timeout(240)


def kills_engines(world: World) -> None:
    """A prompt does, three times."""
    stop = world.busy(1, lambda: world.stream("globex", model=MODELS[1]))
    world.until("count(headrace_worker_restarts_total == 0) == 2")  # seen before: a rise is from somewhere
    poisoned = world.ask("globex", model=MODELS[1], input=f"say {POISON} now", timeout_s=90)
    assert poisoned["error"]["code"] == "poison", poisoned
    world.until_fired("HeadraceWorkerFlapping", "HeadraceDeadLetters", "HeadraceResponsesFail")
    stop.set()


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


def has_an_old_certificate(world: World) -> None:
    with world.gateway_over_tls():
        world.until_fired("HeadraceCertificateEnds")


def loses_redis(world: World) -> None:
    with world.paused(world.stack.part("redis").pid):
        world.until_fired("HeadraceRedisDegraded")


def meets_garbage(world: World) -> None:
    world.nats_publish(f"$KV.{subjects.WORKERS_KV}.wk-garbage", b"\xc1 this is no card")
    world.until_fired("HeadraceUndecodable")


def fills_a_stream(world: World) -> None:
    """An operator empties it and lowers its limit, in the end to what it holds."""
    world.empty_stream(subjects.REPLIES)
    for _ in range(3):
        world.stream("acme", max_output_tokens=400)
    world.shrink_stream(subjects.REPLIES, fill=0.7)
    world.until_fired("HeadraceStorageRunsOut")
    assert world.answers(), "it is told before anybody is refused"
    world.shrink_stream(subjects.REPLIES, fill=0.99)
    world.until_fired("HeadraceStreamFull")
    wait_until(lambda: not world.answers(), timeout_s=30, what="a refusal")


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
    kills_engines,
    flood,
    tries_keys,
    leaves,
    loses_engines,
    reads_slowly,
    crawls,
    meets_garbage,
    has_an_old_certificate,
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
