"""Whether both arms get what they should: as many users, over all gateways and at each one, and as many measured values of each metric.
Used by `evidence_fold`; where it is not so, the evidence says nothing about the candidate.

Every test is a sample ratio at half and half (`services.evidence.SampleRatio`). They share the level out beforehand, so that in at most
one of a thousand rollouts the users are called unbalanced by chance, and in one of a thousand the values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from services.evidence import SampleRatio

ALPHA: Final = 0.001
HALVES: Final = {"control": 0.5, "candidate": 0.5}
GROSS: Final = 10.0
"""Concentration of the prior for one gateway and for missing values, which fail wholly or not at all. Over all gateways small deviations
count too, and the prior of `SampleRatio` is the right one."""


def measured_alike(metrics: Iterable[str]) -> dict[str, SampleRatio]:
    """For each metric that may lack a value: whether both arms have one equally often."""
    names = list(metrics)
    return {metric: SampleRatio(HALVES, ALPHA / len(names), GROSS) for metric in names}


class Balance:
    """Exposures: half of the level is for all gateways together, the k-th gateway to show a unit has 1/(k(k+1)) of the other half."""

    def __init__(self) -> None:
        self.whole = SampleRatio(HALVES, ALPHA / 2)
        self.gateways: dict[str, SampleRatio] = {}
        self.rejected = False

    def add(self, units: Iterable[tuple[str, str]]) -> None:
        """Adds units, each (gateway, arm), in the order of the evidence."""
        for gateway, arm in units:
            if gateway not in self.gateways:
                place = len(self.gateways) + 1
                self.gateways[gateway] = SampleRatio(HALVES, ALPHA / 2 / (place * (place + 1)), GROSS)
            one = {arm: 1}
            self.whole.update(one)
            self.gateways[gateway].update(one)
        self.rejected = self.rejected or self.whole.rejected or any(r.rejected for r in self.gateways.values())

    @property
    def e_value(self) -> float:
        """The greatest of the tests, each as a share of its own threshold."""
        return max(ratio.e_value / ratio.threshold for ratio in (self.whole, *self.gateways.values())) / ALPHA

    @property
    def threshold(self) -> float:
        return 1 / ALPHA

    def sentence(self) -> str:
        """The numbers, and the gateway that stands out."""

        def both(name: str, ratio: SampleRatio) -> str:
            return f"{name} {ratio.counts['control']} users in control and {ratio.counts['candidate']} in candidate"

        broken = [both(f", gateway {name}", ratio) for name, ratio in self.gateways.items() if ratio.rejected]
        return f"{both('all gateways have', self.whole)}{''.join(broken)}; that cannot be chance"

    def to_json(self) -> dict[str, Any]:
        gateways = {name: ratio.to_json() for name, ratio in self.gateways.items()}
        return {"whole": self.whole.to_json(), "gateways": gateways, "rejected": self.rejected}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Balance:
        """Raises StateFault for state that this version cannot continue."""
        balance = cls()
        balance.whole = SampleRatio.from_json(data["whole"])
        balance.gateways = {name: SampleRatio.from_json(state) for name, state in data["gateways"].items()}
        balance.rejected = data["rejected"]
        return balance
