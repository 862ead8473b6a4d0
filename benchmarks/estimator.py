"""Do the head fit and its covariances do what arXiv 2301.11270 says: simulations through kwise's own functions.

    gumbel, gaussian, position    n = 400 rankings of K = 3 and 7 responses with d = 5 standard normal features and utility
                                  <theta, phi> + noise, |theta| = 1.5. Plackett-Luce holds under Gumbel noise. It does not under
                                  Gaussian noise of the same variance, nor where position 0 has a bonus of 0.8.
    dependent                     133 prompts of 7 responses, each with one Gumbel draw of its own, and three rankings a prompt,
                                  each of 5 responses picked at random: every ranking by itself is Plackett-Luce
    few                           60 prompts of 10 responses, three rankings of 5 a prompt that share its draw, 20 to 80 features,
                                  |theta| about 1, ridge 0.05: as many features as prompts, or more
    bandit                        three arms, phi = e_i, r = (0.5, 0, -0.5); arms 1 and 2 are compared n - 1 times, 2 and 3 once

Ridge is 1e-8, which does nothing, but in "few". "+-" is one Monte-Carlo standard error throughout.

    python benchmarks/estimator.py gumbel --reps 600
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator

import measure
import numpy as np
import torch

from kwise.objective import OBJECTIVES
from kwise.objective.covariance import head_covariance
from kwise.objective.design import Design, Standardised, scaling
from kwise.objective.head import minimise

D, N = 5, 400
THETA = np.full(D, 1.5 / np.sqrt(D))  # equal components, so that all of them measure the same thing
RIDGE = 1e-8
BONUS = 0.8
NORMAL_90 = 1.6448536  # 5 % of a normal distribution lie above
NAMES = {"plackett_luce": "MLE_K", "all_pairs": "MLE_2", "top1": "top-1"}
COVARIANCES = [("plackett_luce", "fisher"), ("plackett_luce", "sandwich"), ("all_pairs", "sandwich")]
ARMS = np.array([0.5, 0.0, -0.5])


def fit(design: Design, name: str, ridge: float, start: np.ndarray) -> np.ndarray:
    """[d + c] raw weights at the optimum. The problem is convex: ``start`` saves steps and decides nothing."""
    data = Standardised(design, scaling(design))
    w, _ = minimise(data, OBJECTIVES[name], ridge, torch.from_numpy(start * data.by.scale), tolerance=1e-12)
    return w.numpy() / data.by.scale


def variances(design: Design, name: str, weight: np.ndarray, kind: str) -> np.ndarray:
    """[d] of the weights of the features."""
    split = design.num_features
    root = head_covariance(design, OBJECTIVES[name], weight[:split], weight[split:], RIDGE, kind)
    return np.square(root[:split]).sum(1)


def ranked(utility: np.ndarray) -> list[list[int]]:
    return (1 + (-utility).argsort(1).argsort(1)).tolist()


def independent(rng: np.random.Generator, noise: str, k: int) -> Design:
    features = rng.normal(size=(N * k, D))
    draw = rng.normal(scale=np.pi / np.sqrt(6), size=(N, k)) if noise == "gaussian" else rng.gumbel(size=(N, k))
    utility = (features @ THETA).reshape(N, k) + draw
    if noise == "position":
        utility[:, 0] += BONUS
    places = np.arange(N * k).reshape(N, k).tolist()
    return Design(features, places, ranked(utility), [str(i) for i in range(N)])


def dependent(rng: np.random.Generator) -> Design:
    prompts, responses, picked = N // 3, 7, 5
    features = rng.normal(size=(prompts * responses, D))
    utility = features @ THETA + rng.gumbel(size=len(features))
    places = np.array(
        [responses * prompt + rng.permutation(responses)[:picked] for prompt in range(prompts) for _ in range(3)]
    )
    groups = [str(prompt) for prompt in range(prompts) for _ in range(3)]
    return Design(features, places.tolist(), ranked(utility[places]), groups)


Simulated = dict[str, np.ndarray]


def simulate(draw: Callable[[np.random.Generator], Design], bonus: bool, reps: int) -> Simulated:
    """Estimates [reps, d] by objective ("covariate": MLE_K with the position as a nuisance covariate, "bonus": its
    coefficient), and variances [reps, d] by "objective kind"."""
    found = defaultdict(list)
    for seed in range(reps):
        design = draw(np.random.default_rng(seed))
        for name in NAMES:
            found[name].append(fit(design, name, RIDGE, THETA))
        for name, kind in COVARIANCES:
            found[f"{name} {kind}"].append(variances(design, name, found[name][-1], kind))
        if bonus:
            first = np.zeros((len(design.features), 1))
            first[[places[0] for places in design.places]] = 1
            both = Design(design.features, design.places, design.ranks, design.groups, first)
            weight = fit(both, "plackett_luce", RIDGE, np.append(THETA, BONUS))
            found["covariate"].append(weight[:D])
            found["bonus"].append(weight[D:])
    return {name: np.array(each) for name, each in found.items()}


def mean(each: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(each.mean()), float(each.std(ddof=1) / np.sqrt(len(each)))


def ratio(above: np.ndarray, below: np.ndarray) -> tuple[float, float]:
    """Of two means over the same repetitions, with its standard error (delta method)."""
    value = above.mean() / below.mean()
    return float(value), mean((above - value * below) / below.mean())[1]


def show(found: tuple[float, float], digits: int = 2) -> str:
    return f"{found[0]:.{digits}f} ± {found[1]:.{digits}f}"


def square_errors(estimates: np.ndarray) -> np.ndarray:
    """[reps] |theta_hat - theta|^2"""
    return np.square(estimates - THETA).sum(1)


def direction_errors(estimates: np.ndarray) -> np.ndarray:
    """[reps] the same of the directions, both of length 1."""
    unit = estimates / np.linalg.norm(estimates, axis=1, keepdims=True)
    return np.square(unit - THETA / np.linalg.norm(THETA)).sum(1)


def efficiency_row(label: str, found: Simulated) -> list[str]:
    """Mean |theta_hat - theta|^2 of each estimator and their ratios; "by sandwich" is the ratio of the variances that the
    covariances state, which leaves bias out and has far less Monte-Carlo error."""
    errors = {name: square_errors(found[name]) for name in NAMES}
    directions = {name: direction_errors(found[name]) for name in NAMES}
    return [
        label,
        *(f"{errors[name].mean():.4f}" for name in NAMES),
        show(ratio(errors["all_pairs"], errors["plackett_luce"])),
        show(ratio(*(found[f"{name} sandwich"].sum(1) for name in ("all_pairs", "plackett_luce"))), 3),
        show(ratio(errors["top1"], errors["plackett_luce"])),
        show(ratio(directions["all_pairs"], directions["plackett_luce"])),
        " / ".join(f"{(found[name] @ THETA).mean() / (THETA @ THETA):.2f}" for name in NAMES),
    ]


def coverage_rows(label: str, found: Simulated) -> Iterator[list[str]]:
    """Standard errors against the spread of the estimates about their mean, and how often the interval holds the value that the
    estimator goes to: theta, or where Plackett-Luce is wrong its multiple (of equal components, by symmetry)."""
    for name, kind in COVARIANCES:
        estimates, errors = found[name], np.sqrt(found[f"{name} {kind}"])
        goal = estimates.mean() if label.startswith("gaussian") else THETA
        said = errors.mean(1)
        spread = np.square(estimates - estimates.mean(0)).mean(1) * len(estimates) / (len(estimates) - 1)
        value = said.mean() / np.sqrt(spread.mean())
        doubt = value * mean(said / said.mean() - spread / spread.mean() / 2)[1]
        inside = (np.abs(estimates - goal) <= NORMAL_90 * errors).mean(1)
        yield [
            label,
            NAMES[name],
            kind,
            f"{np.sqrt(spread.mean()):.4f}",
            show((value, doubt), 3),
            show(tuple(100 * each for each in mean(inside)), 1),
        ]


def noise_tables(noise: str, reps: int) -> None:
    found = {
        f"{noise}, K = {k}": simulate(lambda rng, k=k: independent(rng, noise, k), noise == "position", reps)
        for k in (3, 7)
    }
    columns = ["noise", "MLE_K", "MLE_2", "top-1", "MLE_2 / MLE_K"]
    columns += ["by sandwich", "top-1 / MLE_K", "MLE_2 / MLE_K, direction", "length found"]
    measure.print_table(columns, (efficiency_row(*each) for each in found.items()))
    if noise == "position":
        columns = ["noise", "MLE_K with the position as covariate", "without / with", "bonus found"]
        rows = (
            [
                label,
                f"{square_errors(own['covariate']).mean():.4f}",
                show(ratio(square_errors(own["plackett_luce"]), square_errors(own["covariate"]))),
                show(mean(own["bonus"][:, 0]), 3),
            ]
            for label, own in found.items()
        )
        measure.print_table(columns, rows)
    else:
        coverage_table(found)


def coverage_table(found: dict[str, Simulated]) -> None:
    columns = ["noise", "estimator", "covariance", "spread", "said / spread", "90 % intervals hold, %"]
    measure.print_table(columns, (row for each in found.items() for row in coverage_rows(*each)))


def few_table(reps: int) -> None:
    """Stated over true error, root mean squares over all weights, and how often 90 % intervals hold."""
    rows, prompts, ridge = [], 60, 0.05
    for width in (20, 40, 80):
        errors, said = [], defaultdict(list)
        for seed in range(reps):
            rng = np.random.default_rng(seed)
            theta = rng.normal(size=width) / np.sqrt(width)
            features = rng.normal(size=(prompts * 10, width))
            places = np.array([10 * each + rng.permutation(10)[:5] for each in range(prompts) for _ in range(3)])
            ranks = ranked((features @ theta + rng.gumbel(size=len(features)))[places])
            design = Design(features, places.tolist(), ranks, [str(each) for each in range(prompts) for _ in range(3)])
            weight = fit(design, "plackett_luce", ridge, np.zeros(width))
            errors.append(weight - theta)
            for kind in ("fisher", "sandwich"):
                root = head_covariance(design, OBJECTIVES["plackett_luce"], weight, np.zeros(0), ridge, kind)
                said[kind].append(np.square(root).sum(1))
        error = np.array(errors)
        for kind, variance in said.items():
            stated, true = np.mean(variance), np.square(error).mean()
            held = (np.abs(error) < NORMAL_90 * np.sqrt(variance)).mean(1)
            rows.append([str(width), kind, f"{np.sqrt(stated / true):.2f}", show(mean(100 * held), 1)])
    measure.print_table(["features", "covariance", "said / true", "90 % intervals hold, %"], rows)


def constrained(first_wins: np.ndarray) -> np.ndarray:
    """[3] the bandit's maximum likelihood estimate in the paper's set <1, theta> = 0, |theta| <= B = 4, to 1e-3.

    The one comparison of arms 2 and 3 (the last) asks for an infinite difference, so the best point lies on the boundary.
    """
    wins = first_wins[:-1].sum()
    angle = np.linspace(0, 2 * np.pi, 36001)[:, None]
    boundary = 4 * (
        np.cos(angle) * np.array([1, -1, 0]) / np.sqrt(2) + np.sin(angle) * np.array([1, 1, -2]) / np.sqrt(6)
    )
    a, b = boundary[:, 0] - boundary[:, 1], boundary[:, 1] - boundary[:, 2]
    loss = wins * np.logaddexp(0, -a) + (len(first_wins) - 1 - wins) * np.logaddexp(0, a)
    return boundary[np.argmin(loss + np.logaddexp(0, -b if first_wins[-1] else b))]


def bandit_rewards(seed: int, n: int) -> dict[str, np.ndarray]:
    """[3] what each way thinks of the arms. The reference v is arm 2, as in the paper's example, and in the last way the mean
    feature, which is what kwise keeps beside a model."""
    rng = np.random.default_rng(seed)
    pairs = [(0, 1)] * (n - 1) + [(1, 2)]
    first_wins = rng.random(n) < 1 / (1 + np.exp([ARMS[b] - ARMS[a] for a, b in pairs]))
    design = Design(np.eye(3), pairs, [[1, 2] if won else [2, 1] for won in first_wins], [str(i) for i in range(n)])
    ridge = 1 / n
    radius = 3 * np.sqrt((3 + np.log(20)) / n)
    contrasts = np.eye(3) - np.eye(3)[1]  # phi - v

    theta = constrained(first_wins)
    differences = np.eye(3)[[a for a, _ in pairs]] - np.eye(3)[[b for _, b in pairs]]
    sigma = differences.T @ differences / n + ridge * np.eye(3)
    norms = np.sqrt(np.einsum("ai,ij,aj->a", contrasts, np.linalg.inv(sigma), contrasts))

    weight = fit(design, "plackett_luce", ridge, np.zeros(3))

    def lower_bound(kind: str, c: float, v: np.ndarray) -> np.ndarray:
        root = head_covariance(design, OBJECTIVES["plackett_luce"], weight, np.zeros(0), ridge, kind)
        return weight - c * np.linalg.norm((np.eye(3) - v) @ root, axis=1)

    return {
        "greedy, written out": theta,
        "greedy, kwise": weight,
        "Algorithm 1, written out": theta - radius * norms,
        "kwise, paper, c = radius": lower_bound("paper", radius, np.eye(3)[1]),
        "kwise, fisher, c = 2": lower_bound("fisher", 2, np.eye(3)[1]),
        "kwise, fisher, c = 2, v the mean": lower_bound("fisher", 2, scaling(design).mean),
    }


def bandit_table(reps: int) -> None:
    sizes = (50, 200, 1000, 5000)
    regrets = {}
    for n in sizes:
        found = defaultdict(list)
        for seed in range(reps):
            for way, rewards in bandit_rewards(seed, n).items():
                found[way].append(ARMS.max() - ARMS[rewards.argmax()])
        regrets[n] = {way: np.array(each) for way, each in found.items()}
    rows = ([way, *(show(mean(regrets[n][way])) for n in sizes)] for way in regrets[sizes[0]])
    measure.print_table(["mean regret", *(f"n = {n}" for n in sizes)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["gumbel", "gaussian", "position", "dependent", "few", "bandit"])
    parser.add_argument("--threads", type=int, default=1, help="torch's threads, 1 unless given")
    parser.add_argument("--reps", type=int, default=600, help="data sets drawn for each figure, 600 unless given")
    given = parser.parse_args()
    measure.quiet(given.threads)
    measure.print_header(measure.header(given))
    if given.part == "bandit":
        bandit_table(given.reps)
    elif given.part == "few":
        few_table(given.reps)
    elif given.part == "dependent":
        coverage_table({"dependent, K = 5": simulate(dependent, False, given.reps)})
    else:
        noise_tables(given.part, given.reps)


if __name__ == "__main__":
    main()
