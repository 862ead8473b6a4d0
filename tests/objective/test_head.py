"""The convex head fit against independent solvers and against what theory says of the two estimators."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import null_space
from scipy.optimize import root

from kwise.objective import OBJECTIVES, head, objective
from kwise.objective import design as design_module
from kwise.objective.design import Design, Standardised, scaling
from kwise.objective.head import HELD_OUT, RIDGES, STRONGER, WEAKER
from kwise.objective.plackett_luce import plackett_luce


@pytest.fixture(autouse=True)
def one_thread():
    """These tensors are tiny: on a busy machine threads that wait for one another cost ten times the arithmetic."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def design(features, ranks, groups):
    """Every response has its own row of ``features``, in order."""
    ends = np.cumsum([len(own) for own in ranks])
    places = [list(range(end - len(own), end)) for end, own in zip(ends, ranks, strict=True)]
    return Design(features, places, ranks, groups)


def fit_head(features, ranks, groups, objective, **options):
    """The fit on a single layer."""
    return head.fit_head({1: design(features, ranks, groups)}, objective, **options)


def simulate(seed, lists, k, d, size=1.5):
    """Gaussian features and Plackett-Luce ranks of a true head with |theta| = ``size``."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=d)
    theta *= size / np.linalg.norm(theta)
    features = rng.normal(size=(lists * k, d))
    utility = (features @ theta + rng.gumbel(size=lists * k)).reshape(lists, k)
    ranks = (-utility).argsort(1).argsort(1) + 1
    return features, ranks.tolist(), [f"prompt {i}" for i in range(lists)], theta


def standardised(features):
    deviation = features.std(0)
    scale = np.where(np.ptp(features, axis=0) == 0, 1.0, deviation)
    return (features - features.mean(0)) / scale, scale


def free_directions(features):
    """An orthonormal basis of the w that give the training responses a mean reward of 0 (see ``fit_head``)."""
    return null_space((features.mean(0) / standardised(features)[1])[None])


def in_rank_order(z, ranks):
    """Each list's rows of z, best first."""
    starts = np.cumsum([0, *map(len, ranks)])
    return [z[start : start + len(own)][np.argsort(own)] for start, own in zip(starts, ranks, strict=False)]


def newton_plackett_luce(z, ranks, ridge):
    """Newton's method with the gradient and Hessian of PL written out: means and covariances under each softmax."""
    w = np.zeros(z.shape[1])
    for _ in range(50):
        gradient, hessian = ridge * w, ridge * np.eye(len(w))
        for x in in_rank_order(z, ranks):
            for k in range(len(x)):
                p = np.exp(x[k:] @ w)
                p /= p.sum()
                mean = p @ x[k:]
                gradient = gradient + (mean - x[k]) / len(ranks)
                hessian = hessian + ((x[k:].T * p) @ x[k:] - np.outer(mean, mean)) / len(ranks)
        w = w - np.linalg.solve(hessian, gradient)
    return w


def root_all_pairs(z, ranks, ridge):
    """The zero of the pairwise gradient written out as a logistic regression on differences, by scipy's root finder."""
    lists = [[(x[j] - x[i]) for i in range(len(x)) for j in range(i + 1, len(x))] for x in in_rank_order(z, ranks)]
    differences = np.concatenate(lists)  # worse less better
    weight = np.concatenate([np.full(len(own), 1 / len(own) / len(lists)) for own in lists])

    def gradient(w):
        return (weight / (1 + np.exp(-differences @ w))) @ differences + ridge * w

    return root(gradient, np.zeros(z.shape[1]), tol=1e-13).x


def mixed_problem():
    """Lists of 2 to 5 responses, features on different scales and off centre."""
    rng = np.random.default_rng(5)
    ranks = [rng.permutation(k).tolist() for k in rng.integers(2, 6, size=30)]
    features = rng.normal(size=(sum(map(len, ranks)), 3)) * [1.0, 40.0, 0.02] + [3.0, -100.0, 0.5]
    features[:, 0] -= 0.3 * np.concatenate(ranks)
    return features, ranks, [str(i) for i in range(len(ranks))]


