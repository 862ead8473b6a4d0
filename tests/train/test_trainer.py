import json
import math
import os
import re
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from trainers import LORA, logged, make_model, make_rankings, make_trainer
from workshop import shard_on_cpus, write_rankings

from kwise import KwiseConfig, KwiseTrainer
from kwise.data.encode import Encoder
from kwise.data.encoding import encode_files
from kwise.losses import OBJECTIVES
from kwise.model.backbone import align
from kwise.train.step import random_state, random_state_of


def test_the_first_loss_is_the_sum_over_rankings_divided_once(tokenizer, tmp_path):
    """A zero head scores all alike, so the loss of a step is the mean of log K! over its rankings."""
    rankings = make_rankings(5)
    trainer = make_trainer(tokenizer, tmp_path, rankings, rankings_per_step=5)
    torch.nn.init.zeros_(trainer.decoder.score.weight)
    trainer.train()
    assert logged(trainer)[0] == pytest.approx(
        sum(math.log(math.factorial(len(r.ranks))) for r in rankings) / 5, rel=1e-6
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_first_nll_of_a_zero_head_is_log_factorial_whatever_the_objective(tokenizer, tmp_path, objective):
    rankings = make_rankings(5)
    trainer = make_trainer(
        tokenizer, tmp_path, rankings, rankings_per_step=5, objective=objective, objective_options={"centring": 0.1}
    )
    torch.nn.init.zeros_(trainer.decoder.score.weight)
    trainer.train()
    expected = sum(math.log(math.factorial(len(r.ranks))) for r in rankings) / 5
    assert logged(trainer, "nll")[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_nll_is_averaged_over_the_steps_of_the_loss_beside_it(tokenizer, tmp_path, every):
    """With Plackett-Luce the two are one number: in every log, of rows over the budget, and when trained a second time."""
    options = {"rankings_per_step": 2, "logging_steps": every, "max_steps": 5, "tokens_per_row": 150}
    trainer = make_trainer(tokenizer, tmp_path, **options)
    trainer.train()
    trainer.train()
    assert len(logged(trainer, "nll")) == 5 // every
    assert logged(trainer, "nll") == pytest.approx(logged(trainer), rel=1e-6)
    assert [list(entry)[:2] for entry in trainer.state.log_history if "loss" in entry] == [["loss", "nll"]] * (
        5 // every
    )


@pytest.mark.parametrize("budget", [30, 4096])
def test_offsets_count_in_the_loss_and_in_no_score(tokenizer, tmp_path, budget):
    rankings = make_rankings()
    generator = torch.Generator().manual_seed(1)
    offsets = [torch.randn(len(each.ranks), generator=generator).tolist() for each in rankings]
    trainer = make_trainer(
        tokenizer, tmp_path, rankings, rankings, offsets=offsets, rankings_per_step=12, tokens_per_row=budget
    )
    torch.nn.init.zeros_(trainer.model.score.weight)
    before = trainer.evaluate()
    trainer.train()
    expected = 0.0
    for ranking, own in zip(rankings, offsets, strict=True):
        ordered = [offset for _, offset in sorted(zip(ranking.ranks, own, strict=True))]
        expected += sum(math.log(sum(map(math.exp, ordered[k:]))) - ordered[k] for k in range(len(ordered)))
    assert logged(trainer)[0] == pytest.approx(expected / 12, rel=1e-5)
    assert before["eval_nll"] == pytest.approx(
        sum(math.lgamma(len(each.ranks) + 1) for each in rankings) / 12, rel=1e-5
    )


def test_options_of_the_objective_count(tokenizer, tmp_path):
    """At equal rewards the pairwise loss is log 2, here three times that."""
    trainer = make_trainer(tokenizer, tmp_path, objective="all_pairs", objective_options={"gap_weights": [3]})
    torch.nn.init.zeros_(trainer.decoder.score.weight)
    trainer.train()
    assert logged(trainer)[0] == pytest.approx(3 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("objective", ["plackett_luce", "all_pairs"])
def test_losses_and_gradient_norms_do_not_depend_on_the_row_budget_or_the_attention(tokenizer, tmp_path, objective):
    runs = []
    for budget, attention in ((1, "blockwise"), (300, "blockwise"), (100_000, "blockwise"), (100_000, "reference")):
        trainer = make_trainer(tokenizer, tmp_path, tokens_per_row=budget, attention=attention, objective=objective)
        trainer.train()
        runs.append(logged(trainer) + logged(trainer, "grad_norm"))
    assert len(runs[0]) == 4
    for run in runs[1:]:
        assert run == pytest.approx(runs[0], rel=1e-5, abs=1e-6)


SHARDED = {"fsdp": True}
ZERO_2 = {
    "deepspeed": {
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        **dict.fromkeys(("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"), "auto"),
    }
}
ADAPTERS = {"lora": True}


@pytest.mark.parametrize(
    ("num_processes", "budget", "settings"),
    [
        (2, 4096, {}),
        (3, 4096, {}),
        (2, 100, ADAPTERS),
        (2, 4096, SHARDED),
        (3, 100, SHARDED | ADAPTERS),
        *(
            pytest.param(number, budget, sharded | adapters, marks=pytest.mark.slow)
            for number in (2, 3)
            for budget in (100, 200)
            for sharded in ({}, SHARDED)
            for adapters in ({}, ADAPTERS)
        ),
        *(pytest.param(2, 100, ZERO_2 | adapters, marks=pytest.mark.slow) for adapters in ({}, ADAPTERS)),
    ],
)
def test_losses_do_not_depend_on_the_number_of_processes(tokenizer, tmp_path, num_processes, budget, settings):
    """Nor on the engine (DDP, FSDP2). Also with fewer rankings in a step than processes: 7 rankings, 6 a step, so the last step
    has one. And with rankings that are over the budget in one process and not in the other."""
    if "deepspeed" in settings:
        pytest.importorskip("deepspeed")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    lora = LORA if "lora" in settings else None
    single = make_trainer(
        tokenizer, tmp_path, make_rankings(7), make_rankings(5, seed=1), eval_strategy="epoch", peft_config=lora
    )
    single.train()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    command += [__file__, str(tmp_path), str(budget), json.dumps(settings)]
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["sharded"] is ("fsdp" in settings)
    assert result["losses"] == pytest.approx(logged(single), rel=1e-6, abs=1e-6)
    assert result["nll"] == pytest.approx(logged(single, "nll"), rel=1e-6, abs=1e-6)
    assert result["norms"] == pytest.approx(logged(single, "grad_norm"), rel=1e-5)
    assert result["accuracy"] == logged(single, "eval_pair_accuracy")
    assert result["head"] == pytest.approx(single.decoder.score.weight[0].tolist(), abs=1e-6)
    saved = load_file(tmp_path / "model" / ("adapter_model.safetensors" if lora else "model.safetensors"))
    assert saved["base_model.model.score.weight" if lora else "score.weight"][0].tolist() == pytest.approx(
        single.decoder.score.weight[0].tolist(), abs=1e-6
    )


def test_a_ranking_over_the_budget_never_runs_more_tokens_at_once_than_the_budget(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, tokens_per_row=150)
    lengths, plain = [], trainer.decoder.model.forward

    def noted(*inputs, **named):
        lengths.append((named["input_ids"].shape[1], torch.is_grad_enabled()))
        return plain(*inputs, **named)

    trainer.decoder.model.forward = noted
    trainer.train()
    single = max(len(item.prefix) + max(map(len, item.suffixes)) for item in trainer.train_dataset)
    assert max(item.num_tokens for item in trainer.train_dataset) > 150 > single
    assert max(length for length, _ in lengths) <= 150
    tally = trainer.tally()
    assert sum(length for length, _ in lengths) == tally.run + tally.again
    assert len(trainer.train_dataset) == tally.rankings


def test_a_process_without_rankings_runs_the_shortest_single_response_and_adds_nothing(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path)
    lengths, plain = [], trainer.decoder.model.forward

    def noted(*inputs, **named):
        lengths.append(named["input_ids"].shape[1])
        return plain(*inputs, **named)

    trainer.decoder.model.forward = noted
    loss = trainer.training_step(trainer.model, [], 6)
    assert lengths == [min(len(item.prefix) + min(map(len, item.suffixes)) for item in trainer.train_dataset)]
    assert loss.item() == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in trainer.model.parameters())


def test_random_numbers_of_a_second_pass_are_those_of_the_first_and_disturb_nothing():
    torch.manual_seed(0)
    state = random_state(torch.device("cpu"))
    first = torch.rand(3)
    after = torch.get_rng_state()
    with random_state_of(state, torch.device("cpu")):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_of_a_ranking_in_several_rows_are_those_of_its_own_loss(tokenizer, tmp_path, dropout):
    """Also with dropout, which the second run of a row must draw as the first did: else the loss would not fall as it says."""
    lora = LoraConfig(task_type="SEQ_CLS", r=4, lora_dropout=dropout, target_modules="all-linear")
    rankings = [each for each in make_rankings(20) if len(each.responses) == 6][:1]
    trainer = make_trainer(tokenizer, tmp_path, rankings, tokens_per_row=100, peft_config=lora)
    trainer.model.double()
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(0)
    for p in parameters:
        p.data.normal_(0, 0.1, generator=generator)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def loss(shift: float) -> float:
        for p, d in zip(parameters, direction, strict=True):
            p.data.add_(d, alpha=shift)
        trainer.model.zero_grad()
        torch.manual_seed(0)
        found = trainer.training_step(trainer.model, list(trainer.train_dataset), 1).double().item()
        for p, d in zip(parameters, direction, strict=True):
            p.data.sub_(d, alpha=shift)
        return found

    slope = (loss(1e-4) - loss(-1e-4)) / 2e-4
    loss(0.0)
    assert trainer.tally().again > 0
    predicted = sum((p.grad * d).sum().item() for p, d in zip(parameters, direction, strict=True))
    assert predicted == pytest.approx(slope, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(("metric", "improving"), [("pair_accuracy", [0.6, 0.7]), ("nll", [0.7, 0.6])])
def test_a_schedule_that_goes_by_the_evaluation_lowers_the_rate_where_it_gets_no_better(
    tokenizer, tmp_path, metric, improving
):
    settings = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0}}
    settings |= {"metric_for_best_model": metric, "eval_strategy": "epoch"}
    trainer = make_trainer(tokenizer, tmp_path, held_out=make_rankings(4, seed=1), **settings)
    trainer.create_optimizer_and_scheduler(10)
    for value in improving:
        trainer.lr_scheduler.step(value)
    assert trainer.optimizer.param_groups[0]["lr"] == 1e-3
    trainer.lr_scheduler.step(improving[0])
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)


