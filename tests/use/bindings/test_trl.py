"""The call that TRL 1.16 makes (``GRPOTrainer._calculate_rewards``), and TRL making it."""

import copy
import shutil

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kwise.use.bindings.trl import reward_func

QUESTIONS = ["Which sea is the saltiest?", "Name a colour."]


def test_the_callable_takes_what_trl_hands_over(folder, alone):
    score = reward_func(folder)
    assert score.__name__ == "rewards"
    prompts = [[{"role": "user", "content": QUESTIONS[0]}]] * 2
    completions = [[{"role": "assistant", "content": text}] for text in ("The Dead Sea.", "No idea.")]
    found = score(
        prompts=prompts,
        completions=completions,
        completion_ids=[[1, 2], [3]],
        source=["a", "b"],
        trainer_state=object(),
        log_extra=lambda *_: None,
        log_metric=lambda *_: None,
    )
    assert all(type(each) is float for each in found)
    assert found == pytest.approx([alone(QUESTIONS[0], "The Dead Sea."), alone(QUESTIONS[0], "No idea.")], abs=1e-5)


def test_the_models_of_two_runs_have_two_names(folder, tmp_path):
    for run in ("first", "second"):
        shutil.copytree(folder, tmp_path / run / "model")
    assert [reward_func(tmp_path / run / "model").__name__ for run in ("first", "second")] == ["first", "second"]


@pytest.fixture
def policy(tokenizer, tmp_path):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **shape))
    model.save_pretrained(tmp_path / "policy")
    return LlamaForCausalLM.from_pretrained(tmp_path / "policy")  # RLOO loads its reference from there again


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
@pytest.mark.parametrize("conversational", [True, False])
def test_a_real_run_of_a_few_steps_trains_on_these_rewards(
    kind, conversational, folder, alone, policy, tokenizer, tmp_path
):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    score, calls = reward_func(folder), []

    def remember(prompts, completions, **named):
        rewards = score(prompts, completions, **named)
        calls.append((copy.deepcopy(prompts), copy.deepcopy(completions), rewards))
        return rewards

    remember.__name__ = score.__name__
    rows = [
        {"prompt": [{"role": "user", "content": text}] if conversational else text, "source": "made"}
        for text in QUESTIONS
    ]
    arguments = getattr(trl, f"{kind}Config")(
        output_dir=str(tmp_path / "rl"),
        max_steps=3,
        num_generations=4,
        per_device_train_batch_size=8,
        max_completion_length=6,
        learning_rate=1e-2,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    before = copy.deepcopy(policy.state_dict())
    trainer = getattr(trl, f"{kind}Trainer")(
        model=policy,
        reward_funcs=remember,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "rewards/rewards/mean" in log]
    assert len(logs) == len(calls) == 3
    for log, (prompts, completions, rewards) in zip(logs, calls, strict=True):
        assert len(rewards) == 8
        assert log["rewards/rewards/mean"] == pytest.approx(sum(rewards) / 8, abs=1e-4)
        texts = [each if isinstance(each, str) else each[0]["content"] for each in completions]
        assert rewards == pytest.approx([alone(p, t) for p, t in zip(prompts, texts, strict=True)], abs=1e-5)
        assert len(set(rewards)) > 1
    assert any(not torch.equal(value, before[name]) for name, value in policy.state_dict().items())
