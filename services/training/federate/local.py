"""One bank's part of a round: trees boosted from the common model, as an update of its vector.

Trees whose paths use one feature, or one agreed pair, add up to the vector's cells exactly, and so does an
average of several banks' updates: the common model stays additive, and its reasons stay exact.

Sources: McMahan et al. 2017, Communication-efficient learning of deep networks from decentralized data
(averaging); Lou et al. 2012 and 2013 (boosted single features, then pairs).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from services.training.additive import AdditiveModel, Calibration, Floats, from_lightgbm
from services.training.federate.layout import Layout, Pair, with_nan
from services.training.federate.plan import Plan, Steps
from services.training.fit import Recipe, Rows
from services.training.grid import Cells

BASE_LOGIT = -5.0  # where all start, before anyone has said how much fraud it has
_NEWTON_STEPS = 8


@dataclass(frozen=True, slots=True)
class CellRows:
    """Rows as a bank trains on them. cells: (n, F) int16. is_fraud: (n,) bool. weight: (n,) float64."""

    cells: Cells
    is_fraud: NDArray[np.bool_]
    weight: Floats

    @classmethod
    def of(cls, rows: Rows, layout: Layout) -> "CellRows":
        """The same rows, each value replaced by its cell of the public grid."""
        return cls(layout.grid.cells(rows.x), rows.is_fraud, rows.weight)


def start(layout: Layout) -> Floats:
    """The vector of the model that knows nothing."""
    vector = np.zeros(layout.size)
    vector[0] = BASE_LOGIT
    return vector


def losses(vector: Floats, rows: CellRows, layout: Layout) -> Floats:
    """(n,) float64: the negative log likelihood of each row, in nats."""
    logit = layout.logit(vector, rows.cells)
    lost: Floats = np.logaddexp(0, np.where(rows.is_fraud, -logit, logit))
    return lost


def cell_counts(rows: CellRows, layout: Layout) -> Floats:
    """(layout.cell_count,) float64: how many of this bank's rows lie in each cell, by weight."""
    width = layout.grid.sizes[0]
    columns = (rows.cells[:, feature] for feature in range(len(layout.features)))
    return np.concatenate([np.bincount(column, rows.weight, width) for column in columns])


def boost(vector: Floats, rows: CellRows, layout: Layout, recipe: Recipe, steps: Steps, seed: int) -> Floats:
    """What this bank would add to the vector, in logits: to the base first, then by `steps.trees` trees.

    Trees over the layout's pairs where it has some, else over single features. The same rows and seed give
    the same update.
    """
    update = np.zeros(layout.size)
    before = layout.logit(vector, rows.cells)
    update[0] = _base_step(before, rows)
    groups: Sequence[Sequence[int]] = layout.pairs or _singles(layout, recipe)
    booster = _grow(rows, before + update[0], layout, recipe, steps, groups, seed)
    _pour(from_lightgbm([booster.dump_model(num_iteration=-1)], layout.features), layout, update)
    return update


def alone(rows: CellRows, layout: Layout, plan: Plan, seed: int) -> Floats:
    """What as many rounds make of one bank's rows alone, with the layout's pairs: a vector."""
    single = Layout(layout.features, layout.spec)
    vector = start(single)
    for round_ in range(plan.rounds):
        vector = vector + boost(vector, rows, single, plan.recipe, plan.steps, seed + round_)
    if layout.pairs:
        _, vector = single.with_pairs(vector, layout.pairs)
        for round_ in range(plan.rounds_pair):
            vector = vector + boost(
                vector, rows, layout, plan.recipe, plan.steps, seed + plan.rounds + round_
            )
    return vector