def test_training_learns_what_makes_an_answer_better(tokenizer, tmp_path):
    trainer = make_trainer(
        tokenizer, tmp_path, make_rankings(40), make_rankings(20, seed=1), num_train_epochs=6, learning_rate=3e-3
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_pair_accuracy"] > max(before["eval_pair_accuracy"], after["eval_longer_wins"]) + 0.1


def test_files_encoded_after_the_tokenizer_was_mended_are_taken_and_before_it_refused_with_the_way_out(
    llama2_tokenizer, tmp_path
):
    write_rankings(tmp_path / "train.jsonl", 6)
    config = KwiseConfig(str(tmp_path), report_to="none", use_cpu=True, max_length=128)
    model = make_model(len(llama2_tokenizer), None)
    early = encode_files(Encoder(llama2_tokenizer, 128, "left"), [str(tmp_path / "train.jsonl")])
    with pytest.raises(ValueError, match=r"call kwise\.model\.backbone\.align"):
        KwiseTrainer(model, config, early, None, llama2_tokenizer)
    align(model, llama2_tokenizer)
    encoded = encode_files(Encoder(llama2_tokenizer, 128, "left"), [str(tmp_path / "train.jsonl")])
    assert len(KwiseTrainer(model, config, encoded, None, llama2_tokenizer).train_dataset) == 6


def plant(trainer):
    """Make a NaN of the embedding of the token that the fewest rankings hold. Gives their lines."""
    holders: dict[int, set[int]] = {}
    for item in trainer.train_dataset:
        for token in {*item.prefix, *(token for suffix in item.suffixes for token in suffix)}:
            holders.setdefault(token, set()).add(item.line)
    rare = min(holders, key=lambda token: (len(holders[token]), token))
    with torch.no_grad():
        trainer.decoder.model.embed_tokens.weight[rare] = math.nan
    return sorted(holders[rare])


@pytest.mark.parametrize("budget", [1, 4096])
def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_lines_it_comes_from(
    tokenizer, tmp_path, budget
):
    trainer = make_trainer(tokenizer, tmp_path, rankings_per_step=12, tokens_per_row=budget)
    hurt = plant(trainer)
    assert 0 < len(hurt) < 12
    before = trainer.decoder.model.norm.weight.clone()
    with pytest.raises(FloatingPointError, match="loss of step 1 is not finite") as caught:
        trainer.train()
    assert sorted(int(line) for line in re.findall(r"made\.jsonl, line (\d+)", str(caught.value))) == hurt
    assert torch.equal(trainer.decoder.model.norm.weight, before)


def test_a_gradient_that_is_not_finite_stops_before_the_update_and_names_its_line(tokenizer, tmp_path):
    """The root of 0 has a finite value and an infinite slope."""
    trainer = make_trainer(tokenizer, tmp_path, rankings_per_step=12)
    plain = trainer.objective

    def rooted(rewards, ranks, lists):
        loss, count = plain(rewards, ranks, lists)
        faulty = rewards.numel() and ranks.numel() in (len(trainer.train_dataset[4].ranks),)
        wrong = (rewards[:1] - rewards[:1].detach()).abs().sqrt().sum() if faulty else 0.0
        return loss + wrong, count

    trainer.objective = rooted
    trainer.args.tokens_per_row = 1
    before = trainer.decoder.model.norm.weight.clone()
    alike = [each.line for each in trainer.train_dataset if len(each.ranks) == len(trainer.train_dataset[4].ranks)]
    with pytest.raises(FloatingPointError, match="gradient of step 1 is not finite") as caught:
        trainer.train()
    assert sorted(int(line) for line in re.findall(r"made\.jsonl, line (\d+)", str(caught.value))) == alike
    assert torch.equal(trainer.decoder.model.norm.weight, before)


def test_shortened_rankings_are_counted(tokenizer, tmp_path):
    assert make_trainer(tokenizer, tmp_path, max_length=20).cut["train"] == 12
    assert make_trainer(tokenizer, tmp_path, max_length=2000).cut["train"] == 0


def test_evaluate_reads_the_rankings_it_is_given_and_refuses_none(tokenizer, tmp_path):
    rankings = make_rankings(6, seed=1)
    trainer = make_trainer(tokenizer, tmp_path, held_out=make_rankings(4, seed=2))
    stored = make_trainer(tokenizer, tmp_path, held_out=rankings)
    assert trainer.evaluate(rankings) == pytest.approx(stored.evaluate())
    with pytest.raises(ValueError, match="no rankings to evaluate on"):
        make_trainer(tokenizer, tmp_path).evaluate()


def main(folder: str, budget: str, settings: str) -> None:
    """One process of a distributed run, started by the test above."""
    from pathlib import Path

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(folder, "tokenizer"))
    rankings, held_out = make_rankings(7), make_rankings(5, seed=1)
    options = {"eval_strategy": "epoch", "tokens_per_row": int(budget)} | json.loads(settings)
    if "fsdp" in options:
        shard_on_cpus()
    lora = LORA if options.pop("lora", False) else None
    trainer = make_trainer(tokenizer, folder, rankings, held_out, lora, **options)
    trainer.train()
    trainer.save_model(str(Path(folder, "model")))
    whole = trainer.whole_model()
    if trainer.accelerator.is_main_process:
        decoder = whole.get_base_model() if lora else whole
        result = {
            "losses": logged(trainer),
            "nll": logged(trainer, "nll"),
            "norms": logged(trainer, "grad_norm"),
            "accuracy": logged(trainer, "eval_pair_accuracy"),
            "head": decoder.score.weight[0].tolist(),
            "sharded": isinstance(trainer.model, FSDPModule),
        }
        Path(folder, "result.json").write_text(json.dumps(result))
    # a barrier lets gloo let go of its last tensors: at interpreter exit its thread would wait for ever for the GIL
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    # nor may the interpreter's own exit, where gloo has been seen to hang all the same, decide about what is tested here
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])


