"""Random rankings, and what each response is worth alone: the definition that every backend is held to."""

import torch
from torch.overrides import TorchFunctionMode

from kwise.model.attention.cascade import fault
from kwise.objective import plackett_luce
from kwise.records import EncodedRanking


class Float64(TorchFunctionMode):
    """Everything stays in float64: norms, softmax, routers and rotary tables of transformers cast to float32 whatever the
    model's dtype, which alone costs 1e-8."""

    def __init__(self):
        super().__init__()
        fault()  # looks at float32 kernels, once, so it must have looked before

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            return args[0].double()
        wide = {torch.float32: torch.float64}
        args = [wide.get(each, each) if isinstance(each, torch.dtype) else each for each in args]
        kwargs = {
            name: wide.get(each, each) if isinstance(each, torch.dtype) else each
            for name, each in (kwargs or {}).items()
        }
        return func(*args, **kwargs)


def random_rankings(
    seed: int, num: int, max_k: int = 6, max_prefix: int = 30, max_suffix: int = 25
) -> list[EncodedRanking]:
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    def ids(n: int) -> list[int]:
        return torch.randint(1, 97, (n,), generator=generator).tolist()

    rankings = []
    for _ in range(num):
        k = number(1, max_k)
        suffixes = [ids(number(1, max_suffix)) for _ in range(k)]
        ranks = [float(r) for r in torch.randperm(k, generator=generator).tolist()]
        rankings.append(
            EncodedRanking(ids(number(0, max_prefix)), suffixes, [len(s) - 1 for s in suffixes], [0] * k, ranks)
        )
    return rankings


def alone(model, rankings):
    """Every response as a sequence of its own through the plain backbone: the definition of what a reward is."""
    rewards = []
    for ranking in rankings:
        for suffix in ranking.suffixes:
            ids = torch.tensor([ranking.prefix + suffix], device=model.device)
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            rewards.append(model.score(hidden[0, -1])[0])
    return torch.stack(rewards)


def loss_of(rewards, rankings):
    ranks = torch.tensor([rank for ranking in rankings for rank in ranking.ranks], device=rewards.device)
    lists = torch.tensor([i for i, ranking in enumerate(rankings) for _ in ranking.ranks], device=rewards.device)
    return plackett_luce(rewards, ranks, lists)[0]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
