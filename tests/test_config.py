"""Config machinery: dataclasses to and from dicts, TOML and flags; one error lists all that is wrong."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from typing import Annotated, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quatrain.config.check import check, closest
from quatrain.config.schema import digest, fields_of, from_dict, override, replace_in, to_dict
from quatrain.config.toml import dump_toml, load_toml
from quatrain.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Model:
    width: Annotated[int, "channels"] = 8
    kind: Literal["rnn", "lstm"] = "rnn"
    rank: Annotated[Literal["auto"] | int, "or a number"] = "auto"
    mixer: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def __post_init__(self):
        check(self.width > 0, "width", self.width, "must be positive")


@dataclass(frozen=True, kw_only=True)
class Train:
    lr: Annotated[float, "learning rate"] = 1e-3
    warmup: float = 0.1
    parts: tuple[float, ...] = (0.9, 0.1)
    carry: bool = False
    name: str = "a"

    def __post_init__(self):
        # Some classes name their whole path themselves.
        check(self.lr > 0, "train.lr", self.lr, "must be positive")


@dataclass(frozen=True, kw_only=True)
class Run:
    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)


@dataclass(frozen=True, kw_only=True)
class Needs:
    size: int


def problems(values, cls=Run, path=""):
    with pytest.raises(ConfigError) as caught:
        from_dict(cls, values, path)
    return str(caught.value).splitlines()


def test_defaults_and_nested_values():
    config = from_dict(
        Run, {"train": {"lr": 1, "parts": [0.5, 0.5]}, "model": {"rank": 3, "mixer": {"s6": {"n": 16}}}}
    )
    assert config == Run(train=Train(lr=1.0, parts=(0.5, 0.5)), model=Model(rank=3, mixer={"s6": {"n": 16}}))
    assert type(config.train.lr) is float
    assert from_dict(Run, {}) == Run()


def test_round_trip_through_dict_and_toml(tmp_path):
    config = Run(
        train=Train(lr=math.inf, parts=(0.25,), carry=True, name='a "b" \\ \n\t\x01 唐'),
        model=Model(mixer={"s 6": {"x": [1, 2.5, "z"], "zoh": True}, "empty": {}}),
    )
    plain = to_dict(config)
    assert plain["train"]["parts"] == [0.25]
    assert from_dict(Run, plain) == config
    path = tmp_path / "config.toml"
    path.write_text(dump_toml(plain), encoding="utf-8")
    assert load_toml(path) == plain


def test_every_problem_is_in_one_error_with_a_line_each():
    values = {
        "modle": {},
        "model": {"widht": 4, "kind": "lstn", "rank": "aut"},
        "train": {"lr": "fast", "parts": [0.5, "x"], "carry": 1, "name": 3, "lr_": 0},
    }
    assert problems(values) == [
        "modle = {}: unknown key (did you mean model?)",
        "model.widht = 4: unknown key (did you mean model.width?)",
        "model.kind = 'lstn': must be one of rnn, lstm (did you mean lstm?)",
        "model.rank = 'aut': must be auto or an integer",
        "train.lr_ = 0: unknown key (did you mean train.lr?)",
        "train.lr = 'fast': must be a number",
        "train.parts[1] = 'x': must be a number",
        "train.carry = 1: must be true or false",
        "train.name = 3: must be a string",
    ]


def test_ranges_of_all_nested_classes_are_collected_with_their_path():
    assert problems({"model": {"width": 0}, "train": {"lr": 0.0}, "x": 1}) == [
        "x = 1: unknown key",
        "model.width = 0: must be positive",
        "train.lr = 0.0: must be positive",
    ]
    assert problems({"width": -1}, Model, "model.encoder") == ["model.encoder.width = -1: must be positive"]


def test_a_key_of_another_table_is_suggested():
    assert problems({"warmup": 0.1}) == ["warmup = 0.1: unknown key (did you mean train.warmup?)"]
    assert problems({"model": {"lr": 1}}) == ["model.lr = 1: unknown key (did you mean train.lr?)"]


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("model", 3, "must be a table of keys"),
        ("model", [], "must be a table of keys"),
        ("model.width", True, "must be an integer"),
        ("model.width", 8.0, "must be an integer"),
        ("model.width", "8", "must be an integer"),
        ("model.kind", 1, "must be one of rnn, lstm"),
        ("model.mixer", 1, "must be a table of keys"),
        ("model.mixer", {"s6": 1}, "must be a table of keys"),
        ("train.lr", math.nan, "must be a number"),
        ("train.lr", False, "must be a number"),
        pytest.param("train.lr", 10**400, "must be a number", id="huge"),
        ("train.parts", 0.5, "must be a list, each item a number"),
    ],
)
def test_wrong_types(key, value, rule):
    values: dict = {}
    table = values
    *tables, last = key.split(".")
    for name in tables:
        table = table.setdefault(name, {})
    table[last] = value
    (line,) = problems(values)
    assert line.startswith(key)
    assert line.endswith(rule)
    assert len(line) < 200


def test_missing_key():
    assert problems({}, Needs) == ["size: is missing and has no default"]


def test_fields_of_gives_leaves_with_help():
    infos = {info.key: info for info in fields_of(Run)}
    assert list(infos) == [
        *("model.width", "model.kind", "model.rank", "model.mixer"),
        *("train.lr", "train.warmup", "train.parts", "train.carry", "train.name"),
    ]
    assert (infos["model.width"].type, infos["model.width"].default) == (int, 8)
    assert infos["train.lr"].help == "learning rate"
    assert infos["model.rank"].help == "or a number"
    assert infos["model.kind"].choices == ("rnn", "lstm")
    assert infos["model.width"].choices == ()
    assert fields_of(Needs, "a.b")[0].key == "a.b.size"
    assert fields_of(Needs)[0].default is MISSING


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("model.width", "32", 32),
        ("model.rank", "auto", "auto"),
        ("model.rank", "4", 4),
        ("train.lr", "3e-4", 3e-4),
        ("train.lr", "inf", math.inf),
        ("train.parts", "0.8, 0.1,0.1", (0.8, 0.1, 0.1)),
        ("train.carry", "true", True),
        ("train.carry", "False", False),
        ("train.name", "3", "3"),
    ],
)
def test_strings_of_the_command_line_are_read_as_the_fields_type(key, text, value):
    table, name = key.split(".")
    assert getattr(getattr(replace_in(Run(), {key: text}), table), name) == value


def test_free_tables_read_strings_as_what_they_look_like():
    changes = {
        "model.mixer.s6.state": "32",
        "model.mixer.s6.zoh": "true",
        "model.mixer.s6.a": "0.5",
        "model.mixer.x.b": "w",
    }
    mixer = replace_in(Run(), changes).model.mixer
    assert mixer == {"s6": {"state": 32, "zoh": True, "a": 0.5}, "x": {"b": "w"}}


def test_override_leaves_its_argument_alone_and_judges_nothing():
    values = {"train": {"lr": 0.1}, "model": {"mixer": {"s6": {"n": 1}}}}
    changed = override(
        Run, values, {"train.lr": "x", "nope.y": "1", "model.mixer.s6.n": 2, "train.lr.z": "1"}
    )
    assert values == {"train": {"lr": 0.1}, "model": {"mixer": {"s6": {"n": 1}}}}
    assert changed["model"]["mixer"]["s6"]["n"] == 2
    assert [line.split(" = ")[0] for line in problems(changed)] == ["nope", "train.lr"]


def test_digest_names_the_values_not_their_spelling():
    assert digest(Train(lr=1)) == digest(Train(lr=1.0)) == digest(from_dict(Train, {"lr": 1}))
    assert digest(Train(lr=1)) != digest(Train(lr=2))
    assert len(digest(Run())) == 12
    assert digest(to_dict(Run())) == digest(Run())


def test_toml_errors_name_file_and_line(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("a = 1\nb = = 2\n")
    with pytest.raises(ConfigError, match=r"recipe\.toml: is not TOML: .*line 2"):
        load_toml(path)
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match=r"recipe\.toml: is not TOML: byte 5 is not UTF-8"):
        load_toml(path)
    with pytest.raises(FileNotFoundError):
        load_toml(tmp_path / "none.toml")


scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text()
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
scalars = scalars.map(
    lambda value: value.encode("utf-8", "ignore").decode() if isinstance(value, str) else value
)
items = scalars | st.lists(scalars | st.dictionaries(texts, scalars, max_size=2), max_size=3)
tables = st.recursive(
    st.dictionaries(texts, items, max_size=4),
    lambda inner: st.dictionaries(texts, items | inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(tables)
def test_any_table_comes_back_from_toml(values):
    assert tomllib.loads(dump_toml(values)) == values


def test_toml_has_no_null():
    with pytest.raises(TypeError, match="NoneType"):
        dump_toml({"a": None})


def test_closest():
    assert closest("lstn", ["rnn", "lstm"]) == " (did you mean lstm?)"
    assert closest("zzz", ["rnn", "lstm"]) == ""
