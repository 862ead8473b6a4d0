from command import run
from rows_in_files import nectar_row, write


def test_data_check_of_a_sound_file_exits_0_and_tells_what_is_in_it(tmp_path):
    file = write(tmp_path / "nectar.jsonl", [nectar_row(i, k) for i, k in enumerate((2, 3, 7, 9))])
    code, text = run("data", "check", file)
    assert code == 0
    assert "2: 1, 3: 1, 7: 1, 9: 1" in text


def test_data_check_names_the_lines_of_each_defect_and_exits_1(tmp_path):
    rows = [nectar_row(i, 4, null=i == 2) for i in range(6)]
    file = write(tmp_path / "nectar.jsonl", [*rows, '{"prompt": "\\n\\nHuman: broken', nectar_row(8, 4)])
    code, text = run("data", "check", file)
    assert code == 1
    assert "line 3, field 'answers[3].rank': a rank must be a number, this is null" in text
    assert "line 7: not valid JSON" in text


def test_data_check_fix_writes_a_copy_that_passes(tmp_path):
    file = write(
        tmp_path / "nectar.jsonl", [nectar_row(0, 4), nectar_row(1, 4, null=True), "oops", nectar_row(2, 2, null=True)]
    )
    code, text = run("data", "check", file, "--fix", tmp_path / "clean.jsonl")
    assert code == 1 and "rows written: 2" in text
    assert run("data", "check", tmp_path / "clean.jsonl")[0] == 0
    assert run("data", "check", file, "--fix", tmp_path / "clean.jsonl")[0] == 1, (
        "an existing file must not be overwritten"
    )


def test_data_check_fix_that_keeps_no_row_is_an_error_and_leaves_no_file(tmp_path):
    file = write(tmp_path / "nectar.jsonl", [{"prompt": "p", "chosen": "same", "rejected": "same"}])
    code, text = run("data", "check", file, "--fix", tmp_path / "clean.jsonl")
    assert code == 1 and "no row is left after cleaning, so no copy is written" in text
    assert "rows with repeated answers removed: 1" in text
    assert not (tmp_path / "clean.jsonl").exists()
