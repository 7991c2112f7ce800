"""The contract of every mixer: tests over the table MIXERS, with the options that change the arithmetic."""

import copy
import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quatrain.errors import ConfigError, ShapeError, StateError
from quatrain.mixers import MIXERS, mixer_class
from quatrain.mixers._base import Causal

WIDTH = 16
VARIANTS: dict[str, dict[str, Any]] = {
    "rnn": {},
    "rnn relu identity": {"nonlinearity": "relu", "recurrent_init": "identity"},
    "lstm": {},
    "gru": {},
    "gru before": {"reset": "before"},
    "attention": {},
    "attention grouped": {"kv_heads": 2},
    "attention window": {"window": 4, "kv_heads": 1},
    "attention window 1": {"window": 1},
    "attention none": {"positions": "none"},
    "attention sinusoidal": {"positions": "sinusoidal"},
    "attention learned": {"positions": "learned", "max_positions": 32},
    "s6": {"state": 5},
    "s6 zoh": {"state": 3, "zoh": True, "conv": 2, "dt_rank": 3},
    "s4d": {"state": 5},
    "s4d complex": {"state": 6, "complex": True, "conv": 3},
}
ULPS = {torch.float64: 1e4, torch.float32: 100.0, torch.bfloat16: 8.0}  # of the largest value
EVERY = pytest.mark.parametrize("variant", VARIANTS)


def make(variant: str, dtype: torch.dtype = torch.float64, width: int = WIDTH, **more: Any) -> Causal[Any]:
    torch.manual_seed(0)
    return mixer_class(variant.split(maxsplit=1)[0])(width=width, **{**VARIANTS[variant], **more}).to(dtype)


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close(got: Tensor, wanted: Tensor, what: str = "output", dtype: torch.dtype | None = None) -> None:
    assert got.shape == wanted.shape, f"{what}: shape {tuple(got.shape)} instead of {tuple(wanted.shape)}"
    assert got.dtype == wanted.dtype, f"{what}: {got.dtype} instead of {wanted.dtype}"
    assert torch.isfinite(got).all(), f"{what}: not finite"
    if got.numel() == 0 or not got.is_floating_point():
        assert torch.equal(got, wanted), what
        return
    kind = dtype or got.dtype
    allowed = ULPS[kind] * torch.finfo(kind).eps * max(1e-3, wanted.abs().max().item())
    error = (got.double() - wanted.double()).abs().max().item()
    assert error <= allowed, f"{what}: wrong by {error:.3g}, allowed {allowed:.3g}"


def assert_same_state(got: Any, wanted: Any, dtype: torch.dtype | None = None) -> None:
    assert type(got) is type(wanted)
    for name in wanted._fields:
        assert_close(getattr(got, name), getattr(wanted, name), f"state.{name}", dtype)


def rows(layer: Causal[Any], state: Any, *index: int) -> Any:
    """The states of some rows as a batch of their own, cut as a batch of one would be."""
    picked = type(state)(*(tensor[list(index)] for tensor in state))
    if layer.kind != "attention":
        return picked
    most = int(picked.position.max())
    most = most if layer.config.window == float("inf") else min(most, int(layer.config.window) - 1)
    return picked._replace(k=picked.k[:, :most], v=picked.v[:, :most])


def random_state(layer: Causal[Any], batch: int, steps: int = 3) -> Any:
    """A state that something has gone into."""
    with torch.no_grad():
        return layer(noise(batch, steps, layer.config.width, dtype=layer._like.dtype, seed=9))[1]


def run_steps(layer: Causal[Any], x: Tensor, state: Any) -> tuple[list[Tensor], Any]:
    outputs = []
    for x_t in x.unbind(1):
        y, state = layer.step(x_t, state)
        outputs.append(y)
    return outputs, state


def test_every_mixer_is_tested() -> None:
    assert {variant.split()[0] for variant in VARIANTS} == set(MIXERS)
    for kind in MIXERS:
        cls = mixer_class(kind)
        assert cls.kind == kind
        assert cls.Config(width=8).width == 8
        assert cls.gated_mlp == (kind == "attention")


