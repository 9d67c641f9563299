"""Standard streams that a command can rely on, for any reader and in any encoding.

A verdict and a sweep must not depend on their reader: text without a reader is dropped, and the command continues.
"""

import codecs
import contextlib
import io
import os
import select
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TextIO

_SIGNS = {
    "×": "x", "·": "*", "±": "+-", "−": "-", "–": "-", "—": "-", "…": "...", "≈": "~=", "→": "->", "←": "<-", "²": "^2",
    "³": "^3", "µ": "u", "μ": "u", "γ": "gamma", "β": "beta", "λ": "lambda", "σ": "sigma", "Σ": "sum", "û": "u", "√": "sqrt ",
    "≤": "<=", "≥": ">=", "≠": "!=", "‖": "||", "∞": "inf", "“": '"', "”": '"', "‘": "'", "’": "'", "•": "*", "°": " degrees",
}  # fmt: skip
"""Substitutes for signs that an encoding does not have."""

_ERRORS = "capsbench-signs"
_ASCII = "capsbench-ascii"
_NARROWEST, _WIDEST = 40, 10_000
"""Limits of a table's columns. A narrower terminal breaks lines by itself, and tables folded to less cannot be read."""


class Raw(io.FileIO):
    """The bytes of a standard stream. Once they cannot be written any more, they are dropped."""

    failure: OSError | None = None
    """The error for which they are dropped."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        """Write as much as possible; wait if a process that shares the descriptor has made it non-blocking."""
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
        """The error of writing standard output; None if there was none, or its reader closed it."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        failure = self._out.failure if self._out is not None else None
        return None if isinstance(failure, BrokenPipeError) else failure


@contextmanager
def steady_streams() -> Iterator[Streams]:
    """Replace the standard streams by ones that never raise, while a command runs."""
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


@contextmanager
def printing_aside() -> Iterator[None]:
    """Send to standard error what a network, or a program that it starts, writes to standard output inside."""
    _flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        # Redirect Python's own stream too, which need not be the process's.
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _flush()
        os.dup2(kept, 1)
        os.close(kept)


def _flush() -> None:
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None:
            stream.flush()


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
    """The substitute of a stream, and its bytes. A stream that is no standard one, as in a notebook, stays as it is."""
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
    if codecs.lookup(encoding).name == "ascii":
        encoding = _ASCII
    by_line = number == 2 or getattr(stream, "line_buffering", False)
    through = getattr(stream, "write_through", False)
    buffer = io.BufferedWriter(raw)  # type: ignore[type-var]
    return io.TextIOWrapper(buffer, encoding, _ERRORS, line_buffering=by_line, write_through=through), raw


def _open_closed_descriptors() -> None:
    """Open descriptors that the caller closed, since the next file would get their number, and printed text with it."""
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
    """Set a size in which tables can be drawn, if $COLUMNS and $LINES have none."""
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
    """Handle errors of codecs by a substitute for a sign that cannot be encoded."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign = error.object[error.start]
    if "\udc80" <= sign <= "\udcff":  # a byte of a file name that is no text
        return bytes([ord(sign) - 0xDC00]), error.start + 1
    plain = _SIGNS.get(sign) or unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
    return plain or sign.encode("ascii", "backslashreplace").decode(), error.start + 1


def _ascii_by_another_name(name: str) -> codecs.CodecInfo | None:
    """The codec ASCII under another name, since click mistrusts a stream of that name and writes UTF-8 into it."""
    if name.replace("_", "-") != _ASCII:
        return None
    found = codecs.lookup("ascii")
    return codecs.CodecInfo(
        found.encode, found.decode, incrementalencoder=found.incrementalencoder,
        incrementaldecoder=found.incrementaldecoder, name=_ASCII,
    )  # fmt: skip
