"""Whisper's languages: ISO 639 codes, English names, and other spellings that clients send."""

from kernels.checkpoints import languages

LANGUAGES: dict[str, str] = dict(sorted(languages.LANGUAGES.items()))

_CODES = {name: code for code, name in LANGUAGES.items()} | {
    "burmese": "my",
    "valencian": "ca",
    "flemish": "nl",
    "haitian": "ht",
    "letzeburgesch": "lb",
    "pushto": "ps",
    "panjabi": "pa",
    "moldavian": "ro",
    "moldovan": "ro",
    "sinhalese": "si",
    "castilian": "es",
    "mandarin": "zh",
}
# Codes that changed or have two forms.
_CODES |= {"iw": "he", "in": "id", "ji": "yi", "jv": "jw", "nb": "no", "mo": "ro"}
# ISO 639-2 codes (terminological and bibliographic) and 639-3 ones, including a macrolanguage's main variety.
_THREE_LETTERS = """
af afr, am amh, ar ara arb, as asm, az aze azj, ba bak, be bel, bg bul, bn ben, bo bod tib, br bre, bs bos, ca cat, cs
ces cze, cy cym wel, da dan, de deu ger, el ell gre, en eng, es spa, et est ekk, eu eus baq, fa fas per pes, fi fin, fo
fao, fr fra fre, gl glg, gu guj, ha hau, he heb, hi hin, hr hrv, ht hat, hu hun, hy hye arm, id ind, is isl ice, it ita,
ja jpn, jw jav, ka kat geo, kk kaz, km khm, kn kan, ko kor, la lat, lb ltz, ln lin, lo lao, lt lit, lv lav lvs, mg mlg
plt, mi mri mao, mk mkd mac, ml mal, mn mon khk, mr mar, ms msa may zsm, mt mlt, my mya bur, ne nep npi, nl nld dut, nn
nno, no nor nob, oc oci, pa pan, pl pol, ps pus pbt, pt por, ro ron rum mol, ru rus, sa san, sd snd, si sin, sk slk slo,
sl slv, sn sna, so som, sq sqi alb als, sr srp, su sun, sv swe, sw swa swh, ta tam, te tel, tg tgk, th tha, tk tuk, tl
tgl fil, tr tur, tt tat, uk ukr, ur urd, uz uzb uzn, vi vie, yi yid ydd, yo yor, zh zho chi cmn
"""
_CODES |= {three: code for code, *rest in (entry.split() for entry in _THREE_LETTERS.split(",")) for three in rest}


def language_code(text: str) -> str | None:
    """Whisper's code for `en`, `en-US`, `EN_gb`, `eng` or `English`; None if it isn't a language of Whisper."""
    word = text.strip().lower()
    primary = word.replace("_", "-").partition("-")[0]
    for candidate in (word, primary):
        if candidate in LANGUAGES:
            return candidate
        if candidate in _CODES:
            return _CODES[candidate]
    return None


def language_name(code: str) -> str:
    """`english` for `en`, as in verbose_json; an unknown code is its own name."""
    return LANGUAGES.get(code, code)
