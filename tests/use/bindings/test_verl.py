"""The calls that verl 0.9.1 makes: ``reward_loop/reward_manager/naive.py`` from an executor's threads,
``workers/reward_manager/batch.py``, both by keyword, with ``reward_kwargs`` merged in by ``trainer/ppo/reward.py``."""

import asyncio
import importlib
from functools import partial

import numpy as np
import pytest

from kwise.use.bindings.verl import compute_score, compute_score_batched

PROMPT = [{"role": "user", "content": "Which sea is the saltiest?"}]
TEXTS = ["The Dead Sea.", "No idea.", "The Red Sea, because of the salt in it."]


def extra(prompt):
    """As verl leaves it: with entries of its own."""
    return {"prompt": prompt, "index": 3, "num_turns": 2, "rollout_reward_scores": {}}


def custom_function(name, reward_kwargs):
    """What ``load_extern_object("pkg://kwise.use.bindings.verl", name)`` and ``get_custom_reward_fn`` make of it."""
    module = importlib.import_module("pkg://kwise.use.bindings.verl".removeprefix("pkg://").replace("/", "."))
    raw = getattr(module, name)

    def merged(raw_fn, extra_kwargs, *args, **kwargs):
        return raw_fn(*args, **{**kwargs, **extra_kwargs})

    return partial(merged, raw, reward_kwargs)


@pytest.mark.parametrize("prompt", [PROMPT, np.array(PROMPT, dtype=object), PROMPT[0]["content"]])
def test_compute_score_as_the_naive_manager_calls_it_from_its_threads(prompt, folder, alone):
    function = custom_function("compute_score", {"model": folder})

    async def run():
        loop = asyncio.get_running_loop()
        tasks = [
            loop.run_in_executor(
                None,
                lambda text=text: function(
                    data_source="made", solution_str=text, ground_truth=None, extra_info=extra(prompt)
                ),
            )
            for text in TEXTS
        ]
        return await asyncio.gather(*tasks)

    found = asyncio.run(run())
    assert all(type(score) is float for score in found)
    assert found == pytest.approx([alone(PROMPT, text) for text in TEXTS], abs=1e-5)


def test_the_batch_form_as_the_batch_manager_calls_it(folder, alone):
    function = custom_function("compute_score_batched", {"model": folder})
    found = function(
        data_sources=np.array(["made"] * 3, dtype=object),
        solution_strs=TEXTS,
        ground_truths=[None] * 3,
        extra_infos=np.array([extra(PROMPT), extra("Another?"), extra(PROMPT)], dtype=object),
    )
    assert found == pytest.approx(
        [alone(PROMPT, TEXTS[0]), alone("Another?", TEXTS[1]), alone(PROMPT, TEXTS[2])], abs=1e-5
    )


def test_options_reach_the_model(folder):
    plain = compute_score("made", TEXTS[0], None, extra(PROMPT), folder)
    bound = compute_score("made", TEXTS[0], None, extra(PROMPT), folder, lower_bound=2.0)
    assert bound < plain


@pytest.mark.parametrize("info", [None, {}, {"index": 1}])
def test_without_the_prompt_the_error_says_where_it_must_stand(info, folder):
    with pytest.raises(ValueError, match="extra_info of sample 1 has no 'prompt'"):
        compute_score_batched(["m", "m"], TEXTS[:2], [None, None], [extra(PROMPT), info], folder)
