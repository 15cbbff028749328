"""How much a message looks like spam, and why, in words that the owner reads."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from string import punctuation

ASK = 5  # doubtful from here on: a plain form is asked once, JSON is marked
HOLD = 10  # held from here on: no single signal but the honeypot gets there
READ = 20_000  # characters looked at: a whole message and the first further fields

# What unasked-for mail is about today. A phrase matches at the start of a word and
# leaves its end open, for plurals and endings; case and punctuation do not count.
TOPICS = """
guest post; guest blog; sponsored post; sponsored article; paid post; link insertion;
link exchange; backlink; do-follow; dofollow; domain authority; page of google;
page 1 of google; page one of google; top of google; rank higher; google rank;
google review; search engine rank; more visitors; accept guest; accept sponsored;
link building; linkbuilding; organic traffic; website traffic; targeted traffic;
search engine registration; suchmaschinenoptimierung; seite bei google; gastbeitrag;
référencement; page de google; netlinking; posicionamiento; página de google;
posizionamento; pagina di google; página do google; zoekmachineoptimalisatie;
hoger in google; pozycjonowani; продвижени; раскрутк; в топ 10; вечные ссылки;
прогон по; накрутк; просування сайт; 外链; 谷歌seo; seo优化; seo対策; 网站推广;
谷歌推广; 关键词排名; 被リンク; 上位表示; 백링크; 상위노출; تحسين محركات البحث;
on page 1; search result; visibility on google; seite 1; suchbegriff;
sichtbarkeit bei google; guest article; dr 50; da 50; high da; размещение стат; статейн;
seo; ranking;

web design company; web development company; design and development company;
web design services; website design services; redesign your website;
app development service; app development company; explainer video; video promotion;
wikipedia page; virtual assistant; email list; marketing agency;
through your contact form; via your contact form; website contact forms;
qualified leads; more leads; our ai agent; our ai chatbot; ai receptionist;
leading manufacturer; professional manufacturer; bookkeeping services;
marketing digital; páginas web profesionales; création de sites; moderne webseiten;
webdesign ab; сайт под ключ; разработка сайтов; настройка рекламы; premium domain;
neukunden; mehr kunden; nouveaux clients; más clientes; mais clientes; nuovi clienti;
рассылки по; рассылка по; базы email; 代开; 开发票; 営業代行; 集客; 홈페이지 제작;
developers from india; new enquiries; google ads; followers; takipçi; web sitenizi;
marketing services; social media marketing; wholesale; we are a factory; moq; outsourc;
网站建设; 外贸; 小程序; متابعين; تسويق; criação de sites; sitio web profesional;
new leads; sales leads;

guaranteed return; guaranteed profit; passive income; bitcoin; btc; usdt; trading bot;
trading signal; forex; airdrop; recovery expert; recover your funds; hire a hacker;
seed phrase; double your; make money; earn money; financial freedom; geld verdienen;
passives einkommen; nebenverdienst; lavora da casa; trabaja desde casa;
trabalhe em casa; работа на дому; удалённая подработка; gagner de l'argent;
revenus passifs; gana dinero; ganar dinero; ingresos pasivos; rentabilidad garantizada;
renda extra; ganhe dinheiro; ganhar dinheiro; guadagnare; zarabiaj; para kazan; заработ;
пассивный доход; инвестиц; 赚钱; 兼职; 刷单; 比特币; 投资平台; 副業; 稼げる; 月収;
고수익; 리딩방; اربح; पैसे कमा; crypto; krypto; cripto; крипт; ethereum; giveaway;
giving away; was scammed; lost money; trading platform; вклад; дивиденд; 理财; 虚拟币;
投資; investor; investment; investissement; invertir;

interest rate; no credit check; working capital; business funding; project funding;
merchant cash; line of credit; no collateral; without collateral; pre-approved;
fund projects; privatkredit; sofortkredit; offre de prêt; prêt entre; des prêts;
taux d'intérêt; préstamo; tasa de interés; prestiti; offerta di prestito;
tasso di interesse; empréstimo; pożyczk; chwilówk; půjčk; kredi veri; pinjaman;
vay tiền; займ; кредит; 贷款; 融資; 대출; قرض; قروض; लोन; loan; bad credit; you qualify;
lender; kredit; crédit; finanzierung; refinanc; kredyt; debiti; borç; 借款; تمويل;