@EVERY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_parallel_equals_chunked_equals_stepwise(variant: str, dtype: torch.dtype) -> None:
    layer, x = make(variant, dtype), noise(2, 9, WIDTH, dtype=dtype)
    with torch.no_grad():
        whole, last = layer(x)
        assert whole.dtype == dtype
        from_zero, same = layer(x, layer.initial_state(2))
        assert_close(from_zero, whole, "from initial_state")
        assert_same_state(same, last, dtype)
        for split in range(x.shape[1]):
            head, state = layer(x[:, :split]) if split else (x[:, :0], layer.initial_state(2))
            tail, end = layer(x[:, split:], state)
            assert_close(torch.cat((head, tail), 1), whole, f"chunks split at {split}")
            assert_same_state(end, last, dtype)
            outputs, end = run_steps(layer, x[:, split:], state)
            assert_close(torch.cat((head, torch.stack(outputs, 1)), 1), whole, f"steps from {split}")
            assert_same_state(end, last, dtype)


@EVERY
def test_nothing_moves_before_a_perturbed_step(variant: str) -> None:
    layer, x = make(variant), noise(2, 8, WIDTH)
    with torch.no_grad():
        y, _ = layer(x)
        for t in range(8):
            moved = x.clone()
            moved[:, t] += noise(2, WIDTH, seed=3)
            other, _ = layer(moved)
            assert (
                other[:, :t] - y[:, :t]
            ).abs().sum() < 1e-12  # an FFT, as in s4d, rounds all steps together
            assert (other[:, t] - y[:, t]).abs().max() > 1e-6


@EVERY
def test_no_gradient_flows_to_later_steps(variant: str) -> None:
    layer, x = make(variant), noise(2, 8, WIDTH).requires_grad_()
    weight = noise(2, WIDTH, seed=5)
    window = getattr(layer.config, "window", 8)
    for t in (0, 3, 7):
        (grad,) = torch.autograd.grad((layer(x)[0][:, t] * weight).sum(), x)
        assert grad[:, t + 1 :].abs().sum() < 1e-12
        seen = grad[:, max(0, t + 1 - int(min(window, 8))) : t + 1].abs().amax((0, 2))
        assert (seen > 1e-9).all()
        if window < 8:
            assert grad[:, : max(0, t + 1 - int(window))].abs().sum() == 0


@EVERY
def test_rows_do_not_see_each_other(variant: str) -> None:
    layer, x = make(variant), noise(3, 7, WIDTH).requires_grad_()
    state = random_state(layer, 3)
    y, last = layer(x, state)
    for row in range(3):
        alone, end = layer(x[row : row + 1], rows(layer, state, row))
        assert_close(alone, y[row : row + 1], f"row {row}")
        assert_same_state(end, rows(layer, last, row))
    (grad,) = torch.autograd.grad(y[1].square().sum(), x)
    assert grad[[0, 2]].abs().max() == 0
    assert grad[1].abs().min() > 0


@EVERY
@pytest.mark.parametrize("lengths", [[5], [7, 7], [5, 1, 0, 8], [0, 3]], ids=str)
@pytest.mark.parametrize("carried", [False, True], ids=["fresh", "carried"])
def test_padding_equals_packing_equals_separate(variant: str, lengths: list[int], carried: bool) -> None:
    layer, batch, time = make(variant), len(lengths), 9
    sizes = torch.tensor(lengths)
    x = noise(batch, time, WIDTH)
    for row, length in enumerate(lengths):
        x[row, length:] = torch.nan  # what padding holds must not matter
    cu_seqlens = torch.cat((torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)))
    start = random_state(layer, batch) if carried else None
    if start is not None:  # rows at positions of their own
        _, start = layer(noise(batch, 4, WIDTH, seed=8), start, torch.arange(batch) % 5)
    with torch.no_grad():
        y, last = layer(x, start, sizes)
        packed_x = torch.cat([x[row, :length] for row, length in enumerate(lengths)])[None]
        packed, packed_last = layer(packed_x, start, cu_seqlens=cu_seqlens)
        assert_same_state(packed_last, last)
        for row, length in enumerate(lengths):
            own = layer.initial_state(1) if start is None else rows(layer, start, row)
            assert y[row, length:].abs().sum() == 0
            alone = y[:0, :0]
            if length > 0:
                alone, own = layer(x[row : row + 1, :length], own)
                assert_close(y[row : row + 1, :length], alone, f"padded row {row}")
                begin = int(cu_seqlens[row])
                assert_close(packed[:, begin : begin + length], alone, f"packed row {row}")
            assert_same_state(rows(layer, last, row), own)
        check_continuation(layer, last, batch)


