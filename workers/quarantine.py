"""Rule 8 for neighbours: a job that kills its engine takes along all that run beside it. Who has failed so
often that once more is the end runs beside no other of the kind, so that what survives is told apart from
what kills. Must not know how a run goes on."""

from __future__ import annotations

from broker.log_reader import POISON_BARREN_FENCES, LogReader


def is_suspect(history: LogReader) -> bool:
    """One more attempt without a token, and it is poison."""
    return history.barren_fences >= POISON_BARREN_FENCES - 1


class Quarantine:
    """Room for one suspect of this worker."""

    def __init__(self) -> None:
        self._inmate: object | None = None

    def admit(self, suspect: object) -> bool:
        """False: there is another one; come back later."""
        if self._inmate is not None and self._inmate is not suspect:
            return False
        self._inmate = suspect
        return True

    def release(self, run: object) -> None:
        """It has brought a token, or is over; nothing happens where it was not the inmate."""
        if self._inmate is run:
            self._inmate = None
