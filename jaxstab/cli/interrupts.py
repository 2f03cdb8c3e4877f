"""Ctrl-C and SIGTERM: stop at once where nothing can be lost, and in order where results are kept.

Python runs signal handlers between two of its instructions, and one instruction may compile for
seconds in XLA. Meanwhile a thread reads the signals from the operating system and acts on them.
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
    """State of signal handling.

    Attributes:
        watched: True if `watch` handles the signals.
        orderly: True while results are kept, so that the first signal raises KeyboardInterrupt.
        received: number of signals.
        interrupted: True once KeyboardInterrupt was raised.
    """

    watched = False
    orderly = False
    received = 0
    interrupted = False


_state = _State()


def watch() -> None:
    """Handle signals: outside of `orderly`, the first ends the process with one line and exit code 130.

    The handling lasts until the clean-up at exit, where Python's handler would interrupt JAX. After
    it signals are ignored, so that a finished command keeps its exit code. Nothing happens outside
    of the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    _state.watched = True
    for number in _SIGNALS:
        # ignored signals, as under nohup, stay ignored
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)
            # the first to be registered is the last to be called
            atexit.register(signal.signal, number, signal.SIG_IGN)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), daemon=True).start()


@contextlib.contextmanager
def orderly() -> Iterator[None]:
    """Raise KeyboardInterrupt at the first signal, so that results are kept; a second ends the process.

    Yields:
        Nothing.

    Raises:
        KeyboardInterrupt: if a signal came whose exception was lost, as in a callback.
    """
    before = _state.orderly
    _state.orderly = True
    yield
    check()
    # not reached after an interruption, when the kept results are still to be reported
    _state.orderly = before


@contextlib.contextmanager
def resumable(progress: Callable[[], str]) -> Iterator[None]:
    """Keep finished results when a signal comes, and report how to resume.

    Args:
        progress: function that describes the progress of the command.

    Yields:
        Nothing.

    Raises:
        KeyboardInterrupt: with the progress as its message, if a signal came.
    """
    try:
        with orderly():
            yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{progress()}; the same command resumes the run") from error


def check() -> None:
    """Raise KeyboardInterrupt if the exception of an earlier signal was lost.

    Raises:
        KeyboardInterrupt: if there was a signal.
    """
    if _state.received or _state.interrupted:
        raise KeyboardInterrupt


def signalled() -> bool:
    """Check whether a KeyboardInterrupt may come from a signal.

    Returns:
        False if signals are watched and none came, so that code raised the exception.
    """
    return not _state.watched or _state.received > 0 or _state.interrupted


def _handle(number: int, frame: FrameType | None) -> None:
    """Interrupt the main thread once; the watching thread handles all other signals."""
    if _state.orderly and not _state.interrupted:
        _state.interrupted = True
        raise KeyboardInterrupt


def _watch(reading: int) -> None:
    """Count signals, and end the process outside of `orderly` or at a second signal."""
    while numbers := os.read(reading, 64):
        _state.received += sum(number in _SIGNALS for number in numbers)
        if _state.received and not _state.orderly:
            _end("nothing more was written")
        if _state.received > 1:
            _end("at once, by a second signal")


def _end(line: str) -> None:
    """Print one line and end the process, without clean-up or messages of other threads."""
    # a buffered stream may be in the middle of a write
    os.write(2, f"\njaxstab: interrupted, {line}\n".encode())
    os._exit(STOPPED)
