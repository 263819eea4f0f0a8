"""What a correct stream of the simulated engine holds, computed from the request alone."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.config import Sim
from schemas.job import Job
from schemas.reply import FinishReason
from schemas.sampling import Sampling
from workers.engine import sim_sequence


def expected_completion(
    prompt_ids: Sequence[int], sampling: Sampling, sim: Sim | None = None
) -> tuple[list[int], FinishReason]:
    """Ids and finish reason of the whole completion under the ``[sim]`` configuration."""
    sim = sim or Sim()
    return sim_sequence.expected_completion(
        prompt_ids,
        sampling,
        mean_output_tokens=sim.mean_output_tokens,
        max_model_len=sim.max_model_len,
        split=sim.split_characters,
    )


def expected_of_job(job: Job, sim: Sim | None = None) -> tuple[list[int], FinishReason]:
    return expected_completion(job.prompt_ids, job.sampling, sim)
