"""Runs schedules one after another: python -m tests.simulation --seeds 5000 --first 0."""

import argparse
import gc
import sys
import time

from tests.support.sim_plan import Plan
from tests.support.sim_world import World


def main() -> int:
    """0 when every schedule held; prints the first that did not, with its trace."""
    parser = argparse.ArgumentParser(description="The exactly-once core under seeded schedules.")
    parser.add_argument("--seeds", type=int, default=1000, help="how many schedules")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--trace", type=int, default=120, help="how many events before a failure are printed")
    options = parser.parse_args()
    begun_s = time.process_time()
    # Tasks and handles of a run die together; the default would look for cycles among them all the time.
    gc.set_threshold(20_000, 20, 50)
    for seed in range(options.first, options.first + options.seeds):
        world = World(seed)
        try:
            world.run()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this seed's
            for event in list(world.net.trace)[-options.trace :]:
                print(f"{event[0]:9.4f}", *event[1:])
            plan = {name: value for name, value in vars(Plan.of(seed)).items() if name != "random"}
            print(f"seed {seed}: {type(error).__name__}: {error}\n{plan}")
            return 1
    took_s = time.process_time() - begun_s
    print(f"{options.seeds} schedules held, {options.seeds / took_s * 60:,.0f} in a minute of one core")
    return 0


if __name__ == "__main__":
    sys.exit(main())
