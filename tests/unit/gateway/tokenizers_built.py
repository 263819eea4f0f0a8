"""Small tokenizers built in memory: every byte is a token, some merges, some special tokens."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = [
    "The quick brown fox jumps over the lazy dog. User: hello! Assistant: hi there, 你好世界 日本語",
    "naïve café e\u0301",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f600 end of stream STOP\n\nUser: what?",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>",
           "<|start_header_id|>", "<|end_header_id|>"]  # fmt: skip


@cache
def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    tokenizer.add_tokens(
        [AddedToken("<tool_call>", normalized=False), AddedToken("two words", normalized=False)]
    )
    return tokenizer


@cache
def byte_fallback() -> Tokenizer:
    """Llama 2's kind: U+2581 for a space, ``<0x..>`` for what is not in the vocabulary."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    pieces += ["▁", "▁Hello", "▁world", "a", "b", "é", "你", "▁▁", "STOP", "ST", "OP"]
    tokenizer = Tokenizer(
        models.BPE({piece: n for n, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


@cache
def metaspace() -> Tokenizer:
    """A kind without a byte table: decoded by ``DecodeStream``."""
    pieces = ["<unk>", "</s>", "▁Hello", "▁world", "▁", "a", "b", "!"]
    tokenizer = Tokenizer(models.WordLevel({piece: n for n, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer
