import pytest
from stub import stub_reward_model


@pytest.fixture
def model(tokenizer):
    return stub_reward_model(tokenizer)
