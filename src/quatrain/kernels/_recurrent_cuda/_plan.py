"""How a recurrent scan is spread over a GPU: pure arithmetic, no device is asked.

A group of blocks runs some rows of the batch. Its blocks own units of the layer and keep the units' weights
in registers as far as they go, then in shared memory; what is left is read from L2 at every step. Up to 16
blocks are one cluster and exchange through its shared memory; more are a part of the grid and exchange
through global memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import ceil

KINDS = {"rnn_tanh": 0, "rnn_relu": 1, "lstm": 2, "gru": 3}
GATES = (1, 1, 4, 3)
KEPT = (1, 1, 4, 4)  # numbers a forward pass keeps of a unit, but for the one in float32

SHARED_BYTES = 227 << 10  # of a block on Hopper
_UNITS = (16, 32, 64, 128)
_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 40, 48, 64)
_WARPS = 8
_CHUNKS = ((1, 1), (2, 2), (4, 4), (4, 2), (8, 8), (8, 4), (16, 4), (8, 2), (16, 2))
_MOST_CLUSTER = 16  # more than 8 a kernel has to ask for
_HELD = 160  # registers for weights, less what sums and elements take; ptxas needs about 60 for the rest
_PLACES_BYTES = 8 << 20  # of operands that lie in L2 at a time
_STREAMED = 2.0  # weights read at every step, as a multiple of those that stay

# Costs in us of a step, fitted to what `benchmarks/gpu_rnn.py --tune` measured on one H100: 36 plans of
# 64 sequences, 4 % off, and, with a third of their weight, 175 plans of earlier kernels for what those lack
# (small batches, many clusters), 7 % off. Of these no polled plan counts whose threads ask for more than 16
# bytes: that is faster now.
_CLUSTER, _CLUSTER_KB = 0.50, 0.0282  # a cluster's exchange and the step's barriers; a KB of the operand
_POLLED, _POLLED_KB = 0.913, 0.0198  # numbers asked for: to L2 and back; a KB that a block asks for
_COUNTED, _CHUNK_KB = 2.59, 0.0164  # arrivals counted; a KB of the first chunk, others come meanwhile
_RING, _RINGS = 2.57, 3  # another load of all places for chunks; more than so many are hidden
_SUMS, _SUMS_KB = 0.085, 0.0359  # sums that blocks of a cluster send each other; a KB of them
_PRODUCT, _FMA_PRODUCT = 1.04 / 1755, 11.4 / 1755  # 16 x 16 by 16 x 8; 1755 cycles are a us
_WAIT = 28 / 1755  # of a product for the one before it in the same sum
_SHARED_KB, _L2_KB = 0.003, 0.00023  # read from shared memory by a block; from L2 by all blocks together
_ELEMENT, _CELL, _CELL_BACK = 0.312, 0.177, 0.122  # a thread's unit; an LSTM's or GRU's gates; more backwards
_RAGGED = 0.55  # mean length of sequences to the longest, where they differ: a row with one alone may wait


@dataclass(frozen=True)
class Plan:
    """Of one pass; the kernels' macros. ``cost`` is the guess of a step in us times the turns.

    Attributes:
        units: of the layer that a block owns.
        blocks: of a group.
        groups: that run at once.
        rows: of a group.
        warps: over rows and columns of the weights' tiles.
        tiles: of 16 rows and of 16 columns that a warp has.
        held: columns of tiles in registers.
        shared: columns of tiles in shared memory.
        cluster: blocks of a cluster; in a grid they share the columns of the weights.
        grid: the group is more than a cluster.
        polled: blocks of the grid ask for numbers until they are there, instead of counting who has written.
        places: for operands in global memory.
        chunks: of an operand that is counted; how many are in shared memory at a time.
    """

    units: int
    blocks: int
    groups: int
    rows: int
    warps: tuple[int, int]
    tiles: tuple[int, int]
    held: int
    shared: int
    cluster: int
    grid: bool
    shared_bytes: int
    cost: float
    polled: bool = False
    chunks: tuple[int, int] = (1, 1)
    places: int = 2

    @property
    def threads(self) -> int:
        return 32 * self.warps[0] * self.warps[1]

    @property
    def slots(self) -> int:
        """Rows of all groups: sequences that run at once."""
        return self.groups * self.rows

    def vector(self, parts: int) -> int:
        """Numbers of a group's operand."""
        return self.blocks * parts * self.rows * self.units

    def defines(self) -> tuple[tuple[str, int], ...]:
        return (
            ("UNITS", self.units),
            ("BLOCKS", self.blocks),
            ("ROWS", self.rows),
            ("WM", self.warps[0]),
            ("WK", self.warps[1]),
            ("MPW", self.tiles[0]),
            ("KPW", self.tiles[1]),
            ("REGS", self.held),
            ("SHARED", self.shared),
            ("CLUSTER", self.cluster),
            ("GRID", int(self.grid)),
            ("POLLED", int(self.polled)),
            ("PLACES", self.places),
            ("CHUNKS", self.chunks[0]),
            ("RING", self.chunks[1]),
            ("BYTES", self.shared_bytes),
        )


