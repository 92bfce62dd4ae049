"""The errors of `services.serving`.

ServingError
├── InvalidEngineSpec      permanent: a revision that no engine could be built from
├── ArtifactError
│   ├── ArtifactMissing    permanent: the source names nothing
│   ├── ArtifactMismatch   permanent: the files are not those that were registered
│   ├── ArtifactUnsupported  permanent: nothing here can fetch from such a source
│   ├── ArtifactUnavailable  retryable: the registry or its store did not answer
│   └── NoSpace            retryable once there is room
├── AdapterInvalid         permanent: a folder that no engine could load as a LoRA adapter
└── LocalRayError          the laptop's Ray could not be started; `str()` ends in its last words
"""


class ServingError(Exception):
    """Base of this package's errors. `str()` is one sentence for a person and says what to do."""


class InvalidEngineSpec(ServingError):
    """A revision's engine specification contradicts itself or takes what belongs to the platform."""


class ArtifactError(ServingError):
    """A model version's files could not be brought here."""


class ArtifactMissing(ArtifactError):
    """The source names no files."""


class ArtifactMismatch(ArtifactError):
    """The files' digest is not the expected one."""


class ArtifactUnsupported(ArtifactError):
    """The source is of a kind that cannot be fetched here: unknown, its client is not installed, or it carries credentials."""


class ArtifactUnavailable(ArtifactError):
    """The place that holds the files did not answer."""


class NoSpace(ArtifactError):
    """The cache's disk is full."""


class AdapterInvalid(ServingError):
    """The files are not a LoRA adapter that the engine can load."""


class LocalRayError(ServingError):
    """The local Ray head did not start."""
