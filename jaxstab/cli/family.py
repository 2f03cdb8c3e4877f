"""The settings that measuring and training share: data, and the networks of a grid."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxstab import networks
from jaxstab.checks import check_count
from jaxstab.cli.arguments import choice
from jaxstab.precision import FULL


@dataclasses.dataclass(frozen=True)
class Family:
    """Data, and a family of networks over depth, gain, activation and seed."""

    data: str = "mnist-5k"
    """mnist-5k, digits, mnist (with --data-path), or an .npz file holding x and y."""
    data_path: Path | None = None
    """Folder of the four MNIST IDX files, for --data mnist (scripts/fetch_mnist makes one)."""
    depths: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Depths, ascending."""
    sigma_w: tuple[float, ...] = (1.0,)
    """Weight gains, ascending: standard deviation of the weights times the square root of fan-in."""
    activations: tuple[str, ...] = ("tanh",)
    """Activations by name: identity relu leaky_relu tanh sigmoid erf hard_tanh gelu silu softplus elu selu sin."""
    seeds: int = 1
    """Independent networks per cell; standard errors are over them."""
    width: int = 128
    """Units per layer."""
    weights: choice(str, networks.WEIGHTS) = "gaussian"  # type: ignore[valid-type]
    """Law of the weights."""
    norm: choice(str | None, networks.NORMS) = None  # type: ignore[valid-type]
    """Norm in every block; batch needs --batch."""
    norm_after: bool = False
    """Norm after the activation instead of before it."""
    skip: choice(str | None, networks.SKIPS) = None  # type: ignore[valid-type]
    """Skip connection around every block."""
    batch: int | None = None
    """Examples that go through the network together; in training None for all of them."""
    precision: str = FULL
    """Precision of matrix products: highest is full float32, default is what the device does fastest."""
    dtype: choice(str, ("float32", "float64")) = "float32"  # type: ignore[valid-type]
    """Floating-point numbers of what is computed; theory is always float64."""
    cpu_devices: int | None = None
    """Parts into which JAX divides the CPU; one per core unless given."""
    config: Path | None = None
    """TOML file with any of these settings; flags override it."""
    dry_run: bool = False
    """Check the settings, say what would be computed and what its first networks took, and stop."""
    print_config: bool = False
    """Print these settings as a TOML file for --config, and stop."""

    def seed_axis(self) -> Sequence[int]:
        """The seeds.

        Returns:
            From 0 on; not listed, as there may be more than memory holds.

        Raises:
            ValueError: if there is none.
        """
        return range(check_count("seeds", self.seeds, 1))