@dataclass(frozen=True)
class Problem:
    """What is to be planned.

    Attributes:
        kind: number of the recurrence.
        width: units of the layer.
        sequences: rows of the batch or packed sequences.
        size: bytes of a number.
        back: of the backward pass.
        residents: clusters of 1, 2, .. blocks that the GPU runs at once, a block a multiprocessor.
        ragged: sequences have lengths of their own, which nobody has looked at.
        shared_bytes: that a block may have.
    """

    kind: int
    width: int
    sequences: int
    size: int
    back: bool
    residents: tuple[int, ...]
    ragged: bool = False
    shared_bytes: int = SHARED_BYTES

    @property
    def parts(self) -> int:
        """Numbers of the operand that a unit contributes."""
        return GATES[self.kind] if self.back else 1

    def resident(self, cluster: int) -> int:
        """Clusters of this size that run at once."""
        return self.residents[cluster - 1] if cluster <= len(self.residents) else 0

    @property
    def row_gates(self) -> int:
        """Rows of the block's weights for each unit."""
        return 1 if self.back else GATES[self.kind]


@cache
def plan(problem: Problem) -> Plan | str:
    """The cheapest plan, or why there is none."""
    found = list(candidates(problem))
    if not found:
        return (
            f"D = {problem.width}: needs more multiprocessors or shared memory than "
            f"{problem.residents[0]} with {problem.shared_bytes >> 10} KiB"
        )
    return min(found, key=lambda p: (p.cost, p.blocks, p.rows))


