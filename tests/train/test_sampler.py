import pytest

from kwise.train.sampler import StepSampler


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_every_ranking_is_used_once_an_epoch_in_the_same_steps_for_any_number_of_processes(num_processes):
    lengths = [10 * i + 1 for i in range(11)]
    samplers = [StepSampler(lengths, 4, seed=3, process=p, num_processes=num_processes) for p in range(num_processes)]
    single = [sorted(step) for step in StepSampler(lengths, 4, seed=3)]
    steps = [sorted(i for share in shares for i in share) for shares in zip(*samplers, strict=True)]
    assert steps == single
    assert sorted(i for step in steps for i in step) == list(range(11))
    assert len(steps) == len(samplers[0]) == 3


def test_the_order_changes_with_the_epoch_and_comes_back_with_it():
    sampler = StepSampler([1] * 20, 5, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert first != second
    assert list(sampler) == first
