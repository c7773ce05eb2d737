"""Function words, which say nothing of a topic, in the language of a text: never a rule's word, never a group's name.

English: NLTK's list. Other languages: stopwords-iso, by the package ``stopwordsiso``. Lao, Khmer and Burmese, which it
lacks, and single characters of Chinese, of which it has too many: short lists of our own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from functools import lru_cache
from typing import Any

import regex

from persona_dspy.core import normalized

__all__ = ["function_words", "without_function_words"]

_ENGLISH_LIST = """
a about above after again against ain all am an and any are aren aren't as at be because been before being below
between both but by can couldn couldn't d did didn didn't do does doesn doesn't doing don don't down during each few
for from further had hadn hadn't has hasn hasn't have haven haven't having he her here hers herself him himself his
how i if in into is isn isn't it it's its itself just ll m ma me mightn mightn't more most mustn mustn't my myself
needn needn't no nor not now o of off on once only or other our ours ourselves out over own re s same shan shan't
she she's should should've shouldn shouldn't so some such t than that that'll the their theirs them themselves then
there these they this those through to too under until up ve very was wasn wasn't we were weren weren't what when
where which while who whom why will with won won't wouldn wouldn't y you you'd you'll you're you've your yours
yourself yourselves
"""
_ENGLISH = frozenset(_ENGLISH_LIST.split())
_LATIN = "de fr es pt it nl ca ro pl cs sk hr hu tr sv da no fi id ms tl vi sw"
_OTHER = "ru uk bg el he hy ar fa ur hi mr bn ko"
_SPACELESS = "zh ja th"
_OWN_SPACELESS = """
的 了 是 在 我 你 您 他 她 它 们 們 这 這 那 哪 和 与 與 或 及 就 都 也 很 吗 嗎 呢 吧 啊 呀 嘛 不 没 沒 有 把 被 让 讓
给 給 从 從 对 對 而 之 其 以 于 於 并 並 但 因 所 着 著 得 又 再 还 還 只 才 更 最 会 會 能 可 要 来 來 到 个 個 些
什 么 麼 怎 为 為 说 說 去
ที่ และ ก็ คือ ครับ ค่ะ นะ ผม ฉัน คุณ
ທີ່ ແລະ ເປັນ ໃນ ຂອງ ບໍ່ ມີ ໄດ້ ໄປ ມາ ນີ້ ນັ້ນ ກັບ ແຕ່ ຈະ ໃຫ້ ຂ້ອຍ ເຈົ້າ ລາວ ເຂົາ ວ່າ ຢູ່ ຈາກ ຫຼື ກໍ
និង នៃ ជា ដែល នៅ ក្នុង មាន ទៅ មក នេះ នោះ ដោយ ពី បាន ខ្ញុំ អ្នក គាត់ មិន ឬ ក៏ ដើម្បី សម្រាប់ របស់ ដល់ ទេ
သည် ကို မှာ ၏ များ နှင့် တွင် မှ သော ပါ ကြောင့် အတွက် ဒီ ထို ဤ ငါ ကျွန်တော် သူ တယ် ရဲ့ နဲ့ လည်း ၍
"""


def function_words(words: Collection[str]) -> frozenset[str]:
    """The function words among ``words`` (lower case), the words of one text: those of English and of the language that
    most of them are of, and those of other scripts than Latin.

    Example:
        >>> sorted(function_words("der film war nicht lustig".split())), sorted(function_words(["war", "and", "это"]))
        (['der', 'nicht', 'war'], ['and', 'это'])
    """
    latin, other = _other_lists()
    english = {word for word in words if word in _ENGLISH}
    foreign = {word: latin[word] for word in words if word in latin}
    found = english | {word for word in words if word in other or _without_accents(word) in other}
    if foreign:
        hits = Counter(language for languages in foreign.values() for language in languages)
        most = max(hits.values())
        if most > hits["en"]:  # else the text may as well be English, where the same letters can name a topic
            spoken = {language for language, times in hits.items() if times == most}
            found |= {word for word, languages in foreign.items() if spoken & languages}
    return frozenset(found)


def without_function_words(text: str) -> str:
    """``text`` with spaces where scripts without spaces between words have function words, and where it has hiragana,
    which mark grammar beside the kanji and katakana of a topic.

    Example:
        >>> without_function_words("我们的电影 映画を見た ok").split()
        ['电影', '映画', '見', 'ok']
    """
    return text if text.isascii() else _spaceless_function_words().sub(" ", text)


def _without_accents(word: str) -> str:
    """A Greek, Arabic or Hebrew word without accents or vowel points, which lists and people may leave out."""
    if word.isascii() or not regex.search(r"[\p{Greek}\p{Arabic}\p{Hebrew}]", word):
        return word
    return regex.sub(r"\p{M}", "", normalized(word, "NFD"))


@lru_cache(maxsize=1)
def _other_lists() -> tuple[dict[str, frozenset[str]], frozenset[str]]:
    """Words in Latin letters -> the languages whose function words they are; and those in other scripts."""
    latin: dict[str, set[str]] = {}
    for language in ["en", *_LATIN.split()]:
        for word in _listed(language):
            latin.setdefault(word, set()).add(language)
    other = {word for language in _OTHER.split() for word in _listed(language) if not regex.search(r"\p{Latin}", word)}
    return {word: frozenset(languages) for word, languages in latin.items()}, frozenset(other)


@lru_cache(maxsize=1)
def _spaceless_function_words() -> Any:
    listed = (word for language in _SPACELESS.split() for word in _listed(language))
    several = {word for word in listed if regex.fullmatch(r"[\p{L}\p{M}]{2,}", word)}
    longest_first = sorted(several | set(_OWN_SPACELESS.split()), key=lambda word: (-len(word), word))
    return regex.compile(rf"\p{{Hiragana}}+|(?:{'|'.join(longest_first)})(?!\p{{M}})")


def _listed(language: str) -> set[str]:
    from stopwordsiso import stopwords

    return {normalized(word, "NFC").lower() for word in stopwords(language)}
