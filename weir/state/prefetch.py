# mypy: allow-untyped-defs, allow-untyped-calls
"""Asks the processor for memory before it is needed: a random row of a large state otherwise costs a wait."""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from weir.state.jit import kernel

LINE_BYTES = 64
_FOR_WRITING, _IN_EVERY_CACHE, _DATA = 1, 3, 1


def _prefetch(typing, matrix, row, item):
    def generate(context, builder, signature, arguments):
        kind = signature.args[0]
        held = context.make_array(kind)(context, builder, arguments[0])
        place = cgutils.get_item_pointer(context, builder, kind, held, arguments[1:], wraparound=False)
        byte, integer = ir.IntType(8).as_pointer(), ir.IntType(32)
        instruction = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte, integer, integer, integer]),
            "llvm.prefetch.p0",
        )
        how = [integer(_FOR_WRITING), integer(_IN_EVERY_CACHE), integer(_DATA)]
        builder.call(instruction, [builder.bitcast(place, byte), *how])
        return context.get_dummy_value()

    return types.void(matrix, types.intp, types.intp), generate


# prefetch(matrix, row, item): begin to load the cache line of an item, which must exist; changes no value.
prefetch: Any = intrinsic(_prefetch)


@kernel
def prefetch_row(rows, row):
    """Begin to load all of a row of items of any size."""
    for item in range(0, rows.shape[1], LINE_BYTES // rows.itemsize):
        prefetch(rows, row, item)
    # A row need not begin where a line does.
    prefetch(rows, row, rows.shape[1] - 1)
