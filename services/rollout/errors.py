"""What can go wrong in a rollout, by what the controller does about it.

RolloutError
├── InvalidResource          a resource file is wrong: path, line, field; the old one stays in force
├── RegistryError
│   ├── RegistryUnavailable  retryable: connection, timeout, 5xx
│   └── RegistryRejected     permanent: the registry refused (no such model, no permission)
├── ArtifactError            permanent: a version's files are missing or are not what was registered; carries a reason
├── EvaluationInvalid        permanent: an evaluation file cannot be read
├── JudgeError
│   ├── JudgeUnavailable     retryable: the judge's endpoint is away
│   └── Unparsable           the judge's answer is no grade; the pair is counted and left unjudged
├── EmbeddingError
│   ├── EmbeddingUnavailable retryable: the embeddings' endpoint is away, or does not know the model
│   └── EmbeddingRefused     permanent: it refuses this text, or what it answers is no embedding
└── LockHeld                 another controller acts on this store
"""

from __future__ import annotations


class RolloutError(Exception):
    """Base of all errors of this service."""


class InvalidResource(RolloutError):
    """A resource file is wrong; the text has one line a mistake."""


class RegistryError(RolloutError):
    """The model registry did not do what was asked."""


class RegistryUnavailable(RegistryError):
    """The registry cannot be reached now; the last known aliases stay in force."""


class RegistryRejected(RegistryError):
    """The registry answered and refused."""


class ArtifactError(RolloutError):
    """A version's files cannot be served."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class EvaluationInvalid(RolloutError):
    """An evaluation file is not of the form that the gate reads."""


class JudgeError(RolloutError):
    """A pair could not be judged."""


class JudgeUnavailable(JudgeError):
    """The judge's endpoint is away; the pair waits."""


class Unparsable(JudgeError):
    """The judge's answer holds no grade."""


class EmbeddingError(RolloutError):
    """A text has got no embedding."""


class EmbeddingUnavailable(EmbeddingError):
    """The endpoint is away; the text waits."""


class EmbeddingRefused(EmbeddingError):
    """The endpoint has no embedding for this text."""


class LockHeld(RolloutError):
    """Another controller acts on this store."""