def check_continuation(layer: Causal[Any], state: Any, batch: int) -> None:
    """Steps and a padded chunk from a batch whose rows are at different positions, against rows alone."""
    x = noise(batch, 6, WIDTH, seed=7)
    outputs, after = run_steps(layer, x[:, :6], state)
    lengths = torch.tensor([6 - row % 3 for row in range(batch)])
    chunk, end = layer(x, state, lengths)
    for row in range(batch):
        own, n = rows(layer, state, row), int(lengths[row])
        alone, last = layer(x[row : row + 1], own)
        assert_close(torch.stack(outputs, 1)[row : row + 1], alone, f"steps of row {row}")
        assert_same_state(rows(layer, after, row), last)
        alone, last = layer(x[row : row + 1, :n], own)
        assert_close(chunk[row : row + 1, :n], alone, f"chunk of row {row}")
        assert_same_state(rows(layer, end, row), last)


@EVERY
def test_gradients_are_alike_padded_packed_and_separate(variant: str) -> None:
    layer, lengths = make(variant), [4, 6, 1]
    x = noise(3, 6, WIDTH).requires_grad_()
    weight = noise(3, 6, WIDTH, seed=4)
    cu_seqlens = torch.tensor([0, 4, 10, 11])
    keep = torch.arange(6) < torch.tensor(lengths)[:, None]
    leaves = [x, *layer.parameters()]

    def of(y: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad((y * weight[keep]).sum(), leaves))

    padded = of(layer(x, None, torch.tensor(lengths))[0][keep])
    packed = of(layer(x[keep][None], cu_seqlens=cu_seqlens)[0][0])
    alone = of(torch.cat([layer(x[row : row + 1, :n])[0][0] for row, n in enumerate(lengths)]))
    names = ["x", *(name for name, _ in layer.named_parameters())]
    for name, a, b, c in zip(names, padded, packed, alone, strict=True):
        assert_close(a, c, f"padded gradient of {name}")
        assert_close(b, c, f"packed gradient of {name}")


