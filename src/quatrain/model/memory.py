"""Work that may run out of memory: what it held is let go, and it is tried again in smaller parts."""

import gc
import traceback
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from quatrain.errors import OutOfMemoryError, ran_out_of_memory, shortage

T = TypeVar("T")


def release(error: BaseException) -> None:
    """Let go of what failed work still holds: the frames of its traceback keep its tensors alive."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__context__
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def fits(work: Callable[[], object]) -> bool:
    """Do the work; False where memory runs out. Everything else that it raises is raised."""
    try:
        work()
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        release(error)
        return False
    return True


def halves(count: int, least: int = 1) -> Iterator[int]:
    """count / 2, count / 4 and so on, rounded down, and not below ``least``."""
    while (count := count // 2) >= least:
        yield count


def in_parts(rows: int, work: Callable[[int], T], what: str) -> T:
    """``work(rows)``, and where memory runs out, the same with half as many rows at a time, down to one.

    Raises OutOfMemoryError where not even one row fits; ``what`` says what a row is.
    """
    for count in (rows, *halves(rows)):
        try:
            return work(count)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            release(error)
            asked = shortage(error)
    raise OutOfMemoryError(
        f"not enough memory{asked} for one {what}: a shorter one, or a smaller model, fits"
    )


__all__ = ["fits", "halves", "in_parts", "release"]
