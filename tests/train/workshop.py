"""Rankings that a tiny model can learn."""

import json

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
