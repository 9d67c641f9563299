"""Standard streams that a command can rely on, whoever reads them and in whatever encoding.

A verdict and a sweep must not depend on their reader: what nobody reads any more is dropped, and the command goes on.
"""

import codecs
import contextlib
import io
import os
import select
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_SIGNS = {
    "×": "x", "·": "*", "±": "+-", "−": "-", "–": "-", "—": "-", "…": "...", "≈": "~", "→": "->", "←": "<-", "²": "^2", "³": "^3",
    "µ": "u", "μ": "u", "γ": "gamma", "β": "beta", "λ": "lambda", "σ": "sigma", "Σ": "sum", "û": "u", "√": "sqrt ", "≤": "<=",
    "≥": ">=", "≠": "!=", "‖": "||", "∞": "inf", "“": '"', "”": '"', "‘": "'", "’": "'", "•": "*", "°": " degrees",
}  # fmt: skip
"""What stands for a sign where the encoding does not have it."""

_ERRORS = "capsbench-signs"
_ASCII = "capsbench-ascii"
_NARROWEST, _WIDEST = 40, 10_000
"""Columns. A narrower terminal breaks lines by itself; tables folded to less cannot be read."""


class Raw(io.FileIO):
    """The bytes of a standard stream. Once they cannot be written any more, they are dropped."""

    failure: OSError | None = None
    """Why they are dropped."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        """Write what can be written; wait where whoever shares the descriptor has made it non-blocking."""
        while self.failure is None:
            try:
                written = super().write(data)
            except OSError as error:
                self.failure = error
            else:
                if written is not None:
                    return written
                select.select([], [self.fileno()], [])
        return len(data)


class Streams:
    """Both standard outputs of a command."""

    def __init__(self, out: Raw | None, err: Raw | None) -> None:
        self._out = out
        self._err = err

    def lost(self) -> OSError | None:
        """Why standard output could not be written; None where it was, or where its reader had seen enough."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        failure = self._out.failure if self._out is not None else None
        return None if isinstance(failure, BrokenPipeError) else failure


@contextmanager
def steady_streams() -> Iterator[Streams]:
    """Standard streams that never raise, for as long as a command runs."""
    _open_closed_descriptors()
    _register()
    before = sys.stdout, sys.stderr
    (sys.stdout, out), (sys.stderr, err) = (_steady(stream, number) for number, stream in ((1, before[0]), (2, before[1])))
    try:
        with _sensible_size():
            yield Streams(out, err)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def signs_of(text: str, encoding: str) -> str:
    r"""A text with a readable substitute for each sign that an encoding does not have.

    A sign without a substitute loses its accents, or is written as `\u25b2`.
    """
    _register()
    try:
        return text.encode(encoding, _ERRORS).decode(encoding)
    except (LookupError, UnicodeDecodeError):
        return text


def _steady(stream: TextIO | None, number: int) -> tuple[TextIO, Raw | None]:
    """The stream to write to instead of one, and its bytes. What is no standard stream, as in a notebook, stays as it is."""
    try:
        if stream is not None and stream.fileno() != number:
            return stream, None
    except (OSError, ValueError):
        return stream, None  # type: ignore[return-value]
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.flush()
    raw = Raw(number)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return (
        io.TextIOWrapper(
            io.BufferedWriter(raw),  # type: ignore[type-var]
            encoding=_ASCII if codecs.lookup(encoding).name == "ascii" else encoding,
            errors=_ERRORS,
            line_buffering=number == 2 or getattr(stream, "line_buffering", False),
            write_through=getattr(stream, "write_through", False),
        ),
        raw,
    )


def _open_closed_descriptors() -> None:
    """Open what the caller closed: the next file would get its number, and what is printed would land in that file."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)


@contextmanager
def _sensible_size() -> Iterator[None]:
    """A size that tables can be drawn in, where $COLUMNS and $LINES hold none."""
    given = {name: os.environ[name] for name in ("COLUMNS", "LINES") if name in os.environ}
    for name, text in given.items():
        size = int(text) if text.isascii() and text.isdigit() else 0
        if size:
            os.environ[name] = str(min(max(size, _NARROWEST), _WIDEST))
        else:
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(given)


def _register() -> None:
    codecs.register_error(_ERRORS, _substitute)
    codecs.register(_ascii_by_another_name)


def _substitute(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler of codecs: a substitute for what cannot be encoded."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign = error.object[error.start]
    if "\udc80" <= sign <= "\udcff":  # a byte of a file name that is no text
        return bytes([ord(sign) - 0xDC00]), error.start + 1
    plain = _SIGNS.get(sign) or unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
    return plain or sign.encode("ascii", "backslashreplace").decode(), error.start + 1


def _ascii_by_another_name(name: str) -> codecs.CodecInfo | None:
    """ASCII; click takes a stream that calls it by its name for a mistake, and writes UTF-8 into it."""
    if name.replace("_", "-") != _ASCII:
        return None
    found = codecs.lookup("ascii")
    return codecs.CodecInfo(
        found.encode,
        found.decode,
        incrementalencoder=found.incrementalencoder,
        incrementaldecoder=found.incrementaldecoder,
        name=_ASCII,
    )
