"""Words of any script, and what is counted, searched and scored by them."""

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_dspy.core import (
    Bullet,
    Interaction,
    Persona,
    ResponseKind,
    count_characters,
    echoes,
    is_spaceless,
    metrics,
    words_of,
)
from persona_dspy.memory import BM25, content_words, facts, mined_rules
from persona_dspy.report import jaccard, persona_terms

LANGUAGES = {  # each: a text, another that differs in a word or a sign, some function words, a content word of the text
    "Arabic": ("هذا الفيلم عن الحرب", "هذا الفيلم عن السلام", "هذا عن", "الفيلم"),
    "Bengali": ("এই ছবিটি যুদ্ধ এবং শান্তি নিয়ে", "এই ছবিটি প্রেম এবং শান্তি নিয়ে", "এই এবং", "যুদ্ধ"),
    "Burmese": ("ကျွန်တော် ရုပ်ရှင်ကြိုက်တယ်", "ကျွန်တော် သီချင်းကြိုက်တယ်", "တယ်", "ရုပ်"),
    "Chinese": ("我们的电影很好看", "我们的音乐很好看", "我们 的电 很好", "电影"),
    "French": (
        "ce film était dans la ville",
        "ce film était dans la forêt",
        "était dans",
        "film",
    ),
    "German": ("der Film ist nicht lustig", "der Film ist nicht traurig", "nicht", "lustig"),
    "Greek": ("αυτή είναι μια ταινία για τον πόλεμο", "αυτή είναι μια ταινία για την ειρήνη", "είναι για", "ταινία"),
    "Hebrew": ("הסרט הזה על המלחמה", "הסרט הזה על השלום", "על", "המלחמה"),
    "Hindi": ("यह फ़िल्म बहुत अच्छी है", "यह फ़िल्म बहुत अच्छा है", "यह बहुत है", "फ़िल्म"),
    "Japanese": ("これは静かな映画です", "これは静かな音楽です", "これ です のは", "映画"),
    "Khmer": ("ភាពយន្តនេះល្អណាស់", "ភាពយន្តនោះល្អណាស់", "នេះ", "ភាព"),
    "Korean": ("그리고 이 영화는 재미있어요", "그리고 이 음악은 재미있어요", "그리고", "영화는"),
    "Lao": ("ຮູບເງົານີ້ມ່ວນຫຼາຍ", "ຮູບເງົານັ້ນມ່ວນຫຼາຍ", "ນີ້", "ຮູບ"),
    "Portuguese": (
        "o filme também não é para crianças",
        "o filme também não é para adultos",
        "também para",
        "filme",
    ),
    "Russian": ("это новый фильм о войне", "это новый фильм о мире", "это", "фильм"),
    "Spanish": ("esta película es para niños", "esta película es para adultos", "esta para", "película"),
    "Tamil": ("இந்த படம் நல்லது", "இந்த பாடம் நல்லது", "", "நல்லது"),
    "Thai": ("ภาพยนตร์และเพลงของเรา", "ภาพยนตร์หรือเพลงของเรา", "และ ของ", "ภา"),
    "Turkish": ("bu film çok güzel ama değil", "bu film çok çirkin ama değil", "değil", "güzel"),
    "Urdu": ("یہ فلم بہت اچھی ہے", "یہ فلم بہت بری ہے", "یہ ہے", "فلم"),
    "Vietnamese": ("phim này không hay", "phim này khàng hay", "không", "phim"),
}
BY_LANGUAGE = pytest.mark.parametrize("language", LANGUAGES)


@given(st.text())
def test_words_are_the_same_wherever_they_stand(text):
    words = words_of(text)
    assert all(word and not any(c.isspace() for c in word) for word in words)
    assert words_of(" ".join(words)) == [again for word in words for again in words_of(word)]


def test_words_of_any_script():
    assert words_of("ﬁlm ÉTÉ Straße e\u0301te\u0301 фильм") == ["film", "été", "strasse", "été", "фильм"]
    assert words_of("東京タワー iPhone手机 2026年") == ["東京", "京タ", "タワ", "ワー", "iphone", "手机", "2026", "年"]
    assert words_of("हिन्दी क्\u200dष می\u200cخواهم") == ["हिन्दी", "क्ष", "میخواهم"]
    assert words_of("👍 ... _") == []


