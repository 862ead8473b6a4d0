import logging
import re

import pytest
import torch
from rows import Float64, alone, gradients, loss_of, random_rankings
from tiny_models import FAMILIES, tiny_model
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import BloomConfig, BloomForSequenceClassification, GPTNeoConfig, GPTNeoForSequenceClassification

from kwise.data.packing import build_row
from kwise.model import attention
from kwise.model.attention import BACKENDS, attention_of, cascade, row_inputs, set_attention, varlen
from kwise.model.attention.demands import demands
from kwise.model.attention.exact import assert_exact
from kwise.model.attention.rule import Spans, dense_mask, sees, spans
from kwise.model.reward_model import row_rewards
from kwise.records import EncodedRanking

ON_CPU = ("reference", "blockwise", "cascade")


@pytest.fixture
def exact_llama():
    """A float64 Llama in which everything stays in float64."""
    with Float64():
        yield tiny_model(dtype=torch.float64)


def test_a_token_sees_its_own_response_and_its_own_prefix_only():
    row = build_row(
        [EncodedRanking([1, 2], [[3, 4], [5]], [1, 0], [0, 0]), EncodedRanking([6], [[7]], [0], [0])], [0, 1]
    )
    seen = sees(torch.tensor(row.ranking), torch.tensor(row.response)).int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


