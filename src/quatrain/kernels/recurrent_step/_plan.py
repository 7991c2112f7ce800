"""How one step of a recurrent layer is spread over a GPU: arithmetic on sizes, no device."""

from dataclasses import dataclass
from functools import cache

GATES = (1, 1, 4, 3)  # by the kernel's number: RNN with tanh, with ReLU, LSTM, GRU
WARPS = 8
SHARED_BYTES = 227 << 10  # of a block on Hopper
_CHUNK = 32  # columns that a warp takes at a time
_BEGIN, _MEET = 24 << 10, 12 << 10  # a block's start and a cluster's barriers, as bytes
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
def plan(
    number: int, batch: int, in_width: int, width: int, size: int, residents: tuple[int, ...]
) -> Plan | None:
    """The plan for a layer of ``width`` units fed by ``in_width`` numbers of ``size`` bytes; None if x and h
    of 8 rows do not fit into the shared memory of 8 blocks.

    ``residents``: clusters of 1, 2, .. blocks that the device runs at once. Every block reads x and h of its
    rows beside its weights. From 9 rows on that would be as much, so blocks of a cluster share it out by
    columns, at the price of exchanging their sums.
    """
    tiles = 1
    while tiles < _MOST_TILES[size] and 8 * tiles < batch:
        tiles *= 2
    while tiles >= 1:
        for clusters in ((1, 2, 4), (8,)):
            fitting = [
                made
                for cluster in clusters
                for units in (8, 4, 2)
                if (made := _with(number, batch, in_width, width, size, tiles, cluster, units)) is not None
            ]
            if fitting:
                return min(fitting, key=lambda made: _cost(made, batch, in_width + width, residents))
        tiles //= 2
    return None


def _with(
    number: int, batch: int, in_width: int, width: int, size: int, tiles: int, cluster: int, units: int
) -> Plan | None:
    """The plan with these numbers; None where it does not fit."""
    chunks = sum(-(-n // (_CHUNK * cluster)) for n in (in_width, width))
    pitch = _CHUNK * (chunks | 1)  # odd: pieces of 8 rows lie in different banks
    clusters, parts = -(-width // (cluster * units)), -(-batch // (8 * tiles))
    made = Plan(number, units, cluster, tiles, clusters, parts, pitch, size)
    return made if made.shared_bytes <= SHARED_BYTES and made.across <= WARPS else None


def _cost(made: Plan, batch: int, columns: int, residents: tuple[int, ...]) -> float:
    """Bytes that come to the busiest multiprocessor from memory; those from L2 and neighbours count half."""
    rows = min(batch, 8 * made.tiles)
    weights = GATES[made.number] * made.units * columns * made.size
    operand = rows * columns * made.size / made.cluster
    sums = (made.cluster - 1) * WARPS // made.across * rows * made.units * 4 * (4 if made.number >= 2 else 1)
    turns = -(-made.clusters * made.parts // residents[made.cluster - 1])
    return turns * (weights + (operand + sums) / 2 + _BEGIN + (_MEET if made.cluster > 1 else 0))
