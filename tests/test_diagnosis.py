"""Planted faults are found at the right module, healthy models raise no alarm."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jaxstab import diagnosis, networks, propagation
from jaxstab.diagnosis import depths, diagnosing, measuring
from jaxstab.diagnosis.comparing import compared
from jaxstab.diagnosis.disagreeing import disagreement
from jaxstab.networks.chains import Segments

X = jax.random.normal(jax.random.key(0), (16, 12), "float32")
TOKENS = jax.random.randint(jax.random.key(1), (8, 6), 0, 11)
# of a transformer's sites, to compile less
KINDS = ("Embed", "TransformerBlock", "LayerNorm", "Transformer")
HE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def loss(y):
    y = y.astype(jnp.float32)
    return jnp.mean(jax.nn.logsumexp(y, -1) - y[..., 0])


def tiny_loss(y):
    return 1e-7 * loss(y)


class Mlp(nn.Module):
    """Eight layers of relu; the module of number 4 may have a fault, or floats of its own."""

    fault: str = ""
    dtype: str = "float32"
    of_four: str = ""
    factor: float = 1.0

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(32, kernel_init=HE, dtype=self.dtype)(x)
        for i in range(1, 8):
            h = nn.relu(x)
            if i == 4:
                if self.fault == "log of zero":
                    h = jnp.log(h)
                if self.fault == "root of zero":
                    h += jnp.sqrt(0 * h)
                if self.fault == "stop_gradient":
                    h = jax.lax.stop_gradient(h)
                h *= self.factor
            if self.fault == "frozen" and i == 4:
                x = Frozen()(h)
                continue
            biases = nn.initializers.constant(-50.0 if self.fault == "dead" and i == 4 else 0.0)
            dtype = self.of_four if self.of_four and i == 4 else self.dtype
            x = nn.Dense(32, kernel_init=HE, bias_init=biases, dtype=dtype)(h)
        return nn.Dense(4, dtype=self.dtype)(nn.relu(x))


class Frozen(nn.Module):
    """A layer whose kernel is not trained."""

    @nn.compact
    def __call__(self, x):
        return x @ jax.lax.stop_gradient(self.param("kernel", HE, (32, 32), "float32"))


class Residual(nn.Module):
    scale: float = 1.0

    @nn.compact
    def __call__(self, x):
        return x + self.scale * nn.Dense(32)(
            nn.relu(nn.Dense(32, kernel_init=HE)(nn.LayerNorm()(x)))
        )


class ResNet(nn.Module):
    faulty: int = -1

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(32)(x)
        for i in range(6):
            x = Residual(10.0 if i == self.faulty else 1.0)(x)
        return nn.Dense(4)(nn.LayerNorm()(x))


class Gpt(nn.Module):
    """Blocks of attention, pre-norm; the positions' embedding is a parameter of the model itself."""

    depth: int = 3

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 32)(tokens) + self.param(
            "positions", nn.initializers.normal(0.5), (1, 6, 32), "float32"
        )
        for i in range(self.depth):
            x = GptBlock(name=f"block_{i}")(x)
        return nn.Dense(11)(nn.LayerNorm()(x))


class GptBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
        return x + nn.Dense(32)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x.reshape(-1, 4, 3, 1)
        for width in (8, 16, 16, 32):
            x = nn.relu(nn.Conv(width, (3, 3), kernel_init=HE)(x))
        return nn.Dense(4)(x.mean((1, 2)))


class Rnn(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(nn.RNN(nn.OptimizedLSTMCell(16))(x.reshape(16, 4, 3))[:, -1])


class Transformer(nn.Module):
    """24 blocks; the norm within the residual branch, or after the sum as in Vaswani et al. 2017."""

    pre: bool

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 32, embedding_init=nn.initializers.normal(1.0))(tokens)
        x += self.param("positions", nn.initializers.normal(1.0), (1, 6, 32), "float32")
        blocks = nn.scan(
            TransformerBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=24,
        )
        x, _ = blocks(self.pre, name="blocks")(x, None)
        return nn.Dense(11)(nn.LayerNorm()(x))


class TransformerBlock(nn.Module):
    pre: bool

    @nn.compact
    def __call__(self, x, _):
        for branch in (
            nn.MultiHeadDotProductAttention(4),
            nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(32)]),
        ):
            norm = nn.LayerNorm()
            x = x + branch(norm(x)) if self.pre else norm(x + branch(x))
        return x, None


