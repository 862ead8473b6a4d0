import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from rows import alone, gradients, loss_of, random_rankings
from tiny_models import tiny_model
from transformers import OPTConfig, OPTForSequenceClassification

from kwise.data.packing import build_row
from kwise.model import attention
from kwise.model.attention import set_attention
from kwise.model.attention.exact import assert_exact
from kwise.model.attention.last_mlp import skip_unread
from kwise.model.reward_model import row_rewards


def tokens_of(model):
    """A list, for each decoder layer, of how many tokens each run of its MLP takes."""
    counts = [[] for _ in model.base_model.layers]
    for layer, own in zip(model.base_model.layers, counts, strict=True):
        layer.mlp.gate_proj.register_forward_hook(lambda _, inputs, __, own=own: own.append(inputs[0].shape[1]))
    return counts


@pytest.mark.parametrize("backend", ["blockwise", "cascade"])
def test_the_last_mlp_alone_runs_on_reward_tokens_only_forward_and_when_checkpointing_runs_it_again(backend):
    model, rankings = tiny_model().train(), random_rankings(1, num=3)
    set_attention(model, backend)
    row = build_row(rankings, range(3))
    whole, read = len(row.ids), len(row.reward_at)
    assert read < whole
    model.gradient_checkpointing_enable({"use_reentrant": False})
    counts = tokens_of(model)
    loss_of(row_rewards(model, row), rankings).backward()
    assert counts == [[whole] * 2, [whole] * 2, [read] * 2]


def test_two_rows_of_one_backward_pass_are_run_again_each_with_its_own_tokens():
    """Gradient checkpointing runs the first again when the second has been the last."""
    model, rankings = tiny_model(dtype=torch.float64).train(), random_rankings(4, num=4)
    rows = [build_row(rankings, [0, 1]), build_row(rankings, [2, 3])]
    set_attention(model, "blockwise")
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        found.append(gradients(model, loss_of(torch.cat([row_rewards(model, row) for row in rows]), rankings)))
    assert max((found[0][name] - found[1][name]).abs().max() for name in found[0]) < 1e-12


def test_the_reference_runs_every_token():
    model, row = tiny_model(), build_row(random_rankings(1, num=3), range(3))
    set_attention(model, "blockwise")
    set_attention(model, "reference")
    counts = tokens_of(model)
    row_rewards(model, row)
    assert counts == [[len(row.ids)]] * 3


def test_plain_calls_after_a_row_give_every_token_what_they_gave_before():
    model, row = tiny_model(), build_row(random_rankings(2, num=2), range(2))
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    with torch.no_grad():
        expected = model.base_model(ids).last_hidden_state
        set_attention(model, "blockwise")
        row_rewards(model, row)
        found = model.base_model(ids).last_hidden_state
    torch.testing.assert_close(found, expected)


def test_hooks_are_set_once_however_often_the_attention_is_chosen():
    model = tiny_model()
    for name in ("blockwise", "cascade", "blockwise"):
        set_attention(model, name)
    skip_unread(model)
    layer = model.base_model.layers[-1]
    hooks = layer.self_attn._forward_pre_hooks, layer.mlp._forward_pre_hooks, layer.mlp._forward_hooks
    assert [len(each) for each in hooks] == [1, 1, 1]


def test_a_decoder_whose_layers_have_no_mlp_module_runs_rows_whole():
    torch.manual_seed(0)
    config = OPTConfig(
        hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=97, num_labels=1
    )
    config.word_embed_proj_dim = 32
    model, rankings = OPTForSequenceClassification(config).eval(), random_rankings(3, num=2)
    expected = alone(model, rankings)
    set_attention(model, "blockwise")
    assert_exact(model)
    torch.testing.assert_close(row_rewards(model, build_row(rankings, range(2))), expected, rtol=1e-4, atol=1e-5)


def test_a_decoder_without_a_list_of_layers_runs_rows_whole(monkeypatch):
    def no_list(model):
        raise ValueError("no list of layers")

    monkeypatch.setattr("kwise.model.attention.last_mlp.decoder_layers", no_list)
    model, row = tiny_model(), build_row(random_rankings(1, num=3), range(3))
    set_attention(model, "blockwise")
    counts = tokens_of(model)
    attention.hidden_states(model, row)
    assert counts == [[len(row.ids)]] * 3


def test_threads_that_share_a_model_do_not_meet_in_it():
    model = tiny_model()
    set_attention(model, "blockwise")
    rows = [build_row(random_rankings(seed, num=2), range(2)) for seed in range(40)]
    entered = threading.Barrier(4, timeout=20)

    def wait(*_):
        entered.wait()

    hook = model.base_model.layers[-1].self_attn.register_forward_hook(wait)

    def rewards(row):
        with torch.no_grad():
            return row_rewards(model, row)

    with ThreadPoolExecutor(4) as threads:  # four at a time stand between the last attention and the MLP
        found = list(threads.map(rewards, rows))
    hook.remove()
    for row, reward in zip(rows, found, strict=True):
        torch.testing.assert_close(reward, rewards(row))


def test_the_mlp_called_by_itself_takes_what_it_is_given():
    model = tiny_model()
    set_attention(model, "blockwise")
    mlp, states = model.base_model.layers[-1].mlp, torch.ones(2, 5, 32)
    before = mlp(states)
    row_rewards(model, build_row(random_rankings(1, num=3), range(3)))
    assert before.shape == (2, 5, 32)
    torch.testing.assert_close(mlp(states), before)
