"""Rankings that a tiny model can learn."""

import json

from accelerate import DistributedType, PartialState
from accelerate.state import AcceleratorState

PROMPT = [{"role": "user", "content": "Which sea is the saltiest?"}]


def write_rankings(path, num, offset=0, noise=0):
    """Answers with more 'salt' are better, but worse in every ``noise``-th ranking."""
    with path.open("w") as file:
        for i in range(num):
            sign = -1 if noise and i % noise == noise - 1 else 1
            answers = [
                {"rank": 3 - n * sign, "completion": "salt " * n + f"water {i * n}", "model": f"m{n}"}
                for n in (2, 0, 1)
            ]
            context = [{"role": "user", "content": f"question {i + offset}"}]
            file.write(json.dumps({"context": context, "completions": answers}) + "\n")
    return str(path)


def shard_on_cpus() -> None:
    """accelerate shards weights on GPUs only; tell it that these processes have one. All that follows is the real thing."""
    plain = AcceleratorState.__init__

    def told(self, *inputs, **named):
        if not AcceleratorState._shared_state:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        plain(self, *inputs, **named)

    AcceleratorState.__init__ = told