def _whats(report):
    return [finding.fault for finding in report.findings]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "what", "where"),
    [
        (Mlp("log of zero"), "non-finite signal, forward", "Dense_4"),
        (Mlp("root of zero"), "non-finite gradient, backward", "Dense_4"),
        (Mlp("stop_gradient"), "no gradient", "Dense_4"),
        (Mlp("frozen"), "frozen parameters", "Frozen_0"),
        (Mlp("dead"), "dead units", "Dense_4"),
        # float16 ends at 6e-8, and has all of its digits above 6e-5
        (Mlp(of_four="float16", factor=1e-6), "signal underflow", "Dense_4"),
        (Mlp(of_four="float16", factor=1e-9), "signal underflow", "Dense_4"),
        (ResNet(3), "one block unlike the others", "Residual_3"),
    ],
)
def test_a_planted_fault_is_found_at_its_module(model, what, where):
    report = diagnosis.diagnose(model, jax.jit(model.init)(jax.random.key(2), X), X, loss)
    assert [(finding.fault, finding.where) for finding in report.findings] == [(what, where)]
    assert f"{what.upper()} at {where}" in str(report)
    if what == "dead units":
        (cure,) = report.prescriptions
        assert (cure.name, cure.before) == ("zero biases", 1.0)
        # of 32 units at 16 examples, some are off for all at any draw
        assert cure.after < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "where"), [(Mlp(dtype="float16"), "Mlp"), (Mlp(of_four="float16"), "Dense_4")]
)
def test_half_precision_that_underflows_is_told_from_a_gradient_that_is_none(model, where):
    """The place is the first, from the output on, whose float16 loses more than a tenth."""
    report = diagnosis.diagnose(model, jax.jit(model.init)(jax.random.key(2), X), X, tiny_loss)
    assert [(finding.fault, finding.where) for finding in report.findings] == [
        ("gradient underflow", where)
    ]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("settings", "gains", "what", "rate"),
    [
        # d ln |dL/dh| / dl = -ln(chi) / 2: relu at Glorot's gain, chi = 1/2
        (
            {"depth": 50, "activation": "relu"},
            {"sigma_w": 1.0},
            "vanishing gradient",
            np.log(2) / 2,
        ),
        ({"depth": 20, "activation": "sigmoid"}, {"sigma_w": 1.0}, "vanishing gradient", np.log(4)),
        (
            {"depth": 20, "activation": "relu"},
            {"sigma_w": 2.0},
            "exploding gradient",
            -np.log(2) / 2,
        ),
        # batch normalisation of 16 examples, Yang et al. 2019, between that of 8 and 32 examples
        (
            {"depth": 60, "activation": "relu", "norm": "batch"},
            {"sigma_w": 1.0},
            "exploding gradient",
            -0.24,
        ),
    ],
)
def test_the_rate_of_a_deep_chain_is_that_of_theory(settings, gains, what, rate):
    mlp = networks.MLP(width=64, features_out=4, **settings)
    params = networks.chain(mlp).init(jax.random.key(3), X, **gains)
    probe = networks.probe(mlp, params, X)
    report = diagnosis.diagnose(probe, params, X, loss)
    finding = report.findings[0]
    assert finding.fault == what and finding.where.startswith("blocks@")
    # width 64: the scatter of one network's rate over this depth
    np.testing.assert_allclose(finding.measured.value, rate, rtol=0.2)
    assert finding.measured.low < finding.measured.value < finding.measured.high
    # theory at the gains of the parameters, within the scatter of finite width
    np.testing.assert_allclose(report.theory.rate, rate, rtol=0.1)
    assert abs(report.theory.beyond) < 4 and f"theory: {report.theory.rate:.3g}" in str(report)
    if settings["activation"] != "relu" or "norm" in settings:
        return
    # relu is cured by its kernels alone
    cured = report.apply("critical kernels")
    assert jax.tree.map(jnp.shape, cured) == jax.tree.map(jnp.shape, params)
    again = diagnosis.diagnose(probe, cured, X, loss)
    assert "vanishing gradient" not in _whats(again) and "exploding gradient" not in _whats(again)
    assert report.prescriptions[0].after < 0.5 * report.prescriptions[0].before
    assert "measured to help" in str(report)
    with pytest.raises(ValueError, match="one of the prescriptions, critical kernels, .*'prayer'"):
        report.apply("prayer")


