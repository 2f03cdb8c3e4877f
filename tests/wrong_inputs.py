"""What users get wrong, as hypothesis strategies: command lines of every command, config files, archives, stores."""

import dataclasses
import importlib
import io
import itertools
import json
import math
import os
import struct
import types
import typing
import warnings
import zipfile
from pathlib import Path

import numpy as np
import tyro
from hypothesis import strategies as st
from trained_cells import dataset_of, store_of

from jaxstab import cli, sweeps

# settings of every command, by name: their fields are the flags
SETTINGS = {
    name: getattr(importlib.import_module(f"jaxstab.cli.{name}"), command.settings)
    for name, command in cli._COMMANDS.items()
}
# flags that must be there, with values that are right
NEEDED = {
    "status": {"store": "trained.zarr"},
    "report": {"store": "trained.zarr"},
    "diagnose": {"factory": "own_model:made", "batch": "batch.npz"},
    "sweep": {"data": "data.npz"},
    "train": {"data": "data.npz"},
}
# modules of a user's own, in the current folder
MODULES = {
    "own_model.py": (
        "import jax.numpy as jnp\n"
        "from jaxstab import networks\n"
        "net = networks.MLP(depth=2, width=4, features_out=2)\n"
        "def made():\n"
        "    import jax\n"
        "    chain = networks.chain(net)\n"
        "    return chain, chain.init(jax.random.key(0), jnp.ones(3)), lambda y: jnp.mean(y**2)\n"
        "def fails(): raise RuntimeError('one\\ntwo')\n"
        "def nothing(): return None\n"
        "def ends(): raise SystemExit(3)\n"
        "number = 3\n"
        "def phi(x): return jnp.tanh(x)\n"
        "def of_two(x, y): return x + y\n"
        "def of_sums(x): return jnp.sum(x)\n"
    ),
    "own_syntax.py": "def (:\n",
    "own_end.py": "import sys; sys.exit(0)\n",
}

# ---------------------------------------------------------------------------------------------
# words

# no number of any kind
NO_NUMBERS = (
    "", " ", "x", "nan", "-nan", "NaN", "1,5", "1e", "0x8", "--", "²", "⅔", "true", "1 2",
    "\x1b[31m3", "3\n4", "\u202e3", "\udcff",
)  # fmt: skip
NUMBERS = (
    "0", "-0.0", "-1", "1", "2", "3", "8", "1.5", "0.1", "1e3", "1_0", "\u0663", "\uff13", "+4", " 5", "007",
    "inf", "-inf", "1e400", "1e308", "1e-308", "5e-324", "1e30", "-1e-300", "2147483647",
    "2147483648", "-2147483648", "4294967296", "9223372036854775808", "99999999999999999999",
    "1000000", "100000000", "9" * 400, "9" * 5000,
)  # fmt: skip
PATHS = (
    "", " ", ".", "..", "/", "-", "new", "new/deeper", "new.zarr", "new.png", "new/x.svg", "folder",
    "folder/x.npz", "folder.npz", "file.txt", "file.txt/x", "file.txt/x.zarr", "loop", "loop/x",
    "dangling", "pipe", "pipe.npz", "locked", "locked/x", "locked/x.png", "/dev/null",
    "/dev/null/x.png", "/dev/zero", "/dev/full", "/proc/self/mem", "/proc/x/y", "~", "~/x",
    "~nobody-here/x", "x" * 300, "new/" + "x" * 300, "x/" * 3000, "x" * 300 + ".png", "\x1b[31mred",
    "a\nb", "\u202eevil", "\udcff", "\udcff.npz", "é" * 200 + ".zarr", "é" * 120, "x" * 250, "\U0001f600" * 60,
    "\U0001f600" * 62 + ".svg", "new/" + "x" * 252, "batch.npz/x", "%s{0}", "trained.zarr",
    "trained.zarr/zarr.json", "foreign.zarr", "memory://x/y.zarr", "memory://", "file:///x",
    "unknown://x", "://", "::", "x::y", "zip://x::y", "simplecache::memory://x", "data.npz",
    "batch.npz", "settings.toml", "own_model.py", "a?b*[c]", "a#b", "C:\\x", "trained.zarr\0",
    "reference://x", "s3://", "http://", "github://a:b@c/d", "dir://x", "libarchive://x",
    "dask://x", "blockcache::x", "jar://", "root://", "ssh://nowhere", "local://x", "data:,x",
)  # fmt: skip
NAMES = (
    "tanh", "relu", "TANH", "layer", "batch", "rms", "sum", "scaled", "rezero", "highway", "dense",
    "gaussian", "orthogonal", "float32", "float64", "float16", "adam", "sgd", "None", "none",
    "null", "digits", "mnist", "mnist-5k", "1/1", "2/1", "0/0", "1/1000000000000", "\u0661/\u0661", "1/-1",
    "dks", "tat", "own_model:phi", "own_model:made", "own_model:fails", "own_model:nothing",
    "own_model:ends", "own_model:number", "own_model:of_two", "own_model:of_sums", "own_model:",
    ":phi", ":", "own_model:x.y", "own_syntax:x", "own_end:x", "nowhere:x", "os:system", "a:b:c",
    "..:x", "json:dumps", "own_model:__name__", "127.0.0.1:1", "host:99999", "host:port", "?",
)  # fmt: skip
JUNK = st.text(st.characters(exclude_characters="\0"), max_size=12)
# what an argument of a process can hold
WORDS = st.one_of(*map(st.sampled_from, (NO_NUMBERS, NUMBERS, PATHS, NAMES)), JUNK).filter(
    lambda word: "\0" not in word
)


