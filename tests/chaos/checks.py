"""The oracle: holds what clients saw against what JetStream holds and what the engine says. Pure.

A response may complete, or end early because its own client asked for that or left. Nothing else is right:
no token lost, repeated or changed, exactly one end, and the same answer for whoever asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from schemas.ids import ResponseId
from schemas.reply import Closed, Failed, Finished
from tests.chaos.calls import TERMINALS, TEXT_DONE, Call
from tests.chaos.faults import Injected
from tests.chaos.truth import Attempt, Truth
from tests.chaos.world import Sizes

ONCE = ("response.created", "response.output_item.added", "response.content_part.added", TEXT_DONE)
LEASE_SLACK_MS = 4000.0
RECONNECT_MS = (
    6000.0  # tries to connect that began while the link was down take their whole timeouts, 2 s each
)
OUT_OF_REACH = "cancelled, its client out of reach for the grace time"


@dataclass(frozen=True)
class Violation:
    """``rule``: which promise was broken. ``response``: empty where it is not about one."""

    rule: str
    detail: str
    response: str = ""
    call: Call | None = field(default=None, repr=False)


@dataclass
class Oracle:
    """``decode``: ids to text, by the tokenizer itself. ``faults``: what happened, with times. ``gateways``:
    their names by their ports."""

    decode: Callable[[Sequence[int]], str]
    sizes: Sizes
    faults: Sequence[Injected]
    gateways: Mapping[int, str]
    outcomes: Counter[str] = field(default_factory=Counter)

    def judge(self, calls: Sequence[Call], truths: Mapping[ResponseId, Truth]) -> list[Violation]:
        found: list[Violation] = []
        accepted: dict[str, list[Call]] = {}
        for call in calls:
            if call.id:
                accepted.setdefault(call.id, []).append(call)
            else:
                self.outcomes["refused"] += 1
            if call.failure:
                found.append(Violation("the client failed", call.failure, call.id, call))
        for response in accepted.keys() - truths.keys():
            found.append(Violation("accepted and not stored", response, response, accepted[response][0]))
        for response, truth in truths.items():
            callers = accepted.get(response, [])
            problems = list(self._log(truth, callers))
            found += [
                Violation(rule, detail, response, next(iter(callers), None)) for rule, detail in problems
            ]
            for call in callers:
                found += [
                    Violation(rule, detail, response, call) for rule, detail in self._client(call, truth)
                ]
        found += self._twins({call.number: call for call in calls})
        return found

    def _twins(self, calls: Mapping[int, Call]) -> Iterator[Violation]:
        for call in calls.values():
            twin = calls.get(call.twin) if call.twin is not None else None
            if twin is not None and call.id and twin.id and call.id != twin.id:
                yield Violation("one key, two responses", f"{call.id} and {twin.id}", call.id, call)

    # -- the log --------------------------------------------------------------------------------------

    def _log(self, truth: Truth, callers: Sequence[Call]) -> Iterator[tuple[str, str]]:
        for breach in truth.breaches:
            yield "the log's rules", breach
        for attempt in truth.attempts:
            late = self._late(attempt)
            if late is not None:
                yield "the lease", late
        end = truth.reader.end
        if end is None:
            self.outcomes["without end"] += 1
            yield "one terminal each", f"its log has no end, after {len(truth.reader.ids)} tokens"
            return
        if truth.reader.ids != truth.expected[: len(truth.reader.ids)]:
            yield "each token once and in order", "the log's tokens are not what the engine says"
        match end.message:
            case Finished() as finished:
                self.outcomes["completed" if finished.reason == "stop" else "incomplete"] += 1
                if truth.reader.ids != truth.expected or finished.reason != truth.reason:
                    got = f"{len(truth.reader.ids)} tokens, {finished.reason}"
                    yield "complete", f"{got}; the engine says {len(truth.expected)}, {truth.reason}"
                if any(call.behaviour == "leaves" and call.left_ms for call in callers):
                    yield from self._left(truth, callers)
            case Failed() as failed:
                self.outcomes["failed"] += 1
                yield "complete", f"failed: {failed.code}: {failed.message}"
            case Closed(reason="stop"):
                self.outcomes["stop string"] += 1
                if end.total != self._stop_at(truth):
                    yield "stop strings", f"closed at {end.total}, the text says {self._stop_at(truth)}"
            case Closed(reason="completed", finish=finish):
                self.outcomes["an answer from the cache"] += 1
                wanted = truth.expected[: self._stop_at(truth)]
                reason = truth.reason if self._stop_at(truth) > len(truth.expected) else "stop"
                if truth.reader.ids != wanted or finish != reason:
                    got = f"{len(truth.reader.ids)} tokens, {finish}"
                    yield "complete", f"shared: {got}; it should be {len(wanted)}, {reason}"
            case Closed(reason="cancelled"):
                asked = any(call.cancel_ms or call.left_ms or call.refused for call in callers)
                lost = all(self._out_of_reach(call, truth) for call in callers)
                self.outcomes["cancelled" if asked or not callers else OUT_OF_REACH] += 1
                if not asked and not lost:
                    yield "complete", f"cancelled after {end.total} tokens, which nobody asked for"
            case Closed() as closed:
                self.outcomes[closed.code or closed.reason] += 1
                yield "complete", f"closed: {closed.reason} {closed.code or ''}: {closed.message}"

    def _out_of_reach(self, call: Call, truth: Truth) -> bool:
        """Its client had hung up or was cut off, and trouble at the edge kept it from coming back in the
        grace time. Or it had come back to a gateway that was itself cut off from the queue: that one cannot
        tell the others of its client. (It did so a third of the grace time before, at the latest.) What a
        slow reader saw behind its gateway's death was in its socket already."""
        assert truth.ended_ms is not None
        long_ms = 600 * self.sizes.grace_s
        own = self.gateways.get(call.port_at(truth.ended_ms))
        if any(
            fault.target == own
            and fault.kind.endswith(("cut off", "blackholed", "paused"))
            and truth.ended_ms - fault.at_ms >= long_ms
            and fault.touches(truth.ended_ms, truth.ended_ms)
            for fault in self.faults
        ):
            return True
        before = [seen.at_ms for seen in call.seen if seen.at_ms <= truth.ended_ms]
        deaths = [
            fault.at_ms
            for fault in self.faults
            if fault.target == own
            and fault.kind == "gateway killed"
            and call.connected_ms(truth.ended_ms) <= fault.at_ms <= truth.ended_ms
        ]
        since_ms = min([before[-1] if before else call.asked_ms, *deaths])
        return truth.ended_ms - since_ms >= long_ms and any(
            fault.touches(since_ms, truth.ended_ms) and not fault.target.startswith(("worker", "valkey"))
            for fault in self.faults
        )

    def _left(self, truth: Truth, callers: Sequence[Call]) -> Iterator[tuple[str, str]]:
        """Whose client is gone is cancelled after the grace time, by a gateway that lived through it."""
        assert truth.ended_ms is not None
        left_ms = max((call.left_ms or call.asked_ms) for call in callers)
        grace_ms = self.sizes.grace_s * 1000 + LEASE_SLACK_MS
        troubled = any(
            fault.touches(left_ms - grace_ms, truth.ended_ms) and not fault.target.startswith("worker")
            for fault in self.faults
        )
        if truth.ended_ms - left_ms > grace_ms and not troubled:
            late_s = (truth.ended_ms - left_ms) / 1000
            yield "who leaves is cancelled", f"it was completed, {late_s:.1f} s after its client had left"

    def _late(self, attempt: Attempt) -> str | None:
        """A writer that has lost its response sees it at its next look, if it can look."""
        if attempt.lost_ms is None or attempt.last_stale_ms is None:
            return None
        free_ms = attempt.lost_ms
        for fault in self.faults:
            of_it = fault.worker_id == attempt.worker or fault.target == "nats"
            if of_it and fault.touches(attempt.lost_ms - LEASE_SLACK_MS, attempt.last_stale_ms):
                back_ms = (
                    RECONNECT_MS if fault.kind.endswith(("off", "blackholed", "lost", "killed")) else 0.0
                )
                free_ms = max(free_ms, (fault.healed_ms or attempt.last_stale_ms) + back_ms)
        late_ms = attempt.last_stale_ms - free_ms
        if late_ms <= self.sizes.hold_s * 1000 + LEASE_SLACK_MS:
            return None
        return f"{attempt.worker} wrote on for {late_ms / 1000:.1f} s after it had lost the response"

    # -- the client -----------------------------------------------------------------------------------

    def _client(self, call: Call, truth: Truth) -> Iterator[tuple[str, str]]:
        numbers = [seen.number for seen in call.seen]
        if any(before >= after for before, after in pairwise(numbers)):
            yield "numbers grow", f"{numbers}"
        kinds = Counter(seen.type for seen in call.seen)
        ends = sum(kinds[kind] for kind in TERMINALS)
        if ends > 1 or (ends and not call.ended):
            yield "one terminal each", f"the client saw {ends} ends"
        for kind in ONCE:
            if kinds[kind] > 1:
                yield "each event once", f"{kind} came {kinds[kind]} times"
        text = self._text(truth)
        if ends:
            yield from self._whole(call, truth, text)
        else:
            if not text.startswith(call.text):
                yield "each token once and in order", _difference(call.text, text)
            if call.left_ms is None and not call.refused and not call.failure:
                yield "one terminal each", "the client saw no end"

    def _whole(self, call: Call, truth: Truth, text: str) -> Iterator[tuple[str, str]]:
        if call.text != text:
            yield "each token once and in order", _difference(call.text, text)
        done = [seen.text for seen in call.seen if seen.type == TEXT_DONE]
        if done and done[0] != text:
            yield "each token once and in order", f"output_text.done: {_difference(done[0], text)}"
        assert call.final is not None
        shown = _output(call.final)
        if shown != text:
            yield "each token once and in order", f"the final object: {_difference(shown, text)}"
        wanted = self._status(truth)
        if call.final["status"] != wanted:
            yield "one terminal each", f"the client saw {call.final['status']}, the log says {wanted}"

    def _status(self, truth: Truth) -> str:
        assert truth.reader.end is not None
        message = truth.reader.end.message
        if self._stop_at(truth) <= truth.reader.end.total:
            return "completed"
        match message:
            case Finished():
                return "completed" if message.reason == "stop" else "incomplete"
            case Closed(reason="completed"):
                return "completed" if message.finish == "stop" else "incomplete"
            case Closed(reason="cancelled"):
                return "cancelled"
        return "failed"

    def _text(self, truth: Truth) -> str:
        """What a client must have been shown when the response has ended."""
        end = truth.reader.end
        text = self.decode(truth.reader.ids[: end.total] if end is not None else truth.reader.ids)
        return text[: self._stop_in(text, truth)]

    def _stop_at(self, truth: Truth) -> int:
        """The token that completes a stop string; beyond the end where there is none."""
        if truth.job.presentation.stop:
            for count in range(1, len(truth.expected) + 1):
                text = self.decode(truth.expected[:count])
                if self._stop_in(text, truth) < len(text):
                    return count
        return len(truth.expected) + 1

    def _stop_in(self, text: str, truth: Truth) -> int:
        """Where the first stop string begins that ends behind the first ``min_tokens`` tokens."""
        barred = len(self.decode(truth.expected[: truth.job.sampling.min_tokens]))
        return min(
            (
                at
                for stop in truth.job.presentation.stop
                if (at := text.find(stop, max(0, barred - len(stop) + 1))) >= 0
            ),
            default=len(text),
        )


def _output(response: Mapping[str, object]) -> str:
    output = response["output"]
    assert isinstance(output, list)
    return "".join(part["text"] for item in output for part in item["content"])


def _difference(got: str, wanted: str) -> str:
    at = next(
        (n for n, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted))
    )
    return (
        f"differs at character {at}: {got[max(0, at - 20) : at + 40]!r} instead of "
        f"{wanted[max(0, at - 20) : at + 40]!r} ({len(got)} and {len(wanted)} characters)"
    )
