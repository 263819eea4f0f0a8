"""Token ids that a request names, against the model's vocabulary: refused before there is a job."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from schemas.errors import HeadraceError
from schemas.sampling import Sampling


def check_token_ids(sampling: Sampling, vocab_size: int, prompt_ids: Sequence[int] = ()) -> None:
    """Raises ``invalid_token_id`` with the parameter's name."""
    named: dict[str, Collection[int]] = {
        "prompt": prompt_ids,
        "stop_token_ids": sampling.stop_token_ids,
        "logit_bias": sampling.logit_bias or (),
        "allowed_token_ids": sampling.allowed_token_ids or (),
    }
    for param, ids in named.items():
        if ids and (min(ids) < 0 or max(ids) >= vocab_size):
            token_id = next(token_id for token_id in ids if not 0 <= token_id < vocab_size)
            problem = f"{param}: {token_id} is no token of this model; its ids are 0 to {vocab_size - 1}."
            raise HeadraceError("invalid_token_id", problem, param=param)