def candidates(problem: Problem) -> Iterator[Plan]:
    """All plans that can run."""
    for units in _UNITS:
        blocks = -(-problem.width // units)
        if units > 16 and blocks * units >= 2 * problem.width:
            continue  # half of it would be padding
        grid = blocks > _MOST_CLUSTER
        for cluster in (1, 2, 4, 8) if grid else (blocks,):
            room = problem.resident(cluster) * cluster // blocks
            if blocks % cluster or room == 0:
                continue
            ways = ((0, 0), *_CHUNKS) if grid else ((1, 1),)
            for rows in _ROWS:
                groups = min(room, -(-problem.sequences // rows))
                if groups * rows >= problem.sequences + groups + rows and rows > 1:
                    continue  # rows without work
                for chunks, down in product(ways, (1, 2, 4, 8)):
                    made = fit(problem, units, cluster, grid, rows, groups, chunks, down)
                    if made is not None:
                        yield made


def fit(
    problem: Problem,
    units: int,
    cluster: int,
    grid: bool,
    rows: int,
    groups: int,
    chunks: tuple[int, int] = (1, 1),
    down: int = 0,
) -> Plan | None:
    """The plan with these numbers; None where it does not fit. No chunks in a grid: operands are polled.

    ``down``: warps over rows of the weights; as many as there are by default.
    """
    polled, chunks = grid and chunks == (0, 0), chunks if chunks[0] else (1, 1)
    blocks = -(-problem.width // units)
    share = cluster if grid else 1
    m, k = share * problem.row_gates * units // 16, blocks * problem.parts * units // 16 // share
    down = down or max(d for d in range(1, _WARPS + 1) if m % d == 0)
    across = _WARPS // down
    if m % down or 32 * down * across < max(units, rows):
        return None
    if blocks * problem.parts // share % chunks[0]:
        return None
    fours = problem.size // 2
    columns, tiles = -(-rows // 8), (m // down, -(-k // chunks[0] // across) * chunks[0])
    elements = -(-units * rows // (32 * down * across))
    sums = max(tiles[0] * columns, 4) * 4 if problem.size == 2 else tiles[0] * columns * 16
    later = 8 if elements <= 2 else 0
    per_tile = 4 * fours * tiles[0]
    taken = sums + (8 + later) * elements + (12 if elements > 2 else 0)
    held = min(tiles[1], max(0, _HELD - taken) // per_tile)
    if sums > 96 or elements > 8:
        return None
    made = Plan(
        units, blocks, groups, rows, (down, across), tiles, held, 0, cluster, grid, 0, 0.0, polled, chunks
    )
    base = shared_bytes(problem, made)
    column = down * across * tiles[0] * fours * 512
    shared = min(tiles[1] - held, max(0, problem.shared_bytes - base) // column)
    left = tiles[1] - held - shared
    if base > problem.shared_bytes or left * column > _STREAMED * (held + shared) * column:
        return None
    made = replace(made, shared=shared, shared_bytes=base + shared * column)
    if polled:
        few = 64 * groups * made.vector(problem.parts) * problem.size <= _PLACES_BYTES
        made = replace(made, places=64 if few else 16)
    return replace(made, cost=_cost(problem, made, left * column))


def shared_bytes(problem: Problem, made: Plan) -> int:
    """Bytes of shared memory, in the order of `place_block` in layout.cuh."""
    down, across = made.warps
    size, columns = problem.size, -(-made.rows // 8)
    share = made.cluster if made.grid else 1
    vector = made.vector(problem.parts) // share
    if made.grid:
        vector = vector // made.chunks[0] * made.chunks[1]
    v = (vector + 7 * made.units) * size
    staged = made.polled if made.grid else made.blocks > 1
    stage = problem.parts * made.units * made.rows * size if staged else 0
    sums = share * across * columns * problem.row_gates * made.units // 16 * 640 * (2 if share > 1 else 1)
    tiles = down * across * made.tiles[0] * made.shared * (size // 2) * 512
    return (1 if made.grid else 2) * v + stage + sums + tiles + 48 * made.rows + 16 * made.chunks[1] + 32


def _cost(problem: Problem, made: Plan, streamed: int) -> float:
    """us of a step of all rows, times the sequences that a row runs one after the other."""
    share = made.cluster if made.grid else 1
    received = made.vector(problem.parts) * problem.size / 1024 / share
    down, across = made.warps
    columns = -(-made.rows // 8)
    kept = down * across * made.tiles[0]  # tiles in a column of all warps
    products = kept * made.tiles[1] * columns * (_PRODUCT if problem.size == 2 else _FMA_PRODUCT)
    waits = 1 if made.tiles[0] * columns > 2 else 4 // (made.tiles[0] * columns)  # SPLIT of product.cuh
    step = max(products, _WAIT * made.tiles[1] / waits)
    reads = down * columns * 8 / made.rows * received
    sums = share * across * columns * problem.row_gates * made.units / 32
    step += (reads + made.shared * kept * problem.size / 4 + 2 * sums) * _SHARED_KB
    step += streamed / 1024 * made.blocks * made.groups * _L2_KB
    if share > 1:
        step += _SUMS + _SUMS_KB * sums
    step += _ELEMENT * -(-made.units * made.rows // made.threads)
    step += (_CELL + _CELL_BACK * problem.back) * (problem.kind >= 2)
    step += _exchange(made, received)
    per_row = problem.sequences / made.slots
    return step * (max(1.0, _RAGGED * per_row) if problem.ragged else ceil(per_row))


def _exchange(made: Plan, received: float) -> float:
    """us that a step waits for what others send, of which the block reads ``received`` KB."""
    if made.polled:
        return _POLLED + _POLLED_KB * received
    if made.grid:
        chunks, places = made.chunks
        return _COUNTED + _CHUNK_KB * received / chunks + _RING * min(_RINGS, chunks / places - 1)
    return _CLUSTER + _CLUSTER_KB * received if made.blocks > 1 else 0.0
