{{/* Alerts and recording rules, over the series of one release's stack. Each alert has a runbook in docs/runbooks. */}}
{{- define "fovea.rules" -}}
{{- $slo := .Values.observability.rules.slo -}}
{{- $stack := printf "stack=%q" (include "fovea.fullname" .) -}}
{{- $api := printf "%s,route=~\"/v1/.*\"" $stack -}}
{{- $budget := subf 1.0 $slo.availability -}}
groups:
  - name: fovea-records
    rules:
      {{- range $window := list "5m" "30m" "1h" "6h" "1d" }}
      - record: fovea:failures:share{{ $window }}
        labels: {stack: {{ include "fovea.fullname" $ }}}
        expr: (sum by (model) (rate(fovea_requests_total{ {{- $api }},status="5xx"}[{{ $window }}])) or 0 * sum by (model) (rate(fovea_requests_total{ {{- $api }}}[{{ $window }}]))) / (sum by (model) (rate(fovea_requests_total{ {{- $api }}}[{{ $window }}])) > 0)
      {{- end }}
      - record: fovea:request_seconds:p95_5m
        labels: {stack: {{ include "fovea.fullname" . }}}
        expr: histogram_quantile(0.95, sum by (model, le) (rate(fovea_request_seconds_bucket{ {{- $api }}}[5m])))
      - record: fovea:request_seconds:p95_1h
        labels: {stack: {{ include "fovea.fullname" . }}}
        expr: histogram_quantile(0.95, sum by (model, le) (rate(fovea_request_seconds_bucket{ {{- $api }}}[1h])))
      {{- if .Values.stack.money }}
      - record: fovea:usd:per_hour
        labels: {stack: {{ include "fovea.fullname" . }}}
        expr: 3600 * sum by (model, tenant) (rate(fovea_usd_total{ {{- $stack }}}[1h]))
      {{- end }}
  - name: fovea-service
    rules:
      {{- include "fovea.alert" (dict "root" . "name" "FoveaErrorBudgetFast" "runbook" "error-budget" "severity" "critical"
            "expr" (printf "fovea:failures:share1h{STACK} > %v and fovea:failures:share5m{STACK} > %v" (mulf 14.4 $budget | printf "%.6g") (mulf 14.4 $budget | printf "%.6g"))
            "for" "2m"
            "text" "{{ $labels.model }}: {{ $value | humanizePercentage }} of the last hour's requests failed; at this rate a month's error budget is gone in two days") | nindent 6 }}
      {{- include "fovea.alert" (dict "root" . "name" "FoveaErrorBudgetSlow" "runbook" "error-budget" "severity" "warning"
            "expr" (printf "fovea:failures:share6h{STACK} > %v and fovea:failures:share30m{STACK} > %v" (mulf 6.0 $budget | printf "%.6g") (mulf 6.0 $budget | printf "%.6g"))
            "for" "15m"
            "text" "{{ $labels.model }}: {{ $value | humanizePercentage }} of the last six hours' requests failed; at this rate a month's error budget is gone in five days") | nindent 6 }}
      {{- include "fovea.alert" (dict "root" . "name" "FoveaAvailabilityLow" "runbook" "availability" "severity" "critical"
            "expr" (printf "1 - fovea:failures:share1d{STACK} < %v" $slo.availability)
            "for" "5m"
            "text" (printf "{{ $labels.model }}: availability of the last day is {{ $value | humanizePercentage }}, below %v" $slo.availability)) | nindent 6 }}
      {{- include "fovea.alert" (dict "root" . "name" "FoveaLatencyOverSlo" "runbook" "latency" "severity" "critical"
            "expr" (printf "fovea:request_seconds:p95_5m{STACK} > %v" $slo.p95Seconds)
            "for" "10m"
            "text" (printf "{{ $labels.model }}: P95 latency is {{ $value | humanizeDuration }}, the SLO is %v s" $slo.p95Seconds)) | nindent 6 }}
      {{- include "fovea.alert" (dict "root" . "name" "FoveaLatencyJump" "runbook" "latency" "severity" "warning"
            "expr" (printf "fovea:request_seconds:p95_1h{STACK} > %v * (fovea:request_seconds:p95_1h{STACK} offset 1d)" (addf 1.0 $slo.latencyJump))
            "for" "15m"
            "text" "{{ $labels.model }}: P95 of the last hour is {{ $value | humanizeDuration }}, much more than at this time yesterday") | nindent 6 }}
      {{- include "fovea.alert" (dict "root" . "name" "FoveaDown" "runbook" "down" "severity" "critical"
            "expr" "absent(fovea_requests_total{STACK})"
            "for" "5m"
            "text" "no replica of the stack shows metrics") | nindent 6 }}
      {{- range .Values.stack.models }}
      {{- include "fovea.alert" (dict "root" $ "name" "FoveaModelDown" "runbook" "down" "severity" "critical"
            "model" .name
            "expr" (printf "absent(vllm:num_requests_running{STACK,model_name=%q})" .name)
            "for" "5m"
            "text" (printf "no engine of %s shows metrics" .name)) | nindent 6 }}
      {{- end }}
      {{- include "fovea.alert" (dict "root" . "name" "FoveaReplicaFlapping" "runbook" "flapping" "severity" "warning"
            "expr" "count(count by (replica) (max_over_time(process_start_time_seconds{STACK,replica!=\"\"}[1h]))) - count(process_start_time_seconds{STACK,replica!=\"\"}) > 4"
            "for" "5m"
            "text" "{{ $value }} replicas have gone within the last hour") | nindent 6 }}
      {{- include "fovea.alert" (dict "root" . "name" "FoveaRefusing" "runbook" "queue" "severity" "critical"
            "expr" "sum by (model) (rate(fovea_errors_total{STACK,kind=\"overloaded\"}[5m])) / (sum by (model) (rate(fovea_requests_total{STACK}[5m])) > 0) > 0.01"
            "for" "5m"
            "text" "{{ $labels.model }}: {{ $value | humanizePercentage }} of the requests are refused because too many are running") | nindent 6 }}
      {{- if or .Values.stack.identify (kindIs "map" .Values.stack.admit) (kindIs "map" .Values.stack.recall) }}
      {{- include "fovea.alert" (dict "root" . "name" "FoveaStoreGone" "runbook" "store" "severity" "critical"
            "expr" "sum by (model, kind) (rate(fovea_errors_total{STACK,kind=~\"keys_unavailable|limits_unavailable|store_down\"}[5m])) > 0"
            "for" "2m"
            "text" "{{ $labels.model }}: requests fail because a store does not answer ({{ $labels.kind }})") | nindent 6 }}
      {{- end }}
      {{- if .Values.stack.identify }}
      {{- include "fovea.alert" (dict "root" . "name" "FoveaKeysEnd" "runbook" "expiry" "severity" "warning"
            "expr" (printf "min by (tenant) (fovea_keys_end_seconds{STACK}) - time() < %v * 86400" $slo.expiryDays)
            "for" "1h"
            "text" "the last key of {{ $labels.tenant }} ends in {{ $value | humanizeDuration }}") | nindent 6 }}
      {{- end }}
      {{- with .Values.observability.rules.certificate }}
      {{- include "fovea.alert" (dict "root" $ "name" "FoveaCertificateEnds" "runbook" "expiry" "severity" "warning"
            "expr" (printf "min(certmanager_certificate_expiration_timestamp_seconds{namespace=%q,name=%q}) - time() < %v * 86400" $.Release.Namespace . $slo.expiryDays)
            "for" "1h"
            "text" (printf "the certificate %s ends in {{ $value | humanizeDuration }}" .)) | nindent 6 }}
      {{- end }}
      {{- if kindIs "map" .Values.stack.batches }}
      {{- include "fovea.alert" (dict "root" . "name" "FoveaBatchBacklog" "runbook" "batches" "severity" "warning"
            "expr" (printf "time() - (max by (model) (fovea_batch_oldest_seconds{STACK}) > 0) > %v * 3600" $slo.batchHours)
            "for" "10m"
            "text" "{{ $labels.model }}: the oldest batch is not done after {{ $value | humanizeDuration }}") | nindent 6 }}
      {{- end }}
  - name: fovea-engine
    rules:
      {{- include "fovea.alert" (dict "root" . "name" "FoveaQueuePressure" "runbook" "queue" "severity" "warning"
            "expr" (printf "avg by (model_name) (avg_over_time(vllm:num_requests_waiting{STACK}[5m])) > %v" $slo.queuePerReplica)
            "for" "10m"
            "text" "{{ $labels.model_name }}: {{ $value | humanize }} requests wait per replica") | nindent 6 }}
      {{- include "fovea.alert" (dict "root" . "name" "FoveaKvPressure" "runbook" "kv-cache" "severity" "warning"
            "expr" (printf "max by (model_name) (avg_over_time(vllm:kv_cache_usage_perc{STACK}[5m])) > %v" $slo.kvUsage)
            "for" "10m"
            "text" "{{ $labels.model_name }}: {{ $value | humanizePercentage }} of a replica's KV cache is in use") | nindent 6 }}
  {{- if and .Values.observability.pushgateway (or .Values.evaluation.enabled .Values.loadTestGate.enabled .Values.jobs.quantize .Values.jobs.distill) }}
  - name: fovea-jobs
    rules:
      {{- include "fovea.alert" (dict "root" . "name" "FoveaJobFailed" "runbook" "jobs" "severity" "warning"
            "expr" "max by (kind, name) (fovea_job_failed{STACK}) > 0"
            "for" "1m"
            "text" "the {{ $labels.kind }} job {{ $labels.name }} failed") | nindent 6 }}
  {{- end }}
  {{- if .Values.stack.money }}
  - name: fovea-money
    rules:
      {{- include "fovea.alert" (dict "root" . "name" "FoveaSpendJump" "runbook" "spend" "severity" "warning"
            "expr" (printf "fovea:usd:per_hour{STACK} > %v * (fovea:usd:per_hour{STACK} offset 1w) and fovea:usd:per_hour{STACK} > 0.01" (addf 1.0 $slo.spendJump))
            "for" "30m"
            "text" "{{ $labels.tenant }} spends {{ $value | humanize }} dollars an hour on {{ $labels.model }}, much more than at this time a week ago") | nindent 6 }}
      {{- include "fovea.alert" (dict "root" . "name" "FoveaUnpriced" "runbook" "spend" "severity" "info"
            "expr" "sum by (model) (rate(fovea_unpriced_answers_total{STACK}[1h])) > 0.05 * sum by (model) (rate(fovea_requests_total{STACK,status=\"2xx\"}[1h]))"
            "for" "1h"
            "text" "{{ $labels.model }}: one answer in twenty, or more, has no price") | nindent 6 }}
      {{- if .Values.stack.money.journal }}
      {{- include "fovea.alert" (dict "root" . "name" "FoveaJournalLost" "runbook" "spend" "severity" "critical"
            "expr" "sum by (model) (increase(fovea_journal_lost_total{STACK}[15m])) > 0"
            "for" "1m"
            "text" "{{ $labels.model }}: {{ $value | humanize }} answers are missing in the journal that bills are made from") | nindent 6 }}
      {{- end }}
  {{- end }}
  {{- if .Values.evaluation.enabled }}
  - name: fovea-quality
    rules:
      {{- include "fovea.alert" (dict "root" . "name" "FoveaAccuracyDrop" "runbook" "accuracy" "severity" "critical"
            "expr" (printf "max by (model, golden) (fovea_golden_accuracy{STACK}) < max by (model, golden) (fovea_golden_accuracy{STACK} offset 1w) - %v and max by (model, golden) (fovea_golden_accuracy_high{STACK}) < max by (model, golden) (fovea_golden_accuracy{STACK} offset 1w)" $slo.accuracyDrop)
            "for" "5m"
            "text" "{{ $labels.model }} on {{ $labels.golden }}: accuracy is {{ $value | humanizePercentage }}, far below a week ago") | nindent 6 }}
      {{- include "fovea.alert" (dict "root" . "name" "FoveaEvaluationStale" "runbook" "accuracy" "severity" "warning"
            "expr" "time() - max by (model, golden) (fovea_golden_finished_seconds{STACK}) > 2 * 86400 or absent(fovea_golden_finished_seconds{STACK})"
            "for" "1h"
            "text" "no golden set was evaluated for two days") | nindent 6 }}
  {{- end }}
{{- end }}

{{/* (root, name, runbook, severity, expr, for, text); STACK in expr is the matcher of this release's series */}}
{{- define "fovea.alert" -}}
- alert: {{ .name }}
  expr: {{ .expr | replace "STACK" (printf "stack=%q" (include "fovea.fullname" .root)) | quote }}
  for: {{ .for }}
  labels: {severity: {{ .severity }}, stack: {{ include "fovea.fullname" .root }}{{ with .model }}, model: {{ . | quote }}{{ end }}}
  annotations:
    summary: {{ .text | quote }}
    runbook_url: {{ .root.Values.observability.rules.runbooks | trimSuffix "/" }}/{{ .runbook }}.md
{{- end }}
