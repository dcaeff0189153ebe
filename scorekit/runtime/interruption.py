"""How work ends before its time."""


class Stopped(RuntimeError):
    """Work was asked to stop and did, with what it had done kept; the message says where."""


def never() -> bool:
    """Return False: the ``stop`` of work that nothing stops."""
    return False


class Diverged(RuntimeError):
    """The loss or the weights became NaN or infinite; the last good checkpoint is kept."""

    def __init__(self, iteration: int, what: str, last_good: int) -> None:
        super().__init__(
            f"training diverged: {what} at iteration {iteration}; "
            f"last good checkpoint: iteration {last_good}"
        )
        self.iteration, self.what, self.last_good = iteration, what, last_good

    def __reduce__(self) -> tuple[type, tuple[int, str, int]]:
        return type(self), (self.iteration, self.what, self.last_good)
