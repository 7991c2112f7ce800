"""How one step of a Mamba block is spread over a GPU: arithmetic on sizes, no device."""

from dataclasses import dataclass
from functools import cache

WARPS = 8
MOST_ROWS = 32  # of the batch: at 64 products of all rows at once take 0.64 of the time
HEADER = 8  # of the exchange's memory, 16 bytes each
_MOST_TILES = {2: 4, 4: 2}  # of 8 rows of the batch, by bytes of a number: their sums are in registers
_MOST_NUMBERS = 128  # rows of a matrix that a block multiplies: 16 a warp


@dataclass(frozen=True)
class Block:
    """Sizes of a Mamba block and bytes of a number."""

    width: int
    inner: int
    states: int
    rank: int
    conv: int
    size: int


@dataclass(frozen=True)
class Plan:
    """How the kernel is compiled and launched.

    Attributes:
        batch: rows of a launch.
        channels, outs: of a thread block; channels are even, so that it writes whole words of 16-bit numbers.
        tiles: of 8 rows of the batch.
    """

    block: Block
    batch: int
    channels: int
    outs: int
    blocks: int
    tiles: int

    @property
    def across(self) -> tuple[int, int]:
        """Warps that share out the rows of in_proj and of out_proj; the others share out columns."""
        return _warps(2 * self.channels), _warps(self.outs)

    @property
    def rows(self) -> int:
        """Of x_proj, with those that pad."""
        return _to_four(self.block.rank + 2 * self.block.states)

    @property
    def shared_bytes(self) -> int:
        """Of a thread block; the same sum as ``room_of`` in block.cu."""
        block, columns, channels = self.block, 8 * self.tiles, self.channels
        sums = max(WARPS // wm * columns * (16 * wm + 4) for wm in self.across)
        weights = self.rows + _to_four(block.rank) + 4 + _to_four(block.states)
        small = _to_four(channels * (block.conv + 3))
        norm = -(-block.width // 8) * 8 * block.size // 4
        numbers = (
            norm + columns * (1 + 2 * channels) + channels * weights + small + self.batch * self.rows + sums
        )
        return 4 * numbers

    @property
    def exchanged(self) -> int:
        """What is exchanged, 16 bytes each; the same sum as ``exchange_of``."""
        groups = self.rows // 4 * self.batch
        pitch = -(-self.blocks * self.channels // 32) * 32
        return groups * (self.blocks + 1) + self.batch * pitch * self.block.size // 16

    def defines(self) -> tuple[tuple[str, int], ...]:
        """The kernel's macros that follow from it."""
        wm_in, wm_out = self.across
        return (
            ("CH", self.channels),
            ("OUT", self.outs),
            ("NT", self.tiles),
            ("WM_IN", wm_in),
            ("WM_OUT", wm_out),
            ("CW", self.block.conv),
            ("VN", 4 if self.block.states % 4 == 0 else 1),
        )


@cache
def plan(block: Block, batch: int, processors: int, shared: int) -> Plan | str:
    """The plan for ``batch`` rows, or as many of them as one launch takes, on a device with so many
    multiprocessors, whose blocks can have ``shared`` bytes; or the reason why there is none.
    """
    channels = -(-block.inner // processors)
    channels += channels % 2
    blocks = -(-block.inner // channels)
    outs = -(-block.width // blocks)
    if max(2 * channels, outs) > _MOST_NUMBERS:
        sizes = f"D = {block.width}, E = {block.inner}"
        return f"{sizes}: a block would have more than {_MOST_NUMBERS} rows of a matrix"
    rows = min(batch, 8 * _MOST_TILES[block.size])
    while rows >= 1:
        tiles = 1
        while 8 * tiles < rows:
            tiles *= 2
        made = Plan(block, rows, channels, outs, blocks, tiles)
        if made.shared_bytes <= shared:
            return made
        rows = 4 * tiles if rows > 8 else rows // 2
    return f"E = {block.inner}, N = {block.states}, R = {block.rank}: must fit into {shared} bytes"


def _warps(rows: int) -> int:
    warps = 1
    while 16 * warps < rows:
        warps *= 2
    return warps


def _to_four(n: int) -> int:
    return -(-n // 4) * 4