def unsupported(model, backend):
    return BACKENDS[backend].unsupported(model, demands(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_rewards_and_all_gradients_of_every_family_equal_those_of_separate_sequences_in_float64(family):
    """K from 1 to 12, prompts from 0 to 300 tokens, several rankings in a row, on every backend that takes the family."""
    with Float64():
        model = tiny_model(family, dtype=torch.float64)
        rankings = random_rankings(len(family), num=3, max_k=12, max_prefix=300, max_suffix=40)
        rankings += [EncodedRanking([], [[5, 6], [7]], [1, 0], [0, 0], [1.0, 2.0])]
        rankings += [EncodedRanking([3, 4], [[9, 8, 7]], [2], [0], [1.0])]
        expected = alone(model, rankings)
        wanted = gradients(model, loss_of(expected, rankings))
        assert expected.std() > 0.05, "a model that scores everything alike would prove nothing"
        ran = []
        for backend in ON_CPU:
            if reason := unsupported(model, backend):
                with pytest.raises(ValueError, match=re.escape(reason)):
                    set_attention(model, backend)
                continue
            assert set_attention(model, backend) == attention_of(model) == backend
            found = row_rewards(model, build_row(rankings, range(len(rankings))))
            got = gradients(model, loss_of(found, rankings))
            assert found.dtype == torch.float64
            assert (found - expected).abs().max() < 1e-12
            assert wanted.keys() == got.keys()
            assert max((wanted[name] - got[name]).abs().max() for name in wanted) < 1e-10
            ran.append(backend)
    refused = {"gemma2": {"cascade"}, "gpt_oss": {"cascade"}, "deepseek_v3": {"cascade"}}
    assert set(ran) == set(ON_CPU) - refused.get(family, set())


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("seed", range(4))
def test_rewards_and_gradients_are_exact_over_random_rankings(exact_llama, backend, seed):
    model, rankings = exact_llama, random_rankings(seed, 5, max_k=12, max_prefix=300, max_suffix=60)
    expected = alone(model, rankings)
    wanted = gradients(model, loss_of(expected, rankings))
    set_attention(model, backend)
    found = row_rewards(model, build_row(rankings, range(5)))
    got = gradients(model, loss_of(found, rankings))
    assert (found - expected).abs().max() < 1e-12
    assert max((wanted[name] - got[name]).abs().max() for name in wanted) < 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_in_float32_the_automatic_choice_scores_a_row_like_separate_sequences(family):
    model, rankings = tiny_model(family), random_rankings(7, num=3)
    with torch.no_grad():
        expected = alone(model, rankings)
        assert set_attention(model) == ("blockwise" if unsupported(model, "cascade") else "cascade")
        found = row_rewards(model, build_row(rankings, range(3)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_one_wrong_bit_of_the_mask_is_noticed(exact_llama, monkeypatch):
    rankings = random_rankings(0, num=2)
    expected = alone(exact_llama, rankings)

    def one_bit_wrong(row, model):
        mask = dense_mask(row, model)
        mask[0, 0, row.reward_at[-1], 0] = 0  # the last response may look at another ranking's first token
        return mask

    wrong = attention.Backend(None, lambda row, model: {"attention_mask": one_bit_wrong(row, model)}, lambda *_: None)
    monkeypatch.setitem(BACKENDS, "reference", wrong)
    set_attention(exact_llama, "reference")
    found = row_rewards(exact_llama, build_row(rankings, range(2)))
    assert (found - expected).abs().max() > 1e-6


@pytest.mark.parametrize("backend", ON_CPU)
def test_gradient_checkpointing_changes_no_gradient(backend):
    model, rankings = tiny_model(dtype=torch.float64).train(), random_rankings(3, num=2)
    set_attention(model, backend)
    row = build_row(rankings, range(2))
    runs = []
    model.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    plain = gradients(model, loss_of(row_rewards(model, row), rankings))
    assert len(runs) == 1
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients(model, loss_of(row_rewards(model, row), rankings))
    assert len(runs) == 3  # once forward, once again on the way back
    assert max((plain[name] - again[name]).abs().max() for name in plain) < 1e-12


def test_a_model_set_to_blockwise_still_answers_plain_padded_calls():
    model = tiny_model()
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    mask = (ids != 0).long()
    left = ids.flip(1), mask.flip(1)
    with torch.no_grad():
        expected = [model(input_ids=i, attention_mask=m).logits for i, m in ((ids, mask), left)]
        set_attention(model, "blockwise")
        found = [model(input_ids=i, attention_mask=m).logits for i, m in ((ids, mask), left)]
    torch.testing.assert_close(found, expected)


def test_a_decoder_that_takes_no_positions_is_refused():
    config = BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=97, num_labels=1, pad_token_id=0)
    with pytest.raises(ValueError, match="does not take a four-dimensional mask"):
        assert_exact(BloomForSequenceClassification(config).eval())


def test_a_decoder_whose_rows_come_out_otherwise_is_refused(monkeypatch):
    """As one would that counts positions by itself."""
    monkeypatch.setattr(
        attention, "row_inputs", lambda row, model: {"input_ids": torch.tensor([row.ids]), "use_cache": False}
    )
    with pytest.raises(ValueError, match="other hidden states than alone"):
        assert_exact(tiny_model())


def test_the_check_for_exactness_leaves_the_model_in_its_mode():
    model = tiny_model().train()
    assert_exact(model)
    assert model.training


def test_an_unknown_attention_names_the_known_ones():
    with pytest.raises(ValueError, match="auto, reference, blockwise, cascade, varlen, flex"):
        set_attention(tiny_model(), "flash")


def test_spans_of_a_ranking_without_a_common_prefix_begin_with_an_empty_one():
    row = build_row([EncodedRanking([], [[3, 4], [5]], [1, 0], [0, 0]), EncodedRanking([6], [[7]], [0], [0])], [0, 1])
    assert list(spans(row)) == [[(0, 0), (0, 2), (2, 3)], [(3, 5)]]


def test_a_decoder_with_windows_the_mask_does_not_know_of_is_refused():
    """GPT-Neo's local layers see 256 tokens back, which a short probe could not notice."""
    model = GPTNeoForSequenceClassification(
        GPTNeoConfig(
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            vocab_size=97,
            num_labels=1,
        )
    )
    with pytest.raises(ValueError, match="cannot share rows for"):
        assert_exact(model)
    with pytest.raises(ValueError, match="cannot be exchanged"):
        set_attention(model, "blockwise")


def test_going_back_to_reference_takes_the_dense_mask():
    model = tiny_model()
    set_attention(model, "blockwise")
    set_attention(model, "reference")
    assert "row_spans" not in row_inputs(build_row(random_rankings(0, 1), [0]), model)


def test_one_wrong_block_is_noticed_by_the_same_comparison(exact_llama, monkeypatch):
    rankings = random_rankings(0, num=2)
    expected = alone(exact_llama, rankings)

    def one_token_late(row):
        ((start, end), *own), *others = spans(row)
        return Spans([[(start, end - 1), (end - 1, own[0][1]), *own[1:]], *others])

    monkeypatch.setattr(attention, "spans", one_token_late)
    for backend in ("blockwise", "cascade"):
        set_attention(exact_llama, backend)
        found = row_rewards(exact_llama, build_row(rankings, range(2)))
        assert (found - expected).abs().max() > 1e-6


@pytest.mark.parametrize("prefix", [0, 1, cascade.CHUNK, cascade.CHUNK + 1, cascade.SKIPPING, cascade.SKIPPING + 1])
def test_blocks_at_and_beyond_the_sizes_at_which_cascade_cuts_them_are_exact(prefix):
    """Rewards and all gradients; a single response is one block with its prefix."""
    with Float64():
        model = tiny_model(dtype=torch.float64, max_position_embeddings=2048)
        sizes = (cascade.CHUNK - 1, cascade.CHUNK, 2 * cascade.CHUNK + 1, cascade.SKIPPING)
        ids = torch.randint(1, 97, (prefix + 4, 1000), generator=torch.Generator().manual_seed(prefix)).tolist()
        suffixes = [own[:size] for own, size in zip(ids[-4:], sizes, strict=True)]
        start = [own[0] for own in ids[:prefix]]
        many = EncodedRanking(start, suffixes, [size - 1 for size in sizes], [0] * 4, [0.0, 1.0, 2.0, 3.0])
        one = EncodedRanking(start, suffixes[2:3], [sizes[2] - 1], [0], [0.0])
        expected = alone(model, [many, one])
        wanted = gradients(model, loss_of(expected, [many, one]))
        assert set_attention(model, "cascade") == "cascade"
        found = row_rewards(model, build_row([many, one], [0, 1]))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        for name, gradient in gradients(model, loss_of(found, [many, one])).items():
            torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=1e-10)


def test_flash_kernels_that_err_are_found_out_and_not_used_loudly(monkeypatch, caplog):
    kernel = cascade._forward

    def wrong(*inputs, **options):
        out, lse = kernel(*inputs, **options)
        return out, lse + 1e-2

    monkeypatch.setattr(cascade, "_forward", wrong)
    cascade.fault.cache_clear()
    try:
        model = tiny_model()
        with caplog.at_level(logging.WARNING):
            assert set_attention(model) == "blockwise"
        assert "flash kernels are off by" in caplog.text
        with pytest.raises(ValueError, match="flash kernels are off by"):
            set_attention(model, "cascade")
    finally:
        monkeypatch.undo()
        cascade.fault.cache_clear()
    assert set_attention(model) == "cascade"


@pytest.mark.parametrize("surroundings", [torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)])
def test_kernels_are_judged_alike_whatever_mode_the_caller_is_in(surroundings):
    cascade.fault.cache_clear()
    with surroundings:
        assert cascade.fault() is None
    cascade.fault.cache_clear()


def test_a_model_moved_to_an_attention_that_runs_no_rows_is_refused():
    model = tiny_model()
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="runs no rows; call set_attention"):
        attention_of(model)


