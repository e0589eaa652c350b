"""What identifies somebody and has no check digit: e-mail, secrets, names, addresses; by the words around."""

import re
from collections.abc import Iterator

from services.chat.domain import DataClass
from services.chat.masking.numbers import Found


def _any(*words: str) -> str:
    """A pattern of any of these, which may be patterns, one a line."""
    return "|".join(line.strip() for group in words for line in group.splitlines() if line.strip())


_AT = r"\s?(?:@|\(at\)|\[at\]| at (?=[\w\-]{1,63}(?:\.| dot )[A-Za-z]{2,10}\b(?!\s?@)))\s?"
_LABEL = r"[A-Za-z0-9\-]{1,63}"
# Ends of a domain that are no word of a sentence, unlike .it, .is, .me, .so.
_ENDS = (
    "com|net|org|edu|gov|info|biz|ac|ae|ai|ar|br|ca|cc|ch|cl|cn|co|cz|de|dk|es|eu|fi|fr|gr|hk|hr|hu|ie|il|io|jp"
    "|kr|li|lt|lu|lv|mx|my|nl|nz|pk|pl|pt|ro|ru|se|sg|sk|th|tr|tv|tw|ua|uk|vn|za"
)
# A full stop with a space behind it ends a sentence, unless such an end follows.
_DOT = (
    rf"(?:\.|\s{{1,2}}\.\s{{0,2}}|\.\s{{1,2}}(?=(?:{_LABEL}\.\s{{0,2}})?(?:{_ENDS})(?![A-Za-z0-9\-]))"
    r"|\s?(?:\(dot\)|\[dot\]| dot )\s?)"
)
# A domain without a dot yet: two small letters end it as well; else what stands before the space is all.
_FIRST_DOT = rf"(?:{_DOT}|\.\s{{1,2}}(?=(?-i:[a-z]{{2}})(?![A-Za-z0-9\-])))"
_EMAIL = re.compile(
    rf"[A-Za-z0-9][A-Za-z0-9._%+'\-]{{0,63}}{_AT}{_LABEL}"
    rf"(?:{_FIRST_DOT}{_LABEL}(?:{_DOT}{_LABEL}){{0,3}}|(?=\.\s))",
    re.IGNORECASE,
)
# Codes that are no secret; one lookbehind each, since their lengths differ.
_NO_SECRET = "".join(
    f"(?<!{word} )"
    for word in re.findall(
        r"\w+", "error country area sort zip post postal promo swift bic branch status currency routing bank"
    )
)
_SECRET_NAMES = _any(
    rf"""\botp\b
    \bone[- ]time (?:code|passcode|password)\b
    \b(?:verification|security|confirmation|access|sms) code\b
    \bpasscode\b
    \bpin(?: code| number)?\b
    \bcv[vc]2?\b
    \btan\b
    \bdigits (?:on|at) the back\b
    {_NO_SECRET}\bcode(?: is| was|:| i got is)
    背面[^\d\n]{{0,4}}数字?
    短信码
    授权码
    验证码
    校验码
    动态码
    动态密码
    安全码
    (?:取款|支付|交易)?密码"""
)
_SECRET_DIGITS = re.compile(
    rf"(?:{_SECRET_NAMES})[^\d\n]{{0,24}}?(?<!\d)(\d(?:[ \-]?\d){{2,9}})(?!\d)",
    # ASCII: a Chinese character is no part of the word beside it.
    re.IGNORECASE | re.ASCII,
)
_DIGITS_SECRET = re.compile(
    rf"(?<![\d.,\-/])(\d(?:[ \-]?\d){{2,7}})(?![\d.,/%])"
    rf"\s?(?:(?:is|was|as)\s(?:(?:my|the|a|your)\s)?(?:code\b|{_SECRET_NAMES})"
    rf"|(?:就?是|为)(?:我|你|您|你们)?的?(?:{_SECRET_NAMES}))",
    re.IGNORECASE | re.ASCII,
)
_PASSWORD = re.compile(
    r"(?:\b(?:password|passphrase|pwd)\b|密码|口令)\s*(?:(?:is|was|to)\b|是|为|:|：|=)\s*[\"'“]?([!-~]{4,64})",
    re.IGNORECASE | re.ASCII,
)
# A plain word may be one too, when it is all that is said.
_PASSWORD_WORD = re.compile(
    r"(?:\b(?:password|passphrase|pass|pwd)\b|密码|口令)\s*(?:(?<=\w)\sis\s|[:：=是为])\s*[\"'“]?"
    r"([A-Za-z][A-Za-z\d]{3,30})[\"'”]?\s*(?=[.!,;，。！；\n]|$)",
    re.IGNORECASE | re.ASCII,
)
_NO_PASSWORDS = frozenset(
    re.findall(
        r"\w+",
        """wrong incorrect invalid expired blocked locked lost forgotten right correct rejected refused
        unknown broken disabled reset unsafe weak strong short long missing required needed secret safe
        changed compromised stolen hacked known gone fine good useless accepted denied unavailable
        protected failing mandatory empty""",
    )
)
_SECRET_WORD = re.compile(r"\d|[^\w\s.,!?]|[a-z][A-Z]")
_CARD_EXPIRY = re.compile(
    r"(?:\b(?:exp(?:iry|ires|iration)?(?: date)?|valid (?:thru|until))\b|有效期)"
    r"\D{0,10}((?:0[1-9]|1[0-2])\s?[/\-]\s?\d{2,4})",
    re.IGNORECASE,
)

