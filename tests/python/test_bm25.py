"""BM25: terms in Turkish and English, vectors for a database, the index in memory; against a naive reference."""

from __future__ import annotations

import math
import sys
import threading
from collections import Counter

import numpy as np
import pytest
from conftest import run_python
from hypothesis import given, settings, strategies as st
from model_manager.errors import ArgumentError
from model_manager.semantic import BM25, BM25Index
from model_manager.semantic.bm25 import term_id
from model_manager.semantic.terms import query_terms, terms

CORPUS = [
    "E-104 hatası yağ basıncı düşükken görünür.",
    "E-105 hatası, motor ısınınca görünür; hata kodu panelde yazar.",
    "Yıllık izin formunu insan kaynaklarına verin.",
    "Servisler sabah yedide kapıdan kalkar. Servis saatleri panoda.",
    "The invoice was sent by e-mail; invoices are due on Friday.",
    "ve veya",
    "",
]


def naive(query, corpus, language, k1=1.2, b=0.75, average=None):
    """BM25 with the inverse document frequency of Lucene and Qdrant, without the constant factor k1 + 1."""
    documents = [terms(text, language) for text in corpus]
    average = average or sum(map(len, documents)) / len(documents)
    scores = []
    for words in documents:
        score = 0.0
        for term in query_terms(query, language):
            containing = sum(term in other for other in documents)
            rarity = math.log(1 + (len(documents) - containing + 0.5) / (containing + 0.5))
            count = words.count(term)
            score += rarity * count / (count + k1 * (1 - b + b * len(words) / average)) if count else 0
        scores.append(score)
    return scores


@pytest.mark.parametrize("language", ["turkish", "english", "auto"])
@pytest.mark.parametrize("query", ["E104 hatası", "servis saati", "invoice", "HATALAR izinler invoices", "ve"])
@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.5, 0.0), (2.0, 1.0)])
def test_scores_are_those_of_the_formula(language, query, k1, b):
    wanted = naive(query, CORPUS, language, k1, b)
    found = BM25Index(CORPUS, language, k1=k1, b=b).search(query, k=len(CORPUS))
    order = sorted((index for index, score in enumerate(wanted) if score > 0), key=lambda index: -wanted[index])
    assert [match.index for match in found] == order
    np.testing.assert_allclose([match.score for match in found], [wanted[index] for index in order], rtol=1e-5)
    assert [match.text for match in found] == [CORPUS[index] for index in order]


@pytest.mark.parametrize(("language", "text"), [("english", "to be or not to be"), ("turkish", "ve ya da")])
def test_stop_words_of_questions_count_where_those_of_texts_do(language, text):
    words = text.split()[:2]
    index = BM25Index([text, "invoice"], language, stop_words=False)
    assert [match.index for match in index.search(" ".join(words))] == [0]
    bm25 = BM25(language, stop_words=False)
    assert bm25.query(" ".join(words)).indices.tolist() == sorted(
        map(term_id, terms(" ".join(words), language, stop_words=False))
    )
    assert bm25.query(text).dot(bm25.document(text)) > 0
    assert BM25Index([text], language).search(text) == []
    assert BM25(language).query(text).indices.size == 0


@given(
    st.lists(st.lists(st.sampled_from(["ab", "cd", "ef", "gh", "e-1", "e-2"]), max_size=6).map(" ".join), max_size=8),
    st.lists(st.sampled_from(["ab", "cd", "ef", "xy", "e1"]), min_size=1, max_size=3).map(" ".join),
)
@settings(max_examples=20, deadline=None)
def test_scores_of_any_corpus(corpus, query):
    found = BM25Index(corpus, "english").search(query, k=20)
    wanted = naive(query, corpus, "english") if any(terms(text, "english") for text in corpus) else [0.0] * len(corpus)
    assert sorted(match.index for match in found) == [index for index, score in enumerate(wanted) if score > 0]
    for match in found:
        assert match.score == pytest.approx(wanted[match.index], rel=1e-5)


