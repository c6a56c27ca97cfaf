"""Whether the Hugging Face hub answers: its client goes on asking for half a minute."""

from __future__ import annotations

__all__ = ["unreachable"]

_SECONDS = 4.0


def unreachable() -> str:
    """Why the hub can't be reached, found by one short request; empty if it answers anything."""
    from huggingface_hub import constants, get_session

    try:
        # By the client's own session, which knows the user's proxy and certificates.
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception as error:  # of the library under the client, which it has changed before
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        return f"{constants.ENDPOINT} does not answer: {reason}"
    return ""