def with_constant(value):
    features, ranks, groups = mixed_problem()
    return np.column_stack([features, np.full(len(features), value)]), ranks, groups


SOLVERS = [("plackett_luce", newton_plackett_luce), ("all_pairs", root_all_pairs)]


@pytest.mark.parametrize("ridge", [1.0, 0.01])
@pytest.mark.parametrize(("name", "solver"), SOLVERS)
def test_finds_the_optimum_of_an_independent_solver_among_heads_with_mean_reward_zero(name, solver, ridge):
    features, ranks, groups = mixed_problem()
    z, scale = standardised(features)
    basis = free_directions(features)
    fit = fit_head(features, ranks, groups, OBJECTIVES[name], ridges=[ridge])
    assert fit.ridge == ridge
    assert fit.weight * scale == pytest.approx(basis @ solver(z @ basis, ranks, ridge), abs=2e-5)


@pytest.mark.parametrize(("name", "solver"), SOLVERS)
def test_finds_the_free_optimum_where_the_features_are_centred_already(name, solver):
    # within one standard deviation of zero there is no offset worth a dimension; exactly centred features have a mean of
    # rounding errors, whose direction must not be taken for one
    features, ranks, groups = mixed_problem()
    z, _ = standardised(features)
    for shift in (0.0, 0.5):
        fit = fit_head(z + shift, ranks, groups, OBJECTIVES[name], ridges=[0.1])
        assert fit.weight == pytest.approx(solver(z, ranks, 0.1), abs=2e-5)


def test_a_single_feature_that_is_centred_can_be_learnt():
    fit = fit_head(np.array([[2.0], [-1.0], [-1.0]] * 6) / 3, [[1, 2, 2]] * 6, list("abcdef"), plackett_luce)
    assert fit.weight[0] > 0.5


def test_mean_reward_is_zero_for_features_far_from_zero():
    features, ranks, groups = mixed_problem()
    rewards = features @ fit_head(features, ranks, groups, plackett_luce).weight
    assert rewards.mean() == pytest.approx(0, abs=1e-9)
    assert np.ptp(rewards) > 0.1


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_gradient_of_the_ridge_objective_over_all_rankings_vanishes_at_the_fit(objective):
    features, ranks, groups = mixed_problem()
    z, scale = standardised(features)
    fit = fit_head(features, ranks, groups, objective)
    w = torch.tensor(fit.weight * scale, requires_grad=True)
    sizes = torch.tensor([len(own) for own in ranks])
    places = torch.tensor([rank for own in ranks for rank in own])
    lists = torch.arange(len(ranks)).repeat_interleave(sizes)
    total, count = objective(torch.tensor(z) @ w, places, lists)
    (total / count + fit.ridge / 2 * w.square().sum()).backward()
    assert np.abs(w.grad.numpy() @ free_directions(features)).max() < 1e-5
    assert fit.loss == pytest.approx(total.item() / count, rel=1e-9)


def test_ranks_with_ties_are_fitted_too():
    # one feature, the winner has 1 more than two tied losers: P(winner first) = e^w / (e^w + 2), so the optimum solves
    # ridge * v = (1 - P(v)) * (rise of z) with v the standardised weight
    features = np.array([[2 / 3], [-1 / 3], [-1 / 3]] * 6)
    ridge, step = 0.1, 1 / features.std()
    fit = fit_head(features, [[1, 2, 2]] * 6, [str(i) for i in range(6)], plackett_luce, ridges=[ridge])
    w = fit.weight[0]
    p = math.exp(w) / (math.exp(w) + 2)
    assert ridge * w / step == pytest.approx((1 - p) * step, abs=1e-6)
    assert fit.loss == pytest.approx(-math.log(p), rel=1e-9)


def test_rewards_do_not_change_with_the_units_of_the_features():
    features, ranks, groups = mixed_problem()
    units = np.array([1e-3, 7.0, -250.0])
    plain, other = (fit_head(each, ranks, groups, plackett_luce) for each in (features, features * units))
    assert other.ridge == plain.ridge
    assert features * units @ other.weight == pytest.approx(features @ plain.weight, abs=1e-4)


