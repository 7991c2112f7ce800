"""Jobs in a child process: where one fails, is killed or does not end, the next one begins in a new child.

A script names its jobs, functions of plain values that return plain values, and calls `serve` when it is
started with ``--worker``.
"""

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

Job = Callable[..., dict[str, Any]]


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def serve(jobs: Mapping[str, Job]) -> None:
    """In the child: run the jobs that come in, one a line, and print what they return."""
    for line in sys.stdin:
        name, values = json.loads(line)
        try:
            result = jobs[name](**values)
        except Exception as error:  # the next job may still work
            result = {"failed": f"{type(error).__name__}: {error}"[:600]}
        say(f"RESULT {json.dumps(result)}")
        if "failed" in result and "CUDA" in result["failed"]:
            return  # a broken context breaks what follows


class Workers:
    """A child that runs a script's jobs; a new one where the last is gone."""

    def __init__(self, script: str) -> None:
        self._script = script
        self._child: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()

    def run(self, name: str, limit: float, **values: object) -> dict[str, Any]:
        """A job's result, or ``{"failed": why}``; the child is killed after ``limit`` seconds."""
        if self._child is None or self._child.poll() is not None:
            self._start()
        assert self._child is not None
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps([name, values]) + "\n")
            self._child.stdin.flush()
        except OSError:
            self.stop()
            return self.run(name, limit, **values)
        until = time.monotonic() + limit
        while True:
            try:
                line = self._lines.get(timeout=max(until - time.monotonic(), 0.01))
            except queue.Empty:
                self.stop()
                return {"failed": f"did not end within {limit:.0f} s"}
            if line is None:
                self.stop()
                return {"failed": "the process ended"}
            if line.startswith("RESULT "):
                result: dict[str, Any] = json.loads(line[7:])
                if "failed" in result and "CUDA" in result["failed"]:
                    self.stop()
                return result

    def _start(self) -> None:
        self._lines = queue.Queue()
        self._child = subprocess.Popen(
            [sys.executable, self._script, "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        child, lines = self._child, self._lines

        def read() -> None:
            assert child.stdout is not None
            for line in child.stdout:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()

    def stop(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None