@pytest.mark.parametrize("language", ["english", "auto"])
def test_stop_words_that_stay_count_in_questions_too(language):
    texts = ["to be or not to be", "the cat", "a dog"]
    assert not BM25Index(texts, language).search("to be")
    found = BM25Index(texts, language, stop_words=False).search("to be")
    assert [(match.index, match.text) for match in found] == [(0, texts[0])]
    # The formula, with words that are split here: 2 of each in 6 words, in one of 3 texts.
    rarity = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    assert found[0].score == pytest.approx(2 * rarity * 2 / (2 + 1.2 * (1 - 0.75 + 0.75 * 6 / (10 / 3))), rel=1e-5)
    query = BM25(language, stop_words=False).query("to be")
    assert set(query.indices.tolist()) == {term_id("to"), term_id("be")}
    assert query.values.tolist() == [1.0, 1.0]
    assert BM25("english").query("to be").indices.tolist() == []


@pytest.mark.parametrize("language", ["turkish", "english"])
def test_vectors_and_the_rarity_of_a_database_give_the_same(language):
    """What Qdrant computes of the vectors: a product with the rarity of each term."""
    bm25 = BM25(language, k1=1.5, b=0.6, average_length=8)
    vectors = [bm25.document(text) for text in CORPUS]
    frequency = Counter(entry for vector in vectors for entry in vector.indices.tolist())
    query = bm25.query("E104 hatası servis invoices")
    wanted = naive("E104 hatası servis invoices", CORPUS, language, 1.5, 0.6, 8)
    for vector, score in zip(vectors, wanted, strict=True):
        weights = dict(zip(vector.indices.tolist(), vector.values.tolist(), strict=True))
        own = sum(
            weights.get(entry, 0) * math.log(1 + (len(CORPUS) - frequency[entry] + 0.5) / (frequency[entry] + 0.5))
            for entry in query.indices.tolist()
        )
        assert own == pytest.approx(score * 2.5, rel=1e-5)
        assert vector.indices.tolist() == sorted(set(vector.indices.tolist()))
    assert query.values.tolist() == [1.0] * len(query.indices)


def test_the_case_of_turkish():
    for one, other in (("ISITICI", "ısıtıcı"), ("İZİN", "izin"), ("IŞIK", "ışık"), ("I\u0307ZI\u0307N", "izin")):
        assert terms(one, "turkish") == terms(other, "turkish")
    assert terms("ISITICI", "turkish") != terms("isitici", "turkish")
    assert terms("INVOICE İ", "english") == terms("invoice i", "english")
    assert terms("INVOICE", "english") == ["invoic"]


@pytest.mark.parametrize("text", ["KIT-12", "kit-12", "KİT-12", "kıt-12", "KIT12", "kit 12 KIT12"])
def test_a_code_has_one_form_in_every_language(text):
    assert "kit12" in terms(text, "turkish")
    assert "kit12" in terms(text, "english")


def test_codes_keep_their_parts():
    assert terms("SKF 6204-2RS/C3", "turkish") == ["skf", "62042rsc3", "6204", "2rs", "c3"]
    assert terms("saat 08:30'da", "turkish") == ["saat", "0830", "08", "30"]
    assert terms("B12'nin", "turkish") == ["b12", "b", "12"]
    assert terms("e-mail", "english") == ["e", "mail"]
    # A joint at an end joins nothing.
    assert terms("_x __init__", "english") == ["x", "init"]


@pytest.mark.parametrize("language", ["turkish", "english", "auto"])
def test_a_code_is_found_however_its_joint_is_written(language):
    forms = ["E-104 yağ", "e104 su", "E 104 hava", "kutu"]
    index = BM25Index(forms, language)
    for query in ("E-104", "e104", "E 104"):
        assert sorted(match.index for match in index.search(query)) == [0, 1, 2]
        assert BM25Index(["E-105", query, "e106"], language).search("e104")[0].index == 1
    assert terms("e104 2RS M8", "english") == ["e104", "e", "104", "2rs", "2", "rs", "m8", "m", "8"]
    # Several places where a joint may stand belong to a hash or a key.
    assert terms("B2B a1b2c3", "english") == ["b2b", "a1b2c3"]


