"""The covariance of a head against its definition written out, and against the spread of heads fitted to simulated rankings."""

from itertools import combinations

import numpy as np
import pytest
import torch
from test_head import design, fit_head, mixed_problem, simulate, standardised

from kwise.objective import OBJECTIVES, head
from kwise.objective import design as design_module
from kwise.objective.covariance import KINDS, default_kind, head_covariance, head_uncertainty
from kwise.objective.design import Design, Standardised, scaling
from kwise.objective.plackett_luce import plackett_luce

NOTHING = np.zeros(0)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def covariance(features, ranks, groups, weight, ridge, kind, objective=plackett_luce):
    root = head_covariance(design(features, ranks, groups), objective, weight, NOTHING, ridge, kind)
    return root @ root.T


def written_out(features, ranks, weight, ridge):
    """Gradients of every ranking's Plackett-Luce loss and the information, in raw coordinates, term by term."""
    scale = standardised(features)[1]
    starts = np.cumsum([0, *map(len, ranks)])
    information = len(ranks) * ridge * np.diag(scale**2)
    scores = []
    for start, own in zip(starts, ranks, strict=False):
        x = features[start : start + len(own)][np.argsort(own)]
        score = np.zeros(len(weight))
        for k in range(len(x)):
            p = np.exp(x[k:] @ weight)
            p /= p.sum()
            mean = p @ x[k:]
            score += mean - x[k]
            information += (x[k:].T * p) @ x[k:] - np.outer(mean, mean)
        scores.append(score)
    return information, np.array(scores)


def centred_problem(seed=0, lists=40):
    """Rankings of 2 to 5 responses whose features have no level to fix (see ``Scaling``)."""
    rng = np.random.default_rng(seed)
    ranks = [(rng.permutation(k) + 1).tolist() for k in rng.integers(2, 6, size=lists)]
    features = rng.normal(size=(sum(map(len, ranks)), 3)) * [1.0, 5.0, 0.2]
    return features, ranks, [f"prompt {i % 15}" for i in range(lists)], np.array([0.5, -0.1, 2.0])


@pytest.mark.parametrize("ridge", [1e-6, 0.1])
def test_fisher_is_the_inverse_of_information_and_ridge(ridge):
    features, ranks, groups, weight = centred_problem()
    information, _ = written_out(features, ranks, weight, ridge)
    found = covariance(features, ranks, groups, weight, ridge, "fisher")
    np.testing.assert_allclose(found, np.linalg.inv(information), rtol=1e-9)


def test_sandwich_sums_the_gradients_of_a_prompt_before_it_squares_them():
    features, ranks, groups, weight = centred_problem()
    information, scores = written_out(features, ranks, weight, 0.01)
    by_prompt = np.array([sum(s for s, g in zip(scores, groups, strict=True) if g == each) for each in set(groups)])
    inverse = np.linalg.inv(information)
    found = covariance(features, ranks, groups, weight, 0.01, "sandwich")
    np.testing.assert_allclose(found, inverse @ (by_prompt.T @ by_prompt) @ inverse * 15 / 14, rtol=1e-8)


def test_a_head_that_was_not_fitted_under_the_condition_has_errors_in_every_direction():
    features, ranks, groups, weight = centred_problem()
    features = features + [3.0, 0.0, 0.0]  # far from centred, and this head does not know of it
    information, _ = written_out(features, ranks, weight, 0.01)
    found = covariance(features, ranks, groups, weight, 0.01, "fisher")
    np.testing.assert_allclose(found, np.linalg.inv(information), rtol=1e-8)


def test_the_sandwich_of_a_single_prompt_is_refused():
    features, ranks, _, weight = centred_problem()
    with pytest.raises(ValueError, match="all of one"):
        covariance(features, ranks, ["same"] * len(ranks), weight, 0.01, "sandwich")


@pytest.mark.parametrize("kind", KINDS)
def test_rankings_that_are_tied_throughout_only_count(kind, monkeypatch):
    features, ranks, groups, weight = centred_problem()
    more = np.concatenate([features, features[:3]])
    found = covariance(more, [*ranks, [1, 1, 1]], [*groups, "tied"], weight, 1e-9, kind)
    assert np.isfinite(found).all()
    monkeypatch.setattr(design_module, "CHUNK", 12)  # the tied ranking makes a chunk of its own
    np.testing.assert_allclose(
        covariance(more, [*ranks, [1, 1, 1]], [*groups, "tied"], weight, 1e-9, kind), found, rtol=1e-7
    )


