"""Spectra and gradients of many networks: floors, ours and rivals in one run."""

import argparse
import time

from measuring import session
from spectral import dense, gradients, logs, matrix_free

PARTS = {"spectra": dense, "log": logs, "gradients": gradients, "matrix-free": matrix_free}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all unless given")
    session.options(parser)
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    settings, rate = session.begin(args)
    for part in args.parts or PARTS:
        start = time.perf_counter()
        PARTS[part].report(settings, rate)
        print(f"[{part}: {time.perf_counter() - start:.0f} s]", flush=True)


if __name__ == "__main__":
    main()
