"""Fully connected network as a Flax module."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxstab.activations import Activation, get
from jaxstab.checks import check_count, check_flag, plain_number
from jaxstab.networks.blocks import WEIGHTS, Block
from jaxstab.networks.normalization import NORMS
from jaxstab.networks.skips import SKIPS
from jaxstab.precision import check_precision


class MLP(nn.Module):
    """Fully connected network with norm, dropout, skip connections and a choice of initialisers.

    h_0 = W x + b; h_l = skip(h_{l-1}, W a + b) for l = 1..depth; y = W a + b of h_depth. Here a =
    phi(norm(h)), or norm(phi(h)) with norm_after, thinned by dropout in training; the readout has
    no skip. The skips, F = W a + b:

    - "sum": h + F (He et al. 2016); "scaled": h + F / sqrt(depth); "rezero": h + alpha F, alpha
      trained from 0 (Bachlechner et al. 2021).
    - "highway": T F + (1 - T) h, T = sigmoid(W_T a + b_T) (Srivastava et al. 2015).
    - "dense": [F, h], so that every layer reads all earlier layers (Huang et al. 2017). h then has
      (depth + 1) width features, newest first, zero for later layers. W has variance sigma_w^2 /
      fan_in with fan_in the number of existing features, and "layer" and "rms" normalise the
      features of each layer separately.

    Attributes:
        depth: number of blocks L >= 1, excluding embed and readout.
        width: units per layer, >= 1.
        activation: name, `Activation` or elementwise callable.
        features_out: number of outputs, >= 1.
        weights: one of WEIGHTS, such as "gaussian" or "orthogonal", or an initialiser like those of
            jax.nn.initializers.
        norm: None or one of NORMS: "batch", "layer", "rms", "peri", "dyt" or "derf". "peri" is
            LayerNorm of h and of the branch W a + b (Kim et al. 2025). BatchNorm in training mixes
            examples: x is then a batch.
        norm_after: True for a norm after phi, False for a norm before phi.
        dropout: True if training drops features, at the rate of `bind`.
        skip: None, "sum", "scaled", "rezero", "highway" or "dense".
        epsilon: number added to variances in a norm, >= 0.
        momentum: momentum of BatchNorm's running statistics, in [0, 1]: running = momentum running
            + (1 - momentum) batch.
        gate_bias: initial bias b_T of a highway's gates; a more negative bias carries more of h.
        precision: precision of matrix products in functions of the chain, see `networks.Chain`.

    Example:
        >>> import jax
        >>> from jaxstab import networks
        >>> mlp = MLP(depth=8, width=32, activation="relu", norm="layer", skip="sum")
        >>> chain = networks.chain(mlp)
        >>> params = chain.init(jax.random.key(0), jnp.ones(784), sigma_w=2**0.5)
        >>> y = chain.apply(params, jnp.ones(784))
        >>> params.blocks["dense"]["kernel"].shape, y.shape
        ((8, 32, 32), (10,))
    """

    depth: int
    width: int
    activation: str | Activation | Callable[[Array], Array] = "tanh"
    features_out: int = 10
    weights: str | Callable[..., Array] = "gaussian"
    norm: str | None = None
    norm_after: bool = False
    dropout: bool = False
    skip: str | None = None
    epsilon: float = 1e-5
    momentum: float = 0.9
    gate_bias: float = -2.0
    precision: str | None = "highest"

    def __post_init__(self) -> None:
        """Check the static settings.

        Raises:
            ValueError: if a size is not a positive integer, a setting is out of range, or a name is
                unknown.
        """
        for field in ("depth", "width", "features_out"):
            setattr(self, field, check_count(field, getattr(self, field), 1))
        self.norm_after = check_flag("norm_after", self.norm_after)
        hint = "; the rate is an argument of bind(params, key=key, rate=0.1)"
        self.dropout = check_flag("dropout", self.dropout, hint)
        for field, known in (
            ("weights", WEIGHTS),
            ("norm", (None, *NORMS)),
            ("skip", (None, *SKIPS)),
        ):
            name = getattr(self, field)
            if name not in known and not (field == "weights" and callable(name)):
                raise ValueError(
                    f"{field} must be one of {', '.join(map(str, known))}, got {name!r}"
                )
        for field in ("epsilon", "momentum", "gate_bias"):
            number = getattr(self, field)
            if not isinstance(number, jax.Array):
                setattr(self, field, plain_number(field, number))
        if not self.epsilon >= 0:
            raise ValueError(f"epsilon must be >= 0, got {self.epsilon}")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {self.momentum}")
        check_precision("precision", self.precision)
        phi = get(self.activation)
        if not phi.elementwise and self.sources > 1:
            raise ValueError(
                f"activation must not be a mixture with skip {self.skip!r}, whose blocks read the "
                f"features of all layers, got {phi.name}; use one activation, or another skip"
            )
        super().__post_init__()

    @property
    def sources(self) -> int:
        """Number of layers whose features the state h holds."""
        if self.skip and SKIPS[self.skip].every_source:
            return self.depth + 1
        return 1

    @property
    def mixes_examples(self) -> bool:
        """True if training normalises over the examples of a batch."""
        return self.norm is not None and NORMS[self.norm].over_batch

    @property
    def of_one_depth(self) -> bool:
        """True if blocks depend on the depth, so that the first blocks are no shallower network."""
        return self.skip is not None and SKIPS[self.skip].of_one_depth

    def layers(self, train: bool) -> tuple[Block, Block, Block]:
        """Make embedding, block and readout as separate modules.

        Args:
            train: True for training mode, False for inference.

        Returns:
            Embedding, block and readout, unbound.
        """
        if isinstance(self.weights, str):
            weights = WEIGHTS[self.weights]
        else:
            weights = self.weights
        head = {
            field: getattr(self, field)
            for field in (
                "norm",
                "norm_after",
                "dropout",
                "depth",
                "sources",
                "epsilon",
                "momentum",
                "gate_bias",
            )
        }
        phi = get(self.activation)
        return (
            Block(self.width, get("identity"), weights, parent=None),
            Block(self.width, phi, weights, skip=self.skip, train=train, parent=None, **head),
            Block(self.features_out, phi, weights, train=train, inner=False, parent=None, **head),
        )

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch d_in"], train: bool = True
    ) -> Float[Array, "*batch d_out"]:
        """Compute the network's output.

        Args:
            x: one input, or a batch.
            train: True for training mode, in which BatchNorm uses statistics of the batch, and
                updates mutable "batch_stats", and dropout drops; False for inference.

        Returns:
            y.
        """
        embed, block, readout = (
            layer.clone(name=name, parent=self)
            for name, layer in zip(("embed", "blocks", "readout"), self.layers(train), strict=True)
        )
        scanned = nn.scan(
            lambda block, h, index: (block(h, index), None),
            variable_axes={"params": 0, "batch_stats": 0, "dropout": 0, "gains": 0},
            split_rngs={"params": True},
            length=self.depth,
        )
        h = embed(x)
        # layers still to come are zero
        h = jnp.concatenate([h, *[jnp.zeros_like(h)] * (self.sources - 1)], axis=-1)
        return readout(scanned(block, h, jnp.arange(self.depth))[0])
