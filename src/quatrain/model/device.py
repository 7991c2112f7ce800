"""Where a model runs: the name that the command line takes, made into a device that works."""

import torch
from torch import Tensor

from quatrain.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda")


def choose(name: str, before: str = "") -> torch.device:
    """The device called ``name``: "cpu", "cuda", or "auto", which is CUDA where it is usable, else the CPU.

    ``before`` is the device of an earlier part of the same run; auto prefers it where it is usable. Raises
    ConfigError for another name, and for "cuda" where none is usable, with the reason. Cost: "cpu" asks
    nothing of CUDA; anything else starts it.
    """
    if name not in DEVICES:
        raise ConfigError(f"device = {name!r}: must be one of {', '.join(DEVICES)}")
    if name == "cpu" or (name == "auto" and before == "cpu"):
        return torch.device("cpu")
    reason = why_no_cuda()
    if not reason:
        return torch.device("cuda", torch.cuda.current_device())
    if name == "cuda":
        raise ConfigError(f"device = 'cuda': cannot be used: {reason}")
    return torch.device("cpu")


def why_no_cuda() -> str:
    """Why no CUDA device can be used, in words; "" where one can. Cost: a small sum on the device."""
    if torch.version.cuda is None:
        return "this torch is built for the CPU only"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    try:  # a device may be there and have no code for its architecture, or no memory left
        total = (torch.ones(2, device="cuda") + 1).sum().item()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().splitlines()[0]
    return "" if total == 4 else f"1 + 1 + 1 + 1 is {total:g} on it"


def name_of(device: torch.device) -> str:
    """The device in words: "cpu", or the name of the GPU."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "cpu"


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on ``device``. To a GPU it goes through pinned memory, without waiting for the copy.

    The stream orders the copy before every kernel that reads it, and torch keeps the pinned memory until the
    copy is done.
    """
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


__all__ = ["DEVICES", "choose", "name_of", "to_device", "why_no_cuda"]
