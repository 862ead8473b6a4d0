"""What a calibration does to a reward, worked by hand."""

import math

import pytest

from kwise.model.calibrated import Calibration


def test_a_calibrated_reward_by_hand():
    # log(1 + 0) = 0 and log(1 + e^2 - 1) = 2: (5 - 0 - 1) / 2 = 2 and (5 - 0.5 * 2 - 1) / 2 = 1.5
    found = Calibration(temperature=2.0, centre=1.0, length_slope=0.5)
    assert found.apply([5.0], [0]) == [2.0]
    assert found.apply([5.0, 5.0], [0, 6]) == pytest.approx([2.0, (4 - 0.5 * math.log(7)) / 2])


def test_without_numbers_a_reward_stays_as_it_is():
    assert Calibration().apply([3.25, -1.5], [0, 900]) == [3.25, -1.5]


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": -1.5}, "temperature must be above 0"),
        ({"temperature": math.inf}, "temperature must be a finite number"),
        ({"centre": math.nan}, "centre must be a finite number"),
        ({"length_slope": "much"}, "length_slope must be a finite number"),
    ],
)
def test_numbers_that_cannot_be_applied_are_refused(numbers, problem):
    with pytest.raises(ValueError, match=problem):
        Calibration(**numbers)
