"""Ctrl-C and SIGTERM: a command stops at once where nothing is lost, in order where results are kept.

Python runs its handlers between two of its own instructions, and XLA compiles for seconds within
one. A thread that reads the signals' numbers as they come from the operating system acts meanwhile.
"""

import atexit
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

STOPPED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _State:
    """Whether signals are watched, whether the command may be stopped at once, and what it was told."""

    watched = False
    orderly = False
    received = 0
    interrupted = False


_state = _State()


def watch() -> None:
    """From now on stop the process with one line and exit code 130 at the first signal, outside of `orderly`.

    It lasts until all is cleaned up at exit: Python's own handler would interrupt JAX there. Then
    signals are ignored, so that a command that is done has its own exit code.
    Elsewhere than in the main thread signals stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    _state.watched = True
    for number in _SIGNALS:
        # what was ignored, as behind nohup, stays ignored
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)
            # the first to be registered is the last to be called
            atexit.register(signal.signal, number, signal.SIG_IGN)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), daemon=True).start()


@contextlib.contextmanager
def orderly() -> Iterator[None]:
    """Raise KeyboardInterrupt at the first signal, so that what is finished is kept; a second one stops at once.

    Yields:
        Nothing.

    Raises:
        KeyboardInterrupt: if a signal came and its exception was lost, as those in callbacks are.
    """
    before = _state.orderly
    _state.orderly = True
    yield
    check()
    # after an interruption what is kept is still to be reported, so only a normal end comes here
    _state.orderly = before


@contextlib.contextmanager
def resumable(told: Callable[[], str]) -> Iterator[None]:
    """Keep what is finished when a signal comes, and say in the last line how to go on.

    Args:
        told: how far the command is, in words.

    Yields:
        Nothing.

    Raises:
        KeyboardInterrupt: with that line, if a signal came.
    """
    try:
        with orderly():
            yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{told()}; the same command goes on from there") from error


def check() -> None:
    """Stop where a signal came whose exception was lost.

    Raises:
        KeyboardInterrupt: if there was a signal.
    """
    if _state.received or _state.interrupted:
        raise KeyboardInterrupt


def signalled() -> bool:
    """Tell whether a KeyboardInterrupt may be that of a signal.

    Returns:
        False where signals are watched and none came: then code raised it.
    """
    return not _state.watched or _state.received > 0 or _state.interrupted


def _handle(number: int, frame: FrameType | None) -> None:
    """Interrupt the main thread once; all else is for the watching thread, which ends the process."""
    if _state.orderly and not _state.interrupted:
        _state.interrupted = True
        raise KeyboardInterrupt


def _watch(reading: int) -> None:
    """Count signals as they come, and end the process where that is due."""
    while numbers := os.read(reading, 64):
        _state.received += sum(number in _SIGNALS for number in numbers)
        if _state.received and not _state.orderly:
            _end("nothing more was written")
        if _state.received > 1:
            _end("at once, as told twice")


def _end(line: str) -> None:
    """End the process without a word from anything that is at work in it."""
    # a buffered stream may be in the middle of a write
    os.write(2, f"\njaxstab: interrupted, {line}\n".encode())
    os._exit(STOPPED)
