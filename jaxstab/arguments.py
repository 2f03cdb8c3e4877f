"""Checks of arguments against the annotations of a function, with errors of one line."""

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import AbstractArray, Array, Key, PyTree

from jaxstab.checks import integer

# for the other packages of jaxstab only
__all__ = ()

P = ParamSpec("P")
R = TypeVar("R")

# classes of numbers in annotations; jax.typing.ArrayLike names all of them
_NUMBERS = (bool, int, float, complex, np.bool_, np.number)
_ARRAYS = (jax.Array, np.ndarray)
# descriptions by name of the class, since JAX cannot sort keys that are classes
_WORDS = {
    "bool": "True or False",
    "int": "an integer",
    "float": "a number",
    "str": "a name",
    "tuple": "a tuple",
}
_KEY = Key[Array, ""]
# folder of this package
_OWN = str(Path(__file__).parent)


def explained(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function raise a ValueError of one line for arguments of a wrong kind.

    Before the call, arguments that never fit are refused: None, text or functions for numbers, no
    key for a key, and no callable for a function. If the call fails without a message of this
    package, the error names the first argument that differs from its annotation.

    Args:
        function: a public function with correct annotations.

    Returns:
        Function with the same results and the same traced programs.

    Example:
        >>> from jaxtyping import Array, Float
        >>> @explained
        ... def length(x: Float[Array, "d_in"]) -> Float[Array, ""]:
        ...     return jnp.sqrt(jnp.mean(x**2))
        >>> length(None)
        Traceback (most recent call last):
        ValueError: x must be an array [d_in], got None
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            # Python's own message names a missing or unknown argument
            return function(*args, **kwargs)
        _refuse(signature, given, _is_never)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if not is_ours(error):
                _refuse(signature, given, _is_other)
            raise

    return call


def _refuse(
    signature: inspect.Signature,
    given: Mapping[str, Any],
    wrong: Callable[[Any, Any], bool],
) -> None:
    """Raise for the first wrong argument, with each of `*inputs` checked alone."""
    for name, value in given.items():
        parameter = signature.parameters[name]
        if parameter.kind is parameter.VAR_KEYWORD or parameter.annotation is parameter.empty:
            continue
        values = value if parameter.kind is parameter.VAR_POSITIONAL else (value,)
        # an argument named key is always a key, also of JAX's older style
        annotation = _KEY if name == "key" else parameter.annotation
        for one in values:
            if wrong(annotation, one) and not (one is None and parameter.default is None):
                raise ValueError(
                    f"{name} must be {_words(annotation)}, got {_told(annotation, one)}"
                )


def is_ours(error: Exception) -> bool:
    """Check whether an error is a message of this package.

    Args:
        error: a raised exception.

    Returns:
        True for a ValueError of one line that this package's own code raised.
    """
    if not isinstance(error, ValueError) or "\n" in str(error):
        return False
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and frame.tb_frame.f_code.co_filename.startswith(_OWN)


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or any other annotation as the only member."""
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


def _is_array(annotation: Any) -> bool:
    return annotation in _ARRAYS or (
        isinstance(annotation, type) and issubclass(annotation, AbstractArray)
    )


def _is_key(annotation: Any) -> bool:
    # an annotation of any dtype has no list of dtypes
    dtypes = getattr(annotation, "dtypes", ())
    return _is_array(annotation) and isinstance(dtypes, tuple) and "prng_key" in dtypes


def _is_function(annotation: Any) -> bool:
    return annotation is Callable or get_origin(annotation) is Callable


def _is_never(annotation: Any, value: Any) -> bool:
    """Check whether a value can never be a key, numbers or a function, as annotated."""
    if isinstance(value, jax.Array) and not _is_key(annotation):
        return False
    members = _members(annotation)
    if all(map(_is_key, members)):
        return not _is(_kind_of_key, value)
    if all(map(_is_function, members)):
        return not callable(value)
    if members == (bool,):
        # for numbers the function's own check may say more
        return not isinstance(value, _NUMBERS)
    if all(_is_array(member) or member in _NUMBERS for member in members):
        return value is None or isinstance(value, str | Mapping) or callable(value)
    return False


def _is_other(annotation: Any, value: Any) -> bool:
    """Check whether a value fits no member of an annotation."""
    members = _members(annotation)
    if complex in members and (isinstance(value, complex) or _is(_kind_of_complex, value)):
        # ArrayLike includes complex numbers, but settings of this package are real
        return True
    return not any(_fits(member, value) for member in members)


def _is(check: Callable[[Any], bool], value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape") and check(value.dtype)


def _kind_of_key(dtype: Any) -> bool:
    # keys of the older style are arrays of uint32
    return jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == np.uint32


def _kind_of_complex(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, np.complexfloating)


def _kind_of_numbers(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, np.number) or dtype == np.bool_


def _fits(annotation: Any, value: Any) -> bool:
    """Check whether a value fits an annotation; any value fits an unknown annotation."""
    origin = get_origin(annotation)
    if annotation in (None, types.NoneType):
        return value is None
    if _is_key(annotation):
        return _is(_kind_of_key, value)
    if _is_array(annotation):
        # the call has failed, and an empty array may be the reason
        return isinstance(value, _ARRAYS) and _is(_kind_of_numbers, value) and value.size > 0
    if annotation is int:
        return integer(value) is not None
    if annotation is float:
        real = isinstance(value, _NUMBERS) or _is(_kind_of_numbers, value)
        return real and not isinstance(value, complex)
    if _is_function(annotation):
        return callable(value)
    if isinstance(annotation, type) and getattr(annotation, "__module__", "") == "jaxtyping":
        return annotation is not PyTree or all(map(_is_leaf, jax.tree.leaves(value)))
    if origin is tuple and PyTree in get_args(annotation):
        return isinstance(value, tuple) and all(map(_is_leaf, jax.tree.leaves(value)))
    if origin in (Sequence, tuple):
        return isinstance(value, Iterable) and not isinstance(value, str)
    if isinstance(origin or annotation, type) and annotation is not Any:
        return isinstance(value, origin or annotation)
    return True


def _is_leaf(leaf: Any) -> bool:
    return isinstance(leaf, _NUMBERS) or _is(_kind_of_numbers, leaf) or _is(_kind_of_key, leaf)


def _words(annotation: Any) -> str:
    """Describe the kind of an annotation."""
    members = [member for member in _members(annotation) if member is not types.NoneType]
    optional = " or None" if len(members) < len(_members(annotation)) else ""
    if complex in members:
        words = ["a real number or an array of such"]
        members = [member for member in members if _is_function(member)]
    else:
        words = []
    words += [_word(member) for member in members]
    return f"{' or '.join(dict.fromkeys(words))}{optional}"


def _word(annotation: Any) -> str:
    if annotation in (bool, int, float, str, tuple):
        return _WORDS[annotation.__name__]
    if _is_key(annotation):
        return "a PRNG key, such as jax.random.key(0)"
    if _is_array(annotation):
        shape = getattr(annotation, "dim_str", "")
        return f"an array [{', '.join(shape.split())}]" if shape else "an array"
    if _is_function(annotation):
        return "a function"
    if annotation is PyTree:
        return "a pytree of arrays"
    name = getattr(annotation, "__name__", str(annotation))
    if get_origin(annotation) in (Sequence, tuple):
        return "a sequence"
    if isinstance(annotation, type) and annotation.__module__.startswith("jaxstab."):
        return f"a {annotation.__module__.split('.')[1]}.{name}"
    return f"a {name}"


def _told(annotation: Any, value: Any) -> str:
    """Describe a value: short values themselves, otherwise their kind."""
    if PyTree in (*_members(annotation), *get_args(annotation)):
        wrong = [leaf for leaf in jax.tree.leaves(value) if not _is_leaf(leaf)]
        if wrong and not any(leaf is value for leaf in wrong):
            return f"one that holds {_told(Any, wrong[0])}"
    if value is None or isinstance(value, (*_NUMBERS, str)):
        return f"{value!r:.60}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, types.FunctionType):
        return f"the function {value.__name__}"
    return f"a {type(value).__name__}"
