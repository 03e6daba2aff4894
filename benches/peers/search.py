"""Finds the highest rate that a service holds, by halving.

Pure: rates out, verdicts in. `bench_serve.py` does the measuring.
"""

from __future__ import annotations

from dataclasses import dataclass

# A service of constant time that is used by so much still holds its tail; the first guess should hold.
FIRST_UTILISATION = 0.8
# More than the capacity cannot be held for long; the capacity is only estimated, so a little more is tried.
HIGHEST_UTILISATION = 1.15


@dataclass
class Search:
    """Between a rate that held and one that did not."""

    lowest: float
    highest: float
    next_rate: float
    held: float | None = None

    @classmethod
    def around(cls, capacity_rps: float) -> Search:
        """Starts from what one request after the other comes to, requests a second."""
        return cls(0.0, HIGHEST_UTILISATION * capacity_rps, FIRST_UTILISATION * capacity_rps)

    def report(self, held: bool) -> None:
        """Takes the verdict on `next_rate` and sets the next."""
        if held:
            self.lowest = self.held = self.next_rate
        else:
            self.highest = self.next_rate
        self.next_rate = (self.lowest + self.highest) / 2