@EVERY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_state_is_wide_and_its_bytes_are_true(variant: str, dtype: torch.dtype) -> None:
    layer = make(variant, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    for time in (0, 1, 3, 8):
        x = noise(2, 8, WIDTH, dtype=dtype)[:, :time]
        states = [
            layer.initial_state(2) if time == 0 else layer(x)[1],
            run_steps(layer, x, layer.initial_state(2))[1],
        ]
        for state in states:
            assert layer.state_bytes(2, time) == sum(tensor.nbytes for tensor in state)
            held = {
                tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state
            }
            assert sum(held.values()) <= layer.state_bytes(2, time), "a tensor keeps more alive than it shows"
            for name, tensor in state._asdict().items():
                assert tensor.shape[0] == 2
                assert tensor.dtype == (
                    wide if name in "hc" else torch.int64 if name == "position" else dtype
                ), name
    assert layer.state_bytes(0, 5) == 0
    assert layer.state_bytes(6, 5) == 3 * layer.state_bytes(2, 5)


@EVERY
def test_keep_state_false_gives_none(variant: str) -> None:
    layer, x = make(variant), noise(3, 5, WIDTH)
    state, lengths = random_state(layer, 3), torch.tensor([5, 2, 3])
    for arguments in ((), (state,), (state, lengths), (None, lengths)):
        y, none = layer(x, *arguments, keep_state=False)
        assert none is None
        assert_close(y, layer(x, *arguments)[0])
    cu_seqlens = torch.tensor([0, 2, 2, 5])
    for past in (None, state):
        y, none = layer(x[:1], past, cu_seqlens=cu_seqlens, keep_state=False)
        assert none is None
        assert_close(y, layer(x[:1], past, cu_seqlens=cu_seqlens)[0])


@EVERY
def test_states_and_inputs_are_values(variant: str) -> None:
    layer, x = make(variant), noise(2, 5, WIDTH)
    state, lengths = random_state(layer, 2), torch.tensor([5, 2])
    kept = copy.deepcopy((x, state, lengths, layer.state_dict()))
    for _ in range(2):
        layer(x, state)
        layer(x, state, lengths)
        run_steps(layer, x, state)
    assert_close(x, kept[0])
    assert_same_state(state, kept[1])
    assert torch.equal(lengths, kept[2])
    assert all(
        torch.equal(now, before)
        for now, before in zip(layer.state_dict().values(), kept[3].values(), strict=True)
    )
    assert not list(layer.buffers())
    branch, _ = layer.step(x[:, 0], state)
    assert_close(layer.step(x[:, 0], state)[0], branch)
    assert state._fields == layer.initial_state(1)._fields


@EVERY
def test_gradients_reach_every_parameter_and_the_state(variant: str) -> None:
    layer, x = make(variant), noise(2, 6, WIDTH).requires_grad_()
    state = random_state(layer, 2)
    state = type(state)(*(t.detach().requires_grad_() if t.is_floating_point() else t for t in state))
    y, last = layer(x, state)
    (
        y.square().sum() + sum(tensor.square().sum() for tensor in last if tensor.is_floating_point())
    ).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name
    for name, tensor in state._asdict().items():
        if tensor.is_floating_point() and tensor.numel():
            assert tensor.grad is not None, name
            assert tensor.grad.abs().max() > 0, name


@EVERY
@pytest.mark.parametrize("form", ["forward", "lengths", "packed", "step"])
def test_gradcheck(variant: str, form: str) -> None:
    width = 4
    layer = make(
        variant, width=width, **({"heads": 2, "kv_heads": 1} if variant.startswith("attention") else {})
    )
    x = noise(2, 4, width)
    state = random_state(layer, 2, 2)
    names = [name for name, _ in layer.named_parameters()]
    fixed = [None if tensor.is_floating_point() else tensor for tensor in state]

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        values, floats = rest[: len(names)], iter(rest[len(names) :])
        start = type(state)(*(next(floats) if tensor is None else tensor for tensor in fixed))
        more: dict[str, Any] = {}
        if form == "lengths":
            more["lengths"] = torch.tensor([4, 2])
        elif form == "packed":
            x, more["cu_seqlens"] = x.reshape(1, 8, width), torch.tensor([0, 5, 8])
        elif form == "step":
            x = x[:, 0]
        call = Stepper(layer) if form == "step" else Forward(layer)
        named = {f"layer.{name}": value for name, value in zip(names, values, strict=True)}
        y, last = torch.func.functional_call(call, named, (x, start), more)
        return y, *(tensor for tensor in last if tensor.is_floating_point())

    leaves = [x, *layer.parameters(), *(tensor for tensor in state if tensor.is_floating_point())]
    assert torch.autograd.gradcheck(run, [leaf.detach().requires_grad_() for leaf in leaves], fast_mode=True)


class Forward(torch.nn.Module):
    def __init__(self, layer: Causal[Any]) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, state: Any, **more: Any) -> Any:
        return self.layer(x, state, **more)


class Stepper(Forward):
    def forward(self, x: Tensor, state: Any, **more: Any) -> Any:
        return self.layer.step(x, state)


@EVERY
def test_autocast_runs_low_precision_with_a_wide_state(variant: str) -> None:
    layer, x = make(variant, torch.float32), noise(2, 7, WIDTH, dtype=torch.float32)
    with torch.no_grad():
        exact, _ = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, last = layer(x)
        outputs, end = run_steps(layer, x, layer.initial_state(2))
    assert_close(y.float(), exact, "autocast", torch.bfloat16)
    assert_close(torch.stack(outputs, 1), y, "steps under autocast", torch.bfloat16)
    assert_same_state(end, last, torch.bfloat16)
    for name, tensor in last._asdict().items():
        if name in "hc":
            assert tensor.dtype == torch.float32
    y.float().square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
    layer(x, last)  # a state made under autocast goes on without it


