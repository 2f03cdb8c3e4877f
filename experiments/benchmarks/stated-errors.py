"""How far above true errors those of `log_singular_values` are, over families of products, in both precisions."""

import argparse

import jax
import numpy as np
from spectral import products

# layers, width and seed of each family's products
PRODUCTS = ((14, 10, 101), (3, 7, 202), (33, 6, 303))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "families",
        nargs="*",
        default=list(products.FAMILIES),
        help="such as Hilbert; all unless given",
    )
    parser.add_argument("--seed", type=int, default=0, help="added to the seeds of all products")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    everything: dict[str, list[np.ndarray]] = {"float32": [], "float64": []}
    all_missed = 0
    print("| family | float32 | float64 | missed |\n|---|---|---|---|")
    for family in args.families:
        own: dict[str, list[np.ndarray]] = {"float32": [], "float64": []}
        missed = 0
        for layers, n, seed in PRODUCTS:
            factors = products.factors(family, layers, n, seed + args.seed)
            truth = products.truth(factors)
            for dtype, ratios in own.items():
                ratio, above = products.excess(products.found(factors, dtype), truth)
                ratios.append(ratio)
                missed += above
        medians = [float(np.median(np.concatenate(ratios))) for ratios in own.values()]
        print(f"| {family} | {medians[0]:.3g} | {medians[1]:.3g} | {missed} |", flush=True)
        for dtype, ratios in own.items():
            everything[dtype] += ratios
        all_missed += missed
    for dtype, ratios in everything.items():
        whole = np.concatenate(ratios)
        quantiles = ", ".join(
            f"{quantile:.3g}" for quantile in np.quantile(whole, (0.01, 0.5, 0.9, 1.0))
        )
        print(f"{dtype}: {len(whole)} values; quantiles 1 %, 50 %, 90 %, 100 %: {quantiles}")
    print(f"true errors above the stated ones: {all_missed}")


if __name__ == "__main__":
    main()
