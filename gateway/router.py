"""A request's model, and why it is this one: configuration and catalog brought to the rules of ``routing``.

Must not know how a response is accepted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gateway.catalog import Catalog, ModelCard
from gateway.context import Context
from gateway.generation import Generation
from gateway.routing import QueueEstimate, Signals, choose, estimate_tokens
from schemas.config import AUTO, Routing
from schemas.errors import HeadraceError
from schemas.job import Route


@dataclass(frozen=True, slots=True)
class Offer:
    """A name that a request may give. ``card``: what would serve it now; None for ``auto``, which depends on
    the request. ``parent``: the model that an alias stands for."""

    name: str
    card: ModelCard | None
    parent: str | None = None


def estimate_request(generation: Generation) -> int:
    """Tokens of its prompt, without what is remembered; exact where it came as ids."""
    if generation.prompt_ids:
        return len(generation.prompt_ids)
    texts = [message.content for message in generation.messages]
    calls = [call.arguments for message in generation.messages for call in message.tool_calls]
    return estimate_tokens([*texts, *calls, *(tool.json for tool in generation.tools)])


class Router:
    def __init__(
        self, catalog: Catalog, routing: Routing, *, default_model: str, queue_ms: QueueEstimate
    ) -> None:
        self._catalog = catalog
        self._routing = routing
        self._default = default_model
        self._queue_ms = queue_ms

    def route(self, generation: Generation, context: Context) -> tuple[ModelCard, Route]:
        """``context``: what the prompt will hold besides the request. Raises ``HeadraceError``:
        model_not_found, no_worker."""
        if generation.routed is not None:
            name, route = generation.routed
            return self._catalog.resolve(name), route
        requested = generation.model
        name = requested or self._default
        by, why = ("name", "") if requested else ("default", "no model was named")
        if (target := self._routing.aliases.get(name)) is not None:
            by, why, name = "alias", f"{name!r} stands for {target!r}", target
        if name == AUTO and self._routing.auto:
            card, why = self._choose(generation, context)
            by = "auto"
        elif (stand_in := self._stand_in(name)) is not None:
            card, by, why = stand_in, "fallback", f"no worker serves {name!r}"
        else:
            card = self._catalog.resolve(name)
        return card, Route(requested=requested, by=by, reason=why)

    def offers(self) -> list[Offer]:
        """What may be asked for now."""
        served = [Offer(card.name, card) for card in self._catalog.models()]
        return [*served, *self._more_offers({offer.name for offer in served})]

    def _more_offers(self, served: set[str]) -> Iterator[Offer]:
        names = {candidate.model for candidate in self._routing.auto}
        auto = any(self._catalog.serving(name) is not None for name in names)
        if auto:
            yield Offer(AUTO, None)
        for name in self._routing.fallback:
            if name not in served and (card := self._stand_in(name)) is not None:
                yield Offer(name, card)
        for alias, target in self._routing.aliases.items():
            card = self._catalog.serving(target) or self._stand_in(target)
            if card is not None or (target == AUTO and auto):
                yield Offer(alias, card, parent=target)

    def _stand_in(self, name: str) -> ModelCard | None:
        if name not in self._routing.fallback or self._catalog.serving(name) is not None:
            return None
        serving = map(self._catalog.serving, self._routing.fallback[name])
        return next((card for card in serving if card is not None), None)

    def _choose(self, generation: Generation, context: Context) -> tuple[ModelCard, str]:
        candidates = self._routing.auto
        found = {c.model: card for c in candidates if (card := self._catalog.serving(c.model)) is not None}
        remembered = len(context.ids) or estimate_tokens([m.content for m in context.messages()])
        signals = Signals(estimate_request(generation) + remembered, generation.rtt_ms)
        choice = choose(candidates, found, signals, self._queue_ms)
        if choice is None:
            raise HeadraceError("no_worker", "No model of the policy is being served right now: try again.")
        return choice.card, choice.reason
