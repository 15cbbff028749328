"""Which spellings of an address reach the same mailbox.

A person must not get more confirmation mails than others by the spellings that their
provider delivers to one mailbox (each provider's help pages tell them).
"""

from __future__ import annotations

# Names under which a provider delivers to the same mailboxes.
SAME = {
    "googlemail.com": "gmail.com",
    **dict.fromkeys(("protonmail.com", "protonmail.ch", "pm.me"), "proton.me"),
    **dict.fromkeys(("me.com", "mac.com"), "icloud.com"),
    **dict.fromkeys(
        ("ya.ru", "yandex.com", "yandex.by", "yandex.kz", "yandex.ua", "yandex.uz"),
        "yandex.ru",
    ),
}
# Characters that a provider passes over in the part before the @.
PASSED_OVER = {"gmail.com": ".", "proton.me": ".-_"}
FASTMAIL = ("fastmail.com", "fastmail.fm", "messagingengine.com")


def folded(email: str) -> str:
    """Return the spelling that stands for all of one mailbox."""
    local, _, domain = email.casefold().rpartition("@")
    domain = SAME.get(domain, domain)
    for fastmail in FASTMAIL:
        if domain.endswith(f".{fastmail}"):  # anything@name.fastmail.com
            local, domain = domain.removesuffix(f".{fastmail}"), fastmail
    local = local.partition("+")[0] or local
    if domain.partition(".")[0] in ("yahoo", "ymail", "rocketmail"):
        local = local.partition("-")[0] or local  # a disposable address: name-word
    if domain == "yandex.ru":
        local = local.replace("-", ".")
    for char in PASSED_OVER.get(domain, ""):
        local = local.replace(char, "")
    return f"{local}@{domain}"
