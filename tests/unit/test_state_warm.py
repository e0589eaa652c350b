"""Warming up loads what the state calls."""

from weir.features import _account_kernels, _account_rows, _observe, _terminal_kernels
from weir.features.spec import FeatureSpec
from weir.features.warm import warm
from weir.state import _row_kernels, row_format, undo


def test_every_loop_that_a_batch_may_wait_for_is_loaded() -> None:
    """Whatever the spec, the compiled signatures are there afterwards."""
    warm(FeatureSpec(label_delay_days=3))
    for loop in (
        _observe.observe_rows,
        _account_kernels.learn_accounts,
        _terminal_kernels.learn_terminals,
        _terminal_kernels.enter_terminals,
        _account_rows._encode,
        _account_rows._decode,
        row_format._check,
        undo.keep_all,
        undo.put_back,
        undo.patch,
        _row_kernels.put_all,
        _row_kernels.remove_all,
        _row_kernels.remove_slots,
    ):
        assert loop.signatures, loop
