"""What answers mean that are no success, and what helps."""

from __future__ import annotations

import errno
import re
import time
from email.utils import parsedate_to_datetime

from .base import PlaceError
from .wire import Answer

__all__ = ["changed", "no_ranges", "refusal"]


def changed() -> PlaceError:
    """Other bytes are under the name than were."""
    return PlaceError(
        errno.ESTALE, "the object changed while it was read", "run it again when nothing writes to it any more"
    )


def no_ranges() -> PlaceError:
    """The bytes of an object come as a whole or not at all."""
    return PlaceError(errno.EOPNOTSUPP, "the server gives no ranges of it", "fetch it, and read the local file")


_REFUSED = {  # what stores call their reasons, and what can be done
    "AccessDenied": "check what the credentials may do",
    "AuthorizationHeaderMalformed": "set AWS_REGION to where the bucket is",
    "BadDigest": "bytes were damaged on their way: try again",
    "ExpiredToken": "get new credentials",
    "InvalidAccessKeyId": "check the credentials",
    "InvalidToken": "get new credentials",
    "NoSuchBucket": "check the name of the bucket, and the endpoint",
    "NotImplemented": "the store cannot do this: choose another place",
    "RequestTimeTooSkewed": "the clock of this machine is off: set it",
    "SignatureDoesNotMatch": "check the secret of the credentials, and the endpoint",
}
_SKEW = 900  # seconds that stores let pass
_CODE = re.compile(rb"<Code>(\w+)</Code>")


def _of_clock(answer: Answer) -> str:
    """What a store that may send no reason means, as in answers to HEAD, if its clock is another than ours."""
    try:
        theirs = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return ""
    is_off = abs(theirs - time.time()) > _SKEW
    return "RequestTimeTooSkewed" if is_off and answer.status in (400, 401, 403) else ""


def refusal(answer: Answer) -> OSError:
    """What an answer that is no success means."""
    match = _CODE.search(answer.body)
    code = match[1].decode() if match else answer.headers.get("x-amz-error-code", "") or _of_clock(answer)
    reason = f"the server answers {answer.status}" + (f", {code}" if code else "")
    if answer.status == 404:
        return PlaceError(errno.ENOENT, reason, _REFUSED.get(code))
    if 300 <= answer.status < 400:
        return PlaceError(errno.EIO, reason, "it sends on to other addresses, which lead nowhere: check this one")
    if answer.status in (401, 403):
        hint = "check the credentials and what they may do, or, if the store answers so of what is not there, the name"
        return PlaceError(errno.EACCES, reason, _REFUSED.get(code, hint))
    return PlaceError(errno.EIO, reason, _REFUSED.get(code))
