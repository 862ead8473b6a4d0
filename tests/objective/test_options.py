import torch

from kwise.objective.options import by_number


def test_the_first_value_is_that_of_one_and_the_last_one_goes_on():
    found = by_number([5.0, 7.0, 11.0], torch.tensor([[1, 2], [3, 9]]), torch.float64)
    assert found.tolist() == [[5.0, 7.0], [11.0, 11.0]]
    assert found.dtype == torch.float64
    assert by_number((0.5,), torch.tensor([4, 1]), torch.float32).tolist() == [0.5, 0.5]