def test_paper_is_the_inverse_of_the_mean_square_of_pair_differences_and_ridge():
    features, ranks, groups, weight = centred_problem()
    z, scale = standardised(features)
    starts = np.cumsum([0, *map(len, ranks)])
    sigma = 0.1 * np.eye(3)
    for start, own in zip(starts, ranks, strict=False):
        pairs = list(combinations(range(start, start + len(own)), 2))
        sigma += sum(np.outer(z[i] - z[j], z[i] - z[j]) for i, j in pairs) / len(pairs) / len(ranks)
    found = covariance(features, ranks, groups, weight, 0.1, "paper")
    np.testing.assert_allclose(found * np.outer(scale, scale), np.linalg.inv(sigma), rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_of_any_size_give_the_same_covariance(kind, monkeypatch):
    features, ranks, groups, weight = centred_problem()
    whole = covariance(features, ranks, groups, weight, 0.1, kind)
    monkeypatch.setattr(design_module, "CHUNK", 20)  # a prompt's rankings fall into several chunks
    monkeypatch.setattr(design_module, "IN_MEMORY", 0)
    np.testing.assert_allclose(covariance(features, ranks, groups, weight, 0.1, kind), whole, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_do_not_change_with_the_units_of_the_features(kind):
    features, ranks, groups, weight = centred_problem()
    units = np.array([1e-3, 7.0, -250.0])
    plain = covariance(features, ranks, groups, weight, 0.1, kind)
    other = covariance(features * units, ranks, groups, weight / units, 0.1, kind)
    np.testing.assert_allclose(other * np.outer(units, units), plain, rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_direction_that_is_fixed_in_the_fit_has_no_variance_whatever_the_head_was_rounded_to(dtype):
    features, ranks, groups = mixed_problem()
    weight = fit_head(features, ranks, groups, plackett_luce).weight
    weight = torch.from_numpy(weight).to(dtype).double().numpy()
    found = covariance(features, ranks, groups, weight, 0.1, "fisher")
    scale = standardised(features)[1]
    level = features.mean(0) / scale
    level /= np.linalg.norm(level)
    inner = found * np.outer(scale, scale)
    assert level @ inner @ level == pytest.approx(0, abs=1e-12 * np.trace(inner))
    assert np.linalg.matrix_rank(inner, tol=1e-9 * np.trace(inner)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("plackett_luce", "fisher"), ("all_pairs", "sandwich")])
def test_standard_errors_are_the_spread_of_heads_fitted_to_rankings_drawn_anew(name, kind):
    # 300 data sets of 200 rankings: the Monte-Carlo deviation is itself known to 1 / sqrt(600) = 4 %, of three weights
    # together to 2.4 %; three of those, and the small-sample bias of the formula, are allowed
    spread, said = [], []
    for seed in range(300):
        rng = np.random.default_rng(1000 + seed)
        theta = np.array([1.0, -0.8, 0.5])
        features = rng.normal(size=(200 * 5, 3))
        utility = (features @ theta + rng.gumbel(size=1000)).reshape(200, 5)
        ranks = (1 + (-utility).argsort(1).argsort(1)).tolist()
        problem = features, ranks, [str(i) for i in range(200)]
        weight = fit_head(*problem, OBJECTIVES[name], ridges=[1e-8]).weight
        spread.append(weight - theta)
        said.append(np.diag(covariance(*problem, weight, 1e-8, kind, OBJECTIVES[name])))
    ratio = np.sqrt(np.mean(said, 0) / np.mean(np.square(spread), 0))
    assert np.exp(np.log(ratio).mean()) == pytest.approx(1, abs=0.08)


def test_the_pairwise_estimator_is_overconfident_without_the_sandwich():
    # pairs of one ranking depend on one another: taken as independent draws (Fisher of MLE_2 scaled to pairs) they say too little
    features, ranks, groups, _ = simulate(0, lists=400, k=7, d=3)
    weight = fit_head(features, ranks, groups, OBJECTIVES["all_pairs"], ridges=[1e-8]).weight
    naive = covariance(features, ranks, groups, weight, 1e-8, "fisher", OBJECTIVES["all_pairs"]) / 21
    honest = covariance(features, ranks, groups, weight, 1e-8, "sandwich", OBJECTIVES["all_pairs"])
    k_wise = covariance(features, ranks, groups, weight, 1e-8, "fisher")
    assert (np.diag(honest) > 1.5 * np.diag(naive)).all()
    assert (np.diag(honest) > np.diag(k_wise)).all()  # Theorem 4.3: MLE_2 is never the better one where PL holds


def test_rankings_that_share_a_draw_of_noise_are_believed_as_one_by_the_sandwich_and_not_by_fisher():
    # 60 prompts of 5 responses with one Gumbel draw each, 3 rankings of 4 of them a prompt: each is Plackett-Luce, together they
    # say little more than one. 80 data sets give the spread of two weights to 1 / sqrt(320) = 5.6 %; three of those are
    # allowed, and 3 % for the 60 prompts that the sandwich is estimated from.
    theta = np.array([1.0, -0.7])
    spread, said = [], {"fisher": [], "sandwich": []}
    for seed in range(80):
        rng = np.random.default_rng(seed)
        features = rng.normal(size=(60 * 5, 2))
        utility = features @ theta + rng.gumbel(size=300)
        places = np.array([5 * prompt + rng.permutation(5)[:4] for prompt in range(60) for _ in range(3)])
        ranks = (1 + (-utility[places]).argsort(1).argsort(1)).tolist()
        shared = Design(features, places.tolist(), ranks, [str(i // 3) for i in range(180)])
        data = Standardised(shared, scaling(shared))
        w, _ = head.minimise(data, plackett_luce, 1e-8, torch.from_numpy(theta), tolerance=1e-10)
        weight = w.numpy() / data.by.scale
        spread.append(np.square(weight - theta))
        for kind, variances in said.items():
            root = head_covariance(shared, plackett_luce, weight, NOTHING, 1e-8, kind)
            variances.append(np.square(root).sum(1))
    ratio = {kind: np.sqrt(np.mean(variances) / np.mean(spread)) for kind, variances in said.items()}
    assert ratio["sandwich"] == pytest.approx(1, abs=0.2)
    assert ratio["fisher"] < 0.8


def test_covariates_have_errors_of_their_own_and_widen_those_of_the_head():
    features, ranks, groups, weight = centred_problem(lists=60)
    plain = design(features, ranks, groups)
    beside = features[:, :1] + np.random.default_rng(1).normal(size=(len(features), 1))
    both = Design(plain.features, plain.places, ranks, groups, beside)
    joint, errors = head_uncertainty(both, plackett_luce, torch.tensor(weight)[None], np.array([0.3]), 1e-6, "fisher")
    alone, none = head_uncertainty(plain, plackett_luce, torch.tensor(weight)[None], NOTHING, 1e-6, "fisher")
    information, _ = written_out(np.column_stack([features, beside]), ranks, np.array([*weight, 0.3]), 1e-6)
    assert none.shape == (0,)
    assert errors == pytest.approx(np.sqrt(np.linalg.inv(information)[3, 3]), rel=1e-2)  # its own ridge is 1e-3
    probe = torch.tensor([[1.0, 0.0, 0.0]]) + alone.reference
    assert joint.errors(probe) > 1.05 * alone.errors(probe)


def test_three_arms_pessimism_finds_the_best_arm_where_the_greedy_estimate_does_not():
    # arms 1 and 2 are compared n - 1 times, arms 2 and 3 once; r = (0.5, 0, -0.5). The likelihood of the single comparison
    # gives arm 3 any height: greedy is wrong whenever arm 3 won (probability 0.38), pessimism is not, once n is large.
    greedy, pessimistic = [], []
    reward = np.array([0.5, 0.0, -0.5])
    for seed in range(25):
        rng = np.random.default_rng(seed)
        n = 1000
        pairs = [(0, 1)] * (n - 1) + [(1, 2)]
        first_wins = rng.random(n) < 1 / (1 + np.exp([reward[b] - reward[a] for a, b in pairs]))
        ranks = [[1, 2] if won else [2, 1] for won in first_wins]
        arms = Design(np.eye(3), pairs, ranks, [str(i) for i in range(n)])
        weight = head.fit_head({1: arms}, plackett_luce, ridges=[1 / n]).weight
        root = head_covariance(arms, plackett_luce, weight, NOTHING, 1 / n, "fisher")
        error = np.linalg.norm((np.eye(3) - np.eye(3)[1]) @ root, axis=1)
        greedy.append(reward.max() - reward[np.argmax(weight)])
        pessimistic.append(reward.max() - reward[np.argmax(weight - weight[1] - 2 * error)])
    assert np.mean(greedy) > 0.2
    assert max(pessimistic) == 0


@pytest.mark.parametrize(
    ("name", "options", "groups", "kind"),
    [
        ("plackett_luce", {}, ["a", "b", "c"], "fisher"),
        ("plackett_luce", {}, ["a", "b", "a"], "sandwich"),
        ("plackett_luce", {"top": 2}, ["a", "b", "c"], "sandwich"),
        ("all_pairs", {}, ["a", "b", "c"], "sandwich"),
    ],
)
def test_fisher_is_for_a_likelihood_of_independent_rankings_only(name, options, groups, kind):
    assert default_kind(name, options, groups) == kind