def test_choosing_an_attention_draws_no_random_numbers_and_keeps_the_mode():
    model = tiny_model(attention_dropout=0.5).train()
    state = torch.get_rng_state()
    set_attention(model)
    assert torch.equal(state, torch.get_rng_state()) and model.training


def test_kernels_that_this_torch_does_not_have_are_no_crash(monkeypatch):
    def gone(*inputs, **options):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(cascade, "_forward", gone)
    cascade.fault.cache_clear()
    try:
        assert set_attention(tiny_model()) == "blockwise"
    finally:
        cascade.fault.cache_clear()


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "mistral with a window"])
def test_plain_padded_calls_keep_caps_sinks_and_windows(family):
    model = tiny_model(family)
    ids = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    ids[1, 8:] = 0
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
        one = model(input_ids=ids[:1]).logits
        set_attention(model, "blockwise")
        torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, expected)
        torch.testing.assert_close(model(input_ids=ids[:1]).logits, one)


@pytest.mark.parametrize("backend", ON_CPU)
def test_under_autocast_a_row_stays_near_float32(backend):
    model, rankings = tiny_model(), random_rankings(5, num=2)
    set_attention(model, backend)
    row = build_row(rankings, range(2))
    exact = row_rewards(model, row)
    with torch.autocast("cpu", torch.bfloat16):
        rewards = row_rewards(model, row)
    assert rewards.dtype == torch.float32
    gradients(model, loss_of(rewards, rankings))
    # bfloat16 has 8 bits: 2^-8 a step, a handful of steps a layer, three layers
    assert 0 < (rewards - exact).abs().max() < 0.15 * exact.std()


@pytest.mark.parametrize("backend", ("blockwise", "cascade"))
def test_a_compiled_decoder_gives_the_same_rewards_and_gradients(backend):
    model, rankings = tiny_model(dtype=torch.float64), random_rankings(6, num=2)
    set_attention(model, backend)
    row = build_row(rankings, range(2))
    plain = gradients(model, loss_of(row_rewards(model, row), rankings))
    compiled = CompileCounterWithBackend("aot_eager")
    for layer in model.base_model.layers:
        layer.compile(backend=compiled, dynamic=True)
    again = gradients(model, loss_of(row_rewards(model, row), rankings))
    assert compiled.frame_count >= 2  # what stands before and after the attention, which is left as it is
    assert max((plain[name] - again[name]).abs().max() for name in plain) < 1e-12


