"""The mathematics of rollouts: turns units (users) into readings that may be looked at any time.

Called by `services.rollout`. Imports numpy and the standard library alone; reads no clock, no file, no
environment. `docs/concepts/evidence.md` explains what is tested and why.
"""

from services.evidence.bets import adaptive_bets, design_bets
from services.evidence.bounded import BoundedMean
from services.evidence.combine import (
    Budget,
    Combined,
    Goals,
    Share,
    combine,
    combine_goals,
    error_budget,
    harm_level,
    stage_levels,
)
from services.evidence.detectors import Hour, ShiftDetector, fleet_arl, history_bounds, is_late
from services.evidence.embeddings import EmbeddingDrift
from services.evidence.errors import AssignmentFault, ClockFault, EvidenceError, PlanFault, StateFault, ValueFault
from services.evidence.guardrail import Guardrail
from services.evidence.means import Moments, asymptotic_halfwidth, relative_change, relative_interval
from services.evidence.merging import merge_units
from services.evidence.mixtures import BetaBinomialMixture, NormalMixture, bernoulli_interval
from services.evidence.preference import Judged, Preference, PreferenceReading
from services.evidence.quantiles import quantile_ab_pvalue, quantile_interval, quantile_ranks
from services.evidence.rates import TwoSampleBernoulli
from services.evidence.ratios import SampleRatio, log_multinomial_bayes_factor
from services.evidence.summaries import Direction, GuardrailPlan, Reading, UnitValue

__all__ = [
    "AssignmentFault",
    "BetaBinomialMixture",
    "BoundedMean",
    "Budget",
    "ClockFault",
    "Combined",
    "Direction",
    "EmbeddingDrift",
    "EvidenceError",
    "Goals",
    "Guardrail",
    "GuardrailPlan",
    "Hour",
    "Judged",
    "Moments",
    "NormalMixture",
    "PlanFault",
    "Preference",
    "PreferenceReading",
    "Reading",
    "SampleRatio",
    "Share",
    "ShiftDetector",
    "StateFault",
    "TwoSampleBernoulli",
    "UnitValue",
    "ValueFault",
    "adaptive_bets",
    "asymptotic_halfwidth",
    "bernoulli_interval",
    "combine",
    "combine_goals",
    "design_bets",
    "error_budget",
    "fleet_arl",
    "harm_level",
    "history_bounds",
    "is_late",
    "log_multinomial_bayes_factor",
    "merge_units",
    "quantile_ab_pvalue",
    "quantile_interval",
    "quantile_ranks",
    "relative_change",
    "relative_interval",
    "stage_levels",
]
