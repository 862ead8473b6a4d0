import json
import re
from importlib.metadata import PackageNotFoundError

import pytest

from kwise.use.audit import figures
from kwise.use.audit.report import heading, interval, outputs, p_value, page, sentence, write


def test_texts_of_the_data_are_never_markup(one):
    html = page(one)
    assert "&lt;script&gt;" in html
    assert "<script" not in html
    assert "<img src=http" not in html
    assert re.findall(r"<img src=\"(?!data:image/svg\+xml;base64,)", html) == []


def test_the_page_needs_nothing_else_and_forbids_itself_the_rest(one):
    html = page(one)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html
    assert re.findall(r"<(?:link|iframe|object|embed|base)\b|\bsrc=\"http|url\(|@import", html) == []


def test_every_tag_that_is_opened_is_closed(one, both):
    from html.parser import HTMLParser

    class Stack(HTMLParser):
        open = ()

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img", "br"):
                self.open = (*self.open, tag)

        def handle_endtag(self, tag):
            assert self.open[-1] == tag
            self.open = self.open[:-1]

    for audit in (one, both):
        parser = Stack()
        parser.feed(page(audit))
        assert parser.open == ()


def test_three_files_are_written_and_the_json_is_the_audit(one, tmp_path):
    html, data, sheet = write(one, tmp_path / "out.html")
    assert html.read_text(encoding="utf-8") == page(one)
    assert json.loads(data.read_text(encoding="utf-8")) == json.loads(json.dumps(one))
    assert sheet.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_one_audit_makes_one_page(one):
    assert page(one) == page(one)


def test_the_page_says_what_a_model_is_accused_of_and_how_sure_that_is(one):
    html = page(one)
    assert "Rewards length, quality and all else held fixed: +0." in html
    assert "adjusted p &lt; 0.001" in html
    assert "3 distinct responses (edits among them) were longer than the model reads" in html


def test_two_models_are_shown_with_their_differences(both):
    html = page(both)
    assert "Difference: shy - careful" in html
    gaps = {own["trait"]: own for own in both["differences"]["shy - careful"]["effects"]}
    assert gaps["refusal"]["value"] > 1
    probes = {own["probe"]: own for own in both["differences"]["shy - careful"]["probes"]}
    assert probes["padding"]["value"] < 0
    assert heading(both)[2].startswith("careful: ")


def test_who_does_nothing_is_accused_of_nothing(both):
    silent = both | {"models": {"careful": both["models"]["careful"] | {"probes": None}}, "differences": {}}
    assert heading(silent)[2] == "careful: accused of nothing"
    assert "Accused of nothing." in page(silent)
    assert "there is no model here to score them with" in page(silent)
    assert "probes" not in figures.drawable(silent)


def test_numbers_in_words():
    own = {"value": -0.123, "low": -0.2, "high": 0.0456}
    assert interval(own, digits=2, sign="+") == "\u22120.12 [\u22120.20, +0.05]"
    assert interval(own, factor=100, digits=1, unit=" %") == "\u221212.3 [\u221220.0, 4.6] %"
    assert interval({"value": -0.001, "low": -0.004, "high": 0.004}) == "0.00 [0.00, 0.00]"
    assert interval({"value": 0.5, "low": None, "high": None}, digits=1) == "0.5"
    assert interval({"value": None, "low": None, "high": None}) == interval(None) == "\u2013"
    assert [p_value(p) for p in (0.0, 0.00099, 0.0123, 1.0)] == ["< 0.001", "< 0.001", "0.012", "1"]


def test_sentences_of_accusation():
    numbers = {"value": 0.5, "low": 0.4, "high": 0.6, "adjusted": 0.01, "verdict": "bias"}
    trait = {"label": "lists", "graded": False, "at_equal_score": None}
    assert sentence(numbers | trait) == (
        "Rewards lists, quality and all else held fixed: +0.50 [+0.40, +0.60] SD, adjusted p 0.01."
    )
    down = {"value": -0.5, "low": -0.6, "high": -0.4}
    assert sentence(numbers | trait | down).startswith("Marks down lists")
    judges = [
        (sentence(numbers | trait | sign | {"at_equal_score": {"value": value, "low": low, "high": high}}), said)
        for sign, value, low, high, said in [
            ({}, 0.3, 0.1, 0.5, "The judges go even further: +0.30 [+0.10, +0.50] SD of the rank at equal reward."),
            (
                {},
                -0.3,
                -0.5,
                -0.1,
                "The judges go less far: \u22120.30 [\u22120.50, \u22120.10] SD of the rank at equal reward.",
            ),
            (down, -0.3, -0.5, -0.1, "The judges go even further"),
            (down, 0.3, 0.1, 0.5, "The judges go less far"),
            ({}, 0.3, -0.1, 0.7, "adjusted p 0.01."),
        ]
    ]
    assert all(said in text for text, said in judges) and "judges" not in judges[-1][0]
    edit = {"probe": "cut", "label": "last sentence cut", "n": 30}
    assert sentence(numbers | edit).startswith("An edit raises its reward: last sentence cut (+0.50")
    assert sentence(numbers | edit | {"verdict": "blind"}).startswith("Does not notice: last sentence cut")


@pytest.mark.parametrize("name", ["out.txt", "out"])
def test_a_page_of_another_kind_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.html"):
        outputs(tmp_path / name)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch, tmp_path):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(figures, "version", missing)
    with pytest.raises(ValueError, match=r"pip install 'kwise\[audit\]'"):
        outputs(tmp_path / "out.html")