@pytest.mark.parametrize("whole", [False, True])
def test_rows_of_other_shapes_compile_nothing_more_after_the_first_few(whole):
    model = tiny_model()
    set_attention(model)
    compiled = CompileCounterWithBackend("aot_eager")
    for module in [model.base_model] if whole else model.base_model.layers:
        module.compile(backend=compiled)
    frames = []
    for seed in range(14):
        rankings = random_rankings(seed, num=2 + seed % 3)
        row_rewards(model, build_row(rankings, range(len(rankings)))).sum().backward()
        frames.append(compiled.frame_count)
    assert frames[0] > 0
    assert frames[-1] == frames[5]


@pytest.mark.parametrize("backend", ("blockwise", "cascade"))
def test_attention_dropout_is_applied_in_training_and_only_there(backend):
    model, rankings = tiny_model(attention_dropout=0.5), random_rankings(1, num=1)
    set_attention(model, backend)
    row = build_row(rankings, [0])
    assert torch.equal(row_rewards(model, row), row_rewards(model, row))
    model.train()
    assert not torch.equal(row_rewards(model, row), row_rewards(model, row))


def test_every_backend_says_why_it_does_not_run_here():
    model = tiny_model()
    for name in ("varlen", "flex"):
        with pytest.raises(ValueError, match=r"CUDA only|no backward on the CPU"):
            set_attention(model, name)


def ragged_attention(q, k, v, ends_q, ends_k, max_q, max_k, *, scale, window_size, enable_gqa, num_splits, bottom=True):
    """What torch documents of varlen_attn, in plain arithmetic: each sequence alone, aligned at the bottom right."""
    assert num_splits == 1 and window_size[1] == 0 and enable_gqa == (q.shape[1] != k.shape[1])
    out = torch.zeros(*q.shape[:2], v.shape[2], dtype=q.dtype)
    for a, b, c, d in zip(ends_q, ends_q[1:], ends_k, ends_k[1:], strict=False):
        assert b - a <= max_q and d - c <= max_k
        for head in range(q.shape[1]):
            kv = head // (q.shape[1] // k.shape[1])
            logits = q[a:b, head] @ k[c:d, kv].T * (scale or q.shape[2] ** -0.5)
            first = (d - c) - (b - a) if bottom else 0
            behind = (torch.arange(b - a) + first)[:, None] - torch.arange(d - c)[None, :]
            seen = behind >= 0
            if window_size[0] >= 0:
                seen &= behind <= window_size[0]
            out[a:b, head] = torch.softmax(logits.masked_fill(~seen, -torch.inf), -1) @ v[c:d, kv]
    return out


@pytest.mark.parametrize("family", ["llama", "mistral with a window", "gemma3_text", "qwen3"])
def test_the_ragged_call_is_exact_if_the_kernel_does_what_torch_says(family, monkeypatch):
    """The kernel needs CUDA: here its documented meaning stands in, so what is proved is what we hand to it."""
    monkeypatch.setattr(varlen, "varlen_attn", ragged_attention)
    monkeypatch.setattr(varlen, "HALF", (torch.float64,))
    monkeypatch.setattr(varlen, "DEVICES", ("cpu",))
    monkeypatch.setitem(BACKENDS, "varlen", BACKENDS["varlen"]._replace(unsupported=lambda *_: None))
    with Float64():
        model = tiny_model(family, dtype=torch.float64)
        rankings = random_rankings(2, num=3) + [EncodedRanking([], [[5, 6], [7]], [1, 0], [0, 0], [1.0, 2.0])]
        expected = alone(model, rankings)
        wanted = gradients(model, loss_of(expected, rankings))
        set_attention(model, "varlen")
        found = row_rewards(model, build_row(rankings, range(4)))
        got = gradients(model, loss_of(found, rankings))
    assert (found - expected).abs().max() < 1e-12
    assert max((wanted[name] - got[name]).abs().max() for name in wanted) < 1e-10


def spoiled(change):
    """``ragged_attention`` with other inputs than it is given."""

    def run(q, k, v, ends_q, ends_k, max_q, max_k, **options):
        options |= change(options) if callable(change) else change
        shift = options.pop("shift", 0)
        return ragged_attention(q, k, v.roll(shift, 0), ends_q, ends_k, max_q, max_k, **options)

    return run