def kind_of(field):
    """The type of a setting, without what the help shows."""
    kind = field.type
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def _plain(kind):
    """The types of a setting's values: of each element where it is a tuple."""
    if typing.get_origin(kind) is tuple:
        return [one for one in typing.get_args(kind) if one is not Ellipsis]
    if isinstance(kind, types.UnionType):
        return [one for one in typing.get_args(kind) if one is not types.NoneType]
    return [kind]


def values_of(field):
    """Words for the value of a flag, of which many are wrong."""
    kind = _plain(kind_of(field))[0]
    fitting = {int: NUMBERS, float: NUMBERS, Path: PATHS, str: (*PATHS, *NAMES)}.get(kind, ())
    return st.one_of(st.sampled_from(fitting), st.sampled_from(fitting), WORDS).filter(
        lambda word: "\0" not in word
    )


def is_positional(field):
    return tyro.conf.Positional in getattr(field.type, "__metadata__", ())


@st.composite
def flags(draw, command, field):
    """Words of one flag."""
    kind = kind_of(field)
    if is_positional(field):
        return draw(st.lists(values_of(field), min_size=1, max_size=1))
    name = f"--{field.name}" if draw(st.integers(0, 4)) else f"--{field.name.replace('_', '-')}"
    if kind is bool:
        return [name, *draw(st.sampled_from([[], [], [], ["True"], ["x"]]))]
    if typing.get_origin(kind) is tuple:
        return [name, *draw(st.lists(values_of(field), max_size=3))]
    value = draw(values_of(field))
    # the equals sign keeps a value that begins with a dash one
    return draw(st.sampled_from([[f"{name}={value}"], [f"{name}={value}"], [name, value]]))


@st.composite
def lines(draw, command):
    """A command line: a few flags, wrong or not, beside what must be there."""
    fields = {field.name: field for field in dataclasses.fields(SETTINGS[command])}
    chosen = draw(st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=4))
    words = [draw(flags(command, fields[name])) for name in chosen]
    for name, value in NEEDED.get(command, {}).items():
        if name not in chosen:
            words.append([value] if is_positional(fields[name]) else [f"--{name}", value])
    if not draw(st.integers(0, 15)):
        words.insert(0, draw(st.lists(WORDS, max_size=2)))
    return [command, *itertools.chain.from_iterable(words)]


# ---------------------------------------------------------------------------------------------
# files of settings

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    WORDS,
    st.sampled_from([10**400, "1979-05-27", math.inf, 0, 1, 2, 0.5, "a\0b"]),
)


def nested(scalars):
    """Lists and tables of scalars, a few levels deep."""
    return st.recursive(
        scalars,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
        ),
        max_leaves=4,
    )


VALUES = nested(SCALARS)