casino; cassino; kasyno; free spin; no deposit; welcome bonus; jackpot; online slot;
slot gacor; judi online; togel; nhà cái; freispiele; spielothek; tours gratuits;
apuestas; apostas; scommesse; bukmacher; bahis; deneme bonusu; казино; игровые автоматы;
бездепозит; букмекер; ставки на спорт; 赌场; 博彩; 彩票; 彩金; 棋牌; 百家乐; カジノ;
카지노; 바카라; 토토; كازينو; सट्टा; คาสิโน; สล็อต; betting; slot88; maxwin; беттинг;
pari sportif; paris sportifs; 体育投注; مراهنات; cá cược; nổ hũ; sportwetten;

dating site; hookup; sexy; lonely girl; lonely wom; hot photo; hot girl; naked; nudes;
porn; escort girl; looking for sex; onlyfans; sugar daddy; sugar mommy; love spell;
sexkontakt; plan cul; amarres de amor; знакомств; секс; интим; порно; 约炮; 裸聊;
出会い系; my dear; private photo; private pics; single women; single girl; sexe; sexo;
randki; ロマンス; 交友;

viagra; cialis; kamagra; tramadol; xanax; ozempic; steroids; cheap meds; cbd oil;
without prescription; no prescription; canadian pharmacy; weight loss; lose weight;
replica watch; replica bag; aaa replica; designer handbag; rolex; ohne rezept;
potenzmittel; sans ordonnance; sin receta; senza ricetta; sem receita; bez recepty;
reçetesiz; без рецепта; виагр; 伟哥; 高仿; ブランドコピー; levitra; generic v; per pill;
pharmacy online; semaglutide; potency; потенц; препарат;

next of kin; late client; late husband; inheritance fund; beneficiary; million dollars;
million usd; million euro; business proposal; very confidential; strictly confidential;
invest in your country; you have won; gift card; lottery; donation of; erbschaft;
наследств; 遗产; ميراث; deceased; fund transfer; charity project; widow;

has been hacked; hacked your; wallet address; copyrighted images; legal action;
you will be sued; final notice; domain expir; domain listing; expires today;
account will be; verify your; been suspended; webmail; ransom; infring;
invoice attached; unusual activity; your mailbox"""

# How it is put: an offer to everybody, an order to act, a way out of a mailing list.
PITCHES = """
we offer; we supply; we are a leading; we specialize; we can help; we help business;
businesses like yours; grow your business; boost your; increase your; our experts;
free audit; free consultation; free trial; no obligation; kindly share; kindly reply;
kindly send; we can offer; best price; cancel any; for the next 24; hours only;
get yours; free shipping; worldwide shipping; book a demo; demo link; missing out on;
your competitors; claim your; you are eligible; spots left; money back; risk free;
per annum; you only pay; low cost; price list; factory price; special offer; reply stop;
reply no; unsubscribe; opt out; further messages; dear friend; site owner;
greetings of the day; i visited your; i checked your; just checked your; your calendar;
apply now; order now; buy now; join now; join before; sign up now; act now; today only;
limited time; don't miss; instant delivery; your wallet; within 24 hours;
within 48 hours; tell me your price; no experience needed; no experience required;
affordable price; affordable package; affordable rate; low price; dear sir madam;
dear website owner; dear business owner; hello webmaster; click here to; first 10;
reply with your; una propuesta sin; de descuento; de desconto; your site and noticed;
your website and noticed; looking at your website; browsing your website;
looks outdated; not mobile friendly; turn visitors; while you sleep; fraction of the;
prices start;

