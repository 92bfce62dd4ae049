"""Every reason that an event, a verdict, a condition or an audit row may carry, in one list. Used by all of the controller; shown to
people by the command line and the console; explained in docs/concepts/verdicts.md.
"""

from typing import Final

# Course of a rollout
ROLLOUT_STARTED: Final = "RolloutStarted"
GATE_PASSED: Final = "GatePassed"
GATE_SKIPPED: Final = "GateSkipped"
ENGINE_READY: Final = "EngineReady"
STAGE_RUNNING: Final = "StageRunning"
REHEARSAL_PASSED: Final = "RehearsalPassed"
STEP_PASSED: Final = "StepPassed"
PAUSED: Final = "Paused"
RESUMED: Final = "Resumed"
APPROVED: Final = "Approved"
# Waiting
AWAITING_ENGINE: Final = "AwaitingEngine"
AWAITING_GATEWAYS: Final = "AwaitingGateways"
AWAITING_EVIDENCE: Final = "AwaitingEvidence"
AWAITING_APPROVAL: Final = "AwaitingApproval"
AWAITING_CAPACITY: Final = "AwaitingCapacity"
AWAITING_REGISTRY: Final = "AwaitingRegistry"
FROZEN_WINDOW: Final = "FrozenWindow"
# advance
PROMOTED: Final = "Promoted"
PROMOTED_BY_COMMAND: Final = "PromotedByCommand"
WATCH_ENDED: Final = "WatchEnded"
# abort: harm
GATE_HARMFUL: Final = "GateHarmful"
GATE_BELOW_MINIMUM: Final = "GateBelowMinimum"
ERRORS_HARMFUL: Final = "ErrorsHarmful"
REFUSALS_HARMFUL: Final = "RefusalsHarmful"
TTFT_HARMFUL: Final = "TtftHarmful"
TOKENS_PER_SECOND_HARMFUL: Final = "TokensPerSecondHarmful"
FEEDBACK_HARMFUL: Final = "FeedbackHarmful"
JUDGE_HARMFUL: Final = "JudgeHarmful"
PREFERENCE_HARMFUL: Final = "PreferenceHarmful"
ESCALATIONS_HARMFUL: Final = "EscalationsHarmful"
RETRIES_HARMFUL: Final = "RetriesHarmful"
RATING_HARMFUL: Final = "RatingHarmful"
INTER_TOKEN_GAP_HARMFUL: Final = "InterTokenGapHarmful"  # noqa: S105  no password
DURATION_HARMFUL: Final = "DurationHarmful"
# abort: worse than its history after the promotion
WATCH_ERRORS: Final = "WatchErrors"
WATCH_REFUSALS: Final = "WatchRefusals"
WATCH_TTFT: Final = "WatchTtft"
WATCH_INTER_TOKEN_GAP: Final = "WatchInterTokenGap"  # noqa: S105  no password
WATCH_DURATION: Final = "WatchDuration"
WATCH_FEEDBACK: Final = "WatchFeedback"
WATCH_ESCALATIONS: Final = "WatchEscalations"
WATCH_RETRIES: Final = "WatchRetries"
WATCH_RATING: Final = "WatchRating"
# abort: the candidate cannot serve
ENGINE_FAILED: Final = "EngineFailed"
ENGINE_START_TIMEOUT: Final = "EngineStartTimeout"
ARTIFACT_MISSING: Final = "ArtifactMissing"
ARTIFACT_MISMATCH: Final = "ArtifactMismatch"
BASE_NOT_CHAMPION: Final = "BaseNotChampion"
ADAPTER_REFUSED: Final = "AdapterRefused"
KIND_UNSUPPORTED: Final = "KindUnsupported"
# abort: people
ABORTED_BY_COMMAND: Final = "AbortedByCommand"
CHALLENGER_MOVED: Final = "ChallengerMoved"
CHALLENGER_DELETED: Final = "ChallengerDeleted"
CHAMPION_MOVED: Final = "ChampionMoved"
SERVICE_DELETED: Final = "ServiceDeleted"
# hold
REHEARSAL_INCONCLUSIVE: Final = "RehearsalInconclusive"
STEP_INCONCLUSIVE: Final = "StepInconclusive"
HOLD_EXPIRED: Final = "HoldExpired"
# error
EVALUATION_MISSING: Final = "EvaluationMissing"
EVALUATION_MISMATCH: Final = "EvaluationMismatch"
EVALUATION_INVALID: Final = "EvaluationInvalid"
SAMPLE_RATIO_MISMATCH: Final = "SampleRatioMismatch"
ASSIGNMENT_FAULT: Final = "AssignmentFault"
EVIDENCE_FAULT: Final = "EvidenceFault"
# The service
SERVING: Final = "Serving"
SCALED_TO_ZERO: Final = "ScaledToZero"
CHAMPION_MISSING: Final = "ChampionMissing"
ALREADY_CHAMPION: Final = "AlreadyChampion"
ALIAS_CONFLICT: Final = "AliasConflict"
ROLLING_TO_CHAMPION: Final = "RollingToChampion"
SPECIFICATION_REJECTED: Final = "SpecificationRejected"
REGISTRY_UNAVAILABLE: Final = "RegistryUnavailable"
PLATFORM_UNAVAILABLE: Final = "PlatformUnavailable"
JUDGE_OFF: Final = "JudgeOff"
VERSION_PINNED: Final = "VersionPinned"
VERSION_UNPINNED: Final = "VersionUnpinned"
VERSION_MISSING: Final = "VersionMissing"
MARGIN_OUT_OF_REACH: Final = "MarginOutOfReach"
TRAFFIC_TOO_LOW: Final = "TrafficTooLow"
USERS_UNNAMED: Final = "UsersUnnamed"
STABLE_DRIFTED: Final = "StableDrifted"
DRIFT_EVALUATED: Final = "DriftEvaluated"
DRIFT_ROLLED_BACK: Final = "DriftRolledBack"
PROMPTS_DRIFTED: Final = "PromptsDrifted"
# Experiments
EXPERIMENT_STARTED: Final = "ExperimentStarted"
EXPERIMENT_RUNNING: Final = "ExperimentRunning"
EXPERIMENT_CLAIM: Final = "ExperimentClaim"
EXPERIMENT_ENDED: Final = "ExperimentEnded"
EXPERIMENT_REMOVED: Final = "ExperimentRemoved"
EXPERIMENT_CHANGED: Final = "ExperimentChanged"
AWAITING_ROLLOUT: Final = "AwaitingRollout"
# The resource
NAME_TAKEN: Final = "NameTaken"
INVALID_RESOURCE: Final = "InvalidResource"
COMMAND_REFUSED: Final = "CommandRefused"
LEFT_BEHIND: Final = "LeftBehind"
ENGINE_FIELDS_IGNORED: Final = "EngineFieldsIgnored"
# Notifications
NOTIFICATIONS_BEGIN: Final = "NotificationsBegin"
NOTIFICATION_SENT: Final = "NotificationSent"
NOTIFICATION_FAILED: Final = "NotificationFailed"

HARM: Final = {
    "errors": ERRORS_HARMFUL,
    "refusals": REFUSALS_HARMFUL,
    "ttft": TTFT_HARMFUL,
    "tokensPerSecond": TOKENS_PER_SECOND_HARMFUL,
    "feedback": FEEDBACK_HARMFUL,
    "judge": JUDGE_HARMFUL,
    "preference": PREFERENCE_HARMFUL,
    "escalations": ESCALATIONS_HARMFUL,
    "retries": RETRIES_HARMFUL,
    "rating": RATING_HARMFUL,
    "interTokenGap": INTER_TOKEN_GAP_HARMFUL,
    "duration": DURATION_HARMFUL,
}
"""The reason of an abort by a guardrail, by metric."""

WATCH: Final = {
    "errors": WATCH_ERRORS,
    "refusals": WATCH_REFUSALS,
    "ttft": WATCH_TTFT,
    "interTokenGap": WATCH_INTER_TOKEN_GAP,
    "duration": WATCH_DURATION,
    "feedback": WATCH_FEEDBACK,
    "escalations": WATCH_ESCALATIONS,
    "retries": WATCH_RETRIES,
    "rating": WATCH_RATING,
}
"""The reason of a rollback by the watch, by metric."""