@EVERY
def test_copies_and_files(variant: str) -> None:
    layer, x = make(variant), noise(1, 4, WIDTH)
    with torch.no_grad():
        y, state = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.config == layer.config
        assert torch.equal(twin(x)[0], y)
    assert_same_state(pickle.loads(pickle.dumps(state)), state)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = type(layer)(layer.config).double()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x)[0], y)


@EVERY
def test_it_is_built_on_the_meta_device_and_counted(variant: str) -> None:
    with torch.device("meta"):
        ghost = make(variant)
    real = make(variant)
    assert {name: p.shape for name, p in ghost.named_parameters()} == {
        n: p.shape for n, p in real.named_parameters()
    }
    near, far = real.flops_per_token(1), real.flops_per_token(1000)
    matrices = sum(2 * p.numel() for p in real.parameters() if p.ndim == 2 and p.shape[0] != 32)
    assert near >= matrices - 2 * sum(
        p.numel() for n, p in real.named_parameters() if n in ("a_log", "a_imag", "c")
    )
    assert (far > near) == (real.kind == "attention" and real.config.window != 1)
    assert "width=16" in repr(real)


BAD_INPUT: dict[str, tuple[Any, str]] = {
    "not a tensor": ([1.0], "x: a list: must be a tensor"),
    "rank": (torch.zeros(2, WIDTH), r"x: shape \(2, 16\): must be \(B, T, 16\)"),
    "width": (torch.zeros(2, 3, WIDTH + 1), r"x: shape \(2, 3, 17\): must be \(B, T, 16\)"),
    "no step": (torch.zeros(2, 0, WIDTH), r"x: shape \(2, 0, 16\): .* at least 1"),
    "no row": (torch.zeros(0, 3, WIDTH), r"x: shape \(0, 3, 16\): .* at least 1"),
    "dtype": (torch.zeros(2, 3, WIDTH, dtype=torch.float64), "x: dtype torch.float64: must be torch.float32"),
    "integers": (torch.zeros(2, 3, WIDTH, dtype=torch.int64), "x: dtype torch.int64: must be torch.float32"),
    "device": (torch.zeros(2, 3, WIDTH, device="meta"), "x: device meta: must be cpu"),
}


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named(kind: str, case: str) -> None:
    x, message = BAD_INPUT[case]
    layer = make(kind, torch.float32)
    with pytest.raises(ShapeError, match=message):
        layer(x)
    if isinstance(x, Tensor) and x.ndim == 3 and case != "no step":
        with pytest.raises(ShapeError, match=r"^x: [^\n]*$"):
            layer.step(x[:, 0], layer.initial_state(2))


@pytest.mark.parametrize("kind", MIXERS)
def test_bad_batches_are_refused(kind: str) -> None:
    layer, x = make(kind, torch.float32), torch.zeros(2, 3, WIDTH)
    good, packed = torch.tensor([3, 1]), torch.tensor([0, 1, 3])
    for lengths in (
        torch.tensor([3]),
        torch.tensor([3, 4]),
        torch.tensor([3, -1]),
        torch.tensor([3.0, 1.0]),
        good[None],
    ):
        with pytest.raises(ShapeError, match="lengths"):
            layer(x, None, lengths)
    for bad in ([1, 3], [0, 2], [0, 2, 1, 3], [[0, 3]], [0.0, 3.0], []):
        with pytest.raises(ShapeError, match="cu_seqlens"):
            layer(x[:1], cu_seqlens=torch.tensor(bad))
    with pytest.raises(ShapeError):
        layer(x, cu_seqlens=packed)  # packed means one row
    with pytest.raises(ShapeError):
        layer(x[:1], None, good[:1], packed)
    with pytest.raises(ShapeError, match="batch = 0"):
        layer.initial_state(0)
    with pytest.raises(ShapeError, match="time = -1"):
        layer.state_bytes(1, -1)


