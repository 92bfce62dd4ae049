{{/* Names, labels, images and what all pods share. Components are called with (dict "root" $ "component" "gateway" "values" .Values.gateway). */}}

{{- define "understudy.fullname" -}}
{{ .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* What a Service or a policy finds pods by; never changes within a release. */}}
{{- define "understudy.selector" -}}
app.kubernetes.io/name: understudy
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "understudy.labels" -}}
{{ include "understudy.selector" . }}
app.kubernetes.io/part-of: understudy
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .root.Values.global.extraLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Without version and chart: a release that changes neither image nor settings of a component must not restart its pods. */}}
{{- define "understudy.podLabels" -}}
{{- $own := merge dict (.values.podLabels | default dict) .root.Values.global.extraLabels -}}
{{ include "understudy.selector" . }}
app.kubernetes.io/part-of: understudy
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- with $own }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "understudy.image" -}}
{{- $image := index .root.Values.images .image -}}
{{- $name := $image.repository -}}
{{- with .root.Values.global.imageRegistry }}{{ $name = printf "%s/%s" (trimSuffix "/" .) $name }}{{ end -}}
{{- if $image.digest }}{{ $name }}@{{ $image.digest }}{{ else }}{{ $name }}:{{ $image.tag | default .root.Chart.AppVersion }}{{ end -}}
{{- end }}

{{- define "understudy.serviceAccountName" -}}
{{- $account := .values.serviceAccount -}}
{{- if $account.create }}{{ $account.name | default (printf "%s-%s" (include "understudy.fullname" .root) .component) }}{{ else }}{{ $account.name | default "default" }}{{ end -}}
{{- end }}

{{- define "understudy.serviceAccount" -}}
{{- if .values.serviceAccount.create -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "understudy.serviceAccountName" . }}
  labels: {{- include "understudy.labels" . | nindent 4 }}
  {{- with .values.serviceAccount.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end }}
{{- end }}

