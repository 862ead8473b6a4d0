"""A reward model whose reward is the number of words of the response: files and orders are tested without weights."""

from types import SimpleNamespace

import torch

from kwise.model import reward_model
from kwise.model.reward_model import RewardModel, Settings
from kwise.use.evaluation import measure, open_data, score_data


class WordCounter(torch.nn.Module):
    """Stands where a decoder would; remembers how many responses it was asked for."""

    config, device = SimpleNamespace(_attn_implementation="none"), torch.device("cpu")
    dtype = torch.float32
    scored = 0


def stub_reward_model(tokenizer, max_length: int = 512) -> RewardModel:
    model = WordCounter()

    class Stub(RewardModel):
        def score_encoded(self, rankings, tokens_per_row: int = 0):
            for values in reward_model.map_rows(model, rankings, count_words):
                yield values.tolist()

        def known_uncertainty(self):
            """It has one."""

        def score_with_errors(self, rankings):
            """The error is a quarter of the score's square."""
            for rewards in self.score_encoded(rankings):
                yield rewards, [reward**2 / 4 for reward in rewards]

    def count_words(_, row) -> torch.Tensor:
        counts = []
        for owner, size in enumerate(row.sizes):
            prefix = [i for i, o, r in zip(row.ids, row.ranking, row.response, strict=True) if o == owner and r == 0]
            for k in range(size):
                own = [
                    i for i, o, r in zip(row.ids, row.ranking, row.response, strict=True) if o == owner and r == k + 1
                ]
                text = tokenizer.decode(prefix + own)
                counts.append(
                    len(text.rsplit("assistant\n", 1)[-1].removesuffix("\n").removesuffix("<|im_end|>").split())
                )
        model.scored += len(counts)
        return torch.tensor(counts, dtype=torch.float32)

    return Stub(model, tokenizer, Settings(max_length))


def evaluate(model: RewardModel, file: str, by: str | None = None) -> dict:
    """Every split's metrics of a file, as ``kwise eval`` finds them."""
    data = open_data(file, by)
    splits = measure(data, score_data(model, data))
    return {split: {name: draws.metric() for name, draws in own.items()} for split, own in splits.items()}
