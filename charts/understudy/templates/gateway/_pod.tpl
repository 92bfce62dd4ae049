{{/* The gateway's pod template, for the Deployment and the StatefulSet alike. */}}
{{- define "understudy.gatewayPod" -}}
{{- $gateway := .Values.gateway -}}
{{- $of := dict "root" . "component" "gateway" "values" $gateway -}}
{{- $grace := 30 -}}{{/* to hand records to the store and end the lease */}}
metadata:
  labels: {{- include "understudy.podLabels" $of | nindent 4 }}
  annotations:
    # Keys are read at the start.
    understudy.dev/keys: {{ list $gateway.apiKeys .Values.keys | toJson | sha256sum | trunc 16 | quote }}
    {{- with $gateway.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "understudy.serviceAccountName" $of }}
  {{- include "understudy.podCommon" $of | nindent 2 }}
  {{- include "understudy.spread" $of | nindent 2 }}
  terminationGracePeriodSeconds: {{ add (int $gateway.drain.noticeSeconds) (int $gateway.drain.seconds) $grace }}
  containers:
    - name: gateway
      image: {{ include "understudy.image" (dict "root" . "image" "gateway") | quote }}
      imagePullPolicy: {{ .Values.global.imagePullPolicy }}
      securityContext: {{- include "understudy.containerSecurity" . | nindent 8 }}
      env:
        {{- include "understudy.extraEnv" $of | nindent 8 }}
        - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        - {name: UNDERSTUDY_GATEWAY_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: UNDERSTUDY_GATEWAY_ADDRESS, value: "http://$(POD_IP):8080"}
        - {name: UNDERSTUDY_GATEWAY_HOST, value: "0.0.0.0"}
        - {name: UNDERSTUDY_GATEWAY_PORT, value: "8080"}
        - {name: UNDERSTUDY_GATEWAY_STATE_DIR, value: /var/lib/understudy/gateway}
        - {name: UNDERSTUDY_GATEWAY_DRAIN_NOTICE_SECONDS, value: {{ $gateway.drain.noticeSeconds | toString | quote }}}
        - {name: UNDERSTUDY_GATEWAY_DRAIN_SECONDS, value: {{ $gateway.drain.seconds | toString | quote }}}
        {{- include "understudy.storeUrlFrom" (dict "root" . "variable" "UNDERSTUDY_GATEWAY_STORE_URL") | nindent 8 }}
        - name: UNDERSTUDY_GATEWAY_UNIT_KEY
          valueFrom: {secretKeyRef: {name: {{ include "understudy.keysSecret" . }}, key: unit_key}}
        - name: UNDERSTUDY_GATEWAY_CONTENT_KEY
          valueFrom: {secretKeyRef: {name: {{ include "understudy.keysSecret" . }}, key: content_key}}
        - name: UNDERSTUDY_GATEWAY_KEYS
          valueFrom: {secretKeyRef: {name: {{ include "understudy.apiKeysSecret" . }}, key: keys.json}}
        - {name: UNDERSTUDY_GATEWAY_LOG_LEVEL, value: {{ .Values.logging.level }}}
        {{- include "understudy.tracing" . | nindent 8 }}
        {{- include "understudy.settings" (dict "prefix" "UNDERSTUDY_GATEWAY_" "settings" $gateway.settings) | nindent 8 }}
      ports:
        - {name: http, containerPort: 8080}
      # SIGTERM makes the pod unready while it goes on taking requests for `drain.noticeSeconds`, so no preStop hook is needed.
      readinessProbe:
        httpGet: {path: /readyz, port: http}
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 2
      livenessProbe:
        httpGet: {path: /healthz, port: http}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      startupProbe:
        httpGet: {path: /healthz, port: http}
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 60
      resources: {{- toYaml $gateway.resources | nindent 8 }}
      volumeMounts:
        - {name: state, mountPath: /var/lib/understudy/gateway}
        - {name: tmp, mountPath: /tmp}
        {{- with $gateway.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - {name: tmp, emptyDir: {sizeLimit: 256Mi}}
    {{- if not $gateway.persistence.enabled }}
    - {name: state, emptyDir: {sizeLimit: 2Gi}}
    {{- end }}
    {{- with $gateway.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