def toml(value):
    """A value as TOML writes it; None as what TOML cannot read."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


RAW = (
    b"", b"\xff\xfe", b"\0", b"\xef\xbb\xbf", b"a = ", b"width = 1\nwidth = 2\n", b"[width]\n",
    b"[[width]]\nx = 1\n", b"width.x = 1\n", b"'' = 1\n", b"\"\\u0000\" = 1\n", b"= 1\n",
    b"width = 1979-05-27\n", b"width = 0x7fffffffffffffff\n", b"width = 1_0\n", b"width = 1__0\n",
    b"out = '''\n\n'''\n", b"out = \"\\ud800\"\n", b"out = \"\\u001b[31m\"\n", b"# \x1b\n",
    b"depths = " + b"[" * 3000 + b"]" * 3000, b"a" + b".a" * 3000 + b" = 1\n", b"\r", b"width\r= 1",
    b"width = " + b"9" * 5000 + b"\n", b"sigma_w = [" + b"1, " * 20000 + b"]\n",
    b"sigma_w = 1e" + b"9" * 5000 + b"\n", b"depths = [" + b"9" * 4000 + b"]\n",
    b"config = 'x.toml'\n", b"print_config = true\n", b"dry_run = true\n", b"store = 'x'\n",
)  # fmt: skip


@st.composite
def configs(draw, command):
    """The bytes of a config file of a command."""
    if not draw(st.integers(0, 3)):
        return draw(st.one_of(st.sampled_from(RAW), st.binary(max_size=60)))
    fields = dataclasses.fields(SETTINGS[command])
    keys = st.sampled_from([field.name for field in fields])
    rows = []
    for key in draw(st.lists(st.one_of(keys, keys, keys, JUNK), min_size=1, max_size=3)):
        said = key if key.isascii() and key.isidentifier() else json.dumps(key)
        rows.append(f"{said} = {toml(draw(VALUES))}")
    return "\n".join(rows).encode("utf-8", "surrogatepass") + draw(st.sampled_from(RAW[:8]))


# ---------------------------------------------------------------------------------------------
# archives

_X = np.linspace(-1.0, 1.0, 60, dtype=np.float32).reshape(20, 3)
_Y = np.arange(20) % 4


@st.composite
def arrays(draw, right):
    """An array in place of one that is right."""
    n = len(right)
    kind = draw(st.sampled_from(["dtype", "shape", "values", "dtype"]))
    if kind == "dtype":
        dtypes = [
            "b1",
            "u1",
            "i8",
            "u8",
            "f2",
            "f4",
            ">f8",
            "g",
            "c8",
            "G",
            "S3",
            "U2",
            "O",
            "M8[s]",
            "m8[D]",
            "V4",
            "i4,f4",
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return right.astype(draw(st.sampled_from(dtypes)))
            except (TypeError, ValueError):
                return np.array([{"a": 1}] * n, object)
    if kind == "shape":
        shapes = [
            (),
            (0,),
            (n, 0),
            (0, 3),
            (1,),
            (1, 1),
            (n, 1, 3),
            (n + 1, 3),
            (n + 1,),
            (2, 2, 2),
            (1,) * 20,
        ]
        return np.ones(draw(st.sampled_from(shapes)), right.dtype)
    changed = right.astype(np.float64)
    numbers = [np.nan, np.inf, -np.inf, 0.0, -1.0, 1e39, 1e300, 5e-324, 1e9, 2.0**31, 2.0**53, 0.5]
    changed[draw(st.sampled_from([0, n - 1, slice(None)]))] = draw(st.sampled_from(numbers))
    with np.errstate(all="ignore"):
        return changed.astype(draw(st.sampled_from(["f8", "f4", right.dtype.str, "i8"])))


def _npy(shape, dtype, content=b"", version=(1, 0)):
    """An .npy file whose header promises what it likes."""
    head = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode("latin1")
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(head))
    return b"\x93NUMPY" + bytes(version) + size + head + content


HEADERS = (
    _npy((10**12,), "<f8"), _npy((-1,), "<f8", b"\0" * 8), _npy((2**63, 2), "<f8"), _npy((0,), "<f8"),
    _npy((20, 3), "|O", b"cos\nsystem\n(S'true'\ntR."), _npy((20, 3), "<f4", _X.tobytes()[:-1]),
    _npy((20, 3), "<f4", _X.tobytes(), (3, 0)), _npy((20, 3), "<f4", _X.tobytes(), (9, 9)),
    _npy((10**6,) * 5, "|V0"), _npy((20, 3), "<f4", _X.tobytes() + b"x"), _npy(((),), "<f4"),
    _npy((20, 3), "[('a', '<f4')]", _X.tobytes()), _npy((True, 3), "<f4", b"\0" * 12), b"", b"\x93NUMPY",
    _npy("(" * 300, "<f4"), _npy((20, 3), "<f4", b"", (2, 0)), _npy((1,) * 100, "<f4", b"\0" * 4),
)  # fmt: skip


def zipped(members, compression=zipfile.ZIP_DEFLATED):
    """An archive of these files."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return whole.getvalue()


def saved(**found):
    """An archive as NumPy writes it, pickles too."""
    whole = io.BytesIO()
    np.savez(whole, **found)
    return whole.getvalue()