wir bieten; wir bringen sie; wir erstellen; mir ist ihre webseite;
keine weiteren nachrichten; jetzt anmelden; jetzt spielen; jetzt sichern;
nous proposons; nous offrons; nous accordons; nous créons; écrivez-nous; sans frais;
vous propose; ne plus recevoir; cliquez ici; inscrivez; ofrecemos; creamos;
sin compromiso; regístrate; haz clic; offriamo; proponiamo; senza impegno; scrivetemi;
scrivi subito; posti limitati; clicca qui; oferecemos; criamos; cadastre-se;
clique aqui; sem compromisso; wij bieden; klik hier; oferujemy; bezpłatny audyt;
kliknij; nabízíme; vi erbjuder; firmamız; sunuyoruz; üye ol; tıkla; предлага; увеличим;
на карту; ответьте на это; вышлем; коммерческое предложение; скидк; пишите в; переходи;
пропонуємо; 加微信; 联系微信; 优惠; 即送; 秒到; 本公司; 我们提供; 欢迎咨询; 点击; 注册;
無料; 今だけ; 弊社; 무료; 클릭; نقدم; واتساب; تواصل معنا; اضغط; مجان; मुफ्त;
संपर्क करें; hope you are well; hope you are doing well; hope this finds you;
hope this message finds; dear manager; dear editor; dear webmaster; dear owner;
positive reply; your requirement; our rates; competitive price; send us your; no card;
whatsapp; телеграм; ватсап; guarantee; discount; no cost; flat rate; i can show you;
i will show you; show you how; can be sent; get double; delivered in; any inquiry;
get back with; full report; skyrocket; garantiert; kostenlos; gratuit; gratis; grátis;
darmow; ücretsiz; paylaşmanız; miễn phí; гарант; бесплатн; без опыта; 免费; 保证; 报价;
收费; ضمان; راسلنا; posso te mandar; somos uma agência; ¿necesita; otorgamos;
escríbanos; en 24 h; wann darf ich sie; serious offer"""

SHORTENERS = """bit.ly clck.ru cutt.ly goo.su is.gd ow.ly rb.gy rebrand.ly s.id
shorturl.at t.co t.ly telegra.ph tiny.cc tinyurl.com u.to v.gd vk.cc"""
THROWAWAY = """.bet .bond .buzz .casino .cf .cfd .click .cyou .date .ga .gq .icu .loan
.lol .ml .monster .quest .rest .sbs .tk .top .win"""

# Every repeat is bounded or can match in one way only: cost grows with length, no more.
_LINK = re.compile(
    r"(?i:https?)://([^\s/<>\"'()\[\]?#:]{1,253})[^\s<>\"()\[\]\u0080-\U0010ffff]*"
    r"|(?<![\w@./-])((?:[\w-]{1,63}\.){1,4}(?i:com|net|org|ru|biz)(?![\w@-]|\.\w))"
)
_SHORTENERS = frozenset(SHORTENERS.split())
_THROWAWAY = tuple(THROWAWAY.split())
_NAME_LINK = re.compile(r"https?://|\bwww\.|\w\.[a-z]{2,12}/", re.I)
_MARKUP = re.compile(r"<a\s[^<>]{0,99}href|\[(?:url|link|img)[=\]]", re.I)
_CJK = "\u3040-\u30ff\u3400-\u9fff"  # written without spaces: two characters a word
_WORD = re.compile(rf"[^\W{_CJK}]+|[{_CJK}]{{1,2}}")
_DIGITS = re.compile(r"\d+")
_GAP = re.compile(r"[\W_]+")
_PUNCTUATION = str.maketrans(dict.fromkeys(punctuation, " "))
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")
_STYLED = re.compile("[\u2460-\u24ff\uff01-\uff5e\U0001d400-\U0001d7ff]+")
_TWINS = str.maketrans(  # Cyrillic and Greek letters that look like Latin ones
    "аеорсухіјѕԁһԛԝАВЕКМНОРСТХУІЈЅοανρυικτΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
    "aeopcyxijsdhqwABEKMHOPCTXYIJSoavpuiktABEZHIKMNOPTYX",
)
_TWIN = "".join(map(chr, _TWINS))
_MIXED = re.compile(f"[a-zA-Z][{_TWIN}]|[{_TWIN}][a-zA-Z]")
_LETTERS = re.compile(r"[^\W\d_]{5,}")
_RANDOM = re.compile(r"[a-zA-Z]{10,60}")
_HUMP = re.compile(r"[a-z][A-Z]")
_GREETING = re.compile(
    r"\A\W*(?:hi|hello|hey|dear|greetings|good (?:day|morning|afternoon|evening)|hallo"
    r"|guten tag|sehr geehrte[rn]?|bonjour|hola|buongiorno|ciao|olá|hoi|dzień dobry"
    r"|merhaba|здравствуйте|привет|добрый день)\b,?[^\n,.!:;]{0,40}[\n,.!:;]",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the signals look at."""

    email: str
    name: str
    subject: str
    text: str
    extra: Mapping[str, str] = field(default_factory=dict)
    honeypot: bool = False
    seconds_on_page: float | None = None  # from Formspree's session data, if sent
    webdriver: bool = False  # likewise
    origin: bool = True  # was the header there?
    referer: bool = True
    accept_language: bool = True
    user_agent: bool = True
    echoes: int = 0  # other clients that sent a near-identical text within a day


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found in the words, once for all signals."""

    hosts: list[str]  # where the links lead
    prose: str  # subject and text without the links
    words: int  # in the prose; counted only beside links
    disguised: str  # the first Latin word with look-alike letters in it
    topics: list[str]
    pitches: list[str]

    @property
    def links(self) -> str:
        return "1 link" if len(self.hosts) == 1 else f"{len(self.hosts)} links"


@dataclass(frozen=True, slots=True)
class Signal:
    """Points for one thing, and its reason: {e} is the evidence, {r} the reading."""

    points: int
    reason: str
    test: Callable[[Evidence, Reading], object]


SIGNALS = (
    Signal(10, "the hidden field was filled in", lambda e, r: e.honeypot),
    Signal(
        4,
        "sent {e.seconds_on_page:.1f} s after the page was opened",
        # A negative time is a wrong clock, and says nothing.
        lambda e, r: e.seconds_on_page is not None and 0 <= e.seconds_on_page < 3,
    ),
    Signal(4, "sent by an automated browser", lambda e, r: e.webdriver),
    Signal(
        3,
        "came without Origin, Referer and Accept-Language",
        lambda e, r: not (e.origin or e.referer or e.accept_language),
    ),
    Signal(1, "came without User-Agent", lambda e, r: not e.user_agent),
    Signal(3, "nearly the same text came from elsewhere", lambda e, r: e.echoes > 0),
    Signal(3, "from {e.echoes} other clients, in fact", lambda e, r: e.echoes > 2),
    Signal(5, "a link in the name", lambda e, r: _NAME_LINK.search(e.name)),
    Signal(4, "hardly more than {r.links}", lambda e, r: r.hosts and r.words < 5),
    Signal(
        3,
        "{r.links} in {r.words} words",
        lambda e, r: len(r.hosts) > 1 and r.words < 10 * len(r.hosts),
    ),
    Signal(
        2,
        "a shortened link or a throw-away domain",
        lambda e, r: any(h in _SHORTENERS or h.endswith(_THROWAWAY) for h in r.hosts),
    ),
    Signal(3, "link markup", lambda e, r: _MARKUP.search(e.text)),
    Signal(5, "look-alike letters in “{r.disguised}”", lambda e, r: r.disguised),
    Signal(
        5,
        "random letters",
        lambda e, r: any(map(_is_random, (e.text.strip(), e.name.strip()))),
    ),
    Signal(
        2,
        "all in capitals",
        lambda e, r: r.prose.isupper() and sum(map(str.isupper, r.prose)) > 20,
    ),
    Signal(3, "typical of spam: “{r.topics[0]}”", lambda e, r: r.topics),
    Signal(2, "put like an advertisement: “{r.pitches[0]}”", lambda e, r: r.pitches),
    Signal(
        3, "and more such phrases", lambda e, r: len(r.topics) > 3 or len(r.pitches) > 2
    ),
)


def score(evidence: Evidence) -> tuple[int, list[str]]:
    """Return the points of a message, and the reason for each in plain words."""
    reading = _read(evidence)
    hits = [signal for signal in SIGNALS if signal.test(evidence, reading)]
    reasons = [signal.reason.format(e=evidence, r=reading) for signal in hits]
    return sum(signal.points for signal in hits), reasons


def fingerprint(text: str) -> str:
    """Return a digest that near-identical texts share, or "" for a short text."""
    body = _LINK.sub(" ", _GREETING.sub(" ", text[:READ]))
    words = _WORD.findall(_DIGITS.sub("", _fold(body)))
    if len(words) < 10:  # honest people write the same few words too
        return ""
    return blake2b("".join(words).encode("utf-8", "replace"), digest_size=8).hexdigest()


def _read(evidence: Evidence) -> Reading:
    said = f"{evidence.subject}\n{evidence.text}"
    parts = _LINK.split(said)  # prose, host, bare host, prose, ...
    prose = " ".join(parts[::3])
    hosts = [(a or b).lower() for a, b in zip(parts[1::3], parts[2::3], strict=True)]
    everything = "\n".join((said, evidence.name, *evidence.extra.values()))[:READ]
    mixed = not everything.isascii() and _MIXED.search(everything)
    words = _LETTERS.findall(everything) if mixed else ()
    folded = _fold(everything)
    starts = dict.fromkeys([word[:3] for word in folded.split()])
    return Reading(
        hosts=hosts,
        prose=prose,
        words=len(_WORD.findall(prose)) if hosts else 0,
        disguised=next((word for word in words if _is_disguised(word)), "")[:40],
        topics=_phrases(TOPICS).found_in(folded, starts),
        pitches=_phrases(PITCHES).found_in(folded, starts),
    )


def _is_disguised(word: str) -> bool:
    """Whether a Latin word holds look-alikes; a slip in a Cyrillic word is none."""
    latin = len(word.encode("ascii", "ignore"))
    return len(word) / 2 <= latin < len(word) and word.translate(_TWINS).isascii()


def _plain(styled: re.Match[str]) -> str:
    """Turn full-width, circled and mathematical letters into the usual ones."""
    # Not the whole text: sorting combining marks takes time by their number squared.
    return unicodedata.normalize("NFKC", styled[0])


def _is_random(word: str) -> bool:
    return bool(_RANDOM.fullmatch(word)) and len(_HUMP.findall(word)) > 3


def _fold(text: str) -> str:
    """Reduce a text to lower-case words, with disguises and punctuation taken off."""
    if text.isascii():
        return f" {' '.join(text.lower().translate(_PUNCTUATION).split())} "
    text = _STYLED.sub(_plain, _INVISIBLE.sub("", text))
    if _MIXED.search(text):
        text = _LETTERS.sub(
            lambda m: m[0].translate(_TWINS) if _is_disguised(m[0]) else m[0], text
        )
    return f" {_GAP.sub(' ', text.casefold()).strip()} "


class _Phrases:
    """Phrases to look for in folded text, kept by how their first word starts."""

    def __init__(self, phrases: str) -> None:
        self._by_start: dict[str, list[tuple[str, str]]] = {}
        self._anywhere: list[tuple[str, str]] = []
        for phrase in map(str.strip, phrases.split(";")):
            folded = _fold(phrase).rstrip()
            if max(folded) < "\u0530":  # Latin, Greek, Cyrillic
                start = folded.split()[0][:3]
                self._by_start.setdefault(start, []).append((folded, phrase))
            else:  # Chinese, Arabic and so on: a word need not start after a space
                self._anywhere.append((folded.strip(), phrase))

    def found_in(self, folded: str, starts: Iterable[str]) -> list[str]:
        """Return the phrases in a folded text; `starts` are those of its words."""
        near = [pair for start in starts for pair in self._by_start.get(start, ())]
        if not folded.isascii():
            near += self._anywhere
        return [phrase for needle, phrase in near if needle in folded]


@cache
def _phrases(text: str) -> _Phrases:
    """Prepare the phrases with the first message, not at start."""
    return _Phrases(text)
