"""The covariance of a head, from the rankings it was fitted to (arXiv 2301.11270, section 3 and Theorem 4.3)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from kwise.model.uncertainty import Uncertainty
from kwise.objective import Objective
from kwise.objective.design import Design, Standardised, scaling
from kwise.objective.head import penalised_hessian, project, sweep

KINDS = ("fisher", "sandwich", "paper")
ROUNDING = 2**-9  # of a weight that a model holds in bfloat16: its relative error at random; at most it is twice that


def default_kind(name: str, options: Mapping[str, Any], groups: Sequence[str]) -> str:
    """``fisher`` where the objective is the likelihood of a noise model (Plackett-Luce as it is) and every ranking has a
    prompt of its own; else ``sandwich``: rankings of one prompt share responses or their judge's whims."""
    return "fisher" if name == "plackett_luce" and not options and len(set(groups)) == len(groups) else "sandwich"


def head_covariance(
    design: Design,
    objective: Objective,
    weight: np.ndarray,
    coefficients: np.ndarray,
    ridge: float,
    kind: str,
    device: str = "cpu",
) -> np.ndarray:
    """[p, q] root with root @ root.T the covariance of the raw (weight, coefficients), p = d + c.

    With H the observed information of n rankings (Hessian of the summed objective at the fit) and R their ridge:

    ``fisher``     (H + nR)^-1: for Plackett-Luce the inverse Fisher information, the covariance of MLE_K (Theorem 4.3);
                   with a ridge, the Laplace approximation with the ridge as a normal prior
    ``sandwich``   (H + nR)^-1 V (H + nR)^-1, V the sum over prompts of the outer product of their gradients: the covariance of
                   MLE_2, and of any objective when the noise model is wrong or rankings of a prompt depend on one another
    ``paper``      (Sigma_D + R)^-1, Sigma_D = mean over rankings of 2 / (K (K - 1)) sum_j<k (phi_j - phi_k)(phi_j - phi_k)':
                   the norm of Algorithm 1, which does not shrink with n: its radius f does

    All over standardised features, and with the direction ``Scaling.level`` fixed for a head that is orthogonal to it, as those
    of ``fit_head`` are. Time: one pass, 2 p^2 operations a response and about p^3; memory: up to ten p x p float64 matrices
    (5.2 GB measured at p = 8192), a chunk with its temporaries, and the features if they are small (``IN_MEMORY``).
    ``sandwich`` raises ``ValueError`` for rankings of a single prompt.
    """
    by = scaling(design)
    standard = np.concatenate([weight, coefficients]) * by.scale
    # a sum of so many independent roundings; a head that was not fitted under the condition meets this in one of 160 cases
    if abs(standard @ by.level) > 4 * ROUNDING * np.linalg.norm(standard * by.level):
        by = by._replace(level=np.zeros_like(by.level))  # the head was not fitted under that condition
    data = Standardised(design, by, device)
    w = torch.from_numpy(standard).to(device)
    if kind == "paper":
        information = penalised_hessian(_pair_covariance(data), ridge, data)
    else:
        found = sweep(data, objective, w, stride=1)
        assert found.hessian is not None
        information = found.rankings * penalised_hessian(found.hessian, ridge, data)
    # root of its inverse: for information = L L', (L^-1)' is one
    lower = torch.linalg.cholesky(information)
    eye = torch.eye(len(w), dtype=w.dtype, device=device)
    root = torch.linalg.solve_triangular(lower, eye, upper=False).T
    if kind == "sandwich":
        variance = _score_variance(data, objective, w)
        variance += 1e-12 * variance.diagonal().mean() * eye  # fewer prompts than columns leave it singular
        root = torch.cholesky_solve(torch.linalg.cholesky(variance), lower)
    raw: np.ndarray = project(root, data).cpu().numpy() / data.by.scale[:, None]
    return raw


def head_uncertainty(
    design: Design,
    objective: Objective,
    head: torch.Tensor,
    coefficients: np.ndarray,
    ridge: float,
    kind: str,
    device: str = "cpu",
) -> tuple[Uncertainty, np.ndarray]:
    """The ``Uncertainty`` of the weights ``head`` [1, d], and the standard errors [c] of the covariates' coefficients."""
    weight = head.detach().double().cpu().numpy()[0]
    root = head_covariance(design, objective, weight, coefficients, ridge, kind, device)
    reference = scaling(design).mean[: design.num_features]
    facts: dict[str, Any] = {
        "kind": kind,
        "rankings": len(design.places),
        "prompts": len(set(design.groups)),
        "ridge": ridge,
    }
    split = design.num_features
    root_32, reference_32, head_32 = (torch.from_numpy(each).float() for each in (root[:split], reference, weight))
    return Uncertainty(root_32, reference_32, head_32, facts), np.linalg.norm(root[split:], axis=1)


def _pair_covariance(data: Standardised) -> torch.Tensor:
    """[p, p] Sigma_D. For one ranking, sum_j<k (phi_j - phi_k)(phi_j - phi_k)' = K sum_k (phi_k - mean)(phi_k - mean)'."""
    width = data.design.width
    total = torch.zeros(width, width, dtype=torch.float64, device=data.device)
    for chunk in data:
        owner = torch.repeat_interleave(torch.arange(len(chunk.sizes), device=data.device), chunk.sizes)
        mean = torch.zeros(len(chunk.sizes), width, dtype=torch.float64, device=data.device)
        mean.index_add_(0, owner, chunk.z)
        centred = chunk.z - (mean / chunk.sizes[:, None])[owner]
        total.addmm_(centred.T, centred * (2 / (chunk.sizes.double() - 1))[owner, None])
    return total / len(data.design.places)


def _score_variance(data: Standardised, objective: Objective, w: torch.Tensor) -> torch.Tensor:
    """[p, p] sum over G prompts of the outer product of the summed gradients of their rankings, times G / (G - 1). Read prompt
    by prompt, so that the gradients of one chunk's prompts are all that is held."""
    groups = data.design.groups
    prompts = len(set(groups))
    if prompts < 2:
        raise ValueError("covariance 'sandwich' compares prompts, and these rankings are all of one; use 'fisher'")
    order = sorted(range(len(groups)), key=groups.__getitem__)
    total = torch.zeros(len(w), len(w), dtype=w.dtype, device=data.device)
    last, carried = groups[order[0]], torch.zeros_like(w)  # a prompt may go on in the next chunk
    for chunk in Standardised(data.design.take(order), data.by, data.device, keep=False):
        rewards = (chunk.z @ w).requires_grad_()
        (slope,) = torch.autograd.grad(objective(rewards, chunk.ranks, chunk.lists)[0], rewards)
        own = [groups[order[i]] for i in chunk.lists.tolist()]
        numbers = {group: i for i, group in enumerate(sorted({last, *own}))}
        scores = torch.zeros(len(numbers), len(w), dtype=w.dtype, device=data.device)
        scores[0] = carried
        owner = torch.tensor([numbers[group] for group in own], device=data.device)
        scores.index_add_(0, owner, chunk.z * slope[:, None])
        total += scores[:-1].T @ scores[:-1]
        last, carried = max(numbers), scores[-1]
    return (total + torch.outer(carried, carried)) * (prompts / (prompts - 1))