@pytest.mark.slow
def test_a_chain_is_compared_with_the_law_that_it_carries():
    """Layers of one's own with our network's law, with a wrong one, and with none."""
    mlp = networks.MLP(12, 48, "relu", features_out=4)
    embed, block, readout = mlp.layers(train=True)
    layers = [embed, *[block] * 12, readout]
    chain = networks.from_linen(layers, law={"activation": "relu"})
    drawn = networks.chain(mlp).init(jax.random.key(3), X, 1.2)
    params = drawn._replace(blocks=Segments((drawn.blocks,)))
    report = diagnosis.diagnose(chain, params, X, loss)
    # -ln(sigma_w^2 / 2) / 2; the gain is that of twelve layers' 48^2 weights each
    np.testing.assert_allclose(report.theory.rate, -np.log(1.2**2 / 2) / 2, atol=0.02)
    assert abs(report.theory.beyond) < 4
    ours = compared(networks.chain(mlp), drawn, report.measured)
    np.testing.assert_allclose(ours[:-1], report.theory[:-1], rtol=1e-6)
    wrong = compared(chain._replace(law={"activation": "identity"}), params, report.measured)
    (found,) = disagreement(report.measured, wrong)
    assert found.fault == "gradient unlike theory" and wrong.beyond > 4
    np.testing.assert_allclose(found.measured.value, report.rate.value, rtol=0.05)
    lawless = compared(networks.from_linen(layers), params, report.measured)
    assert "has no law" in str(lawless) and not disagreement(report.measured, lawless)
    assert "theory needs a chain" in str(compared(None, params, report.measured))


@pytest.mark.slow
@pytest.mark.parametrize("pre", [False, True])
def test_positions_of_a_deep_post_norm_transformer_collapse(pre):
    # Norms of the gradient stay within a factor e^2 over the 24 blocks, of either kind in each of ten draws, so that
    # no rule of the gradient tells them apart at initialisation. The positions do (Dong et al. 2021; Noci et al.
    # 2022): 1 - c above the last block was at most 1e-5 with post-norm, at least 0.12 with pre-norm.
    model = Transformer(pre)
    draw = jax.jit(lambda key: model.init(key, TOKENS))
    probe = networks.probe(model, jax.eval_shape(draw, jax.random.key(0)), TOKENS, kind=KINDS)
    for seed in range(5):
        report = diagnosis.diagnose(probe, draw(jax.random.key(seed)), TOKENS, loss)
        if pre:
            assert report.healthy, f"seed {seed}: {report}"
            continue
        assert _whats(report) == ["collapsing correlation"], f"seed {seed}: {report}"
        found = report.findings[0]
        assert found.where.startswith("blocks@") and "positions" in found.unit
        assert 0 < int(found.where.removeprefix("blocks@")) < 23
        assert "pre-norm" in found.change


@pytest.mark.slow
def test_attention_that_has_settled_is_found_at_its_module():
    """Hold place, size and interval of an entropy collapse; the query's kernel times 100."""
    model = Gpt(depth=2)
    params = jax.jit(model.init)(jax.random.key(2), TOKENS)
    query = params["params"]["block_1"]["MultiHeadDotProductAttention_0"]["query"]
    query["kernel"] *= 100
    report = diagnosis.diagnose(model, params, TOKENS, loss)
    (found,) = report.findings
    where = "block_1/MultiHeadDotProductAttention_0.logits"
    assert (found.fault, found.where) == ("entropy collapse", where)
    heads = networks.probe(model, params, TOKENS, kind="attention")
    found_heads = jax.jit(lambda: propagation.attention(heads, params, TOKENS))()
    profile = jax.device_get(found_heads)
    shares = profile.entropy[1] / profile.uniform[1]
    np.testing.assert_allclose(found.measured.value, np.mean(shares), rtol=1e-5)
    reach = 2 * np.std(shares, ddof=1) / np.sqrt(4)
    np.testing.assert_allclose(found.measured.high - found.measured.value, reach, rtol=1e-4)
    assert f"largest logit {np.max(profile.max_logit[1]):.3g}; 1 of 2" in found.unit
    # its queries and keys are scaled down, nothing else
    (cure,) = report.prescriptions
    assert cure.name == "cooler attention" and cure.after < 0.5 * cure.before
    changed = jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda a, b: bool(jnp.any(a != b)), params, report.apply())
    )
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, new in changed if new]
    module = "params/block_1/MultiHeadDotProductAttention_0"
    assert paths == [f"{module}/key/kernel", f"{module}/query/kernel"]


