"""Recordings: WAV read here, FLAC through an extra; as log-mel energies or as samples.

Log-mel energies are what speech recognition reads: the spectrum of 25 ms of sound every 10 ms, summed in 40
overlapping bands that are evenly spaced on the mel scale (Davis and Mermelstein 1980), as logarithms.
"""

import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quatrain.data.corpus import ending, reading
from quatrain.errors import DataError, MissingExtraError

ENDINGS = (".wav", ".flac")
BANDS, WINDOW, HOP = 40, 0.025, 0.010  # bands, seconds
_FLOOR = 1e-8  # added to energies; a sample of 16 bits is 3e-5
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE


def read(path: Path, features: str) -> tuple[NDArray[np.float32], int]:
    """A recording as ``(T, 40)`` log-mel energies (``features`` "mel") or ``(T, 1)`` samples in [-1, 1], and
    how many samples of it make a second.

    Channels are averaged. Raises DataError for what is no recording or has no samples, MissingExtraError for
    FLAC without the extra.
    """
    samples, rate = load(path)
    return (mel(samples, rate) if features == "mel" else samples[:, None]), rate


def load(path: Path) -> tuple[NDArray[np.float32], int]:
    """Samples ``(T,)`` in [-1, 1] and how many of them make a second."""
    if not path.is_file():
        raise DataError(f"{path}: does not exist")
    samples, rate = _flac(path) if ending(path) == ".flac" else _wav(path)
    if not len(samples):
        raise DataError(f"{path}: has 0 samples")
    if not np.isfinite(samples).all():
        raise DataError(f"{path}: holds a sample that is not finite")
    return samples, rate


def mel(samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Log-mel energies ``(T, 40)``, one row for every 10 ms begun; sound is continued by silence."""
    hop, width = max(1, round(HOP * rate)), max(2, round(WINDOW * rate))
    size = 1 << max(width - 1, 127).bit_length()
    frames = max(1, -(-len(samples) // hop))
    padded = np.zeros((frames - 1) * hop + width, dtype=np.float32)
    padded[: min(len(samples), len(padded))] = samples[: len(padded)]
    pieces = np.lib.stride_tricks.sliding_window_view(padded, width)[::hop]
    window = np.hanning(width + 2)[1:-1].astype(np.float32)
    rows = []
    for at in range(0, frames, 4096):  # in pieces: an hour of sound needs no more memory than a minute
        power = np.abs(np.fft.rfft(pieces[at : at + 4096] * window, size)) ** 2 / width
        rows.append(np.log(power @ _bands(rate, size) + _FLOOR).astype(np.float32))
    return np.concatenate(rows)


@cache
def _bands(rate: int, size: int) -> NDArray[np.float64]:
    """Triangles over the bins of a spectrum, ``(size / 2 + 1, 40)``, each of height 1."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    bins = np.arange(size // 2 + 1)[:, None] * rate / size
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return np.asarray(np.maximum(0, np.minimum(rising, falling)))


def _wav(path: Path) -> tuple[NDArray[np.float32], int]:
    with reading(path):
        content = path.read_bytes()
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise DataError(f"{path}: is no WAV file (it does not begin with RIFF ... WAVE)")
    form: tuple[int, int, int, int] | None = None
    at = 12
    while at + 8 <= len(content):
        name, size = content[at : at + 4], struct.unpack_from("<I", content, at + 4)[0]
        body = content[at + 8 : at + 8 + size]
        if name == b"fmt " and len(body) >= 16:
            kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", body)
            if kind == _EXTENSIBLE and len(body) >= 26:
                kind = struct.unpack_from("<H", body, 24)[0]
            form = kind, channels, rate, bits
        elif name == b"data":
            if form is None:
                raise DataError(f"{path}: is damaged: its samples come before their format")
            return _samples(body, *form, path)
        at += 8 + size + size % 2
    raise DataError(f"{path}: is truncated: holds no samples")


def _samples(
    body: bytes, kind: int, channels: int, rate: int, bits: int, path: Path
) -> tuple[NDArray[np.float32], int]:
    if channels < 1 or rate < 1:
        raise DataError(f"{path}: is damaged: {channels} channels at {rate} samples a second")
    width = bits // 8
    body = body[: len(body) // max(1, width * channels) * width * channels]
    flat: NDArray[Any]
    if (kind, bits) in ((_FLOAT, 32), (_FLOAT, 64)):
        flat = np.frombuffer(body, dtype=f"<f{width}").astype(np.float32)
    elif (kind, bits) == (_PCM, 8):
        flat = (np.frombuffer(body, dtype=np.uint8).astype(np.float32) - 128) / 128
    elif (kind, bits) == (_PCM, 24):
        three = np.frombuffer(body, dtype=np.uint8).reshape(-1, 3)
        four = np.zeros((len(three), 4), dtype=np.uint8)
        four[:, 1:] = three  # in the upper bytes, so that the sign is right
        flat = four.reshape(-1).view("<i4").astype(np.float32) / 2**31
    elif (kind, bits) in ((_PCM, 16), (_PCM, 32)):
        flat = np.frombuffer(body, dtype=f"<i{width}").astype(np.float32) / 2 ** (bits - 1)
    else:
        known = "8, 16, 24 or 32 bits of PCM, or 32 or 64 bits of floating point"
        raise DataError(f"{path}: WAV of format {kind} with {bits} bits: must be {known}")
    return flat.reshape(-1, channels).mean(1, dtype=np.float32), rate


def _flac(path: Path) -> tuple[NDArray[np.float32], int]:
    try:
        import soundfile
    except ImportError:
        message = f"{path}: FLAC needs the extra audio: pip install 'quatrain[audio]'"
        raise MissingExtraError(message) from None
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    mono: NDArray[np.float32] = samples.mean(1, dtype=np.float32)
    return mono, int(rate)
