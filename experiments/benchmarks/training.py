"""Trainability: 60 trainings over depth and gain, floors, ours and rivals in one run."""

import argparse
import time

from measuring import session
from training_runs.report import report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    session.options(parser)
    parser.add_argument("--steps", type=int, help="of SGD; 100, or 20 with --small")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument(
        "--cells", type=int, nargs="+", default=[], help="numbers of trainings to scale ours to"
    )
    args = parser.parse_args()
    settings, rate = session.begin(args)
    start = time.perf_counter()
    report(settings, rate, args.steps or (20 if args.small else 100), args.width, args.cells)
    print(f"[training: {time.perf_counter() - start:.0f} s]", flush=True)


if __name__ == "__main__":
    main()
