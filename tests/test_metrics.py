import json
import math
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from persona_dspy.core import Interaction, ResponseKind, metrics
from persona_dspy.data import get_task, infer_task
from persona_dspy.errors import InputError

LABELS = ("red", "green", "blue")
pairs = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from((*LABELS, "other", ""))), min_size=1, max_size=30)
ratings = st.lists(st.tuples(st.integers(1, 5), st.one_of(st.integers(-3, 9), st.text(max_size=4))), min_size=1)
prose = st.text(alphabet="ab c.", max_size=20)


@settings(deadline=None)
@given(pairs)
def test_labels_as_sklearn_has_them(items):
    golds, answers = [g for g, _ in items], [a for _, a in items]
    assert metrics.accuracy(golds, answers) == pytest.approx(accuracy_score(golds, answers))
    expected = f1_score(golds, answers, labels=list(LABELS), average="macro", zero_division=0)
    assert metrics.macro_f1(golds, answers, LABELS) == pytest.approx(expected)


@settings(deadline=None)
@given(pairs, st.randoms(use_true_random=False))
def test_order_of_items_does_not_matter(items, random):
    shuffled = random.sample(items, len(items))
    for function in (metrics.accuracy, lambda g, a: metrics.macro_f1(g, a, LABELS), metrics.rouge1, metrics.rougeL):
        first = function([g for g, _ in items], [a for _, a in items])
        second = function([g for g, _ in shuffled], [a for _, a in shuffled])
        assert first == pytest.approx(second)


@settings(deadline=None)
@given(pairs)
def test_accuracy_is_the_mean_of_exact_match(items):
    golds, answers = [g for g, _ in items], [a for _, a in items]
    each = [metrics.exact_match(g, a) for g, a in items]
    assert metrics.accuracy(golds, answers) == pytest.approx(sum(each) / len(each))


@settings(deadline=None)
@given(ratings)
def test_ratings_are_bounded_and_ordered(items):
    golds, answers = [str(g) for g, _ in items], [str(a) for _, a in items]
    mae, rmse = metrics.mae(golds, answers), metrics.rmse(golds, answers)
    assert 0 <= mae <= rmse + 1e-12 <= 4 + 1e-9
    near = [metrics.closeness(g, a, 1, 5) for g, a in zip(golds, answers, strict=True)]
    assert all(0 <= n <= 1 for n in near)
    if all(metrics.parse_rating(a, 1, 5) is not None for a in answers):
        assert sum(near) / len(near) == pytest.approx(1 - mae / 4)


@pytest.mark.parametrize(("gold", "error"), [("1", 4), ("2", 3), ("3", 2), ("4", 3), ("5", 4)])
@pytest.mark.parametrize("answer", ["", "five", "nan", "inf", "-1", "6"])
def test_what_is_no_rating_counts_as_the_far_end(gold, error, answer):
    assert metrics.mae([gold], [answer]) == metrics.rmse([gold], [answer]) == error
    assert metrics.closeness(gold, answer, 1, 5) == 0


def test_rmse_by_hand():
    assert metrics.rmse(["1", "5"], ["2", "2"]) == pytest.approx(math.sqrt((1 + 9) / 2))


def test_a_label_nobody_used_pulls_macro_f1_down_as_in_lamp():
    assert metrics.macro_f1(["red"], ["red"], LABELS) == pytest.approx(1 / 3)


@settings(deadline=None)
@given(prose, prose)
def test_text_overlap_is_symmetric_bounded_and_full_on_itself(a, b):
    assert 0 <= metrics.text_overlap(a, b) <= 1
    assert metrics.text_overlap(a, b) == pytest.approx(metrics.text_overlap(b, a))
    assert metrics.rougeL([a], [b]) <= metrics.rouge1([a], [b]) + 1e-12
    if any(c in "ab" for c in a):
        assert metrics.text_overlap(a, a) == 1


@settings(deadline=None)
@given(prose, prose)
def test_rouge_l_is_to_the_bit_that_of_the_official_package(a, b):
    package = metrics._scorer("rougeL", False).score(a, b)["rougeL"].fmeasure
    assert metrics.rouge_scores("rougeL", [f"{a} "], [b]) == [package]
    assert metrics._f1("rougeL", a, b, any_script=False) == package


def test_texts_of_any_length_are_scored_in_time():
    long = [f"w{n}" for n in range(30_000)]
    start = time.thread_time()
    assert metrics.text_overlap(" ".join(long), " ".join(reversed(long))) < 0.001
    assert metrics.text_overlap(" ".join(long), " ".join(["other", *long])) > 0.999
    listed = [json.dumps(words) for words in (long, long[::-1])]
    assert ResponseKind.of(list[str]).score(*listed) == 1
    assert time.thread_time() - start < 3


