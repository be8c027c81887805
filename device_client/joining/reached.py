"""What it means when a coordinator cannot be reached, in words that its device's owner can act on."""

from __future__ import annotations

import ssl

from umbel.shared.errors import LinkError, UmbelError

# What OpenSSL says where the other side's first bytes are no TLS.
_PLAIN = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")


class UnreachedError(LinkError):
    """Nobody answers, or no longer; trying again may help."""


def unreached(url: str, error: BaseException) -> UmbelError:
    """Returns the error for what a connection ended with.

    Args:
        url: The coordinator's address.
        error: The library's error; what it was caused by is looked at, too.
    """
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _unproven(url, cause)
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):  # a cut is no answer
            return _without_tls(url, str(cause.reason or ""))
    kinds = [type(cause).__name__ for cause in _causes(error)]
    return UnreachedError(
        f"the coordinator {url} cannot be reached", [kinds[-1]], "Is it running? Is this machine connected?"
    )


def _unproven(url: str, cause: ssl.SSLCertVerificationError) -> LinkError:
    problem = (
        f"its certificate is not from the authority that you were told to trust ({cause.verify_message})"
    )
    if cause.verify_code in (9, 10):
        problem = f"its certificate is out of date, or this machine's clock is wrong ({cause.verify_message})"
    if cause.verify_code in (62, 64):
        problem = f"its certificate is for another address ({cause.verify_message})"
    hint = "Nothing was sent. Somebody may stand in between; ask the coordinator's operator."
    return LinkError(f"{url} is not the coordinator that this device joined", [problem], hint)


def _without_tls(url: str, reason: str) -> LinkError:
    if reason in _PLAIN:
        problem = "what answers there speaks without TLS"
    else:
        problem = f"TLS fails: {reason or 'no reason given'}"
    return LinkError(f"{url} is no coordinator that can be trusted", [problem], "Nothing was sent.")


def _causes(error: BaseException) -> list[BaseException]:
    """Returns an error and what led to it, outermost first."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop(0)
        if cause is None or cause in found:
            continue
        found.append(cause)
        inner = [
            own for own in (*cause.args, getattr(cause, "reason", None)) if isinstance(own, BaseException)
        ]
        waiting += [cause.__cause__, cause.__context__, *inner]
    return found
