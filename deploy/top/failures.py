"""What went wrong lately, by response: from terminal messages and dead letters. Pure. A client's own cancel
is no failure."""

from __future__ import annotations

from deploy.top.job_book import SeenJob
from deploy.top.snapshot import FailureRow
from schemas.job import DeadLetter
from schemas.reply import Closed, Failed

MAX_FAILURES = 50


class Failures:
    def __init__(self) -> None:
        self._rows: dict[str, FailureRow] = {}

    def rows(self) -> tuple[FailureRow, ...]:
        """The newest first."""
        return tuple(sorted(self._rows.values(), key=lambda row: -row.unix_ms))

    def ended(self, response: str, job: SeenJob | None, message: Failed | Closed, unix_ms: int) -> None:
        """``job`` None: it is not known whose."""
        if isinstance(message, Closed) and message.reason not in ("deadline", "refused"):
            return
        if response in self._rows:
            return
        self._keep(
            FailureRow(
                unix_ms=unix_ms,
                code=message.code or "deadline_exceeded",
                dead=False,
                model=job.model if job else "",
                tenant=job.tenant if job else "",
                response=response,
                message=message.message,
            )
        )

    def buried(self, letter: DeadLetter, model: str, tenant: str) -> None:
        self._keep(
            FailureRow(
                unix_ms=letter.died_unix_ms,
                code=letter.code,
                dead=True,
                model=model,
                tenant=tenant,
                response=letter.response,
                message=letter.message,
            )
        )

    def _keep(self, row: FailureRow) -> None:
        self._rows[row.response] = row
        if len(self._rows) > MAX_FAILURES:
            oldest = min(self._rows.values(), key=lambda row: row.unix_ms)
            del self._rows[oldest.response]
