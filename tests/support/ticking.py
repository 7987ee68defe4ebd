"""A clock that goes when it is told to."""


class Clock:
    """Seconds that only a test moves."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    async def rest(self, seconds: float) -> None:
        """Sleep without waiting."""
        self.now += seconds