@pytest.mark.slow
def test_gradients_of_nearby_inputs_in_a_chaotic_chain_are_those_of_the_chain_rule():
    """Hold cosines and signal to noise of gradients at two nearby inputs against NumPy's chain rule."""
    depth, width = 14, 32
    draws = np.random.default_rng(0)
    weights = (3.5 * draws.normal(size=(depth, width, width)) / width**0.5).astype("float32")

    def model(weights, h):
        for i, w in enumerate(weights):
            h = networks.tag(f"block{i}", jnp.tanh(h) @ w)
        return h

    h = draws.normal(size=(6, width)).astype("float32")
    key = jax.random.key(6)
    report = diagnosis.diagnose(model, list(weights), h, lambda y: jnp.sum(y**2), key=key)
    found = next(finding for finding in report.findings if finding.fault == "shattered gradient")
    first = networks.probe(model, list(weights), h).sites[0]
    at_first = np.tanh(h) @ weights[0]
    shift = np.asarray(measuring._disturbance(first, jnp.asarray(at_first), key)["block0"])

    def gradient(state):
        states = [state.astype(float)]
        for w in weights[1:]:
            states.append(np.tanh(states[-1]) @ w)
        cotangent = 2 * states[-1]
        for state, w in zip(states[-2::-1], weights[:0:-1], strict=True):
            cotangent = (1 - np.tanh(state) ** 2) * (cotangent @ w.T)
        return cotangent

    one, other = gradient(at_first), gradient(at_first + shift)
    product = np.sum(one * other, 1)
    squares = np.sum(one**2, 1), np.sum(other**2, 1)
    cosines = product / np.sqrt(squares[0] * squares[1])
    # float32 in a chaotic chain: 3e-6 in the cosine
    np.testing.assert_allclose(found.measured.value, np.mean(cosines), atol=1e-3)
    reach = 2 * np.std(cosines, ddof=1) / np.sqrt(6)
    np.testing.assert_allclose(found.measured.high - found.measured.value, reach, rtol=1e-2)
    noise = (squares[0] + squares[1]) / 2 - product
    ratio = report.measured.saliency.signal_to_noise[0]
    np.testing.assert_allclose(ratio, np.median(product / noise), rtol=2e-2, atol=1e-3)


@pytest.mark.slow
def test_a_mask_of_attention_is_no_fault():
    """Hold that -inf in what a softmax reads raises no alarm."""
    x = jax.random.normal(jax.random.key(0), (5, 4, 6), "float32")

    def attend(w, x):
        logits = jnp.where(jnp.tri(4, dtype=bool), x @ w @ x.mT, -jnp.inf)
        return networks.tag("attended", jax.nn.softmax(logits) @ x)

    w = jnp.eye(6, dtype="float32") / 6
    probe = networks.probe(attend, w, x, kind=("*", "softmax"))
    report = diagnosis.diagnose(probe, w, x, loss)
    assert [row.name for row in probe.rows] == ["softmax.logits", "attended"]
    assert report.healthy, str(report)


def test_the_depth_is_of_one_method_and_a_loss_is_a_scalar():
    """Hold that what wraps a module, and so calls a method of it as well, is no second depth."""
    model = nn.Sequential([nn.WeightNorm(nn.Dense(12)) for _ in range(3)])
    params = jax.eval_shape(model.init, jax.random.key(0), X)
    probe = networks.probe(model, params, X)
    assert _depth(probe) == [f"layers_{i}" for i in range(3)]
    with pytest.raises(
        ValueError, match=r"the loss must be a scalar float, got float32 of shape \(16, 12\)"
    ):
        diagnosis.diagnose(probe, params, X, jnp.square)


def _depth(probe):
    return [probe.rows[i].name for i in depths.blocks(probe)]


