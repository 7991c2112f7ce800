"""Elementary functions of Triton kernels in float32, the same bits on every GPU.

Hardware exponentials err to one side, and a state that decays slowly adds that up over all the steps that it
remembers (see s6_scan/README.md); these are polynomials that are exact at 0 and err in proportion to x.
"""

import triton
import triton.language as tl


@triton.jit
def exp_both(x):
    """exp(x) and exp(x) - 1, both to a few units in the last place; exp is 0 below -87."""
    n = tl.floor(tl.minimum(tl.maximum(x, -87.0), 88.0) * 1.4426950408889634 + 0.5)
    r = (x - n * 0.693359375) + n * 2.12194440e-4  # n ln 2 in two parts, the first of them exact
    q = 1.0 + r * (0.5 + r * (1 / 6 + r * (1 / 24 + r * (1 / 120 + r * (1 / 720 + r * (1 / 5040))))))
    scale = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    less = scale * (r * q)
    value = tl.where(x < -87.0, 0.0, tl.where(x > 88.0, float("inf"), scale + less))
    return value, tl.where((x < -87.0) | (x > 88.0), value - 1.0, less + (scale - 1.0))


@triton.jit
def exp(x):
    """exp(x)."""
    value, _ = exp_both(x)
    return value


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    small = exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def softplus(x):
    """log(1 + exp(x)), small values to a few units in the last place too."""
    small = exp(-tl.abs(x))
    s = small / (2.0 + small)  # log(1 + e) = 2 artanh(e / (2 + e)), and s is at most 1/3
    z = s * s
    odd = 1 / 9 + z * (1 / 11 + z * (1 / 13 + z * (1 / 15 + z * (1 / 17))))
    log1p = 2.0 * s * (1.0 + z * (1 / 3 + z * (1 / 5 + z * (1 / 7 + z * odd))))
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) + log1p


@triton.jit
def ramp(x, value, less):
    """(x e^x - e^x + 1) / x^2 from e^x and e^x - 1; a series where that cancels."""
    tail = 1 / 5760 + x * (1 / 45360 + x * (1 / 403200 + x * (1 / 3991680 + x * (1 / 43545600))))
    series = 0.5 + x * (1 / 3 + x * (1 / 8 + x * (1 / 30 + x * (1 / 144 + x * (1 / 840 + x * tail)))))
    near = tl.abs(x) < 1.0
    safe = tl.where(near, 1.0, x)
    return tl.where(near, series, (x * value - less) / (safe * safe))
