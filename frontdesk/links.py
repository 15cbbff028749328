"""Links that act for whoever got the mail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from itsdangerous import BadData, TimestampSigner, URLSafeTimedSerializer
from itsdangerous.encoding import base64_decode, base64_encode

PURPOSES = ("confirm", "unsubscribe", "not-me", "release", "ask", "mailjet")
PATHS = {"release": "release", "mailjet": "mailjet"}  # the others: newsletter/...


class BadLinkError(Exception):
    """A link that we did not sign, or not for this purpose."""


class Links:
    """Links that act for whoever got the mail: signed, without any address in them.

    Each purpose has its own salt, so that no token opens another door. The first key
    signs, all verify (itsdangerous wants the newest last).
    """

    def __init__(
        self, keys: tuple[str, ...], public_url: str, clock: Callable[[], float]
    ) -> None:
        self.public_url = public_url
        self._clock = clock

        class Signer(TimestampSigner):
            def get_timestamp(self) -> int:
                return int(clock())

        self._serializers = {
            purpose: URLSafeTimedSerializer(
                list(reversed(keys)), salt=f"frontdesk {purpose}", signer=Signer
            )
            for purpose in PURPOSES
        }

    def token(self, purpose: str, payload: object) -> str:
        """Return a signed token."""
        return str(self._serializers[purpose].dumps(payload))

    def url(self, purpose: str, payload: object) -> str:
        """Return the URL that a mail shows, or that Mailjet is told."""
        return f"{self.prefix(purpose)}{self.token(purpose, payload)}"

    def prefix(self, purpose: str) -> str:
        """Return what the URLs of a purpose begin with."""
        return f"{self.public_url}/{PATHS.get(purpose, f'newsletter/{purpose}')}/"

    def signed(self, purpose: str, url: str) -> bool:
        """Tell whether a URL ends with a token of ours, whatever host it names.

        A token alone will do.
        """
        try:
            self.read(purpose, url.rpartition("/")[2])
        except BadLinkError:
            return False
        return True

    def read(self, purpose: str, token: str) -> tuple[Any, float]:
        """Return a token's payload and its age in seconds.

        The age is negative when the signer's clock is ahead of ours: that is skew
        between machines, not a forgery. Raises BadLinkError.
        """
        try:
            payload, signed_at = self._serializers[purpose].loads(
                token, return_timestamp=True
            )
            parts = [base64_encode(base64_decode(p)) for p in token.split(".")]
        except (BadData, UnicodeError) as error:
            raise BadLinkError from error
        if b".".join(parts) != token.encode():  # base64 overlooks odd characters
            raise BadLinkError
        return payload, self._clock() - signed_at.timestamp()
