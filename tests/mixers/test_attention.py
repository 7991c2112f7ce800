"""Attention against the definition, its positions, windows and caches, and what it refuses."""

from math import inf

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.errors import ConfigError, ShapeError, StateError
from quatrain.mixers.attention import Attention, AttentionConfig


def make(**fields: object) -> Attention:
    torch.manual_seed(0)
    return Attention(**{"width": 16, **fields}).double()


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def rotated(x: Tensor, position: int, base: float) -> Tensor:
    """One head at one position, turned pair by pair."""
    half = x.shape[0] // 2
    out = x.clone()
    for i in range(half):
        angle = torch.tensor(position * base ** (-i / half), dtype=torch.float64)
        out[i] = x[i] * angle.cos() - x[i + half] * angle.sin()
        out[i + half] = x[i] * angle.sin() + x[i + half] * angle.cos()
    return out


def direct(layer: Attention, x: Tensor) -> Tensor:
    """The definition for one row x (T, D), token by token and head by head."""
    config = layer.config
    time, size = x.shape[0], config.head_width
    if config.positions == "sinusoidal":
        slow = 10000.0 ** -(torch.arange(config.width // 2).double() / (config.width // 2))
        angle = torch.arange(time).double()[:, None] * slow
        x = x + torch.cat((angle.sin(), angle.cos()), -1)
    elif config.positions == "learned":
        x = x + layer.position_embedding[:time]
    heads = (x @ layer.qkv_proj.weight.T).unflatten(-1, (-1, size))
    outputs = []
    for t in range(time):
        row = []
        for head in range(config.heads):
            group = config.heads + head // (config.heads // config.groups)
            seen = [s for s in range(time) if not config.causal or (s <= t and t - s < config.window)]
            q, k = heads[t, head], [heads[s, group] for s in seen]
            if config.positions == "rotary":
                q = rotated(q, t, config.rotary_base)
                k = [rotated(key, s, config.rotary_base) for key, s in zip(k, seen, strict=True)]
            weights = torch.stack([q @ key / size**0.5 for key in k]).softmax(0)
            row.append(weights @ torch.stack([heads[s, group + config.groups] for s in seen]))
        outputs.append(torch.cat(row))
    return torch.stack(outputs) @ layer.out_proj.weight.T


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"heads": 1},
        {"kv_heads": 1},
        {"kv_heads": 2, "window": 3},
        {"window": 1},
        {"positions": "none"},
        {"positions": "sinusoidal"},
        {"positions": "learned"},
        {"rotary_base": 50.0},
        {"causal": False, "kv_heads": 2},
    ],
    ids=str,
)
def test_it_agrees_with_the_definition(fields: dict[str, object]) -> None:
    layer, x = make(**fields), noise(2, 7, 16)
    wanted = torch.stack([direct(layer, row) for row in x])
    torch.testing.assert_close(layer(x)[0], wanted)
    lengths = torch.tensor([7, 4])
    y, _ = layer(x, None, lengths)
    torch.testing.assert_close(y[0], wanted[0])
    torch.testing.assert_close(y[1, :4], direct(layer, x[1, :4]))
    assert y[1, 4:].abs().max() == 0
    y, _ = layer(torch.cat((x[:1], x[1:, :4]), 1), cu_seqlens=torch.tensor([0, 7, 11]))
    torch.testing.assert_close(y[0, :7], wanted[0])
    torch.testing.assert_close(y[0, 7:], direct(layer, x[1, :4]))


def test_it_agrees_with_sdpa() -> None:
    layer, x = make(positions="none"), noise(2, 9, 16)
    q, k, v = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in layer.qkv_proj(x).chunk(3, -1))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer(x)[0], layer.out_proj(y))


def test_rotary_scores_know_distances_alone() -> None:
    layer, x = make(), noise(1, 4, 16)
    y, _ = layer(x)
    empty = layer.initial_state(1)
    shifted = empty._replace(position=torch.tensor([0]))
    torch.testing.assert_close(layer(x, shifted)[0], y)
    for start in (5, 1_000_000):  # the same tokens further on in a window that has forgotten what was before
        window = make(window=8)
        state = window.initial_state(1)._replace(
            k=torch.zeros(1, 7, 4, 4).double(),
            v=torch.zeros(1, 7, 4, 4).double(),
            position=torch.tensor([start + 7]),
        )
        q, k, _ = window._project(x, torch.arange(start, start + 4)[None])
        q0, k0, _ = window._project(x, torch.arange(4)[None])
        torch.testing.assert_close(
            torch.einsum("bthk,bshk->bhts", q, k),
            torch.einsum("bthk,bshk->bhts", q0, k0),
            atol=1e-8,
            rtol=1e-8,
        )
        assert torch.isfinite(window(x, state)[0]).all()


