from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm

from kwise.model.uncertainty import FILE, Uncertainty, win_probability


def some(d=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    root, reference, head = (torch.randn(*shape, generator=generator) for shape in ((d, d), (d,), (d,)))
    return Uncertainty(root, reference, head, {"kind": "fisher", "rankings": 3})


def test_errors_are_the_norm_under_the_covariance():
    own, features = some(), torch.randn(5, 4)
    covariance = (own.root @ own.root.T).double()
    for found, phi in zip(own.errors(features), features, strict=True):
        away = (phi - own.reference).double()
        assert found.item() == pytest.approx(torch.sqrt(away @ covariance @ away).item(), rel=1e-5)


def test_the_error_of_a_difference_does_not_know_the_reference_and_is_nothing_for_equals():
    own, features = some(), torch.randn(3, 4)
    moved = Uncertainty(own.root, own.reference + 7, own.head, own.facts)
    found = own.difference_errors(features)
    torch.testing.assert_close(found, moved.difference_errors(features), atol=1e-4, rtol=1e-4)
    assert found.diagonal().tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    covariance = (own.root @ own.root.T).double()
    away = (features[0] - features[2]).double()
    assert found[0, 2].item() == pytest.approx(torch.sqrt(away @ covariance @ away).item(), rel=1e-4)


@pytest.mark.parametrize("error", [0.0, 0.3, 2.0, 20.0])
@pytest.mark.parametrize("difference", [-3.0, 0.0, 0.7, 5.0])
def test_win_probability_is_the_integral_over_the_normal(difference, error):
    if error:  # in two parts, the bend between them
        ends = (
            difference - 12 * error,
            min(max(0, difference - 12 * error), difference + 12 * error),
            difference + 12 * error,
        )
        expected = sum(
            quad(lambda x: expit(x) * norm.pdf(x, difference, error), a, b, limit=500, epsabs=1e-12)[0]
            for a, b in pairwise(ends)
        )
    else:
        expected = expit(difference)
    found = win_probability(torch.tensor(difference), torch.tensor(error))
    assert found.item() == pytest.approx(expected, abs=1e-8)


def test_win_probabilities_of_both_sides_sum_to_one():
    difference, error = torch.randn(6), torch.rand(6)
    both = win_probability(difference, error) + win_probability(-difference, error)
    torch.testing.assert_close(both, torch.ones(6, dtype=torch.float64))


def test_what_is_saved_is_what_is_loaded(tmp_path):
    own = some()
    own.save(tmp_path)
    found = Uncertainty.load(tmp_path / FILE, own.head[None])
    for name in ("root", "reference", "head"):
        assert torch.equal(getattr(found, name), getattr(own, name))
    assert found.facts == own.facts
    assert [each.name for each in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_belongs_to_its_head_in_any_dtype(tmp_path, dtype):
    own = some(d=400)  # so many that some are rounded one way at once and another way in two steps
    own.save(tmp_path)
    Uncertainty.load(tmp_path / FILE, own.head[None].to(dtype))
    Uncertainty.load(tmp_path / FILE, own.head[None].to(dtype).float())  # a file in that precision, read in float32
    with pytest.raises(ValueError, match=r"belongs to another head.*kwise uncertainty"):
        Uncertainty.load(tmp_path / FILE, (own.head[None] * 1.1).to(dtype))


@pytest.mark.parametrize("kept", [0, 4, 200, -1])
def test_a_file_that_is_cut_short_is_an_error_that_names_it(tmp_path, kept):
    own = some()
    own.save(tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{FILE} is damaged .*kwise uncertainty"):
        Uncertainty.load(tmp_path / FILE, own.head[None])


def test_features_of_any_dtype_and_under_autocast_have_float32_errors():
    own, features = some(), torch.randn(5, 4)
    plain = own.errors(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(own.errors(features), plain)
    coarse = own.errors(features.bfloat16())
    assert coarse.dtype == torch.float32
    np.testing.assert_allclose(coarse, own.errors(features), rtol=0.1)
