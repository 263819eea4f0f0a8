"""The queues as rows, with what only two looks can tell: how fast they are pulled, and how long a job that
came now would wait, by the arithmetic that gateways use. Pure: answers and the time come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from broker import subjects
from broker.queues import QueueState
from broker.topology import QUEUES
from deploy.top.asked import ConsumerInfo
from deploy.top.job_book import JobBook
from deploy.top.snapshot import QueueRow
from gateway.backlog import Backlog
from schemas.ids import ModelToken
from schemas.presence import WorkerCard


@dataclass(frozen=True, slots=True)
class Moment:
    """``clock_s``: of a monotonic clock."""

    clock_s: float
    unix_ms: int


class QueueRows:
    def __init__(self) -> None:
        self._backlogs: dict[ModelToken, Backlog] = {}
        self._pulled: dict[str, int] = {}  # deliveries so far, by queue
        self._looked_s = 0.0

    def rows(
        self, queues: Mapping[str, ConsumerInfo], cards: Sequence[WorkerCard], book: JobBook, now: Moment
    ) -> tuple[QueueRow, ...]:
        """Of every model that has queues, by name."""
        names = {card.model: card.model_name for card in cards}
        models = {subjects.parse_job(info.config.filter_subject).model for info in queues.values()}
        rows: list[QueueRow] = []
        for model in sorted(models, key=lambda model: names.get(model, model)):
            slots = sum(card.slots for card in cards if card.model == model and card.state == "ready")
            rows += self._of_model(model, names.get(model, model), slots, queues, book, now)
        self._backlogs = {model: backlog for model, backlog in self._backlogs.items() if model in models}
        self._pulled = {name: info.delivered.consumer_seq for name, info in queues.items()}
        self._looked_s = now.clock_s
        return tuple(rows)

    def _of_model(
        self,
        model: ModelToken,
        name: str,
        slots: int,
        queues: Mapping[str, ConsumerInfo],
        book: JobBook,
        now: Moment,
    ) -> list[QueueRow]:
        infos = [queues.get(subjects.job_consumer(model, *queue)) for queue in QUEUES]
        backlog = self._backlogs.setdefault(model, Backlog())
        backlog.looked([_state(info) for info in infos], backlog.mark(), now.clock_s)
        rows = []
        for (priority, lane), info in zip(QUEUES, infos, strict=True):
            if info is None:
                continue
            oldest = book.oldest_waiting(info.name) if info.num_pending else None
            eta_ms = None
            if info.num_pending:
                eta_ms = backlog.wait_of_next(priority, lane, slots, now.clock_s).eta_ms
            rows.append(
                QueueRow(
                    model=name,
                    priority=priority,
                    lane=lane,
                    waiting=info.num_pending,
                    running=info.num_ack_pending,
                    oldest_s=max(0.0, (now.unix_ms - oldest.stored_unix_ms) / 1000) if oldest else None,
                    pulled_per_s=self._rate(info, now.clock_s),
                    wait_s=eta_ms / 1000 if eta_ms is not None else None,
                )
            )
        return rows

    def _rate(self, info: ConsumerInfo, now_s: float) -> float:
        before = self._pulled.get(info.name)
        if before is None or now_s <= self._looked_s:
            return 0.0
        return max(0, info.delivered.consumer_seq - before) / (now_s - self._looked_s)


def _state(info: ConsumerInfo | None) -> QueueState:
    if info is None:
        return QueueState()
    return QueueState(
        info.num_pending, info.num_ack_pending, info.delivered.consumer_seq, info.delivered.stream_seq
    )
