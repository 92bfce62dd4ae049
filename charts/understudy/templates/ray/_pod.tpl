{{/* What head and workers share. (dict "root" $ "component" "ray-head" "values" .Values.ray.head "role" "head") */}}
{{- define "understudy.rayPod" -}}
{{- $root := .root -}}
{{- $ray := $root.Values.ray -}}
{{- $head := eq .role "head" -}}
metadata:
  labels: {{- include "understudy.podLabels" . | nindent 4 }}
  {{- with .values.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "understudy.serviceAccountName" (dict "root" $root "component" "ray" "values" $ray) }}
  {{- include "understudy.podCommon" . | nindent 2 }}
  {{- if not $head }}
  {{- include "understudy.spread" . | nindent 2 }}
  {{- end }}
  terminationGracePeriodSeconds: {{ add (int $ray.drainSeconds) 45 }}
  containers:
    - name: ray
      image: {{ include "understudy.image" (dict "root" $root "image" "engine") | quote }}
      imagePullPolicy: {{ $root.Values.global.imagePullPolicy }}
      securityContext: {{- include "understudy.containerSecurity" $root | nindent 8 }}
      {{- if $head }}
      # `ray start`, but for Ray's client server: nobody uses it, it cannot be turned off, and with --block the head ends when it is slow to start.
      command:
        - python
        - -c
        - "from ray.scripts import scripts; scripts.get_ray_client_dependency_error = lambda: ImportError(); scripts.main()"
        - start
      {{- else }}
      command: [ray, start]
      {{- end }}
      args:
        {{- if $head }}
        - --head
        - --port=6379
        - --dashboard-host=0.0.0.0
        - --dashboard-port=8265
        - --no-monitor
        {{- else }}
        - --address={{ include "understudy.fullname" $root }}-ray-head:6379
        {{- end }}
        - --block
        - --disable-usage-stats
        - --include-log-monitor=false
        - --metrics-export-port=8080
        - --num-cpus={{ .values.cpus }}
        {{- if .values.gpus }}
        - --num-gpus={{ .values.gpus }}
        {{- end }}
        - --object-store-memory={{ $ray.objectStoreBytes | int64 }}
        {{- with .values.extraArgs }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      env:
        {{- include "understudy.extraEnv" (dict "root" $root "values" (dict "extraEnv" (concat $ray.extraEnv .values.extraEnv))) | nindent 8 }}
        - {name: HOME, value: /tmp}
        - {name: RAY_AUTH_MODE, value: token}
        - name: RAY_AUTH_TOKEN
          valueFrom: {secretKeyRef: {name: {{ include "understudy.raySecret" $root }}, key: token}}
        - {name: RAY_USAGE_STATS_ENABLED, value: "0"}
        # Workers that fetched a model stay idle with all of vLLM imported, 1 GB each; Ray would keep one per declared CPU.
        - {name: RAY_num_workers_soft_limit, value: "0"}
        # HAProxy to the replica's own server, no Python proxy between.
        - {name: RAY_SERVE_ENABLE_HA_PROXY, value: "1"}
        - {name: RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING, value: "1"}
        # A proxy tells that a request waits for an engine to start.
        - {name: RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S, value: "1"}
        - {name: RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S, value: {{ $ray.drainSeconds | toString | quote }}}
        - {name: HF_HUB_OFFLINE, value: "1"}
        - {name: VLLM_NO_USAGE_STATS, value: "1"}
        - {name: DO_NOT_TRACK, value: "1"}
        - {name: TOKENIZERS_PARALLELISM, value: "false"}
      ports:
        - {name: metrics, containerPort: 8080}
        {{- if $head }}
        - {name: gcs, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        - {name: serve, containerPort: 8000}
        {{- else }}
        - {name: agent, containerPort: 52365}
        {{- end }}
      startupProbe:
        httpGet: {{ include "understudy.rayHealth" $head }}
        periodSeconds: 3
        timeoutSeconds: 5
        failureThreshold: 100
      readinessProbe:
        httpGet: {{ include "understudy.rayHealth" $head }}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 3
      # Slow to give up: a restart costs every engine of the pod, and engines that start take every core for a while.
      livenessProbe:
        httpGet: {{ include "understudy.rayHealth" $head }}
        periodSeconds: 15
        timeoutSeconds: 15
        failureThreshold: 12
      resources: {{- toYaml .values.resources | nindent 8 }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: shm, mountPath: /dev/shm}
        - {name: models, mountPath: /var/lib/understudy/models, readOnly: true}
        {{- with .values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - {name: tmp, emptyDir: {sizeLimit: 20Gi}}
    - {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ $ray.shmSize }}}}
    - name: models
      {{- include "understudy.modelsVolume" $root | nindent 6 }}
    {{- with .values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* Open without a token. */}}
{{- define "understudy.rayHealth" -}}
{{- if . }}{path: /api/gcs_healthz, port: dashboard}{{ else }}{path: /api/local_raylet_healthz, port: agent}{{ end -}}
{{- end }}