def test_official_figures_of_texts_of_any_length_are_there_in_time():
    long = [f"w{n}" for n in range(40_000)]
    start = time.thread_time()
    assert metrics.rouge_scores("rougeL", [" ".join(long)], [" ".join(long[:10_000])]) == [0.4]  # every word counts
    assert metrics.meteor([" ".join(long[:4_000])], [" ".join(long[4_000:8_000])]) == 0
    with pytest.warns(UserWarning, match="80,000 words: its first and its last 25,000 count"):
        assert metrics.rouge_scores("rougeL", [" ".join(long)], [" ".join(long + long)]) == [pytest.approx(8 / 9)]
    assert time.thread_time() - start < 5


def test_rouge_does_not_stem():
    assert metrics.rouge1(["tests"], ["testing"]) == 0


@pytest.mark.parametrize("function", [metrics.accuracy, metrics.mae, metrics.rmse, metrics.rouge1, metrics.rougeL])
def test_empty_and_uneven_lists_are_refused(function):
    with pytest.raises(InputError, match="at least one"):
        function([], [])
    with pytest.raises(InputError, match="2 golds and 1 answer:"):
        function(["1", "2"], ["1"])


def test_bad_golds_labels_and_ranges_are_refused():
    with pytest.raises(InputError, match="gold 'x': expected one of red"):
        metrics.macro_f1(["x"], ["red"], LABELS)
    with pytest.raises(InputError, match="each once"):
        metrics.macro_f1(["red"], ["red"], ["red", "red"])
    with pytest.raises(InputError, match="gold '9': expected a number from 1 to 5"):
        metrics.mae(["9"], ["1"])
    with pytest.raises(InputError, match="low < high"):
        metrics.closeness("1", "1", 5, 5)


def test_every_corpus_metric_has_a_direction():
    assert set(metrics.HIGHER_IS_BETTER) <= set(metrics.__all__)


@pytest.mark.parametrize(
    "text",
    [
        "тихий фильм",
        "静かな映画",
        "安静的电影",
        "조용한 영화",
        "ภาพยนตร์เงียบ",
        "فيلم هادئ",
        "सुंदर फ़िल्म",
        "ήσυχη ταινία",
        "café à l’été",
        "!!!",
        "👍",
        "×",
    ],
)
def test_equal_texts_score_1_in_every_script_and_others_less(text):
    assert metrics.text_overlap(text, f" {text} ") == 1
    assert metrics.text_overlap(text, "another answer") == 0
    if len(text.split()) > 1 or len(text) > 4:
        assert metrics.rougeL([text], [text]) == metrics.rouge1([text], [text]) == 1
        assert 0 < metrics.text_overlap(text, f"{text} {text[::-1]}") < 1
    for score in (metrics.chrf, metrics.meteor):
        assert score([text], [f" {text} "]) == 1, "equal texts"
        assert score([text], ["zzz"]) == 0 == score([text], [""]) == score([""], [""])
        assert score([text, text], [text, "zzz"]) == 0.5
        if len(text) > 1:
            assert 0 < score([text], [f"{text} {text[0]}"]) < 1


@pytest.mark.parametrize(
    ("text", "inflected"),
    [
        ("тихий фильм", "тихие фильмы"),
        ("静かな映画", "静かだった映画"),
        ("فيلم هادئ", "الفيلم الهادئ"),
        ("好 👍👍", "好 👍👎"),
    ],
)
def test_chrf_counts_a_word_in_another_form_in_part(text, inflected):
    assert 0.2 < metrics.chrf([text], [inflected]) < 1
    assert metrics.chrf([text], [text]) == metrics.chrf([unicodedata.normalize("NFD", text)], [text]) == 1


def test_chrf_is_the_formula():
    """Runs of 1 and 2 characters of "ab" and "abc": precision 2/3 and 1/2, recall 1 and 1; of longer ones none is
    shared by both, so they do not count; means, then F with recall weighing twice."""
    precision, recall = (2 / 3 + 1 / 2) / 2, 1
    assert metrics.chrf(["ab"], ["abc"]) == pytest.approx(5 * precision * recall / (4 * precision + recall))


def test_free_text_of_one_s_own_is_judged_by_chrf_and_lamp_s_by_rouge():
    texts = ["Сегодня тихо.", "Завтра будет шумно, наверное.", "Где мой зонт?"]
    past = [Interaction(user_id="u", query=f"q{n}", response=text) for n, text in enumerate(texts)]
    task = infer_task(past)
    assert task.metrics == ("chrf", "rouge1", "rougeL") and get_task("lamp-4").metrics == ("rouge1", "rougeL")
    assert task.evaluate(texts, texts) == dict.fromkeys(task.metrics, 1.0)
    assert task.official(texts, texts)["chrf"] == 1


def test_words_of_any_script_count_each():
    assert metrics.text_overlap("тихий фильм", "тихий вечер") == 0.5
    assert metrics.text_overlap("静かな映画", "静かな夜") == pytest.approx(2 * 2 / (4 + 3)), "静か and かな are shared"
