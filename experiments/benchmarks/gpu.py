"""One accelerator: float32 kernel tests and four workloads, against its own product and memory bandwidth."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PARTS = ("rates", "spectra", "log", "gradients", "trainings", "matrix-free")
# seconds: a part that hangs costs no more, and all of them stay below eight minutes
LIMIT = 70
TESTS_LIMIT = 170


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="sizes for a CPU, to try the command")
    parser.add_argument(
        "--part", choices=PARTS, help="measure this part alone and print it as JSON"
    )
    parser.add_argument("--no-tests", action="store_true", help="leave the kernel tests out")
    args = parser.parse_args()
    if args.part:
        from accelerator import workloads

        print(json.dumps(workloads.PARTS[args.part](args.small)))
        return
    table([measured(part, args.small) for part in PARTS])
    if not args.no_tests:
        print(tests(), flush=True)


def measured(part: str, small: bool) -> dict:
    """Run one part in a process of its own, within a time limit."""
    command = [sys.executable, __file__, "--part", part, *(["--small"] if small else [])]
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT, env=environment(), check=False
        )
    except subprocess.TimeoutExpired:
        return {"part": part, "failed": f"not done after {LIMIT} s"}
    if done.returncode:
        return {"part": part, "failed": done.stderr.strip().splitlines()[-1:]}
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"[{part}: {time.perf_counter() - start:.0f} s]", file=sys.stderr, flush=True)
    return {"part": part, **found}


def environment() -> dict[str, str]:
    """The environment in which jaxstab is found without being installed, and takes memory as it needs it."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def table(rows: list[dict]) -> None:
    """Print the device's rates, then a line for each workload."""
    rates = rows[0]
    if "failed" in rates:
        raise SystemExit(f"no rates: {rates['failed']}")
    print(rates["device"])
    print(
        f"float32 product {rates['flops'] / 1e12:.2f} TFLOP/s, memory {rates['bytes'] / 1e9:.0f} GB/s\n"
    )
    header = ("workload", "compile s", "run s", "TFLOP/s", "of product", "GB/s", "of memory")
    print("| " + " | ".join(header) + " |")
    print("|---" * len(header) + "|")
    for row in rows[1:]:
        print("| " + " | ".join(cells(row, rates)) + " |", flush=True)


def cells(row: dict, rates: dict) -> list[str]:
    """Format one workload as the cells of a table row."""
    if "failed" in row:
        return [row["part"], f"failed: {row['failed']}", *[""] * 5]
    flops = row["flops"] / row["run"]
    read = row["bytes"] / row["run"]
    return [
        f"{row['part']}: {row['what']}",
        f"{row['compile']:.2f}",
        f"{row['run']:.3f}",
        f"{flops / 1e12:.2f}",
        f"{flops / rates['flops']:.0%}",
        f"{read / 1e9:.0f}",
        f"{read / rates['bytes']:.0%}",
    ]


def tests() -> str:
    """Run the float32 kernel tests and give pytest's last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "kernels", "--float32", "tests"]
    # pytest-benchmark warns beside pytest-xdist, and warnings are errors
    command += ["-p", "no:benchmark"]
    if importlib.util.find_spec("xdist"):
        command += ["--numprocesses=4", "--dist=loadfile"]
    log = ROOT / "runs" / "gpu-tests.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as out:
        try:
            subprocess.run(
                command,
                cwd=ROOT,
                stdout=out,
                stderr=out,
                timeout=TESTS_LIMIT,
                env=environment(),
                check=False,
            )
        except subprocess.TimeoutExpired:
            out.write(f"\nnot done after {TESTS_LIMIT} s")
    lines = log.read_text().splitlines()
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return "\n".join([*failures, f"kernel tests: {lines[-1] if lines else 'nothing ran'}"])


if __name__ == "__main__":
    main()