@pytest.mark.parametrize("with_offsets", [False, True])
def test_rankings_encoded_before_train_to_the_same_weights(tokenizer, tmp_path, with_offsets):
    rankings = make_rankings(10)
    lines = [
        {
            "context": each.messages,
            "completions": [{"rank": r, "completion": a} for r, a in zip(each.ranks, each.responses, strict=True)],
        }
        for each in rankings
    ]
    (tmp_path / "made.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    encoded = encode_files(Encoder(tokenizer, 128), [str(tmp_path / "made.jsonl")])
    offsets = [[0.5 * rank for rank in each.ranks] for each in rankings] if with_offsets else None
    weights = []
    for given in (rankings, encoded):
        trainer = make_trainer(tokenizer, tmp_path / "out", given, offsets=offsets, tokens_per_row=200)
        tally = trainer.tally()
        trainer.train()
        weights.append((trainer.decoder.state_dict(), logged(trainer), tally, trainer.cut))
    assert weights[0][1:] == weights[1][1:]
    assert all(torch.equal(weights[0][0][name], weights[1][0][name]) for name in weights[0][0])
    with pytest.raises(ValueError, match="encoded with another tokenizer"):
        make_trainer(tokenizer, tmp_path / "out", encoded, max_length=64)


def test_what_the_trainer_saves_transformers_4_reads_too(tokenizer, tmp_path):
    make_trainer(tokenizer, tmp_path).save_model(tmp_path / "model")
    config, own = (
        json.loads((tmp_path / "model" / f"{name}.json").read_text()) for name in ("config", "tokenizer_config")
    )
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert own["tokenizer_class"] == "PreTrainedTokenizerFast"