_CAPITALISED = r"[A-ZÀ-ÖØ-ÞŠŽČĆĐŁŚŻŹ][\w'’\-]{1,24}"
_NAME_PART = rf"(?:{_CAPITALISED}|(?:van|von|de|der|den|del|della|di|da|bin|al|el|la|le)\b|[A-Z]\.)"
_NAME = rf"{_NAME_PART}(?:[ \t]{_NAME_PART}){{0,3}}"
_BEFORE_A_NAME = _any(
    r"""my (?:full |first |last |sur|maiden |middle |new |legal )?name(?: is|'s|:)
    name(?: on (?:the |my )?(?:card|account))?(?: is|:)
    i am
    i'm
    this is
    it's
    call me
    i go by
    known as
    registered (?:to|under)
    (?:card|account)holder(?: is|:)?
    (?:holder|beneficiary|payee)(?: is|:)
    signed
    regards
    sincerely
    thanks
    cheers
    dear
    hello
    (?:transfer(?:red)?|sent|send|pay|paid|payment) (?:it |this |that |money )?to
    on behalf of"""
)
_RELATIVES = (
    "wife|husband|son|daughter|mother|father|mum|mom|dad|brother|sister|partner|friend|boss|colleague|lawyer"
)
_LATIN_NAME = re.compile(
    rf"(?:\b(?i:{_BEFORE_A_NAME}|(?:my|his|her) (?:{_RELATIVES}),?(?: is| named)?)[\s,:\-]{{1,4}}"
    rf"|\b(?:Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Sir|Madam|Herr|Frau|Mme|Sr|Sra)\b\.?[ \t])({_NAME})"
)
# Written small it is told by the plainest of these alone; the second word only where nothing follows.
_SMALL_NAME = re.compile(
    r"\b(?i:my (?:full |first |last )?name(?: is|'s|:)|i am called|call me)[ \t]"
    r"([a-z][a-z'\-]{1,24}(?:[ \t][a-z][a-z'\-]{1,24}(?=\s*(?:[.,!?;\n]|$)))?)(?![\w'\-])"
)
_NO_SMALL_NAMES = frozenset(
    re.findall(
        r"\w+",
        """wrong misspelled misspelt spelled spelt on correct incorrect missing different written shown no now
        too at back later when if about again tomorrow today asap after before by please as old""",
    )
)
# After "I am" and its like stands more often something else.
_NO_NAMES = frozenset(
    _any(
        """a|an|the|not|so|very|still|trying|unable|having|looking|calling|writing|using|sure|sorry|happy|locked|waiting
        wondering|new|here|there|from|in|on|at|afraid|interested|aware|being|going|getting|just|also|only|really
        currently|now|already|concerned|customer|support|sir|madam|team|bank|all|everyone|again|mr|mrs|ms|monday
        tuesday|wednesday|thursday|friday|saturday|sunday|january|february|march|april|may|june|july|august|september
        october|november|december|english|chinese|visa|mastercard|iban|please|thank|thanks|hello|hi|help|what|how|why
        when|where|is|it|i|my|your|you|this|that"""
    ).split("|")
)
_SURNAMES = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔"
    "钟谭陆汪范金石廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤"
)
_DOUBLE_SURNAMES = "欧阳|司马|上官|诸葛|皇甫|司徒|令狐|慕容"
_BEFORE_A_HAN_NAME = (
    "我叫|我的名字(?:是|叫)|(?:姓名|户名|持卡人|收款人|联系人)(?:是|为|[:：])?|本人|名叫|转给|汇给|打给|我是"
)
# Not what goes on after a name.
_GIVEN = "(?:(?![的了吗呢是在和与给不])[\u4e00-\u9fff])"
_HAN_GIVEN = rf"(?:{_DOUBLE_SURNAMES}|[{_SURNAMES}])[\u4e00-\u9fff]{_GIVEN}?"
_HAN_NAME = re.compile(
    rf"(?:{_BEFORE_A_HAN_NAME})\s?({_HAN_GIVEN})(?![行卡号码款银])"
    rf"|((?:{_DOUBLE_SURNAMES}|[{_SURNAMES}])[\u4e00-\u9fff]{{0,2}}?)(?=先生|女士|小姐|太太|经理|老师|同志)"
)
# Words that begin with a family name and are none.
_NO_HAN_NAMES = re.compile(
    "高[兴级额中]|金[额融卡]|任[何务]|方[便法]|白[金天]|马上|万[一元]|钱[款包]|余额|于是|何时|江苏|石家|黄金|许多|严重|向[银您]|史上|武汉"
)

