"""How a benchmark starts: options, the CPU divided, the machine's rates, what rivals there are."""

import argparse
import importlib.util

import jax

from jaxstab.devices import divide_cpu, one_blas_thread
from measuring import machine
from measuring.timing import Settings


def options(parser: argparse.ArgumentParser) -> None:
    """What every benchmark of several sides takes."""
    parser.add_argument("--small", action="store_true", help="about a tenth of the work")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-rivals", action="store_true", help="ours and the floors alone")


def begin(args: argparse.Namespace) -> tuple[Settings, machine.Rates]:
    """Divide the CPU, measure its rates, and print both with the versions."""
    divide_cpu()
    one_blas_thread()
    devices = jax.local_devices()
    rate = machine.rates(devices)
    settings = Settings(
        args.small, args.repeats, not args.no_rivals, _torch_device(devices[0].platform)
    )
    print(machine.describe(devices, rate) + _rivals(settings), flush=True)
    return settings, rate


def _torch_device(platform: str) -> str | None:
    """Where PyTorch runs, if it is there for the same kind of device."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return "cpu" if platform == "cpu" else "cuda" if torch.cuda.is_available() else None


def _rivals(settings: Settings) -> str:
    if not settings.rivals:
        return ""
    if settings.torch is None:
        return "\nno PyTorch for this device: its rivals are left out"
    import torch

    return f"\nrivals with PyTorch {torch.__version__} on {settings.torch}"