@pytest.mark.parametrize("kind", MIXERS)
def test_foreign_states_are_refused(kind: str) -> None:
    layer, x = make(kind, torch.float32), torch.zeros(2, 3, WIDTH)
    others = [make(other, torch.float32) for other in MIXERS if other != kind]
    wrong = [other.initial_state(2) for other in others]
    wrong += [tuple(layer.initial_state(2)), layer.initial_state(3), layer.initial_state(1)]
    wrong += [mixer_class(kind)(width=2 * WIDTH).initial_state(2)]
    state = layer.initial_state(2)
    for name, tensor in state._asdict().items():
        other = tensor.long() if tensor.is_floating_point() else tensor.double()
        wrong += [
            state._replace(**{name: bad})
            for bad in (other, tensor[0], tensor[..., None], None, tensor.to("meta"))
        ]
    for bad in wrong:
        for call in (lambda bad=bad: layer(x, bad), lambda bad=bad: layer.step(x[:, 0], bad)):
            with pytest.raises(StateError, match=r"^state[^\n]*: [^\n]*must"):
                call()
    with pytest.raises(StateError, match="batch of 2"):
        layer(x[:1], layer.initial_state(1), cu_seqlens=torch.tensor([0, 1, 3]))


@pytest.mark.parametrize("kind", MIXERS)
def test_configs_are_checked(kind: str) -> None:
    cls = mixer_class(kind)
    assert cls(cls.Config(width=8)).config == cls(width=8).config
    with pytest.raises(ConfigError, match=r"widht.*did you mean width"):
        cls(widht=8)
    with pytest.raises(ConfigError, match="width = '8'"):
        cls(width="8")
    for width in (0, -8, 8.0, "8", True):
        with pytest.raises(ConfigError, match="width = "):
            cls.Config(width=width)
    with pytest.raises(ConfigError, match="not both"):
        cls(cls.Config(width=8), width=8)
    with pytest.raises(ConfigError, match=f"must be a {cls.Config.__name__}"):
        cls({"width": 8})
    with pytest.raises(TypeError):
        cls.Config(8)


def test_an_unknown_mixer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mixer = 'lsmt': must be one of rnn, .* \(did you mean lstm\?\)"):
        mixer_class("lsmt")


@pytest.mark.gpu
@EVERY
def test_the_same_numbers_on_a_gpu(variant: str) -> None:
    layer, x = make(variant, torch.float32), noise(3, 9, WIDTH, dtype=torch.float32)
    lengths = torch.tensor([9, 4, 0])
    wanted, state = layer(x, None, lengths)
    more, end = layer(x, state, lengths)
    gpu = copy.deepcopy(layer).cuda()
    got, on_gpu = gpu(x.cuda(), None, lengths.cuda())
    assert_close(got.cpu(), wanted)
    assert_same_state(type(state)(*(tensor.cpu() for tensor in on_gpu)), state)
    got, on_gpu = gpu(x.cuda(), on_gpu, lengths.cuda())
    assert_close(got.cpu(), more)
    y, _ = gpu.step(x[:, 0].cuda(), on_gpu)
    assert_close(y.cpu(), layer.step(x[:, 0], end)[0])


@EVERY
def test_a_second_derivative_is_right_or_refused(variant: str) -> None:
    """After a linear loss and for chosen tensors too, where torch's own guard leaves the op's part out."""
    layer, x = make(variant), noise(2, 5, WIDTH).requires_grad_()

    def slope(x: Tensor, create_graph: bool = False) -> Tensor:
        return torch.autograd.grad(layer(x)[0].sum(), x, create_graph=create_graph)[0].square().sum()

    try:
        (curvature,) = torch.autograd.grad(slope(x, create_graph=True), x)
    except RuntimeError:
        return
    small = 1e-5 * noise(2, 5, WIDTH, seed=2)
    ends = [slope((x + moved).detach().requires_grad_()) for moved in (small, -small)]
    torch.testing.assert_close(2 * (curvature * small).sum(), ends[0] - ends[1], rtol=1e-3, atol=1e-9)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell resident memory")
@pytest.mark.parametrize("kind", MIXERS)
def test_training_steps_give_their_memory_back(kind):
    """Buffers of a step are kept for the next one; that is not the same as never given back."""
    layer = mixer_class(kind)(width=128)
    x = torch.randn(8, 128, 128)

    def train(steps: int) -> None:
        for _ in range(steps):
            layer(x, keep_state=False)[0].sum().backward()
            layer.zero_grad()

    train(5)
    before = resident_bytes()
    train(40)
    assert resident_bytes() - before < 48 << 20
