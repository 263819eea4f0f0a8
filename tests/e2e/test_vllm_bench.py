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
# `vllm bench serve`: the command of the CPU build does not start, for want of a package called vllm
BENCH = (
    "from vllm.benchmarks.serve import add_cli_args, main;"
    "from vllm.utils.argparse_utils import FlexibleArgumentParser;"
    "parser = FlexibleArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
)


@pytest.mark.vllm
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("backend", "endpoint"),
    [("openai-chat", "/v1/chat/completions"), ("openai-responses", "/v1/responses")],
)
def test_vllm_bench_serve(stack: Stack, tmp_path: Path, backend: str, endpoint: str) -> None:
    model = httpx.get(f"{stack.url}/v1/models").json()["data"][0]["id"]
    tokenizer, _ = write_tokenizer(tmp_path / "tokenizer", Sim().max_model_len)
    command = [sys.executable, "-c", BENCH, "--base-url", stack.url, "--backend", backend]
    command += ["--endpoint", endpoint, "--model", model, "--tokenizer", str(tokenizer)]
    command += ["--dataset-name", "random", "--random-input-len", str(INPUT)]
    command += ["--random-output-len", str(OUTPUT), "--num-prompts", str(PROMPTS), "--max-concurrency", "4"]
    command += ["--temperature", "0", "--ignore-eos", "--disable-tqdm"]
    command += ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "result.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["completed"] == PROMPTS, done.stdout
    assert result["total_output_tokens"] == PROMPTS * OUTPUT
    assert result["median_ttft_ms"] > 0
