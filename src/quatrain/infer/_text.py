"""Text that grows token by token: whole UTF-8 characters, and no stop string ever shown."""

import codecs

from quatrain.config.check import check


class Utf8Stream:
    """Turns bytes into text as soon as characters are whole; bytes that form none become U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        """The characters that ``data`` completes."""
        return self._decoder.decode(data)

    def finish(self) -> str:
        """U+FFFD if the bytes end inside a character, else nothing."""
        return self._decoder.decode(b"", final=True)


class StopStrings:
    """Lets text through up to the first stop string, wherever its characters were cut.

    A tail that may still become a stop string is held back until it is clear. Raises ConfigError for an empty
    one.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        for text in stop:
            check(text != "", "stop", text, "must not be empty")
        self._stop = stop
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that is now known to lie before any stop string and was not given yet."""
        if self.found:
            return ""
        self._held += text
        # The one complete first, as if every character came alone: how the text is cut must not matter.
        found = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.found = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        keep = max((self._tail(stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """What was held back and can become no stop string any more."""
        shown, self._held = self._held, ""
        return shown

    def _tail(self, stop: str) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)
