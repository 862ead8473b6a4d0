"""A tiny reward model's folder, and rewards by its own ``score``, one conversation at a time."""

import pytest
import torch
from tiny_models import tiny_model

from kwise import RewardModel
from kwise.model.calibrated import Calibration
from kwise.model.reward_model import Settings
from kwise.model.uncertainty import Uncertainty


@pytest.fixture
def folder(tokenizer, tmp_path):
    model = tiny_model(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, problem_type="regression")
    calibration = Calibration(temperature=2.0, centre=0.5, length_slope=0.25)
    rewards = RewardModel(model, tokenizer, Settings(512, calibration=calibration))
    head = model.score.weight.detach()[0]
    root = torch.randn(len(head), len(head), generator=torch.Generator().manual_seed(1)) / 10
    rewards.uncertainty = Uncertainty(root, torch.zeros(len(head)), head, {"kind": "fisher"})
    rewards.save_pretrained(tmp_path / "rewards")
    return str(tmp_path / "rewards")


@pytest.fixture
def alone(folder):
    """``alone(prompt, answer)``: the reward of one response by itself."""
    model = RewardModel.from_pretrained(folder)
    return lambda prompt, answer: model.score(prompt, [answer])[0]