@pytest.mark.parametrize("language", ["turkish", "english", "auto"])
def test_names_with_an_apostrophe(language):
    texts = ["Call Mr. O'Brien.", "Call Mr. O'Neill.", "Mr. Brien is out.", "L'Oréal order", "L'Occitane order"]
    index = BM25Index(texts, language)
    found = {
        query: {match.index for match in index.search(query)} for query in ("O'Brien", "O’Brien", "Brien", "O'Neill")
    }
    assert found == {"O'Brien": {0, 2}, "O’Brien": {0, 2}, "Brien": {0, 2}, "O'Neill": {1}}
    assert index.search("O'Brien")[0].index == 0
    assert index.search("L'Oréal")[0].index == 3
    assert [match.index for match in index.search("oréal")] == [3]
    assert [match.index for match in BM25Index(["rock", "rock'n'roll", "caz"], language).search("rock'n'roll")] == [
        1,
        0,
    ]
    assert terms("5'10", language) == ["510", "5", "10"]


def test_apostrophes_before_suffixes():
    for one, other in (("İstanbul'dan", "İstanbul"), ("O'Brien'ın", "O'Brien"), ("Smith-O'Brien'ı", "Smith-O'Brien")):
        assert terms(one, "turkish") == terms(other, "turkish")
    assert terms("2024'te E-104'ün 3'e", "turkish") == ["2024", "e104", "e", "104", "3"]
    # After one letter the suffix may be a name. The letter stays a word, as in "the language C".
    assert terms("C'de", "turkish") == ["cde", "c"]
    for one, other in (("pump's", "pump"), ("O'BRIEN'S", "O'Brien"), ("they'd've", "they"), ("B12's", "B12")):
        assert terms(one, "english", stop_words=False) == terms(other, "english", stop_words=False)
    assert terms("I'm sure we're late, don't you'll it's", "english") == ["sure", "late", "don"]
    assert terms("L'Oréal o'clock", "english") == ["loréal", "oréal", "oclock", "clock"]


@pytest.mark.parametrize("language", ["turkish", "english", "auto"])
def test_lone_surrogates_are_no_letters(language):
    text = "\ud800 faturalar gecikti çünkü \udfff"
    assert terms(text, language) == terms("faturalar gecikti çünkü", language)
    assert [match.index for match in BM25Index(["iyi", text], language).search("faturalar \ud800")] == [1]
    assert BM25(language).document(text).indices.size > 0


@pytest.mark.parametrize(
    "forms",
    [
        ["makine", "makineler", "makinenin", "MAKİNELERİN"],
        ["hata", "hatalar", "hatanın"],
        ["fatura", "faturalar", "faturanın", "faturası"],
        ["kapı", "kapıdan", "kapılar"],
        ["bakım", "bakımı", "bakımları"],
        ["kargo", "kargom", "kargonuz"],
        ["İstanbul", "İstanbul'da", "İstanbul’dan"],
    ],
)
def test_forms_of_a_turkish_word_meet(forms):
    assert len({tuple(terms(word, "turkish")) for word in forms}) == 1, [terms(word, "turkish") for word in forms]


def test_stop_words():
    assert terms("bu ve şu için fatura", "turkish") == terms("fatura", "turkish")
    assert terms("the invoice is on the table", "english") == ["invoic", "tabl"]
    assert len(terms("the invoice", "english", stop_words=False)) == 2
    assert BM25("english", stop_words=False).document("the").indices.size == 1
    assert BM25("english").document("the").indices.size == 0


def test_auto_takes_the_language_of_a_document_and_both_for_a_question():
    turkish = "Çalışma saatleri ve servis değişti, lütfen panoya bakın."
    assert terms(turkish, "auto") == terms(turkish, "turkish")
    assert terms("The working hours changed.", "auto") == terms("The working hours changed.", "english")
    index = BM25Index([turkish, "The working hours changed."], "auto")
    assert [match.index for match in index.search("servisler")] == [0]
    assert [match.index for match in index.search("work")] == [1]


@pytest.mark.parametrize(
    ("text", "queries"),
    [
        ("THIS INVOICE IS DUE ON FRIDAY", ["invoice", "INVOICE", "Invoices", "friday"]),
        ("INVOICE", ["invoice", "Invoice"]),
        ("Invoice", ["invoice", "INVOICE"]),
        ("WIFI", ["wifi", "WiFi"]),
        ("EXIT", ["exit", "exits"]),
        ("SİPARİŞ", ["sipariş", "Siparişler"]),
        ("ISI", ["ısı", "ISI"]),
        ("ILIK SU", ["ılık", "su"]),
        ("KAPILAR VE MASALAR", ["kapı", "masa"]),
    ],
)
def test_capitals_are_found_in_both_languages(text, queries):
    index = BM25Index([text, "another text", "başka bir metin"], "auto")
    assert {query: [match.index for match in index.search(query)] for query in queries} == {one: [0] for one in queries}