def test_a_window_bounds_the_state() -> None:
    layer, x = make(window=5, kv_heads=2), noise(3, 40, 16)
    whole, last = layer(x)
    assert last.k.shape == (3, 4, 2, 4)
    assert layer.state_bytes(3, 40) == layer.state_bytes(3, 10**9) == sum(t.nbytes for t in last)
    state, outputs = layer.initial_state(3), []
    for x_t in x.unbind(1):
        y, state = layer.step(x_t, state)
        assert state.k.shape[1] <= 4
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), whole)
    assert state.position.tolist() == [40] * 3
    # rows that start the window at different times
    _, ragged = layer(x, None, torch.tensor([40, 2, 7]))
    assert ragged.k.shape == (3, 4, 2, 4)
    assert ragged.k[1, 2:].abs().max() == 0
    assert ragged.position.tolist() == [40, 2, 7]


def test_rows_grow_from_their_own_position() -> None:
    layer, x = make(), noise(2, 3, 16)
    _, state = layer(x, None, torch.tensor([3, 1]))
    assert state.k.shape[1] == 3
    assert state.k[1, 1:].abs().max() == 0
    _, after = layer.step(noise(2, 16), state)
    assert after.position.tolist() == [4, 2]
    assert after.k.shape[1] == 4
    assert after.k[1, 1].abs().max() > 0
    assert after.k[1, 2:].abs().max() == 0
    assert torch.equal(after.k[1, :1], state.k[1, :1])
    _, idle = layer(x, state, torch.tensor([0, 0]))
    assert all(torch.equal(a, b) for a, b in zip(idle, state, strict=True))


def test_learned_positions_end() -> None:
    layer, x = make(positions="learned", max_positions=6), noise(2, 7, 16)
    with pytest.raises(ShapeError, match="x: reaches position 7: learned positions end at max_positions = 6"):
        layer(x)
    y, state = layer(x, None, torch.tensor([6, 2]))  # padding may reach further
    torch.testing.assert_close(y[1:, :2], layer(x[1:, :2])[0])
    with pytest.raises(ShapeError, match="position 7"):
        layer.step(x[:, 0], state)
    with pytest.raises(ShapeError, match="position 7"):
        layer(x[:1], cu_seqlens=torch.tensor([0, 7]))
    layer(x[:1], cu_seqlens=torch.tensor([0, 3, 7]))


def test_attention_both_ways_has_no_state() -> None:
    layer, x = make(causal=False), noise(2, 5, 16)
    state = make().initial_state(2)
    assert layer(x)[1] is None
    assert layer.state_bytes(2, 5) == 0
    for call in (
        lambda: layer.initial_state(2),
        lambda: layer.step(x[:, 0], state),
        lambda: layer(x, state),
        lambda: layer(x[:1], state, cu_seqlens=torch.tensor([0, 2, 5])),
    ):
        with pytest.raises(StateError, match="causal = false has none"):
            call()


def test_a_cache_that_contradicts_itself_is_refused() -> None:
    layer, x = make(), noise(2, 3, 16)
    _, state = layer(x)
    for wrong in ([3, 4], [-1, 3]):
        with pytest.raises(StateError, match=r"state.position = \["):
            layer(x, state._replace(position=torch.tensor(wrong)))
    with pytest.raises(StateError, match=r"state\.v: shape"):
        layer(x, state._replace(v=state.v[:, :2]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 3}, "heads = 3: must divide width = 16"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads = 3: must divide heads = 4"),
        ({"kv_heads": 8}, "kv_heads = 8: must divide heads = 4"),
        ({"kv_heads": "all"}, "kv_heads = 'all': must be one of auto"),
        ({"heads": 16}, "heads = 16: rotary positions need an even width per head, not 1"),
        ({"heads": 0}, "heads = 0"),
        ({"positions": "alibi"}, "positions = 'alibi': must be one of rotary"),
        ({"window": 0}, "window = 0"),
        ({"window": 2.5}, "window = 2.5: must be a whole number"),
        ({"window": float("nan")}, "window = nan"),
        ({"window": 4, "causal": False}, "window = 4: needs causal = true"),
        ({"max_positions": 0}, "max_positions = 0"),
        ({"rotary_base": inf}, "rotary_base = inf"),
        ({"causal": 1}, "causal = 1: must be true or false"),
    ],
    ids=str,
)
def test_contradictory_sizes_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AttentionConfig(**{"width": 16, **fields})
