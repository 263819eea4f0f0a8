from __future__ import annotations

from deploy.top.job_book import MAX_JOBS, JobBook, Reach, SeenJob
from deploy.top.snapshot import TenantRow

FAIR, OVER = "river-interactive-fair", "river-interactive-over"


def job(seq: int, tenant: str = "acme", queue: str = FAIR) -> SeenJob:
    return SeenJob(
        seq=seq,
        queue=queue,
        response=f"resp_{seq}",
        tenant=tenant,
        model="river",
        over=queue == OVER,
        reply=f"hr.reply.gw.resp_{seq}.s",
        stored_unix_ms=seq * 1000,
    )


def row(tenant: str, waiting: int = 0, over: int = 0, running: int = 0) -> TenantRow:
    return TenantRow(tenant=tenant, waiting=waiting, over=over, running=running)


def test_what_was_pulled_runs_and_the_rest_waits() -> None:
    book = JobBook()
    book.reached({FAIR: Reach(floor=1, delivered=3, held=2), OVER: Reach(floor=0, delivered=0)})
    book.stored(
        [job(1), job(2), job(3, "globex"), job(4, "globex"), job(5, "flood", OVER), job(6, "flood", OVER)]
    )
    assert book.tenants() == (row("flood", 2, 2), row("globex", 1, 0, 1), row("acme", 0, 0, 1))
    assert book.oldest_waiting(FAIR) == job(4, "globex")
    assert book.oldest_waiting(OVER) == job(5, "flood", OVER)


def test_a_queue_without_a_consumer_waits_for_its_first_worker() -> None:
    book = JobBook()
    book.reached({})
    book.stored([job(1)])
    assert book.tenants() == (row("acme", waiting=1),)
    assert book.oldest_waiting(FAIR) == job(1)


def test_jobs_below_the_floor_are_looked_up_once() -> None:
    book = JobBook()
    book.reached({FAIR: Reach(floor=1, delivered=2, held=1)})
    book.stored([job(1), job(2)])
    assert book.to_look_up(10) == [job(1)]
    assert book.to_look_up(10) == []
    book.reached({FAIR: Reach(floor=2, delivered=2)})
    assert book.tenants() == ()
    assert book.to_look_up(10) == [job(2)]


def test_where_more_were_pulled_than_are_held_all_of_them_are_looked_up_in_turns() -> None:
    book = JobBook()
    book.reached({FAIR: Reach(floor=0, delivered=4, held=3)})
    book.stored([job(seq) for seq in range(1, 6)])
    first, second = book.to_look_up(2), book.to_look_up(2)
    assert {each.seq for each in first + second} == {1, 2, 3, 4}
    book.ended(job(3))
    assert book.to_look_up(2) == []
    assert book.tenants() == (row("acme", waiting=1, running=3),)


def test_too_many_jobs_are_said_to_be_too_many() -> None:
    book = JobBook()
    book.reached({FAIR: Reach()})
    book.stored([job(seq) for seq in range(1, MAX_JOBS + 2)])
    assert not book.complete
    assert book.tenants() == (row("acme", waiting=MAX_JOBS),)
    book.reached({FAIR: Reach(floor=MAX_JOBS + 1, delivered=MAX_JOBS + 1)})
    assert book.complete
