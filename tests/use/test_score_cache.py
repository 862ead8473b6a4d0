import json
import os
import resource
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from command import run
from tokenizers import AddedToken

from kwise.data.cache import cache_folder
from kwise.model import backbone
from kwise.model.attention import set_attention
from kwise.model.calibrated import Calibration
from kwise.model.reward_model import WINDOW, RewardModel, Settings
from kwise.records import EncodedRanking
from kwise.use.score_cache import FOLDER, RECORD, ScoreCache, conversation_key, model_hash


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A cache that is empty."""
    monkeypatch.setenv("KWISE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / FOLDER


@pytest.fixture
def model(base):
    network = backbone.from_causal_lm(base)
    torch.nn.init.normal_(network.score.weight)
    set_attention(network)
    return RewardModel(network.eval(), backbone.load_tokenizer(base), Settings(128))


@pytest.fixture
def forwards(monkeypatch):
    """The ids of every conversation that a model is run on."""
    run, plain = [], RewardModel.score_encoded

    def counted(self, rankings, *options):
        rankings = list(rankings)
        run.extend(tuple(item.prefix + suffix) for item in rankings for suffix in item.suffixes)
        return plain(self, rankings, *options)

    monkeypatch.setattr(RewardModel, "score_encoded", counted)
    return run


@pytest.fixture
def rankings(ranking):
    """Two windows and a half of prompts, two to four responses each, some of them alike."""
    count = 2 * WINDOW + WINDOW // 2
    return [ranking(f"question {i}", [f"answer {n * i % 7}" for n in range(2 + i % 3)]) for i in range(count)]


def silent(text):
    raise AssertionError(text)


def test_scores_are_the_same_bits_without_a_cache_with_an_empty_one_and_with_a_full_one(model, rankings, forwards):
    plain = model.score_rankings(rankings)
    count = len(forwards)
    assert len(set(forwards)) == count
    cold, warm = ScoreCache(model, silent), None
    assert cold.score_rankings(rankings) == plain
    assert (cold.found, cold.asked, len(forwards)) == (0, count, 2 * count)
    warm = ScoreCache(model, silent)
    seen = []
    assert warm.score_rankings(rankings, lambda done, total: seen.append((done, total))) == plain
    assert (warm.found, warm.asked, len(forwards)) == (count, count, 2 * count)
    assert seen == [(count, count)]


def test_what_was_cut_is_counted_from_the_cache_too(model, ranking):
    long = [ranking("q", ["short", "long " * 60])]
    assert model.score_rankings(long)[1] == 1
    assert [ScoreCache(model, silent).score_rankings(long)[1] for _ in range(2)] == [1, 1]


def test_progress_counts_known_conversations_at_once_and_scored_ones_by_windows(model, rankings):
    cache = ScoreCache(model, silent)
    cache.score_rankings(rankings[:WINDOW])
    known, seen = cache.asked, []
    cache.score_rankings(rankings, lambda done, total: seen.append((done, total)))
    assert seen[0][0] == known and seen[-1][0] == seen[-1][1]
    assert len(seen) == 3  # what is known, then the second window and the half one


def test_of_a_known_prompt_only_the_responses_that_are_not_known_are_run(model, ranking, forwards):
    cache = ScoreCache(model, silent)
    cache.score_rankings([ranking("q", ["one", "two"])])
    del forwards[:]
    asked = [ranking("q", ["three", "two", "four", "one"])]
    found, _ = cache.score_rankings(asked)
    assert len(forwards) == 2
    assert found[0] == pytest.approx(model.score_rankings(asked)[0][0], abs=1e-5)


def test_texts_that_the_model_cannot_tell_apart_are_run_once(base, model, ranking, forwards):
    tokenizer = backbone.load_tokenizer(base)
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m['content'] | trim }}<|im_end|>{% endfor %}"
    own = RewardModel(model.model, tokenizer, model.settings)
    found, _ = ScoreCache(own, silent).score_rankings([ranking("q", ["a", "a ", "b"]), ranking("q ", ["b", "a"])])
    assert len(forwards) == 2
    assert found[0][0] == found[0][1] == found[1][1] and found[0][2] == found[1][0]


def changed_weight(model):
    weight = model.model.base_model.layers[1].mlp.up_proj.weight.data
    weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))


def changed_buffer(model):
    model.model.base_model.rotary_emb.inv_freq[0] *= 2  # in no file


def changed_config(model):
    model.model.config.rms_norm_eps *= 2


def changed_setting(name, value):
    def change(model):
        setattr(model.settings, name, value)

    return change


CHANGES = {
    "weight": changed_weight,
    "buffer": changed_buffer,
    "config": changed_config,
    "dtype": lambda model: model.model.to(torch.bfloat16),
    "attention": lambda model: set_attention(model.model, "reference"),
    "max_length": changed_setting("max_length", 127),
    "truncation": changed_setting("truncation", "error"),
    "rule": changed_setting("reward_at", "card"),
    "template": lambda model: setattr(model.tokenizer, "chat_template", model.tokenizer.chat_template + " "),
    "tokenizer": lambda model: model.tokenizer.add_tokens(AddedToken("salt")),
    "bos": lambda model: setattr(model.tokenizer, "bos_token", "</s>"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_may_move_a_score_makes_another_model(model, name):
    before = model_hash(model)
    CHANGES[name](model)
    assert model_hash(model) != before


def test_precision_of_products_and_versions_and_code_make_another_model(model, monkeypatch, tmp_path):
    found = {model_hash(model)}
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
        found.add(model_hash(model))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "0")
        found.add(model_hash(model))
    with monkeypatch.context() as patch:
        patch.setattr("kwise.use.score_cache.__file__", str(tmp_path / "use" / "score_cache.py"))
        found.add(model_hash(model))
        (tmp_path / "model" / "attention").mkdir(parents=True)
        (tmp_path / "model" / "attention" / "rule.py").write_text("x = 1")
        found.add(model_hash(model))
    assert len(found) == 5


def test_what_moves_no_score_does_not(model, ranking, tmp_path):
    model.save_pretrained(tmp_path / "elsewhere")  # writes architecture and dtype into the config
    before = model_hash(model)
    model.settings.calibration = Calibration(temperature=2.0)
    model.score_rankings([ranking()])  # leaves nothing behind in the tokenizer either
    model.tokenizer(["a", "long text"], padding=True, truncation=True, max_length=3)
    assert model_hash(model) == before
    loaded = [RewardModel.from_pretrained(tmp_path / "elsewhere", device="cpu") for _ in range(2)]
    assert model_hash(loaded[0]) == model_hash(loaded[1])
    (tmp_path / "elsewhere").rename(tmp_path / "moved")
    assert model_hash(RewardModel.from_pretrained(tmp_path / "moved", device="cpu")) == model_hash(loaded[0])


def test_a_quantised_tensor_counts_by_all_it_is_made_of(model, monkeypatch):
    parts = {"codes": torch.zeros(3, dtype=torch.int8), "scale": torch.ones(1)}
    weight = SimpleNamespace(**parts, __tensor_flatten__=lambda: (list(parts), None))
    monkeypatch.setattr(model.model, "state_dict", lambda: {"weight": weight})
    before = model_hash(model)
    weight.scale = torch.full((1,), 2.0)
    assert model_hash(model) != before


def test_a_key_is_the_ids_of_the_whole_conversation_and_where_it_is_read():
    item = EncodedRanking([1, 2], [[3, 4], [5]], [1, 0], [0, 0])
    assert conversation_key(item, 0) == conversation_key(EncodedRanking([], [[1, 2, 3, 4]], [3], [0]), 0)
    others = [
        conversation_key(item, 1),
        conversation_key(replace(item, reward_at=[0, 0]), 0),
        conversation_key(replace(item, prefix=[2, 1]), 0),
        conversation_key(replace(item, prefix=[1]), 0),
    ]
    assert len({conversation_key(item, 0), *others}) == 5


def only_file(model):
    (file,) = (cache_folder() / FOLDER / model_hash(model)).iterdir()
    return file


def test_half_a_record_at_the_end_is_passed_over_left_to_its_writer_and_made_again(model, rankings, forwards):
    plain = model.score_rankings(rankings)
    ScoreCache(model, silent).score_rankings(rankings)
    file, said = only_file(model), []
    size = file.stat().st_size
    os.truncate(file, size - 7)
    del forwards[:]
    cache = ScoreCache(model, said.append)
    assert said == []
    assert file.stat().st_size == size - 7  # another process may be writing the rest
    assert cache.score_rankings(rankings)[0][0] == plain[0][0]
    assert len(forwards) == 1
    ScoreCache(model, silent)


def test_damaged_records_are_told_apart_from_sound_ones_said_and_made_again(model, rankings, forwards):
    plain, shortened = model.score_rankings(rankings)
    ScoreCache(model, silent).score_rankings(rankings)
    file, said = only_file(model), []
    content = bytearray(file.read_bytes())
    count = len(content) // RECORD
    content[2 * RECORD + 3] ^= 1  # a key
    content[5 * RECORD + 20] ^= 1  # a score
    content[9 * RECORD : 10 * RECORD] = bytes(RECORD)  # a hole, as a crash of the machine leaves
    file.write_bytes(content)
    del forwards[:]
    cache = ScoreCache(model, said.append)
    found = cache.score_rankings(rankings)
    assert said == [f"3 of {count} scores in {file} are damaged and made again; the file may be removed"]
    assert len(forwards) == 3
    assert found[1] == shortened
    for own, right in zip(found[0], plain, strict=True):
        assert own == pytest.approx(right, abs=1e-5)


def test_what_is_no_cache_at_all_is_not_believed(model, ranking, forwards):
    ScoreCache(model, silent).score_rankings([ranking()])
    only_file(model).write_bytes(b"\x00\xff" * 100)
    said = []
    assert ScoreCache(model, said.append).score_rankings([ranking()]) == model.score_rankings([ranking()])
    assert len(said) == 1 and "6 of 6 scores" in said[0]


def test_two_processes_at_once_lose_nothing(model, rankings, forwards):
    """Both begin before either has written, and write by turns, some of it the same."""
    one, two = ScoreCache(model, silent), ScoreCache(model, silent)
    for start in range(0, len(rankings), 8):
        one.score_rankings(rankings[start : start + 6])
        two.score_rankings(rankings[start + 3 : start + 8])
    del forwards[:]
    third = ScoreCache(model, silent)
    third.score_rankings(rankings)
    assert third.found == third.asked and not forwards


def test_a_folder_that_cannot_be_written_costs_the_cache_and_no_score(model, rankings, folder):
    folder.parent.mkdir()
    folder.write_text("in the way")
    said = []
    cache = ScoreCache(model, said.append)
    assert cache.score_rankings(rankings) == model.score_rankings(rankings)
    assert len(said) == 1 and said[0].startswith("scores are not kept from here on: ")
    cache.score_rankings(rankings)
    assert cache.found == cache.asked / 2  # in memory they are


def test_a_full_disk_costs_the_cache_and_no_score(model, rankings, forwards):
    plain = model.score_rankings(rankings)
    said, before = [], resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (RECORD + 9, before[1]))
    try:
        assert ScoreCache(model, said.append).score_rankings(rankings) == plain
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(said) == 1 and said[0].endswith("cannot be written (no space left)")
    after = ScoreCache(model, said.append)
    after.score_rankings(rankings)
    assert after.found == 1 and said[1:] == []


def test_scores_that_are_not_finite_are_returned_and_not_kept(model, ranking, monkeypatch):
    plain = RewardModel.score_encoded
    monkeypatch.setattr(RewardModel, "score_encoded", lambda self, rankings: iter([[1.0, float("nan"), float("inf")]]))
    found, _ = ScoreCache(model, silent).score_rankings([ranking("q", ["a", "b", "c"])])
    assert repr(found) == "[[1.0, nan, inf]]"
    assert [struct.unpack("<d", record[16:24]) for record in [only_file(model).read_bytes()]] == [(1.0,)]
    monkeypatch.setattr(RewardModel, "score_encoded", plain)
    again = ScoreCache(model, silent)
    again.score_rankings([ranking("q", ["a", "b", "c"])])
    assert (again.found, again.asked) == (1, 3)


@pytest.fixture
def files(model, tmp_path):
    """A saved model; a file of pairs; a file that shares half of them; a suite that shares some responses."""
    model.save_pretrained(tmp_path / "model")
    pairs = [{"prompt": f"question {i}", "chosen": f"answer {i}", "rejected": f"no {i % 5}"} for i in range(60)]
    for name, own in (("first", pairs[:40]), ("second", pairs[20:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    (tmp_path / "suite").mkdir()
    rows = [
        {"prompt": f"question {i}", "response_a": f"answer {i}", "response_b": "else", "winner": "model_a"}
        for i in range(10)
    ]
    (tmp_path / "suite" / "human.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = (tmp_path / "first.jsonl", tmp_path / "second.jsonl", f"starling:{tmp_path / 'suite'}")
    return (tmp_path / "model", *words)


DISTINCT = 60 * 2 + 10  # of the 170 conversations in all three


def test_eval_scores_nothing_twice_over_files_and_suites_and_says_what_it_knew(files, tmp_path, forwards):
    code, text = run("eval", *files, "--no-cache", "--json", tmp_path / "plain.json")
    assert code == 0 and "from the cache" not in text
    assert len(forwards) == 80 + 80 + 20
    assert not (tmp_path / "cache").exists()
    del forwards[:]
    code, text = run("eval", *files, "--json", tmp_path / "cold.json")
    assert code == 0 and "50 of 180 scores from the cache" in text
    assert len(forwards) == len(set(forwards)) == DISTINCT
    code, text = run("eval", *files, "--json", tmp_path / "warm.json")
    assert code == 0 and "180 of 180 scores from the cache" in text
    assert len(forwards) == DISTINCT
    plain, cold, warm = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("plain", "cold", "warm"))
    assert warm == cold
    assert cold[str(files[1])] == plain[str(files[1])]
    for name in plain:  # scores made in other company may differ in the last digits
        for split, metrics in plain[name].items():
            for metric, value in metrics.items():
                assert cold[name][split][metric] == pytest.approx(value, abs=1e-5), (name, split, metric)


def test_audit_knows_what_eval_scored_and_its_own_edits(files, tmp_path, forwards):
    pytest.importorskip("matplotlib")
    assert run("audit", *files[:2], "-o", tmp_path / "plain.html", "--no-cache")[0] == 0
    assert run("eval", *files[:2])[0] == 0
    del forwards[:]
    code, text = run("audit", *files[:2], "-o", tmp_path / "cold.html")
    assert code == 0, text
    edits = len(forwards)
    assert len(set(forwards)) == edits > 100
    code, text = run("audit", *files[:2], "-o", tmp_path / "warm.html")
    assert code == 0 and len(forwards) == edits
    total = text.split(" scores from the cache")[0].split()[-3:]
    assert total[0] == total[2]
    plain, cold, warm = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("plain", "cold", "warm"))
    assert warm == cold
    ((name, ours),) = cold["models"].items()
    assert ours == plain["models"][name] | {"probes": ours["probes"]}
    for a, b in zip(ours["probes"], plain["models"][name]["probes"], strict=True):
        assert (a["probe"], a["n"], a["verdict"]) == (b["probe"], b["n"], b["verdict"])
        assert a["value"] == pytest.approx(b["value"], abs=1e-5)


KILLED = """
import os, signal, sys
from kwise import cli
from kwise.model.reward_model import RewardModel
plain, log = RewardModel.score_encoded, sys.argv.pop(1)

