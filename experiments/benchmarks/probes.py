"""What probing an unmodified model costs: a transformer of 12 blocks and width 256, in linen and nnx, at every site.

Memory is that of compiled programs (`memory_analysis`: arguments, results and what lies between), of the gradient by
parameters and all sites over the gradient by parameters alone. Seconds are of processors (by the clock): of both
gradients to compile and to run, of a first diagnosis with all that it compiles, and of a second one.
"""

import argparse
import os
import platform
import time

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from jaxstab import diagnosis, networks
from jaxstab.propagation.sites import gradients_at_sites

WIDTH, DEPTH, HEADS, TOKENS, VOCABULARY = 256, 12, 4, 64, 64
TARGET = 2.0


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, h):
        h = h + nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(h))
        return h + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(h))))


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        h = nn.Embed(VOCABULARY, WIDTH)(tokens)
        for i in range(DEPTH):
            h = LinenBlock(name=f"block_{i}")(h)
        return nn.Dense(VOCABULARY)(nn.LayerNorm()(h))


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, h):
        h = h + self.attention(self.norms[0](h))
        return h + self.down(nnx.gelu(self.up(self.norms[1](h))))


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.blocks = nnx.List([NnxBlock(rngs) for _ in range(DEPTH)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

    def __call__(self, tokens):
        h = self.embed(tokens)
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


def loss(y):
    return jnp.mean(jax.nn.logsumexp(y, -1) - y[..., 0])


def linen(tokens):
    """The model, its parameters and its plain loss of them."""
    model = LinenModel()
    params = jax.jit(model.init)(jax.random.key(0), tokens)
    return model, params, lambda params: loss(model.apply(params, tokens))


def nnx_model(tokens):
    model = NnxModel(nnx.Rngs(0))
    graph, params = nnx.split(model)
    return model, params, lambda params: loss(nnx.merge(graph, params)(tokens))


def megabytes(compiled) -> float:
    memory = compiled.memory_analysis()
    parts = (
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes,
        memory.argument_size_in_bytes,
        -memory.alias_size_in_bytes,
    )
    return sum(parts) / 1e6


def timed(function):
    """What a call gives, and its seconds by the clock and of processors."""
    before = os.times()
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    wall = time.perf_counter() - start
    after = os.times()
    return result, wall, after.user - before.user + after.system - before.system


def compiled_and_run(function, params):
    """A compiled function, and its seconds to trace and compile and to run, the least of three."""
    jitted = jax.jit(function)
    compiled, *compiling = timed(lambda: jitted.lower(params).compile())
    running = min(timed(lambda: compiled(params))[1:] for _ in range(3))
    return compiled, compiling, running


def row(name: str, make, tokens) -> str:
    """One model as a row of the table."""
    model, params, plain = make(tokens)
    own, *own_seconds = compiled_and_run(jax.grad(plain), params)
    probe, *probing = timed(lambda: networks.probe(model, params, tokens))
    probed, *probed_seconds = compiled_and_run(
        lambda params: gradients_at_sites(probe, params, tokens, loss=loss), params
    )

    def diagnose():
        return diagnosis.diagnose(probe, params, tokens, loss).measured.log_grad_h

    _, *first = timed(diagnose)
    _, *again = timed(diagnose)
    alone = megabytes(own)
    whole = megabytes(probed)
    seconds = [
        f"{cpu:.2f} ({wall:.2f})"
        for wall, cpu in (probing, *own_seconds, *probed_seconds, first, again)
    ]
    memory = [f"{alone:.0f}", f"{whole:.0f}", f"{whole / alone:.2f}"]
    return f"| {' | '.join([name, str(len(probe.sites)), *seconds, *memory])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    tokens = jax.random.randint(jax.random.key(1), (args.batch, TOKENS), 0, VOCABULARY)
    print(
        f"{platform.machine()}, Python {platform.python_version()}, jax {jax.__version__}; "
        f"{DEPTH} blocks of width {WIDTH}, {args.batch} x {TOKENS} tokens; processor seconds (by the clock)\n"
    )
    columns = [
        *("", "sites", "probe", "own gradient, compile", "run", "of all sites, compile", "run"),
        *("diagnosis, first", "again", "MB own", "MB of all sites", "ratio"),
    ]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, make in (("linen", linen), ("nnx", nnx_model)):
        print(row(name, make, tokens), flush=True)
    print(f"\nmemory asked: at most {TARGET:.1f} of the model's own backward pass")


if __name__ == "__main__":
    main()
