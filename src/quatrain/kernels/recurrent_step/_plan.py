"""How one step of a recurrent layer is spread over a GPU: arithmetic on sizes, no device."""

from dataclasses import dataclass
from functools import cache

GATES = (1, 1, 4, 3)  # by the kernel's number: RNN with tanh, with ReLU, LSTM, GRU
WARPS = 8
SHARED_BYTES = 227 << 10  # of a block on Hopper
_CHUNK = 32  # columns that a warp takes at a time
_MOST_TILES = {2: 8, 4: 2}  # of 8 rows of the batch, by bytes of a number: their sums are in registers


@dataclass(frozen=True)
class Plan:
    """How the kernel is compiled and launched.

    Attributes:
        units: of a block.
        cluster: blocks that share out the columns of x and h.
        tiles: of 8 rows of the batch, that a block works on.
        clusters: of one part of the batch.
        pitch: numbers from one row of x and h in shared memory to the next.
    """

    number: int
    units: int
    cluster: int
    tiles: int
    clusters: int
    parts: int
    pitch: int
    size: int

    @property
    def row_tiles(self) -> int:
        """Tiles of 16 rows of a cluster's sums."""
        return -(-(4 if self.number >= 2 else 1) * self.cluster * self.units // 16)

    @property
    def each(self) -> int:
        """Tiles of rows of a warp."""
        return 2 if self.row_tiles % 2 == 0 else 1

    @property
    def across(self) -> int:
        """Warps that share out the tiles of rows; the others share out columns."""
        return self.row_tiles // self.each

    @property
    def blocks(self) -> int:
        return self.clusters * self.cluster * self.parts

    @property
    def shared_bytes(self) -> int:
        """Of a block: its share of x and h, then in the same place the sums of all warps."""
        rows = 8 * self.tiles
        sums = WARPS // self.across * rows * (16 * self.row_tiles + 4) * 4
        return max(rows * self.pitch * self.size, sums)

    def defines(self) -> tuple[tuple[str, int], ...]:
        """The kernel's macros that follow from it."""
        return (
            ("UNITS", self.units),
            ("CLUSTER", self.cluster),
            ("NT", self.tiles),
            ("MPW", self.each),
            ("WM", self.across),
        )


@cache
def plan(number: int, batch: int, in_width: int, width: int, size: int, processors: int) -> Plan | None:
    """The plan for a layer of ``width`` units fed by ``in_width`` numbers of ``size`` bytes; None if x and h
    of 8 rows do not fit into the shared memory of 8 blocks.

    Every block reads x and h of its rows beside its weights. From 9 rows on that would be as much, so blocks
    of a cluster share it out by columns, at the price of exchanging their sums.
    """
    tiles = 1
    while tiles < _MOST_TILES[size] and 8 * tiles < batch:
        tiles *= 2
    while tiles >= 1:
        for cluster in (min(tiles, 4), 8):
            made = _fit(number, batch, in_width, width, size, processors, tiles, cluster)
            if made.shared_bytes <= SHARED_BYTES and made.across <= WARPS:
                return made
        tiles //= 2
    return None


def _fit(
    number: int, batch: int, in_width: int, width: int, size: int, processors: int, tiles: int, cluster: int
) -> Plan:
    """The units of a block with which the busiest multiprocessor has the least to read."""
    chunks = sum(-(-n // (_CHUNK * cluster)) for n in (in_width, width))
    pitch = _CHUNK * (chunks | 1)  # odd: pieces of 8 rows lie in different banks
    parts = -(-batch // (8 * tiles))
    plans = [
        Plan(number, units, cluster, tiles, -(-width // (cluster * units)), parts, pitch, size)
        for units in (8, 4, 2)
    ]
    return min(plans, key=lambda made: (-(-made.blocks // processors) * made.units, -made.units))
