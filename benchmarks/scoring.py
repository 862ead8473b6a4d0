"""What it costs to score text: kwise's RewardModel against transformers' text-classification pipeline.

SmolLM2-135M-Instruct (--layers of its 30) with a random head, saved once and loaded by both, float32. Messages and responses
go in, numbers come out: chat template and tokenizing count on both sides. Scores must agree to 1e-5, else there is no table.

    best of 16    one prompt of 250 tokens, 16 responses of 174 to 324 tokens in shuffled order
    mixed         32 unrelated conversations in shuffled order, as long as real ones (LENGTHS)

Everything is run twice: in a process with glibc's memory allocator as it is by default, and in one that keeps freed memory,
as kwise's command line does. "As each runs" is the pipeline by default against kwise with memory kept; the other two
ratios have the same allocator on both sides.

What the chat template writes comes on top of these lengths. "By tokens" is the ratio that tokens run
through the decoder (padding included) would give: it leaves out attention and all that is fixed.

    make bench          or    python benchmarks/scoring.py --layers 30 --json scoring.json
"""

import random
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import measure
import torch
from transformers import PreTrainedTokenizerBase, pipeline

from kwise import RewardModel
from kwise.model.backbone import from_causal_lm, load_tokenizer
from kwise.model.reward_model import Settings
from kwise.model.smollm2 import smollm2
from kwise.records import Message

BATCHES = (1, 8, 32)
CASES = ("best of 16", "mixed")
KEPT, DEFAULT = "memory kept", "default"
# Tokens of 400 conversations drawn from the held-out rankings of benchmarks/results (AlpacaEval and Arena-Hard prompts, answers
# of many models), by SmolLM2's tokenizer: the 32 quantiles in the middles of equal parts
LENGTHS = [81, 95, 122, 143, 162, 173, 187, 200, 217, 233, 245, 271, 285, 304, 324, 348]
LENGTHS += [366, 380, 395, 413, 440, 459, 485, 527, 556, 573, 619, 671, 728, 801, 919, 1082]
Conversation = tuple[list[Message], str]  # a prompt and one response


def save_model(folder: str, layers: int) -> None:
    model = from_causal_lm(smollm2(), layers=layers)
    torch.manual_seed(0)
    # hidden states have about the norm of the final norm's weight: rewards are of the order of 1
    torch.nn.init.normal_(model.score.weight, std=1 / model.model.norm.weight.norm().item())
    RewardModel(model, load_tokenizer(smollm2()), Settings(max_length=2048)).save_pretrained(folder)


def writer(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], str]:
    """A function that gives texts of so many tokens: random words, each of which is one token."""
    source = random.Random(0)
    words = [
        word[1:]
        for word in sorted(tokenizer.get_vocab())
        if word[0] == "Ġ" and word[1:].isascii() and word[1:].isalpha()
    ]
    first = [
        word for word in words if len(tokenizer(word).input_ids) == 1
    ]  # a text's first word has no space before it
    return lambda tokens: " ".join([source.choice(first), *source.choices(words, k=tokens - 1)])


def best_of_16(write: Callable[[int], str]) -> list[Conversation]:
    prompt = [Message(role="user", content=write(250))]
    lengths = range(174, 325, 10)
    return [(prompt, write(length)) for length in random.Random(1).sample(lengths, len(lengths))]


def mixed(write: Callable[[int], str]) -> list[Conversation]:
    lengths = random.Random(2).sample(LENGTHS, len(LENGTHS))
    return [([Message(role="user", content=write(length // 3))], write(length - length // 3)) for length in lengths]


class Scorers:
    """kwise's model and the pipeline, and what each of them makes of a case."""

    def __init__(self, folder: str, threads: int) -> None:
        measure.quiet(threads)
        self.rewards = RewardModel.from_pretrained(folder, device="cpu")
        self.pipe = pipeline("text-classification", model=folder, dtype=torch.float32, device="cpu")
        write = writer(self.rewards.tokenizer)
        self.cases = dict(zip(CASES, (best_of_16(write), mixed(write)), strict=True))
        self.counts = [measure.count_tokens(model) for model in (self.rewards.model, self.pipe.model)]

    def run(self, case: str, batch: int) -> tuple[list[float], int]:
        """Scores of a case, and the tokens run for them. ``batch`` 0 is kwise, else the pipeline's batch size."""
        for count in self.counts:
            count.clear()
        given = self.cases[case]
        scores = transformers_pipeline(self.pipe, batch, given) if batch else self.kwise(given)
        return scores, sum(map(sum, self.counts))

    def kwise(self, given: list[Conversation]) -> list[float]:
        prompt = given[0][0]
        if all(messages is prompt for messages, _ in given):
            return self.rewards.score(prompt, [response for _, response in given])
        encoded = (self.rewards.encoder.encode(messages, [response]) for messages, response in given)
        return [reward for own in self.rewards.score_encoded(encoded) for reward in own]


def transformers_pipeline(pipe: Any, batch: int, given: list[Conversation]) -> list[float]:
    texts = [
        pipe.tokenizer.apply_chat_template([*messages, Message(role="assistant", content=response)], tokenize=False)
        for messages, response in given
    ]
    return [found["score"] for found in pipe(texts, batch_size=batch, function_to_apply="none")]


def main() -> None:
    parser = measure.arguments(__doc__, layers=8, reps=5)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="both unless given")
    given = parser.parse_args()
    measure.quiet(given.threads)
    found: dict[str, Any] = {"header": measure.header(given), "cases": {}}
    measure.print_header(found["header"])
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder, given.layers)
        sides = {name: measure.Process(name == KEPT, Scorers, folder, given.threads) for name in (KEPT, DEFAULT)}
        warm = {
            case: {batch: [side.call("run", case, batch) for side in sides.values()] for batch in (0, *BATCHES)}
            for case in given.cases
        }
    rows = []
    for case, ran in warm.items():
        ours = ran[0][0][0]
        apart = max(
            abs(a - b) for each in ran.values() for scores, _ in each for a, b in zip(scores, ours, strict=True)
        )
        if apart > 1e-5:
            raise AssertionError(f"{case}: scores differ by {apart:.1e}")
        tokens = {batch: each[0][1] for batch, each in ran.items()}
        steps = {
            f"{name} {batch}": partial(side.timed, "run", case, batch) for batch in ran for name, side in sides.items()
        }
        seconds = measure.interleaved(steps, given.reps)
        found["cases"][case] = {"seconds": seconds, "tokens": tokens, "scores": ours}
        measure.write_json(given.json, found)
        for batch in ran:
            row = [case, f"pipeline, batch {batch}" if batch else "kwise"]
            row += [f"{statistics.median(seconds[f'{name} {batch}']):.2f}" for name in (KEPT, DEFAULT)]
            row += [
                measure.show(measure.ratios(seconds[f"{theirs} {batch}"], seconds[f"{own} 0"]))
                for theirs, own in ((DEFAULT, KEPT), (DEFAULT, DEFAULT), (KEPT, KEPT))
            ]
            rows.append([*row, f"{tokens[batch] / tokens[0]:.2f}", str(tokens[batch]), f"{apart:.0e}"])
    print("CPU seconds (median); ratios to kwise: median (least to greatest); by tokens: the ratio of tokens run\n")
    columns = ["case", "by", "s, kept", "s, default", "as each runs", "both default", "both kept"]
    measure.print_table([*columns, "by tokens", "tokens", "largest difference of scores"], rows)


if __name__ == "__main__":
    main()
