"""Lines of every kind that can be scored, and files of them."""

import json

from kwise.model.calibrated import Calibration


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def conversations(num):
    return [{"prompt": f"q{i}", "response": " ".join("x" * (1 + i % 7)), "id": i} for i in range(num)]


CALIBRATION = Calibration(temperature=2.0, centre=1.0, length_slope=0.5)


ROWS = [
    ({"messages": [user("q"), assistant("one two")], "id": 7}, {"score": 2.0}),
    ({"prompt": "q", "response": "a b c"}, {"score": 3.0}),
    ({"prompt": [user("q"), assistant("x"), user("r")], "response": "a"}, {"score": 1.0}),
    ({"prompt": "\n\nHuman: q\n\nAssistant: ", "response": "a b"}, {"score": 2.0}),
    ({"prompt": "q", "chosen": "a b", "rejected": "c"}, {"chosen_score": 2.0, "rejected_score": 1.0}),
    (
        {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b c")]},
        {"chosen_score": 1.0, "rejected_score": 2.0},
    ),
    (
        {"prompt": "q", "chosen": ["a", "b c"], "rejected": ["d e f"]},
        {"chosen_score": [1.0, 2.0], "rejected_score": [3.0]},
    ),
    ({"prompt": "q", "chosen": "a", "rejected": ["b c", "d e f"]}, {"chosen_score": 1.0, "rejected_score": [2.0, 3.0]}),
    (
        {"prompt": "q", "response_a": "a", "response_b": "b c", "winner": "model_b"},
        {"score_a": 1.0, "score_b": 2.0},
    ),
]
