"""Files for the commands to read."""

import json

import numpy as np

from kwise import RewardModel

METRICS = {"pair_accuracy", "adjacent_accuracy", "top1", "ndcg", "kendall_tau", "nll", "ece", "top1_ece"}
METRICS |= {"longer_wins", "better_model_wins"}


def nectar_row(i, k, null=False):
    answers = [{"answer": f"answer {n} to {i}", "model": f"m{n}", "rank": float(1 + (n * 5 + i) % k)} for n in range(k)]
    if null:
        answers[-1]["rank"] = None
    return {"prompt": f"\n\nHuman: question {i}\n\nAssistant: ", "answers": answers, "turns": 1, "source": ["made"]}


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def pairs_scored(path):
    """Two pairs, one of them scored the wrong way round."""
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_score": 1, "rejected_score": 0}
    return write(path, [row, row | {"prompt": "r", "chosen_score": -1}])


def ranked_by(model, path, temperature, prompts=40):
    """Rankings that follow the model's own rewards / temperature, with Gumbel noise."""
    loaded, rng, rows = RewardModel.from_pretrained(model), np.random.default_rng(0), []
    for i in range(prompts):
        answers = ["x" * int(n) + str(i) for n in rng.integers(1, 40, 3)]
        rewards = np.array(loaded.score(f"question {i}", answers))
        ranks = (-(rewards / temperature + rng.gumbel(size=3))).argsort().argsort() + 1
        completions = [{"completion": each, "rank": int(rank)} for each, rank in zip(answers, ranks, strict=True)]
        rows.append({"context": [{"role": "user", "content": f"question {i}"}], "completions": completions})
    return write(path, rows)