def counted(self, rankings):
    rankings = list(rankings)
    found = list(plain(self, rankings))
    with open(log, "a") as file:
        file.writelines("x\\n" for item in rankings for _ in item.suffixes)
    counted.calls += 1
    if counted.calls == 5:  # scored and not yet written down: the worst moment
        os.kill(os.getpid(), signal.SIGKILL)
    yield from found

counted.calls = 0
RewardModel.score_encoded = counted
cli.app()
"""


def test_an_eval_that_is_killed_goes_on_and_its_figures_are_those_of_one_that_was_not(
    files, tmp_path, forwards, monkeypatch
):
    words = [str(word) for word in files]
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "log"), "eval", *words], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    before = len((tmp_path / "log").read_text().splitlines())
    # the first file's 40 pairs are three windows; of the second's the first is known, 12 pairs of the next are scored and kept,
    # and 8 of the last scored and lost
    in_flight = 2 * 8
    assert before == 80 + 2 * 12 + in_flight
    code, text = run("eval", *words, "--json", tmp_path / "resumed.json")
    assert code == 0, text
    assert before + len(forwards) == DISTINCT + in_flight
    monkeypatch.setenv("KWISE_CACHE", str(tmp_path / "another"))
    assert run("eval", *words, "--json", tmp_path / "whole.json")[0] == 0
    assert (tmp_path / "resumed.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
