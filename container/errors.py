"""The one error tree.

Raise where the cause is known; translate at the edge: `train.entrypoint` into a failure file and an exit code,
`serve.handler` into an HTTP status and a JSON body. A message says where, what was found, what was expected and
what to do. Standard library only.
"""

from __future__ import annotations

from typing import ClassVar, Self


class KennelError(Exception):
    """Base of all errors of ours; `status` and `code` are what an HTTP client is told."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def without_frames(self) -> Self:
        """Itself, to be kept: a traceback holds all frames, and one that holds the error again is freed late."""
        self.__traceback__ = self.__cause__ = self.__context__ = None
        return self


class UserError(KennelError):
    """The user can mend it: settings, data or weights that were handed to us."""


class ConfigError(UserError):
    """Hyperparameters, environment variables or configuration files that cannot be used."""


class DataError(UserError):
    """Photos or channels that cannot be trained on."""


class WeightsError(UserError):
    """Pretrained weights that are missing or do not fit the network."""


class ArtifactError(UserError):
    """A model folder that is missing, incomplete, altered, or of another schema."""


class TrainingError(KennelError):
    """Training itself failed: a loss that is not a number, an export that does not agree with its network."""


class ServingError(KennelError):
    """Serving cannot go on: a program of the stack ended, or no worker comes back."""


class OutOfMemoryError(KennelError):
    """Too little memory for a model or a photo; SageMaker unloads another model and tries again."""

    status = 507
    code = "insufficient_memory"


class RequestError(KennelError):
    """The caller of the endpoint can mend it."""

    status = 400
    code = "bad_request"


class PhotoError(RequestError):
    """Bytes that are not a photo that we can read."""

    code = "unreadable_photo"


class PhotoTooLargeError(PhotoError):
    """A photo with more pixels than we decode, whatever its size in bytes."""

    status = 422
    code = "photo_too_large"


class NotAcceptableError(RequestError):
    """An Accept header that names nothing that we can answer with."""

    status = 406
    code = "not_acceptable"


class PayloadTooLargeError(RequestError):
    """A body over the limit in bytes."""

    status = 413
    code = "payload_too_large"


class AnswerTooLargeError(RequestError):
    """More is asked for than one answer may hold."""

    status = 413
    code = "answer_too_large"


class UnsupportedMediaTypeError(RequestError):
    """A Content-Type that is not offered."""

    status = 415
    code = "unsupported_media_type"