def test_reward_differences_do_not_change_with_small_shifts_of_the_features():
    features, ranks, groups, _ = simulate(4, lists=40, k=4, d=3)
    moved = features * [1e-3, 7.0, -250.0] + [4e-4, -2.0, 50.0]  # each by less than half a standard deviation
    plain, other = (fit_head(each, ranks, groups, plackett_luce) for each in (features, moved))
    a, b = features @ plain.weight, moved @ other.weight
    assert other.ridge == plain.ridge
    assert a - a.mean() == pytest.approx(b - b.mean(), abs=1e-4)
    assert np.ptp(a) > 0.1


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6 / 3])
def test_a_constant_feature_is_no_feature_but_may_carry_the_offset(value):
    # in double precision the standard deviation of a constant column is often not zero but 1e-17: taken at its word, it
    # would give the column a weight of any size
    features, ranks, groups = with_constant(value)
    z, scale = standardised(features)
    basis = free_directions(features)
    fit = fit_head(features, ranks, groups, plackett_luce, ridges=[0.1])
    assert fit.weight * scale == pytest.approx(basis @ newton_plackett_luce(z @ basis, ranks, 0.1), abs=2e-5)
    assert (features @ fit.weight).mean() == pytest.approx(0, abs=1e-8)


def test_float32_features_are_fitted_in_float64():
    features, ranks, groups = mixed_problem()
    coarse = features.astype(np.float32)
    exact, fit = (
        fit_head(each, ranks, groups, plackett_luce, ridges=[1.0, 0.1]) for each in (coarse.astype(np.float64), coarse)
    )
    assert fit.weight.dtype == np.float64
    assert fit.weight == pytest.approx(exact.weight, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_ridge_is_judged_on_a_fifth_of_the_prompts_and_none_of_them_is_fitted(seed, monkeypatch):
    features, ranks, _, _ = simulate(seed, lists=60, k=3, d=2)
    groups = [f"prompt {i % 20}" for i in range(60)]  # three rankings of every prompt, far apart
    fitted, judged = [], []
    minimise, mean_loss = head.minimise, head.mean_loss
    monkeypatch.setattr(head, "minimise", lambda data, *rest, **more: record(fitted, minimise, data, *rest, **more))
    monkeypatch.setattr(head, "mean_loss", lambda data, *rest: record(judged, mean_loss, data, *rest))
    fit = fit_head(features, ranks, groups, plackett_luce, seed=seed)
    everything = frozenset(groups)
    (learnt,) = set(fitted) - {everything}
    (aside,) = set(judged)
    assert learnt.isdisjoint(aside)
    assert learnt | aside == everything
    assert len(aside) == round(HELD_OUT * 20)
    assert fitted[-1] == everything  # the fit handed back is on all rankings
    tried = [each.ridge for each in fit.path]
    assert tried == [*RIDGES, *WEAKER][: len(tried)]
    assert fit.ridge == min(fit.path, key=lambda each: each.held_out).ridge


def record(prompts, function, data, *rest, **more):
    prompts.append(frozenset(data.design.groups))
    return function(data, *rest, **more)


def test_learning_prompts_by_heart_does_not_lower_the_held_out_loss():
    # ranks are noise; features say which prompt it is and which response, so rankings repeated within a prompt can be learnt
    # by heart. If a prompt were on both sides, the smallest ridge would win; as none is, no weight at all is best.
    rng = np.random.default_rng(0)
    prompts, k, copies = 20, 3, 4
    features, ranks, groups = [], [], []
    for prompt in range(prompts):
        own = rng.permutation(k).tolist()
        for _ in range(copies):
            rows = np.zeros((k, prompts * k))
            rows[range(k), prompt * k + np.arange(k)] = 1
            features.append(rows + 0.5 * np.tile(rng.normal(size=(k, 1)), prompts * k) / (prompts * k))
            ranks.append(own)
            groups.append(f"prompt {prompt}")
    fit = fit_head(np.concatenate(features), ranks, groups, plackett_luce, ridges=[10.0, 1.0, 0.1, 0.01])
    assert min(tried.held_out for tried in fit.path) > math.log(math.factorial(k)) - 0.05


def all_noise():
    """Ranks that have nothing to do with the features: no weight at all is best."""
    features, _, groups, _ = simulate(6, lists=40, k=3, d=30)
    ranks = np.random.default_rng(5).random((40, 3)).argsort(1).argsort(1) + 1
    return features, ranks.tolist(), groups


def hardly_any_noise():
    """Features that tell the order nearly always: only a large weight fits that."""
    return simulate(2, lists=60, k=3, d=4, size=8)[:3]


@pytest.mark.parametrize(
    ("problem", "beyond", "end"), [(hardly_any_noise(), WEAKER, min(RIDGES)), (all_noise(), STRONGER, max(RIDGES))]
)
def test_where_the_best_ridge_lies_at_an_end_the_path_goes_on_until_the_held_out_loss_turns(problem, beyond, end):
    fit = fit_head(*problem, plackett_luce)
    assert fit_head(*problem, plackett_luce, ridges=RIDGES).ridge == end, "the case this is about"
    own = [each.ridge for each in fit.path]
    assert own == sorted(set(own), reverse=True)
    assert fit.ridge in beyond and fit.ridge not in (own[0], own[-1])
    # by brute force: no ridge there is, fitted by itself, is better (optima on the path are good to 1e-5 nats of training loss)
    every = [fit_head(*problem, plackett_luce, ridges=[ridge]).path[0].held_out for ridge in (*RIDGES, *beyond)]
    assert min(each.held_out for each in fit.path) <= min(every) + 1e-3


def test_where_the_best_ridge_lies_within_nothing_else_is_tried():
    features, ranks, groups, _ = simulate(1, lists=60, k=3, d=4)
    fit, short = (fit_head(features, ranks, groups, plackett_luce, ridges=ridges) for ridges in (None, RIDGES))
    assert min(RIDGES) < short.ridge < max(RIDGES)
    assert fit.path == short.path and (fit.weight == short.weight).all()


def test_the_seed_chooses_the_prompts_and_the_same_seed_gives_the_same_fit():
    features, ranks, groups, _ = simulate(1, lists=30, k=3, d=3)
    first, again, other = (
        fit_head(features, ranks, groups, plackett_luce, ridges=[1.0, 0.1], seed=seed) for seed in (0, 0, 1)
    )
    assert first.path == again.path
    assert (first.weight == again.weight).all()
    assert first.path != other.path


@pytest.mark.parametrize(("lists", "groups"), [(2, ["one", "one"]), (1, ["one"])])
def test_fewer_than_two_prompts_are_refused_in_words(lists, groups):
    with pytest.raises(ValueError, match="at least two prompts, these are of 1"):
        fit_head(np.eye(2 * lists), [[1, 2]] * lists, groups, plackett_luce)


def test_two_prompts_are_enough():
    fit = fit_head(np.array([[0.5], [-0.5], [0.5], [-0.5]]), [[1, 2], [1, 2]], ["a", "b"], plackett_luce)
    assert fit.weight[0] > 0


def test_k_wise_estimator_is_closer_to_the_truth_than_the_pairwise_one():
    # arXiv 2301.11270, Theorem 4.3: MLE_K attains the inverse Fisher information; for Gaussian features, d = 5, n = 400 and
    # K = 7 the mean squared errors are about .005 and .006
    errors = {"plackett_luce": [], "all_pairs": []}
    for seed in range(20):
        features, ranks, groups, theta = simulate(seed, lists=400, k=7, d=5)
        for name in errors:
            weight = fit_head(features, ranks, groups, OBJECTIVES[name], ridges=[1e-6]).weight
            errors[name].append(((weight - theta) ** 2).sum())
    k_wise, pairwise = np.mean(errors["plackett_luce"]), np.mean(errors["all_pairs"])
    assert k_wise < pairwise < 0.012
    assert k_wise == pytest.approx(0.0049, rel=0.3)


def test_a_covariate_takes_what_it_explains_and_the_head_keeps_the_rest():
    # a judge who likes x beside theta; x goes with the first feature, so a fit without x gives its weight to that feature
    rng = np.random.default_rng(3)
    theta, liking = np.array([0.0, 1.0, -0.5]), 1.5
    features = rng.normal(size=(2000 * 4, 3))
    x = features[:, 0] + 0.5 * rng.normal(size=8000)
    utility = (features @ theta + liking * x + rng.gumbel(size=8000)).reshape(2000, 4)
    ranks = (1 + (-utility).argsort(1).argsort(1)).tolist()
    plain = design(features, ranks, [str(i) for i in range(2000)])
    blind = head.fit_head({1: plain}, plackett_luce, ridges=[1e-4])
    fit = head.fit_head({1: replace(plain, covariates=x[:, None])}, plackett_luce, ridges=[1e-4])
    assert blind.weight[0] > 1.0
    assert fit.weight == pytest.approx(theta, abs=0.2)
    assert fit.coefficients == pytest.approx([liking], abs=0.2)
    assert blind.coefficients.shape == (0,)


def test_centring_is_of_rewards_without_what_covariates_add():
    """The gradient of loss(x w + g c) + centring * sum over rankings of (sum of x w)^2, written out, vanishes at the fit."""
    features, ranks, groups = mixed_problem()
    centring = 0.03
    g = (
        features[:, 0]
        + np.random.default_rng(1).normal(size=len(features))
        + np.repeat(np.random.default_rng(2).normal(size=len(ranks)) * 3, [len(own) for own in ranks])
    )
    own = replace(design(features, ranks, groups), covariates=g[:, None])
    fit = head.fit_head({1: own}, objective("plackett_luce", centring=centring), ridges=[0.1])
    z, scale = standardised(features)
    w = torch.tensor(fit.weight * scale, requires_grad=True)
    c = torch.tensor(fit.coefficients * g.std(), requires_grad=True)
    rewards = torch.tensor(z) @ w
    lists = torch.arange(len(ranks)).repeat_interleave(torch.tensor([len(each) for each in ranks]))
    places = torch.tensor([rank for each in ranks for rank in each])
    loss, count = plackett_luce(rewards + torch.tensor(standardised(g[:, None])[0]) @ c, places, lists)
    sums = torch.stack([rewards[lists == i].sum() for i in range(len(ranks))])
    penalised = (loss + centring * sums.square().sum()) / count
    (penalised + 0.1 / 2 * w.square().sum() + head.COVARIATE_RIDGE / 2 * c.square().sum()).backward()
    assert abs(fit.coefficients[0]) > 0.1
    assert np.abs(w.grad.numpy() @ free_directions(features)).max() < 1e-5
    assert c.grad.item() == pytest.approx(0, abs=1e-5)


def test_the_layer_with_the_lower_held_out_loss_is_taken_and_fitted_as_if_alone():
    features, ranks, groups, _ = simulate(2, lists=80, k=4, d=4)
    blurred = features + 3 * np.random.default_rng(0).normal(size=features.shape)
    both = {2: design(blurred, ranks, groups), 5: design(features, ranks, groups), 9: design(blurred, ranks, groups)}
    fit = head.fit_head(both, plackett_luce)
    alone = fit_head(features, ranks, groups, plackett_luce)
    assert fit.layer == 5
    assert fit.weight == pytest.approx(alone.weight, rel=1e-9)
    assert {tried.layer for tried in fit.path} == {2, 5, 9}


def test_a_design_read_in_small_chunks_gives_the_same_fit(monkeypatch):
    features, ranks, groups = mixed_problem()
    whole = fit_head(features, ranks, groups, plackett_luce)
    monkeypatch.setattr(design_module, "CHUNK", 3 * 12)
    monkeypatch.setattr(design_module, "IN_MEMORY", 0)
    parts = fit_head(features, ranks, groups, plackett_luce)
    assert parts.ridge == whole.ridge
    assert parts.weight == pytest.approx(whole.weight, rel=1e-9)


def test_curvature_of_a_part_of_the_rankings_leads_to_the_same_optimum(monkeypatch):
    features, ranks, groups, _ = simulate(8, lists=200, k=4, d=3)
    whole = fit_head(features, ranks, groups, plackett_luce, ridges=[0.01])
    monkeypatch.setattr(design_module, "CHUNK", 3 * 100)
    monkeypatch.setattr(head, "HESSIAN_RESPONSES", 200)  # of 800
    part = fit_head(features, ranks, groups, plackett_luce, ridges=[0.01])
    assert part.weight == pytest.approx(whole.weight, rel=1e-8)
    data = Standardised(design(features, ranks, groups), scaling(design(features, ranks, groups)))
    at = torch.zeros(3, dtype=torch.float64)
    some, every, none = (head.sweep(data, plackett_luce, at, stride) for stride in (4, 1, 0))
    assert (some.hessian != every.hessian).any() and none.hessian is None
    assert torch.equal(some.gradient, every.gradient) and torch.equal(none.gradient, every.gradient)


def test_near_the_optimum_the_curvature_of_a_part_is_corrected_and_not_taken_again(monkeypatch):
    features, ranks, groups, _ = simulate(8, lists=400, k=4, d=12)
    monkeypatch.setattr(design_module, "CHUNK", 12 * 100)
    monkeypatch.setattr(head, "HESSIAN_RESPONSES", 200)  # of 1,600: it is far off
    plain = head.sweep
    strides = []

    def counted(data, objective, w, stride):
        strides.append(stride)
        return plain(data, objective, w, stride)

    data = Standardised(design(features, ranks, groups), scaling(design(features, ranks, groups)))
    start = torch.zeros(12, dtype=torch.float64)
    monkeypatch.setattr(head, "sweep", counted)
    w, found = head.minimise(data, plackett_luce, 0.01, start, 1e-16)
    corrected = strides.copy()
    assert 0 < corrected.count(8) < 4 and corrected.count(0) == len(corrected) - corrected.count(8)
    strides.clear()
    monkeypatch.setattr(head, "_direction", lambda factor, pairs, g: torch.cholesky_solve(g[:, None], factor)[:, 0])
    assert head.minimise(data, plackett_luce, 0.01, start, 1e-16)[0] == pytest.approx(w, abs=1e-6)
    assert len(strides) > 1.5 * len(corrected)  # without the correction it takes far more passes
    assert (found.gradient + 0.01 * w).abs().max() < 1e-7


def test_directions_are_those_of_the_bfgs_matrix():
    generator = torch.Generator().manual_seed(0)
    root, others = (torch.randn(5, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    curvature = root @ root.T + torch.eye(5, dtype=torch.float64)
    pairs = [(step, curvature @ step) for step in torch.randn(3, 5, dtype=torch.float64, generator=generator)]
    eye = torch.eye(5, dtype=torch.float64)
    matrix = others @ others.T + eye
    inverse = torch.linalg.inv(matrix)
    for step, change in pairs:  # Nocedal and Wright, Numerical Optimization, equation 6.17
        rho = 1 / (step @ change)
        left = eye - rho * torch.outer(step, change)
        inverse = left @ inverse @ left.T + rho * torch.outer(step, step)
    gradient = torch.randn(5, dtype=torch.float64, generator=generator)
    found = head._direction(torch.linalg.cholesky(matrix), pairs, gradient)
    assert found.numpy() == pytest.approx((inverse @ gradient).numpy(), rel=1e-10)


def test_responses_that_rankings_share_are_read_from_one_row():
    features, ranks, groups, _ = simulate(6, lists=30, k=4, d=3)
    twice = Design(features, [list(range(4 * i, 4 * i + 4)) for i in [*range(30), *range(30)]], ranks * 2, groups * 2)
    copied = design(np.concatenate([features, features]), ranks * 2, groups * 2)
    pooled, apart = (head.fit_head({1: each}, plackett_luce) for each in (twice, copied))
    assert pooled.weight == pytest.approx(apart.weight, rel=1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_feature_that_is_no_number_is_an_error_and_no_endless_search(value):
    features, ranks, groups = mixed_problem()
    features[7, 1] = value
    with pytest.raises(ValueError, match=f"feature 1 is {value}"):
        fit_head(features, ranks, groups, plackett_luce)


def test_a_prompt_that_is_tied_throughout_is_no_crash_whether_fitted_or_held_out():
    features, ranks, groups, _ = simulate(0, lists=2, k=3, d=2)
    for seed in range(6):
        fit = fit_head(features, [ranks[0], [1, 1, 1]], groups, plackett_luce, seed=seed)
        assert np.isfinite(fit.weight).all()
