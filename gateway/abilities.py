"""What a request asks of a model that its workers may not be able to do: refused before there is a job."""

from __future__ import annotations

from gateway.catalog import ModelCard
from gateway.generation import Generation
from gateway.vocabulary import check_token_ids
from schemas.errors import HeadraceError


def check_abilities(generation: Generation, card: ModelCard) -> None:
    """Raises ``unsupported_parameter`` and ``invalid_token_id`` with the parameter's name."""
    check_token_ids(generation.sampling, card.vocab_size, generation.prompt_ids)
    if generation.sampling.structured is not None and not card.structured_output:
        problem = f"{card.name} is served without structured output: leave it out, or use another model."
        raise HeadraceError("unsupported_parameter", problem, param="text.format")