def test_capitals_add_no_stop_words():
    assert terms("THIS IS WITH IT", "auto") == []
    assert terms("I think it is an invoice", "auto") == terms("think invoice", "english")
    assert terms("THIS IS IT", "auto", stop_words=False) == terms("this is it", "english", stop_words=False)
    # Only where both languages are read is IS no Turkish word.
    assert terms("IS", "turkish") == ["ıs"]


def test_a_capital_i_of_a_text_that_is_turkish_otherwise():
    text = "ISITICI çalışmıyor"
    assert terms(text, "auto") == terms(text, "turkish")


def test_ten_matches_without_a_number_and_no_weight_of_repetitions():
    assert len(BM25Index(["a b"] * 12, "english").search("b")) == 10
    # With k1=0 a term counts once, however often it stands there.
    found = BM25Index(["b b b b", "b c", "d"], "english", k1=0).search("b")
    assert [match.score for match in found] == pytest.approx([found[0].score] * 2)
    assert BM25("english", k1=0).document("b b b").values.tolist() == [1.0]


def test_marks_do_not_split_words():
    for language in ("turkish", "english", "auto"):
        assert terms("İZMİR".lower(), language) == terms("İzmir", language) == terms("izmir", language)
        assert terms("I\u0307ZMI\u0307R", language) == terms("izmir", language)
        assert terms("q\u0307x", language) == ["q\u0307x"]
        assert len(terms("हिन्दी में", language, stop_words=False)) == 2
    assert terms("E-104\ufe0f", "turkish") == terms("E-104", "turkish")
    index = BM25Index(["İZMİR ŞUBESİ".lower(), "another"], "auto")
    assert [match.index for match in index.search("İzmir")] == [0]


def test_entries_do_not_depend_on_the_process():
    assert term_id("fatura") == 872_613_846
    code = "from model_manager.semantic.bm25 import term_id; print(term_id('fatura'))"
    assert run_python(code, PYTHONHASHSEED="7").stdout.strip() == str(term_id("fatura"))


def test_equal_scores_are_in_the_order_of_the_corpus():
    assert [match.index for match in BM25Index(["a b", "x", "b a", "a b"], "english").search("b", k=2)] == [0, 2]


def test_threads_share_the_words():
    """PyStemmer's objects must not be shared."""
    wanted, wrong = terms(CORPUS[1], "turkish"), []
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:

        def work():
            wrong.extend(1 for _ in range(30) if terms(CORPUS[1], "turkish") != wanted)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong


@pytest.mark.parametrize(
    ("call", "param"),
    [
        (lambda: BM25("german"), "language"),
        (lambda: BM25(k1=-1), "k1"),
        (lambda: BM25(k1=float("nan")), "k1"),
        (lambda: BM25(b=1.5), "b"),
        (lambda: BM25(average_length=0), "average_length"),
        (lambda: BM25Index([], "german"), "language"),
        (lambda: BM25Index(["a"]).search(" "), "query"),
        (lambda: BM25Index(["a"]).search("a", k=0), "k"),
    ],
)
def test_wrong_arguments_are_named(call, param):
    with pytest.raises(ArgumentError) as error:
        call()
    assert error.value.param == param


def test_wrong_types():
    for call in (lambda: BM25Index("text"), lambda: BM25Index([1]), lambda: BM25().query(None)):
        with pytest.raises(TypeError):
            call()


def test_without_anything_to_find():
    assert BM25Index([]).search("a") == []
    assert BM25Index(["", "ve"]).search("a") == []
    assert BM25Index(["fatura"]).search("kargo") == []
    assert len(BM25Index(["a", "b"])) == 2
    assert repr(BM25Index(["a"])) == "<BM25Index 1 texts, turkish>"
    assert BM25("turkish") == BM25("turkish") != BM25("turkish", k1=2)
    assert len({BM25("turkish"), BM25("turkish"), BM25("english")}) == 2


def test_the_missing_extra_is_named():
    code = """
import sys
sys.modules["Stemmer"] = None
from model_manager.semantic import BM25
try:
    BM25().document("fatura")
except ImportError as error:
    print(error)
"""
    assert "pip install 'model-manager-rs[bm25]'" in run_python(code).stdout
