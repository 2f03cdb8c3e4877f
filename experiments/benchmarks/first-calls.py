"""What a user waits for at a first call: each in a fresh process, compile included, no cache."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PYTHON = (sys.executable, "-c")
COMMAND = (sys.executable, "-m", "jaxstab")
THEORY = "from jaxstab import theory; "
POINT = 'theory.fixed_point("tanh", w, 0.3)'
# what is called, seconds asked for, and the command that does it
CALLS = {
    "import jaxstab": (None, (*PYTHON, "import jaxstab")),
    "import jax": (None, (*PYTHON, "import jax; jax.numpy.ones(1)")),
    "jaxstab --help": (0.7, (*COMMAND, "--help")),
    # bad input: one line, exit 2
    "jaxstab sweep --dephts 3": (2.0, (*COMMAND, "sweep", "--dephts", "3")),
    "jaxstab train --seeds 1000000000": (2.0, (*COMMAND, "train", "--seeds", "1000000000")),
    "jaxstab theory": (
        3.0,
        (*COMMAND, "theory", "--activation", "tanh", "--sigma-w", "1.5", "--sigma-b", "0.3"),
    ),
    "theory.fixed_point": (1.5, (*PYTHON, THEORY + POINT.replace("w", "1.5"))),
    "jax.grad of it": (
        3.0,
        (*PYTHON, THEORY + f"import jax; jax.grad(lambda w: {POINT}.chi_1)(1.5)"),
    ),
    "theory.jacobian_law": (
        2.0,
        (*PYTHON, THEORY + 'theory.jacobian_law("tanh", 1.1, 0.05, depth=16)'),
    ),
    "initializers.gain": (
        2.0,
        (*PYTHON, 'from jaxstab import initializers; initializers.gain("sigmoid")'),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    print("| first call of a process | seconds, least | asked | processor seconds |")
    print("|---|---|---|---|")
    for name, (asked, command) in CALLS.items():
        runs = [timed(command, environment) for _ in range(args.repeats)]
        wall = min(wall for wall, _ in runs)
        processor = min(processor for _, processor in runs)
        wanted = "" if asked is None else f"{asked:.1f}"
        print(f"| `{name}` | {wall:.2f} | {wanted} | {processor:.2f} |", flush=True)


def timed(command: tuple[str, ...], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds from start to exit, by the clock and of processors."""
    before = os.times()
    start = time.perf_counter()
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - start
    if run.returncode not in (0, 2):
        raise SystemExit(f"{' '.join(command)} failed: {run.stderr}")
    after = os.times()
    processor = (
        after.children_user - before.children_user + after.children_system - before.children_system
    )
    return wall, processor


if __name__ == "__main__":
    main()
