"""Compiled programs, kept; those that are needed next are compiled meanwhile, in threads."""

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import jax

Key = TypeVar("Key", bound=Hashable)

# programs compiled at the same time, each in a thread
AHEAD = 2


class Programs(Generic[Key]):
    """Programs by what decides them.

    Attributes:
        compiled: by key, finished or not.
    """

    def __init__(self, lower: Callable[[Key], jax.stages.Lowered]) -> None:
        """Remember how programs are made; none is.

        Args:
            lower: traces the program of a key.
        """
        self._lower = lower
        self._traced: dict[Key, jax.stages.Lowered] = {}
        self.compiled: dict[Key, Future[jax.stages.Compiled]] = {}
        self._compilers = ThreadPoolExecutor(AHEAD)

    def keep(self, key: Key, traced: jax.stages.Lowered) -> None:
        """Keep a program that is traced already.

        Args:
            key: of the program.
            traced: the program.
        """
        self._traced[key] = traced

    def ready(self, key: Key, coming: Sequence[Key] = ()) -> jax.stages.Compiled:
        """Wait for a program.

        Args:
            key: of the program.
            coming: keys that are needed next, which are compiled beside it and beside what runs.

        Returns:
            The program.
        """
        for wanted in (key, *coming[: AHEAD - 1]):
            if wanted not in self.compiled:
                # in the caller's thread: a context such as jax.enable_x64 is seen in no other
                if wanted in self._traced:
                    lowered = self._traced.pop(wanted)
                else:
                    lowered = self._lower(wanted)
                self.compiled[wanted] = self._compilers.submit(lowered.compile)
        return self.compiled[key].result()