def refusing(*inputs, **options):
    raise RuntimeError("num_splits is not supported with the cuDNN backend.")


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (ragged_attention, None),
        (spoiled({"shift": 1}), "is off by"),
        (spoiled({"bottom": False}), "is off by"),
        (spoiled(lambda given: {"window_size": (max(given["window_size"][0] - 20, -1), 0)}), "is off by"),
        (spoiled({"scale": 0.1}), "is off by"),
        (refusing, "refuses its ragged kernel on cpu: num_splits is not supported"),
    ],
)
def test_a_ragged_kernel_that_does_not_do_what_torch_says_is_found_out(kernel, message, monkeypatch, caplog):
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr(varlen, "DEVICES", ("cpu",))
    varlen.fault.cache_clear()
    found = varlen.fault(torch.device("cpu"))
    varlen.fault.cache_clear()
    assert (found is None) == (message is None)
    assert message is None or message in found
    assert (message or "") in caplog.text


@pytest.mark.parametrize("family", ["llama", "mistral with a window", "gemma2", "qwen3"])
def test_the_block_mask_of_flex_is_the_dense_mask(family):
    from kwise.model.attention.flex import block_mask

    model, row = tiny_model(family), build_row(random_rankings(3, num=3), range(3))
    found, wanted = block_mask(row, model), dense_mask(row, model)
    assert isinstance(found, dict) == isinstance(wanted, dict)
    if not isinstance(wanted, dict):
        found, wanted = {"": found}, {"": wanted}
    index = torch.arange(len(row.ids))
    for kind, mask in wanted.items():
        seen = found[kind].mask_mod(0, 0, index[:, None], index[None, :])
        assert torch.equal(seen, mask[0, 0] == 0)


def test_a_decoder_that_keeps_its_window_to_itself_gets_the_dense_mask(monkeypatch):
    model = tiny_model("mistral with a window")
    monkeypatch.setattr(type(model.model.layers[0].self_attn), "forward", forgetful(model))
    with pytest.raises(ValueError, match="not told of"):
        set_attention(model, "blockwise")
    assert set_attention(model) == "reference"


def forgetful(model):
    """Mistral's attention as it would be if it did not hand its window on."""
    plain = type(model.model.layers[0].self_attn).forward

    def forward(self, *inputs, **named):
        config, self.config = self.config, type(self.config)(**{**self.config.to_dict(), "sliding_window": None})
        self.config._attn_implementation = config._attn_implementation
        try:
            return plain(self, *inputs, **named)
        finally:
            self.config = config

    return forward


@pytest.mark.slow
def test_a_conversation_in_a_thousand_random_rows_scores_the_same_to_1e_5():
    model = tiny_model()
    set_attention(model)
    one = EncodedRanking(list(range(1, 60)), [list(range(60, 90)), list(range(30, 70))], [29, 39], [0, 0])
    generator = torch.Generator().manual_seed(0)
    scores = []
    with torch.no_grad():
        for seed in range(1000):
            company = random_rankings(seed, num=int(torch.randint(0, 6, (1,), generator=generator)))
            place = int(torch.randint(0, len(company) + 1, (1,), generator=generator))
            rankings = [*company[:place], one, *company[place:]]
            start = sum(len(each.suffixes) for each in rankings[:place])
            scores.append(row_rewards(model, build_row(rankings, range(len(rankings))))[start : start + 2])
    spread = torch.stack(scores)
    assert (spread.amax(0) - spread.amin(0)).max() < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["reference", "blockwise", "varlen", "flex"])
@pytest.mark.parametrize("family", FAMILIES)
def test_on_cuda_a_row_scores_like_separate_sequences_in_float64_on_the_cpu(family, backend):
    exact, rankings = tiny_model(family, dtype=torch.float64), random_rankings(7, num=3)
    expected = alone(exact, rankings)
    wanted = gradients(exact, loss_of(expected, rankings))
    dtype = torch.float32 if backend in ("reference", "blockwise") else torch.bfloat16
    model = tiny_model(family).to("cuda", dtype)
    if reason := unsupported(model, backend):
        pytest.skip(reason)
    set_attention(model, backend)
    rewards = row_rewards(model, build_row(rankings, range(3)))
    got = gradients(model, loss_of(rewards, rankings))
    bound = 1e-4 if dtype == torch.float32 else 0.1
    assert (rewards.cpu().double() - expected).abs().max() < bound * expected.abs().max()
    for name, gradient in wanted.items():
        assert (got[name].cpu().double() - gradient).norm() < 2 * bound * gradient.norm() + 1e-6, name
