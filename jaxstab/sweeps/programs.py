"""Cache of compiled programs; threads compile the programs that are needed next."""

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import jax

Key = TypeVar("Key", bound=Hashable)

# programs compiled at the same time, each in a thread
AHEAD = 2


class Programs(Generic[Key]):
    """Compiled programs by key.

    Attributes:
        compiled: futures of compiled programs by key.
    """

    def __init__(self, lower: Callable[[Key], jax.stages.Lowered]) -> None:
        """Make an empty cache.

        Args:
            lower: key -> traced program.
        """
        self._lower = lower
        self._traced: dict[Key, jax.stages.Lowered] = {}
        self.compiled: dict[Key, Future[jax.stages.Compiled]] = {}
        self._compilers = ThreadPoolExecutor(AHEAD)

    def keep(self, key: Key, traced: jax.stages.Lowered) -> None:
        """Add a program that is already traced.

        Args:
            key: key of the program.
            traced: the traced program.
        """
        self._traced[key] = traced

    def ready(self, key: Key, coming: Sequence[Key] = ()) -> jax.stages.Compiled:
        """Return a program once it is compiled.

        Args:
            key: key of the program.
            coming: keys of the next programs, which are compiled meanwhile.

        Returns:
            The compiled program.
        """
        for wanted in (key, *coming[: AHEAD - 1]):
            if wanted not in self.compiled:
                # traced in the caller's thread, since contexts such as jax.enable_x64 are local to it
                if wanted in self._traced:
                    lowered = self._traced.pop(wanted)
                else:
                    lowered = self._lower(wanted)
                self.compiled[wanted] = self._compilers.submit(lowered.compile)
        return self.compiled[key].result()
