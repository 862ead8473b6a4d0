import pickle

from kwise.records import DataError


def test_an_error_raised_in_another_process_says_the_same():
    error = DataError("no number", file="a.jsonl", line=3, field="rank")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "a.jsonl, line 3, field 'rank': no number"
    assert (again.problem, again.file, again.line, again.field) == ("no number", "a.jsonl", 3, "rank")