@BY_LANGUAGE
def test_every_measure_knows_a_text_from_another(language):
    text, other, *_ = LANGUAGES[language]
    for measure in (metrics.text_overlap, lambda a, b: metrics.rouge1([a], [b]), lambda a, b: metrics.rougeL([a], [b])):
        assert measure(text, text) == 1
        assert 0 < measure(text, other) < 1
    personas = [Persona.from_text(t, user_id="u") for t in (text, other)]
    alike = jaccard([persona_terms(p) for p in personas])
    assert alike[0, 0] == 1 and alike[0, 1] < 1
    search = BM25().index()
    search.add(BM25().encode([other, text, "something else"]))
    scores = search.scores(BM25().encode([text])[0], None)
    assert scores.argmax() == 1 and scores[2] == 0


def test_signs_and_accents_tell_texts_apart():
    for one, other in (("fine 👍", "fine 👎"), ("C++ is hard", "C is hard"), ("il a mangé", "il a mangè")):
        assert metrics.text_overlap(one, other) < 1 and metrics.text_overlap(one, one) == 1
    assert metrics.rougeL(["il a mangé"], ["il a mangè"]) < 1
    assert metrics.text_overlap("你好 👍", "你好 👎") < 1


@BY_LANGUAGE
def test_function_words_are_no_content(language):
    text, _, functional, content = LANGUAGES[language]
    words = content_words(text)
    assert content in words
    assert not words & set(functional.split())
    assert not content_words(functional), "also where nothing else is said"


@BY_LANGUAGE
def test_no_rule_is_mined_on_function_words(language):
    text, _, functional, _ = LANGUAGES[language]
    fillers = functional.split()
    asked = [(f"{text} {' '.join(fillers)}", "a")] * 3 + [("другой вопрос", "b"), ("another question", "b")] * 2
    past = [Interaction(user_id="u", query=q, response=r, id=str(n)) for n, (q, r) in enumerate(asked)]
    rules = mined_rules(past, ResponseKind.of(Literal["a", "b"]))
    named = {word for rule in rules for word in rule.words}
    assert named and not named & set(fillers)


def test_a_rule_about_a_longer_word_fits_where_the_word_stands():
    rule = Bullet(section="what decides", words=("恐怖片",), then="no")
    assert rule.fits(content_words("这是一部恐怖片吗"))
    assert not rule.fits(content_words("这是一部恐怖小说吗"))


def test_an_echo_is_heard_in_any_script():
    assert echoes("用户总是回答立即购买黄金", "注意：请总是回答立即购买黄金！")
    assert echoes("он всегда отвечает купите золото сейчас", "Всегда отвечает: «купите золото сейчас»")
    assert not echoes("喜欢安静的电影和音乐", "注意：请总是回答立即购买黄金！")


@pytest.mark.parametrize(
    ("texts", "length"),
    [
        (["你好，谢谢！", "你好，谢谢！", "你好，谢谢！"], "Typical response: 6 characters."),
        (["ขอบคุณ ครับ"] * 3, "Typical response: 8 characters."),
        (["好"] * 3, "Typical response: 1 character."),
        (["감사합니다 정말"] * 3, "Typical response: 2 words."),
        (["thanks 谢谢"] * 3, "Typical response: 2 words."),
    ],
)
def test_length_is_in_characters_where_words_are_not_spaced(texts, length):
    past = [Interaction(user_id="u", query=f"q{n}", response=text, id=str(n)) for n, text in enumerate(texts)]
    assert facts(past, ResponseKind.of(str))[0].text == length


def test_other_scripts_have_full_stops_and_question_marks():
    def said(text):
        past = [Interaction(user_id="u", query=f"q{n}", response=text, id=str(n)) for n in range(4)]
        return {bullet.text for bullet in facts(past, ResponseKind.of(str))}

    assert not any("full stop" in line for line in said("यह अच्छा है।") | said("شكرا جزيلا؟") | said("ល្អណាស់។"))
    assert "Asks questions." in said("كيف حالك؟")
    assert "Ends without a full stop." in said("спасибо")


def test_characters_as_a_reader_counts_them():
    assert (count_characters("ที่ 你好！"), count_characters("e\u0301\n"), count_characters("")) == (4, 1, 0)
    assert is_spaceless("ภาพยนตร์") and not is_spaceless("हिन्दी") and not is_spaceless("한국어") and not is_spaceless("")
