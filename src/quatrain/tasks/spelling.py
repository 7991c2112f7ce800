"""The tokenizer of a trained language model, from its checkpoint."""

from pathlib import Path

from quatrain import checkpoint
from quatrain.data.tokenizer import Tokenizer, rebuild


def tokenizer_of(path: str | Path) -> Tokenizer:
    """What the tokens of a checkpoint's model are; bytes where it does not say. Raises CheckpointError."""
    saved = checkpoint.read(path, groups=("tokenizer",))
    name = str(saved.meta.get("tokenizer", "bytes"))
    text = ""
    if name == "bpe":
        text = saved.tensors("tokenizer")["json"].numpy().tobytes().decode()
    return rebuild(name, text)
