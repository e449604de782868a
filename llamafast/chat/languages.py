"""The languages that clients name, by their codes of ISO 639-1 and in English."""

from __future__ import annotations

from llamafast.errors import InvalidRequest

_NAMES = dict(
    line.split(" ", 1)
    for line in """
af Afrikaans;am Amharic;ar Arabic;as Assamese;az Azerbaijani;ba Bashkir;be Belarusian;bg Bulgarian;bn Bengali
bo Tibetan;br Breton;bs Bosnian;ca Catalan;cs Czech;cy Welsh;da Danish;de German;el Greek;en English;eo Esperanto
es Spanish;et Estonian;eu Basque;fa Persian;fi Finnish;fo Faroese;fr French;fy Frisian;ga Irish;gd Scottish Gaelic
gl Galician;gu Gujarati;ha Hausa;he Hebrew;hi Hindi;hr Croatian;ht Haitian Creole;hu Hungarian;hy Armenian
id Indonesian;ig Igbo;is Icelandic;it Italian;ja Japanese;jv Javanese;ka Georgian;kk Kazakh;km Khmer;kn Kannada
ko Korean;ku Kurdish;ky Kyrgyz;la Latin;lb Luxembourgish;ln Lingala;lo Lao;lt Lithuanian;lv Latvian;mg Malagasy
mi Maori;mk Macedonian;ml Malayalam;mn Mongolian;mr Marathi;ms Malay;mt Maltese;my Burmese;nb Norwegian Bokmål
ne Nepali;nl Dutch;nn Norwegian Nynorsk;no Norwegian;ny Chichewa;oc Occitan;om Oromo;or Odia;pa Punjabi;pl Polish
ps Pashto;pt Portuguese;qu Quechua;rm Romansh;ro Romanian;ru Russian;rw Kinyarwanda;sa Sanskrit;sd Sindhi;si Sinhala
sk Slovak;sl Slovenian;sn Shona;so Somali;sq Albanian;sr Serbian;su Sundanese;sv Swedish;sw Swahili;ta Tamil
te Telugu;tg Tajik;th Thai;ti Tigrinya;tk Turkmen;tl Tagalog;tr Turkish;tt Tatar;ug Uyghur;uk Ukrainian;ur Urdu
uz Uzbek;vi Vietnamese;wo Wolof;xh Xhosa;yi Yiddish;yo Yoruba;yue Cantonese;zh Chinese;zu Zulu
""".strip()
    .replace("\n", ";")
    .split(";")
)
_BY_NAME = {name.lower(): name for name in _NAMES.values()}


def language_name(said: str, param: str) -> str:
    """The English name of a language that is ``said`` as a code, with or without a region, or by that name. Raises
    InvalidRequest."""
    text = said.strip().lower()
    name = _NAMES.get(text.replace("_", "-").partition("-")[0]) or _BY_NAME.get(text)
    if name is None:
        raise InvalidRequest(f"`{param}`: {said[:32]!r} is no code of a language (ISO 639-1), as en", param=param)
    return name
