"""What a completion's tokens have released: text, and where the response has a shape its pieces, each under
the token that released it. A function of the tokens alone, however they arrive.

Must not know logs, readers or times.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.generation import Parsed, Text
from gateway.output.parser import OutputParser
from gateway.output.pieces import Call, Item, Piece, Words, gather
from gateway.text import Detokenizer, TextStream
from schemas.job import Job
from schemas.reply import TokenLogprobs


class Released:
    """``solid``: tokens up to the last one that released something. ``count``: tokens taken; one more where
    the end released what none of them did."""

    __slots__ = ("_parsed", "_parser", "_pieces", "_stream", "solid")

    def __init__(self, job: Job, detokenizer: Detokenizer) -> None:
        shape = job.presentation.shape
        self._stream = TextStream(detokenizer, job.presentation.stop, job.sampling.min_tokens)
        self._pieces: list[str] = []
        self._parser = None if shape is None else OutputParser(shape)
        self._parsed: list[tuple[Piece, ...]] = []  # of each of ``_pieces``, where there is a parser
        self.solid = 0

    @property
    def count(self) -> int:
        return len(self._pieces)

    @property
    def stopped(self) -> bool:
        """A stop string was found; nothing comes after."""
        return self._stream.stopped

    @property
    def is_parsed(self) -> bool:
        return self._parser is not None

    @property
    def text(self) -> str:
        """Of the message; reasoning and calls are no part of it."""
        if self._parser is None:
            return "".join(self._pieces)
        return "".join(p.text for pieces in self._parsed for p in pieces if isinstance(p, Words))

    @property
    def items(self) -> list[Item]:
        """Of a parsed one."""
        return gather(piece for pieces in self._parsed for piece in pieces)

    @property
    def reasoning_tokens(self) -> int:
        return 0 if self._parser is None else self._parser.reasoning_tokens

    @property
    def characters(self) -> int:
        """That are held in memory for it, about."""
        return sum(map(len, self._pieces)) * (1 if self._parser is None else 2)

    def lengths(self, first_token: int, end_token: int) -> list[int]:
        """How many characters each of these tokens released."""
        return [len(piece) for piece in self._pieces[first_token:end_token]]

    def push(self, ids: Sequence[int]) -> bool:
        """The next tokens. True if they released something."""
        push, pieces, before = self._stream.push, self._pieces, self.solid
        for token_id in ids:
            piece = push(token_id)
            pieces.append(piece)
            if piece:
                self.solid = len(pieces)
            if self._stream.stopped:
                break
        if self._parser is not None:
            self._parse(self._parser, before)
        return self.solid != before

    def finish(self, total: int, tokens: int) -> None:
        """``total`` of ``tokens`` count. Text that only the end releases stands behind the last token, as if
        one more had caused it. Tokens that do not count are not shown to whoever comes later."""
        if total < len(self._pieces) and not self._stream.stopped:
            del self._pieces[total:], self._parsed[total:]
            self.solid = min(self.solid, total)
            return
        piece, before = self._stream.finish(), self.solid
        if piece:
            self._pieces += [""] * (tokens - len(self._pieces))
            self._pieces.append(piece)
            self.solid = len(self._pieces)
            if self._parser is not None:
                self._parse(self._parser, before)

    def finish_parsing(self, total: int) -> bool:
        """What the parser held back stands behind the last token that counts, as the text does that only the
        end releases. Whether there were calls."""
        if self._parser is None:
            return False
        parsed, last = self._parsed, self._parser.finish()
        if last:
            parsed += [()] * (total + 1 - len(parsed))
            parsed[-1] += last
            self.solid = len(parsed)
        return any(isinstance(item, Call) for item in self.items)

    def between(
        self,
        position: int,
        end: int,
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprobs, ...] | None = None,
    ) -> Text | Parsed:
        """What tokens ``position …< end`` released, merged."""
        if self._parser is None:
            return Text("".join(self._pieces[position:end]), position, end, token_ids, logprobs)
        brought = self._parsed[position:end]
        entries = tuple((at, pieces) for at, pieces in enumerate(brought, position + 1) if pieces)
        return Parsed(entries, position, end, token_ids, logprobs)

    def _parse(self, parser: OutputParser, solid: int) -> None:
        """The text that has come since, of each token. What released no piece is not news."""
        parsed = self._parsed
        self.solid = solid
        for piece in self._pieces[len(parsed) :]:
            parsed.append(parser.push(piece))
            if parsed[-1]:
                self.solid = len(parsed)
