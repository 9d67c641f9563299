"""Locks between processes, and descriptions of their holders.

The system's own lock (`flock`) is released when its holder dies, whatever kills it. Some file systems have none; there a lease
stands in: a file that its holder touches every few seconds, and that another may take after watching it untouched for longer. So
a holder that died on another host, or under a name that a container no longer has, blocks no process for longer than that.
"""

import contextlib
import errno
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout

from capsbench.errors import ConfigurationError, StoreError, unwritable
from capsbench.system.paths import absolute

LOCK = ".lock"
"""The file in a folder by which a process keeps others out of it."""

LEASE_SECONDS = 30.0
"""Age of an untouched lease from which it no longer counts."""

_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}
"""Errors of a file system that has no locks."""


class Busy(Exception):
    """Another process holds the lock.

    Args:
        holder: the holder, in words.
    """

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


@contextmanager
def holding(
    path: Path, folder: Path, *, patience: float | None = 0, waiting: Callable[[str], None] = lambda _: None
) -> Iterator[None]:
    """Hold a lock while the body runs.

    Args:
        path: the lock's file; a description of its holder lies next to it.
        folder: folder that the holder works on, for others to read.
        patience: seconds to wait for another holder; None waits without limit.
        waiting: called with the holder's description before this process waits for it.

    Raises:
        Busy: another process still holds the lock.
        OSError: the file cannot be made.
    """
    lock = _acquired(path, patience, waiting)
    description = _description(path)
    try:
        # Failing to describe the holder is no error: the lock itself keeps others out.
        with contextlib.suppress(OSError, ConfigurationError):
            since = datetime.now().astimezone().isoformat(timespec="seconds")
            myself = {"pid": os.getpid(), "host": socket.gethostname(), "folder": str(absolute(folder)), "since": since}
            description.write_text(json.dumps(myself), encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            description.unlink(missing_ok=True)
        lock.release()


@contextmanager
def alone_in(folder: Path, notify: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Keep other processes out of a folder, which is made if need be, while the body runs.

    Args:
        folder: of a report or a run.
        notify: receives a text if it takes a while to see whether another holder of the folder still lives.

    Raises:
        StoreError: another process holds it, or the folder cannot be written.
    """

    def waiting(holder: str) -> None:
        notify(f"looking whether another capsbench run still holds {folder}: {holder}")

    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(holding(folder / LOCK, folder, waiting=waiting))
        except Busy as busy:
            raise StoreError(
                f"`out` {folder} is in use by another capsbench run: {busy.holder}", "wait for it, or choose another `out`"
            ) from None
        except OSError as error:
            raise unwritable(folder, error) from None
        yield


def _acquired(path: Path, patience: float | None, waiting: Callable[[str], None]) -> BaseFileLock:
    try:
        return _waited_for(FileLock(path, fallback_to_soft=False), path, patience, waiting)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    lease = SoftFileLease(path.with_name(f"{path.name}.lease"), lease_duration=LEASE_SECONDS)
    # Only watching for this long shows whether the holder still lives.
    return _waited_for(lease, path, None if patience is None else max(patience, 1.5 * LEASE_SECONDS), waiting)


def _waited_for(lock: BaseFileLock, path: Path, patience: float | None, waiting: Callable[[str], None]) -> BaseFileLock:
    try:
        lock.acquire(timeout=0)
        return lock
    except Timeout:
        if patience == 0:
            raise Busy(_holder(path)) from None
    waiting(_holder(path))
    try:
        # Look seldom, since a waiting process runs while another measures.
        lock.acquire(timeout=-1 if patience is None else patience, poll_interval=0.25)
    except Timeout:
        raise Busy(_holder(path)) from None
    return lock


def _description(path: Path) -> Path:
    return path.with_name(f"{path.name}.holder")


def _holder(path: Path) -> str:
    """Description of a holder as far as known: `pid 123 on host abc, which works on /a/b since 12:03`."""
    try:
        known = json.loads(_description(path).read_text(encoding="utf-8"))
        return f"pid {known['pid']} on host {known['host']}, at work on {known['folder']} since {known['since']}"
    except (OSError, ValueError, TypeError, KeyError):
        return "an unidentified process"
