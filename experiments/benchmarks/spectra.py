"""Spectra and gradients of many networks: floors, ours and rivals in one run."""

import argparse
import importlib.util
import time

from spectral import dense, gradients, logs, machine, matrix_free
from spectral.timing import Settings

from jaxstab import sweeps

PARTS = {"spectra": dense, "log": logs, "gradients": gradients, "matrix-free": matrix_free}


def torch_device(platform: str) -> str | None:
    """Where PyTorch runs, if it is there for the same kind of device."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return "cpu" if platform == "cpu" else "cuda" if torch.cuda.is_available() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all unless given")
    parser.add_argument("--small", action="store_true", help="about a tenth of the work")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-rivals", action="store_true", help="ours and the floors alone")
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    machine.divide_cpu()
    devices = sweeps.usable_devices()
    rate = machine.rates(devices)
    settings = Settings(args.small, args.repeats, not args.no_rivals, torch_device(devices[0].platform))
    print(machine.describe(devices, rate) + _rivals(settings), flush=True)
    for part in args.parts or PARTS:
        start = time.perf_counter()
        PARTS[part].report(settings, rate)
        print(f"[{part}: {time.perf_counter() - start:.0f} s]", flush=True)


def _rivals(settings: Settings) -> str:
    if not settings.rivals:
        return ""
    if settings.torch is None:
        return "\nno PyTorch for this device: its rivals are left out"
    import torch

    return f"\nrivals with PyTorch {torch.__version__} on {settings.torch}"


if __name__ == "__main__":
    main()
