import pytest
from tiny_models import tiny_model

from kwise import RewardModel
from kwise.model.reward_model import Settings


@pytest.fixture
def model(tokenizer, tmp_path):
    RewardModel(tiny_model(vocab_size=len(tokenizer)), tokenizer, Settings(128)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"
