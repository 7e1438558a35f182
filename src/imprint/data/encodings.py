"""Which encoding a text that is not UTF-8 most likely has: the one in which it reads like a language.

That a codec can decode the bytes says little: nearly all decode nearly everything. What tells is how much
of what comes out are the characters that texts of its language are full of.
"""

from __future__ import annotations

import re
import string
from typing import NamedTuple

_SIMPLIFIED = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行"
    "所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日者意无力它"
    "与长把机十民第公此已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或"
    "新己制身果加西月话合回特代内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条"
    "平系气题活更别打女变四神总何电数安少报才结反受目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队"
    "形社便空决治展马科司五基眼书非则听白却界达光放强即像难且权思王象完设式色路记南品住告类求据程北边死该交规万"
    "取拉格望觉术领共确传师观清今切院让识候带导争运"
)
_TRADITIONAL = (
    "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年過發後作裡用道行"
    "所然家種事成方多經麼去法學如都同現當沒動面起看定天分還進好小部其些主樣理心她本前開但因只從想實日者意無力它"
    "與長把機十民第公此已工使情明性知全三又關點正業外將兩高間由問很最重並物手應戰向頭文體政美相見被利什二等產或"
    "新己制身果加西月話合回特代內信表化老給世位次度門任常先海通教兒原東聲提立及比員解水名真論處走義各入幾口認條"
    "平系氣題活更別打女變四神總何電數安少報才結反受目太量再感建務做接必場件計管期市直德資命山金指克許統區保至隊"
    "形社便空決治展馬科司五基眼書非則聽白卻界達光放強即像難且權思王象完設式色路記南品住告類求據程北邊死該交規萬"
    "取拉格望覺術領共確傳師觀清今切院讓識候帶導爭運"
)
_HANGUL = (
    "이다는을에의가고하지은어사로한기그자나리스해시인도를일것대들서있아정여수라과전부보만면주상구장제게원소적화안오"
    "경생국세무마성신동조모으치년용않없진비러관계물니습드미으된할했었우람음학분당내방말중트현위까문때야와같거였발회공"
    "연려알요설간행네데차금체직못두저번집입속반업교식활질단명토양남민개점산재결강각력평특건선프답녕함께뷰겠무엇"
)
_KANA = "".join(map(chr, (*range(0x3041, 0x3097), *range(0x30A1, 0x30FD)))) + "日本人何問答見"
_CJK_MARKS = ",。、?!:;「」()《》“”"
_CYRILLIC = "оеаинтсрвлкмдпуяыьгзбчйхжшюцэё"
_WESTERN = "éèêëàâäáãåçñöòóôõøüùúûîíìïßæœÉÀÄÖÜÅØÇÑ’‘“”„–—…«»¿¡€°§"
_CENTRAL = "ąćęłńóśźżčďěňřšťůžýáéíúôäĺľŕőűöüăşţâîđ„”’–…ŁŚŻŹĆČŘŠŽÓÁÉÍÖÜ"


class Candidate(NamedTuple):
    """iconv's name of an encoding, Python's, and the characters that texts in it are full of."""

    name: str
    codec: str
    common: frozenset[str]


def _of(name: str, codec: str, *common: str) -> Candidate:
    return Candidate(name, codec, frozenset("".join(common)))


_DOUBLE = (
    _of("GB18030", "gb18030", _SIMPLIFIED, _CJK_MARKS),
    _of("BIG5", "big5", _TRADITIONAL, _CJK_MARKS),
    _of("SHIFT_JIS", "cp932", _KANA, _CJK_MARKS),
    _of("EUC-JP", "euc_jp", _KANA, _CJK_MARKS),
    _of("EUC-KR", "cp949", _HANGUL),
)
_CYRILLICS = (_of("WINDOWS-1251", "cp1251", _CYRILLIC), _of("KOI8-R", "koi8_r", _CYRILLIC))
_LATIN = (_of("WINDOWS-1252", "cp1252", _WESTERN), _of("WINDOWS-1250", "cp1250", _CENTRAL))
_ALL = "".join((_SIMPLIFIED, _TRADITIONAL, _HANGUL, _KANA, _CJK_MARKS, _CYRILLIC, _WESTERN))
_WIDE = tuple(
    _of(name, codec, _ALL, string.ascii_letters, string.digits, string.punctuation, " \n\r\t")
    for name, codec in (("UTF-16LE", "utf_16_le"), ("UTF-16BE", "utf_16_be"))
)

LEAST = 0.12  # share of common characters below which nothing is said
NEAR = 0.8  # of the best score, from which the second is named too
BY_CHANCE = 0.6  # share of an alphabet's letters that other writings give too: it has few characters
_HIGH = re.compile(rb"[\x80-\xff]+")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


def guesses(data: bytes) -> list[str]:
    """iconv's names of the likely encodings of bytes that are not UTF-8, the best first; at most two, or none."""
    runs = _HIGH.findall(data)
    if not runs:
        return []
    run = sum(map(len, runs)) / len(runs)  # in Latin writings, letters with a mark stand alone
    scores = {one.name: _share(data, one) for one in _DOUBLE}
    for one in (*(_LATIN if run <= 2 else ()), *(_CYRILLICS if run >= 1.5 else ())):
        scores[one.name] = 1.5 * (_share(data, one) - BY_CHANCE)
    first, second, *_ = sorted(scores, key=lambda name: -scores[name])
    if scores[first] < LEAST:
        return []
    near = scores[second] >= NEAR * scores[first]
    same = str(data, first, "replace") == str(data, second, "replace")  # é is one byte in several encodings
    return [first, second] if near and not same else [first]


def wide(data: bytes) -> str:
    """UTF-16LE or UTF-16BE where the bytes, taken so from the first on, read like a text; else nothing."""
    even = data[: len(data) // 2 * 2]
    best, name = max((_share(even, one, every=True), one.name) for one in _WIDE)
    return name if best >= 0.4 and len(even) >= 16 else ""


def _share(data: bytes, one: Candidate, *, every: bool = False) -> float:
    """Which share of the characters (beyond ASCII, unless `every` counts) is common; less for bytes that are none."""
    text = str(data, one.codec, "replace")
    counted = text if every else _NOT_ASCII.findall(text)
    bad = text.count("\ufffd")
    common = sum(character in one.common for character in counted)
    return (common - 5 * max(0, bad - 2)) / max(1, len(counted))  # a window may cut a character at each end
