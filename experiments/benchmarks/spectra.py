"""Spectra and gradients of many networks: floors, ours and rivals in one run."""

import argparse
import importlib.util
import time

import jax

from spectral import machine
from jaxstab import sweeps

PARTS = ("spectra", "log", "gradients", "matrix-free")


def rivals_device(platform: str) -> str | None:
    """Where PyTorch runs, if it is there and on the same kind of device."""
    if importlib.util.find_spec("torch") is None:
        return None
    if platform == "cpu":
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all of them unless given")
    parser.add_argument("--small", action="store_true", help="about a tenth of the work")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-rivals", action="store_true", help="ours and the floors alone")
    args = parser.parse_args()
    machine.divide_cpu()
    devices = sweeps.usable_devices()
    rate = machine.rates(devices, 1024 if args.small else 4096)
    print(machine.describe(devices, rate))
    rivals = None if args.no_rivals else rivals_device(devices[0].platform)
    print(f"rivals: {_rivals(rivals)}", flush=True)
    from spectral import dense, gradients, logs, matrix_free

    run = {"spectra": dense, "log": logs, "gradients": gradients, "matrix-free": matrix_free}
    for part in args.parts or PARTS:
        start = time.perf_counter()
        run[part].report(args.small, args.repeats, rivals, rate)
        print(f"[{part}: {time.perf_counter() - start:.0f} s]", flush=True)


def _rivals(device: str | None) -> str:
    if device is None:
        return "none (asked for none, or no PyTorch for this device)"
    import torch

    return f"PyTorch {torch.__version__} on {device}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
