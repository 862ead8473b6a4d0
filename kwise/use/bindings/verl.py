"""verl: ``compute_score`` and its batch form, named in verl's configuration; nothing to write.

::

    reward.custom_reward_function.path=pkg://kwise.use.bindings.verl
    +reward.custom_reward_function.reward_kwargs.model=MODEL

verl does not hand the prompt to a reward function, so it must stand in the data: ``extra_info["prompt"]``. Signatures as in
verl 0.9.1 (``verl/experimental/reward_loop/reward_manager/naive.py``, ``verl/workers/reward_manager/batch.py``).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kwise.use.bindings.scorer import Scorer


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: object,
    extra_info: Mapping[str, Any] | None,
    model: str,
    calibrated: bool = False,
    lower_bound: float | None = None,
) -> float:
    """The reward of ``solution_str`` as answer to ``extra_info["prompt"]`` by the reward model in the folder ``model``.

    ``model`` and what follows come from ``reward_kwargs`` (``Scorer``). ``data_source`` and ``ground_truth`` play no part.
    Raises ``ValueError`` where ``extra_info`` has no prompt.
    """
    return compute_score_batched(
        [data_source], [solution_str], [ground_truth], [extra_info], model, calibrated, lower_bound
    )[0]


def compute_score_batched(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[object],
    extra_infos: Sequence[Mapping[str, Any] | None],
    model: str,
    calibrated: bool = False,
    lower_bound: float | None = None,
) -> list[float]:
    """``compute_score`` of many, for verl's reward manager ``batch``: answers to one prompt share its computation."""
    prompts = []
    for i, extra in enumerate(extra_infos):
        prompt = (extra or {}).get("prompt")
        if prompt is None:
            raise ValueError(
                f"extra_info of sample {i} has no 'prompt': verl does not tell a reward function what was asked, so put the "
                "messages there in the data"
            )
        prompts.append(list(prompt) if not isinstance(prompt, str) else prompt)  # of parquet it is a numpy array
    return Scorer(model, calibrated, lower_bound)(prompts, solution_strs)
