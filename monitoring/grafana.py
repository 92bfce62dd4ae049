"""Draws dashboards with grafana-foundation-sdk: the only module that knows it, and Grafana's JSON. Called by `generate.py`.

The data source is a variable; nothing names one.
"""

from __future__ import annotations

import json
from typing import Any, Final

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from monitoring.panels import Dashboard, Panel, Query, Row, Variable

TAG: Final = "understudy"
SOURCE: Final = model.DataSourceRef(type_val="prometheus", uid="${datasource}")

_KINDS: Final[dict[str, Any]] = {
    "time series": timeseries.Panel,
    "number": stat.Panel,
    "table": table.Panel,
    "states": statetimeline.Panel,
}


def to_json(dashboard: Dashboard) -> str:
    """The dashboard as Grafana imports it."""
    made = (
        build.Dashboard(dashboard.title)
        .uid(dashboard.uid)
        .description(dashboard.text)
        .tags([TAG])
        .editable()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .time("now-6h", "now")
        .refresh("30s")
        .timezone("browser")
        .with_variable(build.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .link(
            build.DashboardLink("Understudy")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
        )
    )
    for variable in dashboard.variables:
        made.with_variable(_variable(variable))
    for title, expr in dashboard.marks:
        made.annotation(
            build.AnnotationQuery().name(title).datasource(SOURCE).expr(expr).enable(True).icon_color("purple")
        )
    for row in dashboard.rows:
        made.with_row(_row(row))
        for panel in row.panels:
            made.with_panel(_panel(panel))
    document = json.loads(json.dumps(made.build(), cls=JSONEncoder))
    _number(document)
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _number(document: dict[str, Any]) -> None:
    """Panels get ids by their place: Grafana would give them at each import anew, and links to panels would break."""
    for number, panel in enumerate(document["panels"], 1):
        panel["id"] = number


def _variable(variable: Variable) -> build.QueryVariable:
    return (
        build.QueryVariable(variable.name)
        .label(variable.name.capitalize())
        .datasource(SOURCE)
        .query({"query": variable.query, "refId": variable.name})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")  # outside a cluster no series has a namespace
        .current(model.VariableOption(text="All", value="$__all"))
    )


def _row(row: Row) -> build.Row:
    return build.Row(row.title)


def _panel(panel: Panel) -> Any:
    drawn = _KINDS[panel.kind]()
    drawn.title(panel.title).description(panel.text).datasource(SOURCE).unit(panel.unit)
    drawn.span(panel.width).height(panel.height)
    for number, query in enumerate(panel.queries):
        drawn.with_target(_target(panel, query, chr(ord("A") + number)))
    if panel.kind == "table":
        drawn.with_transformation(
            model.DataTransformerConfig(id_val="organize", options={"excludeByName": {"Time": True}})
        )
    if panel.kind == "time series":
        legend = common_builders.VizLegendOptions().show_legend(True).placement(common.LegendPlacement.BOTTOM)
        drawn.legend(legend.display_mode(common.LegendDisplayMode.LIST))
        drawn.tooltip(
            common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
        )
        drawn.fill_opacity(8).line_width(1).show_points(common.VisibilityMode.NEVER)
        _axis(drawn, panel)
    if panel.top is not None:
        drawn.max(panel.top)
    if panel.link is not None:
        url = (
            f"/d/{panel.link}?var-service=${{__field.labels.service}}&${{datasource:queryparam}}&${{__url_time_range}}"
        )
        drawn.data_links([build.DashboardLink("Open the service").url(url)])
    return drawn


def _axis(drawn: timeseries.Panel, panel: Panel) -> None:
    if panel.top is not None:
        drawn.min(panel.bottom)
    if panel.log:
        scale = common_builders.ScaleDistributionConfig().type(common.ScaleDistribution.LOG).log(10)
        drawn.scale_distribution(scale).min(0.001).fill_opacity(0)
    if panel.line is not None:
        steps = [model.Threshold(color="text"), model.Threshold(value=panel.line, color="red")]
        drawn.thresholds(build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
        drawn.thresholds_style(
            common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        )


def _target(panel: Panel, query: Query, ref: str) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).ref_id(ref).datasource(SOURCE)
    if query.legend:
        target.legend_format(query.legend)
    if panel.kind == "table":
        return target.instant().format(PromQueryFormat.TABLE)
    return target.instant() if panel.kind == "number" else target.range()
