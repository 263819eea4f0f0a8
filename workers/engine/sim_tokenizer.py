"""Writes the simulated engine's tokenizer as a folder that ``transformers.AutoTokenizer`` loads.

A byte-level tokenizer like a real one's: any text goes in and comes out unchanged, whole words of the
vocabulary are one token, the rest are bytes. Must not import torch or transformers (start-up time).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from workers.engine.sim_words import FIRST_WORD_ID, SPECIAL_TOKENS, WORDS

# Calls and reasoning as Hermes and Qwen write them; without tools and options nothing but the messages.
_CHAT_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n<tools>\n"
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</tools><|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['reasoning_content'] %}<think>\n{{ message['reasoning_content'] }}</think>\n\n{% endif %}"
    "{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}"
    "<tool_call>\n{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}\n"
    "</tool_call>"
    "{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
)


def write_tokenizer(parent: Path, max_model_len: int) -> tuple[Path, str]:
    """Folder and revision (a hash of its content). The folder is named by the revision and made by one
    rename, so processes may share ``parent`` and a folder that is there is complete."""
    files = {
        "tokenizer.json": _build().to_str(),
        "tokenizer_config.json": json.dumps(_settings(max_model_len), indent=1),
    }
    digest = hashlib.sha256("\0".join(files.values()).encode()).hexdigest()[:16]
    folder = parent / digest
    if folder.is_dir():
        return folder, digest
    parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=parent))
    for name, content in files.items():
        (scratch / name).write_text(content)
    try:
        os.rename(scratch, folder)
    except OSError:  # another process was first
        shutil.rmtree(scratch)
    return folder, digest


def _build() -> Tokenizer:
    """BPE without merges: ``ignore_merges`` takes a pre-token that is in the vocabulary as it stands, as
    in Llama 3's tokenizer, and everything else falls apart into bytes."""
    letters = _byte_letters()
    vocab = {letter: byte for byte, letter in enumerate(letters)}
    for number, word in enumerate(WORDS):
        vocab[letters[ord(" ")] + word] = FIRST_WORD_ID + number
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS]
    tokenizer.add_special_tokens(specials)
    return tokenizer


def _byte_letters() -> list[str]:
    """The printable letter that byte-level tokenizers write for each byte (GPT-2's ``bytes_to_unicode``)."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def _settings(max_model_len: int) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": _CHAT_TEMPLATE,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_model_len,
    }
