"""Published benchmarks by name: how their rows are read, and how rewards become their figures, exactly as published.

``suite.py``         what a suite is, and how its files are found and read
``starling.py``      human, safety, truth and verbose preferences of Starling's authors
``rewardbench.py``   RewardBench, with or without the prior sets
``rewardbench2.py``  RewardBench 2: best of four, and ties
``rm_bench.py``      RM-Bench: right against subtly wrong in three styles each
"""

from kwise.use.suites import rewardbench, rewardbench2, rm_bench, starling
from kwise.use.suites.suite import Suite

SUITES: dict[str, Suite] = {
    "starling": starling.SUITE,
    "rewardbench": rewardbench.SUITE,
    "rewardbench-prior": rewardbench.WITH_PRIOR_SETS,
    "rewardbench2": rewardbench2.SUITE,
    "rm-bench": rm_bench.SUITE,
}
