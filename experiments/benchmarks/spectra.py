"""Spectra and gradients of many networks: floors, ours and rivals in one run."""

import argparse
import subprocess
import sys
import time

from measuring import session
from spectral import dense, gradients, logs, matrix_free

PARTS = {"spectra": dense, "log": logs, "gradients": gradients, "matrix-free": matrix_free}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all unless given"
    )
    session.options(parser)
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    parts = args.parts or list(PARTS)
    if len(parts) > 1:
        # each in a process of its own: gradients want fewer threads than decompositions
        flags = [word for word in sys.argv[1:] if word not in PARTS]
        for part in parts:
            subprocess.run([sys.executable, __file__, part, *flags], check=True)
        return
    start = time.perf_counter()
    PARTS[parts[0]].report(*session.begin(args))
    print(f"[{parts[0]}: {time.perf_counter() - start:.0f} s]", flush=True)


if __name__ == "__main__":
    main()