class Stages(nnx.Module):
    """Two layers in each of three entries of a list, which are no modules."""

    def __init__(self, rngs):
        layers = [[nnx.Linear(12, 12, rngs=rngs) for _ in range(2)] for _ in range(3)]
        self.stages = nnx.List(
            [nnx.Dict(norm=nnx.LayerNorm(12, rngs=rngs), parts=nnx.List(of)) for of in layers]
        )

    def __call__(self, h):
        for stage in self.stages:
            h = h + stage["parts"][1](nnx.relu(stage["parts"][0](stage["norm"](h))))
        return h


def test_the_depth_is_of_blocks_and_not_of_their_parts():
    """Hold it where blocks have more parts than there are blocks, and where they are no modules."""
    for count, expected in ((3, [f"block_{i}" for i in range(3)]), (2, [])):
        gpt = Gpt(depth=count)
        params = jax.eval_shape(gpt.init, jax.random.key(0), TOKENS)
        # query, key, value and out of attention are four of a kind
        assert _depth(networks.probe(gpt, params, TOKENS)) == expected
    stages = networks.probe(Stages(nnx.Rngs(0)), None, X)
    assert _depth(stages) == [f"stages/{i}/parts/1" for i in range(3)]


class FromZero(nn.Module):
    """Residual branches whose last kernels start at zero, and features that the loss does not read."""

    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            branch = nn.relu(nn.Dense(12)(x))
            x = x + nn.Dense(12, use_bias=False, kernel_init=nn.initializers.zeros)(branch)
        return {"logits": nn.Dense(4)(x), "features": 2 * x}


def test_branches_that_start_at_zero_and_outputs_that_nobody_reads_are_no_fault():
    """Hold that what has no gradient only before the first step raises no alarm."""
    model = FromZero()
    params = jax.jit(model.init)(jax.random.key(0), X)
    report = diagnosis.diagnose(model, params, X, lambda y: loss(y["logits"]))
    assert report.healthy, str(report)
    assert np.any(report.measured.log_grad_theta == -np.inf)


class Unnormalised(nn.Module):
    """Twelve residual blocks without norms; the branch ends in the kernel called last."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(32)(x)
        for _ in range(12):
            x = Plain()(x)
        return nn.Dense(4)(x)


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(32, kernel_init=HE)(nn.relu(nn.Dense(32, kernel_init=HE)(x)))


@pytest.mark.slow
def test_branches_of_an_exploding_residual_network_are_scaled_down():
    """Hold that the last kernel of each block, and no other, is divided by sqrt(12)."""
    model = Unnormalised()
    params = jax.jit(model.init)(jax.random.key(2), X)
    report = diagnosis.diagnose(model, params, X, loss)
    assert _whats(report)[:2] == ["exploding gradient", "exploding signal"]
    cured = report.apply("scaled branches")
    for block, before in params["params"].items():
        after = cured["params"][block]
        if block.startswith("Plain"):
            # Flax names the outer one first, which is called last
            kernel = before["Dense_0"]["kernel"] / 12**0.5
            np.testing.assert_allclose(after["Dense_0"]["kernel"], kernel, rtol=1e-6)
            after = after["Dense_1"]
            before = before["Dense_1"]
        jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.slow
def test_a_readout_is_no_odd_block():
    model = nn.Sequential(
        [part for width in (32,) * 8 + (1,) for part in (nn.sigmoid, nn.Dense(width))]
    )
    report = diagnosis.diagnose(model, jax.jit(model.init)(jax.random.key(2), X), X, jnp.mean)
    assert "one block unlike the others" not in _whats(report)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("model", [Mlp(), ResNet(), Gpt(), Cnn(), Rnn(), "chain"])
def test_healthy_models_raise_no_alarm_over_five_seeds(model):
    x = TOKENS if isinstance(model, Gpt) else X
    if model == "chain":
        model = networks.MLP(depth=20, width=32, activation="tanh", features_out=4)
        draw = jax.jit(lambda key: networks.chain(model).init(key, x))
    else:
        draw = jax.jit(lambda key: model.init(key, x))
    probe = diagnosing.probed(model, jax.eval_shape(draw, jax.random.key(0)), x)
    for seed in range(5):
        report = diagnosis.diagnose(probe, draw(jax.random.key(seed)), x, loss)
        assert report.healthy, f"seed {seed}: {report}"
        # a cell's last state, which nothing reads, is no zero gradient
        assert np.isfinite(report.rate.value)
    assert "no finding" in str(report)
    rows = json.loads(report.as_json())["rows"]
    assert list(rows) == [row.name for row in probe.rows]
