"""Writes the dashboards and rules that are shipped: `charts/understudy/files/monitoring/` holds them once, for the chart and for those who
load them by hand.

`make generate` runs it; `make verify` fails when what is committed differs.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from monitoring.dashboards import cost, engine, evaluation, feedback, fleet, gateway, rollout, service
from monitoring.grafana import to_json
from monitoring.rules import groups

SHIPPED = Path(__file__).parents[1] / "charts/understudy/files/monitoring"
DASHBOARDS = (fleet, service, rollout, engine, gateway, feedback, evaluation, cost)


class _Block(yaml.SafeDumper):
    """Queries of several lines stay readable, and nothing is said by reference."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Block.add_representer(str, _text)


def main() -> None:
    (SHIPPED / "dashboards").mkdir(parents=True, exist_ok=True)
    for module in DASHBOARDS:
        dashboard = module.DASHBOARD
        (SHIPPED / "dashboards" / f"{dashboard.uid}.json").write_text(to_json(dashboard))
    text = yaml.dump(groups(), Dumper=_Block, sort_keys=False, width=10_000, allow_unicode=True)
    (SHIPPED / "rules.yaml").write_text(f"# Generated from monitoring/rules.py by `make generate`.\n{text}")


if __name__ == "__main__":
    main()
