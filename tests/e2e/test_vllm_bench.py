"""vLLM's own benchmark client, `vllm bench serve`, unmodified, against a gateway with a simulated engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from schemas.config import Sim
from tests.e2e.stack import Stack
from workers.engine.sim_tokenizer import write_tokenizer

PROMPTS, INPUT, OUTPUT = 12, 64, 16
BACKENDS = {
    "openai": "/v1/completions",
    "openai-chat": "/v1/chat/completions",
    "openai-responses": "/v1/responses",
}
# `vllm bench serve`, as often as it has arguments for (vLLM takes long to import). The command of that name
# does not start where vLLM's CPU build is installed, for want of a package called vllm.
BENCH = """
import json, sys
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

for arguments in json.load(sys.stdin):
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    main(parser.parse_args(arguments))
"""


@pytest.mark.vllm
@pytest.mark.timeout(300)
def test_vllm_bench_serve(stack: Stack, tmp_path: Path) -> None:
    model = httpx.get(f"{stack.url}/v1/models").json()["data"][0]["id"]
    tokenizer, _ = write_tokenizer(tmp_path / "tokenizer", Sim().max_model_len)
    common = ["--base-url", stack.url, "--model", model, "--tokenizer", str(tokenizer)]
    common += ["--dataset-name", "random", "--random-input-len", str(INPUT)]
    common += ["--random-output-len", str(OUTPUT), "--num-prompts", str(PROMPTS), "--max-concurrency", "4"]
    common += ["--temperature", "0", "--ignore-eos", "--disable-tqdm"]
    common += ["--save-result", "--result-dir", str(tmp_path)]
    runs = [
        [*common, "--backend", backend, "--endpoint", endpoint, "--result-filename", f"{backend}.json"]
        for backend, endpoint in BACKENDS.items()
    ]
    done = subprocess.run(
        [sys.executable, "-c", BENCH],
        input=json.dumps(runs),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for backend in BACKENDS:
        result = json.loads((tmp_path / f"{backend}.json").read_text())
        assert result["completed"] == PROMPTS, (backend, done.stdout)
        assert result["total_output_tokens"] == PROMPTS * OUTPUT
        assert result["median_ttft_ms"] > 0
