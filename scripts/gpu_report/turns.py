"""Cells that run at once on one card: they make themselves ready together, and are timed alone."""

import contextlib
import fcntl


class Turns:
    """Of the processes with the same file, any number is in `together`, or one in `alone`. Without a file nobody waits."""

    def __init__(self, path=None):
        self.file = open(path, "a") if path else None

    @contextlib.contextmanager
    def _locked(self, how):
        if self.file:
            fcntl.flock(self.file, how)
        try:
            yield
        finally:
            if self.file:
                fcntl.flock(self.file, fcntl.LOCK_UN)

    def together(self):
        return self._locked(fcntl.LOCK_SH)

    def alone(self):
        return self._locked(fcntl.LOCK_EX)