@st.composite
def archives(draw):
    """The bytes of an .npz file, x and y in it, or something else."""
    kind = draw(st.sampled_from(["arrays", "arrays", "names", "header", "torn", "flipped", "raw"]))
    if kind == "arrays":
        which = draw(st.sampled_from(["x", "y", "xy"]))
        x = draw(arrays(_X)) if "x" in which else _X
        y = draw(arrays(_Y)) if "y" in which else _Y
        return saved(x=x, y=y)
    if kind == "names":
        names = draw(
            st.lists(
                st.sampled_from(["x", "y", "X", "z", "x.npy", "é", "a/b", "../x"]),
                max_size=3,
                unique=True,
            )
        )
        return saved(**dict.fromkeys(names, _X))
    if kind == "header":
        wrong = draw(st.sampled_from(HEADERS))
        right = saved(y=_Y)
        with zipfile.ZipFile(io.BytesIO(right)) as archive:
            labels = archive.read("y.npy")
        members = draw(st.permutations([("x.npy", wrong), ("y.npy", labels)]))
        twice = draw(
            st.sampled_from(
                [members, members, [("x", wrong), ("y", labels)], [*members, ("z.npy", wrong)]]
            )
        )
        return zipped(
            twice,
            draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])),
        )
    whole = bytearray(saved(x=_X, y=_Y))
    if kind == "torn":
        return bytes(whole[: draw(st.integers(0, len(whole)))])
    if kind == "flipped":
        for at in draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
            whole[at] ^= draw(st.integers(1, 255))
        return bytes(whole)
    one = io.BytesIO()
    np.save(one, _X)
    return draw(
        st.sampled_from(
            [one.getvalue(), b"", b"PK", b"PK\x05\x06" + b"\0" * 18, zipped([]), b"x,y\n1,2\n"]
        )
    )


# ---------------------------------------------------------------------------------------------
# stores

GRID = sweeps.Grid({"depth": (1,), "seed": (0,)}, width=2)


def make_stores(folder):
    """A store of one training, and one of another program."""
    told = {
        "grid": json.loads(GRID.to_json()),
        "measure": {"name": "train", "steps": 2},
        "data": {"name": "none", "classes": 10, "chance": 0.1},
    }
    store_of(str(folder / "trained.zarr"), dataset_of(GRID, sweeps.Train(2, ()), {}), settings=told)
    foreign = folder / "foreign.zarr"
    foreign.mkdir()
    (foreign / "zarr.json").write_text(
        json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}})
    )
    return folder / "trained.zarr"


def _places(document, path=()):
    """Paths of all values of a JSON document."""
    yield path
    inner = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else ()
    )
    for key, value in inner:
        yield from _places(value, (*path, key))


@st.composite
def forged(draw, document):
    """A JSON document with one value changed or gone."""
    changed = json.loads(json.dumps(document))
    path = draw(st.sampled_from(sorted(_places(changed), key=str)))
    value = draw(
        st.one_of(
            VALUES,
            st.sampled_from(
                [
                    0,
                    -1,
                    2**31,
                    2**63,
                    10**30,
                    [],
                    {},
                    "",
                    "x",
                    [[]],
                    [2**40],
                    "float64",
                    "str",
                    "../x",
                    "GONE",
                    "O",
                    "zstd",
                ]
            ),
        )
    )
    if not path:
        return value
    at = changed
    for key in path[:-1]:
        at = at[key]
    if value == "GONE":
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return changed


def forged_roots(text):
    """The bytes of a root with one value changed or gone."""
    return forged(json.loads(text)).map(lambda document: json.dumps(document).encode())


@st.composite
def broken_files(draw, content):
    """The bytes of a file of a store, broken; None for a file that is gone."""
    kind = draw(st.sampled_from(["torn", "flipped", "gone", "raw", "longer"]))
    if kind == "torn":
        return content[: draw(st.integers(0, max(0, len(content) - 1)))]
    if kind == "flipped" and content:
        at = draw(st.integers(0, len(content) - 1))
        return content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
    if kind == "longer":
        return content + draw(st.binary(min_size=1, max_size=9))
    if kind == "gone":
        return None
    return draw(
        st.sampled_from(
            [b"", b"{}", b"null", b"[" * 10**5, b"\xff", b'"x"', b"1e999", b"NaN", b"9" * 5000]
        )
    )


# ---------------------------------------------------------------------------------------------
# the folder that all of it refers to


def furnish(folder):
    """Files, folders, links and pipes of all kinds in a folder."""
    for name, text in MODULES.items():
        (folder / name).write_text(text)
    (folder / "folder").mkdir()
    (folder / "folder.npz").mkdir()
    (folder / "locked").mkdir(mode=0o500)
    (folder / "file.txt").write_text("text")
    (folder / "settings.toml").write_text("width = 4\n")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere/at/all")
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "pipe.npz")
    (folder / "data.npz").write_bytes(saved(x=_X, y=_Y))
    (folder / "batch.npz").write_bytes(saved(x=_X))
    make_stores(folder)