{{/* The pod security standard `restricted`; `podSecurityContext` may change ids, e.g. where an image brings a user of its own. */}}
{{- define "understudy.podSecurity" -}}
{{- $defaults := dict "runAsNonRoot" true "runAsUser" 10001 "runAsGroup" 10001 "fsGroup" 10001 "fsGroupChangePolicy" "OnRootMismatch" "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{ toYaml (mergeOverwrite $defaults (.values.podSecurityContext | default dict)) }}
{{- end }}

{{- define "understudy.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Everything of a pod's spec that is not its containers and volumes. */}}
{{- define "understudy.podCommon" -}}
automountServiceAccountToken: {{ .automount | default false }}
enableServiceLinks: false
securityContext: {{- include "understudy.podSecurity" . | nindent 2 }}
{{- with .root.Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .values.priorityClassName | default .root.Values.global.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "understudy.spread" -}}
topologySpreadConstraints:
{{- with .values.topologySpreadConstraints }}
{{ toYaml . | indent 2 }}
{{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "understudy.selector" . | nindent 8 }}
{{- end }}
{{- end }}

{{/* The environment that the user adds; the component's own comes last, so it wins. */}}
{{- define "understudy.extraEnv" -}}
{{- with concat .root.Values.global.extraEnv (.values.extraEnv | default list) }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Settings by name: {POLL_SECONDS: 2} with the prefix UNDERSTUDY_GATEWAY_. Large numbers must not become 1e+06. */}}
{{- define "understudy.settings" -}}
{{- range $name, $value := .settings }}
- {name: {{ printf "%s%s" $.prefix $name }}, value: {{ if kindIs "float64" $value }}{{ if eq $value (floor $value) }}{{ int64 $value | toString | quote }}{{ else }}{{ toString $value | quote }}{{ end }}{{ else }}{{ toString $value | quote }}{{ end }}}
{{- end }}
{{- end }}

{{- define "understudy.storeUrlFrom" -}}
{{- if .root.Values.store.existingSecret }}
- name: {{ .variable }}
  valueFrom: {secretKeyRef: {name: {{ .root.Values.store.existingSecret }}, key: {{ .root.Values.store.key }}}}
{{- else }}
- {name: {{ .variable }}, value: "postgresql://understudy@{{ include "understudy.fullname" .root }}-postgresql:5432/understudy"}
- name: PGPASSWORD
  valueFrom: {secretKeyRef: {name: {{ include "understudy.postgresqlSecret" .root }}, key: understudy}}
{{- end }}
{{- end }}

{{- define "understudy.postgresqlSecret" -}}
{{ .Values.postgresql.existingSecret | default (printf "%s-postgresql" (include "understudy.fullname" .)) }}
{{- end }}

{{- define "understudy.keysSecret" -}}
{{ .Values.keys.existingSecret | default (printf "%s-keys" (include "understudy.fullname" .)) }}
{{- end }}

{{- define "understudy.apiKeysSecret" -}}
{{ .Values.gateway.apiKeys.existingSecret | default (printf "%s-api-keys" (include "understudy.fullname" .)) }}
{{- end }}

{{/* Empty where Ray asks for no token. */}}
{{- define "understudy.raySecret" -}}
{{- if .Values.ray.tokenSecret }}{{ .Values.ray.tokenSecret }}{{ else if .Values.ray.enabled }}{{ include "understudy.fullname" . }}-ray{{ end -}}
{{- end }}

{{- define "understudy.rayDashboardUrl" -}}
{{- if .Values.ray.enabled }}http://{{ include "understudy.fullname" . }}-ray-head:8265{{ else }}{{ .Values.ray.existing.dashboardUrl }}{{ end -}}
{{- end }}

{{- define "understudy.rayProxyUrl" -}}
{{- if .Values.ray.enabled }}http://{{ include "understudy.fullname" . }}-ray-head:8000{{ else }}{{ .Values.ray.existing.proxyUrl }}{{ end -}}
{{- end }}

{{- define "understudy.registryUrl" -}}
{{- if .Values.mlflow.enabled }}http://{{ include "understudy.fullname" . }}-mlflow:5000{{ else }}{{ .Values.mlflow.uri }}{{ end -}}
{{- end }}

{{/* The volume of model files: shared with Ray's pods, or a folder of the controller's own. */}}
{{- define "understudy.modelsVolume" -}}
{{- if not (or .Values.ray.enabled .Values.ray.existing.dashboardUrl .Values.models.existingClaim) -}}
emptyDir: {}
{{- else if eq .Values.models.kind "hostPath" -}}
hostPath: {path: {{ .Values.models.hostPath }}, type: DirectoryOrCreate}
{{- else -}}
persistentVolumeClaim: {claimName: {{ .Values.models.existingClaim | default (printf "%s-models" (include "understudy.fullname" .)) }}}
{{- end }}
{{- end }}

{{/* The same volume as spec.engine.artifactCache of a resource names it; nothing for one that only the controller has. */}}
{{- define "understudy.modelsCache" -}}
{{- with include "understudy.modelsVolume" . | fromYaml -}}
{{- if .hostPath -}}
{{ dict "hostPath" .hostPath.path | toJson }}
{{- else if .persistentVolumeClaim -}}
{{ dict "claim" .persistentVolumeClaim.claimName | toJson }}
{{- end }}
{{- end }}
{{- end }}

{{/* What was generated before, else `new`: (dict "root" $ "secret" name "key" key "new" text). */}}
{{- define "understudy.kept" -}}
{{- $found := lookup "v1" "Secret" .root.Release.Namespace .secret -}}
{{- $value := "" -}}
{{- if and $found $found.data }}{{ $value = index $found.data .key | default "" | b64dec }}{{ end -}}
{{- $value | default .new -}}
{{- end }}

{{/* Policies: pods of the release by component. */}}
{{- define "understudy.peer" -}}
- podSelector:
    matchLabels: {{- include "understudy.selector" . | nindent 6 }}
{{- end }}

{{/* Combinations that no schema can refuse. */}}
{{- define "understudy.check" -}}
{{- if not (or .Values.postgresql.enabled .Values.store.existingSecret) }}
{{- fail "store.existingSecret: name a Secret with the database's URL, or set postgresql.enabled=true for a trial" }}
{{- end }}
{{- if not (or .Values.mlflow.enabled .Values.mlflow.uri) }}
{{- fail "mlflow.uri: name your MLflow server, or set mlflow.enabled=true" }}
{{- end }}
{{- if and .Values.mlflow.enabled (eq .Values.mlflow.backend.kind "postgresql") (not .Values.postgresql.enabled) }}
{{- fail "mlflow.backend.kind: `postgresql` is the trial instance, which is off; choose existingSecret or sqlite" }}
{{- end }}
{{- if and .Values.mlflow.enabled (eq .Values.mlflow.backend.kind "existingSecret") (not .Values.mlflow.backend.existingSecret) }}
{{- fail "mlflow.backend.existingSecret: name a Secret with MLflow's database URL" }}
{{- end }}
{{- if and .Values.gateway.autoscaling.enabled .Values.gateway.keda.enabled }}
{{- fail "gateway.autoscaling.enabled and gateway.keda.enabled: choose one, two autoscalers would fight" }}
{{- end }}
{{- if and .Values.gateway.autoscaling.enabled (lt (int .Values.gateway.autoscaling.maxReplicas) (int .Values.gateway.autoscaling.minReplicas)) }}
{{- fail "gateway.autoscaling.maxReplicas is below minReplicas" }}
{{- end }}
{{- if and .Values.gateway.keda.enabled (not .Values.gateway.keda.triggers) }}
{{- fail "gateway.keda.triggers: KEDA needs at least one" }}
{{- end }}
{{- if and .Values.gateway.httpRoute.enabled (not .Values.gateway.httpRoute.parentRefs) }}
{{- fail "gateway.httpRoute.parentRefs: name the Gateway that the route belongs to" }}
{{- end }}
{{- if and .Values.ray.enabled .Values.ray.existing.dashboardUrl }}
{{- fail "ray.existing.dashboardUrl: there is a Ray cluster already; set ray.enabled=false" }}
{{- end }}
{{- if and .Values.ray.existing.dashboardUrl (not .Values.ray.existing.proxyUrl) }}
{{- fail "ray.existing.proxyUrl: the address where gateways reach Ray Serve is missing" }}
{{- end }}
{{- if and .Values.ray.enabled (gt (int .Values.ray.worker.gpus) 0) (not (index (.Values.ray.worker.resources.limits | default dict) "nvidia.com/gpu")) }}
{{- fail "ray.worker.resources.limits: engines may reserve ray.worker.gpus GPUs, but the pod asks for none (nvidia.com/gpu)" }}
{{- end }}
{{- end }}

{{/* Where a gateway's traces go: OpenTelemetry's own variables, and ours for what is kept beside the sample. */}}
{{- define "understudy.tracing" -}}
{{- $tracing := .Values.tracing }}
{{- if or $tracing.endpoint $tracing.mlflow.enabled }}
{{- $straight := not $tracing.endpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ $tracing.endpoint | default (include "understudy.registryUrl" .) | quote }}}
{{- with $tracing.headers.existingSecret }}
- name: {{ if $straight }}TRACING_HEADERS{{ else }}OTEL_EXPORTER_OTLP_HEADERS{{ end }}
  valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $tracing.headers.key }}}}
{{- end }}
{{- if $straight }}
- {name: OTEL_EXPORTER_OTLP_HEADERS, value: "x-mlflow-experiment-id={{ $tracing.mlflow.experimentId }}{{ if $tracing.headers.existingSecret }},$(TRACING_HEADERS){{ end }}"}
{{- end }}
- {name: OTEL_TRACES_SAMPLER, value: {{ if $tracing.parentBased }}parentbased_{{ end }}traceidratio}
- {name: OTEL_TRACES_SAMPLER_ARG, value: {{ $tracing.ratio | toString | quote }}}
- {name: OTEL_RESOURCE_ATTRIBUTES, value: "service.namespace={{ .Release.Namespace }},k8s.pod.name=$(UNDERSTUDY_GATEWAY_NAME)"}
- {name: UNDERSTUDY_GATEWAY_TRACING__SLOW_SECONDS, value: {{ $tracing.slowSeconds | toString | quote }}}
- {name: UNDERSTUDY_GATEWAY_TRACING__SLOW_FIRST_TOKEN_SECONDS, value: {{ $tracing.slowFirstTokenSeconds | toString | quote }}}
{{- if $tracing.mlflow.enabled }}
- {name: UNDERSTUDY_GATEWAY_TRACING__MLFLOW_URI, value: {{ include "understudy.registryUrl" . | quote }}}
{{- end }}
{{- end }}
{{- end }}
