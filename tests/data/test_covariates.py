import math

import numpy as np
import pytest

from kwise.data.covariates import COVARIATES, covariates, label

TEXT = """# Title

- one
- two
* three
1. four
2) five
not - a list, nor 3. this

**bold** and **also bold**, not ** this

```python
x = 1
```
"""


@pytest.mark.parametrize(
    ("name", "count"), [("length", len(TEXT)), ("lists", 5), ("headings", 1), ("bold", 2), ("code", 2)]
)
def test_counts_are_those_made_by_hand_under_a_logarithm(name, count):
    assert covariates([name], [TEXT]).tolist() == [[pytest.approx(math.log(1 + count))]]


@pytest.mark.parametrize("name", COVARIATES)
def test_an_empty_text_has_none_of_anything(name):
    assert covariates([name], [""]).tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", 1),
        ("As an AI language model, I have no opinions.", 1),
        ("I cannot provide that.", 1),
        ("I\u2019m sorry, but I can\u2019t.", 1),
        ("Sure! Here is how.", 0),
        ("You can say: it cannot be done.", 0),
        ("A long story. " * 30 + "I can't go on.", 0),
    ],
)
def test_a_refusal_is_one_that_begins_the_answer(text, refuses):
    assert covariates(["refusal"], [text]).tolist() == [[refuses]]


def test_patterns_of_the_users_own_are_counted_and_columns_keep_their_order():
    found = covariates(["shouts=!+", "length"], ["Yes!! No!", "quiet"])
    np.testing.assert_allclose(found, np.log1p([[2, 9], [0, 5]]))
    assert label("shouts=!+") == "shouts"


def test_no_covariates_are_no_columns():
    assert covariates([], ["a", "b"]).shape == (2, 0)


@pytest.mark.parametrize(
    ("name", "message"), [("lenght", "unknown covariate 'lenght'; known: length"), ("bad=(", "no regular expression")]
)
def test_what_is_no_covariate_is_refused_in_words(name, message):
    with pytest.raises(ValueError, match=message):
        covariates([name], ["a"])


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("flattery", "What a great idea, and you're absolutely right!", True),
        ("flattery", "The right answer to a question of taste is good.", False),
        ("tables", "a | b\n--- | ---\n1 | 2", True),
        ("tables", "above\n\n---\n\nbelow", False),
        ("emoji", "Well done \U0001f600", True),
        ("emoji", "naïve café \u2013 “quoted” →", False),
    ],
)
def test_flattery_tables_and_emoji_are_told_from_what_looks_like_them(name, text, found):
    assert (covariates([name], [text])[0, 0] > 0) == found
