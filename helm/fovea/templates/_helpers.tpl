{{/* Names and labels. Labels of pods never change with the chart's version: a new pod template is a new cluster. */}}
{{- define "fovea.name" -}}{{ .Values.nameOverride | default "fovea" }}{{- end }}

{{- define "fovea.fullname" -}}
{{- if .Values.fullnameOverride -}}{{ .Values.fullnameOverride }}
{{- else if contains (include "fovea.name" .) .Release.Name -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}{{ printf "%s-%s" .Release.Name (include "fovea.name" .) | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- define "fovea.selector" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: {{ include "fovea.name" . }}
{{- end }}

{{- define "fovea.labels" -}}
{{ include "fovea.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "fovea.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary (include "fovea.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "fovea.image" -}}
{{- $gpu := false -}}
{{- range .Values.workerGroups }}{{ if .gpus }}{{ $gpu = true }}{{ end }}{{ end -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}
{{- else -}}{{ .repository }}:{{ .tag | default (printf "%s-%s" $.Chart.AppVersion (ternary "gpu" "cpu" $gpu)) }}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "fovea.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Where clients inside the cluster find the stack: the Service that KubeRay makes for a RayService. */}}
{{- define "fovea.serveService" -}}{{ include "fovea.fullname" . }}-serve-svc{{- end }}
{{- define "fovea.url" -}}http://{{ include "fovea.serveService" . }}.{{ .Release.Namespace }}.svc:{{ .Values.stack.listen.port | default 8000 }}{{- end }}
{{- define "fovea.port" -}}{{ .Values.stack.listen.port | default 8000 }}{{- end }}
{{- define "fovea.firstModel" -}}{{ (index .Values.stack.models 0).name }}{{- end }}

{{/* port of a URL, its scheme's if it names none */}}
{{- define "fovea.urlPort" -}}
{{- $address := urlParse . -}}
{{ regexFind "[0-9]+$" (regexFind ":[0-9]+$" $address.host) | default (ternary "443" "80" (eq $address.scheme "https")) }}
{{- end }}

{{- define "fovea.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.security.runAsUser }}
runAsGroup: {{ .Values.security.fsGroup }}
fsGroup: {{ .Values.security.fsGroup }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "fovea.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* bytes "4Gi" -> 4294967296, as a float */}}
{{- define "fovea.bytes" -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9]+(\\.[0-9]+)?" $text -}}
{{- $unit := trimPrefix $number $text -}}
{{- $factor := get (dict "" 1 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776) $unit -}}
{{- mulf (float64 $number) (float64 $factor) -}}
{{- end }}

{{/* Environment that every process of the stack shares: caches in writable places, the hub or not. */}}
{{- define "fovea.commonEnv" -}}
- {name: HOME, value: /tmp}
- {name: HF_HOME, value: /models}
- {name: HF_HUB_DISABLE_TELEMETRY, value: "1"}
- {name: DO_NOT_TRACK, value: "1"}
- {name: VLLM_NO_USAGE_STATS, value: "1"}
- {name: VLLM_CACHE_ROOT, value: /compiled/vllm}
- {name: VLLM_CONFIG_ROOT, value: /tmp/vllm}
- {name: TORCHINDUCTOR_CACHE_DIR, value: /compiled/inductor}
- {name: TRITON_CACHE_DIR, value: /compiled/triton}
{{- with .Values.registry }}
- {name: FOVEA_REGISTRY, value: {{ . | quote }}}
{{- end }}
{{- end }}

{{- define "fovea.secretEnv" -}}
{{- range .Values.secretEnv }}
- name: {{ .env }}
  valueFrom:
    secretKeyRef: {name: {{ .secret }}, key: {{ .key }}}
{{- end }}
{{- end }}

{{/* The fast path and what makes recovery quick (serving/runtime.py: `fast_path_environment`, `HARD_DAYS`): in every Ray process, or it is not there. */}}
{{- define "fovea.rayEnv" -}}
{{ include "fovea.commonEnv" . }}
- {name: HF_HUB_OFFLINE, value: {{ ternary "1" "0" .Values.offline | quote }}}
- {name: RAY_SERVE_ENABLE_HA_PROXY, value: "1"}
- {name: RAY_SERVE_THROUGHPUT_OPTIMIZED, value: "1"}
- {name: RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP, value: "1"}
- {name: RAY_SERVE_HAPROXY_BINARY_PATH, value: /opt/fovea/serving/haproxy.sh}
- {name: FOVEA_HAPROXY, value: /opt/fovea/bin/haproxy}
- {name: RAY_SERVE_HAPROXY_NBTHREAD, value: {{ .Values.proxy.threads | quote }}}
- {name: RAY_SERVE_HAPROXY_MAXCONN, value: {{ .Values.proxy.maxConnections | int64 | quote }}}
- {name: RAY_SERVE_HAPROXY_TUNE_BUFSIZE, value: {{ .Values.proxy.bufferBytes | int64 | quote }}}
- {name: RAY_SERVE_HAPROXY_METRICS_ENABLED, value: "0"}
- {name: RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S, value: "1"}
- {name: RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S, value: "1"}
- {name: RAY_process_group_cleanup_enabled, value: "1"}
- {name: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, value: serving.middleware.straight}
{{- if kindIs "map" .Values.stack.affinity }}
- {name: RAY_SERVE_HAPROXY_BALANCE_ALGORITHM, value: {{ printf "hdr(x-fovea-image)\n    hash-type consistent sdbm avalanche\n    hash-balance-factor %d" (round (mulf 100.0 (float64 (.Values.stack.affinity.load | default 1.5))) 0 | int) | quote }}}
{{- end }}
- {name: RAY_worker_niceness, value: "0"}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- {name: RAY_enable_metrics_collection, value: "0"}
- {name: RAY_event_stats, value: "0"}
- {name: RAY_task_events_report_interval_ms, value: "0"}
- {name: RAY_DEDUP_LOGS, value: "0"}
- {name: RAY_prestart_worker_first_driver, value: "0"}
- {name: RAY_memory_monitor_refresh_ms, value: "0"}
{{- include "fovea.secretEnv" . }}
{{- end }}

{{- define "fovea.rayMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
- {name: models, mountPath: /models}
- {name: compiled, mountPath: /compiled}
{{- if .Values.dataVolume.enabled }}
- {name: data, mountPath: /data}
{{- end }}
{{- range $i, $one := .Values.secretMounts }}
- {name: secret-{{ $i }}, mountPath: {{ $one.path }}, readOnly: true}
{{- end }}
{{- end }}

{{/* (root, shm): the volumes of a Ray pod */}}
{{- define "fovea.rayVolumes" -}}
- name: tmp
  emptyDir: {}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .shm }}}
- name: models
  {{- include "fovea.volume" (dict "root" .root "volume" .root.Values.modelCache "name" "models") | nindent 2 }}
- name: compiled
  {{- include "fovea.volume" (dict "root" .root "volume" .root.Values.compileCache "name" "compiled") | nindent 2 }}
{{- if .root.Values.dataVolume.enabled }}
- name: data
  {{- include "fovea.volume" (dict "root" .root "volume" .root.Values.dataVolume "name" "data") | nindent 2 }}
{{- end }}
{{- range $i, $one := .root.Values.secretMounts }}
- name: secret-{{ $i }}
  secret: {secretName: {{ $one.secret }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{- define "fovea.volume" -}}
{{- if .volume.enabled -}}
persistentVolumeClaim: {claimName: {{ .volume.existingClaim | default (printf "%s-%s" (include "fovea.fullname" .root) .name) }}}
{{- else -}}
emptyDir: {}
{{- end -}}
{{- end }}

{{/* Models of the stack that are on the hub, one "ID REVISION" a line. */}}
{{- define "fovea.hubModels" -}}
{{- range .Values.stack.models }}
{{- if not (or (hasPrefix "embedded:" .source) (hasPrefix "registry:" .source) (hasPrefix "/" .source) (hasPrefix "." .source) (hasPrefix "~" .source)) }}
{{ .source }} {{ .revision | default "main" }}
{{- end }}
{{- end }}
{{- end }}
{{/* Checkpoints of buckets and claims, one "FROM NAME" a line; a claim is mounted at /from/CLAIM. */}}
{{- define "fovea.sources" -}}
{{- range .Values.modelCache.download.sources }}
{{ .from | replace "pvc://" "/from/" }} {{ .name }}
{{- end }}
{{- end }}
{{- define "fovea.sourceClaims" -}}
{{- range .Values.modelCache.download.sources }}{{ with regexFind "^pvc://[^/]+" .from }}{{ trimPrefix "pvc://" . }} {{ end }}{{ end -}}
{{- end }}
{{- define "fovea.downloadDigest" -}}{{ printf "%s%s" (include "fovea.hubModels" .) (include "fovea.sources" .) | sha256sum | trunc 10 }}{{- end }}
{{- define "fovea.downloads" -}}
{{- if and .Values.modelCache.download.enabled (or (include "fovea.hubModels" . | trim) .Values.modelCache.download.sources) }}true{{ end -}}
{{- end }}

{{/* What every client container of the chart (test, jobs) has. */}}
{{- define "fovea.clientPod" -}}
automountServiceAccountToken: false
serviceAccountName: {{ include "fovea.serviceAccount" . }}
enableServiceLinks: false
securityContext:
  {{- include "fovea.podSecurity" . | nindent 2 }}
{{- include "fovea.pullSecrets" . }}
{{- end }}

{{- define "fovea.clientEnv" -}}
{{ include "fovea.commonEnv" . }}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- with .Values.clients.keySecret }}
{{- if .name }}
- name: OPENAI_API_KEY
  valueFrom:
    secretKeyRef: {name: {{ .name }}, key: {{ .key }}}
{{- end }}
{{- end }}
{{- end }}

{{- define "fovea.pvc" -}}
{{- if and .volume.enabled (not .volume.existingClaim) }}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ include "fovea.fullname" .root }}-{{ .name }}
  labels:
    {{- include "fovea.labels" .root | nindent 4 }}
  annotations:
    helm.sh/resource-policy: keep
spec:
  accessModes: [{{ .volume.accessMode }}]
  {{- with .volume.storageClass }}
  storageClassName: {{ . }}
  {{- end }}
  resources:
    requests: {storage: {{ .volume.size }}}
{{- end }}
{{- end }}
