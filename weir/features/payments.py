"""Features of payments: what an account and a terminal did before, in windows bounded in memory.

`PaymentState.observe` gives each row its features from the rows before it, then lets the row enter. The
result does not depend on how the stream is cut into batches, so the same code computes features online
(`weir.features.terminals.observe`) and for training (`weir.features.offline`). What each feature means is in
`docs/reference/features.md`.
"""

import numpy as np
from numpy.typing import NDArray

from weir.features.accounts import Accounts
from weir.features.columns import Labels, Payments
from weir.features.spec import CHANNELS, DEFAULT, FEATURE_SPEC, FEATURES, FeatureSpec
from weir.features.terminals import Terminals, observe
from weir.state.table import StateFull

__all__ = [
    "CHANNELS",
    "DEFAULT",
    "FEATURES",
    "FEATURE_SPEC",
    "Accounts",
    "FeatureSpec",
    "Labels",
    "PaymentState",
    "Payments",
    "StateFull",
    "Terminals",
    "observe",
]


class PaymentState:
    """One table of accounts and one of terminals, of which nothing is ever undone: for training and tests.

    Attributes:
        accounts, terminals: the two tables.
    """

    def __init__(
        self,
        spec: FeatureSpec = DEFAULT,
        *,
        accounts_max: int,
        terminals_max: int,
        accounts_start: int = 4_096,
        terminals_start: int = 1_024,
    ) -> None:
        """An empty state with slots for `*_start` rows, which double up to `*_max`.

        Raises:
            ValueError: a maximum below 1.
        """
        self.spec = spec
        self.accounts = Accounts(spec, rows_max=accounts_max, rows_start=accounts_start)
        self.terminals = Terminals(spec, rows_max=terminals_max, rows_start=terminals_start)

    def observe(self, payments: Payments) -> NDArray[np.float32]:
        """(n, len(FEATURES)) float32: each row's features from the rows before it; then it has entered.

        Raises:
            StateFull: no row left for a new account or terminal; the rows before it have entered.
        """
        return observe(self.accounts, self.terminals, payments)

    def learn(self, labels: Labels) -> None:
        """Count each label's fraud at its payment's day.

        It acts on what is told early at once, on all else when that day is `label_delay_days` past.
        """
        self.accounts.learn(labels)
        self.terminals.learn(labels)

    @property
    def watermark_ms(self) -> int:
        """The newest event time seen, less the lateness; an event before it is late. 0 at the start."""
        return self.accounts.watermark_ms

    @property
    def late_total(self) -> int:
        """Events that came after the watermark had passed them: decided, and in those buckets still open."""
        return self.accounts.late_total

    @property
    def evicted_total(self) -> int:
        """Accounts and terminals forgotten because no window could see them any more and room was needed."""
        return self.accounts.evicted_total + self.terminals.evicted_total

    @property
    def account_count(self) -> int:
        """Accounts that have a row."""
        return self.accounts.row_count

    @property
    def terminal_count(self) -> int:
        """Terminals that have a row."""
        return self.terminals.row_count

    @property
    def nbytes(self) -> int:
        """Bytes of rows in use and of all slots."""
        return self.accounts.nbytes + self.terminals.nbytes
