"""Faults of the evidence: what the caller did wrong, as types. Raised by every module here, handled by the controller.

EvidenceError
├── PlanFault        the plan contradicts itself; fix the resource, no retry helps
├── ValueFault       a value outside its metric's range, NaN or negative
├── ClockFault       evidence out of order: a clock ran backwards or a unit closes before its exposure
├── AssignmentFault  one unit in two arms: the randomisation is broken and the evidence void
└── StateFault       saved state that this version cannot continue

All are permanent: the same input fails again. A fault leaves the object as it was before the call.
"""


class EvidenceError(Exception):
    """Base of all faults of the evidence."""


class PlanFault(EvidenceError):
    """A plan that contradicts itself, such as a relative margin for a rate."""


class ValueFault(EvidenceError):
    """A value that its metric cannot have."""


class ClockFault(EvidenceError):
    """A time that runs backwards, within a unit or between units."""


class AssignmentFault(EvidenceError):
    """A unit that was seen in both arms."""


class StateFault(EvidenceError):
    """Saved state of an unknown version or shape."""
