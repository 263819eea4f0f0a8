"""The simulated engine's tokenizer, as gateways load it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from schemas.sampling import Sampling
from tests.oracle import expected_completion
from workers.engine.sim_tokenizer import write_tokenizer
from workers.engine.sim_words import EOS_ID, FIRST_WORD_ID, SPECIAL_TOKENS, VOCAB_SIZE, WORDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizers"), 4096)[0]


@pytest.fixture(scope="module")
def loaded(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def test_ids_are_as_the_engine_means_them(loaded: PreTrainedTokenizerBase) -> None:
    assert len(loaded) == VOCAB_SIZE
    assert loaded.eos_token_id == EOS_ID
    assert loaded.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(VOCAB_SIZE - 4, VOCAB_SIZE))
    assert loaded.encode("A\n") == [65, 10]
    assert loaded.encode(f" {WORDS[7]} {WORDS[-1]}") == [FIRST_WORD_ID + 7, FIRST_WORD_ID + len(WORDS) - 1]
    assert len(loaded.encode(f"x{WORDS[7]}")) == 1 + len(WORDS[7])  # not a word without its space


@given(text=st.text())
def test_any_text_survives(loaded: PreTrainedTokenizerBase, text: str) -> None:
    ids = loaded.encode(text)
    assert loaded.decode(ids) == text
    assert all(0 <= token < VOCAB_SIZE for token in ids)


def test_completions_are_text_that_encodes_to_the_same_text(loaded: PreTrainedTokenizerBase) -> None:
    ids, reason = expected_completion([1, 2], Sampling(max_tokens=5000))
    text = loaded.decode(ids)
    assert reason == "stop"
    assert "\N{REPLACEMENT CHARACTER}" not in text
    assert loaded.decode(loaded.encode(text)) == text


def test_chat_template(loaded: PreTrainedTokenizerBase) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    text = loaded.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = loaded.encode(text)
    assert ids.count(EOS_ID) == 2


def test_loads_without_transformers_too(folder: Path) -> None:
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert plain.decode(plain.encode("a river, 中 😀").ids) == "a river, 中 😀"


def test_writing_again_is_the_same_folder(folder: Path) -> None:
    before = (folder / "tokenizer.json").stat().st_mtime_ns
    again, revision = write_tokenizer(folder.parent, 4096)
    assert again == folder
    assert revision == folder.name
    assert (again / "tokenizer.json").stat().st_mtime_ns == before
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]


def test_the_engine_needs_no_torch() -> None:
    code = "import sys, workers.engine.sim; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
