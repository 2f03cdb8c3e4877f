"""Built-in activations, by name or with a parameter, with their kinks and kernels."""

import difflib
from collections.abc import Callable

from jaxtyping import Array, ArrayLike

from jaxstab.activations import functions, kernels
from jaxstab.activations.activation import Activation
from jaxstab.activations.callables import checked

AnyActivation = str | Activation | Callable[[Array], Array]


def _parametric(name: str, function: str, **parameters: ArrayLike) -> Activation:
    """Make an activation whose function takes parameters."""
    kinks = functions.KINKS.get(function, ())
    kernel = kernels.BY_NAME.get(function)
    return Activation(name, functions.BY_NAME[function], kinks, kernel, parameters)


def leaky_relu(slope: ArrayLike = 0.01) -> Activation:
    """Make phi(z) = z for z > 0, slope z below (Maas et al. 2013).

    Args:
        slope: slope below 0; may be traced.

    Returns:
        The activation.

    Example:
        >>> import jax
        >>> from jaxstab import theory
        >>> chi = lambda slope: theory.derivative_moment(leaky_relu(slope), 1.0)
        >>> float(jax.grad(chi)(0.25))
        0.25
    """
    return _parametric("leaky_relu", "leaky_relu", slope=slope)


def swish(beta: ArrayLike = 1.0) -> Activation:
    """Make phi(z) = z sigmoid(beta z) (Ramachandran et al. 2017), which is silu at beta = 1.

    Args:
        beta: steepness of the gate; may be traced.

    Returns:
        The activation.
    """
    return _parametric("swish", "silu", beta=beta)


def elu(alpha: ArrayLike = 1.0) -> Activation:
    """Make phi(z) = z for z > 0, alpha (e^z - 1) below (Clevert et al. 2016).

    Args:
        alpha: minus the value at -inf; may be traced.

    Returns:
        The activation.
    """
    return _parametric("elu", "elu", alpha=alpha)


def celu(alpha: ArrayLike = 1.0) -> Activation:
    """Make phi(z) = z for z > 0, alpha (e^(z / alpha) - 1) below (Barron 2017).

    Args:
        alpha: minus the value at -inf, not 0; may be traced.

    Returns:
        The activation.
    """
    return _parametric("celu", "celu", alpha=alpha)


def _built_in(name: str) -> Activation:
    if name == "leaky_relu":
        return leaky_relu(0.01)
    return Activation(
        name, functions.BY_NAME[name], functions.KINKS.get(name, ()), kernels.BY_NAME.get(name)
    )


_BUILT_IN = {name: _built_in(name) for name in functions.BY_NAME}
_OTHER_NAMES = {
    "absolute": "abs",
    "gelu_approximate": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "hard_swish": "hard_silu",
    "linear": "identity",
    "logistic": "sigmoid",
    "relu2": "relu_squared",
    "sine": "sin",
    "squared_relu": "relu_squared",
    "swish": "silu",
}


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")


_BY_PLAIN_NAME = {_plain(name): phi for name, phi in _BUILT_IN.items()}
_BY_PLAIN_NAME |= {_plain(other): _BUILT_IN[name] for other, name in _OTHER_NAMES.items()}


def names() -> tuple[str, ...]:
    """List the names of the built-in activations.

    Returns:
        Names that `get` accepts. `get` also accepts usual synonyms, such as swish, and spellings
        such as HardTanh.

    Example:
        >>> "tanh" in names()
        True
    """
    return tuple(_BUILT_IN)


def get(activation: AnyActivation) -> Activation:
    """Return the `Activation` of a name or of an elementwise callable.

    Args:
        activation: built-in name, `Activation`, or elementwise callable, which may close over
            traced values. The function of a built-in activation, such as jax.nn.relu6, is that
            activation. The kinks of another callable are searched for by `theory`; an `Activation`
            with `kinks` declares them.

    Returns:
        The activation. Its traced values are leaves of its pytree.

    Raises:
        ValueError: if the name is unknown (the error suggests similar names), or the callable is
            not elementwise.
        TypeError: if `activation` is neither a name nor callable.

    Example:
        >>> get("relu").kinks
        (0.0,)
        >>> get("swish").name
        'silu'
        >>> get("rely")
        Traceback (most recent call last):
        ...
        ValueError: unknown activation 'rely'; did you mean relu, relu6 or elu? ...
    """
    if isinstance(activation, str):
        return _named(activation)
    if isinstance(activation, Activation):
        phi = activation
        known = _BUILT_IN.get(phi.name)
        # the parts of a mixture were checked when the mixture was made
        if phi is known or not phi.elementwise:
            return phi
        if known is not None and known.fn is phi.fn and phi.kernel is None:
            # made anew, without the kinks and the kernel of the built-in activation
            return known
    elif callable(activation):
        for built_in in _BUILT_IN.values():
            # jax.nn.relu6 itself is "relu6", with its kinks
            if activation is built_in.fn:
                return built_in
        name = getattr(activation, "__name__", type(activation).__name__)
        phi = Activation(name, activation)
    else:
        raise TypeError(f"an activation is a name or a callable, got {type(activation).__name__}")
    return checked(phi)


def _named(name: str) -> Activation:
    if _plain(name) in _BY_PLAIN_NAME:
        return _BY_PLAIN_NAME[_plain(name)]
    near = difflib.get_close_matches(name, _BUILT_IN, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(', '.join(near).rsplit(', ', 1))}? "
    else:
        hint = ""
    raise ValueError(f"unknown activation {name!r}; {hint}built in are {', '.join(_BUILT_IN)}")
