"""The simulated engine's vocabulary: 256 byte tokens (id = byte), words with a leading space, specials.

About 2,000 words, most of them compounds, so that generated text reads like a walk along a river. The
ids follow from the order here: adding a word makes another tokenizer, with another revision.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COMMON_WORDS = _words(
    """
    the of and to in a is that for it was on are as with they at be this from have or by one had not but
    what all were when we there can an your which their said if do will each about how up out them then
    she many some so these would other into has more her two like him see time could no make than first
    been its who now people my made over did down only way find use may water long little very after
    words called just where most know under clear slow bright old quiet deep wide still between along
    """
)
_FIRST_HALVES = _words(
    """
    ash back birch black bridge brook clay cold deer elm fern field fish ford fox frost gate glass gold
    grass green grey hay hill lake land leaf light low marsh meadow mill mist moon moss north oak otter
    pine rain reed river rock sand
    """
)
_SECOND_HALVES = _words(
    """
    bank bed bend born bound bow brim burn by cliff craft crest croft dale drift edge fall farer flow
    foot garth hand haven head keeper lark lea maker march mere mouth path pool rise run shade side
    song stead stone stream trail vale ward
    """
)
COMPOUND_WORDS = tuple(first + second for first in _FIRST_HALVES for second in _SECOND_HALVES)

FIRST_WORD_ID = 256
WORDS = COMMON_WORDS + COMPOUND_WORDS
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|say|>")
FIRST_SPECIAL_ID = FIRST_WORD_ID + len(WORDS)
EOS_ID = FIRST_SPECIAL_ID + SPECIAL_TOKENS.index("<|im_end|>")
SAY_ID = FIRST_SPECIAL_ID + SPECIAL_TOKENS.index("<|say|>")
START_ID = FIRST_SPECIAL_ID + SPECIAL_TOKENS.index("<|im_start|>")
VOCAB_SIZE = FIRST_SPECIAL_ID + len(SPECIAL_TOKENS)