def pair_gains(vector: Floats, rows: CellRows, layout: Layout, recipe: Recipe, seed: int) -> Floats:
    """(F (F - 1) / 2,) float64 that add up to 1: how much this bank's free trees of two splits use each pair.

    Ordered as `pairs_of`; all 0 where no tree joins two features.
    """
    free = [[index for (index,) in _singles(layout, recipe)]]
    steps = Steps(trees=100, leaves_pair=3)
    booster = _grow(rows, layout.logit(vector, rows.cells), layout, recipe, steps, free, seed)
    gains: Counter[Pair] = Counter()
    for tree in booster.dump_model()["tree_info"]:
        gain: Counter[int] = Counter()
        _add_gains(tree["tree_structure"], gain)
        if len(gain) == 2:
            first, second = sorted(gain)
            gains[first, second] += min(gain.values())
    every = np.array([gains[pair] for pair in pairs_of(layout)], np.float64)
    share: Floats = every / max(float(every.sum()), 1e-12)
    return share


def pairs_of(layout: Layout) -> list[Pair]:
    """Every pair of features, in the order of `pair_gains`."""
    return list(combinations(range(len(layout.features)), 2))


def _grow(
    rows: CellRows,
    base: Floats,
    layout: Layout,
    recipe: Recipe,
    steps: Steps,
    groups: Sequence[Sequence[int]],
    seed: int,
) -> Any:
    """LightGBM on cells as if they were numbers, every cell a bin of its own."""
    alone = all(len(group) == 1 for group in groups)
    grid = layout.grid if alone else layout.coarse
    cells = rows.cells if alone else layout.coarse_of[rows.cells]
    parameters = {
        "objective": "binary",
        "boost_from_average": False,
        "learning_rate": steps.learning_rate,
        "num_leaves": steps.leaves if alone else steps.leaves_pair,
        "min_data_in_leaf": steps.leaf_rows_min,
        "min_data_in_bin": 1,
        "max_bin": grid.sizes[0],
        "lambda_l2": 1.0,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "seed": seed,
        "monotone_constraints": [int(name in recipe.rising) for name in layout.features],
        "interaction_constraints": [list(group) for group in groups],
        "num_threads": recipe.threads,
        "deterministic": True,
        "force_col_wise": True,
        "verbosity": -1,
    }
    data = lightgbm.Dataset(
        with_nan(cells, grid.sizes[0]), rows.is_fraud.astype(np.int8), weight=rows.weight,
        init_score=base, params=parameters,
    )  # fmt: skip
    return lightgbm.train(parameters, data, steps.trees)


def _pour(grown: AdditiveModel, layout: Layout, update: Floats) -> None:
    """Add a model over cell numbers to the cells of a vector."""
    update[0] += grown.base_logit
    grid = layout.coarse if layout.pairs else layout.grid
    axis = with_nan(np.arange(grid.sizes[0], dtype=np.int16), grid.sizes[0])
    for table in grown.tables:
        at = [np.searchsorted(edges, axis, side="left") for edges in table.edges]
        values = table.values[np.ix_(*at)]
        if len(table.features) == 2:
            layout.pair(update, layout.pairs.index((table.features[0], table.features[1])))[:] += values
        else:
            layout.single(update, table.features[0])[:] += (
                values[layout.coarse_of] if layout.pairs else values
            )


def _add_gains(node: Mapping[str, Any], gain: Counter[int]) -> None:
    if "split_feature" in node:
        gain[int(node["split_feature"])] += node["split_gain"]
        _add_gains(node["left_child"], gain)
        _add_gains(node["right_child"], gain)


def _singles(layout: Layout, recipe: Recipe) -> list[list[int]]:
    return [[index] for index, name in enumerate(layout.features) if name not in recipe.left_out]


def _base_step(before: Floats, rows: CellRows) -> float:
    """What must be added to every logit so that the mean probability is the share of fraud; by Newton."""
    moved = 0.0
    for _ in range(_NEWTON_STEPS):
        p = Calibration()(before + moved)
        gap = float(np.average(rows.is_fraud - p, weights=rows.weight))
        slope = float(np.average(p * (1 - p), weights=rows.weight))
        moved += min(max(gap / max(slope, 1e-9), -2.0), 2.0)
    return moved
