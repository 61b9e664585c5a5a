"""Would a gradient of the rows that a step touched, instead of the whole table's, make steps cheaper?

    python -m benchmarks row_sparse

M rows of gradients (states, targets and negatives of a batch) for a table of V items are summed into a gradient and
Adam takes its step, of all rows ("adam") or of touched ones alone ("lazy_adam"), as captured graphs:

dense   zeros (V, D), rows added, `seqrec.kernels.adam`
sparse  an id's slot is the last of its places among the M; rows added into (M, D); Adam reads a row's slot first, or,
        lazy, walks over the M places and takes those that are slots

Both are compared before they are timed. Appends rows to row_sparse.csv: medians, and the bytes of both gradients.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks import rows
from seqrec.kernels.adam import adam_rows
from seqrec.kernels.launch import power_of_2, row_block

WIDTH = 64
ITEMS = (60_416, 173_511, 1_000_001)
ROWS = (20_000, 50_000, 200_000)
COLUMNS = ("items", "rows", "width", "optimizer", "dense_ms", "sparse_ms", "dense_mib", "sparse_mib")
LR, BETAS, EPS = 1e-3, (0.9, 0.98), 1e-8


@triton.jit(do_not_specialize=["n"])
def _adam_by_slots(
    table, gradient, slots, ids, mean, square, step, n, lr, beta1, beta2, eps,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, LAZY: tl.constexpr,
):  # fmt: skip
    """n: rows of the table; of a lazy step, places of touched ones."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, BLOCK_D)
    inside = at < n
    if LAZY:
        row = tl.load(ids + at, mask=inside, other=0).to(tl.int64)
        slot = at
        inside = inside & (tl.load(slots + row, mask=inside, other=-1) == at)
        filled = inside
    else:
        row = at
        slot = tl.load(slots + at, mask=inside, other=-1).to(tl.int64)
        filled = inside & (slot >= 0)
    mask = inside[:, None] & (d < D)[None, :]
    place = row[:, None] * D + d[None, :]
    g = tl.load(gradient + slot[:, None] * D + d[None, :], mask=mask & filled[:, None], other=0.0)
    t = tl.load(step)
    w = tl.load(table + place, mask=mask, other=0.0)
    m = beta1 * tl.load(mean + place, mask=mask, other=0.0) + (1 - beta1) * g
    tl.store(mean + place, m, mask=mask)
    v = beta2 * tl.load(square + place, mask=mask, other=0.0) + (1 - beta2) * g * g
    tl.store(square + place, v, mask=mask)
    scale = tl.sqrt(v / (1 - tl.exp(t * tl.log(beta2)))) + eps
    w -= lr / (1 - tl.exp(t * tl.log(beta1))) * m / scale
    tl.store(table + place, w, mask=mask)


class Problem:
    def __init__(self, V: int, M: int, lazy: bool) -> None:
        generator = torch.Generator("cuda").manual_seed(1)

        def random(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device="cuda")

        self.lazy, self.V, self.M = lazy, V, M
        self.state = [random(V, WIDTH) for _ in range(3)]
        self.step = torch.ones((), device="cuda")
        self.ids = torch.randint(V, (M,), generator=generator, device="cuda")
        self.places = torch.arange(M, device="cuda", dtype=torch.int32)
        self.rows = random(M, WIDTH)
        self.gradient = torch.empty(V, WIDTH, device="cuda")
        self.compact = torch.empty(M, WIDTH, device="cuda")
        self.slots = torch.empty(V, device="cuda", dtype=torch.int32)

    def dense(self) -> None:
        table, mean, square = self.state
        self.gradient.zero_().index_add_(0, self.ids, self.rows)
        adam_rows(table, self.gradient, mean, square, self.step, LR, *BETAS, EPS, 0.0, False, self.lazy)

    def sparse(self) -> None:
        table, mean, square = self.state
        self.slots.fill_(-1).index_copy_(0, self.ids, self.places)
        self.compact.zero_().index_add_(0, self.slots[self.ids], self.rows)
        n, block = (self.M if self.lazy else self.V), row_block(WIDTH)
        _adam_by_slots[(triton.cdiv(n, block),)](
            table, self.compact, self.slots, self.ids, mean, square, self.step, n, LR, *BETAS, EPS,
            D=WIDTH, BLOCK_D=power_of_2(WIDTH), BLOCK=block, LAZY=self.lazy,
        )  # fmt: skip

    def check(self) -> None:
        """Raises AssertionError where the two steps differ."""
        begin = [one.clone() for one in self.state]
        self.dense()
        wanted = [one.clone() for one in self.state]
        for one, was in zip(self.state, begin, strict=True):
            one.copy_(was)
        self.sparse()
        for one, other in zip(self.state, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def milliseconds(work: Callable[[], None]) -> float:
    """Median of 30 replays."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    times = []
    for _ in range(30):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[15]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks row_sparse", description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=rows.RESULTS)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("needs a CUDA device.")
    for V in ITEMS:
        for M in ROWS:
            for lazy in (False, True):
                problem = Problem(V, M, lazy)
                problem.check()
                dense, sparse = milliseconds(problem.dense), milliseconds(problem.sparse)
                sizes = V * WIDTH * 4 / 2**20, (M * WIDTH * 4 + V * 4) / 2**20
                name = "lazy_adam" if lazy else "adam"
                values = (V, M, WIDTH, name, f"{dense:.4f}", f"{sparse:.4f}", *(f"{one:.1f}" for one in sizes))
                rows.append("row_sparse", dict(zip(COLUMNS, values, strict=True)) | rows.conditions(), options.results)
                print(*values, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
