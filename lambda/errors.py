"""What a caller is told instead of an answer."""

from __future__ import annotations


class Refusal(Exception):
    """An HTTP status, a code word for programs, and a sentence for people.

    The sentence reaches the caller: it holds no ARN, no account, no address inside the network. What only the
    operator may know travels as the exception's cause and ends in the log.
    """

    def __init__(self, status: int, code: str, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


class ConfigError(Exception):
    """Environment variables that cannot be used: all problems, a sentence each."""


def bad_request(message: str) -> Refusal:
    return Refusal(400, "bad_request", message)


def too_large(message: str) -> Refusal:
    return Refusal(413, "payload_too_large", message)


def timed_out(code: str, message: str) -> Refusal:
    return Refusal(504, code, message)


def unsupported(message: str) -> Refusal:
    return Refusal(415, "unsupported_media_type", message)