_STREET_WORD = (
    "Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Boulevard|Blvd|Court|Ct|Way|Place|Pl|Square|Sq|Terrace|Close"
    "|Crescent|Highway|Hwy|Parkway|Pkwy|Circle|Cir|Trail|Row|Gardens|Mews|Quay"
)
_PLACE = r"[A-Z][\w'’.\-]{1,24}"
_STREET = re.compile(
    rf"(?<!\w)\d{{1,6}}[A-Za-z]?(?:[ \t](?:[NSEW]\.?|{_PLACE})){{1,4}}[ \t](?:{_STREET_WORD})\b\.?"
    r"(?:,?[ \t\n]{1,2}(?:Apt|Apartment|Suite|Ste|Unit|Flat|Floor|#)\.?[ \t]?[\w\-]{1,8})?"
    rf"(?:,?[ \t\n]{{1,2}}{_PLACE}(?:[ \t]{_PLACE}){{0,2}})?"
    r"(?:,?[ \t\n]{1,3}[A-Z]{2}(?![a-z]))?(?:,?[ \t\n]{1,2}\d{5}(?:-\d{4})?\b)?"
)
_LIVES = re.compile(
    r"\b(?i:(?:my|our|his|her|the|new|home|billing|postal|mailing|shipping|delivery) address(?: is|:)"
    r"|(?:i|we) live (?:at|in|on)|moved to|lives at|located at|address(?: of [^\n.]{1,40})? is)[ \t]{0,2}"
    r"((?:\d{1,6}[A-Za-z]?[ \t,]|P\.?O\.? Box|Flat|Apt|Suite)[^\n.!?]{4,80}(?:\n[^\n.!?]{2,40}){0,3})"
)
_UK_POSTCODE = re.compile(
    r"\b[A-PR-UWYZ](?:\d{1,2}|[A-HK-Y]\d{1,2}|[A-HK-Y]?\d[A-Z]) ?\d[ABD-HJLNP-UW-Z]{2}\b"
)
_US_STATE_ZIP = re.compile(rf"\b(?:{_PLACE}(?:[ ]{_PLACE})?, ?)?[A-Z]{{2}} \d{{5}}(?:-\d{{4}})?\b")
# Not with what comes before it in a sentence: 我住在, 地址是.
_HAN = r"(?:(?![住在是为到去址于])[\u4e00-\u9fff])"
_HAN_ADDRESS = re.compile(
    rf"(?:{_HAN}{{2,7}}(?:省|自治区|特别行政区))?(?:{_HAN}{{2,8}}市)?(?:{_HAN}{{1,8}}(?:区|县|镇|乡))?"
    rf"{_HAN}{{1,10}}(?:路|街|道|巷|弄|胡同|大街|村)\s?\d{{1,5}}\s?(?:号|弄|巷)(?:院|楼)?"
    r"(?:\s?[\u4e00-\u9fffA-Za-z\d]{0,8}?\d{1,4}\s?(?:号楼|栋|幢|座|单元|层|楼|室|号)){0,4}"
)


def words_in(text: str) -> Iterator[Found]:
    """E-mail addresses, secrets, names and addresses in a shadow's text."""
    for match in _EMAIL.finditer(text):
        yield Found(match.start(), match.end(), DataClass.EMAIL, 0)
    for pattern in (_SECRET_DIGITS, _DIGITS_SECRET, _CARD_EXPIRY):
        for match in pattern.finditer(text):
            yield Found(match.start(1), match.end(1), DataClass.CODE, 2)
    for match in _PASSWORD.finditer(text):
        if _SECRET_WORD.search(match[1].rstrip(".,!?\"'”。，")):
            secret = match[1].rstrip("\"'”。，,")
            yield Found(match.start(1), match.start(1) + len(secret), DataClass.CODE, 2)
    for match in _PASSWORD_WORD.finditer(text):
        if match[1].lower() not in _NO_PASSWORDS:
            yield Found(match.start(1), match.end(1), DataClass.CODE, 2)
    yield from _names(text)
    for pattern in (_STREET, _HAN_ADDRESS, _US_STATE_ZIP, _UK_POSTCODE):
        for match in pattern.finditer(text):
            said = match[0].rstrip(".")  # the sentence's
            yield Found(match.start(), match.start() + len(said), DataClass.ADDRESS, 8)
    for match in _LIVES.finditer(text):
        yield Found(match.start(1), match.end(1), DataClass.ADDRESS, 8)


def _names(text: str) -> Iterator[Found]:
    for match in _LATIN_NAME.finditer(text):
        name = match[1]
        if name.split()[0].lower().strip(".'’") not in _NO_NAMES:
            yield Found(match.start(1), match.end(1), DataClass.NAME, 9)
    for match in _SMALL_NAME.finditer(text):
        if match[1].split()[0] not in _NO_NAMES | _NO_SMALL_NAMES:
            yield Found(match.start(1), match.end(1), DataClass.NAME, 9)
    for match in _HAN_NAME.finditer(text):
        group = 1 if match[1] else 2
        if match[group] and not _NO_HAN_NAMES.match(match[group]):
            yield Found(match.start(group), match.end(group), DataClass.NAME, 9)
